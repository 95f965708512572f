"""Folders of videos as people have them: nested and uneven class folders, one class, two videos of a sample."""

from pathlib import Path

import datasets
import pytest

from mvd_hf.data.labels import LabelReader
from mvd_hf.data.sources import load_rows, media_column, media_name, split_names


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


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ["train/a.mp4", "bus/b.mp4", "car/c.mp4"],
        ["bus/train_station.mp4", "bus/b.mp4", "car/c.mp4"],
        ["car/my-test-1.mp4", "bus/b.mp4"],
        ["test drive/a.mp4", "bus/b.mp4"],
        ["test_drive/a.mp4", "test_flight/b.mp4", "jump/c.mp4"],
        ["around/dev/a.mp4", "around/bus/b.mp4"],
        ["bus/a.webm", "car/b.m4v", "bus/c.MP4", "bus/d.mp4"],
        ["bus/a.m4v", "car/b.ts"],
        ["bus/a.webm", "car/b.webm"],
    ],
)
def test_no_video_is_left_out_because_of_its_name(tmp_path, names, streaming):
    source = folder_of(tmp_path, *names)
    assert split_names(source) == ["train"]
    assert classes_of(source, streaming=streaming) == {Path(name).name: Path(name).parent.name for name in names}


def test_splits_at_the_top_may_have_classes_named_like_splits(tmp_path):
    source = folder_of(tmp_path, "train/test/a.mp4", "train/bus/b.mp4", "val/test/c.mp4", "val/test/d.mp4")
    assert split_names(source) == ["train", "validation"]
    assert classes_of(source) == {"a.mp4": "test", "b.mp4": "bus"}
    assert classes_of(source, "validation") == {"c.mp4": "test", "d.mp4": "test"}
    source = folder_of(tmp_path / "capital", "Train/bus/a.mp4", "Test/bus/b.mp4")
    assert [classes_of(source, split) for split in split_names(source)] == [{"a.mp4": "bus"}, {"b.mp4": "bus"}]


def test_a_folder_of_videos_and_more_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"1 videos .*a\.mp4"):
        load_rows(folder_of(tmp_path, "bus/a.mp4", "bus/a1.jpg", "bus/a2.jpg"))


def test_the_current_folder_is_read_and_a_damaged_archive_is_named(tmp_path, monkeypatch):
    folder_of(tmp_path, "bus/a.mp4", "car/b.mp4")
    monkeypatch.chdir(tmp_path)
    assert classes_of(".") == {"a.mp4": "bus", "b.mp4": "car"}
    (tmp_path / "old.zip").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{tmp_path.name}"):
        load_rows(str(tmp_path))


def test_videos_beside_splits_are_named(tmp_path, caplog):
    source = folder_of(tmp_path / "a", "train/bus/a.mp4", "test/bus/b.mp4", "extra/c.mp4", "d.mp4")
    assert classes_of(source) == {"a.mp4": "bus"}
    assert "train, test: 2 (" in caplog.text
    assert "extra/c.mp4" in caplog.text
    with pytest.raises(ValueError, match=r"train, test .*car/c\.mp4"):
        load_rows(folder_of(tmp_path / "b", "train/a.mp4", "test/b.mp4", "car/c.mp4"))


def test_a_card_that_names_the_files_of_a_split_is_trusted(tmp_path):
    source = folder_of(tmp_path, "bus/train_1.mp4", "bus/b.mp4")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: bus/train*\n---\n"
    )
    assert [Path(media_name(row["video"])).name for row in load_rows(source)] == ["train_1.mp4"]


def test_a_folder_behind_a_link_and_linked_classes_are_read(tmp_path):
    folder_of(tmp_path / "disk", "bus/a.mp4", "car/b.mp4")
    folder_of(tmp_path / "mine", "cat/c.mp4")
    (tmp_path / "mine" / "bus").symlink_to(tmp_path / "disk" / "bus")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert classes_of(str(tmp_path / "link")) == {"a.mp4": "bus", "b.mp4": "car"}
    assert classes_of(str(tmp_path / "mine")) == {"a.mp4": "bus", "c.mp4": "cat"}


def table_in(folder: Path, text: str, name: str = "train.csv") -> str:
    folder.mkdir()
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder)


def test_several_folders_named_like_one_split_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"train_1, train_2 of .* train:"):
        load_rows(folder_of(tmp_path, "train_1/bus/a.mp4", "train_2/bus/b.mp4"))


@pytest.mark.parametrize("streaming", [False, True])
def test_text_of_csv_and_json_data_sets_stays_text(tmp_path, streaming):
    for number, (labels, expected) in enumerate(
        [
            (["001", "002"], ["001", "002"]),
            (["None", "NA"], ["None", "NA"]),
            (["true", "false"], ["true", "false"]),
            (["7106594312292453675", "1"], ["7106594312292453675", "1"]),
            (["0", "1"], [0, 1]),
            (["a", ""], ["a", None]),
        ]
    ):
        rows = [f"{i}.mp4,{label}" for i, label in enumerate(labels)]
        text = "\n".join(["video,label", *rows])
        for name, content in {"train.csv": text, "train.tsv": text.replace(",", "\t")}.items():
            source = table_in(tmp_path / f"{number}{name}", content, name)
            assert [row["label"] for row in load_rows(source, streaming=streaming)] == expected
    text = '{"video": "a.mp4", "label": "001"}\n{"video": "b.mp4", "label": "None"}\n'
    rows = load_rows(table_in(tmp_path / "json", text, "train.jsonl"), streaming=streaming)
    assert [row["label"] for row in rows] == ["001", "None"]
    text = '{"video": "a.mp4", "label": "2024-01-31"}\n{"video": "b.mp4", "label": "2024-02-01"}\n'
    rows = load_rows(table_in(tmp_path / "dates", text, "train.jsonl"), streaming=streaming)
    reader = LabelReader(rows, "label", ["2024-01-31", "2024-02-01"] if streaming else None)
    assert [reader.names[reader(row)] for row in rows] == ["2024-01-31", "2024-02-01"]


def test_types_of_csv_columns_are_the_same_in_all_splits_or_as_declared(tmp_path):
    source = table_in(tmp_path / "two", "video,label\na.mp4,1\n")
    (tmp_path / "two" / "test.csv").write_text("video,label\nb.mp4,001\n")
    assert [load_rows(source, split)[0]["label"] for split in ("train", "test")] == ["1", "001"]
    source = table_in(tmp_path / "declared", "video,label,weight\na.mp4,001,1\n")
    features = "".join(
        f"  - name: {name}\n    dtype: {kind}\n"
        for name, kind in (("video", "string"), ("label", "string"), ("weight", "float32"))
    )
    (tmp_path / "declared" / "README.md").write_text(f"---\ndataset_info:\n  features:\n{features}---\n")
    assert load_rows(source)[0] == {"video": "a.mp4", "label": "001", "weight": 1.0}


def test_a_blank_label_of_a_csv_data_set_names_its_row_and_a_long_row_its_file(tmp_path):
    rows = load_rows(table_in(tmp_path / "a", "video,label\na.mp4,x\nb.mp4,\n"))
    with pytest.raises(ValueError, match=r"b\.mp4: .*'label'"):
        LabelReader(rows, "label")
    with pytest.raises(ValueError, match=r"train\.csv"):
        load_rows(table_in(tmp_path / "b", "video,label\na.mp4,x, y\nb.mp4,x, y\n"))


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
