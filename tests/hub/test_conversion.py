"""The conversion of official checkpoints: complete and bit by bit, or refused with the reason; nothing executes."""

import argparse
import copy
import hashlib
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoVideoProcessor

from launching import run_fresh
from mvd_hf import (
    MVDConfig,
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    convert_checkpoint,
)
from mvd_hf.hub.conversion import infer_config, save_converted
from mvd_hf.hub.snippets import write_example
from mvd_hf.model.modeling_mvd import position_table

# official names of our weights, family by family; every rule whose pattern is found applies, in this order
FAMILY_NAMES = {
    "distillation": [
        (r"^decoders\.image\.embed\.", "down_img."),
        (r"^decoders\.video\.embed\.", "down_vid."),
        (r"^decoders\.image\.mask_token$", "mask_token_img"),
        (r"^decoders\.video\.mask_token$", "mask_token_vid"),
        (r"^decoders\.image\.", "decoder_img."),
        (r"^decoders\.video\.", "decoder_vid."),
        (r"^mvd\.", ""),
    ],
    "videomae": [
        (r"^decoder\.embed\.", "encoder_to_decoder."),
        (r"^decoder\.mask_token$", "mask_token"),
        (r"^mvd\.", "encoder."),
    ],
    "mae": [
        (r"^decoder\.mask_token$", "mask_token"),
        (r"^decoder\.layers\.", "decoder_blocks."),
        (r"^decoder\.head\.", "decoder_pred."),
        (r"^decoder\.", "decoder_"),
        (r"^mvd\.", ""),
    ],
    "classification": [(r"^classifier\.", "head."), (r"^mvd\.", "")],
}
COMMON_NAMES = [
    (r"embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.class_token$", "cls_token"),
    (r"layernorm\.", "norm."),
    (r"layers\.", "blocks."),
    (r"attention\.qkv\.([qv]_bias)$", r"attn.\1"),
    (r"attention\.", "attn."),
]
HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 2}
SIZES = {"distillation": {"num_frames": 4}, "mae": {}}
SIZES["videomae"] = SIZES["classification"] = {"num_frames": 4, "image_size": 16}
FAMILIES = list(FAMILY_NAMES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny_config(family: str, **fields) -> MVDConfig:
    sizes = {
        "image_size": 16,
        "patch_size": 4,
        "num_frames": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    if family != "classification":
        sizes |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 3, "decoder_num_attention_heads": 2}
    own = {
        "distillation": {"teacher_dims": {"image": 8, "video": 12}, "decoder_intermediate_size": 24},
        "videomae": {"position_embedding_type": "flat", "decoder_embed_bias": False},
        "mae": {
            "num_frames": 1,
            "tubelet_size": 1,
            "position_embedding_type": "space",
            "use_class_token": True,
            "key_bias": True,
            "pixel_target": "mae",
            "mask_ratio": 0.75,
            "mask_type": "random",
        },
        "classification": {"num_labels": 5},
    }[family]
    return MVDConfig(**(sizes | own | fields))


def tiny_model(family: str, **fields):
    """A model of a family, every parameter drawn anew."""
    model_class = {"distillation": MVDForFeatureDistillation, "classification": MVDForVideoClassification}
    model = model_class.get(family, MVDForPixelReconstruction)(tiny_config(family, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def official(model, family: str) -> dict[str, torch.Tensor]:
    """The state dict that the official program of a family would have stored."""
    state_dict = {}
    for name, value in model.state_dict().items():
        for pattern, replacement in FAMILY_NAMES[family] + COMMON_NAMES:
            name = re.sub(pattern, replacement, name)
        state_dict[name] = value
    config = model.config
    tables = {
        part: position_table(config.position_embedding_type, config.grid, width)[None]
        for part, width in (("encoder", config.hidden_size), ("decoder", config.decoder_hidden_size))
    }
    if family == "distillation":
        names = {"pos_embed": "encoder", "pos_embed_img": "decoder", "pos_embed_vid": "decoder"}
        state_dict |= {name: tables[part] for name, part in names.items()}
    elif family == "mae":
        tables = {part: torch.cat([torch.zeros_like(table[:, :1]), table], dim=1) for part, table in tables.items()}
        state_dict |= {"pos_embed": tables["encoder"], "decoder_pos_embed": tables["decoder"]}
        state_dict["patch_embed.proj.weight"] = state_dict["patch_embed.proj.weight"].squeeze(2)
        for name in [name for name in state_dict if name.endswith("attn.q_bias")]:
            block = name.removesuffix("q_bias")
            parts = [name, f"{block}qkv.k_bias", f"{block}v_bias"]
            state_dict[f"{block}qkv.bias"] = torch.cat([state_dict.pop(part) for part in parts])
    return state_dict


def options(family: str) -> dict:
    return SIZES[family] | (HEADS if family != "classification" else {"num_attention_heads": 4})


def assert_same_model(model, expected):
    assert type(model) is type(expected)
    assert not model.training
    weights, others = model.state_dict(), expected.state_dict()
    assert weights.keys() == others.keys()
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert [key for key in weights if not torch.equal(weights[key], others[key])] == []


def architecture(config: MVDConfig, *left_out: str) -> dict:
    return {key: value for key, value in config.to_dict().items() if key not in left_out}


# Complete conversions


@pytest.mark.parametrize("family", FAMILIES)
def test_official_weights_come_back_bit_by_bit(family):
    for fields in ({}, {"use_class_token": True}):
        model = tiny_model(family, **fields)
        state_dict = official(model, family)
        before = {key: value.clone() for key, value in state_dict.items()}
        converted = convert_checkpoint(state_dict, **options(family))
        assert_same_model(converted, model)
        assert architecture(converted.config) == architecture(model.config)
        assert state_dict.keys() == before.keys()
        assert all(torch.equal(state_dict[key], before[key]) for key in before)
        prefixed = {f"backbone.{key}": value for key, value in state_dict.items()}
        assert_same_model(convert_checkpoint(prefixed, **options(family)), model)


def test_teacher_file_without_decoder_gives_the_encoder():
    for family in ("videomae", "mae"):
        model = tiny_model(family)
        state_dict = {
            key: value
            for key, value in official(model, family).items()
            if not key.startswith(("decoder", "mask_token", "encoder_to_decoder"))
        }
        converted = convert_checkpoint(state_dict, **SIZES[family], num_attention_heads=4)
        assert_same_model(converted, model.mvd)
        assert converted.layernorm is not None


def test_classifier_file_without_head_gives_the_encoder_without_final_norm():
    model = tiny_model("classification")
    state_dict = official(model, "classification")
    for key in ("head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"):
        del state_dict[key]
    converted = convert_checkpoint(state_dict, **options("classification"))
    assert_same_model(converted, model.mvd)
    assert converted.layernorm is None


def test_first_token_classifier_keeps_its_final_norm():
    model = tiny_model("classification", use_mean_pooling=False)
    converted = convert_checkpoint(official(model, "classification"), **options("classification"))
    assert_same_model(converted, model)
    assert not converted.config.use_mean_pooling


def test_overrides_win_over_the_file():
    state_dict = official(tiny_model("mae"), "mae")
    converted = convert_checkpoint(state_dict, **options("mae"), norm_pix_loss=False, mask_ratio=0.5)
    assert not converted.config.norm_pix_loss
    assert converted.config.mask_ratio == 0.5


def test_published_sizes_are_recognised_without_help():
    kinds = {
        "mvd": ("distillation", MVDForFeatureDistillation),
        "videomae": ("videomae", MVDForPixelReconstruction),
        "mae": ("mae", MVDForPixelReconstruction),
    }
    for prefix, (family, model_class) in kinds.items():
        for size in "sblh":
            config = MVDConfig.from_name(f"{prefix}-{size}")
            with torch.device("meta"):
                state_dict = official(model_class(config), family)
            state_dict = {key.removeprefix("encoder."): value for key, value in state_dict.items()}
            inferred = infer_config(family, state_dict, argparse.Namespace(), {})
            assert architecture(inferred, "drop_path_rate") == architecture(config, "drop_path_rate")


def test_published_classifiers_are_recognised_without_help():
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_labels", "grid")
    names += ("position_embedding_type", "use_mean_pooling", "use_class_token", "key_bias")
    for size in "sblh":
        config = MVDConfig.from_name(f"mvd-{size}", num_labels=174)
        with torch.device("meta"):
            state_dict = official(MVDForVideoClassification(config), "classification")
        inferred = infer_config("classification", state_dict, argparse.Namespace(), {})
        assert [getattr(inferred, name) for name in names] == [getattr(config, name) for name in names]


# Files


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
def test_state_dict_is_found_in_its_wrapper(wrapper, tmp_path):
    model = tiny_model("mae")
    content = official(model, "mae")
    if wrapper is not None:
        content = {wrapper: content, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 399}
    torch.save(content, tmp_path / "checkpoint.pth")
    assert_same_model(convert_checkpoint(tmp_path / "checkpoint.pth", **options("mae")), model)
    assert_same_model(convert_checkpoint(str(tmp_path / "checkpoint.pth"), **options("mae")), model)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_wrappers_and_of_the_module_that_holds_the_network_do_not_matter(family):
    model = tiny_model(family)
    state_dict = official(model, family)
    for prefix in ("module.", "_orig_mod.", "model.", "model.module._orig_mod.", "_fsdp_wrapped_module.net.vit."):
        wrapped = {prefix + key: value for key, value in state_dict.items()}
        assert_same_model(convert_checkpoint(wrapped, **options(family)), model)
    compiled = {key.replace("mlp.", "mlp._checkpoint_wrapped_module."): value for key, value in state_dict.items()}
    assert_same_model(convert_checkpoint(compiled, **options(family)), model)


def test_state_dicts_with_more_than_one_network_are_refused():
    state_dict = official(tiny_model("mae"), "mae")
    for prefix, message in (("ema.", r"2 \(, ema\.\)"), ("module.", "cls_token|mask_token")):
        both = state_dict | {prefix + key: value for key, value in state_dict.items()}
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(both, **options("mae"))
    lightning = {f"model.{key}": value for key, value in state_dict.items()} | {"accuracy.total": torch.ones(2)}
    with pytest.raises(ValueError, match=r"accuracy\.total"):
        convert_checkpoint(lightning, **options("mae"))


def test_safetensors_files_and_paths_among_the_arguments_are_read(tmp_path):
    model = tiny_model("mae")
    state_dict = official(model, "mae")
    save_file({key: value.contiguous() for key, value in state_dict.items()}, tmp_path / "weights.safetensors")
    torch.save({"model": state_dict, "args": argparse.Namespace(output_dir=tmp_path)}, tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        assert_same_model(convert_checkpoint(tmp_path / name, **options("mae")), model)


def test_arguments_in_the_file_give_frames_and_pixels(tmp_path):
    model = tiny_model("classification", num_frames=6, image_size=20)
    arguments = argparse.Namespace(num_frames=6, input_size=20, lr=1.5e-4, model="vit", betas=[0.9, 0.95], resume=None)
    torch.save({"model": official(model, "classification"), "args": arguments}, tmp_path / "checkpoint.pth")
    converted = convert_checkpoint(tmp_path / "checkpoint.pth", num_attention_heads=4)
    assert converted.config.grid == (3, 5, 5)
    assert_same_model(converted, model)
    converted = convert_checkpoint(tmp_path / "checkpoint.pth", num_attention_heads=4, num_frames=4, image_size=16)
    assert converted.config.grid == (2, 4, 4)


def test_stored_position_table_gives_the_pixels(tmp_path):
    model = tiny_model("distillation", image_size=24)
    arguments = argparse.Namespace(num_frames=4)
    torch.save({"model": official(model, "distillation"), "args": arguments}, tmp_path / "checkpoint.pth")
    assert convert_checkpoint(tmp_path / "checkpoint.pth", **HEADS).config.image_size == 24


def test_float16_file_of_deepspeed_becomes_float32(tmp_path):
    model = tiny_model("classification").half().float()
    content = {
        "module": {key: value.half() for key, value in official(model, "classification").items()},
        "epoch": "best",
        "loss_scale": np.float64(128.0),
        "skipped": {"steps": np.int64(3)},
    }
    torch.save(content, tmp_path / "mp_rank_00_model_states.pt")
    converted = convert_checkpoint(tmp_path / "mp_rank_00_model_states.pt", **options("classification"))
    assert_same_model(converted, model)


def test_numbers_pickled_by_an_older_numpy_are_read(tmp_path):
    model = tiny_model("classification")
    torch.save({"model": official(model, "classification"), "best": np.float64(80.6)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for entry in new.namelist():
            content = new.read(entry)
            if entry.endswith("data.pkl"):
                assert b"numpy._core" in content
                content = content.replace(b"numpy._core", b"numpy.core")
            old.writestr(entry, content)
    assert_same_model(convert_checkpoint(tmp_path / "old.pth", **options("classification")), model)


# Refusals


def refused(family: str, changes: dict[str, torch.Tensor | None], match: str):
    """A state dict with some weights removed (`None`) or replaced is refused."""
    state_dict = {key: value for key, value in official(tiny_model(family), family).items() if key not in changes}
    state_dict |= {key: value for key, value in changes.items() if value is not None}
    with pytest.raises(ValueError, match=match):
        convert_checkpoint(state_dict, **options(family))


def test_unknown_weights_are_refused_by_name():
    for family, extra in (
        ("distillation", "blocks.0.attn.gamma_1"),
        ("videomae", "unknown"),
        ("mae", "optimizer.weight"),
        ("classification", "unknown"),
    ):
        refused(family, {extra: torch.ones(32)}, re.escape(extra))


def test_missing_weights_are_refused_by_name():
    for family, name, ours in (
        ("distillation", "norm.bias", "mvd.layernorm.bias"),
        ("distillation", "blocks.1.attn.v_bias", "mvd.layers.1.attention.qkv.v_bias"),
        ("distillation", "decoder_vid.blocks.2.norm1.weight", "decoders.video.layers.2.norm1.weight"),
        ("distillation", "mask_token_vid", "decoders.video.mask_token"),
        ("videomae", "encoder.blocks.0.mlp.fc2.bias", "mvd.layers.0.mlp.fc2.bias"),
        ("videomae", "encoder_to_decoder.weight", "decoder.embed.weight"),
        ("mae", "blocks.1.attn.qkv.bias", "mvd.layers.1.attention.qkv.k_bias"),
        ("mae", "decoder_pred.bias", "decoder.head.bias"),
        ("classification", "head.bias", "classifier.bias"),
        # these give a size
        ("distillation", "decoder_img.blocks.0.mlp.fc1.weight", "decoder_img.blocks.0.mlp.fc1.weight"),
        ("distillation", "decoder_vid.head.weight", "decoder_vid.head.weight"),
        ("classification", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.weight"),
    ):
        refused(family, {name: None}, rf"missing.*'{re.escape(ours)}'|'{re.escape(ours)}' is missing")


def test_missing_block_is_refused():
    state_dict = official(tiny_model("classification", num_hidden_layers=3), "classification")
    state_dict = {key: value for key, value in state_dict.items() if not key.startswith("blocks.1.")}
    with pytest.raises(ValueError, match=r"missing \['mvd.layers.1.*left over \['mvd.layers.2"):
        convert_checkpoint(state_dict, **options("classification"))


def test_weights_that_the_model_does_not_have_are_refused_by_name():
    for family, name, ours in (
        ("classification", "norm.weight", "mvd.layernorm.weight"),
        ("distillation", "blocks.1.attn.k_bias", "mvd.layers.1.attention.qkv.k_bias"),
        ("videomae", "encoder_to_decoder.bias", "decoder.embed.bias"),
        ("distillation", "decoder_img.blocks.0.attn.qkv.bias", "decoders.image.layers.0.attention.qkv.k_bias"),
    ):
        refused(family, {name: torch.ones(48)}, rf"left over \[.*'{re.escape(ours)}'")


def test_reshaped_weights_are_refused_with_both_shapes():
    for family, name, ours, shape, expected in (
        ("distillation", "blocks.1.mlp.fc2.weight", "mvd.layers.1.mlp.fc2.weight", (31, 48), (32, 48)),
        ("videomae", "decoder.head.bias", "decoder.head.bias", (95,), (96,)),
        ("mae", "decoder_embed.weight", "decoder.embed.weight", (15, 32), (16, 32)),
        ("classification", "fc_norm.weight", "fc_norm.weight", (31,), (32,)),
    ):
        refused(family, {name: torch.zeros(shape)}, re.escape(f"{ours} {shape} for {expected}"))
    for name in ("patch_embed.proj.weight", "pos_embed"):  # shapes that no model has
        for shape in ((32, 48), (32, 3, 2, 4, 4, 1), (1, 2, 3)):
            refused("distillation", {name: torch.zeros(shape)}, name)


def test_learned_position_tables_are_refused():
    tables = [("distillation", name) for name in ("pos_embed", "pos_embed_img", "pos_embed_vid")]
    for family, name in (*tables, ("mae", "pos_embed"), ("mae", "decoder_pos_embed")):
        table = official(tiny_model(family), family)[name].clone()
        table[0, 5, 3] += 1e-3
        refused(family, {name: table}, rf"^{name} \(")


def test_position_tables_of_another_geometry_are_refused():
    state_dict = official(tiny_model("distillation"), "distillation")
    with pytest.raises(ValueError, match=r"pos_embed .*'spacetime'.*num_frames"):
        convert_checkpoint(state_dict, **HEADS)  # 16 frames are assumed, the file has 4
    with pytest.raises(ValueError, match=r"pos_embed .*'flat'"):
        convert_checkpoint(state_dict, **options("distillation"), position_embedding_type="flat")
    with pytest.raises(ValueError, match=r"num_frames=1 .* 2"):
        convert_checkpoint(state_dict, **(options("distillation") | {"num_frames": 1}))


def test_heads_of_an_unknown_width_must_be_given():
    for family in FAMILIES:
        state_dict, given = official(tiny_model(family), family), options(family)
        for name, width in (("num_attention_heads", 32), ("decoder_num_attention_heads", 16)):
            if name in given:
                others = {key: value for key, value in given.items() if key != name}
                with pytest.raises(ValueError, match=f"width {width} .*give {name}"):
                    convert_checkpoint(state_dict, **others)


def test_state_dict_of_another_network_is_refused_with_a_sample_of_its_names():
    for names in (["layer1.weight", "fc.bias"], ["blocks.0.attn.qkv.weight"], ["patch_embed.proj.weight"]):
        with pytest.raises(ValueError, match=min(names)):
            convert_checkpoint({name: torch.ones(2) for name in names})


def test_files_without_state_dict_are_refused(tmp_path):
    numbers = {"model": {"blocks.0.attn.qkv.weight": 3}}
    for content in (torch.ones(3), {}, {"model": {}}, numbers, {"epoch": 3}, argparse.Namespace(model={})):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"other\.pth'.*state dict"):
            convert_checkpoint(tmp_path / "other.pth")


def test_damaged_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "cut.pth"
    torch.save({"model": official(tiny_model("mae"), "mae")}, path)
    content = path.read_bytes()
    page = b"<!DOCTYPE html><title>Sign in</title>"
    for damaged in (page, *(content[:length] for length in (0, 100, len(content) // 2, len(content) - 100))):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cut\.pth'.*safely"):
            convert_checkpoint(path, **options("mae"))
    with pytest.raises(ValueError, match=r"absent\.pth'"):
        convert_checkpoint(tmp_path / "absent.pth")


class Trap:
    """An object that creates a file when it is unpickled without care."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_nothing_in_a_file_is_executed(kind, tmp_path):
    path, trap = tmp_path / "trap.pth", tmp_path / "sprung"
    content = {"model": official(tiny_model("mae"), "mae"), "args": Trap(trap)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"args": Trap(trap)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match="safely"):
        convert_checkpoint(path, **options("mae"))
    assert not trap.exists()
    careless = pickle.loads(path.read_bytes()) if kind == "pickle" else torch.load(path, weights_only=False)
    with careless["args"]:  # the trap is a real one
        assert trap.exists()


# Folders


def converted(family: str, folder: Path):
    """An official file and the model that it gives."""
    path = folder / "official.pth"
    torch.save({"model": official(tiny_model(family), family)}, path)
    return path, convert_checkpoint(path, **options(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_holds_weights_configuration_processor_and_card(family, tmp_path):
    source, model = converted(family, tmp_path)
    save_converted(model, source, tmp_path / "out")
    assert_same_model(type(model).from_pretrained(tmp_path / "out"), model)
    processor = AutoVideoProcessor.from_pretrained(tmp_path / "out")
    assert processor.num_frames == model.config.num_frames
    assert (processor.crop_size.height, processor.crop_size.width) == model.config.frame_size
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card
    assert hashlib.sha256(source.read_bytes()).hexdigest() in card
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    arxiv = {"mae": "2111.06377", "videomae": "2203.12602"}.get(family, "2212.04500")
    assert f"arxiv.org/abs/{arxiv}" in card
    save_converted(model, source, tmp_path / "out", "apache-2.0")
    assert "license: apache-2.0" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_snippets_of_the_cards_run(tmp_path):
    program = ""
    for family in ("classification", "mae"):
        (tmp_path / family).mkdir()
        source, model = converted(family, tmp_path / family)
        save_converted(model, source, tmp_path / family / "out")
        card = (tmp_path / family / "out" / "README.md").read_text()
        program += card.partition("```python\n")[2].partition("```")[0]
    write_example(tmp_path / "video.mp4")
    printed = run_fresh(program, folder=tmp_path, variables={"HF_HOME": str(tmp_path / "home")})
    assert re.search(r"LABEL_.*torch\.Size", printed, re.DOTALL)


def test_folder_that_gives_other_outputs_is_refused(tmp_path, monkeypatch):
    source, model = converted("classification", tmp_path)
    save = type(model).save_pretrained

    def save_others(self, folder, **options):
        changed = copy.deepcopy(self)
        nn.init.ones_(changed.classifier.bias)
        save(changed, folder, **options)

    monkeypatch.setattr(type(model), "save_pretrained", save_others)
    with pytest.raises(ValueError, match=r"classifier\.bias, logits"):
        save_converted(model, source, tmp_path / "out")


@pytest.mark.parametrize("latest", [True, False])
def test_deepspeed_folder_is_read(latest, tmp_path):
    folder = tmp_path / "checkpoint-4" if latest else tmp_path
    folder.mkdir(exist_ok=True)
    model = tiny_model("classification")
    torch.save({"module": official(model, "classification")}, folder / "mp_rank_00_model_states.pt")
    if latest:
        (tmp_path / "latest").write_text("checkpoint-4\n")
    assert_same_model(convert_checkpoint(tmp_path, **options("classification")), model)


def test_deepspeed_folder_must_hold_one_part_and_name_its_own_folder(tmp_path):
    with pytest.raises(ValueError, match=r"mp_rank_00_model_states\.pt.* none"):
        convert_checkpoint(tmp_path)
    for part in (0, 1):
        torch.save({"module": {}}, tmp_path / f"mp_rank_{part:02d}_model_states.pt")
    with pytest.raises(ValueError, match=r"mp_rank_00_model_states\.pt, mp_rank_01_model_states\.pt"):
        convert_checkpoint(tmp_path)
    for name in (b"../elsewhere", b"/tmp", b"", b"a" * 300, b"\xff\xfe"):
        (tmp_path / "latest").write_bytes(name)
        with pytest.raises(ValueError, match="'latest'"):
            convert_checkpoint(tmp_path)
