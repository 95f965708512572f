"""Boxes of people: padding to a batch, units, enlarging, and their places in processed frames.

Boxes are x1, y1, x2, y2 from the upper left corner of a frame, in pixels or relative, as parts of its width and
height.
Edges are continuous: the box of a whole frame of W x H pixels is 0, 0, W, H. Letters in shapes: B clips, P people.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# largest coordinate of relative boxes: those of detectors may reach beyond the frame
LARGEST_PART = 2.0


def pad_people(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad the rows (people, n) of each clip with zeros to one tensor (B, P, n), and return its mask (B, P) too.

    Raises:
        ValueError: if the rows of a clip are not a matrix, or their lengths n differ.
    """
    shapes = {tuple(clip.shape[1:]) if clip.dim() == 2 else None for clip in rows}
    if len(shapes) != 1 or None in shapes:
        found = ", ".join(str(tuple(clip.shape)) for clip in rows) or "none"
        raise ValueError(f"Each clip needs a matrix (people, n) with the same n; the shapes are {found}.")
    counts = torch.tensor([len(clip) for clip in rows], device=rows[0].device)
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return padded, torch.arange(padded.shape[1], device=rows[0].device) < counts[:, None]


def as_pixels(boxes, unit: str, height: int, width: int) -> torch.Tensor:
    """Boxes (P, 4) of one frame in pixels, from pixels or relative boxes.

    Args:
        boxes: tensor, array or nested list.
        unit: `"relative"` or `"pixels"`.
        height, width: pixels of the frame.

    Raises:
        ValueError: if they are not (P, 4), end before they begin, or have the other unit.
    """
    if not isinstance(boxes, torch.Tensor):
        boxes = torch.tensor(np.asarray(boxes, dtype=np.float32))
    boxes = boxes.float()
    boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"The boxes of a video must be (people, 4), got {tuple(boxes.shape)}.")
    is_bad = ~(boxes[:, :2] < boxes[:, 2:]).all(dim=1)
    if is_bad.any():
        box = ", ".join(f"{edge:g}" for edge in boxes[is_bad][0].tolist())
        raise ValueError(f"The box {box} ends before it begins: give x1, y1, x2, y2.")
    largest = boxes.abs().max().item() if len(boxes) else 0.0
    if unit == "relative" and largest > LARGEST_PART:
        raise ValueError(f"A box has the coordinate {largest:g}, relative ones are in [0, 1]: pass box_unit='pixels'.")
    if unit == "pixels" and len(boxes) and largest <= 1 < min(height, width):
        raise ValueError(f"No box has a coordinate above {largest:g}: pass box_unit='relative' if they are in [0, 1].")
    return boxes * boxes.new_tensor([width, height] * 2) if unit == "relative" else boxes


def clip_boxes(boxes: torch.Tensor, height: float, width: float) -> torch.Tensor:
    """The parts of boxes (..., 4) inside a frame."""
    sizes = (width, height, width, height)
    return torch.stack([edge.clamp(0, size) for edge, size in zip(boxes.unbind(-1), sizes, strict=True)], dim=-1)


def enlarge_boxes(boxes: torch.Tensor, margin: Sequence[float], size: Sequence[int]) -> torch.Tensor:
    """Boxes (..., 4) enlarged by the parts `margin` (x, y) of their sides, inside frames of `size` (height, width)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    dx, dy = (x2 - x1) * (margin[0] / 2), (y2 - y1) * (margin[1] / 2)
    return clip_boxes(torch.stack([x1 - dx, y1 - dy, x2 + dx, y2 + dy], dim=-1), *size)


@dataclass(frozen=True)
class Placement:
    """The place of a frame in the input of a model: resized, then cropped.

    Args:
        original: (height, width) of the frame.
        size: (height, width) after resizing.
        offset: (top, left) of the crop in the resized frame.
    """

    original: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    def place(self, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes (P, 4) from pixels of the frame to pixels of the model's input."""
        return boxes * self._scale(boxes) - self._shift(boxes)

    def undo(self, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes (P, 4) from pixels of the model's input to pixels of the frame."""
        return (boxes + self._shift(boxes)) / self._scale(boxes)

    def _scale(self, boxes: torch.Tensor) -> torch.Tensor:
        y, x = (size / original for size, original in zip(self.size, self.original, strict=True))
        return boxes.new_tensor([x, y, x, y])

    def _shift(self, boxes: torch.Tensor) -> torch.Tensor:
        top, left = self.offset
        return boxes.new_tensor([left, top, left, top])


__all__ = ["Placement", "as_pixels", "clip_boxes", "enlarge_boxes", "pad_people"]
