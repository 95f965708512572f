"""Every stage on frames of 24 x 48 pixels: teachers, student, classifier, test, export, cost."""

import json
import runpy

import pytest
import torch
from transformers import pipeline

from launching import ROOT
from mvd_hf import MVDConfig, MVDForVideoClassification, MVDVideoProcessor
from mvd_hf.data.toy import make_toy_dataset
from mvd_hf.training.costs import distillation_parts

pytestmark = pytest.mark.slow

SHORT = ["--num_train_epochs=1", "--warmup_epochs=0", "--disable_tqdm=true", "--report_to=none", "--use_cpu=true"]
SHORT += ["--per_device_train_batch_size=8"]
SIZE = "--config.image_size=[24,48]"


def run(script: str, recipe: str, *arguments: str):
    path = ROOT / "recipes" / script
    runpy.run_path(str(path))["main"]([str(ROOT / "recipes" / "tiny" / recipe), *arguments, *SHORT])


def test_all_stages_take_rectangles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = make_toy_dataset(tmp_path / "data", num_train=16, num_validation=8, num_frames=16, height=40, width=64)
    videos = f"--dataset={data}"
    teachers = {"image": "outputs/tiny/mae", "video": "outputs/tiny/videomae"}
    for recipe in ("mae.yaml", "videomae.yaml"):
        run("pretrain.py", recipe, videos, SIZE)
    run("distill.py", "distill.yaml", videos, SIZE, *(f"--teachers.{name}={path}" for name, path in teachers.items()))
    for size, grid in (("[24,48]", (4, 3, 6)), ("32", (4, 4, 4))):  # a square from the same student, too
        output = tmp_path / f"classifier_{grid[1]}"
        views = ["--test_clips=2", "--test_crops=3"]
        run("finetune.py", "finetune.yaml", videos, f"--config.image_size={size}", f"--output_dir={output}", *views)
        model = MVDForVideoClassification.from_pretrained(output)
        assert model.config.grid == grid
        assert json.loads((output / "evaluation" / "metrics.json").read_text())["protocol"] == "8x2x3"
        processor = MVDVideoProcessor.from_pretrained(output)
        clip = processor(str(data / "validation" / "0000.mp4"), return_tensors="pt")["pixel_values"]
        assert clip.shape[-2:] == model.config.frame_size
        (best, *_) = pipeline("video-classification", str(output))(str(data / "validation" / "0000.mp4"))
        expected = model.eval()(clip).logits.softmax(-1).max()
        torch.testing.assert_close(torch.tensor(best["score"]), expected, atol=1e-4, rtol=0)
    assert json.loads((output / "config.json").read_text())["image_size"] == 32
    export = runpy.run_path(str(ROOT / "recipes" / "export.py"))["main"]
    export([str(tmp_path / "classifier_3"), "--output=exported"])
    record = json.loads((tmp_path / "exported" / "export.json").read_text())
    assert record["input"]["shape"][-2:] == [24, 48]
    assert "fits" in record["input"]["crop"]["enlarged"]
    parts = distillation_parts(MVDConfig.from_pretrained("outputs/tiny/student"), teachers)
    assert all(part.forward > 0 for part in parts)
