"""MVDTrainer: rates, schedule, groups, sampling, and what it says and refuses."""

import json
import logging

import numpy as np
import pytest
import torch
from torch import nn

from mvd_hf import (
    MVDConfig,
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDTrainer,
    MVDTrainingArguments,
    tube_mask,
)
from mvd_hf.optimization import cosine_schedule, parameter_groups
from mvd_hf.training import EpochSampler, last_complete_checkpoint


class Clips(torch.utils.data.Dataset):
    def __init__(self, config: MVDConfig, count: int = 8, labels: bool = False):
        self.config, self.count, self.labels = config, count, labels

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        epoch, index = key if isinstance(key, tuple) else (0, key)
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        shape = (self.config.num_frames, 3, *self.config.frame_size)
        item = {"pixel_values": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)}
        if self.labels:
            soft = torch.rand(self.config.num_labels, generator=generator)
            return {**item, "labels": soft / soft.sum()}
        return {**item, "bool_masked_pos": tube_mask(self.config.grid, self.config.mask_ratio, generator)}


def arguments(folder="unused", **overrides) -> MVDTrainingArguments:
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    return MVDTrainingArguments(**(options | overrides))


def test_learning_rates_scale_with_the_total_batch():
    args = arguments(gradient_accumulation_steps=64, base_learning_rate=1.5e-4, base_min_learning_rate=1e-4)
    assert args.total_batch_size == 256
    assert (args.learning_rate, args.min_learning_rate) == pytest.approx((1.5e-4, 1e-4))
    args = arguments(gradient_accumulation_steps=128, base_learning_rate=1.5e-4, base_min_learning_rate=1e-4)
    assert (args.learning_rate, args.min_learning_rate) == pytest.approx((3e-4, 2e-4))


def test_without_a_base_rate_the_learning_rate_stands():
    args = arguments(base_learning_rate=None, learning_rate=0.01, base_min_learning_rate=0.001)
    assert (args.learning_rate, args.min_learning_rate) == (0.01, 0.001)


def test_defaults_are_the_papers():
    args = MVDTrainingArguments(output_dir="unused", use_cpu=True)
    assert (args.base_learning_rate, args.base_min_learning_rate) == (1.5e-4, 1e-5)
    assert (args.num_train_epochs, args.warmup_epochs, args.weight_decay) == (400, 40, 0.05)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert args.max_grad_norm == 0  # no clipping
    assert args.ddp_find_unused_parameters is False


def test_arguments_survive_json():
    args = arguments(layer_decay=0.75)
    assert json.loads(args.to_json_string())["layer_decay"] == 0.75


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


def test_the_sampler_shuffles_anew_each_epoch_and_gives_whole_steps():
    sampler = EpochSampler(num_samples=10, total_batch_size=4, seed=3)
    assert len(sampler) == 8
    first = list(sampler)
    assert first == list(sampler)
    assert {epoch for epoch, _ in first} == {0}
    assert len({index for _, index in first}) == 8
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert [index for _, index in first] != [index for _, index in second]


def test_a_data_set_smaller_than_a_step_is_refused():
    with pytest.raises(ValueError, match="3 samples, fewer than the total batch of 4"):
        EpochSampler(num_samples=3, total_batch_size=4, seed=0)


def run(model, data, folder, **overrides):
    trainer = MVDTrainer(model, arguments(folder, **overrides), train_dataset=data)
    trainer.train()
    return trainer


def videomae(**overrides) -> MVDConfig:
    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
    return MVDConfig.from_name("videomae-b", **(sizes | {"decoder_num_attention_heads": 2} | overrides))


def test_the_logged_rates_follow_the_schedule(tmp_path):
    config = videomae()
    trainer = run(
        MVDForPixelReconstruction(config),
        Clips(config),
        tmp_path,
        num_train_epochs=4,
        schedule_epochs=5,
        warmup_epochs=2,
        base_learning_rate=6.4,
        base_min_learning_rate=0.64,
    )
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == pytest.approx(cosine_schedule(0.1, 0.01, total_steps=10, warmup_steps=4)[:8])


def test_accumulated_soft_labels_give_the_loss_and_gradient_of_the_whole_batch(tmp_path):
    config = videomae(num_labels=5)
    state = MVDForVideoClassification(config).state_dict()
    logs = {}
    for name, options in {
        "whole": {"per_device_train_batch_size": 8},
        "parts": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    }.items():
        model = MVDForVideoClassification(config)
        model.load_state_dict(state)
        trainer = run(
            model, Clips(config, labels=True), tmp_path / name, num_train_epochs=3, warmup_epochs=1, **options
        )
        logs[name] = [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry]
        assert model.config.problem_type is None
    assert np.array(logs["whole"]) == pytest.approx(np.array(logs["parts"]), rel=1e-4)


def test_layer_decay_scales_every_groups_rate(tmp_path):
    config = videomae(num_labels=5)
    model = MVDForVideoClassification(config)
    trainer = run(model, Clips(config, labels=True), tmp_path, num_train_epochs=1, warmup_epochs=0, layer_decay=0.5)
    scales = {group["lr_scale"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert set(scales) == {1.0, 0.5, 0.25, 0.125}
    assert all(rate == pytest.approx(scale * trainer.args.learning_rate) for scale, rate in scales.items())


def test_the_run_says_what_it_arrived_at(tmp_path, caplog):
    config = videomae()
    data = Clips(config)
    args = arguments(
        tmp_path, num_train_epochs=1, warmup_epochs=0, gradient_accumulation_steps=2, per_device_eval_batch_size=4
    )
    trainer = MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=data, eval_dataset=data)
    with caplog.at_level(logging.INFO):
        trainer.run()
    text = caplog.text
    assert "Effective batch 8 = 4 videos x 2 accumulation steps x 1 processes" in text
    assert "Learning rate 4.6875e-06 (base 0.00015 x batch / 256), floor 3.125e-07" in text
    assert "8 samples, 1 steps per epoch, 1 epochs. Precision fp32 on cpu" in text
    assert "Held-out loss" in text
    assert (tmp_path / "model.safetensors").exists()


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path):
    config = videomae(drop_path_rate=0.3)
    state = MVDForPixelReconstruction(config).state_dict()

    def losses(folder, **options):
        model = MVDForPixelReconstruction(config)
        model.load_state_dict(state)
        args = arguments(
            folder,
            num_train_epochs=3,
            warmup_epochs=1,
            base_learning_rate=0.5,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=1,
            save_strategy="steps",
            save_steps=5,
            weight_decay_end=0.2,
        )
        trainer = MVDTrainer(model, args, train_dataset=Clips(config), **options)
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        return {entry["step"]: (entry["loss"], entry["grad_norm"], entry["learning_rate"]) for entry in history}, model

    whole, whole_model = losses(tmp_path / "whole")
    # the second run finds only the first checkpoint of the first one, in the middle of an epoch, and a broken one
    (tmp_path / "resumed").mkdir()
    (tmp_path / "whole" / "checkpoint-5").rename(tmp_path / "resumed" / "checkpoint-5")
    (tmp_path / "resumed" / "checkpoint-10").mkdir()
    resumed, resumed_model = losses(tmp_path / "resumed")
    assert resumed == whole
    assert len(whole) == 12
    for name, value in whole_model.state_dict().items():
        assert torch.equal(value, resumed_model.state_dict()[name]), name


def test_a_checkpoint_cut_off_by_a_crash_is_passed_over(tmp_path):
    for step, content in ((5, "{}"), (10, '{"epoch": 1.'), (7, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "scheduler.pt").touch()
        if content is not None:
            (folder / "trainer_state.json").write_text(content)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_a_checkpoint_of_the_model_alone_is_not_resumed_from(tmp_path):
    config = videomae()
    model, data = MVDForPixelReconstruction(config), Clips(config)
    run(model, data, tmp_path, num_train_epochs=1, warmup_epochs=0, save_strategy="epoch", save_only_model=True)
    with pytest.raises(ValueError, match=r"checkpoint-2 holds the model alone \(save_only_model\)"):
        last_complete_checkpoint(tmp_path)


def test_masks_that_hide_another_number_of_patches_stop_the_run(tmp_path):
    config = videomae()
    data = Clips(config)
    config.mask_ratio = 0.5
    data.config = videomae(mask_ratio=0.75)
    with pytest.raises(RuntimeError, match="must hide 16 patches"):
        run(MVDForPixelReconstruction(config), data, tmp_path, num_train_epochs=1, warmup_epochs=0)
