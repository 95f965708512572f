"""The recipes of AVA against the nearest published settings, and what they say of what is published."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from launching import ROOT
from mvd_hf import MVDConfig, MVDForActionDetection, MVDTrainingArguments
from mvd_hf.arguments import parse_arguments, read_yaml
from mvd_hf.detection.ava import SCORED_ACTIONS
from mvd_hf.detection.trainer import DetectionArguments

RECIPES = ROOT / "recipes"
AVA = sorted((RECIPES / "ava").glob("*.yaml"))
README = (RECIPES / "ava" / "README.md").read_text(encoding="utf-8")
NUM_PROCESSES = 8

# reported mAP, straight from distillation and after Kinetics labels
RESULTS = {
    "vit-b-from-vit-b": ("29.3", "33.6"),
    "vit-b-from-vit-l": ("31.1", "34.2"),
    "vit-l-from-vit-l-800": ("37.7", "38.7"),
    "vit-h-from-vit-h": ("40.1", "41.1"),
}
# epochs, base rate, layer decay of VideoMAE's AVA runs, without and with Kinetics labels; gradient checkpointing
SETTINGS = {
    "b": ((30, 2.5e-4, 0.75), (30, 5e-4, 0.75), False),
    "l": ((30, 2.5e-4, 0.75), (20, 5e-4, 0.8), True),
    "h": ((20, 5e-4, 0.8), (20, 5e-4, 0.8), True),
}


@pytest.fixture(autouse=True)
def eight_processes(monkeypatch):
    monkeypatch.setattr(MVDTrainingArguments, "world_size", property(lambda self: NUM_PROCESSES))


@pytest.fixture(scope="module")
def recipe():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("detect_preset_recipe", RECIPES / "detect.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def name_of(path: Path) -> tuple[str, bool]:
    """The run and whether it begins with a classifier of Kinetics."""
    return path.stem.removesuffix("-k400"), path.stem.endswith("-k400")


def test_every_reported_result_has_its_recipe():
    assert {path.stem for path in AVA} == {name + suffix for name in RESULTS for suffix in ("", "-k400")}


@pytest.mark.parametrize("path", AVA, ids=lambda path: path.stem)
def test_a_recipe_has_the_nearest_published_settings(recipe, path):
    name, has_labels = name_of(path)
    *settings, checkpointing = SETTINGS[name.split("-")[1]]
    epochs, rate, layer_decay = settings[has_labels]
    keys, data, training = parse_arguments(
        [str(path), "--use_cpu"], recipe.DetectorArguments, DetectionArguments, MVDTrainingArguments
    )
    assert training.total_batch_size == 128
    assert (training.num_train_epochs, training.warmup_epochs, training.schedule_epochs) == (epochs, 5, None)
    assert (training.learning_rate, training.min_learning_rate) == pytest.approx((rate / 2, 1e-6 / 2))
    assert (training.layer_decay, training.weight_decay, training.max_grad_norm) == (layer_decay, 0.05, 0)
    assert (training.adam_beta1, training.adam_beta2) == (0.9, 0.999)
    assert bool(training.gradient_checkpointing) == checkpointing
    assert training.bf16
    assert training.output_dir == f"outputs/ava/{path.stem}"
    distillation = read_yaml(RECIPES / f"mvd-{name}" / "distill.yaml")
    assert keys.model == distillation["output_dir"] + ("-k400" if has_labels else "")
    assert keys.final_norm == ("fresh" if has_labels else "checkpoint")
    # the pipeline's own normalisation, in grey levels
    grey = [255 * mean for mean in keys.config["image_mean"]]
    assert grey == pytest.approx([122.7717, 115.9465, 102.9801], abs=1e-3)
    assert 255 * keys.config["image_std"] == pytest.approx(57.375)
    assert (data.stride, data.short_side, data.min_score, data.flip, data.top_k) == (4, 256, 0.8, 0.5, 50)
    assert (data.box_jitter, data.color_jitter, data.min_visible, data.max_people) == (1, 1, 0, 100)
    assert (max(data.actions), tuple(data.scored)) == (80, SCORED_ACTIONS)
    files = [data.annotations, data.eval_annotations, data.excluded, data.eval_excluded, data.boxes]
    assert len(set(files)) == 5
    assert all(file.endswith(".csv") for file in files)


@pytest.mark.parametrize("path", AVA, ids=lambda path: path.stem)
def test_a_recipe_s_model_is_the_detector_of_its_student(recipe, path):
    keys, data, _ = parse_arguments(
        [str(path), "--use_cpu"], recipe.DetectorArguments, DetectionArguments, MVDTrainingArguments
    )
    distillation = read_yaml(RECIPES / f"mvd-{name_of(path)[0]}" / "distill.yaml")
    config = MVDConfig.from_name(distillation["student"], **keys.config, num_labels=max(data.actions))
    assert (config.drop_path_rate, config.num_frames, config.grid) == (0.2, 16, (8, 14, 14))
    assert (config.detection_positions, list(config.detection_margin)) == ("interpolated", [0.1, 0.05])
    assert config.detection_pool_size == 7
    with torch.device("meta"):
        model = MVDForActionDetection(config)
    assert model.classifier.weight.shape == (80, config.hidden_size)


@pytest.mark.parametrize("path", AVA, ids=lambda path: path.stem)
def test_the_comment_tells_the_result_the_batch_and_what_is_not_published(path):
    name, has_labels = name_of(path)
    comment = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"Reported by the authors: {RESULTS[name][has_labels]} mAP" in comment
    assert "nothing here is published for MVD" in comment
    assert "Not trained by us" in comment
    values = read_yaml(path)
    factors = values["per_device_train_batch_size"], values.get("gradient_accumulation_steps", 1)
    stated = re.search(r"The batch of (\d+) = (\d+) clips x (\d+) accumulation steps x 8 processes", comment)
    assert tuple(map(int, stated.groups())) == (factors[0] * factors[1] * NUM_PROCESSES, *factors)


def test_the_readme_tells_the_same():
    for name, results in RESULTS.items():
        assert f"| `{name}.yaml`, `-k400.yaml` |" in README
        assert ", ".join(results) in README
    for batch in ("16 x 1 x 8 = 128", "4 x 4 x 8 = 128", "2 x 8 x 8 = 128"):
        assert batch in README
