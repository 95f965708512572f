"""What `--help` says of a recipe's script: its text, its keys with their defaults, and what they mean."""

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields

HELP = frozenset(("--help", "-h"))
# how entries of a docstring's "Args:" begin: names, and behind a colon their text
ENTRY = re.compile(r"    (\w[\w, ]*?)(?: \([^)]*\))?: (.*)")
INDENT = " " * 6


def described_arguments(kind: type) -> dict[str, str]:
    """What a class's own docstring says of its arguments, by name; several that share a text all get it."""
    _, _, text = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")
    found: dict[str, str] = {}
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
        own = [key for key in fields(kind) if key.init and key.name in kind.__annotations__]
        described = described_arguments(kind)
        lines = [(kind.__doc__ or "").strip().split("\n")[0]]
        for key in own:
            lines.append(f"  --{key.name} {default_of(key)}".rstrip())
            lines += textwrap.wrap(described.get(key.name, ""), 110, initial_indent=INDENT, subsequent_indent=INDENT)
        parents = [base for base in kind.__mro__[1:] if base.__module__.startswith("transformers")]
        if parents:
            lines.append(f"  and the keys of {parents[0].__module__.split('.')[0]}.{parents[0].__name__}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def show_help(*kinds: type):
    """Print the running script's help and end it.

    Raises:
        SystemExit: always, with code 0.
    """
    sys.stdout.write(help_text(sys.modules["__main__"].__doc__, kinds) + "\n")
    raise SystemExit(0)
