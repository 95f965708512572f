"""The command `mvd-hf`, the names of recipes, and what a wheel holds."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from launching import ROOT, environment
from mvd_hf import cli
from mvd_hf.arguments import find_recipe, named_recipes
from mvd_hf.recipes import FOLDER


def run(monkeypatch, *words: str) -> int:
    """The exit code of `mvd-hf` with these words."""
    monkeypatch.setattr(sys, "argv", ["mvd-hf", *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        return cli.main()
    except SystemExit as end:
        return end.code


def test_every_training_script_is_a_command_and_every_command_a_script(monkeypatch, capsys):
    scripts = {path.name for path in FOLDER.glob("*.py")}
    assert scripts == {script for script in cli.COMMANDS.values() if "/" not in script}
    assert run(monkeypatch) == run(monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in (*cli.COMMANDS, "recipes"))


def test_every_recipe_is_listed_by_a_name_that_finds_it(monkeypatch, capsys):
    assert run(monkeypatch, "recipes") == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 119
    files = {path for path in FOLDER.glob("*/*.yaml") if path.parent.name not in ("accelerate", "study")}
    command, found = "", set()
    for line in printed.splitlines():
        if line.startswith("mvd-hf "):
            command = line.split()[1]
        elif line.startswith("  "):
            found.add(find_recipe(line.split()[0], FOLDER / cli.COMMANDS[command]))
    assert found == files


def test_a_name_of_several_recipes_or_of_none_is_refused(tmp_path):
    script = FOLDER / "finetune.py"
    with pytest.raises(ValueError, match="mvd-vit-b-from-vit-l/finetune_k400, mvd-vit-b-from-vit-l/finetune_ssv2"):
        find_recipe("mvd-vit-b-from-vit-l", script)
    with pytest.raises(ValueError, match=r"'mvd-vit-b-from-vit-1'.*Did you mean 'mvd-vit-b-from-vit-l'"):
        find_recipe("mvd-vit-b-from-vit-1", FOLDER / "distill.py")
    assert named_recipes(tmp_path / "distill.py") == {}
    assert find_recipe("tiny.yaml", script) == Path("tiny.yaml")


def test_a_command_runs_its_script(monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    assert run(monkeypatch, "cost", "mvd-vit-b-from-vit-l", "--mfu=0.5") is None
    assert "TFLOPs per clip" in caplog.text
    assert "MFU 0.5" in caplog.text
    assert run(monkeypatch, "distill", "--help") == 0
    assert "--teachers" in capsys.readouterr().out
    assert run(monkeypatch, "distill", "no-such-recipe") == 2
    assert "'no-such-recipe'" in capsys.readouterr().err


def test_an_unknown_command_is_one_message(monkeypatch, capsys):
    assert run(monkeypatch, "distil") == 2
    assert capsys.readouterr().err == "mvd-hf: error: There is no command 'distil'. Did you mean 'distill'?\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A folder with the contents of the wheel."""
    build = pytest.importorskip("hatchling.build")
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        name = build.build_wheel(str(folder))
    with zipfile.ZipFile(folder / name) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_a_wheel_has_the_recipes_without_benchmark_and_study(wheel):
    recipes = wheel / "mvd_hf" / "recipes"
    assert (recipes / "mvd-vit-b-from-vit-l" / "distill.yaml").exists()
    assert (wheel / "mvd_hf" / "model_cards" / "zoo.yaml").exists()
    assert not {"benchmark", "study"} & {path.name for path in recipes.iterdir()}
    assert not (wheel / "recipes").exists()
    assert {script for script in cli.COMMANDS.values() if not (recipes / script).exists()} == set()


@pytest.mark.slow
def test_a_script_of_a_wheel_runs_as_a_module_from_another_folder(wheel, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "mvd_hf.recipes.cost", "tiny"],
        env=environment(PYTHONPATH=os.pathsep.join([str(wheel)])),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 2
    assert "outputs/tiny/image_teacher" in result.stderr  # the recipe was found, its teachers are not trained
