"""Features of an encoder: computed once for the same weights, settings and videos, and exported with their times."""

import json

import datasets
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mvd_hf.data.sources import load_rows
from mvd_hf.evaluation.encoders import PixelEncoder
from mvd_hf.evaluation.features import LabelledViews, export_features, extract_features, file_stems


class Colours(PixelEncoder):
    """An encoder that counts the clips it has seen: a token for each of two frames, the mean colour."""

    name, num_frames, image_size, seen, scale = "colors", 2, 16, 0, 1.0

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        self.seen += len(clips)
        return self.scale * clips.float().mean(dim=(3, 4))

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.mean(dim=1)

    def identity(self) -> dict:
        return {"scale": self.scale}


@pytest.fixture(scope="module")
def rows(toy_folder) -> datasets.Dataset:
    return load_rows(toy_folder, "train").select(range(5))


def extract(encoder, rows, folder, tokens: bool = False, clips: int = 3, crops: int = 1):
    processor = encoder.processor("dense", 1, clips, crops)
    return extract_features(encoder, rows, processor, folder, tokens=tokens, num_workers=0), processor


def test_features_are_computed_once_for_the_same_weights_settings_and_videos(rows, tmp_path):
    encoder = Colours()
    first, _ = extract(encoder, rows, tmp_path)
    assert first.stack("pooled").shape == (5, 3, 3)
    assert encoder.seen == 15
    again, _ = extract(encoder, rows, tmp_path)
    assert encoder.seen == 15
    assert np.array_equal(again.stack("pooled"), first.stack("pooled"))
    for change in ({"clips": 2}, {"tokens": True}):
        extract(encoder, rows, tmp_path, **change)
    assert encoder.seen == 15 + 10 + 15
    extract(encoder, rows.select(range(2)), tmp_path)
    encoder.scale = 2.0
    doubled, _ = extract(encoder, rows, tmp_path)
    assert doubled.stack("pooled") == pytest.approx(2 * first.stack("pooled"))
    assert len(list(tmp_path.iterdir())) == 5  # nothing was replaced


def test_tokens_are_kept_in_half_precision_beside_the_pooled_feature(rows, tmp_path):
    results, _ = extract(Colours(), rows, tmp_path, tokens=True)
    assert results.stack("tokens").shape == (5, 3, 2, 3)
    assert results.stack("tokens").dtype == np.float16
    encoder = Colours()
    encoder.scale = 1e6  # more than half precision holds
    with pytest.raises(ValueError, match="tokens"):
        extract(encoder, rows, tmp_path, tokens=True)


def test_views_know_their_label_and_their_group(rows, tmp_path):
    results, _ = extract(Colours(), rows, tmp_path)
    views = LabelledViews(results, "pooled", np.array([3, 1, 4, 1, 5]), groups=[0, 0, 1, 1, 2])
    assert len(views) == 15
    assert views.labels.tolist() == np.repeat([3, 1, 4, 1, 5], 3).tolist()
    assert views.groups.tolist() == [0] * 6 + [1] * 6 + [2] * 3
    assert torch.equal(views.read([7, 2]), views.read()[[7, 2]])


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_each_video_is_exported_with_the_times_of_its_clips(rows, tmp_path, kind):
    results, processor = extract(Colours(), rows, tmp_path / "features", crops=2)
    folder = export_features(results, rows, processor, tmp_path / "exported", kind)
    index = json.loads((folder / "index.json").read_text())
    assert len(index) == 5
    path = folder / index[rows[2]["video"]["path"]]
    arrays = np.load(path) if kind == "npz" else load_file(path)
    assert arrays["features"] == pytest.approx(results.array(2, "pooled").reshape(3, 2, 3).mean(axis=1))
    # 20 frames at 25 per second; two frames 8 apart, at the start, in the middle and at the end
    assert arrays["times"] == pytest.approx(np.array([[0, 8], [0, 8], [8, 16]]) / 25, abs=1e-6)


def test_videos_of_the_same_name_get_files_of_their_own():
    assert file_stems(["a/x.mp4", "b/y.avi", "blake2b:12"]) == ["x", "y", "blake2b_12"]
    stems = file_stems(["a/x.mp4", "b/x.mp4", "x_1.mp4"])
    assert stems == ["000000_x", "000001_x", "000002_x_1"]


def test_an_unknown_format_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="'pkl'"):
        export_features(None, rows, None, tmp_path, "pkl")
