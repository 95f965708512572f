"""Loading: complete checkpoints to the bit, new heads on request, the rest refused by the names of the weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVideoClassification

from mvd_hf import MVDConfig, MVDForFeatureDistillation, MVDForPixelReconstruction, MVDForVideoClassification, MVDModel
from mvd_hf.model.loading_mvd import CheckpointMismatchError, listed
from tiny_models import assert_same_weights, clips, tiny, tiny_config

MODEL_CLASSES = [MVDModel, MVDForPixelReconstruction, MVDForFeatureDistillation, MVDForVideoClassification]
MASKED_CLASSES = [MVDForPixelReconstruction, MVDForFeatureDistillation]
FC1 = "mvd.layers.1.mlp.fc1.weight"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def saved(tmp_path):
    """Saves a tiny model in a folder of its own, with its file of weights edited; returns the model and the folder."""

    def save(model_class, edit=None, **fields):
        model = tiny(model_class, **fields)
        model.save_pretrained(tmp_path)
        if edit is not None:
            weights = load_file(tmp_path / "model.safetensors")
            edit(weights)
            save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return model, tmp_path

    return save


@pytest.mark.parametrize("options", [{}, {"device_map": "cpu"}], ids=str)
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_a_complete_checkpoint_is_loaded_to_the_bit_with_its_buffers(model_class, options, saved):
    model, folder = saved(model_class, use_class_token=True, key_bias=True, pixel_target="mae")
    loaded = model_class.from_pretrained(folder, **options)
    assert not loaded.training
    assert_same_weights(loaded, model)
    buffers, others = dict(loaded.named_buffers()), dict(model.named_buffers())
    assert buffers.keys() == others.keys()
    assert all(torch.equal(buffers[name], others[name]) for name in buffers)


def test_a_checkpoint_holds_parameters_only(saved):
    model, folder = saved(MVDForFeatureDistillation)
    assert load_file(folder / "model.safetensors").keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("weight_init", ["mae", "pretrain", "finetune"])
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_no_initialisation_touches_loaded_weights(model_class, weight_init, saved):
    model, folder = saved(model_class, pixel_target="mae" if weight_init == "mae" else "videomae")

    class Initialised(model_class):
        def __init__(self, config):
            super().__init__(config)
            self.weight_init = weight_init

    assert_same_weights(Initialised.from_pretrained(folder), model)


@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, MVDModel),
        (AutoModelForPreTraining, MVDForFeatureDistillation),
        (AutoModelForVideoClassification, MVDForVideoClassification),
    ],
)
def test_auto_classes_load_and_build_our_models(auto_class, model_class, saved):
    model, folder = saved(model_class)
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is MVDConfig
    loaded = auto_class.from_pretrained(folder)
    assert type(loaded) is model_class
    assert_same_weights(loaded, model)
    assert type(auto_class.from_config(config)) is model_class


def test_buffers_are_on_the_device_of_construction():
    for model_class in MODEL_CLASSES:
        with torch.device("meta"):
            model = model_class(tiny_config())
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}


# Parts of a checkpoint


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
def test_the_encoder_is_taken_out_of_a_pretrained_model(model_class, saved):
    model, folder = saved(model_class)
    assert_same_weights(MVDModel.from_pretrained(folder), model.mvd)
    without_norm = MVDModel.from_pretrained(folder, add_final_norm=False)
    model.mvd.layernorm = None
    assert_same_weights(without_norm, model.mvd)


def test_the_encoder_of_a_classifier_has_the_final_norm_of_first_token_pooling_only(saved):
    model, folder = saved(MVDForVideoClassification, use_mean_pooling=False)
    assert_same_weights(MVDModel.from_pretrained(folder), model.mvd)
    model, folder = saved(MVDForVideoClassification)
    for encoder_class in (MVDModel, AutoModel):
        with pytest.raises(CheckpointMismatchError, match=r"layernorm.bias, layernorm.weight.*add_final_norm=False"):
            encoder_class.from_pretrained(folder)
    assert_same_weights(MVDModel.from_pretrained(folder, add_final_norm=False), model.mvd)


# New heads


@pytest.mark.parametrize("source", [MVDModel, *MASKED_CLASSES])
@pytest.mark.parametrize(
    "request_",
    [{"num_labels": 5}, {"id2label": dict(enumerate("abcde"))}, {"ignore_mismatched_sizes": True}, "config"],
)
def test_a_new_head_is_initialised_only_on_request(source, request_, saved):
    model, folder = saved(source)
    for auto_class in (MVDForVideoClassification, AutoModelForVideoClassification):
        with pytest.raises(CheckpointMismatchError, match=r"classifier.bias, classifier.weight, fc_norm.*num_labels"):
            auto_class.from_pretrained(folder, config=AutoConfig.from_pretrained(folder))
        options = {"config": AutoConfig.from_pretrained(folder, num_labels=5)} if request_ == "config" else request_
        loaded = auto_class.from_pretrained(folder, **options)
        num_labels = 3 if "ignore_mismatched_sizes" in options else 5
        assert loaded.classifier.weight.shape == (num_labels, 32)
        assert loaded.config.num_labels == loaded.num_labels == num_labels
        assert loaded(clips()).logits.shape == (2, num_labels)
        assert 0 < loaded.classifier.weight.abs().max() < 1e-3
        assert not loaded.classifier.bias.any()
        assert (loaded.fc_norm.weight == 1).all()
        model.base_model.layernorm = None
        assert_same_weights(loaded.mvd, model.base_model)


@pytest.mark.parametrize("model_class", MASKED_CLASSES)
def test_new_decoders_are_initialised_only_on_request(model_class, saved):
    model, folder = saved(MVDModel)
    with pytest.raises(CheckpointMismatchError, match=r"decoder.*ignore_mismatched_sizes"):
        model_class.from_pretrained(folder)
    assert_same_weights(model_class.from_pretrained(folder, ignore_mismatched_sizes=True).mvd, model)


def test_a_head_of_another_size_is_replaced_only_when_sizes_may_differ(saved):
    model, folder = saved(MVDForVideoClassification)
    with pytest.raises(CheckpointMismatchError, match=r"classifier.bias, classifier.weight.*ignore_mismatched_sizes"):
        MVDForVideoClassification.from_pretrained(folder, num_labels=5)
    loaded = MVDForVideoClassification.from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)
    assert_same_weights(loaded.mvd, model.mvd)
    assert_same_weights(loaded.fc_norm, model.fc_norm)
    assert loaded.classifier.weight.shape == (5, 32)
    assert 0 < loaded.classifier.weight.abs().max() < 1e-3


def test_decoders_for_other_teachers_are_initialised_only_on_request(saved):
    student, folder = saved(MVDForFeatureDistillation)
    for teachers, named in (
        ({"clip": 8, "video": 12}, "decoders.clip.*decoders.image"),
        ({"video": 12}, "decoders.image"),
    ):
        with pytest.raises(CheckpointMismatchError, match=named):
            MVDForFeatureDistillation.from_pretrained(folder, teacher_dims=teachers)
    options = {"teacher_dims": {"image": 8, "clip": 6}, "ignore_mismatched_sizes": True}
    loaded = MVDForFeatureDistillation.from_pretrained(folder, **options)
    assert_same_weights(loaded.mvd, student.mvd)
    assert_same_weights(loaded.decoders["image"], student.decoders["image"])
    _, folder = saved(MVDForFeatureDistillation, lambda weights: weights.pop("decoders.image.norm.bias"))
    with pytest.raises(CheckpointMismatchError, match=r"missing: 1 \(decoders.image.norm.bias\)"):
        MVDForFeatureDistillation.from_pretrained(folder, **options)


# Damaged checkpoints


@pytest.mark.parametrize("options", [{}, {"num_labels": 3}, {"ignore_mismatched_sizes": True}], ids=str)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("missing", FC1),
        ("missing", "mvd.embeddings.projection.bias"),
        ("missing", "classifier.weight"),  # its bias is there: the head is damaged, not new
        ("missing", "fc_norm.bias"),
        ("unexpected", "mvd.layers.2.norm1.weight"),
        ("unexpected", "gamma"),
        ("of another shape", FC1),
        ("of another shape", "classifier.weight"),  # its bias fits
    ],
)
def test_a_damaged_weight_is_refused_by_name_whatever_the_caller_asks_for(kind, name, options, saved):
    def damage(weights):
        if kind == "unexpected":
            weights[name] = torch.ones(3)
        elif kind == "missing":
            del weights[name]
        else:
            weights[name] = weights[name][:-1].clone()

    _, folder = saved(MVDForVideoClassification, damage)
    with pytest.raises(CheckpointMismatchError, match=rf"{kind}: 1 \({name}\)"):
        MVDForVideoClassification.from_pretrained(folder, **options)


def test_the_loading_report_is_returned_instead_of_an_error(saved):
    def rename(weights):
        weights["gamma"] = weights.pop("mvd.layers.0.norm2.bias")

    _, folder = saved(MVDForFeatureDistillation, rename)
    model, report = MVDForVideoClassification.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, MVDForVideoClassification)
    head = {"fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias"}
    assert set(report["missing_keys"]) == head | {"mvd.layers.0.norm2.bias"}
    assert set(report["unexpected_keys"]) == {"gamma"}


def test_lists_of_names_are_counted_and_cut():
    assert listed("abc") == "3 (a, b, c)"
    assert listed("abcdef") == "6 (a, b, c, d, ...)"
