"""AVA's mean average precision of action detection, as a metric of `evaluate`."""

import datasets
import evaluate

from mvd_hf.detection.ava import ava_map

DESCRIPTION = """
Mean average precision of people's actions per key frame at an intersection over union of 0.5, as the official
evaluation of AVA computes it. Gu et al., AVA: A Video Dataset of Spatio-temporally Localized Atomic Visual Actions,
CVPR 2018.
"""
INPUTS = """
Args:
    predictions: per key frame `video`, `timestamp`, and of each box with an action `boxes` (x1, y1, x2, y2 relative to
        the frame), `actions` (class ids from 1) and `scores`.
    references: per key frame the same without scores; empty for a key frame without people. Each reference has one
        prediction, which may be empty.
    top_k: number of boxes with an action per key frame that count, 50 by default; 0 for all.
    label_map: the scored actions, a .pbtxt file or class ids; AVA's 60 by default.
Returns:
    mAP: from 0 to 1.
    AP: the average precision of each class id, or None where the references have none.
"""


class AvaMap(evaluate.Metric):
    """See the module."""

    def _info(self):
        frame = {
            "video": datasets.Value("string"),
            "timestamp": datasets.Value("float64"),
            "boxes": datasets.List(datasets.List(datasets.Value("float64"))),
            "actions": datasets.List(datasets.Value("int64")),
        }
        scores = {"scores": datasets.List(datasets.Value("float64"))}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": {**frame, **scores}, "references": frame}),
        )

    def _compute(self, predictions, references, top_k=50, label_map=None):
        return ava_map(rows(references), rows(predictions), top_k, label_map=label_map)


def rows(frames: list[dict]) -> list[tuple]:
    """Rows of AVA's files from key frames; those of references have no score."""
    found = []
    for frame in frames:
        key = frame["video"], frame["timestamp"]
        scores = frame.get("scores", [1.0] * len(frame["boxes"]))
        boxes = zip(frame["boxes"], frame["actions"], scores, strict=True)
        found += [(*key, *box, action, score) for box, action, score in boxes] or [key]
    return found
