"""The network: sizes, positions, masks, pixels, initialisation, heads, gradients, attention, export.

Numbers of the official programs are in `parity/`; here a tiny network is compared with what it must do.
"""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mvd_hf import MVDConfig, MVDForFeatureDistillation, MVDForPixelReconstruction, MVDForVideoClassification, MVDModel
from mvd_hf.model.modeling_mvd import MVDLayer
from mvd_hf.model.patches_mvd import pixel_targets, position_table
from tiny_models import NUM_MASKED, NUM_PATCHES, clips, ids_of, masks, some_of, tiny, tiny_config

MODEL_CLASSES = [MVDModel, MVDForPixelReconstruction, MVDForFeatureDistillation, MVDForVideoClassification]
MASKED_CLASSES = [MVDForPixelReconstruction, MVDForFeatureDistillation]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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


# Sizes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mae-b", 85_647_360),
        ("mae-l", 303_099_904),
        ("mae-h", 630_435_840),
        ("videomae-b", 86_227_200),
        ("videomae-l", 303_860_736),
        ("videomae-h", 631_607_040),
        ("mvd-s", 22_033_936),
        ("mvd-b", 86_534_800),
        ("mvd-l", 304_270_736),
        ("mvd-h", 632_119_440),
    ],
)
def test_teachers_and_classifiers_have_the_published_number_of_parameters(name, expected):
    model_class = MVDForVideoClassification if name.startswith("mvd") else MVDModel
    with torch.device("meta"):
        model = model_class(MVDConfig.from_name(name, num_labels=400))
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


# Positions


def bare_encoder(**fields) -> MVDModel:
    """An encoder without layers, norm or bias: black clips come out as their position embeddings."""
    model = MVDModel(MVDConfig(**(tiny_config().to_diff_dict() | {"num_hidden_layers": 0} | fields)), False).eval()
    nn.init.zeros_(model.embeddings.projection.bias)
    return model


def bare_student(**fields) -> MVDForFeatureDistillation:
    """A student whose predictions are the mask token plus the position embeddings, in 32 channels."""
    model = MVDForFeatureDistillation(tiny_config(num_hidden_layers=0, decoder_num_hidden_layers=0, **fields)).eval()
    for decoder in model.decoders.values():
        decoder.norm, decoder.head = nn.Identity(), nn.Identity()
    return model


def positions_of(model: MVDModel, frames: int, height: int, width: int, **options) -> torch.Tensor:
    black = torch.zeros(1, frames, 3, height, width, dtype=model.dtype)
    return model(black, **options).last_hidden_state[0].detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["spacetime", "space", "flat"])
def test_positions_are_added_for_any_grid_and_rounded_once(kind, dtype, tmp_path):
    built = bare_encoder(position_embedding_type=kind)
    built.save_pretrained(tmp_path)
    for model in (MVDModel.from_pretrained(tmp_path, add_final_norm=False, dtype=dtype), built.to(dtype)):
        for frames, height, width in ((4, 16, 16), (6, 16, 16), (2, 24, 12)):
            added = positions_of(model, frames, height, width)
            expected = position_table(kind, (frames // 2, height // 4, width // 4), 32)
            assert added.dtype == dtype
            torch.testing.assert_close(
                added.float(), expected.to(dtype).float(), atol=1e-6, rtol=torch.finfo(dtype).eps
            )


def test_other_sizes_at_run_time_equal_a_student_configured_for_them():
    model = tiny(MVDForFeatureDistillation)
    for frames, height, width in ((8, 16, 16), (4, 24, 8), (6, 8, 12)):
        configured = tiny(MVDForFeatureDistillation, num_frames=frames, image_size=(height, width))
        configured.load_state_dict(model.state_dict())
        length = configured.config.num_patches
        inputs = {"pixel_values": clips(2, frames, height, width), "bool_masked_pos": masks(2, length // 2, length)}
        assert_same_output(model, configured, **inputs)


@pytest.mark.parametrize("kind", ["spacetime", "space", "flat"])
def test_interpolated_positions_are_a_bicubic_resize_of_the_configured_ones(kind):
    configured = position_table(kind, (3, 4, 4), 32).view(3, 4, 4, 32).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(configured, size=(6, 5), mode="bicubic", align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(90, 32)
    model = bare_encoder(position_embedding_type=kind)
    added = positions_of(model, 6, 24, 20, interpolate_pos_encoding=True)
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=0)
    same_size = positions_of(model, 8, 16, 16, interpolate_pos_encoding=True)
    torch.testing.assert_close(same_size, position_table(kind, (4, 4, 4), 32), atol=1e-6, rtol=0)
    student, mask = bare_student(position_embedding_type=kind), masks(1, 60, 90)
    predictions = student(clips(1, 6, 24, 20), mask, interpolate_pos_encoding=True).predictions
    for name, decoder in student.decoders.items():
        torch.testing.assert_close(predictions[name][0], expected[mask[0]] + decoder.mask_token[0], atol=1e-5, rtol=0)


def test_image_teacher_at_196_pixels_has_the_top_left_positions_of_224():
    model = bare_encoder(**MVDConfig.from_name("mae-h", num_hidden_layers=0, hidden_size=64).to_diff_dict())
    full = positions_of(model, 1, 224, 224)[1:].view(16, 16, 64)
    added = positions_of(model, 1, 196, 196)
    assert torch.equal(added[1:].view(14, 14, 64), full[:14, :14])
    assert torch.equal(added[:1], model.embeddings.class_token[0])


# Masks


@pytest.mark.parametrize("use_class_token", [False, True])
def test_encoder_sees_the_visible_patches_in_ascending_order(use_class_token):
    model = tiny(MVDModel, num_hidden_layers=0, use_class_token=use_class_token)
    pixel_values, mask = clips(), masks()
    visible_ids = ids_of(~mask)
    everything = model(pixel_values).last_hidden_state
    visible = model(pixel_values, mask).last_hidden_state
    extra = int(use_class_token)
    assert everything.shape == (2, extra + NUM_PATCHES, 32)
    assert visible.shape == (2, extra + NUM_PATCHES - NUM_MASKED, 32)
    for b, ids in enumerate(visible_ids):
        torch.testing.assert_close(visible[b, extra:], everything[b, extra:][ids])
        torch.testing.assert_close(visible[b, :extra], everything[b, :extra])
    assert torch.equal(model(pixel_values, visible_ids=visible_ids).last_hidden_state, visible)


def test_visible_ids_that_do_not_fit_are_refused():
    model, ids = tiny(MVDModel), torch.arange(8).expand(2, -1)
    with pytest.raises(ValueError, match=r"visible_ids must be \(2, .*\(1, 8\)"):
        model(clips(), visible_ids=ids[:1])
    with pytest.raises(ValueError, match="visible_ids"):
        model(clips(), bool_masked_pos=masks(), visible_ids=ids)


def test_class_token_comes_first_and_has_no_position():
    model = tiny(MVDModel, False, num_hidden_layers=0, use_class_token=True)
    token = model(clips()).last_hidden_state[:, 0]
    assert torch.equal(token, model.embeddings.class_token[0].expand(2, -1))


@pytest.mark.parametrize("use_class_token", [False, True])
@pytest.mark.parametrize("decoded", [None, 6])
def test_predictions_are_in_ascending_order_of_the_decoded_patches(decoded, use_class_token):
    model = bare_student(use_class_token=use_class_token, decoder_keep=0.25)
    mask = masks()
    part = mask if decoded is None else some_of(mask, decoded)
    table = position_table("spacetime", (2, 4, 4), 32)
    predictions = model(clips(), mask, bool_decoded_pos=None if decoded is None else part).predictions
    for name, decoder in model.decoders.items():
        for b, ids in enumerate(ids_of(part)):
            torch.testing.assert_close(predictions[name][b], table[ids] + decoder.mask_token[0], atol=1e-6, rtol=0)


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
def test_inputs_that_do_not_fit_are_refused_by_every_model(model_class):
    model, unequal = tiny(model_class), torch.arange(NUM_PATCHES) < torch.tensor([[24], [20]])
    with pytest.raises(ValueError, match="20, 24"):
        model(clips(), bool_masked_pos=unequal)
    with pytest.raises(ValueError, match="5 frames"):
        model(clips(frames=5), bool_masked_pos=masks())
    if model_class in MASKED_CLASSES:
        with pytest.raises(ValueError, match="bool_masked_pos"):
            model(clips())


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
def test_announced_masks_change_nothing_and_are_checked(model_class):
    model, inputs = tiny(model_class), inputs_of(model_class)
    announced = {"num_masked": NUM_MASKED, "bool_decoded_pos": inputs["bool_masked_pos"]}
    assert torch.equal(main_output(model(**inputs)), main_output(model(**inputs, **announced)))
    for num_masked in (23, 25):
        with pytest.raises(RuntimeError, match=rf"bool_masked_pos must .* {num_masked} "):
            model(**inputs, num_masked=num_masked)
    with pytest.raises(RuntimeError, match=r"bool_decoded_pos must .* 24 "):
        model(**inputs, bool_decoded_pos=some_of(inputs["bool_masked_pos"], 12))


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
def test_patches_left_out_of_the_decoder_have_no_part_in_it(model_class):
    model, mask = tiny(model_class, decoder_keep=0.5), masks()
    part = some_of(mask, 12)
    # the tokens of a decoder are the visible patches and the decoded ones
    tokens = []
    decoder = model.decoder if model_class is MVDForPixelReconstruction else next(iter(model.decoders.values()))
    decoder.layers[0].register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
    model(clips(), mask, bool_decoded_pos=part)
    assert tokens == [NUM_PATCHES - NUM_MASKED + 12]


# Pixels


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_bytes_give_the_same_as_normalised_floats(model_class, tmp_path):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    model = tiny(model_class, image_mean=mean, image_std=std)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    pixels = torch.randint(0, 256, (2, 4, 3, 16, 16), dtype=torch.uint8)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (mean, std))
    inputs = inputs_of(model_class) | {"pixel_values": (pixels / 255 - mean) / std}
    expected = main_output(model(**inputs))
    for m in (model, loaded):
        output = main_output(m(**(inputs | {"pixel_values": pixels})))
        torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)


def test_normalisation_must_have_a_value_for_every_channel():
    with pytest.raises(ValueError, match=r"image_mean=\[0.485, 0.456, 0.406\] .* 1 channels"):
        MVDModel(tiny_config(num_channels=1))
    grey = MVDModel(tiny_config(num_channels=1, image_mean=0.5, image_std=0.25)).eval()
    pixels = torch.randint(0, 256, (2, 4, 1, 16, 16), dtype=torch.uint8)
    expected = grey((pixels / 255 - 0.5) / 0.25).last_hidden_state
    torch.testing.assert_close(grey(pixels).last_hidden_state, expected)


@pytest.mark.parametrize("decoded", [None, 12])
def test_pixel_loss_is_the_squared_error_of_the_decoded_patches(decoded):
    model = tiny(MVDForPixelReconstruction, decoder_keep=0.5)
    pixel_values, mask = clips(), masks()
    part = mask if decoded is None else some_of(mask, decoded)
    chosen = None if decoded is None else part
    output = model(pixel_values, mask, bool_decoded_pos=chosen)
    targets = pixel_targets(pixel_values, model.config)[part].view(output.logits.shape)
    assert output.loss.item() == pytest.approx((output.logits - targets).square().mean().item(), rel=1e-6)
    without = model(pixel_values, mask, bool_decoded_pos=chosen, return_loss=False)
    assert without.loss is None
    assert torch.equal(without.logits, output.logits)


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
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("layers.0.norm1.weight") and "decoder" not in key)
    save_file({name: weights[name]}, folder / "model.safetensors", metadata={"format": "pt"})
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
@pytest.mark.parametrize("head_init_scale", [0.001, 1.0])
def test_classifier_starts_from_small_normal_weights_and_a_scaled_head(head_init_scale, how, tmp_path):
    model = fresh(MVDForVideoClassification, how, tmp_path, head_init_scale=head_init_scale)
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
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_encoder_init_std_concerns_the_encoder_alone(model_class, how, tmp_path):
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


@pytest.mark.parametrize(
    ("model_class", "field"),
    [(MVDForFeatureDistillation, "drop_path_rate"), (MVDForVideoClassification, "classifier_dropout")],
)
def test_dropout_is_off_in_evaluation_and_on_in_training(model_class, field):
    inputs = inputs_of(model_class)
    model, plain = tiny(model_class, **{field: 0.9}), tiny(model_class)
    plain.load_state_dict(model.state_dict())
    assert_same_output(model, plain, **inputs)
    assert not torch.equal(main_output(model.train()(**inputs)), main_output(plain(**inputs)))


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
    assert not any(model_class.accepts_loss_kwargs for model_class in MODEL_CLASSES)


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_hard_and_soft_labels_give_the_cross_entropy_and_leave_the_config_alone(problem_type):
    model, pixel_values = tiny(MVDForVideoClassification, problem_type=problem_type), clips()
    before = model.config.to_dict()
    log_probabilities = model(pixel_values).logits.log_softmax(dim=1)
    hard, soft = torch.tensor([2, 0]), torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    expected = -(log_probabilities[0, 2] + log_probabilities[1, 0]) / 2
    assert model(pixel_values, labels=hard).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected = -(soft * log_probabilities).sum(dim=1).mean()
    assert model(pixel_values, labels=soft).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert model.config.to_dict() == before
    assert model(pixel_values).loss is None


def test_other_problem_types_give_their_loss():
    model, pixel_values = tiny(MVDForVideoClassification, problem_type="multi_label_classification"), clips()
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    output = model(pixel_values, labels=labels)
    probabilities = output.logits.sigmoid()
    expected = -(labels * probabilities.log() + (1 - labels) * (1 - probabilities).log()).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    model.config.problem_type = "regression"
    expected = (output.logits - labels).square().mean()
    assert model(pixel_values, labels=labels).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_heads_give_log_probabilities_and_their_mean_cross_entropy():
    heads = {"verb": 2, "noun": 3}
    model, plain = (
        tiny(MVDForVideoClassification, num_labels=5, **options) for options in ({"label_heads": heads}, {})
    )
    model.load_state_dict(plain.state_dict())
    pixel_values = clips()
    noun, verb = plain(pixel_values).logits.split([3, 2], dim=1)  # in alphabetical order
    logits = model(pixel_values).logits
    torch.testing.assert_close(logits, torch.cat([noun.log_softmax(1), verb.log_softmax(1)], dim=1))
    labels = torch.tensor([[2, 0], [1, 1]])
    expected = sum(map(torch.nn.functional.cross_entropy, (noun, verb), labels.T)) / 2
    assert model(pixel_values, labels=labels).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    soft = torch.cat([torch.nn.functional.one_hot(labels[:, i], k) for i, k in ((0, 3), (1, 2))], dim=1).float()
    assert model(pixel_values, labels=soft).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for options, message in (
        ({"label_heads": {"verb": 2, "noun": 2}}, "num_labels=5"),
        ({"label_heads": heads, "problem_type": "regression"}, "problem_type=regression"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny(MVDForVideoClassification, num_labels=5, **options)


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


def test_an_attentive_pooler_attends_to_all_tokens_after_the_final_norm():
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


# Gradients


@pytest.mark.parametrize(
    ("model_class", "fields"),
    [
        (MVDModel, {}),
        (MVDForFeatureDistillation, {}),
        (MVDForPixelReconstruction, {}),
        (MVDForPixelReconstruction, {"key_bias": True, "decoder_embed_bias": False, "pixel_target": "mae"}),
        (MVDForVideoClassification, {}),
        (MVDForVideoClassification, {"use_mean_pooling": False}),
        (MVDForVideoClassification, {"use_attentive_pooling": True}),
    ],
)
def test_every_parameter_receives_a_gradient(model_class, fields):
    model = tiny(model_class, use_class_token=True, **fields).train()
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


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [MVDForFeatureDistillation, MVDForVideoClassification])
def test_exported_program_works_on_another_clip_and_checks_the_mask(model_class):
    model = tiny(model_class)
    exported = torch.export.export(model, (), inputs_of(model_class)).module()
    inputs = inputs_of(model_class)
    torch.testing.assert_close(main_output(exported(**inputs)), main_output(model(**inputs)))
    if model_class in MASKED_CLASSES:
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
