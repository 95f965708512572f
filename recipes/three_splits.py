"""Fine-tune and test on each of the official splits of UCF101 or HMDB51; report each, the mean and the spread.

    python recipes/three_splits.py recipes/ucf101/finetune.yaml --data data/ucf101 [--num_train_epochs 50 ...]

`--data` is the folder that `recipes/prepare.py` wrote. Splits that are finished are not run again. `--launcher` gives
the arguments of `accelerate launch`, such as `--launcher="--config_file recipes/accelerate/eight_gpus_bf16.yaml"`.
`--collect` only reads results. All other keys are those of `recipes/finetune.py`. The exit code is 1 if a split has no
result.
"""

import argparse
import logging
import shlex
import sys
from pathlib import Path

from mvd_hf.three_splits import SplitRuns, describe


def split_runs(arguments: list[str]) -> tuple[SplitRuns, bool]:
    """The runs that the command line asks for, and whether only to collect their results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("recipe", help="YAML file of recipes/finetune.py")
    parser.add_argument("--data", required=True, help="folder of train_<N>.csv, test_<N>.csv and classes.txt")
    parser.add_argument("--splits", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--launcher", type=shlex.split, help="arguments of accelerate launch")
    parser.add_argument("--script", default=str(Path(__file__).with_name("finetune.py")), help="what fine-tunes")
    parser.add_argument("--collect", action="store_true", help="only read results")
    known, keys = parser.parse_known_args(arguments)
    return SplitRuns(known.script, known.recipe, known.data, known.splits, keys, known.launcher), known.collect


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    runs, is_collection = split_runs(arguments)
    if not is_collection:
        runs.run()
    summary = runs.collect()
    logging.info("%s", describe(summary))
    return int(bool(summary["missing_splits"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
