"""Action detection in miniature: make videos, check the files, train, score, draw. Minutes on a CPU.

python recipes/tiny/run_detection.py
"""

import argparse
import csv
import json
import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from mvd_hf.arguments import run_script
from mvd_hf.detection.toy import make_toy_detection_dataset

# the stages run from any working directory, into which they write
ROOT = Path(__file__).resolve().parents[2]
DATA, OUTPUT = "outputs/tiny/detection", "outputs/tiny/detector"
FILES = [f"--ava={DATA}/validation.csv", f"--boxes={DATA}/validation_boxes.csv", f"--label_map={DATA}/actions.pbtxt"]
TRAINED = ["recipes/tiny/detect.yaml", f"--model={OUTPUT}", "--evaluate_only"]
FIGURE = [
    f"--model={OUTPUT}",
    f"--video={DATA}/videos/validation_0002.mp4",
    f"--boxes={DATA}/validation_boxes.csv",
    f"--output={OUTPUT}/people.mp4",
]
STAGES = (
    ("mistakes in the files", ["recipes/audit.py", *FILES, f"--videos={DATA}/videos"]),
    ("training", ["recipes/detect.py", "recipes/tiny/detect.yaml", "--overwrite=true"]),
    (
        "the same boxes, each in another key frame: the score must fall to almost zero",
        ["recipes/detect.py", *TRAINED, f"--boxes={DATA}/shuffled_boxes.csv", f"--output_dir={OUTPUT}-shuffled"],
    ),
    (
        "a video with boxes and actions",
        ["recipes/visualize.py", "detect", *FIGURE],
    ),
)


def shuffle_boxes(folder: Path, seed: int = 0):
    """Write the detected boxes again, each in the place of another."""
    with (folder / "validation_boxes.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    places = [row[2:6] for row in rows]
    random.Random(seed).shuffle(places)
    with (folder / "shuffled_boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*row[:2], *place, *row[6:]] for row, place in zip(rows, places, strict=True))


def main(arguments: list[str]) -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.perf_counter()
    # networks this small are fastest on one core
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    shuffle_boxes(make_toy_detection_dataset(DATA))
    for title, words in STAGES:
        words = [str(ROOT / word) if word.startswith("recipes/") else word for word in words]
        logging.info("\n== %s: python %s", title, " ".join(words))
        code = subprocess.run([sys.executable, *words], env=environment).returncode
        if code:
            logging.error("The stage %r ended with exit code %d.", title, code)
            return code
    for name, folder in (("its boxes", OUTPUT), ("shuffled boxes", f"{OUTPUT}-shuffled")):
        metrics = json.loads(Path(folder, "evaluation", "metrics.json").read_text())
        logging.info("mAP with %s: %.1f %%", name, 100 * metrics["mAP"])
    logging.info("All stages took %.0f seconds.", time.perf_counter() - start)
    return 0


if __name__ == "__main__":
    run_script(main)
