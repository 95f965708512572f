"""Augmentation for action detection: transforms the clip around a key frame together with the boxes of its people.

Boxes are x1, y1, x2, y2: relative to the frame in the input, in pixels of the clip in the output. P people, T frames;
frames are (T, H, W, 3) uint8, clips (T, 3, height, width) uint8.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..data.augmentation import chance, uniform
from ..model.boxes_mvd import as_pixels, clip_boxes
from ..model.resizing_mvd import resize_short_side

# largest moves of an edge outwards and inwards in training, as fractions of a box's width and height
JITTER_X, JITTER_Y = (0.2, 0.1), (0.1, 0.05)
# largest changes of a clip in training: degrees of hue, gray levels of saturation and of value
COLOR_JITTER = (20.0, 26.0, 26.0)


def jitter_boxes(boxes: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    """Move every edge of relative boxes (P, 4) at random within the frame, more outwards than inwards.

    `amount` is a factor of the published amounts: 20 % outwards and 10 % inwards in x, half of that in y.
    """
    draws = torch.rand(boxes.shape, generator=generator)
    sizes = torch.cat([boxes[:, 2:] - boxes[:, :2]] * 2, dim=1) * amount
    outwards = torch.tensor([JITTER_X[0], JITTER_Y[0]] * 2)
    inwards = torch.tensor([JITTER_X[1], JITTER_Y[1]] * 2)
    signs = torch.tensor([-1.0, -1.0, 1.0, 1.0])  # outwards is to smaller numbers for the first two edges
    return clip_boxes(boxes + signs * sizes * (draws * (outwards + inwards) - inwards), 1.0, 1.0)


def flip_boxes(boxes: torch.Tensor, width: float) -> torch.Tensor:
    """Boxes (P, 4) of a clip after a horizontal flip."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def visible_parts(boxes: torch.Tensor, height: float, width: float) -> torch.Tensor:
    """The fraction (P,) of each box's area that is inside a frame; 0 for an empty box."""
    inside = clip_boxes(boxes, height, width)
    visible, whole = ((b[:, 2:] - b[:, :2]).prod(dim=1) for b in (inside, boxes))
    return torch.where(whole > 0, visible / whole.clamp(min=1e-9), 0.0)


def at_least_a_pixel(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Boxes (P, 4) clipped to a clip; those outside become a pixel at the border next to them."""
    x1, y1, x2, y2 = clip_boxes(boxes, height, width).unbind(-1)
    x1, y1 = x1.clamp(max=width - 1), y1.clamp(max=height - 1)
    return torch.stack([x1, y1, torch.maximum(x2, x1 + 1), torch.maximum(y2, y1 + 1)], dim=-1)


def jitter_color(clip: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    """Shift hue, saturation and value of a clip (T, 3, H, W) uint8, by the same amounts in all frames.

    `amount` is a factor of the published amounts: 20 degrees, 26 and 26 gray levels.
    """
    hue, saturation, value = (amount * uniform(-most, most, generator) for most in COLOR_JITTER)
    levels = np.arange(256)
    shifted = [
        (levels + round(hue * 256 / 360)) % 256,  # a circle
        np.clip(levels + round(saturation), 0, 255),
        np.clip(levels + round(value), 0, 255),
    ]
    table = np.concatenate(shifted).tolist()
    frames = (
        Image.fromarray(frame).convert("HSV").point(table).convert("RGB") for frame in clip.movedim(1, -1).numpy()
    )
    return torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).movedim(-1, 1).contiguous()


@dataclass(frozen=True)
class DetectionTrainingAugmentation:
    """Box jitter, resized short side, random square crop, color jitter and flip, as in the published runs' pipeline.

    Args:
        size: pixels of the square crop.
        short_side: pixels of the short side before the crop.
        box_jitter: factor of [`jitter_boxes`]; 0 for none.
        color_jitter: factor of [`jitter_color`]; 0 for none.
        flip: probability of a horizontal flip.
        min_visible: people with less than this fraction of their box in the crop are left out. With 0 everyone stays,
            as in the published runs: a box outside the crop becomes a pixel at its border.

    Raises:
        ValueError: if the crop is larger than the frames or a setting is impossible.
    """

    size: int
    short_side: int = 256
    box_jitter: float = 1.0
    color_jitter: float = 1.0
    flip: float = 0.5
    min_visible: float = 0.0

    def __post_init__(self):
        if self.size > self.short_side:
            raise ValueError(
                f"A crop of {self.size} pixels does not fit into frames with a short side of {self.short_side}: raise "
                "short_side."
            )
        for name in ("flip", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1.")
        for name in ("box_jitter", "color_jitter"):
            if not 0 <= getattr(self, name) <= 5:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 (none) and 5; 1 is as published.")

    def __call__(
        self, frames: np.ndarray, boxes: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The clip (T, 3, size, size), and boxes (p, 4) and indices (p,) of the p people that are left.

        Args:
            frames: (T, H, W, 3) uint8.
            boxes: (P, 4), relative.
            generator: source of randomness.
        """
        boxes = jitter_boxes(boxes, self.box_jitter, generator)
        frames = resize_short_side(torch.from_numpy(frames).movedim(-1, 1), self.short_side)
        height, width = frames.shape[-2:]
        top, left = (int(torch.randint(side - self.size + 1, (), generator=generator)) for side in (height, width))
        clip = frames[..., top : top + self.size, left : left + self.size]
        boxes = boxes * boxes.new_tensor([width, height] * 2) - boxes.new_tensor([left, top] * 2)
        kept = torch.arange(len(boxes))
        if self.min_visible > 0:
            kept = kept[visible_parts(boxes, self.size, self.size) >= self.min_visible]
        boxes = at_least_a_pixel(boxes[kept], self.size, self.size)
        if self.color_jitter > 0:
            clip = jitter_color(clip, self.color_jitter, generator)
        if chance(self.flip, generator):
            clip, boxes = clip.flip(-1), flip_boxes(boxes, self.size)
        return clip.contiguous(), boxes, kept


@dataclass(frozen=True)
class DetectionTestAugmentation:
    """The whole frame with a resized short side, padded to whole patches on the right and below.

    Args:
        short_side: pixels of the short side.
        size_divisor: pixels of a patch.
        fill: (R, G, B) of the padding, which the normalization makes (nearly) zero.
    """

    short_side: int = 256
    size_divisor: int = 16
    fill: tuple[int, int, int] = (124, 116, 104)

    def __call__(
        self, frames: np.ndarray, boxes: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As [`DetectionTrainingAugmentation`], with nothing random."""
        frames = resize_short_side(torch.from_numpy(frames).movedim(-1, 1), self.short_side)
        num_frames, _, height, width = frames.shape
        rows, columns = (math.ceil(side / self.size_divisor) * self.size_divisor for side in (height, width))
        clip = torch.tensor(self.fill, dtype=torch.uint8)[:, None, None].repeat(num_frames, 1, rows, columns)
        clip[..., :height, :width] = frames
        return clip, clip_boxes(as_pixels(boxes, "relative", height, width), height, width), torch.arange(len(boxes))
