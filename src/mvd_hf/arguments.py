"""Arguments of a recipe: dataclass defaults, then a YAML file, then the command line; an unknown key is an error.

A YAML file may be laid over another one: `extends: other.yaml`.
"""

import difflib
import json
import re
from collections.abc import Container, Sequence
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from .recipe_help import HELP, show_help

# key of a recipe that names the one it is laid over
EXTENDS = "extends"


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
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # also of dates and numbers
        raise ValueError(f"{where} is not valid YAML: {error}") from error


def read_yaml(path: str | Path, _heirs: tuple[Path, ...] = ()) -> dict:
    """A YAML mapping, laid over that of the file which it `extends`, if it has this key (a path seen from the file).

    Raises:
        ValueError: if a file is missing or no mapping, or a file extends itself.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The recipe {str(path)!r} cannot be read: {error}") from error
    content = read_value(text, f"The recipe {str(path)!r}")
    if not isinstance(content, dict):
        raise ValueError(f"The recipe {str(path)!r} must be a mapping of keys to values.")
    if EXTENDS not in content:
        return content
    parent = content.pop(EXTENDS)
    if not isinstance(parent, str):
        raise ValueError(f"{EXTENDS}={parent!r} of the recipe {str(path)!r} must be the path of another one.")
    heirs = (*_heirs, Path(path).resolve())
    parent = Path(path).parent / parent
    if parent.resolve() in heirs:
        raise ValueError(f"The recipe {str(path)!r} extends {str(parent)!r}, which extends it.")
    return merge(read_yaml(parent, heirs), content)


def parse_overrides(arguments: Sequence[str], lists: Container[str] | None = ()) -> dict:
    """`--key value`, `--key=value` and `--flag` as a mapping; dots reach inside: `--teachers.image.weight 2`.

    Args:
        arguments: what follows a recipe's script and YAML file.
        lists: keys that take several words, up to the next key, as a list; `None` for any.
    """
    overrides: dict = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("--"):
            raise ValueError(f"{argument!r} is not an argument; write --key value. A YAML file comes first.")
        key, equals, value = argument[2:].partition("=")
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
        words = [value]
        while (lists is None or key in lists) and waiting and not waiting[0].startswith("--"):
            words.append(waiting.pop(0))
        *path, last = key.split(".")
        target = overrides
        for part in path:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ValueError(f"--{key} reaches into {part!r}, which another argument sets to {target!r}.")
        values = [read_value(word, f"The value of --{key}") for word in words]
        target[last] = values[0] if len(values) == 1 else values
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


def members(hint: Any) -> tuple:
    """The types of a union; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def takes_a_list(hint: Any) -> bool:
    """Whether a field of this type can be a list: `list[str]`, or a union with it."""
    return any(list in (kind, get_origin(kind)) for kind in members(hint))


def wrap_single_words(values: dict, kinds: Sequence[type]):
    """Make a list of a single text or number where a field takes lists and no other of that name takes it alone."""
    hints = [(name, hint) for kind in kinds for name, hint in get_type_hints(kind).items()]
    lists = {name for name, hint in hints if takes_a_list(hint)}
    scalars = {name for name, hint in hints if {str, int, float} & set(members(hint))}
    for name in (lists - scalars) & set(values):
        if isinstance(values[name], str | int | float):
            values[name] = [values[name]]


def check_switches(values: dict, kind: type):
    """Raise ValueError if a switch is given anything but true or false: other text would count as true."""
    for name, hint in get_type_hints(kind).items():
        choices = set(get_args(hint) or (hint,))
        if name in values and choices <= {bool, type(None)} and type(values[name]) not in choices:
            raise ValueError(f"{name}={values[name]!r} must be true or false.")


def read_arguments(arguments: Sequence[str], first: str | None = None, lists: Container[str] | None = None) -> dict:
    """The keys that are given: those of a YAML file, and over them those of the command line.

    Args:
        arguments: `[recipe.yaml] [--key value ...]`, as in `sys.argv[1:]`.
        first: key of what comes first, if that is neither a key nor a YAML file.
        lists: keys that take several words; by default any, as where [`parse_arguments`] has refused what is wrong.

    Raises:
        ValueError: naming an argument that cannot be read.
    """
    arguments = list(arguments)
    is_named = not arguments or arguments[0].startswith("--") or Path(arguments[0]).suffix in (".yaml", ".yml")
    if first is not None and not is_named:
        arguments = [f"--{first}", json.dumps(arguments[0]), *arguments[1:]]  # quoted, as YAML reads the values
    values = read_yaml(arguments.pop(0)) if arguments and not arguments[0].startswith("--") else {}
    return merge(values, parse_overrides(arguments, lists))


def take_name(arguments: Sequence[str], choices: Sequence[str], what: str) -> tuple[str, list[str]]:
    """The name that comes first, and what follows it; `--help` in its place prints the script's help and ends.

    Raises:
        ValueError: if there is no such choice.
    """
    name, *rest = arguments or [""]
    if name in HELP:
        show_help()
    if name not in choices:
        raise ValueError(f"There is no {what} {name!r}; choose {', '.join(choices)}.")
    return name, rest


def parse_arguments(arguments: Sequence[str], *dataclasses: type, first: str | None = None) -> list:
    """One instance of each dataclass from the arguments of a recipe; `--help` among them prints help and ends.

    Args:
        arguments: as in [`read_arguments`].
        dataclasses: types whose fields are the known keys.
        first: as in [`read_arguments`].

    Raises:
        ValueError: naming an unknown key and the nearest known one, or an argument that cannot be read.
    """
    if not HELP.isdisjoint(arguments):
        show_help(*dataclasses)
    lists = {name for kind in dataclasses for name, hint in get_type_hints(kind).items() if takes_a_list(hint)}
    values = read_arguments(arguments, first, lists)
    known = [{field.name for field in fields(kind) if field.init} for kind in dataclasses]
    for key in values:
        if not any(key in names for names in known):
            close = difflib.get_close_matches(str(key), sorted(set().union(*known)), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Unknown key {key!r} in the recipe or on the command line.{hint}")
    for kind in dataclasses:
        check_switches(values, kind)
    wrap_single_words(values, dataclasses)
    try:
        return [
            kind(**{key: value for key, value in values.items() if key in names})
            for kind, names in zip(dataclasses, known, strict=True)
        ]
    except TypeError as error:
        raise ValueError(f"The recipe's arguments do not fit: {error}") from error
