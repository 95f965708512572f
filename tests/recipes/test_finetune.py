"""Real runs of the fine-tuning recipe: neither crashes nor processes change what is learned; it is tested exactly."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from launching import ROOT, environment, history, launch, signal_when

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, toy_folder) -> Path:
    """A recipe of 8 epochs of 4 steps, with all that is random."""
    path = tmp_path_factory.mktemp("recipe") / "finetune.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": "mvd-b",
                "config": {
                    "image_size": 32,
                    "patch_size": 8,
                    "num_frames": 4,
                    "hidden_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "drop_path_rate": 0.2,
                    "classifier_dropout": 0.5,
                },
                "dataset": toy_folder,
                "label_column": "appearance",
                "label_names": ["stripes", "checkerboard", "dots", "rings"],
                "on_overlap": "keep",
                "stride": 2,
                "sampling": "dense",
                "flip": 0.5,
                "test_clips": 2,
                "test_crops": 3,
                "num_train_epochs": 8,
                "warmup_epochs": 1,
                "base_learning_rate": 0.1,
                "ema_decay": 0.9,
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 2,
                "dataloader_num_workers": 2,
                "logging_steps": 1,
                "save_strategy": "steps",
                "save_steps": 3,
                "save_total_limit": None,
                "disable_tqdm": True,
            }
        )
    )
    return path


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_with_mixing_and_average_resumes_as_if_nothing_had_happened(recipe, tmp_path, processes):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"processes": processes, "gradient_accumulation_steps": 2 // processes}
    launch("finetune.py", recipe, output_dir=whole, **options)
    complete = killed / "checkpoint-9" / "trainer_state.json"
    signal_when(complete, signal.SIGKILL, "finetune.py", recipe, output_dir=killed, **options)
    assert not (killed / "model.safetensors").exists(), "it was killed too late"
    log = launch("finetune.py", recipe, output_dir=killed, **options)
    assert "Resuming from" in log
    assert len(history(whole)) >= 30
    figures = [
        {step: (entry["loss"], entry["grad_norm"]) for step, entry in history(output).items()}
        for output in (whole, killed)
    ]
    assert figures[0] == figures[1]
    for name in ("model.safetensors", "ema/model.safetensors", "best/model.safetensors"):
        ours, theirs = (load_file(folder / name) for folder in (killed, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    ours, theirs = (json.loads((folder / "evaluation" / "metrics.json").read_text()) for folder in (killed, whole))
    assert ours == theirs
    assert (theirs["protocol"], theirs["num_videos"]) == ("4x2x3", 16)


def test_without_what_is_drawn_per_process_two_processes_learn_what_one_does(recipe, tmp_path):
    options = {"mixup_alpha": 0, "cutmix_alpha": 0, "config.drop_path_rate": 0, "config.classifier_dropout": 0}
    figures = {}
    for processes in (1, 2):
        output = tmp_path / str(processes)
        keys = {"processes": processes, "gradient_accumulation_steps": 2 // processes, "num_train_epochs": 3}
        launch("finetune.py", recipe, output_dir=output, **keys, **options)
        state = json.loads((output / "checkpoint-12" / "trainer_state.json").read_text())
        keys = ("loss", "grad_norm", "eval_loss", "eval_top1", "eval_ema_loss")
        figures[processes] = [entry[key] for entry in state["log_history"] for key in keys if key in entry]
    assert len(figures[1]) == 12 * 2 + 2 * 3  # the last evaluation comes after the last checkpoint
    assert figures[2] == pytest.approx(figures[1], rel=1e-4)


def test_a_launcher_that_starts_fewer_processes_than_asked_for_is_told_of(recipe, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"]
    script = str(ROOT / "recipes" / "finetune.py")
    keys = [f"--output_dir={tmp_path}", "--max_steps=1", "--warmup_epochs=0", "--save_strategy=no"]
    options = {"env": environment(), "capture_output": True, "text": True, "timeout": 200}
    result = subprocess.run([*command, script, str(recipe), *keys], **options)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "asked for several processes and has started one" in result.stderr
    assert "accumulation steps x 1 processes" in result.stderr
