"""The report follows from its numbers, and the page in the repository is rendered from its results."""

import copy
import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from launching import ROOT
from recipes.study.rendering import (
    FIGURES,
    accuracy_table,
    render,
    similarity_table,
    similarity_verdict,
    spread,
    write_report,
)
from recipes.study.scenes import PARTS, TASKS, class_names

FOLDER = ROOT / "recipes" / "study"


@pytest.fixture
def results() -> dict:
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def line_of(page: str, start: str) -> str:
    """The only line of a page that starts like this."""
    (line,) = (line for line in page.splitlines() if line.startswith(start))
    return line


def test_the_page_in_the_repository_is_rendered_from_its_results(results):
    assert render(results) == (FOLDER / "README.md").read_text(encoding="utf-8")
    assert {path.stem for path in (FOLDER / "figures").glob("*.png")} == set(FIGURES)


def test_claims_follow_from_the_accuracies(results):
    count = len(results["seeds"])
    arms = {"image": (0.8, 0.5), "video": (0.6, 0.7), "both": (0.9, 0.7), "videomae": (0.5, 0.75)}
    arms |= {"both_two_masks": (0.9, 0.7), "scratch": (0.0625, 0.0625)}
    for number, task in enumerate(TASKS):
        results["accuracies"]["finetune"]["test"][task] = {arm: [arms[arm][number]] * count for arm in arms}
    page, p = render(results), f"p = {2 ** (1 - count):.3f}"
    assert f"+20.0 points, {p}; found" in line_of(page, "- image teacher's student above video teacher's, on appear")
    assert "+0.0 points, p = 1.000; not found" in line_of(
        page, "- co-taught above the video teacher's student, on mot"
    )
    assert f"-5.0 points, {p}; the opposite" in line_of(page, "- co-taught above the video MAE, on motion")
    assert "from scratch" in line_of(page, "On appearance, ")
    for task in TASKS:
        results["accuracies"]["finetune"]["test"][task] = {arm: [0.0625] * count for arm in arms}
    found = render(results).partition("## What was found")[2].partition("comparisons of frozen")[0]
    assert "points" not in found


def test_probes_at_chance_are_named(results):
    arms, count = results["accuracies"]["attentive"]["test"]["motion"], len(results["seeds"])

    def motion() -> str:
        return line_of(render(results), "- attentive probe: ").partition("On motion, ")[2]

    arms |= {arm: [0.0625] * count for arm in arms}
    assert "no arm" in motion()
    arms["video"] = [0.2] * count
    assert "from scratch; video MAE, no teacher; student of the image teacher" in motion()
    assert "student of the video teacher" not in motion()
    arms |= {arm: [0.2] * count for arm in arms}
    assert "every arm" in motion()


def test_labels_of_frozen_features_are_compared_where_two_arms_were_run(results):
    linear, count = results["accuracies"]["linear"]["test"], len(results["seeds"])
    for part in PARTS:
        linear[part] = {arm: [1 / len(class_names(part))] * count for arm in linear[part]}
    assert ", on shape: " not in render(results)
    linear["shape"]["image"] = [0.5] * count
    page, p = render(results), f"p = {2 ** (1 - count):.3f}"
    assert f"- image teacher's student minus video teacher's, on shape: +25.0 points, {p}." in page
    assert f"- co-taught minus image teacher's student, on shape: -25.0 points, {p}." in page
    assert f"| shape | +25.0 ({count} up, 0 down), {p} | -25.0 (0 up, {count} down), {p} |" in page
    assert "| texture | at chance | at chance |" in page
    alone = copy.deepcopy(results)
    alone["accuracies"]["linear"]["test"] = {part: {"scratch": arms["scratch"]} for part, arms in linear.items()}
    assert "minus" not in render(alone).partition("## Similarity")[0]


def test_similarities_are_compared_seed_by_seed():
    def matrix(value: float) -> list[list[float]]:
        return (np.full((3, 3), value) + np.diag([1 - value] * 3)).tolist()

    place = {"image": [matrix(0.9), matrix(0.8)], "video": [matrix(0.5), matrix(0.6)]}
    slot = {"image": place["video"], "video": place["image"]}
    results = {"study": {"arms": ["image", "video"]}, "similarities": {"place": place, "slot": slot}}
    assert "| student of the image teacher | 0.850 ± 0.071 | 0.550 ± 0.071 |" in similarity_table(results)
    first, second = similarity_verdict(results).split("Image minus video")[1:]
    assert "+0.400, +0.200; p = 0.500, seen in 2 of 2 seeds" in first
    assert "-0.400, -0.200; p = 0.500, the opposite in 2 of 2 seeds" in second
    assert similarity_verdict({**results, "study": {"arms": ["image", "both"]}}) == ""


def test_unfinished_seeds_are_named(results):
    assert "8, 9" in render({**results, "unfinished_seeds": [8, 9]})


def test_accuracies_have_their_spread_and_chance():
    table = accuracy_table({"motion": {"scratch": [0.1, 0.2], "both": [0.5, 0.5]}}, ["motion"])
    assert "| from scratch | 15.0 ± 7.1 |" in table
    assert "| chance | 6.2 |" in table
    assert spread([0.5]) == "50.0"


@pytest.mark.slow
def test_a_report_is_written_with_its_figures(results, tmp_path):
    write_report(results, tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == render(results)
    for name in FIGURES:
        with Image.open(tmp_path / "figures" / f"{name}.png") as figure:
            assert min(figure.size) > 200
            assert len(figure.convert("RGB").getcolors(2**24)) > 20


def test_the_recipe_needs_results():
    spec = importlib.util.spec_from_file_location("report_recipe", FOLDER / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ValueError, match=r"'nowhere\.json'"):
        module.ReportArguments("nowhere.json")
