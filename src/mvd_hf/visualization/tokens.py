"""Principal components of a clip's features as colors, of teachers and students.

Letters in shapes: T frames, S x S pixels; t x h x w the grid of patches, L = t*h*w patches, D their width.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..teachers.inputs import Grid
from .features import ClipFigureArguments, load_feature_extractor
from .strips import draw_strips, film_frames

# part of the patches that is clipped at the dark and at the bright end of each color channel
CLIPPED = 0.01


def principal_components(features: torch.Tensor, number: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """The first principal components of features (L, D): scores (L, number), and their shares of the variance.

    The sign of a component has no meaning; it is chosen such that the scores are skewed to the positive.

    Raises:
        ValueError: if the features are all equal, or fewer than the components.
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
    """Colors (t, h, w, 3) uint8 of features (L, D), one channel for each of three components, and the variance shown.

    All patches of the clip share the components, so that a color means the same at all times. Each channel is
    stretched from black to full color; a hundredth of the patches is clipped at either end.
    """
    scores, shares = principal_components(features)
    ends = torch.tensor([CLIPPED, 1 - CLIPPED])
    low, high = torch.quantile(scores, ends, dim=0)
    colors = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return (255 * colors).round().to(torch.uint8).unflatten(0, grid).numpy(), float(shares.sum())


@dataclass
class TokenColors:
    """A clip and the colors of its tokens.

    Args:
        frames: the first frame of each tubelet, (t, S, S, 3) uint8.
        colors: per model (t, h, w, 3) uint8.
        shares: per model the part of the variance that the colors show.
        seconds: times of the frames, (t,).
    """

    frames: np.ndarray
    colors: dict[str, np.ndarray]
    shares: dict[str, float]
    seconds: np.ndarray

    def strips(self, enlarged: bool = False) -> dict[str, np.ndarray]:
        """The rows of a figure by name; enlarged, colors have the size of the frames."""
        factor = self.frames.shape[1] // next(iter(self.colors.values())).shape[1] if enlarged else 1
        rows = {
            f"{name}\n{100 * self.shares[name]:.0f} % of variance": color.repeat(factor, 1).repeat(factor, 2)
            for name, color in self.colors.items()
        }
        return {"clip": self.frames, **rows}


@dataclass
class TokenFigureArguments(ClipFigureArguments):
    """The models whose features of a clip are drawn, as a recipe's keys.

    Args:
        models: folders or Hub ids, or by name: `--models.student outputs/student --models.image ...`.
        layer, norm: the features, as in `mvd_hf.TeacherConfig`; by default those that each model would teach.
    """

    models: list[str] | dict = field(default_factory=list)
    layer: int = -1
    norm: str | None = None
    output: str = "outputs/figures/tokens.png"


def color_tokens(arguments: TokenFigureArguments) -> TokenColors:
    """The colors of a clip's tokens for each model."""
    arguments.check_paths(arguments.models)
    extractor = load_feature_extractor(arguments.models, arguments.device, layer=arguments.layer, norm=arguments.norm)
    frames, seconds = arguments.read_clip(extractor.num_frames)
    clips = extractor.clips(frames)
    colors, shares = {}, {}
    for name, features in extractor.features(clips):
        colors[name], shares[name] = token_colors(features[0].cpu(), extractor.grid)
    step = extractor.num_frames // extractor.grid[0]
    first = clips[extractor.image_size][0, ::step].permute(0, 2, 3, 1).numpy()
    return TokenColors(first, colors, shares, seconds[::step])


def write_tokens(arguments: TokenFigureArguments) -> list[Path]:
    """Draw the features of models as a figure, arrays and a film; returns the paths."""
    tokens = color_tokens(arguments)
    titles = [f"{second:.2f} s" for second in tokens.seconds]
    heading = "Principal components of the features, one color scale per model"
    figure = draw_strips(tokens.strips(), titles, heading)
    return arguments.write(
        figure, film_frames(tokens.strips(enlarged=True), titles), clip=tokens.frames, **tokens.colors
    )
