"""Probes on frozen features: cached once, equal to scikit-learn, and models like any other afterwards."""

import datasets
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from mvd_hf import MVDConfig, MVDForVideoClassification, MVDVideoProcessor
from mvd_hf.evaluation.probing import (
    ProbeArguments,
    cache_features,
    fit_attentive,
    fit_linear,
    logistic_regression,
    nearest_neighbours,
    pooled_features,
)
from tiny_models import TINY


def blobs(count: int, seed: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around three centres, at very different scales along their axes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    centres = np.array([[3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0]])
    points = (centres[labels] + spread * rng.normal(size=(count, 4))) * [1, 100, 0.01, 1] + [0, 50, 0, 7]
    return torch.tensor(points, dtype=torch.float32), torch.tensor(labels)


def test_logistic_regression_is_that_of_scikit_learn():
    features, labels = blobs(200, 0)
    features = (features.double() - features.mean(dim=0)) / features.std(dim=0)
    for penalty in (1e-3, 1e-1):
        weight, bias = logistic_regression(features, labels, 3, penalty)
        theirs = LogisticRegression(C=1 / (penalty * len(features)), tol=1e-10, max_iter=10000)
        theirs.fit(features.numpy(), labels.numpy())
        assert weight.numpy() == pytest.approx(theirs.coef_, rel=1e-3, abs=1e-3)
        centred = bias - bias.mean()  # a common shift changes no probability
        assert centred.numpy() == pytest.approx(theirs.intercept_ - theirs.intercept_.mean(), abs=1e-3)


def test_a_linear_probe_sorts_what_can_be_sorted_and_takes_the_scales_into_its_weights():
    features, labels = blobs(300, 1)
    classifier = nn.Linear(4, 3)
    fit_linear(features, labels, torch.arange(300), classifier)
    others, truth = blobs(300, 2)
    with torch.no_grad():
        accuracy = (classifier(others).argmax(dim=1) == truth).float().mean()
    assert accuracy > 0.9


def test_the_penalty_is_chosen_by_videos_that_were_not_fitted():
    features, labels = blobs(40, 3, spread=30.0)  # hopeless: the strongest penalty is best
    weak, strong = nn.Linear(4, 3), nn.Linear(4, 3)
    assert fit_linear(features, labels, torch.arange(40), strong) >= 0.1
    # views of a video are held out together: copies of each would make the weakest penalty look best
    copies = [part.repeat_interleave(5, dim=0) for part in (features, labels, torch.arange(40))]
    assert fit_linear(*copies, weak) >= 0.1


@pytest.fixture
def rows(toy_folder) -> datasets.Dataset:
    from mvd_hf.data.sources import load_rows

    return load_rows(toy_folder, "train").select(range(12))


def small(**fields) -> MVDForVideoClassification:
    torch.manual_seed(0)
    return MVDForVideoClassification(MVDConfig.from_name("mvd-b", **TINY, num_frames=4, num_labels=4, **fields)).eval()


def test_features_are_what_the_linear_layer_sees_and_are_cached(rows, tmp_path, monkeypatch):
    model = small()
    processor = MVDVideoProcessor.for_model(model.config, num_clips=2, frame_sampling_rate=2)
    results = cache_features(model, rows, processor, tmp_path, num_workers=0)
    labels = np.array(rows["appearance"][:])
    features, targets, videos = pooled_features(results, labels)
    assert features.shape == (24, 32)
    assert targets.tolist() == np.repeat(labels, 2).tolist()
    assert videos.tolist() == np.repeat(np.arange(12), 2).tolist()
    clips = processor(rows[3]["video"]["path"], return_tensors="pt")["pixel_values"][0]
    with torch.no_grad():
        logits = model(clips).logits
    assert torch.allclose(model.classifier(features[6:8]), logits, atol=1e-5)
    monkeypatch.setattr(model.mvd, "forward", None)
    cached = cache_features(model, rows, processor, tmp_path, num_workers=0)
    assert np.array_equal(cached.stack("pooled"), results.stack("pooled"))


def test_an_attentive_probe_learns_without_its_encoder(rows, tmp_path):
    model = small(use_attentive_pooling=True)
    processor = MVDVideoProcessor.for_model(model.config, frame_sampling_rate=2)
    encoder = {name: value.clone() for name, value in model.mvd.state_dict().items()}
    results = cache_features(model, rows, processor, tmp_path, num_workers=0)
    assert results.shapes["tokens"] == [1, 32, 32]
    labels = np.array(rows["appearance"][:])
    arguments = ProbeArguments(probe_epochs=40, probe_batch_size=5, probe_learning_rate=3e-3)
    losses = fit_attentive(model, results, labels, arguments, seed=0)
    assert len(losses) == 40
    assert losses[-1] < 0.3 * losses[0]
    assert all(torch.equal(value, encoder[name]) for name, value in model.mvd.state_dict().items())
    # the fitted model is a classifier like any other
    model.save_pretrained(tmp_path / "model")
    loaded = MVDForVideoClassification.from_pretrained(tmp_path / "model")
    clips = torch.stack([processor(row["video"]["path"], return_tensors="pt")["pixel_values"][0] for row in rows])
    with torch.no_grad():
        accuracy = (loaded(clips).logits.argmax(dim=1).numpy() == labels).mean()
    assert accuracy == 1


def test_an_attentive_probe_is_drawn_from_its_seed(rows, tmp_path):
    weights = []
    for seed in (0, 0, 1):
        model = small(use_attentive_pooling=True)
        results = cache_features(model, rows, MVDVideoProcessor.for_model(model.config), tmp_path, num_workers=0)
        fit_attentive(model, results, np.array(rows["motion"][:]), ProbeArguments(probe_epochs=2), seed)
        weights.append(model.classifier.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_nearest_neighbours_find_the_videos_themselves(rows, tmp_path):
    model = small()
    processor = MVDVideoProcessor.for_model(model.config, num_clips=2)
    bank = cache_features(model, rows, processor, tmp_path, num_workers=0)
    labels = np.array(rows["motion"][:])
    scores = nearest_neighbours(bank, labels, bank, 4, ProbeArguments(neighbours=1))
    assert scores.shape == (12, 4)
    assert scores.argmax(axis=1).tolist() == labels.tolist()


def test_impossible_probes_are_refused():
    with pytest.raises(ValueError, match="probe_epochs=0"):
        ProbeArguments(probe_epochs=0)
