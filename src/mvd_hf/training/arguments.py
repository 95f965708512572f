"""MVDTrainingArguments: the Hugging Face arguments with the paper's rates and defaults, and what they must not be."""

import logging
import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

logger = logging.getLogger(__name__)


@dataclass
class MVDTrainingArguments(TrainingArguments):
    """Training arguments with the paper's defaults for pre-training (ViT-B, 400 epochs).

    The learning rate follows the official rule: `base_learning_rate` times the total batch (clips per process times
    accumulation steps times processes) over 256, warmed up from 0 and then a cosine to the floor, step by step.

    Args:
        base_learning_rate: peak rate for a total batch of 256; `None` takes `learning_rate` as it is.
        base_min_learning_rate: floor of the schedule for a total batch of 256 (unscaled where the peak is).
        warmup_epochs: epochs of linear warm-up, unless `warmup_steps` is above 0.
        schedule_epochs: epochs the schedule is laid out for; by default `num_train_epochs`. The published
            checkpoints stop one epoch before the end of theirs.
        weight_decay_end: if given, weight decay moves from `weight_decay` to it along a cosine.
        layer_decay: if given, layer i of L has its rate multiplied by `layer_decay ** (L + 1 - i)` (fine-tuning).
        clips_per_video: clips cut from each video of a batch in pre-training; the learning rate counts them, the
            batch sizes count videos.
        license: of the trained weights, as the Hub writes it; nothing is pushed to the Hub without it.
        hub_private_repo: whether a new repository of the Hub is private; it is, unless told otherwise.
        hub_strategy: when to push; only `end` leaves the logs and lists of the output folder on this machine.
        masks_per_clip: masks under which the student sees each clip of a batch in pre-training, while the teachers
            see it once; the loss is the mean over them. Like the official clips per video they count in the learning
            rate, not in the batch sizes.
    """

    base_learning_rate: float | None = field(default=1.5e-4)
    base_min_learning_rate: float = field(default=1e-5)
    warmup_epochs: float = field(default=40.0)
    schedule_epochs: float | None = field(default=None)
    weight_decay_end: float | None = field(default=None)
    layer_decay: float | None = field(default=None)
    clips_per_video: int = field(default=1)
    license: str | None = field(default=None)
    masks_per_clip: int = field(default=1)

    num_train_epochs: float = field(default=400.0)
    weight_decay: float = field(default=0.05)
    adam_beta2: float = field(default=0.95)
    max_grad_norm: float = field(default=0.0)
    seed: int = field(default=0)
    logging_steps: float = field(default=10)
    logging_nan_inf_filter: bool = field(default=False)
    save_strategy: str = field(default="epoch")
    dataloader_num_workers: int = field(default_factory=lambda: min(10, os.cpu_count() or 1))
    dataloader_persistent_workers: bool = field(default=True)
    remove_unused_columns: bool | None = field(default=False)
    hub_private_repo: bool | None = field(default=True)
    hub_strategy: str = field(default="end")
    ddp_find_unused_parameters: bool | None = field(default=False)

    def __post_init__(self):
        super().__post_init__()
        check_processes(self.world_size)
        self._check()
        self.dataloader_persistent_workers = self.dataloader_persistent_workers and self.dataloader_num_workers > 0
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type == "cuda"
        self.accelerator_config.non_blocking = self.accelerator_config.non_blocking or self.dataloader_pin_memory
        self.min_learning_rate = self.base_min_learning_rate
        if self.base_learning_rate is not None:
            scale = self.effective_batch_size / 256
            self.learning_rate = self.base_learning_rate * scale
            self.min_learning_rate = self.base_min_learning_rate * scale

    def _check(self):
        """Raise ValueError for what would not do what it says."""
        rate = self.learning_rate if self.base_learning_rate is None else self.base_learning_rate
        splits_batches = self.accelerator_config is not None and self.accelerator_config.split_batches
        reasons = {
            f"clips_per_video={self.clips_per_video} must be at least 1": self.clips_per_video < 1,
            f"masks_per_clip={self.masks_per_clip} must be at least 1": self.masks_per_clip < 1,
            f"a learning rate of {rate:g} must be above 0": rate <= 0,
            "push_to_hub needs the license of the weights": self.push_to_hub and not self.license,
            "weight_decay_end needs a weight_decay above 0": self.weight_decay_end and not self.weight_decay,
            "auto_find_batch_size changes the batch that scales the learning rate": self.auto_find_batch_size,
            "split_batches divides the batch that scales the learning rate": splits_batches,
            "label_smoothing_factor is unknown to the model's loss; give soft labels": self.label_smoothing_factor,
            f"train_sampling_strategy={self.train_sampling_strategy!r} is not 'random', which can be resumed": (
                self.train_sampling_strategy != "random"
            ),
        }
        for reason, applies in reasons.items():
            if applies:
                raise ValueError(f"These training arguments cannot be used: {reason}.")

    @property
    def device(self) -> torch.device:
        """Where this process computes; several CPU processes say `cpu:0`, which torch 2.11 cannot restore to."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def total_batch_size(self) -> int:
        """Videos per optimizer step: per process, times accumulation steps, times processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def effective_batch_size(self) -> int:
        """Masked clips per optimizer step, which the learning rate counts."""
        return self.total_batch_size * self.clips_per_video * self.masks_per_clip


def check_processes(world_size: int):
    """Warn where `accelerate launch --cpu` was asked for several processes: it starts one, without a word.

    Raises:
        ValueError: if several processes were started that do not know of each other.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > 1 and world_size == 1:
        raise ValueError(
            f"WORLD_SIZE={started}: so many processes were started, but each would train by itself, as they do not "
            "know of each other. On a machine without GPUs set ACCELERATE_USE_CPU=true; for a single process unset "
            "WORLD_SIZE."
        )
    is_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if is_cpu and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        logger.warning(
            "accelerate launch --cpu was asked for several processes and has started one: batch and learning rate are "
            "those of one. For several, set ACCELERATE_USE_CPU=true and launch with --multi_gpu instead of --cpu."
        )
