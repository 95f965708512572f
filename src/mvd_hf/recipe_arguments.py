"""Arguments of a recipe: dataclass defaults, then a YAML file, then the command line; an unknown key is an error."""

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml


class Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number and `no` is text, as in YAML 1.2; YAML 1.1 has it the other way round."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def read_value(text: str, where: str) -> Any:
    """A YAML value; raises ValueError, saying where it stands, if it is not valid."""
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from error


def read_yaml(path: str | Path) -> dict:
    """A YAML mapping; raises ValueError if the file is missing or something else."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The recipe {str(path)!r} cannot be read: {error}") from error
    content = read_value(text, f"The recipe {str(path)!r}")
    if not isinstance(content, dict):
        raise ValueError(f"The recipe {str(path)!r} must be a mapping of keys to values.")
    return content


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
            if not isinstance(target, dict):
                raise ValueError(f"--{key} reaches into {part!r}, which another argument sets to {target!r}.")
        target[last] = read_value(value, f"The value of --{key}")
    return overrides


def merge(base: dict, overrides: dict) -> dict:
    """The mapping with another laid over it, mapping by mapping; text where a mapping is laid over is its `model`."""
    merged = dict(base)
    for key, value in overrides.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, str):
            below = {"model": below}
        merged[key] = merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def check_switches(values: dict, kind: type):
    """Raise ValueError if a switch is given anything but true or false: other text would count as true."""
    for name, hint in get_type_hints(kind).items():
        choices = set(get_args(hint) or (hint,))
        if name in values and choices <= {bool, type(None)} and type(values[name]) not in choices:
            raise ValueError(f"{name}={values[name]!r} must be true or false.")


def join_lists(arguments: Sequence[str], *dataclasses: type) -> list[str]:
    """`--videos a.mp4 b.mp4` with the words as one list, also if there is only one; a list in brackets stays one.

    Args:
        arguments: of a recipe, see [`parse_arguments`].
        dataclasses: types whose fields of the type `list` take several words.
    """
    names = {f"--{field.name}" for kind in dataclasses for field in fields(kind) if field.type in (list, "list")}
    joined: list[str] = []
    lists: dict[str, list] = {}
    key = ""
    for argument in arguments:
        key = argument if argument.startswith("--") else key
        if key not in names:
            joined.append(argument)
        elif argument == key:
            lists[key] = []
        elif argument.startswith("["):
            joined += [key, argument]
            del lists[key]
        else:
            lists[key].append({"true": True, "false": False}.get(argument, argument))
    return joined + [word for key, values in lists.items() for word in (key, json.dumps(values))]


def parse_arguments(arguments: Sequence[str], *dataclasses: type, first: str | None = None) -> list:
    """One instance of each dataclass from the arguments of a recipe.

    Args:
        arguments: `[recipe.yaml] [--key value ...]`, as in `sys.argv[1:]`.
        dataclasses: types whose fields are the known keys.
        first: key of what comes first, if that is neither a key nor a YAML file.

    Raises:
        ValueError: naming an unknown key and the nearest known one, or an argument that cannot be read.
    """
    arguments = list(arguments)
    is_named = not arguments or arguments[0].startswith("--") or Path(arguments[0]).suffix in (".yaml", ".yml")
    if first is not None and not is_named:
        arguments = [f"--{first}", json.dumps(arguments[0]), *arguments[1:]]  # quoted, as YAML reads the values
    values = read_yaml(arguments.pop(0)) if arguments and not arguments[0].startswith("--") else {}
    values = merge(values, parse_overrides(arguments))
    known = [{field.name for field in fields(kind) if field.init} for kind in dataclasses]
    for key in values:
        if not any(key in names for names in known):
            close = difflib.get_close_matches(key, sorted(set().union(*known)), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Unknown key {key!r} in the recipe or on the command line.{hint}")
    for kind in dataclasses:
        check_switches(values, kind)
    try:
        return [
            kind(**{key: value for key, value in values.items() if key in names})
            for kind, names in zip(dataclasses, known, strict=True)
        ]
    except TypeError as error:
        raise ValueError(f"The recipe's arguments do not fit: {error}") from error
