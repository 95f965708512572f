"""The whole of MVD in miniature: make videos, train both teachers, distil the student, load it. Minutes on a CPU.

python recipes/tiny/run.py
"""

import argparse
import logging
import os
import runpy
import time
from pathlib import Path

import datasets
import torch
import transformers
from transformers import AutoModel

import mvd_hf  # noqa: F401  makes the Auto classes know MVD
from mvd_hf.data.toy import make_toy_dataset

FOLDER = Path(__file__).resolve().parent
STAGES = (
    ("image teacher (MAE)", "pretrain.py", "image_teacher.yaml"),
    ("video teacher (VideoMAE)", "pretrain.py", "video_teacher.yaml"),
    ("student, co-taught", "distill.py", "distill.yaml"),
)
NEXT = """What next:
  mvd-hf finetune tiny                         train a classifier of motions from the student
  mvd-hf visualize tokens --models outputs/tiny/student --video outputs/tiny/data/validation/0000.mp4 --stride 2
  mvd-hf finetune --dataset FOLDER             your own clips, in a folder per class
  mvd-hf recipes                               the published runs and other teachers"""


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    start = time.perf_counter()
    # networks this small are fastest on one core, by far where others compete for the rest
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    make_toy_dataset("outputs/tiny/data", height=40, width=48)
    for title, script, recipe in STAGES:
        path, values = str(FOLDER.parent / script), str(FOLDER / recipe)
        logging.info("\n== %s: python %s %s", title, path, values)
        # as the command does, without importing everything again; a line per quarter of the training, no progress bars
        runpy.run_path(path)["main"]([values, "--disable_tqdm=true", "--logging_steps=80"])
    student = AutoModel.from_pretrained("outputs/tiny/student")
    parameters = sum(parameter.numel() for parameter in student.parameters())
    logging.info("\n%s with %d parameters, loaded from outputs/tiny/student.", type(student).__name__, parameters)
    logging.info("All stages took %.0f seconds. %s", time.perf_counter() - start, NEXT)


if __name__ == "__main__":
    main()
