"""Data sets for the Hub: shards, labels, names, cards, privacy, and reading them back."""

import re
import shutil
import zipfile
from pathlib import Path

import datasets
import fsspec
import pyarrow.parquet
import pytest
from huggingface_hub import DatasetCard
from PIL import Image

from mvd_hf.data.labels import LabelReader
from mvd_hf.data.sources import load_rows, num_videos
from mvd_hf.hub import datasets as module
from mvd_hf.hub.datasets import (
    DatasetDetails,
    ShardWriter,
    Split,
    cut,
    file_names,
    load_splits,
    plan_split,
    publish_dataset,
)

FORMATS = {"parquet": ("video", "label"), "webdataset": ("mp4", "cls")}


def details(**options) -> DatasetDetails:
    return DatasetDetails(**({"license": "cc0-1.0"} | options))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def classes(toy_folder, tmp_path) -> Path:
    """A folder with the classes `jump` and `run` in two splits."""
    source = Path(toy_folder)
    for split, count in (("train", 6), ("validation", 4)):
        for number in range(count):
            target = tmp_path / "clips" / split / ("jump" if number % 2 else "run") / f"{number}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / split / f"{number:04d}.mp4", target)
    return tmp_path / "clips"


def list_file(folder: Path, toy_folder: str, labels=(3, 0, 1, 2)) -> Path:
    path = folder / "list.csv"
    path.write_text("".join(f"{toy_folder}/train/{i:04d}.mp4 {label}\n" for i, label in enumerate(labels)))
    return path


# shards


def test_shards_are_about_equal_and_never_empty():
    for sizes, num_shards, expected in (
        ([1, 1, 1, 1], 2, [[0, 1], [2, 3]]),
        ([10, 1, 1], 2, [[0], [1, 2]]),
        ([1, 1, 10], 2, [[0, 1], [2]]),
        ([10, 0, 0], 3, [[0], [1], [2]]),
        ([0, 0, 0], 1, [[0, 1, 2]]),
    ):
        assert cut(sizes, num_shards) == expected
    sizes = [(i * 7919) % 100 + 1 for i in range(1000)]
    shards = cut(sizes, 8)
    assert [number for shard in shards for number in shard] == list(range(1000))
    totals = [sum(sizes[number] for number in shard) for shard in shards]
    assert max(totals) - min(totals) <= 200


def test_number_of_shards(classes):
    rows = load_splits(str(classes))["train"]
    assert len(plan_split("train", rows, details()).shards) == 1
    assert len(plan_split("train", rows, details(min_shards=5)).shards) == 5
    with pytest.raises(ValueError, match=r"'train'.* 7 shards"):
        plan_split("train", rows, details(min_shards=7))


# sources


def test_the_name_of_a_split_is_checked(classes, hub):
    rows = load_splits(str(classes))["train"]
    for name in ("../train", 'train"'):
        with pytest.raises(ValueError, match=re.escape(name)):
            publish_dataset({name: rows}, "me/clips", details())
    assert not hub.repositories


def test_splits_of_a_folder_and_of_list_files(classes, toy_folder, tmp_path):
    assert {name: len(rows) for name, rows in load_splits(str(classes)).items()} == {"train": 6, "validation": 4}
    path = str(list_file(tmp_path, toy_folder))
    assert {name: len(rows) for name, rows in load_splits(path).items()} == {"train": 4}
    both = load_splits({"train": path, "test": path})
    assert {name: len(rows) for name, rows in both.items()} == {"train": 4, "test": 4}


def test_a_manifest_leaves_files_out(toy_folder, tmp_path):
    path = list_file(tmp_path, toy_folder)
    manifest = tmp_path / "audit.csv"
    rows = [f"{toy_folder}/train/{i:04d}.mp4,{'no' if i == 1 else 'yes'}\n" for i in range(4)]
    manifest.write_text("file,use\n" + "".join(rows))
    (rows,) = load_splits(str(path), manifest=str(manifest)).values()
    assert [Path(item["path"]).name for item in rows["video"]] == ["0000.mp4", "0002.mp4", "0003.mp4"]


def test_names_are_paths_below_the_shared_folder(classes):
    rows = load_splits(str(classes))["train"]
    assert sorted(file_names(Split("train", rows)))[:2] == ["jump/1.mp4", "jump/3.mp4"]
    nameless = datasets.Dataset.from_dict(
        {"video": [{"path": None, "bytes": b"x"}, {"path": "a/b.mp4", "bytes": b"y"}]}
    )
    assert file_names(Split("train", nameless)) == ["00000000", "00000001.mp4"]
    one = datasets.Dataset.from_dict({"video": [{"path": "/home/somebody/a.mp4", "bytes": None}]})
    assert file_names(Split("train", one)) == ["a.mp4"]


@pytest.mark.parametrize("kind", FORMATS)
def test_urls_members_of_archives_and_plain_paths_are_published(toy_folder, tmp_path, hub, kind):
    content = (Path(toy_folder) / "train" / "0000.mp4").read_bytes()
    fsspec.filesystem("memory").pipe("/published/a.mp4", content)
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr("deep/b.MP4", content)
    (tmp_path / "c.mp4").write_bytes(content)
    paths = ["memory://published/a.mp4", f"zip://deep/b.MP4::{tmp_path}/clips.zip", str(tmp_path / "c.mp4")]
    for number, items in enumerate([[{"path": path, "bytes": None} for path in paths], paths]):
        rows = datasets.Dataset.from_dict({"video": items, "label": [0, 1, 2]})
        publish_dataset({"train": rows}, f"me/mixed{number}", details(label_column="label", format=kind))
        media, label = FORMATS[kind]
        found = load_rows(f"me/mixed{number}")
        assert [item["bytes"] for item in found[media]] == [content] * 3
        assert found[label][:] == [0, 1, 2]


def test_names_of_urls_are_their_paths():
    for paths, names in (
        (["https://a.org/x/1.mp4?key=1", "https://a.org/x/2.mp4"], ["1.mp4", "2.mp4"]),
        (["https://a.org/1.mp4", "https://b.org/1.mp4"], ["00000000.mp4", "00000001.mp4"]),
        (["zip://x/1.mp4::a.zip", "zip://x/1.mp4::b.zip"], ["00000000.mp4", "00000001.mp4"]),
    ):
        assert [
            Path(name).name for name in file_names(Split("train", datasets.Dataset.from_dict({"video": paths})))
        ] == [Path(name).name for name in names]


# uploads


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_published_is_read_back(classes, hub, kind):
    splits = load_splits(str(classes))
    publication = publish_dataset(splits, "me/clips", details(label_column="label", format=kind, min_shards=3))
    suffix = {"parquet": "parquet", "webdataset": "tar"}[kind]
    assert f"data/train-00002-of-00003.{suffix}" in publication.files
    assert hub.dataset("me/clips").private
    media, label = FORMATS[kind]
    for split, count, streaming in (("train", 6, True), ("train", 6, False), ("validation", 4, True)):
        rows = load_rows("me/clips", split, streaming=streaming)
        assert num_videos(rows, split) == count
        reader = LabelReader(rows, label)
        assert reader.names == ["jump", "run"]
        found = {row[media]["bytes"]: reader.names[reader(row)] for row in rows}
        expected = {path.read_bytes(): path.parent.name for path in (classes / split).glob("*/*.mp4")}
        assert found == expected


def test_the_card_has_metadata_and_a_snippet_that_runs(classes, hub, capsys):
    options = {"label_column": "label", "title": "Moves", "description": "People who move."}
    publish_dataset(load_splits(str(classes)), "me/clips", details(**options))
    card = DatasetCard(hub.dataset("me/clips").files()["README.md"].content.decode())
    data = card.data.to_dict()
    assert data["license"] == "cc0-1.0"
    assert data["task_categories"] == ["video-classification"]
    assert data["size_categories"] == ["n<1K"]
    splits = {split["name"]: split["num_examples"] for split in data["dataset_info"]["splits"]}
    assert splits == {"train": 6, "validation": 4}
    assert data["configs"][0]["data_files"][0] == {"split": "train", "path": "data/train-*.parquet"}
    for text in ("# Moves\n", "\nPeople who move.\n", "jump, run.", "--dataset me/clips --streaming true"):
        assert text in card.text
    exec(card.text.partition("```python\n")[2].partition("```")[0], {})
    name, size, label = capsys.readouterr().out.split()
    assert (classes / "train" / name).stat().st_size == int(size)
    assert ["jump", "run"][int(label)] == Path(name).parent.name


def test_numbers_as_labels_and_their_names(toy_folder, hub, tmp_path):
    path = str(list_file(tmp_path, toy_folder))
    publish_dataset(load_splits(path), "me/numbers", details(label_column="label"))
    rows = load_rows("me/numbers", "train")
    assert rows.features["label"] == datasets.Value("int64")
    assert rows["label"][:] == [3, 0, 1, 2]
    names = tmp_path / "names.txt"
    names.write_text("up\ndown\nleft\nright\n")
    publish_dataset(load_splits(path), "me/names", details(label_column="label", label_names=str(names)))
    assert load_rows("me/names", "train").features["label"].names == ["up", "down", "left", "right"]


def test_images_are_published_too(hub, tmp_path):
    for number in range(3):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "train" / f"{number}.png")
    splits = {"train": load_rows(str(tmp_path / "train"))}
    publish_dataset(splits, "me/images", details())
    assert isinstance(load_rows("me/images").features["image"], datasets.Image)


def test_an_interrupted_upload_sends_only_what_is_missing(classes, hub, monkeypatch):
    splits, options = load_splits(str(classes)), details(min_shards=3)
    write, written = ShardWriter.write, []

    def fail_at_the_fourth(self, path, split, numbers):
        written.append(path)
        if len(written) == 4:
            raise KeyboardInterrupt
        write(self, path, split, numbers)

    monkeypatch.setattr(ShardWriter, "write", fail_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        publish_dataset(splits, "me/clips", options)
    assert hub.dataset("me/clips").files() == {}  # nothing is visible before all shards are there
    sent = sum(request.startswith("PUT") for request in hub.requests)
    assert sent == 3
    publish_dataset(splits, "me/clips", options)
    assert sum(request.startswith("PUT") for request in hub.requests) == 6
    assert len(load_rows("me/clips", "train")) == 6


def test_old_shards_are_deleted(classes, hub):
    splits = load_splits(str(classes))
    publish_dataset(splits, "me/clips", details(min_shards=4))
    publish_dataset(splits, "me/clips", details(format="webdataset"))
    assert set(hub.dataset("me/clips").files()) == {
        "README.md",
        "data/train-00000-of-00001.tar",
        "data/validation-00000-of-00001.tar",
    }


def test_a_dry_run_writes_and_uploads_nothing(classes, hub, monkeypatch):
    monkeypatch.setattr(ShardWriter, "write", None)
    publication = publish_dataset(load_splits(str(classes)), "me/clips", details(min_shards=2), dry_run=True)
    assert not hub.requests
    assert publication.url is None
    total = sum(path.stat().st_size for path in classes.rglob("*.mp4"))
    assert sum(size for path, size in publication.files.items() if path.startswith("data/")) == total


def test_a_revision_and_an_open_repository(classes, hub):
    splits = load_splits(str(classes))
    publish_dataset(splits, "me/clips", details(), private=False, revision="v2")
    assert not hub.dataset("me/clips").private
    assert "README.md" in hub.dataset("me/clips").files("v2")
    assert hub.dataset("me/clips").files() == {}
    with pytest.raises(ValueError, match=r"me/clips .*private=False"):
        publish_dataset(splits, "me/clips", details())


def test_a_shard_is_read_in_parts(classes, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "ROW_GROUP_BYTES", 10_000)
    splits = load_splits(str(classes))
    writer = ShardWriter(splits, details())
    writer.write(tmp_path / "shard", Split("train", splits["train"]), list(range(6)))
    file = pyarrow.parquet.ParquetFile(tmp_path / "shard")
    assert file.num_row_groups > 1
    assert file.metadata.num_rows == 6


# refused


def test_what_cannot_be_published_is_named(classes, toy_folder, tmp_path, hub):
    with pytest.raises(ValueError, match="license="):
        DatasetDetails()
    for options, message in (
        ({"format": "zip"}, "format='zip'.*parquet, webdataset"),
        ({"min_shards": 0}, "min_shards=0"),
        ({"shard_megabytes": 0}, "shard_megabytes=0"),
    ):
        with pytest.raises(ValueError, match=message):
            details(**options)
    splits = load_splits(str(classes))
    with pytest.raises(ValueError, match="'action'"):
        publish_dataset(splits, "me/clips", details(label_column="action"))
    shutil.copy(classes / "train" / "run" / "0.mp4", classes / "train" / "run" / "0.avi")
    mixed = {"train": load_rows(str(classes), "train")}
    with pytest.raises(ValueError, match=r"\['.avi', '.mp4'\].*format=parquet"):
        publish_dataset(mixed, "me/clips", details(format="webdataset"))
    numbered = load_splits(str(list_file(tmp_path, toy_folder)))
    options = {"label_column": "label", "label_names": list("3210"), "format": "webdataset"}
    with pytest.raises(ValueError, match=r"'3'.*format=parquet"):
        publish_dataset(numbered, "me/clips", details(**options))
    for path, message in ((tmp_path / "gone.mp4", r"gone\.mp4 .*manifest"), (classes, f"'{classes}' .*transcode")):
        rows = datasets.Dataset.from_dict({"video": [{"path": str(path), "bytes": None}]})
        with pytest.raises(ValueError, match=message):
            publish_dataset({"train": rows}, "me/clips", details())
    named = {
        name: datasets.Dataset.from_dict({"video": [{"path": None, "bytes": b"x"}], "label": [label]})
        for name, label in (("train", "jump"), ("test", "run"))
    }
    with pytest.raises(ValueError, match="label_names"):
        publish_dataset(named, "me/clips", details(label_column="label"))
    assert not hub.repositories
