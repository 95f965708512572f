"""Write `docs/api.md`, the reference of the public names, from their signatures and docstrings.

python docs/render_api.py
"""

import ast
import importlib
import inspect
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "mvd_hf"
HEAD = """# API reference

Written by `python docs/render_api.py` from the docstrings; do not edit it by hand. Models and processors also
have the methods of their parents in transformers.
"""


def public_names(stub: Path) -> list[str]:
    """The names that the stub of a package exports, in its order."""
    nodes = ast.parse(stub.read_text(encoding="utf-8")).body
    return [alias.asname for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names if alias.asname]


def signature_of(thing) -> str:
    """The arguments of a function or class with their defaults; empty if there are none to name."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return ""
    plain = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    texts = [re.sub(r" at 0x\w+|<(factory)>", r"\1", str(parameter)) for parameter in plain]
    return ", ".join(texts) if len(texts) <= 15 else ", ".join(texts[:3]) + ", ..."


def as_markdown(docstring: str) -> str:
    """A docstring whose sections are lists."""
    lines = []
    for line in inspect.cleandoc(docstring).split("\n"):
        if re.fullmatch(r"\w+:", line):
            lines += [f"**{line[:-1]}**", ""]
        elif re.match(r"    \S", line):
            lines.append(f"- {line.strip()}")
        elif line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines)


def render() -> str:
    """The page: a section per package, an entry per name."""
    parts, seen = [HEAD], set()
    for stub in sorted(PACKAGE.rglob("__init__.pyi"), key=lambda path: (len(path.parts), path)):
        package = ".".join(["mvd_hf", *stub.parent.relative_to(PACKAGE).parts])
        module = importlib.import_module(package)
        parts.append(f"## {package}\n")
        for name in public_names(stub):
            thing = getattr(module, name)
            if id(thing) in seen or not callable(thing):
                continue
            seen.add(id(thing))
            parts.append(
                f"### {name}\n\n```text\n{name}({signature_of(thing)})\n```\n\n{as_markdown(thing.__doc__ or '')}\n"
            )
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(render(), encoding="utf-8")
