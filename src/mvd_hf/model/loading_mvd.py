"""Weights are loaded completely or not at all, but for a head that the caller asks for."""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Collection

from torch import nn
from transformers import PreTrainedConfig

# arguments of `from_pretrained` that locate a checkpoint
LOCATION_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class CheckpointMismatchError(ValueError, RuntimeError):
    """A checkpoint does not hold the weights that a model needs; the message names them."""


def listed(names: Collection[str], limit: int = 4) -> str:
    """How many names there are, and the first of them: `6 (a, b, c, d, ...)`."""
    more = ", ..." if len(names) > limit else ""
    return f"{len(names)} ({', '.join(list(names)[:limit])}{more})" if names else "0"


def loading_problems(report: dict) -> dict[str, set[str]]:
    """Names of weights that are `missing`, `unexpected` or `of another shape`, from transformers' loading report."""
    return {
        "missing": set(report["missing_keys"]),
        "unexpected": set(report["unexpected_keys"]),
        "of another shape": {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]},
    }


def has_other_labels(config: PreTrainedConfig, source: str, options: dict) -> bool:
    """Whether a configuration's labels differ from those of a checkpoint, given `from_pretrained`'s `options`."""
    location = {key: options[key] for key in LOCATION_ARGUMENTS if key in options}
    stored, _ = type(config).get_config_dict(source, **location)
    labels = {key: stored[key] for key in ("id2label", "num_labels") if key in stored}
    return type(config)(**labels).id2label != config.id2label


def part_of_head(key: str) -> str:
    """The part of a head that a weight belongs to: `classifier`, or `decoders.image` of a student."""
    words = key.split(".")
    return ".".join(words[:2]) if words[0] == "decoders" else words[0]


def refuse_partial_load(
    model: nn.Module, source: str, problems: dict[str, set[str]], new_head: bool, replace_head: bool
):
    """Raise CheckpointMismatchError if other weights than those of a requested new head are missing or left over.

    Args:
        model: the loaded [`MVDPreTrainedModel`].
        source: where the weights came from, for the message.
        problems: see `loading_problems`.
        new_head: whether a missing head may be initialised.
        replace_head: whether, in addition, a head of another size may be replaced and other decoders left out.
    """
    head_parts = model._head_parts
    fresh = problems["missing"] | problems["of another shape"]
    own = [name for name, _ in model.named_parameters() if name.split(".")[0] in head_parts]
    parts = {part_of_head(name): {key for key in own if part_of_head(key) == part_of_head(name)} for name in own}
    # a part is new only if all its weights are; with some of them in the checkpoint it is damaged
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
            "A mean-pooling classifier's checkpoint has no final encoder norm: load it as MVDModel with "
            "add_final_norm=False, as a classifier, or with MVDForActionDetection.from_classifier."
        )
    elif any(key.split(".")[0] in head_parts for key in problems["of another shape"]):
        remedy = "To replace the head pass ignore_mismatched_sizes=True."
    elif all(key.split(".")[0] in head_parts for key in left) and not new_head:
        remedy = "For a new head pass num_labels or id2label, or ignore_mismatched_sizes=True."
    raise CheckpointMismatchError(f"The weights of {source!s} do not fit {type(model).__name__}: {listing}. {remedy}")


__all__ = ["CheckpointMismatchError", "has_other_labels", "listed", "loading_problems", "refuse_partial_load"]
