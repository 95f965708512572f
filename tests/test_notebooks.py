"""Notebooks and generated figures of the documentation; small models take the place of those of the Hub."""

import ast
import importlib.util
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
)

from launching import ROOT, launch
from mvd_hf.arguments import parse_arguments
from mvd_hf.cli import COMMANDS
from mvd_hf.data.toy import toy_videos, write_video
from mvd_hf.recipes.distill import KINDS
from tiny_models import TINY

NOTEBOOKS = ROOT / "docs" / "notebooks"
VIDEOMAE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
# what the test changes in a cell: small networks and a short training
SHORTER = {
    "student: mvd-s": f"student: mvd-s\nconfig: {TINY | {'num_frames': 4}}",
    "num_train_epochs: 100\nwarmup_epochs: 10": "num_train_epochs: 2\nwarmup_epochs: 1",
    "per_device_train_batch_size: 16\nlogging_steps: 5": "per_device_train_batch_size: 4\nlogging_steps: 2",
}


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


notebooks = load(ROOT / "docs" / "render_notebooks.py")


@pytest.mark.parametrize("script", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_is_in_step_with_its_script(script):
    assert notebooks.render(script) == script.with_suffix(".ipynb").read_text(encoding="utf-8")


def shown_by(cell: str, names: dict) -> object:
    """Run a cell; gives the value that a notebook shows below it."""
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return last and eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def run(script: Path, folder: Path) -> tuple[list, str]:
    """Run the cells of a notebook in a folder; gives the images it shows, and what its commands print."""
    names, images, printed = {}, [], ""
    for kind, text in notebooks.cells_of(script):
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        if kind == "code" and text.startswith("!"):
            _, command, *words = shlex.split(text.replace("\\\n", " "))
            printed += launch(COMMANDS[command], *words, folder=folder)
        elif kind == "code":
            images.append(shown_by(text, names))
    return [np.asarray(image) for image in images if hasattr(image, "size")], printed


def test_a_clip_is_classified_and_explored(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=8, num_labels=400, use_mean_pooling=True, **VIDEOMAE
    )
    VideoMAEForVideoClassification(config).save_pretrained(tmp_path / "MCG-NJU/videomae-base-finetuned-kinetics")
    (video,) = toy_videos(1, 40, 40, 48, seed=0)
    write_video(tmp_path / "clip.mp4", video[-1])
    monkeypatch.chdir(tmp_path)
    images, _ = run(NOTEBOOKS / "classify_and_explore.py", tmp_path)
    printed = capsys.readouterr().out
    assert "new weights: []" in printed
    assert printed.count("LABEL_") == 5
    assert len(images) == 5
    assert all(image.std() > 10 for image in images)


@pytest.mark.slow
def test_a_student_is_distilled_compared_fine_tuned_and_published(tmp_path, monkeypatch):
    torch.manual_seed(0)
    image = Dinov2Config(image_size=56, patch_size=14, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    video = VideoMAEConfig(image_size=64, patch_size=16, num_frames=4, **VIDEOMAE)
    Dinov2Model(image).save_pretrained(tmp_path / "facebook/dinov2-base")
    VideoMAEForPreTraining(video).save_pretrained(tmp_path / "MCG-NJU/videomae-base")
    for number, (*_, frames) in enumerate(toy_videos(12, 20, 40, 48, seed=0)):
        folder = tmp_path / "my_videos" / ("jump", "run")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / f"{number}.mp4", frames)
    monkeypatch.chdir(tmp_path)
    images, printed = run(NOTEBOOKS / "distil_on_your_videos.py", tmp_path)
    assert len(images) == 2
    assert all(image.std() > 10 for image in images)
    assert "GPU hours" in printed
    assert "A dry run: nothing was uploaded" in printed
    assert (tmp_path / "outputs/my_classifier/model.safetensors").exists()


def test_the_picture_of_runs_draws_what_its_recipes_log(tmp_path):
    runs = load(ROOT / "docs" / "draw_runs.py")
    for name, values in runs.RUNS.items():
        recipe, _, training = parse_arguments([*runs.arguments_of(name, values, tmp_path), "--use_cpu"], *KINDS)
        assert set(recipe.teachers) == {"image", "video"}
        assert Path(training.output_dir).parent == tmp_path
    history = [{"step": step, **dict.fromkeys(runs.PANELS, step)} for step in (1, 2)] + [{"train_loss": 1}]
    figure = runs.draw(dict.fromkeys(runs.RUNS, history))
    assert [len(axes.get_lines()) for axes in figure.axes] == [3, 3, 3, 3]
