"""The toy data set: boxes on their shapes, paths that do not cross, files in AVA's form, reproducible."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from mvd_hf.data.toy import MOTIONS
from mvd_hf.detection.ava import read_boxes, read_label_map, read_person_boxes
from mvd_hf.detection.toy import (
    ACTIONS,
    ToyDetectionSettings,
    draw_shapes,
    make_toy_detection_dataset,
    place_shapes,
)
from mvd_hf.model.video_reading import VideoReader

SETTINGS = ToyDetectionSettings(num_train=6, num_validation=8, height=48, width=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_toy_detection_dataset(tmp_path_factory.mktemp("toy") / "detection", SETTINGS)


def test_shapes_stay_inside_and_apart():
    for seed in range(20):
        shapes = place_shapes(3, 24, 48, 64, np.random.default_rng(seed))
        assert shapes
        for frame in range(24):
            boxes = [shape.box(frame, 48, 64) for shape in shapes]
            assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in boxes)
            for one, other in itertools.combinations(boxes, 2):
                assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
        for shape in shapes:
            path = np.subtract(shape.corner(23), shape.corner(0))
            assert np.sign(path).tolist() == list(MOTIONS[shape.motion])
            assert abs(path).max() >= 15


def test_a_box_is_where_the_shape_is_drawn():
    random = np.random.default_rng(3)
    shapes = place_shapes(1, 24, 48, 64, random)
    frames = draw_shapes(shapes, 24, 48, 64, np.random.default_rng(0))
    background = draw_shapes([], 24, 48, 64, np.random.default_rng(0))
    for number in (0, 8, 23):
        rows, columns = np.nonzero((frames[number] != background[number]).any(axis=-1))
        found = columns.min() / 64, rows.min() / 48, (columns.max() + 1) / 64, (rows.max() + 1) / 48
        np.testing.assert_allclose(found, shapes[0].box(number, 48, 64), atol=2 / 48)


def test_the_files_are_of_ava_s_form(folder):
    assert read_label_map(folder / "actions.pbtxt") == ACTIONS
    train, validation = read_boxes(folder / "train.csv"), read_boxes(folder / "validation.csv")
    assert train["video"].nunique() == 6
    assert validation["video"].nunique() == 8
    assert set(train["timestamp"]) == {1, 2}
    assert train["x1"].notna().all()
    empty = validation[validation["x1"].isna()]
    assert empty["video"].unique().tolist() == ["validation_0007"]
    people = train.groupby(["video", "timestamp", "x1", "y1"])["action"].apply(sorted)
    assert all(1 <= appearance <= 4 < motion <= 8 for appearance, motion in people)
    with (folder / "train.csv").open() as file:
        assert next(csv.reader(file))[1] == "0001"


def test_the_detector_is_inexact_and_sometimes_wrong(folder):
    boxes = read_person_boxes(folder / "validation_boxes.csv")
    truth = read_boxes(folder / "validation.csv").dropna().drop_duplicates(["video", "timestamp", "x1", "y1"])
    assert (boxes["score"] >= 0.8).sum() == len(truth)
    assert (boxes["score"] < 0.8).sum() == 16  # one a key frame


def test_every_video_can_be_read(folder):
    for path in (folder / "videos").iterdir():
        with VideoReader(path) as reader:
            assert len(reader) == 24
            assert reader.frame_at(2) == 16
            assert reader.read([23]).shape == (1, 48, 64, 3)


def test_a_complete_data_set_is_left_as_it_is_and_other_settings_replace_it(tmp_path):
    settings = ToyDetectionSettings(num_train=1, num_validation=1, height=48, width=64)
    folder = make_toy_detection_dataset(tmp_path / "toy", settings)
    first = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.csv")}
    make_toy_detection_dataset(folder, settings)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.csv")} == first
    other = make_toy_detection_dataset(tmp_path / "again", settings)
    assert {path.name: path.read_bytes() for path in other.glob("*.csv")} == {k: v for k, (_, v) in first.items()}
    make_toy_detection_dataset(folder, ToyDetectionSettings(1, 1, height=48, width=64, seed=1))
    assert (folder / "train.csv").read_bytes() != first["train.csv"][1]
