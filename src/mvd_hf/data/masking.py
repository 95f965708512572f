"""The masks of pre-training, tube and random, drawn per clip with an explicit generator."""

from collections.abc import Callable

import torch

Grid = tuple[int, int, int]


def random_mask(grid: Grid, ratio: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Mask `int(ratio * L)` of the L = time * rows * columns patches: (L,) bool, True for masked patches.

    Args:
        grid: patches of a clip, (time, rows, columns).
        ratio: part of the patches to mask.
        generator: source of randomness.

    Raises:
        ValueError: if the ratio masks no patch or every patch.
    """
    length = grid[0] * grid[1] * grid[2]
    num_masked = int(ratio * length)
    if not 0 < num_masked < length:
        raise ValueError(
            f"A mask ratio of {ratio} masks {num_masked} of {length} patches; choose a ratio that masks at least one "
            "and leaves at least one visible."
        )
    mask = torch.zeros(length, dtype=torch.bool)
    mask[torch.randperm(length, generator=generator)[:num_masked]] = True
    return mask


def tube_mask(grid: Grid, ratio: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Mask the same `int(ratio * rows * columns)` places at all times (VideoMAE): (L,) bool, True for masked patches.

    Arguments and errors as in [`random_mask`].
    """
    return random_mask((1, *grid[1:]), ratio, generator).repeat(grid[0])


def several_masks(
    draw: Callable[..., torch.Tensor], count: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Masks (count, L) of one clip, drawn one after the other by `draw(generator=)`."""
    return torch.stack([draw(generator=generator) for _ in range(count)])


def part_to_decode(mask: torch.Tensor, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Choose the masked patches to decode, `count` in each row of a mask (..., L): (..., L) bool.

    Raises:
        ValueError: if a row masks fewer.
    """
    chosen = torch.zeros_like(mask)
    for masked, row in zip(mask.view(-1, mask.shape[-1]), chosen.view(-1, mask.shape[-1]), strict=True):
        places = masked.nonzero().squeeze(1)
        if not 0 < count <= len(places):
            raise ValueError(f"Of {len(places)} masked patches {count} cannot be chosen; choose 1 to {len(places)}.")
        row[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    return chosen


MASKS: dict[str, Callable[[Grid, float, torch.Generator | None], torch.Tensor]] = {
    "tube": tube_mask,
    "random": random_mask,
}
