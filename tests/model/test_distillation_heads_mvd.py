"""The heads of a student beside its decoders: what they see, which of them are made, and what is refused."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from mvd_hf import MVDForFeatureDistillation
from tiny_models import assert_same_weights, clips, masks, tiny, tiny_config

FIELDS = {
    "teacher_dims": {"a": 8, "b": 12, "c": 6},
    "teacher_tokens": {"a": "visible", "b": "all"},
    "summary_dims": {"a": 4, "c": 5},
}


@pytest.mark.parametrize("use_class_token", [False, True])
def test_each_teacher_has_the_heads_that_it_needs_and_no_other(use_class_token):
    model = tiny(MVDForFeatureDistillation, **FIELDS, use_class_token=use_class_token)
    assert set(model.decoders) == {"b", "c"}
    assert set(model.encoder_heads.visible) == {"a"}
    assert set(model.encoder_heads.summary) == {"a", "c"}
    output = model(clips(), masks())
    shapes = {name: tuple(prediction.shape) for name, prediction in output.predictions.items()}
    assert shapes == {"a": (2, 8, 8), "b": (2, 32, 12), "c": (2, 24, 6)}
    tokens = output.last_hidden_state[:, int(use_class_token) :]
    torch.testing.assert_close(output.predictions["a"], model.encoder_heads.visible["a"](tokens))
    torch.testing.assert_close(output.summaries["c"], model.encoder_heads.summary["c"](tokens))
    assert {name: tuple(summary.shape) for name, summary in output.summaries.items()} == {"a": (2, 4), "c": (2, 5)}


def test_a_student_without_such_teachers_has_no_heads_and_the_keys_of_before():
    model = tiny(MVDForFeatureDistillation)
    assert model.encoder_heads is None
    assert {key.split(".")[0] for key in model.state_dict()} == {"mvd", "decoders"}
    assert "teacher_tokens" not in model.config.to_json_string()
    assert "summaries" not in model(clips(), masks())


@pytest.mark.parametrize("use_class_token", [False, True])
def test_a_decoder_of_all_patches_predicts_the_masked_ones_as_one_of_the_masked_ones(use_class_token):
    fields = {"teacher_dims": {"a": 8}, "use_class_token": use_class_token}
    masked = tiny(MVDForFeatureDistillation, **fields)
    both = MVDForFeatureDistillation(tiny_config(**fields, teacher_tokens={"a": "all"})).eval()
    both.load_state_dict(masked.state_dict())  # the same parameters
    inputs = clips(), masks()
    predictions = both(*inputs).predictions["a"]
    assert predictions.shape == (2, 32, 8)
    torch.testing.assert_close(predictions[:, 8:], masked(*inputs).predictions["a"], atol=1e-6, rtol=1e-5)
    assert (predictions[:, :8].std(dim=1) > 0).all()


def test_all_parameters_get_gradients_and_a_checkpoint_holds_them(tmp_path):
    model = tiny(MVDForFeatureDistillation, **FIELDS)
    output = model(clips(), masks())
    parts = [*output.predictions.values(), *output.summaries.values()]
    sum(part.square().mean() for part in parts).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.save_pretrained(tmp_path)
    assert_same_weights(MVDForFeatureDistillation.from_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher_tokens": {"clip": "all"}}, "teacher_tokens names clip"),
        ({"summary_dims": {"clip": 4}}, "summary_dims names clip"),
        ({"teacher_tokens": {"image": "visible", "video": "visible"}, "decoder_keep": 0.5}, "decoder_keep=0.5"),
    ],
)
def test_heads_that_cannot_be_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        MVDForFeatureDistillation(tiny_config(**fields))
    with pytest.raises(StrictDataclassError, match="hidden"):
        tiny_config(teacher_tokens={"image": "hidden"})
