"""The stages of the study, and a run that continues where it stopped.

The study compares arms: ways to obtain an encoder. A stage runs one recipe script with its own keys. Stages of one
seed depend on each other; seeds are independent. A finished stage leaves `stage.json` in its folder.
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
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from types import ModuleType

import torch
import yaml
from transformers.utils import logging as transformers_logging

from mvd_hf.arguments import merge
from mvd_hf.data.atomic import replace_file

from .scenes import TASKS, SceneSettings, class_names, make_scenes

logger = logging.getLogger(__name__)

# files of a stage: its keys, its record once it has finished, its output; and the folder of the videos
RECIPE, RECORD, LOG, SCENES = "recipe.yaml", "stage.json", "log.txt", "scenes"
# keys of the student's training that the video MAE shares, so that both take the same number of updates
SCHEDULE = (
    *("num_train_epochs", "warmup_epochs", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "schedule_epochs"),
)


@dataclass(frozen=True)
class Arm:
    """One way to obtain an encoder.

    Args:
        title: name in the report.
        teachers: teachers that the student is distilled from.
        pixels: whether the encoder reconstructs pixels instead (VideoMAE).
        masks: masks per clip. The number of updates, the number of masked clips and the learning rates stay the same;
            the number of clips is divided by `masks`.
    """

    title: str
    teachers: tuple[str, ...] = ()
    pixels: bool = False
    masks: int = 1


ARMS = {
    "scratch": Arm("from scratch"),
    "videomae": Arm("video MAE, no teacher", pixels=True),
    "image": Arm("student of the image teacher", ("image",)),
    "video": Arm("student of the video teacher", ("video",)),
    "both": Arm("student of both", ("image", "video")),
    "both_two_masks": Arm("student of both, two masks per clip", ("image", "video"), masks=2),
}


@dataclass
class StudyArguments:
    """The keys of a study's recipe.

    Args:
        output: folder of the study.
        seeds: each repeats all training, teachers included.
        processes: stages that run at the same time.
        arms: names from `ARMS`.
        scenes: fields of [`SceneSettings`].
        encoder: `MVDConfig` fields of the encoder, the same in every arm.
        training: keys of every training run.
        image_teacher, video_teacher: keys of `recipes/pretrain.py`.
        student: keys of `recipes/distill.py`.
        videomae: keys of `recipes/pretrain.py` for the arm without a teacher; it shares the student's schedule.
        finetune: keys of `recipes/finetune.py`.
        probe: keys of `recipes/study/probe.py`.
    """

    output: str = "outputs/study"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    processes: int = 2
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    scenes: dict = field(default_factory=dict)
    encoder: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    image_teacher: dict = field(default_factory=dict)
    video_teacher: dict = field(default_factory=dict)
    student: dict = field(default_factory=dict)
    videomae: dict = field(default_factory=dict)
    finetune: dict = field(default_factory=dict)
    probe: dict = field(default_factory=dict)

    def __post_init__(self):
        unknown = sorted(set(self.arms) - set(ARMS))
        if unknown or not self.arms:
            raise ValueError(f"arms={self.arms}: choose from {', '.join(ARMS)}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} must be different numbers.")
        if self.processes < 1:
            raise ValueError(f"processes={self.processes} must be at least 1.")
        missing = [key for key in SCHEDULE[:3] if key not in self.student]
        if missing:
            raise ValueError(f"student needs {missing[0]}, which the video MAE shares.")
        batch, masks = self.student["per_device_train_batch_size"], max(ARMS[arm].masks for arm in self.arms)
        videos = self.scenes.get("train", SceneSettings.train)
        if batch % masks or videos % batch:
            raise ValueError(
                f"{videos} videos in batches of {batch}, with {masks} masks per clip, give the arms different numbers "
                "of updates: choose a batch size that divides the videos and is a multiple of the masks."
            )

    def schedule(self, arm: str) -> dict:
        """The student's schedule, adapted to the number of masks per clip."""
        masks = ARMS[arm].masks
        keys = {key: self.student[key] for key in SCHEDULE if key in self.student}
        if masks > 1:
            epochs = [key for key in keys if key.endswith("_epochs")]
            keys |= {key: keys[key] / masks for key in epochs} | {"masks_per_clip": masks}
            keys["per_device_train_batch_size"] //= masks
        return keys


@dataclass(frozen=True)
class Stage:
    """A recipe script with its keys.

    Args:
        name: its folder, inside the folder of the study.
        kind: what it does; stages of one kind take about equally long.
        script: path of the script, whose `main` takes command line arguments.
        keys: content of its YAML file.
        needs: names of the stages that must have finished before.
    """

    name: str
    kind: str
    script: str
    keys: dict
    needs: tuple[str, ...] = ()


class Plan:
    """The stages of a study.

    Args:
        study: the keys of its recipe.
        recipes: folder of the recipe scripts.
    """

    def __init__(self, study: StudyArguments, recipes: str | Path):
        self.study, self.recipes, self.folder = study, Path(recipes), Path(study.output)

    def stages(self) -> list[Stage]:
        """All stages, each after those it needs."""
        return [stage for seed in self.study.seeds for stage in self.of_seed(seed)]

    def of_seed(self, seed: int) -> Iterator[Stage]:
        """The stages of one seed: the teachers, then encoder, fine-tuning and probes of each arm."""
        taught = {name for arm in self.study.arms for name in ARMS[arm].teachers}
        for name in sorted(taught):
            yield self.teacher(seed, name)
        for arm in self.study.arms:
            if arm != "scratch":
                yield self.pixels(seed, arm) if ARMS[arm].pixels else self.student(seed, arm)
            for task in TASKS:
                yield self.finetuning(seed, arm, task)
            yield self.probe(seed, arm)

    def stage(self, seed: int, name: str, kind: str, keys: Mapping, needs: Sequence[str] = ()) -> Stage:
        """A stage of a seed, with the keys that all stages share."""
        name = f"seed{seed}/{name}"
        script = "study/probe" if kind == "probe" else kind.split()[0]
        shared = {"dataset": str(self.folder / SCENES), "output_dir": str(self.folder / name), "seed": seed}
        if kind != "probe":
            keys = merge(self.study.training, keys)
        path = str(self.recipes / f"{script}.py")
        return Stage(name, kind, path, merge(keys, shared), tuple(f"seed{seed}/{n}" for n in needs))

    def sizes(self, *names: str) -> dict:
        """These fields of the encoder, for a teacher."""
        return {name: self.study.encoder[name] for name in names if name in self.study.encoder}

    def teacher(self, seed: int, name: str) -> Stage:
        """The image MAE or the video MAE."""
        study = self.study
        if name == "image":
            keys = {"model": "mae-b", "config": self.sizes("image_size", "patch_size")}
            keys = merge(keys, study.image_teacher)
        else:
            keys = {"model": "videomae-b", "config": self.sizes("image_size", "patch_size", "num_frames")}
            keys = merge(keys, study.video_teacher)
        return self.stage(seed, f"{name}_teacher", f"pretrain {name}", keys)

    def student(self, seed: int, arm: str) -> Stage:
        """The student of an arm's teachers."""
        teachers = {name: str(self.folder / f"seed{seed}/{name}_teacher") for name in ARMS[arm].teachers}
        keys = {"student": "mvd-b", "config": self.study.encoder, "teachers": teachers}
        keys = merge(merge(keys, self.study.student), self.study.schedule(arm))
        needs = [f"{name}_teacher" for name in teachers]
        return self.stage(seed, f"{arm}/encoder", f"distill {arm}", keys, needs)

    def pixels(self, seed: int, arm: str) -> Stage:
        """The video MAE, of the student's size and with the same number of updates."""
        schedule = {key: self.study.student[key] for key in SCHEDULE if key in self.study.student}
        keys = merge({"model": "videomae-b", "config": self.study.encoder}, merge(self.study.videomae, schedule))
        return self.stage(seed, f"{arm}/encoder", f"pretrain {arm}", keys)

    def encoder_of(self, seed: int, arm: str) -> tuple[str, list[str]]:
        """The model that an arm is fine-tuned from, and the stages that produce it."""
        if arm == "scratch":
            return "mvd-b", []
        return str(self.folder / f"seed{seed}/{arm}/encoder"), [f"{arm}/encoder"]

    def finetuning(self, seed: int, arm: str, task: str) -> Stage:
        """Fine-tuning and testing on a task."""
        model, needs = self.encoder_of(seed, arm)
        keys = {"model": model, "config": self.study.encoder, "eval_split": "test"}
        labels = {"label_column": task, "label_names": class_names(task)}
        keys = merge(merge(keys, self.study.finetune), labels)
        return self.stage(seed, f"{arm}/finetune_{task}", "finetune", keys, needs)

    def probe(self, seed: int, arm: str) -> Stage:
        """Probes of the frozen encoder."""
        model, needs = self.encoder_of(seed, arm)
        keys = merge({"model": model, "config": self.study.encoder}, self.study.probe)
        return self.stage(seed, f"{arm}/probe", "probe", keys, needs)


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


def run_stage(stage: Stage, folder: Path):
    """Run a stage or resume it, keep its log history, and remove its checkpoints."""
    target = folder / stage.name
    target.mkdir(parents=True, exist_ok=True)
    recipe = target / RECIPE
    recipe.write_text(f"# python {stage.script} {recipe}\n{yaml.safe_dump(stage.keys, sort_keys=False)}")
    start = time.perf_counter()
    with output_to(target / LOG):
        try:
            load_script(stage.script).main([str(recipe)])
        except SystemExit:
            parent = multiprocessing.parent_process()
            if parent is not None and not parent.is_alive():
                os._exit(128 + signal.SIGTERM)  # the study was killed: nobody waits for this process
            raise
    seconds = round(time.perf_counter() - start, 1)
    record = {"keys": stage.keys, "seconds": seconds, "history": training_history(target)}
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


def run_study(study: StudyArguments, recipes: str | Path) -> Plan:
    """Make the scenes and run every unfinished stage.

    Args:
        study: the keys of the study's recipe.
        recipes: folder of the recipe scripts.
    """
    plan, folder = Plan(study, recipes), Path(study.output)
    make_scenes(folder / SCENES, SceneSettings(**study.scenes))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(study.processes, mp_context=context, initializer=begin_process) as pool:
        run_stages(plan.stages(), folder, pool, study.processes)
    return plan
