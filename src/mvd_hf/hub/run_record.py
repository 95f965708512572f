"""The record of a training run, `training_run.json`: recipe, source models, data, hardware, time and results."""

import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard

from ..arguments import FILE_SUFFIXES

RUN_RECORD_NAME = "training_run.json"
CARD_NAME = "README.md"
# statistics of targets, in a folder of its own, where no program takes the file for weights of the model
TARGET_STATISTICS = "targets/statistics.safetensors"
PACKAGES = ("mvd_hf", "torch", "torchvision", "transformers", "accelerate", "datasets", "huggingface_hub", "av")
# metrics that depend on the machine, not on the model
SPEED_METRICS = ("runtime", "samples_per_second", "steps_per_second", "jit_compilation_time", "model_preparation_time")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **versions}


def describe_device(device: torch.device) -> str:
    """The name of an accelerator, or the architecture of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})" if device.type == "cpu" else device.type


def without_private_parts(value: Any) -> Any:
    """A recipe without tokens, and with only the last part of absolute paths."""
    if isinstance(value, Mapping):
        return {key: without_private_parts(entry) for key, entry in value.items() if not str(key).endswith("token")}
    if isinstance(value, list | tuple):
        return [without_private_parts(entry) for entry in value]
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")):
        return Path(value).name
    return value


def stored_license(folder: str | os.PathLike) -> str | None:
    """The license in the card of a local folder, if it has one."""
    card = Path(folder) / CARD_NAME
    return ModelCard.load(card).data.license if card.is_file() else None


def read_run_record(folder: str | os.PathLike) -> dict | None:
    """The record in the folder of a model; `None` if there is none. Raises ValueError if it cannot be read."""
    path = Path(folder) / RUN_RECORD_NAME
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"The record {str(path)!r} cannot be read: {error}. Write it again, or delete it.") from error


def is_hub_id(name: Any) -> bool:
    """Whether a value is `user/repository`, and not a file or folder."""
    if not isinstance(name, str) or Path(name).suffix in FILE_SUFFIXES or os.path.exists(name):
        return False
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def is_path(value: Any) -> bool:
    """Whether a value of a recipe is a file or folder of this machine."""
    return isinstance(value, str) and os.path.exists(value)


def source_record(model: str) -> dict:
    """The record of a model that a run starts or learns from: name, whether it is local, license, its own run."""
    source = {"model": without_private_parts(model), "is_local": os.path.exists(model)}
    if os.path.isdir(model):
        source |= {"license": stored_license(model), "run": read_run_record(model)}
    return {key: value for key, value in source.items() if value is not None}


# keys of the data that do not change which clips are trained on
NEUTRAL_KEYS = {
    *(
        "root",
        "streaming",
        "stream_size",
        "shuffle_buffer",
        "on_bad_video",
        "memory_gib",
        "eval_split",
        "eval_dataset",
    ),
    *("videos", "eval_videos", "eval_annotations", "eval_excluded", "boxes", "min_score", "top_k", "scored_label_map"),
}


def precision_of(args) -> str:
    """The precision of training arguments: `bf16`, `fp16` or `fp32`."""
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"


class RunRecord:
    """Measures the time of a run and collects what its trainer does not know.

    Attributes:
        model: name of the class of the trained model.
        recipe: the keys of the recipe.
        hub_dataset: Hub id of the data set; `None` for local data.
        sources: records of the models that the run starts from (`base`) and learns from (names of teachers).
        data: keys of the recipe that say which clips are trained on.
        segments: the conditions (rate, batch, epochs, ...) of each part of the run, and the step where it began.
    """

    def __init__(self):
        self.model = ""
        self.recipe: dict = {}
        self.hub_dataset: str | None = None
        self.sources: dict[str, dict] = {}
        self.data: dict = {}
        self.segments: list[dict] = []
        self._seconds = 0.0
        self._since: float | None = None

    def set_recipe(self, recipe: Mapping, *data):
        """Record a recipe, its data set of the Hub, and the model that it starts from.

        Args:
            recipe: the keys that were given.
            data: the dataclasses of keys that say which clips are trained on.
        """
        self.recipe = without_private_parts(recipe)
        fields = {name: value for part in data for name, value in asdict(part).items() if name not in NEUTRAL_KEYS}
        # a file or folder may be named from another working directory
        paths = {name: Path(value).name for name, value in fields.items() if is_path(value)}
        self.data = without_private_parts(fields | paths)
        self.hub_dataset = recipe["dataset"] if is_hub_id(recipe.get("dataset")) else None
        base = recipe.get("model")
        if isinstance(base, str) and (os.path.exists(base) or is_hub_id(base)):
            self.sources["base"] = source_record(base)

    def start_identity(self) -> dict:
        """What the run starts from, see `mvd_hf.training.identity`: name of the model, and layers that are kept."""
        base = self.sources.get("base", {})
        return {"model": Path(base["model"]).name if base else None, "keep_layers": base.get("keep_layers")}

    def resume(self, folder: str | os.PathLike, conditions: Mapping | None = None) -> Mapping:
        """Continue the record of the run that wrote a checkpoint; gives the conditions of its last segment."""
        before = read_run_record(folder) or {}
        self._seconds = before.get("seconds", 0.0)
        self.segments = before.get("segments", [])
        last = self.segments[-1] if self.segments else {}
        if conditions is not None and {"from_step": last.get("from_step"), **conditions} != last:
            self.segments.append({"from_step": before.get("steps", 0), **conditions})
        return last

    def start(self):
        """Start the clock."""
        self._since = time.monotonic()

    def stop(self):
        """Stop the clock."""
        self._seconds, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def save(self, folder: str | os.PathLike, args, facts: Mapping):
        """Write the record so far into the folder of a model, with facts from [`facts_of`]."""
        record = {
            "model": self.model,
            "recipe": self.recipe,
            "hub_dataset": self.hub_dataset,
            "sources": self.sources,
            **facts,
            "segments": self.segments,
            "precision": precision_of(args),
            "seed": args.seed,
            "seconds": round(self.seconds, 1),
            "hardware": {"device": describe_device(args.device), "count": args.world_size},
            "versions": library_versions(),
        }
        text = json.dumps(record, indent=2, default=str) + "\n"
        (Path(folder) / RUN_RECORD_NAME).write_text(text, encoding="utf-8")


def metric_prefixes(eval_dataset) -> list[str]:
    """What the names of an evaluation's metrics begin with: `eval_`, or of several sets `eval_<set>_` each."""
    return [f"eval_{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else ["eval_"]


def last_metrics(history: Sequence[Mapping], prefixes: Sequence[str]) -> dict:
    """The metrics of the last evaluation in a log, of all evaluation sets; empty if there was none."""
    metrics: dict = {}
    for prefix in prefixes:
        metrics |= next((entry for entry in reversed(history) if f"{prefix}runtime" in entry), {})
    return metrics


def facts_of(trainer, is_average: bool = False) -> dict:
    """Data, progress and last metrics of a trainer; those of averaged weights have the prefix `eval_ema_`."""
    args, state = trainer.args, trainer.state
    prefixes = [f"{prefix}ema_" if is_average else prefix for prefix in metric_prefixes(trainer.eval_dataset)]
    trained = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
    evaluated = last_metrics(state.log_history, prefixes)
    left_out = ("epoch", "step", *(f"{prefix}{name}" for prefix in prefixes for name in SPEED_METRICS))
    return {
        "videos": trainer.num_samples(),
        "clips_per_video": args.clips_per_video,
        "masks_per_clip": args.masks_per_clip,
        "effective_batch": args.effective_batch_size,
        "learning_rate": args.learning_rate,
        "epochs": state.epoch,
        "steps": state.global_step,
        "is_average": is_average,
        "identity": trainer.identity(),
        "training": {key: value for key, value in trained.items() if key not in left_out},
        "evaluation": {key: value for key, value in evaluated.items() if key not in left_out},
    }
