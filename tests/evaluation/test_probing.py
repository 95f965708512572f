"""Probes on frozen features: cached once, equal to scikit-learn, and models like any other afterwards."""

import re
from copy import deepcopy

import datasets
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from cached_features import as_tokens, cached, oracle
from mvd_hf import MVDConfig, MVDForVideoClassification, MVDVideoProcessor
from mvd_hf.evaluation import probing
from mvd_hf.evaluation.comparison import GridArguments, LabelledSplit, Prober
from mvd_hf.evaluation.features import LabelledViews
from mvd_hf.evaluation.probing import (
    AttentiveHead,
    ProbeArguments,
    cache_features,
    choose_neighbours,
    fit_attentive,
    fit_head,
    fit_linear,
    fit_penalized,
    nearest_neighbours,
    pooled_features,
    train_heads,
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
        weight, bias = fit_penalized(features, labels, 3, penalty)
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
    _, losses = fit_attentive(model, results, labels, arguments, seed=0)
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
    views = LabelledViews(bank, "pooled", labels)
    k, scores = nearest_neighbours(views, bank, 4, ProbeArguments(neighbours=1))
    assert k == 1
    assert scores.shape == (12, 4)
    assert scores.argmax(axis=1).tolist() == labels.tolist()


@pytest.fixture
def labels() -> np.ndarray:
    return np.arange(40) % 4


def test_heads_of_a_grid_become_what_each_becomes_alone(labels, tmp_path):
    views = LabelledViews(cached(tmp_path, tokens=as_tokens(oracle(labels))), "tokens", labels)
    arguments = ProbeArguments(
        probe_epochs=3, probe_batch_size=16, probe_learning_rate=[1e-2, 1e-3], probe_weight_decay=[0.0, 0.5]
    )
    torch.manual_seed(0)
    first = AttentiveHead(8, 4, blocks=2)
    together = [deepcopy(first) for _ in arguments.settings()]
    losses = train_heads(together, arguments.settings(), views, np.arange(80), arguments, seed=1)
    assert losses.shape == (4, 3)
    for i, setting in enumerate(arguments.settings()):
        alone = deepcopy(first)
        assert train_heads([alone], [setting], views, np.arange(80), arguments, seed=1)[0].tolist() == list(losses[i])
        assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), together[i].parameters(), strict=True))
    assert len({tuple(row) for row in losses}) == 4


def test_the_setting_is_chosen_on_groups_that_were_not_trained_on(labels, tmp_path, monkeypatch):
    views = LabelledViews(cached(tmp_path, tokens=as_tokens(oracle(labels))), "tokens", labels, np.arange(40) // 2)
    seen = []

    def train(heads, settings, views, chosen, arguments, seed, loss):
        seen.append((len(heads), set(views.groups[chosen].tolist())))
        return train_heads(heads, settings, views, chosen, arguments, seed)

    monkeypatch.setattr(probing, "train_heads", train)
    arguments = ProbeArguments(probe_epochs=20, probe_batch_size=16, probe_learning_rate=[1e-9, 1e-2])
    torch.manual_seed(0)
    setting, losses = fit_head(AttentiveHead(8, 4), views, arguments, seed=0)
    assert setting.rate == 1e-2
    assert losses[-1] < losses[0]
    kept_out = {0, 5, 10, 15}  # every fifth group, with both of its videos
    assert seen == [(2, set(range(20)) - kept_out), (1, set(range(20)))]


def test_oracle_features_give_every_answer_and_random_labels_none(tmp_path):
    """The true class everywhere is found by every method; labels without a meaning end at chance."""
    rng = np.random.default_rng(0)
    known, random = np.arange(400) % 4, rng.integers(4, size=400)
    results, test = (
        cached(tmp_path / str(seed), pooled=oracle(known, seed=seed), tokens=as_tokens(oracle(known), seed=seed))
        for seed in (0, 1)
    )
    grid = GridArguments(probe_epochs=10, probe_learning_rate=[1e-2, 1e-3], probe_weight_decay=0.1)
    for labels, truth, low, high in ((known, known, 1.0, 1.0), (random, rng.permutation(random), 0.15, 0.35)):
        prober = Prober(results, test, LabelledSplit(None, None, labels, truth, list("abcd")), grid)
        for method in ("knn", "linear", "attentive"):
            _, probabilities = getattr(prober, method)()
            assert low <= (probabilities.argmax(axis=1) == truth).mean() <= high, method


def test_the_number_of_neighbours_is_chosen_on_groups_that_are_not_in_the_bank(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    features = np.eye(4)[labels] + 0.8 * rng.normal(size=(60, 4))
    copies = np.repeat(features, 2, axis=0)[:, None].astype(np.float32)  # each video twice, as two rows
    results, labels = cached(tmp_path, pooled=copies), np.repeat(labels, 2)
    arguments = ProbeArguments(neighbours=[1, 25])
    by_group = LabelledViews(results, "pooled", labels, np.arange(120) // 2)
    assert choose_neighbours(by_group, 2, arguments) == 25
    # rows apart: the copy of each is its nearest neighbour, which looks perfect
    assert choose_neighbours(LabelledViews(results, "pooled", labels), 2, arguments) == 1


def test_a_single_penalty_is_taken_as_it_is():
    features, labels = blobs(40, 3, spread=30.0)
    assert fit_linear(features, labels, torch.arange(40), nn.Linear(4, 3), penalties=[1e-4]) == 1e-4


def test_impossible_probes_are_refused(tmp_path):
    for fields in ({"probe_epochs": 0}, {"neighbours": [5, 0]}, {"probe_learning_rate": []}):
        (name,) = fields
        with pytest.raises(ValueError, match=re.escape(f"{name}={fields[name]}")):
            ProbeArguments(**fields)
    labels = np.zeros(3, dtype=np.int64)
    views = LabelledViews(cached(tmp_path, pooled=oracle(labels)), "pooled", labels, [7, 7, 7])
    with pytest.raises(ValueError, match="2 settings"):
        choose_neighbours(views, 2, ProbeArguments(neighbours=[1, 2]))
