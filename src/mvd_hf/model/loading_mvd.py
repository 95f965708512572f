"""Weights are loaded completely or not at all: which fresh or left-over weights of a checkpoint are no mistake."""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Collection

from torch import nn


class CheckpointMismatchError(ValueError, RuntimeError):
    """A checkpoint does not hold the weights that a model needs; the message names them."""


def listed(names: Collection[str], limit: int = 4) -> str:
    """How many names there are, and the first of them: `6 (a, b, c, d, ...)`."""
    more = ", ..." if len(names) > limit else ""
    return f"{len(names)} ({', '.join(list(names)[:limit])}{more})" if names else "0"


def part_of_head(key: str) -> str:
    """What a weight belongs to: `classifier`, or `decoders.image` of a student."""
    words = key.split(".")
    return ".".join(words[:2]) if words[0] == "decoders" else words[0]


def refuse_partial_load(
    model: nn.Module,
    head_parts: tuple[str, ...],
    source: str,
    problems: dict[str, set[str]],
    new_head: bool,
    replace_head: bool,
):
    """Raise CheckpointMismatchError unless all that is fresh or left over belongs to a head that was asked for.

    Args:
        model: the model that was loaded.
        head_parts: its parts that are not the encoder.
        source: where the weights came from, for the message.
        problems: names of weights that are `missing`, `unexpected` or `of another shape`.
        new_head: whether a missing head may be made afresh.
        replace_head: whether, in addition, a head of another size may be replaced and other decoders left out.
    """
    fresh = problems["missing"] | problems["of another shape"]
    own = [name for name, _ in model.named_parameters() if name.split(".")[0] in head_parts]
    parts = {part_of_head(name): {key for key in own if part_of_head(key) == part_of_head(name)} for name in own}
    # a part that is there but for some weights is damaged, not new; other decoders than the checkpoint's are new
    excused = {part for part, keys in parts.items() if keys <= fresh} if new_head else set()
    if not replace_head:
        excused = {part for part in excused if not parts[part] & problems["of another shape"]}
    problems = {what: {k for k in keys if part_of_head(k) not in excused} for what, keys in problems.items()}
    if replace_head:
        left_out = {k for k in problems["unexpected"] if k.split(".")[0] in head_parts}
        problems["unexpected"] -= {k for k in left_out if part_of_head(k) not in parts}
    listing = "; ".join(f"{what}: {listed(sorted(keys))}" for what, keys in problems.items() if keys)
    if not listing:
        return
    left = set().union(*problems.values())
    remedy = "Check that the checkpoint and the configuration belong together."
    if any(key.removeprefix("mvd.").startswith("layernorm.") for key in problems["missing"]):
        remedy = (
            "The checkpoint has no final encoder norm, as it comes from a mean-pooling classifier: load it as "
            "MVDModel with add_final_norm=False, as a classifier, or for action detection with "
            "MVDForActionDetection.from_classifier, which takes a new norm."
        )
    elif any(key.split(".")[0] in head_parts for key in problems["of another shape"]):
        remedy = "To replace the head by a fresh one pass ignore_mismatched_sizes=True."
    elif all(key.split(".")[0] in head_parts for key in left) and not new_head:
        remedy = "For a fresh head pass num_labels or id2label, or ignore_mismatched_sizes=True."
    raise CheckpointMismatchError(f"The weights of {source!s} do not fit {type(model).__name__}: {listing}. {remedy}")


__all__ = ["CheckpointMismatchError", "listed", "refuse_partial_load"]
