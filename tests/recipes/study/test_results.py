"""Results of the study: measures, intervals, paired differences, hypotheses and their page."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from recipes.study.plan import ARMS
from recipes.study.report import write_report
from recipes.study.results import FINETUNE, Key, Predictions, Results, outcome, write_results

FACTS = {
    **{"data": "wagons", "classes": ["a", "b", "c"], "videos": 60, "seeds": [0, 1], "device": "CPU (x)"},
    **{"losses": {"video_teacher": [0.7, 0.6]}, "epochs": {"video_teacher": [8, 8]}},
    **{"seconds": {"video_teacher": [5.0, 6.0]}, "versions": {"torch": "2"}, "study": {"evaluate_on": "test"}},
}


def predictions(right: float, seed: int = 0, seeds: int = 2) -> Predictions:
    """Two seeds of 60 predictions, of which a share is right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % 3
    is_right = rng.random((seeds, 60)) < right
    return Predictions(labels, np.where(is_right, labels, (labels + 1) % 3), 3)


@pytest.fixture
def results() -> Results:
    accuracies = {"scratch": 0.3, "videomae_compute": 0.5, "image": 0.9, "video": 0.4, "both": 0.9}
    found = {
        Key(share, arm, FINETUNE): predictions(right, seed)
        for share in (10.0, 100.0)
        for seed, (arm, right) in enumerate(accuracies.items())
    }
    baselines = {
        Key(share, name, "linear"): predictions(0.4) for share in (10.0, 100.0) for name in ("majority", "pixels")
    }
    return Results(found | baselines, FACTS)


def test_measures_are_those_of_scikit_learn():
    found = predictions(0.6, seeds=1)
    measures = found.measures()
    assert measures["accuracy"].item() == (found.predictions[0] == found.labels).mean()
    assert measures["macro_f1"].item() == pytest.approx(f1_score(found.labels, found.predictions[0], average="macro"))
    twice = found.measures(np.repeat([[0.0, 2.0]], 30, axis=1)[None].reshape(1, 1, 60))["accuracy"].item()
    assert twice == (found.predictions[0] == found.labels)[30:].mean()


def test_a_row_has_each_seed_and_an_interval_around_its_mean(results):
    row = next(row for row in results.rows() if (row["model"], row["share"]) == ("image", 10.0))
    assert np.mean(row["accuracy_seeds"]) == pytest.approx(row["accuracy"], abs=1e-4)
    low, high = row["accuracy_interval"]
    assert 0.7 < low < row["accuracy"] < high <= 1
    certain = Results({Key(10.0, "image", FINETUNE): predictions(1.0)}, FACTS).rows()[0]
    assert certain["macro_f1_interval"] == [1.0, 1.0]


def test_hypotheses_are_paired_differences_of_fine_tuned_arms(results):
    checks = {(check["hypothesis"], check["share"]): check for check in results.hypotheses()}
    assert checks.keys() == {("a", 10.0), *((name, share) for name in "bcd" for share in (10.0, 100.0))}
    one, other = (results.found[Key(10.0, arm, FINETUNE)] for arm in ("both", "scratch"))
    gaps = 100 * ((one.predictions == one.labels).mean(axis=1) - (other.predictions == other.labels).mean(axis=1))
    assert checks["a", 10.0]["seeds"] == pytest.approx(gaps, abs=1e-2)
    assert checks["a", 10.0]["outcome"] == "better"
    assert checks["d", 10.0]["against"] == "image"
    assert [outcome(bounds) for bounds in ([0.1, 2], [-2, -0.1], [-1, 1])] == ["better", "worse", "within noise"]


def test_the_page_names_every_arm_hypothesis_and_loss(results, tmp_path):
    write_results(results, tmp_path / "results.json")
    write_report(json.loads((tmp_path / "results.json").read_text()), tmp_path)
    text = (tmp_path / "README.md").read_text()
    for key in results.found:
        assert (ARMS[key.model].title if key.model in ARMS else key.model) in text
    assert "10 % of the labels" in text
    assert "(a) student of both against from scratch" in text
    assert "0.700, 0.600" in text
    assert (tmp_path / "curves.png").stat().st_size > 10_000
