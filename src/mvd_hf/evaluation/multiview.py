"""Stage 3, testing: multi-view accuracy of a classifier by the paper's protocol, per video and per view.

Letters in shapes: N videos, V views of each (clips x crops), K classes, T frames, C channels, H x W pixels.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from .metrics import class_accuracies, confusion_matrix, mean_class_accuracy, softmax, top_k_hits
from .views import VideoViews, map_views, protocol_of

logger = logging.getLogger(__name__)

FOLDER_OF_VIEWS = "views"


@dataclass
class Evaluation:
    """Scores of the views of a data set's videos.

    Args:
        videos: (N,) names of the videos that could be read.
        rows: (N,) their rows in the data set.
        labels: (N,) class indices.
        logits: (N, V, K) float32, all crops of the first clip first.
        names: (K,) names of the classes.
        protocol: frames x clips x crops, such as `16x5x3`.
        weights: digest of the model's weights, see `mvd_hf.data.hashing`.
        missing: (name, reason) of each other video of the data set, which could not be read.
    """

    videos: list[str]
    rows: list[int]
    labels: np.ndarray
    logits: np.ndarray
    names: list[str]
    protocol: str
    weights: str
    missing: list[tuple[str, str]] = field(default_factory=list)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(N, K) float64: the mean of the softmax of a video's views."""
        return softmax(self.logits).mean(axis=1)

    @cached_property
    def predictions(self) -> np.ndarray:
        """(N,) class indices of highest probability."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confusion(self) -> np.ndarray:
        """(K, K): how often each class (row) was taken for each class (column)."""
        return confusion_matrix(self.predictions, self.labels, len(self.names))

    def metrics(self) -> dict[str, float | int | str]:
        """The figures of a test, accuracies as parts of 1.

        `video_*` are over videos, from the mean of their views' probabilities (what the paper reports); `clip_*` are
        over single views. `missing` videos are in none of them. `weights` tells which model was tested.
        """
        views, labels = self.logits.reshape(-1, len(self.names)), np.repeat(self.labels, self.logits.shape[1])
        return {
            "protocol": self.protocol,
            "num_videos": len(self.videos),
            "missing": len(self.missing),
            **{f"video_top{k}": float(top_k_hits(self.probabilities, self.labels, k).mean()) for k in (1, 5)},
            **{f"clip_top{k}": float(top_k_hits(views, labels, k).mean()) for k in (1, 5)},
            "mean_class_accuracy": mean_class_accuracy(self.predictions, self.labels, len(self.names)),
            "weights": self.weights,
        }

    def per_class(self) -> list[dict]:
        """Per class: its `class` and `name`, how many `videos` it has, and its `accuracy` (`None` without videos)."""
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
        """Videos whose top-1 is wrong, the most confident first."""
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
        """The figures as lines of text, with their protocol."""
        figures = {key: f"{100 * value:.2f} %" for key, value in self.metrics().items() if isinstance(value, float)}
        lines = [
            f"{len(self.videos)} videos, {self.protocol} (frames x clips x crops):",
            f"  over videos: top-1 {figures['video_top1']}, top-5 {figures['video_top5']}, mean over classes "
            f"{figures['mean_class_accuracy']}",
            f"  over single views: top-1 {figures['clip_top1']}, top-5 {figures['clip_top5']}",
        ]
        if self.missing:
            lines.append(f"  {len(self.missing)} further videos could not be read and count in none of these figures")
        return "\n".join(lines)


def class_names(model: PreTrainedModel) -> list[str] | None:
    """The names of a classifier's classes, in order; `None` if it has only numbers."""
    names = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    return None if names == [f"LABEL_{i}" for i in range(len(names))] else names


def classes_of_labels(own: Sequence[str] | None, model_names: Sequence[str] | None) -> list[int] | None:
    """The model's class of each of a data set's classes, by name; `None` where either has only numbers, which agree.

    Raises:
        ValueError: naming classes of the data set that the model does not have.
    """
    if own is None or model_names is None:
        return None
    strange = [name for name in own if name not in model_names]
    if strange:
        raise ValueError(
            f"The model lacks classes of the data set: {listed(strange)}. Its own classes are {listed(model_names)}. "
            "Take the data set that the model was trained for, or fine-tune the model on this one."
        )
    return [list(model_names).index(name) for name in own]


def read_labels(
    rows: datasets.Dataset,
    column: str,
    num_labels: int,
    model_names: Sequence[str] | None = None,
    label_names: Sequence[str] | str | None = None,
) -> np.ndarray:
    """The labels (N,) of a data set as a model's classes, by name where both have names, without touching its videos.

    Args:
        rows: where the labels are.
        column: their column.
        num_labels: number of the model's classes.
        model_names: their names, if they have any.
        label_names: names of the classes that the labels' numbers stand for, if the data set does not know them.

    Raises:
        ValueError: naming classes that the model does not have, or the video of a label that is none of the classes.
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
                problem = f"the label {label} is none of the model's {num_labels} classes 0 to {num_labels - 1}."
        except ValueError as error:
            problem = str(error)
        if problem is not None:
            raise ValueError(f"{media_name(rows[i][media_column(rows)])}: {problem}")
    return np.array(labels, dtype=np.int64)


def takes_bytes(model: PreTrainedModel, processor: MVDVideoProcessor) -> bool:
    """Whether a model can be given pixels as bytes, as it normalises them just as the processor would."""
    if model.config.model_type != "mvd" or not (processor.do_rescale and processor.do_normalize):
        return False
    same = [
        np.array_equal(getattr(model.config, name), getattr(processor, name)) for name in ("image_mean", "image_std")
    ]
    return all(same) and abs(255 * processor.rescale_factor - 1) < 1e-6


@torch.inference_mode()
def evaluate_views(
    model: PreTrainedModel,
    rows: datasets.Dataset,
    processor: MVDVideoProcessor,
    *,
    label_column: str = "label",
    label_names: Sequence[str] | str | None = None,
    folder: str | Path | None = None,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    views_per_pass: int = 16,
    num_workers: int = 2,
) -> Evaluation:
    """Test a classifier on all views of the videos of a data set: the paper's protocol, for any number of views.

    Videos are decoded once for all their views. With several processes each takes a part of them; every video counts
    exactly once. After an interruption, what is in the folder is not computed again. Videos are told apart by their
    rows, so that equal file names do not matter; ones that cannot be read are reported as missing, never replaced.

    Args:
        model: a video classifier, ours or another of transformers, on the device to use.
        rows: videos with labels, see `mvd_hf.data.sources.load_rows`.
        processor: makes the views; its `num_clips` and `num_crops` say how many.
        label_column: column of the labels.
        label_names: names of the classes that the labels' numbers stand for, if the data set does not know them.
        folder: where results are kept; by default a temporary one.
        autocast: gives the context for reduced precision, such as `accelerator.autocast`.
        views_per_pass: views that the model sees at once, at most.
        num_workers: worker processes that decode.

    Raises:
        ValueError: if the labels do not fit the model, the folder holds results of something else, or no video can be
            read.
    """
    state, names, num_labels = PartialState(), class_names(model), model.config.num_labels
    labels = read_labels(rows, label_column, num_labels, names, label_names)
    videos, weights = VideoViews(rows, processor, takes_bytes(model, processor)), hash_of_weights(model.state_dict())
    temporary = [mkdtemp(prefix="mvd_views_") if folder is None and state.is_main_process else None]
    if folder is None:
        broadcast_object_list(temporary)

    def classify(views: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of views."""
        with autocast():
            return {"logits": model(pixel_values=views.to(model.device, non_blocking=True)).logits.float()}

    was_training = model.training
    model.eval()
    results = map_views(
        classify,
        videos,
        temporary[0] if folder is None else Path(folder) / FOLDER_OF_VIEWS,
        {"weights": weights},
        views_per_pass=views_per_pass,
        num_workers=num_workers,
    )
    model.train(was_training)
    read = results.rows()
    if not read:
        raise ValueError(f"None of the {len(rows)} videos can be read: the warnings above say why.")
    logits = results.stack("logits")
    if folder is None:
        state.wait_for_everyone()  # all have read
        if state.is_main_process:
            shutil.rmtree(temporary[0])
    file_names = [media_name(item) for item in rows[videos.column]]
    twice = len(file_names) - len(set(file_names))
    if twice and state.is_main_process:
        logger.warning("%d rows name a video that another row names, too; each row counts.", twice)
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
