"""Write the notebooks of `docs/notebooks` from the Python scripts beside them.

python docs/render_notebooks.py

`# %%` begins a cell of code, `# %% [markdown]` one of text; `# !command` is a command of the shell.
"""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).with_name("notebooks")


def cells_of(script: Path) -> list[tuple[str, str]]:
    """The cells of a script: their kind, `code` or `markdown`, and their text."""
    _, *parts = re.split(r"^# %%(.*)\n", script.read_text(encoding="utf-8"), flags=re.MULTILINE)
    cells = []
    for mark, text in zip(parts[::2], parts[1::2], strict=True):
        kind, prefix = ("markdown", "# ?") if "markdown" in mark else ("code", "# (?=!|    --)")
        cells.append((kind, re.sub(f"^{prefix}", "", text, flags=re.MULTILINE).strip()))
    return cells


def render(script: Path) -> str:
    """The notebook of a script, without outputs."""
    cells = []
    for number, (kind, text) in enumerate(cells_of(script)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for script in FOLDER.glob("*.py"):
        script.with_suffix(".ipynb").write_text(render(script), encoding="utf-8")
