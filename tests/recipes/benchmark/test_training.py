"""The benchmark of a training run: it is the recipe's own run, its phases are told, its first steps do not count."""

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


def test_a_run_is_as_long_as_wanted_and_leaves_nothing(tmp_path, tiny_student_config, tiny_teachers):
    benchmark = TrainBenchmarkArguments(output=str(tmp_path), steps=3, warm_up=2)
    args = training(tmp_path / "recipe", gradient_accumulation_steps=2, num_train_epochs=400, schedule_epochs=401)
    benchmark.apply(args)
    built = Distillation(tiny_student_config, tiny_teachers)
    trainer = ClockedTrainer(
        MVDForFeatureDistillation(tiny_student_config),
        built.load_teachers(),
        args=args,
        train_dataset=Clips(tiny_student_config, count=32),
        warm_up=2,
    )
    report = train_benchmark(trainer, built, benchmark)
    assert trainer.state.global_step == 5
    (row,) = report["train"]
    assert row["clips"] == 3 * 2 * 2
    assert row["clips_per_s"] == pytest.approx(row["clips"] / row["seconds"])
    assert row["tflops"] == pytest.approx(row["clips"] * built.flops / row["seconds"] / 1e12)
    assert row["mfu"] > 0
    phases = {row["phase"]: row["ms"] for row in report["phases"]}
    assert phases.keys() == {
        "data wait, copy to the device",
        "teacher image",
        "teacher video",
        "student encoder",
        "decoders",
        "loss and health",
        "backward",
        "optimizer",
        "other",
    }
    assert sum(phases.values()) == pytest.approx(1e3 * row["seconds"] / 3)
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_steps_before_the_measurement_do_not_count(tmp_path, tiny_student_config, tiny_teachers):
    class SlowStart(Clips):
        def __getitem__(self, key):
            if SlowStart.items < 7:  # the trainer's look at one, two batches, the one that is loaded ahead
                time.sleep(0.2)
            SlowStart.items += 1
            return super().__getitem__(key)

        items = 0

    def wait(warm_up: int) -> float:
        SlowStart.items = 0
        benchmark = TrainBenchmarkArguments(output=str(tmp_path), steps=1, warm_up=warm_up)
        args = training(tmp_path)
        benchmark.apply(args)
        built = Distillation(tiny_student_config, tiny_teachers)
        trainer = ClockedTrainer(
            MVDForFeatureDistillation(tiny_student_config),
            built.load_teachers(),
            args=args,
            train_dataset=SlowStart(tiny_student_config, count=32),
            warm_up=warm_up,
        )
        report = train_benchmark(trainer, built, benchmark)
        return next(row["ms"] for row in report["phases"] if row["phase"].startswith("data wait"))

    assert wait(warm_up=1) >= 400
    assert wait(warm_up=4) < 400


def test_made_videos_are_listed_as_often_as_the_run_needs(tmp_path, monkeypatch):
    made = {"GOP 12": [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]}
    monkeypatch.setattr("recipes.benchmark.training.make_videos", lambda folder: made)
    benchmark = TrainBenchmarkArguments(output=str(tmp_path), steps=2, warm_up=1)
    args = training(tmp_path, gradient_accumulation_steps=3)
    benchmark.apply(args)
    lines = Path(benchmark.video_list(args)).read_text().splitlines()
    assert len(lines) == 3 * 2 * 3
    assert lines[:3] == [f'"{tmp_path}/a.mp4",0', f'"{tmp_path}/b.mp4",0', f'"{tmp_path}/a.mp4",0']


def test_there_must_be_steps():
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        TrainBenchmarkArguments(steps=0)
