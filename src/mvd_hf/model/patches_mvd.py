"""The patches of a clip: position embeddings, masks, pixels of patches, and the pixel targets of stage 1.

Letters in shapes: B clips, T frames, C channels, H x W pixels; t x h x w the grid of patches, L = t*h*w patches,
of which M are masked and V = L - M visible; D their width.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import torch

from .configuration_mvd import MVDConfig


def patch_grid(pixel_values: torch.Tensor, config: MVDConfig) -> tuple[int, int, int]:
    """Grid (t, h, w) of the patches of clips (B, T, C, H, W).

    Raises:
        ValueError: if the clips are of another type or shape, or the patches do not divide them.
    """
    if pixel_values.dim() != 5 or pixel_values.shape[2] != config.num_channels:
        raise ValueError(
            f"pixel_values must be (batch, frames, {config.num_channels} channels, height, width), "
            f"got {tuple(pixel_values.shape)}."
        )
    if not pixel_values.is_floating_point() and pixel_values.dtype != torch.uint8:
        raise ValueError(f"pixel_values must be uint8 pixels or normalised floats, got {pixel_values.dtype}.")
    _, frames, _, height, width = pixel_values.shape
    remainders = frames % config.tubelet_size, height % config.patch_size, width % config.patch_size
    if any(remainders) or 0 in (frames, height, width):
        raise ValueError(
            f"A clip of {frames} frames of {height}x{width} pixels cannot be cut into patches of "
            f"{config.tubelet_size} frames x {config.patch_size} x {config.patch_size} pixels; "
            "make each size a positive multiple of the patch."
        )
    return frames // config.tubelet_size, height // config.patch_size, width // config.patch_size


def sincos(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Embeddings (n, width) of positions (n,): all sines, then all cosines, of frequencies 10000^(-2i/width)."""
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width / 2))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def position_table(kind: str, grid: tuple[int, int, int], width: int) -> torch.Tensor:
    """Fixed position embeddings of all patches: (L, width) float32, patches in (time, row, column) order.

    `spacetime` (MVD) is separable: a quarter of the channels for the time, 3/8 for the column, 3/8 for the row.
    `space` (MAE): half for the column, half for the row, the same at all times. `flat` (VideoMAE): sines and cosines
    of the flattened index, interleaved. Computed in float64 on the CPU, at integer positions, for any grid.
    """
    time, rows, columns = (torch.arange(size, dtype=torch.float64, device="cpu") for size in grid)
    if kind == "flat":
        index = torch.arange(grid[0] * grid[1] * grid[2], dtype=torch.float64, device="cpu")
        return sincos(index, width).view(-1, 2, width // 2).transpose(1, 2).flatten(1).float()
    time, row, column = (axis.flatten() for axis in torch.meshgrid(time, rows, columns, indexing="ij"))
    # the column comes before the row, as in MAE's published weights
    if kind == "space":
        return torch.cat([sincos(column, width // 2), sincos(row, width // 2)], dim=1).float()
    spatial = 3 * width // 8
    return torch.cat([sincos(time, width // 4), sincos(column, spatial), sincos(row, spatial)], dim=1).float()


def count_masked(
    bool_masked_pos: torch.Tensor | None, batch_size: int, grid: tuple[int, int, int], num_masked: int | None = None
) -> int:
    """The number of masked patches of each clip, read from the mask unless `num_masked` gives it.

    Raises:
        ValueError: if the mask is missing, does not fit the clips, or masks all or nothing.
    """
    length = grid[0] * grid[1] * grid[2]
    if bool_masked_pos is None:
        raise ValueError("bool_masked_pos (batch, patches) is missing; draw masks with mvd_hf.tube_mask.")
    if bool_masked_pos.shape != (batch_size, length) or bool_masked_pos.dtype != torch.bool:
        raise ValueError(
            f"bool_masked_pos must be ({batch_size}, {length}) bool for {batch_size} clips of {grid[0]}x{grid[1]}x"
            f"{grid[2]} patches, got {tuple(bool_masked_pos.shape)} {bool_masked_pos.dtype}."
        )
    if num_masked is None:
        counts = bool_masked_pos.sum(dim=1).unique().tolist()
        if len(counts) > 1:
            raise ValueError(
                f"All clips of a batch need equally many masked patches, but of {length} patches the masks have "
                f"{', '.join(map(str, counts))}."
            )
        num_masked = counts[0]
    if not 0 < num_masked < length:
        raise ValueError(f"{num_masked} of {length} patches are masked; mask at least one and leave one visible.")
    return num_masked


def split_mask(bool_masked_pos: torch.Tensor, num_masked: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending ids of the visible patches (B, V) and of the masked ones (B, M), for `num_masked` = M per clip.

    As the number is given, shapes are static: the graph needs no boolean index and no synchronisation with the device.

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
    """Ascending ids (B, K) of the masked patches to decode, for masks (B, L) and `num_decoded` = K per clip.

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
    """The targets of stage 1: (B, L, tubelet * patch * patch * C) from clips (B, T, C, H, W).

    Values of a patch are in (frame, row, column, channel) order. With `norm_pix_loss`, `pixel_target="videomae"`
    standardises each patch and channel of the pixels in [0, 1], (x - mean) / (std + 1e-6), and `"mae"` each patch of
    the normalised pixels over all channels, (x - mean) / sqrt(var + 1e-6), both with unbiased variances.

    Args:
        pixel_values: uint8 pixels or normalised floats.
        config: the model's configuration.
    """
    device = pixel_values.device
    mean, std = (  # created on the CPU: creating them on the device would synchronise with it
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


__all__ = [
    "count_masked",
    "decoded_ids",
    "patch_grid",
    "pixel_targets",
    "position_table",
    "select_tokens",
    "split_mask",
    "split_patches",
]
