"""Real runs of the distillation recipe: batch splits, processes and crashes do not change what is learned."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_teachers, toy_folder) -> Path:
    """A recipe of 6 epochs of 2 steps of 16 clips."""
    path = tmp_path_factory.mktemp("recipe") / "distill.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "student": "mvd-b",
                "config": {
                    "image_size": 32,
                    "patch_size": 8,
                    "num_frames": 4,
                    "hidden_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "decoder_hidden_size": 16,
                    "decoder_num_hidden_layers": 1,
                    "decoder_num_attention_heads": 2,
                    "drop_path_rate": 0.0,
                },
                "teachers": tiny_teachers,
                "dataset": toy_folder,
                "stride": 2,
                "num_train_epochs": 6,
                "warmup_epochs": 1,
                "base_learning_rate": 0.05,
                "per_device_train_batch_size": 16,
                "dataloader_num_workers": 0,
                "logging_steps": 1,
                "save_steps": 3,
                "save_strategy": "steps",
                "disable_tqdm": True,
            }
        )
    )
    return path


def command(recipe: Path, output: Path, processes: int = 1, **options) -> list[str]:
    overrides = [f"--{key}={value}" for key, value in {"output_dir": output, **options}.items()]
    launcher = [
        "-m",
        "accelerate.commands.launch",
        *(["--multi_gpu"] if processes > 1 else []),
        f"--num_processes={processes}",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--main_process_port=0",
    ]
    return [sys.executable, *launcher, str(ROOT / "recipes" / "distill.py"), str(recipe), *overrides]


def environment() -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(recipe: Path, output: Path, processes: int = 1, **options) -> str:
    result = subprocess.run(
        command(recipe, output, processes, **options), env=environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def history(output: Path) -> dict[int, dict]:
    """What the run logged per step, read from its last checkpoint."""
    last = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((last / "trainer_state.json").read_text())
    return {entry["step"]: entry for entry in state["log_history"] if "loss" in entry}


def figures(output: Path) -> list[float]:
    keys = ("loss", "loss_image", "loss_video", "grad_norm", "learning_rate")
    return [entry[key] for entry in history(output).values() for key in keys]


@pytest.fixture(scope="module")
def reference(recipe, tmp_path_factory) -> Path:
    """One process, batches of 16."""
    output = tmp_path_factory.mktemp("reference")
    run(recipe, output)
    return output


def test_it_learns(reference):
    losses = [entry["loss"] for entry in history(reference).values()]
    assert len(losses) == 12
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("processes", "batch", "accumulation"), [(1, 4, 4), (2, 8, 1), (2, 4, 2)], ids=["accumulated", "two", "both"]
)
def test_how_a_batch_is_split_does_not_matter(recipe, reference, tmp_path, processes, batch, accumulation):
    log = run(
        recipe,
        tmp_path,
        processes,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
    )
    # the run says how many processes there were: a launcher may quietly start one only
    assert f"Effective batch 16 = {batch} clips x {accumulation} accumulation steps x {processes} processes" in log
    assert figures(tmp_path) == pytest.approx(figures(reference), rel=1e-4)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, reference))
    assert max((ours[key] - theirs[key]).abs().max().item() for key in theirs) < 1e-4


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_resumes_as_if_nothing_had_happened(recipe, tmp_path, processes):
    options = {
        "per_device_train_batch_size": 16 // processes // 2,
        "gradient_accumulation_steps": 2,
        "config.drop_path_rate": 0.2,
        "dataloader_num_workers": 2,
        "num_train_epochs": 30,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(recipe, whole, processes, **options)
    process = subprocess.Popen(
        command(recipe, killed, processes, **options),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint-9" / "trainer_state.json").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "model.safetensors").exists(), "it was killed too late"
    log = run(recipe, killed, processes, **options)
    assert "Resuming from" in log
    assert history(killed).keys() == history(whole).keys()
    assert figures(killed) == figures(whole)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (killed, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_workers_do_not_change_the_clips(recipe, reference, tmp_path):
    run(recipe, tmp_path, dataloader_num_workers=2)
    assert figures(tmp_path) == figures(reference)
