"""Results of a multi-view test: scores of the views of videos, and the metrics of each kind of labels.

Letters in shapes: N videos, V views of each (clips x crops), K classes, H heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..model.labels_mvd import head_slices
from .metrics import (
    average_precisions,
    class_accuracies,
    confusion_matrix,
    joint_hits,
    macro_f1,
    mean_average_precision,
    mean_class_accuracy,
    softmax,
    spearman,
    top_k_hits,
    wilson_interval,
)

# number of videos below which a test reports how uncertain its accuracy is
FEW_VIDEOS = 200


@dataclass
class ViewScores:
    """Scores of the views of a data set's videos.

    Args:
        videos: (N,) names of the readable videos.
        rows: (N,) their rows in the data set.
        labels: (N,) class indices; multi-hot (N, K); indices of heads (N, H); or numbers (N,).
        logits: (N, V, K) float32, all crops of the first clip first.
        names: (K,) names of the classes.
        protocol: frames x clips x crops, such as `16x5x3`.
        weights: hash of the weights of the model, see `mvd_hf.data.hashing`.
        missing: (name, error) of each video that could not be read.
    """

    videos: list[str]
    rows: list[int]
    labels: np.ndarray
    logits: np.ndarray
    names: list[str]
    protocol: str
    weights: str
    missing: list[tuple[str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, int | str]:
        """The protocol, the number of videos, and of those that could not be read."""
        return {"protocol": self.protocol, "num_videos": len(self.videos), "missing": len(self.missing)}

    def with_counts(self, *lines: str) -> str:
        """Lines of text between the protocol and the number of missing videos."""
        heading = f"{len(self.videos)} videos, {self.protocol} (frames x clips x crops):"
        missing = f"  {len(self.missing)} more videos could not be read and are excluded"
        return "\n".join([heading, *lines, *([missing] if self.missing else [])])


@dataclass
class Evaluation(ViewScores):
    """The test of a classifier with one class per video.

    Args:
        majority_class: the most frequent class of the training videos, if they are known.
    """

    majority_class: int | None = None

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(N, K) float64: mean softmax of the views of each video."""
        return softmax(self.logits).mean(axis=1)

    @cached_property
    def predictions(self) -> np.ndarray:
        """(N,) most probable classes."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confusion(self) -> np.ndarray:
        """(K, K): counts of each true class (row) and predicted class (column)."""
        return confusion_matrix(self.predictions, self.labels, len(self.names))

    def metrics(self) -> dict[str, float | int | str]:
        """The metrics of a test; accuracies are from 0 to 1.

        `video_*` are accuracies over videos, from the mean probabilities of their views (as the paper reports);
        `clip_*` are over single views. With at most five classes every answer is among the top 5, and there is no
        `*_top5`. Missing videos are excluded. `weights` is the hash of the tested weights.
        `majority_top1` is the accuracy of always naming the `majority_class`, if it is known.
        """
        majority = {}
        if self.majority_class is not None:
            majority["majority_top1"] = float((self.labels == self.majority_class).mean())
        ranks = (1, 5) if len(self.names) > 5 else (1,)
        views, labels = self.logits.reshape(-1, len(self.names)), np.repeat(self.labels, self.logits.shape[1])
        return {
            **self.counts(),
            **{f"video_top{k}": float(top_k_hits(self.probabilities, self.labels, k).mean()) for k in ranks},
            **{f"clip_top{k}": float(top_k_hits(views, labels, k).mean()) for k in ranks},
            "mean_class_accuracy": mean_class_accuracy(self.predictions, self.labels, len(self.names)),
            "macro_f1": macro_f1(self.confusion),
            **majority,
            "weights": self.weights,
        }

    def per_class(self) -> list[dict]:
        """Index, name, number of videos and accuracy (`None` without videos) of each class."""
        accuracies, totals = class_accuracies(self.confusion), self.confusion.sum(axis=1)
        return [
            {
                "class": i,
                "name": name,
                "videos": int(totals[i]),
                "accuracy": None if np.isnan(accuracies[i]) else float(accuracies[i]),
            }
            for i, name in enumerate(self.names)
        ]

    def mistakes(self) -> list[dict]:
        """Videos with a wrong top-1 prediction, most confident first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        confidence = self.probabilities[np.arange(len(self.videos)), self.predictions]
        return [
            {
                "video": self.videos[i],
                "row": self.rows[i],
                "label": self.names[self.labels[i]],
                "prediction": self.names[self.predictions[i]],
                "confidence": float(confidence[i]),
                "probability_of_label": float(self.probabilities[i, self.labels[i]]),
            }
            for i in wrong[np.argsort(-confidence[wrong], kind="stable")]
        ]

    def describe(self) -> str:
        """The metrics in words, with the test protocol."""
        figures = {key: f"{100 * value:.2f} %" for key, value in self.metrics().items() if isinstance(value, float)}
        top5 = {
            kind: f", top-5 {figures[f'{kind}_top5']}" if len(self.names) > 5 else "" for kind in ("video", "clip")
        }
        lines = [
            f"  over videos: top-1 {figures['video_top1']}{top5['video']}, mean over classes "
            f"{figures['mean_class_accuracy']}",
            f"  over single views: top-1 {figures['clip_top1']}{top5['clip']}",
        ]
        if len(self.videos) < FEW_VIDEOS:
            low, high = wilson_interval(self.metrics()["video_top1"], len(self.videos))
            lines.append(
                f"  {len(self.videos)} videos are few: with 95 % confidence the true top-1 is between "
                f"{100 * low:.0f} % and {100 * high:.0f} %"
            )
        if self.metrics()["video_top1"] <= self.metrics().get("majority_top1", -1):
            lines.append(
                f"  not better than always naming {self.names[self.majority_class]!r}, the most frequent class of "
                f"training: {figures['majority_top1']}"
            )
        return self.with_counts(*lines)


@dataclass
class MultiLabelEvaluation(ViewScores):
    """The test of a classifier with several classes per video; `labels` are multi-hot (N, K)."""

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(N, K) float64: mean sigmoid of the views of each video."""
        return (0.5 * (1 + np.tanh(self.logits.astype(np.float64) / 2))).mean(axis=1)

    def metrics(self) -> dict[str, float | int | str]:
        """`video_mAP` from the mean probabilities of a video's views, and `clip_mAP` over single views, from 0 to 1.

        mAP is the mean over the `num_classes` classes that occur.
        """
        views = self.logits.shape[1]
        clips = self.logits.reshape(-1, len(self.names)), np.repeat(self.labels, views, axis=0)
        return {
            **self.counts(),
            "num_classes": int(self.labels.any(axis=0).sum()),
            "video_mAP": mean_average_precision(self.probabilities, self.labels),
            "clip_mAP": mean_average_precision(*clips),
            "weights": self.weights,
        }

    def per_class(self) -> list[dict]:
        """Index, name, number of videos and average precision (`None` without videos) of each class."""
        precisions = average_precisions(self.probabilities, self.labels)
        return [
            {
                "class": i,
                "name": name,
                "videos": int(self.labels[:, i].sum()),
                "average_precision": None if np.isnan(precisions[i]) else float(precisions[i]),
            }
            for i, name in enumerate(self.names)
        ]

    def describe(self) -> str:
        """The metrics in words, with the test protocol."""
        found = self.metrics()
        return self.with_counts(
            f"  mAP {100 * found['video_mAP']:.2f} % over videos, {100 * found['clip_mAP']:.2f} % over single views; "
            f"{found['num_classes']} of {len(self.names)} classes occur"
        )


@dataclass
class HeadsEvaluation(ViewScores):
    """The test of a classifier with several heads; `labels` are class indices (N, H).

    Args:
        heads: number of classes of each head.
    """

    heads: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def parts(self) -> dict[str, Evaluation]:
        """The test of each head."""
        shared = self.protocol, self.weights, self.missing
        return {
            head: Evaluation(
                self.videos,
                self.rows,
                self.labels[:, i],
                self.logits[..., place],
                [name.removeprefix(f"{head}: ") for name in self.names[place]],
                *shared,
            )
            for i, (head, place) in enumerate(head_slices(self.heads).items())
        }

    def metrics(self) -> dict[str, float | int | str]:
        """Accuracies over videos, from 0 to 1: joint (`video_top1`, all heads right) and of each head (`verb_top1`).

        The score of a combination of classes is the product of their probabilities, as EPIC-Kitchens' actions. There
        is no `*_top5` of at most five classes or combinations.
        """
        probabilities = [part.probabilities for part in self.parts.values()]
        ranks = (1, 5) if np.prod(list(self.heads.values())) > 5 else (1,)
        figures = {f"video_top{k}": float(joint_hits(probabilities, self.labels, k).mean()) for k in ranks}
        for head, part in self.parts.items():
            own = part.metrics()
            figures |= {f"{head}_top{k}": own[f"video_top{k}"] for k in (1, 5) if f"video_top{k}" in own}
            figures[f"{head}_mean_class_accuracy"] = own["mean_class_accuracy"]
        return {**self.counts(), **figures, "weights": self.weights}

    def describe(self) -> str:
        """The metrics in words, with the test protocol."""
        found = {key: f"{100 * value:.2f} %" for key, value in self.metrics().items() if isinstance(value, float)}
        top5 = dict.fromkeys((*self.heads, "video"), "")
        top5 |= {head: f", top-5 {found[f'{head}_top5']}" for head in top5 if f"{head}_top5" in found}
        return self.with_counts(
            f"  all heads right: top-1 {found['video_top1']}{top5['video']}",
            *(
                f"  {head}: top-1 {found[f'{head}_top1']}{top5[head]}, mean over classes "
                f"{found[f'{head}_mean_class_accuracy']}"
                for head in self.heads
            ),
        )


@dataclass
class RegressionEvaluation(ViewScores):
    """The test of a model that predicts a number; `labels` are numbers (N,)."""

    @cached_property
    def predictions(self) -> np.ndarray:
        """(N,) float64: mean over the views of each video."""
        return self.logits[..., 0].mean(axis=1, dtype=np.float64)

    def metrics(self) -> dict[str, float | int | str]:
        """Mean absolute error (`video_mae`, of single views `clip_mae`) and Spearman's correlation over videos."""
        return {
            **self.counts(),
            "video_mae": float(np.abs(self.predictions - self.labels).mean()),
            "video_spearman": spearman(self.predictions, self.labels),
            "clip_mae": float(np.abs(self.logits[..., 0] - self.labels[:, None]).mean()),
            "label_std": float(self.labels.std()),
            "weights": self.weights,
        }

    def describe(self) -> str:
        """The metrics in words, with the test protocol."""
        found = self.metrics()
        return self.with_counts(
            f"  mean absolute error {found['video_mae']:.4g} over videos, {found['clip_mae']:.4g} over single views "
            f"(the labels have a standard deviation of {found['label_std']:.4g})",
            f"  Spearman correlation {found['video_spearman']:.3f}",
        )
