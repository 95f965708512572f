"""Builders of `datasets` that read CSV text as text, all videos of a folder, and WebDataset names with dots."""

import csv
import itertools
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

import datasets
import fsspec
import pandas as pd
import pyarrow
from datasets.builder import Key
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.exceptions import DataFilesNotFoundError
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.videofolder.videofolder import VideoFolder
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from .folders import ARCHIVE_SUFFIXES, VIDEO_SUFFIXES, chooses_files, find_splits, visible_files
from .list_files import INDEX, NUMBER

METADATA = "metadata.csv"
# numbers that are codes: with leading zeros, or with more digits than a number holds
CODE = re.compile(r"[+-]?(0[0-9].*|[0-9]{19,})")
# most members of an archive that are looked at
MAX_MEMBERS = 1000


def read_columns(path: str) -> dict[str, list[str]]:
    """Columns of a CSV file or URL, as text."""
    with fsspec.open(path, "rt", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, restkey="", restval=""))
    if any("" in row for row in rows):
        raise ValueError(f"{path!r} has a row of more values than its heading: put text with commas in double quotes.")
    return {column: [row[column] for row in rows] for column in (rows[0] if rows else ())}


def type_of(values: list[str]) -> type:
    """Type of a column of a CSV file: numbers if all values that are not blank are, codes such as 001 excepted."""
    filled = [value.strip() for value in values if value.strip()]
    if filled and all(INDEX.fullmatch(value) for value in filled):
        return int
    is_number = filled and all(NUMBER.fullmatch(value) for value in filled)
    return float if is_number and not any(map(CODE.fullmatch, filled)) else str


def types_of(tables: Sequence[Mapping[str, list[str]]]) -> dict[str, type]:
    """Types of the columns that several CSV files have in common."""
    columns: dict[str, list[str]] = {}
    for table in tables:
        for name, values in table.items():
            columns.setdefault(name, []).extend(values)
    is_path = re.compile("(^|_)file_names?$").search
    return {name: str if is_path(name) else type_of(values) for name, values in columns.items()}


def table_of(columns: Mapping[str, list[str]], types: Mapping[str, type]) -> pyarrow.Table:
    """Columns of text as an Arrow table; blank values are missing."""
    kinds = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    arrays = {
        name: pyarrow.array([types[name](value) if value.strip() else None for value in values], kinds[types[name]])
        for name, values in columns.items()
    }
    return pyarrow.table(arrays)


class TextMetadata(FolderBasedBuilder):
    """Reads `metadata.csv` without guesses: `None`, `NA` and `001` stay text, only blank values are missing."""

    def _read_metadata(self, metadata_file: str, metadata_ext: str = "") -> Iterator[pyarrow.Table]:
        if metadata_ext != ".csv":
            yield from super()._read_metadata(metadata_file, metadata_ext)
            return
        if not hasattr(self, "_column_types"):
            self._column_types = types_of([read_columns(path) for path in metadata_files(self)])
        yield table_of(read_columns(metadata_file), self._column_types)


class TextVideoFolder(TextMetadata, VideoFolder):
    """Folder of videos of all kinds."""

    EXTENSIONS = [*VIDEO_SUFFIXES]


class TextImageFolder(TextMetadata, ImageFolder):
    """Folder of images."""


class TextCsv(Csv):
    """Reads CSV files as [`TextMetadata`] reads metadata, with the options of the library's builder."""

    def _read(self, path: str) -> dict[str, list[str]]:
        """Columns of a file, as text."""
        options = {**self.config.pd_read_csv_kwargs, "chunksize": None, "dtype": str, "keep_default_na": False}
        with fsspec.open(path, "rb") as file:
            table = pd.read_csv(file, **options)
        if self.config.index_col is None and not isinstance(table.index, pd.RangeIndex):
            raise ValueError(f"{path!r} has rows of more values than its heading: put text with commas in quotes.")
        return {str(name): table[name].fillna("").tolist() for name in table}

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        splits = super()._split_generators(dl_manager)
        files = [file for split in splits for files in split.gen_kwargs["files_iterables"] for file in files]
        declared = dict.fromkeys(self.config.features or (), str)  # the library casts text to its type
        self._column_types = types_of(list(map(self._read, files))) | declared
        return splits

    def _generate_tables(self, base_files, files_iterables) -> Iterator[tuple[Key, pyarrow.Table]]:
        for shard, files in enumerate(files_iterables):
            for number, file in enumerate(files):
                yield Key(shard, number), self._cast_table(table_of(self._read(file), self._column_types))


def metadata_files(builder: datasets.DatasetBuilder) -> list[str]:
    """Paths or URLs of the files `metadata.csv` of all splits."""
    files = [path for paths in (builder.config.data_files or {}).values() for path in paths]
    return [path for path in files if os.path.basename(path) == METADATA]


def last_suffix_apart(name: str) -> str:
    """A member's name with other dots than the last replaced, as WebDataset ends names at the first dot."""
    folder, _, file = name.rpartition("/")
    stem, dot, suffix = file.rpartition(".")
    return (f"{folder}/" if folder else "") + stem.replace(".", "\u2024") + dot + suffix


class DottedWebDataset(WebDataset):
    """WebDataset whose members' names hold dots, such as `clip_3.5s.mp4`: a suffix begins at the last dot."""

    @classmethod
    def _get_pipeline_from_tar(cls, tar_path, tar_iterator):
        members = ((last_suffix_apart(name), file) for name, file in tar_iterator)
        for example in super()._get_pipeline_from_tar(tar_path, members):
            yield {**example, "__key__": example["__key__"].replace("\u2024", ".")}


def are_samples(names: list[str], dot: str) -> bool:
    """Whether all samples have the same fields; names end at their `first` or `last` dot."""
    fields: dict[str, set[str]] = {}
    for name in names:
        folder, file = os.path.split(last_suffix_apart(name) if dot == "last" else name)
        key, _, field = file.partition(".")
        fields.setdefault(os.path.join(folder, key), set()).add(field.lower())
    kinds = set(map(frozenset, fields.values()))
    return len(kinds) == 1 and any(
        f".{field}" in VideoFolder.EXTENSIONS + ImageFolder.EXTENSIONS for field in kinds.pop()
    )


def needs_last_dot(archive: str) -> bool:
    """Whether the members of an archive make samples only if their names end at the last dot."""
    try:
        with fsspec.open(archive, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as members:
            names = [member.name for member in itertools.islice(members, MAX_MEMBERS) if member.isfile()]
    except tarfile.TarError:  # the library's builder names the archive when it is read
        return False
    return not are_samples(names, "first") and are_samples(names, "last")


def load_builder(path: str, **options) -> datasets.DatasetBuilder:
    """The library's builder, also of folders of which it knows no file."""
    try:
        return datasets.load_dataset_builder(path, **options)
    except DataFilesNotFoundError:
        if not os.path.isdir(path) or not any(name.lower().endswith(VIDEO_SUFFIXES) for name in visible_files(path)):
            raise
        return datasets.load_dataset_builder("videofolder", data_dir=path)


def local_files(builder: FolderBasedBuilder, folder: str, kind: type[FolderBasedBuilder]) -> DataFilesDict | None:
    """All files of each split of a folder; `None` where those that the builder knows are all."""
    known = {str(split): list(files) for split, files in builder.config.data_files.items()}
    root = os.path.realpath(folder)
    found = list(visible_files(root))
    if chooses_files(folder) or any(path.lower().endswith(ARCHIVE_SUFFIXES) for path in found):
        return None
    videos = [path for path in found if path.lower().endswith(VIDEO_SUFFIXES)]
    if kind is TextImageFolder and videos:
        raise ValueError(
            f"The folder {folder!r} holds images as well as {len(videos)} videos such as {videos[0]!r}: move one kind "
            "away, or give a list file."
        )
    suffixes, metadata = tuple(kind.EXTENSIONS), tuple(kind.METADATA_FILENAMES)
    found = [path for path in found if path.lower().endswith(suffixes) or os.path.basename(path) in metadata]
    splits = find_splits(root, found, known)
    is_same = {split: set(files) for split, files in splits.items()} == {s: set(files) for s, files in known.items()}
    # a folder of .webm files alone is one of sounds to the library
    if not found or (is_same and isinstance(builder, VideoFolder | ImageFolder)):
        return None
    return DataFilesDict(
        {
            split: DataFilesList(files, [(str(os.path.getmtime(path)),) for path in files])
            for split, files in splits.items()
        }
    )


def options_of(config: datasets.BuilderConfig) -> dict:
    """Options of a builder, such as the separator of a `.tsv` file, that differ from the defaults."""
    default = type(config)()
    names = {key.name for key in fields(config)} - {key.name for key in fields(datasets.BuilderConfig)}
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(default, name)}


def declared_features(options: Mapping) -> datasets.Features | None:
    """The types of the columns that a data set declares, and not those that the library guessed and cached."""
    with tempfile.TemporaryDirectory() as folder:
        return datasets.load_dataset_builder(**options, cache_dir=folder).info.features


def make_builder(split: str, **options) -> datasets.DatasetBuilder:
    """The builder that reads a split of a data set, by the arguments of `datasets.load_dataset_builder`."""
    builder = load_builder(**options)
    own, changes = None, {}
    if isinstance(builder, FolderBasedBuilder):
        kind = TextImageFolder if isinstance(builder, ImageFolder) else TextVideoFolder
        files = local_files(builder, options["path"], kind) if os.path.isdir(options["path"]) else None
        if files is not None or metadata_files(builder):
            own, changes = kind, {} if files is None else {"data_files": files}
    elif isinstance(builder, Csv):
        own, changes = TextCsv, {"features": declared_features(options)}
    elif isinstance(builder, WebDataset) and any(
        map(needs_last_dot, (builder.config.data_files.get(split) or ())[:1])
    ):
        own = DottedWebDataset
    if own is None:
        return builder
    return own(
        dataset_name=builder.dataset_name,
        hash=f"{builder.hash}-{own.__name__}",  # another cache than that of the library's reading
        base_path=builder.base_path,
        repo_id=builder.repo_id,
        config_name=builder.config.name,
        **{"data_files": builder.config.data_files} | options_of(builder.config) | changes,
    )
