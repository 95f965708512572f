"""Similarity of a model's features between the frames of a clip: the paper's comparison of students by their teacher.

The paper says that the features of students of an image teacher are more similar from frame to frame than those of
students of a video teacher. It does not name the layer, the average and the videos. Our choices:

- Features are those of the last layer, after the final norm: the output of `AutoModel` and the input of a decoder.
  Other layers, and features before the norm, can be chosen.
- The similarity of two time slots (tubelets) is the cosine of their features at the same place, averaged over places
  (`place`), or the cosine of the means over all places (`slot`). The first decreases when things move; the second is
  what a classifier on pooled features could see. Nothing is subtracted first.
- Matrices are averaged over clips; their summary is the mean off the diagonal.

Letters in shapes: n clips, B clips of a batch; t x h x w the grid of patches, L = t*h*w patches, D their width.
"""

import json
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.arguments import evaluation_rows
from ..data.sources import evaluation_split
from ..teachers.inputs import Grid
from .features import FeatureExtractor, MiddleClips, load_feature_extractor
from .strips import write_figure


def slot_similarity(features: torch.Tensor, grid: Grid, average: str = "place") -> torch.Tensor:
    """Cosine similarity (B, t, t) of the time slots of features (B, L, D).

    Args:
        features: one feature for each patch of the grid.
        grid: (time, rows, columns).
        average: `place`: mean over places of the cosines at one place; `slot`: cosine of the slots' mean features.

    Raises:
        ValueError: for another average.
    """
    slots = features.float().unflatten(1, (grid[0], grid[1] * grid[2]))
    if average == "slot":
        slots = slots.mean(dim=2, keepdim=True)
    elif average != "place":
        raise ValueError(f"average={average!r} must be 'place' or 'slot'.")
    slots = torch.nn.functional.normalize(slots, dim=-1)
    return torch.einsum("bipd,bjpd->bij", slots, slots) / slots.shape[2]


@dataclass
class FeatureSimilarity:
    """Similarities of the time slots of many clips, by model.

    Args:
        matrices: per model (n, t, t).
        missing: the videos that could not be read, and the reason for each.
    """

    matrices: dict[str, np.ndarray]
    missing: list[tuple[str, str]] = field(default_factory=list)

    @property
    def num_clips(self) -> int:
        """The number of clips n, the same for all models."""
        return len(next(iter(self.matrices.values())))

    def mean(self, name: str) -> np.ndarray:
        """A model's matrix (t, t), averaged over clips."""
        return self.matrices[name].mean(axis=0)

    def off_diagonal(self, name: str) -> np.ndarray:
        """Mean similarity of different slots in each clip, (n,)."""
        matrices = self.matrices[name]
        slots = matrices.shape[1]
        return (matrices.sum(axis=(1, 2)) - np.trace(matrices, axis1=1, axis2=2)) / (slots * (slots - 1))

    def summary(self) -> dict:
        """Numbers for JSON: per model the mean off the diagonal, its standard error over clips, and the matrix."""
        models = {}
        for name in self.matrices:
            values = self.off_diagonal(name)
            error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
            models[name] = {
                "mean_off_diagonal": float(values.mean()),
                "standard_error": error,
                "matrix": self.mean(name).round(6).tolist(),
            }
        missing = [{"video": video, "reason": reason} for video, reason in self.missing]
        return {"clips": self.num_clips, "models": models, "missing": missing}


def measure_similarity(
    extractor: FeatureExtractor, clips: MiddleClips, average: str = "place", batch_size: int = 8, num_workers: int = 0
) -> FeatureSimilarity:
    """Similarities of the time slots of every clip for each model.

    Args:
        extractor: the models.
        clips: clips with their number of frames and their sizes.
        average: see [`slot_similarity`].
        batch_size: clips of a forward pass.
        num_workers: processes that decode.

    Raises:
        ValueError: if a clip is a single time slot, or no video can be read.
    """
    if extractor.grid[0] < 2:
        raise ValueError("Clips of one time slot have no similarity between frames: choose models of longer clips.")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in extractor.models}
    missing = []
    loader = DataLoader(clips, batch_size, num_workers=num_workers, collate_fn=list)
    for batch in tqdm(loader, desc="clips", unit=" batches", disable=None):
        missing += [(name, reason) for name, clip, reason in batch if clip is None]
        read = [clip for _, clip, _ in batch if clip is not None]
        if not read:
            continue
        stacked = {size: torch.stack([clip[size] for clip in read]) for size in read[0]}
        for name, features in extractor.features(stacked):
            parts[name].append(slot_similarity(features, extractor.grid, average).cpu().numpy())
    if len(missing) == len(clips):
        raise ValueError(f"None of {len(clips)} videos can be read; the first: {missing[0][0]}: {missing[0][1]}.")
    return FeatureSimilarity({name: np.concatenate(part) for name, part in parts.items()}, missing)


def draw_similarity(similarity: FeatureSimilarity, title: str | None = None) -> Figure:
    """The mean matrices of all models side by side on one color scale, with their means off the diagonal.

    Args:
        similarity: the measured similarities.
        title: above the matrices; by default with the number of clips.
    """
    means = {name: similarity.mean(name) for name in similarity.matrices}
    slots = len(next(iter(means.values())))
    lowest = min(matrix.min() for matrix in means.values())
    figure = Figure((max(3.1 * len(means) + 1.2, 5.6), 3.9), layout="constrained")  # wide enough for the title
    grid = figure.subplots(1, len(means), squeeze=False)[0]
    for axes, (name, matrix) in zip(grid, means.items(), strict=True):
        image = axes.imshow(matrix, vmin=lowest, vmax=1, cmap="viridis")
        axes.set_title(
            f"{textwrap.fill(name, 28)}\n{similarity.off_diagonal(name).mean():.3f} off the diagonal", fontsize=11
        )
        axes.set_xticks(range(slots))
        axes.set_yticks(range(slots))
        axes.set_xlabel("time slot")
        if slots <= 8:
            for i, j in np.ndindex(matrix.shape):
                shade = "black" if matrix[i, j] > (lowest + 1) / 2 else "white"
                axes.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=7, color=shade)
    grid[0].set_ylabel("time slot")
    figure.colorbar(image, ax=list(grid), label="cosine similarity", shrink=0.75)
    clips = "1 clip" if similarity.num_clips == 1 else f"{similarity.num_clips} clips"
    figure.suptitle(title or f"Similarity of features between frames, mean of {clips}", fontsize=12)
    return figure


@dataclass
class SimilarityArguments:
    """The models and videos of a figure of feature similarity, as a recipe's keys.

    Args:
        models: folders or Hub ids, or by name: `--models.image outputs/image_taught --models.video ...`.
        dataset, dataset_config, root, streaming, max_samples: as in `mvd_hf.data.arguments.DataArguments`.
        split: by default that with a usual name, such as `validation`, or the only one.
        stride: step between a clip's frames.
        average: `place` or `slot`, see [`slot_similarity`].
        layer, norm: the features, as in `mvd_hf.TeacherConfig`.
        batch_size: clips of a forward pass.
        num_workers: processes that decode.
        device: where the models compute.
        output: PNG file; the numbers are in the JSON file of the same name.
    """

    models: list[str] | dict = field(default_factory=list)
    dataset: str = ""
    dataset_config: str | None = None
    split: str | None = None
    root: str | None = None
    streaming: bool = False
    max_samples: int | None = 256
    stride: int = 4
    average: str = "place"
    layer: int = -1
    norm: str = "post"
    batch_size: int = 8
    num_workers: int = 0
    device: str = "cpu"
    output: str = "outputs/figures/similarity.png"


def write_similarity(arguments: SimilarityArguments) -> list[Path]:
    """Measure and draw the similarity, write the numbers as JSON beside the figure, and return both paths.

    Raises:
        ValueError: if there is no data set, a model cannot be loaded, or no video can be read.
    """
    if not arguments.dataset:
        raise ValueError("There are no videos: give --dataset.")
    split = arguments.split or evaluation_split(arguments.dataset, arguments.dataset_config)
    extractor = load_feature_extractor(arguments.models, arguments.device, layer=arguments.layer, norm=arguments.norm)
    rows = evaluation_rows(
        arguments.dataset,
        split,
        arguments.root,
        arguments.dataset_config,
        arguments.streaming,
        arguments.max_samples,
    )
    clips = MiddleClips(rows, extractor.num_frames, arguments.stride, extractor.sizes)
    options = arguments.average, arguments.batch_size, arguments.num_workers
    similarity = measure_similarity(extractor, clips, *options)
    path = write_figure(arguments.output, draw_similarity(similarity))
    choices = {name: getattr(arguments, name) for name in ("dataset", "stride", "average", "layer", "norm")}
    numbers = {**similarity.summary(), "split": split, **choices}
    path.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return [path, path.with_suffix(".json")]
