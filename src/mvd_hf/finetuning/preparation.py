"""Before fine-tuning: which labelled videos to train and to validate on, and the choices that follow from them."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
from accelerate import PartialState

from ..curation.fingerprints import read_fingerprints
from ..curation.splitting import (
    choose_sampling,
    class_warnings,
    find_overlap_by_content,
    split_rows,
    write_duplicates,
)
from ..data.arguments import DataArguments, FinetuningClipArguments
from ..data.decoding import open_media
from ..data.sources import LabelReader, Rows, media_column, media_name, split_names
from ..evaluation.multiview import read_labels
from ..model.loading_mvd import listed
from ..model.video_reading import VideoReadError

logger = logging.getLogger(__name__)

# splits to validate on, the first that a data set has
VALIDATION_SPLITS = ("validation", "val", "valid", "dev", "test")
# videos that are compared by content without being asked to, and those whose lengths are looked at
MAX_COMPARED, MAX_MEASURED = 5000, 200
OVERLAP_RULES = ("raise", "drop", "keep")
FINGERPRINTS, DUPLICATES = "fingerprints.csv", "near_duplicates.csv"


@dataclass
class PreparationArguments:
    """How labelled videos are divided and compared, as a recipe's keys.

    Args:
        validation_fraction: part of each class to validate on, where the data set has no split for it; 0 for none.
        compare_content: whether videos are compared by content, so that no footage is on both sides; by default of
            data sets of at most 5000 videos.
        on_overlap: what to do about videos of a given validation set whose footage is in training: `raise`, `drop`
            them from validation, or `keep` them.
    """

    validation_fraction: float = 0.2
    compare_content: bool | None = None
    on_overlap: str = "raise"

    def __post_init__(self):
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction={self.validation_fraction} must be at least 0 and below 1.")
        if self.on_overlap not in OVERLAP_RULES:
            raise ValueError(f"There is no on_overlap={self.on_overlap!r}; choose {', '.join(OVERLAP_RULES)}.")


@dataclass
class LabelledVideos:
    """Labelled videos for fine-tuning.

    Args:
        train: rows to train on.
        validation: rows to validate and test on, if there are any.
        names: names of the classes, or `None` where there are only numbers.
        num_labels: number of classes.
        labels: class indices of the training rows; `None` of a stream.
    """

    train: Rows
    validation: datasets.Dataset | None
    names: list[str] | None
    num_labels: int
    labels: np.ndarray | None


def find_validation_split(data: DataArguments) -> str | None:
    """The split to validate on, if the recipe does not say: by its usual names."""
    if data.eval_split is not None or data.eval_dataset is not None:
        return data.eval_split
    known = split_names(data.dataset, data.dataset_config)
    return next((name for name in VALIDATION_SPLITS if name in known and name != data.split), None)


def empty_class_folders(source: str, split: str) -> list[str]:
    """Sub-folders of a folder of classes in which no file is."""
    folder = Path(source, split) if Path(source, split).is_dir() else Path(source)
    if not folder.is_dir():
        return []
    holds_files = {
        path.name: any(files for _, _, files in os.walk(path)) for path in folder.iterdir() if path.is_dir()
    }
    return sorted(name for name, has_some in holds_files.items() if not has_some)


def tells_left_from_right(names: Sequence[str] | None) -> bool:
    """Whether names of classes speak of left or right, which a mirror image exchanges."""
    words = [re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", name) for name in names or ()]
    return any(word.lower() in ("left", "right", "clockwise", "anticlockwise") for found in words for word in found)


def video_lengths(rows: Rows) -> list[int]:
    """Frames of videos spread over a data set, as many as are needed to choose how clips are made of them.

    Raises:
        ValueError: if none of those can be read.
    """
    column, lengths, problems = media_column(rows), [], []
    for row in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_MEASURED)).round().astype(int)).tolist():
        item = rows[row][column]
        try:
            with open_media(item) as reader:
                lengths.append(len(reader))
        except VideoReadError as error:
            problems.append(str(error))
    if not lengths:
        raise ValueError(f"None of the videos that were tried can be read: {listed(problems)}.")
    return lengths


def class_names(
    rows: Rows, keys: FinetuningClipArguments, num_labels: int | None
) -> tuple[list[str] | None, np.ndarray | None, int]:
    """Names of the classes (or `None`), class indices of the rows (`None` of a stream), and the number of classes.

    Raises:
        ValueError: if there is no such column, or a stream does not say how many classes there are.
    """
    names = LabelReader(rows, keys.label_column, keys.label_names).names
    if names is not None and num_labels not in (None, len(names)):
        raise ValueError(
            f"config.num_labels={num_labels}, but the data set has {listed(names)} classes: leave it out, or give the "
            "data set that the recipe is for."
        )
    if isinstance(rows, datasets.IterableDataset):
        if names is None and num_labels is None:
            raise ValueError(
                "A stream does not say how many classes there are: give label_names or config.num_labels."
            )
        return names, None, len(names) if names is not None else num_labels
    bound = len(names) if names is not None else num_labels or np.iinfo(np.int64).max
    labels = read_labels(rows, keys.label_column, bound, label_names=keys.label_names)
    count = len(names) if names is not None else num_labels or int(labels.max()) + 1
    return names, labels, count


def is_compared(arguments: PreparationArguments, num_videos: int) -> bool:
    """Whether videos are compared by content."""
    if arguments.compare_content is None and num_videos > MAX_COMPARED:
        logger.info(
            "%d videos are more than %d and are not compared by content; --compare_content true does.",
            num_videos,
            MAX_COMPARED,
        )
    return num_videos <= MAX_COMPARED if arguments.compare_content is None else arguments.compare_content


def divide(
    rows: datasets.Dataset,
    labels: np.ndarray,
    names: list[str] | None,
    arguments: PreparationArguments,
    folder: Path,
    seed: int,
) -> tuple[list[int], list[int]]:
    """Rows to train and to validate on, so that copies and parts of one video are on one side.

    Raises:
        ValueError: if that leaves no video on one of the sides.
    """
    fingerprints = None
    if is_compared(arguments, len(rows)):
        fingerprints = read_fingerprints(rows, cache=folder / FINGERPRINTS)
    fraction = arguments.validation_fraction
    split = split_rows(
        rows, labels.tolist(), fraction=fraction, seed=seed, fingerprints=fingerprints, label_names=names
    )
    if split.duplicates:
        files = [media_name(item) for item in rows[media_column(rows)]]
        write_duplicates(folder / DUPLICATES, split.duplicates, files)
        logger.info("%d pairs of videos share footage: %s", len(split.duplicates), folder / DUPLICATES)
    if not split.validation:
        raise ValueError(
            f"The {len(rows)} videos cannot be divided without separating what belongs together: give eval_dataset, "
            "or --validation_fraction 0 to train without validation."
        )
    logger.info(
        "No validation set is given: %d videos are for training, %d for validation, class by class.",
        len(split.train),
        len(split.validation),
    )
    return split.train, split.validation


def without_overlap(
    train: datasets.Dataset, validation: datasets.Dataset, arguments: PreparationArguments, folder: Path
) -> datasets.Dataset:
    """A validation set, checked for footage that is in training, too.

    Raises:
        ValueError: naming the videos, unless they are to be left out or kept.
    """
    if not is_compared(arguments, len(train) + len(validation)):
        return validation
    overlap = find_overlap_by_content(train, validation, cache=folder / FINGERPRINTS)
    if not overlap.pairs:
        return validation
    if arguments.on_overlap == "raise":
        raise ValueError(
            f"{overlap.describe()}\nAccuracy on them would mean nothing: take them out of one of the sets, or give "
            "--on_overlap drop to leave them out of validation, or keep."
        )
    logger.warning("%s", overlap.describe())
    if arguments.on_overlap == "keep":
        return validation
    leaked = {name for name, _, _ in overlap.pairs}
    column = media_column(validation)
    kept = [i for i, item in enumerate(validation[column]) if media_name(item) not in leaked]
    if not kept:
        raise ValueError("All videos of the validation set are in training: give another one.")
    logger.warning("%d of %d validation videos are left out.", len(validation) - len(kept), len(validation))
    return validation.select(kept)


def prepare_videos(
    data: DataArguments,
    keys: FinetuningClipArguments,
    arguments: PreparationArguments,
    folder: str | Path,
    *,
    num_labels: int | None = None,
    seed: int = 0,
) -> LabelledVideos:
    """Labelled videos of a source, divided and checked; what is worth knowing about the classes is logged.

    A validation split is looked for, else made; a given one is checked for footage that is in training, too.

    Args:
        data: the source.
        keys: where the labels are.
        arguments: how videos are divided and compared.
        folder: where fingerprints of videos are kept.
        num_labels: number of classes, where the data set does not tell.
        seed: of the division.

    Raises:
        ValueError: if labels, classes, files or sets do not fit; it names the items and the remedy.
    """
    folder, state = Path(folder), PartialState()
    data = replace(data, eval_split=find_validation_split(data))
    with state.main_process_first():  # the others find the fingerprints
        folder.mkdir(parents=True, exist_ok=True)
        rows = data.rows()
        names, labels, num_labels = class_names(rows, keys, num_labels)
        is_stream = labels is None
        train, validation = rows, None
        if data.eval_split is not None or data.eval_dataset is not None:
            validation = data.rows(evaluation=True)
            if not is_stream:
                validation = without_overlap(train, validation, arguments, folder)
        elif not is_stream and arguments.validation_fraction:
            train_rows, validation_rows = divide(rows, labels, names, arguments, folder, seed)
            train, validation = rows.select(train_rows), rows.select(validation_rows)
            labels = labels[train_rows]
    if state.is_main_process and not is_stream:
        warn_about_classes(data, labels, validation, names, num_labels, keys)
    return LabelledVideos(train, validation, names, num_labels, labels)


def warn_about_classes(
    data: DataArguments,
    labels: np.ndarray,
    validation: datasets.Dataset | None,
    names: list[str] | None,
    num_labels: int,
    keys: FinetuningClipArguments,
):
    """Log what is worth knowing about the classes of a given split; of one that was made, it was said already."""
    empty = empty_class_folders(data.dataset, data.split)
    if empty:
        logger.warning("Folders of classes without any video, which are left out: %s.", listed(empty))
    if data.eval_split is None and data.eval_dataset is None:
        return
    of_validation = read_labels(validation, keys.label_column, num_labels, names, keys.label_names)
    known = names or [str(i) for i in range(num_labels)]
    for warning in class_warnings(labels.tolist(), of_validation.tolist(), known):
        logger.warning("%s", warning)


def choose_clips(
    keys: FinetuningClipArguments, data: DataArguments, videos: LabelledVideos, num_frames: int
) -> tuple[FinetuningClipArguments, DataArguments]:
    """The keys with the choices made that a recipe leaves open; they are logged.

    Frames are sampled densely or uniformly by the videos' lengths, and clips are flipped unless a class is told by
    left and right.

    Args:
        keys: how clips are made.
        data: the source, with the stride of dense clips.
        videos: the videos.
        num_frames: frames of a clip.

    Raises:
        ValueError: if the videos are a stream, whose lengths are not known, or none can be read.
    """
    sampling, flip, stride = keys.sampling, keys.flip, data.stride
    if sampling is None and videos.labels is None:
        raise ValueError("The lengths of a stream's videos are not known: give sampling, dense or uniform.")
    if sampling is None:
        chosen = choose_sampling(video_lengths(videos.train), num_frames, stride)
        sampling, stride = chosen.kind, chosen.stride
        logger.info("Sampling %s%s: %s", sampling, f" with stride {stride}" * (sampling == "dense"), chosen.reason)
    if flip is None:
        is_sided = tells_left_from_right(videos.names)
        flip = 0.0 if is_sided else 0.5
        if is_sided:
            logger.info("Clips are not flipped: classes are told by left and right.")
    return replace(keys, sampling=sampling, flip=flip), replace(data, stride=stride)
