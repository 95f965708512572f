"""What a run trains, and on what: a checkpoint is only continued by a run of the same identity."""

import json
from collections.abc import Mapping
from typing import Any

from ..model.configuration_mvd import MVDConfig

# fields of a configuration that say nothing about what is learned
NEUTRAL = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "model_type"}


def config_identity(config: MVDConfig) -> dict:
    """The fields of a model's configuration that must not change within a run."""
    return {key: value for key, value in config.to_dict().items() if key not in NEUTRAL}


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; an empty mapping stays a value."""
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    parts = [flatten(entry, f"{path}.{key}" if path else str(key)) for key, entry in value.items()]
    return {key: entry for part in parts for key, entry in part.items()}


def changes(before: Mapping, now: Mapping) -> dict[str, tuple[Any, Any]]:
    """What differs between two records, by dotted key. Keys that only one of them has do not count.

    Another version of the libraries may know further keys; lists of names, such as that of the teachers, are values of
    their own and say what is missing.
    """
    before, now = (flatten(json.loads(json.dumps(record, default=str))) for record in (before, now))
    return {key: (before[key], now[key]) for key in now if key in before and before[key] != now[key]}


def in_words(found: Mapping[str, tuple[Any, Any]]) -> str:
    """Changes as text: `stride 4 (before: 2), ...`."""
    return ", ".join(f"{key} {now!r} (before: {before!r})" for key, (before, now) in found.items())
