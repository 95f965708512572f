"""Probes on cached features of a frozen encoder: linear probe, attentive probe, k-NN.

Letters in shapes: N videos, V views of each, M = N * V views in all, L tokens of a view, D their width, K classes.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast
from torch import nn
from tqdm import tqdm

from ..data.hashing import hash_of_weights
from ..model.modeling_mvd import MVDForVideoClassification
from ..model.video_processing_mvd import MVDVideoProcessor
from .metrics import knn_scores
from .multiview import takes_bytes
from .views import VideoViews, ViewResults, map_views

logger = logging.getLogger(__name__)

# strengths of the L2 penalty that a linear probe tries
PENALTIES = tuple(10.0**power for power in range(-6, 1))
HELD_OUT = 5  # one video in five chooses among them


@dataclass
class ProbeArguments:
    """Arguments of probes.

    Args:
        probe_clips: clips per training video.
        probe_epochs, probe_batch_size, probe_learning_rate, probe_weight_decay: of an attentive probe; the batch
            counts clips.
        neighbours, temperature: of k-NN, see `mvd_hf.evaluation.metrics.knn_scores`.
    """

    probe_clips: int = 3
    probe_epochs: int = 30
    probe_batch_size: int = 64
    probe_learning_rate: float = 1e-3
    probe_weight_decay: float = 0.05
    neighbours: int = 20
    temperature: float = 0.07

    def __post_init__(self):
        for name in ("probe_clips", "probe_epochs", "probe_batch_size", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


def cache_features(
    model: MVDForVideoClassification,
    rows: datasets.Dataset,
    processor: MVDVideoProcessor,
    folder: str | Path,
    *,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    views_per_pass: int = 16,
    num_workers: int = 2,
    replace: bool = False,
) -> ViewResults:
    """Features of the views of every video by a frozen encoder, cached in a folder; see `map_views`.

    Args:
        model: the classifier, on the device to use. With an attentive pooler the results are `tokens` (V, L, D) in
            half precision, otherwise `pooled` (V, D), the input of its linear layer.
        rows: the videos.
        processor: makes the views.
        folder: of the cache.
        autocast, views_per_pass, num_workers, replace: as in `mvd_hf.evaluate_views`.
    """
    model.eval()

    def encode(views: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features of views."""
        with autocast():
            tokens = model.mvd(views.to(model.device, non_blocking=True)).last_hidden_state
            if model.pooler is not None:
                return {"tokens": tokens.half()}
            return {"pooled": model.pool(tokens).float()}

    return map_views(
        encode,
        VideoViews(rows, processor, takes_bytes(model, processor)),
        folder,
        {"encoder": hash_of_weights(model.mvd.state_dict()), "kind": "pooled" if model.pooler is None else "tokens"},
        views_per_pass=views_per_pass,
        num_workers=num_workers,
        replace=replace,
    )


def pooled_features(results: ViewResults, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of all views (M, D), their labels (M,), and the rows of their videos (M,)."""
    features = torch.from_numpy(results.stack("pooled"))
    rows = torch.tensor(results.rows()).repeat_interleave(features.shape[1])
    return features.flatten(0, 1), torch.from_numpy(labels)[rows], rows


def logistic_regression(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (K, D) and biases (K,) that minimise mean cross entropy plus `penalty / 2` times the squared weights.

    `features` (M, D) need about unit variance.
    """
    weight = torch.zeros(num_classes, features.shape[1], dtype=features.dtype, device=features.device)
    bias = torch.zeros(num_classes, dtype=features.dtype, device=features.device)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=300, history_size=20, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(features @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return weight.detach(), bias.detach()


@torch.no_grad()
def fit_linear(features: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, classifier: nn.Linear) -> float:
    """Fit a linear layer to features (M, D) of videos `rows` (M,) by logistic regression; returns its L2 penalty.

    Every fifth training video chooses the strength of the penalty; the final fit uses all videos.
    """
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=1e-6)
    features = (features - mean) / std
    order = {row: i for i, row in enumerate(rows.unique().tolist())}
    is_held_out = torch.tensor([order[row] % HELD_OUT == 0 for row in rows.tolist()], device=features.device)
    num_classes = classifier.out_features
    scores = {}
    for penalty in PENALTIES if 0 < is_held_out.sum() < len(features) else ():
        weight, bias = logistic_regression(features[~is_held_out], labels[~is_held_out], num_classes, penalty)
        logits = features[is_held_out] @ weight.T + bias
        scores[penalty] = nn.functional.cross_entropy(logits, labels[is_held_out]).item()
    penalty = min(scores, key=scores.get) if scores else 1e-2
    weight, bias = logistic_regression(features, labels, num_classes, penalty)
    classifier.weight.copy_(weight / std)
    classifier.bias.copy_(bias - (weight / std) @ mean)
    share_parameters(classifier)
    return penalty


def share_parameters(module: nn.Module):
    """Copy the parameters of the main process to all, which differ from them by rounding only."""
    for parameter in module.parameters():
        parameter.data.copy_(broadcast(parameter.data))


def fit_attentive(
    model: MVDForVideoClassification, results: ViewResults, labels: np.ndarray, arguments: ProbeArguments, seed: int
) -> list[float]:
    """Train the attentive pooler and the linear layer of a classifier on cached tokens.

    Uses AdamW with a cosine schedule and a warmup over the first tenth of the steps.

    Args:
        model: a classifier with `config.use_attentive_pooling`, on the device to use.
        results: the `tokens` of the training videos.
        labels: (N,) class indices of the rows of the data set.
        arguments: of the probe.
        seed: of the order of the clips.

    Returns:
        The mean loss of each epoch.
    """
    views = [(row, view) for row in results.rows() for view in range(results.shapes["tokens"][0])]
    parameters = [*model.pooler.parameters(), *model.classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=arguments.probe_weight_decay)
    batches_per_epoch = -(-len(views) // arguments.probe_batch_size)
    total = batches_per_epoch * arguments.probe_epochs
    warmup = total // 10
    rates = arguments.probe_learning_rate * np.concatenate(
        [np.linspace(0, 1, warmup), 0.5 * (1 + np.cos(np.pi * np.arange(total - warmup) / (total - warmup)))]
    )
    rates = iter(rates.tolist())
    rng = np.random.default_rng(seed)
    means = []
    for _ in tqdm(range(arguments.probe_epochs), desc="attentive probe", unit=" epochs"):
        losses = []
        for chosen in np.array_split(rng.permutation(len(views)), batches_per_epoch):
            tokens = np.stack([results.array(views[i][0], "tokens")[views[i][1]] for i in chosen])
            tokens = torch.from_numpy(tokens).to(model.device).float()
            targets = torch.tensor([labels[views[i][0]] for i in chosen], device=model.device)
            with torch.enable_grad():
                loss = nn.functional.cross_entropy(model.classifier(model.pooler(tokens)), targets)
                gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.param_groups[0]["lr"] = next(rates)
            optimizer.step()
            losses.append(loss.item() * len(chosen))
        means.append(sum(losses) / len(views))
    share_parameters(model.pooler)
    share_parameters(model.classifier)
    return means


def nearest_neighbours(
    bank: ViewResults, bank_labels: np.ndarray, results: ViewResults, num_classes: int, arguments: ProbeArguments
) -> np.ndarray:
    """Votes (N, K) of the nearest training views in `bank` for the videos in `results`, averaged over their views."""
    known, labels, _ = pooled_features(bank, bank_labels)
    features = torch.from_numpy(results.stack("pooled"))
    scores = knn_scores(
        features.flatten(0, 1), known, labels, num_classes, arguments.neighbours, arguments.temperature
    )
    return scores.reshape(len(features), -1, num_classes).mean(axis=1)
