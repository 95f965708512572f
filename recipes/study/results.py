"""The results of the study: predictions of every arm, seed and share of labels, and what they support.

Letters in shapes: S seeds, N test videos, K classes, R resamples.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mvd_hf.data.atomic import replace_file

from .plan import Plan
from .stages import Stage, final_loss, read_record

RESAMPLES = 2000
FINETUNE = "fine-tuned"


@dataclass(frozen=True)
class Key:
    """What was tested: a share of the labels (in percent), a model and how it was adapted."""

    share: float
    model: str
    method: str


@dataclass
class Predictions:
    """Labels (N,) and predictions (S, N) as class indices of K classes."""

    labels: np.ndarray
    predictions: np.ndarray
    num_classes: int

    def measures(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """`accuracy` and `macro_f1`, (R,) each.

        Args:
            weights: (R, S, N) how much each prediction counts; by default all the same, R = 1.
        """
        seeds, videos = self.predictions.shape
        weights = np.ones((1, seeds, videos)) if weights is None else weights
        classes = np.arange(self.num_classes)
        is_label, is_predicted = self.labels[:, None] == classes, self.predictions[:, :, None] == classes
        right = np.einsum("rsn,snk->rk", weights, is_predicted & is_label)
        counts = np.einsum("rsn,nk->rk", weights, is_label.astype(float))
        counts_predicted = np.einsum("rsn,snk->rk", weights, is_predicted.astype(float))
        both = counts + counts_predicted
        f1 = np.divide(2 * right, both, out=np.full(both.shape, np.nan), where=both > 0)
        return {"accuracy": right.sum(axis=1) / weights.sum(axis=(1, 2)), "macro_f1": np.nanmean(f1, axis=1)}


def bootstrap_weights(seeds: int, videos: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Weights (R, S, N) of resamples over seeds and, independently, over videos."""
    rng = np.random.default_rng(0)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    of_videos = rng.multinomial(videos, np.full(videos, 1 / videos), size=resamples)
    return (of_seeds[:, :, None] * of_videos[:, None, :]).astype(np.float32)


def interval(values: np.ndarray) -> list[float]:
    """The 95 % interval of resampled values."""
    return [round(float(value), 5) for value in np.quantile(values, (0.025, 0.975))]


@dataclass
class Results:
    """Predictions of the finished seeds.

    Args:
        found: by key.
        facts: of the run: seeds, videos, losses, seconds, versions.
    """

    found: dict[Key, Predictions]
    facts: dict

    def __post_init__(self):
        some = next(iter(self.found.values()))
        self.weights = bootstrap_weights(*some.predictions.shape)

    def rows(self) -> list[dict]:
        """A row per key: accuracy and macro F1, each with its 95 % interval and its values seed by seed."""
        rows = []
        for key, found in self.found.items():
            row = asdict(key)
            resampled, exact = found.measures(self.weights), found.measures()
            for name, values in exact.items():
                each = [
                    Predictions(found.labels, predictions[None], found.num_classes).measures()[name].item()
                    for predictions in found.predictions
                ]
                row |= {name: round(values.item(), 5), f"{name}_interval": interval(resampled[name])}
                row[f"{name}_seeds"] = [round(value, 5) for value in each]
            rows.append(row)
        return rows

    def difference(self, one: Key, other: Key) -> dict:
        """The paired difference of accuracies in percentage points, with its 95 % interval, and seed by seed."""
        hits = [(self.found[key].predictions == self.found[key].labels).astype(np.float32) for key in (one, other)]
        gaps = 100 * (hits[0] - hits[1])
        resampled = np.einsum("rsn,sn->r", self.weights, gaps) / self.weights.sum(axis=(1, 2))
        return {
            "share": one.share,
            "model": one.model,
            "against": other.model,
            "mean": round(float(gaps.mean()), 3),
            "interval": interval(resampled),
            "seeds": gaps.mean(axis=1).round(3).tolist(),
        }

    def hypotheses(self) -> list[dict]:
        """The hypotheses of the README that this run can check, with their differences and the outcome."""
        shares = sorted({key.share for key in self.found})
        models = {key.model for key in self.found if key.method == FINETUNE}
        checks = []
        for share in shares:
            finetuned = {model: Key(share, model, FINETUNE) for model in models}
            pairs = [("a", "both", "scratch")] if share < 100 else []
            pairs += [("b", "both", "videomae_compute"), ("c", "image", "video")]
            single = [model for model in ("image", "video") if model in models]
            if single and "both" in models:
                best = max(single, key=lambda model: self.found[finetuned[model]].measures()["accuracy"].item())
                pairs.append(("d", "both", best))
            for name, one, other in pairs:
                if {one, other} <= models:
                    check = self.difference(finetuned[one], finetuned[other])
                    checks.append({"hypothesis": name, **check, "outcome": outcome(check["interval"])})
        return checks

    def as_json(self) -> dict:
        """The content of `results.json`."""
        return {**self.facts, "table": self.rows(), "hypotheses": self.hypotheses()}


def outcome(bounds: list[float]) -> str:
    """What an interval of a difference says."""
    if bounds[0] > 0:
        return "better"
    return "worse" if bounds[1] < 0 else "within noise"


def of_finetuning(stage: Stage, folder: Path) -> pd.DataFrame:
    """Labels and predictions by video of a fine-tuned model."""
    table = pd.read_parquet(folder / stage.name / "evaluation" / "predictions.parquet").set_index("video")
    return table[["label_name", "prediction_name"]].set_axis(["label", FINETUNE], axis=1)


def of_seed(plan: Plan, seed: int) -> dict[Key, pd.DataFrame]:
    """By key, a table of label and prediction by video."""
    found = {}
    for stage in plan.of_seed(seed):
        place, _, step = stage.name.partition("/")[2].rpartition("/")
        kind, _, share = step.partition("_")
        if kind == "finetune":
            found[Key(float(share), place, FINETUNE)] = of_finetuning(stage, plan.folder)
        elif kind == "probe":
            table = pd.read_parquet(plan.folder / stage.name / "predictions.parquet").set_index("video")
            for column in table.columns.drop("label"):
                model, _, method = column.rpartition(" ")
                key = Key(float(share), model.removeprefix("student_"), method)
                found[key] = table[["label", column]]
    return found


def collect(plan: Plan) -> Results:
    """The results of all finished seeds.

    Raises:
        ValueError: if no seed has finished.
    """
    records = {
        seed: {stage.name: read_record(stage, plan.folder) for stage in plan.of_seed(seed)}
        for seed in plan.study.seeds
    }
    seeds = [seed for seed, stages in records.items() if None not in stages.values()]
    if not seeds:
        raise ValueError(f"No seed of {str(plan.folder)!r} has finished: run the study again to continue it.")
    tables = [of_seed(plan, seed) for seed in seeds]
    common = set.intersection(*(set(table.index) for of in tables for table in of.values()))
    videos, found = sorted(common), {}
    for key in tables[0]:
        ordered = [table[key].loc[videos] for table in tables]
        index = {name: i for i, name in enumerate(plan.names)}
        labels, *predictions = (
            column.map(index).to_numpy()
            for column in [ordered[0].iloc[:, 0], *(table.iloc[:, 1] for table in ordered)]
        )
        found[key] = Predictions(labels, np.stack(predictions), len(plan.names))
    return Results(found, facts_of(plan, {seed: records[seed] for seed in seeds}, len(videos)))


def facts_of(plan: Plan, records: Mapping[int, Mapping[str, dict]], num_videos: int) -> dict:
    """What was run: settings, losses of pre-training, seconds, versions."""
    losses, epochs, seconds = {}, {}, {}
    for stages in records.values():
        for name, record in stages.items():
            name = name.partition("/")[2]
            seconds.setdefault(name, []).append(record["seconds"])
            if name.endswith(("video_teacher", "/encoder")):
                losses.setdefault(name, []).append(final_loss(record["history"]))
                epochs.setdefault(name, []).append(record["epochs"])
    settings = {key: value for key, value in asdict(plan.study).items() if key not in ("output", "dataset")}
    return {
        "data": Path(plan.study.dataset).name,
        "classes": plan.names,
        "videos": num_videos,
        "seeds": list(records),
        "losses": losses,
        "epochs": epochs,
        "seconds": seconds,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "study": settings,
    }


def write_results(results: Results, path: Path):
    """Write results as JSON, atomically."""
    with replace_file(path) as unfinished:
        unfinished.write_text(json.dumps(results.as_json(), indent=1) + "\n", encoding="utf-8")
