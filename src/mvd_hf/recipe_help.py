"""What `--help` says of a recipe's script: its text, its keys with their defaults, and what they mean."""

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass

HELP = frozenset(("--help", "-h"))
# how entries of a docstring's "Args:" begin: names, and behind a colon their text
ENTRY = re.compile(r"    (\w[\w, ]*?)(?: \([^)]*\))?: (.*)")
INDENT = " " * 6


def own_classes(kind: type) -> list[type]:
    """A dataclass and its parents, up to those of `transformers`."""
    return [base for base in kind.__mro__ if is_dataclass(base) and not base.__module__.startswith("transformers")]


def introduction(kind: type) -> str:
    """What a class's docstring says before its arguments."""
    return re.split(r"\n\n(?:Args|Raises):\n", inspect.cleandoc(kind.__doc__ or ""))[0]


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
    if key.default_factory is not MISSING:
        value = key.default_factory()
    elif key.default is not MISSING:
        value = key.default
    else:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def help_text(text: str | None, kinds: Sequence[type]) -> str:
    """A script's help.

    Args:
        text: the script's docstring.
        kinds: dataclasses of its keys. Of those that they inherit from `transformers` no more than the place is told.
    """
    parts = [inspect.cleandoc(text or "")]
    for kind in kinds:
        classes, described = own_classes(kind), described_arguments(kind)
        ours = {name for base in classes for name in base.__annotations__}
        lines = [introduction(kind)]
        for key in (key for key in fields(kind) if key.init and key.name in ours):
            lines.append(f"  --{key.name} {default_of(key)}".rstrip())
            lines += textwrap.wrap(described.get(key.name, ""), 110, initial_indent=INDENT, subsequent_indent=INDENT)
        parent = classes[-1].__mro__[1]
        if is_dataclass(parent):
            lines.append(f"  and the keys of {parent.__module__.split('.')[0]}.{parent.__name__}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def show_help(*kinds: type):
    """Print the running script's help and end it.

    Raises:
        SystemExit: always, with code 0.
    """
    sys.stdout.write(help_text(sys.modules["__main__"].__doc__, kinds) + "\n")
    raise SystemExit(0)
