"""Deployment: every program computes what the model does, as far as its precision goes, and has its row."""

import importlib.util

import pytest
import torch

from mvd_hf import MVDConfig
from recipes.benchmark import deployment
from recipes.benchmark.deployment import (
    BASE,
    VIDEOMAE,
    deployment_rows,
    of_torch,
    probed_classifier,
    quality,
    toy_clips,
)
from recipes.benchmark.models import videomae_config
from recipes.benchmark.timing import Race

TINY = {"image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32, "num_hidden_layers": 2}
CONFIG = MVDConfig.from_name("mvd-b", **TINY, num_attention_heads=2, num_labels=4)
CPU = torch.device("cpu")


def rows_of(race: Race) -> dict[str, dict]:
    rows = deployment_rows(CONFIG, videomae_config(CONFIG), {"size": "b"}, race, 2, 8)
    return {row["method"]: row for row in rows}


def test_a_row_has_speed_deviation_and_the_accuracy_of_a_probe(monkeypatch):
    kept = deployment.programs

    def eager_only(*arguments):
        made = kept(*arguments)
        assert len(made) == 7
        return {name: make for name, make in made.items() if "compiled" not in name and "ONNX" not in name}

    monkeypatch.setattr(deployment, "programs", eager_only)
    rows = rows_of(Race(CPU, torch.float32, rounds=2, matrix_size=64))
    assert list(rows) == [BASE, VIDEOMAE, "mvd_hf, bfloat16"]
    assert (float(rows[BASE]["deviation"]), rows[BASE]["cost"], rows[BASE]["speedup"]) == (0, 0, 1)
    assert rows[VIDEOMAE]["accuracy"] is None
    assert 1e-4 < float(rows["mvd_hf, bfloat16"]["deviation"]) < 0.5
    assert all(row["ms"] > 0 for row in rows.values())


def test_the_probe_is_better_than_chance_and_its_cost_is_the_difference():
    model = probed_classifier(CONFIG, 32, seed=0)
    known, labels = toy_clips(CONFIG, 32, seed=0)
    base = of_torch(model)
    assert quality(base, base, known, labels)["accuracy"] > 45  # chance is 25
    wrong = quality(lambda clips: -base(clips), base, known, labels)
    assert wrong["cost"] == pytest.approx(quality(base, base, known, labels)["accuracy"] - wrong["accuracy"])
    assert wrong["deviation"] == pytest.approx(2)


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="needs the packages of mvd_hf[export]",
)
def test_onnx_runtime_computes_what_the_model_does_in_float32_and_nearly_so_in_int8(tmp_path):
    model = probed_classifier(CONFIG, 8, seed=0)
    clips, labels = toy_clips(CONFIG, 4, seed=1)
    base = of_torch(model)
    exact, small = (deployment.onnx_program(model, clips[:2], str(tmp_path), is_int8) for is_int8 in (False, True))
    assert quality(exact, base, clips, labels)["deviation"] < 1e-4
    assert 1e-4 < quality(small, base, clips, labels)["deviation"] < 0.5
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size
