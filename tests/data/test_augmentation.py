"""Crops, resizing, RandAugment, random erasing, and the augmentations of a clip for training and validation."""

import math
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from mvd_hf.data.augmentation import (
    FinetuningAugmentation,
    MultiScaleCrop,
    PretrainingAugmentation,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    ValidationAugmentation,
    resize_frames,
    seeded,
)
from mvd_hf.model.video_reading import Frames

FRAME_SIZES = [(64, 80), (80, 64), (64, 64), (33, 200), (222, 300), (223, 300), (240, 320)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(height: int, width: int, num_frames: int = 4) -> np.ndarray:
    """Equal frames whose first channel grows from left to right and whose second grows from top to bottom."""
    frames = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
    frames[..., 0] = np.linspace(0, 255, width).round()
    frames[..., 1] = np.linspace(0, 255, height).round()[:, None]
    return frames


def noise(height: int, width: int, num_frames: int = 3) -> np.ndarray:
    """Patches of noise, other in each frame, with other darkest and brightest levels in each."""
    small = np.random.default_rng(0).integers(0, 256, (num_frames, height // 4, width // 4, 3), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(frame).resize((width, height))) for frame in small]
    return np.stack([frame // 4 + 40 + 20 * number for number, frame in enumerate(large)])


class Watched(Frames):
    """Frames that remember which boxes were taken of them."""

    def __init__(self, frames: np.ndarray):
        super().__init__(frames.shape[1:3], frames)
        self.boxes = []

    def rgb(self, box=None) -> np.ndarray:
        self.boxes.append((0, 0, *self.size) if box is None else box)
        return super().rgb(box)


def test_all_130_multi_scale_boxes_are_inside():
    for size in [32, 112, 224, (32, 64), (90, 30)]:
        for height, width in FRAME_SIZES:
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


def test_multi_scale_crop_draws_exactly_its_boxes():
    for height, width in FRAME_SIZES:
        crop, source = MultiScaleCrop(224), generator()
        drawn = {crop(height, width, source) for _ in range(1500)}
        assert drawn == {box for places in crop.boxes(height, width) for box in places}


def test_multi_scale_crop_reaches_all_corners_and_the_centre():
    (places,) = [boxes for boxes in MultiScaleCrop(224).boxes(400, 480) if boxes[0][2:] == (300, 300)]
    offsets = {(top, left) for top, left, _, _ in places}
    assert offsets >= {(0, 0), (0, 180), (100, 0), (100, 180), (50, 90)}


def test_side_within_two_pixels_of_the_output_becomes_the_output():
    for short_side, snapped in [(224, 224), (225, 224), (226, 224), (227, 227), (240, 240)]:
        height, width = MultiScaleCrop(224).sizes(short_side, 320)[0]
        assert (height, width) == (snapped, snapped)


def test_sides_of_a_multi_scale_crop_are_at_most_one_scale_apart():
    sizes = MultiScaleCrop(224).sizes(400, 480)
    sides = [400, 350, 300, 264]
    assert len(set(sizes)) == 10
    assert set(sizes) == {(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) < 2}


def test_crops_have_the_shape_of_a_rectangle():
    for size in [(32, 64), (64, 32)]:
        for height, width in FRAME_SIZES:
            h, w = MultiScaleCrop(size).largest(height, width)
            assert (h == height) or (w == width)
            assert abs(h * size[1] - w * size[0]) < max(size)
        crop, source = RandomResizedCrop((0.05, 0.1), size=size), generator()
        boxes = np.array([crop(240, 320, source) for _ in range(200)])
        shapes = boxes[:, 3] / boxes[:, 2] / (size[1] / size[0])
        assert shapes.min() > 0.7
        assert shapes.max() < 1.43
        assert np.ptp(shapes) > 0.4


def test_random_resized_crop_is_inside_and_of_the_stated_area_and_shape():
    for height, width in FRAME_SIZES:
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


def test_scales_of_a_multi_scale_crop_can_be_chosen():
    whole = MultiScaleCrop(32, [1.0])
    assert whole.sizes(40, 48) == [(40, 40)]
    drawn = {whole(40, 48, generator(seed)) for seed in range(200)}
    assert drawn == {(0, left, 40, 40) for left in (0, 2, 4, 6, 8)}
    assert len(MultiScaleCrop(32, [1.0, 0.8]).sizes(40, 48)) == 4


def test_scales_of_no_use_are_refused():
    with pytest.raises(
        ValueError, match=re.escape("crop_scales=[0.5] is for crop: multi_scale, not for random_resized")
    ):
        PretrainingAugmentation([32], "random_resized", [0.5])
    with pytest.raises(ValueError, match="leave nothing of frames of 8x10 pixels"):
        MultiScaleCrop(8, [0.1])(8, 10, generator())


def test_scales_that_no_crop_has_are_refused():
    for scales in [[], [0.0], [1.0, 1.2]]:
        with pytest.raises(ValueError, match=re.escape(f"crop_scales={scales} must")):
            PretrainingAugmentation([32], scales=scales)


def test_seeded_makes_global_draws_follow_the_generator_and_restores_the_global_state():
    torch.manual_seed(3)
    state, draws = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        with seeded(generator(seed)):
            draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_seeded_leaves_the_generators_of_accelerators_alone(monkeypatch):
    seeds = []
    for device in (torch.cuda, torch.xpu, torch.mps):
        for name in ("manual_seed", "manual_seed_all"):
            monkeypatch.setattr(device, name, seeds.append, raising=False)
    torch.manual_seed(1)
    assert seeds  # what is watched is what would be called
    seeds.clear()
    with seeded(generator()):
        torch.rand(1)
    assert seeds == []


def test_seeded_restores_the_global_state_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="negative dimension"), seeded(generator()):
        torch.rand(1), torch.rand(-1)
    assert torch.equal(torch.get_rng_state(), state)


# bicubic overshoots: on noise that reaches black or white, the last bits depend on where a program clips
def test_resizing_equals_pillow_within_two_grey_levels():
    for interpolation, darkest, brightest in [("bilinear", 0, 255), ("bicubic", 40, 215)]:
        for height, width in [(100, 140), (65, 51), (40, 31), (48, 200)]:
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


def test_all_frames_share_one_crop_which_is_read_once():
    for crop in ["multi_scale", "random_resized"]:
        augmentation = PretrainingAugmentation([32], crop)
        for seed in range(10):
            frames = Watched(gradient(64, 80))
            clip = augmentation(frames, generator(seed))[32]
            assert len(frames.boxes) == 1
            assert (clip == clip[0]).all()


def test_every_size_shows_the_same_region():
    for crop in ["multi_scale", "random_resized"]:
        augmentation = PretrainingAugmentation([32, 64, 28], crop)
        for seed in range(10):
            clips = augmentation(Watched(gradient(120, 160)), generator(seed))
            assert {size: clip.shape for size, clip in clips.items()} == {
                size: (4, 3, size, size) for size in (32, 64, 28)
            }
            halved = torch.nn.functional.avg_pool2d(clips[64].float(), 2)
            assert (halved - clips[32]).abs().max() <= 2
            means = [clip.float().mean(dim=(0, 2, 3)) for clip in clips.values()]
            assert (means[0] - means[2]).abs().max() <= 1


def test_every_size_of_a_rectangle_shows_the_same_region():
    clips = PretrainingAugmentation([(32, 64), (16, 32), (48, 48)])(Watched(gradient(120, 160)), generator())
    assert {size: clip.shape[-2:] for size, clip in clips.items()} == {
        (32, 64): (32, 64), (16, 32): (16, 32), 48: (48, 48)
    }  # fmt: skip
    means = [clip.float().mean(dim=(0, 2, 3)) for clip in clips.values()]
    assert max((mean - means[0]).abs().max() for mean in means) <= 1


def test_students_size_comes_first_and_repeated_sizes_once():
    assert list(PretrainingAugmentation([48, 32, 48])(Watched(gradient(64, 80)), generator())) == [48, 32]


def flips_of_noise(crop: str, method: Image.Resampling, count: int) -> int:
    """How many of `count` clips are flipped; each is Pillow's crop and resize of its box, flipped or not."""
    augmentation, source, flips = PretrainingAugmentation([32], crop), generator(), 0
    noise = np.random.default_rng(0).integers(40, 216, (1, 64, 80, 3), dtype=np.uint8)
    for _ in range(count):
        frames = Watched(noise)
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


def test_generator_decides_the_clip_and_the_global_state_stays():
    for crop in ["multi_scale", "random_resized"]:
        augmentation, state = PretrainingAugmentation([32], crop), torch.get_rng_state()
        first, again = (
            [augmentation(Watched(gradient(64, 80)), generator(seed))[32] for seed in range(6)] for _ in "ab"
        )
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(first[0], clip) for clip in first)
        assert torch.equal(torch.get_rng_state(), state)


def test_unknown_crop_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no crop 'center'; choose 'multi_scale' or 'random_resized'"):
        PretrainingAugmentation([32], "center")


def augmented(name: str, amount: float, frames: np.ndarray) -> np.ndarray:
    """Frames after one operation of RandAugment."""
    operation = RandAugment.OPERATIONS[name]
    return np.stack([np.asarray(operation(Image.fromarray(frame), amount)) for frame in frames])


LEVELS = np.arange(256).reshape(1, 16, 16, 1).repeat(3, axis=3).astype(np.uint8)


def test_operation_on_grey_levels():
    for name, amount, expected in [
        ("invert", 7.0, lambda level: 255 - level),
        ("posterize", 7.0, lambda level: level & 0b11000000),
        ("posterize", -7.6, lambda level: level & 0b10000000),
        ("posterize", 2.4, lambda level: level & 0b11110000),
        ("posterize", 10.0, lambda level: 0 * level),
        ("solarize", -7.0, lambda level: np.where(level < 77, level, 255 - level)),
        ("solarize", 10.0, lambda level: 255 - level),
        ("solarize_add", 7.0, lambda level: np.where(level < 128, level + 77, level)),
        ("solarize_add", -6.99, lambda level: np.where(level < 128, level + 76, level)),
        ("brightness", 10.0, lambda level: np.minimum(1.9 * level, 255)),
        ("brightness", -10.0, lambda level: 0.1 * level),
        ("brightness", 0.0, lambda level: level),
    ]:
        assert np.abs(augmented(name, amount, LEVELS) - expected(LEVELS.astype(int))).max() < 1


def test_operation_of_each_frames_own_statistics_equals_torchvisions_within_a_grey_level():
    for name, amount, reference in [
        ("auto_contrast", 7.0, functional.autocontrast),
        ("equalize", 7.0, functional.equalize),
        ("color", 7.0, lambda batch: functional.adjust_saturation(batch, 1.63)),
        ("color", -7.0, lambda batch: functional.adjust_saturation(batch, 0.37)),
        ("contrast", 7.0, lambda batch: functional.adjust_contrast(batch, 1.63)),
        ("contrast", -7.0, lambda batch: functional.adjust_contrast(batch, 0.37)),
        ("sharpness", 7.0, lambda batch: functional.adjust_sharpness(batch, 1.63)),
        ("sharpness", -7.0, lambda batch: functional.adjust_sharpness(batch, 0.37)),
    ]:
        frames = noise(48, 64)
        expected = reference(torch.from_numpy(frames).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy().astype(int)
        assert np.abs(augmented(name, amount, frames) - expected).max() <= 1
        assert np.abs(frames - expected).max() > 3


def test_geometric_operation_shows_its_source_places_and_grey_beside_them():
    for amount in [7.3, -7.3, 10.0, -1.0, 0.0]:
        for name in ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"]:
            height, width = 60, 100
            x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
            ramp = np.stack([2 * x, 3 * y, x + y], axis=-1).round().astype(np.uint8)
            angle = math.radians(3 * amount)
            source_x, source_y = {
                "rotate": (
                    width / 2 + math.cos(angle) * (x - width / 2) - math.sin(angle) * (y - height / 2),
                    height / 2 + math.sin(angle) * (x - width / 2) + math.cos(angle) * (y - height / 2),
                ),
                "shear_x": (x + 0.03 * amount * y, y),
                "shear_y": (x, y + 0.03 * amount * x),
                "translate_x": (x + 0.045 * amount * width, y),
                "translate_y": (x, y + 0.045 * amount * height),
            }[name]
            result = augmented(name, amount, ramp[None])[0].astype(int)
            margin = np.minimum.reduce([source_x, width - source_x, source_y, height - source_y])
            expected = np.stack([2 * source_x, 3 * source_y, source_x + source_y], axis=-1)
            inside, outside = margin > 2, margin < -0.01
            assert inside.sum() > 0.3 * inside.size
            assert np.abs(result - expected)[inside].max() <= 2
            assert (result[outside] == 128).all()
            assert outside.any() == (amount != 0)


def test_geometric_operation_is_bicubic():
    for name in ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"]:
        squares = (np.indices((60, 100)) // 10).sum(axis=0) % 2 * 40 + 108
        result = augmented(name, 3.2, squares[None, ..., None].repeat(3, axis=3).astype(np.uint8))
        assert result.min() < 106  # bilinear and nearest pixels stay between 108 and 148
        assert result.max() > 150


def test_rand_augment_draws_its_operations_equally_often_and_applies_half_of_them():
    augment, source, clips = RandAugment(), generator(), 4000
    drawn = [augment.draw(source) for _ in range(clips)]
    counts = np.bincount([len(operations) for operations in drawn], minlength=5)
    binomial = clips * np.array([1, 4, 6, 4, 1]) / 16
    assert ((counts - binomial) ** 2 / binomial).sum() < 4 + 5 * 8**0.5
    names = [name for operations in drawn for name, _ in operations]
    counts = np.array([names.count(name) for name in RandAugment.OPERATIONS])
    assert len(counts) == 15
    assert ((counts - 2 * clips / 15) ** 2 / (2 * clips / 15)).sum() < 14 + 5 * 28**0.5
    assert any(len({name for name, _ in operations}) < len(operations) for operations in drawn)
    amounts = np.array([amount for operations in drawn for _, amount in operations])
    assert abs((amounts > 0).mean() - 0.5) < 0.03
    assert abs(np.abs(amounts).mean() - 7) < 0.03
    assert abs(np.abs(amounts).std() - 0.5) < 0.03


def test_rand_augment_reads_its_specification_and_clips_magnitudes():
    augment, source = RandAugment("rand-m9.5-n6-mstd2-inc1"), generator()
    drawn = [augment.draw(source) for _ in range(500)]
    amounts = np.abs([amount for operations in drawn for _, amount in operations])
    assert max(map(len, drawn)) == 6
    assert amounts.max() == 10
    assert 0.3 < (amounts == 10).mean() < 0.5
    assert amounts.min() < 6
    constant = RandAugment("rand-m3-n1-mstd0-inc1")
    assert {abs(amount) for _ in range(50) for _, amount in constant.draw(source)} == {3}


def test_other_specification_is_refused_with_a_right_one():
    for spec in [
        *("", "rand", "augmix", "m7-n4", "v0-m7-n4-mstd0.5-inc1", "rand-m7-n4-mstd0.5-inc1-w0"),
        *("rand-m11-n4-mstd0.5-inc1", "rand-m-7-n4-mstd0.5-inc1", "rand-m7-n0-mstd0.5-inc1"),
        *("rand-m7-n1.5-mstd0.5-inc1", "rand-m7-n4-mstd0.5-inc0"),
    ]:
        with pytest.raises(ValueError, match=r"write it like 'rand-m7-n4-mstd0\.5-inc1'"):
            RandAugment(spec)


def test_rand_augment_applies_what_it_draws_to_every_frame():
    augment, frames, changed = RandAugment(), noise(24, 32), 0
    for seed in range(40):
        expected = frames
        for name, amount in augment.draw(generator(seed)):
            expected = augmented(name, amount, expected)
        result = augment(frames, generator(seed))
        assert np.array_equal(frames, noise(24, 32))
        assert result.dtype == np.uint8
        assert np.array_equal(result, expected)
        changed += not np.array_equal(result, frames)
    assert changed > 30


def test_resizing_without_antialiasing_equals_interpolated_floats_within_a_grey_level():
    for height, width in [(100, 140), (31, 23), (64, 64), (200, 48), (9, 150)]:
        frames = np.random.default_rng(0).integers(0, 256, (3, height + 12, width + 9, 3), dtype=np.uint8)
        region = frames[:, 5 : 5 + height, 7 : 7 + width]
        clip = resize_frames(region, 64, antialias=False)
        floats = torch.from_numpy(region).permute(0, 3, 1, 2).float()
        exact = torch.nn.functional.interpolate(floats, (64, 64), mode="bilinear", align_corners=False)
        assert clip.dtype == torch.uint8
        assert (clip - exact.round()).abs().max() <= 1


def test_erased_boxes_have_the_stated_areas_and_shapes():
    erasing, source = RandomErasing(), generator()
    boxes = np.array([erasing.box(300, 400, source) for _ in range(3000)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= (300, 400)).all()
    area, shape = boxes[:, 2] * boxes[:, 3] / (300 * 400), np.log(boxes[:, 2] / boxes[:, 3])
    assert 0.018 < area.min() < 0.03
    assert 0.31 < area.max() < 0.335
    assert -1.25 < shape.min() < -1.1
    assert 1.0 < shape.max() < 1.25
    small = area < 0.1  # every shape of these fits, so nothing is drawn again
    assert abs(shape[small].mean()) < 0.07
    assert abs(shape[small].std() - math.log(1 / 0.3) / 3**0.5) < 0.05
    places = boxes[:, :2] / ((300, 400) - boxes[:, 2:])
    assert np.abs(places.mean(axis=0) - 0.5).max() < 0.03


def test_erasing_puts_the_normalisations_noise_into_one_box_of_all_frames():
    mean, std = (0.25, 0.5, 0.75), (0.02, 0.04, 0.06)
    clip = torch.full((4, 3, 80, 80), 1, dtype=torch.uint8)
    erased = RandomErasing(1.0, scale=(0.3, 0.3), mean=mean, std=std)(clip, generator())
    assert erased.dtype == torch.uint8
    assert (clip == 1).all()
    is_noise = erased != 1
    assert (is_noise == is_noise[:1, :1]).all()
    rows, columns = (is_noise[0, 0].any(dim=dim).sum() for dim in (1, 0))
    assert is_noise[0, 0].sum() == rows * columns
    assert abs(rows * columns / 80**2 - 0.3) < 0.02
    noise_of_frames = erased[is_noise].view(4, 3, -1).float()
    correlations = np.corrcoef(noise_of_frames.flatten(0, 1))
    assert np.abs(correlations - np.eye(12)).max() < 0.12
    assert torch.allclose(noise_of_frames.mean(dim=(0, 2)), 255 * torch.tensor(mean), atol=0.7)
    assert torch.allclose(noise_of_frames.std(dim=(0, 2)), 255 * torch.tensor(std), rtol=0.04)


def test_noise_is_clipped_to_grey_levels_and_one_normalisation_may_be_for_all_channels():
    clip = torch.full((2, 3, 60, 60), 128, dtype=torch.uint8)
    erased = RandomErasing(1.0, scale=(0.3, 0.3), mean=0.5, std=1.0)(clip, generator())
    values = erased[erased != 128]
    assert abs((values == 0).float().mean() - 0.309) < 0.03  # normal noise half a deviation below its mean
    assert abs((values == 255).float().mean() - 0.309) < 0.03


def test_a_quarter_of_clips_is_erased():
    erasing, source, clip = RandomErasing(), generator(), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    erased = sum(not torch.equal(erasing(clip, source), clip) for _ in range(800))
    assert 150 < erased < 250


def test_clip_stays_if_no_box_fits():
    clip = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    assert RandomErasing(1.0, scale=(1.5, 2.0))(clip, generator()) is clip


def test_finetuning_clip_is_a_function_of_the_generator():
    for rand_augment in ["rand-m7-n4-mstd0.5-inc1", None]:
        augmentation, state = FinetuningAugmentation(32, rand_augment), torch.get_rng_state()
        frames = Watched(noise(48, 64))
        first, again = ([augmentation(frames, generator(seed))[32] for seed in range(12)] for _ in "ab")
        assert all(
            clip.shape == (3, 3, 32, 32) and clip.dtype == torch.uint8 and clip.is_contiguous() for clip in first
        )
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert len({clip.numpy().tobytes() for clip in first}) == 12
        assert torch.equal(torch.get_rng_state(), state)


def test_frames_of_a_finetuning_clip_share_everything_but_the_noise():
    for rand_augment in ["rand-m7-n4-mstd0.5-inc1", None]:
        augmentation = FinetuningAugmentation(32, rand_augment, erasing=0.0)
        for seed in range(20):
            clip = augmentation(Watched(gradient(48, 64)), generator(seed))[32]
            assert (clip == clip[0]).all()


def test_rand_augment_sees_whole_frames_and_without_it_only_the_crop_is_read():
    for rand_augment, is_whole in (("rand-m7-n4-mstd0.5-inc1", True), (None, False)):
        frames = Watched(noise(48, 64))
        for seed in range(10):
            FinetuningAugmentation(32, rand_augment)(frames, generator(seed))
        assert len(frames.boxes) == 10
        assert (set(frames.boxes) == {(0, 0, 48, 64)}) == is_whole


def test_rand_augment_comes_before_the_crop():
    augmentation = FinetuningAugmentation(32, "rand-m7-n4-mstd0.5-inc1", flip=0.0, erasing=0.0)
    frames = noise(48, 64)
    for seed in range(20):
        source = generator(seed)
        whole = RandAugment()(frames, source)
        top, left, height, width = RandomResizedCrop((0.08, 1.0))(48, 64, source)
        region = torch.from_numpy(whole[:, top : top + height, left : left + width]).permute(0, 3, 1, 2)
        expected = torch.nn.functional.interpolate(region.float(), (32, 32), mode="bilinear", align_corners=False)
        clip = augmentation(Watched(frames), generator(seed))[32]
        assert (clip - expected.round()).abs().max() <= 1


def flips_and_areas(flip: float, count: int = 300) -> tuple[int, np.ndarray]:
    """How many of `count` clips without RandAugment are flipped, and the parts of the frame that they show."""
    augmentation, source = FinetuningAugmentation(32, None, flip=flip, erasing=0.0), generator()
    frames, flips = Watched(noise(48, 64, 1)), 0
    for _ in range(count):
        clip = augmentation(frames, source)[32]
        top, left, height, width = frames.boxes[-1]
        region = torch.from_numpy(frames.frames[:, top : top + height, left : left + width]).permute(0, 3, 1, 2)
        exact = torch.nn.functional.interpolate(region.float(), (32, 32), mode="bilinear", align_corners=False)
        is_equal, is_flipped = ((clip - image.round()).abs().max() <= 1 for image in (exact, exact.flip(-1)))
        assert is_equal != is_flipped
        flips += bool(is_flipped)
    return flips, np.array([height * width for _, _, height, width in frames.boxes]) / (48 * 64)


def test_finetuning_crop_is_flipped_half_the_time_and_of_8_to_100_percent():
    flips, areas = flips_and_areas(0.5)
    assert 115 < flips < 185
    assert areas.min() > 0.07
    assert areas.min() < 0.12
    assert areas.max() > 0.9
    assert 0.35 < areas.mean() < 0.5  # large boxes often do not fit and are drawn again
    assert flips_and_areas(0.0)[0] == 0


def test_finetuning_erases_with_the_models_normalisation():
    augmentation = FinetuningAugmentation(32, None, erasing=1.0, mean=(0.1, 0.5, 0.9), std=(0.01, 0.01, 0.01))
    frames = np.zeros((4, 48, 64, 3), dtype=np.uint8)
    clip = augmentation(Watched(frames), generator())[32]
    for channel, mean in enumerate((25.5, 127.5, 229.5)):
        erased = clip[:, channel][clip[:, channel] > 0].float()
        assert abs(erased.mean() - mean) < 0.7


def test_impossible_finetuning_augmentation_is_refused():
    for arguments, message in [
        ({"flip": 1.5}, "flip is 1.5; a probability is between 0 and 1"),
        ({"erasing": -0.1}, "erasing is -0.1; a probability is between 0 and 1"),
        ({"scale": (0.5, 0.2)}, "scale is .0.5, 0.2.; give the smallest and largest"),
        ({"scale": (0.0, 1.0)}, "scale is .0.0, 1.0.; give the smallest and largest"),
        ({"scale": (0.5, 2.0)}, "scale is .0.5, 2.0.; give the smallest and largest"),
        ({"rand_augment": "rand"}, "RandAugment cannot be 'rand'"),
    ]:
        with pytest.raises(ValueError, match=message):
            FinetuningAugmentation(32, **arguments)


def test_augmentation_travels_to_worker_processes():
    for augmentation in [FinetuningAugmentation(32), ValidationAugmentation(32)]:
        copy = pickle.loads(pickle.dumps(augmentation))
        clips = [augment(Watched(noise(48, 64)), generator(3))[32] for augment in (augmentation, copy)]
        assert torch.equal(*clips)


def test_validation_clip_is_the_centre_of_frames_whose_short_side_is_the_clips():
    for height, width in [(48, 64), (64, 48), (40, 40), (20, 27), (32, 90), (33, 101)]:
        frames = Watched(np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8))
        clip = ValidationAugmentation(32)(frames, generator())[32]
        assert clip.shape == (2, 3, 32, 32)
        assert clip.dtype == torch.uint8
        short = min(height, width)
        size = [int(32 * side / short) for side in (height, width)]
        floats = torch.from_numpy(frames.frames).permute(0, 3, 1, 2).float()
        resized = torch.nn.functional.interpolate(floats, size, mode="bilinear", align_corners=False).round()
        top, left = (round((side - 32) / 2) for side in size)
        assert (clip - resized[..., top : top + 32, left : left + 32]).abs().max() <= 1


def test_validation_needs_no_random_numbers():
    source = generator()
    state = source.get_state()
    first, again = (ValidationAugmentation(32)(Watched(noise(48, 64)), given)[32] for given in (source, None))
    assert torch.equal(first, again)
    assert torch.equal(source.get_state(), state)
