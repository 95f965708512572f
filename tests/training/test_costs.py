"""FLOPs of student, decoders, classifier and teachers: published values, sums by hand, and errors."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from mvd_hf import MVDConfig, MVDForFeatureDistillation, TeacherConfig
from mvd_hf.training.costs import (
    HUB_MODELS,
    classifier_flops,
    distillation_parts,
    encoder_flops,
    format_parts,
    gpu_hours,
    kept_bytes,
    reconstruction_flops,
    student_parts,
    teacher_flops,
    teacher_model_config,
    teacher_network,
    training_memory,
    training_tflops,
)

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 3, "decoder_num_attention_heads": 2}
SIZES = {"image_size": 64, "patch_size": 16, "num_frames": 4, "mask_ratio": 0.5}
# transformers' class of the configuration, and the fields beside TINY's
FAMILIES = {
    "ViTMAE": {"intermediate_size": 64, "image_size": 96},
    "VideoMAE": {"intermediate_size": 64, "image_size": 64, "num_frames": 4},
    "Dinov2": {"mlp_ratio": 2, "image_size": 70, "patch_size": 14},
    "Dinov2WithRegisters": {"mlp_ratio": 2, "image_size": 64},
    "DINOv3ViT": {"intermediate_size": 64, "image_size": 64, "num_register_tokens": 4},
    "CLIPVision": {"intermediate_size": 64, "image_size": 64, "patch_size": 16},
    "SiglipVision": {"intermediate_size": 64, "image_size": 64},
    "Siglip2Vision": {"intermediate_size": 64, "num_patches": 16},
    "VJEPA2": {"mlp_ratio": 2, "crop_size": 64, "frames_per_clip": 4, "pred_num_attention_heads": 2},
}


def student(**fields) -> MVDConfig:
    dims = {"image": 48, "video": 80}
    return MVDConfig.from_name("mvd-b", **{**TINY, **DECODER, **SIZES, "teacher_dims": dims, **fields})


def layer_flops(tokens: int, width: int, intermediate_size: int) -> int:
    """Projections, attention and MLP of a transformer layer, two FLOPs per multiply-accumulate."""
    return 2 * (4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * intermediate_size)


def encoder_by_hand(config, patches: int, extra: int = 0, frames: int = 1) -> int:
    """Patch projection and layers over the patches of one input."""
    width, patch = config.hidden_size, config.patch_size
    intermediate = getattr(config, "intermediate_size", None) or int(width * config.mlp_ratio)
    layers = config.num_hidden_layers * layer_flops(patches + extra, width, intermediate)
    return 2 * patches * 3 * frames * patch**2 * width + layers


@pytest.mark.parametrize(
    ("size", "gmacs"), [("s", 56.9), ("b", 180.3), ("l", 596.8), ("h", 1191.0)], ids=["s", "b", "l", "h"]
)
def test_a_view_costs_what_the_authors_report(size, gmacs):
    config = MVDConfig.from_name(f"mvd-{size}", num_labels=400)
    assert classifier_flops(config) / 2e9 == pytest.approx(gmacs, abs=0.06)


@pytest.mark.parametrize(
    "fields", [{}, {"use_class_token": True}, {"mask_ratio": 0.75}, {"decoder_keep": 0.5}], ids=str
)
def test_the_students_parts_are_the_sums_by_hand(fields):
    config = student(**fields)
    visible, extra = config.num_patches - config.num_masked_patches, int(config.use_class_token)
    decoded, width = config.num_decoded_patches, config.decoder_hidden_size
    decoder = 3 * layer_flops(visible + decoded + extra, width, config.decoder_intermediate_size)
    expected = {("student", ""): encoder_by_hand(config, visible, extra, frames=2)}
    for name, dim in config.teacher_dims.items():
        expected["decoder", name] = decoder
        expected["projections", name] = 2 * ((visible + extra) * config.hidden_size * width + decoded * width * dim)
    for masks in (1, 3):
        found = {(part.kind, part.teacher): part.forward for part in student_parts(config, masks)}
        assert found == {key: masks * flops for key, flops in expected.items()}


def test_heads_on_the_encoder_and_decoders_of_all_patches_are_the_sums_by_hand():
    fields = {"teacher_tokens": {"image": "visible", "video": "all"}, "summary_dims": {"image": 5}}
    config = student(**fields)
    visible, masked = config.num_patches - config.num_masked_patches, config.num_masked_patches
    width, dims = config.decoder_hidden_size, config.teacher_dims
    hidden = config.hidden_size
    found = {(part.kind, part.teacher): part.forward for part in student_parts(config)}
    assert ("decoder", "image") not in found
    assert found["projections", "image"] == 2 * (visible * hidden * dims["image"] + hidden * (hidden + 5))
    assert found["decoder", "video"] == 3 * layer_flops(visible + masked, width, config.decoder_intermediate_size)
    assert found["projections", "video"] == 2 * (visible * hidden * width + (visible + masked) * width * dims["video"])


@pytest.mark.parametrize(("name", "frames", "tubelet"), [("mae-b", 1, 1), ("videomae-b", 4, 2)])
def test_a_masked_autoencoder_is_the_sum_by_hand(name, frames, tubelet):
    config = MVDConfig.from_name(name, **{**TINY, **DECODER, **SIZES, "num_frames": frames})
    patches, masked, extra = config.num_patches, config.num_masked_patches, int(config.use_class_token)
    decoder = 3 * layer_flops(patches + extra, 16, config.decoder_intermediate_size)
    projections = 2 * ((patches - masked + extra) * 32 * 16 + masked * 16 * 3 * tubelet * 16**2)
    forward = encoder_by_hand(config, patches - masked, extra, tubelet) + decoder + projections
    assert reconstruction_flops(config) == 3 * forward


@pytest.mark.parametrize("family", FAMILIES)
def test_teachers_of_all_families_are_the_sums_by_hand(family, tmp_path):
    config = getattr(transformers, f"{family}Config")(**TINY, **FAMILIES[family])
    config.save_pretrained(tmp_path)
    flops = teacher_flops(TeacherConfig(str(tmp_path)), student())
    if family in ("VideoMAE", "VJEPA2"):
        assert flops == encoder_by_hand(config, 32, frames=2)
    else:
        extra = {"ViTMAE": 1, "Dinov2": 1, "CLIPVision": 1, "Dinov2WithRegisters": 5, "DINOv3ViT": 5}.get(family, 0)
        # NaFlex resizes its positions by a small product
        assert flops == pytest.approx(2 * encoder_by_hand(config, 16, extra), rel=0.01)


def test_a_teacher_costs_its_frames_its_layers_and_no_more():
    config, dino = MVDConfig.from_name("mvd-b"), "facebook/dinov2-base"
    size = SimpleNamespace(**(HUB_MODELS[dino].to_dict() | {"intermediate_size": 3072}))
    assert teacher_flops(TeacherConfig(dino, compile=True), config) == 8 * encoder_by_hand(size, 196, 1)
    assert teacher_flops(TeacherConfig(dino, frames="all"), config) == 16 * encoder_by_hand(size, 196, 1)
    size.num_hidden_layers = 6
    assert teacher_flops(TeacherConfig(dino, layer=-7), config) == 8 * encoder_by_hand(size, 196, 1)
    video = MVDConfig.from_name("videomae-b")
    assert teacher_flops(TeacherConfig("MCG-NJU/videomae-base"), config) == encoder_flops(video)


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("facebook/vit-mae-base", transformers.ViTMAEConfig()),
        ("MCG-NJU/videomae-base", transformers.VideoMAEConfig()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_known_models_have_the_sizes_of_transformers_defaults(model, config, tmp_path):
    config.save_pretrained(tmp_path)
    assert teacher_flops(TeacherConfig(model), MVDConfig()) == teacher_flops(TeacherConfig(str(tmp_path)), MVDConfig())


def test_a_teacher_stored_in_half_precision_costs_the_same(tmp_path):
    for dtype in ("float32", "float16"):
        transformers.Dinov2Config(**TINY, **FAMILIES["Dinov2"], dtype=dtype).save_pretrained(tmp_path / dtype)
    half, full = (TeacherConfig(str(tmp_path / dtype)) for dtype in ("float16", "float32"))
    assert teacher_flops(half, student()) == teacher_flops(full, student())


def test_the_size_of_a_teacher_comes_from_its_folder_or_the_name_of_one_to_come(tmp_path):
    MVDConfig.from_name("mae-b", hidden_size=96).save_pretrained(tmp_path / "mae-l")
    assert teacher_model_config(str(tmp_path / "mae-l")).hidden_size == 96
    assert teacher_model_config("nowhere/mae-l").hidden_size == 1024
    transformers.CLIPConfig(vision_config=TINY).save_pretrained(tmp_path / "clip")
    assert teacher_model_config(str(tmp_path / "clip")).hidden_size == 32


def test_teachers_of_unknown_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'nowhere/model'"):
        teacher_model_config("nowhere/model")
    transformers.BertConfig().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="'bert'"):
        teacher_flops(TeacherConfig(str(tmp_path / "text")), MVDConfig())
    with pytest.raises(ValueError, match="'model'"):
        distillation_parts(MVDConfig(teacher_dims={"image": 768}), {"image": {"frames": "clip"}})
    with pytest.raises(ValueError, match="layer=13"):
        teacher_flops(TeacherConfig("mae-b", layer=13), MVDConfig())
    with pytest.raises(ValueError, match="teacher_dims"):
        distillation_parts(MVDConfig(), {"image": "mae-b"})


def test_hours_follow_from_peak_and_utilization():
    assert gpu_hours(3600 * 400e12, device_tflops=1000, mfu=0.4) == pytest.approx(1)
    for peak, mfu, name in ((0, 0.4, "device_tflops=0"), (989, 0, "mfu=0"), (989, 40, "mfu=40")):
        with pytest.raises(ValueError, match=name):
            gpu_hours(1e20, peak, mfu)


def test_the_text_and_the_row_of_a_table_add_up():
    parts = distillation_parts(MVDConfig.from_name("mvd-b"), {"image": "mae-b", "video": "videomae-b"}, 2)
    row = training_tflops(parts)
    assert list(row) == ["student", "decoders", "projections", "teacher image", "teacher video", "together"]
    assert row["together"] == pytest.approx(sum(part.training for part in parts) / 1e12)
    assert row["decoders"] == pytest.approx(2 * 3 * parts[1].forward / 1e12)  # forward and backward
    assert row["teacher video"] == pytest.approx(parts[-1].forward / 1e12)  # forward only, once for both masks
    assert f"{row['together']:.4g}" in format_parts(parts).splitlines()[-1]


def test_memory_per_clip_is_what_a_forward_pass_keeps():
    config = student()
    mask = torch.arange(config.num_patches).expand(2, -1) < config.num_masked_patches
    model, kept = MVDForFeatureDistillation(config), {}
    with (
        torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.setdefault(tensor.untyped_storage()._cdata, tensor), lambda tensor: tensor
        ),
        torch.autocast("cpu"),
    ):
        model(torch.zeros(2, 4, 3, 64, 64, dtype=torch.uint8), bool_masked_pos=mask)
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    size = sum(tensor.untyped_storage().nbytes() for number, tensor in kept.items() if number not in own)
    assert kept_bytes(config, 2) == pytest.approx(size, rel=0.01)
    teachers = {
        name: {"model": "teachers/mae-b", "dtype": dtype} for name, dtype in (("a", "float32"), ("b", "bfloat16"))
    }
    fixed, per_clip = training_memory(config, teachers)
    weights = 6 * sum(each.numel() for each in teacher_network(TeacherConfig("teachers/mae-b")).parameters())
    assert fixed * 1e9 == pytest.approx(18 * model.num_parameters() + weights)
    assert training_memory(config, {}, masks_per_clip=3)[1] == pytest.approx(3 * per_clip)
    assert training_memory(config, {}, gradient_checkpointing=True)[1] < 0.7 * per_clip
