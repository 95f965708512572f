"""Official splits: files are read exactly or refused by line, videos found wherever they lie, lists written."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from launching import ROOT
from mvd_hf.curation.official_splits import (
    SPLIT_READERS,
    OfficialSplits,
    find_videos,
    read_hmdb51,
    read_kinetics,
    read_ssv2,
    read_ucf101,
    video_index,
    write_lists,
)
from mvd_hf.data.labels import read_label_names
from mvd_hf.data.list_files import read_list_file
from mvd_hf.data.sources import load_rows

RECIPE = ROOT / "recipes" / "prepare.py"


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def touch(folder: Path, names) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"video")
    return folder


UCF101 = {
    "classInd.txt": "1 ApplyEyeMakeup\r\n2 Archery\r\n",
    "trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nArchery/v_Archery_g08_c01.avi 2\n",
    "testlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\nArchery/v_Archery_g01_c01.avi\n",
    "trainlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1\nArchery/v_Archery_g01_c01.avi 2\n",
    "testlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi\n\nArchery/v_Archery_g08_c01.avi\n",
}
HMDB51 = {
    "brush_hair_test_split1.txt": "April_09_brush_hair_0.avi 1 \nBlonde!_brush_hair_0.avi 2 \nUnused (x)_0.avi 0 \n",
    "wave_test_split1.txt": "20060723_wave_f_cm_0.avi 2\nA_wave_1.avi 1\n",
    "brush_hair_test_split2.txt": "April_09_brush_hair_0.avi 2 \nBlonde!_brush_hair_0.avi 1 \nUnused (x)_0.avi 0 \n",
    "wave_test_split2.txt": "20060723_wave_f_cm_0.avi 1\nA_wave_1.avi 2\n",
}
SSV2 = {
    "something-something-v2-labels.json": json.dumps({"Holding something next to something": "1", "Poking one": "0"}),
    "something-something-v2-train.json": json.dumps(
        [
            {"id": "78687", "label": "holding a potato", "template": "Holding [something] next to [something]"},
            {"id": "42326", "label": "poking it", "template": "Poking [one]"},
        ]
    ),
    "something-something-v2-validation.json": json.dumps([{"id": "7", "template": "Poking [one]"}]),
}
KINETICS = {
    "train.csv": "label,youtube_id,time_start,time_end,split\n"
    'testifying,---QUuC4vJs,84,94,train\n"cooking, on fire",-0-_x,7,17,train\n',
    "val.csv": "label,youtube_id,time_start,time_end,split\ntestifying,zzz,0,10,validate\n",
    "test.csv": "youtube_id,time_start,time_end,split\nyyy,0,10,test\n",
}


# split files


def test_ucf101(tmp_path):
    splits = read_ucf101(write(tmp_path, UCF101))
    assert splits.label_names == ["ApplyEyeMakeup", "Archery"]
    assert list(splits.lists) == ["train_1", "test_1", "train_2", "test_2"]
    assert splits.lists["train_1"] == [
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", 0),
        ("Archery/v_Archery_g08_c01.avi", 1),
    ]
    assert splits.lists["test_1"] == splits.lists["train_2"]


def test_hmdb51(tmp_path):
    splits = read_hmdb51(write(tmp_path, HMDB51))
    assert splits.label_names == ["brush_hair", "wave"]
    assert splits.lists["train_1"] == [("brush_hair/April_09_brush_hair_0.avi", 0), ("wave/A_wave_1.avi", 1)]
    assert splits.lists["test_1"] == [
        ("brush_hair/Blonde!_brush_hair_0.avi", 0),
        ("wave/20060723_wave_f_cm_0.avi", 1),
    ]
    assert splits.lists["test_2"] == splits.lists["train_1"]


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
def test_ssv2(tmp_path, prefix):
    files = {name.replace("something-something-v2-", prefix): text for name, text in SSV2.items()}
    splits = read_ssv2(write(tmp_path, files))
    assert splits.label_names == ["Poking one", "Holding something next to something"]
    assert splits.lists == {"train": [("78687.webm", 1), ("42326.webm", 0)], "validation": [("7.webm", 0)]}


def test_kinetics(tmp_path):
    splits = read_kinetics(write(tmp_path / "a", KINETICS))
    assert splits.label_names == ["cooking, on fire", "testifying"]
    assert splits.lists == {
        "train": [("---QUuC4vJs_000084_000094.mp4", 1), ("-0-_x_000007_000017.mp4", 0)],
        "validation": [("zzz_000000_000010.mp4", 1)],
    }
    files = {"train.csv": KINETICS["train.csv"], "validate.csv": KINETICS["val.csv"], "test.csv": KINETICS["val.csv"]}
    assert list(read_kinetics(write(tmp_path / "b", files)).lists) == ["train", "validation", "test"]


BAD = [
    ("ucf101", UCF101, {"classInd.txt": None}, "classInd.txt' cannot be read"),
    ("ucf101", UCF101, {"classInd.txt": "1 ApplyEyeMakeup\n3 Archery\n"}, "Line 2 of .*classInd.txt' is not '2 name'"),
    ("ucf101", UCF101, {"testlist02.txt": None}, "testlist02.txt' cannot be read"),
    ("ucf101", UCF101, {"trainlist01.txt": "Archery/a.avi 1\n"}, "Line 1 of .*trainlist01.txt' is not of class 2"),
    ("ucf101", UCF101, {"trainlist01.txt": "\nArchery/a.avi 2\nBowling/b.avi 3\n"}, "Line 3 of .* 'Bowling/b.avi 3'"),
    ("ucf101", UCF101, {"testlist01.txt": "v_Archery_g01_c01.avi\n"}, "Line 1 of .*testlist01"),
    ("ucf101", UCF101, {"trainlist01.txt": "\n"}, "'train_1' names no video"),
    ("ucf101", UCF101, {"classInd.txt": "1 ApplyEyeMakeup\n2 Archery\n3 Bowling\n"}, "1 \\(Bowling\\)"),
    ("hmdb51", HMDB51, {"wave_test_split2.txt": None}, "wave_test_split2.txt' cannot be read"),
    ("hmdb51", HMDB51, {"wave_test_split1.txt": "a.avi 2\nb.avi 3\n"}, "Line 2 of .*wave_test_split1.txt'"),
    ("hmdb51", HMDB51, {"wave_test_split1.txt": "a.avi\n"}, "Line 1 of .* 1 .training. or 2 .test.: 'a.avi'"),
    ("ssv2", SSV2, {"something-something-v2-train.json": None}, "v2-train.json' cannot be read"),
    ("ssv2", SSV2, {"something-something-v2-train.json": "[{"}, "is not valid JSON"),
    (
        "ssv2",
        SSV2,
        {"something-something-v2-validation.json": '[{"id": "7"}]'},
        "Entry 1 of .*validation.json' has no",
    ),
    ("ssv2", SSV2, {"something-something-v2-validation.json": '[{"template": "Poking [one]"}]'}, "Entry 1 of"),
    ("ssv2", SSV2, {"something-something-v2-validation.json": '{"id": 1}'}, "validation.json' is not a list"),
    ("ssv2", SSV2, {"something-something-v2-train.json": "5"}, "train.json' is not a list"),
    ("ssv2", SSV2, {"something-something-v2-train.json": "[" * 100_000}, "is not valid JSON"),
    ("kinetics", KINETICS, {"val.csv": KINETICS["val.csv"] + "a" * 140_000}, "val.csv' cannot be read as CSV"),
    ("kinetics", KINETICS, {"val.csv": KINETICS["val.csv"] + "a,b,inf,4,val"}, "Line 3 of .*a video with its times"),
    ("ssv2", SSV2, {"something-something-v2-labels.json": '{"a": "0", "b": "2"}'}, "numbers are not 0, 1, 2"),
    ("ssv2", SSV2, {"something-something-v2-labels.json": '["a"]'}, "is not a mapping"),
    ("kinetics", KINETICS, {"val.csv": None}, "val.csv' cannot be read"),
    ("kinetics", KINETICS, {"train.csv": "label,id\na,b\n"}, "train.csv' needs the columns"),
    (
        "kinetics",
        KINETICS,
        {"train.csv": KINETICS["train.csv"] + "a,b,c,4,train\n"},
        "Line 4 of .*a video with its times",
    ),
    (
        "kinetics",
        KINETICS,
        {"train.csv": KINETICS["train.csv"] + ",b,1,4,train\n"},
        "Line 4 of .*a video with its label",
    ),
    (
        "kinetics",
        KINETICS,
        {"val.csv": KINETICS["val.csv"] + "new,b,1,4,val\n"},
        r"'validation' .* 1 \(new\)",
    ),
]


@pytest.mark.parametrize(("name", "files", "changed", "message"), BAD, ids=range(len(BAD)))
def test_bad_split_files_are_refused_by_file_and_line(tmp_path, name, files, changed, message):
    files = {file: text for file, text in {**files, **changed}.items() if text is not None}
    with pytest.raises(ValueError, match=message):
        SPLIT_READERS[name](write(tmp_path, files))


@pytest.mark.parametrize("name", SPLIT_READERS)
def test_a_folder_without_split_files(tmp_path, name):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"cannot be read|has no file named"):
            SPLIT_READERS[name](folder)


def test_a_file_that_is_no_text(tmp_path):
    (write(tmp_path, UCF101) / "classInd.txt").write_bytes(b"\xff\xfe1 A")
    with pytest.raises(ValueError, match="cannot be read"):
        read_ucf101(tmp_path)


def test_videos_named_twice_or_in_two_lists_are_reported(caplog):
    splits = OfficialSplits(
        ["a", "b"], {"train_1": [("x", 0), ("y", 1), ("x", 0)], "test_1": [("x", 0)], "test_2": [("y", 1)]}
    )
    assert splits.lists["train_1"] == [("x", 0), ("y", 1)]
    assert [record.getMessage() for record in caplog.records] == [
        "train_1 names 1 videos twice",
        "train_1 and test_1 have videos in common: 1 (x)",
    ]
    with pytest.raises(ValueError, match=r"'train' .* 1 \(x\)"):
        OfficialSplits(["a", "b"], {"train": [("x", 0), ("x", 1)]})


# videos

LISTS = {"train_1": [("A/v_1.avi", 0), ("B/v_2.avi", 1)], "test_1": [("A/v_3.avi", 0), ("B/v_4.avi", 1)]}


def test_videos_are_found_in_any_layout_with_any_suffix(tmp_path):
    patterns = ("A/v_{}.avi", "v_{}.avi", "deep/er/v_{}.mp4", "UCF-101/A/v_{}.webm", "x/v_{}.AVI")
    for number, pattern in enumerate(patterns):
        folder = tmp_path / str(number)
        names = [pattern.replace("A/", "AABAB"[i] + "/").format(i) for i in (1, 2, 3, 4)]
        touch(folder, [*names, "notes.txt", "v_1.txt"])
        lists, _ = find_videos(OfficialSplits(["A", "B"], LISTS), folder)
        assert lists["train_1"] == [(str(folder / names[0]), 0), (str(folder / names[1]), 1)]
        assert lists["test_1"] == [(str(folder / names[2]), 0), (str(folder / names[3]), 1)]


def test_the_folder_of_the_class_decides(tmp_path):
    touch(tmp_path, ["A/v_1.mp4", "B/v_1.avi", "B/v_2.avi", "old/v_2.avi", "A/v_3.avi", "A/v_3.mp4", "B/v_4.avi"])
    lists, _ = find_videos(OfficialSplits(["A", "B"], LISTS), tmp_path)
    assert [Path(path).relative_to(tmp_path).as_posix() for videos in lists.values() for path, _ in videos] == [
        "A/v_1.mp4",
        "B/v_2.avi",
        "A/v_3.avi",
        "B/v_4.avi",
    ]


def test_a_file_in_the_folder_of_another_class_is_another_video(tmp_path):
    touch(tmp_path, ["B/v_1.avi", "B/v_2.avi", "A/v_3.avi", "B/v_4.avi"])
    with pytest.raises(ValueError, match=r"1 \(A/v_1.avi\)"):
        find_videos(OfficialSplits(["A", "B"], LISTS), tmp_path)


def test_several_files_that_could_be_meant(tmp_path):
    touch(tmp_path, ["A/v_1.mp4", "A/v_1.webm", "B/v_2.avi", "A/v_3.avi", "B/v_4.avi"])
    with pytest.raises(ValueError, match=r"'A/v_1.avi': 2 \(A/v_1.mp4, A/v_1.webm\)"):
        find_videos(OfficialSplits(["A", "B"], LISTS), tmp_path)


def test_missing_videos(tmp_path, caplog):
    videos = {f"{kind}_1": [(f"{'AB'[i % 2]}/{kind}{i}.avi", i % 2) for i in range(20)] for kind in ("train", "test")}
    splits = OfficialSplits(["A", "B"], videos)
    present = [video for found in videos.values() for video, _ in found][:-8]
    touch(tmp_path, present)
    with pytest.raises(ValueError, match=r"8 \(A/test12\.avi, .*allow_missing"):
        find_videos(splits, tmp_path)
    lists, _ = find_videos(splits, tmp_path, allow_missing=True)
    assert [len(found) for found in lists.values()] == [20, 12]
    assert [record.getMessage() for record in caplog.records] == ["test_1: 8 of 20 videos are missing and left out"]
    for video, label in videos["test_1"]:
        if label == 1:
            (tmp_path / video).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"'test_1' .*1 \(B\)"):
        find_videos(splits, tmp_path, allow_missing=True)


def test_a_folder_with_part_of_the_classes_in_lower_case(tmp_path, caplog):
    touch(tmp_path, ["b/V_2.avi", "b/v_4.avi", "b/x_1.avi"])
    splits = OfficialSplits(["A", "B"], LISTS)
    with pytest.raises(ValueError, match=r"2 \(A/v_1.avi, A/v_3.avi\).*1 \(A\).*allow_missing"):
        find_videos(splits, tmp_path)
    lists, names = find_videos(splits, tmp_path, allow_missing=True)
    assert names == ["B"]
    assert lists == {"train_1": [(str(tmp_path / "b/V_2.avi"), 0)], "test_1": [(str(tmp_path / "b/v_4.avi"), 0)]}
    assert "numbered anew: 1 (A)" in caplog.text
    touch(tmp_path, ["a/v_2.avi"])  # the folder of another class, in lower case
    assert find_videos(splits, tmp_path, allow_missing=True)[0]["train_1"] == lists["train_1"]


def test_clips_of_kinetics_are_found_with_padded_times_unpadded_ones_or_none(tmp_path):
    splits = read_kinetics(write(tmp_path / "splits", KINETICS))
    folder = touch(tmp_path / "videos", ["testifying/---QUuC4vJs_84_94.mp4", "-0-_x.webm", "zzz_000000_000010.mp4"])
    touch(folder, ["zzz.mp4", "other/-0-_x_8_18.mp4"])
    lists, _ = find_videos(splits, folder)
    assert [path.removeprefix(f"{folder}/") for videos in lists.values() for path, _ in videos] == [
        "testifying/---QUuC4vJs_84_94.mp4",
        "-0-_x.webm",
        "zzz_000000_000010.mp4",
    ]
    two_clips = KINETICS | {"val.csv": KINETICS["val.csv"] + "testifying,-0-_x,30,40,validate\n"}
    with pytest.raises(ValueError, match=r"-0-_x\.webm.*_000007_000017\.mp4.*_000030_000040"):
        find_videos(read_kinetics(write(tmp_path / "two", two_clips)), folder)


def test_a_folder_that_is_missing_or_empty(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        video_index(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no video"):
        video_index(write(tmp_path, {"readme.txt": "nothing"}))


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "elsewhere", ["v_1.avi"])
    folder = touch(tmp_path / "videos", ["v_2.avi"])
    os.symlink(tmp_path / "elsewhere", folder / "A")
    os.symlink(folder, folder / "again")
    assert {stem: list(map(str, paths)) for stem, paths in video_index(folder).items()} == {
        "v_1": ["A/v_1.avi"],
        "v_2": ["v_2.avi"],
    }


# list files


def test_lists_are_read_back_as_they_were_written(tmp_path, monkeypatch):
    names = ["plain.mp4", "with space.mp4", 'with "quotes".mp4', "with, comma.mp4", "überall.mp4"]
    touch(tmp_path / "videos, all", names)
    monkeypatch.chdir(tmp_path)
    videos = [(f"videos, all/{name}", label) for label, name in enumerate(names)]
    write_lists("data/mine", {"train": videos, "test": [("memory://videos/a.mp4", 0)]}, ["a", "b c", "d", "e", "f"])
    monkeypatch.chdir("/")
    rows = read_list_file(tmp_path / "data" / "mine" / "train.csv")
    assert [row["video"]["path"] for row in rows] == [str(tmp_path / "videos, all" / name) for name in names]
    assert rows["label"] == [0, 1, 2, 3, 4]
    assert load_rows(str(tmp_path / "data" / "mine" / "test.csv"))[0]["video"]["path"] == "memory://videos/a.mp4"
    assert read_label_names(str(tmp_path / "data" / "mine" / "classes.txt")) == ["a", "b c", "d", "e", "f"]
    assert sorted(path.name for path in (tmp_path / "data" / "mine").iterdir()) == [
        "classes.txt",
        "test.csv",
        "train.csv",
    ]


def test_lists_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"'two\\nlines' is not one line"):
        write_lists(tmp_path / "data", {}, ["two\nlines"])
    with pytest.raises(ValueError, match="blake2b:00"):
        write_lists(tmp_path / "data", {"train": [("blake2b:00", 0)]}, ["a"])


def test_official_splits_from_files_to_rows(tmp_path):
    splits = read_ucf101(write(tmp_path / "splits", UCF101))
    touch(tmp_path / "videos", {video for videos in splits.lists.values() for video, _ in videos})
    write_lists(tmp_path / "data", *find_videos(splits, tmp_path / "videos"))
    rows = load_rows(str(tmp_path / "data" / "test_2.csv"))
    assert [Path(row["video"]["path"]).name for row in rows] == [
        "v_ApplyEyeMakeup_g08_c01.avi",
        "v_Archery_g08_c01.avi",
    ]
    assert rows["label"] == [0, 1]


def test_the_recipe_prepares_official_splits(tmp_path, caplog):
    spec = importlib.util.spec_from_file_location("prepare_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    caplog.set_level("INFO")
    files = {video for videos in read_hmdb51(write(tmp_path / "splits", HMDB51)).lists.values() for video, _ in videos}
    touch(tmp_path / "videos", sorted(files)[1:])
    places = [f"--{name}={tmp_path / name}" for name in ("videos", "splits", "output")]
    with pytest.raises(ValueError, match=r"1 \(brush_hair/April_09_brush_hair_0.avi\)"):
        module.main(["hmdb51", *places])
    assert not (tmp_path / "output").exists()
    touch(tmp_path / "videos", sorted(files)[:1])
    module.main(["hmdb51", *places])
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == [
        "classes.txt",
        "test_1.csv",
        "test_2.csv",
        "train_1.csv",
        "train_2.csv",
    ]
    assert f"{tmp_path / 'output'}/train_1.csv: 2 videos" in caplog.text
    with pytest.raises(ValueError, match=r"'ucf50' .*ucf101, hmdb51, ssv2, kinetics"):
        module.main(["ucf50", *places])
