"""Crops, resizing and the pre-training augmentation of a clip."""

import numpy as np
import pytest
import torch
from PIL import Image

from mvd_hf.augmentation import MultiScaleCrop, PretrainingAugmentation, RandomResizedCrop, resize_frames, seeded

FRAME_SIZES = [(64, 80), (80, 64), (64, 64), (33, 200), (120, 160), (226, 300), (240, 320)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(height: int, width: int, num_frames: int = 4) -> np.ndarray:
    """Equal frames whose first channel grows from left to right and whose second grows from top to bottom."""
    frames = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
    frames[..., 0] = np.linspace(0, 255, width).round()
    frames[..., 1] = np.linspace(0, 255, height).round()[:, None]
    return frames


class Frames:
    """Frames that are read like a video's, remembering the boxes."""

    def __init__(self, frames: np.ndarray):
        self.frames, self.boxes = frames, []

    def __call__(self, box) -> np.ndarray:
        top, left, height, width = box(*self.frames.shape[1:3])
        self.boxes.append((top, left, height, width))
        return self.frames[:, top : top + height, left : left + width]


@pytest.mark.parametrize("size", [32, 112, 224])
@pytest.mark.parametrize(("height", "width"), FRAME_SIZES)
def test_all_130_multi_scale_boxes_are_inside(height, width, size):
    boxes = MultiScaleCrop(size).boxes(height, width)
    assert [len(places) for places in boxes] == [13] * 10
    for top, left, h, w in (box for places in boxes for box in places):
        assert min(top, left) >= 0
        assert min(h, w) > 0
        assert top + h <= height
        assert left + w <= width


def test_multi_scale_crop_draws_all_130_boxes_equally_often(monkeypatch):
    crop, source, draws = MultiScaleCrop(224), generator(), 130 * 60
    numbered = [[(size, place, 1, 1) for place in range(13)] for size in range(10)]
    monkeypatch.setattr(crop, "boxes", lambda height, width: numbered)
    counts = np.zeros((10, 13))
    for _ in range(draws):
        size, place, _, _ = crop(240, 320, source)
        counts[size, place] += 1
    assert counts.min() > 0
    # chi-square of 129 degrees of freedom, five standard deviations above its mean
    assert ((counts - 60) ** 2 / 60).sum() < 129 + 5 * (2 * 129) ** 0.5


@pytest.mark.parametrize(("height", "width"), FRAME_SIZES)
def test_multi_scale_crop_draws_exactly_its_boxes(height, width):
    crop, source = MultiScaleCrop(224), generator()
    drawn = {crop(height, width, source) for _ in range(1500)}
    assert drawn == {box for places in crop.boxes(height, width) for box in places}


def test_multi_scale_crop_reaches_all_corners_and_the_centre():
    (places,) = [boxes for boxes in MultiScaleCrop(224).boxes(400, 480) if boxes[0][2:] == (300, 300)]
    offsets = {(top, left) for top, left, _, _ in places}
    assert offsets >= {(0, 0), (0, 180), (100, 0), (100, 180), (50, 90)}


@pytest.mark.parametrize(("short_side", "snapped"), [(224, 224), (225, 224), (226, 224), (227, 227), (240, 240)])
def test_side_within_two_pixels_of_the_output_becomes_the_output(short_side, snapped):
    height, width = MultiScaleCrop(224).sizes(short_side, 320)[0]
    assert (height, width) == (snapped, snapped)


@pytest.mark.parametrize("short_side", [222, 223])
def test_side_does_not_grow_beyond_a_frame_that_is_just_too_small(short_side):
    for places in MultiScaleCrop(224).boxes(short_side, 300):
        for top, left, height, width in places:
            assert top >= 0
            assert left >= 0
            assert top + height <= short_side
            assert left + width <= 300


def test_sides_of_a_multi_scale_crop_are_at_most_one_scale_apart():
    sizes = MultiScaleCrop(224).sizes(400, 480)
    sides = [400, 350, 300, 264]
    assert len(set(sizes)) == 10
    assert set(sizes) == {(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) < 2}


@pytest.mark.parametrize(("height", "width"), FRAME_SIZES)
def test_random_resized_crop_is_inside_and_of_the_stated_area_and_shape(height, width):
    crop, source = RandomResizedCrop(scale=(0.2, 0.5)), generator()
    boxes = np.array([crop(height, width, source) for _ in range(200)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= (height, width)).all()
    if max(height, width) <= 4 / 3 * min(height, width):  # else the crop falls back to the centre
        area = boxes[:, 2] * boxes[:, 3] / (height * width)
        shape = boxes[:, 3] / boxes[:, 2]
        assert area.min() > 0.18
        assert area.max() < 0.52
        assert np.ptp(area) > 0.2
        assert shape.min() > 0.7
        assert shape.max() < 1.43
        assert np.ptp(shape) > 0.4


@pytest.mark.parametrize("crop", [MultiScaleCrop(224), RandomResizedCrop()])
def test_generator_decides_the_box_and_the_global_state_stays(crop):
    state = torch.get_rng_state()
    first, again = ([crop(240, 320, generator(seed)) for seed in range(20)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 10
    assert torch.equal(torch.get_rng_state(), state)


def test_seeded_makes_global_draws_follow_the_generator_and_restores_the_global_state():
    torch.manual_seed(3)
    state, draws = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        with seeded(generator(seed)):
            draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_seeded_restores_the_global_state_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="negative dimension"), seeded(generator()):
        torch.rand(1), torch.rand(-1)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeded_moves_its_generator_on():
    source, draws = generator(), []
    for _ in range(2):
        with seeded(source):
            draws.append(torch.rand(4))
    assert not torch.equal(*draws)


# bicubic overshoots: on noise that reaches black or white, the last bits depend on where a program clips
@pytest.mark.parametrize(("interpolation", "darkest", "brightest"), [("bilinear", 0, 255), ("bicubic", 40, 215)])
@pytest.mark.parametrize(("height", "width"), [(100, 140), (65, 51), (40, 31), (48, 200)])
def test_resizing_equals_pillow_within_two_grey_levels(height, width, interpolation, darkest, brightest):
    rng = np.random.default_rng(0)
    frames = rng.integers(darkest, brightest + 1, (3, height + 12, width + 9, 3), dtype=np.uint8)
    region = frames[:, 5 : 5 + height, 7 : 7 + width]
    clip = resize_frames(region, 64, interpolation)
    assert clip.shape == (3, 3, 64, 64)
    assert clip.dtype == torch.uint8
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    for ours, frame in zip(clip.permute(0, 2, 3, 1).numpy(), frames, strict=True):
        cropped = Image.fromarray(frame).crop((7, 5, 7 + width, 5 + height))
        official = np.asarray(cropped.resize((64, 64), method))
        assert np.abs(ours.astype(int) - official).max() <= 2


@pytest.mark.parametrize("crop", ["multi_scale", "random_resized"])
def test_all_frames_share_one_crop_which_is_read_once(crop):
    augmentation = PretrainingAugmentation([32], crop)
    for seed in range(10):
        frames = Frames(gradient(64, 80))
        clip = augmentation(frames, generator(seed))[32]
        assert len(frames.boxes) == 1
        assert (clip == clip[0]).all()


@pytest.mark.parametrize("crop", ["multi_scale", "random_resized"])
def test_every_size_shows_the_same_region(crop):
    augmentation = PretrainingAugmentation([32, 64, 28], crop)
    for seed in range(10):
        clips = augmentation(Frames(gradient(120, 160)), generator(seed))
        assert {size: clip.shape for size, clip in clips.items()} == {
            size: (4, 3, size, size) for size in (32, 64, 28)
        }
        halved = torch.nn.functional.avg_pool2d(clips[64].float(), 2)
        assert (halved - clips[32]).abs().max() <= 2
        means = [clip.float().mean(dim=(0, 2, 3)) for clip in clips.values()]
        assert (means[0] - means[2]).abs().max() <= 1


def test_students_size_comes_first_and_repeated_sizes_once():
    assert list(PretrainingAugmentation([48, 32, 48])(Frames(gradient(64, 80)), generator())) == [48, 32]


def flips_of_noise(crop: str, method: Image.Resampling, count: int) -> int:
    """How many of `count` clips are flipped; each is Pillow's crop and resize of its box, flipped or not."""
    augmentation, source, flips = PretrainingAugmentation([32], crop), generator(), 0
    noise = np.random.default_rng(0).integers(40, 216, (1, 64, 80, 3), dtype=np.uint8)
    for _ in range(count):
        frames = Frames(noise)
        (clip,) = augmentation(frames, source)[32].permute(0, 2, 3, 1).numpy().astype(int)
        ((top, left, height, width),) = frames.boxes
        cropped = Image.fromarray(noise[0]).crop((left, top, left + width, top + height))
        official = np.asarray(cropped.resize((32, 32), method))
        is_equal, is_flipped = (np.abs(clip - image).max() <= 2 for image in (official, official[:, ::-1]))
        assert is_equal != is_flipped
        flips += is_flipped
    return flips


def test_multi_scale_clip_is_pillows_bilinear_crop_and_never_flipped():
    assert flips_of_noise("multi_scale", Image.Resampling.BILINEAR, 60) == 0


def test_random_resized_clip_is_pillows_bicubic_crop_and_flipped_half_the_time():
    assert 65 < flips_of_noise("random_resized", Image.Resampling.BICUBIC, 200) < 135


@pytest.mark.parametrize("crop", ["multi_scale", "random_resized"])
def test_generator_decides_the_clip_and_the_global_state_stays(crop):
    augmentation, state = PretrainingAugmentation([32], crop), torch.get_rng_state()
    first, again = ([augmentation(Frames(gradient(64, 80)), generator(seed))[32] for seed in range(6)] for _ in "ab")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(first[0], clip) for clip in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_crop_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no crop 'center'; choose 'multi_scale' or 'random_resized'"):
        PretrainingAugmentation([32], "center")
