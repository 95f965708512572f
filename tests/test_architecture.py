"""Imports point downwards, and the files that travel to the Hub stand on their own."""

import ast
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "mvd_hf"
MODEL = "model"
# what each module may import of ours
ALLOWED = {
    "masking": set(),
    "augmentation": {MODEL},
    "teacher_families": {MODEL},
    "teachers": {"teacher_families"},
    "toy": set(),
    "recipe_help": set(),
    "recipe_arguments": {"recipe_help"},
    "collation": set(),
    "mixing": set(),
    "sources": {MODEL},
    "frame_memory": {MODEL, "sources"},
    "clips": {MODEL, "collation", "frame_memory", "sources"},
    "streaming": {MODEL, "clips", "sources"},
    "data": {MODEL, "augmentation", "clips", "masking", "mixing", "sources", "streaming"},
    "metrics": set(),
    "digests": set(),
    "views": {MODEL, "digests", "sources"},
    "evaluation": {MODEL, "digests", "metrics", "sources", "views"},
    "probing": {MODEL, "digests", "evaluation", "metrics", "optimization", "views"},
    "reports": {MODEL, "evaluation", "sources"},
    "classifiers": {MODEL, "conversion", "teacher_families"},
    "preparation": {MODEL, "data", "evaluation", "signatures", "sources", "splitting"},
    "adaptation": {
        MODEL,
        "classifiers",
        "data",
        "evaluation",
        "finetuning",
        "metrics",
        "preparation",
        "probing",
        "reports",
        "run_record",
        "views",
    },
    "finetuning": {MODEL, "mixing", "optimization", "run_record", "training", "training_arguments"},
    "bookkeeping": set(),
    "optimization": {MODEL},
    "interruption": set(),
    "run_record": set(),
    "licences": set(),
    "usage": {"toy"},
    "card_results": {"digests"},
    "model_cards": {MODEL, "card_results", "licences", "run_record", "usage"},
    "training_arguments": set(),
    "samplers": {"clips", "streaming"},
    "training": {
        *(MODEL, "bookkeeping", "clips", "collation", "interruption", "optimization", "samplers", "streaming"),
        *("licences", "model_cards", "run_record", "training_arguments"),
    },
    "health": set(),
    "distillation": {MODEL, "collation", "health", "run_record", "training"},
    "conversion": {MODEL, "model_cards", "run_record", "usage"},
    "publishing": {MODEL, "card_results", "licences", "model_cards", "run_record", "usage"},
    "dataset_publishing": {"licences", "model_cards", "publishing", "run_record", "sources"},
    "zoo": {MODEL, "card_results", "model_cards", "recipe_arguments", "usage"},
    "audit": {MODEL, "sources"},
    "signatures": {MODEL, "audit", "sources"},
    "near_duplicates": {"signatures"},
    "source_names": set(),
    "splitting": {"audit", "near_duplicates", "signatures", "source_names", "sources"},
    "protocols": set(),
    "three_splits": {"recipe_arguments"},
    "costs": {MODEL},
    "average_precision": set(),
    "ava_actions": set(),
    "ava": {"ava_actions", "average_precision"},
    "video_folders": {MODEL},
    "ava_audit": {MODEL, "ava", "ava_actions", "average_precision", "video_folders"},
    "detection_augmentation": {MODEL, "augmentation"},
    "key_frames": {MODEL, "ava", "collation", "video_folders"},
    "detection": {
        MODEL,
        "ava",
        "ava_actions",
        "clips",
        "collation",
        "detection_augmentation",
        "digests",
        "key_frames",
        "samplers",
        "training",
        "training_arguments",
        "video_folders",
    },
    "toy_detection": {"toy"},
    "film_strips": {"toy"},
    "detection_pictures": {MODEL, "ava", "film_strips"},
    "viewing": {MODEL, "sources", "teacher_families", "teachers"},
    "feature_similarity": {"data", "film_strips", "teacher_families", "viewing"},
    "token_pictures": {"film_strips", "teacher_families", "viewing"},
    "reconstruction_pictures": {MODEL, "film_strips", "masking", "viewing"},
    "attention_pictures": {MODEL, "film_strips", "viewing"},
    "training_curves": {"film_strips"},
    "exporting": {MODEL, "classifiers"},
    "window_predictions": {MODEL},
    "demo": {
        *(MODEL, "classifiers", "feature_similarity", "film_strips", "masking", "reconstruction_pictures"),
        *("viewing", "window_predictions"),
    },
    "toy_scenes": {"toy"},
    "study": {"recipe_arguments", "toy_scenes"},
    "study_probes": {
        *(MODEL, "classifiers", "feature_similarity", "metrics", "probing", "sources", "toy_scenes", "views"),
    },
    "study_results": {MODEL, "costs", "study", "study_probes", "toy_scenes"},
    "study_report": {"feature_similarity", "study", "study_results", "toy_scenes"},
    "benchmark_reports": set(),
    "benchmark_videos": set(),
    "benchmark_decoders": {MODEL, "benchmark_reports"},
    "benchmark_data": {
        MODEL,
        "augmentation",
        "benchmark_decoders",
        "benchmark_reports",
        "benchmark_videos",
        "clips",
        "collation",
        "masking",
        "toy",
    },
    "benchmark_timing": set(),
    "benchmark_phases": set(),
    "benchmark_reference": {MODEL, "optimization", "teachers"},
    "benchmark_models": {MODEL, "benchmark_reports", "benchmark_timing", "costs", "masking"},
    "benchmark_steps": {
        MODEL,
        "benchmark_models",
        "benchmark_phases",
        "benchmark_reference",
        "benchmark_reports",
        "benchmark_timing",
        "costs",
        "distillation",
        "masking",
        "recipe_arguments",
        "teachers",
        "training_arguments",
    },
    "benchmark_training": {
        "benchmark_models",
        "benchmark_phases",
        "benchmark_reports",
        "benchmark_steps",
        "benchmark_timing",
        "benchmark_videos",
        "distillation",
        "training_arguments",
    },
}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
MODEL_FILES = sorted(path for path in (PACKAGE / MODEL).glob("*.py") if path.stem != "__init__")


def imports_of(path: Path) -> list[ast.ImportFrom]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level > 0]


def test_every_module_has_a_place():
    assert sorted(ALLOWED) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    imported = {node.module.split(".")[0] for node in imports_of(PACKAGE / f"{module}.py")}
    assert imported <= ALLOWED[module]


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


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_first_line_says_what_the_file_is_for_and_nothing_prints(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text == "" or ast.get_docstring(tree)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not any(node.func.id == "print" for node in calls)
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))


@pytest.mark.parametrize("path", sorted((PACKAGE.parents[1] / "recipes").rglob("*.py")), ids=lambda path: path.stem)
def test_recipes_stay_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 90


def test_public_names_exist():
    import mvd_hf

    assert len(set(mvd_hf.__all__)) == len(mvd_hf.__all__)
    assert all(hasattr(mvd_hf, name) for name in mvd_hf.__all__)
    assert "mvd_hf" in sys.modules


def test_the_package_knows_its_version():
    import mvd_hf

    assert f'version = "{mvd_hf.__version__}"' in (PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
