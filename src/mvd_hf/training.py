"""MVDTrainer: the Hugging Face Trainer with the paper's rates, schedule and parameter groups, and exact resume."""

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler, default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .model.modeling_mvd import MVDForFeatureDistillation, MVDForPixelReconstruction, MVDPreTrainedModel

logger = logging.getLogger(__name__)


@dataclass
class MVDTrainingArguments(TrainingArguments):
    """Training arguments with the paper's defaults for pre-training (ViT-B, 400 epochs).

    The learning rate follows the official rule: `base_learning_rate` times the total batch (clips per process times
    accumulation steps times processes) over 256, warmed up from 0 and then a cosine to the floor, step by step.

    Args:
        base_learning_rate: peak rate for a total batch of 256; `None` takes `learning_rate` as it is.
        base_min_learning_rate: floor of the schedule for a total batch of 256 (unscaled where the peak is).
        warmup_epochs: epochs of linear warm-up, unless `warmup_steps` is given.
        schedule_epochs: epochs the schedule is laid out for; by default `num_train_epochs`. The published
            checkpoints stop one epoch before the end of theirs.
        weight_decay_end: if given, weight decay moves from `weight_decay` to it along a cosine.
        layer_decay: if given, layer i of L has its rate multiplied by `layer_decay ** (L + 1 - i)` (fine-tuning).
    """

    base_learning_rate: float | None = field(default=1.5e-4)
    base_min_learning_rate: float = field(default=1e-5)
    warmup_epochs: float = field(default=40.0)
    schedule_epochs: float | None = field(default=None)
    weight_decay_end: float | None = field(default=None)
    layer_decay: float | None = field(default=None)

    num_train_epochs: float = field(default=400.0)
    weight_decay: float = field(default=0.05)
    adam_beta2: float = field(default=0.95)
    max_grad_norm: float = field(default=math.inf)
    seed: int = field(default=0)
    logging_steps: float = field(default=10)
    logging_nan_inf_filter: bool = field(default=False)
    save_strategy: str = field(default="epoch")
    dataloader_num_workers: int = field(default_factory=lambda: min(10, os.cpu_count() or 1))
    remove_unused_columns: bool | None = field(default=False)
    ddp_find_unused_parameters: bool | None = field(default=False)

    def __post_init__(self):
        super().__post_init__()
        self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type == "cuda"
        self.min_learning_rate = self.base_min_learning_rate
        if self.base_learning_rate is not None:
            scale = self.total_batch_size / 256
            self.learning_rate = self.base_learning_rate * scale
            self.min_learning_rate = self.base_min_learning_rate * scale

    @property
    def device(self) -> torch.device:
        """Where this process computes; several CPU processes say `cpu:0`, which torch 2.11 cannot restore to."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def total_batch_size(self) -> int:
        """Clips per optimizer step: per process, times accumulation steps, times processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size


def cosine_schedule(peak: float, floor: float, total_steps: int, warmup_steps: int, start: float = 0.0) -> np.ndarray:
    """A value per step: linear from the start to the peak, both included, then half a cosine towards the floor.

    The peak occurs at two consecutive steps, the floor is approached and not reached, as in the official schedule.

    Raises:
        ValueError: if the warm-up is longer than the schedule.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"A warm-up of {warmup_steps} steps does not fit a schedule of {total_steps} steps: train for more epochs "
            "or lower warmup_epochs (or warmup_steps)."
        )
    warmup = np.linspace(start, peak, warmup_steps)
    steps = np.arange(total_steps - warmup_steps)
    cosine = floor + 0.5 * (peak - floor) * (1 + np.cos(np.pi * steps / max(len(steps), 1)))
    return np.concatenate([warmup, cosine])


def has_weight_decay(name: str, parameter: nn.Parameter, model: MVDPreTrainedModel) -> bool:
    """The official rule: no decay for vectors, biases, the class token and VideoMAE's mask token.

    The student's mask tokens do decay (their official names escape the rule's list), and so do MAE's tokens.
    """
    if parameter.dim() == 1 or name.endswith("bias"):
        return False
    if model.config.pixel_target == "mae" and isinstance(model, MVDForPixelReconstruction):
        return True
    return name not in ("mvd.embeddings.class_token", "decoder.mask_token")


def layer_of(name: str, num_layers: int) -> int:
    """Place of a parameter for layer-wise decay: 0 the embeddings, i + 1 layer i, `num_layers + 1` the rest."""
    name = name.removeprefix("mvd.")
    if name.startswith("embeddings."):
        return 0
    if name.startswith("layers."):
        return int(name.split(".")[1]) + 1
    return num_layers + 1


def parameter_groups(model: MVDPreTrainedModel, weight_decay: float, layer_decay: float | None = None) -> list[dict]:
    """Optimizer groups of the trainable parameters: one per weight decay and rate, the head's first.

    Returns:
        Dicts with `params`, `weight_decay` and `lr_scale` (1 without `layer_decay`).
    """
    num_layers = model.config.num_hidden_layers
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if has_weight_decay(name, parameter, model) else 0.0
        scale = 1.0 if layer_decay is None else layer_decay ** (num_layers + 1 - layer_of(name, num_layers))
        group = groups.setdefault((scale, decay), {"params": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]


class EpochSampler(Sampler):
    """Shuffled (epoch, index) pairs, the same on every process, as many as whole optimizer steps take.

    Args:
        num_samples: size of the data set.
        total_batch_size: samples per optimizer step over all processes.
        seed: seed of the order.

    Raises:
        ValueError: if the data set is smaller than one step.
    """

    def __init__(self, num_samples: int, total_batch_size: int, seed: int):
        if num_samples < total_batch_size:
            raise ValueError(
                f"The data set has {num_samples} samples, fewer than the total batch of {total_batch_size}: lower "
                "per_device_train_batch_size or gradient_accumulation_steps."
            )
        self.num_samples, self.seed, self.epoch = num_samples, seed, 0
        self.length = num_samples // total_batch_size * total_batch_size

    def set_epoch(self, epoch: int):
        """Choose the epoch whose order and random draws come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples)
        return iter([(self.epoch, int(index)) for index in order[: self.length]])


class LossParts:
    """Sums of named losses on the device, and the first step at which one was not finite, without synchronising."""

    def __init__(self):
        self.names: tuple[str, ...] = ()
        self.count = 0

    def add(self, parts: Mapping[str, torch.Tensor], step: int):
        """Add the losses of a micro-batch of optimizer step `step`."""
        values = torch.stack([part.detach().float() for part in parts.values()])
        if self.count == 0:
            self.names = tuple(parts)
            self.sums = torch.zeros_like(values)
            self.first_bad = torch.full_like(values, torch.inf)
        self.sums += values
        self.first_bad = torch.where(values.isfinite(), self.first_bad, self.first_bad.clamp(max=step))
        self.count += 1

    def means(self, accelerator) -> dict[str, float]:
        """Mean of each loss over the micro-batches and processes since the last call.

        Raises:
            FloatingPointError: on all processes, naming step and part, if a loss was NaN or infinite.
        """
        if self.count == 0:
            return {}
        self.check(accelerator)
        means = accelerator.reduce(self.sums / self.count, "mean").tolist()
        self.count = 0
        return dict(zip(self.names, means, strict=True))

    def check(self, accelerator):
        """Raise FloatingPointError if a loss was not finite on any process."""
        if self.count == 0:
            return
        first_bad = accelerator.gather(self.first_bad).view(-1, len(self.names)).amin(dim=0)
        if first_bad.isfinite().any():
            part = int(first_bad.argmin())
            raise FloatingPointError(
                f"The loss {self.names[part]!r} is NaN or infinite at step {int(first_bad[part])}. Training stops, "
                "the last checkpoint is kept. Lower the learning rate, use bf16 instead of fp16, or check the inputs."
            )


def last_complete_checkpoint(folder: str | os.PathLike) -> str | None:
    """The newest checkpoint of an output folder that was written to its end; one cut off by a crash is passed over."""
    steps = {
        path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"): path
        for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    }
    for step in sorted((step for step in steps if step.isdigit()), key=int, reverse=True):
        checkpoint = steps[step]
        try:
            json.loads((checkpoint / TRAINER_STATE_NAME).read_text())  # the file that is written last
        except (OSError, ValueError) as error:
            logger.warning("%s is incomplete and is passed over (%s).", checkpoint, error)
            continue
        return str(checkpoint)
    return None


class PaperRules(TrainerCallback):
    """Sets what depends on the epoch, step and process alone: the data's epoch, the random seed, the weight decay."""

    def __init__(self, trainer: "MVDTrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.trainer.epoch_sampler is not None:
            self.trainer.epoch_sampler.set_epoch(math.floor(state.epoch + 1e-6))

    def on_step_begin(self, args, state, control, **kwargs):
        # stochastic depth follows the step, so that a resumed run draws as an uninterrupted one
        entropy = np.random.SeedSequence((args.seed, args.process_index, state.global_step))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        if self.trainer.weight_decays is not None:
            step = min(state.global_step, len(self.trainer.weight_decays) - 1)
            for group in self.trainer.optimizer.param_groups:
                if group["weight_decay"] > 0:
                    group["weight_decay"] = float(self.trainer.weight_decays[step])

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.parts["loss"].check(self.trainer.accelerator)


class MVDTrainer(Trainer):
    """Trains any MVD model by the paper's rules; stage 1 and fine-tuning use it as it is.

    Differences to `Trainer`: base-rate scaling, the official schedule and weight-decay groups, optional layer-wise
    rates, samples drawn by (seed, epoch, index) so that a resumed run continues exactly, parts of the loss in the
    log, and a stop with step and part when a loss is not finite.
    """

    def __init__(self, model: MVDPreTrainedModel, args: MVDTrainingArguments, **kwargs):
        self.epoch_sampler: EpochSampler | None = None
        self.weight_decays: np.ndarray | None = None
        self.parts = {"loss": LossParts(), "eval_loss": LossParts()}
        kwargs.setdefault("data_collator", default_collate)
        super().__init__(model=model, args=args, **kwargs)
        is_pretraining = isinstance(model, MVDForPixelReconstruction | MVDForFeatureDistillation)
        self.num_masked = model.config.num_masked_patches if is_pretraining else None
        self.add_callback(PaperRules(self))

    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; leftover samples are dropped."""
        return len(self.train_dataset) // self.args.total_batch_size

    def describe(self) -> str:
        """What the run arrived at: batch, learning rate, processes, precision, steps and sizes."""
        args = self.args
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        scaled = "" if args.base_learning_rate is None else f" (base {args.base_learning_rate:g} x batch / 256)"
        return (
            f"{type(self.model).__name__}: {trainable:,} trainable parameters. "
            f"Effective batch {args.total_batch_size} = {args.train_batch_size} clips x "
            f"{args.gradient_accumulation_steps} accumulation steps x {self.accelerator.num_processes} processes. "
            f"Learning rate {args.learning_rate:g}{scaled}, floor {args.min_learning_rate:g}. "
            f"{len(self.train_dataset)} samples, {self.steps_per_epoch()} steps per epoch, "
            f"{args.num_train_epochs:g} epochs. Precision {precision} on {args.device}."
        )

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.epoch_sampler = EpochSampler(len(train_dataset), self.args.total_batch_size, seed)
        return self.epoch_sampler

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(model, self.args.weight_decay, self.args.layer_decay)
            for group in groups:
                group["lr"] = self.args.learning_rate * group["lr_scale"]
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            args = self.args
            total = num_training_steps
            if args.schedule_epochs is not None:
                total = round(args.schedule_epochs * self.steps_per_epoch())
            warmup = args.get_warmup_steps(total) if args.warmup_steps else 0
            warmup = warmup or int(args.warmup_epochs * self.steps_per_epoch())
            rates = cosine_schedule(args.learning_rate, args.min_learning_rate, total, warmup) / args.learning_rate
            rates = rates.tolist()  # checkpoints hold the last rate and are read back without NumPy's types
            if args.weight_decay_end is not None:
                self.weight_decays = cosine_schedule(args.weight_decay, args.weight_decay_end, total, 0)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer if optimizer is None else optimizer, lambda step: rates[min(step, total - 1)]
            )
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.num_masked is not None:
            inputs = {**inputs, "num_masked": self.num_masked}
        outputs = model(**inputs)
        self.record({"total": outputs.loss})
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def record(self, parts: Mapping[str, torch.Tensor]):
        """Remember the parts of a micro-batch's loss for the log."""
        self.parts["loss" if self.model.training else "eval_loss"].add(parts, self.state.global_step + 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each part of the loss, as `loss_<part>`, and stop if one is not finite."""
        for prefix, parts in self.parts.items():
            if prefix in logs:
                means = parts.means(self.accelerator)
                logs.update({f"{prefix}_{name}": value for name, value in means.items() if name != "total"})
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial):
        self.parts["loss"].check(self.accelerator)  # a model that met NaN is not worth keeping
        super()._save_checkpoint(model, trial)

    def run(self):
        """Train from the last checkpoint of the output folder, if there is one, and save the model there.

        Logs what the run arrived at and, with an evaluation set, the loss on it before and after. It is the last
        thing a recipe does: the processes wait for each other and leave their group.
        """
        is_main = self.is_world_process_zero()
        if is_main:
            logger.info(self.describe())
        checkpoint = last_complete_checkpoint(self.args.output_dir)
        if checkpoint is not None and is_main:
            logger.info("Resuming from %s", checkpoint)
        untrained = self.evaluate()["eval_loss"] if self.eval_dataset is not None and checkpoint is None else None
        self.train(resume_from_checkpoint=checkpoint)
        self.save_model()
        if self.eval_dataset is not None:
            trained = self.evaluate()["eval_loss"]
            if untrained is not None and is_main:
                change = 100 * (1 - trained / untrained)
                logger.info("Held-out loss: %.4f untrained, %.4f trained (%.0f %% lower).", untrained, trained, change)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
