"""Label propagation on tracked objects: how well the features of frames keep track of objects, without training.

The masks of the first frame move to the next ones by similarity of patches (Jabri et al., arXiv 2006.14613; as used
for DINO, arXiv 2104.14294), and are scored by region similarity J and contour accuracy F of DAVIS (Perazzi et al.,
CVPR 2016; Pont-Tuset et al., arXiv 1704.00675).

Letters in shapes: T frames, H x W pixels, h x w patches, N = h * w, D width, K objects and the background.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..model.configuration_mvd import height_and_width
from .encoders import Encoder

# the margin of error of contours, as part of the diagonal of a frame
CONTOUR_TOLERANCE = 0.008


@dataclass
class PropagationSettings:
    """How labels move from frame to frame; the defaults are those of DINO's evaluation.

    Args:
        context: number of preceding frames whose labels count, beside the first frame.
        radius: patches up to which a label may move, in rows and in columns.
        neighbours: number of most similar patches whose labels are averaged.
        temperature: of their weights, exp(cosine / temperature).
    """

    context: int = 7
    radius: int = 12
    neighbours: int = 5
    temperature: float = 0.1

    def __post_init__(self):
        for name in ("context", "radius", "neighbours", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0.")


def is_near(rows: int, columns: int, radius: int) -> torch.Tensor:
    """Whether two patches of a grid are at most `radius` rows and columns apart, (N, N)."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    row, column = row.flatten(), column.flatten()
    return ((row[:, None] - row).abs() <= radius) & ((column[:, None] - column).abs() <= radius)


@torch.no_grad()
def propagate_labels(
    features: torch.Tensor, labels: torch.Tensor, settings: PropagationSettings | None = None
) -> torch.Tensor:
    """The labels (T, K, h, w) of all frames, from those of the first.

    Args:
        features: (T, h, w, D).
        labels: (K, h, w) of the first frame, the shares of each patch.
        settings: see [`PropagationSettings`].
    """
    settings = settings or PropagationSettings()
    count, rows, columns, _ = features.shape
    flat = nn.functional.normalize(features.float().flatten(1, 2), dim=-1)
    near = is_near(rows, columns, settings.radius).to(flat.device)
    known = [labels.float().flatten(1).to(flat.device)]
    for frame in range(1, count):
        sources = [0, *range(max(1, frame - settings.context), frame)]
        cosine = torch.stack([flat[frame] @ flat[source].T for source in sources], dim=1)  # (N, sources, N)
        cosine = cosine.masked_fill(~near[:, None], -math.inf).flatten(1)
        best, places = cosine.topk(min(settings.neighbours, int(near.sum(dim=1).min()) * len(sources)), dim=1)
        weights = (best / settings.temperature).softmax(dim=1)
        bank = torch.stack([known[source] for source in sources], dim=1).flatten(1)  # (K, sources * N)
        known.append((bank[:, places] * weights).sum(dim=-1))
    return torch.stack(known).unflatten(-1, (rows, columns))


# scores of DAVIS


def region_similarity(mask: np.ndarray, truth: np.ndarray) -> float:
    """J: intersection over union of two masks (H, W); 1 if both are empty."""
    union = np.logical_or(mask, truth).sum()
    return float(np.logical_and(mask, truth).sum() / union) if union else 1.0


def contour(mask: np.ndarray) -> np.ndarray:
    """Pixels (H, W) of a mask that differ from their right, lower or lower right neighbour."""
    mask = mask.astype(bool)
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Pixels (H, W) at most `radius` from a pixel of the mask."""
    offsets = torch.arange(-radius, radius + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).float()
    image = torch.from_numpy(mask).float()[None, None]
    return (nn.functional.conv2d(image, disk[None, None], padding=radius) > 0.5)[0, 0].numpy()


def contour_accuracy(mask: np.ndarray, truth: np.ndarray, tolerance: float = CONTOUR_TOLERANCE) -> float:
    """F: harmonic mean of the precision and recall of the contour of a mask (H, W), within a tolerance.

    Args:
        mask, truth: the found and the true mask.
        tolerance: distance up to which contours agree, as part of the diagonal (rounded up to pixels), or in pixels
            from 1.
    """
    radius = int(tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*mask.shape)))
    found, true = contour(mask), contour(truth)
    counts = found.sum(), true.sum()
    if not all(counts):
        return float(counts[0] == counts[1])  # 1 if there is no contour in either
    precision = (found & dilate(true, radius)).sum() / counts[0]
    recall = (true & dilate(found, radius)).sum() / counts[1]
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def sequence_scores(masks: np.ndarray, truth: np.ndarray) -> list[dict[str, float]]:
    """`J` and `F` of each object, means over all frames but the first and the last, as DAVIS 2017 counts.

    Args:
        masks, truth: (T, H, W) number of the object at each pixel, 0 for the background; 255 in `truth` is ignored.

    Raises:
        ValueError: if shapes differ or there are fewer than three frames.
    """
    if masks.shape != truth.shape or len(truth) < 3:
        raise ValueError(f"Masks {masks.shape} and truth {truth.shape} must be the same three frames or more.")
    masks = np.where(truth == 255, 0, masks)
    scores = []
    for number in (number for number in np.unique(truth[0]) if 0 < number < 255):
        pairs = [(masks[i] == number, truth[i] == number) for i in range(1, len(truth) - 1)]
        scores.append(
            {
                "J": float(np.mean([region_similarity(*pair) for pair in pairs])),
                "F": float(np.mean([contour_accuracy(*pair) for pair in pairs])),
            }
        )
    return scores


# sequences


def read_sequences(folder: str | Path, split: str = "val") -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, frames (T, H, W, 3) uint8 and masks (T, H, W) of the sequences of DAVIS 2017, in its layout at 480p.

    Raises:
        ValueError: if the folder has no such split, or a frame has no mask.
    """
    folder = Path(folder)
    names = folder / "ImageSets" / "2017" / f"{split}.txt"
    if not names.is_file():
        raise ValueError(f"{str(folder)!r} is no DAVIS 2017: it has no {names.relative_to(folder)}.")
    for name in names.read_text(encoding="utf-8").split():
        images = sorted((folder / "JPEGImages" / "480p" / name).glob("*.jpg"))
        masks = [folder / "Annotations" / "480p" / name / f"{image.stem}.png" for image in images]
        missing = [path for path in masks if not path.is_file()]
        if missing or not images:
            raise ValueError(f"The sequence {name!r} has no frames, or no mask {missing[0].name if missing else ''}.")
        yield (
            name,
            np.stack([np.asarray(Image.open(path).convert("RGB")) for path in images]),
            np.stack([np.asarray(Image.open(path)) for path in masks]),
        )


def frame_features(encoder: Encoder, frames: np.ndarray, batch_size: int = 4) -> torch.Tensor:
    """Features (T, h, w, D) of each frame (T, H, W, 3), resized to the input of the encoder.

    A video model sees clips of consecutive frames, each as often as its tubelets have frames, so that every frame has
    patches of its own; the last frame fills the last clip.
    """
    size = height_and_width(encoder.image_size)
    pixels = torch.from_numpy(frames).movedim(-1, 1)
    pixels = nn.functional.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    slots = encoder.teacher.student_grid[0]
    repeats = encoder.num_frames // slots
    padding = pixels[-1:].expand(-len(pixels) % slots, -1, -1, -1)
    clips = torch.cat([pixels, padding]).repeat_interleave(repeats, dim=0).unflatten(0, (-1, encoder.num_frames))
    device = next(encoder.parameters()).device
    tokens = torch.cat([encoder(part.to(device)) for part in clips.split(batch_size)])
    return tokens.unflatten(1, encoder.teacher.student_grid).flatten(0, 1)[: len(frames)]


def track_objects(
    encoder: Encoder, frames: np.ndarray, first_mask: np.ndarray, settings: PropagationSettings | None = None
) -> np.ndarray:
    """The object at each pixel (T, H, W) of all frames (T, H, W, 3), from the mask (H, W) of the first."""
    features = frame_features(encoder, frames)
    numbers = np.concatenate([[0], [number for number in np.unique(first_mask) if 0 < number < 255]])
    shares = torch.from_numpy(first_mask == numbers[:, None, None]).float()
    labels = nn.functional.adaptive_avg_pool2d(shares, features.shape[1:3])
    found = propagate_labels(features, labels, settings)
    masks = [first_mask]
    for frame in found[1:]:  # one by one: at full size they are large
        pixels = nn.functional.interpolate(frame[None], first_mask.shape, mode="bilinear")[0]
        masks.append(numbers[pixels.argmax(dim=0).cpu().numpy()])
    return np.stack(masks)
