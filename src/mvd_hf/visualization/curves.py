"""Training curves of one or more runs, from the logs that they leave.

A curve is an array (n, 2) of epochs and values.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from transformers.trainer import TRAINER_STATE_NAME

from .strips import write_figure

# what a log entry has beside figures of the training, and what of them is about speed
BESIDE = ("epoch", "step", "total_flos", "train_loss", "num_input_tokens_seen")
SPEED = ("runtime", "per_second", "compilation_time", "preparation_time")
# figures whose scale is logarithmic, if they are above zero
LOGARITHMIC = ("learning_rate", "grad_norm")
NUM_COLUMNS = 3

Curves = dict[str, np.ndarray]


def find_log(run: str | Path) -> Path:
    """The log of a run: the file itself, or that of its output folder, or of its last checkpoint.

    Raises:
        ValueError: if there is none.
    """
    run = Path(run)
    if run.is_file():
        return run
    if (run / TRAINER_STATE_NAME).is_file():
        return run / TRAINER_STATE_NAME
    checkpoints = [path for path in run.glob(f"checkpoint-*/{TRAINER_STATE_NAME}") if path.is_file()]
    if not checkpoints:
        raise ValueError(f"{str(run)!r} has no {TRAINER_STATE_NAME}, nor has a checkpoint in it: give a run's folder.")
    return max(checkpoints, key=lambda path: int(path.parent.name.removeprefix("checkpoint-")))


def read_curves(run: str | Path) -> Curves:
    """The curves of a run by the names of its log; `eval_...` are those on held-out videos.

    Args:
        run: a folder, or a `trainer_state.json`, or a JSON list of log entries (`trainer.state.log_history`).

    Raises:
        ValueError: if there is no log, or it has no curve.
    """
    path = find_log(run)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        history = content["log_history"] if isinstance(content, Mapping) else content
        points: dict[str, list[tuple[float, float]]] = {}
        for entry in history:
            for name, value in entry.items():
                is_figure = isinstance(value, int | float) and name not in BESIDE and not name.endswith(SPEED)
                if is_figure and not name.startswith("train_"):
                    points.setdefault(name, []).append((entry["epoch"], value))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is no log of a training run ({type(error).__name__}: {error}).") from error
    if not points:
        raise ValueError(f"The log {str(path)!r} has no figures yet.")
    return {name: np.array(sorted(values, key=lambda point: point[0])) for name, values in points.items()}


def panels_of(runs: Mapping[str, Curves]) -> list[str]:
    """What is drawn side by side: losses first, then the rest, held-out figures with those of training."""
    names = dict.fromkeys(name.removeprefix("eval_") for curves in runs.values() for name in curves)
    rank = {"loss": 0, "learning_rate": 3, "grad_norm": 4}
    return sorted(names, key=lambda name: (rank.get(name, 1 if name.startswith("loss") else 2), name))


def draw_curves(runs: Mapping[str, Curves]) -> Figure:
    """A panel for each figure of the logs, a colour for each run; held-out figures are dashed, or points.

    Raises:
        ValueError: if there is no run.
    """
    if not runs:
        raise ValueError("There is no run to draw.")
    panels = panels_of(runs)
    num_rows = math.ceil(len(panels) / NUM_COLUMNS)
    num_columns = min(len(panels), NUM_COLUMNS)
    figure = Figure((4.2 * num_columns, 2.9 * num_rows + 0.4), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flat
    for axes, name in zip(grid, panels, strict=False):
        values = []
        for number, (run, curves) in enumerate(runs.items()):
            for kind, style in (("", "-"), ("eval_", "--")):
                if kind + name in curves:
                    epochs, curve = curves[kind + name].T
                    marker = "o" if len(curve) < 12 else None
                    label = f"{run}, held out" if kind else run
                    line = style if len(curve) > 2 else "none"  # two points are no curve
                    axes.plot(epochs, curve, ls=line, color=f"C{number}", marker=marker, ms=4, label=label)
                    values.extend(curve)
        if name in LOGARITHMIC and np.all(np.array(values) > 0) and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    for axes in list(figure.axes)[len(panels) :]:
        axes.axis("off")
    lines = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(len(lines), 4), fontsize=9)
    return figure


@dataclass
class CurveArguments:
    """The runs whose curves are drawn, as a recipe's keys.

    Args:
        runs: output folders, or by name: `--runs.co_taught outputs/a --runs.image_taught outputs/b`.
        output: PNG file; the numbers are in the JSON file of the same name.
    """

    runs: list[str] | dict[str, str] = field(default_factory=list)
    output: str = "outputs/pictures/curves.png"


def name_runs(runs: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Runs by name; those of a list are named as they are given.

    Raises:
        ValueError: if there is no run, or one comes twice.
    """
    if not runs:
        raise ValueError("There is no run to draw: give --runs with output folders.")
    if len(set(runs)) != len(runs):
        raise ValueError(f"Each run is drawn once, but runs={list(runs)}.")
    return dict(runs) if isinstance(runs, Mapping) else {run: run for run in runs}


def write_curves(arguments: CurveArguments) -> Path:
    """Draw the curves of runs, beside the numbers as JSON; returns the picture's path."""
    runs = {name: read_curves(run) for name, run in name_runs(arguments.runs).items()}
    path = write_figure(arguments.output, draw_curves(runs))
    numbers = {run: {name: curve.tolist() for name, curve in curves.items()} for run, curves in runs.items()}
    path.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return path
