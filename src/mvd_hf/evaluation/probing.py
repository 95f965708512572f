"""Probes on cached features of a frozen encoder: k-NN, linear and attentive, each a grid of settings.

Settings are chosen on a part of the training videos; the chosen probe is then fitted to all of them.

Letters in shapes: N videos, V views of each, M = N * V views in all, L tokens of a view, D their width, K classes.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast
from torch import nn
from tqdm import tqdm

from ..data.hashing import hash_of_weights
from ..model.configuration_mvd import MVDConfig
from ..model.modeling_mvd import MVDAttentivePooler, MVDForVideoClassification, layer_stack
from ..model.video_processing_mvd import MVDVideoProcessor
from .features import LabelledViews
from .metrics import knn_scores
from .multiview import takes_bytes
from .views import VideoViews, ViewResults, map_views

logger = logging.getLogger(__name__)

# strengths of the L2 penalty that a linear probe tries
PENALTIES = tuple(10.0**power for power in range(-6, 1))
HELD_OUT = 5  # one group of videos in five chooses among settings
# views per batch where heads are only applied
SCORED_VIEWS = 64


# (labels, logits) -> mean loss, as `MVDForVideoClassification.loss`
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def classification_loss(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Cross entropy of class indices (M,) and logits (M, K)."""
    return nn.functional.cross_entropy(logits, labels)


def as_list(value) -> list:
    """The values of a setting that may be one or several."""
    return list(value) if isinstance(value, list | tuple) else [value]


@dataclass
class ProbeArguments:
    """Arguments of probes. Of several rates, weight decays or numbers of neighbours, every fifth training video (or
    group of videos) chooses.

    Args:
        probe_clips: clips per training video.
        probe_epochs, probe_batch_size: of an attentive probe; the batch counts clips.
        probe_learning_rate, probe_weight_decay: of an attentive probe; every combination is a head, and all heads are
            trained in one pass over the features.
        neighbours, temperature: of k-NN, see `mvd_hf.evaluation.metrics.knn_scores`.
    """

    probe_clips: int = 3
    probe_epochs: int = 30
    probe_batch_size: int = 64
    probe_learning_rate: float | list[float] = 1e-3
    probe_weight_decay: float | list[float] = 0.05
    neighbours: int | list[int] = 20
    temperature: float = 0.07

    def __post_init__(self):
        for name in ("probe_clips", "probe_epochs", "probe_batch_size", "neighbours"):
            values = as_list(getattr(self, name))
            if not values or min(values) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("probe_learning_rate", "probe_weight_decay"):
            values = as_list(getattr(self, name))
            if not values or min(values) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative.")

    def settings(self) -> list["HeadSetting"]:
        """The settings of the heads of an attentive probe."""
        grid = itertools.product(as_list(self.probe_learning_rate), as_list(self.probe_weight_decay))
        return [HeadSetting(rate, decay) for rate, decay in grid]


@dataclass(frozen=True)
class HeadSetting:
    """Peak learning rate and weight decay of a head."""

    rate: float
    weight_decay: float

    def __str__(self) -> str:
        return f"rate {self.rate:g}, weight decay {self.weight_decay:g}"


def cache_features(
    model: MVDForVideoClassification,
    rows: datasets.Dataset,
    processor: MVDVideoProcessor,
    folder: str | Path,
    **options,
) -> ViewResults:
    """Features of the views of every video by the encoder of a classifier, cached in a folder; see `map_views`.

    Args:
        model: the classifier, on the device to use. With an attentive pooler the results are `tokens` (V, L, D) in
            half precision, otherwise `pooled` (V, D), the input of its linear layer.
        rows: the videos.
        processor: makes the views.
        folder: of the cache.
        options: see [`~mvd_hf.evaluation.views.ViewOptions`].
    """
    model.eval()

    def encode(views: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features of views."""
        tokens = model.mvd(views.to(model.device, non_blocking=True)).last_hidden_state
        if model.pooler is not None:
            return {"tokens": tokens.half()}
        return {"pooled": model.pool(tokens).float()}

    return map_views(
        encode,
        VideoViews(rows, processor, takes_bytes(model, processor)),
        folder,
        {"encoder": hash_of_weights(model.mvd.state_dict()), "kind": "pooled" if model.pooler is None else "tokens"},
        **options,
    )


def pooled_features(results: ViewResults, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of all views (M, D), their labels (M,), and the rows of their videos (M,)."""
    views = LabelledViews(results, "pooled", labels)
    return views.read(), views.labels, views.groups


def held_out(groups: torch.Tensor) -> torch.Tensor:
    """Which views (M,) choose among settings: those of every fifth group of videos."""
    order = {group: i for i, group in enumerate(groups.unique().tolist())}
    return torch.tensor([order[group] % HELD_OUT == 0 for group in groups.tolist()], device=groups.device)


def check_choice(is_held_out: torch.Tensor, settings: Sequence):
    """Raise ValueError if there is nothing to choose on."""
    if is_held_out.all():
        raise ValueError(
            f"{len(settings)} settings cannot be chosen among with a single training video (or group of videos): "
            "give one setting, or more videos."
        )


# linear


def fit_penalized(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, penalty: float, loss: Loss = classification_loss
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (K, D) and biases (K,) that minimise the mean loss plus `penalty / 2` times the squared weights.

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
        total = loss(labels, features @ weight.T + bias) + penalty / 2 * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(objective)
    return weight.detach(), bias.detach()


@torch.no_grad()
def fit_linear(
    features: torch.Tensor,
    labels: torch.Tensor,
    groups: torch.Tensor,
    classifier: nn.Linear,
    penalties: Sequence[float] = PENALTIES,
    loss: Loss = classification_loss,
) -> float:
    """Fit a linear layer to features (M, D) of `groups` (M,) of videos by a convex `loss`; returns its L2 penalty.

    Each penalty has one solution, which L-BFGS finds, and no learning rate. Every fifth group
    chooses the strength of the penalty; the final fit uses all videos.
    """
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=1e-6)
    features = (features - mean) / std
    centre, scale = 0.0, 1.0
    if labels.is_floating_point() and labels.ndim == 1:  # numbers, whose unit shall not matter to the penalty
        centre, scale = labels.mean(), labels.std(correction=0).clamp(min=1e-6)
        labels = (labels - centre) / scale
    is_held_out = held_out(groups)
    num_classes = classifier.out_features
    scores = {}
    can_choose = len(penalties) > 1 and 0 < is_held_out.sum() < len(features)
    for penalty in penalties if can_choose else ():
        fitted = fit_penalized(features[~is_held_out], labels[~is_held_out], num_classes, penalty, loss)
        logits = features[is_held_out] @ fitted[0].T + fitted[1]
        scores[penalty] = loss(labels[is_held_out], logits).item()
    penalty = min(scores, key=scores.get) if scores else penalties[0] if len(penalties) == 1 else 1e-2
    weight, bias = fit_penalized(features, labels, num_classes, penalty, loss)
    weight, bias = weight * scale, bias * scale + centre
    classifier.weight.copy_(weight / std)
    classifier.bias.copy_(bias - (weight / std) @ mean)
    share_parameters(classifier)
    return penalty


def share_parameters(module: nn.Module):
    """Copy the parameters of the main process to all, which differ from them by rounding only."""
    for parameter in module.parameters():
        parameter.data.copy_(broadcast(parameter.data))


# attentive


class AttentiveHead(nn.Module):
    """An attentive probe: transformer layers, a learned query that attends to their tokens, and a linear layer.

    With one block there is only the query (V-JEPA, arXiv 2404.08471, 3.3); V-JEPA 2 (arXiv 2506.09985, 4.1) has four
    blocks: three layers of self-attention, then the query. The tokens are standardised first, as not every encoder
    ends with a norm.

    Args:
        width: D of the tokens (B, L, D).
        num_classes: K.
        blocks: number of blocks, the query among them.
    """

    def __init__(self, width: int, num_classes: int, blocks: int = 1):
        super().__init__()
        heads = next(heads for heads in range(max(width // 64, 1), 0, -1) if width % heads == 0)
        config = MVDConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width)
        config._attn_implementation = "sdpa"
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps, elementwise_affine=False)
        self.layers = layer_stack(config, blocks - 1, width, heads, config.intermediate_size)
        self.pooler = MVDAttentivePooler(config)
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.classifier:
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.classifier.weight)
        nn.init.trunc_normal_(self.pooler.query, std=config.initializer_range)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B, K)."""
        hidden_states = self.norm(tokens)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.classifier(self.pooler(hidden_states))


def rate_factors(total: int) -> list[float]:
    """Factors of the rates in each step: a warmup over the first tenth of the steps, then a cosine."""
    warmup = total // 10
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(total - warmup) / (total - warmup)))
    return np.concatenate([np.linspace(0, 1, warmup), cosine]).tolist()


def train_heads(
    heads: Sequence[nn.Module],
    settings: Sequence[HeadSetting],
    views: LabelledViews,
    chosen: np.ndarray,
    arguments: ProbeArguments,
    seed: int,
    loss: Loss = classification_loss,
) -> np.ndarray:
    """Train heads side by side, so that each batch of features is read once; mean losses (heads, epochs).

    Uses AdamW with a cosine schedule and a warmup over the first tenth of the steps. The heads do not interact: each
    becomes what it would become alone.

    Args:
        heads: modules from features (B, ...) to logits (B, K), on the device to use.
        settings: of each head.
        views: features and labels.
        chosen: positions of the views to train on.
        arguments: epochs and batch size.
        seed: of the order of the views.
        loss: of labels and logits.
    """
    parameters = [list(head.parameters()) for head in heads]
    groups = [
        {"params": own, "weight_decay": setting.weight_decay}
        for own, setting in zip(parameters, settings, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    num_batches = -(-len(chosen) // arguments.probe_batch_size)
    factors = iter(rate_factors(num_batches * arguments.probe_epochs))
    rng, device = np.random.default_rng(seed), parameters[0][0].device
    sums = np.zeros((len(heads), arguments.probe_epochs))
    title = f"{len(heads)} probes" if len(heads) > 1 else "probe"
    for epoch in tqdm(range(arguments.probe_epochs), desc=title, unit=" epochs", disable=None):
        for batch in np.array_split(chosen[rng.permutation(len(chosen))], num_batches):
            features, labels = views.read(batch).to(device), views.labels[batch].to(device)
            factor = next(factors)
            for i, head in enumerate(heads):  # one at a time: the memory is that of one head
                with torch.enable_grad():
                    mean_loss = loss(labels, head(features))
                    gradients = torch.autograd.grad(mean_loss, parameters[i])
                for parameter, gradient in zip(parameters[i], gradients, strict=True):
                    parameter.grad = gradient
                optimizer.param_groups[i]["lr"] = settings[i].rate * factor
                sums[i, epoch] += mean_loss.item() * len(batch)
            optimizer.step()
    return sums / len(chosen)


@torch.no_grad()
def head_logits(heads: Sequence[nn.Module], views: LabelledViews, chosen: np.ndarray) -> torch.Tensor:
    """Logits of each head (heads, n, K) for some views, on the CPU."""
    device = next(heads[0].parameters()).device
    parts = []
    for batch in np.array_split(chosen, -(-len(chosen) // SCORED_VIEWS)):
        features = views.read(batch).to(device)
        parts.append(torch.stack([head(features).float().cpu() for head in heads]))
    return torch.cat(parts, dim=1)


def fit_head(
    head: nn.Module, views: LabelledViews, arguments: ProbeArguments, seed: int, loss: Loss = classification_loss
) -> tuple[HeadSetting, list[float]]:
    """Train a head in place; returns its setting and the mean loss of each epoch.

    Of several settings, heads with the same initial weights are trained in one pass without every fifth group of
    videos, whose loss then chooses. A single setting is trained at once on all videos.
    """
    settings = arguments.settings()
    setting = settings[0]
    if len(settings) > 1:
        is_held_out = held_out(views.groups)
        check_choice(is_held_out, settings)
        heads = [deepcopy(head) for _ in settings]
        train_heads(heads, settings, views, (~is_held_out).nonzero()[:, 0].numpy(), arguments, seed, loss)
        chosen = is_held_out.nonzero()[:, 0].numpy()
        scores = [loss(views.labels[chosen], logits).item() for logits in head_logits(heads, views, chosen)]
        setting = settings[int(np.nanargmin(scores))]
        logger.info("Of %d settings %s is best on every fifth training video.", len(settings), setting)
    losses = train_heads([head], [setting], views, np.arange(len(views)), arguments, seed, loss)
    share_parameters(head)
    return setting, losses[0].tolist()


def fit_attentive(
    model: MVDForVideoClassification, results: ViewResults, labels: np.ndarray, arguments: ProbeArguments, seed: int
) -> tuple[HeadSetting, list[float]]:
    """Train the attentive pooler and the linear layer of a classifier on cached tokens; see [`fit_head`].

    Args:
        model: a classifier with `config.use_attentive_pooling`, on the device to use.
        results: the `tokens` of the training videos.
        labels: (N,) class indices of the rows of the data set.
        arguments: of the probe.
        seed: of the order of the clips.

    Returns:
        The rate and weight decay, and the mean loss of each epoch.
    """
    head = nn.Sequential(model.pooler, model.classifier)
    return fit_head(head, LabelledViews(results, "tokens", labels), arguments, seed, model.loss)


# nearest neighbours


def choose_neighbours(views: LabelledViews, num_classes: int, arguments: ProbeArguments) -> int:
    """The number of neighbours: of several, the best on every fifth group of videos; cross entropy decides ties."""
    choices = as_list(arguments.neighbours)
    if len(choices) == 1:
        return choices[0]
    is_held_out, features = held_out(views.groups), views.read()
    check_choice(is_held_out, choices)
    known, wanted = (features[~is_held_out], views.labels[~is_held_out]), views.labels[is_held_out]
    scores = []
    for k in choices:
        votes = torch.from_numpy(knn_scores(features[is_held_out], *known, num_classes, k, arguments.temperature))
        accuracy = (votes.argmax(dim=1) == wanted).double().mean().item()
        scores.append((-accuracy, nn.functional.nll_loss(votes.clamp(min=1e-6).log(), wanted).item()))
    return choices[scores.index(min(scores))]


def nearest_neighbours(
    views: LabelledViews, results: ViewResults, num_classes: int, arguments: ProbeArguments
) -> tuple[int, np.ndarray]:
    """The number of neighbours, and the votes (N, K) of the nearest training views for the videos in `results`.

    Of several numbers the best on every fifth group of training videos is taken. Votes are averaged over the views of
    a video.
    """
    k = choose_neighbours(views, num_classes, arguments)
    features = torch.from_numpy(results.stack("pooled"))
    scores = knn_scores(features.flatten(0, 1), views.read(), views.labels, num_classes, k, arguments.temperature)
    return k, scores.reshape(len(features), -1, num_classes).mean(axis=1)
