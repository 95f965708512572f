"""Stage 2, spatial-temporal co-teaching (paper, Alg. 1): predicting the teachers' features of hidden patches."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..data.clips import IS_BLANK
from ..hub.run_record import source_record
from ..model.modeling_mvd import MVDForFeatureDistillation
from ..model.patches_mvd import select_tokens, split_mask
from .diagnostics import OnlineProbe, agreement, effective_rank
from .trainer import MVDTrainer

PROBE = "online_probe.pt"
LOSSES = {
    "smooth_l1": nn.functional.smooth_l1_loss,
    "l1": nn.functional.l1_loss,
    "l2": nn.functional.mse_loss,
}


def hidden_targets(
    predictions: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor], bool_masked_pos: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The teachers' features at the hidden patches, (B, M, D) in float32, which the predictions are compared with.

    Args:
        predictions: per teacher (B, M, D).
        targets: per teacher (B, L, D), or (B / m, L, D) of clips that the student saw under m masks each.
        bool_masked_pos: (B, L) bool, True marks the patches that were predicted; M per row.

    Raises:
        ValueError: if the names of predictions and targets differ.
    """
    if predictions.keys() != targets.keys():
        raise ValueError(f"The student predicts {sorted(predictions)}, the teachers are {sorted(targets)}.")
    rows, masked = next(iter(predictions.values())).shape[:2]
    _, ids = split_mask(bool_masked_pos, masked)
    hidden = {}
    for name in predictions:
        clips, _, width = targets[name].shape
        hidden[name] = select_tokens(targets[name], ids.reshape(clips, -1)).view(rows, masked, width).float()
    return hidden


def losses_at_hidden_patches(
    predictions: Mapping[str, torch.Tensor], hidden: Mapping[str, torch.Tensor], losses: Mapping[str, str] | str
) -> dict[str, torch.Tensor]:
    """As [`distillation_losses`], of targets at the hidden patches only."""
    parts = {}
    for name, prediction in predictions.items():
        kind = losses if isinstance(losses, str) else losses[name]
        if kind not in LOSSES:
            raise ValueError(f"There is no loss {kind!r}; choose {', '.join(LOSSES)}.")
        parts[name] = LOSSES[kind](prediction.float(), hidden[name])
    return parts


def distillation_losses(
    predictions: Mapping[str, torch.Tensor],
    targets: Mapping[str, torch.Tensor],
    bool_masked_pos: torch.Tensor,
    losses: Mapping[str, str] | str = "smooth_l1",
) -> dict[str, torch.Tensor]:
    """The loss against each teacher, in float32: mean over clips, hidden patches and channels.

    Args:
        predictions: per teacher (B, M, D), hidden patches in ascending order.
        targets: per teacher (B, L, D), all patches; (B / m, L, D) if the rows are m masks of each clip.
        bool_masked_pos: (B, L) bool, True marks the patches that were predicted (those hidden, or the part of them
            that was decoded); M per row.
        losses: `smooth_l1` (beta 1, the paper's), `l1` or `l2`; one for all or one per teacher.

    Returns:
        Per teacher a scalar, not weighted.

    Raises:
        ValueError: if the names of predictions and targets differ, or there is no such loss.
    """
    return losses_at_hidden_patches(predictions, hidden_targets(predictions, targets, bool_masked_pos), losses)


def compare(
    predictions: Mapping[str, torch.Tensor],
    targets: Mapping[str, torch.Tensor],
    bool_masked_pos: torch.Tensor,
    losses: Mapping[str, str],
    weights: Mapping[str, float],
) -> dict[str, torch.Tensor]:
    """Scalars of a batch: `loss_<teacher>`, their weighted sum `loss`, and the agreement with each teacher.

    Many passes over large tensors with little arithmetic: compiled, they become a few.

    Args:
        predictions, targets, bool_masked_pos, losses: as for [`distillation_losses`].
        weights: factor of each teacher's loss.
    """
    hidden = hidden_targets(predictions, targets, bool_masked_pos)
    parts = losses_at_hidden_patches(predictions, hidden, losses)
    return {
        **{f"loss_{name}": loss for name, loss in parts.items()},
        "loss": sum(weight * parts[name] for name, weight in weights.items()),
        **agreement(predictions, hidden),
    }


class DistillationTrainer(MVDTrainer):
    """Trains a student on the features of frozen teachers, which stay outside of it and of its checkpoints.

    Args:
        model: the student.
        teachers: teachers by name (`mvd_hf.load_teachers`), the names of `model.config.teacher_dims`.
        probe: a linear classifier to train beside the student on batches that have `labels`.
        kwargs: as for [`MVDTrainer`].

    Raises:
        ValueError: if the student's decoders and the teachers do not belong together.
    """

    def __init__(
        self, model: MVDForFeatureDistillation, teachers: Mapping, probe: OnlineProbe | None = None, **kwargs
    ):
        dims = {name: teacher.feature_dim for name, teacher in teachers.items()}
        if dims != model.config.teacher_dims:
            raise ValueError(
                f"The student's teacher_dims {model.config.teacher_dims} do not match the teachers' widths {dims}."
            )
        super().__init__(model=model, **kwargs)
        for teacher in (teacher for teacher in teachers.values() if teacher.config.shard):
            teacher.shard(self.args.device)  # before it goes there as a whole
        self.teachers = {name: teacher.to(self.args.device) for name, teacher in teachers.items()}
        self.run_record.sources |= {name: source_record(teacher.config.model) for name, teacher in teachers.items()}
        self.probe = None if probe is None else probe.to(self.args.device)
        self.last_features: torch.Tensor | None = None
        options = {"backend": self.args.torch_compile_backend, "mode": self.args.torch_compile_mode}
        self.compare_in_training = torch.compile(compare, **options) if self.args.torch_compile else compare

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted sum of the losses against each teacher; each is logged as `loss_<teacher>`, with its health."""
        clips = {
            value.shape[-1]: value
            for key, value in inputs.items()
            if key == "pixel_values" or key.startswith("pixel_values_")
        }
        with torch.no_grad(), self.accelerator.autocast():
            targets = {name: teacher(clips) for name, teacher in self.teachers.items()}
        seen = self.masked_inputs(inputs)
        outputs = model(**seen)
        is_blank = inputs.get(IS_BLANK, False)
        parts = (self.compare_in_training if self.model.training else compare)(
            outputs.predictions,
            targets,
            seen.get("bool_decoded_pos", seen["bool_masked_pos"]),
            {name: teacher.config.loss for name, teacher in self.teachers.items()},
            {name: teacher.config.weight for name, teacher in self.teachers.items()},
        )
        if self.model.training:
            self.last_features = outputs.last_hidden_state.detach()
            if self.probe is not None:
                labels = inputs["labels"]
                features = self.last_features.unflatten(0, (len(labels), -1)).flatten(1, 2)  # under all of its masks
                parts["probe_accuracy"] = self.probe.learn(features, labels, self.accelerator, is_blank)
        loss = self.record(parts, inputs["pixel_values"], is_blank)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the effective rank of the student's features in the last micro-batch of all processes."""
        if "loss" in logs and self.last_features is not None:
            features = self.last_features.flatten(0, 1).float()
            logs["student_rank"] = effective_rank(self.accelerator.reduce(features.T @ features, "sum"))
        super().log(logs, start_time)

    def save_beside_model(self, folder: Path):
        super().save_beside_model(folder)
        if self.probe is not None:
            state = {"model": self.probe.state_dict(), "optimizer": self.probe.optimizer.state_dict()}
            torch.save(state, folder / PROBE)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.probe is not None:
            state = torch.load(Path(resume_from_checkpoint) / PROBE, map_location=self.args.device, weights_only=True)
            self.probe.load_state_dict(state["model"])
            self.probe.optimizer.load_state_dict(state["optimizer"])
