"""Features of the same clips from several models: names, one grid for all families, and the clips."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from mvd_hf import MVDForFeatureDistillation, MVDForVideoClassification, TeacherConfig
from mvd_hf.data.sources import load_rows
from mvd_hf.data.toy import write_video
from mvd_hf.model.video_reading import VideoReader
from mvd_hf.visualization.features import (
    ClipFigureArguments,
    MiddleClips,
    clip_indices,
    crop_frames,
    load_feature_extractor,
    name_models,
)


@pytest.fixture
def student(tiny_student_config, tmp_path) -> str:
    torch.manual_seed(0)
    MVDForFeatureDistillation(tiny_student_config).save_pretrained(tmp_path / "student")
    return str(tmp_path / "student")


@pytest.fixture(scope="module")
def counting_video(tmp_path_factory) -> Path:
    """Forty frames whose grey level is five times their number, ten in a second."""
    path = tmp_path_factory.mktemp("video") / "count.mp4"
    levels = np.arange(40, dtype=np.uint8) * 5
    write_video(path, np.broadcast_to(levels[:, None, None, None], (40, 48, 64, 3)), fps=10)
    return path


def test_models_of_a_list_are_named_by_the_parts_of_their_paths_that_differ():
    assert list(name_models(["runs/a/student", "runs/b/student"])) == ["a/student", "b/student"]
    assert list(name_models(["outputs/a", "outputs/b"], layer=2)) == ["a", "b"]
    assert name_models(["x", "y"], layer=2)["y"] == TeacherConfig("y", layer=2)
    named = name_models({"one": "x", "two": {"model": "y", "layer": 1}}, layer=2, norm="post")
    assert named == {"one": TeacherConfig("x", layer=2, norm="post"), "two": TeacherConfig("y", layer=1, norm="post")}


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "--models"),
        (["a", "a"], "repeated"),
        ({"a": {"model": "x", "depth": 2}}, "depth"),
        ({"a": {"layer": 2}}, "'model'"),
    ],
)
def test_entries_with_mistakes_are_refused(models, message):
    with pytest.raises(ValueError, match=message):
        name_models(models)


def test_models_of_all_families_share_the_grid_of_the_first_video_model(student, tiny_teachers, tmp_path):
    config = Dinov2Config(
        image_size=28, patch_size=14, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    extractor = load_feature_extractor({"dino": str(tmp_path / "dino"), "student": student, **tiny_teachers})
    assert (extractor.grid, extractor.num_frames, extractor.image_size) == ((2, 4, 4), 4, 32)
    assert extractor.sizes == [32, 56]  # 4 patches of 14 pixels
    clips = {size: torch.randint(0, 256, (2, 4, 3, size, size), dtype=torch.uint8) for size in extractor.sizes}
    shapes = {name: tuple(features.shape) for name, features in extractor.features(clips)}
    assert shapes == {"dino": (2, 32, 24), "student": (2, 32, 32), "image": (2, 32, 32), "video": (2, 32, 32)}


def test_features_are_those_of_the_model(student):
    extractor = load_feature_extractor([student], norm="post")
    clip = torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8)
    ((_, features),) = extractor.features({32: clip})
    with torch.no_grad():
        expected = MVDForFeatureDistillation.from_pretrained(student).eval().mvd(clip).last_hidden_state
    torch.testing.assert_close(features, expected)


def test_image_models_alone_get_the_papers_clips(tiny_teachers):
    extractor = load_feature_extractor([tiny_teachers["image"]])
    assert (extractor.grid, extractor.num_frames) == ((8, 4, 4), 16)


def test_a_classifier_has_no_features_after_a_final_norm(tiny_student_config, tmp_path):
    MVDForVideoClassification(tiny_student_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="norm: pre"):
        load_feature_extractor([str(tmp_path)], norm="post")
    assert load_feature_extractor([str(tmp_path)], norm="pre").grid == (2, 4, 4)


def test_a_clip_is_the_middle_of_the_video_or_begins_at_a_second(counting_video):
    with VideoReader(counting_video) as reader:
        assert clip_indices(reader, 4, 2).tolist() == [16, 18, 20, 22]
        assert clip_indices(reader, 4, 2, start=1.5).tolist() == [15, 17, 19, 21]
        assert clip_indices(reader, 4, 2, start=3.7).tolist() == [37, 39, 39, 39]
        with pytest.raises(ValueError, match="9 s"):
            clip_indices(reader, 4, 2, start=9)
    frames, seconds = ClipFigureArguments(video=str(counting_video), start=1.0, stride=3).read_clip(4)
    assert np.abs(frames.mean(axis=(1, 2, 3)) - [50, 65, 80, 95]).max() < 3
    assert seconds.tolist() == pytest.approx([1.0, 1.3, 1.6, 1.9])
    with pytest.raises(ValueError, match="--video"):
        ClipFigureArguments().check_paths([])


def test_frames_are_cropped_in_the_centre():
    frames = np.zeros((2, 40, 80, 3), dtype=np.uint8)
    frames[:, :, 20:60] = 200
    clip = crop_frames(frames, 20)
    assert clip.shape == (2, 3, 20, 20)
    assert clip.dtype == torch.uint8
    assert clip.float().mean() > 195
    assert crop_frames(frames, (20, 40)).float().mean() < 110


def test_videos_that_cannot_be_read_are_reported(counting_video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    (tmp_path / "list.csv").write_text(f"{counting_video} 0\n{tmp_path / 'broken.mp4'} 0\n")
    clips = MiddleClips(load_rows(str(tmp_path / "list.csv")), 4, 2, [32, 16])
    name, clip, problem = clips[0]
    assert (Path(name).name, problem) == ("count.mp4", None)
    assert {size: tuple(frames.shape) for size, frames in clip.items()} == {32: (4, 3, 32, 32), 16: (4, 3, 16, 16)}
    name, clip, problem = clips[1]
    assert (Path(name).name, clip) == ("broken.mp4", None)
    assert problem
