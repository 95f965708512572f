"""The arithmetic of student, decoders, classifier and teachers against what torch counts on real models."""

from dataclasses import replace

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from mvd_hf import MVDConfig, MVDForFeatureDistillation, MVDForPixelReconstruction, MVDForVideoClassification
from mvd_hf.data.masking import part_to_decode, tube_mask
from mvd_hf.training.costs import (
    HUB_SIZES,
    NetworkSize,
    classifier_flops,
    describe_parts,
    distillation_parts,
    gpu_hours,
    reconstruction_flops,
    student_size,
    teacher_flops,
    teacher_size,
    training_tflops,
    transformers_size,
)

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_STUDENT = {
    **TINY,
    "image_size": 64,
    "patch_size": 16,
    "num_frames": 4,
    "mask_ratio": 0.5,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "attn_implementation": "eager",  # its products are counted on every device
}
# transformers' class and the fields beside TINY's; every model sees 64 x 64 pixels
FAMILIES = {
    "ViTMAE": ({"intermediate_size": 64, "image_size": 64, "mask_ratio": 0.0}, 16),
    "VideoMAE": ({"intermediate_size": 64, "image_size": 64, "num_frames": 4}, 16),
    "Dinov2": ({"mlp_ratio": 2, "image_size": 70, "patch_size": 14}, 25),
    "Dinov2WithRegisters": ({"mlp_ratio": 2, "image_size": 64, "use_swiglu_ffn": True}, 16),
    "DINOv3ViT": ({"intermediate_size": 64, "image_size": 64, "num_register_tokens": 4, "use_gated_mlp": True}, 16),
    "CLIPVision": ({"intermediate_size": 64, "image_size": 64, "patch_size": 16}, 16),
    "SiglipVision": ({"intermediate_size": 64, "image_size": 64, "vision_use_head": False}, 16),
    "VJEPA2": ({"mlp_ratio": 2, "crop_size": 64, "frames_per_clip": 4, "pred_num_attention_heads": 2}, 16),
}


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def tiny_student(**fields) -> tuple[MVDForFeatureDistillation, torch.Tensor, torch.Tensor]:
    config = MVDConfig.from_name("mvd-b", **{**TINY_STUDENT, "teacher_dims": {"image": 48, "video": 80}, **fields})
    mask = tube_mask(config.grid, config.mask_ratio, generator=torch.Generator().manual_seed(0))
    clips = torch.randn(3, config.num_frames, 3, *config.frame_size)
    return MVDForFeatureDistillation(config), clips, mask.expand(3, -1)


@pytest.mark.parametrize(("name", "frames"), [("mae-b", 1), ("videomae-b", 4)])
def test_a_masked_autoencoder_costs_what_torch_counts(name, frames):
    config = MVDConfig.from_name(name, **{**TINY_STUDENT, "num_frames": frames})
    model, num_masked = MVDForPixelReconstruction(config), config.num_masked_patches
    mask = torch.arange(config.num_patches)[None] < num_masked
    clips = torch.randn(1, frames, 3, *config.frame_size)
    forward = counted(lambda: model(clips, mask, num_masked=num_masked))
    assert reconstruction_flops(config) == pytest.approx(3 * forward, rel=1e-3)


def own_parts(model: MVDForFeatureDistillation) -> list:
    names = dict.fromkeys(model.config.teacher_dims, "mae-b")
    return [part for part in distillation_parts(model.config, names) if part.kind != "teacher"]


@pytest.mark.parametrize("fields", [{}, {"use_class_token": True}, {"mask_ratio": 0.75}], ids=str)
def test_the_students_parts_are_what_torch_counts(fields):
    model, clips, mask = tiny_student(**fields)
    parts = own_parts(model)
    assert [(part.kind, part.teacher) for part in parts] == [
        ("student", ""),
        *[(kind, name) for name in ("image", "video") for kind in ("decoder", "projections")],
    ]
    encoder = counted(lambda: model.mvd(clips, bool_masked_pos=mask))
    assert 3 * parts[0].forward == pytest.approx(encoder, rel=0.001)
    together = counted(lambda: model(clips, bool_masked_pos=mask))
    assert 3 * sum(part.forward for part in parts) == pytest.approx(together, rel=0.001)


@pytest.mark.parametrize("keep", [0.5, 0.25])
def test_several_masks_and_a_decoded_part_cost_what_torch_counts(keep):
    model, clips, mask = tiny_student(decoder_keep=keep)
    part = part_to_decode(mask, model.config.num_decoded_patches, torch.Generator().manual_seed(0))
    names = dict.fromkeys(model.config.teacher_dims, "mae-b")
    once, thrice = (distillation_parts(model.config, names, masks) for masks in (1, 3))
    own = sum(part.forward for part in thrice if part.kind != "teacher")
    expected = counted(lambda: model(clips, bool_masked_pos=mask, bool_decoded_pos=part))  # 3 clips, as 3 masks
    assert own == pytest.approx(expected, rel=0.001)
    teachers = [[part.forward for part in parts if part.kind == "teacher"] for parts in (once, thrice)]
    assert teachers[0] == teachers[1]  # they see a clip once


def test_training_takes_three_forward_passes():
    model, clips, mask = tiny_student(num_hidden_layers=8, image_size=16, patch_size=4)
    expected = 3 * sum(part.training for part in own_parts(model))
    predictions = model(clips, bool_masked_pos=mask).predictions

    def step():
        predictions = model(clips, bool_masked_pos=mask).predictions
        sum(prediction.square().mean() for prediction in predictions.values()).backward()

    # pixels need no gradient: the only product that runs twice instead of three times is the patch projection
    assert counted(step) == pytest.approx(expected, rel=0.02)
    assert {prediction.shape[0] for prediction in predictions.values()} == {3}


def test_the_classifier_is_what_torch_counts():
    config = MVDConfig.from_name("mvd-b", **TINY_STUDENT, num_labels=20)
    model = MVDForVideoClassification(config)
    clips = torch.randn(2, config.num_frames, 3, *config.frame_size)
    assert 2 * classifier_flops(config) == pytest.approx(counted(lambda: model(clips)), rel=0.001)


@pytest.mark.parametrize(
    ("size", "gmacs"), [("s", 56.9), ("b", 180.3), ("l", 596.8), ("h", 1191.0)], ids=["s", "b", "l", "h"]
)
def test_a_view_costs_what_the_authors_report(size, gmacs):
    config = MVDConfig.from_name(f"mvd-{size}", num_labels=400)
    assert classifier_flops(config) / 2e9 == pytest.approx(gmacs, abs=0.06)


@pytest.mark.parametrize("family", FAMILIES)
def test_teachers_of_transformers_cost_what_torch_counts(family, tmp_path):
    fields, num_patches = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**TINY, **fields)
    model = getattr(transformers, f"{family}Model")._from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    size = teacher_size(str(tmp_path))
    side = fields.get("image_size", 64)
    if size.num_frames > 1:
        clips, patches = torch.randn(2, 4, 3, side, side), num_patches * 4 // size.tubelet_size
    else:
        clips, patches = torch.randn(2, 3, side, side), num_patches
    options = {"skip_predictor": True} if family == "VJEPA2" else {}
    with torch.no_grad():
        assert 2 * size.flops(patches) == pytest.approx(counted(lambda: model(clips, **options)), rel=0.02)


def test_the_vision_part_of_a_language_model_counts():
    config = transformers.CLIPConfig(vision_config={**TINY, "intermediate_size": 64, "patch_size": 16})
    assert transformers_size(config, "clip") == NetworkSize(32, 2, 64, extra_tokens=1)


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("facebook/vit-mae-base", transformers.ViTMAEConfig()),
        ("facebook/dinov2-base", transformers.Dinov2Config(patch_size=14)),
        ("MCG-NJU/videomae-base", transformers.VideoMAEConfig()),
        ("google/siglip2-base-patch16-224", transformers.SiglipVisionConfig()),
        ("facebook/vjepa2-vitl-fpc64-256", transformers.VJEPA2Config()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_known_sizes_are_those_of_transformers_defaults(model, config):
    assert HUB_SIZES[model] == transformers_size(config, model)


@pytest.mark.parametrize(("hub", "name"), [("base", "b"), ("large", "l"), ("huge", "h")])
def test_mae_of_the_hub_and_ours_have_one_size(hub, name):
    assert HUB_SIZES[f"facebook/vit-mae-{hub}"] == student_size(MVDConfig.from_name(f"mae-{name}"))
    if name != "h":
        assert HUB_SIZES[f"MCG-NJU/videomae-{hub}"] == student_size(MVDConfig.from_name(f"videomae-{name}"))


def test_a_teachers_frames_and_pixels_count():
    student = MVDConfig.from_name("mvd-b")
    size = HUB_SIZES["facebook/dinov2-base"]
    assert teacher_flops("facebook/dinov2-base", student) == 8 * size.flops(196)
    assert teacher_flops({"model": "facebook/dinov2-base", "frames": "all"}, student) == 16 * size.flops(196)
    larger = {"model": "facebook/dinov2-base", "image_size": 224}
    assert teacher_flops(larger, student) == 8 * size.flops(256)
    assert teacher_flops({"model": "facebook/dinov2-base", "layer": 12}, student) == 8 * size.flops(196)
    inner = teacher_flops({"model": "facebook/dinov2-base", "layer": -7}, student)
    assert inner == 8 * replace(size, num_layers=6).flops(196)
    video = HUB_SIZES["MCG-NJU/videomae-base"]
    assert teacher_flops("MCG-NJU/videomae-base", student) == video.flops(1568)


def test_a_teacher_is_sized_by_its_folder_or_by_the_name_of_one_to_come(tmp_path):
    MVDConfig.from_name("mae-b", hidden_size=96).save_pretrained(tmp_path / "mae-l")
    assert teacher_size(str(tmp_path / "mae-l")).hidden_size == 96
    assert teacher_size("nowhere/mae-l") == HUB_SIZES["facebook/vit-mae-large"]


def test_teachers_of_unknown_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"size of the teacher 'nowhere/model' is not known.*config.json"):
        teacher_size("nowhere/model")
    transformers.BertConfig().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match=r"\(bert\) is no plain vision transformer"):
        teacher_size(str(tmp_path / "text"))
    with pytest.raises(ValueError, match="no key 'model'"):
        teacher_flops({"frames": "clip"}, MVDConfig())
    with pytest.raises(ValueError, match="12 layers, there is no layer=13"):
        teacher_flops({"model": "mae-b", "layer": 13}, MVDConfig())
    with pytest.raises(ValueError, match="teacher_dims names"):
        distillation_parts(MVDConfig(), {"image": "mae-b"})


def test_hours_follow_from_peak_and_utilisation():
    assert gpu_hours(3600 * 400e12, device_tflops=1000, mfu=0.4) == pytest.approx(1)
    for peak, mfu in ((0, 0.4), (989, 0), (989, 40)):
        with pytest.raises(ValueError, match=r"must be above 0|above 0 and at most 1"):
            gpu_hours(1e20, peak, mfu)


def test_the_text_and_the_row_of_a_table_add_up():
    parts = distillation_parts(MVDConfig.from_name("mvd-b"), {"image": "mae-b", "video": "videomae-b"})
    row = training_tflops(parts)
    assert list(row) == ["student", "decoders", "projections", "teacher image", "teacher video", "together"]
    assert row["together"] == pytest.approx(sum(part.training for part in parts) / 1e12)
    assert row["decoders"] == pytest.approx(2 * 3 * parts[1].forward / 1e12)
    assert row["teacher video"] == pytest.approx(parts[-1].forward / 1e12)
    assert f"{row['together']:.4g}" in describe_parts(parts).splitlines()[-1]
