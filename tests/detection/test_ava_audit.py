"""The audit of AVA files: mistakes that make a score zero are found with rows and a remedy, and sound files pass."""

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
    assert all(count in text for count in ("12 videos", "24 key frames", "8 actions"))


# (change of a row, what the problem names, what the remedy names)
ANNOTATION_MISTAKES = {
    "pixels": (lambda row: moved(row, lambda *box: np.multiply(box, (64, 48, 64, 48))), "pixels", "divide"),
    "sizes": (lambda row: moved(row, lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1)), "end before", "x1 + width"),
    "mirrored": (lambda row: moved(row, lambda x1, y1, x2, y2: (x2, y1, x1, y2)), "end before", "lower right"),
    "ids from 0": (lambda row: [*row[:6], str(int(row[6]) - 1), *row[7:]], "ids are 0", "add 1"),
    "ids from 2": (lambda row: [*row[:6], str(int(row[6]) + 1), *row[7:]], "such as 9", "actions.pbtxt"),
    "no ids": (lambda row: [*row[:6], ""], "no action", "class id"),
}


@pytest.mark.parametrize("name", ANNOTATION_MISTAKES)
def test_mistakes_of_annotations(toy, change, name):
    function, problem, remedy = ANNOTATION_MISTAKES[name]
    finding = next(finding for finding in audit(toy, ava=change("validation.csv", function)) if finding.is_fatal)
    assert problem in finding.problem
    assert remedy in finding.remedy
    assert finding.examples[0].startswith("row ")
    assert "ERROR" in finding.describe()


def test_ids_that_are_not_scored(toy, change):
    path = change("validation.csv", lambda row: [*row[:6], str(int(row[6]) + 90), *row[7:]])
    problems = [finding.problem for finding in audit(toy, ava=path, label_map=None)]
    assert any("such as 91" in problem for problem in problems)
    assert any("60 that are scored" in problem for problem in problems)


@pytest.mark.parametrize(
    ("function", "reading"),
    [
        (lambda x1, y1, x2, y2: (y1, x1, y2, x2), "x and y are swapped"),
        (lambda x1, y1, x2, y2: ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), "center x, center y"),
        (lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1), "as x, y, width, height"),
        (lambda *box: (0.02 * box[0], 0.02 * box[1], 0.2, 0.2), " 0% of the people"),
    ],
)
def test_boxes_of_a_detector_in_another_order_or_of_other_people(toy, change, function, reading):
    path = change("validation_boxes.csv", lambda row: moved(row, function))
    assert any(reading in finding.problem and finding.is_fatal for finding in audit(toy, boxes=path))


def test_results_whose_ids_are_off_by_one(toy, tmp_path):
    with (toy / "validation.csv").open(newline="") as file:
        rows = [[*row[:6], str(int(row[6]) + 1), "0.9"] for row in csv.reader(file) if len(row) > 2]
    path = tmp_path / "results.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([row for row in rows if int(row[6]) <= 8])
    finding = only(finding for finding in audit(toy, detections=str(path)) if finding.is_fatal)
    assert "-1 to each class id" in finding.problem


def test_timestamps_that_are_not_in_the_videos(toy, change):
    for function, example in (
        (lambda row: [row[0], str(int(row[1]) + 900), *row[2:]], "901 s"),
        (lambda row: [row[0], str(8 * int(row[1])), *row[2:]], "8 s"),  # frame numbers
    ):
        path = change("validation.csv", function)
        finding = only(audit(toy, ava=path, videos=str(toy / "videos")))
        assert "key frames cannot be read" in finding.problem
        assert example in finding.examples[0]
        assert "video_start" in finding.remedy
    path = change("validation.csv", lambda row: [row[0], str(int(row[1]) + 900), *row[2:]])
    findings = audit(toy, ava=path, videos=str(toy / "videos"), video_start=900)
    assert all(finding.problem.startswith("2 of") for finding in findings)  # rows of two columns were not shifted


def test_videos_that_are_missing_or_broken(toy, change, tmp_path):
    path = change("validation.csv", lambda row: [f"{row[0]}_x", *row[1:]])
    finding = only(f for f in audit(toy, ava=path, videos=str(toy / "videos")) if f.is_fatal)
    assert finding.examples[0] == "validation_0000_x"
    assert "'validation_0000'" in finding.remedy
    (tmp_path / "videos").mkdir()
    (tmp_path / "one.csv").write_text("broken,1,0.1,0.1,0.2,0.2,1\nsound,1,0.1,0.1,0.2,0.2,1\n")
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"nothing")
    write_video(tmp_path / "videos" / "sound.mp4", np.zeros((30, 32, 32, 3), dtype=np.uint8), fps=10)
    finding = only(audit(toy, ava=str(tmp_path / "one.csv"), videos=str(tmp_path / "videos")))
    assert finding.problem.startswith("1 of 2")
    assert "broken" in finding.examples[0]


def test_seconds_that_are_missing(toy, tmp_path):
    folder = tmp_path / "videos" / "v"
    folder.mkdir(parents=True)
    write_video(folder / "902.mp4", np.zeros((10, 32, 32, 3), dtype=np.uint8), fps=10)
    (tmp_path / "one.csv").write_text("v,902,0.1,0.1,0.2,0.2,1\nv,904,0.1,0.1,0.2,0.2,1\nv,902.5,0.1,0.1,0.2,0.2,1\n")
    finding = only(audit(toy, ava=str(tmp_path / "one.csv"), videos=str(tmp_path / "videos")))
    assert finding.problem.startswith("2 of 3")
    assert "904" in finding.examples[0]


def test_files_without_a_common_key_frame_or_video(toy, change):
    milliseconds = change("validation_boxes.csv", lambda row: [row[0], str(1000 * int(row[1])), *row[2:]])
    finding = only(audit(toy, boxes=milliseconds))
    assert "no key frame in common" in finding.problem
    assert "1 to 2 s" in finding.examples[0]
    assert "1000 to 2000 s" in finding.examples[0]
    others = change("validation_boxes.csv", lambda row: [f"x{row[0]}", *row[1:]])
    assert "no video in common" in only(audit(toy, boxes=others)).problem


def test_key_frames_without_a_box_are_reported_but_not_fatal(toy, change):
    path = change("validation_boxes.csv", lambda row: row)
    kept = [line for line in Path(path).read_text().splitlines() if not line.startswith("validation_0000")]
    Path(path).write_text("\n".join(kept) + "\n")
    finding = only(audit(toy, boxes=path))
    assert not finding.is_fatal
    assert "no box in 2 of" in finding.problem


def test_scores_below_the_threshold_or_in_percent(toy, change):
    low = change("validation_boxes.csv", lambda row: [*row[:7], str(float(row[7]) / 2)])
    finding = only(audit(toy, boxes=low))
    assert finding.is_fatal
    assert "min_score=0.8" in finding.problem
    assert audit(toy, boxes=low, min_score=0.3) == []
    percent = change("validation_boxes.csv", lambda row: [*row[:7], str(100 * float(row[7]))])
    assert "scores go up to" in only(audit(toy, boxes=percent)).problem


def test_malformed_files(toy, change, tmp_path):
    text = (toy / "validation.csv").read_text()
    header = "video,timestamp,x1,y1,x2,y2,action,person\n"
    for content, part in ((header + text, "header"), (text + "v,1,0.1,0.2\n", "part of a box"), ("v,1\n", "no box")):
        (tmp_path / "changed.csv").write_text(content)
        assert part in audit(toy, ava=str(tmp_path / "changed.csv"))[0].describe()
    excluded = change("validation.csv", lambda row: row[:2])
    assert "excludes every key frame" in only(audit(toy, excluded=excluded)).problem


def test_recall_counts_people_once():
    truth = read_boxes(
        [("a", 1, 0, 0, 1, 1, 1), ("a", 1, 0, 0, 1, 1, 2), ("b", 1, 0, 0, 1, 1, 1), ("c", 1, 0, 0, 1, 1, 1)]
    )
    boxes = read_boxes([("a", 1, 0, 0, 0.9, 1, 1), ("b", 1, 0, 0, 0.3, 1, 1), ("z", 1, 0, 0, 1, 1, 1)])
    assert recall(truth, boxes) == 0.5  # of the two whose key frames both have
    assert recall(truth, boxes[2:]) == 0


def test_the_command_reports_and_exits_with_one(toy, change, monkeypatch, caplog):
    spec = importlib.util.spec_from_file_location("ava_audit_recipe", ROOT / "recipes" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    caplog.set_level(logging.INFO)
    sound = [f"--ava={toy / 'validation.csv'}", "--label_map", str(toy / "actions.pbtxt")]
    assert module.main(sound) == 0
    path = change("validation.csv", lambda row: moved(row, lambda *box: np.multiply(box, 50)))
    assert module.main(["--ava", path, *sound[1:]]) == 1
    assert "in pixels" in caplog.text
    with pytest.raises(ValueError, match="'box'"):
        module.main([*sound, "--box", "x.csv"])
