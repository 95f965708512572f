"""What teachers and student see: the principal components of a clip's features as colours.

Letters in shapes: T frames, S x S pixels; t x h x w the grid of patches, L = t*h*w patches, D their width.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..teachers.families import Grid
from .features import ClipPictureArguments, Models, crop_frames, load_viewers
from .strips import draw_strips, film_of_strips, write_figure, write_pictures

# what each colour channel leaves out at its dark and at its bright end
CLIPPED = 0.01


def principal_components(features: torch.Tensor, number: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """The first principal components of features (L, D): scores (L, number), and their shares of the variance.

    The sign of a component says nothing and is chosen such that its scores are skewed to the positive.

    Raises:
        ValueError: if the features are all the same, or fewer than the components.
    """
    centred = (features - features.mean(dim=0)).double()
    if min(centred.shape) < number or not centred.any():
        raise ValueError(
            f"{tuple(features.shape)} features have no {number} principal components: they are too few or all equal."
        )
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    scores = left[:, :number] * values[:number]
    signs = scores.pow(3).sum(dim=0).sign()
    scores = scores * torch.where(signs == 0, 1.0, signs)
    return scores.float(), (values**2 / values.pow(2).sum())[:number].float()


def token_colors(features: torch.Tensor, grid: Grid) -> tuple[np.ndarray, float]:
    """Colours (t, h, w, 3) uint8 of features (L, D), one channel for each of three components, and the variance shown.

    The components are those of all patches of the clip together, so that a colour means the same at all times. Each
    is stretched from black to full colour, but for a hundredth of the patches at either end.
    """
    scores, shares = principal_components(features)
    ends = torch.tensor([CLIPPED, 1 - CLIPPED])
    low, high = torch.quantile(scores, ends, dim=0)
    colors = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return (255 * colors).round().to(torch.uint8).unflatten(0, grid).numpy(), float(shares.sum())


@dataclass
class TokenPictures:
    """A clip and the colours of its tokens.

    Args:
        frames: what was looked at, the first frame of each tubelet: (t, S, S, 3) uint8.
        colors: per model (t, h, w, 3) uint8.
        shares: per model the part of the variance that the colours show.
        seconds: when the first frames of the tubelets are, (t,).
    """

    frames: np.ndarray
    colors: dict[str, np.ndarray]
    shares: dict[str, float]
    seconds: np.ndarray

    def strips(self, enlarged: bool = False) -> dict[str, np.ndarray]:
        """The rows of a picture by their names; enlarged, colours are as large as frames."""
        height = self.frames.shape[1] // next(iter(self.colors.values())).shape[1] if enlarged else 1
        rows = {
            f"{name}\n{100 * self.shares[name]:.0f} % of variance": color.repeat(height, 1).repeat(height, 2)
            for name, color in self.colors.items()
        }
        return {"clip": self.frames, **rows}


def color_tokens(arguments: ClipPictureArguments, models: Models, device: str = "cpu", **features) -> TokenPictures:
    """Look at a clip with some models.

    Args:
        arguments: the clip.
        models: see `mvd_hf.visualization.features.load_viewers`.
        device: where the models compute.
        features: which features of them, fields of `mvd_hf.TeacherConfig`.

    Raises:
        ValueError: if the clip cannot be read or a model not loaded.
    """
    viewers = load_viewers(models, device, **features)
    frames, seconds = arguments.read_clip(viewers.num_frames)
    clips = {size: crop_frames(frames, size)[None] for size in viewers.sizes}
    colors, shares = {}, {}
    for name, values in viewers.features(clips):
        colors[name], shares[name] = token_colors(values[0].cpu(), viewers.grid)
    step = viewers.num_frames // viewers.grid[0]
    seen = clips[viewers.image_size][0, ::step].permute(0, 2, 3, 1).numpy()
    return TokenPictures(seen, colors, shares, seconds[::step])


@dataclass
class TokenPictureArguments(ClipPictureArguments):
    """Models and the clip they look at, as a recipe's keys.

    Args:
        models: folders or Hub ids, or by name: `--models.student outputs/student --models.image ...`.
        layer, norm: which features, as in `mvd_hf.TeacherConfig`; by default those that each model would teach.
        device: where the models compute.
        output: PNG file; the mp4 file and the arrays (.npz) have the same name.
    """

    models: list[str] | dict = field(default_factory=list)
    layer: int = -1
    norm: str | None = None
    device: str = "cpu"
    output: str = "outputs/figures/tokens.png"


def write_tokens(arguments: TokenPictureArguments) -> Path:
    """Draw what models see in a clip as a picture, a film and arrays; returns the picture's path."""
    pictures = color_tokens(arguments, arguments.models, arguments.device, layer=arguments.layer, norm=arguments.norm)
    titles = [f"{second:.2f} s" for second in pictures.seconds]
    heading = "Principal components of the features, one colour scale per model"
    path = write_figure(arguments.output, draw_strips(pictures.strips(), titles, heading))
    np.savez_compressed(path.with_suffix(".npz"), clip=pictures.frames, **pictures.colors)
    if arguments.film:
        film = film_of_strips(pictures.strips(enlarged=True), titles)
        write_pictures(path.with_suffix(".mp4"), film, 1 / arguments.fps, arguments.fps)
    return path
