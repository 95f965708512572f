"""Key frames with their people, the clips around them, and batches of any sizes and numbers of people."""

import numpy as np
import pandas as pd
import pytest
import torch

from mvd_hf.data.clips import BAD_VIDEOS, IS_BLANK, SampleDataset
from mvd_hf.data.toy import write_video
from mvd_hf.detection.augmentation import DetectionTestAugmentation
from mvd_hf.detection.key_frames import (
    KeyFrameReader,
    KeyFrames,
    annotated_people,
    collate_key_frames,
    detected_people,
)
from mvd_hf.detection.video_folders import VideoFolders
from mvd_hf.model.video_reading import VideoReadError

LEFT, RIGHT, MIDDLE = (0.0, 0.0, 0.4, 1.0), (0.5, 0.0, 0.9, 1.0), (0.3, 0.3, 0.6, 0.6)
ANNOTATIONS = [
    ("a", 1, *LEFT, 2, 0),
    ("b", 1, *RIGHT, 1, 0),
    ("a", 1, *RIGHT, 3, 1),
    ("a", 1, *LEFT, 4, 0),
    ("a", 2),
    ("c", 1, *MIDDLE, 4, 0),
]


def hot(*actions: int) -> list[float]:
    return [float(number in actions) for number in range(1, 5)]


def test_a_person_has_one_box_and_all_its_actions():
    frames = annotated_people(ANNOTATIONS, num_classes=4)
    assert len(frames) == 3
    first = frames[0]
    assert (first.number, first.video, first.timestamp) == (0, "a", 1.0)
    torch.testing.assert_close(first.boxes, torch.tensor([LEFT, RIGHT]))
    assert first.labels.tolist() == [hot(2, 4), hot(3)]
    assert first.scores.tolist() == [1, 1]
    assert [frames[i].video for i in range(3)] == ["a", "b", "c"]
    assert frames[1].labels.tolist() == [hot(1)]
    assert frames[2].boxes.shape == (1, 4)


def test_a_box_of_a_key_frame_is_one_to_the_last_digit():
    frames = annotated_people([("a", 1, *LEFT, 1), ("a", 1, *LEFT[:3], 0.999, 2), ("a", 2, *LEFT, 2)], 4)
    assert [len(frames[i].boxes) for i in range(2)] == [2, 1]


def test_the_first_few_and_several_files_together():
    frames = annotated_people(ANNOTATIONS, 4)
    assert len(frames.first(2)) == 2
    assert frames.first(2)[1].labels.tolist() == [hot(1)]
    assert frames.first(None) is frames
    assert frames.first(9) is frames
    joined = KeyFrames.joined([frames.first(2), annotated_people([("z", 5, *MIDDLE, 1)], 4)])
    assert [joined[i].video for i in range(3)] == ["a", "b", "z"]
    assert [joined[i].labels.tolist() for i in range(3)] == [[hot(2, 4), hot(3)], [hot(1)], [hot(1)]]
    assert joined[2].number == 2


def test_excluded_key_frames_have_nobody():
    frames = annotated_people(ANNOTATIONS, 4, excluded=[("a", 1)])
    assert [frames[i].video for i in range(2)] == ["b", "c"]
    with pytest.raises(ValueError, match="no person in a key frame that is not excluded"):
        annotated_people(ANNOTATIONS, 4, excluded=[("a", 1), ("b", 1), ("c", 1)])


def test_an_invalid_row_is_named():
    for row, message in (
        (("a", 1, *LEFT, 5), "1 to 4"),
        (("a", 1, *LEFT, 0), "1 to 4"),
        (("a", 1, 0.4, 0, 0.1, 1, 2), "ends before"),
        (("a", 1, 10, 20, 50, 60, 2), "in pixels"),
    ):
        with pytest.raises(ValueError, match=rf"row 7 .*{message}"):
            annotated_people([*ANNOTATIONS, row], 4)


def test_detected_people_of_the_annotated_key_frames():
    boxes = [
        ("a", 1, *MIDDLE, None, 0.9),
        ("a", 1, *LEFT, None, 0.79),
        ("a", 2, *LEFT, None, 0.85),
        ("z", 1, *LEFT, None, 0.99),
        ("c", 1, *LEFT, None, 0.8),
    ]
    frames = detected_people(boxes, ANNOTATIONS, min_score=0.8)
    assert [(frames[i].video, frames[i].timestamp) for i in range(3)] == [("a", 1), ("a", 2), ("c", 1)]
    assert frames[0].labels is None
    assert frames[0].scores.tolist() == [0.9]
    excluded = detected_people(boxes, ANNOTATIONS, min_score=0.8, excluded=[("a", 2)])
    assert len(excluded) == 2
    with pytest.raises(ValueError, match=r"min_score=0.95, the highest is 0.9"):
        detected_people(boxes, ANNOTATIONS, min_score=0.95)
    with pytest.raises(ValueError, match=r"no key frame in common, such as \(a, 1000\) and \(a, 1\)"):
        detected_people([("a", 1000, *LEFT, None, 0.9)], ANNOTATIONS)


def test_people_of_a_table_keep_their_order_within_a_key_frame():
    table = pd.DataFrame(
        [("b", 1, *LEFT, 0.1), ("a", 1, *RIGHT, 0.2), ("b", 1, *RIGHT, 0.3), ("a", 1, *LEFT, 0.4)],
        columns=["video", "timestamp", "x1", "y1", "x2", "y2", "score"],
    )
    frames = KeyFrames.of_people(table)
    assert frames[0].scores.tolist() == [0.1, 0.3]
    assert frames[1].scores.tolist() == [0.2, 0.4]
    assert frames[1].video == "a"


# clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos a and b of two seconds whose frames have the level of their number, and a broken c."""
    root = tmp_path_factory.mktemp("videos")
    for name, width in (("a", 48), ("b", 64)):
        frames = np.stack([np.full((32, width, 3), 10 * number, dtype=np.uint8) for number in range(21)])
        write_video(root / f"{name}.mp4", frames, fps=10)
    (root / "c.mp4").write_bytes(b"nothing")
    return root


def dataset(folder, on_bad_video="skip", **fields) -> SampleDataset:
    augmentation = DetectionTestAugmentation(32, 16)
    options = {"num_frames": 4, "stride": 2, "blank_size": (32, 32), "num_classes": 4} | fields
    reader = KeyFrameReader(VideoFolders(folder), augmentation, **options)
    return SampleDataset(annotated_people(ANNOTATIONS, 4), reader, on_bad_video=on_bad_video)


def test_a_clip_lies_around_its_key_frame(folder):
    sample = dataset(folder)[0]
    assert [round(frame[:, :32, :48].float().mean().item() / 10) for frame in sample["pixel_values"]] == [7, 9, 11, 13]
    torch.testing.assert_close(sample["boxes"][0], torch.tensor([0.0, 0.0, 19.2, 32.0]))
    assert sample["labels"].tolist() == [hot(2, 4), hot(3)]
    assert sample["key_frame"] == 0


def test_at_most_so_many_people_with_their_own_labels(folder):
    samples = [dataset(folder, max_people=1)[(epoch, 0)] for epoch in range(20)]
    assert all(len(sample["boxes"]) == len(sample["labels"]) == 1 for sample in samples)
    both = {(sample["boxes"][0, 0].item() == 0, tuple(sample["labels"][0].tolist())) for sample in samples}
    assert both == {(True, tuple(hot(2, 4))), (False, tuple(hot(3)))}


def test_a_video_that_cannot_be_read_is_reported(folder):
    with pytest.raises(VideoReadError, match=r"recipes/audit.py --ava finds all such"):
        dataset(folder, "raise")[2]
    blank = dataset(folder)[2]
    assert blank[IS_BLANK]
    assert blank[BAD_VIDEOS][0][0] == "c at 1 s"
    assert blank["boxes"].shape == (0, 4)
    assert blank["labels"].shape == (0, 4)
    other = dataset(folder, "substitute")[2]
    assert not other.get(IS_BLANK)
    assert other["key_frame"] in (0, 1)
    assert other[BAD_VIDEOS][0][0] == "c at 1 s"


def test_clips_of_one_size_are_one_batch(folder):
    items = dataset(folder)
    batch = collate_key_frames([items[0], items[0]])
    assert batch["pixel_values"].shape == (2, 4, 3, 32, 48)
    assert batch["box_mask"].all()
    assert batch["labels"].shape == (2, 2, 4)
    assert batch["key_frame"].tolist() == [0, 0]
    assert BAD_VIDEOS not in batch


def test_clips_of_other_sizes_are_groups_and_bad_ones_are_left_out(folder):
    items = dataset(folder)
    batch = collate_key_frames([items[0], items[2], items[1], items[0], items[-1]])
    narrow, wide = batch["groups"]
    assert narrow["pixel_values"].shape == (2, 4, 3, 32, 48)
    assert wide["pixel_values"].shape == (1, 4, 3, 32, 64)
    assert (narrow["key_frame"].tolist(), wide["key_frame"].tolist()) == ([0, 0], [1])
    assert wide["box_mask"].tolist() == [[True]]
    assert [name for name, _ in batch[BAD_VIDEOS]] == ["c at 1 s"]
    blank = collate_key_frames([items[2], items[-1]])
    assert blank[IS_BLANK]
    assert blank["pixel_values"].shape == (1, 4, 3, 32, 32)
    assert blank["box_mask"].shape == (1, 0)


def test_people_are_padded_in_a_batch(folder):
    reader = KeyFrameReader(VideoFolders(folder), DetectionTestAugmentation(32, 16), 4, 2, (32, 32), None)
    frames = detected_people([("a", 1, *LEFT), ("a", 2, *LEFT), ("a", 2, *RIGHT)], ANNOTATIONS, 0.5)
    items = SampleDataset(frames, reader)
    batch = collate_key_frames([items[0], items[1]])
    assert "labels" not in batch
    assert batch["box_mask"].tolist() == [[True, False], [True, True]]
    assert not batch["boxes"][0, 1].any()
