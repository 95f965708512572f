"""Probes find what a frozen encoder's features show, and nothing else."""

import json

import numpy as np
import pytest
import torch

from mvd_hf import MVDConfig, MVDModel
from mvd_hf.evaluation.probing import ProbeArguments
from recipes.study.probes import FEATURES, PROBES, SIMILARITY, SceneProbeArguments, SceneProbes
from recipes.study.scenes import PARTS, SPLITS, TASKS, SceneSettings, make_scenes

SIZES = {
    **{"image_size": 32, "patch_size": 8, "num_frames": 4},
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes and an untrained encoder."""
    folder = tmp_path_factory.mktemp("probes")
    make_scenes(folder / "scenes", SceneSettings(train=32, validation=8, test=8, frames=10, height=32, width=40))
    torch.manual_seed(0)
    MVDModel(MVDConfig.from_name("mvd-b", **SIZES)).save_pretrained(folder / "encoder")
    return folder


def probes(folder, output, **keys) -> SceneProbes:
    arguments = SceneProbeArguments(
        str(folder / "encoder"), SIZES, str(folder / "scenes"), output_dir=str(output), **keys
    )
    return SceneProbes(arguments, ProbeArguments(probe_clips=1, probe_epochs=2, neighbours=5))


@pytest.mark.long
@pytest.mark.slow
def test_all_probes_are_fitted_and_tested_on_both_splits(folder, tmp_path):
    probes(folder, tmp_path).run()
    found = json.loads((tmp_path / PROBES).read_text())
    assert set(found) == {"linear", "knn", "attentive"}
    for method, splits in found.items():
        assert set(splits) == {"validation", "test"}
        for accuracies in splits.values():
            assert set(accuracies) == set(TASKS if method == "attentive" else (*PARTS, *TASKS))
            assert all(0 <= accuracy <= 1 for accuracy in accuracies.values())
    assert not (tmp_path / FEATURES).exists()
    similarity = json.loads((tmp_path / SIMILARITY).read_text())
    assert set(similarity) == {"place", "slot"}
    for matrix in map(np.array, similarity.values()):
        assert np.allclose(np.diag(matrix), 1, atol=1e-3)
        assert np.allclose(matrix, matrix.T)
        assert (matrix < 0.9999).sum() == matrix.size - SIZES["num_frames"] // 2

    (folder / "scenes" / "test" / "00003.mp4").write_bytes(b"nothing")  # last in this folder: the scenes stay broken
    with pytest.raises(ValueError, match="scenes'"):
        probes(folder, tmp_path / "output").run()


class Known:
    """Features of a split that depend on the label of one column only."""

    shapes = {"pooled": [1, 4], "tokens": [1, 3, 32]}

    def __init__(self, labels: np.ndarray):
        rng = np.random.default_rng(len(labels))
        self.pooled = np.eye(4, dtype=np.float32)[labels] + rng.normal(0, 0.05, (len(labels), 4)).astype(np.float32)
        self.labels = labels

    def rows(self) -> list[int]:
        return list(range(len(self.labels)))

    def stack(self, name: str) -> np.ndarray:
        return self.pooled[:, None]


def test_probes_find_what_the_features_show_and_nothing_else(folder, tmp_path):
    these = probes(folder, tmp_path)
    features = {split: Known(these.labels(split, "texture")) for split in SPLITS}
    for probe in (these.linear, these.knn):
        assert probe(features, "texture") == {"validation": 1.0, "test": 1.0}
        assert max(probe(features, "direction").values()) < 0.7


def test_train_videos_limits_the_training_split_alone(folder, tmp_path):
    every, first = (probes(folder, tmp_path, train_videos=count) for count in (None, 24))
    assert first.labels("train", "motion").tolist() == every.labels("train", "motion").tolist()[:24]
    assert [len(first.labels(split, "motion")) for split in SPLITS] == [24, 8, 8]
    with pytest.raises(ValueError, match="train_videos=0"):
        probes(folder, tmp_path, train_videos=0)
