"""Classification metrics: merged views, top-k and mean class accuracy, confusion matrix, k-NN.

Letters in shapes: N samples (videos, or views of videos), K classes, D width of a feature. Accuracies are from 0 to 1.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
import torch


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, computed in float64."""
    exact = np.asarray(logits, dtype=np.float64)
    powers = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def merge_views(
    logits: np.ndarray, videos: Sequence[Hashable], views: Sequence[Hashable]
) -> tuple[list, np.ndarray, np.ndarray]:
    """The score of each video as in the paper's test: the mean softmax of its views.

    Of repeated views (padding of a distributed loader) only the first counts.

    Args:
        logits: (N, K) of all views of all videos, in any order.
        videos: identifier of the video of each view.
        views: identifier of each view in its video, such as (clip, crop).

    Returns:
        The videos in the order of their first view, their mean probabilities (videos, K), and their numbers of views.

    Raises:
        ValueError: if the lengths differ or a logit is not finite.
    """
    if not len(logits) == len(videos) == len(views):
        raise ValueError(
            f"{len(logits)} rows of logits need as many videos and views, got {len(videos)} and {len(views)}."
        )
    probabilities = softmax(check_scores(logits))
    seen: set[tuple[Hashable, Hashable]] = set()
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(zip(videos, views, strict=True)):
        if key not in seen:
            seen.add(key)
            rows.setdefault(key[0], []).append(row)
    means = [probabilities[chosen].mean(axis=0) for chosen in rows.values()]
    return list(rows), np.array(means), np.array([len(chosen) for chosen in rows.values()])


def check_scores(scores: np.ndarray) -> np.ndarray:
    """Scores as an array (N, K); raises ValueError if it is empty or not finite."""
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"Scores must be (samples, classes) with at least one of each, got shape {scores.shape}.")
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise ValueError(f"The scores of {len(bad)} samples are NaN or infinite, first those of sample {bad[0]}.")
    return scores


def check_labels(labels: np.ndarray, num_samples: int, num_classes: int) -> np.ndarray:
    """Class indices as an array (N,); raises ValueError if one is out of range."""
    labels = np.asarray(labels)
    if labels.shape != (num_samples,) or labels.dtype.kind not in "iu":
        raise ValueError(f"Labels must be {num_samples} integers, got {labels.dtype} of shape {labels.shape}.")
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise ValueError(
            f"Label {labels[outside[0]]} of sample {outside[0]} must be a class from 0 to {num_classes - 1}."
        )
    return labels


def top_k_hits(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Whether the true class is among the k classes of highest score: (N,) bool. Ties favour the lower class.

    Args:
        scores: (N, K) logits or probabilities.
        labels: (N,) class indices.
        k: number of classes.

    Raises:
        ValueError: if shapes do not match, a score is not finite, a label is out of range, or k is below 1.
    """
    scores = check_scores(scores)
    labels = check_labels(labels, *scores.shape)
    if k < 1:
        raise ValueError(f"k={k} must be at least 1.")
    true = np.take_along_axis(scores, labels[:, None], axis=1)
    ahead = (scores > true).sum(axis=1)
    ahead += ((scores == true) & (np.arange(scores.shape[1]) < labels[:, None])).sum(axis=1)
    return ahead < k


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of the samples whose true class is among the k classes of highest score; see [`top_k_hits`]."""
    return float(top_k_hits(scores, labels, k).mean())


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of the true share, by default with 95 % confidence, where `share` of `count` samples are right."""
    middle = share + z * z / (2 * count)
    spread = z * (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def confusion_matrix(predictions: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts of each true class (row) and predicted class (column), (K, K) int64.

    Raises:
        ValueError: if a prediction or label is out of range, or their numbers differ.
    """
    labels = check_labels(labels, len(labels), num_classes)
    predictions = check_labels(predictions, len(labels), num_classes)
    counts = np.bincount(labels.astype(np.int64) * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def class_accuracies(confusion: np.ndarray) -> np.ndarray:
    """Accuracy (recall) of each class, (K,); NaN for a class without samples."""
    totals = confusion.sum(axis=1)
    return np.divide(confusion.diagonal(), totals, out=np.full(len(totals), np.nan), where=totals > 0)


def mean_class_accuracy(predictions: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Unweighted mean of the accuracies of the classes with samples."""
    return float(np.nanmean(class_accuracies(confusion_matrix(predictions, labels, num_classes))))


def macro_f1(confusion: np.ndarray) -> float:
    """Unweighted mean of the F1 scores of the classes with samples or predictions, from a confusion matrix (K, K)."""
    totals = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float((2 * confusion.diagonal()[totals > 0] / totals[totals > 0]).mean())


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of each class, (K,); NaN for a class that no sample has.

    The mean of the precision at each threshold, weighted by the recall gained there, as in scikit-learn.

    Args:
        scores: (N, K), higher for samples that have the class.
        labels: (N, K) multi-hot, 0 or 1.

    Raises:
        ValueError: if shapes do not match or a score is not finite.
    """
    scores, labels = check_scores(scores), np.asarray(labels)
    if labels.shape != scores.shape:
        raise ValueError(f"Labels of shape {labels.shape} do not fit scores of shape {scores.shape}.")
    found = np.full(scores.shape[1], np.nan)
    for k in np.flatnonzero(labels.any(axis=0)):
        order = np.argsort(-scores[:, k], kind="stable")
        # equal scores are one threshold
        last = np.append(np.flatnonzero(np.diff(scores[order, k])), len(order) - 1)
        hits = np.cumsum(labels[order, k], dtype=np.float64)[last]
        found[k] = (np.diff(hits, prepend=0.0) * hits / (last + 1)).sum() / hits[-1]
    return found


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Unweighted mean of [`average_precisions`] over the classes that occur; raises ValueError if there are none."""
    found = average_precisions(scores, labels)
    if np.isnan(found).all():
        raise ValueError("There is no average precision: no video has a class.")
    return float(np.nanmean(found))


def joint_hits(probabilities: Sequence[np.ndarray], labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Whether the true combination of classes is among the k of highest product of probabilities, (N,) bool.

    Args:
        probabilities: (N, K) for each of H heads.
        labels: (N, H) class indices.
        k: number of combinations.
    """
    scores, match = np.zeros((len(labels), 1)), np.ones((len(labels), 1), dtype=bool)
    for own, label in zip(probabilities, labels.T, strict=True):
        best = np.argsort(-own, axis=1, kind="stable")[:, :k]  # others are in none of the k best combinations
        logs = np.log(np.maximum(np.take_along_axis(own, best, axis=1), np.finfo(np.float64).tiny))
        scores = (scores[:, :, None] + logs[:, None]).reshape(len(labels), -1)
        match = (match[:, :, None] & (best == label[:, None])[:, None]).reshape(len(labels), -1)
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(match, chosen, axis=1).any(axis=1)


def spearman(values: np.ndarray, others: np.ndarray) -> float:
    """Spearman's rank correlation of two sequences; 0 if all values of one are equal."""
    ranks = [pd.Series(numbers).rank() for numbers in (values, others)]
    return 0.0 if any(rank.nunique() < 2 for rank in ranks) else float(np.corrcoef(*ranks)[0, 1])


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Weights (K,) with which all classes count the same: samples / (classes x samples of the class).

    A class without samples has the weight 1.
    """
    counts = np.bincount(check_labels(labels, len(labels), num_classes), minlength=num_classes)
    weights = np.ones(num_classes)
    weights[counts > 0] = len(labels) / ((counts > 0).sum() * counts[counts > 0])
    return weights


@torch.no_grad()
def knn_scores(
    features: torch.Tensor | np.ndarray,
    bank: torch.Tensor | np.ndarray,
    bank_labels: torch.Tensor | np.ndarray,
    num_classes: int,
    k: int = 20,
    temperature: float | None = 0.07,
) -> np.ndarray:
    """Votes of the k nearest features of a bank for their classes, (N, K); each row sums to 1.

    Features are compared by cosine. A vote has the weight exp(cosine / temperature) (Wu et al., arXiv 1805.01978), or
    1 if the temperature is `None`.

    Args:
        features: (N, D) to classify.
        bank: (M, D) with known classes.
        bank_labels: (M,) class indices of the bank.
        num_classes: K.
        k: number of neighbours, at most M.
        temperature: of the votes.

    Raises:
        ValueError: if shapes do not match, a label is out of range, or k or the temperature is not positive.
    """
    features, bank = (torch.as_tensor(value).float() for value in (features, bank))
    labels = torch.as_tensor(bank_labels, device=bank.device)
    if features.ndim != 2 or bank.ndim != 2 or features.shape[1] != bank.shape[1] or len(bank) == 0:
        raise ValueError(f"Features {tuple(features.shape)} cannot be compared with a bank {tuple(bank.shape)}.")
    check_labels(labels.cpu().numpy(), len(bank), num_classes)
    if k < 1 or (temperature is not None and temperature <= 0):
        raise ValueError(f"k={k} and temperature={temperature} must be positive.")
    bank = torch.nn.functional.normalize(bank, dim=1)
    scores = []
    for part in torch.nn.functional.normalize(features, dim=1).split(1024):
        cosine, nearest = (part @ bank.T).topk(min(k, len(bank)), dim=1)
        # relative to the nearest neighbour, which avoids overflow and cancels in the normalisation
        weights = torch.ones_like(cosine) if temperature is None else ((cosine - cosine[:, :1]) / temperature).exp()
        votes = torch.zeros(len(part), num_classes, dtype=torch.float64, device=part.device)
        votes.scatter_add_(1, labels[nearest].long(), weights.double())
        scores.append(votes / votes.sum(dim=1, keepdim=True))
    return torch.cat(scores).cpu().numpy()


def resampling_weights(count: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each of `count` videos is drawn in each bootstrap resample, (resamples, count) float64."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def resampled_metrics(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """`top1`, `balanced` accuracy and `macro_f1` in each bootstrap resample, (resamples,) each.

    The last two are means over classes: those drawn, and those drawn or predicted (see [`macro_f1`]).

    Args:
        predictions: (N,) class indices.
        labels: (N,) class indices.
        weights: (resamples, N) from [`resampling_weights`]; ones for the videos themselves.
    """
    classes = np.union1d(labels, predictions)
    true, predicted = (np.equal.outer(values, classes).astype(np.float64) for values in (labels, predictions))
    right, drawn, named = (weights @ counts for counts in (true * predicted, true, predicted))
    shares = {"balanced": (right, drawn), "macro_f1": (2 * right, drawn + named)}
    return {"top1": right.sum(axis=1) / weights.sum(axis=1)} | {
        name: np.nanmean(np.divide(part, of, out=np.full(of.shape, np.nan), where=of > 0), axis=1)
        for name, (part, of) in shares.items()
    }


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over its resamples."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
