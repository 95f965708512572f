"""Draw `docs/figures/runs.png`: what a good run and two bad ones log, with the student of the tiny job under
its MAE and VideoMAE.

python recipes/tiny/run.py && python docs/draw_runs.py
"""

import json
import logging
import runpy
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure

from mvd_hf import MVDForPixelReconstruction

ROOT = Path(__file__).parents[1]
FOLDER, COLLAPSED = Path("outputs/runs"), Path("outputs/runs/collapsed_teacher")
TEACHERS = {"teachers.image": "outputs/tiny/mae", "teachers.video": "outputs/tiny/videomae"}
# by name: what differs from the recipe of the tiny job
RUNS = {
    "good": {},
    "learning rate 30 times too high": {"base_learning_rate": 0.24, "base_min_learning_rate": 0.24},
    "teacher with the same features everywhere": {"teachers.video": {"model": str(COLLAPSED), "norm": "post"}},
}
PANELS = {
    "loss_video": "loss_video",
    "cosine_video": "cosine_video: 1 is agreement",
    "target_variance_video": "target_variance_video",
    "student_rank": "student_rank, of 64",
}
COLORS, STYLES = ("tab:blue", "tab:red", "tab:orange"), ("-", "--", ":")
LOGARITHMIC = ("target_variance_video",)


def collapse(teacher: str, folder: Path):
    """Save a teacher whose features, after the final norm, hardly differ from patch to patch."""
    model = MVDForPixelReconstruction.from_pretrained(teacher)
    with torch.no_grad():
        model.mvd.layernorm.weight.mul_(0.02)
        model.mvd.layernorm.bias.fill_(1.0)
    model.save_pretrained(folder)


def arguments_of(name: str, values: Mapping, folder: Path) -> list[str]:
    """The words of `recipes/distill.py` for a run."""
    options = {"output_dir": folder / name.replace(" ", "_"), "overwrite": True, "num_train_epochs": 5}
    options |= {**TEACHERS, **values, "logging_steps": 4, "eval_split": "null", "disable_tqdm": True}
    options = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in options.items()}
    return [str(ROOT / "recipes/tiny/distill.yaml"), *(f"--{key}={value}" for key, value in options.items())]


def draw(histories: Mapping[str, list[dict]]) -> Figure:
    """A panel per value of the log, a line per run."""
    figure = Figure((8.4, 5.6), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for (name, history), color, style in zip(histories.items(), COLORS, STYLES, strict=True):
            entries = [entry for entry in history if key in entry]
            steps, values = [entry["step"] for entry in entries], [entry[key] for entry in entries]
            axes.plot(steps, values, style, color=color, linewidth=2, label=name)
        axes.set(title=title, xlabel="step", yscale="log" if key in LOGARITHMIC else "linear")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    collapse("outputs/tiny/videomae", COLLAPSED)
    distill, histories = runpy.run_path(str(ROOT / "recipes/distill.py"))["main"], {}
    for name, values in RUNS.items():
        words = arguments_of(name, values, FOLDER)
        distill(words)
        state = Path(words[1].partition("=")[2], "trainer_state.json")
        histories[name] = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    draw(histories).savefig(ROOT / "docs/figures/runs.png", dpi=100)


if __name__ == "__main__":
    main()
