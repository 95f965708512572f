"""Sources of videos: list files, folders, parquet, WebDataset, URLs, labels, manifests, and readers of their files."""

import io
import json
import re
import tarfile
from pathlib import Path

import datasets
import fsspec
import pytest

from mvd_hf.data.clips import ClipDataset, ClipSampler
from mvd_hf.data.decoding import open_media
from mvd_hf.data.labels import LabelReader
from mvd_hf.data.list_files import read_list_file
from mvd_hf.data.sources import (
    cache_stream,
    column_names,
    field_of,
    first_rows,
    holds_images,
    keep_listed,
    load_rows,
    media_column,
    media_name,
    num_videos,
    read_manifest,
)
from mvd_hf.data.toy import make_toy_dataset
from video_files import all_frames, first_and_last, whole

ANIMALS = ("zebra", "ant", "cat")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A videofolder of 6 and 3 videos of 16 frames."""
    folder = tmp_path_factory.mktemp("toy")
    return make_toy_dataset(folder, num_train=6, num_validation=3, num_frames=16, height=48, width=64)


@pytest.fixture
def memory(toy):
    """A file system in memory, `memory://videos`, that holds two of the videos."""
    files = fsspec.filesystem("memory")
    for name in ("0000.mp4", "0001.mp4"):
        files.pipe(f"/videos/{name}", (toy / "train" / name).read_bytes())
    yield files
    files.rm("/videos", recursive=True)


def write_shard(path: Path, toy: Path, numbers: range):
    """A WebDataset shard: per number a video, its class as `.cls` and a `.json` with its name."""
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            members = {
                "mp4": (toy / "train" / f"{number:04d}.mp4").read_bytes(),
                "cls": str(number % 3).encode(),
                "json": json.dumps({"label": ANIMALS[number % 3], "number": number}).encode(),
            }
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def shards(toy, tmp_path_factory) -> Path:
    """A folder with two WebDataset shards of 3 training videos and one of 2 validation videos."""
    folder = tmp_path_factory.mktemp("shards")
    for name, numbers in {"train-0": range(3), "train-1": range(3, 6), "validation-0": range(2)}.items():
        write_shard(folder / f"{name}.tar", toy, numbers)
    return folder


def undecoded(toy: Path, numbers) -> datasets.Dataset:
    """Rows with the bytes of videos and their numbers."""
    items = [{"path": None, "bytes": (toy / "train" / f"{i:04d}.mp4").read_bytes()} for i in numbers]
    rows = datasets.Dataset.from_dict({"video": items, "number": list(numbers)})
    return rows.cast_column("video", datasets.Video(decode=False))


def numbers_of(rows) -> list[int]:
    return [row["number"] for row in rows]


def list_file(folder: Path, text: str, name: str = "list.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_videofolder_gives_undecoded_videos_and_the_columns_of_its_metadata(toy):
    rows = load_rows(str(toy), "validation")
    assert len(rows) == 3
    assert media_column(rows) == "video"
    assert rows["appearance"][:] == [0, 0, 0]
    assert rows["motion"][:] == [0, 1, 2]
    assert rows[1]["video"] == {"path": str(toy / "validation" / "0001.mp4"), "bytes": None}


def test_source_that_does_not_exist_is_named(tmp_path):
    for name in ("none", "none.txt", "none.csv"):
        with pytest.raises(ValueError, match=re.escape(f"There is no data set '{tmp_path / name}'")):
            load_rows(str(tmp_path / name))


def test_folder_without_data_is_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load_rows(str(tmp_path))


def test_missing_split_is_named_with_the_known_ones(toy):
    with pytest.raises(ValueError, match=r"has no split 'test'.*train.*validation"):
        load_rows(str(toy), "test")


def test_a_list_file_and_its_root_may_be_urls(memory):
    for root, start in [
        (None, "memory://lists/"),
        ("memory://videos", "memory://videos/"),
        ("memory://videos/", "memory://videos/"),
    ]:
        memory.pipe("/lists/train.txt", b"0000 3\nsub/0001.mp4 4\nmemory://other/c 5\n/absolute/d.mp4 6\n")
        rows = load_rows("memory://lists/train.txt", root=root)
        assert [item["path"] for item in rows["video"]] == [
            f"{start}0000.mp4",
            f"{start}sub/0001.mp4",
            "memory://other/c.mp4",
            "/absolute/d.mp4",
        ]
        assert rows["label"][:] == [3, 4, 5, 6]


def test_a_local_list_file_may_name_urls(tmp_path, memory, toy):
    path = list_file(tmp_path, "memory://videos/0000.mp4 1\n0001 2\n")
    for index, root in ((0, None), (1, "memory://videos")):
        item = read_list_file(path, root)["video"][index]
        with open_media(item) as reader:
            assert (reader.read([5])[0] == all_frames(toy / "train" / f"000{index}.mp4")[5]).all()


def test_a_list_file_that_cannot_be_fetched_is_named(memory):
    with pytest.raises(ValueError, match=r"list file 'memory://videos/none\.txt' cannot be read"):
        load_rows("memory://videos/none.txt")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["file", "pattern", "folder"])
def test_parquet_may_be_a_file_a_pattern_or_a_folder(tmp_path, toy, kind, streaming):
    undecoded(toy, [0, 1]).to_parquet(tmp_path / "train-0.parquet")
    undecoded(toy, [2]).to_parquet(tmp_path / "train-1.parquet")
    name = {"file": "train-0.parquet", "pattern": "train-*.parquet", "folder": ""}[kind]
    rows = load_rows(str(tmp_path / name), streaming=streaming)
    assert isinstance(rows, datasets.IterableDataset if streaming else datasets.Dataset)
    assert numbers_of(rows) == ([0, 1] if kind == "file" else [0, 1, 2])
    assert next(iter(rows))["video"]["bytes"] == (toy / "train" / "0000.mp4").read_bytes()


def test_webdataset_shards_give_undecoded_videos_and_their_fields(shards, toy):
    for streaming in [False, True]:
        for name in ["", "train-*.tar", "train-1.tar"]:
            rows = load_rows(str(shards / name), streaming=streaming)
            assert media_column(rows) == "mp4"
            assert not holds_images(rows, "mp4")
            found = {row["json"]["number"]: row for row in rows}
            assert list(found) == ([3, 4, 5] if name == "train-1.tar" else list(range(6)))
            for number, row in found.items():
                assert row["mp4"] == {
                    "path": f"{number:04d}.mp4",
                    "bytes": (toy / "train" / f"{number:04d}.mp4").read_bytes(),
                }
                assert row["cls"] == number % 3
            labels = LabelReader(rows, "cls")
            assert [labels(row) for row in found.values()] == [number % 3 for number in found]


@pytest.mark.parametrize("streaming", [False, True])
def test_names_of_webdataset_members_may_hold_dots(tmp_path, toy, streaming):
    for number, keys in enumerate([["clip_1.5s", "clip_2.5s"], ["a1", "clip_3.5s"], ["v1.0/a1", "v1.0/a.2"]]):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w") as archive:
            for i, key in enumerate(keys):
                for suffix, content in (("mp4", b"video"), ("cls", str(i).encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        rows = list(load_rows(str(path), streaming=streaming))
        assert [(row["__key__"], row["mp4"]["path"], row["cls"]) for row in rows] == [
            (key, f"{key}.mp4", i) for i, key in enumerate(keys)
        ]


def test_webdataset_validation_split_is_found(shards):
    assert len(load_rows(str(shards), "validation")) == 2
    assert len(list(load_rows(str(shards), "validation", streaming=True))) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_videofolder_is_the_same_streamed_or_not(toy, streaming):
    rows = load_rows(str(toy), "validation", streaming=streaming)
    assert [(Path(row["video"]["path"]).name, row["motion"]) for row in rows] == [
        ("0000.mp4", 0),
        ("0001.mp4", 1),
        ("0002.mp4", 2),
    ]


def test_columns_are_found_by_type_then_by_name():
    def rows(**columns):
        return datasets.Dataset.from_dict({name: ["x"] for name in columns}).cast(
            datasets.Features({name: kind or datasets.Value("string") for name, kind in columns.items()})
        )

    typed = rows(path=None, movie=datasets.Video(decode=False))
    assert media_column(typed) == "movie"
    assert media_column(rows(label=None, path=None, video=None)) == "video"
    assert media_column(rows(label=None, jpg=None)) == "jpg"
    assert holds_images(rows(jpg=None), "jpg")
    assert holds_images(rows(picture=datasets.Image(decode=False)), "picture")
    assert not holds_images(typed, "movie")


def test_a_stream_without_declared_columns_is_asked_for_its_first_row():
    rows = datasets.IterableDataset.from_generator(lambda: iter([{"mp4": b"x", "cls": 1}]))
    assert rows.features is None
    assert column_names(rows) == ["mp4", "cls"]
    assert media_column(rows) == "mp4"


def test_number_of_videos_is_counted_or_declared(toy):
    rows = undecoded(toy, [0, 1])
    assert num_videos(rows, "train") == 2
    stream = rows.to_iterable_dataset()
    assert num_videos(stream, "train") is None
    stream.info.splits = datasets.splits.SplitDict({"train": datasets.SplitInfo("train", num_examples=7)})
    assert num_videos(stream, "train") == 7
    assert num_videos(stream, "validation") is None
    stream.info.splits = datasets.splits.SplitDict({"train": datasets.SplitInfo("train", num_examples=0)})
    assert num_videos(stream, "train") is None


def test_the_first_rows_of_a_stream_do_not_depend_on_its_shards(toy):
    rows = undecoded(toy, range(6))
    assert numbers_of(first_rows(rows, 4)) == [0, 1, 2, 3]
    assert numbers_of(first_rows(rows, 9)) == list(range(6))
    stream = rows.to_iterable_dataset(num_shards=3)
    stream.info.splits = datasets.splits.SplitDict({"train": datasets.SplitInfo("train", num_examples=6)})
    first = first_rows(stream, 4)
    assert first.num_shards == 1
    assert num_videos(first, "train") == 6  # declared for the whole of it
    assert numbers_of(first) == [0, 1, 2, 3]
    assert media_column(first) == "video"


def test_a_file_is_called_by_its_path_or_by_the_digest_of_its_bytes():
    for item, name in [
        ({"path": "a/b.mp4", "bytes": b"x"}, "a/b.mp4"),
        ("a/b.mp4", "a/b.mp4"),
        ({"path": None, "bytes": b"x"}, "blake2b:442a44457137672b3218c1007dc8f76a"),
        (b"x", "blake2b:442a44457137672b3218c1007dc8f76a"),
        ({"path": None, "bytes": None}, "<a row without a file>"),
        (None, "<a row without a file>"),
    ]:
        assert media_name(item) == name


def test_nested_columns_are_reached_with_dots():
    row = {"json": {"label": {"id": 3}}, "cls": 1}
    assert field_of(row, "json.label.id") == 3
    assert field_of(row, "cls") == 1
    for column in ("json.name", "cls.id", "label"):
        with pytest.raises(ValueError, match=rf"no column '{column}'; the columns are json, cls"):
            field_of(row, column)


def test_nested_labels_are_read_streamed_or_not(shards):
    rows, stream = load_rows(str(shards)), load_rows(str(shards), streaming=True)
    names = ["ant", "cat", "zebra"]
    for reader in (LabelReader(rows, "json.label"), LabelReader(stream, "json.label", names)):
        assert reader.names == names
        assert [reader(row) for row in stream] == [2, 0, 1, 2, 0, 1]
    assert [LabelReader(stream, "json.number")(row) for row in rows] == list(range(6))


def test_a_stream_with_named_labels_needs_their_names(shards):
    with pytest.raises(ValueError, match="names such as 'zebra': give label_names"):
        LabelReader(load_rows(str(shards), streaming=True), "json.label")


def test_an_unknown_label_is_refused_with_its_file(toy):
    rows = load_rows(str(toy))
    data = ClipDataset(rows, ClipSampler(first_and_last, whole), label_column="motion", label_names=["up", "down"])
    assert data[1]["labels"] == 1
    with pytest.raises(ValueError, match=r"0002\.mp4: The label 2 in column 'motion' is not one of 2 classes"):
        data[2]


def test_a_manifest_says_which_files_to_use(tmp_path):
    path = list_file(tmp_path, 'frames,use,file\n3,yes,"a, b.mp4"\n4,no,c.mp4\n', "manifest.csv")
    assert read_manifest(path) == {"a, b.mp4": True, "c.mp4": False}


def test_a_file_that_is_no_manifest_is_refused(tmp_path):
    for text, message in [
        ("file,use\na.mp4,maybe\n", "needs columns 'file' and 'use' .yes or no.: 'maybe'"),
        ("name,use\na.mp4,yes\n", "needs columns 'file' and 'use'"),
        ("file\na.mp4\n", "needs columns 'file' and 'use'"),
        ("file,use\na.mp4,no\n", "leaves no file to use"),
        ("", "leaves no file to use"),
    ]:
        with pytest.raises(ValueError, match=rf"manifest '.*manifest\.csv' {message}"):
            read_manifest(list_file(tmp_path, text, "manifest.csv"))


def test_a_manifest_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "manifest.csv").write_bytes(b"\xff\xfe")
    for name in ("manifest.csv", "none.csv"):
        with pytest.raises(ValueError, match=rf"manifest '.*{name}' cannot be read"):
            read_manifest(tmp_path / name)


def test_only_files_of_the_manifest_are_kept(toy):
    for streaming in [False, True]:
        for by in ["path", "digest"]:
            rows = undecoded(toy, range(4)) if by == "digest" else load_rows(str(toy))
            column = "number" if by == "digest" else "motion"
            names = [media_name(item) for item in rows["video"]]
            rows = rows.to_iterable_dataset(num_shards=2) if streaming else rows
            use = {name: i in (1, 2) for i, name in enumerate(names)}
            assert [row[column] for row in keep_listed(rows, "video", use)] == [1, 2]
            del use[names[3]]
            with pytest.raises(ValueError, match=rf"manifest does not list '{re.escape(names[3])}': it is of other"):
                list(keep_listed(rows, "video", use))


def test_a_kept_stream_is_the_split_that_was_asked_for_and_no_other(shards, toy, tmp_path):
    (tmp_path / "train-0.tar").write_bytes(b"cannot be read")
    (tmp_path / "validation-0.tar").write_bytes((shards / "train-1.tar").read_bytes())
    rows = cache_stream(str(tmp_path), "validation")
    assert isinstance(rows, datasets.Dataset)
    assert [row["json"]["number"] for row in rows] == [3, 4, 5]
    assert rows[0]["mp4"]["bytes"] == (toy / "train" / "0003.mp4").read_bytes()
    assert len(cache_stream(str(tmp_path), "validation", max_samples=2)) == 2


def test_a_stream_is_kept_once_and_again_when_the_folder_changes(tmp_path, toy):
    undecoded(toy, [0, 1]).to_parquet(tmp_path / "train-0.parquet")
    assert numbers_of(cache_stream(str(tmp_path), "train")) == [0, 1]
    (kept,) = cache_stream(str(tmp_path), "train").cache_files
    time = Path(kept["filename"]).stat().st_mtime_ns
    assert cache_stream(str(tmp_path), "train").cache_files == [kept]
    assert Path(kept["filename"]).stat().st_mtime_ns == time
    undecoded(toy, [2]).to_parquet(tmp_path / "train-1.parquet")
    assert numbers_of(cache_stream(str(tmp_path), "train")) == [0, 1, 2]
    undecoded(toy, [4, 5, 3]).to_parquet(tmp_path / "train-1.parquet")
    assert numbers_of(cache_stream(str(tmp_path), "train")) == [0, 1, 4, 5, 3]
    (tmp_path / "train-0.parquet").unlink()
    assert numbers_of(cache_stream(str(tmp_path), "train")) == [4, 5, 3]
