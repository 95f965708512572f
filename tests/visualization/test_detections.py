"""Pictures of detections: boxes where people are, text that is told and covers little, films that can be read."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from launching import ROOT
from mvd_hf import MVDConfig, MVDForActionDetection, MVDVideoProcessor
from mvd_hf.data.toy import write_video
from mvd_hf.model.video_reading import VideoReader, VideoReadError
from mvd_hf.visualization.detections import (
    COLORS,
    DetectionPictureArguments,
    detection_pictures,
    draw_people,
    shared_area,
)

BLUE = (0, 114, 178)


def near(picture: np.ndarray, color=BLUE, distance: int = 12) -> np.ndarray:
    """Where a picture (H, W, 3) has about a colour."""
    return np.abs(picture.astype(int) - color).max(axis=-1) < distance


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Three seconds of a grey frame."""
    path = tmp_path_factory.mktemp("video") / "walk.mp4"
    write_video(path, np.full((30, 48, 64, 3), 128, dtype=np.uint8), fps=10)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """A detector that says `hop` with 0.88 and `sit` with 0.5, whatever it sees."""
    config = MVDConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        id2label={0: "sit", 1: "hop", 2: "fly"},
    )
    model = MVDForActionDetection(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 2.0, -5.0]))
    folder = tmp_path_factory.mktemp("detector")
    model.save_pretrained(folder)
    MVDVideoProcessor.for_detection(config, frame_sampling_rate=2).save_pretrained(folder)
    return folder


def pictures(detector, **fields) -> list[np.ndarray]:
    model = MVDForActionDetection.from_pretrained(detector)
    processor = MVDVideoProcessor.from_pretrained(detector)
    return list(detection_pictures(model, processor, DetectionPictureArguments(model=str(detector), **fields)))


def test_a_box_is_drawn_where_it_is_in_an_enlarged_picture():
    picture = draw_people(np.full((60, 91, 3), 128, dtype=np.uint8), [(10, 20, 50, 50)], [[]])
    assert picture.shape == (480, 728, 3)
    rows, columns = np.nonzero(near(picture))
    assert (columns.min(), rows.min()) == pytest.approx((80, 160), abs=2)
    assert (columns.max(), rows.max()) == pytest.approx((400, 400), abs=2)
    assert not near(picture)[200:380, 120:380].any()
    large = draw_people(np.full((600, 900, 3), 128, dtype=np.uint8), [], [])
    assert large.shape == (600, 900, 3)
    assert (large == 128).all()


def test_text_is_written_beside_the_box_and_not_over_another():
    frame = np.full((480, 640, 3), 128, dtype=np.uint8)
    plain = draw_people(frame, [(200, 200, 300, 300)], [[]])
    told = draw_people(frame, [(200, 200, 300, 300)], [["jump/leap 0.93", "stand 0.50"]])
    changed = (plain != told).any(axis=-1)
    assert changed.sum() > 2000
    assert not changed[202:299, 202:299].any()  # the person stays visible
    assert near(told, (255, 255, 255), 60).sum() > 50  # white letters
    # above the first box there is another person: the text moves
    crowded = draw_people(frame, [(200, 200, 300, 300), (200, 140, 300, 199)], [["one 0.9"], []])
    assert not (near(crowded, BLUE, 45)[150:190, 205:295]).any()
    assert near(crowded, BLUE, 45)[302:330, 205:240].any()


def test_people_have_colours_of_their_own():
    boxes = [(10 + 70 * i, 300, 60 + 70 * i, 400) for i in range(8)]
    picture = draw_people(np.full((480, 640, 3), 10, dtype=np.uint8), boxes, [[]] * 8)
    edges = [tuple(picture[350, 10 + 70 * i + 1]) for i in range(8)]
    assert len(set(edges)) == len(COLORS)
    assert edges[7] == edges[0]


def test_shared_area():
    assert shared_area((0, 0, 4, 4), (2, 3, 9, 9)) == 2
    assert shared_area((0, 0, 4, 4), (4, 0, 9, 9)) == 0
    assert shared_area((0, 0, 4, 4), (5, 5, 9, 9)) == 0


def test_people_of_a_detector_of_annotations_and_of_neither(detector, video, tmp_path):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(
        "walk,1,0.1,0.1,0.5,0.9,,0.9\nwalk,2,0.1,0.1,0.5,0.9,,0.9\nwalk,2,0.5,0,0.9,1,,0.3\nx,1,0,0,1,1,,1\n"
    )
    assert len(pictures(detector, video=str(video), boxes=str(boxes))) == 2
    annotations = tmp_path / "annotations.csv"
    annotations.write_text("other,901,0.1,0.1,0.5,0.9,1,0\nother,901,0.1,0.1,0.5,0.9,2,0\nother,902\n")
    options = {"annotations": str(annotations), "video_id": "other", "video_start": 900.0}
    (picture,) = pictures(detector, video=str(video), **options)
    assert near(picture).any()
    assert len(pictures(detector, video=str(video))) == 3  # the whole frame, second by second


def test_only_what_is_likely_is_told(detector, video, monkeypatch):
    told = []
    monkeypatch.setattr(
        "mvd_hf.visualization.detections.draw_people",
        lambda frame, boxes, texts, title: told.append((texts, title)) or frame,
    )
    pictures(detector, video=str(video))
    assert told == [([["hop 0.88", "sit 0.50"]], f"{second} s") for second in range(3)]
    told.clear()
    pictures(detector, video=str(video), threshold=0.6)
    assert told[0][0] == [["hop 0.88"]]
    told.clear()
    pictures(detector, video=str(video), top_k=1, threshold=0.0)
    assert told[0][0] == [["hop 0.88"]]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("x,1,0,0,1,1,,0.9\n", {}, r"nobody in the video 'walk' \(it has x\): give video_id"),
        ("walk,1,0,0,1,1,,0.5\n", {}, "lower min_score"),
        ("walk,9,0,0,1,1,,0.9\n", {}, "the time 9 s was asked for"),
    ],
)
def test_boxes_that_are_not_of_the_video(detector, video, tmp_path, text, options, message):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        pictures(detector, video=str(video), boxes=str(tmp_path / "boxes.csv"), **options)


def test_what_is_missing_is_named(detector, video):
    with pytest.raises(ValueError, match="give --video"):
        DetectionPictureArguments(model="x")
    with pytest.raises(ValueError, match="not both"):
        DetectionPictureArguments(model="x", video="y", boxes="a", annotations="b")
    with pytest.raises(VideoReadError, match="no such file"):
        pictures(detector, video="nowhere.mp4")


def test_the_command_writes_a_film(detector, video, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("visualize_recipe", ROOT / "recipes" / "visualize.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    output = tmp_path / "people.mp4"
    module.main(["detect", f"--model={detector}", f"--video={video}", f"--output={output}"])
    with VideoReader(output) as reader:
        assert len(reader) == 12
        assert reader.read([0]).shape[1:] == (480, 640, 3)
    with pytest.raises(ValueError, match=r"choose similarity, .*detect"):
        module.main(["paint"])
