"""The grid of patches of a clip: positions, masks, cutting pixels into patches, and the pixel targets of stage 1.

Letters in shapes: B clips, T frames, C channels, H x W pixels; t x h x w the grid of patches, L = t*h*w patches,
of which M are masked and V = L - M visible; D their width.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import torch

from .configuration_mvd import MVDConfig


def sincos(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Sin-cos code of positions (n,) as (n, width): all sines, then all cosines, frequencies 10000^(-2i/width)."""
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width / 2))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def position_table(kind: str, grid: tuple[int, int, int], width: int) -> torch.Tensor:
    """Fixed position code of every patch: (L, width) float32, patches in (time, row, column) order.

    `spacetime` (MVD): a quarter of the channels for time, then 3/8 for the column, 3/8 for the row. `space` (MAE):
    half for the column, half for the row, the same at all times. `flat` (VideoMAE): sines and cosines of the
    flattened index, interleaved. Computed in float64 at integer positions, for any grid.
    """
    time, rows, columns = (torch.arange(size, dtype=torch.float64, device="cpu") for size in grid)
    if kind == "flat":
        index = torch.arange(grid[0] * grid[1] * grid[2], dtype=torch.float64, device="cpu")
        return sincos(index, width).view(-1, 2, width // 2).transpose(1, 2).flatten(1).float()
    time, row, column = (axis.flatten() for axis in torch.meshgrid(time, rows, columns, indexing="ij"))
    if kind == "space":
        return torch.cat([sincos(column, width // 2), sincos(row, width // 2)], dim=1).float()
    spatial = 3 * width // 8
    return torch.cat([sincos(time, width // 4), sincos(column, spatial), sincos(row, spatial)], dim=1).float()


def split_mask(bool_masked_pos: torch.Tensor, num_masked: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending indices of the visible patches (B, V) and of the masked ones (B, M), for `num_masked` = M per clip.

    The count is a Python number, so shapes are static: no boolean indexing, no synchronisation with the device.

    Raises:
        RuntimeError: (on a GPU a device-side assertion) if a row of the mask does not mask `num_masked` patches.
    """
    torch._assert_async(
        (bool_masked_pos.sum(dim=1) == num_masked).all(),
        f"every row of bool_masked_pos must mask {num_masked} patches",
    )
    order = bool_masked_pos.to(torch.uint8).argsort(dim=1, stable=True)
    return order.tensor_split([bool_masked_pos.shape[1] - num_masked], dim=1)


def decoded_ids(bool_masked_pos: torch.Tensor, bool_decoded_pos: torch.Tensor, num_decoded: int) -> torch.Tensor:
    """Ascending indices (B, K) of the masked patches to decode, of masks (B, L), for `num_decoded` = K per clip.

    Raises:
        ValueError: if the shapes differ.
        RuntimeError: (on a GPU a device-side assertion) if a row does not choose `num_decoded` masked patches.
    """
    if bool_decoded_pos.shape != bool_masked_pos.shape or bool_decoded_pos.dtype != torch.bool:
        raise ValueError(
            f"bool_decoded_pos must be {tuple(bool_masked_pos.shape)} bool like bool_masked_pos, got "
            f"{tuple(bool_decoded_pos.shape)} {bool_decoded_pos.dtype}."
        )
    decoded = bool_decoded_pos & bool_masked_pos
    torch._assert_async(
        ((decoded.sum(dim=1) == num_decoded) & (bool_decoded_pos.sum(dim=1) == num_decoded)).all(),
        f"every row of bool_decoded_pos must choose {num_decoded} masked patches",
    )
    return decoded.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :num_decoded]


def select_tokens(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Tokens (B, L, D) at ids (B, n), as (B, n, D)."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def split_patches(pixel_values: torch.Tensor, tubelet_size: int, patch_size: int) -> torch.Tensor:
    """View of a clip (B, T, C, H, W) as patches (B, t, h, w, tubelet, C, patch, patch)."""
    batch, frames, channels, height, width = pixel_values.shape
    patches = pixel_values.reshape(
        batch,
        frames // tubelet_size,
        tubelet_size,
        channels,
        height // patch_size,
        patch_size,
        width // patch_size,
        patch_size,
    )
    return patches.permute(0, 1, 4, 6, 2, 3, 5, 7)


def pixel_targets(pixel_values: torch.Tensor, config: MVDConfig) -> torch.Tensor:
    """What stage 1 reconstructs: (B, L, tubelet * patch * patch * C) from clips (B, T, C, H, W).

    Values of a patch are in (frame, row, column, channel) order. With `norm_pix_loss`, `pixel_target="videomae"`
    standardises every patch and channel of the pixels in [0, 1], (x - mean) / (std + 1e-6), and `"mae"` every patch
    of the normalised pixels over all channels, (x - mean) / sqrt(var + 1e-6), variances unbiased: as the official
    programs do.

    Args:
        pixel_values: uint8 pixels or normalised floats.
        config: the model's configuration.
    """
    device = pixel_values.device
    mean, std = (  # made on the CPU and sent: made on the device, they would be waited for
        torch.tensor(value, dtype=torch.float32, device="cpu").view(-1, 1, 1).to(device, non_blocking=True)
        for value in (config.image_mean, config.image_std)
    )
    in_unit_range = not pixel_values.is_floating_point()
    pixel_values = pixel_values.float() / 255 if in_unit_range else pixel_values.float()
    if config.pixel_target == "videomae" and not in_unit_range:
        pixel_values = pixel_values * std + mean
    elif config.pixel_target == "mae" and in_unit_range:
        pixel_values = (pixel_values - mean) / std
    patches = split_patches(pixel_values, config.tubelet_size, config.patch_size)
    patches = patches.permute(0, 1, 2, 3, 4, 6, 7, 5).flatten(4, 6).flatten(1, 3)  # B, L, pixels, C
    if not config.norm_pix_loss:
        return patches.flatten(2)
    if config.pixel_target == "videomae":
        std, mean = torch.std_mean(patches, dim=2, keepdim=True)
        return ((patches - mean) / (std + 1e-6)).flatten(2)
    patches = patches.flatten(2)
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


__all__ = ["decoded_ids", "pixel_targets", "position_table", "select_tokens", "split_mask", "split_patches"]
