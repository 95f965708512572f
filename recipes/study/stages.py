"""Stages: each runs one recipe script with its own keys, and leaves `stage.json` in its folder when it has finished.

A run of several stages continues where it stopped.
"""

import importlib.util
import json
import logging
import multiprocessing
import os
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from types import ModuleType

import torch
import yaml
from transformers.utils import logging as transformers_logging

from mvd_hf.data.atomic import replace_file

logger = logging.getLogger(__name__)

# files of a stage: its keys, its record once it has finished, its output
RECIPE, RECORD, LOG = "recipe.yaml", "stage.json", "log.txt"
MAX_EXTENSIONS = 3


@dataclass(frozen=True)
class Stage:
    """A recipe script with its keys.

    Args:
        name: its folder, inside the folder of the study.
        kind: what it does; stages of one kind take about equally long.
        script: path of the script, whose `main` takes command line arguments.
        keys: content of its YAML file.
        needs: names of the stages that must have finished before.
        enough: training loss below which it is complete; else it goes on.
    """

    name: str
    kind: str
    script: str
    keys: dict
    needs: tuple[str, ...] = ()
    enough: float | None = None


def read_record(stage: Stage, folder: Path) -> dict | None:
    """The record of a finished stage, otherwise `None`.

    Raises:
        ValueError: if the stage ran with different keys.
    """
    path = folder / stage.name / RECORD
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    stored, keys = record["keys"], json.loads(json.dumps(stage.keys))
    if stored != keys:
        differing = sorted(key for key in stored | keys if stored.get(key) != keys.get(key))
        raise ValueError(
            f"{str(path.parent)!r} was made with different keys ({', '.join(differing)}): choose another output, or "
            "delete that folder and those of the stages that depend on it."
        )
    return record


def load_script(path: str) -> ModuleType:
    """A recipe script as a module."""
    name = f"mvd_hf_recipe_{Path(path).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Append logs and printed text to a file."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    with path.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        root.handlers = [logging.StreamHandler(file)]
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.handlers = handlers
            root.setLevel(level)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a training run, the oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def training_history(folder: Path) -> list[dict]:
    """The log history in the last checkpoint of a training run."""
    if not checkpoints(folder):
        return []
    state = json.loads((checkpoints(folder)[-1] / "trainer_state.json").read_text(encoding="utf-8"))
    return state["log_history"]


def run_script(stage: Stage, keys: Mapping, folder: Path):
    """Run the script of a stage, or resume it, with its output in the stage's log."""
    recipe = folder / RECIPE
    recipe.write_text(f"# python {stage.script} {recipe}\n{yaml.safe_dump(dict(keys), sort_keys=False)}")
    with output_to(folder / LOG):
        try:
            load_script(stage.script).main([str(recipe)])
        except SystemExit:
            parent = multiprocessing.parent_process()
            if parent is not None and not parent.is_alive():
                os._exit(128 + signal.SIGTERM)  # the study was killed: nobody waits for this process
            raise


def final_loss(history: Sequence[Mapping]) -> float | None:
    """The last training loss of a log history."""
    return next((entry["loss"] for entry in reversed(history) if "loss" in entry), None)


def run_stage(stage: Stage, folder: Path):
    """Run a stage or resume it, keep its log history, and remove its checkpoints."""
    target = folder / stage.name
    target.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for extension in range(MAX_EXTENSIONS + 1):
        keys = dict(stage.keys)
        if extension:
            keys["num_train_epochs"] *= 2**extension
        run_script(stage, keys, target)
        history = training_history(target)
        if stage.enough is None or final_loss(history) is None or final_loss(history) < stage.enough:
            break
    seconds = round(time.perf_counter() - start, 1)
    record = {"keys": stage.keys, "seconds": seconds, "epochs": keys.get("num_train_epochs"), "history": history}
    with replace_file(target / RECORD) as unfinished:  # last: it marks the stage as finished
        unfinished.write_text(json.dumps(record), encoding="utf-8")
    for path in checkpoints(target):
        shutil.rmtree(path)


def begin_process():
    """Prepare a process that runs stages: it saves a checkpoint and ends when the study ends."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 8))  # networks this small are fastest on one core
    transformers_logging.disable_default_handler()  # it would bypass the stage's log file
    transformers_logging.enable_propagation()
    parent = multiprocessing.parent_process()

    def follow():
        wait_for([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()


def seconds_left(stages: Sequence[Stage], seconds: Mapping[str, float], processes: int) -> float | None:
    """Estimated seconds until all stages have finished; `None` until the first has.

    Args:
        stages: all stages.
        seconds: duration of each finished stage, by name.
        processes: stages that run at the same time.
    """
    if not seconds:
        return None
    kinds: dict[str, list[float]] = {}
    for stage in stages:
        if stage.name in seconds:
            kinds.setdefault(stage.kind, []).append(seconds[stage.name])
    overall = statistics.fmean(seconds.values())
    left = [stage for stage in stages if stage.name not in seconds]
    return sum(statistics.fmean(kinds.get(stage.kind, [overall])) for stage in left) / processes


def run_stages(stages: Sequence[Stage], folder: Path, pool: Executor, processes: int):
    """Run all unfinished stages in the order of their needs, and log the progress.

    Raises:
        ValueError: if the folder holds stages with different keys.
        RuntimeError: if a stage fails; it names the stage.
    """
    records = {stage.name: read_record(stage, folder) for stage in stages}
    seconds = {name: record["seconds"] for name, record in records.items() if record is not None}
    logger.info("%d of %d stages had finished before.", len(seconds), len(stages))
    waiting = [stage for stage in stages if stage.name not in seconds]
    running = {}
    start = time.perf_counter()
    while waiting or running:
        for stage in [stage for stage in waiting if seconds.keys() >= set(stage.needs)][: processes - len(running)]:
            waiting.remove(stage)
            running[pool.submit(run_stage, stage, folder)] = stage
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            stage = running.pop(future)
            error = future.exception()
            if error is not None:
                log = folder / stage.name / LOG
                raise RuntimeError(
                    f"{stage.name} failed ({type(error).__name__}: {error}), see {str(log)!r}. Run the same command "
                    "again to continue from there."
                ) from error
            seconds[stage.name] = read_record(stage, folder)["seconds"]
            left = seconds_left(stages, seconds, processes)
            logger.info(
                "%d of %d stages, %.0f min; about %.0f min left. %s took %.0f s.",
                len(seconds),
                len(stages),
                (time.perf_counter() - start) / 60,
                left / 60,
                stage.name,
                seconds[stage.name],
            )


def run_all(stages: Sequence[Stage], folder: Path, processes: int):
    """Run every unfinished stage, in processes that end with this one."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=begin_process) as pool:
        run_stages(stages, folder, pool, processes)
