"""Loads data sets from list files, folders, parquet, WebDataset and the Hub, as rows of undecoded files."""

import csv
import hashlib
import itertools
import logging
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import datasets
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder

from ..arguments import check_path
from .atomic import replace_file
from .builders import make_builder
from .folders import CLASS_LEVELS, frame_folder_splits, read_frame_folders, with_classes
from .list_files import read_json_lines, read_list_file
from .urls import check_places, is_foreign

logger = logging.getLogger(__name__)

LIST_FILE_SUFFIXES = (".csv", ".txt", ".list", ".lst", ".jsonl")
FILE_BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
# names of splits to evaluate on, in order of preference
VALIDATION_SPLITS = ("validation", "val", "valid", "dev", "test")
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")
VIDEO_COLUMNS = ("video", "mp4", "webm", "avi", "mkv", "mov")
PATH_COLUMNS = ("path", "file")

# what `datasets` raises for data sets that it cannot read, such as a damaged archive
LOADING_ERRORS = (datasets.exceptions.DatasetsError, OSError, ValueError, zipfile.BadZipFile, tarfile.TarError)

Rows = datasets.Dataset | datasets.IterableDataset

# arguments of a recipe that say how `load_rows` reads a source
SOURCE_CHOICES = ("video_column", "class_level", "allow_local_urls", "frame_folder_fps")


def source_choices(arguments) -> dict:
    """The [`SOURCE_CHOICES`] of a recipe's arguments, for [`load_rows`]."""
    return {name: getattr(arguments, name) for name in SOURCE_CHOICES}


def load_options(source: str, split: str, name: str | None) -> dict:
    """Arguments of `datasets.load_dataset` for a source that is not a list file."""
    suffix = Path(source).suffix.lower()
    if suffix in FILE_BUILDERS:
        return {"path": FILE_BUILDERS[suffix], "data_files": {split: source}}
    # a folder such as `.` has no name, which the library needs
    return {"path": os.path.realpath(source) if Path(source).name in ("", "..") else source, "name": name}


def check_kind_of_file(source: str):
    """Raise ValueError if a source is a file of none of the kinds that hold data sets."""
    known = (*LIST_FILE_SUFFIXES, *FILE_BUILDERS)
    if os.path.isfile(source) and Path(source).suffix.lower() not in known:
        raise ValueError(f"The file {source!r} is no data set: give one of {', '.join(known)}, or a folder of videos.")


def evaluation_split(source: str, name: str | None = None, frame_folder_fps: float | None = None) -> str:
    """The split of a source to evaluate on, if none is given: that with a usual name, or the only one.

    Raises:
        ValueError: if there is no such split, naming all of them.
    """
    known = split_names(source, name, frame_folder_fps)
    chosen = next((split for split in VALIDATION_SPLITS if split in known), None)
    if chosen is None and len(known) > 1:
        raise ValueError(f"{source!r} has the splits {', '.join(known)}: give split, one of them.")
    chosen = chosen or (known[0] if known else "train")
    if known:
        logger.info("Evaluating on the split %r of %s.", chosen, source)
    return chosen


def undecoded(rows: Rows) -> Rows:
    """Rows whose videos and images stay files."""
    if isinstance(rows, datasets.IterableDataset) and rows.features:
        return rows.decode(False)  # remote streams come with decoding switched on
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Video | datasets.Image):
            rows = rows.cast_column(column, type(feature)(decode=False))
    return rows


def load_rows(
    source: str,
    split: str = "train",
    root: str | None = None,
    name: str | None = None,
    streaming: bool = False,
    *,
    video_column: str | None = None,
    class_level: str | None = None,
    allow_local_urls: bool = False,
    frame_folder_fps: float | None = None,
) -> Rows:
    """The undecoded videos (or images) of a source: a column of `{"path", "bytes"}`, and labels if there are any.

    Args:
        source: a list file, a parquet or WebDataset (.tar) file or pattern, a folder (`videofolder`, `imagefolder`,
            parquet, WebDataset) or a Hub data set id. Files are local or URLs such as `hf://datasets/...`.
        split: split of a folder or Hub data set.
        root: folder of the videos of a list file.
        name: configuration of a Hub data set.
        streaming: read rows when they are needed instead of downloading and indexing them first. List files are not
            streamed, as each of their videos is read on its own.
        video_column: the column of the videos, if there are several.
        class_level: which sub-folders of a folder name the classes: the `first` or the `last` ones on the way to a
            video. By default the folder decides.
        allow_local_urls: whether rows of a data set of others (of the Hub, or at a URL) may name files of this machine
            and addresses of its network.
        frame_folder_fps: frames per second of folders of frames, which are then the videos of a folder; a list file
            may name folders of frames without it, too.

    Raises:
        ValueError: if there is no such source, split or column, or it is empty.
    """
    if class_level not in (None, *CLASS_LEVELS):
        raise ValueError(f"There is no class_level={class_level!r}; choose {' or '.join(CLASS_LEVELS)}.")
    suffix = Path(source).suffix.lower()
    is_url = "://" in source
    has_pattern = any(sign in source for sign in "*?[{")
    if not is_url and not has_pattern:
        check_path(source, "data set")
        check_kind_of_file(source)
    if suffix in LIST_FILE_SUFFIXES and (is_url or os.path.isfile(source)):
        read = read_json_lines if suffix == ".jsonl" else read_list_file
        rows = read(source, root, frame_folder_fps)
    elif frame_folder_fps is not None:
        rows = read_frame_folders(source, split, class_level, frame_folder_fps)
    else:
        rows = rows_of_builder(source, split, name, streaming, class_level)
    rows = choose_column(rows, video_column)
    if is_foreign(source) and not allow_local_urls:
        columns = rows.features or dict.fromkeys(column_names(rows))
        media = [column for column, feature in columns.items() if could_be_media(column, feature)]
        return check_places(rows, media, source)
    return rows


def rows_of_builder(source: str, split: str, name: str | None, streaming: bool, class_level: str | None) -> Rows:
    """Undecoded rows of a source that `datasets` reads; arguments as in [`load_rows`]."""
    try:
        builder = make_builder(split, **load_options(source, split, name))
        if streaming:
            rows = builder.as_streaming_dataset(split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split)
    except LOADING_ERRORS as error:
        raise ValueError(f"The data set {source!r} has no split {split!r} that can be loaded: {error}") from error
    return with_classes(undecoded(rows), builder, split, source, class_level)


def choose_column(rows: Rows, column: str | None) -> Rows:
    """Rows whose only videos are those of a column; raises ValueError if there is no such column."""
    if column is None:
        return rows
    names = column_names(rows)
    if column not in names:
        raise ValueError(f"There is no video_column={column!r}; the columns are {', '.join(names)}.")
    features = rows.features or {}
    others = [other for other in names if other != column and could_be_media(other, features.get(other))]
    rows = rows.remove_columns(others)
    if could_be_media(column, features.get(column)):
        return rows
    if features:
        return rows.cast_column(column, datasets.Video(decode=False))
    return rows.rename_column(column, "video")


def split_names(source: str, name: str | None = None, frame_folder_fps: float | None = None) -> list[str]:
    """The splits of a folder or Hub data set; a file has none.

    Raises:
        ValueError: if there is no such data set.
    """
    suffix = Path(source).suffix.lower()
    if suffix in (*LIST_FILE_SUFFIXES, *FILE_BUILDERS):
        return []
    check_path(source, "data set")
    check_kind_of_file(source)
    if frame_folder_fps is not None:
        return list(frame_folder_splits(source))
    try:
        if os.path.isdir(source):  # as `load_rows` reads it
            builder = make_builder("", **load_options(source, "", name))
            if isinstance(builder, FolderBasedBuilder):
                return [str(split) for split in builder.config.data_files]
        return list(datasets.get_dataset_split_names(source, name))
    except LOADING_ERRORS as error:
        raise ValueError(
            f"The splits of the data set {source!r} cannot be found out: {error}. Give a list file, a folder of "
            "videos or the id of a data set of the Hub."
        ) from error


def _stream(
    source: str, split: str, name: str | None, max_samples: int | None, version: str, choices: dict
) -> Iterator[dict]:
    """Rows of a stream; the version makes the cache distinguish states of the source."""
    rows = load_rows(source, split, name=name, streaming=True, **choices)
    yield from rows if max_samples is None else rows.take(max_samples)


def cache_stream(
    source: str, split: str, name: str | None = None, max_samples: int | None = None, **choices
) -> datasets.Dataset:
    """Rows of one split of a source, copied to the cache of `datasets` without downloading other splits.

    Args:
        source, split, name: as in [`load_rows`].
        max_samples: copy only so many rows.
        choices: `video_column` and so on, as in [`load_rows`].
    """
    rows = load_rows(source, split, name=name, streaming=True, **choices)
    arguments = {"source": source, "split": split, "name": name, "max_samples": max_samples, "choices": choices}
    arguments["version"] = make_builder(split, **load_options(source, split, name)).hash
    return datasets.Dataset.from_generator(_stream, features=rows.features, gen_kwargs=arguments)


def _first(rows: datasets.IterableDataset, count: int) -> Iterator[dict]:
    """The first rows of a stream, the same in every worker of a data loader."""
    for batch in itertools.islice(rows.iter(batch_size=1), count):
        yield {column: values[0] for column, values in batch.items()}


def first_rows(rows: Rows, count: int) -> Rows:
    """The first `count` rows; those of a stream become a single shard, as `take` would take a part of each shard."""
    if isinstance(rows, datasets.Dataset):
        return rows.select(range(min(count, len(rows))))
    arguments = {"rows": rows, "count": count}
    first = datasets.IterableDataset.from_generator(_first, features=rows.features, gen_kwargs=arguments)
    first.info.splits = rows.info.splits
    return first


def num_videos(rows: Rows, split: str) -> int | None:
    """Number of rows; of a stream the number that its data set declares, or `None`."""
    if isinstance(rows, datasets.Dataset):
        return len(rows)
    declared = (rows.info.splits or {}).get(split)
    return declared.num_examples if declared is not None and declared.num_examples else None


def column_names(rows: Rows) -> list[str]:
    """Columns of rows; of a stream without declared columns those of its first row."""
    return rows.column_names or list(next(iter(rows)))


def could_be_media(name: str, feature) -> bool:
    """Whether a column may hold videos or images, by type or by name."""
    return isinstance(feature, datasets.Video | datasets.Image) or name in (
        *VIDEO_COLUMNS,
        *PATH_COLUMNS,
        *IMAGE_COLUMNS,
    )


def media_column(rows: Rows) -> str:
    """The column of videos, or else of images, by type or else by name.

    Raises:
        ValueError: if there is none, or several.
    """
    features, names = rows.features or {}, column_names(rows)
    for found in (
        [column for column in names if isinstance(features.get(column), datasets.Video)],
        [column for column in names if isinstance(features.get(column), datasets.Image)],
        [column for column in VIDEO_COLUMNS if column in names],
        [column for column in PATH_COLUMNS if column in names],
        [column for column in IMAGE_COLUMNS if column in names],
    ):
        if len(found) > 1:
            raise ValueError(f"The columns {' and '.join(found)} hold videos: choose with video_column={found[0]}.")
        if found:
            return found[0]
    raise ValueError(
        f"No column holds videos or images; the columns are {', '.join(names)}. If one does, give video_column."
    )


def holds_images(rows: Rows, column: str) -> bool:
    """Whether a column holds images, not videos."""
    return isinstance((rows.features or {}).get(column), datasets.Image) or column in IMAGE_COLUMNS


def media_name(item: dict | str | bytes) -> str:
    """Name of a row's file: its path, else the hash of its bytes."""
    if isinstance(item, dict):
        item = item["path"] or item["bytes"]
    item = item or "<a row without a file>"
    return item if isinstance(item, str) else f"blake2b:{hashlib.blake2b(item, digest_size=16).hexdigest()}"


def has_content(item: dict | str | bytes | None) -> bool:
    """Whether a row has a file."""
    return bool(item["path"] or item["bytes"] is not None) if isinstance(item, dict) else item is not None


def field_of(row: dict, column: str):
    """A value of a row; dots lead into nested columns, such as `json.label` of a WebDataset.

    Raises:
        ValueError: if there is no such column.
    """
    value = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"There is no column {column!r}; the columns are {', '.join(row)}.")
        value = value[part]
    return value


def read_manifest(path: str | Path) -> dict[str, bool]:
    """Which files of a data set to use, by name, from a manifest that `recipes/audit.py` wrote.

    Args:
        path: CSV file with the columns `file` and `use` (yes or no).

    Raises:
        ValueError: if the file is no manifest, or leaves no file to use.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        use = {row["file"]: {"yes": True, "no": False}[row["use"]] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"The manifest {str(path)!r} cannot be read: {error}") from error
    except KeyError as error:
        raise ValueError(f"The manifest {str(path)!r} needs columns 'file' and 'use' (yes or no): {error}.") from error
    if not any(use.values()):
        raise ValueError(f"The manifest {str(path)!r} leaves no file to use.")
    return use


def keep_listed(rows: Rows, column: str, use: dict[str, bool]) -> Rows:
    """Rows whose file a manifest says to use.

    Raises:
        ValueError: if the manifest does not list a file.
    """

    def is_used(item) -> bool:
        name = media_name(item)
        if name not in use:
            raise ValueError(
                f"The manifest does not list {name!r}: it is of other files, or `root` differs; audit this data set."
            )
        return use[name]

    if isinstance(rows, datasets.IterableDataset):
        return rows.filter(is_used, input_columns=column)
    return rows.select([i for i, item in enumerate(rows[column]) if is_used(item)])


def write_table(path: str | Path, rows: Iterable[Mapping], columns: Sequence[str]):
    """Write these columns of rows as a CSV file: all of it or, after an error, nothing."""
    options = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    with replace_file(path) as unfinished, open(unfinished, "w", **options) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
