"""Top-1 and top-5 accuracy of videos from the logits of their views, as a metric of `evaluate`."""

import datasets
import evaluate
import numpy as np

from mvd_hf.evaluation.metrics import merge_views, top_k_accuracy

DESCRIPTION = """
Accuracy per video and per view. The softmax of each view (temporal clip x spatial crop) is averaged over the views of
a video; repeated views count once. Wang et al., Masked Video Distillation, CVPR 2023.
"""
INPUTS = """
Args:
    predictions: logits (classes,) of each view.
    references: class index of each view's video.
    videos: identifier of the video of each view, as text.
    clips, crops: indices of the view in its video.
Returns:
    video_top1, video_top5: accuracy over videos, from 0 to 1.
    clip_top1, clip_top5: accuracy over single views.
    num_videos, num_views: numbers of videos and views.
"""
CITATION = """
@inproceedings{wang2023masked,
  title={Masked Video Distillation: Rethinking Masked Feature Modeling for Self-supervised Video Representation
         Learning},
  author={Wang, Rui and Chen, Dongdong and Wu, Zuxuan and Chen, Yinpeng and Dai, Xiyang and Liu, Mengchen and Yuan, Lu
          and Jiang, Yu-Gang},
  booktitle={CVPR},
  year={2023}
}
"""


class MultiviewAccuracy(evaluate.Metric):
    """See the module."""

    def _info(self):
        features = {
            "predictions": datasets.Sequence(datasets.Value("float32")),
            "references": datasets.Value("int64"),
            "videos": datasets.Value("string"),
            "clips": datasets.Value("int64"),
            "crops": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, videos, clips, crops):
        logits, labels = np.array(predictions), np.array(references)
        views = list(zip(clips, crops, strict=True))
        names, probabilities, counts = merge_views(logits, videos, views)
        first: dict = {}
        for row, key in enumerate(zip(videos, views, strict=True)):
            first.setdefault(key, row)
        label_of: dict = {}
        for name, label in zip(videos, references, strict=True):
            if label_of.setdefault(name, label) != label:
                raise ValueError(f"The views of {name!r} have the labels {label_of[name]} and {label}.")
        rows = list(first.values())
        of_videos = np.array([label_of[name] for name in names])
        return {
            "video_top1": top_k_accuracy(probabilities, of_videos, 1),
            "video_top5": top_k_accuracy(probabilities, of_videos, 5),
            "clip_top1": top_k_accuracy(logits[rows], labels[rows], 1),
            "clip_top5": top_k_accuracy(logits[rows], labels[rows], 5),
            "num_videos": len(names),
            "num_views": int(counts.sum()),
        }
