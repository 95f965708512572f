"""The network: parameters, positions, masks, pixels, initialisation, heads, loading, attention, export, gradients.

Numbers against the official programs are in `parity/`; here a tiny network is compared with what it must do.
"""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVideoClassification

from mvd_hf import MVDConfig, MVDForFeatureDistillation, MVDForPixelReconstruction, MVDForVideoClassification, MVDModel
from mvd_hf.model.modeling_mvd import MVDLayer, MVDPositionTable

MODEL_CLASSES = [MVDModel, MVDForPixelReconstruction, MVDForFeatureDistillation, MVDForVideoClassification]
MASKED_CLASSES = [MVDForPixelReconstruction, MVDForFeatureDistillation]
KINDS = ["spacetime", "space", "flat"]
NUM_PATCHES, NUM_MASKED = 32, 24


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny_config(**fields) -> MVDConfig:
    """A grid of 2 x 4 x 4 = 32 patches, of which 24 are masked."""
    sizes = {
        "image_size": 16,
        "patch_size": 4,
        "num_frames": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 4,
        "mask_ratio": 0.75,
        "teacher_dims": {"image": 8, "video": 12},
        "num_labels": 3,
    }
    return MVDConfig(**(sizes | fields))


def tiny(model_class, *args, **fields):
    """A tiny model in evaluation mode, all its parameters drawn anew so that none is zero, one or equal to another."""
    model = model_class(tiny_config(**fields), *args).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def clips(batch: int = 2, frames: int = 4, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(batch, frames, 3, height, width)


def masks(batch: int = 2, num_masked: int = NUM_MASKED, length: int = NUM_PATCHES) -> torch.Tensor:
    """Another random mask for every clip."""
    return torch.stack([torch.randperm(length) < num_masked for _ in range(batch)])


def ids_of(mask: torch.Tensor) -> torch.Tensor:
    """Ascending positions of the True values of each row, found one by one."""
    return torch.tensor([[i for i, value in enumerate(row) if value] for row in mask.tolist()])


def inputs_of(model) -> dict[str, torch.Tensor]:
    return {"pixel_values": clips()} | ({"bool_masked_pos": masks()} if isinstance(model, tuple(MASKED_CLASSES)) else {})


def main_output(output) -> torch.Tensor:
    """All that an output predicts, in one row per clip."""
    if "predictions" in output:
        return torch.cat([value.flatten(1) for value in output.predictions.values()], dim=1)
    return (output.logits if "logits" in output else output.last_hidden_state).flatten(1)


def edit_weights(folder, edit):
    """Change the weights of a saved model in its file."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


# Sizes


@pytest.mark.parametrize(
    ("size", "expected"), [("s", 22_033_936), ("b", 86_534_800), ("l", 304_270_736), ("h", 632_119_440)]
)
def test_classifier_has_the_published_number_of_parameters(size, expected):
    with torch.device("meta"):
        model = MVDForVideoClassification(MVDConfig.from_name(f"mvd-{size}", num_labels=400))
    assert model.num_parameters() == expected


@pytest.mark.parametrize(
    ("size", "teacher_width", "encoder", "branch", "total"),
    [
        ("s", 768, 21_879_936, 3_992_832, 29_865_600),
        ("s", 1024, 21_879_936, 4_091_392, 30_062_720),
        ("b", 768, 86_227_200, 15_357_696, 116_942_592),
        ("b", 1024, 86_227_200, 15_554_560, 117_336_320),
        ("l", 1024, 303_860_736, 13_659_136, 331_179_008),
        ("h", 1280, 631_607_040, 41_025_280, 713_657_600),
    ],
)
def test_student_has_the_published_number_of_parameters(size, teacher_width, encoder, branch, total):
    teachers = {"image": teacher_width, "video": teacher_width}
    with torch.device("meta"):
        model = MVDForFeatureDistillation(MVDConfig.from_name(f"mvd-{size}", teacher_dims=teachers))
    parts = [model.mvd, model.decoders["image"], model.decoders["video"], model]
    counts = [sum(p.numel() for p in part.parameters() if p.requires_grad) for part in parts]
    assert counts == [encoder, branch, branch, total]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mae-b", 85_647_360),
        ("mae-l", 303_099_904),
        ("mae-h", 630_435_840),
        ("videomae-b", 86_227_200),
        ("videomae-l", 303_860_736),
        ("videomae-h", 631_607_040),
    ],
)
def test_teacher_encoder_has_the_published_number_of_parameters(name, expected):
    with torch.device("meta"):
        model = MVDModel(MVDConfig.from_name(name))
    assert model.num_parameters() == expected


# Positions


def bare_encoder(*args, **fields) -> MVDModel:
    """An encoder without layers, norm or bias: black clips come out as their position code."""
    model = MVDModel(tiny_config(num_hidden_layers=0, **fields), False, *args).eval()
    nn.init.zeros_(model.embeddings.projection.bias)
    return model


def positions_of(model: MVDModel, frames: int, height: int, width: int, **options) -> torch.Tensor:
    dtype = model.embeddings.projection.weight.dtype
    return model(torch.zeros(1, frames, 3, height, width, dtype=dtype), **options).last_hidden_state[0].detach()


def golden_student(tmp_path, how: str) -> MVDModel:
    """An encoder of 384 channels on an 8 x 14 x 14 grid, made in one of three ways."""
    config = MVDConfig.from_name("mvd-s", num_hidden_layers=0)
    model = MVDModel(config, add_final_norm=False)
    nn.init.zeros_(model.embeddings.projection.bias)
    if how == "built":
        return model
    if how == "built on meta":  # as from_pretrained does, without a checkpoint
        with torch.device("meta"):
            model = MVDModel(config, add_final_norm=False)
        assert not model.embeddings.positions.table.is_meta
        return model.to_empty(device="cpu") if model.embeddings.positions.table.is_meta else model
    model.save_pretrained(tmp_path)
    return MVDModel.from_pretrained(tmp_path, add_final_norm=False)


@pytest.mark.parametrize("how", ["built", "loaded"])
def test_position_code_has_the_golden_values(how, tmp_path):
    code = positions_of(golden_student(tmp_path, how), 16, 224, 224)[227]  # time 1, row 2, column 3
    values = {
        0: math.sin(1),
        48: math.cos(1),
        96: math.sin(3),
        168: math.cos(3),
        240: math.sin(2),
        312: math.cos(2),
    }
    for channel, value in values.items():
        assert code[channel].item() == pytest.approx(value, abs=1e-6), channel
    assert [round(code[c].item(), 5) for c in values] == [0.84147, 0.5403, 0.14112, -0.98999, 0.9093, -0.41615]
    # the second frequency of each part: 10000 ** (-1 / 48) in time, 10000 ** (-1 / 72) in space
    assert code[1].item() == pytest.approx(math.sin(10000 ** (-1 / 48)), abs=1e-6)
    assert code[97].item() == pytest.approx(math.sin(3 * 10000 ** (-1 / 72)), abs=1e-6)
    assert code[313].item() == pytest.approx(math.cos(2 * 10000 ** (-1 / 72)), abs=1e-6)
