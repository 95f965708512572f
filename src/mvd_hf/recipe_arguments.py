"""Arguments of a recipe: dataclass defaults, then a YAML file, then the command line; an unknown key is an error."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

# YAML 1.1 reads 1e-4 as text for want of a dot
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def numbers(value: Any) -> Any:
    """The value with texts like 1e-4 turned into numbers, at any depth."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def read_yaml(path: str | Path) -> dict:
    """A YAML mapping; raises ValueError if the file is missing or something else."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"The recipe {str(path)!r} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe {str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"The recipe {str(path)!r} must be a mapping of keys to values.")
    return numbers(content)


def parse_overrides(arguments: Sequence[str]) -> dict:
    """`--key value`, `--key=value` and `--flag` as a mapping; dots reach inside: `--teachers.image.weight 2`."""
    overrides: dict = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("--"):
            raise ValueError(f"{argument!r} is not an argument; write --key value. A YAML file comes first.")
        key, equals, value = argument[2:].partition("=")
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
        *path, last = key.split(".")
        target = overrides
        for part in path:
            target = target.setdefault(part, {})
        target[last] = numbers(yaml.safe_load(value))
    return overrides


def merge(base: dict, overrides: dict) -> dict:
    """The mapping with another laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_arguments(arguments: Sequence[str], *dataclasses: type) -> list:
    """One instance of each dataclass from the arguments of a recipe.

    Args:
        arguments: `[recipe.yaml] [--key value ...]`, as in `sys.argv[1:]`.
        dataclasses: types whose fields are the known keys.

    Raises:
        ValueError: naming an unknown key and the nearest known one, or an argument that cannot be read.
    """
    arguments = list(arguments)
    values = read_yaml(arguments.pop(0)) if arguments and not arguments[0].startswith("--") else {}
    values = merge(values, parse_overrides(arguments))
    known = [{field.name for field in fields(kind) if field.init} for kind in dataclasses]
    for key in values:
        if not any(key in names for names in known):
            close = difflib.get_close_matches(key, sorted(set().union(*known)), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Unknown key {key!r} in the recipe or on the command line.{hint}")
    try:
        return [
            kind(**{key: value for key, value in values.items() if key in names})
            for kind, names in zip(dataclasses, known, strict=True)
        ]
    except TypeError as error:
        raise ValueError(f"The recipe's arguments do not fit: {error}") from error
