"""Resizing and cropping of frames, exactly as in the tests of the paper (arXiv 2212.04500).

A size is the side of a square, or (height, width), in pixels.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import torch

from .configuration_mvd import Size, height_and_width

Taps = tuple[torch.Tensor, torch.Tensor]


def bilinear_taps(old: int, new: int, is_width: bool) -> Taps:
    """For each new pixel of a line the two old pixels (2, new) that it mixes, and their weights in 1/2048."""
    place = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).float()
    before = place.floor()
    fraction = place - before
    if is_width:  # OpenCV mixes border rows with themselves, which rounds, but takes border columns as they are
        fraction = fraction.where((before >= 0) & (before < old - 1), 0.0)
    pixels = torch.stack([before, before + 1]).long().clamp_(0, old - 1)
    return pixels, (2048 * torch.stack([1 - fraction, fraction])).round().int()


def blend(frames: torch.Tensor, columns: Taps, rows: Taps) -> torch.Tensor:
    """Weighted sums of pixels of uint8 frames over columns, then over rows, with the integer arithmetic of OpenCV."""
    left, right = (
        frames.index_select(-1, pixels).int().mul_(weights) for pixels, weights in zip(*columns, strict=True)
    )
    wide = left.add_(right).bitwise_right_shift_(4)
    upper, lower = (
        wide.index_select(-2, pixels).mul_(weights[:, None]).bitwise_right_shift_(16)
        for pixels, weights in zip(*rows, strict=True)
    )
    return upper.add_(lower).add_(2).bitwise_right_shift_(2).clamp_(0, 255).to(torch.uint8)


def resize_bilinear(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize frames (n, C, H, W) to (n, C, height, width), bilinearly and without antialiasing.

    The dtype stays. uint8 results equal those of `INTER_LINEAR` of OpenCV, which the official programs use, exactly.
    Frames that have the size already are not copied.
    """
    if (height, width) == frames.shape[-2:]:
        return frames
    if frames.is_floating_point():
        return torch.nn.functional.interpolate(frames, (height, width), mode="bilinear")
    old_height, old_width = frames.shape[-2:]
    columns, rows = (
        tuple(part.to(frames.device) for part in bilinear_taps(old, new, is_width))
        for old, new, is_width in ((old_width, width, True), (old_height, height, False))
    )
    # one frame at a time: its sums stay in the cache of the CPU, which more than halves the time
    return torch.cat([blend(frame, columns, rows) for frame in frames.split(1)])


def resize_short_side(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Frames (n, C, H, W) resized so that the short side has `size` pixels; see [`resize_bilinear`].

    The long side is rounded down.
    """
    return resize_bilinear(frames, *short_side_size(*frames.shape[-2:], size))


def short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) of a frame whose short side is resized to `size`; the long one is rounded down."""
    short = min(height, width)
    return size * height // short, size * width // short


def covering_size(height: int, width: int, short_side: int, crop: Size) -> tuple[int, int]:
    """(height, width) as by [`short_side_size`], or larger, so that a crop that is not square just fits.

    A crop whose own short side is larger than `short_side` does not count.
    """
    resized = short_side_size(height, width, short_side)
    crop_height, crop_width = height_and_width(crop)
    if (crop_height <= resized[0] and crop_width <= resized[1]) or min(crop_height, crop_width) > short_side:
        return resized
    if height * crop_width > width * crop_height:
        return height * crop_width // width, crop_width
    return crop_height, width * crop_height // height


def crop_offsets(height: int, width: int, size: Size, num_crops: int = 1) -> list[tuple[int, int]]:
    """(top, left) of the centre crop of a frame, or of several crops evenly spread along the side with more room.

    Args:
        height, width: pixels of the frame.
        size: pixels of the crop.
        num_crops: number of crops: one as in the official validation, several as in the official test.

    Raises:
        ValueError: if the crop is larger than the frame, or `num_crops` is below one.
    """
    crop_height, crop_width = height_and_width(size)
    if num_crops < 1:
        raise ValueError(f"num_crops={num_crops} must be at least 1.")
    if crop_height > height or crop_width > width:
        raise ValueError(
            f"A crop of {crop_height}x{crop_width} (height x width) does not fit into frames of {height}x{width}; "
            f"resize them to a larger size, or choose a smaller crop_size."
        )
    free = (height - crop_height, width - crop_width)
    centre = (round(free[0] / 2), round(free[1] / 2))
    if num_crops == 1:
        return [centre]
    along_height = free[0] >= free[1]
    step = free[0 if along_height else 1] / (num_crops - 1)
    starts = [int(crop * step) for crop in range(num_crops)]
    return [(start, centre[1]) if along_height else (centre[0], start) for start in starts]


__all__ = [
    "covering_size",
    "crop_offsets",
    "resize_bilinear",
    "resize_short_side",
    "short_side_size",
]
