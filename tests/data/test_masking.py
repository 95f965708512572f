"""Tube, random, multi-block and attention-guided masks: how many patches, which ones, and refused ratios."""

import math
import re
from functools import partial

import pytest
import torch

from mvd_hf import MVDConfig
from mvd_hf.data.masking import (
    BLOCK_ASPECTS,
    BLOCKS,
    MASKS,
    attention_masks,
    block_mask,
    block_size,
    block_union,
    mask_sampler,
    part_to_decode,
    random_mask,
    several_masks,
    tube_mask,
)

GRID = (4, 5, 6)
RATIOS = (0.1, 0.5, 0.75, 0.9)


def test_tube_hides_the_same_places_at_all_times():
    for ratio in RATIOS:
        mask = tube_mask(GRID, ratio)
        assert mask.shape == (120,)
        assert mask.dtype == torch.bool
        times = mask.view(4, 30)
        assert (times == times[0]).all()
        assert times[0].sum() == int(ratio * 30)


def test_random_mask_hides_its_part_of_all_patches_and_varies_over_time():
    for ratio in RATIOS:
        mask = random_mask(GRID, ratio)
        assert mask.shape == (120,)
        assert mask.dtype == torch.bool
        assert mask.sum() == int(ratio * 120)
        times = mask.view(4, 30)
        assert not (times == times[0]).all()


def test_count_is_the_one_that_the_configuration_promises():
    for ratio in RATIOS:
        for mask_type in [name for name in MASKS if name != "multi_block" or ratio > 0.8]:
            config = MVDConfig(image_size=(80, 96), num_frames=8, mask_type=mask_type, mask_ratio=ratio)
            mask = MASKS[mask_type](config.grid, ratio)
            assert len(mask) == config.num_patches
            assert mask.sum() == config.num_masked_patches


def test_generator_decides_the_mask_and_the_global_state_stays():
    for mask_type in MASKS:
        state = torch.get_rng_state()
        first, again = (
            [MASKS[mask_type](GRID, 0.95, torch.Generator().manual_seed(seed)) for seed in range(8)] for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert len({tuple(mask.tolist()) for mask in first}) > 4
        assert torch.equal(torch.get_rng_state(), state)


def test_every_patch_is_hidden_equally_often():
    for mask_type in ["tube", "random"]:
        generator, draws = torch.Generator().manual_seed(0), 4000
        often = sum(MASKS[mask_type](GRID, 0.75, generator).int() for _ in range(draws)) / draws
        expected = {"tube": 22 / 30, "random": 0.75}[mask_type]
        # five standard deviations of a frequency over 4000 draws
        assert (often - expected).abs().max() < 5 * (expected * (1 - expected) / draws) ** 0.5


def test_ratio_that_hides_nothing_or_everything_is_refused_by_value():
    for mask_type in MASKS:
        for ratio in [-0.5, 0.0, 0.005, 1.0, 1.5]:
            with pytest.raises(ValueError, match=re.escape(f"mask ratio of {ratio} ")):
                MASKS[mask_type](GRID, ratio)


def test_several_masks_are_those_drawn_one_after_the_other():
    for mask_type in ["tube", "random"]:
        draw = partial(MASKS[mask_type], GRID, 0.75)
        masks = several_masks(draw, 3, torch.Generator().manual_seed(5))
        generator = torch.Generator().manual_seed(5)
        assert torch.equal(masks, torch.stack([draw(generator=generator) for _ in range(3)]))
        assert len(masks.unique(dim=0)) == 3


def test_a_part_of_the_hidden_patches_is_drawn_for_each_mask():
    for shape in [(120,), (3, 120)]:
        mask = several_masks(partial(tube_mask, GRID, 0.75), 3, torch.Generator().manual_seed(5)).view(-1)
        mask = mask[: torch.Size(shape).numel()].view(shape)
        chosen = part_to_decode(mask, 11, torch.Generator().manual_seed(0))
        assert chosen.shape == mask.shape
        assert chosen.dtype == torch.bool
        assert (chosen.sum(-1) == 11).all()
        assert not (chosen & ~mask).any()
        assert torch.equal(chosen, part_to_decode(mask, 11, torch.Generator().manual_seed(0)))
        assert not torch.equal(chosen, part_to_decode(mask, 11, torch.Generator().manual_seed(1)))
        masked = int(mask.view(-1, 120)[0].sum())
        assert torch.equal(part_to_decode(mask, masked), mask)


def test_every_hidden_patch_is_drawn_equally_often():
    mask = torch.tensor([True] * 6 + [False] * 2)
    generator = torch.Generator().manual_seed(0)
    often = sum(part_to_decode(mask, 2, generator).int() for _ in range(3000))
    assert often[6:].tolist() == [0, 0]
    assert (often[:6] - 1000).abs().max() < 120  # more than 4 standard deviations


def test_more_than_what_is_hidden_cannot_be_chosen():
    for count in [0, 91]:
        with pytest.raises(ValueError, match=f"Of 88 masked patches {count} cannot be chosen; choose 1 to 88"):
            part_to_decode(tube_mask(GRID, 0.75), count)


def covered_parts(length: int, side: int) -> torch.Tensor:
    """Chance of each of `length` places to lie in a side of `side` places that is put anywhere with equal chances."""
    starts = range(length - side + 1)
    return torch.tensor(
        [sum(start <= place < start + side for start in starts) / len(starts) for place in range(length)]
    )


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_cover_each_place_as_often_as_the_closed_form_says(kind):
    """1 - (1 - p)^n for n blocks, p the mean over aspect ratios of the product of both sides' chances."""
    rows, columns, draws = 8, 10, 4000
    count, scale = BLOCKS[kind]
    aspects = torch.linspace(*BLOCK_ASPECTS, 2001).tolist()
    sizes = [block_size(rows, columns, scale, aspect) for aspect in aspects]
    parts = [torch.outer(covered_parts(rows, height), covered_parts(columns, width)) for height, width in sizes]
    expected = 1 - (1 - torch.stack(parts).mean(0)) ** count
    generator = torch.Generator().manual_seed(0)
    often = sum(block_union(rows, columns, kind, generator).float() for _ in range(draws)) / draws
    assert (often - expected).abs().max() < 5 * 0.5 / draws**0.5
    assert often.mean().item() == pytest.approx(expected.mean().item(), abs=0.01)


@pytest.mark.parametrize("kind", BLOCKS)
def test_no_visible_patch_lies_in_a_block_and_every_mask_has_its_count(kind, monkeypatch):
    blocks = []

    def recorded(*args):
        blocks.append(block_union(*args))
        return blocks[-1]

    monkeypatch.setattr("mvd_hf.data.masking.block_union", recorded)
    generator = torch.Generator().manual_seed(0)
    for ratio in (0.85, 0.9, 0.95):
        mask = block_mask((4, 14, 14), ratio, kind, generator).view(4, 14, 14)
        assert mask.sum() == int(ratio * 4 * 196)
        assert mask[:, blocks[-1]].all()
        assert not (mask == mask[0]).all()  # the patches that are left visible are drawn at each time


def test_several_multi_block_masks_have_both_ranges_in_turn(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "mvd_hf.data.masking.block_mask",
        lambda grid, ratio, kind, generator: drawn.append(kind) or torch.zeros(math.prod(grid), dtype=torch.bool),
    )
    firsts = set()
    for seed in range(20):
        drawn.clear()
        masks = mask_sampler("multi_block", GRID, 0.9, 4)(generator=torch.Generator().manual_seed(seed))
        assert masks.shape == (4, 120)
        assert drawn in (["short", "long"] * 2, ["long", "short"] * 2)
        firsts.add(drawn[0])
    assert firsts == {"short", "long"}


def test_a_ratio_below_what_blocks_cover_is_refused():
    with pytest.raises(ValueError, match=r"mask ratio of 0\.1 .* mask_ratio"):
        block_mask((2, 14, 14), 0.1, "long")


def test_patches_are_visible_as_often_as_sequential_draws_by_attention_say():
    """Of 4 patches 2 are visible: p_i + sum over j of p_j p_i / (1 - p_j), at each time by its own attention."""
    draws, grid = 4000, (2, 2, 2)
    attention = torch.tensor([[0.1, 0.2, 0.3, 0.4, 5.0, 1.0, 1.0, 3.0]])
    draw = mask_sampler("attention", grid, 0.5, draws)
    masks = attention_masks(attention, draw(generator=torch.Generator().manual_seed(0))[None], grid, 0.5)
    visible = ~masks[0].view(draws, 2, 4)
    assert (visible.sum(-1) == 2).all()
    p = attention.view(2, 4) / attention.view(2, 4).sum(-1, keepdim=True)
    odds = p / (1 - p)
    expected = p + p * (odds.sum(-1, keepdim=True) - odds)
    assert (visible.float().mean(0) - expected).abs().max() < 5 * 0.5 / draws**0.5


def test_attention_masks_at_a_ratio_without_patches_are_refused():
    with pytest.raises(ValueError, match=r"0\.01"):
        mask_sampler("attention", GRID, 0.01)(generator=torch.Generator())
