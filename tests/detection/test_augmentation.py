"""Augmentation of key frames: boxes move with the pixels, box and color jitter stay within their bounds."""

import numpy as np
import pytest
import torch
from PIL import Image

from mvd_hf.detection.augmentation import (
    DetectionTestAugmentation,
    DetectionTrainingAugmentation,
    at_least_a_pixel,
    flip_boxes,
    jitter_boxes,
    jitter_color,
    visible_parts,
)

PLAIN = {"box_jitter": 0.0, "color_jitter": 0.0, "flip": 0.0}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(height: int = 60, width: int = 90) -> tuple[np.ndarray, torch.Tensor]:
    """Frames with a red and a green rectangle, and their relative boxes."""
    frames = np.full((3, height, width, 3), 40, dtype=np.uint8)
    places = [(10, 20, 30, 50), (40, 5, 55, 45)]  # rows and columns
    for place, channel in zip(places, (0, 1), strict=True):
        frames[:, place[0] : place[2], place[1] : place[3], channel] = 250
    boxes = torch.tensor([[x1 / width, y1 / height, x2 / width, y2 / height] for y1, x1, y2, x2 in places])
    return frames, boxes


def colored(clip: torch.Tensor, channel: int) -> list[int]:
    """x1, y1, x2, y2 of the rectangle of a colour in the first frame."""
    other = clip[0, 1 - channel].int()
    rows, columns = torch.nonzero(clip[0, channel].int() - other > 100, as_tuple=True)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def test_boxes_stay_on_their_rectangles():
    frames, boxes = scene()
    augmentation = DetectionTrainingAugmentation(48, 56, **PLAIN | {"flip": 0.5})
    for seed in range(12):
        clip, placed, kept = augmentation(frames, boxes, seeded(seed))
        assert clip.shape == (3, 3, 48, 48)
        assert clip.dtype == torch.uint8
        assert kept.tolist() == [0, 1]
        for person, (x1, y1, x2, y2) in enumerate(placed.tolist()):
            if x2 - x1 > 4 and y2 - y1 > 4:
                np.testing.assert_allclose(colored(clip, person), [x1, y1, x2, y2], atol=1.6)


def test_the_crop_goes_everywhere_and_half_of_the_clips_are_mirrored():
    frames, boxes = scene()
    augmentation = DetectionTrainingAugmentation(48, 56, **PLAIN | {"flip": 0.5})
    lefts, tops = set(), set()
    mirrored = 0
    for seed in range(200):
        _, placed, _ = augmentation(frames, boxes, seeded(seed))
        x1, y1, x2, _ = placed[0].tolist()
        tops.add(round(y1))
        lefts.add(round(x1))
        _, other, _ = DetectionTrainingAugmentation(48, 56, **PLAIN)(frames, boxes, seeded(seed))
        mirrored += other[0, 0] != pytest.approx(x1, abs=1e-3) or other[0, 2] != pytest.approx(x2, abs=1e-3)
    assert len(tops) == 9
    assert len(lefts) > 20
    assert 60 < mirrored < 140


def test_people_outside_the_crop_stay_as_a_pixel_or_are_left_out():
    frames, _ = scene()
    boxes = torch.tensor([[0.0, 0.0, 0.05, 0.1], [0.9, 0.9, 1.0, 1.0]])  # at opposite corners
    for seed in range(20):
        everyone = DetectionTrainingAugmentation(30, 60, **PLAIN)(frames, boxes, seeded(seed))
        assert everyone[2].tolist() == [0, 1]
        sizes = everyone[1][:, 2:] - everyone[1][:, :2]
        assert sizes.min() >= 0.999
        assert everyone[1].min() >= 0
        assert everyone[1].max() <= 30
        visible = DetectionTrainingAugmentation(30, 60, **PLAIN, min_visible=0.5)(frames, boxes, seeded(seed))
        assert len(visible[1]) == len(visible[2]) <= 1
    nobody = torch.zeros(0, 4)
    for fields in (PLAIN, {}):
        clip, placed, kept = DetectionTrainingAugmentation(30, 60, **fields)(frames, nobody, seeded(0))
        assert placed.shape == (0, 4)
        assert clip.shape == (3, 3, 30, 30)
        assert kept.tolist() == []


def test_visible_parts_and_pixels_at_the_border():
    boxes = torch.tensor([[-10.0, 0, 10, 10], [2, 2, 4, 4], [20, 20, 30, 30], [3, 3, 3, 9]])
    assert visible_parts(boxes, 10, 10).tolist() == [0.5, 1.0, 0.0, 0.0]
    assert at_least_a_pixel(boxes, 10, 10).tolist() == [[0, 0, 10, 10], [2, 2, 4, 4], [9, 9, 10, 10], [3, 3, 4, 9]]
    assert flip_boxes(boxes[:2], 10).tolist() == [[0, 0, 20, 10], [6, 2, 8, 4]]


def test_jitter_moves_edges_by_the_published_parts():
    boxes = torch.tensor([[0.4, 0.4, 0.6, 0.5]])
    moved = torch.cat([jitter_boxes(boxes, 1.0, seeded(seed)) for seed in range(2000)])
    shifts = (moved - boxes) / torch.tensor([0.2, 0.1, 0.2, 0.1])
    expected = [(-0.2, 0.1), (-0.1, 0.05), (-0.1, 0.2), (-0.05, 0.1)]
    for edge, (low, high) in zip(shifts.T, expected, strict=True):
        assert edge.min() == pytest.approx(low, abs=0.002)
        assert edge.max() == pytest.approx(high, abs=0.002)
        assert edge.mean() == pytest.approx((low + high) / 2, abs=0.01)
    assert torch.equal(jitter_boxes(boxes, 0.0, seeded(0)), boxes)
    twice = (jitter_boxes(boxes, 2.0, seeded(0)) - boxes) / (jitter_boxes(boxes, 1.0, seeded(0)) - boxes)
    torch.testing.assert_close(twice, torch.full((1, 4), 2.0), atol=1e-3, rtol=1e-3)
    edge = jitter_boxes(torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(50, 1), 1.0, seeded(0))
    assert edge.min() >= 0
    assert edge.max() <= 1


def test_colors_shift_within_their_bounds_all_frames_alike():
    clip = torch.randint(60, 190, (2, 3, 8, 8), dtype=torch.uint8, generator=seeded(0))
    clip[1] = clip[0]
    hues, values = [], []
    for seed in range(60):
        other = jitter_color(clip, 1.0, seeded(seed))
        assert other.shape == clip.shape
        assert torch.equal(other[0], other[1])
        before, after = (
            np.asarray(Image.fromarray(frames[0].movedim(0, -1).numpy()).convert("HSV"), dtype=int)
            for frames in (clip, other)
        )
        hues.append(np.median((after[..., 0] - before[..., 0] + 128) % 256 - 128) * 360 / 256)
        values.append(np.median(after[..., 2] - before[..., 2]))
    assert 15 < max(hues) <= 22
    assert -22 <= min(hues) < -15
    assert 20 < max(values) <= 27
    assert -27 <= min(values) < -20
    grey = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    assert torch.equal(jitter_color(grey, 0.0, seeded(0)), grey)


def test_training_follows_its_generator_alone():
    frames, boxes = scene()
    augmentation = DetectionTrainingAugmentation(48, 56)
    torch.manual_seed(1)
    one = augmentation(frames, boxes, seeded(3))
    torch.manual_seed(2)
    two = augmentation(frames, boxes, seeded(3))
    other = augmentation(frames, boxes, seeded(4))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])


def test_evaluation_sees_whole_frames_padded_to_whole_patches():
    frames, boxes = scene(60, 90)
    clip, placed, kept = DetectionTestAugmentation(40, 16, fill=(1, 2, 3))(frames, boxes)
    assert clip.shape == (3, 3, 48, 64)
    assert clip[:, :, 40:].unique().tolist() == [1, 2, 3]
    assert (clip[:, 1, :, 60:] == 2).all()
    assert kept.tolist() == [0, 1]
    torch.testing.assert_close(placed, boxes * torch.tensor([60.0, 40.0, 60.0, 40.0]))
    np.testing.assert_allclose(colored(clip[:, :, :40, :60], 0), placed[0], atol=1.1)
    exact, _, _ = DetectionTestAugmentation(60, 2)(frames, boxes)
    assert np.array_equal(exact.movedim(1, -1).numpy(), frames)


def test_impossible_settings_are_named():
    for name, value in {"flip": 1.5, "min_visible": -0.1, "box_jitter": -1.0, "color_jitter": 9.0}.items():
        with pytest.raises(ValueError, match=f"{name}={value}"):
            DetectionTrainingAugmentation(224, **{name: value})
    with pytest.raises(ValueError, match="short_side"):
        DetectionTrainingAugmentation(300)
