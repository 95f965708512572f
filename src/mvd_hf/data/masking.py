"""Which patches pre-training hides: tube and random masks, drawn per clip with an explicit generator."""

from collections.abc import Callable

import torch

Grid = tuple[int, int, int]


def random_mask(grid: Grid, ratio: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Hide `int(ratio * L)` of the L = time * rows * columns patches: (L,) bool, True hides.

    Args:
        grid: patches of a clip, (time, rows, columns).
        ratio: part of the patches to hide.
        generator: source of randomness.

    Raises:
        ValueError: if the ratio hides no patch or every patch.
    """
    length = grid[0] * grid[1] * grid[2]
    hidden = int(ratio * length)
    if not 0 < hidden < length:
        raise ValueError(
            f"A mask ratio of {ratio} hides {hidden} of {length} patches; at least one must stay visible."
        )
    mask = torch.zeros(length, dtype=torch.bool)
    mask[torch.randperm(length, generator=generator)[:hidden]] = True
    return mask


def tube_mask(grid: Grid, ratio: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Hide the same `int(ratio * rows * columns)` places at all times (VideoMAE): (L,) bool, True hides.

    Arguments and errors as in [`random_mask`].
    """
    return random_mask((1, *grid[1:]), ratio, generator).repeat(grid[0])


def several_masks(
    draw: Callable[..., torch.Tensor], count: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Masks (count, L) of one clip, drawn one after the other by `draw(generator=)`."""
    return torch.stack([draw(generator=generator) for _ in range(count)])


def part_of_hidden(mask: torch.Tensor, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Choose `count` of the patches that a mask (..., L) hides, in each of its rows: (..., L) bool, True is chosen.

    Raises:
        ValueError: if a row hides fewer.
    """
    chosen = torch.zeros_like(mask)
    for hidden, row in zip(mask.view(-1, mask.shape[-1]), chosen.view(-1, mask.shape[-1]), strict=True):
        places = hidden.nonzero().squeeze(1)
        if not 0 < count <= len(places):
            raise ValueError(f"Of {len(places)} hidden patches {count} cannot be chosen; choose 1 to {len(places)}.")
        row[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    return chosen


MASKS: dict[str, Callable[[Grid, float, torch.Generator | None], torch.Tensor]] = {
    "tube": tube_mask,
    "random": random_mask,
}
