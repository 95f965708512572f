"""Labels of a classifier: one class, several classes, a class of each of several heads, or a number.

Letters in shapes: B clips, K classes (of all heads), H heads.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedConfig

# `problem_type` of a configuration, as in transformers
SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


def check_labels(config: PreTrainedConfig):
    """Raise ValueError if the heads and the problem type of a configuration do not go with its number of labels."""
    heads = config.label_heads
    if heads and (min(heads.values()) < 1 or sum(heads.values()) != config.num_labels):
        raise ValueError(
            f"label_heads={heads} must be positive numbers that sum to num_labels={config.num_labels}: for other "
            "classes also pass label_heads={}."
        )
    if heads and config.problem_type in (MULTI_LABEL, REGRESSION):
        raise ValueError(f"label_heads={heads} have one class each: problem_type={config.problem_type} excludes them.")


def head_slices(heads: Mapping[str, int]) -> dict[str, slice]:
    """Where the classes of each head lie among all classes; heads are in alphabetical order."""
    slices, start = {}, 0
    for name, size in heads.items():
        slices[name] = slice(start, start + size)
        start += size
    return slices


def head_class_names(config: PreTrainedConfig, head: str) -> list[str]:
    """The names of the classes of a head: `take` for the label `verb: take`."""
    places = head_slices(config.label_heads)[head]
    return [config.id2label[i].removeprefix(f"{head}: ") for i in range(places.start, places.stop)]


def normalize_heads(logits: torch.Tensor, heads: Mapping[str, int]) -> torch.Tensor:
    """Logits (B, K) as log-probabilities of the classes of each head, so that those of all heads compare."""
    if not heads:
        return logits
    return torch.cat([part.log_softmax(dim=-1) for part in logits.split(list(heads.values()), dim=-1)], dim=-1)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, heads: Mapping[str, int]) -> torch.Tensor:
    """The cross entropy of logits (B, K), the mean over the heads if there are any.

    Labels are class indices (B,), or (B, H) of heads, or soft targets (B, K).
    """
    if not heads:
        return nn.functional.cross_entropy(logits, labels)
    sizes = list(heads.values())
    parts = labels.split(sizes, dim=-1) if labels.is_floating_point() else labels.unbind(dim=-1)
    losses = map(nn.functional.cross_entropy, logits.split(sizes, dim=-1), parts)
    return sum(losses) / len(sizes)


__all__ = [
    "MULTI_LABEL",
    "PROBLEM_TYPES",
    "REGRESSION",
    "SINGLE_LABEL",
    "check_labels",
    "cross_entropy",
    "head_class_names",
    "head_slices",
    "normalize_heads",
]
