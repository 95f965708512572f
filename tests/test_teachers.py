"""Frozen teachers: what they see, what they hand out, and which do not fit."""

import pytest
import torch
from torch import nn

from mvd_hf import MVDConfig, MVDModel, Teacher, TeacherConfig, load_teachers

GRID = (2, 4, 4)


def model(name: str, **overrides) -> MVDModel:
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MVDModel(MVDConfig.from_name(name, **(sizes | overrides)), add_final_norm=False)


def clips(size: int = 32, frames: int = 4, batch: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (batch, frames, 3, size, size), dtype=torch.uint8)


def test_an_image_teacher_sees_the_first_frame_of_each_tubelet():
    image_model = model("mae-b")
    teacher = Teacher(TeacherConfig("m"), image_model, GRID, num_frames=4)
    clip = clips()
    features = teacher({32: clip})
    assert features.shape == (3, 2 * 16, 32)
    for clip_index in range(3):
        for time in range(2):
            frame = clip[clip_index, 2 * time][None, None]
            alone = image_model(frame).last_hidden_state[0, 1:]  # without the class token
            assert torch.allclose(features[clip_index, time * 16 : (time + 1) * 16], alone, atol=1e-5)


def test_a_video_teacher_sees_the_whole_clip():
    video_model = model("videomae-b", num_frames=4)
    clip = clips()
    features = Teacher(TeacherConfig("m"), video_model, GRID, num_frames=4)({32: clip})
    assert torch.allclose(features, video_model(clip).last_hidden_state)


def test_frames_can_be_chosen_against_the_default():
    spacetime = model("mvd-b", num_frames=2)
    teacher = Teacher(TeacherConfig("m", frames="clip"), model("mvd-b", num_frames=4), GRID, num_frames=4)
    assert teacher.frames == "clip"
    with pytest.raises(ValueError, match="tubelet 2"):  # single frames cannot fill tubelets of two
        Teacher(TeacherConfig("m", frames="first_of_tubelet"), spacetime, GRID, num_frames=4)


def test_a_teacher_with_patches_of_14_pixels_sees_smaller_frames():
    small = model("mae-b", patch_size=14, image_size=224)
    teacher = Teacher(TeacherConfig("m"), small, (8, 14, 14), num_frames=16)
    assert teacher.image_size == 196
    assert teacher({196: clips(196, 16, 1), 224: clips(224, 16, 1)}).shape == (1, 1568, 32)


def test_the_clip_of_the_teachers_size_must_be_in_the_batch():
    teacher = Teacher(TeacherConfig("m"), model("mae-b", patch_size=7, image_size=28), GRID, num_frames=4)
    with pytest.raises(ValueError, match=r"28x28 pixels, the batch has \[32\]"):
        teacher({32: clips(32)})


@pytest.mark.parametrize(
    ("config", "teacher", "message"),
    [
        ({"image_size": 40}, ("mae-b", {}), "image_size=32"),
        ({"image_size": 33}, ("mae-b", {}), "image_size=32"),
        ({}, ("videomae-b", {"num_frames": 4, "tubelet_size": 4}), "8 frames"),
    ],
)
def test_a_grid_that_cannot_match_is_an_error_that_says_what_would(config, teacher, message):
    name, overrides = teacher
    with pytest.raises(ValueError, match=message):
        Teacher(TeacherConfig("m", **config), model(name, **overrides), GRID, num_frames=4)


def test_teachers_are_frozen_and_in_evaluation_mode():
    trainable = model("mae-b", drop_path_rate=0.5).train()
    teacher = Teacher(TeacherConfig("m"), trainable, GRID, num_frames=4)
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher({32: clips()}).requires_grad


def test_layernorm_targets_are_standardised_vectors():
    teacher = Teacher(TeacherConfig("m", target_norm="layernorm"), model("mae-b"), GRID, num_frames=4)
    raw = Teacher(TeacherConfig("m"), teacher.model, GRID, num_frames=4)
    clip = clips()
    features = teacher({32: clip})
    assert torch.allclose(features, nn.functional.layer_norm(raw({32: clip}), (32,), eps=1e-6))
    assert features.mean(-1).abs().max() < 1e-5


def test_loading_gives_features_before_the_final_norm_unless_asked(tiny_teachers, tiny_student_config):
    pre = load_teachers({"image": tiny_teachers["image"]}, GRID, 4)["image"]
    post = load_teachers({"image": {"model": tiny_teachers["image"], "norm": "post"}}, GRID, 4)["image"]
    whole = MVDModel.from_pretrained(tiny_teachers["image"])
    clip = clips()
    frames = clip[:, ::2].flatten(0, 1)[:, None]
    hidden = whole(frames, output_hidden_states=True).hidden_states[-1][:, 1:].reshape(3, 32, 32)
    assert torch.allclose(pre({32: clip}), hidden, atol=1e-6)
    assert torch.allclose(post({32: clip}), whole.layernorm(hidden), atol=1e-6)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model": "x", "wieght": 2}, "'image' has unknown keys wieght; the keys are model, frames"),
        ({"weight": 2}, "no key 'model'"),
        ({"model": "x", "loss": "huber"}, "loss='huber'"),
        ({"model": "x", "norm": "none"}, "norm='none'"),
    ],
)
def test_entries_with_mistakes_are_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        load_teachers({"image": entry}, GRID, 4)
