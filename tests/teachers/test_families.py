"""Teachers of every family: the same features as from the forward pass of the family itself."""

import functools
import json
import re
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import is_timm_available

from mvd_hf import (
    DistillationTrainer,
    MVDConfig,
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDTrainingArguments,
    load_teachers,
)
from mvd_hf.data.arguments import DataArguments, pretraining_clips
from mvd_hf.model.configuration_mvd import Size, height_and_width
from mvd_hf.model.patches_mvd import position_table
from mvd_hf.teachers import families
from mvd_hf.teachers.normalization import IMAGENET, Normalization
from short_runs import counts

GRID, FRAMES = (2, 4, 4), 4
PIXELS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
WIDTHS = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES = {**WIDTHS, "intermediate_size": 96, "image_size": 48, "patch_size": 8}  # 6 x 6 patches of their own
TEXT = {**WIDTHS, "intermediate_size": 96, "vocab_size": 64, "num_hidden_layers": 1}
VIDEO_DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
AS_IS = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}


@dataclass(frozen=True)
class Family:
    """A model of a family to be saved, and how to run it with transformers alone.

    Args:
        saved: class of the saved model.
        config: class and fields of its configuration.
        processor: class and arguments of its processor.
        norm: name of the final norm.
        extra: class and register tokens.
        plain: class that gives the features, if it is not the saved one.
        loading: its arguments for 4 frames of 32 x 32 pixels.
        arguments: arguments of its forward pass.
        size: pixels of its input for 4 x 4 patches.
        tower: attribute of the plain class that is the model.
        layers: the layers, if the model's `hidden_states` are not theirs alone.
    """

    saved: str
    config: tuple[str, dict]
    processor: tuple[str, dict] | None
    norm: str
    extra: int = 0
    plain: str | None = None
    loading: dict = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)
    size: int = 32
    is_video: bool = False
    tower: str | None = None
    layers: str | None = None


def without(*names: str, **others) -> dict:
    return {key: value for key, value in SIZES.items() if key not in names} | others


TOWERS = {"text_config": TEXT, "vision_config": SIZES}
INTERPOLATED = {"interpolate_pos_encoding": True}
IMAGE_14 = without("intermediate_size", patch_size=7, image_size=42)
PREDICTOR = {"pred_hidden_size": 16, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
MAE = {**SIZES, "layer_norm_eps": 1e-6, **VIDEO_DECODER}
NAFLEX = {"text_config": TEXT, "vision_config": without("image_size", num_patches=36)}
TWO_TOWERS = {"arguments": INTERPOLATED, "tower": "vision_model"}
FAMILIES = {
    "vit_mae": Family(
        *("ViTMAEForPreTraining", ("ViTMAEConfig", {**MAE, "image_size": 32}), ("ViTImageProcessor", PIXELS)),
        *("layernorm", 1, "ViTMAEModel", {"mask_ratio": 0.0}, {"noise": torch.arange(16.0)[None]}),
    ),
    "videomae": Family(
        *("VideoMAEForPreTraining", ("VideoMAEConfig", {**MAE, "num_frames": 6, "use_mean_pooling": False})),
        *(("VideoMAEVideoProcessor", {}), "layernorm", 0, "VideoMAEModel", {"image_size": 32, "num_frames": 4}),
        is_video=True,
    ),
    "dinov2": Family(
        "Dinov2Model", ("Dinov2Config", IMAGE_14), ("BitImageProcessor", PIXELS), "layernorm", 1, size=28
    ),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersForImageClassification",
        ("Dinov2WithRegistersConfig", IMAGE_14 | {"num_register_tokens": 3}),
        *(("BitImageProcessor", PIXELS), "layernorm", 4, "Dinov2WithRegistersModel"),
        size=28,
    ),
    "dinov3_vit": Family(
        "DINOv3ViTModel",
        ("DINOv3ViTConfig", {**SIZES, "num_register_tokens": 4, "pos_embed_rescale": 2.0}),
        *(("DINOv3ViTImageProcessorFast", PIXELS), "norm", 5),
    ),
    "clip": Family(
        *("CLIPModel", ("CLIPConfig", TOWERS), ("CLIPImageProcessor", {}), "post_layernorm", 1), **TWO_TOWERS
    ),
    "clip_vision": Family(
        *("CLIPVisionModelWithProjection", ("CLIPVisionConfig", SIZES), ("CLIPImageProcessor", PIXELS)),
        *("post_layernorm", 1, "CLIPVisionModel"),
        arguments=INTERPOLATED,
    ),
    "siglip": Family(
        *("SiglipModel", ("SiglipConfig", TOWERS), ("SiglipImageProcessor", {}), "post_layernorm"), **TWO_TOWERS
    ),
    "siglip2_naflex": Family(
        *("Siglip2Model", ("Siglip2Config", NAFLEX)),
        *(("Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 16}), "post_layernorm"),
        tower="vision_model",
    ),
    "vjepa2": Family(
        "VJEPA2Model",
        (
            "VJEPA2Config",
            without("intermediate_size", "image_size", crop_size=48, frames_per_clip=8, **PREDICTOR),
        ),
        *(("VJEPA2VideoProcessor", PIXELS), "encoder.layernorm"),
        loading={"crop_size": 32},
        arguments={"skip_predictor": True},
        is_video=True,
    ),
    "ijepa": Family(
        *("IJepaModel", ("IJepaConfig", SIZES), ("ViTImageProcessor", PIXELS), "layernorm"), arguments=INTERPOLATED
    ),
    "radio": Family(
        "RadioModel",
        ("RadioConfig", without("intermediate_size", num_cls_tokens=2, num_registers=3, max_img_size=64)),
        *(("ViTImageProcessor", {"do_normalize": False}), None, 5),
    ),
    "tipsv2": Family(
        *("Tipsv2Model", ("Tipsv2Config", {"text_config": TEXT, "vision_config": without("intermediate_size")})),
        *(("Tipsv2ImageProcessor", {}), "layernorm", 2),
        tower="vision_model",
    ),
    "videoprism": Family(
        "VideoPrismVisionModel",
        (
            "VideoPrismVisionConfig",
            without("patch_size", "num_hidden_layers", tubelet_size=[1, 8, 8], num_frames=6, num_spatial_layers=2)
            | {"num_temporal_layers": 3},
        ),
        *(("VideoMAEVideoProcessor", {"do_normalize": False}), "layernorm2"),
        arguments=INTERPOLATED,
        is_video=True,
        layers="temporal_layers",
    ),
    "vit": Family(
        *("ViTForImageClassification", ("ViTConfig", SIZES), ("ViTImageProcessor", {}), "layernorm", 1, "ViTModel"),
        arguments=INTERPOLATED,
    ),
}
TIMM = {"embed_dim": 48, "depth": 3, "num_heads": 4, "patch_size": 8, "img_size": 48}
if is_timm_available():
    FAMILIES |= {
        name: Family(
            *("TimmWrapperModel", ("TimmWrapperConfig", {"architecture": architecture, "model_args": TIMM | sizes})),
            *(None, None if name == "timm_eva" else "timm_model.norm", extra),
            arguments={"do_pooling": False},
            layers="timm_model.blocks",
        )
        for name, architecture, extra, sizes in (
            ("timm_vit", "vit_base_patch16_224", 1, {}),
            ("timm_registers", "vit_base_patch14_reg4_dinov2", 5, {}),
            ("timm_eva", "eva02_base_patch14_224", 1, {}),
            ("timm_pe", "vit_pe_core_base_patch16_224", 1, {"ref_feat_shape": (6, 6)}),
        )
    }
NAMES = sorted(FAMILIES)


@torch.no_grad()
def randomize(model: nn.Module) -> nn.Module:
    """Weights of a size at which every part of the model matters to its features."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.add_(1.0)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A random model and its processor per family."""
    root = tmp_path_factory.mktemp("families")
    for name, family in FAMILIES.items():
        config, sizes = family.config
        model = randomize(getattr(transformers, family.saved)(getattr(transformers, config)(**sizes)))
        model.save_pretrained(root / name)
        if family.processor is not None:
            processor, statistics = family.processor
            getattr(transformers, processor)(**statistics).save_pretrained(root / name)
    return {name: str(root / name) for name in FAMILIES}


def clips(size: Size, frames: int = FRAMES, batch: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, frames, 3, *height_and_width(size))
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@functools.cache
def plain_model(name: str, folder: str) -> nn.Module:
    """The encoder of transformers in a folder."""
    family = FAMILIES[name]
    model = getattr(transformers, family.plain or family.saved).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **family.loading
    )
    return model if family.tower is None else getattr(model, family.tower)


@torch.no_grad()
def plain_states(name: str, folder: str, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states of one image (C, S, S) or clip (T, C, S, S), as (t, h, w, D); the last one past the norm."""
    family, model = FAMILIES[name], plain_model(name, folder)
    if family.is_video:
        processor = transformers.AutoVideoProcessor.from_pretrained(folder)
        inputs = processor(videos=[pixels], do_sample_frames=False, **AS_IS)
        inputs = {model.main_input_name: inputs[next(iter(inputs))]}
    elif family.processor is None:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET_PIXELS)
        inputs = {"pixel_values": ((pixels / 255 - mean) / std)[None]}
        model.timm_model.set_input_size(img_size=tuple(pixels.shape[1:]))
    else:
        options = {"return_tensors": "pt"} if name == "siglip2_naflex" else AS_IS
        inputs = dict(transformers.AutoImageProcessor.from_pretrained(folder)(images=pixels, **options))
    states = hidden_states(model, inputs | family.arguments, family.layers)
    assert len(states) == WIDTHS["num_hidden_layers"] + 1
    states = [*states, states[-1] if family.norm is None else model.get_submodule(family.norm)(states[-1])]
    if family.layers == "temporal_layers":  # (places, times, D)
        return [state.transpose(0, 1).unflatten(1, (4, 4)) for state in states]
    return [state[0, family.extra :].view(-1, 4, 4, state.shape[-1]) for state in states]


def hidden_states(model: nn.Module, inputs: dict, layers: str | None) -> list[torch.Tensor]:
    """The input of the first layer and the output of each: as the model gives them, or of the named layers."""
    if layers is None:
        return list(model(**inputs, output_hidden_states=True).hidden_states)
    states: list[torch.Tensor] = []
    layers = model.get_submodule(layers)
    handles = [layers[0].register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))]
    handles += [layer.register_forward_hook(lambda module, inputs, output: states.append(output)) for layer in layers]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return states


def expected_features(name: str, folder: str, clip: torch.Tensor, state: int = -1) -> torch.Tensor:
    """Features (B, L, D): of clips as a whole, or of the first frame of each tubelet, one by one."""
    if FAMILIES[name].is_video:
        states = torch.stack([plain_states(name, folder, one)[state] for one in clip])
        return states.unflatten(1, (GRID[0], -1)).mean(2).flatten(1, 3)  # of finer times within a tubelet
    frames = [[plain_states(name, folder, one[2 * t])[state] for t in range(GRID[0])] for one in clip]
    return torch.stack([torch.cat(one).flatten(0, 2) for one in frames])


def test_the_table_of_families_is_complete():
    assert sorted(re.findall(r"`(\w+)`", families.__doc__.split("\n\n")[1])) == sorted(
        [*families.FAMILIES, "model_type"]
    )


def load(folder: str, student_grid=GRID, num_frames: int = FRAMES, **entry):
    return load_teachers({"teacher": {"model": folder, **entry}}, student_grid, num_frames)["teacher"]


def deviation(features: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, in standard deviations of the features where those are above 1."""
    assert features.shape == expected.shape
    assert expected.std() > 0.1
    return ((features - expected).abs().max() / expected.std().clamp(min=1)).item()


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_the_familys_own_forward_pass(folders, name, record_property):
    size = FAMILIES[name].size
    clip = clips(size)
    default = -2 if name in ("vit_mae", "videomae") else -1  # before the norm, as MVD, for models trained on pixels
    worst = {}
    # states: input, after layers 1, 2, 3, past the norm
    has_norm = FAMILIES[name].norm is not None
    for entry, state in (
        ({}, default),
        *([({"norm": "post"}, -1)] if has_norm else []),
        ({"norm": "pre"}, -2),
        ({"norm": "pre", "layer": 1}, 1),
    ):
        teacher = load(folders[name], **entry)
        assert teacher.image_size == size
        assert teacher.frames == ("clip" if FAMILIES[name].is_video else "first_of_tubelet")
        assert len(teacher.model.get_submodule(teacher.family.layers)) == entry.get("layer", 3)
        worst[str(entry)] = deviation(teacher({size: clip}), expected_features(name, folders[name], clip, state))
    record_property("deviation", worst)
    assert max(worst.values()) < 1e-5
    assert not any(module.training for module in teacher.train().modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.model.config._attn_implementation == ("eager" if name == "videoprism" else "sdpa")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [4, 3])
def test_a_patch_of_the_clip_changes_its_own_token_most(folders, name, rows):
    patch = FAMILIES[name].size // 4
    teacher = load(folders[name], (2, rows, 4), layer=1)
    size = teacher.image_size
    assert size == (4 * patch if rows == 4 else (rows * patch, 4 * patch))
    clip = clips(size, batch=1)
    time, row, column = 1, 2, 3
    changed = clip.clone()
    changed[:, 2 * time, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] ^= 255
    difference = (teacher({size: changed}) - teacher({size: clip}))[0].norm(dim=1)
    assert difference.argmax() == time * rows * 4 + row * 4 + column
    if not FAMILIES[name].is_video:
        assert difference[: rows * 4].max() == 0  # the other tubelet is another image


@pytest.mark.parametrize("name", ["dinov2", "siglip", "videomae"])  # processors with three kinds of statistics
def test_floats_normalized_for_the_student_give_the_features_of_their_bytes(folders, name):
    size = FAMILIES[name].size
    clip = clips(size, batch=1)
    expected = load(folders[name])({size: clip})
    for normalization in (IMAGENET, Normalization(0.5, 0.25)):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalization.mean, normalization.std))
        teacher = load_teachers({"a": folders[name]}, GRID, FRAMES, clip_normalization=normalization)["a"]
        torch.testing.assert_close(teacher({size: (clip / 255 - mean) / std}), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("stored", "factor", "mean", "std"),
    [
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}, 1 / 255, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
        ({"do_rescale": False, "image_mean": 100, "image_std": 50}, 1, [100] * 3, [50] * 3),
        ({"rescale_factor": 1 / 127.5, "do_normalize": False}, 1 / 127.5, [0] * 3, [1] * 3),
        (None, 1 / 255, [0.5] * 3, [0.5] * 3),
    ],
)
def test_the_processors_file_gives_range_and_statistics(folders, tmp_path, stored, factor, mean, std):
    model = transformers.SiglipModel.from_pretrained(folders["siglip"])
    model.save_pretrained(tmp_path)
    if stored is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    clip = clips(32, batch=1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    torch.testing.assert_close(load(str(tmp_path)).normalize(clip), (clip * factor - mean) / std)


IMAGENET_PIXELS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF_PIXELS = ([0.5] * 3, [0.5] * 3)
CLIP_PIXELS = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


@pytest.mark.parametrize(
    ("names", "statistics"),
    [
        (["vit_mae", "videomae", "dinov2", "dinov2_with_registers", "dinov3_vit", "vjepa2", "ijepa"], IMAGENET_PIXELS),
        (["clip", "clip_vision"], CLIP_PIXELS),
        (["siglip", "siglip2_naflex", "vit"], HALF_PIXELS),
        (["tipsv2", "videoprism"], ([0.0] * 3, [1.0] * 3)),
    ],
)
def test_without_a_processor_pixels_are_normalized_as_is_usual_for_the_family(
    folders, tmp_path, caplog, names, statistics
):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    for name in names:
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            (tmp_path / name / file).symlink_to(f"{folders[name]}/{file}")
        caplog.clear()
        clip = clips(FAMILIES[name].size, batch=1)
        torch.testing.assert_close(load(str(tmp_path / name)).normalize(clip), (clip / 255 - mean) / std)
        assert folders[name].rsplit("/", 1)[1] in caplog.text


def test_a_processor_that_is_saved_with_others_is_found(folders, tmp_path):
    transformers.SiglipModel.from_pretrained(folders["siglip"]).save_pretrained(tmp_path)
    content = {
        "processor_class": "SiglipProcessor",
        "image_processor": {"image_mean": [0, 0, 0], "image_std": [2, 2, 2]},
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    clip = clips(32, batch=1)
    torch.testing.assert_close(load(str(tmp_path)).normalize(clip), clip / 510)


@pytest.mark.parametrize("name", ["dinov2", "siglip2_naflex"])
def test_all_frames_are_averaged_within_their_tubelet(folders, name):
    size = FAMILIES[name].size
    clip = clips(size)
    features = load(folders[name], frames="all")({size: clip}).unflatten(1, (GRID[0], 16))
    single = load(folders[name])
    even, odd = (single({size: clip.roll(shift, 1)}).unflatten(1, (GRID[0], 16)) for shift in (0, -1))
    torch.testing.assert_close(features, (even + odd) / 2)


def test_a_finer_video_teacher_is_averaged_within_the_students_tubelets(folders):
    clip = clips(32, frames=8)
    coarse = load(folders["vjepa2"], num_frames=8)({32: clip}).unflatten(1, (2, 16))
    fine = load(folders["vjepa2"], (4, 4, 4), num_frames=8)({32: clip}).unflatten(1, (2, 2, 16))
    torch.testing.assert_close(coarse, fine.mean(2))


def test_several_layers_of_videoprism_have_the_order_of_one(folders):
    clip, options = clips(32, frames=6), {"student_grid": (6, 4, 4), "num_frames": 6, "norm": "pre"}
    several = load(folders["videoprism"], layers=[1, 3], **options)({32: clip})
    for layer, part in zip((1, 3), several.chunk(2, dim=-1), strict=True):
        assert torch.equal(part, load(folders["videoprism"], layer=layer, **options)({32: clip}))


def test_a_video_teacher_of_fewer_frames_gets_every_second_one(folders):
    six_frames = load(folders["videomae"], (3, 4, 4), num_frames=12)
    clip = clips(32, frames=12)
    assert six_frames.input_frames == 6
    torch.testing.assert_close(
        six_frames({32: clip}), load(folders["videomae"], (3, 4, 4), num_frames=6)({32: clip[:, ::2]})
    )


def test_frames_per_pass_changes_the_passes_and_not_the_features(folders):
    for name, limit, passes in (("dinov2", 3, [3, 1]), ("vjepa2", 3, [1, 1]), ("vjepa2", 8, [2])):
        size = FAMILIES[name].size
        teacher, seen = load(folders[name], frames_per_pass=limit), []
        teacher.model.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(len(next(iter(kwargs.values())))), with_kwargs=True
        )
        features = teacher({size: clips(size)})
        assert seen == passes
        torch.testing.assert_close(features, load(folders[name])({size: clips(size)}))


@pytest.mark.parametrize(("name", "dtype"), [*((name, "bfloat16") for name in NAMES), ("videomae", "float16")])
def test_half_precision_features_are_close(folders, name, dtype):
    size = FAMILIES[name].size
    whole, half = load(folders[name]), load(folders[name], dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {getattr(torch, dtype)}
    exact, features = whole({size: clips(size)}), half({size: clips(size)})
    assert features.dtype == getattr(torch, dtype)
    with torch.autocast("cpu", getattr(torch, dtype)):
        others = [whole({size: clips(size)}), half({size: clips(size)})]
    for approximate in (features, *others):
        similarity = nn.functional.cosine_similarity(approximate.float(), exact, dim=-1)
        assert similarity.min() > (0.99 if dtype == "bfloat16" else 0.9999)


def test_a_compiled_teacher_gives_the_same_features_and_attention(folders, monkeypatch):
    compiled, original = [], nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **_: compiled.append(self) or original(self, backend="eager")
    )
    teacher = load(folders["clip_vision"], compile=True, guides_masks=True)
    assert compiled == [teacher.model]
    expected = load(folders["clip_vision"], guides_masks=True)({32: clips(32)})
    torch.testing.assert_close(teacher({32: clips(32)}), expected)


# the layouts in which MAE and VideoMAE are published


def small_mvd(name: str, **overrides) -> MVDForPixelReconstruction:
    sizes = without("image_size", image_size=32, **VIDEO_DECODER)
    return randomize(MVDForPixelReconstruction(MVDConfig.from_name(name, **(sizes | overrides))))


def published(ours: nn.Module, model: nn.Module, first: str, layer: str, names: dict[str, str]) -> dict:
    """Weights of our encoder under their published names; the decoder's as they are in `model`."""
    stored = {key: value for key, value in model.state_dict().items() if not key.startswith(first)}
    for key, value in ours.state_dict().items():
        parts = key.split(".")
        if parts[0] == "layers" and parts[2:] == ["attention", "qkv", "weight"]:
            for target, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                stored[f"{first}{layer}{parts[1]}.attention.attention.{target}.weight"] = part.clone()
        elif parts[0] == "layers":
            stored[f"{first}{layer}{parts[1]}.{names['.'.join(parts[2:-1]) or parts[-1]]}{parts[-1]}"] = value
    return stored


LAYER_NAMES = {
    "norm1": "layernorm_before.",
    "norm2": "layernorm_after.",
    "attention.proj": "attention.output.dense.",
    "mlp.fc1": "intermediate.dense.",
    "mlp.fc2": "output.dense.",
    "attention.qkv": "attention.attention.",
}


def save_published(folder, model: nn.Module, stored: dict):
    model.config.save_pretrained(folder)
    save_file(
        {key: value.contiguous() for key, value in stored.items()}, folder / "model.safetensors", {"format": "pt"}
    )


@pytest.mark.parametrize("size", [32, 24, 48, (16, 64)])
def test_mae_as_published_teaches_what_the_converted_one_does(tmp_path, size):
    ours = small_mvd("mae-b")
    ours.save_pretrained(tmp_path / "ours")
    config = transformers.ViTMAEConfig(**{**SIZES, "image_size": 32}, **VIDEO_DECODER)
    assert config.layer_norm_eps == 1e-12
    model = transformers.ViTMAEForPreTraining(config)
    encoder = ours.mvd
    stored = published(encoder, model, "vit.", "encoder.layer.", LAYER_NAMES)
    for i in range(config.num_hidden_layers):
        prefix = f"vit.encoder.layer.{i}.attention.attention."
        for name, short in (("query", "q_bias"), ("key", "k_bias"), ("value", "v_bias")):
            stored[f"{prefix}{name}.bias"] = stored.pop(f"{prefix}{short}")
    table = torch.cat([torch.zeros(1, 48), position_table("space", (1, 4, 4), 48)])
    stored |= {
        "vit.embeddings.cls_token": encoder.embeddings.class_token,
        "vit.embeddings.position_embeddings": table[None],
        "vit.embeddings.patch_embeddings.projection.weight": encoder.embeddings.projection.weight[:, :, 0],
        "vit.embeddings.patch_embeddings.projection.bias": encoder.embeddings.projection.bias,
        "vit.layernorm.weight": encoder.layernorm.weight,
        "vit.layernorm.bias": encoder.layernorm.bias,
    }
    save_published(tmp_path / "published", model, {key: value.detach() for key, value in stored.items()})
    grid = (2, *(side // 8 for side in height_and_width(size)))
    clip = {size: clips(size)}
    for norm in ("pre", "post"):
        teacher = load(str(tmp_path / "published"), grid, norm=norm)
        expected = load(str(tmp_path / "ours"), grid, norm=norm)(clip)
        assert deviation(teacher(clip), expected) < 1e-5
    assert {module.eps for module in teacher.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}


@pytest.mark.parametrize(("size", "frames"), [(32, 4), (24, 4), (32, 8), ((16, 64), 4)])
def test_videomae_as_published_teaches_what_the_converted_one_does(tmp_path, size, frames):
    ours = small_mvd("videomae-b", num_frames=4)
    ours.save_pretrained(tmp_path / "ours")
    config = transformers.VideoMAEConfig(
        **{**SIZES, "image_size": 32}, num_frames=4, use_mean_pooling=False, **VIDEO_DECODER
    )
    assert config.layer_norm_eps == 1e-12
    model = transformers.VideoMAEForPreTraining(config)
    encoder = ours.mvd
    stored = published(encoder, model, "videomae.", "encoder.layer.", LAYER_NAMES)
    assert "videomae.encoder.layer.0.attention.attention.q_bias" in stored
    assert not any(key.startswith("videomae.") and key.endswith(("k_bias", "key.bias")) for key in stored)
    stored |= {
        "videomae.embeddings.patch_embeddings.projection.weight": encoder.embeddings.projection.weight,
        "videomae.embeddings.patch_embeddings.projection.bias": encoder.embeddings.projection.bias,
        "videomae.layernorm.weight": encoder.layernorm.weight,
        "videomae.layernorm.bias": encoder.layernorm.bias,
    }
    save_published(tmp_path / "published", model, {key: value.detach() for key, value in stored.items()})
    grid = (frames // 2, *(side // 8 for side in height_and_width(size)))
    clip = {size: clips(size, frames)}
    for norm in ("pre", "post"):
        teacher = load(str(tmp_path / "published"), grid, frames, norm=norm)
        expected = load(str(tmp_path / "ours"), grid, frames, norm=norm)(clip)
        assert deviation(teacher(clip), expected) < 1e-5


def test_positions_of_mae_that_were_changed_are_interpolated(folders, tmp_path):
    model = transformers.ViTMAEModel.from_pretrained(folders["vit_mae"], mask_ratio=0.0)
    model.embeddings.position_embeddings.data = torch.randn(1, 17, 48)
    model.save_pretrained(tmp_path)
    pixels = torch.randn(1, 1, 3, 24, 24)
    with torch.no_grad():
        expected = model(pixels[:, 0], noise=torch.arange(9.0)[None], interpolate_pos_encoding=True)
    teacher = load(str(tmp_path), (1, 3, 3), 1, norm="post")
    assert (
        deviation(
            teacher.final_norm(teacher.model(**teacher.family.inputs(pixels, 8)).last_hidden_state),
            expected.last_hidden_state,
        )
        < 1e-5
    )


# what is refused


def save_config(folder, name: str, **sizes) -> str:
    getattr(transformers, name)(**sizes).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("HieraConfig", "'hiera'.*hierarchical"),
        ("BertConfig", "'bert'.*does not cut images into patches"),
        ("BeitConfig", "'beit'.*tokens.*mvd, vit_mae"),
        ("PeVideoConfig", "'pe_video'.*one token for each frame.*vit_pe_core"),
    ],
)
def test_models_that_cannot_teach_are_refused_with_the_reason(tmp_path, name, reason):
    getattr(transformers, name)().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "new", "auto_map": {"AutoModel": "m.M"}}, "trust_remote_code"),
        ({"model_type": "new"}, rf"'new', which transformers {transformers.__version__} does not"),
        ({"hidden_size": 8}, "type None"),
        ({"model_type": "vit", "hidden_size": "wide"}, "wide"),
    ],
)
def test_configurations_that_transformers_does_not_know_are_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "m.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path))


def test_missing_models_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read when huggingface_hub is imported
    for source in (str(tmp_path / "nothing"), str(tmp_path), "nobody/no-such-teacher"):
        with pytest.raises(ValueError, match=source):
            load(source)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ValueError, match=str(tmp_path)):
        load(str(tmp_path))


def copy_of(folder: str, target, change) -> str:
    """The folder with changed weights."""
    for name in ("config.json", "preprocessor_config.json"):
        (target / name).write_text((type(target)(folder) / name).read_text())
    weights = load_file(type(target)(folder) / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return str(target)


def drop(part: str):
    def change(weights: dict):
        dropped = [key for key in weights if part in key]
        assert dropped
        for key in dropped:
            del weights[key]

    return change


def test_a_checkpoint_that_lacks_weights_is_refused_by_name(folders, tmp_path):
    source = copy_of(folders["dinov2"], tmp_path, drop("layer.1.mlp.fc1"))
    with pytest.raises(ValueError, match=r"weights.*encoder.layer.1.mlp.fc1.bias, encoder.layer.1.mlp.fc1.w"):
        load(source)
    assert load(source, layer=1)({28: clips(28)}).shape == (2, 32, 48)  # the missing layer is not needed


def test_weights_of_another_shape_are_refused_by_name(folders, tmp_path):
    source = copy_of(folders["dinov2"], tmp_path, lambda weights: weights.update({"layernorm.weight": torch.zeros(5)}))
    with pytest.raises(ValueError, match=r"layernorm\.weight"):
        load(source)
    load(source, norm="pre")


def test_poolers_and_mask_tokens_may_be_missing(folders, tmp_path):
    load(copy_of(folders["dinov2"], tmp_path, drop("mask_token")))
    load(copy_of(folders["siglip"], tmp_path, drop("vision_model.head")))
    assert "pooler.dense.weight" not in load_file(f"{folders['vit']}/model.safetensors")


def test_a_truncated_checkpoint_is_refused(folders, tmp_path):
    source = copy_of(folders["dinov2"], tmp_path, lambda weights: None)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=str(tmp_path)):
        load(source)


def test_a_broken_processor_is_refused(folders, tmp_path):
    source = copy_of(folders["dinov2"], tmp_path, lambda weights: None)
    for content in ("{broken", '{"image_std": [0, 1, 1]}', '{"image_mean": [1, 2]}', '{"image_mean": "a"}', "[]"):
        (tmp_path / "preprocessor_config.json").write_text(content)
        with pytest.raises(ValueError, match="processor"):
            load(source)


def test_a_model_without_a_final_norm_cannot_give_features_after_it(tmp_path):
    sizes = {**SIZES, "num_frames": 4, "use_mean_pooling": True}
    transformers.VideoMAEModel(transformers.VideoMAEConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="norm: pre"):
        load(str(tmp_path), norm="post")
    assert load(str(tmp_path)).final_norm is None


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("dinov2", {"frames": "clip"}, "first_of_tubelet or all"),
        ("vjepa2", {"frames": "all"}, "2 frames.*frames: clip"),
        ("dinov2", {"layer": 4}, "layer=4 .* from -4 to 3"),
        ("dinov2", {"layer": -5}, "layer=-5"),
        ("dinov2", {"layer": 1.5}, "layer=1.5"),
        ("dinov2", {"image_size": 32}, "patch 7, .*image_size=28"),
        ("dinov2", {"image_size": 0}, "image_size=0"),
        ("dinov2", {"image_size": [28, 42]}, r"2x4x6 patches .*image_size=28"),
        ("dinov2", {"frames_per_pass": 0}, "frames_per_pass=0"),
        ("dinov2", {"dtype": "int8"}, "dtype='int8' .* float32, bfloat16, float16"),
        ("dinov2", {"compile": "fast"}, "compile='fast'"),
    ],
)
def test_entries_that_cannot_work_are_refused(folders, name, entry, message):
    with pytest.raises(ValueError, match=message):
        load(folders[name], **entry)


def test_video_teachers_that_are_coarser_than_the_student_are_refused(folders):
    with pytest.raises(ValueError, match=r"2x4x4 .* 4x4x4.* 8 frames"):
        load(folders["vjepa2"], (4, 4, 4), num_frames=4)


def test_the_input_conditioner_of_radio_is_applied_in_full_precision(folders):
    clip = clips(32, batch=1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in CLIP_PIXELS)
    teacher = load(folders["radio"], dtype="bfloat16")
    expected = ((clip / 255 - mean) / std).bfloat16()
    torch.testing.assert_close(teacher.normalize(clip), expected, atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="norm: pre"):
        load(folders["radio"], norm="post")


@pytest.mark.skipif(not is_timm_available(), reason="needs timm")
def test_timm_is_named_where_it_is_missing_or_cuts_no_patches(monkeypatch):
    family, config = families.FAMILIES["timm_wrapper"], transformers.TimmWrapperConfig(architecture="resnet18")
    with pytest.raises(ValueError, match="'resnet18' is no plain vision transformer"):
        family.architecture(config, "me/model")
    monkeypatch.setattr(families, "is_timm_available", lambda: False)
    with pytest.raises(ValueError, match=r"'resnet18' .*pip install timm"):
        family.architecture(config, "me/model")


@pytest.mark.parametrize(
    ("size", "grid", "frames", "entry"),
    [
        (56, (2, 4, 4), 4, {"image_size": 56}),  # twice as many rows and columns
        (28, (2, 8, 8), 4, {"image_size": 28}),  # half as many
        (14, (2, 4, 4), 4, {"image_size": 14}),
    ],
)
def test_features_are_resized_to_the_students_grid(folders, size, grid, frames, entry):
    clip = clips(size, frames)
    side = size // 7
    own = load(folders["dinov2"], (2, side, side), frames)({size: clip}).unflatten(1, (2, side, side))
    with pytest.raises(ValueError, match="grid: resize"):
        load(folders["dinov2"], grid, frames, **entry)
    features = load(folders["dinov2"], grid, frames, grid="resize", **entry)({size: clip}).unflatten(1, grid)
    if side > grid[1]:
        factor = side // grid[1]
        expected = own.unflatten(3, (-1, factor)).unflatten(2, (-1, factor)).mean((3, 5))
        torch.testing.assert_close(features, expected)
    else:
        torch.testing.assert_close(features.mean((1, 2, 3)), own.mean((1, 2, 3)), atol=1e-5, rtol=1e-4)
        corner = features[:, :, 0, 0]
        torch.testing.assert_close(corner, own[:, :, 0, 0])  # nothing lies beyond it


def test_a_coarser_video_teacher_is_interpolated_in_time(folders):
    clip = clips(32, frames=4)
    features = load(folders["vjepa2"], (4, 4, 4), 4, grid="resize")({32: clip}).unflatten(1, (4, 16))
    own = load(folders["vjepa2"], (2, 4, 4), 4)({32: clip}).unflatten(1, (2, 16))
    expected = torch.stack(
        [own[:, 0], 0.75 * own[:, 0] + 0.25 * own[:, 1], 0.25 * own[:, 0] + 0.75 * own[:, 1], own[:, 1]], 1
    )
    torch.testing.assert_close(features, expected)


def test_a_grid_that_does_not_divide_is_refused(folders):
    with pytest.raises(ValueError, match=r"2x6x6 .* 2x4x4"):
        load(folders["dinov2"], grid="resize", image_size=42)


@pytest.mark.slow
def test_three_families_teach_one_student(folders, tmp_path, toy_folder):
    config = MVDConfig.from_name(
        "mvd-b",
        **without("image_size", "num_hidden_layers", num_hidden_layers=1),
        image_size=32,
        num_frames=4,
        **VIDEO_DECODER,
    )
    teachers = load_teachers(
        {
            "radio": {"model": folders["radio"], "target_norm": "layernorm"},
            "videoprism": {"model": folders["videoprism"], "loss": "l2"},
            "tips": {"model": folders["tipsv2"], "frames": "all", "layer": -2, "weight": 0.5},
        },
        config.grid,
        config.num_frames,
    )
    config.teacher_dims = {name: teacher.feature_dim for name, teacher in teachers.items()}
    args = MVDTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        num_train_epochs=6,
        warmup_epochs=0,
        base_learning_rate=0.2,
        per_device_train_batch_size=8,
        dataloader_num_workers=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = pretraining_clips(DataArguments(dataset=toy_folder, stride=2), config, counts(), teachers)
    trainer = DistillationTrainer(MVDForFeatureDistillation(config), teachers, args=args, train_dataset=data)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    for name in teachers:
        first, last = (sum(entry[f"loss_{name}"] for entry in part) for part in (log[:4], log[-4:]))
        assert last < 0.9 * first
