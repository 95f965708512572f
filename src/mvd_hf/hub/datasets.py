"""Data sets of clips for the Hub: any source of videos as parquet or WebDataset shards with labels and a card."""

import io
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import yaml
from datasets import ClassLabel, DatasetInfo, Features, Image, SplitDict, SplitInfo, Value, Video
from datasets.info import DatasetInfosDict
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, DatasetCardData, HfApi

from ..data.sources import LabelReader, holds_images, keep_listed, load_rows, media_column, media_name, read_manifest
from .cards import read_template
from .licenses import check_license
from .publish import Publication, find_repository
from .run_record import CARD_NAME

FORMATS = {"parquet": ".parquet", "webdataset": ".tar"}
# what a reader of a stream holds of a shard at once
ROW_GROUP_BYTES = 32 << 20
SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass
class DatasetDetails:
    """How a data set is published, and what its card says.

    Args:
        license: of the files, as the Hub writes it.
        license_name, license_link: of a license that the Hub calls `other`.
        title, description: of the card.
        label_column: column of the labels, if there are labels; dots reach into nested columns.
        label_names: names of the classes, or a file with a name per line, if the source does not know them.
        format: `parquet` or `webdataset`.
        shard_megabytes: size of a shard.
        min_shards: shards of a split at least: as many as processes times data workers of a training that streams it.

    Raises:
        ValueError: if there is no license or no such format, or a number is below one.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    title: str | None = None
    description: str = ""
    label_column: str | None = None
    label_names: list[str] | str | None = None
    format: str = "parquet"
    shard_megabytes: int = 500
    min_shards: int = 1

    def __post_init__(self):
        check_license(self.license, self.license_name, self.license_link)
        if self.format not in FORMATS:
            raise ValueError(f"format={self.format!r} must be one of {', '.join(FORMATS)}.")
        for name in ("shard_megabytes", "min_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


@dataclass
class Split:
    """A split of a data set, as it is cut into shards.

    Args:
        name: its name.
        rows: its videos or images.
        shards: numbers of the rows of each shard.
        bytes: of all files.
    """

    name: str
    rows: datasets.Dataset
    shards: list[list[int]] = field(default_factory=list)
    bytes: int = 0

    @property
    def count(self) -> int:
        return len(self.rows)


def load_splits(
    dataset: str | Mapping[str, str], root: str | None = None, manifest: str | None = None
) -> dict[str, datasets.Dataset]:
    """The splits of a source of videos.

    Args:
        dataset: a folder or another source with splits, a list file, or a source for each split by name; see
            `mvd_hf.data.sources.load_rows`.
        root: folder of the videos of list files.
        manifest: of `recipes/audit.py`: only files that it says to use.

    Raises:
        ValueError: if a source cannot be loaded.
    """
    if isinstance(dataset, str):
        is_file = os.path.isfile(dataset) or "*" in dataset
        names = ["train"] if is_file else datasets.get_dataset_split_names(dataset)
        dataset = dict.fromkeys(names, dataset)
    splits = {name: load_rows(source, name, root) for name, source in dataset.items()}
    if manifest is not None:
        use = read_manifest(manifest)
        splits = {name: keep_listed(rows, media_column(rows), use) for name, rows in splits.items()}
    return splits


def read_file(item: Mapping) -> bytes:
    """The content of a row's file.

    Raises:
        ValueError: if it cannot be read.
    """
    if item["bytes"] is not None:
        return item["bytes"]
    try:
        return Path(item["path"]).read_bytes()
    except OSError as error:
        raise ValueError(
            f"{item['path']} cannot be read ({error}): audit the data set, and give its manifest."
        ) from error


def file_size(item: Mapping) -> int:
    """Bytes of a row's file; raises ValueError if there is no such file."""
    if item["bytes"] is not None:
        return len(item["bytes"])
    try:
        return os.path.getsize(item["path"])
    except OSError as error:
        raise ValueError(
            f"{item['path']} cannot be read ({error}): audit the data set, and give its manifest."
        ) from error


def cut(sizes: list[int], num_shards: int) -> list[list[int]]:
    """Numbers of consecutive files in shards of about equal size, at least one in each."""
    shards, start, left = [], 0, sum(sizes)
    for waiting in range(num_shards, 0, -1):
        stop, size = start + 1, sizes[start]
        # a file goes where most of it lies, but the shards that wait get one each
        while stop <= len(sizes) - waiting and (waiting == 1 or size + sizes[stop] / 2 <= left / waiting):
            size += sizes[stop]
            stop += 1
        shards.append(list(range(start, stop)))
        start, left = stop, left - size
    return shards


def plan_split(name: str, rows: datasets.Dataset, details: DatasetDetails) -> Split:
    """Cut a split into shards.

    Raises:
        ValueError: if it has fewer files than it shall have shards, or a file is missing.
    """
    sizes = [file_size(item) for item in rows[media_column(rows)]]
    num_shards = max(details.min_shards, -(-sum(sizes) // (details.shard_megabytes << 20)))
    if len(sizes) < num_shards:
        raise ValueError(f"The split {name!r} has {len(sizes)} files, too few for {num_shards} shards.")
    return Split(name, rows, cut(sizes, num_shards), sum(sizes))


def file_names(split: Split) -> list[str]:
    """What to call the files of a split: their paths below the folder that they share, or else their numbers."""
    items = split.rows[media_column(split.rows)]
    if any(item["path"] is None for item in items):
        return [f"{number:08d}{Path(item['path'] or '').suffix}" for number, item in enumerate(items)]
    paths = [Path(item["path"]).as_posix() for item in items]
    shared = os.path.commonpath([os.path.dirname(path) for path in paths]) if len(paths) > 1 else ""
    names = [path[len(shared) :].lstrip("/") if shared else path.rpartition("/")[2] for path in paths]
    return [name if not os.path.isabs(name) else os.path.basename(name) for name in names]


class ShardWriter:
    """Writes rows of all splits as shards: files as they are, labels as classes that all splits share.

    Args:
        splits: the rows by split.
        details: format and labels.

    Raises:
        ValueError: if splits differ in what they hold or in their classes, or the format cannot hold them.
    """

    def __init__(self, splits: Mapping[str, datasets.Dataset], details: DatasetDetails):
        self.format, self.labels = details.format, {}
        first = next(iter(splits.values()))
        self.is_image = holds_images(first, media_column(first))
        if details.label_column is not None:
            self.labels = {
                name: LabelReader(rows, details.label_column, details.label_names) for name, rows in splits.items()
            }
        classes = {tuple(reader.names or ()) for reader in self.labels.values()}
        if len(classes) > 1:
            raise ValueError("The splits have different classes: give label_names, the names of all of them in order.")
        self.names = list(classes.pop()) if classes else []
        if self.format == "webdataset" and any(name.lstrip("-").isdigit() for name in self.names):
            raise ValueError(
                "Classes that are named by numbers cannot be told from class numbers: use format=parquet."
            )
        self.suffix = ""
        if self.format == "webdataset":
            suffixes = {Path(media_name(item)).suffix for rows in splits.values() for item in rows[media_column(rows)]}
            if len(suffixes) != 1 or not next(iter(suffixes)):
                raise ValueError(
                    f"A WebDataset holds files of one kind, these are {sorted(suffixes)}: use format=parquet."
                )
            self.suffix = suffixes.pop()

    @property
    def media(self) -> str:
        """Column of the files."""
        if self.format == "webdataset":
            return self.suffix.lstrip(".")
        return "image" if self.is_image else "video"

    @property
    def label(self) -> str | None:
        """Column of the labels."""
        return None if not self.labels else "cls" if self.format == "webdataset" else "label"

    @property
    def features(self) -> Features:
        """Columns and their types."""
        columns = {self.media: Image() if self.is_image else Video()}
        if self.label is not None:
            columns[self.label] = ClassLabel(names=self.names) if self.names else Value("int64")
        if self.format == "webdataset":
            columns |= {"__key__": Value("string"), "__url__": Value("string")}
        return Features(columns)

    def samples(self, split: Split, numbers: list[int]) -> Iterator[tuple[str, bytes, int | None]]:
        """Name, content and class of rows."""
        column, names = media_column(split.rows), file_names(split)
        for number in numbers:
            row = split.rows[number]
            yield names[number], read_file(row[column]), self.labels[split.name](row) if self.labels else None

    def write(self, path: str | Path, split: Split, numbers: list[int]):
        """Write a shard."""
        if self.format == "parquet":
            self._write_parquet(path, self.samples(split, numbers))
        else:
            self._write_tar(path, zip(numbers, self.samples(split, numbers), strict=True))

    def _write_parquet(self, path: str | Path, samples: Iterator[tuple[str, bytes, int | None]]):
        schema = self.features.arrow_schema
        waiting: list[dict] = []
        with pyarrow.parquet.ParquetWriter(path, schema, compression="none") as writer:
            for name, content, label in samples:
                labels = {} if label is None else {self.label: label}
                waiting.append({self.media: {"bytes": content, "path": name}, **labels})
                if sum(len(row[self.media]["bytes"]) for row in waiting) >= ROW_GROUP_BYTES:
                    writer.write_table(pyarrow.Table.from_pylist(waiting, schema))
                    waiting = []
            if waiting:
                writer.write_table(pyarrow.Table.from_pylist(waiting, schema))

    def _write_tar(self, path: str | Path, samples: Iterator[tuple[int, tuple[str, bytes, int | None]]]):
        with tarfile.open(path, "w") as archive:
            for number, (_, content, label) in samples:
                files = {self.suffix: content} | ({} if label is None else {".cls": str(label).encode()})
                for suffix, data in files.items():
                    member = tarfile.TarInfo(f"{number:08d}{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def shard_paths(split: Split, suffix: str) -> list[str]:
    """Paths of a split's shards in the repository."""
    count = len(split.shards)
    return [f"data/{split.name}-{number:05d}-of-{count:05d}{suffix}" for number in range(count)]


def dataset_card(name: str, splits: list[Split], writer: ShardWriter, details: DatasetDetails) -> DatasetCard:
    """The card of a data set, with what `datasets` reads of it: columns, classes, splits and their sizes."""
    suffix = FORMATS[details.format]
    total = sum(split.count for split in splits)
    infos = SplitDict()
    for split in splits:
        infos.add(SplitInfo(split.name, num_bytes=split.bytes, num_examples=split.count))
    size = sum(split.bytes for split in splits)
    info = DatasetInfo(features=writer.features, splits=infos, download_size=size, dataset_size=size)
    files = [{"split": split.name, "path": f"data/{split.name}-*{suffix}"} for split in splits]
    task = "image-classification" if writer.is_image else "video-classification"
    head = DatasetCardData(
        license=details.license,
        license_name=details.license_name,
        license_link=details.license_link,
        task_categories=[task] if writer.label else None,
        size_categories=[next((title for bound, title in SIZE_CATEGORIES if total < bound), "n>1M")],
        tags=["video"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(head)
    body = read_template("dataset_card.md").render(
        title=details.title or name.rpartition("/")[2],
        name=name,
        description=details.description,
        splits=splits,
        names=writer.names,
        media=writer.media,
        label=writer.label,
        license=details.license if details.license != "other" else f"[{details.license_name}]({details.license_link})",
    )
    return DatasetCard(f"---\n{yaml.safe_dump(head.to_dict(), sort_keys=False)}---\n\n{body}")


def publish_dataset(
    splits: Mapping[str, datasets.Dataset],
    repo_id: str,
    details: DatasetDetails,
    *,
    private: bool = True,
    revision: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """Upload a data set of videos or images: shards one after the other, then all of them in one commit with the card.

    Started again after an interruption, shards that are there already are not sent again.

    Args:
        splits: rows by split, from [`load_splits`].
        repo_id: `user/name`.
        details: license, labels and format.
        private: whether a new repository is private.
        revision: branch to upload to.
        dry_run: whether nothing is written or uploaded; sizes of shards are then those of the files in them.

    Raises:
        ValueError: if a file cannot be read, or the repository is public against expectation.
    """
    writer = ShardWriter(splits, details)
    plans = [plan_split(name, rows, details) for name, rows in splits.items()]
    card = dataset_card(repo_id, plans, writer, details)
    shards = {
        path: (split, numbers)
        for split in plans
        for path, numbers in zip(shard_paths(split, FORMATS[details.format]), split.shards, strict=True)
    }
    if dry_run:
        sizes = {
            path: sum(file_size(item) for item in split.rows.select(numbers)[media_column(split.rows)])
            for path, (split, numbers) in shards.items()
        }
        return Publication(repo_id, {**sizes, CARD_NAME: len(str(card).encode())}, str(card), [])
    api = HfApi()
    repo_id = find_repository(api, repo_id, private, revision, "dataset")
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    with tempfile.TemporaryDirectory() as place:
        for path, (split, numbers) in shards.items():
            file = Path(place) / "shard"
            writer.write(file, split, numbers)
            operations.append(CommitOperationAdd(path, str(file)))
            api.preupload_lfs_files(repo_id, operations[-1:], repo_type="dataset", revision=revision)
    sizes = {operation.path_in_repo: operation.upload_info.size for operation in operations}
    old = [path for path in api.list_repo_files(repo_id, repo_type="dataset", revision=revision) if "data/" in path]
    operations += [CommitOperationDelete(path) for path in old if path not in shards]
    operations.append(CommitOperationAdd(CARD_NAME, str(card).encode()))
    commit = api.create_commit(
        repo_id, operations, commit_message="Upload with mvd_hf", repo_type="dataset", revision=revision
    )
    files = {**sizes, CARD_NAME: len(str(card).encode())}
    return Publication(repo_id, files, str(card), [], commit.commit_url)
