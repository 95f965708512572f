"""Builders of `datasets` that read text of `metadata.csv` as text, and names of WebDataset members that hold dots."""

import csv
import itertools
import os
import re
import tarfile
from collections.abc import Iterator

import datasets
import fsspec
import pyarrow
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.videofolder.videofolder import VideoFolder
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from .list_files import INDEX, NUMBER

METADATA = "metadata.csv"
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
    return float if is_number and not any(re.match(r"[+-]?0[0-9]", value) for value in filled) else str


class TextMetadata(FolderBasedBuilder):
    """Reads `metadata.csv` without guesses: `None`, `NA` and `001` stay text, only blank values are missing."""

    def _types(self) -> dict[str, type]:
        """Types of the columns, from the files of all splits."""
        if not hasattr(self, "_column_types"):
            columns: dict[str, list[str]] = {}
            for path in metadata_files(self):
                for name, values in read_columns(path).items():
                    columns.setdefault(name, []).extend(values)
            self._column_types = {
                name: str if re.search("(^|_)file_names?$", name) else type_of(values)
                for name, values in columns.items()
            }
        return self._column_types

    def _read_metadata(self, metadata_file: str, metadata_ext: str = "") -> Iterator[pyarrow.Table]:
        if metadata_ext != ".csv":
            yield from super()._read_metadata(metadata_file, metadata_ext)
            return
        arrow, types = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}, self._types()
        columns = {
            name: pyarrow.array(
                [types[name](value) if value.strip() else None for value in values], arrow[types[name]]
            )
            for name, values in read_columns(metadata_file).items()
        }
        yield pyarrow.table(columns)


class TextVideoFolder(TextMetadata, VideoFolder):
    """Folder of videos."""


class TextImageFolder(TextMetadata, ImageFolder):
    """Folder of images."""


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


def make_builder(split: str, **options) -> datasets.DatasetBuilder:
    """The builder that reads a split of a data set, by the arguments of `datasets.load_dataset_builder`."""
    builder = datasets.load_dataset_builder(**options)
    own = None
    if isinstance(builder, VideoFolder | ImageFolder) and metadata_files(builder):
        own = TextVideoFolder if isinstance(builder, VideoFolder) else TextImageFolder
    elif isinstance(builder, WebDataset) and any(
        map(needs_last_dot, (builder.config.data_files.get(split) or ())[:1])
    ):
        own = DottedWebDataset
    if own is None:
        return builder
    return own(
        dataset_name=builder.dataset_name,
        config_name=builder.config.name,
        hash=f"{builder.hash}-{own.__name__}",  # another cache than that of the library's reading
        base_path=builder.base_path,
        repo_id=builder.repo_id,
        data_files=builder.config.data_files,
    )
