"""Detections: boxes at the people, text that covers little else, films that can be read."""

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
    DetectionFigureArguments,
    detection_frames,
    draw_people,
    shared_area,
)

BLUE = (0, 114, 178)


def near(frame: np.ndarray, color=BLUE, distance: int = 12) -> np.ndarray:
    """Pixels of a frame (H, W, 3) with about this color."""
    return np.abs(frame.astype(int) - color).max(axis=-1) < distance


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


def frames_of(detector, **fields) -> list[np.ndarray]:
    model = MVDForActionDetection.from_pretrained(detector)
    processor = MVDVideoProcessor.from_pretrained(detector)
    return list(detection_frames(model, processor, DetectionFigureArguments(model=str(detector), **fields)))


def test_a_box_is_drawn_at_its_place_in_an_enlarged_frame():
    frame = draw_people(np.full((60, 91, 3), 128, dtype=np.uint8), [(10, 20, 50, 50)], [[]])
    assert frame.shape == (480, 728, 3)
    rows, columns = np.nonzero(near(frame))
    assert (columns.min(), rows.min()) == pytest.approx((80, 160), abs=2)
    assert (columns.max(), rows.max()) == pytest.approx((400, 400), abs=2)
    assert not near(frame)[200:380, 120:380].any()
    large = draw_people(np.full((600, 900, 3), 128, dtype=np.uint8), [], [])
    assert large.shape == (600, 900, 3)
    assert (large == 128).all()


def test_text_is_written_beside_the_box_and_not_over_another():
    frame = np.full((480, 640, 3), 128, dtype=np.uint8)
    plain = draw_people(frame, [(200, 200, 300, 300)], [[]])
    labelled = draw_people(frame, [(200, 200, 300, 300)], [["jump/leap 0.93", "stand 0.50"]])
    changed = (plain != labelled).any(axis=-1)
    assert changed.sum() > 2000
    assert not changed[202:299, 202:299].any()  # the person stays visible
    assert near(labelled, (255, 255, 255), 60).sum() > 50  # white letters
    # above the first box there is another person: the text moves
    crowded = draw_people(frame, [(200, 200, 300, 300), (200, 140, 300, 199)], [["one 0.9"], []])
    assert not (near(crowded, BLUE, 45)[150:190, 205:295]).any()
    assert near(crowded, BLUE, 45)[302:330, 205:240].any()


def test_each_person_has_another_color():
    boxes = [(10 + 70 * i, 300, 60 + 70 * i, 400) for i in range(8)]
    frame = draw_people(np.full((480, 640, 3), 10, dtype=np.uint8), boxes, [[]] * 8)
    edges = [tuple(frame[350, 10 + 70 * i + 1]) for i in range(8)]
    assert len(set(edges)) == len(COLORS)
    assert edges[7] == edges[0]


def test_shared_area():
    assert shared_area((0, 0, 4, 4), (2, 3, 9, 9)) == 2
    assert shared_area((0, 0, 4, 4), (4, 0, 9, 9)) == 0
    assert shared_area((0, 0, 4, 4), (5, 5, 9, 9)) == 0


def test_boxes_come_from_a_detector_or_annotations_or_are_the_whole_frame(detector, video, tmp_path):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(
        "walk,1,0.1,0.1,0.5,0.9,,0.9\nwalk,2,0.1,0.1,0.5,0.9,,0.9\nwalk,2,0.5,0,0.9,1,,0.3\nx,1,0,0,1,1,,1\n"
    )
    assert len(frames_of(detector, video=str(video), boxes=str(boxes))) == 2
    annotations = tmp_path / "annotations.csv"
    annotations.write_text("other,901,0.1,0.1,0.5,0.9,1,0\nother,901,0.1,0.1,0.5,0.9,2,0\nother,902\n")
    options = {"annotations": str(annotations), "video_id": "other", "video_start": 900.0}
    (frame,) = frames_of(detector, video=str(video), **options)
    assert near(frame).any()
    assert len(frames_of(detector, video=str(video))) == 3  # the whole frame, second by second


def test_threshold_and_top_k_limit_the_actions(detector, video, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "mvd_hf.visualization.detections.draw_people",
        lambda frame, boxes, texts, title: drawn.append((texts, title)) or frame,
    )
    frames_of(detector, video=str(video))
    assert drawn == [([["hop 0.88", "sit 0.50"]], f"{second} s") for second in range(3)]
    drawn.clear()
    frames_of(detector, video=str(video), threshold=0.6)
    assert drawn[0][0] == [["hop 0.88"]]
    drawn.clear()
    frames_of(detector, video=str(video), top_k=1, threshold=0.0)
    assert drawn[0][0] == [["hop 0.88"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,1,0,0,1,1,,0.9\n", r"'walk'.*\bx\b.*video_id"),
        ("walk,1,0,0,1,1,,0.5\n", "min_score"),
        ("walk,9,0,0,1,1,,0.9\n", "9 s"),
    ],
)
def test_boxes_without_people_of_the_video_are_refused(detector, video, tmp_path, text, message):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        frames_of(detector, video=str(video), boxes=str(tmp_path / "boxes.csv"))


def test_what_is_missing_is_named(detector, video):
    with pytest.raises(ValueError, match="--video"):
        DetectionFigureArguments(model="x")
    with pytest.raises(ValueError, match="boxes or annotations"):
        DetectionFigureArguments(model="x", video="y", boxes="a", annotations="b")
    with pytest.raises(VideoReadError, match=r"nowhere\.mp4"):
        frames_of(detector, video="nowhere.mp4")


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
    with pytest.raises(ValueError, match=r"similarity.*detect"):
        module.main(["paint"])
