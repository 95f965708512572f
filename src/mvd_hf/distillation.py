"""Stage 2, spatial-temporal co-teaching (paper, Alg. 1): predicting the teachers' features of hidden patches."""

from collections.abc import Mapping

import torch
from torch import nn

from .collation import IS_BLANK
from .model.modeling_mvd import MVDForFeatureDistillation
from .model.patches_mvd import select_tokens, split_mask
from .training import MVDTrainer

LOSSES = {
    "smooth_l1": nn.functional.smooth_l1_loss,
    "l1": nn.functional.l1_loss,
    "l2": nn.functional.mse_loss,
}


def distillation_losses(
    predictions: Mapping[str, torch.Tensor],
    targets: Mapping[str, torch.Tensor],
    bool_masked_pos: torch.Tensor,
    losses: Mapping[str, str] | str = "smooth_l1",
) -> dict[str, torch.Tensor]:
    """The loss against each teacher, in float32: mean over clips, hidden patches and channels.

    Args:
        predictions: per teacher (B, M, D), hidden patches in ascending order.
        targets: per teacher (B, L, D), all patches.
        bool_masked_pos: (B, L) bool, True hides; M per row.
        losses: `smooth_l1` (beta 1, the paper's), `l1` or `l2`; one for all or one per teacher.

    Returns:
        Per teacher a scalar, not weighted.

    Raises:
        ValueError: if the names of predictions and targets differ, or there is no such loss.
    """
    if predictions.keys() != targets.keys():
        raise ValueError(f"The student predicts {sorted(predictions)}, the teachers are {sorted(targets)}.")
    parts = {}
    for name, prediction in predictions.items():
        kind = losses if isinstance(losses, str) else losses[name]
        if kind not in LOSSES:
            raise ValueError(f"There is no loss {kind!r}; choose {', '.join(LOSSES)}.")
        _, masked_ids = split_mask(bool_masked_pos, prediction.shape[1])
        target = select_tokens(targets[name], masked_ids)
        parts[name] = LOSSES[kind](prediction.float(), target.float())
    return parts


class DistillationTrainer(MVDTrainer):
    """Trains a student on the features of frozen teachers, which stay outside of it and of its checkpoints.

    Args:
        model: the student.
        teachers: teachers by name (`mvd_hf.load_teachers`), the names of `model.config.teacher_dims`.
        kwargs: as for [`MVDTrainer`].

    Raises:
        ValueError: if the student's decoders and the teachers do not belong together.
    """

    def __init__(self, model: MVDForFeatureDistillation, teachers: Mapping, **kwargs):
        dims = {name: teacher.feature_dim for name, teacher in teachers.items()}
        if dims != model.config.teacher_dims:
            raise ValueError(
                f"The student's teacher_dims {model.config.teacher_dims} do not match the teachers' widths {dims}."
            )
        if "total" in dims:
            raise ValueError("A teacher cannot be named 'total', which is the name of the sum; rename it.")
        super().__init__(model=model, **kwargs)
        self.teachers = {name: teacher.to(self.args.device) for name, teacher in teachers.items()}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted sum of the losses against each teacher; each is logged as `loss_<teacher>`."""
        clips = {
            value.shape[-1]: value
            for key, value in inputs.items()
            if key == "pixel_values" or key.startswith("pixel_values_")
        }
        with torch.no_grad(), self.accelerator.autocast():
            targets = {name: teacher(clips) for name, teacher in self.teachers.items()}
        outputs = model(
            pixel_values=inputs["pixel_values"],
            bool_masked_pos=inputs["bool_masked_pos"],
            num_masked=self.num_masked,
        )
        parts = distillation_losses(
            outputs.predictions,
            targets,
            inputs["bool_masked_pos"],
            {name: teacher.config.loss for name, teacher in self.teachers.items()},
        )
        parts["total"] = sum(teacher.config.weight * parts[name] for name, teacher in self.teachers.items())
        loss = self.record(parts, inputs["pixel_values"], inputs.get(IS_BLANK, False))
        return (loss, outputs) if return_outputs else loss
