"""Masked patches as a masked autoencoder (VideoMAE or MAE) reconstructs them.

Letters in shapes: B clips, T frames, C channels, H x W pixels; t x h x w the grid of patches, L = t*h*w patches, of
which M are masked; P values of a patch (frames x rows x columns x C).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.masking import MASKS, Grid
from ..hub.loading import read_stored_config
from ..model.configuration_mvd import MVDConfig
from ..model.modeling_mvd import MVDForPixelReconstruction
from ..model.patches_mvd import patch_grid, split_patches
from .features import ClipFigureArguments, crop_frames
from .strips import draw_strips, film_frames

# brightness of masked patches
MASK_BRIGHTNESS = 118
NOTE = "masked patches: predicted pattern with the mean and contrast of the truth"


def denormalize_targets(values: torch.Tensor, clips: torch.Tensor, config: MVDConfig) -> torch.Tensor:
    """Pixels (B, L, P) in [0, 1] from the predictions of stage 1 (B, L, P): the inverse of `pixel_targets`.

    If targets are normalized per patch (`norm_pix_loss`), the model predicts no mean and standard deviation, and those
    of the true patch are used, as is usual in figures of masked autoencoders. These figures show the predicted pattern
    in the true brightness, contrast and, as VideoMAE normalizes each channel, color.

    Args:
        values: in the order of `pixel_targets`.
        clips: the true pixels (B, T, C, H, W) uint8.
        config: the model's configuration.
    """
    pixels = clips.float() / 255
    channel_mean, channel_std = (
        torch.as_tensor(value, dtype=torch.float32, device=clips.device).view(-1, 1, 1)
        for value in (config.image_mean, config.image_std)
    )
    is_mae = config.pixel_target == "mae"
    truth = split_patches(
        (pixels - channel_mean) / channel_std if is_mae else pixels, config.tubelet_size, config.patch_size
    )
    truth = truth.permute(0, 1, 2, 3, 4, 6, 7, 5).flatten(4, 6).flatten(1, 3)  # B, L, pixels, C
    values = values.float().view(truth.shape)
    if config.norm_pix_loss and is_mae:
        variance, mean = torch.var_mean(truth, dim=(2, 3), keepdim=True)
        values = values * (variance + 1e-6).sqrt() + mean
    elif config.norm_pix_loss:
        std, mean = torch.std_mean(truth, dim=2, keepdim=True)
        values = values * (std + 1e-6) + mean
    if is_mae:
        values = values * channel_std.flatten() + channel_mean.flatten()
    return values.flatten(2)


def join_patches(patches: torch.Tensor, grid: Grid, config: MVDConfig) -> torch.Tensor:
    """Clips (B, T, C, H, W) from patches (B, L, P) whose values are in (frame, row, column, channel) order."""
    side, channels = config.patch_size, config.num_channels
    blocks = patches.view(-1, *grid, config.tubelet_size, side, side, channels)
    blocks = blocks.permute(0, 1, 4, 7, 2, 5, 3, 6)  # B, t, frame, C, h, row, w, column
    return blocks.flatten(6, 7).flatten(4, 5).flatten(1, 2)


def masked_pixels(mask: torch.Tensor, grid: Grid, tubelet_size: int, patch_size: int) -> torch.Tensor:
    """The masked pixels (B, T, H, W) of a patch mask (B, L)."""
    mask = mask.unflatten(1, grid).repeat_interleave(tubelet_size, 1)
    return mask.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)


@dataclass
class Reconstruction:
    """A clip, its visible patches and the reconstruction, each (T, H, W, 3) uint8.

    Args:
        truth: the clip.
        masked: the clip with grey masked patches.
        predicted: the clip with predicted masked patches.
        loss: the model's mean squared error, in the units of its targets.
    """

    truth: np.ndarray
    masked: np.ndarray
    predicted: np.ndarray
    loss: float


@torch.no_grad()
def reconstruct(model: MVDForPixelReconstruction, frames: torch.Tensor, mask: torch.Tensor) -> Reconstruction:
    """Predict the masked patches of a clip with a model of stage 1.

    Args:
        model: VideoMAE, or MAE, which reconstructs each frame by itself.
        frames: (T, C, H, W) uint8, T a multiple of the model's frames.
        mask: (T / model's frames, L) bool, True for a masked patch.

    Raises:
        ValueError: if the frames do not fill the model's clips, or the mask does not fit.
    """
    config = model.config
    if len(frames) % config.num_frames:
        raise ValueError(f"{len(frames)} frames do not fill clips of {config.num_frames}.")
    clips = frames.unflatten(0, (-1, config.num_frames)).to(model.device)
    mask = mask.to(model.device)
    grid = patch_grid(clips, config)
    output = model(clips, bool_masked_pos=mask)
    values = torch.zeros(*mask.shape, output.logits.shape[-1], device=model.device)
    values[mask] = output.logits.float().flatten(0, 1)
    predicted = join_patches(denormalize_targets(values, clips, config), grid, config)
    predicted = (255 * predicted.clamp(0, 1)).round().to(torch.uint8)
    is_masked = masked_pixels(mask, grid, config.tubelet_size, config.patch_size)[:, :, None]
    videos = clips, clips.masked_fill(is_masked, MASK_BRIGHTNESS), torch.where(is_masked, predicted, clips)
    return Reconstruction(
        *(video.flatten(0, 1).permute(0, 2, 3, 1).cpu().numpy() for video in videos), float(output.loss)
    )


@dataclass
class ReconstructionArguments(ClipFigureArguments):
    """The masked autoencoder that reconstructs a clip, as a recipe's keys.

    Args:
        model: folder or Hub id of a model of stage 1 with its decoder.
        num_frames: frames of the clip if the model is an image model.
        mask_ratio: part of the patches that is masked; by default as in training.
        seed: seed of the mask.
    """

    model: str = ""
    num_frames: int = 8
    mask_ratio: float | None = None
    seed: int = 0
    output: str = "outputs/figures/reconstruction.png"


def draw_masks(config: MVDConfig, num_clips: int, ratio: float | None, seed: int) -> torch.Tensor:
    """Masks (clips, L) of the kind, and by default with the ratio, of the model's training."""
    generator = torch.Generator().manual_seed(seed)
    ratio = config.mask_ratio if ratio is None else ratio
    return torch.stack([MASKS[config.mask_type](config.grid, ratio, generator) for _ in range(num_clips)])


def load_autoencoder(source: str, device: str = "cpu") -> MVDForPixelReconstruction:
    """A model of stage 1; raises ValueError if a checkpoint has another stage, as only stage 1 predicts pixels."""
    kinds = read_stored_config(source).get("architectures") or [MVDForPixelReconstruction.__name__]
    if MVDForPixelReconstruction.__name__ not in kinds:
        raise ValueError(
            f"The model {source!r} is a {kinds[0]}, which predicts no pixels: give a masked autoencoder, as "
            "recipes/pretrain.py trains and recipes/convert.py converts."
        )
    return MVDForPixelReconstruction.from_pretrained(source, dtype=torch.float32).to(device)


def write_reconstruction(arguments: ReconstructionArguments) -> list[Path]:
    """Draw a clip, its visible patches and their reconstruction as figure, arrays and film; returns the paths.

    Raises:
        ValueError: if no model is given, the model is not one of stage 1, or the clip cannot be read.
    """
    if not arguments.model:
        raise ValueError("Nothing to draw: give --model with a model of stage 1.")
    arguments.check_paths([arguments.model])
    model = load_autoencoder(arguments.model, arguments.device)
    config = model.config
    num_frames = arguments.num_frames if config.num_frames == 1 else config.num_frames
    frames, seconds = arguments.read_clip(num_frames)
    mask = draw_masks(config, num_frames // config.num_frames, arguments.mask_ratio, arguments.seed)
    result = reconstruct(model, crop_frames(frames, config.frame_size), mask)
    strips = {"clip": result.truth, "visible": result.masked, "predicted": result.predicted}
    titles = [f"{second:.2f} s" for second in seconds]
    note = NOTE if config.norm_pix_loss else "masked patches: as predicted"
    heading = f"{100 * mask.float().mean():.0f} % masked, loss {result.loss:.3f}\n{note}"
    figure = draw_strips(strips, titles, heading)
    return arguments.write(figure, film_frames(strips, titles), mask=mask.numpy(), loss=result.loss, **strips)
