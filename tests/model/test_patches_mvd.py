"""Patches: position embeddings number by number, grids and masks that do not fit, pixel targets."""

import math

import pytest
import torch

from mvd_hf.model.patches_mvd import (
    count_masked,
    decoded_ids,
    patch_grid,
    pixel_targets,
    position_table,
    split_mask,
    split_patches,
)
from tiny_models import clips, ids_of, masks, some_of, tiny_config

KINDS = ["spacetime", "space", "flat"]
GRID = (2, 4, 4)


def reference_positions(kind: str, time: int, rows: int, columns: int, width: int) -> torch.Tensor:
    """The three position embeddings, number by number."""

    def embed(position, width):
        angles = [position * 10000 ** (-i / (width / 2)) for i in range(width // 2)]
        return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]

    table = []
    for t in range(time):
        for row in range(rows):
            for column in range(columns):
                if kind == "flat":
                    index = (t * rows + row) * columns + column
                    angles = [index / 10000 ** (2 * (j // 2) / width) for j in range(width)]
                    table.append([math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(angles)])
                elif kind == "space":
                    table.append(embed(column, width // 2) + embed(row, width // 2))
                else:
                    table.append(embed(t, width // 4) + embed(column, 3 * width // 8) + embed(row, 3 * width // 8))
    return torch.tensor(table)


@pytest.mark.parametrize("kind", KINDS)
def test_position_embeddings_are_the_published_formula(kind):
    for grid in ((2, 4, 4), (3, 6, 3)):
        table = position_table(kind, grid, 32)
        torch.testing.assert_close(table, reference_positions(kind, *grid, 32), atol=1e-6, rtol=0)


def test_position_embeddings_have_the_golden_values():
    table = position_table("spacetime", (8, 14, 14), 384)
    golden = {0: 0.84147, 48: 0.54030, 96: 0.14112, 168: -0.98999, 240: 0.90930, 312: -0.41615}
    # token 227: time 1, row 2, column 3
    assert {channel: round(table[227, channel].item(), 5) for channel in golden} == golden


@pytest.mark.parametrize(
    ("pixel_values", "named"),
    [
        (torch.zeros(2, 4, 3, 16, 16, dtype=torch.int64), "int64"),
        (torch.zeros(2, 3, 4, 16, 16), r"\(2, 3, 4, 16, 16\)"),
        (torch.zeros(4, 3, 16, 16), r"\(4, 3, 16, 16\)"),
        (torch.zeros(2, 5, 3, 16, 16), "5 frames of 16x16"),
        (torch.zeros(2, 4, 3, 18, 16), "4 frames of 18x16"),
        (torch.zeros(2, 4, 3, 16, 22), "4 frames of 16x22"),
        (torch.zeros(2, 0, 3, 16, 16), "0 frames of 16x16"),
    ],
    ids=["dtype", "channels", "dimensions", "frames", "height", "width", "no frames"],
)
def test_a_clip_that_the_patches_do_not_fit_is_refused_with_its_values(pixel_values, named):
    with pytest.raises(ValueError, match=named):
        patch_grid(pixel_values, tiny_config())
    assert patch_grid(clips(2, 6, 8, 20), tiny_config()) == (3, 2, 5)


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        (torch.arange(32) < torch.tensor([[24], [20]]), "20, 24"),
        (torch.zeros(2, 32, dtype=torch.bool), "0 of 32"),
        (torch.ones(2, 32, dtype=torch.bool), "32 of 32"),
        (torch.arange(33).expand(2, -1) < 24, r"\(2, 32\) .* 2x4x4 .*\(2, 33\)"),
        (torch.arange(32) < 24, r"\(2, 32\) .*\(32,\)"),
        (torch.arange(32).expand(3, -1) < 24, r"\(2, 32\) .*\(3, 32\)"),
        (torch.ones(2, 32), "float32"),
        (None, "bool_masked_pos"),
    ],
    ids=["unequal counts", "nothing", "all", "wrong length", "no batch", "three clips", "not bool", "missing"],
)
def test_a_mask_that_does_not_fit_is_refused_with_its_values(mask, named):
    with pytest.raises(ValueError, match=named):
        count_masked(mask, 2, GRID)
    assert count_masked(masks(), 2, GRID) == 24


@pytest.mark.parametrize("num_masked", [0, 32])
def test_announcing_that_nothing_or_everything_is_masked_is_refused(num_masked):
    with pytest.raises(ValueError, match=f"{num_masked} of 32"):
        count_masked(masks(), 2, GRID, num_masked)


def test_a_mask_is_split_into_ascending_ids():
    mask = masks()
    visible, masked = split_mask(mask, 24)
    assert torch.equal(visible, ids_of(~mask))
    assert torch.equal(masked, ids_of(mask))
    for announced in (23, 25):
        with pytest.raises(RuntimeError, match=f"{announced} "):
            split_mask(mask, announced)


def test_patches_to_decode_are_a_part_of_the_masked_ones():
    mask = masks()
    part = some_of(mask, 12)
    assert torch.equal(decoded_ids(mask, part, 12), ids_of(part))
    for wrong in (some_of(mask, 11), mask, ~mask, some_of(mask, 12) | ~mask):
        with pytest.raises(RuntimeError, match="12 "):
            decoded_ids(mask, wrong, 12)
    for wrong in (mask[:1], mask[:, :-1], mask.float()):
        with pytest.raises(ValueError, match=r"bool_decoded_pos must be \(2, 32\)"):
            decoded_ids(mask, wrong, 12)


def test_patches_are_in_time_row_column_order():
    clip = clips(1)
    patches = split_patches(clip, 2, 4)
    assert patches.shape == (1, 2, 4, 4, 2, 3, 4, 4)
    assert torch.equal(patches[0, 1, 2, 3], clip[0, 2:4, :, 8:12, 12:16])


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("pixel_target", ["videomae", "mae"])
def test_pixel_targets_of_bytes_and_of_normalised_floats_agree(pixel_target, norm_pix_loss):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    config = tiny_config(pixel_target=pixel_target, norm_pix_loss=norm_pix_loss, image_mean=mean, image_std=std)
    pixels = torch.randint(0, 256, (2, 4, 3, 16, 16), dtype=torch.uint8)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (mean, std))
    unit, normalised = pixels / 255, (pixels / 255 - mean) / std
    targets = pixel_targets(pixels, config)
    torch.testing.assert_close(targets, pixel_targets(normalised, config), atol=1e-4, rtol=1e-4)
    source = unit if pixel_target == "videomae" else normalised
    patch = source[1, 2:4, :, 8:12, 12:16].permute(0, 2, 3, 1).reshape(32, 3)  # time 1, row 2, column 3
    if norm_pix_loss:
        patch = (patch - patch.mean(dim=0)) / patch.std(dim=0) if pixel_target == "videomae" else patch
        patch = (patch - patch.mean()) / patch.std() if pixel_target == "mae" else patch
    torch.testing.assert_close(targets[1, 16 + 2 * 4 + 3], patch.flatten(), atol=1e-4, rtol=1e-4)
