"""Mixup and CutMix: mixes the clips of a batch, and their labels in the same proportion.

B clips in a batch, T frames in a clip, C channels, H x W pixels, K classes. Boxes are (top, left, height, width).
"""

from collections.abc import Mapping

import numpy as np
import torch

Box = tuple[int, int, int, int]


def cutmix_box(height: int, width: int, share: float, rng: np.random.Generator) -> Box:
    """A box with the frame's aspect ratio and a uniform centre, cut off at the frame's edge.

    Args:
        height, width: size of the frame.
        share: the part of the frame outside the box, before it is cut off.
        rng: source of randomness.
    """
    edges = []
    for side in (height, width):
        half = int(side * (1 - share) ** 0.5) // 2
        centre = int(rng.integers(side))
        edges.append((max(centre - half, 0), min(centre + half, side)))
    (top, bottom), (left, right) = edges
    return top, left, bottom - top, right - left


def soft_labels(labels: torch.Tensor, num_classes: int, smoothing: float = 0.0) -> torch.Tensor:
    """Smoothed class probabilities (B, K) float32 of labels (B,): smoothing / K, and 1 - smoothing more if true.

    Raises:
        ValueError: if the labels are not integers in 0..K-1, one per clip.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"Labels must be integers of shape (B,), not {labels.dtype} of {tuple(labels.shape)}.")
    if ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(
            f"Labels from {int(labels.min())} to {int(labels.max())} do not fit {num_classes} classes: "
            f"number the classes from 0 to {num_classes - 1}, or give the right num_classes."
        )
    targets = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    return targets.scatter_add_(1, labels[:, None].long(), torch.full_like(targets[:, :1], 1 - smoothing))


def soft_targets(
    labels: torch.Tensor, num_classes: int, smoothing: float = 0.0, heads: Mapping[str, int] | None = None
) -> torch.Tensor:
    """Labels of any kind as targets (B, K) float32 that can be mixed; numbers (B,) for regression stay as they are.

    Class indices (B,) and, of several heads, (B, H) become [`soft_labels`]. Of multi-hot labels (B, K), each class
    gives the part `smoothing` to all classes.

    Raises:
        ValueError: if labels do not have one of these shapes, a class is out of range, or numbers shall be smoothed.
    """
    if heads:
        parts = [soft_labels(part, size, smoothing) for part, size in zip(labels.T, heads.values(), strict=True)]
        return torch.cat(parts, dim=1)
    if labels.is_floating_point() and labels.shape[1:] == (num_classes,):
        return labels * (1 - smoothing) + smoothing / num_classes
    if labels.is_floating_point() and labels.ndim == num_classes == 1:
        if smoothing:
            raise ValueError(f"label_smoothing={smoothing} is of classes, and labels are numbers: give 0.")
        return labels
    return soft_labels(labels, num_classes, smoothing)


class Mixup:
    """Mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899) of a batch with the reversed batch.

    Each batch draws one method, one share and one box. The middle clip of an odd number is mixed with itself.

    Args:
        num_classes: K.
        mixup_alpha: both parameters of the Beta distribution of the share in Mixup; 0 for no Mixup.
        cutmix_alpha: the same for CutMix.
        prob: probability that a batch is mixed.
        switch_prob: probability of CutMix instead of Mixup, if both are on.
        label_smoothing: part of each label that is spread over all classes.
        cutmix_axes: `"spatial"` pastes the box into all frames. `"official"` reproduces the released MVD program,
            which applies an operation for images to videos: rows of the box count frames, its columns count rows of
            pixels, and labels are mixed as if it were a part of the frame. Of clips with 16 frames of 224 x 224, six
            in ten keep all their pixels and change their labels.
        heads: number of classes of each head, if there are several.

    Raises:
        ValueError: if a parameter is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        label_smoothing: float = 0.1,
        cutmix_axes: str = "spatial",
        heads: Mapping[str, int] | None = None,
    ):
        for name, alpha in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            if not alpha >= 0:
                raise ValueError(f"{name} is {alpha}; give a positive number, or 0 to switch it off.")
        for name, part in (("prob", prob), ("switch_prob", switch_prob), ("label_smoothing", label_smoothing)):
            if not 0 <= part <= 1:
                raise ValueError(f"{name} is {part}; it must be between 0 and 1.")
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; there must be at least 1 class.")
        if cutmix_axes not in ("spatial", "official"):
            raise ValueError(f"There are no cutmix_axes {cutmix_axes!r}; choose 'spatial' or 'official'.")
        self.num_classes, self.label_smoothing, self.cutmix_axes = num_classes, label_smoothing, cutmix_axes
        self.mixup_alpha, self.cutmix_alpha, self.switch_prob = mixup_alpha, cutmix_alpha, switch_prob
        self.heads = heads
        self.prob = prob if mixup_alpha or cutmix_alpha else 0.0

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[float, Box | None]:
        """The share of the original label, and the box of CutMix or `None`; (1, `None`) for no mixing."""
        if rng.random() >= self.prob:
            return 1.0, None
        is_cutmix = (
            rng.random() < self.switch_prob if self.mixup_alpha and self.cutmix_alpha else self.cutmix_alpha > 0
        )
        alpha = self.cutmix_alpha if is_cutmix else self.mixup_alpha
        share = float(rng.beta(alpha, alpha))
        if not is_cutmix:
            return share, None
        box = cutmix_box(height, width, share, rng)
        return 1 - box[2] * box[3] / (height * width), box

    def region(self, box: Box) -> tuple[slice, ...]:
        """Slices of pixels (B, T, C, H, W) for a box; they may reach beyond the last frame."""
        top, left, height, width = box
        rows, columns, whole = slice(top, top + height), slice(left, left + width), slice(None)
        return (whole, whole, whole, rows, columns) if self.cutmix_axes == "spatial" else (whole, rows, whole, columns)

    def mix_pixels(self, pixels: torch.Tensor, share: float, box: Box | None) -> torch.Tensor:
        """Pixels (B, T, C, H, W) mixed with those of the reversed batch, in their own dtype."""
        if box is not None:
            mixed, region = pixels.clone(), self.region(box)
            mixed[region] = pixels[region].flip(0)
            return mixed
        if share == 1:
            return pixels
        exact = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        mixed = exact.flip(0).lerp_(exact, share)
        return (mixed if pixels.is_floating_point() else mixed.round_()).to(pixels.dtype)

    def __call__(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The batch with mixed `pixel_values` and `labels`, see [`soft_targets`]; all else in it stays.

        Args:
            batch: `pixel_values` (B, T, C, H, W) of any dtype on any device, and `labels` of any kind. Mixed uint8
                pixels are rounded, by at most half a grey level.
            generator: source of randomness.

        Raises:
            ValueError: if the batch does not have these shapes, or a label is none of the classes.
        """
        pixels, labels = batch["pixel_values"], batch["labels"]
        if pixels.ndim != 5 or len(pixels) != len(labels):
            raise ValueError(
                f"Mixing needs pixel_values of shape (B, T, C, H, W) and as many labels, not {tuple(pixels.shape)} "
                f"and {tuple(labels.shape)}."
            )
        targets = soft_targets(labels, self.num_classes, self.label_smoothing, self.heads)
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        share, box = self.draw(*pixels.shape[-2:], np.random.default_rng(int(seed)))
        return {
            **batch,
            "pixel_values": self.mix_pixels(pixels, share, box),
            "labels": torch.lerp(targets.flip(0), targets, share),
        }
