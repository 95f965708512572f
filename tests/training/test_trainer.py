"""MVDTrainer: rates, sampling, evaluation, resuming, unreadable videos, and what it says and refuses."""

import csv
import json
import logging
import os
import signal
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate
from transformers import TrainerCallback, TrainingArguments

from mvd_hf import (
    DistillationTrainer,
    MVDConfig,
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDTrainer,
    MVDVideoProcessor,
    distillation_losses,
    load_teachers,
    tube_mask,
)
from mvd_hf.data.augmentation import PretrainingAugmentation
from mvd_hf.data.clips import ClipDataset, ClipSampler, SampleDataset
from mvd_hf.data.masking import part_to_decode
from mvd_hf.data.toy import make_toy_dataset
from mvd_hf.hub import snippets
from mvd_hf.model.frame_sampling import pretraining_frames
from mvd_hf.training.checkpoints import last_complete_checkpoint
from mvd_hf.training.optimization import cosine_schedule
from mvd_hf.training.run import describe_run
from short_runs import Clips, arguments, videomae


def test_clips_and_masks_of_a_video_count_in_the_learning_rate_and_not_in_the_batch(tmp_path):
    for options in ({"clips_per_video": 4}, {"masks_per_clip": 4}, {"clips_per_video": 2, "masks_per_clip": 2}):
        args = arguments(gradient_accumulation_steps=16, base_min_learning_rate=1e-4, **options)
        assert args.total_batch_size == 64
        assert (args.learning_rate, args.min_learning_rate) == pytest.approx((1.5e-4, 1e-4))
    config = videomae()
    trainer = MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=Clips(config, count=64))
    assert "Effective batch 256 = 4 videos x 2 clips x 2 masks x 16 accumulation steps x 1 processes" in (
        describe_run(trainer)
    )
    args = arguments(tmp_path, base_learning_rate=None, learning_rate=0.01, masks_per_clip=4)
    assert args.learning_rate == 0.01


def test_stage_1_hides_a_clip_under_several_masks_too(tmp_path):
    config = videomae(decoder_keep=0.5)
    data = Clips(config)
    items = [data[i] for i in range(4)]
    for i, item in enumerate(items):
        generator = torch.Generator().manual_seed(i)
        item["bool_masked_pos"] = torch.stack([item["bool_masked_pos"], data[i + 4]["bool_masked_pos"]])
        item["bool_decoded_pos"] = part_to_decode(item["bool_masked_pos"], config.num_decoded_patches, generator)
    batch = default_collate(items)
    model = MVDForPixelReconstruction(config).train()
    trainer = MVDTrainer(model, arguments(tmp_path, masks_per_clip=2))
    loss = trainer.compute_loss(model, batch)
    losses = [
        model(batch["pixel_values"], batch["bool_masked_pos"][:, i], bool_decoded_pos=batch["bool_decoded_pos"][:, i])
        for i in range(2)
    ]
    assert loss.item() == pytest.approx((losses[0].loss + losses[1].loss).item() / 2, rel=1e-5)


def run(model, data, folder, **overrides):
    trainer = MVDTrainer(model, arguments(folder, **overrides), train_dataset=data)
    trainer.train()
    return trainer


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
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [0, 1]


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
    with pytest.raises(RuntimeError, match="16 patches"):
        run(MVDForPixelReconstruction(config), data, tmp_path, num_train_epochs=1, warmup_epochs=0)


def test_arguments_of_another_class_and_other_losses_are_refused(tmp_path):
    config = videomae()
    model = MVDForPixelReconstruction(config)
    with pytest.raises(ValueError, match="MVDTrainer needs MVDTrainingArguments, got TrainingArguments"):
        MVDTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=Clips(config))
    with pytest.raises(ValueError, match="takes the model's own loss: override compute_loss"):
        MVDTrainer(model, arguments(tmp_path), train_dataset=Clips(config), compute_loss_func=lambda *args: None)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield {}


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([1, 2, 3], "A list does not take .epoch, index. keys"),
        (torch.utils.data.Subset(Clips(MVDConfig()), [0, 1]), "A Subset does not take .epoch, index. keys"),
        (Endless(), "training set of type Endless has no length or no index"),
    ],
    ids=["list", "subset", "iterable"],
)
def test_training_sets_that_do_not_take_epochs_are_refused(tmp_path, dataset, message):
    with pytest.raises(ValueError, match=rf"{message}.*Make it with mvd_hf\.load_clips"):
        MVDTrainer(MVDForPixelReconstruction(videomae()), arguments(tmp_path), train_dataset=dataset)


def test_batches_without_labels_are_refused(tmp_path):
    config = videomae(num_labels=3)
    data = Clips(config)
    data.__class__ = type("NoLabels", (Clips,), {"__getitem__": lambda self, key: drop(Clips.__getitem__(self, key))})
    with pytest.raises(ValueError, match="no loss for a batch of pixel_values: labels are missing"):
        run(MVDForVideoClassification(config), data, tmp_path, num_train_epochs=1, warmup_epochs=0)


def drop(item: dict) -> dict:
    return {"pixel_values": item["pixel_values"]}


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path):
    config = videomae()
    model = MVDForPixelReconstruction(config)
    with torch.no_grad():
        model.decoder.mask_token.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="'loss' is NaN or infinite at step 1"):
        run(
            model, Clips(config), tmp_path, num_train_epochs=1, warmup_epochs=0, save_strategy="epoch", logging_steps=9
        )
    assert not list(tmp_path.glob("checkpoint-*"))


class Footage(SampleDataset):
    """Clips of named files; the values of one of them are infinite."""

    def __init__(self, config: MVDConfig):
        super().__init__([f"videos/{index}.mp4" for index in range(16)], self)
        self.config, self.clip = config, Clips(config)[0]

    def clips(self, row, generator):
        values = self.clip["pixel_values"].float()
        return [{**self.clip, "pixel_values": values * torch.inf if row == "videos/11.mp4" else values}]

    def name(self, epoch, index):
        return self.rows[index]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_samples_of_a_loss_that_is_not_finite_are_named(tmp_path, accumulation):
    config = videomae()
    options = {"num_train_epochs": 3, "warmup_epochs": 0, "per_device_train_batch_size": 2}
    data = Footage(config)
    with pytest.raises(FloatingPointError, match=r"samples: 2 \(videos/\d+\.mp4, videos/\d+\.mp4\)") as error:
        run(MVDForPixelReconstruction(config), data, tmp_path, gradient_accumulation_steps=accumulation, **options)
    assert "videos/11.mp4" in str(error.value)


def test_the_samples_of_a_stream_have_no_names_and_others_their_index(tmp_path):
    config = videomae()
    model = MVDForPixelReconstruction(config)
    trainer = MVDTrainer(model, arguments(tmp_path), train_dataset=Clips(config))
    assert trainer.samples_of(1, 0, 0) == []  # before the order is drawn
    trainer._get_train_sampler()
    epochs = [trainer.samples_of(step, 0, 0) for step in (1, 2, 3, 4)]
    assert sorted(epochs[0] + epochs[1], key=int) == [str(index) for index in range(8)]
    assert epochs[:2] != epochs[2:]


def logged(trainer, *keys: str) -> list:
    return [tuple(entry[key] for key in keys) for entry in trainer.state.log_history if "loss" in entry]


def test_training_wraps_the_model_again_after_an_evaluation(tmp_path, monkeypatch):
    """A model that stays marked as prepared would be trained without DistributedDataParallel."""
    config = videomae()
    args = arguments(tmp_path, num_train_epochs=1, warmup_epochs=0, per_device_eval_batch_size=4)
    trainer = MVDTrainer(
        MVDForPixelReconstruction(config), args, train_dataset=Clips(config), eval_dataset=Clips(config)
    )
    prepared = []
    prepare = trainer.accelerator.prepare_model

    def watched(model, *args, evaluation_mode=False, **kwargs):
        if not evaluation_mode:
            prepared.append(getattr(model, "_is_accelerate_prepared", False))
        return prepare(model, *args, evaluation_mode=evaluation_mode, **kwargs)

    monkeypatch.setattr(trainer.accelerator, "prepare_model", watched)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    trainer.train()
    assert prepared == [False, False]


def test_an_evaluation_before_training_changes_nothing(tmp_path):
    config = videomae(drop_path_rate=0.3)
    state = MVDForPixelReconstruction(config).state_dict()
    logs = []
    for evaluates in (False, True):
        model = MVDForPixelReconstruction(config)
        model.load_state_dict(state)
        args = arguments(tmp_path, num_train_epochs=2, warmup_epochs=0, base_learning_rate=0.5)
        trainer = MVDTrainer(model, args, train_dataset=Clips(config), eval_dataset=Clips(config, 6))
        if evaluates:
            trainer.evaluate()
            trainer.predict(Clips(config, 5))
        trainer.train()
        logs.append(logged(trainer, "loss", "grad_norm", "learning_rate"))
    assert logs[0] == logs[1]


def test_another_training_lays_out_its_own_schedule(tmp_path):
    config = videomae()
    args = arguments(
        tmp_path,
        num_train_epochs=2,
        warmup_epochs=1,
        base_learning_rate=6.4,
        base_min_learning_rate=0.64,
        weight_decay_end=0.2,
    )
    trainer = MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=Clips(config))
    trainer.train()
    assert [rate for (rate,) in logged(trainer, "learning_rate")] == pytest.approx(cosine_schedule(0.1, 0.01, 4, 2))
    assert len(trainer.weight_decays) == 4
    args.num_train_epochs = 3
    trainer.train()
    assert [rate for (rate,) in logged(trainer, "learning_rate")] == pytest.approx(cosine_schedule(0.1, 0.01, 6, 2))
    assert len(trainer.weight_decays) == 6


def test_weight_decay_moves_along_a_cosine(tmp_path, monkeypatch):
    config = videomae()
    args = arguments(tmp_path, num_train_epochs=2, warmup_epochs=0, weight_decay=0.1, weight_decay_end=0.5)
    trainer = MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=Clips(config))
    seen = []
    compute_loss = trainer.compute_loss

    def watched(*args, **kwargs):
        seen.append({group["weight_decay"] for group in trainer.optimizer.param_groups})
        return compute_loss(*args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", watched)
    trainer.train()
    assert [max(decays) for decays in seen] == pytest.approx(cosine_schedule(0.1, 0.5, 4, 0))
    assert all(len(decays) == 2 and min(decays) == 0 for decays in seen)


def test_resuming_with_another_batch_takes_its_own_peak_rate_and_says_so(tmp_path, caplog, monkeypatch):
    config = videomae()
    options = {"num_train_epochs": 4, "warmup_epochs": 1, "base_learning_rate": 6.4, "base_min_learning_rate": 0.64}
    model, data = MVDForPixelReconstruction(config), Clips(config)
    args = arguments(tmp_path, save_strategy="steps", save_steps=2, **options)
    MVDTrainer(model, args, train_dataset=data).train()
    args = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    trainer = MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=data)
    used, compute_loss = [], trainer.compute_loss

    def watched(*args, **kwargs):
        used.append(trainer.optimizer.param_groups[0]["lr"])
        return compute_loss(*args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", watched)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "Resuming with a peak learning rate of 0.2, before it was 0.1." in caplog.text
    assert "a step has 8 videos, before it had 4" in caplog.text
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry and entry["step"] > 2]
    assert args.learning_rate == pytest.approx(0.2)
    assert trainer.lr_scheduler.base_lrs == pytest.approx([0.2] * len(trainer.optimizer.param_groups))
    schedule = cosine_schedule(0.2, 0.02, 4, 1)[2:]
    assert rates == pytest.approx(schedule)
    assert used == pytest.approx(np.repeat(schedule, 4))  # by 4 micro-batches each


def test_resuming_with_the_same_rate_says_nothing(tmp_path, caplog):
    config = videomae()
    options = {"num_train_epochs": 2, "warmup_epochs": 1, "save_strategy": "steps", "save_steps": 2}
    run(MVDForPixelReconstruction(config), Clips(config), tmp_path, **options)
    trainer = MVDTrainer(
        MVDForPixelReconstruction(config), arguments(tmp_path, **options), train_dataset=Clips(config)
    )
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "Resuming with" not in caplog.text
    assert trainer.state.global_step == 4


MASKED = videomae().num_masked_patches


def mean_loss(model, data, num_masked: int) -> float:
    """Mean over the clips of a data set, one at a time."""
    model.eval()
    losses = []
    with torch.no_grad():
        for i in range(len(data)):
            item = data[i]
            batch = {key: value[None] for key, value in item.items()}
            losses.append(model(**batch, num_masked=num_masked).loss.item())
    return float(np.mean(losses))


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 8])
def test_the_loss_on_an_evaluation_set_is_the_mean_over_its_clips(tmp_path, batch):
    config = videomae()
    model, data = MVDForPixelReconstruction(config), Clips(config, 7)
    trainer = MVDTrainer(model, arguments(tmp_path, per_device_eval_batch_size=batch), eval_dataset=data)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean_loss(model, data, MASKED), rel=1e-5)


def test_evaluations_do_not_mix(tmp_path):
    """Twice, after a prediction, with another prefix, or of several sets: each gives its own numbers."""
    config = videomae()
    model = MVDForPixelReconstruction(config)
    sets = {"five": Clips(config, 5), "six": Clips(config, 6)}
    trainer = MVDTrainer(model, arguments(tmp_path, per_device_eval_batch_size=4), eval_dataset=sets)
    expected = {name: mean_loss(model, data, MASKED) for name, data in sets.items()}
    assert expected["five"] != pytest.approx(expected["six"], rel=1e-4)
    for _ in range(2):
        metrics = trainer.evaluate()
        for name in sets:
            assert metrics[f"eval_{name}_loss"] == pytest.approx(expected[name], rel=1e-5)
    predicted = trainer.predict(sets["five"])
    assert predicted.metrics["test_loss"] == pytest.approx(expected["five"], rel=1e-5)
    metrics = trainer.evaluate(sets["six"], metric_key_prefix="held_out")
    assert metrics["held_out_loss"] == pytest.approx(expected["six"], rel=1e-5)
    assert not any(key.startswith("eval_") for key in metrics)
    assert not any(key.endswith("_missing") for key in metrics)


def test_evaluations_within_training_leave_its_logs_alone(tmp_path):
    config = videomae()
    state = MVDForPixelReconstruction(config).state_dict()
    logs = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        model = MVDForPixelReconstruction(config)
        model.load_state_dict(state)
        args = arguments(tmp_path, num_train_epochs=2, warmup_epochs=0, base_learning_rate=0.5, **options)
        trainer = MVDTrainer(model, args, train_dataset=Clips(config), eval_dataset=Clips(config, 5))
        trainer.train()
        logs.append(logged(trainer, "loss", "grad_norm"))
    assert logs[0] == logs[1]
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 4
    assert evaluated[-1] == pytest.approx(mean_loss(model, Clips(config, 5), MASKED), rel=1e-5)


def test_the_parts_of_the_loss_are_evaluated_by_name(tmp_path, tiny_student_config, tiny_teachers):
    model = MVDForFeatureDistillation(tiny_student_config).eval()
    teachers = load_teachers(
        {"image": {"model": tiny_teachers["image"], "weight": 2.0}, "video": tiny_teachers["video"]},
        tiny_student_config.grid,
        tiny_student_config.num_frames,
    )
    sets = {"five": Clips(tiny_student_config, 5), "six": Clips(tiny_student_config, 6)}
    args = arguments(tmp_path, per_device_eval_batch_size=4)
    trainer = DistillationTrainer(model, teachers, args=args, eval_dataset=sets)
    expected = {}
    for name, data in sets.items():
        losses = []
        for i in range(len(data)):
            clip, mask = (data[i][key][None] for key in ("pixel_values", "bool_masked_pos"))
            with torch.no_grad():
                predictions = model(pixel_values=clip, bool_masked_pos=mask).predictions
                targets = {name: teacher({32: clip}) for name, teacher in teachers.items()}
            losses.append({k: v.item() for k, v in distillation_losses(predictions, targets, mask).items()})
        parts = {part: float(np.mean([loss[part] for loss in losses])) for part in teachers}
        expected[name] = {
            "loss": 2 * parts["image"] + parts["video"],
            **{f"loss_{part}": value for part, value in parts.items()},
        }
    metrics = trainer.evaluate()
    again = trainer.evaluate(sets["six"], metric_key_prefix="held_out")
    for part in ("loss", "loss_image", "loss_video"):
        for name in sets:
            assert metrics[f"eval_{name}_{part}"] == pytest.approx(expected[name][part], rel=1e-5)
        assert again[f"held_out_{part}"] == pytest.approx(expected["six"][part], rel=1e-5)


def test_a_classifier_gives_its_predictions_and_the_exact_loss(tmp_path):
    config = videomae(num_labels=3)
    model, data = MVDForVideoClassification(config), Clips(config, 7, labels=True)
    args = arguments(tmp_path, per_device_eval_batch_size=4)
    trainer = MVDTrainer(model, args, eval_dataset=data, compute_metrics=lambda p: {"count": len(p.predictions)})
    with torch.no_grad():
        model.eval()
        batch = torch.utils.data.default_collate([data[i] for i in range(7)])
        outputs = model(**batch)
    metrics = trainer.evaluate()
    assert metrics["eval_count"] == 7
    assert metrics["eval_loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    assert trainer.predict(data).predictions == pytest.approx(outputs.logits.numpy(), abs=1e-5)


def test_a_run_with_several_evaluation_sets_tells_of_each(tmp_path, caplog):
    config = videomae()
    args = arguments(tmp_path, num_train_epochs=1, warmup_epochs=0, base_learning_rate=0.5)
    sets = {"five": Clips(config, 5), "six": Clips(config, 6)}
    trainer = MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=Clips(config), eval_dataset=sets)
    with caplog.at_level(logging.INFO):
        trainer.run()
    history = trainer.state.log_history
    for name in sets:
        untrained, trained = (entry[f"eval_{name}_loss"] for entry in history if f"eval_{name}_loss" in entry)
        assert f"Held-out {name}_loss: {untrained:.4f} untrained, {trained:.4f} trained" in caplog.text


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[str]:
    """Paths of 8 videos, of which numbers 2 and 5 cannot be read."""
    folder = tmp_path_factory.mktemp("videos")
    make_toy_dataset(folder, num_train=8, num_validation=0, num_frames=8, height=32, width=40)
    paths = sorted(folder.glob("train/*.mp4"))
    for i in (2, 5):
        paths[i].write_bytes(b"no video")
    return [str(path) for path in paths]


def clips_of(paths: list[str], config: MVDConfig, **options) -> ClipDataset:
    clip_sampler = ClipSampler(
        partial(pretraining_frames, num_frames=config.num_frames, stride=2),
        PretrainingAugmentation([32]),
        partial(tube_mask, config.grid, config.mask_ratio),
    )
    return ClipDataset(datasets.Dataset.from_dict({"video": paths}), clip_sampler, on_bad_video="skip", **options)


@pytest.mark.parametrize("batch", [1, 3, 4, 8])
def test_unreadable_videos_are_missing_from_the_evaluation_and_counted(tmp_path, videos, batch, caplog):
    config = videomae()
    model, data = MVDForPixelReconstruction(config), clips_of(videos, config)
    trainer = MVDTrainer(model, arguments(tmp_path, per_device_eval_batch_size=batch), eval_dataset=data)
    readable = [data[i] for i in range(8) if i not in (2, 5)]
    for _ in range(2):
        metrics = trainer.evaluate()
        assert metrics["eval_missing"] == 2
        assert metrics["eval_loss"] == pytest.approx(mean_loss(model, readable, MASKED), rel=1e-5)
    assert "on 6 of 8 videos" in caplog.text


def test_an_evaluation_of_nothing_but_unreadable_videos_is_refused(tmp_path, videos):
    config = videomae()
    data = clips_of([videos[2], videos[5]], config)
    trainer = MVDTrainer(MVDForPixelReconstruction(config), arguments(tmp_path), eval_dataset=data)
    with pytest.raises(ValueError, match="nothing for the evaluation: no video could be read"):
        trainer.evaluate()


def test_unreadable_videos_are_counted_over_a_resume(tmp_path, videos):
    config = videomae()
    options = {"num_train_epochs": 3, "warmup_epochs": 0, "save_strategy": "epoch", "per_device_train_batch_size": 2}
    files = {videos[2], videos[5]}

    def counts(folder) -> dict[str, int]:
        with open(folder / "bad_videos.csv", newline="", encoding="utf-8") as file:
            return {row["file"]: int(row["times"]) for row in csv.DictReader(file)}

    whole = run(MVDForPixelReconstruction(config), clips_of(videos, config), tmp_path, **options)
    assert counts(tmp_path) == dict.fromkeys(files, 3)
    assert counts(tmp_path / "checkpoint-4") == dict.fromkeys(files, 1)
    (tmp_path / "bad_videos.csv").unlink()
    args = arguments(tmp_path, **options)
    resumed = MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=clips_of(videos, config))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert counts(tmp_path) == dict.fromkeys(files, 3)
    assert resumed.bad_videos.counts == whole.bad_videos.counts
    totals = [entry["bad_videos"] for entry in whole.state.log_history if "bad_videos" in entry]
    assert totals[-1] == 6
    assert next(entry["bad_videos"] for entry in resumed.state.log_history if entry["step"] == 12) == 6


def test_a_blank_batch_trains_nothing(tmp_path, videos):
    """With batches of one, an unreadable video leaves weights without decay as they are."""
    config = videomae()
    model = MVDForPixelReconstruction(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = arguments(
        tmp_path,
        num_train_epochs=1,
        warmup_epochs=0,
        per_device_train_batch_size=1,
        weight_decay=0.0,
        base_learning_rate=0.5,
    )
    trainer = MVDTrainer(model, args, train_dataset=clips_of([videos[2], videos[5]], config))
    trainer.train()
    assert trainer.state.global_step == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] == [0, 0]


@pytest.mark.parametrize("kind", ["datasets.Dataset", "Subset"])
def test_data_sets_that_would_misread_their_keys_are_refused(kind, tmp_path):
    config = videomae()
    if kind == "Subset":
        data = torch.utils.data.Subset(Clips(config), np.arange(4))
    else:
        data = datasets.Dataset.from_dict({"pixel_values": [[0.0]] * 4})
    with pytest.raises(ValueError, match=r"does not take \(epoch, index\) keys"):
        MVDTrainer(MVDForPixelReconstruction(config), arguments(tmp_path), train_dataset=data)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_with_what_is_complete_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    config = videomae()
    args = arguments(tmp_path, num_train_epochs=3, warmup_epochs=0, save_strategy="steps", save_steps=2)
    trainer = MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=Clips(config))
    save = torch.save

    def fill_up(content, path, *others, **options):
        if "checkpoint-4" in str(path):
            path = "/dev/full"
        save(content, path, *others, **options)

    monkeypatch.setattr(torch, "save", fill_up)
    with pytest.raises(OSError, match=r"checkpoint-4 could not .*disk is full.*checkpoint-2 is complete.*save_total"):
        trainer.run()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.setattr(torch, "save", save)
    again = MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=Clips(config))
    again.run()
    assert again.state.global_step == 6


@pytest.mark.parametrize(
    ("number", "code", "strategy", "saved"),
    [
        (signal.SIGTERM, 143, "epoch", {"checkpoint-2", "checkpoint-3"}),
        (signal.SIGINT, 130, "no", set()),
    ],
)
def test_a_signal_saves_after_the_step_and_ends_the_run_whatever_is_logged(
    tmp_path, caplog, number, code, strategy, saved
):
    class Terminate(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), number)

    config = videomae()
    options = {"num_train_epochs": 5, "warmup_epochs": 0, "logging_strategy": "no"}
    args = arguments(tmp_path, save_strategy=strategy, **options)
    trainer = MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=Clips(config))
    trainer.add_callback(Terminate())
    with pytest.raises(SystemExit) as ended:
        trainer.run()
    assert ended.value.code == code
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == saved
    assert f"Stopped by {number.name} after step 3" in caplog.text
    assert not (tmp_path / "model.safetensors").exists()


def test_a_request_to_stop_that_comes_at_the_very_end_is_not_forgotten(tmp_path, caplog):
    class Terminate(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)

    config = videomae()
    args = arguments(tmp_path, num_train_epochs=1, warmup_epochs=0)
    trainer = MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=Clips(config))
    trainer.add_callback(Terminate())
    done = []
    with pytest.raises(SystemExit) as ended:
        trainer.run(then=lambda: done.append("evaluated"))
    assert ended.value.code == 143
    assert f"Training had ended, the model is in {tmp_path}" in caplog.text
    assert (tmp_path / "model.safetensors").exists()
    assert not done


def test_a_nan_ends_a_run_that_logs_and_saves_nothing(tmp_path):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                next(model.parameters()).data.fill_(float("nan"))

    config = videomae()
    args = arguments(tmp_path, num_train_epochs=20, warmup_epochs=0, logging_strategy="no")
    trainer = MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=Clips(config))
    trainer.add_callback(Poison())
    with pytest.raises(FloatingPointError, match="'loss' is NaN or infinite at step 4"):
        trainer.train()
    assert trainer.state.global_step == 4  # at the end of the epoch, or after ten steps


def test_the_card_is_written_as_scripts_ask_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(snippets, "run_snippet", lambda *args: "printed\n")
    config = videomae()
    args = arguments(tmp_path, num_train_epochs=1, warmup_epochs=0, license="apache-2.0")
    model, processor = MVDForPixelReconstruction(config), MVDVideoProcessor.for_model(config)
    trainer = MVDTrainer(model, args, train_dataset=Clips(config), processing_class=processor)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert "license: apache-2.0" in (tmp_path / "README.md").read_text()
    known = {"finetuned_from": "videomae-b", "tasks": "video-classification", "dataset": "me/clips", "tags": "video"}
    trainer.create_model_card(model_name="My model", language="en", **known)
    card = (tmp_path / "README.md").read_text()
    assert "My model" in card
    assert "- video" in card
