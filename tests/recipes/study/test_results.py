"""The study's numbers: parts of a task's predictions, the exact test, and what may be said of a claim."""

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


def test_parts_of_a_task_are_told_from_its_classes():
    names = class_names("motion")
    probabilities = np.zeros((2, len(names)))
    probabilities[0, names.index("left-clockwise-slower")] = 1
    # the likeliest class is another one than the likeliest value of each part
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


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((1, 2, 1, 3, 1), "found in every seed"),
        ((1, 2), "seen in 2 of 2 seeds, which are few"),
        ((1, -2, 3), "not found: 2 of 3 seeds agree"),
        ((0, 0), "not found: 0 of 2 seeds agree"),
        ((-1, -2), "the opposite in 2 of 2 seeds"),
    ],
)
def test_what_may_be_said_of_a_claim(differences, verdict):
    assert Comparison("", differences).verdict == verdict
    assert Comparison("", differences, at_chance=True).verdict == "nothing to compare, both are at chance"


def test_claims_are_compared_seed_by_seed_where_both_arms_are_there():
    accuracies = {
        "appearance": {"image": [0.6, 0.5], "video": [0.5, 0.5], "both": [0.7, 0.4]},
        "motion": {"image": [0.06, 0.06], "video": [0.07, 0.05], "both": [0.5, 0.4]},
    }
    found = {item.title: item for item in compare(accuracies, 256)}
    looks = found["image teacher's student above video teacher's, on looks"]
    assert looks.differences == pytest.approx((10, 0))
    assert not looks.at_chance
    motion = found["video teacher's student above image teacher's, on motion"]
    assert motion.differences == pytest.approx((1, -1))
    assert motion.at_chance
    together = list(found.values())[2]
    assert together.differences == pytest.approx((11, -1))
    assert not together.at_chance
    assert found["co-taught above the image teacher's student, on looks"].differences == pytest.approx((10, -10))
    assert not any("video MAE" in title or "masks" in title for title in found)


def test_the_bound_of_chance_falls_with_the_number_of_videos():
    assert chance_bound("motion", 10**8) == pytest.approx(1 / 16, abs=1e-3)
    assert chance_bound("motion", 256) == pytest.approx(0.0625 + 2 * (0.0625 * 0.9375 / 256) ** 0.5)


def predictions(folder: Path, task: str, correct: int, total: int = 8):
    """The report of a test in which so many videos were told rightly."""
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


@pytest.fixture
def plan(tmp_path) -> Plan:
    """A study of two seeds of which all stages have ended, without any training."""
    (study,) = parse_arguments([str(ROOT / "recipes/study/small.yaml")], StudyArguments)
    plan = Plan(replace(study, output=str(tmp_path / "study"), arms=list(ARMS)), ROOT / "recipes")
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


def test_a_seed_that_has_not_ended_is_named_and_left_out_as_a_whole(plan):
    (plan.folder / "seed1/both/probe" / RECORD).unlink()
    results = collect(plan, "mine")
    assert (results["seeds"], results["unfinished_seeds"]) == ([0], [1])
    assert results["accuracies"]["finetune"]["test"]["motion"]["both"] == [0.25]
    (plan.folder / "seed0/both/probe" / RECORD).unlink()
    with pytest.raises(ValueError, match=r"No seed of .* has ended: run the study to its end"):
        collect(plan, "mine")


def of_seeds(plan: Plan, *seeds: int) -> dict:
    """What is collected if only these seeds are run."""
    return collect(Plan(replace(plan.study, seeds=list(seeds)), plan.recipes), "mine")


def test_seeds_run_apart_count_as_those_run_together(plan):
    merged, together = merge_results(of_seeds(plan, 0), of_seeds(plan, 1)), of_seeds(plan, 0, 1)
    for key in ("seconds", "losses"):
        ours, theirs = (json.loads(json.dumps(found.pop(key))) for found in (merged, together))
        assert np.allclose(*(list(flat(values)) for values in (ours, theirs)), atol=0.06)
    assert merged == together


def flat(values):
    """All numbers of nested mappings and lists."""
    for value in values.values() if isinstance(values, dict) else values:
        yield from flat(value) if isinstance(value, dict | list) else [value]


def test_merging_tells_what_is_unfinished_and_keeps_remarks_and_machines(plan):
    first, second = of_seeds(plan, 0), of_seeds(plan, 1)
    first |= {"unfinished_seeds": [1, 2], "remarks": ["one", "both"], "device": "CPU (x86_64)"}
    second["study"]["processes"] += 6  # how many stages ran side by side decides nothing
    second |= {"remarks": ["both", "two"], "device": "H200", "versions": first["versions"] | {"torch": "9.9"}}
    merged = merge_results(first, second)
    assert (merged["seeds"], merged["unfinished_seeds"]) == ([0, 1], [2])
    assert merged["remarks"] == ["one", "both", "two"]
    assert merged["device"] == "CPU (x86_64) and H200"
    assert merged["versions"]["torch"] == f"{first['versions']['torch']} and 9.9"
    losses = [found["losses"]["both"]["loss"][0] for found in (first, second, merged)]
    assert losses == [[1, 1.0], [1, 2.0], [1, 1.5]]
    mean = merge_results(merged, of_seeds(plan, 0) | {"seeds": [7]})
    assert mean["losses"]["both"]["loss"][0] == [1, pytest.approx(4 / 3, abs=1e-4)]


def test_results_of_two_settings_or_of_a_seed_twice_are_not_merged(plan):
    first = of_seeds(plan, 0)
    other = of_seeds(plan, 1)
    with pytest.raises(ValueError, match=r"Both results have the seeds \[0\]"):
        merge_results(first, first)
    with pytest.raises(ValueError, match=r"two settings \(mine and small\)"):
        merge_results(first, other | {"setting": "small"})
    with pytest.raises(ValueError, match=r"two settings \(encoder, student\)"):
        merge_results(first, other | {"study": other["study"] | {"encoder": {}, "student": {}}})
    with pytest.raises(ValueError, match=r"two settings \(more\)"):
        merge_results(first, other | {"study": other["study"] | {"more": 1}})


def test_labels_of_frozen_features_are_compared_pair_by_pair():
    chance = {part: 1 / len(class_names(part)) for part in PARTS}
    arms = {part: {arm: [value] * 6 for arm in ("image", "video", "both")} for part, value in chance.items()}
    arms["palette"]["image"] = [0.45, 0.45, 0.55, 0.45, 0.45, 0.35]
    arms["direction"]["video"] = [0.5, 0.5, 0.5, 0.5, 0.5, 0.2]
    labels = compare_labels(arms, 1000)
    assert list(labels) == list(PARTS)
    assert all([item.title[:5] for item in pairs] == ["image", "co-ta", "co-ta"] for pairs in labels.values())
    image_less_video, both_less_image, both_less_video = labels["palette"]
    assert image_less_video.differences == (20, 20, 30, 20, 20, 10)
    assert image_less_video.is_unanimous
    assert both_less_image.mean == pytest.approx(-20)
    assert both_less_image.is_unanimous
    assert both_less_video.at_chance
    assert not both_less_video.is_unanimous
    assert not labels["direction"][0].at_chance
    assert not labels["direction"][0].is_unanimous
    assert all(item.at_chance for item in labels["order"])
    four = {part: {arm: values[:4] for arm, values in of.items()} for part, of in arms.items()}
    assert not compare_labels(four, 1000)["palette"][0].is_unanimous  # four seeds are few
