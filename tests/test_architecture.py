"""Imports point downwards, and the files that travel to the Hub stand on their own."""

import ast
import importlib
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "mvd_hf"
MODEL = "model"
# the packages, and the single files beside them, from the ground up: each imports only from lower floors
FLOORS = [
    {MODEL},
    {"arguments"},
    {"teachers", "data"},
    {"hub", "evaluation", "curation"},
    {"training"},
    {"detection", "finetuning"},
    {"visualization"},
    {"recipes"},
    {"cli"},
]
MODEL_FILES = sorted(path for path in (PACKAGE / MODEL).glob("*.py") if path.stem != "__init__")


def imports_of(path: Path) -> list[ast.ImportFrom]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level > 0]


def imported_files(path: Path) -> set[Path]:
    """The files of ours that a file imports from."""
    found = set()
    for node in imports_of(path):
        place = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        names = [place / f"{alias.name}.py" for alias in node.names]
        found |= {name for name in names if name.exists()} or {place.with_suffix(".py")}
    return found


def room_of(path: Path) -> str:
    """The package of a file, or its own name where it lies beside the packages."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_packages_import_from_lower_floors_only():
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    files = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in floor_of]
    assert {room_of(path) for path in files} == set(floor_of)
    upwards = [
        f"{path.relative_to(PACKAGE)} imports {imported.relative_to(PACKAGE)}"
        for path in files
        for imported in imported_files(path)
        if room_of(path) != room_of(imported) and floor_of[room_of(imported)] >= floor_of[room_of(path)]
    ]
    assert upwards == []


def test_files_do_not_import_each_other_in_a_circle():
    graph = {path: imported_files(path) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
def test_model_files_import_only_their_siblings(path):
    text = path.read_text(encoding="utf-8")
    siblings = {file.stem for file in MODEL_FILES}
    for node in imports_of(path):
        assert node.level == 1
        assert node.module in siblings
    # transformers looks for relative imports with a regular expression, in comments and docstrings too
    relative = re.findall(r"^\s*(?:from|import)\s+\.(\S*)", text, re.MULTILINE)
    assert set(relative) == {node.module for node in imports_of(path)}
    assert "from __future__ import annotations" not in text
    assert "mvd_hf" not in {
        alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names
    }


def test_first_lines_say_what_files_are_for_and_nothing_prints():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        assert text == "" or ast.get_docstring(tree), path
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        assert not any(node.func.id == "print" for node in calls), path
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), path


def test_recipes_stay_thin():
    scripts = set((PACKAGE.parents[1] / "recipes").glob("*.py")) - {PACKAGE.parents[1] / "recipes" / "three_splits.py"}
    long = [path.name for path in scripts if len(path.read_text(encoding="utf-8").splitlines()) > 100]
    assert long == []


@pytest.mark.parametrize("name", ["mvd_hf", *(f"mvd_hf.{room}" for floor in FLOORS[:-1] for room in sorted(floor))])
def test_public_names_exist(name):
    package = importlib.import_module(name)
    names = getattr(package, "__all__", [])
    assert len(set(names)) == len(names)
    assert all(hasattr(package, public) for public in names)


def test_the_package_knows_its_version():
    import mvd_hf

    assert f'version = "{mvd_hf.__version__}"' in (PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
