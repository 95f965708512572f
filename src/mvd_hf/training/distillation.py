"""Stage 2, spatial-temporal co-teaching (paper, Alg. 1): predicting the teachers' features of masked patches."""

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback
from transformers.utils import cached_file

from ..data.clips import IS_BLANK
from ..data.masking import NOISE, attention_masks
from ..hub.run_record import TARGET_STATISTICS, precision_of, source_record, without_private_parts
from ..model.configuration_mvd import MVDConfig
from ..model.modeling_mvd import MVDForFeatureDistillation
from ..teachers.cache import (
    LOOKUPS,
    NEUTRAL,
    CachedTeacher,
    CachingCollator,
    checkpoint_files,
    clips_by_size,
    hash_of_files,
)
from ..teachers.targets import split_features, student_fields, target_norms, targets_of
from ..teachers.teacher import TeacherConfig
from .diagnostics import OnlineProbe, agreement, effective_rank, gram_matrix
from .losses import LossScale, MaskedPatches, compared_pairs, distance_weights, distillation_losses
from .samplers import first_batches
from .trainer import MVDTrainer

logger = logging.getLogger(__name__)

PROBE = "online_probe.pt"
TARGET_STATE = "target_state.pt"
# entry of the statistics of targets that says of which teachers they are
TEACHERS = "teachers"
# fields of a TeacherConfig that do not change the statistics of its targets
WITHOUT_EFFECT = {*NEUTRAL, "summary", "guides_masks", "dtype"} - {"family", "revision"}
BALANCES = (None, "loss_scale")
REFITTED = (
    "%s has no statistics of the target %s for this teacher and its settings: they are fitted to the clips, and a "
    "decoder that is kept for it has to learn its targets anew."
)
# clips that statistics of targets are fitted to
NORM_CLIPS = 512


def check_student(config: MVDConfig, teachers: Mapping[str, TeacherConfig], widths: Mapping[str, int]):
    """Raise ValueError if a student does not predict what teachers of these widths give."""
    for field, needed in student_fields(teachers, widths).items():
        has = getattr(config, field)
        if has != needed:
            raise ValueError(
                f"The student's {field} {has} do not match those of the teachers, {needed}: set them with "
                "mvd_hf.teachers.fit_student."
            )


def choose_guide(config: MVDConfig, teachers: Mapping[str, TeacherConfig]) -> str | None:
    """The teacher whose attention chooses the visible patches, if the masks are of that kind.

    Raises:
        ValueError: if there is not exactly one, or there is one for other masks.
    """
    guides = [name for name, teacher in teachers.items() if teacher.guides_masks]
    if len(guides) != (config.mask_type == "attention"):
        raise ValueError(
            f"mask_type={config.mask_type!r}, and the teachers with guides_masks are {guides}: mask_type: attention "
            "needs exactly one, other masks none."
        )
    return guides[0] if guides else None


class FitCallback(TrainerCallback):
    """Fits the statistics of targets before the first evaluation and the first step."""

    def __init__(self, trainer: "DistillationTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.fit_norms()


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


def settings_of_features(config: TeacherConfig) -> dict:
    """What the features of a teacher follow from; the hash of its files stands for a model that is on this machine."""
    settings = {key: value for key, value in asdict(config).items() if key not in WITHOUT_EFFECT}
    path = Path(config.model)
    if not path.exists():
        return settings | {"model": config.model}
    if config.family is None:
        files = checkpoint_files(config.model)
    else:
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return settings | {"model": hash_of_files(files)}


class DistillationTrainer(MVDTrainer):
    """Trains a student on the features of frozen teachers, which stay outside of it and of its checkpoints.

    Args:
        model: the student.
        teachers: teachers by name (`mvd_hf.load_teachers`, or `mvd_hf.teachers.load_cached_teachers` for targets on
            disk), the names of `model.config.teacher_dims`.
        probe: a linear classifier to train beside the student on batches that have `labels`.
        balance: `loss_scale` keeps the losses of equal size, see [`~mvd_hf.training.losses.LossScale`]; by default
            they have the weights of the teachers alone.
        norm_clips: about so many clips, those of whole optimizer steps, are given to the teachers before training, to
            fit the statistics of `target_norm: standardize` and `phi_s`.
        kwargs: as for [`MVDTrainer`].

    Raises:
        ValueError: if the student's decoders and the teachers do not belong together, or the clips have other views
            than the targets on disk.
    """

    def __init__(
        self,
        model: MVDForFeatureDistillation,
        teachers: Mapping,
        probe: OnlineProbe | None = None,
        balance: str | None = None,
        norm_clips: int = NORM_CLIPS,
        **kwargs,
    ):
        configs = {name: teacher.config for name, teacher in teachers.items()}
        widths = {name: teacher.layer_dim for name, teacher in teachers.items()}
        check_student(model.config, configs, widths)
        self.guide = choose_guide(model.config, configs)
        if balance not in BALANCES:
            raise ValueError(f"There is no balance={balance!r}; choose loss_scale or null.")
        self.targets, self.norm_clips = targets_of(configs, widths), norm_clips
        super().__init__(model=model, **kwargs)
        self.norms = target_norms(self.targets, self.args.device)
        normed = {t.features: t.teacher for t in self.targets.values() if t.features in self.norms}
        settings = {name: settings_of_features(configs[name]) for name in set(normed.values())}
        # as they are read again: tuples become lists
        self.settings_of_norms = json.loads(json.dumps({key: settings[name] for key, name in normed.items()}))
        self.balance = None if balance is None else LossScale(list(self.targets), self.args.device)
        self.add_callback(FitCallback(self))
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
        """Weighted sum of the losses against each teacher; each is logged as `loss_<target>`, with diagnostics."""
        features = self.teacher_features(inputs)
        inputs = self.with_masks(inputs, features)
        features = self.normalized(features, inputs)
        seen = self.model_inputs({name: value for name, value in inputs.items() if name != LOOKUPS})
        outputs = model(**seen)
        config = self.model.config
        patches = MaskedPatches.of(seen, config.num_decoded_patches, config.grid)
        pairs = compared_pairs(outputs, features, self.targets, patches)
        compared = (distillation_losses, agreement)
        if self.model.training:
            compared = (self.compiled_losses, self.compiled_agreement)
        by_distance = [name for name, target in self.targets.items() if target.by_distance]
        weights = dict.fromkeys(by_distance, distance_weights(patches)) if by_distance else None
        kinds = {name: target.loss for name, target in self.targets.items()}
        losses = compared[0](*pairs, losses=kinds, token_weights=weights)
        parts = {
            **{f"loss_{name}": loss for name, loss in losses.items()},
            "loss": self.weighted_sum(losses, inputs),
            **compared[1](*pairs),
        }
        if self.model.training:
            self.last_features = outputs.last_hidden_state.detach()
            if self.probe is not None:
                parts["probe_accuracy"] = self.probe_step(inputs)
        loss = self.record(parts, inputs)
        return (loss, outputs) if return_outputs else loss

    @property
    def target_state(self) -> nn.ModuleDict:
        """What has a state besides the student: statistics of targets and running means of losses."""
        balance = {} if self.balance is None else {"balance": self.balance}
        return nn.ModuleDict(({"norms": self.norms} if len(self.norms) else {}) | balance)

    def teacher_features(self, inputs: Mapping) -> dict[str, torch.Tensor]:
        """Features (B, L [+ 1], D) of a batch by teacher, see [`~mvd_hf.teachers.Teacher`]."""
        clips, lookups = clips_by_size(inputs), inputs.get(LOOKUPS, {})
        with torch.no_grad(), self.accelerator.autocast():
            return {name: teacher(clips, **lookups.get(name, {})) for name, teacher in self.teachers.items()}

    def with_masks(self, inputs: dict, features: Mapping[str, torch.Tensor]) -> dict:
        """A batch with masks, which follow the features of the teacher that guides them if there is one."""
        if self.guide is None:
            return inputs
        if NOISE not in inputs:
            raise ValueError(f"mask_type=attention, but a batch has no {NOISE}: use mvd_hf.data.pretraining_clips.")
        config = self.model.config
        attention = features[self.guide][:, : config.num_patches, -1]
        masks = attention_masks(attention, inputs[NOISE], config.grid, config.mask_ratio)
        return {name: value for name, value in inputs.items() if name != NOISE} | {"bool_masked_pos": masks}

    def normalized(self, features: Mapping[str, torch.Tensor], inputs: Mapping) -> dict[str, torch.Tensor]:
        """Features by target, normalized by statistics, to which a training batch adds where they are running."""
        parts = split_features(features, self.targets)
        for name, norm in self.norms.items():
            if norm.is_running and self.model.training:
                norm.update(parts[name], self.sum_tensor, inputs.get(IS_BLANK, False))
            parts[name] = norm(parts[name])
        return parts

    def weighted_sum(self, losses: Mapping[str, torch.Tensor], inputs: Mapping) -> torch.Tensor:
        """The loss that is trained on."""
        weights = {name: target.weight for name, target in self.targets.items()}
        if self.balance is not None:
            if self.model.training:
                self.balance.update(losses, self.sum_tensor, inputs.get(IS_BLANK, False))
            factors = self.balance()
            weights = {name: weight * factors[name] for name, weight in weights.items()}
        return sum(weights[name] * loss for name, loss in losses.items())

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over the processes."""
        return self.accelerator.reduce(tensor, "sum")

    def take_statistics(self, source: str | Path):
        """Take the statistics of targets that a model was trained with, as its decoders predict targets by these.

        Where it has none, or those of another teacher or of other settings, they are fitted to the clips, with a
        warning.

        Args:
            source: folder or Hub id of the model.
        """
        if not len(self.norms):
            return
        options = {"_raise_exceptions_for_missing_entries": False}
        path = None if os.path.isfile(source) else cached_file(str(source), TARGET_STATISTICS, **options)
        stored, teachers = {}, {}
        if path is not None:
            with safe_open(path, "pt") as file:
                stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                teachers = json.loads(file.metadata()[TEACHERS])
        stored, teachers = broadcast_object_list([stored, teachers])  # alike on all processes
        for name, norm in self.norms.items():
            if teachers.get(name) != self.settings_of_norms[name]:
                logger.warning(REFITTED, source, name)
                continue
            norm.load_state_dict({key: stored[f"{name}.{key}"] for key in norm.state_dict()})
            norm.is_fitted = True
            logger.info("The statistics of the target %s are those of %s.", name, source)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and len(self.norms) and all(norm.is_fitted for norm in self.norms.values()):
            path = Path(output_dir or self.args.output_dir) / TARGET_STATISTICS
            path.parent.mkdir(exist_ok=True)
            save_file(self.norms.state_dict(), path, {TEACHERS: json.dumps(self.settings_of_norms)})

    def fit_norms(self):
        """Fit the statistics of targets to the clips of the first steps, but for those that a checkpoint has."""
        norms = {name: norm for name, norm in self.norms.items() if not norm.is_fitted}
        if not norms:
            return
        num_steps = math.ceil(self.norm_clips / (self.args.total_batch_size * self.args.clips_per_video))
        for inputs in first_batches(self.train_dataset, self.epoch_sampler, self.args, self.data_collator, num_steps):
            parts = split_features(self.teacher_features(self._prepare_inputs(inputs)), self.targets)
            for name, norm in norms.items():
                norm.update(parts[name], self.sum_tensor, inputs.get(IS_BLANK, False))
        for name, norm in norms.items():
            norm.finish(name)
            if self.is_world_process_zero():
                logger.info(
                    "The statistics of the target %s are of %.0f vectors; their mean standard deviation is %.3g.",
                    name,
                    norm.count.item(),
                    norm.variances().mean().sqrt().item(),
                )

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
        names["balance"] = "none" if self.balance is None else "loss_scale"
        return super().identity() | names | {"teachers": without_private_parts(teachers)}

    def save_beside_model(self, folder: Path):
        super().save_beside_model(folder)
        if self.probe is not None:
            state = {"model": self.probe.state_dict(), "optimizer": self.probe.optimizer.state_dict()}
            torch.save(state, folder / PROBE)
        if self.target_state:
            torch.save(self.target_state.state_dict(), folder / TARGET_STATE)

    def resume(self, checkpoint: Path):
        super().resume(checkpoint)
        if self.probe is not None:
            state = torch.load(checkpoint / PROBE, map_location=self.args.device, weights_only=True)
            self.probe.load_state_dict(state["model"])
            self.probe.optimizer.load_state_dict(state["optimizer"])
        if self.target_state:
            if not (checkpoint / TARGET_STATE).exists():
                raise ValueError(
                    f"{checkpoint} has no {TARGET_STATE}, as its run had no statistics of targets: give its balance "
                    "and target_norm, or another output_dir."
                )
            state = torch.load(checkpoint / TARGET_STATE, map_location=self.args.device, weights_only=True)
            self.target_state.load_state_dict(state)
            for norm in self.norms.values():
                norm.is_fitted = True
