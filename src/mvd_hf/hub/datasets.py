"""Publishing data sets of videos or images: parquet or WebDataset shards with labels, and a card."""

import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import datasets
import pyarrow
import pyarrow.parquet
import yaml
from datasets import ClassLabel, DatasetInfo, Features, Image, SplitDict, SplitInfo, Value, Video
from datasets.info import DatasetInfosDict
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, DatasetCardData, HfApi

from ..data.decoding import Item, media_content
from ..data.labels import LabelReader
from ..data.sources import (
    holds_images,
    keep_listed,
    load_rows,
    media_column,
    media_name,
    read_manifest,
    split_names,
)
from ..model.video_reading import VideoReadError
from .cards import read_template
from .licenses import check_license, license_in_words
from .publish import Publication, find_repository, full_repo_id
from .run_record import CARD_NAME

FORMATS = {"parquet": ".parquet", "webdataset": ".tar"}
# bytes of a shard that a streaming reader holds in memory at once
ROW_GROUP_BYTES = 32 << 20
SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass
class DatasetDetails:
    """How a data set is published, and what its card says.

    Args:
        license: of the files, by its name on the Hub.
        license_name, license_link: of a license that the Hub calls `other`.
        title, description: of the card.
        label_column: column of the labels, if there are any; dots reach into nested columns.
        label_names: names of the classes, or a file with a name per line, if the source does not have them.
        format: `parquet` or `webdataset`.
        shard_megabytes: size of a shard.
        min_shards: smallest number of shards of a split. Streaming needs processes times data workers.

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
    """A split of a data set: its rows, the row numbers of each shard, and the bytes of all files."""

    name: str
    rows: datasets.Dataset
    shards: list[list[int]] = field(default_factory=list)
    bytes: int = 0

    def shard_paths(self, suffix: str) -> list[str]:
        """Paths of the shards in the repository."""
        count = len(self.shards)
        return [f"data/{self.name}-{number:05d}-of-{count:05d}{suffix}" for number in range(count)]


def load_splits(
    dataset: str | Mapping[str, str], root: str | None = None, manifest: str | None = None, **choices
) -> dict[str, datasets.Dataset]:
    """Rows of a source by split.

    Args:
        dataset: a source with splits, a list file, or a source for each split by name; see
            `mvd_hf.data.sources.load_rows`.
        root: folder of the videos of list files.
        manifest: of `recipes/audit.py`, to leave out the files that it rejects.

        choices: `video_column` and so on, as in `mvd_hf.data.sources.load_rows`.

    Raises:
        ValueError: if a source cannot be loaded.
    """
    if isinstance(dataset, str):
        is_file = os.path.isfile(dataset) or "*" in dataset
        names = ["train"] if is_file else split_names(dataset) or ["train"]
        dataset = dict.fromkeys(names, dataset)
    splits = {name: load_rows(source, name, root, **choices) for name, source in dataset.items()}
    if manifest is not None:
        use = read_manifest(manifest)
        splits = {name: keep_listed(rows, media_column(rows), use) for name, rows in splits.items()}
    return splits


def read_file(item: Item) -> bytes:
    """The content of a row's file; raises ValueError if it cannot be read."""
    try:
        content = media_content(item)
        if isinstance(content, str) and os.path.isdir(content):
            raise ValueError(
                f"{content!r} is a folder of frames, and files are published: make videos of them with "
                "recipes/transcode.py."
            )
        return content if isinstance(content, bytes) else Path(content).read_bytes()
    except (OSError, VideoReadError) as error:
        raise ValueError(
            f"{media_name(item)} cannot be read ({error}): run recipes/audit.py, and give its manifest."
        ) from error


def file_size(item: Item) -> int:
    """Bytes of a row's file, fetched if it is a URL; raises ValueError if there is no such file."""
    path = media_path(item)
    content = item["bytes"] if isinstance(item, dict) else None
    if path is not None and "://" not in path and content is None and os.path.isfile(path):
        return os.path.getsize(path)
    return len(read_file(item) if content is None else content)


def media_path(item: Item) -> str | None:
    """Path or URL of a row's file, if it has one."""
    path = item["path"] if isinstance(item, dict) else item
    return path if isinstance(path, str) else None


def path_in_source(path: str) -> str:
    """A path, or that of a URL without its query; of a member of an archive, the path in the archive."""
    member = path.partition("::")[0]
    return Path(urlsplit(member).netloc + urlsplit(member).path if "://" in member else member).as_posix()


def cut(sizes: Sequence[int], num_shards: int) -> list[list[int]]:
    """Numbers of files, by their sizes, in consecutive shards of about equal size with at least one file each."""
    shards, start, left = [], 0, sum(sizes)
    for waiting in range(num_shards, 0, -1):
        stop, size = start + 1, sizes[start]
        # a file joins the shard that holds its larger half, and one file is left for each shard that follows
        while stop <= len(sizes) - waiting and (waiting == 1 or size + sizes[stop] / 2 <= left / waiting):
            size += sizes[stop]
            stop += 1
        shards.append(list(range(start, stop)))
        start, left = stop, left - size
    return shards


def plan_split(name: str, rows: datasets.Dataset, details: DatasetDetails) -> Split:
    """Cut a split into shards; raises ValueError if it has fewer files than shards, or a file is missing."""
    sizes = [file_size(item) for item in rows[media_column(rows)]]
    num_shards = max(details.min_shards, -(-sum(sizes) // (details.shard_megabytes << 20)))
    if len(sizes) < num_shards:
        raise ValueError(f"The split {name!r} has {len(sizes)} files, too few for {num_shards} shards.")
    return Split(name, rows, cut(sizes, num_shards), sum(sizes))


def file_names(split: Split) -> list[str]:
    """Names of the files of a split: paths below their common folder, or numbers where these are not distinct."""
    items = split.rows[media_column(split.rows)]
    found = [media_path(item) for item in items]
    paths = [path_in_source(path) if path else "" for path in found]
    numbers = [f"{number:08d}{Path(path).suffix}" for number, path in enumerate(paths)]
    if not all(paths):
        return numbers
    is_mixed = len({os.path.isabs(path) for path in paths}) > 1
    shared = os.path.commonpath([os.path.dirname(path) for path in paths]) if len(paths) > 1 and not is_mixed else ""
    names = [path[len(shared) :].lstrip("/") if shared else path.rpartition("/")[2] for path in paths]
    names = [name if not os.path.isabs(name) else os.path.basename(name) for name in names]
    return names if len(set(names)) == len(set(found)) else numbers


class ShardWriter:
    """Writes rows of all splits as shards, with unchanged files and one set of classes.

    Args:
        splits: rows by split.
        details: format and labels.

    Attributes:
        media, label: columns of the files and of the labels; `label` is `None` without labels.
        names: names of the classes; empty where labels are plain numbers.
        features: columns and their types.

    Raises:
        ValueError: if splits differ in their classes, or the format cannot hold the rows.
    """

    def __init__(self, splits: Mapping[str, datasets.Dataset], details: DatasetDetails):
        column, first = details.label_column, next(iter(splits.values()))
        self.is_image = holds_images(first, media_column(first))
        self.readers: dict[str, LabelReader] = {}
        if column is not None:
            self.readers = {name: LabelReader(rows, column, details.label_names) for name, rows in splits.items()}
        classes = {tuple(reader.names or ()) for reader in self.readers.values()}
        if len(classes) > 1:
            raise ValueError("The splits have different classes: give label_names, the names of all of them in order.")
        self.names = list(classes.pop()) if classes else []
        self.is_tar = details.format == "webdataset"
        self.media, self.label = "image" if self.is_image else "video", "label" if self.readers else None
        if self.is_tar:
            numbers = [name for name in self.names if name.lstrip("-").isdigit()]
            if numbers:
                raise ValueError(
                    f"WebDataset cannot distinguish the class name {numbers[0]!r} from a number: use format=parquet."
                )
            items = [item for rows in splits.values() for item in rows[media_column(rows)]]
            suffixes = {Path(path_in_source(media_path(item) or "")).suffix.lower() for item in items}
            if len(suffixes) != 1 or not next(iter(suffixes)):
                raise ValueError(f"A WebDataset holds files of one kind, not {sorted(suffixes)}: use format=parquet.")
            self.media, self.label = suffixes.pop().lstrip("."), "cls" if self.readers else None
        columns = {self.media: Image() if self.is_image else Video()}
        if self.label is not None:
            columns[self.label] = ClassLabel(names=self.names) if self.names else Value("int64")
        if self.is_tar:
            columns |= {"__key__": Value("string"), "__url__": Value("string")}
        self.features = Features(columns)

    def samples(self, split: Split, numbers: Iterable[int]) -> Iterator[tuple[str, bytes, int | None]]:
        """Name, content and class of rows."""
        column, names = media_column(split.rows), file_names(split)
        for number in numbers:
            row = split.rows[number]
            try:
                label = self.readers[split.name](row) if self.readers else None
            except ValueError as error:
                raise ValueError(f"{media_name(row[column])}: {error}") from error
            yield names[number], read_file(row[column]), label

    def write(self, path: str | Path, split: Split, numbers: Sequence[int]):
        """Write a shard."""
        if self.is_tar:
            self._write_tar(path, zip(numbers, self.samples(split, numbers), strict=True))
        else:
            self._write_parquet(path, self.samples(split, numbers))

    def _write_parquet(self, path: str | Path, samples: Iterable[tuple[str, bytes, int | None]]):
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

    def _write_tar(self, path: str | Path, samples: Iterable[tuple[int, tuple[str, bytes, int | None]]]):
        with tarfile.open(path, "w") as archive:
            for number, (_, content, label) in samples:
                files = {self.media: content} | ({} if label is None else {self.label: str(label).encode()})
                for suffix, data in files.items():
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def dataset_card(name: str, splits: Sequence[Split], writer: ShardWriter, details: DatasetDetails) -> DatasetCard:
    """The card of a data set, with the metadata that `datasets` reads: columns, classes, splits and their sizes."""
    suffix = FORMATS[details.format]
    infos, total, size = SplitDict(), sum(len(split.rows) for split in splits), sum(split.bytes for split in splits)
    for split in splits:
        infos.add(SplitInfo(split.name, num_bytes=split.bytes, num_examples=len(split.rows)))
    info = DatasetInfo(features=writer.features, splits=infos, download_size=size, dataset_size=size)
    files = [{"split": split.name, "path": f"data/{split.name}-*{suffix}"} for split in splits]
    task = "image-classification" if writer.is_image else "video-classification"
    metadata = DatasetCardData(
        license=details.license,
        license_name=details.license_name,
        license_link=details.license_link,
        task_categories=[task] if writer.label else None,
        size_categories=[next((title for bound, title in SIZE_CATEGORIES if total < bound), "n>1M")],
        tags=["video"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(metadata)
    body = read_template("dataset_card.md").render(
        title=details.title or name.rpartition("/")[2],
        name=name,
        description=details.description,
        splits=splits,
        names=writer.names,
        media=writer.media,
        label=writer.label,
        license=license_in_words(details.license, details.license_name, details.license_link),
    )
    return DatasetCard(f"---\n{yaml.safe_dump(metadata.to_dict(), sort_keys=False)}---\n\n{body}")


def publish_dataset(
    splits: Mapping[str, datasets.Dataset],
    repo_id: str,
    details: DatasetDetails,
    *,
    private: bool = True,
    revision: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """Upload a data set of videos or images: shard by shard, then one commit of all shards and the card.

    After an interruption, the same call sends only the missing shards.

    Args:
        splits: rows by split, from [`load_splits`].
        repo_id: `user/name`, or a name of yours.
        details: license, labels and format.
        private: whether a new repository is private.
        revision: branch to upload to.
        dry_run: whether to write and upload nothing; the sizes of shards are then those of their files.

    Raises:
        ValueError: if a name is not valid on the Hub, if a file cannot be read, or if `private`, but the repository
            exists and is public.
    """
    repo_id = full_repo_id(repo_id)
    for name in splits:
        datasets.NamedSplit(name)  # raises ValueError: the name becomes part of paths and code
    writer, suffix = ShardWriter(splits, details), FORMATS[details.format]
    plans = [plan_split(name, rows, details) for name, rows in splits.items()]
    card = str(dataset_card(repo_id, plans, writer, details))
    shards = {
        path: (split, numbers)
        for split in plans
        for path, numbers in zip(split.shard_paths(suffix), split.shards, strict=True)
    }
    files, url = {CARD_NAME: len(card.encode())}, None
    if dry_run:
        for path, (split, numbers) in shards.items():
            files[path] = sum(map(file_size, split.rows.select(numbers)[media_column(split.rows)]))
    else:
        repo_id = find_repository(HfApi(), repo_id, private, revision, "dataset")
        sizes, url = upload_shards(shards, writer, card, repo_id, revision)
        files |= sizes
    return Publication(repo_id, files, card, [], url)


def upload_shards(
    shards: Mapping[str, tuple[Split, list[int]]], writer: ShardWriter, card: str, repo_id: str, revision: str | None
) -> tuple[dict[str, int], str]:
    """Upload shards and card in one commit, which deletes other shards; returns sizes by path and the commit's URL."""
    api, place = HfApi(), {"repo_id": repo_id, "repo_type": "dataset", "revision": revision}
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    with tempfile.TemporaryDirectory() as folder:
        for path, (split, numbers) in shards.items():
            file = Path(folder) / "shard"
            writer.write(file, split, numbers)
            operations.append(CommitOperationAdd(path, str(file)))
            # a shard that is on the Hub already is not sent again
            api.preupload_lfs_files(additions=operations[-1:], **place)
    sizes = {operation.path_in_repo: operation.upload_info.size for operation in operations}
    old = [path for path in api.list_repo_files(**place) if "data/" in path]
    operations += [CommitOperationDelete(path) for path in old if path not in shards]
    operations.append(CommitOperationAdd(CARD_NAME, card.encode()))
    commit = api.create_commit(operations=operations, commit_message="Upload with mvd_hf", **place)
    return sizes, commit.commit_url
