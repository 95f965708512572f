"""The command `mvd-hf`: `mvd-hf distill tiny --num_train_epochs 10` runs `recipes/distill.py` with these arguments."""

import ast
import difflib
import runpy
import sys
import textwrap
from collections import Counter
from functools import partial
from importlib.metadata import version

from .arguments import HELP, named_recipes, recipe_header
from .recipes import FOLDER

# by name: a script in the folder of the recipes
COMMANDS = {
    "tiny": "tiny/run.py",
    "pretrain": "pretrain.py",
    "distill": "distill.py",
    "finetune": "finetune.py",
    "three-splits": "three_splits.py",
    "detect": "detect.py",
    "tiny-detection": "tiny/run_detection.py",
    "evaluate": "evaluate.py",
    "probe": "probe.py",
    "propagate": "propagate.py",
    "prepare": "prepare.py",
    "audit": "audit.py",
    "transcode": "transcode.py",
    "convert": "convert.py",
    "visualize": "visualize.py",
    "demo": "demo.py",
    "export": "export.py",
    "publish": "publish.py",
    "cost": "cost.py",
    "teachers": "teachers.py",
}
# commands that take a recipe
TRAINING = ("pretrain", "distill", "finetune", "detect")
WIDTH = 115


def in_columns(texts: dict[str, str]) -> str:
    """Names and texts side by side, a line each."""
    width = max(map(len, texts))
    shorten = partial(textwrap.shorten, width=WIDTH - width, placeholder=" ...", break_on_hyphens=False)
    return "\n".join(f"  {name:{width}}  {shorten(text)}" for name, text in texts.items())


def describe_commands() -> str:
    """The commands, each with the first line of its script."""
    texts = {
        name: ast.get_docstring(ast.parse((FOLDER / script).read_text(encoding="utf-8"))).splitlines()[0]
        for name, script in COMMANDS.items()
    }
    texts["recipes"] = f"List the recipes for {', '.join(TRAINING)}."
    return f"""\
mvd-hf COMMAND [arguments] runs a script of mvd_hf {version("mvd_hf")}. mvd-hf COMMAND --help lists its keys.

{in_columns(texts)}

On several GPUs: accelerate launch -m mvd_hf.recipes.distill, with the same arguments as mvd-hf distill.
"""


def describe_recipes() -> str:
    """The recipes by command, each with the first sentence of its comment."""
    parts = []
    for command in TRAINING:
        named = named_recipes(FOLDER / COMMANDS[command])
        folders = Counter(name.partition("/")[0] for name in named)
        texts = {}
        for name, path in named.items():
            short = name.partition("/")[0]
            texts[short if folders[short] == 1 else name] = recipe_header(path).partition(". ")[0]
        parts.append(f"mvd-hf {command} RECIPE\n\n{in_columns(texts)}\n")
    return "\n".join([*parts, f"The files are in {FOLDER}. A recipe of your own can extend one: `extends: path`.\n"])


def main() -> int:
    """Run the script of the command, or print what there is; gives the exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in HELP:
        sys.stdout.write(describe_commands())
        return 0
    if name == "recipes":
        sys.stdout.write(describe_recipes())
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else "mvd-hf --help lists the commands."
        sys.stderr.write(f"mvd-hf: error: There is no command {name!r}. {hint}\n")
        return 2
    script = FOLDER / COMMANDS[name]
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))  # as `python script` does
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
