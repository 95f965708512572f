"""Speed and phases of a training run, data loading included."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from mvd_hf.training.arguments import MVDTrainingArguments
from mvd_hf.training.distillation import DistillationTrainer

from .models import check_counts
from .phases import PhaseClock
from .reports import about
from .steps import Distillation, phase_rows, watch
from .timing import MatrixProduct, forget_peak, peak_mb, take_turns
from .videos import make_videos

TRAIN_TITLES = {"train": "Training run", "phases": "Phases of its steps"}


@dataclass
class TrainBenchmarkArguments:
    """Keys of the benchmark of a training run, in addition to those of `recipes/distill.py`.

    Args:
        output: folder of the report and of the generated videos.
        make_videos: train on generated videos (340x256, 300 frames, GOP 12) instead of the recipe's data.
        steps: measured optimizer steps.
        warm_up: steps before the measured ones.
    """

    output: str = "outputs/benchmarks"
    make_videos: bool = True
    steps: int = 10
    warm_up: int = 2

    def __post_init__(self):
        check_counts(steps=self.steps, warm_up=self.warm_up)

    def apply(self, training: MVDTrainingArguments):
        """Change the training arguments of a recipe to a run of these steps, without evaluation and checkpoints."""
        training.output_dir = str(Path(self.output) / "train")
        training.max_steps = self.warm_up + self.steps
        training.warmup_epochs, training.warmup_steps, training.schedule_epochs = 0, 0, None
        training.save_strategy = SaveStrategy.NO
        training.eval_on_start = False

    def video_list(self, training: MVDTrainingArguments) -> str:
        """A list file of the generated videos, repeated as often as the run needs."""
        videos = make_videos(Path(self.output) / "videos")["GOP 12"]
        needed = training.total_batch_size * training.max_steps
        path = Path(self.output) / "videos.csv"
        lines = [f'"{Path(videos[i % len(videos)]).resolve()}",0\n' for i in range(needed)]
        path.write_text("".join(lines), encoding="utf-8")
        return str(path)


class StartOfMeasurement(TrainerCallback):
    """Forgets the time of the first steps."""

    def __init__(self, clock: PhaseClock, warm_up: int):
        self.clock, self.warm_up = clock, warm_up

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.warm_up:
            self.clock.restart()


class ClockedTrainer(DistillationTrainer):
    """A [`DistillationTrainer`] that measures its phases.

    Args:
        warm_up: first steps, not measured.
        kwargs: as for [`DistillationTrainer`].
    """

    def __init__(self, *args, warm_up: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.clock = PhaseClock(self.args.device)
        watch(self.clock, self.teachers, None if self.args.torch_compile else self.model)
        self.add_callback(StartOfMeasurement(self.clock, warm_up))

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        optimizer.register_step_pre_hook(lambda *_: self.clock.enter("optimizer"))
        optimizer.register_step_post_hook(lambda *_: self.clock.leave())
        return optimizer

    def get_batch_samples(self, *args, **kwargs):
        with self.clock.phase("data wait, copy to the device"):
            return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args, **kwargs):
        with self.clock.phase("backward"):
            return super().training_step(*args, **kwargs)

    def compute_loss(self, model, *args, **kwargs):
        if self.args.torch_compile:
            model = partial(self.watched_forward, model)
        with self.clock.phase("loss and diagnostics"):
            return super().compute_loss(model, *args, **kwargs)

    def watched_forward(self, model: Callable, **inputs):
        """The compiled student, as one phase."""
        with self.clock.phase("student"):
            return model(**inputs)


def train_benchmark(trainer: ClockedTrainer, distillation: Distillation, arguments: TrainBenchmarkArguments) -> dict:
    """The report on a run of the trainer, data loading included; see [`speed`] for the figures.

    On a GPU, the phase of the data is the time in which the device only copied or had nothing to do.
    """
    device, args = trainer.args.device, trainer.args
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    before = forget_peak(device)
    trainer.train()
    trainer.clock.mark("end")
    phases = trainer.clock.read()
    peak = None if before is None else peak_mb(device) - before
    seconds = sum(phases.values()) / 1e3
    product = MatrixProduct(device, dtype)
    product()
    (times,) = take_turns([product], 5, device)
    rate = product.flops / sorted(times[:, 0])[2] / 1e9
    clips = arguments.steps * args.total_batch_size * args.clips_per_video // args.world_size
    tflops = clips * distillation.flops / seconds / 1e12
    row = {"clips": clips, "seconds": seconds, "clips_per_s": clips / seconds, "tflops": tflops}
    row |= {"mfu": tflops / rate, "peak_mb": peak}
    per_step = {name: value / arguments.steps for name, value in phases.items()}
    return {
        "about": about(torch.get_num_threads()),
        "arguments": vars(arguments),
        "train": [row],
        "phases": phase_rows({}, per_step),
    }
