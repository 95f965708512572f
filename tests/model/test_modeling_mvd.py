"""The network: parameters, positions, masks, pixels, initialisation, heads, loading, attention, export, gradients.

Numbers of the official programs are in `parity/`; here a tiny network is compared with what it must do.
"""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVideoClassification
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mvd_hf import MVDConfig, MVDForFeatureDistillation, MVDForPixelReconstruction, MVDForVideoClassification, MVDModel
from mvd_hf.model.modeling_mvd import MVDLayer
from mvd_hf.model.patches_mvd import pixel_targets

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
    """A tiny model in evaluation mode, all its parameters drawn anew: none is zero or one, no two are equal."""
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


def inputs_of(model_class) -> dict[str, torch.Tensor]:
    return {"pixel_values": clips()} | ({"bool_masked_pos": masks()} if model_class in MASKED_CLASSES else {})


def main_output(output) -> torch.Tensor:
    """All that a model predicts, one row per clip."""
    if "predictions" in output:
        return torch.cat([value.flatten(1) for value in output.predictions.values()], dim=1)
    return (output.logits if "logits" in output else output.last_hidden_state).flatten(1)


def assert_same_output(model, other, **inputs):
    with torch.no_grad():
        torch.testing.assert_close(main_output(model(**inputs)), main_output(other(**inputs)))


def assert_same_weights(module: nn.Module, other: nn.Module):
    weights, others = module.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert [key for key in weights if not torch.equal(weights[key], others[key])] == []


def edit_weights(folder, edit):
    """Change the weights of a saved model in its file."""
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# Sizes


@pytest.mark.parametrize(
    ("size", "expected"), [("s", 22_033_936), ("b", 86_534_800), ("l", 304_270_736), ("h", 632_119_440)]
)
def test_classifier_has_the_published_number_of_parameters(size, expected):
    with torch.device("meta"):
        model = MVDForVideoClassification(MVDConfig.from_name(f"mvd-{size}", num_labels=400))
    assert model.num_parameters(only_trainable=True) == expected


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
    assert model.num_parameters(only_trainable=True) == expected


# Positions


def bare_encoder(**fields) -> MVDModel:
    """An encoder without layers, norm or bias: black clips come out as their position code."""
    model = MVDModel(MVDConfig(**(tiny_config().to_diff_dict() | {"num_hidden_layers": 0} | fields)), False).eval()
    nn.init.zeros_(model.embeddings.projection.bias)
    return model


def bare_student(**fields) -> MVDForFeatureDistillation:
    """A student whose predictions are the mask token plus the position code, in 32 channels."""
    model = MVDForFeatureDistillation(tiny_config(num_hidden_layers=0, decoder_num_hidden_layers=0, **fields)).eval()
    for decoder in model.decoders.values():
        decoder.norm, decoder.head = nn.Identity(), nn.Identity()
    return model


def positions_of(model: MVDModel, frames: int, height: int, width: int, **options) -> torch.Tensor:
    black = torch.zeros(1, frames, 3, height, width, dtype=model.dtype)
    return model(black, **options).last_hidden_state[0].detach()


def reference_positions(kind: str, time: int, rows: int, columns: int, width: int) -> torch.Tensor:
    """The three position codes, number by number."""

    def code(position, width):
        angles = [position * 10000 ** (-i / (width / 2)) for i in range(width // 2)]
        return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]

    table = []
    for t in range(time):
        for row in range(rows):
            for column in range(columns):
                if kind == "flat":
                    index = (t * rows + row) * columns + column
                    angles = [index / 10000 ** (2 * (j // 2) / width) for j in range(width)]
                    table.append([math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(angles)])
                elif kind == "space":
                    table.append(code(column, width // 2) + code(row, width // 2))
                else:
                    table.append(code(t, width // 4) + code(column, 3 * width // 8) + code(row, 3 * width // 8))
    return torch.tensor(table)


@pytest.mark.parametrize("loaded", [False, True])
def test_position_code_has_the_golden_values(loaded, tmp_path):
    model = MVDModel(MVDConfig.from_name("mvd-s", num_hidden_layers=0), add_final_norm=False)
    nn.init.zeros_(model.embeddings.projection.bias)
    if loaded:
        model.save_pretrained(tmp_path)
        model = MVDModel.from_pretrained(tmp_path, add_final_norm=False)
    code = positions_of(model, 16, 224, 224)
    assert code.shape == (1568, 384)
    golden = {0: 0.84147, 48: 0.54030, 96: 0.14112, 168: -0.98999, 240: 0.90930, 312: -0.41615}
    # token 227: time 1, row 2, column 3
    assert {channel: round(code[227, channel].item(), 5) for channel in golden} == golden


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_position_code_is_the_published_formula_for_any_grid(kind, loaded, tmp_path):
    model = bare_encoder(position_embedding_type=kind)
    if loaded:
        model.save_pretrained(tmp_path)
        model = MVDModel.from_pretrained(tmp_path, add_final_norm=False)
    for frames, height, width in ((4, 16, 16), (6, 16, 16), (2, 24, 12)):
        expected = reference_positions(kind, frames // 2, height // 4, width // 4, 32)
        torch.testing.assert_close(positions_of(model, frames, height, width), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", ["to", "from_pretrained"])
def test_position_code_is_rounded_once_in_half_precision(how, dtype, tmp_path):
    model = bare_encoder(position_embedding_type="spacetime")
    model.save_pretrained(tmp_path)
    model = model.to(dtype) if how == "to" else MVDModel.from_pretrained(tmp_path, add_final_norm=False, dtype=dtype)
    for frames, height, width in ((4, 16, 16), (8, 24, 24)):
        code = positions_of(model, frames, height, width)
        expected = reference_positions("spacetime", frames // 2, height // 4, width // 4, 32)
        assert code.dtype == dtype
        torch.testing.assert_close(code.float(), expected.to(dtype).float(), atol=1e-6, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", KINDS)
def test_other_sizes_at_run_time_equal_a_student_configured_for_them(kind):
    model = tiny(MVDForFeatureDistillation, position_embedding_type=kind)
    for frames, height, width in ((8, 16, 16), (2, 16, 16), (4, 24, 8), (6, 8, 12)):
        configured = tiny(
            MVDForFeatureDistillation,
            position_embedding_type=kind,
            num_frames=frames,
            image_size=(height, width),
        )
        configured.load_state_dict(model.state_dict())
        length = configured.config.num_patches
        inputs = {
            "pixel_values": clips(2, frames, height, width),
            "bool_masked_pos": masks(2, length // 2, length),
        }
        assert_same_output(model, configured, **inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_interpolated_positions_are_a_bicubic_resize_of_the_configured_ones(kind):
    frames, height, width = 6, 24, 20
    configured = reference_positions(kind, 3, 4, 4, 32).view(3, 4, 4, 32).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(configured, size=(6, 5), mode="bicubic", align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(90, 32)
    model = bare_encoder(position_embedding_type=kind)
    code = positions_of(model, frames, height, width, interpolate_pos_encoding=True)
    torch.testing.assert_close(code, expected, atol=1e-5, rtol=0)
    student = bare_student(position_embedding_type=kind)
    mask = masks(1, 60, 90)
    predictions = student(clips(1, frames, height, width), mask, interpolate_pos_encoding=True).predictions
    for name, decoder in student.decoders.items():
        torch.testing.assert_close(predictions[name][0], expected[mask[0]] + decoder.mask_token[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_interpolation_leaves_the_configured_height_and_width_alone(kind):
    model = bare_encoder(position_embedding_type=kind)
    for frames in (4, 8):
        code = positions_of(model, frames, 16, 16, interpolate_pos_encoding=True)
        torch.testing.assert_close(code, reference_positions(kind, frames // 2, 4, 4, 32), atol=1e-6, rtol=0)


def test_image_teacher_at_196_pixels_has_the_top_left_positions_of_224():
    model = bare_encoder(**MVDConfig.from_name("mae-h", num_hidden_layers=0, hidden_size=64).to_diff_dict())
    full = positions_of(model, 1, 224, 224)[1:].view(16, 16, 64)
    code = positions_of(model, 1, 196, 196)
    assert torch.equal(code[1:].view(14, 14, 64), full[:14, :14])
    assert torch.equal(code[:1], model.embeddings.class_token[0])


# Masks


@pytest.mark.parametrize("use_class_token", [False, True])
def test_encoder_sees_the_visible_patches_in_ascending_order(use_class_token):
    model = tiny(MVDModel, num_hidden_layers=0, use_class_token=use_class_token)
    pixel_values, mask = clips(), masks()
    everything = model(pixel_values).last_hidden_state
    visible = model(pixel_values, mask).last_hidden_state
    extra = int(use_class_token)
    assert everything.shape == (2, extra + NUM_PATCHES, 32)
    assert visible.shape == (2, extra + NUM_PATCHES - NUM_MASKED, 32)
    for b, ids in enumerate(ids_of(~mask)):
        torch.testing.assert_close(visible[b, extra:], everything[b, extra:][ids])
        torch.testing.assert_close(visible[b, :extra], everything[b, :extra])


def test_class_token_comes_first_and_has_no_position():
    model = tiny(MVDModel, False, num_hidden_layers=0, use_class_token=True)
    token = model(clips()).last_hidden_state[:, 0]
    assert torch.equal(token, model.embeddings.class_token[0].expand(2, -1))


@pytest.mark.parametrize("use_class_token", [False, True])
def test_predictions_are_in_ascending_order_of_the_masked_patches(use_class_token):
    model = bare_student(use_class_token=use_class_token)
    mask = masks()
    code = reference_positions("spacetime", 2, 4, 4, 32)
    predictions = model(clips(), mask).predictions
    for name, decoder in model.decoders.items():
        for b, ids in enumerate(ids_of(mask)):
            torch.testing.assert_close(predictions[name][b], code[ids] + decoder.mask_token[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
@pytest.mark.parametrize("use_class_token", [False, True])
def test_visible_patches_of_the_same_clip_alone_influence_the_predictions(model_class, use_class_token):
    model = tiny(model_class, use_class_token=use_class_token)
    pixel_values, mask = clips().requires_grad_(), masks()
    main_output(model(pixel_values, mask))[1].square().sum().backward()
    influence = pixel_values.grad.abs().view(2, 2, 2, 3, 4, 4, 4, 4).amax(dim=(2, 3, 5, 7)).flatten(1)
    assert (influence[1][~mask[1]] > 0).all()
    assert (influence[1][mask[1]] == 0).all()
    assert (influence[0] == 0).all()


def test_every_decoder_gives_its_teachers_width_for_every_masked_patch():
    model = tiny(MVDForFeatureDistillation, teacher_dims={"clip": 5, "image": 8, "video": 12})
    output = model(clips(), masks())
    shapes = {name: prediction.shape for name, prediction in output.predictions.items()}
    assert shapes == {"clip": (2, 24, 5), "image": (2, 24, 8), "video": (2, 24, 12)}
    assert output.last_hidden_state.shape == (2, 8, 32)


@pytest.mark.parametrize("model_class", [MVDModel, *MASKED_CLASSES])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.arange(NUM_PATCHES) < torch.tensor([[24], [20]]), "20, 24"),
        (torch.zeros(2, NUM_PATCHES, dtype=torch.bool), "0 of 32"),
        (torch.ones(2, NUM_PATCHES, dtype=torch.bool), "32 of 32"),
        (torch.arange(33).expand(2, -1) < 24, r"must be \(2, 32\) bool for 2 clips of 2x4x4 patches, got \(2, 33\)"),
        (torch.arange(NUM_PATCHES) < 24, r"must be \(2, 32\) bool for 2 clips of 2x4x4 patches, got \(32,\)"),
        (torch.arange(NUM_PATCHES).expand(1, -1) < 24, r"must be \(2, 32\) bool .* got \(1, 32\)"),
        (torch.arange(NUM_PATCHES).expand(3, -1) < 24, r"must be \(2, 32\) bool .* got \(3, 32\)"),
        (torch.ones(2, NUM_PATCHES), r"must be \(2, 32\) bool .* got \(2, 32\) torch.float32"),
    ],
    ids=["unequal counts", "nothing", "all", "wrong length", "no batch", "one clip", "three clips", "not bool"],
)
def test_mask_that_does_not_fit_is_refused_with_its_numbers(model_class, mask, message):
    with pytest.raises(ValueError, match=message):
        tiny(model_class)(clips(), bool_masked_pos=mask)


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
def test_missing_mask_is_refused(model_class):
    with pytest.raises(ValueError, match="bool_masked_pos"):
        tiny(model_class)(clips())


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
def test_announced_number_of_masked_patches_changes_nothing(model_class):
    model, inputs = tiny(model_class), inputs_of(model_class)
    assert torch.equal(main_output(model(**inputs)), main_output(model(**inputs, num_masked=NUM_MASKED)))


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
@pytest.mark.parametrize("num_masked", [23, 25])
def test_wrong_number_of_masked_patches_is_refused(model_class, num_masked):
    with pytest.raises(RuntimeError, match=f"bool_masked_pos must .* {num_masked} "):
        tiny(model_class)(**inputs_of(model_class), num_masked=num_masked)


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
@pytest.mark.parametrize("num_masked", [0, NUM_PATCHES])
def test_announcing_that_nothing_or_everything_is_masked_is_refused(model_class, num_masked):
    mask = torch.full((2, NUM_PATCHES), num_masked > 0)
    with pytest.raises(ValueError, match=f"{num_masked} of 32 "):
        tiny(model_class)(clips(), mask, num_masked=num_masked)


def some_of(mask: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` masked patches of one row and the last of the next."""
    masked = ids_of(mask)
    chosen = torch.stack([ids[:count] if b % 2 == 0 else ids[-count:] for b, ids in enumerate(masked)])
    return torch.zeros_like(mask).scatter(1, chosen, True)


@pytest.mark.parametrize("use_class_token", [False, True])
def test_predictions_of_a_part_are_in_ascending_order_of_its_patches(use_class_token):
    model = bare_student(use_class_token=use_class_token, decoder_keep=0.25)
    mask = masks()
    part = some_of(mask, 6)
    code = reference_positions("spacetime", 2, 4, 4, 32)
    predictions = model(clips(), mask, bool_decoded_pos=part).predictions
    for name, decoder in model.decoders.items():
        for b, ids in enumerate(ids_of(part)):
            torch.testing.assert_close(predictions[name][b], code[ids] + decoder.mask_token[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
def test_decoding_all_hidden_patches_by_name_changes_nothing(model_class):
    model, inputs = tiny(model_class), inputs_of(model_class)
    named = model(**inputs, bool_decoded_pos=inputs["bool_masked_pos"])
    assert torch.equal(main_output(named), main_output(model(**inputs)))


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
def test_patches_left_out_of_the_decoder_have_no_part_in_it(model_class):
    model, mask = tiny(model_class, decoder_keep=0.5), masks()
    part = some_of(mask, 12)
    # the tokens of a decoder are the visible patches and the part, whatever else is masked
    tokens = []
    decoder = model.decoder if model_class is MVDForPixelReconstruction else next(iter(model.decoders.values()))
    decoder.layers[0].register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
    model(clips(), mask, bool_decoded_pos=part)
    assert tokens == [NUM_PATCHES - NUM_MASKED + 12]


def test_the_pixel_loss_is_that_of_the_decoded_part():
    model, pixel_values, mask = tiny(MVDForPixelReconstruction, decoder_keep=0.5), clips(), masks()
    part = some_of(mask, 12)
    output = model(pixel_values, mask, bool_decoded_pos=part)
    targets = pixel_targets(pixel_values, model.config)[part].view(2, 12, -1)
    assert output.loss.item() == pytest.approx((output.logits - targets).square().mean().item(), rel=1e-6)


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
def test_a_part_that_is_not_hidden_or_of_another_count_is_refused(model_class):
    model, mask = tiny(model_class, decoder_keep=0.5), masks()
    for part in (some_of(mask, 11), mask, ~mask, some_of(mask, 12) | ~mask):
        with pytest.raises(RuntimeError, match=r"bool_decoded_pos must .* 12 "):
            model(clips(), mask, bool_decoded_pos=part)
    for part in (mask[:1], mask[:, :-1], mask.float()):
        with pytest.raises(ValueError, match=r"bool_decoded_pos must be \(2, 32\) bool like bool_masked_pos"):
            model(clips(), mask, bool_decoded_pos=part)


def test_visible_ids_of_another_batch_are_refused():
    with pytest.raises(ValueError, match=r"visible_ids must be \(2, visible patches\), got \(1, 8\)"):
        tiny(MVDModel)(clips(), visible_ids=torch.arange(8)[None])


def test_a_clip_without_frames_is_refused():
    with pytest.raises(ValueError, match="A clip of 0 frames of 16x16 pixels"):
        tiny(MVDModel)(clips(frames=0))


@pytest.mark.parametrize("name", ["keys", "training", "_modules", "forward", "two words", ""])
def test_teacher_names_that_a_module_cannot_hold_are_refused(name):
    with pytest.raises(ValueError, match=f"The teacher name '{name}'"):
        MVDForFeatureDistillation(tiny_config(teacher_dims={name: 8}))


def test_normalisation_must_have_a_value_for_every_channel():
    with pytest.raises(ValueError, match=r"image_mean=\[0.485, 0.456, 0.406\] must have one value for each of the 1"):
        MVDModel(tiny_config(num_channels=1))
    grey = MVDModel(tiny_config(num_channels=1, image_mean=0.5, image_std=0.25)).eval()
    pixels = torch.randint(0, 256, (2, 4, 1, 16, 16), dtype=torch.uint8)
    expected = grey((pixels / 255 - 0.5) / 0.25).last_hidden_state
    torch.testing.assert_close(grey(pixels).last_hidden_state, expected)


def test_visible_ids_give_the_same_as_the_mask():
    model, pixel_values, mask = tiny(MVDModel), clips(), masks()
    by_mask = model(pixel_values, bool_masked_pos=mask).last_hidden_state
    by_ids = model(pixel_values, visible_ids=ids_of(~mask)).last_hidden_state
    assert torch.equal(by_mask, by_ids)
    with pytest.raises(ValueError, match="not both"):
        model(pixel_values, bool_masked_pos=mask, visible_ids=ids_of(~mask))


# Pixels


def bytes_and_floats(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip as decoded and the same clip as normalised."""
    pixels = torch.randint(0, 256, (2, 4, 3, 16, 16), dtype=torch.uint8)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (mean, std))
    return pixels, (pixels.float() / 255 - mean) / std


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("loaded", [False, True])
def test_bytes_give_the_same_as_normalised_floats(model_class, loaded, tmp_path):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    model = tiny(model_class, image_mean=mean, image_std=std)
    if loaded:
        model.save_pretrained(tmp_path)
        model = model_class.from_pretrained(tmp_path)
    inputs = inputs_of(model_class)
    pixels, floats = bytes_and_floats(mean, std)
    outputs = [main_output(model(**(inputs | {"pixel_values": values}))) for values in (pixels, floats)]
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pixel_target", ["videomae", "mae"])
@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_bytes_give_the_same_pixel_loss_as_normalised_floats(pixel_target, norm_pix_loss):
    model = tiny(MVDForPixelReconstruction, pixel_target=pixel_target, norm_pix_loss=norm_pix_loss)
    mask = masks()
    pixels, floats = bytes_and_floats()
    losses = [model(values, mask).loss.item() for values in (pixels, floats)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_pixel_loss_is_the_error_at_the_masked_patches():
    model = tiny(MVDForPixelReconstruction, pixel_target="mae", norm_pix_loss=False)
    pixel_values, mask = clips(), masks()
    output = model(pixel_values, mask)
    errors = []
    for b, ids in enumerate(ids_of(mask)):
        for i, index in enumerate(ids.tolist()):
            time, row, column = index // 16 * 2, index // 4 % 4 * 4, index % 4 * 4
            patch = pixel_values[b, time : time + 2, :, row : row + 4, column : column + 4]
            errors.append((output.logits[b, i] - patch.permute(0, 2, 3, 1).flatten()).square().mean())
    torch.testing.assert_close(output.loss, torch.stack(errors).mean())
    without = model(pixel_values, mask, return_loss=False)
    assert without.loss is None
    assert torch.equal(without.logits, output.logits)


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (torch.zeros(2, 4, 3, 16, 16, dtype=torch.int64), "uint8 pixels or normalised floats, got torch.int64"),
        (torch.zeros(2, 3, 4, 16, 16), r"3 channels, height, width\), got \(2, 3, 4, 16, 16\)"),
        (torch.zeros(4, 3, 16, 16), r"3 channels, height, width\), got \(4, 3, 16, 16\)"),
        (torch.zeros(2, 5, 3, 16, 16), "5 frames of 16x16 pixels cannot be cut into patches of 2 frames x 4 x 4"),
        (torch.zeros(2, 4, 3, 18, 16), "4 frames of 18x16 pixels cannot be cut"),
        (torch.zeros(2, 4, 3, 16, 22), "4 frames of 16x22 pixels cannot be cut"),
    ],
    ids=["dtype", "channels", "dimensions", "frames", "height", "width"],
)
def test_clip_that_does_not_fit_is_refused_with_its_values(model_class, pixel_values, message):
    with pytest.raises(ValueError, match=message):
        tiny(model_class)(**(inputs_of(model_class) | {"pixel_values": pixel_values}))


# Initialisation


def fresh(model_class, how: str, folder, *args, **fields) -> nn.Module:
    """A model with fresh weights: just built, or loaded from a file in which all but one weight are missing."""
    config = tiny_config(
        hidden_size=256, num_hidden_layers=1, decoder_hidden_size=256, use_class_token=True, num_labels=50, **fields
    )
    model = model_class(config, *args)
    if how == "built":
        return model
    model.save_pretrained(folder)

    def keep_one(weights):
        for key in [key for key in weights if not key.endswith("layers.0.norm1.weight") or "decoder" in key]:
            del weights[key]

    edit_weights(folder, keep_one)
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert len(report["missing_keys"]) == len(model.state_dict()) - 1
    return model


def assert_uniform(tensor: torch.Tensor, bound: float):
    assert bound * 0.97 < tensor.abs().max() <= bound
    if tensor.numel() > 10_000:
        assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


def assert_constants(model: nn.Module):
    """Norms are the identity and all biases but the patch projection's are zero."""
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)
    biases = {name: value for name, value in model.named_parameters() if name.endswith("bias")}
    assert len(biases) > len(norms)
    assert [name for name, value in biases.items() if "projection" not in name and value.any()] == []


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("how", ["built", "missing in the file"])
@pytest.mark.parametrize("model_class", [MVDModel, MVDForFeatureDistillation, MVDForPixelReconstruction])
def test_pretraining_starts_from_xavier_and_pytorchs_convolution(model_class, how, tmp_path):
    model = fresh(model_class, how, tmp_path)
    for module in linear_layers(model).values():
        rows, columns = module.weight.shape  # queries, keys and values are one matrix of 3D rows
        assert_uniform(module.weight, (6 / (rows + columns)) ** 0.5)
    projection = model.base_model.embeddings.projection
    assert projection.weight.shape == (256, 3, 2, 4, 4)
    assert_uniform(projection.weight, 96**-0.5)
    assert_uniform(projection.bias, 96**-0.5)
    assert 0 < model.base_model.embeddings.class_token.abs().max() < 1e-5
    assert model.base_model.embeddings.class_token.std().item() == pytest.approx(1e-6, rel=0.2)
    for name, token in model.named_parameters():
        if name.endswith("mask_token"):
            assert token.abs().max() <= 0.02
            assert token.std().item() == pytest.approx(0.0109, rel=0.1)
    assert_constants(model)


@pytest.mark.parametrize("how", ["built", "missing in the file"])
def test_mae_starts_from_its_own_tokens_and_a_xavier_convolution(how, tmp_path):
    model = fresh(MVDForPixelReconstruction, how, tmp_path, pixel_target="mae", num_frames=1, tubelet_size=1)
    for module in linear_layers(model).values():
        assert_uniform(module.weight, (6 / sum(module.weight.shape)) ** 0.5)
    projection = model.mvd.embeddings.projection
    assert_uniform(projection.weight, (6 / (256 + 48)) ** 0.5)
    assert_uniform(projection.bias, 48**-0.5)
    for token in (model.mvd.embeddings.class_token, model.decoder.mask_token):
        assert token.abs().max() > 0.04
        assert token.std().item() == pytest.approx(0.02, rel=0.2)
    assert_constants(model)


@pytest.mark.parametrize("how", ["built", "missing in the file"])
@pytest.mark.parametrize("use_mean_pooling", [True, False])
@pytest.mark.parametrize("head_init_scale", [0.001, 1.0])
def test_classifier_starts_from_small_normal_weights_and_a_scaled_head(
    head_init_scale, use_mean_pooling, how, tmp_path
):
    fields = {"head_init_scale": head_init_scale, "use_mean_pooling": use_mean_pooling}
    model = fresh(MVDForVideoClassification, how, tmp_path, **fields)
    for name, module in linear_layers(model).items():
        std = 0.02 * head_init_scale if name == "classifier" else 0.02
        assert module.weight.std().item() == pytest.approx(std, rel=0.03)
        assert module.weight.abs().max() > 3 * std
    assert_uniform(model.mvd.embeddings.projection.weight, 96**-0.5)
    assert_uniform(model.mvd.embeddings.projection.bias, 96**-0.5)
    token = model.mvd.embeddings.class_token
    assert token.abs().max() > 0.04
    assert token.std().item() == pytest.approx(0.02, rel=0.2)
    assert_constants(model)


@pytest.mark.parametrize("how", ["built", "missing in the file"])
@pytest.mark.parametrize(
    "model_class", [MVDModel, MVDForPixelReconstruction, MVDForFeatureDistillation, MVDForVideoClassification]
)
def test_a_spread_of_the_encoders_fresh_weights_is_for_the_encoder_alone(model_class, how, tmp_path):
    model, usual = (
        fresh(model_class, how, tmp_path / str(std), encoder_init_std=std, head_init_scale=1.0) for std in (0.3, None)
    )
    before = linear_layers(usual)
    for name, module in linear_layers(model).items():
        is_of_encoder = name.startswith("layers." if model_class is MVDModel else "mvd.layers.")
        expected = 0.3 if is_of_encoder else before[name].weight.std().item()
        assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert (module.weight.std() > 2 * before[name].weight.std()) == is_of_encoder


# Stochastic depth


def test_stochastic_depth_grows_linearly_in_the_encoder_and_in_each_decoder():
    model = MVDForFeatureDistillation(
        tiny_config(num_hidden_layers=4, decoder_num_hidden_layers=3, drop_path_rate=0.3, hidden_size=32)
    )
    assert [layer.drop_path.p for layer in model.mvd.layers] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    for decoder in model.decoders.values():
        assert [layer.drop_path.p for layer in decoder.layers] == pytest.approx([0.0, 0.15, 0.3])


def test_stochastic_depth_is_off_in_evaluation_and_on_in_training():
    inputs = inputs_of(MVDForFeatureDistillation)
    model = tiny(MVDForFeatureDistillation, drop_path_rate=0.9)
    plain = tiny(MVDForFeatureDistillation)
    plain.load_state_dict(model.state_dict())
    assert_same_output(model, plain, **inputs)
    model.train()
    assert not torch.equal(main_output(model(**inputs)), main_output(plain(**inputs)))


@pytest.mark.parametrize("silent", ["attention.proj", "mlp.fc2"])
def test_branch_of_a_sample_is_dropped_or_scaled_in_training(silent):
    layer = MVDLayer(tiny_config(attn_implementation="eager"), 32, 4, 64, drop_path=0.25)
    nn.init.zeros_(layer.get_submodule(silent).weight)
    nn.init.zeros_(layer.get_submodule(silent).bias)
    tokens = torch.randn(2000, 3, 32)
    with torch.no_grad():
        branch = layer.eval()(tokens) - tokens
        trained = layer.train()(tokens) - tokens
    dropped = (trained == 0).flatten(1).all(dim=1)
    torch.testing.assert_close(trained[~dropped], branch[~dropped] / 0.75, atol=1e-5, rtol=1e-4)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_the_two_branches_of_a_layer_are_dropped_independently():
    layer = MVDLayer(tiny_config(attn_implementation="eager"), 32, 4, 64, drop_path=0.5).train()
    tokens = torch.randn(2000, 3, 32)
    with torch.no_grad():
        both_dropped = (layer(tokens) == tokens).flatten(1).all(dim=1)
    assert both_dropped.float().mean().item() == pytest.approx(0.25, abs=0.04)


# Heads


def test_trainer_must_not_pass_loss_arguments():
    assert [model_class.accepts_loss_kwargs for model_class in MODEL_CLASSES] == [False] * 4


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_soft_labels_give_the_soft_cross_entropy_and_leave_the_config_alone(problem_type):
    model = tiny(MVDForVideoClassification, problem_type=problem_type)
    labels = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    before = model.config.to_dict()
    output = model(clips(), labels=labels)
    log_probabilities = output.logits - output.logits.exp().sum(dim=1, keepdim=True).log()
    expected = -(labels * log_probabilities).sum(dim=1).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert model.config.problem_type == problem_type
    assert model.config.to_dict() == before


def test_hard_labels_give_the_log_probability_of_the_class_and_leave_the_config_alone():
    model, pixel_values = tiny(MVDForVideoClassification), clips()
    output = model(pixel_values, labels=torch.tensor([2, 0]))
    log_probabilities = output.logits.log_softmax(dim=1)
    expected = -(log_probabilities[0, 2] + log_probabilities[1, 0]) / 2
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert model.config.problem_type is None
    assert model(pixel_values).loss is None


def test_multi_label_problem_gives_the_binary_cross_entropy():
    model = tiny(MVDForVideoClassification, problem_type="multi_label_classification")
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    output = model(clips(), labels=labels)
    probabilities = output.logits.sigmoid()
    expected = -(labels * probabilities.log() + (1 - labels) * (1 - probabilities).log()).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_regression_problem_gives_the_squared_error(num_labels):
    model = tiny(MVDForVideoClassification, problem_type="regression", num_labels=num_labels)
    labels = torch.randn(2, 3)[:, :num_labels].squeeze(1)
    output = model(clips(), labels=labels)
    expected = (output.logits.view(2, -1) - labels.view(2, -1)).square().mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("use_class_token", [False, True])
def test_mean_pooling_classifies_the_normalised_mean_of_the_patches(use_class_token):
    model = tiny(MVDForVideoClassification, use_class_token=use_class_token)
    output = model(clips(), output_hidden_states=True)
    mean = output.hidden_states[-1][:, -NUM_PATCHES:].mean(dim=1)
    mean = (mean - mean.mean(dim=1, keepdim=True)) / (mean.var(dim=1, correction=0, keepdim=True) + 1e-6).sqrt()
    expected = model.classifier(mean * model.fc_norm.weight + model.fc_norm.bias)
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("use_class_token", [False, True])
def test_pooling_without_mean_classifies_the_first_token_after_the_final_norm(use_class_token):
    model = tiny(MVDForVideoClassification, use_class_token=use_class_token, use_mean_pooling=False)
    output = model(clips(), output_hidden_states=True)
    expected = model.classifier(model.mvd.layernorm(output.hidden_states[-1][:, 0]))
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-4)
    assert model.fc_norm is None


def test_classifier_dropout_acts_in_training_only():
    model = tiny(MVDForVideoClassification, classifier_dropout=0.9)
    plain = tiny(MVDForVideoClassification)
    plain.load_state_dict(model.state_dict())
    inputs = inputs_of(MVDForVideoClassification)
    assert_same_output(model, plain, **inputs)
    assert not torch.equal(model.train()(**inputs).logits, plain(**inputs).logits)


# Gradients


@pytest.mark.parametrize("use_class_token", [False, True])
@pytest.mark.parametrize(
    ("model_class", "fields"),
    [
        (MVDModel, {}),
        (MVDForFeatureDistillation, {}),
        (MVDForPixelReconstruction, {}),
        (MVDForPixelReconstruction, {"key_bias": True, "decoder_embed_bias": False, "pixel_target": "mae"}),
        (MVDForVideoClassification, {}),
        (MVDForVideoClassification, {"use_mean_pooling": False}),
    ],
)
def test_every_parameter_receives_a_gradient(model_class, fields, use_class_token):
    model = tiny(model_class, use_class_token=use_class_token, **fields).train()
    output = model(**inputs_of(model_class))
    loss = output.loss if model_class is MVDForPixelReconstruction else main_output(output).square().sum()
    loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    # only a key bias cannot change the softmax
    idle = [name for name, parameter in model.named_parameters() if parameter.grad.abs().max() < 1e-7]
    assert [name for name in idle if not name.endswith("k_bias")] == []


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers 5.23 prefers another name, 5.17 lacks it
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_gradient_checkpointing_gives_the_same_gradients(model_class):
    model = tiny(model_class, drop_path_rate=0.5, hidden_dropout_prob=0.1).train()
    inputs = inputs_of(model_class)
    calls = []
    for module in model.modules():
        if isinstance(module, MVDLayer):
            module.norm1.register_forward_hook(lambda *_: calls.append(1))
    gradients, counts = [], []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        calls.clear()
        torch.manual_seed(7)
        main_output(model(**inputs)).square().sum().backward()
        counts.append(len(calls))
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert counts[1] == 2 * counts[0]
    torch.testing.assert_close(gradients[1], gradients[0])


# Loading


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_complete_checkpoint_is_loaded_bit_by_bit(model_class, tmp_path):
    model = tiny(model_class, use_class_token=True, key_bias=True)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = model_class.from_pretrained(tmp_path)
    assert not loaded.training
    assert_same_weights(loaded, model)
    buffers, others = dict(loaded.named_buffers()), dict(model.named_buffers())
    assert buffers.keys() == others.keys()
    assert all(torch.equal(buffers[name], others[name]) for name in buffers)
    inputs = inputs_of(model_class)
    assert torch.equal(main_output(loaded(**inputs)), main_output(model(**inputs)))


@pytest.mark.parametrize("weight_init", ["mae", "pretrain", "finetune"])
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_no_initialisation_touches_loaded_weights(model_class, weight_init, tmp_path):
    model = tiny(model_class, pixel_target="mae" if weight_init == "mae" else "videomae")
    model.save_pretrained(tmp_path)

    class Initialised(model_class):
        def __init__(self, config):
            super().__init__(config)
            self.weight_init = weight_init

    assert_same_weights(Initialised.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("pixel_target", ["mae", "videomae"])
def test_masked_autoencoder_is_loaded_bit_by_bit(pixel_target, tmp_path):
    model = tiny(MVDForPixelReconstruction, pixel_target=pixel_target)
    model.save_pretrained(tmp_path)
    assert_same_weights(MVDForPixelReconstruction.from_pretrained(tmp_path), model)


def test_checkpoint_holds_parameters_only(tmp_path):
    model = tiny(MVDForFeatureDistillation)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
def test_encoder_is_taken_out_of_a_pretrained_model(model_class, tmp_path):
    model = tiny(model_class)
    model.save_pretrained(tmp_path)
    assert_same_weights(MVDModel.from_pretrained(tmp_path), model.mvd)
    without_norm = MVDModel.from_pretrained(tmp_path, add_final_norm=False)
    assert without_norm.layernorm is None
    model.mvd.layernorm = None
    assert_same_weights(without_norm, model.mvd)


def test_encoder_is_taken_out_of_a_first_token_classifier(tmp_path):
    model = tiny(MVDForVideoClassification, use_mean_pooling=False)
    model.save_pretrained(tmp_path)
    assert_same_weights(MVDModel.from_pretrained(tmp_path), model.mvd)


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
def test_fresh_decoders_are_given_to_an_encoder_when_asked_for(model_class, tmp_path):
    model = tiny(MVDModel)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing: [0-9]+ \(decoder.*ignore_mismatched_sizes"):
        model_class.from_pretrained(tmp_path)
    assert_same_weights(model_class.from_pretrained(tmp_path, ignore_mismatched_sizes=True).mvd, model)


@pytest.mark.parametrize("source", [MVDModel, MVDForFeatureDistillation, MVDForPixelReconstruction])
@pytest.mark.parametrize(
    "asked",
    [{"num_labels": 5}, {"id2label": dict(enumerate("abcde"))}, {"ignore_mismatched_sizes": True}],
)
def test_fresh_head_is_given_when_asked_for(source, asked, tmp_path):
    model = tiny(source)
    model.save_pretrained(tmp_path)
    loaded = MVDForVideoClassification.from_pretrained(tmp_path, **asked)
    num_labels = 3 if "ignore_mismatched_sizes" in asked else 5
    assert loaded.classifier.weight.shape == (num_labels, 32)
    assert loaded.config.num_labels == loaded.num_labels == num_labels
    assert loaded(clips()).logits.shape == (2, num_labels)
    encoder = model.base_model
    encoder.layernorm = None
    assert_same_weights(loaded.mvd, encoder)
    assert 0 < loaded.classifier.weight.abs().max() < 1e-3
    assert not loaded.classifier.bias.any()
    assert (loaded.fc_norm.weight == 1).all()


@pytest.mark.parametrize("source", [MVDModel, MVDForFeatureDistillation, MVDForPixelReconstruction])
@pytest.mark.parametrize("auto_class", [MVDForVideoClassification, AutoModelForVideoClassification])
def test_fresh_head_is_refused_when_not_asked_for(auto_class, source, tmp_path):
    tiny(source).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing: 4 \(classifier.bias, classifier.weight, fc_norm.bias.*num_labels"):
        auto_class.from_pretrained(tmp_path)


def test_fresh_head_is_given_by_a_config_with_other_labels(tmp_path):
    student = tiny(MVDForFeatureDistillation)
    student.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, num_labels=5)
    for model in (
        AutoModelForVideoClassification.from_pretrained(tmp_path, config=config),
        AutoModelForVideoClassification.from_pretrained(tmp_path, num_labels=5),
        MVDForVideoClassification.from_pretrained(tmp_path, config=config),
    ):
        assert isinstance(model, MVDForVideoClassification)
        assert model.classifier.weight.shape == (5, 32)
        assert torch.equal(model.mvd.layers[1].mlp.fc1.weight, student.mvd.layers[1].mlp.fc1.weight)
    with pytest.raises(ValueError, match="missing: 4"):
        AutoModelForVideoClassification.from_pretrained(tmp_path, config=AutoConfig.from_pretrained(tmp_path))


def test_head_of_another_size_is_replaced_and_the_rest_is_kept(tmp_path):
    model = tiny(MVDForVideoClassification)
    model.save_pretrained(tmp_path)
    loaded = MVDForVideoClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert_same_weights(loaded.mvd, model.mvd)
    assert_same_weights(loaded.fc_norm, model.fc_norm)
    assert loaded.classifier.weight.shape == (5, 32)
    assert 0 < loaded.classifier.weight.abs().max() < 1e-3


ASKING_FOR_A_HEAD = [{}, {"num_labels": 3}, {"ignore_mismatched_sizes": True}]


@pytest.mark.parametrize("options", ASKING_FOR_A_HEAD, ids=str)
@pytest.mark.parametrize("name", ["mvd.layers.1.mlp.fc1.weight", "mvd.embeddings.projection.bias"])
def test_weight_missing_in_the_file_is_refused_by_name(name, options, tmp_path):
    tiny(MVDForVideoClassification).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=rf"missing: 1 \({name}\)"):
        MVDForVideoClassification.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("options", ASKING_FOR_A_HEAD, ids=str)
@pytest.mark.parametrize("name", ["mvd.layers.2.norm1.weight", "gamma"])
def test_weight_too_many_in_the_file_is_refused_by_name(name, options, tmp_path):
    tiny(MVDForVideoClassification).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({name: torch.ones(3)}))
    with pytest.raises(ValueError, match=rf"unexpected: 1 \({name}\)"):
        MVDForVideoClassification.from_pretrained(tmp_path, **options)


def test_reshaped_weight_in_the_file_is_refused_by_name_even_if_sizes_may_differ(tmp_path):
    tiny(MVDForVideoClassification).save_pretrained(tmp_path)
    name = "mvd.layers.1.mlp.fc1.weight"
    edit_weights(tmp_path, lambda weights: weights.update({name: weights[name][:-1].clone()}))
    with pytest.raises(ValueError, match=rf"of another shape: 1 \({name}\)"):
        MVDForVideoClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mvd.layers.1.mlp.fc1.weight", {}),
        ("mvd.layers.1.mlp.fc1.weight", {"num_labels": 3}),
        ("classifier.weight", {}),
        ("classifier.weight", {"ignore_mismatched_sizes": True}),  # its bias fits: damaged, not another head
    ],
)
def test_reshaped_weight_in_the_file_is_refused_by_name(name, options, tmp_path):
    tiny(MVDForVideoClassification).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({name: weights[name][:-1].clone()}))
    with pytest.raises(ValueError, match=rf"of another shape: 1 \({name}\)"):
        MVDForVideoClassification.from_pretrained(tmp_path, **options)


def test_a_head_of_another_size_is_replaced_only_when_sizes_may_differ(tmp_path):
    tiny(MVDForVideoClassification).save_pretrained(tmp_path)
    message = r"of another shape: 2 \(classifier.bias, classifier.weight\).*ignore_mismatched_sizes=True"
    with pytest.raises(ValueError, match=message):
        MVDForVideoClassification.from_pretrained(tmp_path, num_labels=5)


@pytest.mark.parametrize("options", ASKING_FOR_A_HEAD, ids=str)
def test_a_head_that_is_there_in_part_is_damaged_and_not_new(options, tmp_path):
    tiny(MVDForVideoClassification).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.pop("classifier.weight"))
    with pytest.raises(ValueError, match=r"missing: 1 \(classifier.weight\)"):
        MVDForVideoClassification.from_pretrained(tmp_path, **options)


def test_new_decoders_for_other_teachers_are_made_when_asked_for(tmp_path):
    student = tiny(MVDForFeatureDistillation)
    student.save_pretrained(tmp_path)
    loaded = MVDForFeatureDistillation.from_pretrained(
        tmp_path, teacher_dims={"image": 8, "clip": 6}, ignore_mismatched_sizes=True
    )
    assert_same_weights(loaded.mvd, student.mvd)
    assert_same_weights(loaded.decoders["image"], student.decoders["image"])
    edit_weights(tmp_path, lambda weights: weights.pop("decoders.image.norm.bias"))
    with pytest.raises(ValueError, match=r"missing: 1 \(decoders.image.norm.bias\)"):
        MVDForFeatureDistillation.from_pretrained(
            tmp_path, teacher_dims={"image": 8, "clip": 6}, ignore_mismatched_sizes=True
        )


def test_missing_head_weight_is_refused_by_name(tmp_path):
    tiny(MVDForVideoClassification).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.pop("fc_norm.bias"))
    with pytest.raises(ValueError, match=r"missing: 1 \(fc_norm.bias\)"):
        MVDForVideoClassification.from_pretrained(tmp_path)


def test_encoder_of_a_mean_pooling_classifier_is_loaded_without_its_final_norm_only(tmp_path):
    model = tiny(MVDForVideoClassification)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing: 2 \(layernorm.bias, layernorm.weight\).*add_final_norm=False"):
        MVDModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="add_final_norm=False"):
        AutoModel.from_pretrained(tmp_path)
    assert_same_weights(MVDModel.from_pretrained(tmp_path, add_final_norm=False), model.mvd)


def test_student_of_other_teachers_is_refused(tmp_path):
    tiny(MVDForFeatureDistillation).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing: 20 \(decoders.clip.*unexpected: 20 \(decoders.image"):
        MVDForFeatureDistillation.from_pretrained(tmp_path, teacher_dims={"clip": 8, "video": 12})
    with pytest.raises(ValueError, match=r"unexpected: [0-9]+ \(decoders.image"):
        MVDForFeatureDistillation.from_pretrained(tmp_path, teacher_dims={"video": 12})


def test_loading_report_is_returned_instead_of_an_error(tmp_path):
    tiny(MVDForFeatureDistillation).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({"gamma": weights.pop("mvd.layers.0.norm2.bias")}))
    model, report = MVDForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, MVDForVideoClassification)
    head = {"fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias"}
    assert set(report["missing_keys"]) == head | {"mvd.layers.0.norm2.bias"}
    assert set(report["unexpected_keys"]) == {"gamma"}


@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, MVDModel),
        (AutoModelForPreTraining, MVDForFeatureDistillation),
        (AutoModelForVideoClassification, MVDForVideoClassification),
    ],
)
def test_auto_classes_load_and_build_our_models(auto_class, model_class, tmp_path):
    model = tiny(model_class)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is MVDConfig
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is model_class
    assert_same_weights(loaded, model)
    assert type(auto_class.from_config(config)) is model_class


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_device_map_loads_the_same_weights(model_class, tmp_path):
    model = tiny(model_class)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, device_map="cpu")
    assert_same_weights(loaded, model)
    assert_same_output(loaded, model, **inputs_of(model_class))


def test_buffers_follow_the_default_device_of_construction():
    for model_class in MODEL_CLASSES:
        with torch.device("meta"):
            model = model_class(tiny_config())
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_bfloat16_model_runs_near_the_float32_one(model_class, tmp_path):
    model = tiny(model_class)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    inputs = inputs_of(model_class)
    output, expected = (main_output(m(**inputs)).detach() for m in (loaded, model))
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).norm() < 0.05 * expected.norm()


# Attention and captured outputs


def assert_same_as_eager(model_class, implementation: str):
    model, inputs = tiny(model_class), inputs_of(model_class)
    outputs = []
    for name in ("eager", implementation):
        model.set_attn_implementation(name)
        assert model.config._attn_implementation == name
        with torch.no_grad():
            outputs.append(main_output(model(**inputs)))
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_sdpa_gives_the_same_as_eager_attention(model_class):
    assert_same_as_eager(model_class, "sdpa")


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [MVDForFeatureDistillation, MVDForVideoClassification])
def test_flex_gives_the_same_as_eager_attention(model_class, monkeypatch):
    attend, errors = ALL_ATTENTION_FUNCTIONS["flex_attention"], []

    def compared(module, query, key, value, *args, scaling=None, **kwargs):
        output, weights = attend(module, query, key, value, *args, scaling=scaling, **kwargs)
        expected = nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2)
        errors.append((output - expected).norm() / expected.norm())
        return output, weights

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flex_attention", compared)
    try:
        assert_same_as_eager(model_class, "flex_attention")
    except AssertionError:
        if errors and not all(error < 1e-5 for error in errors):  # torch 2.14.1 on CPUs without AVX-512
            pytest.skip("PyTorch's own flex attention differs from its scaled dot product on this machine")
        raise
    assert errors


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_eager_attention_weights_are_the_softmax_of_the_scaled_products(model_class):
    model = tiny(model_class, use_class_token=True, key_bias=True)
    model.set_attn_implementation("eager")
    output = model(**inputs_of(model_class), output_attentions=True, output_hidden_states=True)
    tokens = 1 + (NUM_PATCHES - NUM_MASKED if model_class in MASKED_CLASSES else NUM_PATCHES)
    assert [weights.shape for weights in output.attentions] == [(2, 4, tokens, tokens)] * 2
    for layer, weights, hidden_states in zip(
        model.base_model.layers, output.attentions, output.hidden_states, strict=False
    ):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, tokens))
        qkv = layer.attention.qkv
        normed = layer.norm1(hidden_states)
        query, key = (normed @ qkv.weight[part * 32 : part * 32 + 32].T for part in range(2))
        query, key = query + qkv.q_bias, key + qkv.k_bias
        for head in range(4):
            channels = slice(8 * head, 8 * head + 8)
            products = query[..., channels] @ key[..., channels].transpose(1, 2) / math.sqrt(8)
            torch.testing.assert_close(weights[:, head], products.softmax(dim=-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_hidden_states_are_the_encoders_before_the_final_norm(model_class):
    model, inputs = tiny(model_class, use_mean_pooling=False), inputs_of(model_class)
    hidden_states = model(**inputs, output_hidden_states=True).hidden_states
    encoder = model.base_model
    assert len(hidden_states) == 3
    visible_ids = ids_of(~inputs["bool_masked_pos"]) if model_class in MASKED_CLASSES else None
    torch.testing.assert_close(hidden_states[0], encoder.embeddings(inputs["pixel_values"], visible_ids))
    torch.testing.assert_close(hidden_states[1], encoder.layers[0](hidden_states[0]))
    torch.testing.assert_close(hidden_states[2], encoder.layers[1](hidden_states[1]))
    features = encoder(inputs["pixel_values"], visible_ids=visible_ids).last_hidden_state
    torch.testing.assert_close(encoder.layernorm(hidden_states[2]), features)
    assert not torch.allclose(hidden_states[2], features)


def test_encoder_without_final_norm_hands_out_the_last_hidden_state():
    output = tiny(MVDModel, False)(clips(), output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, output.hidden_states[-1])


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_outputs_are_tuples_on_request(model_class):
    model, inputs = tiny(model_class), inputs_of(model_class)
    output = model(**inputs, return_dict=False)
    assert type(output) is tuple
    torch.testing.assert_close(output, model(**inputs).to_tuple())


# Export and compilation


@pytest.mark.parametrize("model_class", [MVDForFeatureDistillation, MVDForVideoClassification])
def test_exported_program_works_on_another_clip_and_mask(model_class):
    model = tiny(model_class)
    exported = torch.export.export(model, (), inputs_of(model_class)).module()
    inputs = inputs_of(model_class)
    torch.testing.assert_close(main_output(exported(**inputs)), main_output(model(**inputs)))


def test_exported_student_refuses_a_mask_of_another_count():
    model = tiny(MVDForFeatureDistillation)
    exported = torch.export.export(model, (), inputs_of(MVDForFeatureDistillation)).module()
    with pytest.raises(RuntimeError, match=r"bool_masked_pos must .* 24 "):
        exported(pixel_values=clips(), bool_masked_pos=masks(num_masked=23))


@pytest.mark.slow
@pytest.mark.parametrize("decoder_keep", [1.0, 0.5])
def test_student_is_compiled_without_graph_breaks(decoder_keep):
    model = tiny(MVDForFeatureDistillation, num_hidden_layers=1, decoder_keep=decoder_keep)
    compiled = torch.compile(model, fullgraph=True)
    gradients, outputs = [], []
    inputs = inputs_of(MVDForFeatureDistillation)
    if decoder_keep < 1:
        inputs["bool_decoded_pos"] = some_of(inputs["bool_masked_pos"], 12)
    for forward in (model, compiled):
        model.zero_grad()
        outputs.append(main_output(forward(**inputs)))
        outputs[-1].square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)
    with pytest.raises(RuntimeError, match=r"bool_masked_pos must .* 24 "):
        compiled(pixel_values=clips(), bool_masked_pos=masks(num_masked=23))


@pytest.mark.slow
def test_classifier_is_compiled_without_graph_breaks():
    model, inputs = tiny(MVDForVideoClassification), inputs_of(MVDForVideoClassification)
    compiled = torch.compile(model, fullgraph=True)
    outputs = [forward(**inputs, labels=torch.tensor([2, 0])) for forward in (model, compiled)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss, atol=1e-4, rtol=1e-4)


def test_an_attentive_pooler_reads_all_tokens_behind_the_final_norm():
    model = tiny(MVDForVideoClassification, use_attentive_pooling=True)
    clip = clips()
    assert model.fc_norm is None
    tokens = model.mvd(clip).last_hidden_state
    assert model.mvd.layernorm is not None
    with torch.no_grad():
        logits = model(clip).logits
        assert torch.equal(logits, model.classifier(model.pool(tokens)))
        # a weighted mean of tokens: their order does not matter, each of them does
        order = torch.randperm(NUM_PATCHES)
        assert torch.allclose(model.pool(tokens[:, order]), model.pool(tokens), atol=1e-5)
        for i in (0, NUM_PATCHES - 1):
            other = tokens.clone()
            other[:, i] += 1 + torch.arange(32) / 32
            assert not torch.allclose(model.pool(other), model.pool(tokens), atol=1e-6)
        model.set_attn_implementation("eager")
        assert torch.allclose(model(clip).logits, logits, atol=1e-5)


def test_every_weight_of_an_attentive_pooler_learns_and_survives_saving(tmp_path):
    model = tiny(MVDForVideoClassification, use_attentive_pooling=True)
    clip = clips()
    model(clip, labels=torch.tensor([0, 2])).loss.backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.pooler.parameters()
    )
    model.save_pretrained(tmp_path)
    loaded = MVDForVideoClassification.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    weights = {name: value for name, value in model.state_dict().items() if name != "pooler.query"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"missing: 1 .pooler\.query"):
        MVDForVideoClassification.from_pretrained(tmp_path)
