"""Warm starts: what is kept of a checkpoint of every kind, what is new, what is refused."""

import logging

import pytest
import torch
from huggingface_hub import HfApi
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from launching import ROOT
from mvd_hf import (
    MVDConfig,
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDModel,
)
from mvd_hf.hub.warm_start import StartingPoint
from mvd_hf.model.loading_mvd import CheckpointMismatchError
from mvd_hf.model.patches_mvd import position_table
from tiny_models import TINY, assert_same_weights

OFFICIAL = ROOT / "tests" / "parity" / "ckpt_pretrain_checkpoint-1.pth"
HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 4}
VIDEOMAE = {key: value for key, value in TINY.items() if not key.startswith("decoder")}
VIDEOMAE |= {"intermediate_size": 128, "num_frames": 4, "use_mean_pooling": False}


def clip(frames: int = 4, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, frames, 3, size, size), dtype=torch.uint8, generator=generator)


def saved(folder, kind=MVDForFeatureDistillation, family="mvd", **fields):
    """A tiny model, all its weights drawn anew, and its folder."""
    model = kind(MVDConfig.from_name(f"{family}-b", **(TINY | {"num_frames": 4} | fields))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return model, str(folder)


@torch.no_grad()
def features(model, pixels: torch.Tensor) -> torch.Tensor:
    """The output of the last layer, and that of the final norm if there is one."""
    output = model.eval().base_model(pixels, output_hidden_states=True)
    return torch.cat([output.hidden_states[-1], output.last_hidden_state])


@pytest.mark.parametrize("target", [MVDForFeatureDistillation, MVDForPixelReconstruction])
@pytest.mark.parametrize(
    ("kind", "family", "has_norm"),
    [
        (MVDForFeatureDistillation, "mvd", True),
        (MVDForPixelReconstruction, "videomae", True),
        (MVDModel, "mvd", True),
        (MVDForVideoClassification, "mvd", False),
    ],
)
def test_the_encoder_gives_the_outputs_of_its_checkpoint(tmp_path, caplog, target, kind, family, has_norm):
    caplog.set_level(logging.INFO)
    source, folder = saved(tmp_path, kind, family)
    model = StartingPoint(folder, {"drop_path_rate": 0.2}).build(target)
    count = None if has_norm else 2
    assert torch.equal(features(model, clip())[:count], features(source, clip())[:count])
    new = [] if has_norm else ["mvd.layernorm"]
    if target is MVDForPixelReconstruction:
        new = new if kind is target else ["decoder", *new]
    else:
        new = new if kind is target else ["decoders.image", "decoders.video", *new]
    assert f"New weights: {', '.join(new) or 'none'}." in caplog.text
    assert model.config.drop_path_rate == 0.2
    assert len(model.config.id2label) == 2  # of no classes


@pytest.mark.parametrize("kind", [VideoMAEForPreTraining, VideoMAEForVideoClassification])
def test_a_videomae_of_transformers_is_a_start(tmp_path, kind):
    source = kind(VideoMAEConfig(**VIDEOMAE, layer_norm_eps=1e-6)).eval()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    source.save_pretrained(tmp_path)
    start = StartingPoint(str(tmp_path), {"teacher_dims": {"image": 8}})
    model = start.build(MVDForFeatureDistillation)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (model.config.image_mean, model.config.image_std))
    with torch.no_grad():
        expected = source.videomae((clip() / 255 - mean) / std).last_hidden_state
    assert features(model, clip())[2:] == pytest.approx(expected, abs=1e-5)
    assert (model.config.position_embedding_type, start.keeps_decoders) == ("flat", False)


def test_an_official_file_is_a_start():
    model = StartingPoint(str(OFFICIAL), HEADS).build(MVDForFeatureDistillation)
    official = torch.load(OFFICIAL, weights_only=False)["model"]
    assert torch.equal(model.mvd.layers[1].mlp.fc1.weight, official["blocks.1.mlp.fc1.weight"])
    assert torch.equal(model.decoders.image.head.weight, official["decoder_img.head.weight"])


def test_decoders_are_kept_whole_where_name_and_width_are_the_same(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source, folder = saved(tmp_path, teacher_dims={"image": 32, "video": 24, "other": 8})
    start = StartingPoint(folder)
    start.config.teacher_dims = {"image": 32, "video": 48, "third": 8}
    model = start.build(MVDForFeatureDistillation)
    assert start.keeps_decoders
    assert_same_weights(model.decoders.image, source.decoders.image)
    assert "New weights: decoders.third, decoders.video." in caplog.text
    fresh, theirs = (part.decoders.video.layers[0].mlp.fc1.weight for part in (model, source))
    assert not torch.equal(fresh, theirs)
    assert model.decoders.video.head.out_features == 48


@pytest.mark.parametrize("family", ["mvd", "videomae"])
def test_another_grid_computes_positions_at_its_integer_places(tmp_path, caplog, family):
    caplog.set_level(logging.INFO)
    source, folder = saved(tmp_path, MVDForPixelReconstruction, family)
    model = StartingPoint(folder, {"num_frames": 8, "image_size": 48}).build(MVDForPixelReconstruction)
    kind = model.config.position_embedding_type
    assert torch.equal(model.mvd.embeddings.positions.table, position_table(kind, (4, 6, 6), 32))
    assert torch.equal(features(model, clip(8, 48)), features(source, clip(8, 48)))
    assert "a grid of 4x6x6 patches (before: 2x4x4)" in caplog.text


def test_kept_layers_follow_one_another(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source, folder = saved(tmp_path, num_hidden_layers=5)
    model = StartingPoint(folder, keep_layers=[0, 2, 3]).build(MVDForFeatureDistillation)
    assert model.config.num_hidden_layers == 3
    assert "Of its 5 layers those with the numbers 0, 2, 3 are kept" in caplog.text
    assert_same_weights(model.decoders, source.decoders)
    source.mvd.layers = torch.nn.ModuleList(source.mvd.layers[i] for i in (0, 2, 3))
    assert torch.equal(features(model, clip()), features(source, clip()))


def test_a_published_size_has_the_weights_that_its_class_draws():
    fields = TINY | {"num_frames": 4}
    torch.manual_seed(3)
    model = StartingPoint("mvd-b", fields).build(MVDForFeatureDistillation)
    torch.manual_seed(3)
    assert_same_weights(model, MVDForFeatureDistillation(MVDConfig.from_name("mvd-b", **fields)))
    assert StartingPoint("mvd-b", fields).sources() == {}


def test_the_source_is_recorded_with_its_license(tmp_path):
    _, folder = saved(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    expected = {"model": tmp_path.name, "is_local": True, "license": "cc-by-nc-4.0", "keep_layers": [1]}
    assert StartingPoint(folder, keep_layers=[1]).sources() == {"base": expected}


def test_a_model_of_the_hub_is_recorded_with_its_license(tmp_path, hub):
    _, folder = saved(tmp_path / "student")
    (tmp_path / "student" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    HfApi().create_repo("me/student")
    HfApi().upload_folder(repo_id="me/student", folder_path=folder)
    start = StartingPoint("me/student")
    assert start.sources() == {"base": {"model": "me/student", "is_local": False, "license": "cc-by-nc-4.0"}}
    assert start.build(MVDForFeatureDistillation).config.hidden_size == 32


@pytest.mark.parametrize(
    ("overrides", "keep_layers", "message"),
    [
        ({"hidden_size": 64}, None, "hidden_size=64 does not fit .* hidden_size=32"),
        ({"tubelet_size": 1}, None, "tubelet_size=1 does not fit"),
        ({"num_hidden_layers": 1}, None, "num_hidden_layers=1 .* keep_layers"),
        ({"mask_ration": 0.5}, None, "'mask_ration'.*'mask_ratio'"),
        ({}, [0, 2], r"keep_layers=\[0, 2\] .* 0 to 1"),
        ({}, [1, 0], r"keep_layers=\[1, 0\]"),
        ({}, [0, 0], r"keep_layers=\[0, 0\]"),
        ({}, [], r"keep_layers=\[\]"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_refused_by_name(tmp_path, overrides, keep_layers, message):
    _, folder = saved(tmp_path)
    with pytest.raises(ValueError, match=message):
        StartingPoint(folder, overrides, keep_layers)


def test_layers_of_random_weights_are_not_chosen():
    with pytest.raises(ValueError, match=r"keep_layers=\[0\] .*'mvd-b'.*num_hidden_layers"):
        StartingPoint("mvd-b", keep_layers=[0])


@pytest.mark.parametrize("part", ["mvd.layers.1.mlp.fc1.weight", "mvd.layernorm.weight"])
def test_a_damaged_encoder_is_refused_by_name(tmp_path, part):
    model, folder = saved(tmp_path)
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if k != part})
    with pytest.raises(CheckpointMismatchError, match=part.replace(".", r"\.")):
        StartingPoint(folder).build(MVDForFeatureDistillation)
