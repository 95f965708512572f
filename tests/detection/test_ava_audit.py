"""The validator: every mistake that makes a score zero is named with rows and a remedy, and sound files pass."""

import csv
import importlib.util
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from launching import ROOT
from mvd_hf.data.toy import write_video
from mvd_hf.detection.ava import read_boxes
from mvd_hf.detection.ava_audit import AvaAuditArguments, audit_ava, describe_ava, recall
from mvd_hf.detection.toy import ToyDetectionSettings, make_toy_detection_dataset


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    settings = ToyDetectionSettings(num_train=2, num_validation=12, height=48, width=64)
    return make_toy_detection_dataset(tmp_path_factory.mktemp("toy") / "detection", settings)


@pytest.fixture
def change(toy, tmp_path):
    """Writes a changed copy of a file of the toy data set; rows of two columns stay."""

    def write(name: str, function) -> str:
        with (toy / name).open(newline="") as file:
            rows = [function(row) if len(row) > 2 else row for row in csv.reader(file)]
        path = tmp_path / f"changed_{name}"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        return str(path)

    return write


def audit(toy, **fields):
    options = {"ava": str(toy / "validation.csv"), "label_map": str(toy / "actions.pbtxt")}
    return audit_ava(AvaAuditArguments(**(options | fields)))


def only(findings):
    (finding,) = findings
    return finding


def moved(row, function) -> list[str]:
    """A row whose box is another."""
    box = function(*(float(edge) for edge in row[2:6]))
    return [*row[:2], *(f"{edge:.4f}" for edge in box), *row[6:]]


def test_nothing_is_wrong_with_a_sound_data_set(toy):
    arguments = AvaAuditArguments(
        ava=str(toy / "validation.csv"),
        videos=str(toy / "videos"),
        boxes=str(toy / "validation_boxes.csv"),
        label_map=str(toy / "actions.pbtxt"),
    )
    assert audit_ava(arguments) == []
    text = describe_ava(arguments, [])
    assert "12 videos, 24 key frames" in text
    assert "8 actions" in text
    assert text.endswith("Nothing is wrong with it.")


def test_boxes_in_pixels(toy, change):
    path = change("validation.csv", lambda row: moved(row, lambda *box: np.multiply(box, (64, 48, 64, 48))))
    finding = only(audit(toy, ava=path))
    assert finding.is_fatal
    assert "boxes are in pixels" in finding.problem
    assert finding.examples[0].startswith("row 1: validation_0000,1,")
    assert "divide x by the width" in finding.remedy
    assert "ERROR" in finding.describe()
    assert "remedy: divide" in finding.describe()


def test_boxes_with_width_and_height(toy, change):
    path = change("validation.csv", lambda row: moved(row, lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1)))
    finding = only(audit(toy, ava=path))
    assert "end before they begin" in finding.problem
    assert "x2 = x1 + width" in finding.remedy


@pytest.mark.parametrize(
    ("function", "reading"),
    [
        (lambda x1, y1, x2, y2: (y1, x1, y2, x2), "x and y are swapped"),
        (lambda x1, y1, x2, y2: ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), "centre x, centre y"),
        (lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1), "if they were x, y, width, height"),
    ],
)
def test_boxes_of_a_detector_in_another_order(toy, change, function, reading):
    path = change("validation_boxes.csv", lambda row: moved(row, function))
    findings = audit(toy, boxes=path)
    assert any(reading in finding.problem and finding.is_fatal for finding in findings)


def test_boxes_of_other_places(toy, change):
    random = np.random.default_rng(0)
    path = change("validation_boxes.csv", lambda row: moved(row, lambda *box: (*random.uniform(0, 0.1, 2), 0.2, 0.2)))
    finding = only(audit(toy, boxes=path))
    assert "boxes meet 0% of the people" in finding.problem
    assert finding.is_fatal


def test_class_ids_from_zero_and_outside_the_map(toy, change):
    def shift(by: int):
        return lambda row: [*row[:6], str(int(row[6]) + by), *row[7:]]

    assert "count from 0" in only(audit(toy, ava=change("validation.csv", shift(-1)))).problem
    outside = only(audit(toy, ava=change("validation.csv", shift(1))))
    assert "class ids outside the label map, such as 9" in outside.problem
    assert str(toy / "actions.pbtxt") in outside.remedy
    problems = [finding.problem for finding in audit(toy, ava=change("validation.csv", shift(90)), label_map=None)]
    assert any("outside the label map, such as 91" in problem for problem in problems)
    assert any("no action is among the 60 that are scored" in problem for problem in problems)


def test_results_whose_ids_are_off_by_one(toy, tmp_path):
    with (toy / "validation.csv").open(newline="") as file:
        rows = [[*row[:6], str(int(row[6]) + 1), "0.9"] for row in csv.reader(file) if len(row) > 2]
    path = tmp_path / "results.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([row for row in rows if int(row[6]) <= 8])
    finding = only(finding for finding in audit(toy, detections=str(path)) if finding.is_fatal)
    assert "with -1 to each class id" in finding.problem


@pytest.mark.parametrize(
    ("function", "example"),
    [
        (lambda row: [row[0], str(int(row[1]) + 900), *row[2:]], "the time 901 s was asked for, the video has 3.00 s"),
        (lambda row: [row[0], str(8 * int(row[1])), *row[2:]], "the time 8 s was asked for"),
    ],
    ids=["late", "frame numbers"],
)
def test_timestamps_that_do_not_meet_the_videos(toy, change, function, example):
    finding = only(audit(toy, ava=change("validation.csv", function), videos=str(toy / "videos")))
    assert "key frames cannot be read" in finding.problem
    assert example in finding.examples[0]
    assert "video_start" in finding.remedy


def test_a_start_makes_them_meet(toy, change):
    path = change("validation.csv", lambda row: [row[0], str(int(row[1]) + 900), *row[2:]])
    findings = audit(toy, ava=path, videos=str(toy / "videos"), video_start=900)
    assert all("empty" in finding.problem or finding.problem.startswith("2 of") for finding in findings)


def test_videos_that_are_missing_or_broken(toy, change, tmp_path):
    path = change("validation.csv", lambda row: [f"{row[0]}_x", *row[1:]])
    finding = only(f for f in audit(toy, ava=path, videos=str(toy / "videos")) if f.is_fatal)
    assert "videos are not in" in finding.problem
    assert finding.examples[0] == "validation_0000_x"
    assert "'validation_0000'" in finding.remedy
    (tmp_path / "videos").mkdir()
    (tmp_path / "one.csv").write_text("broken,1,0.1,0.1,0.2,0.2,1\nsound,1,0.1,0.1,0.2,0.2,1\n")
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"nothing")
    write_video(tmp_path / "videos" / "sound.mp4", np.zeros((30, 32, 32, 3), dtype=np.uint8), fps=10)
    finding = only(audit(toy, ava=str(tmp_path / "one.csv"), videos=str(tmp_path / "videos")))
    assert finding.problem.startswith("1 of 2 key frames cannot be read")
    assert "cannot be opened as a video" in finding.examples[0]


def test_seconds_that_are_missing(toy, tmp_path):
    folder = tmp_path / "videos" / "v"
    folder.mkdir(parents=True)
    write_video(folder / "902.mp4", np.zeros((10, 32, 32, 3), dtype=np.uint8), fps=10)
    (tmp_path / "one.csv").write_text("v,902,0.1,0.1,0.2,0.2,1\nv,904,0.1,0.1,0.2,0.2,1\nv,902.5,0.1,0.1,0.2,0.2,1\n")
    finding = only(audit(toy, ava=str(tmp_path / "one.csv"), videos=str(tmp_path / "videos")))
    assert finding.problem.startswith("2 of 3 key frames")
    assert "no file of second 904" in finding.examples[0]


def test_files_without_a_common_key_frame_or_video(toy, change):
    milliseconds = change("validation_boxes.csv", lambda row: [row[0], str(1000 * int(row[1])), *row[2:]])
    finding = only(audit(toy, boxes=milliseconds))
    assert "no key frame in common" in finding.problem
    assert "annotated at 1 to 2 s, boxes at 1000 to 2000 s" in finding.examples[0]
    others = change("validation_boxes.csv", lambda row: [f"x{row[0]}", *row[1:]])
    assert "no video in common" in only(audit(toy, boxes=others)).problem


def test_key_frames_without_a_box_are_told_but_not_fatal(toy, change):
    path = change("validation_boxes.csv", lambda row: row)
    kept = [line for line in Path(path).read_text().splitlines() if not line.startswith("validation_0000")]
    Path(path).write_text("\n".join(kept) + "\n")
    finding = only(audit(toy, boxes=path))
    assert not finding.is_fatal
    assert "no box in 2 of" in finding.problem
    assert "note: " in finding.describe()


def test_boxes_without_labels(toy, change):
    finding = only(f for f in audit(toy, ava=change("validation.csv", lambda row: [*row[:6], ""])) if f.is_fatal)
    assert "boxes have no action" in finding.problem


def test_scores_below_the_threshold_or_in_per_cent(toy, change):
    low = change("validation_boxes.csv", lambda row: [*row[:7], str(float(row[7]) / 2)])
    finding = only(audit(toy, boxes=low))
    assert finding.is_fatal
    assert "100% of the boxes have a score below min_score=0.8" in finding.problem
    assert audit(toy, boxes=low, min_score=0.3) == []
    percent = change("validation_boxes.csv", lambda row: [*row[:7], str(100 * float(row[7]))])
    assert "scores go up to" in only(audit(toy, boxes=percent)).problem


def test_a_header_line_and_half_a_box(toy, tmp_path):
    text = (toy / "validation.csv").read_text()
    (tmp_path / "header.csv").write_text("video,timestamp,x1,y1,x2,y2,action,person\n" + text)
    finding = only(audit(toy, ava=str(tmp_path / "header.csv")))
    assert finding.remedy == "delete the header line"
    (tmp_path / "half.csv").write_text(text + "v,1,0.1,0.2\n")
    finding = only(audit(toy, ava=str(tmp_path / "half.csv")))
    assert "a part of a box" in finding.problem
    (tmp_path / "none.csv").write_text("v,1\n")
    assert "has no box" in audit(toy, ava=str(tmp_path / "none.csv"))[0].problem


def test_everything_excluded(toy, change):
    path = change("validation.csv", lambda row: row[:2])
    assert "excludes every key frame" in only(audit(toy, excluded=path)).problem


def test_recall_counts_people_once():
    truth = read_boxes(
        [("a", 1, 0, 0, 1, 1, 1), ("a", 1, 0, 0, 1, 1, 2), ("b", 1, 0, 0, 1, 1, 1), ("c", 1, 0, 0, 1, 1, 1)]
    )
    boxes = read_boxes([("a", 1, 0, 0, 0.9, 1, 1), ("b", 1, 0, 0, 0.3, 1, 1), ("z", 1, 0, 0, 1, 1, 1)])
    assert recall(truth, boxes) == 0.5  # of the two whose key frames both have
    assert recall(truth, boxes[2:]) == 0


def test_the_command_tells_and_exits_with_one(toy, change, monkeypatch, caplog):
    spec = importlib.util.spec_from_file_location("ava_audit_recipe", ROOT / "recipes" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    caplog.set_level(logging.INFO)
    sound = [f"--ava={toy / 'validation.csv'}", "--label_map", str(toy / "actions.pbtxt")]
    assert module.main(sound) == 0
    assert "Nothing is wrong" in caplog.text
    path = change("validation.csv", lambda row: moved(row, lambda *box: np.multiply(box, 50)))
    assert module.main(["--ava", path, *sound[1:]]) == 1
    assert "in pixels" in caplog.text
    with pytest.raises(ValueError, match="Unknown key 'box'"):
        module.main([*sound, "--box", "x.csv"])
