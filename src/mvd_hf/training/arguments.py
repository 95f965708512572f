"""MVDTrainingArguments: the Hugging Face arguments with the paper's rates and defaults, and those that are refused."""

import logging
import math
import os
import sys
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.trainer_utils import IntervalStrategy, SchedulerType
from transformers.utils import is_in_notebook, is_torch_bf16_gpu_available

logger = logging.getLogger(__name__)

# trackers that transformers knows and does not list as installed
UNLISTED_TRACKERS = ("azure_ml", "flyte")
RATES = "a warm-up and a cosine: set warmup_epochs, schedule_epochs and base_min_learning_rate"
GROUPS = "the model's parameters have rates and weight decays of their own"
NO_TEXT = "there is no text in training"
ORDER = "samples are drawn by seed, epoch and index, so that training can be resumed exactly"
SCRIPT = "the script decides: recipes/distill.py and others train, and evaluate where there is an evaluation set"
# arguments of transformers that MVDTrainer does not follow: their only value, and what there is instead
REFUSED = {
    "lr_scheduler_type": (SchedulerType.COSINE, RATES),
    "lr_scheduler_kwargs": (None, RATES),
    "optim_target_modules": (None, GROUPS),
    "label_smoothing_factor": (0, "give label_smoothing to fine-tuning, or soft labels"),
    "use_liger_kernel": (False, "its kernels do not know MVD: set torch_compile"),
    "liger_kernel_config": (None, "its kernels do not know MVD: set torch_compile"),
    "use_cache": (False, NO_TEXT),
    "neftune_noise_alpha": (None, NO_TEXT),
    "include_num_input_tokens_seen": ("no", NO_TEXT),
    "auto_find_batch_size": (False, "the learning rate scales with the batch: set per_device_train_batch_size"),
    "logging_nan_inf_filter": (False, "a loss that is not finite ends training"),
    "enable_jit_checkpoint": (False, "SIGTERM saves a checkpoint already"),
    "parallelism_config": (None, "set fsdp or deepspeed with accelerate launch"),
    "dataloader_in_order": (True, ORDER),
    "remove_unused_columns": (False, "the data sets give what the trainer needs"),
    "train_sampling_strategy": ("random", ORDER),
    "length_column_name": ("length", ORDER),
    "do_train": (False, SCRIPT),
    "do_predict": (False, SCRIPT),
    "resume_from_checkpoint": (None, "training goes on from the last checkpoint of output_dir"),
    "local_rank": (-1, "the launcher sets LOCAL_RANK"),
}


@dataclass
class MVDTrainingArguments(TrainingArguments):
    """Training arguments with the paper's defaults for pre-training (ViT-B, 400 epochs).

    The learning rate follows the official rule: `base_learning_rate` times the total batch (clips per process times
    accumulation steps times processes) over 256, warmed up from 0 and then a cosine to the floor, step by step.

    Args:
        base_learning_rate: peak rate for a total batch of 256; `None` if `learning_rate` is given.
        learning_rate: peak rate as it is; by default what follows from `base_learning_rate`.
        base_min_learning_rate: floor of the schedule for a total batch of 256 (unscaled where the peak is).
        warmup_epochs: epochs of linear warm-up, unless `warmup_steps` is above 0.
        schedule_epochs: epochs the schedule is laid out for; by default `num_train_epochs`. The published
            checkpoints stop one epoch before the end of theirs.
        lr_scheduler_type: `cosine`; there is no other.
        weight_decay_end: if given, weight decay moves from `weight_decay` to it along a cosine.
        layer_decay: if given, layer i of L has its rate multiplied by `layer_decay ** (L + 1 - i)` (fine-tuning).
        clips_per_video: clips cut from each video of a batch in pre-training; the learning rate counts them, the
            batch sizes count videos.
        license: of the trained weights, as the Hub writes it; nothing is pushed to the Hub without it.
        hub_private_repo: whether a new repository of the Hub is private, which is the default.
        hub_strategy: when to push; only `end` leaves the logs and lists of the output folder on this machine.
        masks_per_clip: masks under which the student sees each clip of a batch in pre-training, while the teachers
            see it once; the loss is the mean over them. Like the official clips per video they count in the learning
            rate, not in the batch sizes.
        overwrite: replace the model of an earlier run in the output folder, and remove its checkpoints if they are of
            a run with other settings. Checkpoints of this run are continued all the same.
    """

    base_learning_rate: float | None = field(default=1.5e-4)
    learning_rate: float | None = field(default=None)
    lr_scheduler_type: SchedulerType | str = field(default="cosine")
    base_min_learning_rate: float = field(default=1e-5)
    warmup_epochs: float = field(default=40.0)
    schedule_epochs: float | None = field(default=None)
    weight_decay_end: float | None = field(default=None)
    layer_decay: float | None = field(default=None)
    clips_per_video: int = field(default=1)
    license: str | None = field(default=None)
    masks_per_clip: int = field(default=1)
    overwrite: bool = field(default=False)

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
    # the model knows which of its inputs are labels; in recipes this key has the names of the classes
    label_names: list[str] | None = field(default=None, init=False)

    def __post_init__(self):
        for name in ("bf16", "bf16_full_eval"):
            if getattr(self, name) and not self.use_cpu and not is_torch_bf16_gpu_available():
                raise ValueError(
                    f"{name}=True needs a GPU that computes in bfloat16, and there is none: give --{name} false to "
                    "compute in float32, or --use_cpu true for bfloat16 on the CPU, which is slow."
                )
        if self.disable_tqdm is None and not sys.stderr.isatty() and not is_in_notebook():
            self.disable_tqdm = True  # in a file, a line for each step of the log is legible, a bar is not
        super().__post_init__()
        check_processes(self.world_size)
        check_trackers(self.report_to)
        self._check()
        self.dataloader_persistent_workers = self.dataloader_persistent_workers and self.dataloader_num_workers > 0
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type == "cuda"
        self.accelerator_config.non_blocking = self.accelerator_config.non_blocking or self.dataloader_pin_memory
        if self.base_learning_rate is None:
            self.min_learning_rate = self.base_min_learning_rate
        else:
            scale = self.effective_batch_size / 256
            self.learning_rate = self.base_learning_rate * scale
            self.min_learning_rate = self.base_min_learning_rate * scale

    def _check(self):
        """Raise ValueError for what would not do what it says."""
        for name, (value, remedy) in REFUSED.items():
            given = getattr(self, name)
            if given != value:
                raise ValueError(f"{name}={getattr(given, 'value', given)!r} has no effect: {remedy}.")
        base, rate = self.base_learning_rate, self.learning_rate
        config, evaluates = self.accelerator_config, self.eval_strategy != IntervalStrategy.NO
        reasons = {
            f"clips_per_video={self.clips_per_video} must be at least 1": self.clips_per_video < 1,
            f"masks_per_clip={self.masks_per_clip} must be at least 1": self.masks_per_clip < 1,
            f"base_learning_rate={base} must be above 0": base is not None and base <= 0,
            f"learning_rate={rate} must be above 0 without a base_learning_rate": base is None and not (rate or 0) > 0,
            "push_to_hub needs the license of the weights": self.push_to_hub and not self.license,
            "weight_decay_end needs a weight_decay above 0": self.weight_decay_end and not self.weight_decay,
            "split_batches divides the batch that scales the learning rate": config.split_batches,
            f"use_seedable_sampler=False has no effect: {ORDER}": not config.use_seedable_sampler,
            f"do_eval=True has no effect without eval_strategy: {SCRIPT}": self.do_eval and not evaluates,
            f"average_tokens_across_devices=False has no effect: {NO_TEXT}": (
                self.world_size > 1 and not self.average_tokens_across_devices
            ),
        }
        for reason, applies in reasons.items():
            if applies:
                raise ValueError(f"These training arguments cannot be used: {reason}.")
        # a copy of arguments that were made before has the rate that follows from the base
        if None not in (base, rate) and not math.isclose(rate, base * self.effective_batch_size / 256):
            raise ValueError(
                f"learning_rate={rate} and base_learning_rate={base} exclude each other: set "
                "base_learning_rate, or make it null."
            )

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


def check_trackers(names: list[str]):
    """Raise ValueError for a tracker that transformers does not know or that is not installed."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"report_to={name!r} is no tracker: choose {', '.join(INTEGRATION_TO_CALLBACK)} or none.")
        if name not in (*get_available_reporting_integrations(), *UNLISTED_TRACKERS):
            raise ValueError(f"report_to={name!r} is not installed: pip install {name}, or choose another tracker.")
