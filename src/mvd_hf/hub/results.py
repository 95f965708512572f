"""Results on model cards: measured with the checkpoint, or reported by the authors and marked as such."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from ..data.hashing import hash_of_checkpoint

logger = logging.getLogger(__name__)

METRICS_NAME = "evaluation/metrics.json"
PAPER = "https://arxiv.org/abs/2212.04500"
REPORTED = "reported by the authors"
PROTOCOLS = {r"(\d+)x(\d+)x(\d+)": "{} frames x {} clips x {} crops", r"(\d+)x(\d+)": "{} frames with stride {}"}
# metrics in the file of an evaluation by their names on a card, of classifiers and of action detectors
CLASSIFICATION = {"top-1 of videos": "video_top1", "top-5 of videos": "video_top5"}
CLASSIFICATION |= {"top-1 of single clips": "clip_top1", "top-5 of single clips": "clip_top5"}
DETECTION = {"mAP": "mAP"}
SEVERAL_CLASSES = {"mAP of videos": "video_mAP", "mAP of single clips": "clip_mAP"}
NUMBERS = {"mean absolute error of videos": "video_mae", "Spearman correlation of videos": "video_spearman"}
# kinds of metrics, as the Hub calls them, by their names; others are accuracies
METRIC_TYPES = dict.fromkeys((*DETECTION, *SEVERAL_CLASSES), "mAP")
METRIC_TYPES |= dict(zip(NUMBERS, ("mae", "spearmanr"), strict=True))


@dataclass
class Result:
    """Results on a data set with one test protocol.

    Args:
        dataset: its name.
        protocol: frames x clips x crops, in words.
        metrics: percentages by name; errors and correlations as they are.
        reported: whether the authors report them; else they were measured with the checkpoint.
        remark: of the table on the card.
        unit: of the metrics: `percent`, or `value` for numbers as they are.
    """

    dataset: str
    protocol: str
    metrics: dict[str, float]
    reported: bool = False
    remark: str = ""
    unit: str = "percent"

    def rounded(self, value: float) -> float:
        """Percentages with two decimals, other numbers with four digits."""
        return round(value, 2) if self.unit == "percent" else float(f"{value:.4g}")

    def entries(self) -> list[EvalResult]:
        """The results as metadata of a card."""
        source = {"source_name": REPORTED, "source_url": PAPER} if self.reported else {}
        remark = f", {REPORTED}" if self.reported else ""
        return [
            EvalResult(
                task_type="video-classification",
                task_name="Action detection" if name == "mAP" else "Video classification",
                dataset_type=re.sub(r"[^a-z0-9]+", "-", self.dataset.lower()).strip("-"),
                dataset_name=f"{self.dataset} ({self.protocol})",
                # the Hub merges results of equal configuration
                dataset_config=f"{self.protocol}{remark}",
                metric_type=METRIC_TYPES.get(name, "accuracy"),
                metric_name=f"{name}{remark}",
                metric_value=self.rounded(value),
                **source,
            )
            for name, value in self.metrics.items()
        ]


def protocol_in_words(protocol: str) -> str:
    """`16x5x3` as 16 frames x 5 clips x 3 crops, `16x4` as 16 frames with stride 4; other text unchanged."""
    for pattern, words in PROTOCOLS.items():
        if match := re.fullmatch(pattern, protocol):
            return words.format(*match.groups())
    return protocol


def reported_results(entries: Sequence[Mapping]) -> list[Result]:
    """Results that the authors report: mappings of `dataset`, `protocol`, optional `remark`, percentages by metric."""
    results = []
    for entry in entries:
        remark = f"*{REPORTED}*" + (f"; {entry['remark']}" if "remark" in entry else "")
        metrics = {name: value for name, value in entry.items() if name not in ("dataset", "protocol", "remark")}
        results.append(Result(entry["dataset"], protocol_in_words(entry["protocol"]), metrics, True, remark))
    return results


def metrics_in(found: Mapping) -> dict[str, str]:
    """The keys of the metrics in the file of an evaluation, by their names on a card."""
    for names in (DETECTION, SEVERAL_CLASSES, NUMBERS):
        if next(iter(names.values())) in found:
            return names
    heads = [key.removesuffix("_mean_class_accuracy") for key in found if key.endswith("_mean_class_accuracy")]
    if heads:
        joint = {"all heads right, top-1 of videos": "video_top1"}
        return joint | {f"{head}, top-1 of videos": f"{head}_top1" for head in heads}
    # tests of at most five classes have no top-5
    return {name: key for name, key in CLASSIFICATION.items() if key in found or not key.endswith("_top5")}


def measured_results(folder: str | Path, dataset: str | None) -> list[Result]:
    """The results of an evaluation in the folder of a checkpoint; none if it evaluated other weights.

    Raises:
        ValueError: if the file is incomplete, or `dataset`, the name of the data set, is not given.
    """
    path = Path(folder) / METRICS_NAME
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    names, unit = metrics_in(found), "key_frames" if "mAP" in found else "videos"
    absent = [key for key in ("protocol", f"num_{unit}", "missing", "weights", *names.values()) if key not in found]
    if absent:
        raise ValueError(f"{str(path)!r} lacks {', '.join(absent)}: evaluate again.")
    if found["weights"] != hash_of_checkpoint(folder):
        logger.warning("%s holds results of other weights and is left out: evaluate again.", path)
        return []
    if dataset is None:
        raise ValueError(f"{str(path)!r} holds results of an unknown data set: give its name, evaluated_on.")
    remark = f"measured on {found[f'num_{unit}']} {unit.replace('_', ' ')}"
    if found["missing"]:
        is_counted = unit == "key_frames"
        effect = "could not be read and count as not detected" if is_counted else "more could not be read"
        remark += f"; {found['missing']} {effect}"
    is_number = names is NUMBERS
    metrics = {name: found[key] if is_number else 100 * found[key] for name, key in names.items()}
    unit = "value" if is_number else "percent"
    return [Result(dataset, protocol_in_words(found["protocol"]), metrics, False, remark, unit)]


def eval_result_file(results: Sequence[Result], benchmark: str, task: str) -> str:
    """Content of a file in `.eval_results/`: measured results on a task of a benchmark, a data set of the Hub."""
    firsts = [(next(iter(result.metrics.items())), result) for result in results if not result.reported]
    entries = [
        EvalResultEntry(
            dataset_id=benchmark,
            task_id=task,
            value=result.rounded(value),
            notes=f"{name}{' in percent' * (result.unit == 'percent')}, {result.protocol}; {result.remark}",
        )
        for (name, value), result in firsts
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
