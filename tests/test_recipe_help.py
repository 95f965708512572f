"""`--help` of every recipe's script: its own text and its keys, with defaults and meanings."""

import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass, field, fields

import pytest
from transformers import TrainingArguments

from launching import ROOT
from mvd_hf import FinetuningArguments, MVDTrainingArguments
from mvd_hf.arguments import parse_arguments
from mvd_hf.data.arguments import DataArguments
from mvd_hf.finetuning.adaptation import AdaptationArguments
from mvd_hf.recipe_help import described_arguments, help_text
from mvd_hf.visualization.tokens import TokenFigureArguments

SCRIPTS = sorted(path for path in (ROOT / "recipes").rglob("*.py") if "def main(" in path.read_text())


@dataclass
class Keys:
    """What it is for.

    Args:
        first, second: what both are for,
            told in two lines.
        kind (`str`): another.

    Raises:
        ValueError: never.
    """

    first: int = 1
    second: list = field(default_factory=list)
    kind: str | None = None
    silent: bool = False


@dataclass
class MoreKeys(Keys):
    """More of it.

    And a second paragraph.

    Args:
        last: of the child.
    """

    last: str = ""


def test_entries_of_a_docstring_are_read_by_name():
    text = "what both are for, told in two lines."
    assert described_arguments(Keys) == {"first": text, "second": text, "kind": "another."}


def test_a_key_is_told_with_its_default_and_its_meaning():
    lines = help_text("The script.\n\nMore.", [Keys]).split("\n")
    assert lines[:3] == ["The script.", "", "More."]
    assert lines[4] == "What it is for."
    assert lines[5:7] == ["  --first 1", "      what both are for, told in two lines."]
    assert "  --second []" in lines
    assert "  --kind null" in lines
    assert lines[-1] == "  --silent false"


def test_keys_of_parents_are_told_with_those_of_the_child():
    text = help_text("", [MoreKeys])
    assert "More of it.\n\nAnd a second paragraph.\n  --first 1\n      what both are for" in text
    assert text.endswith("--last\n      of the child.")
    assert "and the keys of" not in text


@pytest.mark.parametrize("kind", [FinetuningArguments, DataArguments, TokenFigureArguments, AdaptationArguments])
def test_all_keys_of_ours_have_a_meaning_or_a_parent_that_gives_it(kind):
    text, foreign = help_text("", [kind]), {key.name for key in fields(TrainingArguments)}
    for key in fields(kind):
        if key.name not in foreign:
            assert f"--{key.name}" in text
            assert re.search(rf"--{key.name}\b.*\n      \w|--{key.name}\b.*\n      `", text), key.name


def test_inherited_keys_are_named_by_their_place():
    text = help_text("", [MVDTrainingArguments])
    assert "--base_learning_rate 0.00015\n      peak rate" in text
    assert text.endswith("and the keys of transformers.TrainingArguments")
    assert "--per_device_train_batch_size" not in text


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_ends_a_script_without_doing_anything(capsys, word):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["recipe.yaml", "--first", "2", word], Keys)
    assert ended.value.code == 0
    assert "--first 1" in capsys.readouterr().out


def test_there_are_scripts():
    assert len(SCRIPTS) > 12


def test_help_of_a_name_without_keys_does_nothing_else(capsys):
    spec = importlib.util.spec_from_file_location("publish_recipe", ROOT / "recipes" / "publish.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for words in (["model", "--help"], ["model", "-h"], ["-h"]):
        with pytest.raises(SystemExit):
            module.main(words)
    assert "--folder" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_has_help(script):
    ended = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert re.search(r"--\w+", ended.stdout)
    assert "Traceback" not in ended.stderr
