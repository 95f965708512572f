"""Stage 2, spatial-temporal co-teaching (paper, Alg. 1): predicting the teachers' features of masked patches."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from ..data.clips import IS_BLANK
from ..hub.run_record import precision_of, source_record, without_private_parts
from ..model.modeling_mvd import MVDForFeatureDistillation
from ..model.patches_mvd import select_tokens, split_mask
from ..teachers.cache import LOOKUPS, CachedTeacher, CachingCollator, clips_by_size
from ..teachers.teacher import TeacherConfig
from .diagnostics import OnlineProbe, agreement, effective_rank, gram_matrix
from .trainer import MVDTrainer

PROBE = "online_probe.pt"
LOSSES = {
    "smooth_l1": nn.functional.smooth_l1_loss,
    "l1": nn.functional.l1_loss,
    "l2": nn.functional.mse_loss,
}


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
    rows, masked = next(iter(predictions.values())).shape[:2]
    _, ids = split_mask(bool_masked_pos, masked)
    selected = {}
    for name in predictions:
        clips, _, width = targets[name].shape
        selected[name] = select_tokens(targets[name], ids.reshape(clips, -1)).view(rows, masked, width)
    return selected


def check_names(predictions: Mapping, targets: Mapping):
    """Raise ValueError if the student predicts other teachers than there are."""
    if predictions.keys() != targets.keys():
        raise ValueError(f"The student predicts {sorted(predictions)}, the teachers are {sorted(targets)}.")


def distillation_losses(
    predictions: Mapping[str, torch.Tensor],
    targets: Mapping[str, torch.Tensor],
    bool_masked_pos: torch.Tensor | None = None,
    losses: Mapping[str, str] | str = "smooth_l1",
) -> dict[str, torch.Tensor]:
    """The loss against each teacher, in float32: mean over clips, masked patches and channels (paper, Alg. 1).

    Args:
        predictions: per teacher (B, M, D), masked patches in ascending order.
        targets: per teacher (B, L, D), all patches; (B / m, L, D) if the rows are m masks of each clip; without
            `bool_masked_pos` (B, M, D), as from [`masked_targets`].
        bool_masked_pos: (B, L) bool, True marks the patches that were predicted (the masked ones, or the part of them
            that was decoded); M per row.
        losses: `smooth_l1` (beta 1, the paper's), `l1` or `l2`; one for all or one per teacher.

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
        parts[name] = LOSSES[kind](prediction.float(), targets[name].float())
    return parts


def check_views(dataset, teachers: Mapping[str, CachedTeacher]):
    """Raise ValueError if a data set has other views than those whose targets are stored."""
    reader = getattr(dataset, "reader", None)
    for name, teacher in teachers.items():
        if reader is not None and reader.views != teacher.cache.views:
            raise ValueError(
                f"The data set has views={reader.views}, the cache of the teacher {name!r} has views="
                f"{teacher.cache.views}: give views to mvd_hf.data.pretraining_clips."
            )


def teacher_record(config: TeacherConfig) -> dict:
    """The record of a teacher as a source of the run; `custom_code` says which code of others it ran."""
    custom = [f"family {config.family}"] if config.family else []
    custom += [f"code of its repository at {config.revision or 'no revision'}"] if config.trust_remote_code else []
    return source_record(config.model) | ({"custom_code": ", ".join(custom)} if custom else {})


class DistillationTrainer(MVDTrainer):
    """Trains a student on the features of frozen teachers, which stay outside of it and of its checkpoints.

    Args:
        model: the student.
        teachers: teachers by name (`mvd_hf.load_teachers`, or `mvd_hf.teachers.load_cached_teachers` for targets on
            disk), the names of `model.config.teacher_dims`.
        probe: a linear classifier to train beside the student on batches that have `labels`.
        kwargs: as for [`MVDTrainer`].

    Raises:
        ValueError: if the student's decoders and the teachers do not belong together, or the clips have other views
            than the targets on disk.
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
        self.teachers, self.cached = dict(teachers), {}
        for name, teacher in teachers.items():
            if isinstance(teacher, CachedTeacher):
                self.cached[name] = teacher.open(precision_of(self.args), self.args.device)
            else:
                teacher.to(self.args.device)
        if self.cached:
            check_views(self.train_dataset, self.cached)
            self.data_collator = CachingCollator(self.data_collator, self.cached)
        self.run_record.sources |= {name: teacher_record(teacher.config) for name, teacher in teachers.items()}
        self.probe = None if probe is None else probe.to(self.args.device)
        self.last_features: torch.Tensor | None = None
        # Many passes over large tensors with little arithmetic: compiled, they become a few.
        options = {"backend": self.args.torch_compile_backend, "mode": self.args.torch_compile_mode}
        is_compiled = self.args.torch_compile
        self.compiled_losses = torch.compile(distillation_losses, **options) if is_compiled else distillation_losses
        self.compiled_agreement = torch.compile(agreement, **options) if is_compiled else agreement

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted sum of the losses against each teacher; each is logged as `loss_<teacher>`, with diagnostics."""
        clips, lookups = clips_by_size(inputs), inputs.get(LOOKUPS, {})
        with torch.no_grad(), self.accelerator.autocast():
            targets = {name: teacher(clips, **lookups.get(name, {})) for name, teacher in self.teachers.items()}
        seen = self.model_inputs({name: value for name, value in inputs.items() if name != LOOKUPS})
        outputs = model(**seen)
        targets = masked_targets(outputs.predictions, targets, seen.get("bool_decoded_pos", seen["bool_masked_pos"]))
        compared = (distillation_losses, agreement)
        if self.model.training:
            compared = (self.compiled_losses, self.compiled_agreement)
        kinds = {name: teacher.config.loss for name, teacher in self.teachers.items()}
        losses = compared[0](outputs.predictions, targets, losses=kinds)
        parts = {
            **{f"loss_{name}": loss for name, loss in losses.items()},
            "loss": sum(teacher.config.weight * losses[name] for name, teacher in self.teachers.items()),
            **compared[1](outputs.predictions, targets),
        }
        if self.model.training:
            self.last_features = outputs.last_hidden_state.detach()
            if self.probe is not None:
                parts["probe_accuracy"] = self.probe_step(inputs)
        loss = self.record(parts, inputs)
        return (loss, outputs) if return_outputs else loss

    def probe_step(self, inputs: Mapping) -> torch.Tensor:
        """Accuracy of the online probe on a batch, from which it then learns."""
        labels = inputs["labels"]
        features = self.last_features.unflatten(0, (len(labels), -1)).flatten(1, 2)  # of a clip under all its masks
        return self.probe.learn(features, labels, self.accelerator, inputs.get(IS_BLANK, False))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the effective rank of the student's features in the last micro-batch of all processes.

        With a cache of targets, `teacher_passes` counts the batches that teachers have computed until now.
        """
        if "loss" in logs and self.cached:
            logs["teacher_passes"] = self.sum_over_processes(sum(each.passes for each in self.cached.values()))
        if "loss" in logs and self.last_features is not None:
            gram = gram_matrix(self.last_features.flatten(0, 1))
            logs["student_rank"] = effective_rank(self.accelerator.reduce(gram, "sum"))
        super().log(logs, start_time)

    def identity(self) -> dict:
        speed = ("dtype", "compile", "frames_per_pass", "shard")
        teachers = {
            name: {key: value for key, value in asdict(teacher.config).items() if key not in speed}
            for name, teacher in self.teachers.items()
        }
        names = {"names of teachers": sorted(teachers)}
        cached = [f"{name} ({each.cache.views} views, {each.cache.dtype})" for name, each in self.cached.items()]
        names["target_cache"] = ", ".join(cached) or "none"
        return super().identity() | names | {"teachers": without_private_parts(teachers)}

    def save_beside_model(self, folder: Path):
        super().save_beside_model(folder)
        if self.probe is not None:
            state = {"model": self.probe.state_dict(), "optimizer": self.probe.optimizer.state_dict()}
            torch.save(state, folder / PROBE)

    def resume(self, checkpoint: Path):
        super().resume(checkpoint)
        if self.probe is not None:
            state = torch.load(checkpoint / PROBE, map_location=self.args.device, weights_only=True)
            self.probe.load_state_dict(state["model"])
            self.probe.optimizer.load_state_dict(state["optimizer"])
