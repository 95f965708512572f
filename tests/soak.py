"""Train the tiny student for an hour, with a worker, evaluations and checkpoints, and watch what the run takes.

    python recipes/tiny/run.py                # the videos and the teachers
    python tests/soak.py --minutes 62         # a line a minute, then SIGTERM and a look at the checkpoint

Each line holds, of the trainer and its workers together: memory that no other process shares (USS, MiB; what a worker
has from its trainer and neither has changed is not counted), open files, threads, seconds of CPU, the step of the
newest checkpoint and the number of checkpoints. The end compares the first quarter of the lines, but for two, with the
last. It is run by hand before a release; `BENCHMARKS.md` holds the figures.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from transformers.trainer_utils import get_last_checkpoint

COLUMNS = ("seconds", "uss_mib", "open_files", "threads", "cpu_seconds", "steps", "checkpoints")
EVERY = 60
KEYS = (
    *("--num_train_epochs", "100000", "--warmup_epochs", "1", "--disable_tqdm", "true", "--logging_steps", "100"),
    *("--dataloader_num_workers", "1", "--eval_strategy", "steps", "--eval_steps", "100"),
    *("--save_strategy", "steps", "--save_steps", "200", "--save_total_limit", "3"),
)


def steps_done(output: Path) -> int:
    """The step of the newest checkpoint, 0 before the first."""
    steps = [int(path.name.split("-")[1]) for path in output.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return max(steps, default=0)


def measure(trainer: psutil.Process, output: Path, start: float) -> list[float]:
    """One line of `COLUMNS`."""
    memory = files = threads = cpu = 0
    for process in (trainer, *trainer.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker that has ended since
            found = process.memory_full_info().uss / 2**20, process.num_fds(), process.num_threads()
            memory, files, threads = memory + found[0], files + found[1], threads + found[2]
            cpu += sum(process.cpu_times()[:2])
    checkpoints = len(list(output.glob("checkpoint-*")))
    seconds = time.monotonic() - start
    return [round(seconds), round(memory, 1), files, threads, round(cpu), steps_done(output), checkpoints]


def watch(process: subprocess.Popen, output: Path, minutes: float) -> list[list[float]]:
    """Lines of a running training, one a minute.

    Raises:
        RuntimeError: if the training ends by itself.
    """
    trainer, start, lines = psutil.Process(process.pid), time.monotonic(), []
    print(*COLUMNS, sep="\t", flush=True)
    while time.monotonic() - start < 60 * minutes:
        time.sleep(EVERY)
        if process.poll() is not None:
            raise RuntimeError(f"The training ended with status {process.returncode}.")
        lines.append(measure(trainer, output, start))
        print(*lines[-1], sep="\t", flush=True)
    return lines


def change(lines: list[list[float]]) -> dict:
    """What changed between the first quarter of the run, the first two minutes left out, and its last quarter."""
    settled = lines[2:]
    quarter = max(1, len(settled) // 4)
    first, last = settled[:quarter], settled[-quarter:]
    found = {}
    for name in ("uss_mib", "open_files", "threads"):
        values = [sorted(line[COLUMNS.index(name)] for line in part)[len(part) // 2] for part in (first, last)]
        found[name] = {"first_quarter": values[0], "last_quarter": values[1]}
    for name in ("steps", "cpu_seconds"):
        column = COLUMNS.index(name)
        rates = [(part[-1][column] - part[0][column]) / max(1, part[-1][0] - part[0][0]) for part in (first, last)]
        found[f"{name}_per_second"] = {"first_quarter": round(rates[0], 2), "last_quarter": round(rates[1], 2)}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=62, help="how long to train")
    parser.add_argument("--output", default="outputs/soak", help="folder of the run; it must not exist")
    arguments = parser.parse_args()
    if arguments.minutes < 10:
        parser.error(f"--minutes {arguments.minutes:g} is too short to compare quarters of it: give 10 or more.")
    output = Path(arguments.output)
    if output.exists():
        parser.error(f"--output {str(output)!r} exists: delete it or give another folder.")
    if not Path("outputs/tiny/video_teacher").exists():
        parser.error("there are no teachers: run `python recipes/tiny/run.py` first.")
    output.mkdir(parents=True)
    command = [sys.executable, "recipes/distill.py", "recipes/tiny/distill.yaml", "--output_dir", str(output), *KEYS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (output / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            lines = watch(process, output, arguments.minutes)
            process.send_signal(signal.SIGTERM)
            status = process.wait(300)
        finally:
            process.kill()
    last = get_last_checkpoint(str(output))
    found = change(lines) | {"status_after_sigterm": status, "last_checkpoint": Path(last).name}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
