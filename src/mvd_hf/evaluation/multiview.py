"""Multi-view test of a classifier with the paper's protocol: accuracy per video and per view.

Letters in shapes: N videos, V views of each (clips x crops), K classes, T frames, C channels, H x W pixels.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ..data.hashing import hash_of_weights
from ..data.labels import LabelNames, LabelReader, MultiLabelReader, check_heads, each_label, label_reader
from ..data.sources import media_name
from ..model.labels_mvd import MULTI_LABEL, REGRESSION, head_class_names
from ..model.loading_mvd import listed
from ..model.video_processing_mvd import MVDVideoProcessor
from .results import Evaluation, HeadsEvaluation, MultiLabelEvaluation, RegressionEvaluation, ViewScores
from .views import VideoViews, map_views, protocol_of

logger = logging.getLogger(__name__)

FOLDER_OF_VIEWS = "views"
# the results of a test by the problem type of a model
EVALUATIONS = {MULTI_LABEL: MultiLabelEvaluation, REGRESSION: RegressionEvaluation}


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

    def read(row: dict) -> int:
        label = reader(row)
        found = label if classes is None else classes[label]
        if not 0 <= found < num_labels:
            raise ValueError(f"the label {label} must be a class of the model, from 0 to {num_labels - 1}.")
        return found

    return np.array(list(each_label(rows, column, read)), dtype=np.int64)


def read_multi_labels(
    rows: datasets.Dataset,
    column: str,
    num_labels: int,
    model_names: Sequence[str] | None = None,
    label_names: Sequence[str] | str | None = None,
) -> np.ndarray:
    """Multi-hot labels (N, K) of a data set as classes of a model; arguments and errors as in [`read_labels`]."""
    reader = MultiLabelReader(rows, column, label_names)
    classes = classes_of_labels(reader.names, model_names) or list(range(reader.num_classes))
    if max(classes) >= num_labels:
        raise ValueError(f"The label {max(classes)} in column {column!r} must be below {num_labels}, as in the model.")
    labels = np.zeros((len(rows), num_labels), dtype=np.float32)
    labels[:, classes] = list(each_label(rows, column, reader))
    return labels


def read_model_labels(
    rows: datasets.Dataset, column: str | Sequence[str], model: PreTrainedModel, label_names: LabelNames | None = None
) -> np.ndarray:
    """The labels of a data set as those of a model, by its problem type and heads; errors as in [`read_labels`].

    Args:
        rows: of the data set.
        column: of the labels, or for each head of the model.
        model: a video classifier.
        label_names: names of the classes of the data set, if its labels are plain numbers; of several heads by column.
    """
    config, heads = model.config, getattr(model.config, "label_heads", None)
    if heads or not isinstance(column, str):
        columns = [column] if isinstance(column, str) else column
        if sorted(columns) != sorted(heads or ()):
            has = f"the heads {', '.join(heads)}" if heads else "one head"
            raise ValueError(f"label_column={column} does not fit the model, which has {has}: give a column per head.")
        check_heads(columns, label_names)
        names = [(label_names or {}).get(head) for head in heads]
        parts = zip(heads.items(), names, strict=True)
        found = [read_labels(rows, head, size, head_class_names(config, head), own) for (head, size), own in parts]
        return np.stack(found, axis=1)
    if config.problem_type == REGRESSION:
        reader = label_reader(rows, column, label_names, REGRESSION)
        return np.array(list(each_label(rows, column, reader)), dtype=np.float32)
    read = read_multi_labels if config.problem_type == MULTI_LABEL else read_labels
    return read(rows, column, config.num_labels, model_class_names(model), label_names)


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
    label_column: str | Sequence[str] = "label",
    label_names: LabelNames | None = None,
    folder: str | Path | None = None,
    **options,
) -> ViewScores:
    """Test a classifier on all views of the videos of a data set, as in the paper, for any number of views.

    The results are an [`~mvd_hf.evaluation.results.Evaluation`] or, by the problem type and the heads of the model,
    one of the other classes of `mvd_hf.evaluation.results`.

    Each video is decoded once. Several processes share the videos, and each video counts exactly once. After an
    interruption, results in the folder are not computed again. Videos are identified by their rows, not by their
    names. Unreadable videos are reported as missing.

    Args:
        model: a video classifier of ours or of transformers, on the device to use.
        rows: videos with labels, see `mvd_hf.data.sources.load_rows`.
        processor: makes the views, `num_clips` times `num_crops` per video.
        label_column: column of the labels; of a model with several heads a column for each.
        label_names: names of the classes of the data set, if its labels are plain numbers; of several heads by column.
        folder: of the results; by default a temporary one.
        options: `autocast`, `views_per_pass`, `num_workers`, `replace`, see
            [`~mvd_hf.evaluation.views.ViewOptions`].

    Raises:
        ValueError: if the labels do not match the model, the folder holds other results to keep, or no video can be
            read.
    """
    names, num_labels = model_class_names(model), model.config.num_labels
    labels = read_model_labels(rows, label_column, model, label_names)
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
    heads = getattr(model.config, "label_heads", None)
    kind = partial(HeadsEvaluation, heads=heads) if heads else EVALUATIONS.get(model.config.problem_type, Evaluation)
    return kind(
        videos=[file_names[row] for row in read],
        rows=read,
        labels=labels[read],
        logits=logits,
        names=names or [str(i) for i in range(num_labels)],
        protocol=protocol_of(processor),
        weights=weights,
        missing=[(file_names[row], problem) for row, problem in sorted(results.problems.items())],
    )
