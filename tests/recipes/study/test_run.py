"""The whole study in miniature: a killed run continues to its report."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from launching import ROOT
from mvd_hf.data.toy import toy_frames, write_video
from recipes.study.stages import RECORD

ENCODER = {"image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32, "num_hidden_layers": 2}
DECODER = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
KEYS = {
    **{"seeds": [3], "shares": [1.0], "processes": 1, "arms": ["scratch", "video"]},
    **{"encoder": {**ENCODER, "num_attention_heads": 2}, "videos.short_side": 40},
    **{"training.per_device_train_batch_size": 8, "training.save_steps": 10, "training.logging_steps": 1},
    **{"video_teacher.config": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, **DECODER}},
    **{"video_teacher.num_train_epochs": 30, "video_teacher.warmup_epochs": 0, "teacher_loss": 2},
    **{"student.config": DECODER, "student.num_train_epochs": 2, "student.warmup_epochs": 0},
    **{"student.per_device_train_batch_size": 8, "finetune.min_steps": 4, "finetune.num_train_epochs": 1},
    **{"scratch.min_steps": 4, "probe.probe_epochs": 1},
}


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_study_continues_from_its_checkpoint_to_its_report(tmp_path):
    for label in ("up", "left"):
        for i in range(12):
            path = tmp_path / "videos" / label / f"{label}{i}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, toy_frames("dots", label, 24, 40, 48, np.random.default_rng(i)))
    output = tmp_path / "study"
    words = [f"--{key}={json.dumps(value)}" for key, value in KEYS.items()]
    places = [f"--dataset={tmp_path / 'videos'}", f"--output={output}"]
    command = [sys.executable, "recipes/study/run.py", "recipes/study/common.yaml", *places, *words]
    folder = output / "test"
    teacher = folder / "seed3" / "video_teacher"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: process.poll() is not None or list(teacher.glob("checkpoint-*/trainer_state.json")))
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    # the stage's own process notices that the study is gone
    wait_until(lambda: "Stopped by SIGTERM" in (teacher / "log.txt").read_text())
    assert not (teacher / RECORD).exists()

    def run_again() -> tuple[str, dict]:
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stderr, json.loads((folder / "results.json").read_text())

    log, results = run_again()
    assert "Resuming from" in (teacher / "log.txt").read_text()
    assert "0 of 5 stages had finished" in log
    assert results["seeds"] == [3]
    tested = {(row["model"], row["method"]) for row in results["table"]}
    assert {
        ("scratch", "fine-tuned"),
        ("video", "fine-tuned"),
        ("video", "linear"),
        ("video_teacher", "knn"),
    } <= tested
    assert {"majority", "pixels", "random"} <= {model for model, _ in tested}
    assert (folder / "README.md").exists()
    log, again = run_again()
    assert "5 of 5 stages had finished" in log
    assert again == results


def wait_until(is_so, seconds: float = 300):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"the condition does not hold after {seconds} s"
        time.sleep(0.1)
