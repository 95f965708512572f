"""Videos, splits and classes of a folder, by its sub-folders."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import datasets
from datasets.data_files import SPLIT_KEYWORDS
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from huggingface_hub import DatasetCard

from ..model.frame_folders import FRAME_SUFFIXES, frame_files
from ..model.loading_mvd import listed
from ..model.video_file import VideoReadError

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (
    ".3gp",
    ".avi",
    ".flv",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".ogv",
    ".ts",
    ".webm",
    ".wmv",
)
# files that are unpacked before they are read
ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")

CLASS_LEVELS = ("first", "last")
# consecutive images from which on a folder may be a video
FEW_FRAMES = 8
SPLIT_WORDS = {
    "train",
    "training",
    "validation",
    "valid",
    "val",
    "dev",
    "test",
    "testing",
    "eval",
    "evaluation",
    "data",
}
# begins the description of rows whose class folders are ambiguous
AMBIGUOUS = "The class folders are ambiguous: "


# files and splits


def visible_files(folder: str | Path) -> Iterator[str]:
    """Paths of the files of a folder and its sub-folders in order, without hidden ones; links are followed once."""
    visited = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in visited:  # links may lead in circles
            folders.clear()
            continue
        visited.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield from (os.path.join(place, name) for name in sorted(files) if not name.startswith("."))


def chooses_files(folder: str) -> bool:
    """Whether the card of a folder says which files are in which split."""
    card = Path(folder, "README.md")
    return card.is_file() and bool(DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs"))


def split_of(name: str) -> str | None:
    """The split that a folder's name stands for."""
    for split, words in SPLIT_KEYWORDS.items():
        if re.search(rf"(^|[-._ 0-9])({'|'.join(words)})([-._ 0-9]|$)", name.lower()):
            return str(split)
    return None


def find_splits(root: str, files: Sequence[str], guess: dict[str, list[str]]) -> dict[str, list[str]]:
    """The files of each split of a folder.

    `datasets` takes any file or folder whose name holds a word such as `train` or `test` for a part of a split, and
    leaves out all others. Here, a split is a folder at the top; one that holds videos beside those of others is a
    class.

    Args:
        root: of the folder.
        files: all its videos (or images), and its metadata.
        guess: the files of each split as `datasets` finds them.

    Raises:
        ValueError: if folders could be splits as well as classes.
    """
    while files:
        tops = {path: path[len(root) :].strip("/").split("/")[:-1] for path in files}
        names = {folders[0] if folders else "" for folders in tops.values()}
        if len(names) > 1 or names == {""} or split_of(*names):
            break
        root = os.path.join(root, *names)  # a single folder around all
    found: dict[str | None, list[str]] = {}
    for path, folders in (tops if files else {}).items():
        found.setdefault(split_of(folders[0]) if folders else None, []).append(path)
    outside = found.pop(None, [])
    found = {str(split): found[str(split)] for split in SPLIT_KEYWORDS if str(split) in found}
    is_flat = any(len(tops[path]) == 1 for paths in found.values() for path in paths)
    if found and not (outside and is_flat):
        for split, paths in found.items():
            names = sorted({tops[path][0] for path in paths})
            if len(names) > 1:
                raise ValueError(
                    f"The folders {', '.join(names)} of {root!r} are all named like the split {split}: give one of "
                    f"them. If they are classes, move them into a folder {os.path.join(root, 'train')!r}."
                )
        if outside:
            logger.warning("Left out, as they are in none of the splits %s: %s", ", ".join(found), listed(outside))
        return found
    if len(found) > 1:
        raise ValueError(
            f"The folders of {root!r} named like {', '.join(found)} are splits or classes, as others such as "
            f"{outside[0]!r} lie beside them. For splits, move the others away, or give one of the folders. For "
            f"classes, move all into a folder {os.path.join(root, 'train')!r}."
        )
    guessed = [path for paths in guess.values() for path in paths]
    return guess if sorted(guessed) == sorted(files) else {"train": list(files)}


def files_by_split(builder: datasets.DatasetBuilder) -> dict[str, list[str]] | None:
    """Paths or URLs of the files of a folder of videos or images; `None` for other data, metadata or archives."""
    if not isinstance(builder, FolderBasedBuilder):
        return None
    metadata = (*builder.METADATA_FILENAMES, *(builder.config.metadata_filenames or ()))
    paths = {str(split): list(files) for split, files in builder.config.data_files.items()}
    names = [os.path.basename(path) for files in paths.values() for path in files]
    if any(name in metadata or name.lower().endswith(".zip") for name in names):
        return None
    return {
        split: [path for path in files if os.path.splitext(path)[1].lower() in builder.EXTENSIONS]
        for split, files in paths.items()
    }


def folders_of(files: list[str], root: str) -> list[list[str]]:
    """The sub-folders that lead to each file, without those of a split."""
    folders = [os.path.dirname(path)[len(root) :].strip("/").split("/") for path in files]
    folders = [[name for name in names if name] for names in folders]
    word = "data"
    while word == "data" and folders and all(names and names[0] == folders[0][0] for names in folders):
        word = folders[0][0].lower()
        folders = [names[1:] for names in folders] if word in SPLIT_WORDS else folders
    return folders


def readings(folders: list[list[str]]) -> dict[str, list[str]]:
    """Classes of files by the level that names them; a file outside of all folders has the class ``."""
    return {
        "first": [names[0] if names else "" for names in folders],
        "last": [names[-1] if names else "" for names in folders],
    }


def name_some(names: list[str]) -> str:
    """Names of classes, shortened."""
    known = sorted(set(names))
    return f"{len(known)} classes, {', '.join(known[:4])}{', ...' * (len(known) > 4)}"


def find_classes(
    by_split: dict[str, list[str]], root: str, level: str | None
) -> tuple[dict[str, list[str]] | None, str | None]:
    """Classes of the files of each split (`None` without any), or why they are ambiguous.

    Args:
        by_split: paths of files.
        root: of the folder.
        level: `first` or `last`, or `None` if the folder decides.
    """
    places = {split: folders_of(files, root) for split, files in by_split.items()}
    depths = {len(names) for folders in places.values() for names in folders}
    if depths <= {0}:
        return None, None
    found = {split: readings(folders) for split, folders in places.items()}
    first, last = ([name for both in found.values() for name in both[level]] for level in CLASS_LEVELS)
    outside = next(
        (
            path
            for split, files in by_split.items()
            for path, names in zip(files, places[split], strict=True)
            if not names
        ),
        None,
    )
    if outside is not None:
        return None, f"{outside!r} lies in no class folder while others do. Move it into one."
    if level is None and first != last and (len(depths) > 1 or len(set(first)) > 1):
        return None, (
            f"the first level gives {name_some(first)}; the last level gives {name_some(last)}. "
            "Choose with class_level=first or class_level=last."
        )
    level = level or "last"  # a single folder around those of the classes names none
    return {split: both[level] for split, both in found.items()}, None


def with_classes(rows, builder: datasets.DatasetBuilder, split: str, source: str, level: str | None):
    """Rows of a folder with a column `label` of its classes, or without one if there are none or several readings."""
    by_split = files_by_split(builder)
    if by_split is None or split not in by_split:
        if level is not None:
            raise ValueError(f"class_level={level!r} is for folders of videos without metadata, not {source!r}.")
        return rows
    if os.path.isdir(source) and by_split[split][0].lower().endswith(FRAME_SUFFIXES):
        warn_of_frames(os.path.dirname(by_split[split][0]))
    root = os.path.realpath(source) if os.path.isdir(source) else "/".join(by_split[split][0].split("/")[:5])
    return label_rows(rows, by_split, split, root, level)


def label_rows(rows, by_split: dict[str, list[str]], split: str, root: str, level: str | None):
    """Rows of the files of a split with their column `label`, or without one if there are none or several readings."""
    classes, reason = find_classes(by_split, root, level)
    names = sorted({name for found in (classes or {}).values() for name in found})
    known = (rows.features or {}).get("label")
    if classes is None or not isinstance(known, datasets.ClassLabel) or known.names != names:
        rows = rows.remove_columns("label") if known is not None else rows
        if classes is not None:
            rows = add_labels(rows, by_split[split], classes[split], datasets.ClassLabel(names=names))
    if reason is not None:
        rows.info.description = AMBIGUOUS + reason
    return rows


def add_labels(rows, files: list[str], classes: list[str], feature: datasets.ClassLabel):
    """Rows with the column `label`, in the order of the files or, of a stream, by their paths."""
    labels = [feature.str2int(name) for name in classes]
    if isinstance(rows, datasets.Dataset):
        return rows.add_column("label", labels, feature=feature)
    (media,) = rows.features
    by_path = dict(zip(files, labels, strict=True))
    features = datasets.Features({**rows.features, "label": feature})
    return rows.map(label_of_path, fn_kwargs={"media": media, "by_path": by_path}, features=features)


def label_of_path(row: dict, media: str, by_path: dict[str, int]) -> dict:
    """The label of a row of a stream."""
    return {"label": by_path[row[media]["path"]]}


# folders of frames


def warn_of_frames(folder: str):
    """Log a warning if a folder of images, which are read as still clips, looks like the frames of a video."""
    with suppress(VideoReadError):
        if len(frame_files(folder)) >= FEW_FRAMES:
            logger.warning(
                "Every image is a still clip of its own. If folders such as %s hold the frames of a video, give "
                "frame_folder_fps.",
                folder,
            )


def frame_folder_splits(source: str) -> dict[str, list[str]]:
    """The folders of frames of each split of a folder.

    Raises:
        ValueError: if there is none, the folder is one itself, images lie beside folders of frames, or folders could
            be splits as well as classes.
    """
    root = os.path.realpath(source)
    images = (path for path in visible_files(root) if path.lower().endswith(FRAME_SUFFIXES))
    found = sorted({os.path.dirname(path) for path in images})
    if not found or found == [root]:
        what = "is a folder of frames itself: give the folder around it" if found else "holds no folders of frames"
        raise ValueError(f"frame_folder_fps is for folders of frames, but {source!r} {what}.")
    places = map(Path, {os.path.dirname(path) for path in found})
    above = {str(folder) for place in places for folder in (place, *place.parents)}
    for path in found:
        if path in above:
            raise ValueError(f"{path!r} holds images beside folders of frames: move the images away.")
    return find_splits(root, found, {"train": found})


def read_frame_folders(source: str, split: str, level: str | None, fps: float) -> datasets.Dataset:
    """The folders of frames of a split as rows of videos, with the column `label` of their classes if they have any.

    Args:
        source: the folder around them.
        split: one of its splits.
        level: which sub-folders name the classes, as in [`with_classes`].
        fps: frames per second.

    Raises:
        ValueError: as [`frame_folder_splits`], or if there is no such split.
    """
    by_split = frame_folder_splits(source)
    if split not in by_split:
        raise ValueError(f"{source!r} has no split {split!r} of folders of frames, only {', '.join(by_split)}.")
    videos = [{"path": path, "bytes": None, "fps": fps} for path in by_split[split]]
    return label_rows(datasets.Dataset.from_dict({"video": videos}), by_split, split, os.path.realpath(source), level)
