"""Folders of videos as people have them: nested and uneven class folders, one class, two videos of a sample."""

from pathlib import Path

import datasets
import pytest

from mvd_hf.data.sources import LabelReader, load_rows, media_column, media_name


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def folder_of(folder: Path, *names: str) -> str:
    """A folder of files that are never decoded."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return str(folder)


def classes_of(source: str, split: str = "train", streaming: bool = False, **choices) -> dict[str, str]:
    """Class names of files by their names."""
    rows = load_rows(source, split, streaming=streaming, **choices)
    reader = LabelReader(rows, "label")
    return {Path(media_name(row["video"])).name: reader.names[reader(row)] for row in rows}


NESTED = [f"{name}/scene{i}/{name}{i}.mp4" for name in ("bike", "dive") for i in range(2)]
UNEVEN = ["bike/b.mp4", "dive/scene0/c.mp4", "dive/scene1/d.mp4"]


@pytest.mark.parametrize("streaming", [False, True])
def test_nested_class_folders_are_read_at_the_level_that_is_chosen(tmp_path, streaming):
    for source in (
        folder_of(tmp_path / "flat", *NESTED),
        folder_of(tmp_path / "split", *(f"train/{n}" for n in NESTED)),
    ):
        for level, names in (("first", ["bike", "bike", "dive", "dive"]), ("last", ["scene0", "scene1"] * 2)):
            found = classes_of(source, streaming=streaming, class_level=level)
            assert found == dict(zip(("bike0.mp4", "bike1.mp4", "dive0.mp4", "dive1.mp4"), names, strict=True))


@pytest.mark.parametrize("names", [NESTED, UNEVEN], ids=["nested", "uneven"])
def test_ambiguous_class_folders_are_refused_with_both_readings(tmp_path, names):
    source = folder_of(tmp_path, *names)
    assert "label" not in load_rows(source).column_names  # videos without labels are read
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"bike, dive.*scene0, scene1.*class_level=first"):
            classes_of(source, streaming=streaming)
    assert set(classes_of(source, class_level="first").values()) == {"bike", "dive"}


def test_a_folder_with_one_class_or_around_the_classes_is_read(tmp_path):
    assert classes_of(folder_of(tmp_path / "one", "jump/a.mp4", "jump/b.mp4")) == {"a.mp4": "jump", "b.mp4": "jump"}
    assert classes_of(folder_of(tmp_path / "zip", "UCF/run/a.mp4", "UCF/jump/b.mp4")) == {
        "a.mp4": "run",
        "b.mp4": "jump",
    }


def test_a_video_beside_the_class_folders_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"stray\.mp4"):
        classes_of(folder_of(tmp_path, "run/a.mp4", "jump/b.mp4", "stray.mp4"))


def test_classes_are_the_same_in_all_splits(tmp_path):
    names = ["train/jump/a.mp4", "train/run/b.mp4", "validation/run/c.mp4"]
    source = folder_of(tmp_path, *names)
    assert load_rows(source, "validation").features["label"].names == ["jump", "run"]
    assert classes_of(source, "validation") == {"c.mp4": "run"}


def test_class_level_is_checked(tmp_path):
    with pytest.raises(ValueError, match=r"'middle'.*first or last"):
        load_rows(folder_of(tmp_path, "run/a.mp4"), class_level="middle")


def with_metadata(folder: Path, labels, heading="file_name,gesture") -> str:
    source = folder_of(folder, *(f"{i}.mp4" for i in range(len(labels))))
    (folder / "metadata.csv").write_text("\n".join([heading, *(f"{i}.mp4,{label}" for i, label in enumerate(labels))]))
    return source


@pytest.mark.parametrize("streaming", [False, True])
def test_text_of_metadata_stays_text(tmp_path, streaming):
    for number, (labels, expected) in enumerate(
        [
            (["None", "wave", "NA"], ["None", "wave", "NA"]),
            (["001", "002", "010"], ["001", "002", "010"]),
            (["true", "false"], ["true", "false"]),
            (["0", "2"], [0, 2]),
            (["0.5", "1"], [0.5, 1.0]),
            (["1", ""], [1, None]),
            (["a", ""], ["a", None]),
        ]
    ):
        rows = load_rows(with_metadata(tmp_path / str(number), labels), streaming=streaming)
        assert [row["gesture"] for row in rows] == expected
    assert media_column(rows) == "video"


def test_a_blank_label_of_metadata_names_its_row(tmp_path):
    for labels in (["wave", "", "None"], ["a", " ", "b"]):
        with pytest.raises(ValueError, match=r"1\.mp4: .*'gesture'"):
            LabelReader(load_rows(with_metadata(tmp_path / labels[0], labels)), "gesture")


@pytest.mark.parametrize("streaming", [False, True])
def test_of_two_video_columns_one_must_be_chosen(tmp_path, streaming):
    folder_of(tmp_path, "d.mp4", "c.mp4")
    (tmp_path / "metadata.csv").write_text("depth_file_name,color_file_name,label\nd.mp4,c.mp4,1\n")
    with pytest.raises(ValueError, match=r"depth and color.*video_column="):
        media_column(load_rows(str(tmp_path), streaming=streaming))
    for column, name in (("depth", "d.mp4"), ("color", "c.mp4")):
        rows = load_rows(str(tmp_path), streaming=streaming, video_column=column)
        assert media_column(rows) == column
        assert [Path(media_name(row[column])).name for row in rows] == [name]
    with pytest.raises(ValueError, match=r"'heat'.*depth, color"):
        load_rows(str(tmp_path), streaming=streaming, video_column="heat")


def test_a_video_column_of_any_name_may_be_chosen(tmp_path):
    rows = datasets.Dataset.from_dict({"left": ["a.mp4"], "video": ["b.mp4"]})
    rows.to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        rows = load_rows(str(tmp_path / "train.parquet"), streaming=streaming, video_column="left")
        assert media_column(rows) == "left"
        assert media_name(next(iter(rows))["left"]) == "a.mp4"
