"""Targets: what a student is compared with of each teacher, and the normalization by statistics of the training clips.

`targets_of` divides the features of teachers into targets, [`Standardize`] and [`PhiS`] normalize them.
Letters in shapes: B clips, L patches of a clip, D the width of a target, N vectors.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..model.configuration_mvd import MVDConfig
from .teacher import Teacher, TeacherConfig

# smallest variance of a channel, as a part of the mean over channels
LEAST_VARIANCE = 1e-9


@dataclass(frozen=True)
class Target:
    """One comparison of the student with a teacher.

    Args:
        features: name of the normalized features, which two comparisons may share.
        teacher: name of the teacher.
        first, width: its channels of the teacher's features, one layer's.
        tokens: `masked` or `visible` patches, or the `summary` of the clip.
        loss: see `mvd_hf.distillation_losses`.
        weight: factor of its loss in the sum.
        norm: `target_norm` of the teacher.
        by_distance: whether the loss at a visible patch is divided by the square root of its distance to a masked one.
        is_split: whether the student predicts visible and masked patches together.
    """

    features: str
    teacher: str
    first: int
    width: int
    tokens: str
    loss: str
    weight: float
    norm: str
    by_distance: bool = False
    is_split: bool = False


def targets_of(teachers: Mapping[str, TeacherConfig], widths: Mapping[str, int]) -> dict[str, Target]:
    """All comparisons by name.

    A teacher `dino` gives `dino`, or `dino_6` and `dino_12` for the layers 6 and 12; `on: all` divides each into
    `..._masked` and `..._visible`, whose losses add up; `summary` adds `dino_summary`, of the last layer.

    Args:
        teachers: the entries of a recipe.
        widths: of the hidden states of each teacher.

    Raises:
        ValueError: if two have the same name.
    """
    targets: dict[str, Target] = {}

    def add(name: str, target: Target):
        others = (other for other in targets.values() if other.teacher != target.teacher)
        if name in targets or any(other.features == target.features for other in others):
            raise ValueError(f"Two targets have the name {name!r}: rename the teacher {target.teacher!r}.")
        targets[name] = target

    for name, teacher in teachers.items():
        width, layers = widths[name], teacher.layers or [teacher.layer]
        shared = {"teacher": name, "width": width, "loss": teacher.loss, "norm": teacher.target_norm}
        for i, layer in enumerate(layers):
            features = f"{name}_{layer}" if teacher.layers else name
            weights = {"masked": teacher.weight / len(layers)}
            weights["visible"] = weights["masked"] * teacher.visible_weight
            for tokens in ("masked", "visible") if teacher.on == "all" else (teacher.on,):
                is_split = teacher.on == "all"
                by_distance = tokens == "visible" and teacher.visible_weighting == "distance"
                add(
                    f"{features}_{tokens}" if is_split else features,
                    Target(
                        features,
                        **shared,
                        first=i * width,
                        tokens=tokens,
                        weight=weights[tokens],
                        by_distance=by_distance,
                        is_split=is_split,
                    ),
                )
        if teacher.summary:
            summary = f"{name}_summary"
            first = (len(layers) - 1) * width
            add(summary, Target(summary, **shared, first=first, tokens="summary", weight=teacher.weight))
    return targets


def student_fields(teachers: Mapping[str, TeacherConfig], widths: Mapping[str, int]) -> dict[str, dict]:
    """The fields of a student's configuration that say what it predicts; arguments as in [`targets_of`].

    Raises:
        ValueError: if there is no teacher.
    """
    if not teachers:
        raise ValueError(
            "There is no teacher: give a recipe (`mvd-hf recipes` lists them) or name one, such as "
            "--teachers.image facebook/dinov2-base; `mvd-hf teachers` lists models that can teach."
        )
    return {
        "teacher_dims": {name: widths[name] * len(each.layers or [each.layer]) for name, each in teachers.items()},
        "teacher_tokens": {name: each.on for name, each in teachers.items() if each.on != "masked"},
        "summary_dims": {name: widths[name] for name, each in teachers.items() if each.summary},
    }


def fit_student(config: MVDConfig, teachers: Mapping[str, Teacher]):
    """Set the fields of a student's configuration that say what it predicts: `teacher_dims` and others.

    Args:
        config: the student's configuration.
        teachers: from `mvd_hf.load_teachers`.
    """
    configs = {name: teacher.config for name, teacher in teachers.items()}
    widths = {name: teacher.layer_dim for name, teacher in teachers.items()}
    for field, value in student_fields(configs, widths).items():
        setattr(config, field, value)


def split_features(features: Mapping[str, torch.Tensor], targets: Mapping[str, Target]) -> dict[str, torch.Tensor]:
    """Features (B, L [+ 1], D_teacher) of teachers as those of targets: (B, L, D), or (B, 1, D) of a summary.

    A summary follows the patches.
    """
    with_summary = {target.teacher for target in targets.values() if target.tokens == "summary"}
    parts = {}
    for target in targets.values():
        part = features[target.teacher]
        if target.teacher in with_summary:
            part = part[:, -1:] if target.tokens == "summary" else part[:, :-1]
        if target.width < part.shape[-1]:
            part = part[..., target.first : target.first + target.width]
        parts[target.features] = part
    return parts


# normalization by statistics

# sums a tensor over all processes
Reduce = Callable[[torch.Tensor], torch.Tensor]


class Standardize(nn.Module):
    """Subtracts the mean of each channel and divides by its standard deviation (UNIC, arXiv 2408.05088; DUNE).

    Both are over all vectors that training has seen until now.

    Args:
        width: D, number of channels.
        device: where features are; statistics are float64 on it, but float32 on MPS, which has no float64.
    """

    is_running = True

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        super().__init__()
        self.is_fitted = False
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.register_buffer("count", torch.zeros((), dtype=dtype, device=device))
        self.register_buffer("mean", torch.zeros(width, dtype=dtype, device=device))
        spread = torch.zeros(self.spread_shape(width), dtype=dtype, device=device)
        self.register_buffer("spread", spread, persistent=self.is_running)

    @staticmethod
    def spread_shape(width: int) -> tuple[int, ...]:
        return (width,)

    @staticmethod
    def squares(vectors: torch.Tensor) -> torch.Tensor:
        return vectors.square().sum(dim=0)

    @torch.no_grad()
    def update(self, features: torch.Tensor, reduce: Reduce, is_blank: bool = False):
        """Add features (..., D) of all processes to the statistics; those of a blank batch have no weight."""
        with torch.autocast(features.device.type, enabled=False):
            vectors = features.flatten(0, -2).to(self.mean.dtype)
            vectors = vectors[:0] if is_blank else vectors
            sums = reduce(torch.cat([self.count.new_full((1,), len(vectors)), vectors.sum(dim=0)]))
            count = sums[0]
            mean = sums[1:] / count.clamp(min=1)
            spread = reduce(self.squares(vectors - mean))
            # two sets of vectors together (Chan et al., 1983): the means' distance adds to the spread
            total = (self.count + count).clamp(min=1)
            step = ((mean - self.mean) * (self.count * count / total).sqrt())[None]
            self.spread += spread + self.squares(step)
            self.mean += (mean - self.mean) * (count / total)
            self.count += count

    def variances(self) -> torch.Tensor:
        """Variance of each channel (D,)."""
        return self.spread / self.count

    def finish(self, name: str):
        """End the fit on the first clips.

        Raises:
            ValueError: if the target `name` has too few vectors, or does not vary.
        """
        count, variance = self.count.item(), self.variances().mean().item()
        if count < 2 or not variance > 0:
            raise ValueError(
                f"The statistics of the target {name!r} are of {count:.0f} vectors with a mean variance of "
                f"{variance:g}: give more clips that differ (norm_clips), or target_norm: none or layernorm."
            )
        self.is_fitted = True

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., D) with mean 0 and variance 1 in each channel, in float32.

        Raises:
            ValueError: if the statistics are not fitted.
        """
        if not self.is_fitted:
            raise ValueError("Normalization by statistics needs a fit to training clips: call train, or resume.")
        variance = self.variances()
        scale = (variance + LEAST_VARIANCE * variance.mean()).rsqrt()
        return (features.float() - self.mean.float()) * scale.float()


def hadamard_matrix(order: int) -> torch.Tensor:
    """A matrix (order, order) of 1 and -1 with orthogonal rows: Sylvester's doubling of Paley's first construction.

    Raises:
        ValueError: if these give none of that order.
    """
    doublings, base = 0, order
    while base > 2 and not is_paley(base - 1) and base % 2 == 0:
        doublings, base = doublings + 1, base // 2
    if base in (1, 2):
        matrix = torch.tensor([[1.0, 1.0], [1.0, -1.0]])[:base, :base]
    elif is_paley(base - 1):
        matrix = paley_matrix(base - 1)
    else:
        raise ValueError(
            f"target_norm: phi_s needs a Hadamard matrix of the width {order}, and none is known here: choose "
            "standardize."
        )
    for _ in range(doublings):
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix


def is_paley(number: int) -> bool:
    """Whether a number is a prime that is 3 modulo 4."""
    return number % 4 == 3 and all(number % divisor for divisor in range(3, math.isqrt(number) + 1, 2))


def paley_matrix(prime: int) -> torch.Tensor:
    """Hadamard matrix of the order of a prime, which is 3 modulo 4, plus 1 (Paley, 1933)."""
    numbers = torch.arange(prime)
    residues = torch.full((prime,), -1.0)
    residues[(numbers * numbers) % prime] = 1.0
    residues[0] = 0.0
    matrix = torch.ones(prime + 1, prime + 1)
    matrix[1:, 0] = -1.0
    matrix[1:, 1:] = residues[(numbers[None] - numbers[:, None]) % prime] + torch.eye(prime)
    return matrix


class PhiS(Standardize):
    """PHI-S (arXiv 2410.01680): one scale for all channels, after a rotation that gives them the same variance.

    y = a H U^T (x - mean): U are the principal components of the features, H a Hadamard matrix over the square root of
    its order, and 1 / a^2 the mean variance of the channels. All three are fixed once they are fitted.

    Args:
        width, device: as in [`Standardize`].

    Raises:
        ValueError: if there is no Hadamard matrix of the width.
    """

    is_running = False

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        super().__init__(width, device)
        self.hadamard = hadamard_matrix(width)
        self.register_buffer("rotation", torch.zeros(width, width, device=device))

    @staticmethod
    def spread_shape(width: int) -> tuple[int, ...]:
        return (width, width)

    @staticmethod
    def squares(vectors: torch.Tensor) -> torch.Tensor:
        return vectors.T @ vectors

    def variances(self) -> torch.Tensor:
        return self.spread.diagonal() / self.count

    def finish(self, name: str):
        super().finish(name)
        # on the CPU: the same on every process, as all have the same sums
        _, components = torch.linalg.eigh(self.spread.double().cpu())
        # the signs of eigenvectors are free: make the largest entry of each positive
        largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
        components = components * largest.sign()
        rotation = self.hadamard.double() @ components.T / len(components) ** 0.5
        self.rotation.copy_((rotation / self.variances().mean().double().cpu().sqrt()).float())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., D), rotated, with mean 0 and variance 1 in each channel, in float32.

        Raises:
            ValueError: if the statistics are not fitted.
        """
        if not self.is_fitted:
            return super().forward(features)
        with torch.autocast(features.device.type, enabled=False):
            return (features.float() - self.mean.float()) @ self.rotation.T


STATISTICS = {"standardize": Standardize, "phi_s": PhiS}


def target_norms(targets: Mapping[str, Target], device: torch.device | str = "cpu") -> nn.ModuleDict:
    """What normalizes the features of targets whose teachers ask for statistics, by the name of the features."""
    kinds = {target.features: target for target in targets.values() if target.norm in STATISTICS}
    return nn.ModuleDict({name: STATISTICS[target.norm](target.width, device) for name, target in kinds.items()})
