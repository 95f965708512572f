"""The report is what the numbers say: the page in the repository is rendered from its results; pictures are drawn."""

import copy
import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from launching import ROOT
from recipes.study.rendering import (
    PICTURES,
    accuracy_table,
    render,
    similarity_table,
    similarity_verdict,
    spread,
    write_report,
)
from recipes.study.results import ENOUGH_SEEDS
from recipes.study.scenes import PARTS, class_names

FOLDER = ROOT / "recipes" / "study"


@pytest.fixture
def results() -> dict:
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def test_the_page_in_the_repository_is_rendered_from_its_results(results):
    assert render(results) == (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in PICTURES:
        assert (FOLDER / "pictures" / f"{name}.png").exists()


def test_other_numbers_say_something_else(results):
    changed = copy.deepcopy(results)
    seeds = len(results["seeds"])
    tasks = changed["accuracies"]["finetune"]["test"]
    arms = {"image": (0.8, 0.5), "video": (0.6, 0.7), "both": (0.9, 0.7), "videomae": (0.5, 0.75)}
    for arm, (looks, motion) in (arms | {"both_two_masks": (0.9, 0.7), "scratch": (0.0625, 0.0625)}).items():
        tasks["appearance"][arm], tasks["motion"][arm] = [looks] * seeds, [motion] * seeds
    page = render(changed)
    verdict = "found in every seed" if seeds >= ENOUGH_SEEDS else f"seen in {seeds} of {seeds} seeds"
    assert f"on looks: +20.0 points, p = {2 ** (1 - seeds):.3f}; {verdict}" in page
    assert "co-taught above the video teacher's student, on motion: +0.0 points, p = 1.000; not found" in page
    assert f"co-taught above the video MAE, on motion: -5.0 points, p = {2 ** (1 - seeds):.3f}; the opposite" in page
    assert "was not reached by: from scratch." in page
    assert "no arm has learned either task" not in page


def test_arms_at_chance_are_not_compared(results):
    changed = copy.deepcopy(results)
    for task in ("appearance", "motion"):
        for arm in changed["accuracies"]["finetune"]["test"][task]:
            changed["accuracies"]["finetune"]["test"][task][arm] = [0.0625] * len(results["seeds"])
    assert "**Nothing about the paper's claims: in this setting no arm has learned either task.**" in render(changed)


def test_probes_that_learned_nothing_are_told(results):
    changed = copy.deepcopy(results)
    arms = changed["accuracies"]["attentive"]["test"]["motion"]
    for arm in arms:
        arms[arm] = [0.0625] * len(results["seeds"])
    (line,) = (line for line in render(changed).splitlines() if line.startswith("- attentive probe: "))
    assert line.endswith("On motion more than chance (6.2 % and two standard errors) was reached by no arm.")
    arms["video"] = [0.2] * len(results["seeds"])
    (line,) = (line for line in render(changed).splitlines() if line.startswith("- attentive probe: "))
    assert "was not reached by: from scratch; video MAE, no teacher; student of the image teacher" in line
    for arm in arms:
        arms[arm] = [0.2] * len(results["seeds"])
    (line,) = (line for line in render(changed).splitlines() if line.startswith("- attentive probe: "))
    assert line.endswith("On motion every arm is above chance (6.2 %) by more than two standard errors.")


def test_frozen_labels_are_told_as_they_are(results):
    changed = copy.deepcopy(results)
    linear, seeds = changed["accuracies"]["linear"]["test"], len(results["seeds"])
    for part in PARTS:
        linear[part] = {arm: [1 / len(class_names(part))] * seeds for arm in linear[part]}
    assert "features (linear probe, label by label) there is none on which all of five or more" in render(changed)
    linear["shape"]["image"] = [0.5] * seeds
    page = render(changed)
    if seeds >= ENOUGH_SEEDS:
        p = 2 ** (1 - seeds)
        assert f"- image teacher's student less video teacher's, on shape: +25.0 points, p = {p:.3f}." in page
        assert f"- co-taught less image teacher's student, on shape: -25.0 points, p = {p:.3f}." in page
    assert f"| shape | +25.0 ({seeds} up, 0 down), p = {2 ** (1 - seeds):.3f} | -25.0 (0 up, {seeds} down)" in page
    assert "| texture | at chance | at chance |" in page


def test_a_single_arm_is_compared_with_none(results):
    changed = copy.deepcopy(results)
    changed["accuracies"]["linear"]["test"] = {
        part: {"scratch": arms["scratch"]} for part, arms in results["accuracies"]["linear"]["test"].items()
    }
    page = render(changed)
    assert "No frozen features are compared" in page
    assert "No two of the arms that are compared were run." in page
    assert "Of the 0 comparisons" not in page


def test_similarities_are_compared_seed_by_seed():
    def matrix(value: float) -> list[list[float]]:
        return (np.full((3, 3), value) + np.diag([1 - value] * 3)).tolist()

    place = {"image": [matrix(0.9), matrix(0.8)], "video": [matrix(0.5), matrix(0.6)]}
    slot = {"image": place["video"], "video": place["image"]}
    results = {"study": {"arms": ["image", "video"]}, "similarities": {"place": place, "slot": slot}}
    assert "| student of the image teacher | 0.850 ± 0.071 | 0.550 ± 0.071 |" in similarity_table(results)
    text = similarity_verdict(results)
    assert "cosine at the same place, mean over places: +0.400, +0.200; p = 0.500, seen in 2 of 2 seeds" in text
    assert "cosine of the means over all places: -0.400, -0.200; p = 0.500, the opposite in 2 of 2 seeds" in text
    assert similarity_verdict({**results, "study": {"arms": ["image", "both"]}}) == ""


def test_the_arm_of_several_masks_is_told_with_its_fewer_clips(results):
    arms = results["study"]["arms"]
    text = "from 2 times fewer clips"
    assert (text in render(results)) == ("both_two_masks" in arms)


def test_unfinished_seeds_are_told(results):
    assert "not counted: 8, 9" in render({**results, "unfinished_seeds": [8, 9]})


def test_accuracies_have_their_spread_and_chance():
    table = accuracy_table({"motion": {"scratch": [0.1, 0.2], "both": [0.5, 0.5]}}, ["motion"])
    assert "| from scratch | 15.0 ± 7.1 |" in table
    assert "| chance | 6.2 |" in table
    assert spread([0.5]) == "50.0"


def test_a_report_is_written_with_its_pictures(results, tmp_path):
    write_report(results, tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == render(results)
    for name in PICTURES:
        with Image.open(tmp_path / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(2**24)) > 20


def test_the_recipe_needs_results(tmp_path):
    spec = importlib.util.spec_from_file_location("report_recipe", FOLDER / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ValueError, match=r"There are no results 'nowhere\.json'"):
        module.ReportArguments("nowhere.json")
