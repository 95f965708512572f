"""Multi-view test of a classifier with the paper's protocol: accuracy per video and per view.

Letters in shapes: N videos, V views of each (clips x crops), K classes, T frames, C channels, H x W pixels.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ..data.hashing import hash_of_weights
from ..data.sources import LabelReader, column_names, media_column, media_name
from ..model.loading_mvd import listed
from ..model.video_processing_mvd import MVDVideoProcessor
from .metrics import (
    class_accuracies,
    confusion_matrix,
    macro_f1,
    mean_class_accuracy,
    softmax,
    top_k_hits,
    wilson_interval,
)
from .views import VideoViews, map_views, protocol_of

logger = logging.getLogger(__name__)

FOLDER_OF_VIEWS = "views"
# number of videos below which a test reports how uncertain its accuracy is
FEW_VIDEOS = 200


@dataclass
class Evaluation:
    """Scores of the views of a data set's videos.

    Args:
        videos: (N,) names of the readable videos.
        rows: (N,) their rows in the data set.
        labels: (N,) class indices.
        logits: (N, V, K) float32, all crops of the first clip first.
        names: (K,) names of the classes.
        protocol: frames x clips x crops, such as `16x5x3`.
        weights: hash of the weights of the model, see `mvd_hf.data.hashing`.
        missing: (name, error) of each video that could not be read.
        majority_class: the most frequent class of the training videos, if they are known.
    """

    videos: list[str]
    rows: list[int]
    labels: np.ndarray
    logits: np.ndarray
    names: list[str]
    protocol: str
    weights: str
    missing: list[tuple[str, str]] = field(default_factory=list)
    majority_class: int | None = None

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(N, K) float64: mean softmax of the views of each video."""
        return softmax(self.logits).mean(axis=1)

    @cached_property
    def predictions(self) -> np.ndarray:
        """(N,) most probable classes."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confusion(self) -> np.ndarray:
        """(K, K): counts of each true class (row) and predicted class (column)."""
        return confusion_matrix(self.predictions, self.labels, len(self.names))

    def metrics(self) -> dict[str, float | int | str]:
        """The metrics of a test; accuracies are from 0 to 1.

        `video_*` are accuracies over videos, from the mean probabilities of their views (as the paper reports);
        `clip_*` are over single views. With at most five classes every answer is among the top 5, and there is no
        `*_top5`. Missing videos are excluded. `weights` is the hash of the tested weights.
        `majority_top1` is the accuracy of always naming the `majority_class`, if it is known.
        """
        majority = {}
        if self.majority_class is not None:
            majority["majority_top1"] = float((self.labels == self.majority_class).mean())
        ranks = (1, 5) if len(self.names) > 5 else (1,)
        views, labels = self.logits.reshape(-1, len(self.names)), np.repeat(self.labels, self.logits.shape[1])
        return {
            "protocol": self.protocol,
            "num_videos": len(self.videos),
            "missing": len(self.missing),
            **{f"video_top{k}": float(top_k_hits(self.probabilities, self.labels, k).mean()) for k in ranks},
            **{f"clip_top{k}": float(top_k_hits(views, labels, k).mean()) for k in ranks},
            "mean_class_accuracy": mean_class_accuracy(self.predictions, self.labels, len(self.names)),
            "macro_f1": macro_f1(self.confusion),
            **majority,
            "weights": self.weights,
        }

    def per_class(self) -> list[dict]:
        """Index, name, number of videos and accuracy (`None` without videos) of each class."""
        accuracies, totals = class_accuracies(self.confusion), self.confusion.sum(axis=1)
        return [
            {
                "class": i,
                "name": name,
                "videos": int(totals[i]),
                "accuracy": None if np.isnan(accuracies[i]) else float(accuracies[i]),
            }
            for i, name in enumerate(self.names)
        ]

    def mistakes(self) -> list[dict]:
        """Videos with a wrong top-1 prediction, most confident first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        confidence = self.probabilities[np.arange(len(self.videos)), self.predictions]
        return [
            {
                "video": self.videos[i],
                "row": self.rows[i],
                "label": self.names[self.labels[i]],
                "prediction": self.names[self.predictions[i]],
                "confidence": float(confidence[i]),
                "probability_of_label": float(self.probabilities[i, self.labels[i]]),
            }
            for i in wrong[np.argsort(-confidence[wrong], kind="stable")]
        ]

    def describe(self) -> str:
        """The metrics in words, with the test protocol."""
        figures = {key: f"{100 * value:.2f} %" for key, value in self.metrics().items() if isinstance(value, float)}
        top5 = {
            kind: f", top-5 {figures[f'{kind}_top5']}" if len(self.names) > 5 else "" for kind in ("video", "clip")
        }
        lines = [
            f"{len(self.videos)} videos, {self.protocol} (frames x clips x crops):",
            f"  over videos: top-1 {figures['video_top1']}{top5['video']}, mean over classes "
            f"{figures['mean_class_accuracy']}",
            f"  over single views: top-1 {figures['clip_top1']}{top5['clip']}",
        ]
        if len(self.videos) < FEW_VIDEOS:
            low, high = wilson_interval(self.metrics()["video_top1"], len(self.videos))
            lines.append(
                f"  {len(self.videos)} videos are few: with 95 % confidence the true top-1 is between "
                f"{100 * low:.0f} % and {100 * high:.0f} %"
            )
        if self.metrics()["video_top1"] <= self.metrics().get("majority_top1", -1):
            lines.append(
                f"  not better than always naming {self.names[self.majority_class]!r}, the most frequent class of "
                f"training: {figures['majority_top1']}"
            )
        if self.missing:
            lines.append(f"  {len(self.missing)} more videos could not be read and are excluded")
        return "\n".join(lines)


def model_class_names(model: PreTrainedModel) -> list[str] | None:
    """The names of the classes of a classifier, in order; `None` if they have the default names."""
    names = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    return None if names == [f"LABEL_{i}" for i in range(len(names))] else names


def classes_of_labels(names: Sequence[str] | None, model_names: Sequence[str] | None) -> list[int] | None:
    """The class of the model for each class of a data set, by name; `None` where either side has no names."""
    if names is None or model_names is None:
        return None
    unknown = [name for name in names if name not in model_names]
    if unknown:
        raise ValueError(
            f"The model lacks classes of the data set: {listed(unknown)}. Its own classes are {listed(model_names)}. "
            "Give the data set that the model was trained for, or fine-tune the model on this one."
        )
    return [list(model_names).index(name) for name in names]


def read_labels(
    rows: datasets.Dataset,
    column: str,
    num_labels: int,
    model_names: Sequence[str] | None = None,
    label_names: Sequence[str] | str | None = None,
) -> np.ndarray:
    """The labels (N,) of a data set as classes of a model, matched by name if both have names; reads no videos.

    Args:
        rows: of the data set.
        column: of the labels.
        num_labels: number of classes of the model.
        model_names: names of the classes of the model, if they have names.
        label_names: names of the classes of the data set, if its labels are plain numbers.

    Raises:
        ValueError: naming a class that the model does not have, or the video of a label that is out of range.
    """
    reader = LabelReader(rows, column, label_names)
    classes = classes_of_labels(reader.names, model_names)
    top = column.partition(".")[0]
    labels = []
    for i, row in enumerate(rows.select_columns(top) if top in column_names(rows) else rows):
        problem = None
        try:
            label = reader(row)
            labels.append(label if classes is None else classes[label])
            if not 0 <= labels[-1] < num_labels:
                problem = f"the label {label} must be a class of the model, from 0 to {num_labels - 1}."
        except ValueError as error:
            problem = str(error)
        if problem is not None:
            raise ValueError(f"{media_name(rows[i][media_column(rows)])}: {problem}")
    return np.array(labels, dtype=np.int64)


def takes_bytes(model: PreTrainedModel, processor: MVDVideoProcessor) -> bool:
    """Whether a model normalises bytes itself, with the same numbers as the processor."""
    if model.config.model_type != "mvd" or not (processor.do_rescale and processor.do_normalize):
        return False
    same = [
        np.array_equal(getattr(model.config, name), getattr(processor, name)) for name in ("image_mean", "image_std")
    ]
    return all(same) and abs(255 * processor.rescale_factor - 1) < 1e-6


@contextmanager
def shared_folder(folder: str | Path | None) -> Iterator[Path]:
    """The folder `views` in a folder, or else a temporary folder that all processes share."""
    if folder is not None:
        yield Path(folder) / FOLDER_OF_VIEWS
        return
    state = PartialState()
    temporary = [mkdtemp(prefix="mvd_views_") if state.is_main_process else None]
    broadcast_object_list(temporary)
    yield Path(temporary[0])
    state.wait_for_everyone()  # all have read
    if state.is_main_process:
        shutil.rmtree(temporary[0])


@torch.inference_mode()
def evaluate_views(
    model: PreTrainedModel,
    rows: datasets.Dataset,
    processor: MVDVideoProcessor,
    *,
    label_column: str = "label",
    label_names: Sequence[str] | str | None = None,
    folder: str | Path | None = None,
    **options,
) -> Evaluation:
    """Test a classifier on all views of the videos of a data set, as in the paper, for any number of views.

    Each video is decoded once. Several processes share the videos, and each video counts exactly once. After an
    interruption, results in the folder are not computed again. Videos are identified by their rows, not by their
    names. Unreadable videos are reported as missing.

    Args:
        model: a video classifier of ours or of transformers, on the device to use.
        rows: videos with labels, see `mvd_hf.data.sources.load_rows`.
        processor: makes the views, `num_clips` times `num_crops` per video.
        label_column, label_names: column of the labels, and names of the classes if the labels are plain numbers.
        folder: of the results; by default a temporary one.
        options: `autocast`, `views_per_pass`, `num_workers`, `replace`, see
            [`~mvd_hf.evaluation.views.ViewOptions`].

    Raises:
        ValueError: if the labels do not match the model, the folder holds other results to keep, or no video can be
            read.
    """
    names, num_labels = model_class_names(model), model.config.num_labels
    labels = read_labels(rows, label_column, num_labels, names, label_names)
    videos, weights = VideoViews(rows, processor, takes_bytes(model, processor)), hash_of_weights(model.state_dict())

    def classify(views: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of views."""
        return {"logits": model(pixel_values=views.to(model.device, non_blocking=True)).logits.float()}

    was_training = model.training
    model.eval()
    with shared_folder(folder) as place:
        results = map_views(classify, videos, place, {"weights": weights}, **options)
        model.train(was_training)
        read = results.rows()
        if not read:
            raise ValueError(f"None of the {len(rows)} videos can be read: the warnings above have the reasons.")
        logits = results.stack("logits")
    file_names = [media_name(item) for item in rows[videos.column]]
    repeated = len(file_names) - len(set(file_names))
    if repeated and PartialState().is_main_process:
        logger.warning("%d rows repeat the video of another row; each row counts.", repeated)
    return Evaluation(
        videos=[file_names[row] for row in read],
        rows=read,
        labels=labels[read],
        logits=logits,
        names=names or [str(i) for i in range(num_labels)],
        protocol=protocol_of(processor),
        weights=weights,
        missing=[(file_names[row], problem) for row, problem in sorted(results.problems.items())],
    )
