"""Real runs of a recipe through `accelerate launch`, on one or more CPU processes, and what they leave behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def launch_command(script: str, *words: str | Path, processes: int = 1, **options) -> list[str]:
    """The words of a command that runs a recipe's script with keys."""
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
    keys = [f"--{key}={value}" for key, value in options.items()]
    return [sys.executable, *launcher, str(ROOT / "recipes" / script), *map(str, words), *keys]


def environment() -> dict[str, str]:
    """An environment without network and without a GPU."""
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def launch(script: str, *words: str | Path, processes: int = 1, **options) -> str:
    """Run a recipe to its end; gives what it printed."""
    command = launch_command(script, *words, processes=processes, **options)
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def signal_when(
    path: Path, number: signal.Signals, script: str, *words: str | Path, processes: int = 1, **options
) -> int:
    """Start a recipe, signal all its processes as soon as a file is there, and wait for their end.

    Gives the launcher's exit code: it may end before the processes that it started.
    """
    process = subprocess.Popen(
        launch_command(script, *words, processes=processes, **options),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, number)
    code = process.wait(120)
    while is_alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return code


def is_alive(group: int) -> bool:
    """Whether a process group still has a process that has not ended."""
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def history(output: Path) -> dict[int, dict]:
    """What a run logged per step, read from its last checkpoint."""
    last = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((last / "trainer_state.json").read_text())
    return {entry["step"]: entry for entry in state["log_history"] if "loss" in entry}
