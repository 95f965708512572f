"""The masks of pre-training, tube, random, multi-block and attention-guided, drawn with an explicit generator."""

import math
from collections.abc import Callable
from functools import partial

import torch

Grid = tuple[int, int, int]

# V-JEPA's masks (arXiv 2404.08471, section 3.2): how many blocks, and the part of a frame that each covers
BLOCKS = {"short": (8, 0.15), "long": (2, 0.7)}
# smallest and largest ratio of a block's height to its width
BLOCK_ASPECTS = (0.75, 1.5)
# draws of blocks until the wanted number of patches is left visible
BLOCK_ATTEMPTS = 1000
# key of the noise that a clip has in place of masks which follow the attention of a teacher
NOISE = "mask_noise"


def count_to_mask(length: int, ratio: float) -> int:
    """`int(ratio * length)`; raises ValueError if that is no patch or every patch."""
    num_masked = int(ratio * length)
    if not 0 < num_masked < length:
        raise ValueError(
            f"A mask ratio of {ratio} masks {num_masked} of {length} patches; choose a ratio that masks at least one "
            "and leaves at least one visible."
        )
    return num_masked


def random_mask(grid: Grid, ratio: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Mask `int(ratio * L)` of the L = time * rows * columns patches: (L,) bool, True for masked patches.

    Args:
        grid: patches of a clip, (time, rows, columns).
        ratio: part of the patches to mask.
        generator: source of randomness.

    Raises:
        ValueError: if the ratio masks no patch or every patch.
    """
    length = math.prod(grid)
    num_masked = count_to_mask(length, ratio)
    mask = torch.zeros(length, dtype=torch.bool)
    mask[torch.randperm(length, generator=generator)[:num_masked]] = True
    return mask


def tube_mask(grid: Grid, ratio: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Mask the same `int(ratio * rows * columns)` places at all times (VideoMAE): (L,) bool, True for masked patches.

    Arguments and errors as in [`random_mask`].
    """
    return random_mask((1, *grid[1:]), ratio, generator).repeat(grid[0])


def block_size(rows: int, columns: int, scale: float, aspect: float) -> tuple[int, int]:
    """Height and width in patches of a block that covers `scale` of a frame, at most the frame's."""
    area = scale * rows * columns
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(max(height, 1), rows), min(max(width, 1), columns)


def block_union(rows: int, columns: int, kind: str, generator: torch.Generator | None = None) -> torch.Tensor:
    """The places (rows, columns) bool that the blocks of a `short` or `long` range mask cover.

    The height of a block over its width is uniform in `BLOCK_ASPECTS`, its place is uniform within the frame.
    """
    covered = torch.zeros(rows, columns, dtype=torch.bool)
    count, scale = BLOCKS[kind]
    low, high = BLOCK_ASPECTS
    for _ in range(count):
        aspect = low + (high - low) * torch.rand((), generator=generator).item()
        height, width = block_size(rows, columns, scale, aspect)
        top = torch.randint(rows - height + 1, (), generator=generator)
        left = torch.randint(columns - width + 1, (), generator=generator)
        covered[top : top + height, left : left + width] = True
    return covered


def block_mask(grid: Grid, ratio: float, kind: str, generator: torch.Generator | None = None) -> torch.Tensor:
    """Mask blocks of one range over all times, and other patches at random up to `int(ratio * L)`: (L,) bool.

    Blocks that leave too few patches visible are drawn anew. V-JEPA shortens the visible patches of a batch to the
    smallest count and predicts the blocks alone; here the others are masked as well, so that each mask has its count.

    Raises:
        ValueError: if the ratio masks no patch or every patch, or is so low that the blocks do not leave its part.
    """
    time, rows, columns = grid
    num_visible = math.prod(grid) - count_to_mask(math.prod(grid), ratio)
    for _ in range(BLOCK_ATTEMPTS):
        free = (~block_union(rows, columns, kind, generator)).flatten().repeat(time).nonzero().squeeze(1)
        if len(free) >= num_visible:
            mask = torch.ones(math.prod(grid), dtype=torch.bool)
            mask[free[torch.randperm(len(free), generator=generator)[:num_visible]]] = False
            return mask
    raise ValueError(
        f"A mask ratio of {ratio} leaves {num_visible} patches visible, more than {kind}-range blocks leave free in "
        f"{rows}x{columns} patches: choose a higher mask_ratio, for example 0.9."
    )


def multi_block_masks(grid: Grid, ratio: float, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Masks (count, L) of one clip with short-range and long-range blocks in turn (V-JEPA); the first is drawn.

    Arguments and errors as in [`block_mask`].
    """
    kinds = list(BLOCKS)
    first = int(torch.randint(len(kinds), (), generator=generator))
    return torch.stack([block_mask(grid, ratio, kinds[(first + i) % len(kinds)], generator) for i in range(count)])


def multi_block_mask(grid: Grid, ratio: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Mask short-range or long-range blocks, drawn with equal chances (V-JEPA): (L,) bool, True for masked patches.

    Arguments and errors as in [`block_mask`].
    """
    return multi_block_masks(grid, ratio, 1, generator)[0]


def attention_noise(grid: Grid, ratio: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Noise (L,) from an exponential distribution, from which [`attention_masks`] makes the mask of a clip.

    Arguments and errors as in [`tube_mask`].
    """
    count_to_mask(math.prod(grid[1:]), ratio)
    return torch.empty(math.prod(grid)).exponential_(generator=generator)


def attention_masks(attention: torch.Tensor, noise: torch.Tensor, grid: Grid, ratio: float) -> torch.Tensor:
    """Masks in which patches of high attention are more likely to be visible (UMT, arXiv 2303.16058).

    `int(ratio * rows * columns)` patches are masked at each time. The others are drawn without replacement, with
    probabilities proportional to the attention: they are those of the largest attention / noise.

    Args:
        attention: (B, L), not negative, in any unit.
        noise: (B, L), or (B, m, L) for m masks of each clip, from [`attention_noise`].
        grid, ratio: as in [`tube_mask`].

    Returns:
        A bool tensor of the shape of the noise, True for masked patches.
    """
    num_visible = math.prod(grid[1:]) - count_to_mask(math.prod(grid[1:]), ratio)
    attention = attention if noise.dim() == attention.dim() else attention[:, None]
    scores = (attention.float() / noise).unflatten(-1, (grid[0], -1))
    visible = scores.topk(num_visible, dim=-1).indices
    return torch.ones_like(scores, dtype=torch.bool).scatter(-1, visible, False).flatten(-2)


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
    "multi_block": multi_block_mask,
}


def mask_sampler(kind: str, grid: Grid, ratio: float, masks_per_clip: int = 1) -> Callable[..., torch.Tensor]:
    """What draws the masks of a clip when called with `generator=`: (L,) bool, or (m, L) for m > 1 masks.

    For `attention` it draws their noise, see [`attention_masks`].
    """
    draw = partial(attention_noise if kind == "attention" else MASKS[kind], grid, ratio)
    if masks_per_clip == 1:
        return draw
    if kind == "multi_block":
        return partial(multi_block_masks, grid, ratio, masks_per_clip)
    return partial(several_masks, draw, masks_per_clip)
