"""Augmentation of uint8 clips: crops, RandAugment, flip and random erasing, the same for all frames of a clip.

Boxes are (top, left, height, width) in pixels, arrays of frames (T, H, W, 3) and clips (T, 3, h, w). An augmentation
is called with the `Frames` of a video and a generator, and returns clips by size: the side of a square, or (h, w).
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import v2
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..model.configuration_mvd import Size, compact_size, height_and_width
from ..model.resizing_mvd import covering_size, crop_offsets, resize_bilinear
from ..model.video_reading import Box, Frames

# (top, left) of a multi-scale crop in quarters of the free height and width
CROP_OFFSETS = (
    (0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3),
)  # fmt: skip

MULTI_SCALE = (1.0, 0.875, 0.75, 0.66)  # sides of MVD's and VideoMAE's crops, as parts of the largest crop

FILL = (128, 128, 128)  # color that RandAugment shows beside a moved frame


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Make torchvision's transforms, which draw from the global state of torch, follow a generator."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: it takes longer than a crop, and seeds the generators of all GPUs too
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


def chance(probability: float, generator: torch.Generator) -> bool:
    """A random event of this probability."""
    return float(torch.rand((), generator=generator)) < probability


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A random number between two numbers."""
    return low + (high - low) * float(torch.rand((), generator=generator))


class MultiScaleCrop:
    """The crop of MVD's and VideoMAE's pre-training: one of 10 sizes (3 n - 2 with n scales) at one of 13 places.

    Sides are 1, 0.875, 0.75 or 0.66 of those of the largest box in the frame with the output's shape (of a square: of
    the frame's short side). Height and width differ by at most one step. A side within 2 pixels of the output's
    becomes the output's, if the largest box has room for it (if not, the official program reads black pixels beside
    the frame). Sizes and places are uniformly distributed.

    Args:
        size: pixels of the student's input.
        scales: the possible sides, as parts of the largest box.

    Raises:
        ValueError: if there is no scale, or one that is not above 0 and at most 1.
    """

    def __init__(self, size: Size, scales: Sequence[float] = MULTI_SCALE):
        self.size, self.scales = height_and_width(size), tuple(scales)
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"crop_scales={list(scales)} must be parts of the largest crop, above 0 and at most 1.")

    def largest(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the largest box with the output's shape in frames of this size."""
        h, w = self.size
        return (height, height * w // h) if height * w <= width * h else (width * h // w, width)

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The possible (height, width) for frames of this size."""
        axes = []
        for size, largest in zip(self.size, self.largest(height, width), strict=True):
            sides = [int(largest * scale) for scale in self.scales]
            if min(sides) < 1:
                raise ValueError(
                    f"crop_scales={list(self.scales)} leave nothing of frames of {height}x{width} pixels."
                )
            axes.append([size if abs(side - size) < 3 and size <= largest else side for side in sides])
        return [(h, w) for i, h in enumerate(axes[0]) for j, w in enumerate(axes[1]) if abs(i - j) <= 1]

    def boxes(self, height: int, width: int) -> list[list[Box]]:
        """The possible boxes: a list of 13 per possible size."""
        return [
            [(top * ((height - h) // 4), left * ((width - w) // 4), h, w) for top, left in CROP_OFFSETS]
            for h, w in self.sizes(height, width)
        ]

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Box:
        """A box for frames of this size."""
        boxes = self.boxes(height, width)
        counts = len(boxes), len(CROP_OFFSETS)
        size, place = (int(torch.randint(count, (), generator=generator)) for count in counts)
        return boxes[size][place]


class RandomResizedCrop:
    """The crop of MAE's pre-training (area 20 to 100 %) and of fine-tuning (8 to 100 %), with a random aspect ratio.

    Args:
        scale: smallest and largest area, as parts of the frame.
        ratio: smallest and largest width over height, in units of those of the output.
        size: pixels of the output, of which only the shape matters.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        size: Size = 1,
    ):
        height, width = height_and_width(size)
        self.crop = v2.RandomResizedCrop(1, scale=scale, ratio=tuple(bound * (width / height) for bound in ratio))

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Box:
        """A box for frames of this size."""
        with seeded(generator):
            box = self.crop.make_params([torch.empty(3, height, width, device="meta")])
        return box["top"], box["left"], box["height"], box["width"]


def resize_frames(
    frames: np.ndarray, size: Size, interpolation: str = "bilinear", antialias: bool = True
) -> torch.Tensor:
    """Resize frames (T, H, W, 3) uint8 to a clip (T, 3, h, w) uint8 of a size.

    With antialiasing, bilinear results differ by at most 2 grey levels from Pillow's, as in the official pre-training;
    without, by at most 1 grey level from interpolated floats, as in the official fine-tuning.
    """
    batch = torch.from_numpy(frames).permute(0, 3, 1, 2)  # channels last in memory: torchvision's fast path
    mode = v2.InterpolationMode(interpolation)
    resized = v2.functional.resize(batch, list(height_and_width(size)), mode, antialias=antialias)
    return resized.contiguous()


class PretrainingAugmentation:
    """One crop per clip, resized to each size of the student and the teachers, and an optional flip.

    Args:
        sizes: pixels of the clips; those of the student first. All have its crop, resized.
        crop: `"multi_scale"` (MVD and VideoMAE, bilinear, no flip) or `"random_resized"` (MAE, bicubic, with flip).
        scales: sides of multi-scale crops, as parts of the largest crop of the shape.

    Raises:
        ValueError: if there is no such crop, or scales are given for one that has none.
    """

    def __init__(self, sizes: Sequence[Size], crop: str = "multi_scale", scales: Sequence[float] = MULTI_SCALE):
        if crop not in ("multi_scale", "random_resized"):
            raise ValueError(f"There is no crop {crop!r}; choose 'multi_scale' or 'random_resized'.")
        if crop != "multi_scale" and tuple(scales) != MULTI_SCALE:
            raise ValueError(f"crop_scales={list(scales)} is for crop: multi_scale, not for {crop}.")
        self.sizes = tuple(dict.fromkeys(map(compact_size, sizes)))
        first = self.sizes[0]
        self.crop = MultiScaleCrop(first, scales) if crop == "multi_scale" else RandomResizedCrop(size=first)
        self.interpolation, self.flip = ("bilinear", 0.0) if crop == "multi_scale" else ("bicubic", 0.5)

    def __call__(self, frames: Frames, generator: torch.Generator) -> dict[Size, torch.Tensor]:
        """Clips by size, each (T, 3, h, w) uint8."""
        pixels = frames.rgb(self.crop(*frames.size, generator))
        if chance(self.flip, generator):
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        return {size: resize_frames(pixels, size, self.interpolation) for size in self.sizes}


def affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Image whose pixel (x, y) is pixel (a x + b y + c, d x + e y + f) of the input; the matrix is (a, ..., f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Image rotated counterclockwise about its centre."""
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Image with only so many upper bits; unlike Pillow's function it allows 0 bits, which gives black."""
    return image.point([level & (256 - 2 ** (8 - bits)) for level in range(256)] * 3)


def solarize_add(image: Image.Image, addition: int) -> Image.Image:
    """Image whose grey levels below 128 are raised."""
    return image.point([min(level + addition, 255) if level < 128 else level for level in range(256)] * 3)


class RandAugment:
    """RandAugment (arXiv 1909.13719) with timm's increasing operations of Pillow, the same for all frames.

    Operations are drawn uniformly with replacement. Each is applied with probability 0.5, a random sign, and a
    magnitude from a normal distribution that is clipped to [0, 10]. Auto-contrast, equalisation and contrast use the
    histogram of each frame.

    Args:
        spec: such as `rand-m7-n4-mstd0.5-inc1`: mean magnitude `m`, number of operations `n`, standard deviation of
            the magnitude `mstd`, and `inc1`: a larger magnitude changes a frame more.

    Raises:
        ValueError: if the specification is not of this form.
    """

    # (frame, amount) -> frame; the amount is the magnitude with its sign
    OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
        "auto_contrast": lambda image, amount: ImageOps.autocontrast(image),
        "equalize": lambda image, amount: ImageOps.equalize(image),
        "invert": lambda image, amount: ImageOps.invert(image),
        "rotate": lambda image, amount: rotate(image, 3 * amount),
        "posterize": lambda image, amount: posterize(image, 4 - int(0.4 * abs(amount))),
        "solarize": lambda image, amount: ImageOps.solarize(image, 256 - int(25.6 * abs(amount))),
        "solarize_add": lambda image, amount: solarize_add(image, int(11 * abs(amount))),
        "color": lambda image, amount: ImageEnhance.Color(image).enhance(1 + 0.09 * amount),
        "contrast": lambda image, amount: ImageEnhance.Contrast(image).enhance(1 + 0.09 * amount),
        "brightness": lambda image, amount: ImageEnhance.Brightness(image).enhance(1 + 0.09 * amount),
        "sharpness": lambda image, amount: ImageEnhance.Sharpness(image).enhance(1 + 0.09 * amount),
        "shear_x": lambda image, amount: affine(image, (1, 0.03 * amount, 0, 0, 1, 0)),
        "shear_y": lambda image, amount: affine(image, (1, 0, 0, 0.03 * amount, 1, 0)),
        "translate_x": lambda image, amount: affine(image, (1, 0, 0.045 * amount * image.width, 0, 1, 0)),
        "translate_y": lambda image, amount: affine(image, (1, 0, 0, 0, 1, 0.045 * amount * image.height)),
    }

    def __init__(self, spec: str = "rand-m7-n4-mstd0.5-inc1"):
        number = r"\d+(?:\.\d+)?"
        found = re.fullmatch(rf"rand-m({number})-n(\d+)-mstd({number})-inc1", spec)
        if found is None or float(found[1]) > 10 or int(found[2]) == 0:
            raise ValueError(
                f"RandAugment cannot be {spec!r}; write it like 'rand-m7-n4-mstd0.5-inc1': magnitude m of 0 to 10, "
                "n of at least 1 operation, standard deviation mstd, and inc1."
            )
        self.magnitude, self.count, self.deviation = float(found[1]), int(found[2]), float(found[3])

    def draw(self, generator: torch.Generator) -> list[tuple[str, float]]:
        """The operations to apply and their amounts in [-10, 10]."""
        names, drawn = list(self.OPERATIONS), []
        for choice in torch.randint(len(names), (self.count,), generator=generator).tolist():
            magnitude = self.magnitude + self.deviation * float(torch.randn((), generator=generator))
            sign = -1 if chance(0.5, generator) else 1
            if chance(0.5, generator):
                drawn.append((names[choice], sign * min(max(magnitude, 0.0), 10.0)))
        return drawn

    def __call__(self, frames: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 of the same shape."""
        drawn = self.draw(generator)
        if not drawn:
            return frames
        augmented = np.empty_like(frames)
        for frame, result in zip(frames, augmented, strict=True):
            image = Image.fromarray(frame)
            for name, amount in drawn:
                image = self.OPERATIONS[name](image, amount)
            result[:] = image
        return augmented


class RandomErasing:
    """Random erasing (arXiv 1708.04896) with noise: one box for all frames, independent noise for each pixel.

    The official program erases normalised floats with standard normal noise. Here the noise has the mean and standard
    deviation of the normalisation in grey levels, rounded and clipped to 0..255.

    Args:
        probability: probability that a clip is erased.
        scale: smallest and largest area, as parts of the clip.
        ratio: smallest and largest height over width.
        mean, std: normalisation of the model's input, for pixels in [0, 1], one for all channels or one each.
    """

    TRIES = 100  # draws until a box fits

    def __init__(
        self,
        probability: float = 0.25,
        scale: tuple[float, float] = (0.02, 1 / 3),
        ratio: tuple[float, float] = (0.3, 1 / 0.3),
        mean: float | Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: float | Sequence[float] = IMAGENET_DEFAULT_STD,
    ):
        self.probability, self.scale, self.ratio = probability, scale, ratio
        self.mean, self.std = (255 * torch.tensor(value).reshape(-1, 1, 1) for value in (mean, std))

    def box(self, height: int, width: int, generator: torch.Generator) -> Box | None:
        """A box inside a clip of this size; `None` if no draw fits."""
        for _ in range(self.TRIES):
            area = uniform(*self.scale, generator) * height * width
            ratio = math.exp(uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), generator))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < height and w < width:
                top, left = (int(torch.randint(free + 1, (), generator=generator)) for free in (height - h, width - w))
                return top, left, h, w
        return None

    def __call__(self, clip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The clip (T, 3, h, w) uint8, with the probability erased."""
        box = self.box(*clip.shape[-2:], generator) if chance(self.probability, generator) else None
        if box is None:
            return clip
        top, left, height, width = box
        noise = torch.randn(*clip.shape[:2], height, width, generator=generator)
        erased = clip.clone()
        erased[..., top : top + height, left : left + width] = (noise * self.std + self.mean).round_().clamp_(0, 255)
        return erased


class FinetuningAugmentation:
    """RandAugment on whole frames, a random crop resized without antialiasing, an optional flip, random erasing.

    The time of RandAugment grows with the area of the frames: moving 16 frames of 256 x 340 pixels takes 50 ms of a
        CPU
    core, so keep the short side of videos near 256 pixels.

    Args:
        size: pixels of the clip.
        rand_augment: see [`RandAugment`]; `None` for none.
        scale: smallest and largest area of the crop, as parts of the frame.
        flip: probability of a horizontal flip; 0 if left and right matter (Something-Something).
        erasing: probability of random erasing, see [`RandomErasing`].
        mean, std: normalisation of the model's input, for random erasing.

    Raises:
        ValueError: if RandAugment's specification, the areas or a probability are impossible.
    """

    def __init__(
        self,
        size: Size,
        rand_augment: str | None = "rand-m7-n4-mstd0.5-inc1",
        scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        erasing: float = 0.25,
        mean: float | Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: float | Sequence[float] = IMAGENET_DEFAULT_STD,
    ):
        for name, probability in (("flip", flip), ("erasing", erasing)):
            if not 0 <= probability <= 1:
                raise ValueError(f"{name} is {probability}; a probability is between 0 and 1.")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale is {scale}; give the smallest and largest part of a frame, like (0.08, 1.0).")
        self.size, self.flip = compact_size(size), flip
        self.crop = RandomResizedCrop(scale, size=self.size)
        self.rand_augment = None if rand_augment is None else RandAugment(rand_augment)
        self.erasing = RandomErasing(erasing, mean=mean, std=std)

    def __call__(self, frames: Frames, generator: torch.Generator) -> dict[Size, torch.Tensor]:
        """The clip by its size, (T, 3, h, w) uint8."""
        if self.rand_augment is not None:
            frames = Frames(frames.size, self.rand_augment(frames.rgb(), generator))
        pixels = frames.rgb(self.crop(*frames.size, generator))
        clip = resize_frames(pixels, self.size, antialias=False)
        if chance(self.flip, generator):
            clip = clip.flip(-1)
        return {self.size: self.erasing(clip, generator)}


class ValidationAugmentation:
    """The centre crop of every frame, as in the single view of `MVDVideoProcessor`; nothing is random.

    Args:
        size: pixels of the clip; its shorter side is that of the resized frames, if a crop of it fits into them.
    """

    def __init__(self, size: Size):
        self.size = compact_size(size)

    def __call__(self, frames: Frames, generator: torch.Generator | None = None) -> dict[Size, torch.Tensor]:
        """The clip by its size, (T, 3, h, w) uint8; the generator is not used."""
        height, width = height_and_width(self.size)
        resized = covering_size(*frames.size, min(height, width), self.size)
        clip = resize_bilinear(torch.from_numpy(frames.rgb()).permute(0, 3, 1, 2), *resized)
        ((top, left),) = crop_offsets(*resized, self.size)
        return {self.size: clip[..., top : top + height, left : left + width].contiguous()}
