"""Features of a teacher whose grid of patches differs from the student's."""

from collections.abc import Sequence

import torch
from torch import nn


def can_resize(grid: Sequence[int], target: Sequence[int]) -> bool:
    """Whether along each axis one of two grids divides the other."""
    return all(min(pair) > 0 and max(pair) % min(pair) == 0 for pair in zip(grid, target, strict=True))


def resize_features(features: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """Features (B, t, h, w, D) on another grid: finer axes are averaged, then coarser ones interpolated linearly.

    Multi-teacher distillation resizes features in this way, as RADIO (arXiv 2312.06709) does along rows and columns.
    """
    dtype, channels_first = features.dtype, features.movedim(-1, 1).float()
    factors = [max(1, size // wanted) for size, wanted in zip(features.shape[1:4], grid, strict=True)]
    averaged = nn.functional.avg_pool3d(channels_first, factors)
    if tuple(averaged.shape[2:]) != tuple(grid):
        averaged = nn.functional.interpolate(averaged, size=grid, mode="trilinear", align_corners=False)
    return averaged.movedim(1, -1).to(dtype)
