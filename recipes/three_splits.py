"""Fine-tune and test on each official split of UCF101 or HMDB51; report each, the mean and standard deviation.

    python recipes/three_splits.py recipes/ucf101/finetune.yaml --data data/ucf101 [--num_train_epochs 50 ...]

`--data` is the folder that `recipes/prepare.py` wrote. Splits that are finished are not run again. `--launcher` gives
the arguments of `accelerate launch`, such as `--launcher="--config_file recipes/accelerate/eight_gpus_bf16.yaml"`.
`--collect` only reads results. All other keys are those of `recipes/finetune.py`. The exit code is 1 if a split has no
result.
"""

import argparse
import json
import logging
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mvd_hf.arguments import find_recipe, read_arguments, run_script
from mvd_hf.data.atomic import replace_file

logger = logging.getLogger(__name__)

# file with the result of a test, beside the tested weights, and accuracies in it
METRICS_FILE = Path("evaluation", "metrics.json")
ACCURACIES = ("video_top1", "video_top5", "clip_top1", "clip_top5")
# tests of at most five classes leave these out
OPTIONAL = ("video_top5", "clip_top5")
# keys of the fine-tuning that depend on the split
KEYS_OF_A_SPLIT = ("dataset", "eval_dataset", "label_names")


@dataclass
class SplitRuns:
    """A fine-tuning on each split of a data set.

    Args:
        script: the recipe that fine-tunes, `recipes/finetune.py`.
        recipe: its YAML file.
        data: folder of `train_<N>.csv`, `test_<N>.csv` and `classes.txt`, from `recipes/prepare.py`.
        splits: numbers of the splits.
        arguments: further keys of the fine-tuning, as on its command line.
        launcher: arguments of `accelerate launch`; `None` to start one process with this Python.

    Attributes:
        output_dir: of the recipe; the run of each split has the folder `split<N>` in it.
        tested: folder of the tested weights in the folder of a run.

    Raises:
        ValueError: if the recipe has no `output_dir`, or an argument depends on the split.
    """

    script: str
    recipe: str
    data: str
    splits: Sequence[int] = (1, 2, 3)
    arguments: Sequence[str] = ()
    launcher: Sequence[str] | None = None

    def __post_init__(self):
        taken = sorted(set(read_arguments(self.arguments)) & set(KEYS_OF_A_SPLIT))
        if taken:
            raise ValueError(f"--{taken[0]} depends on the split: give --data, the folder of all lists.")
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits={list(self.splits)} must be different numbers.")
        keys = read_arguments([self.recipe, *self.arguments])
        output_dir = keys.get("output_dir")
        if not output_dir:
            raise ValueError(f"The recipe {self.recipe!r} has no output_dir: add --output_dir.")
        self.output_dir = Path(str(output_dir))
        weights = keys.get("test_weights", "last")
        self.tested = "" if weights == "last" else weights

    def folder(self, split: int) -> Path:
        """Output folder of the run of a split."""
        return self.output_dir / f"split{split}"

    def tested_folder(self, split: int) -> Path:
        """Folder of the weights that the run of a split tests."""
        return self.folder(split) / self.tested

    def command(self, split: int) -> list[str]:
        """The command that fine-tunes and tests on a split.

        Raises:
            ValueError: if a list file or the names of the classes are missing.
        """
        files = dict(zip(KEYS_OF_A_SPLIT, (f"train_{split}.csv", f"test_{split}.csv", "classes.txt"), strict=True))
        keys = {key: str(Path(self.data, name)) for key, name in files.items()}
        for path in keys.values():
            if not Path(path).is_file():
                raise ValueError(
                    f"There is no {path!r}: write it with recipes/prepare.py, or leave out split {split}."
                )
        keys["output_dir"] = str(self.folder(split))
        launch = [sys.executable]
        if self.launcher is not None:
            launch += ["-m", "accelerate.commands.launch", *self.launcher]
        given = [f"--{key}={value}" for key, value in keys.items()]
        return [*launch, self.script, self.recipe, *self.arguments, *given]

    def run(self):
        """Fine-tune on each split that is not finished.

        Raises:
            ValueError: if a list file is missing, or a result cannot be read.
            RuntimeError: naming the split that failed.
        """
        unfinished = [split for split in self.splits if read_result(self.tested_folder(split)) is None]
        commands = {split: self.command(split) for split in unfinished}
        for split in self.splits:
            if split not in commands:
                logger.info("Split %d is finished: %s", split, self.tested_folder(split) / METRICS_FILE)
                continue
            logger.info("Split %d: %s", split, " ".join(commands[split]))
            code = subprocess.run(commands[split], check=False).returncode
            if code != 0:
                raise RuntimeError(f"Split {split} failed with exit code {code}. Start again to continue.")
            if read_result(self.tested_folder(split)) is None:
                raise RuntimeError(f"Split {split} ended without {str(self.tested_folder(split) / METRICS_FILE)!r}.")

    def collect(self) -> dict:
        """The results of all splits together, also written to `<output_dir>/three_splits.json`.

        Raises:
            ValueError: if there is no result, one cannot be read, or the test protocols differ.
        """
        results = {split: read_result(self.tested_folder(split)) for split in self.splits}
        summary = summarize(results)
        path = self.output_dir / "three_splits.json"
        with replace_file(path) as unfinished:
            unfinished.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        return summary


def read_result(folder: Path) -> dict | None:
    """Protocol, number of videos and accuracies of the test of a run; `None` if it has not ended.

    Raises:
        ValueError: if the file is incomplete or not valid.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        accuracies = [key for key in ACCURACIES if key in found or key not in OPTIONAL]
        result = {key: found[key] for key in ("protocol", "num_videos", "missing", *accuracies)}
        numbers = [float(result[key]) for key in accuracies]
    except (OSError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise ValueError(
            f"The result {str(path)!r} cannot be read: {error}. Delete it to run the split again."
        ) from error
    except KeyError as error:
        raise ValueError(f"The result {str(path)!r} has no {error}. Delete it to run the split again.") from error
    wrong = [key for key, number in zip(accuracies, numbers, strict=True) if not 0 <= number <= 1]  # also of NaN
    if wrong:
        raise ValueError(f"The result {str(path)!r} has {wrong[0]}={result[wrong[0]]}, not a number from 0 to 1.")
    return result


def summarize(results: dict[int, dict | None]) -> dict:
    """Results of splits, their mean and sample standard deviation (`None` for one split), and missing splits.

    Args:
        results: from [`read_result`], by the number of the split.

    Raises:
        ValueError: if there is no result, or the test protocols differ.
    """
    found = {split: result for split, result in results.items() if result is not None}
    missing = [split for split in results if split not in found]
    if not found:
        raise ValueError(f"None of the splits {', '.join(map(str, missing))} has a result.")
    protocols = {str(result["protocol"]) for result in found.values()}
    if len(protocols) > 1:
        each = ", ".join(f"split {split}: {result['protocol']}" for split, result in found.items())
        raise ValueError(f"The test protocols differ ({each}): test with the same one, or collect some of the splits.")
    accuracies = [key for key in ACCURACIES if all(key in result for result in found.values())]
    values = {key: [float(result[key]) for result in found.values()] for key in accuracies}
    return {
        "protocol": protocols.pop(),
        "splits": {str(split): result for split, result in found.items()},
        "missing_splits": missing,
        "mean": {key: statistics.fmean(numbers) for key, numbers in values.items()},
        "standard_deviation": {
            key: statistics.stdev(numbers) if len(numbers) > 1 else None for key, numbers in values.items()
        },
    }


def describe(summary: dict) -> str:
    """A Markdown table of the results in percent, with the test protocol and the missing splits."""
    names = [key.replace("_top", " top-") for key in summary["mean"]]
    header = ["split", "videos", "missing videos", *names]
    lines = [header, ["---"] * len(header)]
    for split, result in summary["splits"].items():
        accuracies = [f"{100 * result[key]:.2f}" for key in summary["mean"]]
        lines.append([split, str(result["num_videos"]), str(result["missing"]), *accuracies])
    spreads = summary["standard_deviation"]
    means = [
        f"{100 * mean:.2f}" + ("" if spreads[key] is None else f" ± {100 * spreads[key]:.2f}")
        for key, mean in summary["mean"].items()
    ]
    lines.append([f"mean of {len(summary['splits'])}", "", "", *means])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    protocol = f"Test protocol (frames x clips x crops): {summary['protocol']}. ± is the sample standard deviation."
    missing = ", ".join(map(str, summary["missing_splits"]))
    return "\n\n".join(
        [table, protocol, *([f"No result yet of split {missing}: no official mean."] if missing else [])]
    )


def split_runs(arguments: list[str]) -> tuple[SplitRuns, bool]:
    """The runs of a command line, and whether to collect their results only."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("recipe", help="recipe of finetune.py: a YAML file, ucf101 or hmdb51")
    parser.add_argument("--data", required=True, help="folder of train_<N>.csv, test_<N>.csv and classes.txt")
    parser.add_argument("--splits", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--launcher", type=shlex.split, help="arguments of accelerate launch")
    parser.add_argument("--script", default=str(Path(__file__).with_name("finetune.py")), help="what fine-tunes")
    parser.add_argument("--collect", action="store_true", help="only read results")
    known, keys = parser.parse_known_args(arguments)
    recipe = str(find_recipe(known.recipe, Path(__file__).with_name("finetune.py")))
    return SplitRuns(known.script, recipe, known.data, known.splits, keys, known.launcher), known.collect


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    runs, is_collection = split_runs(arguments)
    if not is_collection:
        runs.run()
    summary = runs.collect()
    logging.info("%s", describe(summary))
    return int(bool(summary["missing_splits"]))


if __name__ == "__main__":
    run_script(main)
