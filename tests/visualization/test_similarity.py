"""Similarity of features between frames: values by hand, and the same for any batch size."""

import json

import numpy as np
import pytest
import torch

from mvd_hf import MVDConfig, MVDForFeatureDistillation
from mvd_hf.data.sources import load_rows
from mvd_hf.data.toy import write_video
from mvd_hf.visualization.features import MiddleClips, load_feature_extractor
from mvd_hf.visualization.similarity import (
    FeatureSimilarity,
    SimilarityArguments,
    draw_similarity,
    measure_similarity,
    slot_similarity,
    write_similarity,
)
from mvd_hf.visualization.strips import figure_pixels

GRID = (3, 2, 2)


def test_similarity_by_hand():
    features = torch.zeros(1, 3, 4, 2)
    features[0, 0, :, 0] = 1.0  # slot 0 looks along x
    features[0, 1, :2, 0] = 5.0  # slot 1 half along x, half along y
    features[0, 1, 2:, 1] = 5.0
    features[0, 2, :, 0] = -2.0  # slot 2 the other way
    matrix = slot_similarity(features.flatten(1, 2), GRID)[0]
    torch.testing.assert_close(matrix, torch.tensor([[1, 0.5, -1], [0.5, 1, -0.5], [-1, -0.5, 1]]))
    pooled = slot_similarity(features.flatten(1, 2), GRID, "slot")[0]
    torch.testing.assert_close(pooled[0], torch.tensor([1, 0.5**0.5, -1]))
    with pytest.raises(ValueError, match=r"'clip'.*'place'"):
        slot_similarity(features.flatten(1, 2), GRID, "clip")


def test_places_count_for_one_average_and_not_for_the_other():
    slot = torch.randn(1, 4, 8)
    features = torch.stack([slot, slot.roll(1, dims=1), slot], dim=1).flatten(1, 2)  # things move and come back
    places, pooled = slot_similarity(features, GRID)[0], slot_similarity(features, GRID, "slot")[0]
    assert places[0, 2] == pytest.approx(1, abs=1e-5)
    assert places[0, 1] < 0.9
    torch.testing.assert_close(pooled, torch.ones(3, 3))


def test_the_summary_has_mean_standard_error_and_matrix():
    matrices = np.array([[[1, 0.5], [0.5, 1]], [[1, 0.7], [0.7, 1]]])
    similarity = FeatureSimilarity({"a": matrices}, [("x.mp4", "broken")])
    assert similarity.off_diagonal("a").tolist() == pytest.approx([0.5, 0.7])
    summary = similarity.summary()
    assert summary["models"]["a"]["mean_off_diagonal"] == pytest.approx(0.6)
    assert summary["models"]["a"]["standard_error"] == pytest.approx(0.1)
    assert summary["models"]["a"]["matrix"] == [[1, 0.6], [0.6, 1]]
    assert (summary["clips"], summary["missing"]) == (2, [{"video": "x.mp4", "reason": "broken"}])
    assert FeatureSimilarity({"a": matrices[:1]}).summary()["models"]["a"]["standard_error"] is None


def test_all_models_are_drawn_in_one_scale():
    similarity = FeatureSimilarity({"a": np.full((4, 3, 3), 0.2), "b": np.full((4, 3, 3), 0.8)})
    figure = draw_similarity(similarity)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["a\n0.200 off the diagonal", "b\n0.800 off the diagonal"]
    assert {axes.images[0].get_clim() for axes in figure.axes[:2]} == {(0.2, 1.0)}
    assert "4 clips" in figure.get_suptitle()


@pytest.fixture
def models(tiny_student_config, tmp_path) -> dict[str, str]:
    torch.manual_seed(0)
    for name in ("one", "two"):
        MVDForFeatureDistillation(tiny_student_config).save_pretrained(tmp_path / name)
    return {name: str(tmp_path / name) for name in ("one", "two")}


def test_batches_change_nothing_and_models_differ(models, toy_folder):
    extractor = load_feature_extractor(models, norm="post")
    clips = MiddleClips(load_rows(toy_folder, "validation").select(range(5)), 4, 4, extractor.sizes)
    alone, together = (measure_similarity(extractor, clips, batch_size=size) for size in (1, 3))
    assert alone.num_clips == 5
    for name in models:
        np.testing.assert_allclose(alone.matrices[name], together.matrices[name], atol=1e-6)
        np.testing.assert_allclose(np.diagonal(alone.matrices[name], axis1=1, axis2=2), 1, atol=1e-5)
    assert np.abs(alone.mean("one") - alone.mean("two")).max() > 1e-4


def test_features_of_an_image_model_do_not_change_in_a_still_video(tiny_teachers, tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    write_video(tmp_path / "still.mp4", np.broadcast_to(frame, (20, 48, 48, 3)))
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    (tmp_path / "list.csv").write_text("still.mp4 0\nbroken.mp4 0\n")
    rows = load_rows(str(tmp_path / "list.csv"), root=str(tmp_path))
    extractor = load_feature_extractor(tiny_teachers)
    similarity = measure_similarity(extractor, MiddleClips(rows, 4, 2, extractor.sizes))
    assert similarity.off_diagonal("image")[0] > 0.99  # but for the codec
    assert similarity.off_diagonal("video")[0] < similarity.off_diagonal("image")[0]  # it knows the time
    assert [(name.rsplit("/")[-1], bool(reason)) for name, reason in similarity.missing] == [("broken.mp4", True)]
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        measure_similarity(extractor, MiddleClips(rows.select([1]), 4, 2, extractor.sizes))


def test_a_clip_of_one_slot_has_no_similarity(tiny_student_config, tmp_path):
    config = MVDConfig(**{**tiny_student_config.to_dict(), "num_frames": 2})
    MVDForFeatureDistillation(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="one time slot"):
        measure_similarity(load_feature_extractor([str(tmp_path)]), None)


@pytest.mark.parametrize("name", ["student", "outputs/a-student-with-a-long-name/checkpoint-12345"])
def test_nothing_of_a_figure_s_titles_is_cut_off(name):
    figure = draw_similarity(FeatureSimilarity({name: np.ones((1, 4, 4))}))
    figure_pixels(figure)
    for title in (figure._suptitle, figure.axes[0].title):
        box = title.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


def test_figure_and_numbers_are_written(models, toy_folder, tmp_path):
    output = tmp_path / "pictures" / "similarity.png"
    path, numbers_path = write_similarity(
        SimilarityArguments(list(models.values()), toy_folder, max_samples=3, output=str(output), average="slot")
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    assert numbers_path == output.with_suffix(".json")
    numbers = json.loads(numbers_path.read_text())
    assert numbers["split"] == "validation"
    assert list(numbers["models"]) == ["one", "two"]
    assert (numbers["clips"], numbers["average"], numbers["norm"], numbers["layer"]) == (3, "slot", "post", -1)
    with pytest.raises(ValueError, match="outputs/none"):  # before a model is loaded
        write_similarity(SimilarityArguments(["me/model"], "outputs/none"))
    with pytest.raises(ValueError, match="--dataset"):
        write_similarity(SimilarityArguments(list(models.values())))
