"""Run a benchmark by name; the report goes to the terminal and, as JSON, to a folder.

    python recipes/benchmark/run.py data [--videos a.mp4 b.mp4] [--memory 20000] [--output outputs/benchmarks]
    python recipes/benchmark/run.py step recipes/mvd-vit-s-from-vit-b/distill.yaml [--variants "" masks_per_clip=4]

`data`: from video files to batches. `model`: single networks. `inference`: classifier and features, compared with
transformers. `step`: the distillation step of a recipe on random clips, compared with a naive one. `train`: a training
run of a recipe. Keys: the `...BenchmarkArguments` of `recipes.benchmark.{data,models,steps,training}`; `step` and
`train` also take a recipe and its keys.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whose folder `recipes` is a package

import torch

from mvd_hf import MVDForFeatureDistillation, MVDTrainingArguments
from mvd_hf.arguments import parse_arguments, run_script, take_name
from mvd_hf.data.arguments import DataArguments, pretraining_clips
from recipes.benchmark.data import DATA_TITLES, DataBenchmarkArguments, data_benchmark
from recipes.benchmark.models import (
    INFERENCE_TITLES,
    MODEL_TITLES,
    InferenceBenchmarkArguments,
    ModelBenchmarkArguments,
    inference_benchmark,
    model_benchmark,
)
from recipes.benchmark.reports import as_text, save_report
from recipes.benchmark.steps import STEP_TITLES, Distillation, StepBenchmarkArguments, step_benchmark
from recipes.benchmark.training import TRAIN_TITLES, ClockedTrainer, TrainBenchmarkArguments, train_benchmark
from recipes.distill import StudentArguments

RECIPE = (StudentArguments, DataArguments, MVDTrainingArguments)


def distillation(recipe: StudentArguments, training: MVDTrainingArguments) -> Distillation:
    """The student and the teachers of a recipe; raises ValueError for keys that are not measured."""
    for key in ("keep_layers", "target_cache", "balance", "probe", "knn"):
        if getattr(recipe, key):
            raise ValueError(f"{key}={getattr(recipe, key)!r} is not measured: leave it out.")
    return Distillation.from_recipe(recipe.student, recipe.config, recipe.teachers, training.masks_per_clip)


def step(recipe: StudentArguments, _, training: MVDTrainingArguments, benchmark: StepBenchmarkArguments) -> dict:
    """The report on the distillation step of a recipe."""
    return step_benchmark(distillation(recipe, training), benchmark)


def train(recipe, data: DataArguments, training: MVDTrainingArguments, benchmark: TrainBenchmarkArguments) -> dict:
    """The report on a training run of a recipe."""
    built = distillation(recipe, training)
    benchmark.apply(training)
    if benchmark.make_videos:
        data.dataset, data.root = benchmark.video_list(training), None
    teachers = built.load_teachers()
    clips = pretraining_clips(data, built.config, training, teachers)
    student = MVDForFeatureDistillation(built.config)
    trainer = ClockedTrainer(student, teachers, args=training, train_dataset=clips, warm_up=benchmark.warm_up)
    return train_benchmark(trainer, built, benchmark)


# by name: dataclasses of the keys, function that measures, titles of the tables
BENCHMARKS = {
    "data": ((DataBenchmarkArguments,), data_benchmark, DATA_TITLES),
    "model": ((ModelBenchmarkArguments,), model_benchmark, MODEL_TITLES),
    "inference": ((InferenceBenchmarkArguments,), inference_benchmark, INFERENCE_TITLES),
    "step": ((*RECIPE, StepBenchmarkArguments), step, STEP_TITLES),
    "train": ((*RECIPE, TrainBenchmarkArguments), train, TRAIN_TITLES),
}


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name, rest = take_name(arguments, list(BENCHMARKS), "benchmark")
    kinds, measure, titles = BENCHMARKS[name]
    on_cpu = ["--use_cpu"] if MVDTrainingArguments in kinds and not torch.cuda.is_available() else []
    parsed = parse_arguments([*rest, *on_cpu], *kinds)
    report = measure(*parsed)
    logging.info("%s", as_text(report, titles))
    logging.info("\nWritten to %s", save_report(report, parsed[-1].output, name))


if __name__ == "__main__":
    run_script(main)
