"""Frozen teachers: their inputs and targets, and errors for those that do not match the student."""

import copy
import os
from typing import ClassVar

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.integrations import deepspeed

from mvd_hf import MVDConfig, MVDForVideoClassification, MVDModel, TeacherConfig, load_teachers
from mvd_hf.teachers import teacher
from mvd_hf.teachers.teacher import Teacher, machine_mesh

GRID = (2, 4, 4)


def model(name: str, **overrides) -> MVDModel:
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MVDModel(MVDConfig.from_name(name, **(sizes | overrides)), add_final_norm=False)


def clips(size: int = 32, frames: int = 4, batch: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (batch, frames, 3, size, size), dtype=torch.uint8)


def test_an_image_teacher_gets_the_first_frame_of_each_tubelet():
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


def test_a_video_teacher_gets_the_whole_clip():
    video_model = model("videomae-b", num_frames=4)
    clip = clips()
    features = Teacher(TeacherConfig("m"), video_model, GRID, num_frames=4)({32: clip})
    assert torch.allclose(features, video_model(clip).last_hidden_state)


def test_the_default_of_frames_can_be_overridden():
    frame_by_frame = model("mvd-b", num_frames=4, tubelet_size=1)
    for frames in ("clip", "first_of_tubelet", "all"):
        assert Teacher(TeacherConfig("m", frames=frames), frame_by_frame, GRID, num_frames=4).frames == frames
    with pytest.raises(ValueError, match="2 frames"):  # single frames cannot fill tubelets of two
        Teacher(TeacherConfig("m", frames="first_of_tubelet"), model("mvd-b", num_frames=2), GRID, num_frames=4)
    with pytest.raises(ValueError, match="first_of_tubelet or all"):
        Teacher(TeacherConfig("m", frames="clip"), model("mae-b"), GRID, num_frames=4)


def test_an_image_teacher_of_all_frames_is_averaged_within_tubelets():
    image_model = model("mae-b")
    clip = clips()
    features = Teacher(TeacherConfig("m", frames="all"), image_model, GRID, num_frames=4)({32: clip})
    single = [image_model(clip[:, t, None]).last_hidden_state[:, 1:] for t in range(4)]
    expected = torch.cat([(single[0] + single[1]) / 2, (single[2] + single[3]) / 2], dim=1)
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -2, -3])
def test_an_inner_layer_is_a_hidden_state_and_later_layers_are_removed(layer):
    whole = model("videomae-b", num_frames=4)
    clip = clips()
    states = whole(clip, output_hidden_states=True).hidden_states
    teacher = Teacher(TeacherConfig("m", layer=layer), whole, GRID, num_frames=4)
    torch.testing.assert_close(teacher({32: clip}), states[layer])
    assert len(teacher.model.layers) == layer % 3


@pytest.mark.parametrize("layers", [[1, 2], [2, 0], [-1, 1], [0]])
def test_several_layers_are_hidden_states_side_by_side(layers):
    whole = model("videomae-b", num_frames=4)
    clip = clips()
    states = whole(clip, output_hidden_states=True).hidden_states
    teacher = Teacher(TeacherConfig("m", layers=layers, frames_per_pass=8), whole, GRID, num_frames=4)
    assert (teacher.layer_dim, teacher.feature_dim) == (32, 32 * len(layers))
    torch.testing.assert_close(teacher({32: clip}), torch.cat([states[layer] for layer in layers], dim=-1))


def test_layernorm_targets_of_several_layers_are_standardized_by_layer():
    teacher = Teacher(TeacherConfig("m", layers=[1, 2], target_norm="layernorm"), model("mae-b"), GRID, num_frames=4)
    layers = teacher({32: clips()}).unflatten(-1, (2, 32))
    assert layers.mean(-1).abs().max() < 1e-5


def test_a_summary_is_the_class_token_or_the_mean_of_the_patches_behind_the_patches():
    clip = clips()
    image_model, video_model = model("mae-b"), model("videomae-b", num_frames=4)
    teacher = Teacher(TeacherConfig("m", summary=True), image_model, GRID, num_frames=4)
    features = teacher({32: clip})
    assert features.shape == (3, 33, 32)
    tokens = [image_model(clip[:, frame, None]).last_hidden_state for frame in (0, 2)]
    torch.testing.assert_close(features[:, 32], (tokens[0][:, 0] + tokens[1][:, 0]) / 2, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features[:, :16], tokens[0][:, 1:], atol=1e-5, rtol=1e-4)
    patches = video_model(clip).last_hidden_state
    features = Teacher(TeacherConfig("m", summary=True, layers=[1, 2]), video_model, GRID, num_frames=4)({32: clip})
    torch.testing.assert_close(features[:, 32, 32:], patches.mean(1))
    torch.testing.assert_close(features[:, :32, 32:], patches)


VISION = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("kind", ["clip_vision_model", "dinov2_with_registers"])
def test_the_attention_of_the_class_token_is_the_last_channel_and_changes_no_other(kind):
    torch.manual_seed(0)
    network = AutoModel.from_config(AutoConfig.for_model(kind, **VISION), attn_implementation="eager")
    nn.init.normal_(next(p for name, p in network.named_parameters() if "q" in name and "weight" in name), std=3.0)
    clip, options = clips(), {"target_norm": "layernorm", "layers": [1, 2], "summary": True}
    plain = Teacher(TeacherConfig("m", **options), copy.deepcopy(network), GRID, num_frames=4)
    plain.model.config._attn_implementation = "sdpa"
    guide = Teacher(TeacherConfig("m", **options, guides_masks=True), copy.deepcopy(network), GRID, num_frames=4)
    features = guide({32: clip})
    assert features.shape == (3, 33, 65)
    torch.testing.assert_close(features[..., :-1], plain({32: clip}))
    frames = guide.normalize(clip[:, ::2].flatten(0, 1))
    weights = network.eval()(frames, output_attentions=True).attentions[-1]
    expected = weights[:, :, 0, guide.num_extra_tokens :].mean(1).reshape(3, 32)
    torch.testing.assert_close(features[:, :32, -1], expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guides_masks": True}, "guides_masks=True of the teacher 'm': it has no class token"),
        ({"layers": [1, 3]}, "layer=3 .* 2 layers"),
        ({"layers": [2, -1]}, r"\[2, -1\]"),
        ({"layers": [1, 1]}, r"\[1, 1\]"),
        ({"layers": []}, r"layers=\[\]"),
        ({"layers": [1], "layer": 0}, "layer=0"),
        ({"on": "hidden"}, "hidden"),
        ({"visible_weight": 0.5}, "visible_weight=0.5"),
        ({"on": "visible", "visible_weight": 0.5}, "visible_weight=0.5"),
        ({"visible_weighting": "distance"}, "distance"),
        ({"loss": "huber"}, "huber"),
        ({"target_norm": "whiten"}, "whiten"),
    ],
)
def test_targets_that_cannot_be_are_refused_by_value(fields, message):
    with pytest.raises(ValueError, match=message):
        Teacher(TeacherConfig("m", **fields), model("videomae-b", num_frames=4), GRID, num_frames=4)


def test_a_classifier_teaches_before_the_norm_that_it_does_not_have(tmp_path):
    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32, "num_attention_heads": 2}
    classifier = MVDForVideoClassification(MVDConfig.from_name("mvd-b", **sizes, num_hidden_layers=1, num_labels=3))
    classifier.save_pretrained(tmp_path)
    clip = clips()
    teacher = load_teachers({"a": str(tmp_path)}, GRID, 4)["a"]
    torch.testing.assert_close(teacher({32: clip}), classifier.eval().mvd(clip).last_hidden_state)
    with pytest.raises(ValueError, match=r"weights.*layernorm.*norm: pre"):
        load_teachers({"a": {"model": str(tmp_path), "norm": "post"}}, GRID, 4)


class Zero3:
    """What transformers asks of a DeepSpeed configuration."""

    config: ClassVar[dict] = {}

    def is_zero3(self) -> bool:
        return True


def test_teachers_are_loaded_whole_where_the_students_weights_are_divided(tmp_path, monkeypatch):
    saved = model("mae-b")
    saved.save_pretrained(tmp_path)
    engine = Zero3()
    deepspeed.set_hf_deepspeed_config(engine)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    try:
        with pytest.raises(Exception, match="deepspeed"):  # transformers would call it, and it is not installed
            AutoModel.from_pretrained(tmp_path)
        teacher = load_teachers({"a": str(tmp_path)}, GRID, 4)["a"]
        assert deepspeed.is_deepspeed_zero3_enabled()
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    finally:
        deepspeed.unset_hf_deepspeed_config()
    theirs = saved.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in teacher.model.state_dict().items())


@pytest.mark.parametrize(
    ("local_sizes", "shape"),
    [([4] * 4, (4,)), ([2] * 4, (2, 2)), ([3, 3, 3, 1], (4,)), ([0] * 4, (4,)), ([3] * 4, (4,))],
    ids=["one machine", "two machines", "unequal machines", "unknown machines", "no division"],
)
def test_a_mesh_has_a_row_for_each_machine(monkeypatch, caplog, local_sizes, shape):
    def gather(sizes, own):
        assert own == local_sizes[0]
        sizes[:] = local_sizes

    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_sizes[0]))
    monkeypatch.setattr(teacher.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(teacher.dist, "all_gather_object", gather)
    monkeypatch.setattr(teacher, "init_device_mesh", lambda device, shape, mesh_dim_names: (shape, mesh_dim_names))
    names = ("machines", "processes")[-len(shape) :]
    assert machine_mesh(torch.device("cpu")) == (shape, names)
    is_plain = len(set(local_sizes)) == 1 and local_sizes[0] in (2, 4)
    assert ("LOCAL_WORLD_SIZE" in caplog.text) == (not is_plain)


def test_our_models_normalise_with_their_own_statistics():
    own = model("mae-b", image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    teacher = Teacher(TeacherConfig("m"), own, GRID, num_frames=4)
    clip = clips(batch=1)
    expected = own.embeddings.projection(clip[:, 0, None])
    torch.testing.assert_close(own.embeddings.projection(teacher.normalize(clip[:, 0, None])), expected)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(teacher({32: (clip / 255 - mean) / std}), teacher({32: clip}), atol=1e-5, rtol=1e-5)


def test_a_teacher_with_patches_of_14_pixels_gets_smaller_frames():
    small = model("mae-b", patch_size=14, image_size=224)
    teacher = Teacher(TeacherConfig("m"), small, (8, 14, 14), num_frames=16)
    assert teacher.image_size == 196
    assert teacher({196: clips(196, 16, 1), 224: clips(224, 16, 1)}).shape == (1, 1568, 32)


def test_the_clip_of_the_teachers_size_must_be_in_the_batch():
    teacher = Teacher(TeacherConfig("m"), model("mae-b", patch_size=7, image_size=28), GRID, num_frames=4)
    with pytest.raises(ValueError, match=r"28x28 .*32x32"):
        teacher({32: clips(32)})


@pytest.mark.parametrize(
    ("config", "teacher", "message"),
    [
        ({"image_size": 33}, ("mae-b", {}), "image_size=32"),
        ({}, ("videomae-b", {"num_frames": 4, "tubelet_size": 4}), "8 frames"),
    ],
)
def test_a_grid_that_cannot_match_is_an_error_that_says_what_would(config, teacher, message):
    name, overrides = teacher
    with pytest.raises(ValueError, match=message):
        Teacher(TeacherConfig("m", **config), model(name, **overrides), GRID, num_frames=4)


def test_frames_that_tubelets_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"tubelets of 2 frames, and 7 .*num_frames"):
        Teacher(TeacherConfig("m"), model("videomae-b"), (3, 4, 4), num_frames=7)


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
        ({"model": "x", "wieght": 2}, "'image' .*wieght.* model, frames"),
        ({"weight": 2}, "'image' .*'model'"),
        ({"model": "x", "loss": "huber"}, "loss='huber'"),
        ({"model": "x", "norm": "none"}, "norm='none'"),
        ({"model": "x", "shard": True, "compile": True}, "shard=True and compile=True"),
    ],
)
def test_entries_with_mistakes_are_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        load_teachers({"image": entry}, GRID, 4)
