"""Preparation of fine-tuning: splits of labelled videos without leaks, and defaults that depend on the videos."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import torch.distributed as dist
from accelerate import PartialState

from ..curation.fingerprints import read_fingerprints
from ..curation.splitting import (
    choose_sampling,
    class_warnings,
    find_overlap_by_content,
    split_rows,
    write_duplicates,
)
from ..data.arguments import STRIDE, DataArguments, FinetuningClipArguments
from ..data.decoding import open_media
from ..data.labels import LabelNames, LabelReader, each_label, label_reader
from ..data.sources import VALIDATION_SPLITS, Rows, holds_images, media_column, media_name, split_names
from ..evaluation.multiview import read_labels
from ..model.labels_mvd import MULTI_LABEL, REGRESSION
from ..model.loading_mvd import listed
from ..model.video_reading import VideoReadError

logger = logging.getLogger(__name__)

# most videos that are compared by content by default, and most videos whose lengths are read
MAX_COMPARED, MAX_MEASURED = 5000, 200
# words that begin or end with left or right, also when joined (`lefthook`, `swipeleft`), and directions of rotation
DIRECTION = re.compile("(left|right).*|.*(left|right)|.*clockwise|a?c?cw")
NO_DIRECTION = re.compile(
    "leftovers?|leftists?|righteous.*|rightful.*|rightly|rights|cleft|bright|fright|upright|outright|downright|"
    "forthright|birthright|copyright|alright|(play|ship|wheel|mill|cart|boat|wain)?wright"
)
OVERLAP_RULES = ("raise", "drop", "keep")
# parts of numbers that a split shares out like classes
NUM_PARTS = 5
FINGERPRINTS, DUPLICATES = "fingerprints.csv", "near_duplicates.csv"


@dataclass
class PreparationArguments:
    """How labelled videos are split and compared.

    Args:
        validation_fraction: share of each class for validation, if the data set has no validation split; 0 for none.
        compare_content: whether to compare videos by content, so that both sides share no footage; by default for
            data sets of at most 5000 videos.
        on_overlap: how to handle validation videos whose footage, or whose value of `group_column`, is in training:
            `raise`, `drop` or `keep`.
        group_column: a column of `metadata.csv` or parquet, such as the camera or the subject; videos of one value
            stay on one side of the split.
    """

    validation_fraction: float = 0.2
    compare_content: bool | None = None
    on_overlap: str = "raise"
    group_column: str | None = None

    def __post_init__(self):
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction={self.validation_fraction} must be at least 0 and below 1.")
        if self.on_overlap not in OVERLAP_RULES:
            raise ValueError(f"on_overlap={self.on_overlap!r} must be one of {', '.join(OVERLAP_RULES)}.")


@dataclass
class Classes:
    """The labels of a data set.

    Args:
        names: of the classes; `None` without names. Those of several heads are `verb: take`, that of a number is the
            column.
        num_labels: number of classes.
        labels: class index of each row (N,), multi-hot (N, K), indices of heads (N, H) or numbers (N,); `None` for a
            stream.
        label_names: with which other rows are read alike.
        heads: number of classes of each of several heads.
    """

    names: list[str] | None
    num_labels: int
    labels: np.ndarray | None
    label_names: LabelNames | None = None
    heads: dict[str, int] = field(default_factory=dict)


@dataclass
class LabelledVideos(Classes):
    """Labelled videos for fine-tuning."""

    train: Rows | None = None
    validation: datasets.Dataset | None = None


def find_validation_split(data: DataArguments) -> str | None:
    """The validation split: as given, or by its usual names."""
    if data.eval_split is not None or data.eval_dataset is not None:
        return data.eval_split
    known = split_names(data.dataset, data.dataset_config, data.frame_folder_fps)
    return next((name for name in VALIDATION_SPLITS if name in known and name != data.split), None)


def empty_class_folders(source: str, split: str) -> list[str]:
    """Sub-folders without files in a folder of classes."""
    folder = Path(source, split) if Path(source, split).is_dir() else Path(source)
    if not folder.is_dir():
        return []
    holds_files = {
        path.name: any(files for _, _, files in os.walk(path)) for path in folder.iterdir() if path.is_dir()
    }
    return sorted(name for name, has_some in holds_files.items() if not has_some)


def names_directions(names: Sequence[str] | None) -> bool:
    """Whether names of classes distinguish left from right, which a horizontal flip exchanges."""
    words = {word.lower() for name in names or () for word in re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", name)}
    is_direction = any(DIRECTION.fullmatch(word) and not NO_DIRECTION.fullmatch(word) for word in words)
    return is_direction or {"l", "r"} <= words


def video_lengths(rows: Rows) -> list[int]:
    """Numbers of frames of videos spread over a data set; raises ValueError if none of them can be read."""
    column, lengths, problems = media_column(rows), [], []
    for row in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_MEASURED)).round().astype(int)).tolist():
        item = rows[row][column]
        try:
            with open_media(item) as reader:
                lengths.append(len(reader))
        except VideoReadError as error:
            problems.append(str(error))
    if not lengths:
        raise ValueError(f"None of {len(problems)} sampled videos can be read: {listed(problems)}.")
    return lengths


def is_single_label(keys: FinetuningClipArguments) -> bool:
    """Whether a video has one class."""
    return isinstance(keys.label_column, str) and keys.problem_type not in (MULTI_LABEL, REGRESSION)


def read_classes(rows: Rows, keys: FinetuningClipArguments, num_labels: int | None) -> Classes:
    """The labels of rows; raises ValueError if one is wrong, or there are not `num_labels` classes."""
    if is_single_label(keys):
        return read_single_classes(rows, keys, num_labels)
    if not isinstance(keys.label_column, str):
        classes = read_heads(rows, keys)
    elif keys.problem_type == MULTI_LABEL:
        classes = read_multi_classes(rows, keys, num_labels)
    else:
        classes = Classes([keys.label_column], 1, read_all(rows, keys, keys.label_names))
    if num_labels not in (None, classes.num_labels):
        raise ValueError(f"config.num_labels={num_labels} does not fit the {classes.num_labels} of the data set.")
    return classes


def read_all(rows: Rows, keys: FinetuningClipArguments, label_names: LabelNames | None) -> np.ndarray | None:
    """The labels of all rows as a batch has them; `None` for a stream."""
    reader = label_reader(rows, keys.label_column, label_names, keys.problem_type)
    if isinstance(rows, datasets.IterableDataset):
        return None
    labels = np.array(list(each_label(rows, keys.label_column, reader)))
    return labels if labels.dtype.kind == "i" else labels.astype(np.float32)


def read_multi_classes(rows: Rows, keys: FinetuningClipArguments, num_labels: int | None) -> Classes:
    """The classes of rows that have several each."""
    reader = label_reader(rows, keys.label_column, keys.label_names, MULTI_LABEL)
    count = reader.num_classes if reader.names else max(reader.num_classes, num_labels or 0)
    known = reader.names or [str(i) for i in range(count)]
    return Classes(reader.names, count, read_all(rows, keys, known), known)


def read_heads(rows: Rows, keys: FinetuningClipArguments) -> Classes:
    """The classes of rows that have one for each of several heads."""
    reader = label_reader(rows, keys.label_column, keys.label_names)
    if isinstance(rows, datasets.IterableDataset):
        unknown = [part.column for part in reader.readers if part.names is None]
        if unknown:
            raise ValueError(f"The classes of a stream are not known: give label_names for {' and '.join(unknown)}.")
    known: dict[str, list[str]] = {}
    for column in sorted(keys.label_column):
        names = (keys.label_names or {}).get(column)
        found = read_single_classes(rows, replace(keys, label_column=column, label_names=names), None)
        known[column] = found.names or [str(i) for i in range(found.num_labels)]
    names = [f"{column}: {name}" for column, own in known.items() for name in own]
    heads = {column: len(own) for column, own in known.items()}
    return Classes(names, len(names), read_all(rows, keys, known), known, heads)


def strata(classes: Classes, problem_type: str | None) -> tuple[list, list[str] | None]:
    """What a split shares out: for each row its class or classes, and their names. Numbers are in five parts."""
    labels, names = classes.labels, classes.names
    if classes.heads:
        starts = np.cumsum([0, *classes.heads.values()])[:-1]
        return list(map(tuple, (labels + starts).tolist())), names
    if problem_type == MULTI_LABEL:
        return [tuple(np.flatnonzero(row).tolist()) for row in labels], names
    if problem_type == REGRESSION:
        edges = np.quantile(labels, np.linspace(0, 1, NUM_PARTS + 1))
        parts = np.searchsorted(edges[1:-1], labels, side="right")
        ranges = pairwise(edges)
        return [(part,) for part in parts.tolist()], [f"{names[0]} {low:g} to {high:g}" for low, high in ranges]
    return labels.tolist(), names


def read_single_classes(rows: Rows, keys: FinetuningClipArguments, num_labels: int | None) -> Classes:
    """The classes of rows that have one each."""
    names = LabelReader(rows, keys.label_column, keys.label_names).names
    if names is not None and num_labels not in (None, len(names)):
        raise ValueError(
            f"config.num_labels={num_labels}, but the classes of the data set are {listed(names)}: leave it out, or "
            "give the data set of the recipe."
        )
    if isinstance(rows, datasets.IterableDataset):
        if names is None and num_labels is None:
            raise ValueError("The number of classes of a stream is not known: give label_names or config.num_labels.")
        return Classes(names, len(names) if names is not None else num_labels, None, names)
    bound = len(names) if names is not None else num_labels or np.iinfo(np.int64).max
    labels = read_labels(rows, keys.label_column, bound, label_names=keys.label_names)
    if names is None and num_labels is None and set(labels) == set(range(1, labels.max() + 1)):
        raise ValueError(
            f"The labels are numbered from 1 to {labels.max()}, but classes count from 0: subtract 1 from each, or "
            f"give config.num_labels={labels.max() + 1} to keep an empty class 0."
        )
    count = len(names) if names is not None else num_labels or int(labels.max()) + 1
    unused = sorted(set(range(count)) - set(labels.tolist()))
    if names is None and num_labels is None and unused:
        logger.warning(
            "The largest label is %d, so there are %d classes, of which %s have no training video.",
            count - 1,
            count,
            listed([str(label) for label in unused]),
        )
    return Classes(names, count, labels, names)


def is_compared(arguments: PreparationArguments, num_videos: int) -> bool:
    """Whether to compare videos by content."""
    if arguments.compare_content is None and num_videos > MAX_COMPARED:
        logger.info(
            "%d videos, more than %d, are not compared by content unless you give --compare_content true.",
            num_videos,
            MAX_COMPARED,
        )
    return num_videos <= MAX_COMPARED if arguments.compare_content is None else arguments.compare_content


def read_groups(rows: Rows, column: str | None) -> list[str | None] | None:
    """The values, as text, of a column that says which videos belong together; `None` without such a column.

    Raises:
        ValueError: if there is no such column, or the rows are a stream.
    """
    if column is None:
        return None
    if isinstance(rows, datasets.IterableDataset):
        raise ValueError(f"group_column={column!r} needs a data set that is no stream: leave out streaming.")
    if column not in rows.column_names:
        raise ValueError(f"There is no group_column={column!r}; the columns are {', '.join(rows.column_names)}.")
    # NaN is no value, and differs from itself
    return [None if value is None or value != value else group_name(value) for value in rows[column]]


def group_name(value: object) -> str:
    """A value as text; 1.0, from a column of integers with gaps, is `1`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def divide(
    rows: datasets.Dataset,
    classes: Classes,
    problem_type: str | None,
    arguments: PreparationArguments,
    folder: Path,
    seed: int,
) -> tuple[list[int], list[int]]:
    """Training and validation rows; copies and parts of a video are on one side. Raises ValueError if one is empty."""
    fingerprints = None
    if is_compared(arguments, len(rows)):
        fingerprints = read_fingerprints(rows, cache=folder / FINGERPRINTS)
    are_classes = problem_type != REGRESSION
    fraction, (labels, names) = arguments.validation_fraction, strata(classes, problem_type)
    options = {"fingerprints": fingerprints, "label_names": names, "are_classes": are_classes}
    options["sources"] = read_groups(rows, arguments.group_column)
    split = split_rows(rows, labels, fraction=fraction, seed=seed, **options)
    if split.duplicates:
        files = [media_name(item) for item in rows[media_column(rows)]]
        write_duplicates(folder / DUPLICATES, split.duplicates, files)
        logger.info("%d pairs of videos share footage: %s", len(split.duplicates), folder / DUPLICATES)
    if not split.validation:
        raise ValueError(
            f"The {len(rows)} videos cannot be split, as they share footage or a source: give eval_dataset, or "
            "--validation_fraction 0 to train without validation."
        )
    logger.info(
        "There is no validation set: %d videos are used for training, %d for validation, by %s.",
        len(split.train),
        len(split.validation),
        "class" if are_classes else "ranges of the numbers",
    )
    return split.train, split.validation


def without_overlap(
    train: datasets.Dataset, validation: datasets.Dataset, arguments: PreparationArguments, folder: Path
) -> datasets.Dataset:
    """A validation set after the check for groups and footage of the training set; see `on_overlap`."""
    if arguments.group_column is not None:
        validation = without_shared_groups(train, validation, arguments)
    if not is_compared(arguments, len(train) + len(validation)):
        return validation
    overlap = find_overlap_by_content(train, validation, cache=folder / FINGERPRINTS)
    if not overlap.pairs:
        return validation
    if arguments.on_overlap == "raise":
        raise ValueError(
            f"{overlap.describe()}\nAccuracy on them is meaningless: remove them from one of the sets, or give "
            "--on_overlap drop to leave them out of validation, or --on_overlap keep."
        )
    logger.warning("%s", overlap.describe())
    if arguments.on_overlap == "keep":
        return validation
    leaked = {name for name, _, _ in overlap.pairs}
    column = media_column(validation)
    kept = [i for i, item in enumerate(validation[column]) if media_name(item) not in leaked]
    if not kept:
        raise ValueError("All videos of the validation set are in training: give another eval_dataset.")
    logger.warning("%d of %d validation videos are left out.", len(validation) - len(kept), len(validation))
    return validation.select(kept)


def without_shared_groups(
    train: datasets.Dataset, validation: datasets.Dataset, arguments: PreparationArguments
) -> datasets.Dataset:
    """A validation set after the check for values of `group_column` that are in training as well."""
    column = arguments.group_column
    known, values = set(read_groups(train, column)) - {None}, read_groups(validation, column)
    kept = [i for i, value in enumerate(values) if value not in known]
    if len(kept) == len(values):
        return validation
    shared = listed(sorted({value for value in values if value in known}))
    problem = f"{len(values) - len(kept)} of {len(values)} validation videos have a {column} of training: {shared}."
    if arguments.on_overlap == "raise" or (arguments.on_overlap == "drop" and not kept):
        raise ValueError(f"{problem} Give another validation set, or --on_overlap drop (some must be left) or keep.")
    logger.warning("%s They are %s.", problem, "kept" if arguments.on_overlap == "keep" else "left out")
    return validation if arguments.on_overlap == "keep" else validation.select(kept)


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let the main process go first, for as long as it takes.

    Fingerprints of thousands of videos take longer than processes wait for each other in a collective (`ddp_timeout`).
    """
    state = PartialState()
    if state.num_processes == 1:
        yield
        return
    group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    if not state.is_main_process:
        dist.barrier(group)
    yield
    if state.is_main_process:
        dist.barrier(group)
    dist.destroy_process_group(group)


def refuse_images(rows: Rows):
    """Raise ValueError if a data set holds images, of which a test makes no views."""
    column = media_column(rows)
    if holds_images(rows, column):
        raise ValueError(
            f"The column {column!r} holds images, and a classifier is tested on videos. If each folder holds the "
            "frames of a video, give their rate: frame_folder_fps."
        )


def prepare_videos(
    data: DataArguments,
    keys: FinetuningClipArguments,
    arguments: PreparationArguments,
    folder: str | Path,
    *,
    num_labels: int | None = None,
    seed: int = 0,
) -> LabelledVideos:
    """Labelled videos of a source, split for training and validation; logs warnings about the classes.

    Uses the validation split of the source after a check for shared footage, or else splits the training videos.

    Args:
        data: the source.
        keys: column and names of the labels.
        arguments: how to split and compare videos.
        folder: for fingerprints of videos.
        num_labels: number of classes, if the data set does not have it.
        seed: of the split.

    Raises:
        ValueError: if labels, classes, files or sets do not match.
    """
    folder, state = Path(folder), PartialState()
    data = replace(data, eval_split=find_validation_split(data))
    with main_process_first():  # the other processes read its fingerprints
        folder.mkdir(parents=True, exist_ok=True)
        rows = data.rows()
        refuse_images(rows)
        read_groups(rows, arguments.group_column)  # refuses streams and unknown columns
        classes = read_classes(rows, keys, num_labels)
        is_stream = classes.labels is None
        train, validation = rows, None
        if data.eval_split is not None or data.eval_dataset is not None:
            validation = data.rows(evaluation=True)
            if not is_stream:
                validation = without_overlap(train, validation, arguments, folder)
        elif not is_stream and arguments.validation_fraction:
            train_rows, validation_rows = divide(rows, classes, keys.problem_type, arguments, folder, seed)
            train, validation = rows.select(train_rows), rows.select(validation_rows)
            classes.labels = classes.labels[train_rows]
        if validation is not None and keys.problem_type == MULTI_LABEL:
            check_validation_classes(validation, keys, classes)
    if state.is_main_process and not is_stream:
        warn_about_classes(data, classes, validation, keys)
    return LabelledVideos(**vars(classes), train=train, validation=validation)


def check_validation_classes(validation: Rows, keys: FinetuningClipArguments, classes: Classes):
    """Raise ValueError if no video of a validation set has a class, as mAP is not defined then."""
    labels = read_all(validation, keys, classes.label_names)
    if labels is not None and not labels.any():
        raise ValueError(
            f"None of the {len(labels)} validation videos has a class in column {keys.label_column!r}, so there is no "
            "mAP: give another eval_dataset or validation_fraction, or train without validation."
        )


def warn_about_classes(
    data: DataArguments, classes: Classes, validation: datasets.Dataset | None, keys: FinetuningClipArguments
):
    """Log warnings about empty class folders, and about the classes of a given validation split."""
    empty = empty_class_folders(data.dataset, data.split)
    if empty:
        logger.warning("Class folders without videos are left out: %s.", listed(empty))
    if data.eval_split is None and data.eval_dataset is None:
        return
    if is_single_label(keys):
        known = classes.num_labels, classes.names, keys.label_names
        of_validation = read_labels(validation, keys.label_column, *known)
    else:
        of_validation = read_all(validation, keys, classes.label_names)
    if keys.problem_type == REGRESSION:
        return
    train, validation = (
        strata(replace(classes, labels=labels), keys.problem_type)[0] for labels in (classes.labels, of_validation)
    )
    known = classes.names or [str(i) for i in range(classes.num_labels)]
    for warning in class_warnings(train, validation, known):
        logger.warning("%s", warning)


def choose_clips(
    keys: FinetuningClipArguments, data: DataArguments, videos: LabelledVideos, num_frames: int
) -> tuple[FinetuningClipArguments, DataArguments]:
    """Set `sampling`, `stride` and `flip` where they are `None`, and log the choices.

    The sampling depends on the lengths of the videos; clips are flipped unless classes distinguish left from right.
    """
    sampling, flip, stride = keys.sampling, keys.flip, data.stride
    if sampling == "uniform" and data.fps is not None:
        raise ValueError(
            f"fps={data.fps:g} has no effect with sampling=uniform: leave fps out, or give sampling=dense."
        )
    if sampling == "uniform" and stride != STRIDE:
        raise ValueError(
            f"stride={stride} has no effect: clips of sampling=uniform are spread over the whole video. Leave stride "
            "out, or give sampling=dense."
        )
    if sampling is None and data.fps is not None:
        sampling = "dense"
        logger.info("Sampling dense with fps %g: clips are random parts of the video.", data.fps)
    if sampling is None and videos.labels is None:
        raise ValueError("The lengths of the videos of a stream are not known: give sampling, dense or uniform.")
    if sampling is None:
        chosen = choose_sampling(video_lengths(videos.train), num_frames, stride)
        sampling, stride = chosen.kind, chosen.stride
        logger.info("Sampling %s%s: %s", sampling, f" with stride {stride}" * (sampling == "dense"), chosen.reason)
    if flip is None:
        flip = 0.0 if names_directions(videos.names) else 0.5
        if not flip:
            logger.info("Clips are not flipped, as names of classes distinguish left from right.")
    return replace(keys, sampling=sampling, flip=flip), replace(data, stride=stride)
