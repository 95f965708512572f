"""Results of the study: predictions by part, the exact test, verdicts, and the merging of seeds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launching import ROOT
from mvd_hf import MVDConfig, MVDForFeatureDistillation, MVDForPixelReconstruction
from mvd_hf.arguments import parse_arguments
from mvd_hf.training.costs import distillation_parts, reconstruction_flops
from recipes.study.probes import PROBES, SIMILARITY
from recipes.study.results import (
    Comparison,
    chance_bound,
    collect,
    compare,
    compare_labels,
    finetuned_accuracies,
    merge_results,
    part_labels,
    part_predictions,
    sign_flip_p,
    write_results,
)
from recipes.study.scenes import PARTS, TASKS, class_names, class_number
from recipes.study.stages import ARMS, RECORD, Plan, StudyArguments


def test_predictions_and_labels_of_parts_follow_from_those_of_classes():
    names = class_names("motion")
    probabilities = np.zeros((2, len(names)))
    probabilities[0, names.index("left-clockwise-slower")] = 1
    # the most likely class differs from the most likely value of each part
    probabilities[1, names.index("up-clockwise-faster")] = 0.4
    probabilities[1, names.index("right-anticlockwise-slower")] = 0.3
    probabilities[1, names.index("right-anticlockwise-faster")] = 0.3
    found = part_predictions(probabilities, "motion")
    assert {part: list(values) for part, values in found.items()} == {
        "direction": [2, 3],
        "rotation": [0, 1],
        "speed": [1, 0],
    }
    labels = {"direction": "right", "rotation": "anticlockwise", "speed": "slower"}
    truth = part_labels(np.array([class_number("motion", labels)]), "motion")
    assert {part: PARTS[part][int(values[0])] for part, values in truth.items()} == labels


def test_the_exact_test_counts_all_sign_patterns():
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    assert sign_flip_p([1, 1, -1]) == 1
    assert sign_flip_p([3, 2, -1]) == 4 / 8  # |sum| of 4 or more: 4 (twice) and 6 (twice)
    assert sign_flip_p([1, 2, 3, 4, 5]) == 2 / 32
    assert sign_flip_p([0.0, 0.0]) == 1


def test_the_verdict_follows_from_the_differences():
    verdicts = {
        (1, 2, 1, 3, 1): "found in every seed",
        (1, 2): "seen in 2 of 2",
        (1, -2, 3): "not found: 2 of 3",
        (0, 0): "not found: 0 of 2",
        (-1, -2): "the opposite in 2 of 2",
    }
    for differences, verdict in verdicts.items():
        assert Comparison("", differences).verdict.startswith(verdict)
        assert "at chance" in Comparison("", differences, at_chance=True).verdict


def test_claims_are_compared_where_both_arms_were_run():
    accuracies = {
        "appearance": {"image": [0.6, 0.5], "video": [0.5, 0.5], "both": [0.7, 0.4]},
        "motion": {"image": [0.06, 0.06], "video": [0.07, 0.05], "both": [0.5, 0.4]},
    }
    found = compare(accuracies, 256)
    assert [(item.differences, item.at_chance) for item in found] == [
        ((10, 0), False),
        ((1, -1), True),
        ((11, -1), False),  # the sum of the first two
        ((10, -10), False),
        ((43, 35), False),
    ]
    assert not any("video MAE" in item.title or "masks" in item.title for item in found)


def test_the_bound_of_chance_falls_with_the_number_of_videos():
    assert chance_bound("motion", 10**8) == pytest.approx(1 / 16, abs=1e-3)
    assert chance_bound("motion", 256) == pytest.approx(0.0625 + 2 * (0.0625 * 0.9375 / 256) ** 0.5)


def predictions(folder: Path, task: str, correct: int, total: int = 8):
    """The predictions of a test with so many correct ones."""
    count = len(class_names(task))
    labels = np.arange(total) % count
    predicted = np.where(np.arange(total) < correct, labels, (labels + 1) % count)
    table = pd.DataFrame(
        {
            "label": labels,
            "is_correct": labels == predicted,
            "probabilities": list(np.eye(count, dtype=np.float32)[predicted]),
        }
    )
    (folder / "evaluation").mkdir(parents=True)
    table.to_parquet(folder / "evaluation" / "predictions.parquet")


def test_accuracies_of_a_fine_tuned_classifier(tmp_path):
    predictions(tmp_path, "motion", 6)
    found = finetuned_accuracies(tmp_path, "motion")
    assert found["motion"] == 6 / 8
    assert found["direction"] == 7 / 8  # class 7 was taken for 8, class 6 for 7, which has the same direction


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    """A study of two seeds with all stages finished, without any training."""
    (study,) = parse_arguments([str(ROOT / "recipes/study/small.yaml")], StudyArguments)
    plan = Plan(replace(study, output=str(tmp_path_factory.mktemp("study")), arms=list(ARMS)), ROOT / "recipes")
    for number, stage in enumerate(plan.stages()):
        folder = plan.folder / stage.name
        if stage.kind == "finetune":
            predictions(folder, stage.keys["label_column"], correct=2 + 4 * (stage.keys["seed"] == 1))
        elif stage.kind == "probe":
            folder.mkdir(parents=True)
            columns = dict.fromkeys((*PARTS, *TASKS), 0.5)
            found = {method: {"validation": columns, "test": columns} for method in ("linear", "knn", "attentive")}
            (folder / PROBES).write_text(json.dumps(found))
            similar = np.full((4, 4), 0.25 * (1 + stage.keys["seed"])) + np.diag([0.5] * 4)
            (folder / SIMILARITY).write_text(json.dumps({"place": similar.tolist(), "slot": similar.tolist()}))
        else:
            name = stage.keys.get("model", "mvd-b")
            teachers = dict.fromkeys(stage.keys.get("teachers", ["image"]), 64)
            config = MVDConfig.from_name(name, **stage.keys["config"])
            config.teacher_dims = teachers
            kind = MVDForFeatureDistillation if name == "mvd-b" else MVDForPixelReconstruction
            kind(config).save_pretrained(folder)
        history = [{"step": step, "loss": 1.0 / step + stage.keys["seed"]} for step in range(1, 101)]
        record = {"keys": stage.keys, "seconds": float(number), "history": history}
        (folder / RECORD).write_text(json.dumps(record))
    return plan


@pytest.mark.slow
def test_results_of_all_seeds(plan, tmp_path):
    results = collect(plan, "mine")
    assert (results["setting"], results["seeds"], results["unfinished_seeds"]) == ("mine", [0, 1], [])
    assert set(results["accuracies"]["finetune"]["test"]["motion"]) == set(plan.study.arms)
    assert results["accuracies"]["finetune"]["test"]["motion"]["both"] == [0.25, 0.75]
    assert results["accuracies"]["knn"]["validation"]["palette"]["image"] == [0.5, 0.5]
    assert [seed[0] for seed in results["similarities"]["place"]["image"]] == [[0.75, *[0.25] * 3], [1, *[0.5] * 3]]
    curve = results["losses"]["both"]["loss"]
    assert len(curve) == 40
    assert curve[0] == [1, 1.5]
    assert curve[-1] == [100, 0.51]
    assert results["stages"] == {"count": 50, "seconds": sum(range(50))}

    config = MVDConfig.from_pretrained(plan.folder / "seed0/both/encoder")
    teachers = {name: str(plan.folder / f"seed0/{name}_teacher") for name in ("image", "video")}
    per_clip = sum(part.training for part in distillation_parts(config, teachers))
    clips = 512 * plan.study.student["num_train_epochs"]
    assert results["tflops"]["both"]["own"] == pytest.approx(per_clip * clips / 1e12, abs=1e-3)
    # two masks each of half the clips: the student does as much, its teachers half as much
    halved = sum(part.training for part in distillation_parts(config, teachers, 2)) / 2
    assert results["tflops"]["both_two_masks"]["own"] == pytest.approx(halved * clips / 1e12, abs=1e-3)
    assert halved < per_clip
    config = MVDConfig.from_pretrained(plan.folder / "seed0/image_teacher")
    assert results["tflops"]["image"]["teachers"] == pytest.approx(
        reconstruction_flops(config) * 512 * plan.study.image_teacher["num_train_epochs"] / 1e12, abs=1e-3
    )
    write_results(results, tmp_path / "there" / "results.json")
    assert json.loads((tmp_path / "there" / "results.json").read_text()) == results


@pytest.fixture
def without_costs(monkeypatch):
    """Leave out the counting of FLOPs, which takes seconds."""
    monkeypatch.setattr("recipes.study.results.Collection.costs", lambda self: {"both": {"own": 1.0, "teachers": 2.0}})


@pytest.mark.usefixtures("without_costs")
def test_an_unfinished_seed_is_left_out_and_named(plan):
    records = [plan.folder / f"seed{seed}/both/probe" / RECORD for seed in (1, 0)]
    contents = [record.read_text() for record in records]
    try:
        records[0].unlink()
        results = collect(plan, "mine")
        assert (results["seeds"], results["unfinished_seeds"]) == ([0], [1])
        assert results["accuracies"]["finetune"]["test"]["motion"]["both"] == [0.25]
        records[1].unlink()
        with pytest.raises(ValueError, match=str(plan.folder)):
            collect(plan, "mine")
    finally:
        for record, content in zip(records, contents, strict=True):
            record.write_text(content)


def of_seeds(plan: Plan, *seeds: int) -> dict:
    """The results of some seeds."""
    return collect(Plan(replace(plan.study, seeds=list(seeds)), plan.recipes), "mine")


def flat(values):
    """All numbers of nested mappings and lists."""
    for value in values.values() if isinstance(values, dict) else values:
        yield from flat(value) if isinstance(value, dict | list) else [value]


@pytest.mark.usefixtures("without_costs")
def test_merged_seeds_equal_seeds_run_together(plan):
    first, second, together = of_seeds(plan, 0), of_seeds(plan, 1), of_seeds(plan, 0, 1)
    merged = merge_results(first, second)
    for key in ("seconds", "losses"):
        assert np.allclose(*(list(flat(results.pop(key))) for results in (merged, together)), atol=0.06)
    assert merged == together

    first |= {"unfinished_seeds": [1, 2], "remarks": ["one", "both"], "device": "CPU (x86_64)"}
    second |= {"remarks": ["both", "two"], "device": "H200", "versions": first["versions"] | {"torch": "9.9"}}
    second["study"]["processes"] += 6  # seeds of one setting may run with any number of processes
    merged = merge_results(first, second)
    assert (merged["seeds"], merged["unfinished_seeds"]) == ([0, 1], [2])
    assert merged["remarks"] == ["one", "both", "two"]
    assert merged["device"] == "CPU (x86_64) and H200"
    assert merged["versions"]["torch"] == f"{first['versions']['torch']} and 9.9"
    third = merge_results(merged, first | {"seeds": [7]})  # a mean over three seeds of losses 1, 2 and 1
    assert third["losses"]["both"]["loss"][0] == [1, pytest.approx(4 / 3, abs=1e-4)]


@pytest.mark.usefixtures("without_costs")
def test_results_of_two_settings_or_with_a_common_seed_are_not_merged(plan):
    first, other = of_seeds(plan, 0), of_seeds(plan, 1)
    with pytest.raises(ValueError, match=r"\[0\]"):
        merge_results(first, first)
    with pytest.raises(ValueError, match="mine and small"):
        merge_results(first, other | {"setting": "small"})
    for change in ({"encoder": {}, "student": {}}, {"more": 1}):
        with pytest.raises(ValueError, match=", ".join(change)):
            merge_results(first, other | {"study": other["study"] | change})


def test_labels_of_frozen_features_are_compared_pair_by_pair():
    arms = {part: {arm: [1 / len(class_names(part))] * 6 for arm in ("image", "video", "both")} for part in PARTS}
    arms["palette"]["image"] = [0.45, 0.45, 0.55, 0.45, 0.45, 0.35]
    arms["direction"]["video"] = [0.5, 0.5, 0.5, 0.5, 0.5, 0.2]
    labels = compare_labels(arms, 1000)
    assert list(labels) == list(PARTS)
    assert labels["palette"][0].differences == (20, 20, 30, 20, 20, 10)
    assert labels["palette"][1].mean == pytest.approx(-20)
    assert [item.is_unanimous for item in labels["palette"]] == [True, True, False]
    assert [item.at_chance for item in labels["palette"]] == [False, False, True]
    assert (labels["direction"][0].at_chance, labels["direction"][0].is_unanimous) == (False, False)
    assert all(item.at_chance for item in labels["order"])
    four = {part: {arm: values[:4] for arm, values in of.items()} for part, of in arms.items()}
    assert not compare_labels(four, 1000)["palette"][0].is_unanimous  # too few seeds
