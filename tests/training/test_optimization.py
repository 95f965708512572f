"""The paper's schedule, which parameters decay, and layer-wise rates."""

import numpy as np
import pytest
import torch
from torch import nn

from launching import ROOT, start
from mvd_hf import (
    MVDConfig,
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDTrainer,
    MVDTrainingArguments,
    tube_mask,
)
from mvd_hf.training.optimization import (
    cosine_schedule,
    layer_of,
    parameter_groups,
    parameter_rules,
    unwrapped_name,
    without_adapters,
)

SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}


def test_the_schedule_reaches_the_peak_twice_and_never_the_floor():
    values = cosine_schedule(1.0, 0.1, total_steps=20, warmup_steps=5)
    assert values[0] == 0
    assert np.flatnonzero(values == 1.0).tolist() == [4, 5]
    assert 0.1 < values[-1] < 0.15
    assert (np.diff(values[5:]) < 0).all()


def test_a_warm_up_longer_than_the_schedule_is_refused():
    with pytest.raises(ValueError, match="warm-up of 30 steps does not fit a schedule of 20"):
        cosine_schedule(1.0, 0.1, total_steps=20, warmup_steps=30)


def test_every_parameter_is_in_one_group_and_the_head_comes_first():
    config = MVDConfig.from_name("mvd-s", num_labels=10, use_class_token=True)
    with torch.device("meta"):
        model = MVDForVideoClassification(config)
    groups = parameter_groups(model, 0.05, layer_decay=0.75)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    assert groups[0]["lr_scale"] == 1.0
    assert any(parameter is model.classifier.weight for parameter in groups[0]["params"])
    assert groups[-1]["lr_scale"] == pytest.approx(0.75**13)


def decayed(model: nn.Module) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05)
    return {names[id(p)] for group in groups if group["weight_decay"] > 0 for p in group["params"]}


def test_which_tokens_decay_depends_on_the_program(tiny_student_config):
    tiny_student_config.use_class_token = True
    student = decayed(MVDForFeatureDistillation(tiny_student_config))
    assert "decoders.image.mask_token" in student
    assert "mvd.embeddings.class_token" not in student
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert "decoder.mask_token" not in decayed(MVDForPixelReconstruction(MVDConfig.from_name("videomae-b", **sizes)))
    mae = decayed(MVDForPixelReconstruction(MVDConfig.from_name("mae-b", **sizes)))
    assert {"decoder.mask_token", "mvd.embeddings.class_token"} <= mae
    assert not any("bias" in name or "norm" in name for name in student | mae)


def test_the_schedule_is_the_formula():
    values = cosine_schedule(2.0, 1.0, total_steps=7, warmup_steps=3, start=0.5)
    cosine = [1.5 + 0.5 * np.cos(np.pi * step / 4) for step in range(4)]
    assert values == pytest.approx([0.5, 1.25, 2.0, *cosine])


@pytest.mark.parametrize(("total", "warmup"), [(5, 0), (5, 5), (1, 1), (1, 0)])
def test_a_schedule_may_have_no_warm_up_or_nothing_else(total, warmup):
    values = cosine_schedule(1.0, 0.1, total, warmup)
    assert len(values) == total
    assert np.isfinite(values).all()
    assert values[0] == (1.0 if warmup == 0 else 0.0)
    if warmup == total > 1:
        assert values[-1] == 1.0


def test_a_schedule_may_rise():
    values = cosine_schedule(0.05, 0.2, total_steps=10, warmup_steps=0)
    assert values[0] == pytest.approx(0.05)
    assert (np.diff(values) > 0).all()
    assert values[-1] < 0.2


def test_the_layer_of_a_parameter_is_its_depth():
    names = {
        "mvd.embeddings.projection.weight": 0,
        "mvd.embeddings.class_token": 0,
        "mvd.layers.0.mlp.fc1.weight": 1,
        "mvd.layers.11.mlp.fc1.weight": 12,
        "layers.3.norm1.bias": 4,
        "mvd.norm.weight": 13,
        "decoder.layers.0.mlp.fc1.weight": 13,
        "classifier.weight": 13,
    }
    assert {name: layer_of(name, 12) for name in names} == names


def test_frozen_parameters_are_in_no_group():
    model = MVDForVideoClassification(MVDConfig.from_name("mvd-b", **SIZES, num_frames=4, num_labels=3))
    model.mvd.requires_grad_(False)
    members = {id(p) for group in parameter_groups(model, 0.05, 0.75) for p in group["params"]}
    assert members == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(members) < len(list(model.parameters()))


def test_without_layer_decay_there_are_two_groups():
    model = MVDForVideoClassification(MVDConfig.from_name("mvd-b", **SIZES, num_frames=4, num_labels=3))
    decaying, others = parameter_groups(model, 0.05)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0)
    assert decaying["lr_scale"] == others["lr_scale"] == 1
    assert all(p.dim() > 1 for p in decaying["params"])
    assert all(p.dim() == 1 or p is model.mvd.embeddings.class_token for p in others["params"])


@pytest.fixture
def adapted():
    """A classifier with LoRA in the attention and its head trained whole."""
    peft = pytest.importorskip("peft")
    model = MVDForVideoClassification(MVDConfig.from_name("mvd-b", **SIZES, num_frames=4, num_labels=3))
    lora = peft.LoraConfig(r=2, target_modules=["proj", "fc1"], modules_to_save=["classifier"], lora_bias=True)
    return peft.get_peft_model(model, lora)


def test_adapters_have_the_rates_and_weight_decay_of_their_layer(adapted):
    names = {id(p): name for name, p in without_adapters(adapted).named_parameters() if p.requires_grad}
    groups = parameter_groups(adapted, 0.05, layer_decay=0.5)
    found = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == set(names.values())
    for i, scale in ((0, 0.25), (1, 0.5)):
        layer = {name: value for name, value in found.items() if f"layers.{i}." in name}
        assert len(layer) == 6  # A, B and the bias of B, in two places
        for name, value in layer.items():
            assert value == (scale, 0.0 if name.endswith("bias") else 0.05)
    assert {n: v for n, v in found.items() if "layers" not in n} == {
        "classifier.modules_to_save.default.weight": (1.0, 0.05),
        "classifier.modules_to_save.default.bias": (1.0, 0.0),
    }
    assert groups[0]["lr_scale"] == 1.0


def test_an_attentive_pooler_is_part_of_the_head_and_its_query_does_not_decay():
    model = MVDForVideoClassification(MVDConfig.from_name("mvd-b", **SIZES, num_frames=4, use_attentive_pooling=True))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(model, 0.05, 0.5)
        for parameter in group["params"]
    }
    assert found["pooler.query"] == (1.0, 0.0)
    assert found["pooler.proj.weight"] == found["classifier.weight"] == (1.0, 0.05)
    assert found["mvd.layernorm.weight"] == (1.0, 0.0)


def test_a_model_without_adapters_is_itself(adapted):
    model = without_adapters(adapted)
    assert isinstance(model, MVDForVideoClassification)
    assert without_adapters(model) is model


def found_groups(model, **options) -> dict[str, tuple[float, float]]:
    """Rate and weight decay of every parameter, by its unwrapped name."""
    names = {id(parameter): unwrapped_name(name) for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05, 0.5, **options)
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_wrappers_change_nothing_about_the_groups():
    model = MVDForVideoClassification(MVDConfig.from_name("mvd-b", **SIZES, num_frames=4, num_labels=3))
    expected = found_groups(model)
    assert len(set(expected.values())) == 8
    assert found_groups(torch.compile(model, backend="eager")) == expected
    assert found_groups(torch.compile(model, backend="eager"), rules=parameter_rules(model)) == expected

    class Wrapper(torch.nn.Module):  # names as FSDP and activation checkpointing make them
        def __init__(self, module):
            super().__init__()
            self._fsdp_wrapped_module = module

    rules = parameter_rules(model)
    wrapped = Wrapper(model)
    model.mvd.layers[0] = Wrapper(model.mvd.layers[0])
    for parameter in model.parameters():
        parameter.data = parameter.data.flatten()  # a piece without its shape
    assert found_groups(wrapped, rules=rules) == expected


@pytest.mark.slow
def test_the_groups_are_the_same_under_every_kind_of_parallel_training():
    run = start(str(ROOT / "tests" / "parameter_groups.py"), processes=2)
    assert run.wait() == [0, 0], run.text()[-3000:]
    groups = [line for line in run.text().splitlines() if line.startswith("[(")]
    assert len(groups) == 8  # as it is, DDP, FSDP1, FSDP2, each compiled and not
    assert len(set(groups)) == 1
    assert groups[0].count("(") == 8


def test_a_parameter_of_which_nothing_is_known_is_refused():
    model = MVDForVideoClassification(MVDConfig.from_name("mvd-b", **SIZES, num_frames=4, num_labels=3))
    rules = parameter_rules(model)
    model.register_parameter("_flat_param", torch.nn.Parameter(torch.zeros(4)))
    with pytest.raises(ValueError, match=r"'_flat_param'.*fsdp_use_orig_params"):
        parameter_groups(model, 0.05, rules=rules)


def test_parameters_that_zero_3_has_emptied_keep_their_shape_beside_them():
    model = MVDForVideoClassification(MVDConfig.from_name("mvd-b", **SIZES, num_frames=4, num_labels=3))
    expected = found_groups(model)
    for parameter in model.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    assert found_groups(model) == expected


class Clips(torch.utils.data.Dataset):
    """8 random clips with masks, `dataset[(epoch, index)]`."""

    def __init__(self, config: MVDConfig):
        self.config = config

    def __len__(self):
        return 8

    def __getitem__(self, key):
        generator = torch.Generator().manual_seed(key[1])
        clip = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return {"pixel_values": clip, "bool_masked_pos": tube_mask(self.config.grid, 0.75, generator)}


def test_adapters_of_a_pretraining_model_are_trained_alone(tmp_path):
    peft = pytest.importorskip("peft")
    config = MVDConfig.from_name("videomae-b", **SIZES, **DECODER, num_frames=4, mask_ratio=0.75)
    model = peft.get_peft_model(MVDForPixelReconstruction(config), peft.LoraConfig(r=2, target_modules=["proj"]))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    args = MVDTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        num_train_epochs=2,
        warmup_epochs=0,
        base_learning_rate=1.0,
        layer_decay=0.5,
        per_device_train_batch_size=4,
        dataloader_num_workers=0,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = MVDTrainer(model, args, train_dataset=Clips(config))
    assert trainer.is_pretraining
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert {group["initial_lr"] / args.learning_rate for group in trainer.optimizer.param_groups} == {0.25, 0.5, 1.0}
