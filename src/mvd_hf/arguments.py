"""Arguments of a recipe: dataclass defaults, then a YAML file, then the command line; each is read by its type.

A YAML file can be laid over another one: `extends: other.yaml`.
"""

import difflib
import inspect
import itertools
import json
import logging
import os
import re
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

# key of a recipe that names the one it is laid over
EXTENDS = "extends"
HELP = frozenset(("--help", "-h"))
# what a script's help says below its keys
READING = """\
A value is read by the type of its key: text is taken as it stands, a list is several words or [a, b], a mapping is
{a: 1, b: 2}, and null clears a value that may be missing.
A mapping replaces the recipe's; dots reach inside: --config.num_frames 8. A named entry is taken away by null:
--teachers.video null.
--debug shows the traceback of an error."""
# how entries of a docstring's "Args:" begin: names, and behind a colon their text
ENTRY = re.compile(r"    (\w[\w, ]*?)(?: \([^)]*\))?: (.*)")
INDENT = " " * 6
# what has the form of a Hub id, such as `lists/train.csv`, is a file with these suffixes
FILE_SUFFIXES = (".csv", ".txt", ".list", ".lst", ".jsonl", ".parquet", ".tar", ".pth", ".pt")
# options of `accelerate launch`, which stand before the script
LAUNCHER_KEYS = ("config_file", "machine_rank", "multi_gpu", "num_machines", "num_processes", "mixed_precision")
# seconds after which a process that is not its machine's first reports an error that the first does not have
PATIENCE = 10.0


class Plain(str):
    """Text without quotes, from a command line or a YAML file: it may stand for a number, true, false or null."""


class Loader(yaml.SafeLoader):
    """Safe YAML that leaves the meaning of text without quotes to the type of its field, null excepted."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<$"))]}

    def construct_text(self, node: yaml.ScalarNode) -> str | None:
        if node.style:
            return node.value
        return None if node.value in ("", "~", "null") else Plain(node.value)


Loader.add_constructor("tag:yaml.org,2002:str", Loader.construct_text)


def resolve(value: Any) -> Any:
    """The value without a type that would say more: 1e-4 is a number and `no` is text, as in YAML 1.2."""
    if isinstance(value, list):
        return [resolve(item) for item in value]
    if isinstance(value, dict):
        return {resolve(key): resolve(item) for key, item in value.items()}
    if isinstance(value, Plain) and value[:1] in ("[", "{"):
        return resolve(load_yaml(value, f"The value {str(value)!r}"))
    return resolve_scalar(value)


def resolve_scalar(value: Any) -> Any:
    """Text without quotes as null, true, false, a number or text; any other value as it is."""
    if not isinstance(value, Plain):
        return value
    if value in ("", "~", "null"):
        return None
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if re.fullmatch(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?", value, re.ASCII):
        for number in (int, float):
            with suppress(ValueError):
                return number(value)
    return str(value)


def load_yaml(text: str, where: str) -> Any:
    """A YAML value whose text without quotes is `Plain`."""
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from error


def load_recipe(path: str | Path, heirs: tuple[Path, ...] = ()) -> dict:
    """A YAML mapping laid over the one it extends; `heirs` are the files that extend this one."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The recipe {str(path)!r} cannot be read: {error}") from error
    content = load_yaml(text, f"The recipe {str(path)!r}")
    if not isinstance(content, dict):
        raise ValueError(f"The recipe {str(path)!r} must be a mapping of keys to values.")
    if EXTENDS not in content:
        return content
    parent = content.pop(EXTENDS)
    if not isinstance(parent, str):
        raise ValueError(f"{EXTENDS}={parent!r} of the recipe {str(path)!r} must be the path of another one.")
    heirs = (*heirs, Path(path).resolve())
    parent = Path(path).parent / parent
    if parent.resolve() in heirs:
        raise ValueError(f"The recipe {str(path)!r} extends {str(parent)!r}, which extends it.")
    return merge(load_recipe(parent, heirs), content)


def recipe_header(path: Path) -> str:
    """The comment that opens a recipe, as one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.strip("# \\") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))


def named_recipes(script: Path) -> dict[str, Path]:
    """The recipes for a script below its folder, by name: `tiny/distill`. Their first comment has the command."""
    found = {f"{path.parent.name}/{path.stem}": path for path in sorted(script.parent.glob("*/*.yaml"))}
    return {
        name: path
        for name, path in found.items()
        if f"recipes/{script.name} recipes/{name}.yaml" in recipe_header(path)
    }


def find_recipe(name: str, script: Path) -> Path:
    """The file of a recipe.

    Args:
        name: a path, a name of [`named_recipes`], or the folder in it if that has one recipe for the script.
        script: path of the script that runs the recipe.

    Raises:
        ValueError: if there is no such recipe, or the folder has several.
    """
    if Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
        return Path(name)
    named = named_recipes(script)
    found = [other for other in named if name in (other, other.partition("/")[0])]
    if len(found) == 1:
        return named[found[0]]
    if found:
        raise ValueError(f"{name!r} has several recipes for {script.name}: choose {', '.join(found)}.")
    close = difflib.get_close_matches(name, {*named, *(other.partition("/")[0] for other in named)}, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else " `mvd-hf recipes` lists the names; keys begin with --."
    raise ValueError(f"There is no recipe {name!r} for {script.name}, neither a file nor a name.{hint}")


def read_yaml(path: str | Path) -> dict:
    """A YAML mapping, laid over that of the file which it `extends`, if it has this key (a path seen from the file).

    Raises:
        ValueError: if a file is missing or no mapping, or a file extends itself.
    """
    return resolve(load_recipe(path))


def merge(base: Mapping, over: Mapping) -> dict:
    """A mapping with another laid over it, mapping by mapping; text below a mapping is its `model`."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, str):
            below = {"model": below}
        merged[key] = merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def apply_arguments(values: dict, arguments: Sequence[str]) -> dict:
    """The values with `--key value ...`, `--key=value` and `--flag` laid over them in turn; dots reach inside."""
    words = list(arguments)
    while words:
        argument = words.pop(0)
        if not argument.startswith("--"):
            raise ValueError(f"{argument!r} is not an argument; write --key value. A YAML file comes first.")
        key, equals, first = argument[2:].partition("=")
        given = [Plain(first)] if equals else []
        while words and not words[0].startswith("--"):
            given.append(Plain(words.pop(0)))
        value = True if not given else given[0] if len(given) == 1 else given
        path = key.split(".")
        if len(path) == 1:
            values = values | {key: value}
            continue
        inside = values.get(path[0])
        if isinstance(inside, Plain) and inside.startswith("{"):
            values = values | {path[0]: load_yaml(inside, f"The value of --{path[0]}")}
        for part in reversed(path):
            value = {part: value}
        values = merge(values, value)
    return values


def is_mapping(kind: Any) -> bool:
    return dict in (kind, get_origin(kind)) or (get_origin(kind) is Annotated and is_mapping(get_args(kind)[0]))


def is_list(kind: Any) -> bool:
    return {list, tuple} & {kind, get_origin(kind)} != set()


def members(hint: Any) -> tuple:
    """The types of a union, text last; any other type alone."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if any(inspect.isclass(kind) and issubclass(kind, Enum) for kind in kinds):
        return tuple(kind for kind in kinds if kind is not str)  # transformers takes an enumeration's values as text
    return tuple(sorted(kinds, key=lambda kind: kind is str))


def describe_type(hint: Any) -> str:
    """What a value of this type is, in words."""
    kinds = [kind for kind in members(hint) if kind is not NoneType and not (kind is int and float in members(hint))]
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    found = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            found.append(f"one of {', '.join(map(str, get_args(kind)))}")
        elif inspect.isclass(kind) and issubclass(kind, Enum):
            found.append(f"one of {', '.join(choice.value for choice in kind)}")
        elif is_list(kind):
            items = [item for item in get_args(kind) if item is not ...]
            found.append(f"a list (each {describe_type(items[0])})" if items else "a list")
        else:
            found.append("a mapping" if is_mapping(kind) else words.get(kind, getattr(kind, "__name__", str(kind))))
    return " or ".join(dict.fromkeys(found)) + (" (null for none)" if NoneType in members(hint) else "")


def read_value(value: Any, hint: Any, name: str) -> Any:
    """The value as a type reads it.

    Args:
        value: of a YAML file or a command line, in which text without quotes is `Plain`.
        hint: a type, a union, or `Annotated[dict, Kind]` for fields of the dataclass `Kind`, and behind it pairs of
            further keys and their types.
        name: the key, for messages.

    Raises:
        ValueError: naming the key, the value and what is wanted.
    """
    kinds = members(hint)
    if isinstance(value, Plain) and value[:1] in ("[", "{"):
        wanted = is_list if value.startswith("[") else is_mapping
        if any(map(wanted, kinds)):
            value = load_yaml(value, f"The value of {name}")
    for kind in kinds:
        if isinstance(value, dict) and is_mapping(kind):
            return read_mapping(value, kind, name)
        if isinstance(value, list) and is_list(kind):
            return read_list(value, kind, name)
        with suppress(TypeError):
            return read_scalar(value, kind)
    lists = [kind for kind in kinds if is_list(kind)]
    if lists and isinstance(value, str | int | float) and value is not True:
        return read_list([value], lists[0], name)
    if value is True:
        raise ValueError(f"{name} has no value: it must be {describe_type(hint)}.")
    raise ValueError(f"{name}={value!r} must be {describe_type(hint)}.")


def read_scalar(value: Any, kind: Any) -> Any:
    """A single value of a type that is neither a list nor a mapping; raises TypeError if it is none."""
    if kind is Any:
        return resolve(value)
    plain = resolve_scalar(value)
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if (type(plain), plain) == (type(choice), choice) or (isinstance(choice, str) and value == choice):
                return choice
    elif inspect.isclass(kind) and issubclass(kind, Enum):
        if value in [choice.value for choice in kind]:
            return str(value)
    elif kind is str:
        if isinstance(value, str):
            return str(value)
    elif kind is float:
        if type(plain) in (int, float):
            return plain
    elif type(plain) is kind:
        return plain
    raise TypeError


def read_list(values: list, kind: Any, name: str) -> list | tuple:
    items = get_args(kind)
    if is_tuple := tuple in (kind, get_origin(kind)):
        if items and items[-1] is not ... and len(values) != len(items):
            raise ValueError(f"{name}={values!r} must have {len(items)} values.")
        hints = items if items and items[-1] is not ... else (items or (Any,))[:1] * len(values)
    else:
        hints = (items or (Any,)) * len(values)
    read = [read_value(value, hint, name) for value, hint in zip(values, hints, strict=True)]
    return tuple(read) if is_tuple else read


def read_mapping(values: dict, kind: Any, name: str) -> dict:
    if get_origin(kind) is Annotated:
        _, of, *others = get_args(kind)
        hints = keys_of(of) | dict(others)
        check_keys(values, hints, f"of {name}")
        return {key: read_value(value, hints[key], f"{name}.{key}") for key, value in values.items()}
    key_hint, hint = get_args(kind) or (Any, Any)
    read = {}
    for key, value in values.items():
        if value in (None, "null") and NoneType not in members(hint) and hint is not Any:
            continue  # the entry is taken away
        read[read_value(key, key_hint, f"A key of {name}")] = read_value(value, hint, f"{name}.{key}")
    return read


def read_arguments(arguments: Sequence[str], *dataclasses: type, first: str | None = None) -> dict:
    """The values that a YAML file and the command line give, read by the types of the dataclasses' fields.

    Args:
        arguments: `[recipe] [--key value ...]`, as in `sys.argv[1:]`; [`find_recipe`] says what a recipe may be.
        dataclasses: types whose fields are the known keys; without any, all keys are known and have no type.
        first: key of what comes first, if that is neither a key nor a YAML file.

    Raises:
        ValueError: naming an unknown key and the nearest known one, or an argument that cannot be read.
    """
    return {key: read[0] for key, read in read_by_type(arguments, dataclasses, first).items()}


def read_by_type(arguments: Sequence[str], dataclasses: Sequence[type], first: str | None) -> dict[str, list]:
    """Per key that is given, its value as each dataclass with such a field reads it."""
    values, arguments = {}, list(arguments)
    if arguments and not arguments[0].startswith("--"):
        if first is None or Path(arguments[0]).suffix in (".yaml", ".yml"):
            values = load_recipe(find_recipe(arguments.pop(0), Path(sys.argv[0])))
        else:
            arguments[0] = f"--{first}={arguments[0]}"
    values = apply_arguments(values, arguments)
    if not dataclasses:
        return {key: [resolve(value)] for key, value in values.items()}
    types = [keys_of(kind) for kind in dataclasses]
    check_keys(values, set().union(*types), "in the recipe or on the command line")
    return {
        key: [read_value(value, hints[key], key) for hints in types if key in hints] for key, value in values.items()
    }


def check_keys(values: Mapping, known: Collection[str], where: str):
    """Raise ValueError for a key that is not known, with the nearest known one."""
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            if key in LAUNCHER_KEYS:
                hint = f" It is an option of accelerate launch: write --{key} before the script or -m."
            raise ValueError(f"Unknown key {key!r} {where}.{hint}")


def keys_of(kind: type) -> dict[str, Any]:
    """The keys that a dataclass takes, and their types."""
    return {key.name: Any if isinstance(key.type, str) else key.type for key in fields(kind) if key.init}


def parse_arguments(arguments: Sequence[str], *dataclasses: type, first: str | None = None) -> list:
    """One instance of each dataclass from the arguments of a recipe; `--help` among them prints help and ends.

    Args:
        arguments, dataclasses, first: as in [`read_arguments`].

    Raises:
        ValueError: as in [`read_arguments`], or naming a key that is missing.
    """
    if not HELP.isdisjoint(arguments):
        show_help(*dataclasses)
    values = read_by_type(arguments, dataclasses, first)
    instances = []
    for kind in dataclasses:
        own = {key: values[key].pop(0) for key in keys_of(kind) if key in values}
        for key in fields(kind):
            if key.init and key.name not in own and key.default is key.default_factory is MISSING:
                raise ValueError(f"There is no {key.name}: give --{key.name}.")
        try:
            instances.append(kind(**own))
        except ValueError as error:  # from here, as what a library refuses was given by the user, too
            raise ValueError(str(error)) from error
    return instances


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


def own_classes(kind: type) -> list[type]:
    """A dataclass and its parents, up to those of `transformers`."""
    return [base for base in kind.__mro__ if is_dataclass(base) and not base.__module__.startswith("transformers")]


def described_arguments(kind: type) -> dict[str, str]:
    """What the docstrings of a class and of its parents say of their arguments, by name.

    Several arguments that share a text all get it.
    """
    found: dict[str, str] = {}
    for base in reversed(own_classes(kind)):
        _, _, text = inspect.cleandoc(base.__doc__ or "").partition("Args:\n")
        names: list[str] = []
        for line in text.split("\n"):
            entry = ENTRY.fullmatch(line)
            if entry:
                names = [name.strip() for name in entry[1].split(",")]
                found |= dict.fromkeys(names, entry[2])
            elif line.startswith("        ") and names:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
            elif line:
                break  # of another section
    return found


def default_of(key: Field) -> str:
    """A key's default, as it is written on a command line; empty if there is none."""
    value = key.default if key.default_factory is MISSING else key.default_factory()
    if value is MISSING:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def help_text(text: str | None, kinds: Sequence[type]) -> str:
    """A script's help.

    Args:
        text: the script's docstring.
        kinds: dataclasses of its keys. Keys that they inherit from `transformers` are not listed.
    """
    parts = [inspect.cleandoc(text or "")]
    for kind in kinds:
        classes, described = own_classes(kind), described_arguments(kind)
        ours = {name for base in classes for name in base.__annotations__}
        lines = re.split(r"\n\n(?:Args|Raises):\n", inspect.cleandoc(kind.__doc__ or ""))[:1]
        for key in (key for key in fields(kind) if key.init and key.name in ours):
            lines.append(f"  --{key.name} {default_of(key)}".rstrip())
            lines += textwrap.wrap(described.get(key.name, ""), 110, initial_indent=INDENT, subsequent_indent=INDENT)
        parent = classes[-1].__mro__[1]
        if is_dataclass(parent):
            lines.append(f"  and the keys of {parent.__module__.split('.')[0]}.{parent.__name__}")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, READING] if kinds else parts)


def show_help(*kinds: type):
    """Print the running script's help and end it with exit code 0."""
    sys.stdout.write(help_text(sys.modules["__main__"].__doc__, kinds) + "\n")
    raise SystemExit(0)


def check_path(source: str, what: str):
    """Raise ValueError, without a look at the network, if a source is written as a path, but is not there."""
    first, is_below, rest = source.partition("/")
    is_path = source.startswith(("/", ".", "~")) or "\\" in source or "/" in rest
    is_path = is_path or Path(source).suffix.lower() in FILE_SUFFIXES
    if (is_path or (is_below and (first == "outputs" or os.path.isdir(first)))) and not os.path.exists(source):
        raise ValueError(f"There is no {what} {source!r}: no such file or folder.")


def is_users_mistake(error: Exception, script: str) -> bool:
    """Whether a file or the network failed, or we refused a value; any other error is a bug."""
    if isinstance(error, OSError):
        return True
    folders = [str(Path(path).resolve().parent) + os.sep for path in (__file__, script)]
    files = [
        str(Path(traceback.extract_tb(part.__traceback__)[-1].filename).resolve())
        for part in (error, error.__cause__)
        if part is not None and part.__traceback__
    ]
    return isinstance(error, ValueError) and any(file.startswith(tuple(folders)) for file in files)


def is_no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def quieten_libraries():
    """Keep what is not the user's business out of a script's output, and progress bars of loading out of files."""
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # cards without metadata
    # the key of recipes that the oldest supported version knows
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing\w*` is deprecated", FutureWarning)
    # a table of missing weights: we name new ones in a line of our own, and refuse others
    logging.getLogger("transformers.modeling_utils").addFilter(is_no_load_report)
    if sys.stderr.isatty():
        return
    if "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.disable_progress_bar()
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()


def run_script(main: Callable[[list[str]], int | None]):
    """Run a script with the arguments of the command line and end it with the exit code that it returns.

    A user's mistake ends it with one message and exit code 2; `--debug` shows the traceback. Of several processes
    the first of each machine prints the message.
    """
    quieten_libraries()
    script, arguments = sys.argv[0], sys.argv[1:]
    # followed by a value, --debug is a key of transformers.TrainingArguments
    flags = [
        i
        for i, word in enumerate(arguments)
        if word == "--debug" and "".join(arguments[i + 1 : i + 2])[:2] in ("", "--")
    ]
    try:
        sys.exit(main([word for i, word in enumerate(arguments) if i not in flags]))
    except (OSError, ValueError) as error:
        if flags or not is_users_mistake(error, script):
            raise
        if int(os.environ.get("LOCAL_RANK", 0)):
            time.sleep(PATIENCE)  # the launcher ends this process if the first has failed, too
        sys.stderr.write(f"{Path(script).name}: error: {error}\n")
        sys.exit(2)
