"""The losses of a distillation: which predictions are compared with which targets, how, and how parts are balanced.

Letters in shapes: B clips under their masks, L patches of which M are masked and V visible, D the width of a target.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..model.distillation_heads_mvd import MVDForFeatureDistillationOutput
from ..model.patches_mvd import select_tokens, split_mask
from ..teachers.families import Grid
from ..teachers.targets import Target

ELEMENTWISE = {
    "smooth_l1": nn.functional.smooth_l1_loss,
    "l1": nn.functional.l1_loss,
    "l2": nn.functional.mse_loss,
}
LOSSES = (*ELEMENTWISE, "cosine", "cosine_smooth_l1")
# how `LossScale` forgets
SCALE_DECAY = 0.99


def token_losses(kind: str, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of each feature vector: (B, n) for predictions and targets (B, n, D)."""
    if kind in ELEMENTWISE:
        return ELEMENTWISE[kind](prediction, target, reduction="none").mean(dim=-1)
    cosine = 1 - nn.functional.cosine_similarity(prediction, target, dim=-1)
    return cosine if kind == "cosine" else (cosine + token_losses("smooth_l1", prediction, target)) / 2


def distillation_losses(
    predictions: Mapping[str, torch.Tensor],
    targets: Mapping[str, torch.Tensor],
    bool_masked_pos: torch.Tensor | None = None,
    losses: Mapping[str, str] | str = "smooth_l1",
    token_weights: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The loss against each teacher, in float32: mean over clips, masked patches and channels (paper, Alg. 1).

    `cosine` is the mean of 1 - cosine similarity; `cosine_smooth_l1` the mean of it and `smooth_l1` (UNIC, arXiv
    2408.05088).

    Args:
        predictions: per teacher (B, M, D), masked patches in ascending order.
        targets: per teacher (B, L, D), all patches; (B / m, L, D) if the rows are m masks of each clip; without
            `bool_masked_pos` (B, M, D), as from [`masked_targets`].
        bool_masked_pos: (B, L) bool, True marks the patches that were predicted (the masked ones, or the part of them
            that was decoded); M per row.
        losses: `smooth_l1` (beta 1, the paper's), `l1`, `l2`, `cosine` or `cosine_smooth_l1`; one for all or one per
            teacher.
        token_weights: per teacher (B, M), factors of the patches' losses; by default 1.

    Returns:
        Per teacher a scalar, not weighted.

    Raises:
        ValueError: if the names of predictions and targets differ, or there is no such loss.
    """
    if bool_masked_pos is not None:
        targets = masked_targets(predictions, targets, bool_masked_pos)
    check_names(predictions, targets)
    parts = {}
    for name, prediction in predictions.items():
        kind = losses if isinstance(losses, str) else losses[name]
        if kind not in LOSSES:
            raise ValueError(f"There is no loss {kind!r}; choose {', '.join(LOSSES)}.")
        prediction, target = prediction.float(), targets[name].float()
        weights = (token_weights or {}).get(name)
        if weights is not None:
            parts[name] = (token_losses(kind, prediction, target) * weights).mean()
        elif kind in ELEMENTWISE:
            parts[name] = ELEMENTWISE[kind](prediction, target)
        else:
            parts[name] = token_losses(kind, prediction, target).mean()
    return parts


def check_names(predictions: Mapping, targets: Mapping):
    """Raise ValueError if the student predicts other teachers than there are."""
    if predictions.keys() != targets.keys():
        raise ValueError(f"The student predicts {sorted(predictions)}, the teachers are {sorted(targets)}.")


def select_patches(features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Features (B, n, D) at ids (B, n) of features (B, L, D), or (B / m, L, D) of clips under m masks each."""
    clips, _, width = features.shape
    return select_tokens(features, ids.reshape(clips, -1)).view(*ids.shape, width)


def masked_targets(
    predictions: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor], bool_masked_pos: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The teachers' features (B, M, D) at the patches that the student predicted.

    Args:
        predictions: per teacher (B, M, D).
        targets: per teacher (B, L, D), or (B / m, L, D) of clips that the student saw under m masks each.
        bool_masked_pos: (B, L) bool, True marks the patches that were predicted; M per row.

    Raises:
        ValueError: if the names of predictions and targets differ.
    """
    check_names(predictions, targets)
    _, ids = split_mask(bool_masked_pos, next(iter(predictions.values())).shape[1])
    return {name: select_patches(targets[name], ids) for name in predictions}


@dataclass(frozen=True)
class MaskedPatches:
    """Which patches of a batch the student saw and which it was to predict.

    Args:
        visible: (B, V) ids, ascending.
        masked: (B, M) ids of the masked patches that were decoded, ascending.
        mask: (B, L) bool, True for masked patches.
        grid: patches of a clip, (time, rows, columns).
    """

    visible: torch.Tensor
    masked: torch.Tensor
    mask: torch.Tensor
    grid: Grid

    @classmethod
    def of(cls, inputs: Mapping, num_decoded: int, grid: Grid) -> "MaskedPatches":
        """Those of a pre-training model's inputs, see `mvd_hf.training.masked_batches`."""
        mask = inputs["bool_masked_pos"]
        visible, masked = split_mask(mask, inputs["num_masked"])
        if inputs.get("bool_decoded_pos") is not None:
            _, masked = split_mask(inputs["bool_decoded_pos"], num_decoded)
        return cls(visible, masked, mask, grid)


def distance_weights(patches: MaskedPatches) -> torch.Tensor:
    """Weights (B, V) of visible patches: 1 / sqrt(d), d the distance to the nearest masked patch (V-JEPA 2.1).

    d is Euclidean in the grid of patches (arXiv 2603.14482, dense predictive loss).
    """
    axes = [torch.arange(size, device=patches.mask.device, dtype=torch.float32) for size in patches.grid]
    places = torch.cartesian_prod(*axes)
    distances = torch.cdist(places, places)
    # (B, V, L), infinite to visible patches
    to_masked = distances[patches.visible].masked_fill(~patches.mask[:, None], torch.inf)
    return to_masked.amin(dim=-1).rsqrt()


def compared_pairs(
    outputs: MVDForFeatureDistillationOutput,
    features: Mapping[str, torch.Tensor],
    targets: Mapping[str, Target],
    patches: MaskedPatches,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What is compared: by target the student's prediction and the teacher's features, both (B, n, D).

    Args:
        outputs: of the student.
        features: by name of the features, normalized: (B / m, L, D), or (B / m, 1, D) of a summary.
        targets: see `mvd_hf.teachers.targets.targets_of`.
        patches: which of them are masked.
    """
    predictions, wanted = {}, {}
    num_visible, num_rows = patches.visible.shape[1], len(patches.visible)
    for name, target in targets.items():
        theirs = features[target.features]
        if target.tokens == "summary":
            predictions[name] = outputs.summaries[target.teacher][:, None]
            wanted[name] = theirs.repeat_interleave(num_rows // len(theirs), dim=0)
            continue
        ours = outputs.predictions[target.teacher]
        if target.is_split:
            ours = ours[:, :num_visible] if target.tokens == "visible" else ours[:, num_visible:]
        if target.width < ours.shape[-1]:
            ours = ours[..., target.first : target.first + target.width]
        predictions[name] = ours
        wanted[name] = select_patches(theirs, patches.visible if target.tokens == "visible" else patches.masked)
    return predictions, wanted


class LossScale(nn.Module):
    """Keeps the parts of a loss of equal size: factors mean(m) / m_i, m_i the running mean of part i.

    m_i is an exponential moving average with decay 0.99, corrected for its start. A part divided by its moving average
    is the loss scaling of Lakkapragada et al. (arXiv 2211.12999); the mean of all averages keeps the size of the sum.

    Args:
        names: of the parts.
        device: where the losses are.
    """

    def __init__(self, names: list[str], device: torch.device | str = "cpu"):
        super().__init__()
        self.names = names
        self.register_buffer("sums", torch.zeros(len(names), device=device))
        self.register_buffer("weight", torch.zeros((), device=device))

    @torch.no_grad()
    def update(
        self,
        losses: Mapping[str, torch.Tensor],
        reduce: Callable[[torch.Tensor], torch.Tensor],
        is_blank: bool = False,
    ):
        """Add the losses of a micro-batch of all processes; those of a blank batch have no weight."""
        values = torch.stack([losses[name].detach().float() for name in self.names])
        share = torch.zeros_like(values[:1]) if is_blank else torch.ones_like(values[:1])
        total = reduce(torch.cat([share, values.nan_to_num() * share]))
        if_any = (total[0] > 0).float()
        mean = total[1:] / total[0].clamp(min=1)
        step = (1 - SCALE_DECAY) * if_any
        self.sums += (mean - self.sums) * step
        self.weight += (1 - self.weight) * step

    def forward(self) -> dict[str, torch.Tensor]:
        """A factor for each part; 1 before the first update."""
        means = (self.sums / self.weight.clamp(min=1 - SCALE_DECAY)).clamp(min=torch.finfo(torch.float32).tiny)
        factors = torch.where(self.weight > 0, means.mean() / means, torch.ones_like(means))
        return dict(zip(self.names, factors, strict=True))
