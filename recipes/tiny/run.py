"""The whole of MVD in miniature: make videos, train both teachers, distil, fine-tune, compare. Minutes on a CPU.

    python recipes/tiny/run.py [--videos 1024 --seeds 3 ...]

Everything is written to `outputs/tiny`, the log of each stage to `outputs/tiny/logs`. Keys: `TinyArguments` (below).
"""

import json
import logging
import multiprocessing
import os
import re
import runpy
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import datasets
import pandas as pd
import torch

import mvd_hf.finetuning.adaptation
import mvd_hf.training.distillation  # noqa: F401  imported once for all stages, which are forked where that is possible
from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.data.decoding import open_media
from mvd_hf.data.toy import MOTIONS, SHAPES, make_toy_dataset
from mvd_hf.visualization.strips import draw_strips, write_figure

FOLDER, OUTPUT = Path(__file__).resolve().parent, Path("outputs/tiny")
# what is fine-tuned: its folder and its keys
NETWORKS = {"distilled student": ("classifier", []), "trained from scratch": ("scratch", ["--model=mvd-b"])}
SHOWN_CLIPS, FRAMES = 6, range(0, 16, 2)
# those of a line run at the same time
STAGES = (
    {"MAE": ["pretrain", "tiny/mae"], "VideoMAE": ["pretrain", "tiny/videomae"]},
    {"image teacher": ["finetune", "tiny/image_teacher"], "video teacher": ["finetune", "tiny/video_teacher"]},
    {"student": ["distill", "tiny/distill"]},
)
FEW = 16  # labelled videos of the fine-tuning
INTRODUCTION = """\
Videos of shapes that move: %d to train the teachers and the student, %d + %d for the classifiers (%.0f seconds).
An MAE and a VideoMAE become teachers with the labels of all videos: which shape, and which way it moves. The student
sees no label: it learns the features of both teachers. The classifiers of the motion have few labels."""
NEXT = """\
What next, with your own videos:
  mvd-hf distill mvd-vit-b-from-dinov2-videomae --dataset FOLDER --output_dir outputs/student (a GPU, 128+ videos)
  mvd-hf finetune --dataset FOLDER --model outputs/student     a sub-folder of clips per class
  mvd-hf evaluate outputs/own_videos --num_clips 5 --num_crops 3
  mvd-hf publish model outputs/own_videos --repo NAME/MODEL --license cc-by-nc-4.0 --dry_run true
  mvd-hf recipes                                               the published runs and other teachers"""


@dataclass
class TinyArguments:
    """How much is made and trained.

    Args:
        videos: videos that the teachers and the student are trained on.
        test_videos: videos that the fine-tuned networks are tested on; a quarter of them for the other stages.
        epochs: epochs of every stage, instead of those of its recipe.
        seeds: how often both networks are fine-tuned, with seeds from 0.
    """

    videos: int = 1024
    test_videos: int = 256
    epochs: float | None = None
    seeds: int = 1

    def __post_init__(self):
        for name, least in (("videos", 1), ("test_videos", 4), ("seeds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")


def run_stage(script: str, words: list[str], log: Path):
    """Run a script in this process, with its output in a file."""
    with log.open("w") as file:
        for output in (1, 2):
            os.dup2(file.fileno(), output)
    sys.argv = [script, *words]
    torch.set_num_threads(1)  # networks this small are fastest on one core
    runpy.run_path(script, run_name="__main__")


def run_stages(stages: dict[str, list[str]], keys: list[str]):
    """Run stages, commands by name, at the same time, and log what each arrived at.

    Raises:
        ValueError: if one fails, with the end of its log.
    """
    processes, start = {}, time.perf_counter()
    logging.info("\n%s", "\n".join(f"{name}: mvd-hf {' '.join(words)}" for name, words in stages.items()))
    for name, (command, recipe, *words) in stages.items():
        words = [str(FOLDER / f"{Path(recipe).name}.yaml"), *words, *keys, "--disable_tqdm=true", "--overwrite=true"]
        what = str(FOLDER.parent / f"{command}.py"), words, log_of(name)
        processes[name] = multiprocessing.Process(target=run_stage, args=what, daemon=True)
        processes[name].start()
    for name, process in processes.items():
        process.join()
        text = log_of(name).read_text(encoding="utf-8", errors="replace")
        if process.exitcode:
            end = text[-2000:].strip()
            raise ValueError(f"The stage {name!r} ended with exit code {process.exitcode} ({log_of(name)}):\n{end}")
        found = re.search(r"(Held-out loss: .*)\.|over videos: (top-1 [\d.]+ %)", text)
        logging.info("  %s: %s (%.0f seconds)", name, found[1] or found[2], time.perf_counter() - start)


def log_of(stage: str) -> Path:
    """The file of a stage's output."""
    return OUTPUT / "logs" / f"{stage.replace(',', '').replace(' ', '_')}.txt"


def folder_of(network: str, seed: int) -> Path:
    """The folder of a fine-tuned network."""
    return OUTPUT / (NETWORKS[network][0] + (f"-{seed}" if seed else ""))


def fine_tunings(seed: int) -> dict[str, list[str]]:
    """The stages that fine-tune both networks with the same keys, by name."""
    return {
        f"{name}, seed {seed}": [
            *("finetune", "tiny/finetune", *words),
            *(f"--seed={seed}", f"--output_dir={folder_of(name, seed)}"),
        ]
        for name, (_, words) in NETWORKS.items()
    }


def describe(seeds: int) -> str:
    """The table of accuracies."""
    lines = []
    for name in NETWORKS:
        files = [folder_of(name, seed) / "evaluation" / "metrics.json" for seed in range(seeds)]
        values = [100 * json.loads(file.read_text())["video_top1"] for file in files]
        each = f"   ({', '.join(f'{value:.1f}' for value in values)})" if seeds > 1 else ""
        lines.append(f"  {name:26} {statistics.mean(values):5.1f} %{each}")
    return "\n".join([*lines, f"  {'chance':26} {100 / len(MOTIONS):5.1f} %"])


def draw_predictions(path: Path):
    """Draw frames of some test videos with what both networks say."""
    tables = [pd.read_parquet(folder_of(name, 0) / "evaluation" / "predictions.parquet") for name in NETWORKS]
    strips = {}
    for student, scratch in islice(zip(*(table.itertuples() for table in tables), strict=True), SHOWN_CLIPS):
        says = f"student: {student.prediction_name}\nscratch: {scratch.prediction_name}"
        with open_media(student.video) as reader:
            strips[f"{Path(student.video).stem}: {student.label_name}\n{says}"] = reader.read(FRAMES)
    titles = [f"frame {number}" for number in FRAMES]
    write_figure(path, draw_strips(strips, titles, "Test videos: the motion, and what the classifiers say"))


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (job,) = parse_arguments(arguments, TinyArguments)
    start = time.perf_counter()
    datasets.disable_progress_bars()
    (OUTPUT / "logs").mkdir(parents=True, exist_ok=True)
    size = {"num_frames": 20, "height": 40, "width": 48, "appearances": SHAPES}
    make_toy_dataset(OUTPUT / "data", job.videos, job.test_videos // 4, **size)
    make_toy_dataset(OUTPUT / "few_labels", FEW, job.test_videos, seed=1, **size)
    logging.info(INTRODUCTION, job.videos, FEW, job.test_videos, time.perf_counter() - start)
    keys = [] if job.epochs is None else [f"--num_train_epochs={job.epochs:g}", "--warmup_epochs=0"]
    for stages in STAGES:
        run_stages(stages, keys)
    for seed in range(job.seeds):
        run_stages(fine_tunings(seed), keys)
    draw_predictions(OUTPUT / "predictions.png")
    heading = f"Accuracy on {job.test_videos} videos after fine-tuning on {FEW} labelled ones:"
    logging.info("\n%s\n%s\n\nPredictions: %s", heading, describe(job.seeds), OUTPUT / "predictions.png")
    logging.info("All took %.0f seconds.\n\n%s", time.perf_counter() - start, NEXT)


if __name__ == "__main__":
    run_script(main)
