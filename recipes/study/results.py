"""The results of the study: accuracies of every arm and seed, losses, costs, and comparisons paired by seed."""

import itertools
import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mvd_hf.data.atomic import replace_file
from mvd_hf.model.configuration_mvd import MVDConfig
from mvd_hf.training.costs import distillation_parts, reconstruction_flops

from .probes import PROBES, SIMILARITY
from .scenes import PARTS, TASKS, class_names
from .stages import ARMS, Plan, Stage, read_record

METHODS = ("finetune", "attentive", "linear", "knn")
# most points of a loss curve
MAX_POINTS = 40
# fewer seeds are not called a finding, even if all agree
ENOUGH_SEEDS = 5


def part_predictions(probabilities: np.ndarray, task: str) -> dict[str, np.ndarray]:
    """Predictions (N,) of each part of a task, from the probabilities (N, K) of its classes."""
    parts = TASKS[task]
    cells = probabilities.reshape(-1, *(len(PARTS[part]) for part in parts))
    axes = range(1, cells.ndim)
    return {
        part: cells.sum(axis=tuple(axis for axis in axes if axis != number)).argmax(axis=1)
        for number, part in enumerate(parts, start=1)
    }


def part_labels(labels: np.ndarray, task: str) -> dict[str, np.ndarray]:
    """Labels (N,) of each part of a task, from the labels (N,) of its classes."""
    parts = TASKS[task]
    return dict(zip(parts, np.unravel_index(labels, [len(PARTS[part]) for part in parts]), strict=True))


def finetuned_accuracies(folder: Path, task: str) -> dict[str, float]:
    """Accuracy of a fine-tuned classifier on its task and on each part of it."""
    table = pd.read_parquet(folder / "evaluation" / "predictions.parquet")
    labels = table["label"].to_numpy()
    predictions = part_predictions(np.stack(table["probabilities"].to_list()), task)
    truth = part_labels(labels, task)
    accuracies = {part: float((predictions[part] == truth[part]).mean()) for part in TASKS[task]}
    return {task: float(table["is_correct"].mean()), **accuracies}


@dataclass
class Collection:
    """The finished seeds of a study, with their stages and records.

    Args:
        plan: the study.
    """

    plan: Plan

    def __post_init__(self):
        self.stages: dict[int, dict[str, Stage]] = {}
        self.records: dict[str, dict] = {}
        for seed in self.plan.study.seeds:
            stages = list(self.plan.of_seed(seed))
            records = {stage.name: read_record(stage, self.plan.folder) for stage in stages}
            if all(record is not None for record in records.values()):
                self.stages[seed] = {stage.name.partition("/")[2]: stage for stage in stages}
                self.records |= records
        if not self.stages:
            raise ValueError(f"No seed of {str(self.plan.folder)!r} has finished: run the study again to continue it.")

    def folder(self, seed: int, name: str) -> Path:
        """The folder of a stage."""
        return self.plan.folder / f"seed{seed}" / name

    def accuracies(self) -> dict:
        """Accuracies by method, split, column and arm: a list over seeds."""
        found: dict = {}
        split = self.plan.study.finetune.get("eval_split", "test")
        for seed, arm in itertools.product(self.stages, self.plan.study.arms):
            of_arm = {"finetune": {split: {}}}
            for task in TASKS:
                of_arm["finetune"][split] |= finetuned_accuracies(self.folder(seed, f"{arm}/finetune_{task}"), task)
            of_arm |= json.loads((self.folder(seed, f"{arm}/probe") / PROBES).read_text(encoding="utf-8"))
            for method, splits in of_arm.items():
                for name, columns in splits.items():
                    for column, accuracy in columns.items():
                        place = found.setdefault(method, {}).setdefault(name, {}).setdefault(column, {})
                        place.setdefault(arm, []).append(round(accuracy, 5))
        return found

    def similarities(self) -> dict:
        """Similarity of features between time slots by average and arm: a list over seeds of matrices (t, t)."""
        found: dict = {}
        for seed, arm in itertools.product(self.stages, self.plan.study.arms):
            matrices = json.loads((self.folder(seed, f"{arm}/probe") / SIMILARITY).read_text(encoding="utf-8"))
            for average, matrix in matrices.items():
                found.setdefault(average, {}).setdefault(arm, []).append(np.round(matrix, 4).tolist())
        return found

    def curves(self) -> dict:
        """Loss curves of each training run by name: at most `MAX_POINTS` pairs of step and mean over seeds."""
        found = {}
        for name in (name for name in next(iter(self.stages.values())) if name.endswith(("_teacher", "/encoder"))):
            histories = [self.records[f"seed{seed}/{name}"]["history"] for seed in self.stages]
            entries = [[entry for entry in history if "loss" in entry] for history in histories]
            parts = sorted({key for entry in entries[0] for key in entry if key.startswith("loss")})
            last = len(entries[0]) - 1
            chosen = np.unique(np.linspace(0, last, MAX_POINTS).round().astype(int)) if entries[0] else ()
            found[name.removesuffix("/encoder")] = {
                part: [
                    [entries[0][i]["step"], round(statistics.fmean(float(run[i][part]) for run in entries), 5)]
                    for i in chosen
                ]
                for part in parts
            }
        return found

    def clips(self, keys: Mapping) -> int:
        """Number of clips that a training run with these keys reads."""
        videos, batch = self.plan.study.scenes["train"], keys["per_device_train_batch_size"]
        return int(videos // batch * batch * keys["num_train_epochs"])

    def costs(self) -> dict:
        """TFLOPs of pre-training by arm: `own`, with the teachers' forward passes; `teachers`, of their training."""
        study, seed = self.plan.study, next(iter(self.stages))
        trained = {}
        for name in {teacher for arm in study.arms for teacher in ARMS[arm].teachers}:
            config = MVDConfig.from_pretrained(self.folder(seed, f"{name}_teacher"))
            keys = study.training | (study.image_teacher if name == "image" else study.video_teacher)
            trained[name] = reconstruction_flops(config) * self.clips(keys)
        costs = {}
        for arm in (arm for arm in study.arms if arm != "scratch"):
            config = MVDConfig.from_pretrained(self.folder(seed, f"{arm}/encoder"))
            clips = self.clips(study.training | study.student | study.schedule(arm))
            if ARMS[arm].pixels:
                own = reconstruction_flops(config) * clips
            else:
                teachers = {name: str(self.folder(seed, f"{name}_teacher")) for name in ARMS[arm].teachers}
                own = sum(part.training for part in self.parts(arm, config, teachers)) * clips
            of_teachers = sum(trained[name] for name in ARMS[arm].teachers)
            costs[arm] = {"own": round(own / 1e12, 3), "teachers": round(of_teachers / 1e12, 3)}
        return costs

    def parts(self, arm: str, config: MVDConfig, teachers: Mapping[str, str]):
        """FLOPs of a student's training, per clip."""
        return distillation_parts(config, teachers, ARMS[arm].masks)

    def totals(self) -> dict[str, float]:
        """Number of stages and the sum of their seconds."""
        seconds = [record["seconds"] for record in self.records.values()]
        return {"count": len(seconds), "seconds": round(sum(seconds))}

    def seconds(self) -> dict[str, float]:
        """Mean seconds of the stages of each kind."""
        kinds: dict[str, list[float]] = {}
        for stages in self.stages.values():
            for stage in stages.values():
                kinds.setdefault(stage.kind, []).append(self.records[stage.name]["seconds"])
        return {kind: round(statistics.fmean(values), 1) for kind, values in kinds.items()}


def collect(plan: Plan, setting: str) -> dict:
    """The results of all finished seeds: the content of `results.json`.

    Args:
        plan: the study.
        setting: name of its setting.

    Raises:
        ValueError: if no seed has finished.
    """
    collection = Collection(plan)
    study = asdict(plan.study)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {
        "setting": setting,
        "seeds": list(collection.stages),
        "unfinished_seeds": [seed for seed in plan.study.seeds if seed not in collection.stages],
        "remarks": [],
        "study": {key: value for key, value in study.items() if key not in ("output", "seeds")},
        "device": device,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "seconds": collection.seconds(),
        "stages": collection.totals(),
        "accuracies": collection.accuracies(),
        "similarities": collection.similarities(),
        "losses": collection.curves(),
        "tflops": collection.costs(),
    }


def joined(one, other, join: Callable):
    """Merge two nested mappings with the same keys by joining their leaves."""
    if isinstance(one, Mapping):
        return {key: joined(one[key], other[key], join) for key in one}
    return join(one, other)


def merge_results(first: Mapping, second: Mapping) -> dict:
    """Merge results of different seeds of one setting, for example from two machines.

    Args:
        first, second: the content of a `results.json` each.

    Raises:
        ValueError: if the settings differ, or if both have a seed.
    """
    one, other = (
        {key: value for key, value in part["study"].items() if key != "processes"} for part in (first, second)
    )
    differing = sorted(key for key in one | other if one.get(key) != other.get(key))
    if differing or first["setting"] != second["setting"]:
        what = ", ".join(differing) or f"{first['setting']} and {second['setting']}"
        raise ValueError(f"The results are of two settings ({what}): only seeds of one setting can be merged.")
    twice = sorted(set(first["seeds"]) & set(second["seeds"]))
    if twice:
        raise ValueError(f"Both results have the seeds {twice}: leave out one of them.")
    counts = len(first["seeds"]), len(second["seeds"])

    def mean(one: float, other: float) -> float:
        return round((counts[0] * one + counts[1] * other) / sum(counts), 5)

    def curves(one: list, other: list) -> list:
        return [[step, mean(loss, more)] for (step, loss), (_, more) in zip(one, other, strict=True)]

    seeds = [*first["seeds"], *second["seeds"]]
    unfinished = sorted({*first["unfinished_seeds"], *second["unfinished_seeds"]} - set(seeds))
    same = {key: first[key] for key in ("setting", "study", "tflops")}
    devices = dict.fromkeys((first["device"], second["device"]))
    return same | {
        "seeds": seeds,
        "unfinished_seeds": unfinished,
        "remarks": list(dict.fromkeys((*first["remarks"], *second["remarks"]))),
        "device": " and ".join(devices),
        "versions": joined(first["versions"], second["versions"], lambda *two: " and ".join(dict.fromkeys(two))),
        "seconds": joined(first["seconds"], second["seconds"], mean),
        "stages": joined(first["stages"], second["stages"], lambda one, other: one + other),
        **{
            key: joined(first[key], second[key], lambda one, other: [*one, *other])
            for key in ("accuracies", "similarities")
        },
        "losses": joined(first["losses"], second["losses"], curves),
    }


def write_results(results: Mapping, path: Path):
    """Write results as JSON, atomically."""
    with replace_file(path) as unfinished:
        unfinished.write_text(json.dumps(results) + "\n", encoding="utf-8")


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the exact sign-flip test: the share of sign patterns with a mean at least as far from 0."""
    values = np.array(differences, dtype=float)
    signs = np.array(list(itertools.product((-1, 1), repeat=len(values))))
    means = abs(signs @ values)
    return float((means >= abs(values.sum()) - 1e-9).mean())


@dataclass(frozen=True)
class Comparison:
    """A paired comparison over seeds.

    Args:
        title: what is compared.
        differences: one per seed, in percentage points; positive agrees with the paper's claim.
        paper: the differences in the paper's tables, if they have such a pair.
        at_chance: whether both arms are at chance.
    """

    title: str
    differences: tuple[float, ...]
    paper: str = ""
    at_chance: bool = False

    @property
    def mean(self) -> float:
        """Mean difference."""
        return statistics.fmean(self.differences)

    @property
    def p(self) -> float:
        """p of [`sign_flip_p`]."""
        return sign_flip_p(self.differences)

    @property
    def is_unanimous(self) -> bool:
        """Whether all of at least `ENOUGH_SEEDS` seeds differ in the same direction."""
        one_way = all(value > 0 for value in self.differences) or all(value < 0 for value in self.differences)
        return one_way and len(self.differences) >= ENOUGH_SEEDS and not self.at_chance

    @property
    def verdict(self) -> str:
        """Whether the claim was found."""
        if self.at_chance:
            return "not comparable, both are at chance"
        agreeing, count = sum(value > 0 for value in self.differences), len(self.differences)
        if self.mean > 0 and agreeing == count:
            few = f"seen in {count} of {count} seeds, too few to conclude"
            return "found in every seed" if count >= ENOUGH_SEEDS else few
        if self.mean < 0 and not any(value >= 0 for value in self.differences):
            return f"the opposite in {count} of {count} seeds"
        return f"not found: {agreeing} of {count} seeds agree"


# (title, arm, other arm, task, the paper's differences): the claim is that the first arm is better
CLAIMS = (
    ("image teacher's student above video teacher's, on appearance", "image", "video", "appearance", "+0.3, +0.2"),
    ("video teacher's student above image teacher's, on motion", "video", "image", "motion", "+0.6, +0.4"),
    ("co-taught above the image teacher's student, on appearance", "both", "image", "appearance", "+0.2, +0.4"),
    ("co-taught above the video teacher's student, on motion", "both", "video", "motion", "+0.7, +0.7"),
    ("co-taught above the video MAE, on appearance", "both", "videomae", "appearance", "+1.6, +1.2"),
    ("co-taught above the video MAE, on motion", "both", "videomae", "motion", "+4.3, +2.8"),
    ("co-taught above from scratch, on appearance", "both", "scratch", "appearance", ""),
    ("co-taught above from scratch, on motion", "both", "scratch", "motion", ""),
    ("two masks above one, on appearance", "both_two_masks", "both", "appearance", ""),
    ("two masks above one, on motion", "both_two_masks", "both", "motion", ""),
)

# (title, arm, other arm): pairs whose frozen features are compared, label by label
LABEL_PAIRS = (
    ("image teacher's student minus video teacher's", "image", "video"),
    ("co-taught minus image teacher's student", "both", "image"),
    ("co-taught minus video teacher's student", "both", "video"),
    ("co-taught minus video MAE", "both", "videomae"),
    ("co-taught minus from scratch", "both", "scratch"),
)


def chance_bound(task: str, num_predictions: int) -> float:
    """Chance plus two standard errors: guessing stays at or below this accuracy 98 times in 100."""
    chance = 1 / len(class_names(task))
    return chance + 2 * (chance * (1 - chance) / num_predictions) ** 0.5


def compare_arms(
    title: str, one: Sequence[float], other: Sequence[float], bound: float, paper: str = ""
) -> Comparison:
    """Compare the accuracies of two arms, seed by seed; `bound` is that of [`chance_bound`]."""
    at_chance = max(statistics.fmean(one), statistics.fmean(other)) <= bound
    differences = tuple(round(100 * (first - second), 3) for first, second in zip(one, other, strict=True))
    return Comparison(title, differences, paper, at_chance)


def compare_labels(
    accuracies: Mapping[str, Mapping[str, Sequence[float]]], num_videos: int
) -> dict[str, list[Comparison]]:
    """Compare the pairs of `LABEL_PAIRS` that were run, for every label and seed by seed.

    Args:
        accuracies: as in [`compare`].
        num_videos: videos of the split.
    """
    found: dict[str, list[Comparison]] = {}
    for label in PARTS:
        arms = accuracies[label]
        pairs = [(title, arms[one], arms[other]) for title, one, other in LABEL_PAIRS if {one, other} <= arms.keys()]
        found[label] = [
            compare_arms(title, one, other, chance_bound(label, num_videos * len(one))) for title, one, other in pairs
        ]
    return found


def compare(accuracies: Mapping[str, Mapping[str, Sequence[float]]], num_videos: int) -> list[Comparison]:
    """Check the paper's claims, seed by seed.

    Args:
        accuracies: of one method and split: column, arm: a list over seeds.
        num_videos: videos of the split.
    """
    found: dict[str, Comparison] = {}
    for title, arm, other, task, paper in CLAIMS:
        arms = accuracies[task]
        if arm in arms and other in arms:
            bound = chance_bound(task, num_videos * len(arms[arm]))
            found[title] = compare_arms(title, arms[arm], arms[other], bound, paper)
    singles = [found[title] for title, *_ in CLAIMS[:2] if title in found]
    comparisons = list(found.values())
    if len(singles) == 2:
        sums = tuple(round(sum(values), 3) for values in zip(*(item.differences for item in singles), strict=True))
        at_chance = all(item.at_chance for item in singles)
        comparisons.insert(2, Comparison("sum of these two", sums, "+0.9, +0.6", at_chance))
    return comparisons
