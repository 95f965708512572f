"""The benchmark of a training run: number of steps, phases, warm-up."""

import time
from pathlib import Path

import pytest

from masked_clips import Clips
from mvd_hf import MVDForFeatureDistillation, MVDTrainingArguments
from recipes.benchmark.steps import Distillation
from recipes.benchmark.training import ClockedTrainer, TrainBenchmarkArguments, train_benchmark


def training(folder, **overrides) -> MVDTrainingArguments:
    options = {"use_cpu": True, "per_device_train_batch_size": 2, "dataloader_num_workers": 0, "disable_tqdm": True}
    return MVDTrainingArguments(str(folder), **(options | overrides))


def run(folder, config, teachers, dataset, benchmark, **overrides) -> tuple[ClockedTrainer, Distillation, dict]:
    """The trainer, the distillation and the report of a run."""
    args = training(folder / "recipe", **overrides)
    benchmark.apply(args)
    built = Distillation(config, teachers)
    student = MVDForFeatureDistillation(config)
    warm_up = benchmark.warm_up
    trainer = ClockedTrainer(student, built.load_teachers(), args=args, train_dataset=dataset, warm_up=warm_up)
    return trainer, built, train_benchmark(trainer, built, benchmark)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_has_the_requested_steps_and_leaves_no_checkpoints(tmp_path, tiny_student_config, tiny_teachers):
    benchmark = TrainBenchmarkArguments(output=str(tmp_path), steps=3, warm_up=2)
    keys = {"gradient_accumulation_steps": 2, "num_train_epochs": 400, "schedule_epochs": 401}
    clips = Clips(tiny_student_config, count=32)
    trainer, built, report = run(tmp_path, tiny_student_config, tiny_teachers, clips, benchmark, **keys)
    assert trainer.state.global_step == 5
    (row,) = report["train"]
    assert row["clips"] == 3 * 2 * 2
    assert row["clips_per_s"] == pytest.approx(row["clips"] / row["seconds"])
    assert row["tflops"] == pytest.approx(row["clips"] * built.flops / row["seconds"] / 1e12)
    assert row["mfu"] > 0
    phases = {row["phase"]: row["ms"] for row in report["phases"]}
    assert {"data wait, copy to the device", "teacher image", "teacher video", "student encoder"} < phases.keys()
    assert {"decoders", "loss and diagnostics", "backward", "optimizer", "other"} < phases.keys()
    assert sum(phases.values()) == pytest.approx(1e3 * row["seconds"] / 3)
    assert not list(tmp_path.rglob("checkpoint-*"))


@pytest.mark.long
@pytest.mark.slow
def test_warm_up_steps_are_not_measured(tmp_path, tiny_student_config, tiny_teachers):
    class SlowStart(Clips):
        items = 0

        def __getitem__(self, key):
            self.items += 1
            if self.items <= 7:  # the trainer's look at one, two batches, and the one that is loaded ahead
                time.sleep(0.2)
            return super().__getitem__(key)

    waits = []
    for warm_up in (1, 4):
        benchmark = TrainBenchmarkArguments(output=str(tmp_path), steps=1, warm_up=warm_up)
        clips = SlowStart(tiny_student_config, count=32)
        _, _, report = run(tmp_path, tiny_student_config, tiny_teachers, clips, benchmark)
        waits += [row["ms"] for row in report["phases"] if row["phase"].startswith("data wait")]
    assert waits[0] >= 400 > waits[1]


def test_generated_videos_are_repeated_as_often_as_the_run_needs(tmp_path, monkeypatch):
    made = {"GOP 12": [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]}
    monkeypatch.setattr("recipes.benchmark.training.make_videos", lambda folder: made)
    benchmark = TrainBenchmarkArguments(output=str(tmp_path), steps=2, warm_up=1)
    args = training(tmp_path, gradient_accumulation_steps=3)
    benchmark.apply(args)
    lines = Path(benchmark.video_list(args)).read_text().splitlines()
    assert len(lines) == 3 * 2 * 3
    assert lines[:3] == [f'"{tmp_path}/a.mp4",0', f'"{tmp_path}/b.mp4",0', f'"{tmp_path}/a.mp4",0']


def test_there_must_be_steps():
    with pytest.raises(ValueError, match="steps=0"):
        TrainBenchmarkArguments(steps=0)
