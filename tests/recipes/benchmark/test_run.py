"""The benchmark script: every benchmark runs and writes its report; documented commands can be parsed."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import datasets
import pytest
import yaml

from launching import ROOT
from mvd_hf.arguments import parse_arguments
from recipes.benchmark.data import DATA_TITLES
from recipes.benchmark.models import INFERENCE_TITLES, MODEL_TITLES
from recipes.benchmark.steps import STEP_TITLES
from recipes.benchmark.training import TRAIN_TITLES
from recipes.benchmark.videos import make_video, natural_frames

TINY = {
    **{"image_size": 32, "patch_size": 8, "num_frames": 4},
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
}
TINY_STUDENT = TINY | {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}


@pytest.fixture(scope="module")
def recipe():
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_recipe", ROOT / "recipes/benchmark/run.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "recipes"))
    return module


@pytest.fixture(scope="module")
def distill_yaml(tmp_path_factory, tiny_teachers) -> str:
    """A recipe of a tiny student, without data."""
    path = tmp_path_factory.mktemp("recipe") / "distill.yaml"
    keys = {"student": "mvd-b", "config": TINY_STUDENT, "teachers": tiny_teachers, "dataset": "k400_train.csv"}
    path.write_text(yaml.safe_dump({**keys, "output_dir": "outputs/x", "per_device_train_batch_size": 2}))
    return str(path)


def run(recipe, caplog, output: Path, name: str, *words: str) -> dict:
    with caplog.at_level("INFO"):
        recipe.main([name, *words, "--output", str(output)])
    return json.loads((output / f"{name}.json").read_text())


@pytest.mark.long
@pytest.mark.slow
def test_data(recipe, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    video = tmp_path / "tiny.mp4"
    make_video(video, natural_frames(24, 48, 64, seed=0), gop_size=8)
    words = ["--rounds", "1", "--num_frames", "4", "--stride", "2", "--size", "32", "--batch_size", "2"]
    report = run(recipe, caplog, tmp_path, "data", "--videos", str(video), "--parts", "stages", *words)
    assert DATA_TITLES["stages"] in caplog.text
    assert report["stages"]


def test_model_and_inference(recipe, caplog, tmp_path):
    words = ["--sizes", "b", "--dtypes", "float32", "--rounds", "1", "--device", "cpu"]
    networks = ["--networks", "student", "--attention", "eager", "sdpa", "--config", json.dumps(TINY_STUDENT)]
    report = run(recipe, caplog, tmp_path, "model", *words, *networks)
    assert len(report["models"]) == 4
    assert MODEL_TITLES["models"] in caplog.text
    words += ["--config", json.dumps(TINY), "--probe_videos", "0"]
    report = run(recipe, caplog, tmp_path, "inference", *words)
    assert report["arguments"]["sizes"] == ["b"]
    assert all(title in caplog.text for name, title in INFERENCE_TITLES.items() if name != "deployment")


@pytest.mark.long
@pytest.mark.slow
def test_step(recipe, caplog, tmp_path, distill_yaml):
    words = ["--rounds", "1", "--device", "cpu", "--variants", "", "masks_per_clip=2 decoder_keep=0.5"]
    report = run(recipe, caplog, tmp_path, "step", distill_yaml, *words, "--masks_per_clip", "3")
    assert [row["step"] for row in report["step"]] == [
        "naive reference",
        "mvd_hf",
        "mvd_hf masks_per_clip=2 decoder_keep=0.5",
    ]
    ours = report["step"][1]
    assert ours["masked_clips_per_s"] == pytest.approx(3 * ours["clips_per_s"])  # as the recipe says
    assert all(title in caplog.text for title in STEP_TITLES.values())


@pytest.mark.long
@pytest.mark.slow
def test_train(recipe, caplog, tmp_path, monkeypatch, distill_yaml):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    video = tmp_path / "tiny.mp4"
    make_video(video, natural_frames(24, 48, 64, seed=0), gop_size=8)
    monkeypatch.setattr("recipes.benchmark.training.make_videos", lambda folder: {"GOP 12": [str(video)]})
    words = ["--steps", "2", "--warm_up", "1", "--dataloader_num_workers", "1", "--masks_per_clip", "2", "--use_cpu"]
    report = run(recipe, caplog, tmp_path, "train", distill_yaml, *words)
    (row,) = report["train"]
    assert row["clips"] == 4
    assert all(title in caplog.text for title in TRAIN_TITLES.values())


def test_unknown_names_are_refused(recipe):
    with pytest.raises(ValueError, match="'speed'"):
        recipe.main(["speed"])


def test_documented_commands_can_be_parsed(recipe, monkeypatch):
    commands = []
    for name in ("BENCHMARKS.md", "README.md"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        commands += re.findall(r"^(?:OMP_NUM_THREADS=\d )?python recipes/benchmark/run\.py (.*)$", text, re.MULTILINE)
    names = set()
    monkeypatch.chdir(ROOT)
    for command in commands:
        name, *words = shlex.split(command)
        kinds, _, _ = recipe.BENCHMARKS[name]
        is_recipe = len(kinds) > 1
        parse_arguments([*words, *(["--use_cpu"] if is_recipe else [])], *kinds)
        names.add(name)
    assert names == set(recipe.BENCHMARKS)
