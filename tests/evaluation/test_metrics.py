"""Metrics against scikit-learn, torchmetrics and the official program's merge, and as modules of `evaluate`."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import evaluate
import numpy as np
import pytest
import torch
import torchmetrics
from scipy.stats import spearmanr
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    top_k_accuracy_score,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.class_weight import compute_class_weight

from launching import ROOT
from mvd_hf.evaluation import metrics

MODULES = ROOT / "recipes" / "metrics"


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy_is_that_of_scikit_learn_and_torchmetrics(random, k):
    for classes in (6, 11):
        scores, labels = random.normal(size=(200, classes)), random.integers(classes, size=200)
        ours = metrics.top_k_accuracy(scores, labels, k)
        assert ours == pytest.approx(top_k_accuracy_score(labels, scores, k=k, labels=range(classes)))
        theirs = torchmetrics.functional.accuracy(
            torch.tensor(scores),
            torch.tensor(labels),
            task="multiclass",
            num_classes=classes,
            top_k=k,
            average="micro",
        )
        assert ours == pytest.approx(theirs.item())


def test_more_than_all_classes_are_all_classes_and_equal_scores_favour_the_lower():
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    assert metrics.top_k_hits(scores, np.array([0, 1])).tolist() == [True, False]
    assert metrics.top_k_accuracy(scores, np.array([2, 2]), k=2) == 0
    assert metrics.top_k_accuracy(scores, np.array([2, 2]), k=5) == 1


def test_confusion_and_mean_class_accuracy_are_those_of_scikit_learn(random):
    labels, predictions = random.integers(7, size=300), random.integers(7, size=300)
    ours = metrics.confusion_matrix(predictions, labels, 7)
    assert np.array_equal(ours, confusion_matrix(labels, predictions, labels=range(7)))
    ours = metrics.mean_class_accuracy(predictions, labels, 7)
    assert ours == pytest.approx(balanced_accuracy_score(labels, predictions))


def test_a_class_without_samples_has_no_accuracy_and_counts_nothing():
    predictions, labels = np.array([0, 0, 2]), np.array([0, 2, 2])
    per_class = metrics.class_accuracies(metrics.confusion_matrix(predictions, labels, 4))
    assert per_class[[0, 2]].tolist() == [1, 0.5]
    assert np.isnan(per_class[[1, 3]]).all()
    assert metrics.mean_class_accuracy(predictions, labels, 4) == 0.75


@pytest.mark.parametrize("temperature", [None, 0.07])
def test_nearest_neighbours_are_those_of_scikit_learn(random, temperature):
    bank, bank_labels = random.normal(size=(150, 8)), random.integers(5, size=150)
    features = random.normal(size=(60, 8))
    weights = "uniform" if temperature is None else lambda distance: np.exp((1 - distance) / temperature)
    theirs = KNeighborsClassifier(11, metric="cosine", weights=weights).fit(bank, bank_labels)
    ours = metrics.knn_scores(features, bank, bank_labels, 5, k=11, temperature=temperature)
    assert ours == pytest.approx(theirs.predict_proba(features), abs=1e-4)


def test_fewer_neighbours_than_asked_for_are_all_and_no_power_overflows(random):
    bank, labels = random.normal(size=(3, 4)), np.array([0, 1, 1])
    scores = metrics.knn_scores(bank, bank, labels, 2, k=20, temperature=1e-4)
    assert scores.argmax(axis=1).tolist() == labels.tolist()
    assert scores.sum(axis=1) == pytest.approx(1)


def test_views_are_merged_by_the_mean_of_their_probabilities_each_once():
    logits = np.log(np.array([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.1, 0.9]]))
    videos, views = ["a", "b", "a", "a"], [(0, 0), (0, 0), (0, 1), (0, 1)]
    names, probabilities, counts = metrics.merge_views(logits, videos, views)
    assert names == ["a", "b"]
    assert probabilities == pytest.approx(np.array([[0.45, 0.55], [0.4, 0.6]]))
    assert counts.tolist() == [2, 1]


def test_invalid_scores_and_labels_are_refused():
    for call, message in (
        (lambda: metrics.top_k_accuracy(np.array([[0.0, np.nan]]), np.array([0])), "NaN"),
        (lambda: metrics.top_k_accuracy(np.zeros((2, 3)), np.array([0, 3])), "Label 3 of sample 1"),
        (lambda: metrics.top_k_accuracy(np.zeros((2, 3)), np.array([0.0, 1.0])), "2 integers"),
        (lambda: metrics.top_k_accuracy(np.zeros((0, 3)), np.array([], dtype=int)), r"\(0, 3\)"),
        (lambda: metrics.top_k_accuracy(np.zeros((1, 3)), np.array([0]), k=0), "k=0"),
        (lambda: metrics.merge_views(np.zeros((2, 3)), ["a"], [0, 1]), "1 and 2"),
        (lambda: metrics.knn_scores(np.ones((1, 3)), np.ones((2, 4)), np.array([0, 1]), 2), r"\(1, 3\).*\(2, 4\)"),
        (lambda: metrics.knn_scores(np.ones((1, 3)), np.ones((1, 3)), np.array([0]), 2, k=0), "k=0"),
        (lambda: metrics.confusion_matrix(np.array([0, 5]), np.array([0, 1]), 2), "Label 5 of sample 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def load(name: str, cache, **options):
    return evaluate.load(str(MODULES / name), cache_dir=str(cache), **options)


def test_the_modules_of_evaluate_give_what_the_functions_give(random, tmp_path):
    logits, labels = random.normal(size=(24, 7)).astype(np.float32), np.repeat(random.integers(7, size=6), 4)
    videos = np.repeat([f"{i}.mp4" for i in range(6)], 4)
    clips, crops = np.tile([0, 0, 1, 1], 6), np.tile([0, 1, 0, 1], 6)
    metric = load("multiview_accuracy", tmp_path)
    for part in np.array_split(random.permutation(24), 3):
        metric.add_batch(
            predictions=logits[part],
            references=labels[part],
            videos=videos[part],
            clips=clips[part],
            crops=crops[part],
        )
    # padding of a loader: a view that was seen already
    metric.add(prediction=logits[0], reference=labels[0], videos=videos[0], clips=0, crops=0)
    result = metric.compute()
    means = metrics.softmax(logits).reshape(6, 4, 7).mean(axis=1)
    assert result == {
        "video_top1": metrics.top_k_accuracy(means, labels[::4]),
        "video_top5": metrics.top_k_accuracy(means, labels[::4], 5),
        "clip_top1": metrics.top_k_accuracy(logits, labels),
        "clip_top5": metrics.top_k_accuracy(logits, labels, 5),
        "num_videos": 6,
        "num_views": 24,
    }
    predictions = logits.argmax(axis=1)
    result = load("mean_class_accuracy", tmp_path).compute(predictions=predictions, references=labels)
    assert result["mean_class_accuracy"] == pytest.approx(metrics.mean_class_accuracy(predictions, labels, 7))
    bank, bank_labels = random.normal(size=(30, 7)), random.integers(7, size=30)
    result = load("knn_accuracy", tmp_path).compute(
        predictions=logits, references=labels, bank=bank, bank_labels=bank_labels, k=5
    )
    scores = metrics.knn_scores(logits, bank, bank_labels, 7, k=5)
    assert result["knn_top1"] == metrics.top_k_accuracy(scores, labels)


def test_views_of_a_video_with_different_labels_are_refused(tmp_path):
    metric = load("multiview_accuracy", tmp_path)
    with pytest.raises(ValueError, match=r"views of 'a\.mp4' have the labels 0 and 1"):
        metric.compute(
            predictions=[[0.0, 1.0], [1.0, 0.0]], references=[0, 1], videos=["a.mp4"] * 2, clips=[0, 1], crops=[0, 0]
        )


def share_of_a_metric(process: int, cache, logits, labels, names) -> dict | None:
    """What one of two processes computes of its half of the views."""
    metric = load("multiview_accuracy", cache, num_process=2, process_id=process, experiment_id="shared")
    own = slice(4 * process, 4 * process + 4)
    metric.add_batch(
        predictions=logits[own], references=labels[own], videos=names[own], clips=[0, 1] * 2, crops=[0] * 4
    )
    return metric.compute()


def test_processes_of_evaluate_share_one_metric(random, tmp_path):
    logits, labels = random.normal(size=(8, 3)), np.repeat(random.integers(3, size=4), 2)
    names = [f"{i // 2}.mp4" for i in range(8)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        arguments = (tmp_path, logits, labels, names)
        waiting = [pool.submit(share_of_a_metric, process, *arguments) for process in range(2)]
        result, nothing = (future.result(timeout=100) for future in waiting)
    assert nothing is None
    means = metrics.softmax(logits.astype(np.float32)).reshape(4, 2, 3).mean(axis=1)
    assert result["num_videos"] == 4
    assert result["video_top1"] == metrics.top_k_accuracy(means, labels[::2])


def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        hits, labels = (rng.random(100) < 0.7).astype(int), np.zeros(100, dtype=int)
        draws = metrics.resampled_metrics(1 - hits, labels, metrics.resampling_weights(100, 500, seed=trial))
        low, high = metrics.percentile_interval(draws["top1"])
        inside += low <= 0.7 <= high
    assert 0.89 <= inside / 200 <= 0.99


def test_balanced_accuracy_and_macro_f1_count_classes_equally_in_each_resample():
    labels, predictions = np.array([0] * 9 + [1]), np.zeros(10, dtype=int)
    exact = metrics.resampled_metrics(predictions, labels, np.ones((1, 10)))
    assert exact["top1"] == pytest.approx([0.9])
    assert exact["balanced"] == pytest.approx([0.5])
    assert exact["macro_f1"] == pytest.approx([18 / 19 / 2])
    without = np.array([[1.0] * 9 + [0.0]])  # the rare class was not drawn
    for name in ("balanced", "macro_f1"):
        assert metrics.resampled_metrics(predictions, labels, without)[name] == pytest.approx([1.0])
    weights = metrics.resampling_weights(10, 7, seed=3)
    assert weights.sum(axis=1).tolist() == [10] * 7
    assert np.array_equal(weights, metrics.resampling_weights(10, 7, seed=3))


def test_metrics_and_weights_for_unequal_classes_are_those_of_scikit_learn(random):
    labels, predictions = random.choice(5, 200, p=(0.6, 0.2, 0.15, 0.05, 0)), random.integers(5, size=200)
    counts = metrics.confusion_matrix(predictions, labels, 6)  # class 4 is only predicted, class 5 does not occur
    assert metrics.macro_f1(counts) == pytest.approx(f1_score(labels, predictions, average="macro"))
    exact = metrics.resampled_metrics(predictions, labels, np.ones((1, 200)))
    assert exact["macro_f1"] == pytest.approx([metrics.macro_f1(counts)])
    weights = metrics.balanced_class_weights(labels, 6)
    assert weights[:4] == pytest.approx(compute_class_weight("balanced", classes=np.arange(4), y=labels))
    assert weights[4:].tolist() == [1, 1]
    assert weights[labels].mean() == pytest.approx(1)


def test_average_precision_is_that_of_scikit_learn_also_with_equal_scores():
    rng = np.random.default_rng(0)
    for digits in (8, 1):  # one digit: many scores are equal
        scores, labels = rng.random((50, 6)).round(digits), (rng.random((50, 6)) < 0.3).astype(int)
        labels[:, 4] = 0
        found = metrics.average_precisions(scores, labels)
        expected = [average_precision_score(labels[:, k], scores[:, k]) for k in range(6) if k != 4]
        assert np.delete(found, 4) == pytest.approx(expected)
        assert np.isnan(found[4])
        assert metrics.mean_average_precision(scores, labels) == pytest.approx(np.mean(expected))
    with pytest.raises(ValueError, match="no video has a class"):
        metrics.mean_average_precision(scores, np.zeros_like(labels))


def test_rank_correlation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    values, others = rng.integers(0, 9, 40), rng.random(40)
    assert metrics.spearman(values, others) == pytest.approx(spearmanr(values, others).statistic)
    assert metrics.spearman(np.ones(3), np.arange(3)) == 0.0


def test_the_best_combinations_of_heads_are_those_of_all_products():
    rng = np.random.default_rng(0)
    parts, labels = [rng.dirichlet(np.ones(k), 60) for k in (7, 4, 3)], rng.integers(0, 3, (60, 3))
    products = np.einsum("na,nb,nc->nabc", *parts).reshape(60, -1)
    true = np.ravel_multi_index(labels.T, (7, 4, 3))
    for k in (1, 5):
        assert metrics.joint_hits(parts, labels, k).tolist() == metrics.top_k_hits(products, true, k).tolist()
