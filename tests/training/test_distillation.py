"""Stage 2: the losses and the trainer that holds the teachers outside the student."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import default_collate

from masked_clips import Clips, SeveralMasks, arguments
from mvd_hf import (
    DistillationTrainer,
    MVDConfig,
    MVDForFeatureDistillation,
    TeacherConfig,
    distillation_losses,
    load_teachers,
)
from mvd_hf.hub.cards import checkpoint_files
from mvd_hf.model.modeling_mvd import MVDModel
from mvd_hf.teachers import fit_student
from mvd_hf.teachers.teacher import Teacher
from mvd_hf.training.checkpoints import last_complete_checkpoint
from mvd_hf.training.diagnostics import OnlineProbe
from mvd_hf.training.losses import MaskedPatches, compared_pairs, masked_targets
from tiny_models import TINY, assert_same_weights


def test_losses_are_means_over_hidden_patches_and_channels():
    mask = torch.tensor([[True, False, True, False], [False, True, False, True]])
    targets = {"a": torch.randn(2, 4, 5), "b": torch.randn(2, 4, 3)}
    predictions = {"a": torch.randn(2, 2, 5), "b": torch.randn(2, 2, 3)}
    losses = distillation_losses(predictions, targets, mask, {"a": "smooth_l1", "b": "l2"})
    hidden = targets["a"][mask].view(2, 2, 5)
    error = (predictions["a"] - hidden).abs()
    assert losses["a"].item() == pytest.approx(torch.where(error < 1, error**2 / 2, error - 0.5).mean().item())
    assert losses["b"].item() == pytest.approx(
        ((predictions["b"] - targets["b"][mask].view(2, 2, 3)) ** 2).mean().item()
    )


def test_visible_patches_do_not_enter_the_loss():
    mask = torch.tensor([[True, False]])
    prediction = {"a": torch.zeros(1, 1, 2)}
    first = distillation_losses(prediction, {"a": torch.tensor([[[1.0, 1.0], [5.0, 5.0]]])}, mask)["a"]
    second = distillation_losses(prediction, {"a": torch.tensor([[[1.0, 1.0], [9.0, 9.0]]])}, mask)["a"]
    assert first == second == 0.5


def test_half_precision_predictions_give_a_float32_loss():
    prediction = {"a": torch.randn(1, 1, 4, dtype=torch.bfloat16)}
    loss = distillation_losses(prediction, {"a": torch.randn(1, 2, 4)}, torch.tensor([[True, False]]))["a"]
    assert loss.dtype == torch.float32


def test_names_and_losses_must_be_known():
    mask = torch.tensor([[True, False]])
    with pytest.raises(ValueError, match=r"predicts \['a'\], the teachers are \['b'\]"):
        distillation_losses({"a": torch.zeros(1, 1, 2)}, {"b": torch.zeros(1, 2, 2)}, mask)
    with pytest.raises(ValueError, match="'huber'"):
        distillation_losses({"a": torch.zeros(1, 1, 2)}, {"a": torch.zeros(1, 2, 2)}, mask, "huber")


def test_each_teachers_loss_is_logged_and_the_total_is_their_weighted_sum(
    tmp_path, tiny_teachers, tiny_student_config
):
    teachers = load_teachers(
        {"image": {"model": tiny_teachers["image"], "weight": 0.25}, "video": tiny_teachers["video"]},
        tiny_student_config.grid,
        tiny_student_config.num_frames,
    )
    trainer = DistillationTrainer(
        MVDForFeatureDistillation(tiny_student_config),
        teachers,
        args=arguments(tmp_path, gradient_accumulation_steps=2),
        train_dataset=Clips(tiny_student_config),
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 2
    for entry in steps:
        assert entry["loss"] == pytest.approx(0.25 * entry["loss_image"] + entry["loss_video"], rel=1e-5)


def test_one_teacher_and_three_teachers_use_the_same_loop(tmp_path, tiny_teachers, tiny_student_config):
    for names in (["image"], ["image", "video", "again"]):
        entries = {name: tiny_teachers["image" if name == "image" else "video"] for name in names}
        tiny_student_config.teacher_dims = dict.fromkeys(names, 32)
        teachers = load_teachers(entries, tiny_student_config.grid, tiny_student_config.num_frames)
        trainer = DistillationTrainer(
            MVDForFeatureDistillation(tiny_student_config),
            teachers,
            args=arguments(tmp_path / "-".join(names), num_train_epochs=1),
            train_dataset=Clips(tiny_student_config),
        )
        trainer.train()
        logged = {key for key in trainer.state.log_history[0] if key.startswith("loss_")}
        assert logged == {f"loss_{name}" for name in names}


def test_checkpoints_hold_the_student_alone_and_teachers_do_not_change(tmp_path, tiny_teachers, tiny_student_config):
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)
    before = {name: nn.utils.parameters_to_vector(t.model.parameters()).clone() for name, t in teachers.items()}
    student = MVDForFeatureDistillation(tiny_student_config)
    trainer = DistillationTrainer(
        student,
        teachers,
        args=arguments(tmp_path, save_strategy="epoch", num_train_epochs=1),
        train_dataset=Clips(tiny_student_config),
    )
    trainer.train()
    reloaded = MVDForFeatureDistillation.from_pretrained(tmp_path / "checkpoint-2")
    assert reloaded.state_dict().keys() == student.state_dict().keys()
    for name, teacher in teachers.items():
        assert torch.equal(before[name], nn.utils.parameters_to_vector(teacher.model.parameters()))


def test_a_teacher_with_smaller_frames_trains_from_its_own_clip(tmp_path, tiny_student_config):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    image_model = MVDModel(MVDConfig.from_name("mae-b", image_size=28, patch_size=7, **sizes), add_final_norm=False)
    tiny_student_config.teacher_dims = {"image": 32}
    teacher = Teacher(TeacherConfig("m"), image_model, tiny_student_config.grid, tiny_student_config.num_frames)
    trainer = DistillationTrainer(
        MVDForFeatureDistillation(tiny_student_config),
        {"image": teacher},
        args=arguments(tmp_path, num_train_epochs=1),
        train_dataset=Clips(tiny_student_config, sizes=(32, 28)),
    )
    trainer.train()
    assert trainer.state.global_step == 2


def test_widths_that_do_not_match_are_refused(tmp_path, tiny_teachers, tiny_student_config):
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)
    tiny_student_config.teacher_dims = {"image": 32, "video": 24}
    with pytest.raises(ValueError, match="'video': 24"):
        DistillationTrainer(MVDForFeatureDistillation(tiny_student_config), teachers, args=arguments(tmp_path))


def test_evaluation_reports_the_loss_and_its_parts_and_leaves_training_figures_alone(
    tmp_path, tiny_teachers, tiny_student_config
):
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)
    data = Clips(tiny_student_config)
    trainer = DistillationTrainer(
        MVDForFeatureDistillation(tiny_student_config),
        teachers,
        args=arguments(tmp_path, per_device_eval_batch_size=3),
        train_dataset=data,
        eval_dataset=data,
    )
    metrics = trainer.evaluate()
    logged = trainer.state.log_history[-1]
    again = trainer.evaluate()
    assert metrics["eval_loss"] == again["eval_loss"]
    assert logged["eval_loss_image"] + logged["eval_loss_video"] == pytest.approx(metrics["eval_loss"], rel=1e-6)
    assert trainer.losses["loss"].num_clips == 0


@pytest.mark.parametrize("precision", [{"bf16": True}, {}])
def test_teachers_and_student_run_in_the_chosen_precision(tmp_path, tiny_teachers, tiny_student_config, precision):
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)
    seen = {}
    attention = teachers["video"].model.layers[0].attention.proj
    attention.register_forward_hook(lambda module, args, output: seen.update(teacher=output.dtype))
    student = MVDForFeatureDistillation(tiny_student_config)
    student.mvd.layers[0].attention.proj.register_forward_hook(
        lambda module, args, output: seen.update(student=output.dtype)
    )
    trainer = DistillationTrainer(
        student,
        teachers,
        args=arguments(tmp_path, num_train_epochs=1, **precision),
        train_dataset=Clips(tiny_student_config),
    )
    trainer.train()
    expected = torch.bfloat16 if precision else torch.float32
    assert seen == {"teacher": expected, "student": expected}
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())


def test_a_nan_loss_stops_training_naming_step_and_part_and_keeps_the_last_checkpoint(
    tmp_path, tiny_teachers, tiny_student_config
):
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)

    class BrokenTeacher(Teacher):
        calls = 0

        def __call__(self, clips):
            BrokenTeacher.calls += 1
            features = super().__call__(clips)
            return features * float("nan") if BrokenTeacher.calls == 4 else features

    teachers["video"].__class__ = BrokenTeacher
    trainer = DistillationTrainer(
        MVDForFeatureDistillation(tiny_student_config),
        teachers,
        args=arguments(tmp_path, num_train_epochs=4, save_strategy="steps", save_steps=1, logging_steps=100),
        train_dataset=Clips(tiny_student_config),
    )
    with pytest.raises(FloatingPointError, match="'loss_video' is NaN or infinite at step 4"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3",
    ]


def test_targets_are_the_features_of_the_masked_patches():
    mask = torch.tensor([[True, False, True, False], [False, True, True, False]])
    targets = {"image": torch.randn(2, 4, 8).bfloat16(), "video": torch.randn(2, 4, 6)}
    hidden = masked_targets({name: target[:, :2] for name, target in targets.items()}, targets, mask)
    for name, target in targets.items():
        assert torch.equal(hidden[name], target[mask].view(2, 2, -1))


def loss_and_gradients(trainer, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    trainer.model.zero_grad()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}


@pytest.mark.parametrize("decoder_keep", [1.0, 0.5])
def test_several_masks_are_as_several_batches_of_one_pass_of_the_teachers(
    tmp_path, tiny_teachers, tiny_student_config, decoder_keep
):
    tiny_student_config.drop_path_rate, tiny_student_config.decoder_keep = 0.0, decoder_keep
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)
    student = MVDForFeatureDistillation(tiny_student_config)
    trainer = DistillationTrainer(student, teachers, args=arguments(tmp_path, masks_per_clip=3))
    single = DistillationTrainer(student, teachers, args=arguments(tmp_path))
    data = SeveralMasks(tiny_student_config, 3)
    batch = default_collate([data[i] for i in range(4)])
    seen = []
    teachers["video"].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    loss, gradients = loss_and_gradients(trainer, batch)
    assert seen == [4]  # the teachers see every clip once
    losses, sums = [], dict.fromkeys(gradients, 0.0)
    for i in range(3):
        one = {name: value[:, i] if value.dim() == 3 else value for name, value in batch.items()}
        one_loss, one_gradients = loss_and_gradients(single, one)
        losses.append(one_loss)
        sums = {name: value + one_gradients[name] / 3 for name, value in sums.items()}
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
    assert len({round(value.item(), 5) for value in losses}) == 3
    torch.testing.assert_close(gradients, sums, atol=1e-6, rtol=1e-4)


def test_one_mask_of_several_dimensions_is_bitwise_the_same_as_one(tmp_path, tiny_teachers, tiny_student_config):
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)
    trainer = DistillationTrainer(MVDForFeatureDistillation(tiny_student_config), teachers, args=arguments(tmp_path))
    batch = default_collate([Clips(tiny_student_config)[i] for i in range(4)])
    torch.manual_seed(0)
    loss, gradients = loss_and_gradients(trainer, batch)
    torch.manual_seed(0)
    again, others = loss_and_gradients(trainer, batch | {"bool_masked_pos": batch["bool_masked_pos"][:, None]})
    assert torch.equal(loss, again)
    assert all(torch.equal(value, others[name]) for name, value in gradients.items())


def test_the_loss_of_a_decoded_part_is_that_of_its_patches(tmp_path, tiny_teachers, tiny_student_config):
    tiny_student_config.decoder_keep = 0.5
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)
    student = MVDForFeatureDistillation(tiny_student_config)
    trainer = DistillationTrainer(student, teachers, args=arguments(tmp_path))
    batch = default_collate([SeveralMasks(tiny_student_config, 1)[i] for i in range(3)])
    part = batch["bool_decoded_pos"]
    torch.manual_seed(0)
    loss, _ = loss_and_gradients(trainer, batch)
    torch.manual_seed(0)
    predictions = student(batch["pixel_values"], batch["bool_masked_pos"], bool_decoded_pos=part).predictions
    targets = {name: teacher({32: batch["pixel_values"]}) for name, teacher in teachers.items()}
    expected = sum(
        nn.functional.smooth_l1_loss(prediction, targets[name][part].view(prediction.shape))
        for name, prediction in predictions.items()
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("mask_type", "guides", "found"),
    [("attention", [], r"\[\]"), ("attention", ["a", "b"], r"\['a', 'b'\]"), ("tube", ["b"], r"\['b'\]")],
)
def test_masks_by_attention_need_one_teacher_that_guides_them(tmp_path, tiny_teachers, mask_type, guides, found):
    teachers = teachers_of(tiny_teachers, **{n: {"kind": "image", "guides_masks": n in guides} for n in "ab"})
    with pytest.raises(ValueError, match=f"mask_type='{mask_type}'.*{found}"):
        DistillationTrainer(student_of(teachers, mask_type=mask_type), teachers, args=arguments(tmp_path))


def test_masks_by_attention_refuse_a_data_set_that_draws_its_own(tmp_path, tiny_teachers):
    teachers = teachers_of(tiny_teachers, a={"kind": "image", "guides_masks": True})
    student = student_of(teachers, mask_type="attention")
    trainer = DistillationTrainer(student, teachers, args=arguments(tmp_path), train_dataset=Clips(student.config))
    with pytest.raises(ValueError, match="mask_noise"):
        trainer.train()


@pytest.mark.parametrize(
    ("masks_per_clip", "decoder_keep", "message"),
    [
        (2, 1.0, "masks_per_clip=2, but the data set draws 1 per clip"),
        (1, 0.5, "decoder_keep=0.5, but the batch lacks bool_decoded_pos"),
    ],
)
def test_a_data_set_that_draws_other_masks_is_refused(
    tmp_path, tiny_teachers, tiny_student_config, masks_per_clip, decoder_keep, message
):
    tiny_student_config.decoder_keep = decoder_keep
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)
    trainer = DistillationTrainer(
        MVDForFeatureDistillation(tiny_student_config),
        teachers,
        args=arguments(tmp_path, masks_per_clip=masks_per_clip),
        train_dataset=Clips(tiny_student_config),
    )
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_masks_of_a_data_set_that_nobody_asked_for_are_refused(tmp_path, tiny_teachers, tiny_student_config):
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)
    trainer = DistillationTrainer(
        MVDForFeatureDistillation(tiny_student_config),
        teachers,
        args=arguments(tmp_path),
        train_dataset=SeveralMasks(tiny_student_config, 2),
    )
    with pytest.raises(ValueError, match="masks_per_clip=1, but the data set draws 2 per clip"):
        trainer.train()


def test_a_run_with_several_masks_and_a_decoded_part_resumes_exactly(tmp_path, tiny_teachers, tiny_student_config):
    tiny_student_config.drop_path_rate, tiny_student_config.decoder_keep = 0.2, 0.5
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)

    def run(folder):
        torch.manual_seed(0)
        probe = OnlineProbe(tiny_student_config.hidden_size, 2)
        trainer = DistillationTrainer(
            MVDForFeatureDistillation(tiny_student_config),
            teachers,
            probe=probe,
            args=arguments(folder, masks_per_clip=2, num_train_epochs=3, save_strategy="steps", save_steps=2),
            train_dataset=SeveralMasks(tiny_student_config, 2),
            eval_dataset=Clips(tiny_student_config),
        )
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
        history = {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}
        kept = ("loss", "loss_image", "cosine_video", "grad_norm", "probe_accuracy", "student_rank")
        figures = {step: [entry[name] for name in kept] for step, entry in history.items()}
        return figures, trainer.model.state_dict(), trainer.evaluate()["eval_loss"]

    whole, weights, evaluated = run(tmp_path / "whole")
    (tmp_path / "resumed").mkdir()
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "resumed" / "checkpoint-2")
    resumed, same_weights, same_evaluated = run(tmp_path / "resumed")
    assert len(whole) == 6
    assert resumed == whole
    assert evaluated == same_evaluated
    assert all(torch.equal(value, same_weights[name]) for name, value in weights.items())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_where_the_probe_is_written(tmp_path, monkeypatch, tiny_teachers, tiny_student_config):
    save = torch.save
    monkeypatch.setattr(
        torch, "save", lambda content, path: save(content, "/dev/full" if "probe" in str(path) else path)
    )
    trainer = DistillationTrainer(
        MVDForFeatureDistillation(tiny_student_config),
        load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames),
        probe=OnlineProbe(tiny_student_config.hidden_size, 2),
        args=arguments(tmp_path, masks_per_clip=2, save_strategy="steps", save_steps=1),
        train_dataset=SeveralMasks(tiny_student_config, 2),
    )
    with pytest.raises(OSError, match="checkpoint-1 could not be written and was removed"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_teachers_of_half_precision_run_without_autocast(tmp_path, tiny_teachers, tiny_student_config):
    seen = {}
    for dtype in ("float32", "bfloat16"):
        entries = {name: {"model": folder, "dtype": dtype} for name, folder in tiny_teachers.items()}
        teachers = load_teachers(entries, tiny_student_config.grid, tiny_student_config.num_frames)
        norm = teachers["video"].model.layers[0].norm1
        norm.register_forward_pre_hook(
            lambda module, args, dtype=dtype: seen.setdefault(dtype, []).append(torch.is_autocast_enabled("cpu"))
        )
        trainer = DistillationTrainer(
            MVDForFeatureDistillation(tiny_student_config),
            teachers,
            args=arguments(tmp_path, bf16=True, num_train_epochs=1),
            train_dataset=Clips(tiny_student_config),
        )
        trainer.train()
        clips = {32: Clips(tiny_student_config)[0]["pixel_values"][None]}
        outside = teachers["video"](clips)
        with torch.autocast("cpu", torch.bfloat16):
            inside = teachers["video"](clips)
        assert torch.equal(inside, outside) == (dtype == "bfloat16")
    in_training = {dtype: flags[:2] for dtype, flags in seen.items()}
    assert in_training == {"float32": [True, True], "bfloat16": [False, False]}


def student_of(teachers, **fields) -> MVDForFeatureDistillation:
    config = MVDConfig.from_name("mvd-b", **TINY, num_frames=4, drop_path_rate=0.0, **fields)
    fit_student(config, teachers)
    torch.manual_seed(0)
    return MVDForFeatureDistillation(config)


def teachers_of(folders, **entries) -> dict[str, Teacher]:
    """Teachers by name, of the entries' options; `kind` is the tiny teacher's."""
    entries = {name: {"model": folders[options.pop("kind")], **options} for name, options in entries.items()}
    return load_teachers(entries, (2, 4, 4), 4)


EVERY_OPTION = {
    "dino": {"kind": "image", "layers": [1, 2], "summary": True, "target_norm": "standardize", "loss": "cosine"},
    "clip": {"kind": "image", "on": "visible", "target_norm": "phi_s"},
    "video": {"kind": "video", "on": "all", "visible_weighting": "distance", "visible_weight": 0.5, "loss": "l1"},
}


def test_every_kind_of_target_is_logged_and_the_loss_is_their_weighted_sum(tmp_path, tiny_teachers):
    teachers = teachers_of(tiny_teachers, **copy.deepcopy(EVERY_OPTION))
    student = student_of(teachers)
    data = Clips(student.config, count=16)
    trainer = DistillationTrainer(
        student, teachers, args=arguments(tmp_path, base_learning_rate=0.5), train_dataset=data, eval_dataset=data
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("dino_1", "dino_2", "dino_summary", "clip", "video_masked", "video_visible")
    weights = (0.5, 0.5, 1, 1, 1, 0.5)
    for entry in [*log, {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}]:
        assert {key.removeprefix("loss_") for key in entry if key.startswith("loss_")} == set(names)
        expected = sum(weight * entry[f"loss_{name}"] for name, weight in zip(names, weights, strict=True))
        assert entry["loss"] == pytest.approx(expected, rel=1e-5)
    assert log[-1]["loss"] < log[0]["loss"]


def test_running_statistics_and_loss_scales_resume_to_the_bit(tmp_path, tiny_teachers):
    teachers = teachers_of(tiny_teachers, **copy.deepcopy(EVERY_OPTION))

    def run(folder, epochs):
        student = student_of(teachers)
        options = {"num_train_epochs": epochs, "schedule_epochs": 4, "save_strategy": "epoch"}
        trainer = DistillationTrainer(
            student,
            teachers,
            balance="loss_scale",
            norm_clips=4,
            args=arguments(folder, **options),
            train_dataset=Clips(student.config),
        )
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
        return trainer

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 4)
    assert_same_weights(whole.model, parts.model)
    assert_same_weights(whole.target_state, parts.target_state)
    assert whole.norms["dino_1"].count == 32 * (4 + 4 * 8)  # the fit, then each epoch
    assert whole.norms["clip"].count == 32 * 4  # fixed after the fit


def test_a_warm_start_takes_the_statistics_that_its_decoders_were_trained_for(tmp_path, tiny_teachers, hub, caplog):
    """From a folder and from the Hub; those of another layer or another teacher are fitted to the new clips."""
    folders = tiny_teachers | {"other": str(tmp_path / "other" / Path(tiny_teachers["image"]).name)}
    shutil.copytree(folders["image"], folders["other"])
    weights = load_file(Path(folders["other"], "model.safetensors"))
    save_file({name: value * 1.1 for name, value in weights.items()}, Path(folders["other"], "model.safetensors"))

    def make(count: int, other: str, layer: int, dtype: str) -> DistillationTrainer:
        entries = {"cls_token": {"kind": "image", "dtype": dtype}, "b": {"kind": "video", "layer": layer}}
        entries["c"] = {"kind": other}
        teachers = teachers_of(folders, **{name: {**entry, "target_norm": "phi_s"} for name, entry in entries.items()})
        student, args = student_of(teachers), arguments(tmp_path / "run", max_steps=1)
        return DistillationTrainer(
            student, teachers, norm_clips=count, args=args, train_dataset=Clips(student.config, count)
        )

    first = make(4, "image", layer=-1, dtype="float32")
    first.train()
    first.save_model()
    HfApi().create_repo("me/student")
    files = [str(path.relative_to(tmp_path / "run")) for path in checkpoint_files(tmp_path / "run")]
    HfApi().upload_folder(repo_id="me/student", folder_path=tmp_path / "run", allow_patterns=files)
    for source in (tmp_path / "run", "me/student"):
        second = make(8, "other", layer=1, dtype="bfloat16")
        second.take_statistics(source)
        assert_same_weights(second.norms["cls_token"], first.norms["cls_token"])
        warned = [record.args for record in caplog.records if record.levelname == "WARNING" and record.args]
        assert warned[-2:] == [(source, "b"), (source, "c")]
    second.train()
    assert_same_weights(second.norms["cls_token"], first.norms["cls_token"])
    for name in "bc":
        assert (first.norms[name].count, second.norms[name].count) == (4 * 32, 8 * 32)


def gradient_shares(trainer, batch) -> dict[str, float]:
    """The part that each target has of the sum of the gradients' norms at the student's encoder."""
    trainer.model.train()
    features = trainer.normalized(trainer.teacher_features(batch), batch)
    seen = trainer.model_inputs(batch)
    outputs = trainer.model(**seen)
    pairs = compared_pairs(outputs, features, trainer.targets, MaskedPatches.of(seen, 24, (2, 4, 4)))
    losses = distillation_losses(*pairs, losses="l2")
    norms = {
        name: torch.autograd.grad(loss, outputs.last_hidden_state, retain_graph=True)[0].norm().item()
        for name, loss in losses.items()
    }
    return {name: norm / sum(norms.values()) for name, norm in norms.items()}


@pytest.mark.parametrize(
    ("target_norm", "share"), [("none", 0.98), ("standardize", 0.5), ("phi_s", 0.5)], ids=lambda value: str(value)
)
def test_a_teacher_of_a_hundred_times_the_scale_has_its_share_of_the_gradient(
    tmp_path, tiny_teachers, target_norm, share
):
    teachers = teachers_of(
        tiny_teachers, **{name: {"kind": "video", "target_norm": target_norm} for name in ("one", "hundred")}
    )
    torch.manual_seed(0)
    teachers["hundred"].register_forward_hook(lambda module, args, output: 100 * output)
    student = student_of(teachers)
    student.decoders["hundred"].load_state_dict(student.decoders["one"].state_dict())
    data = Clips(student.config)
    trainer = DistillationTrainer(student, teachers, args=arguments(tmp_path), train_dataset=data)
    trainer._get_train_sampler()
    trainer.fit_norms()
    batch = default_collate([data[i] for i in range(4)])
    assert gradient_shares(trainer, batch)["hundred"] == pytest.approx(share, abs=0.02)


def test_statistics_that_were_never_fitted_are_an_error_and_an_unknown_balance_too(tmp_path, tiny_teachers):
    teachers = teachers_of(tiny_teachers, a={"kind": "image", "target_norm": "phi_s"})
    student = student_of(teachers)
    data = Clips(student.config)
    trainer = DistillationTrainer(student, teachers, args=arguments(tmp_path), eval_dataset=data, train_dataset=data)
    with pytest.raises(ValueError, match="call train"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="gradnorm"):
        DistillationTrainer(student, teachers, balance="gradnorm", args=arguments(tmp_path))
    other = teachers_of(tiny_teachers, a={"kind": "image", "on": "visible"})
    with pytest.raises(ValueError, match="teacher_tokens"):
        DistillationTrainer(student, other, args=arguments(tmp_path))
