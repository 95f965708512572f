"""What the families of teachers differ in: arguments of their forward passes, and changes for a grid of patches.

Letters in shapes: N inputs (clips, or images as clips of one frame), T frames, C channels, H x W pixels; t x h x w the
grid of patches, D their width.
"""

import math

import torch
from torch import nn

from ..model.patches_mvd import position_table, split_patches

Grid = tuple[int, int, int]


# the arguments of each family's forward pass, from normalized pixels (N, T, C, H, W) and the size of a patch


def clip_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For a video model."""
    return {"pixel_values": pixels}


def video_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For the encoder of V-JEPA 2 and for VideoPrism."""
    return {"pixel_values_videos": pixels}


def image_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For an image model that accepts every size (DINOv2, DINOv3)."""
    return {"pixel_values": pixels[:, 0]}


def interpolated_image_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For an image model that interpolates its positions on request."""
    return {"pixel_values": pixels[:, 0], "interpolate_pos_encoding": True}


def timm_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For a model of timm, whose tokens are wanted and not their mean."""
    return {"pixel_values": pixels[:, 0], "do_pooling": False}


def vit_mae_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For ViTMAE, which sorts its patches by noise: increasing noise keeps their order."""
    count = (pixels.shape[-2] // patch_size) * (pixels.shape[-1] // patch_size)
    noise = torch.arange(count, device=pixels.device, dtype=torch.float32).expand(pixels.shape[0], -1)
    return {**interpolated_image_inputs(pixels, patch_size), "noise": noise}


def naflex_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For SigLIP 2 of the NaFlex kind: flat patches, channels last.

    One grid stands for all images, so that the model resizes its positions once. It stays on the CPU, where the model
    reads it.
    """
    patches = split_patches(pixels, 1, patch_size)[:, 0, :, :, 0]  # (N, h, w, C, patch, patch)
    return {
        "pixel_values": patches.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2),
        "pixel_attention_mask": None,
        "spatial_shapes": torch.tensor([patches.shape[1:3]]),
    }


# changes to a model for a grid of patches, where its forward pass alone does not adapt


def use_official_epsilon(model: nn.Module):
    """Set the epsilon of layer norms to MAE's and VideoMAE's 1e-6 where transformers has its default of 1e-12."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and module.eps == 1e-12:
            module.eps = 1e-6


def fit_vit_mae(model: nn.Module, grid: Grid):
    """Mask nothing, and compute fixed positions for the grid at integer places, as MVD does.

    Positions that were trained are left to the model, which interpolates them.
    """
    use_official_epsilon(model)
    model.config.mask_ratio = 0.0
    embeddings = model.embeddings
    positions = embeddings.position_embeddings
    width, side = positions.shape[-1], math.isqrt(positions.shape[1] - 1)
    if (side, side) == grid[1:] or side * side != positions.shape[1] - 1:
        return
    fixed = position_table("space", (1, side, side), width)
    if positions.is_meta or torch.allclose(positions[0, 1:].float(), fixed, atol=1e-2):
        table = position_table("space", (1, *grid[1:]), width).to(positions)
        table = torch.cat([positions[:, :1], table[None]], dim=1)
        embeddings.position_embeddings = nn.Parameter(table, requires_grad=False)
        # transformers takes the positions of a rectangle for those of a square and would interpolate them
        embeddings.interpolate_pos_encoding = lambda *size: embeddings.position_embeddings


def fit_videomae(model: nn.Module, grid: Grid):
    """Compute the fixed positions for the grid, as a buffer that moves with the model."""
    use_official_epsilon(model)
    embeddings = model.embeddings
    patches = embeddings.patch_embeddings
    patches.image_size = tuple(size * patch for size, patch in zip(grid[1:], patches.patch_size, strict=True))
    patches.num_patches = embeddings.num_patches = math.prod(grid)
    del embeddings.position_embeddings
    table = position_table("flat", grid, model.config.hidden_size)[None]
    embeddings.register_buffer("position_embeddings", table, persistent=False)


def fit_vjepa2(model: nn.Module, grid: Grid):
    """Let the rotary positions count the rows and columns of the grid instead of the configured square crop's."""
    _, rows, columns = grid

    def position_ids(tokens: torch.Tensor, masks=None) -> tuple[torch.Tensor, ...]:
        """Time, row and column of each patch."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return place // (rows * columns), place % (rows * columns) // columns, place % columns

    for layer in model.layer:
        layer.attention.get_position_ids = position_ids


@torch.no_grad()
def fit_videoprism(model: nn.Module, grid: Grid):
    """Let VideoPrism interpolate its positions once, in float32, which not every device can do in half precision."""
    spatial, temporal = model.spatial_embeddings, model.temporal_embeddings
    height, width = (n * p for n, p in zip(grid[1:], spatial.patch_size, strict=True))
    spatial.patch_embeddings.image_size = (height, width)
    for part, count, sizes in ((spatial, grid[1] * grid[2], (height, width)), (temporal, grid[0], ())):
        positions = part.position_embeddings
        tokens = torch.empty(1, count, positions.shape[-1], device=positions.device)
        dtype = positions.dtype
        positions.data = part.float().interpolate_pos_encoding(tokens, *sizes).data
        part.to(dtype)


def fit_timm(model: nn.Module, grid: Grid):
    """Let timm resample its positions for the grid."""
    model = model.timm_model
    positions = model.pos_embed
    model.set_input_size(img_size=tuple(n * p for n, p in zip(grid[1:], model.patch_embed.patch_size, strict=True)))
    if positions is not None:
        positions.data, model.pos_embed = model.pos_embed.data, positions  # the parameter that was loaded
