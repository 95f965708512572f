"""Our models, losses and trainers against numbers that the official MVD, MAE and VideoMAE programs gave.

The numbers lie beside this file (see README.md there); MVD_PARITY_DIR names another folder of the same form.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

import mvd_hf.model.frame_sampling as frame_sampling
from mvd_hf import (
    DistillationTrainer,
    MVDConfig,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDModel,
    MVDTrainer,
    MVDTrainingArguments,
    TeacherConfig,
    convert_checkpoint,
    distillation_losses,
)
from mvd_hf.data.augmentation import MultiScaleCrop, resize_frames
from mvd_hf.data.masking import random_mask, tube_mask
from mvd_hf.evaluation.metrics import merge_views, top_k_hits
from mvd_hf.model.patches_mvd import pixel_targets, position_table
from mvd_hf.teachers.teacher import Teacher
from mvd_hf.training.optimization import cosine_schedule, parameter_groups
from mvd_hf.training.samplers import EpochSampler

FOLDER = Path(os.environ.get("MVD_PARITY_DIR", Path(__file__).parent))


def stored(pattern: str) -> list[str]:
    """Names, without suffix, of the stored files that match; there is always one."""
    names = sorted({path.stem for path in FOLDER.glob(pattern)})
    assert names, f"{FOLDER} holds no {pattern}"
    return names


def load(name: str) -> tuple[dict, dict]:
    """Tensors (float16 inputs as float32) and JSON of a case; either file may be missing, not both."""
    tensors, description = FOLDER / f"{name}.safetensors", FOLDER / f"{name}.json"
    assert tensors.exists() or description.exists(), f"{name} is not among the stored numbers in {FOLDER}"
    loaded = load_file(tensors) if tensors.exists() else {}
    loaded = {key: value.float() if value.dtype == torch.float16 else value for key, value in loaded.items()}
    return loaded, json.loads(description.read_text()) if description.exists() else {}


def parameters(tensors: dict, prefix: str = "param.") -> dict:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def frames_first(clips: torch.Tensor) -> torch.Tensor:
    """The official (B, C, T, H, W) as (B, T, C, H, W)."""
    return clips.transpose(1, 2)


def deviation(ours: torch.Tensor, official: torch.Tensor) -> float:
    """Largest difference, relative to the official tensor's largest value."""
    assert ours.shape == official.shape
    return ((ours.detach() - official).abs().max() / official.abs().max()).item()


def report(record_property, **deviations):
    """Keep the figures for `--junit-xml` and check them: 1e-5 relative to the tensor's scale."""
    for name, value in deviations.items():
        record_property(name, float(value))
    assert all(value < 1e-5 for value in deviations.values()), deviations


def official_gradients(model: nn.Module, state_dict: dict, **options) -> dict[str, torch.Tensor]:
    """Gradients of a model under the official names, found by converting a state dict that holds indices."""
    numbered = {key: torch.full_like(value, i) for i, (key, value) in enumerate(state_dict.items())}
    names = list(state_dict)
    tables = [key for key in names if "pos_embed" in key]
    twin = convert_checkpoint({**numbered, **{key: state_dict[key] for key in tables}}, **options)
    gradients: dict[str, torch.Tensor] = {}
    marks = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        official = names[int(marks[name].flatten()[0])]
        gradients.setdefault(official, []).append(parameter.grad)
    return {
        key: (torch.cat(parts) if len(parts) > 1 else parts[0]).view_as(state_dict[key])
        for key, parts in gradients.items()
    }


def check_gradients(record_property, model, tensors, norms, state_dict, **options):
    """Compare stored gradients and the norm of every parameter's gradient."""
    gradients = official_gradients(model, state_dict, **options)
    stored = parameters(tensors, "grad.")
    worst = max(deviation(gradients[key], value) for key, value in stored.items())
    largest = max(norm for norm in norms.values() if norm is not None)
    norm_error = max(abs(gradients[key].norm().item() - norm) / largest for key, norm in norms.items() if norm)
    assert gradients.keys() == {key for key, norm in norms.items() if norm is not None}
    report(record_property, gradients=worst, gradient_norms=norm_error)


@pytest.mark.parametrize("name", stored("student_*.json"))
def test_student(name, record_property):
    tensors, case = load(name)
    config = case["config"]
    options = {
        "num_frames": config["num_frames"],
        "num_attention_heads": config["encoder_num_heads"],
        "decoder_num_attention_heads": config["feat_decoder_num_heads"] or config["encoder_num_heads"],
    }
    student = convert_checkpoint(parameters(tensors), **options)
    output = student(frames_first(tensors["input.clip"]), tensors["input.mask"])
    report(
        record_property,
        encoder=deviation(output.last_hidden_state, tensors["output.encoder"]),
        image=deviation(output.predictions["image"], tensors["output.img"]),
        video=deviation(output.predictions["video"], tensors["output.vid"]),
    )
    loss = sum(
        nn.functional.smooth_l1_loss(output.predictions[teacher], tensors[f"target.{official}"])
        for teacher, official in (("image", "img"), ("video", "vid"))
    )
    assert loss.item() == pytest.approx(case["scalar_loss"], rel=1e-5)
    loss.backward()
    norms = case["grad_l2_norm_per_parameter"]
    check_gradients(record_property, student, tensors, norms, parameters(tensors), **options)


@pytest.mark.parametrize("name", stored("image_teacher_*.json"))
def test_image_teacher(name, record_property):
    tensors, case = load(name)
    model = convert_checkpoint(parameters(tensors), num_attention_heads=case["config"]["num_heads"])
    images = tensors["input.images"][:, None]
    config = TeacherConfig(model="stored", frames="first_of_tubelet")
    grid = (2, *model.config.grid[1:])
    model.layernorm = None
    teacher = Teacher(config, model, student_grid=grid, num_frames=4)
    batch = images.shape[0] // 2 * 2
    clip = images[:batch].view(batch // 2, 2, *images.shape[2:]).repeat_interleave(2, dim=1)  # two frames per tubelet
    clip[:, 1::2] = torch.randn_like(clip[:, 1::2])  # which it must not look at
    features = teacher({images.shape[-1]: clip})
    expected = tensors["output.features"][:batch].reshape(features.shape)
    report(record_property, features=deviation(features, expected))


@pytest.mark.parametrize("name", stored("video_teacher.json"))
def test_video_teacher(name, record_property):
    tensors, case = load(name)
    config = case["config"]
    model = convert_checkpoint(
        parameters(tensors), num_attention_heads=config["encoder_num_heads"], image_size=config["img_size"]
    )
    table = position_table("flat", model.config.grid, model.config.hidden_size)
    model.layernorm = None
    teacher = Teacher(TeacherConfig(model="stored"), model, student_grid=model.config.grid, num_frames=16)
    features = teacher({config["img_size"]: frames_first(tensors["input.clip"])})
    report(
        record_property,
        positions=deviation(table[None], tensors["derived.encoder_pos_embed"]),
        features=deviation(features, tensors["output.features"]),
    )


@pytest.mark.parametrize("name", stored("classifier_*.json"))
def test_classifier(name, record_property):
    tensors, case = load(name)
    config = case["config"]
    options = {
        "num_attention_heads": config["num_heads"],
        "image_size": config["img_size"],
        "num_frames": config["all_frames"],
    }
    model = convert_checkpoint(parameters(tensors), **options)
    assert model.config.use_mean_pooling == config["use_mean_pooling"]
    pooled = model.pool(model.mvd(frames_first(tensors["input.clip"])).last_hidden_state)
    output = model(frames_first(tensors["input.clip"]), labels=tensors["input.labels"])
    report(
        record_property,
        pooled=deviation(pooled, tensors["output.pooled"]),
        logits=deviation(output.logits, tensors["output.logits"]),
    )
    assert output.loss.item() == pytest.approx(case["cross_entropy"], rel=1e-5)
    output.loss.backward()
    norms = case["grad_l2_norm_per_parameter"]
    check_gradients(record_property, model, tensors, norms, parameters(tensors), **options)


def test_position_tables(record_property):
    tensors, case = load("position_embeddings")
    kinds = {"sincos3d": "spacetime", "sincos2d": "space", "sinusoid1d": "flat"}

    def table(kind, dim, grid=None, t=None, n=None, **_):
        kind = next(ours for official, ours in kinds.items() if kind.startswith(official))
        shape = (n, 1, 1) if kind == "flat" else (t or 1, grid, grid)
        return position_table(kind, shape, dim)

    worst = 0.0
    for entry in case["full"]:
        ours = table(**{key: value for key, value in entry.items() if key not in ("key", "cls_token")})
        stored = tensors[entry["key"]].view(-1, entry["dim"])
        worst = max(worst, deviation(ours, stored[1:] if entry.get("cls_token") else stored))
    for entry in case["sampled"]:
        spec = entry["spec"]
        ours = table(entry["kind"], **spec)
        has_class_row = entry["shape"][-2] == len(ours) + 1
        rows = np.array(entry["indices_row_col"])
        rows[:, 0] -= int(has_class_row)
        values = torch.where(torch.tensor(rows[:, 0] < 0), 0.0, ours[rows[:, 0], rows[:, 1]])
        worst = max(worst, deviation(values, torch.tensor(entry["values"])))
        assert ours.double().sum().item() == pytest.approx(entry["sum_float64"], rel=1e-9, abs=1e-3)
        assert ours.double().square().sum().item() == pytest.approx(entry["sum_of_squares_float64"], rel=1e-7)
    report(record_property, tables=worst)


def test_distillation_losses(record_property):
    tensors, case = load("distillation_loss")
    mask = tensors["input.mask"]
    kinds = {"L1": "l1", "L2": "l2", "SmoothL1": "smooth_l1"}
    worst = 0.0
    for setting in case["cases"]:
        targets = {
            "image": tensors["input.image_teacher_features"].reshape(case["B"], mask.shape[1], -1),
            "video": tensors["input.video_teacher_features"],
        }
        if setting["norm_feature"]:
            targets = {
                name: nn.functional.layer_norm(target, target.shape[-1:], eps=1e-6) for name, target in targets.items()
            }
        predictions = {
            name: tensors[f"input.pred_{official}"].clone().requires_grad_()
            for name, official in (("image", "img"), ("video", "vid"))
        }
        losses = distillation_losses(
            predictions,
            targets,
            mask,
            {"image": kinds[setting["loss_func_img"]], "video": kinds[setting["loss_func_vid"]]},
        )
        assert losses["image"].item() == pytest.approx(setting["loss_img"], rel=1e-5)
        assert losses["video"].item() == pytest.approx(setting["loss_vid"], rel=1e-5)
        total = setting["image_weight"] * losses["image"] + setting["video_weight"] * losses["video"]
        assert total.item() == pytest.approx(setting["loss_total"], rel=1e-5)
        total.backward()
        for name, official in (("image", "img"), ("video", "vid")):
            stored = tensors[f"case{setting['case']}.grad_pred_{official}"]
            worst = max(worst, deviation(predictions[name].grad, stored))
    report(record_property, gradients=worst)


class Recorded(torch.utils.data.Dataset):
    """The clips and masks of a recorded run: `dataset[(epoch, index)]`."""

    def __init__(self, length, clips, masks=None, teacher_clips=None, labels=None):
        self.length, self.clips, self.masks, self.teacher_clips, self.labels = (
            length,
            clips,
            masks,
            teacher_clips,
            labels,
        )

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        epoch, index = key
        item = {"pixel_values": self.clips[index]}
        if self.masks is not None:
            item["bool_masked_pos"] = self.masks[epoch, index]
        if self.teacher_clips is not None:
            item[f"pixel_values_{self.teacher_clips.shape[-1]}"] = self.teacher_clips[index]
        if self.labels is not None:
            item["labels"] = torch.tensor(self.labels[index])
        return item


class RecordedOrder(EpochSampler):
    """The samples of a recorded run, epoch by epoch."""

    def __init__(self, micro_steps):
        self.epoch = 0
        self.orders: dict[int, list[int]] = {}
        for step in micro_steps:
            self.orders.setdefault(step["epoch"], []).extend(step["samples"])

    def __len__(self):
        return len(self.orders[0])

    def __iter__(self):
        return iter([(self.epoch, index) for index in self.orders[self.epoch]])


class Trace(TrainerCallback):
    """Collects what the Trainer logs at every step, and the weight decay it used."""

    def __init__(self):
        self.steps = []
        self.decays = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.decays.append(max(group["weight_decay"] for group in optimizer.param_groups))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.steps.append(logs)


def replay(trainer_class, micro_steps, args, **kwargs):
    """Run a trainer over a recorded order; returns the log of every optimizer step and the weight decays."""

    class Replayed(trainer_class):
        def _get_train_sampler(self, train_dataset=None):
            self.epoch_sampler = RecordedOrder(micro_steps)
            return self.epoch_sampler

    trace = Trace()
    trainer = Replayed(args=args, callbacks=[trace], **kwargs)
    trainer.train()
    return trainer, trace


def recorded_arguments(folder, settings, peak, floor, **overrides):
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "base_learning_rate": None,
        "learning_rate": peak,
        "base_min_learning_rate": floor,
        "per_device_train_batch_size": settings["batch_size"],
        "gradient_accumulation_steps": settings["update_freq"],
        "num_train_epochs": settings["epochs"],
        "warmup_epochs": settings["warmup_epochs"],
        "weight_decay": settings["weight_decay"],
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return MVDTrainingArguments(**(options | overrides))


@pytest.mark.parametrize("variant", ["update_freq1", "update_freq2", "clip_grad", "alt"])
def test_training_trace(variant, tmp_path, record_property):
    tensors, case = load("train_trace")
    run = case["variants"][variant]
    settings = run["args_after_scaling"]
    geometry = case["student_geometry"]
    is_alt = variant == "alt"
    prefix = run["initial_state_prefix"]
    student = convert_checkpoint(
        parameters(tensors, prefix),
        num_frames=geometry["num_frames"],
        num_attention_heads=geometry["encoder_num_heads"],
        decoder_num_attention_heads=settings.get("feat_decoder_num_heads") or geometry["encoder_num_heads"],
    )
    masks = tensors["input.masks"]
    student.config.mask_type, student.config.mask_ratio = "random", (masks[0, 0].sum().item() + 0.5) / masks.shape[-1]
    teachers = {}
    norm = "layernorm" if settings["norm_feature"] else "none"
    losses = {"L1": "l1", "L2": "l2", "SmoothL1": "smooth_l1"}
    for name, state_prefix, description, frames, loss, weight in (
        (
            "image",
            run["image_teacher"]["state_prefix"],
            run["image_teacher"],
            "first_of_tubelet",
            settings["distill_loss_func"],
            settings["image_teacher_loss_weight"],
        ),
        (
            "video",
            "video_teacher.",
            case["video_teacher"],
            "clip",
            settings["video_distill_loss_func"],
            settings["video_teacher_loss_weight"],
        ),
    ):
        model = convert_checkpoint(
            parameters(tensors, state_prefix),
            num_attention_heads=description["heads"],
            image_size=description["img"],
            position_embedding_type="space" if name == "image" else "flat",
        )
        model.layernorm = None
        entry = TeacherConfig("stored", frames=frames, target_norm=norm, loss=losses[loss], weight=weight)
        teachers[name] = Teacher(entry, model, student.config.grid, student.config.num_frames)
    dataset = Recorded(
        run["dataset_len"],
        frames_first(tensors["input.clips"]),
        masks,
        frames_first(tensors[run["teacher_clips"]]) if is_alt else None,
    )
    args = recorded_arguments(
        tmp_path,
        settings,
        settings["lr"],
        settings["min_lr"],
        warmup_steps=max(settings["warmup_steps"], 0),
        weight_decay_end=settings["weight_decay_end"],
        max_grad_norm=settings["clip_grad"] or math.inf,
    )
    trainer, trace = replay(
        DistillationTrainer, run["micro_steps"], args, model=student, teachers=teachers, train_dataset=dataset
    )
    updates = [step for step in run["micro_steps"] if step["grad_norm"] is not None]
    accumulation = settings["update_freq"]
    worst = {}
    tolerance = 1e-3 if is_alt else 1e-4  # its L1 loss has a sign gradient
    for i, (ours, official) in enumerate(zip(trace.steps, updates, strict=True)):
        micro = run["micro_steps"][i * accumulation : (i + 1) * accumulation]
        expected = {
            "loss": np.mean([step["loss"] for step in micro]),
            "loss_image": np.mean([step["loss_img"] for step in micro]),
            "loss_video": np.mean([step["loss_vid"] for step in micro]),
            "grad_norm": official["grad_norm"],
        }
        for key, value in expected.items():
            worst[key] = max(worst.get(key, 0.0), abs(ours[key] - value) / abs(value))
        assert trace.decays[i] == pytest.approx(official["weight_decay"], rel=1e-9)
    # the Trainer logs the rate of the step just taken
    rates = [step["lr"] for step in updates]
    assert [step["learning_rate"] for step in trace.steps] == pytest.approx(rates, rel=1e-9, abs=1e-15)
    final = parameters(tensors, f"final_student.{variant}.")
    ours = dict(trainer.model.named_parameters())
    marks = convert_names(parameters(tensors, prefix), student.config)
    worst["weights"] = max(
        (ours[marks[key]] - value).abs().max().item() / value.abs().max().item()
        for key, value in final.items()
        if key in marks
    )
    for key, value in worst.items():
        record_property(f"{key}", float(value))
    assert all(value < tolerance for value in worst.values()), worst
    for key, stored in run["final_parameter_statistics"].items():
        if key in marks:
            assert ours[marks[key]].norm().item() == pytest.approx(stored["l2"], rel=tolerance)


def convert_names(state_dict: dict, config: MVDConfig) -> dict[str, str]:
    """Official to our parameter names, for weights that keep their shape."""
    from mvd_hf.hub.conversion import rename_weights, strip_prefixes

    family, state_dict = strip_prefixes(state_dict)
    numbered = {key: torch.full((3,), float(i)) for i, key in enumerate(state_dict)}
    names = list(state_dict)
    renamed = rename_weights(family, numbered)
    return {names[int(value.flatten()[0])]: key for key, value in renamed.items()}


@pytest.mark.parametrize("norm", [True, False])
def test_videomae_stage1(norm, tmp_path, record_property):
    tensors, case = load("videomae_stage1")
    name = "norm_target" if norm else "raw_target"
    heads = {"num_attention_heads": case["config"]["heads"], "decoder_num_attention_heads": case["config"]["dheads"]}
    model = convert_checkpoint(
        FOLDER / "ckpt_videomae_pretrain.pth", image_size=case["config"]["img"], norm_pix_loss=norm, **heads
    )
    clips, masks = frames_first(tensors["input.clips"]), tensors["input.masks"]
    model.config.mask_type, model.config.mask_ratio = "random", (masks[0].sum().item() + 0.5) / masks.shape[-1]
    steps = case["runs"][name]
    if norm:
        targets = pixel_targets(clips[:2], model.config)[masks[:2]].view(2, -1, 96)
        output = model(clips[:2], masks[:2])
        encoded = model.mvd(clips[:2], masks[:2]).last_hidden_state
        report(
            record_property,
            targets=deviation(targets, tensors["norm_target.step0.target"]),
            encoder=deviation(encoded, tensors["output.encoder"]),
            prediction=deviation(output.logits, tensors["step0.prediction"]),
        )
    # four AdamW steps with the recorded rates
    groups = parameter_groups(model, steps[0]["weight_decay"])
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    worst = 0.0
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = step["lr"]
        output = model(clips[step["samples"]], masks[step["samples"]])
        optimizer.zero_grad()
        output.loss.backward()
        norm_of_gradient = nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
        optimizer.step()
        worst = max(worst, abs(output.loss.item() - step["loss"]) / step["loss"])
        worst = max(worst, abs(norm_of_gradient - step["grad_norm"]) / step["grad_norm"])
    report(record_property, trace=worst)
    final = case["runs"][f"{name}_final_parameter_statistics"]
    names = convert_names({key: torch.zeros(1) for key in final}, model.config)
    ours = dict(model.named_parameters())
    for key, stored in final.items():
        assert ours[names[key.removeprefix("encoder.")]].norm().item() == pytest.approx(stored["l2"], rel=1e-4)


@pytest.mark.parametrize("norm", [True, False])
def test_mae_stage1(norm, record_property):
    tensors, case = load("mae_stage1")
    heads = {"num_attention_heads": case["config"]["heads"], "decoder_num_attention_heads": case["config"]["dheads"]}
    path = FOLDER / "ckpt_mae_full.pth"
    model = convert_checkpoint(path, norm_pix_loss=norm, **heads)
    images, mask = tensors["input.images"][:, None], tensors["output.mask"].bool()
    output = model(images, mask)
    run = case["runs"]["norm_pix" if norm else "raw_pix"]
    assert output.loss.item() == pytest.approx(run["loss"], rel=1e-6)
    target = tensors["derived.norm_pix_target" if norm else "derived.patchified"]
    report(
        record_property,
        prediction=deviation(output.logits, tensors["output.prediction"][mask].view_as(output.logits)),
        target=deviation(pixel_targets(images, model.config), target),
    )
    output.loss.backward()
    state_dict = torch.load(path, weights_only=True)["model"]
    gradients = official_gradients(model, state_dict, **heads)
    norms = {key: value for key, value in run["grad_l2_norm_per_parameter"].items() if value is not None}
    largest = max(norms.values())
    report(
        record_property, gradient_norms=max(abs(gradients[k].norm().item() - v) / largest for k, v in norms.items())
    )


def test_checkpoint_files(record_property):
    tensors, _ = load("checkpoint_loading")
    trace, _ = load("train_trace")
    heads = {"num_attention_heads": 4}
    clips = frames_first(trace["input.clips"])[:2]
    student = convert_checkpoint(FOLDER / "ckpt_pretrain_checkpoint-1.pth", decoder_num_attention_heads=4, **heads)
    predictions = student(clips, trace["input.masks"][0, :2]).predictions
    worst = {
        "image": deviation(predictions["image"], tensors["pretrain_checkpoint.output.img"]),
        "video": deviation(predictions["video"], tensors["pretrain_checkpoint.output.vid"]),
    }
    for name in stored("ckpt_finetune*.pth"):
        classifier = convert_checkpoint(FOLDER / f"{name}.pth", **heads)
        worst["finetuned"] = deviation(classifier(clips).logits, tensors["from_finetune_same_classes.logits"])
    half = convert_checkpoint(FOLDER / "ckpt_deepspeed_mp_rank_00_model_states.pt", image_size=16, **heads)
    worst["deepspeed"] = deviation(half(clips).logits, tensors["from_deepspeed.logits"])
    # an encoder moved into a classifier, its new parts as recorded
    videomae, _ = load("videomae_stage1")
    for name, mean_pooling, image_size in (
        ("from_pretrain_mean_pooling", True, 16),
        ("from_pretrain_first_token", False, 16),
        ("from_pretrain_larger_input", True, 24),
        ("from_videomae_pretrain", True, 16),
    ):
        source = student
        inputs = tensors["input.larger_clips"] if image_size == 24 else trace["input.clips"][:2]
        if name == "from_videomae_pretrain":  # the official program reads VideoMAE weights with MVD's position code
            source = convert_checkpoint(
                FOLDER / "ckpt_videomae_pretrain.pth",
                image_size=16,
                decoder_num_attention_heads=3,
                **heads,
            )
            inputs = videomae["input.clips"][:2]
        config = MVDConfig(
            **(
                source.config.to_diff_dict()
                | {
                    "position_embedding_type": "spacetime",
                    "use_mean_pooling": mean_pooling,
                    "image_size": image_size,
                    "num_labels": 6,
                }
            )
        )
        model = MVDForVideoClassification(config).eval()
        model.mvd.load_state_dict(source.mvd.state_dict(), strict=not mean_pooling)
        fresh = parameters(tensors, f"{name}.fresh.")
        model.classifier.load_state_dict({"weight": fresh["head.weight"], "bias": fresh["head.bias"]})
        if mean_pooling:
            model.fc_norm.load_state_dict({"weight": fresh["fc_norm.weight"], "bias": fresh["fc_norm.bias"]})
        worst[name] = deviation(model(frames_first(inputs)).logits, tensors[f"{name}.logits"])
    report(record_property, **worst)


def test_teachers_of_checkpoint_files(record_property):
    tensors, _ = load("checkpoint_loading")
    mae, _ = load("mae_stage1")
    videomae, _ = load("videomae_stage1")
    full = torch.load(FOLDER / "ckpt_mae_full.pth", weights_only=True)["model"]
    encoder = {key: value for key, value in full.items() if key != "mask_token" and not key.startswith("decoder")}
    heads = {"num_attention_heads": 4}
    worst = {}
    for name, source, options in (
        ("mae_full", full, {"decoder_num_attention_heads": 3}),
        ("mae_encoder", encoder, {}),
        ("mae_backbone", {f"backbone.{key}": value for key, value in encoder.items()}, {}),
    ):
        model = convert_checkpoint(source, **heads, **options)
        model = model.mvd if isinstance(model, MVDForPixelReconstruction) else model
        assert isinstance(model, MVDModel)
        features = model(mae["input.images"][:, None], output_hidden_states=True).hidden_states[-1][:, 1:]
        worst[name] = deviation(features, tensors["image_teacher.output"])
    model = convert_checkpoint(
        FOLDER / "ckpt_videomae_pretrain.pth", image_size=16, decoder_num_attention_heads=3, **heads
    ).mvd
    features = model(frames_first(videomae["input.clips"])[:2], output_hidden_states=True).hidden_states[-1]
    worst["videomae"] = deviation(features, tensors["video_teacher.output"])
    report(record_property, **worst)


def test_finetuning_trace(tmp_path, record_property):
    tensors, case = load("checkpoint_loading")
    trace_tensors, _ = load("train_trace")
    run = case["finetune_run"]
    settings = run["settings"]
    student = convert_checkpoint(
        FOLDER / "ckpt_pretrain_checkpoint-1.pth", num_attention_heads=4, decoder_num_attention_heads=4
    )
    config = MVDConfig(**(student.config.to_diff_dict() | {"num_labels": settings["num_classes"]}))
    model = MVDForVideoClassification(config)
    model.mvd.load_state_dict(student.mvd.state_dict(), strict=False)
    fresh = parameters(tensors, "finetune_run.fresh.")
    model.classifier.load_state_dict({"weight": fresh["head.weight"], "bias": fresh["head.bias"]})
    model.fc_norm.load_state_dict({"weight": fresh["fc_norm.weight"], "bias": fresh["fc_norm.bias"]})
    classes, smoothing = settings["num_classes"], settings["label_smoothing"]
    labels = torch.tensor(run["labels_of_trace_clips"])
    soft = torch.full((len(labels), classes), smoothing / classes)
    soft[torch.arange(len(labels)), labels] += 1 - smoothing
    train_clips = run["train_clips"]
    clips = frames_first(trace_tensors["input.clips"])[train_clips]
    args = recorded_arguments(
        tmp_path,
        settings,
        settings["lr_after_scaling"],
        settings["min_lr_after_scaling"],
        layer_decay=settings["layer_decay"],
        adam_beta2=settings["betas"][1],
    )
    dataset = Recorded(len(train_clips), clips, labels=soft[train_clips].tolist())
    steps = run["micro_steps"]
    trainer, trace = replay(MVDTrainer, steps, args, model=model, train_dataset=dataset)
    updates = [step for step in steps if step["grad_norm"] is not None]
    worst = 0.0
    for i, (ours, official) in enumerate(zip(trace.steps, updates, strict=True)):
        micro = steps[i * settings["update_freq"] : (i + 1) * settings["update_freq"]]
        loss = np.mean([step["loss"] for step in micro])
        worst = max(worst, abs(ours["loss"] - loss) / loss)
        worst = max(worst, abs(ours["grad_norm"] - official["grad_norm"]) / official["grad_norm"])
        assert ours["learning_rate"] == pytest.approx(official["max_lr"], rel=1e-9, abs=1e-15)
    record_property("trace", float(worst))
    assert worst < 1e-4
    names = convert_names({key: torch.zeros(1) for key in run["final_parameter_statistics"]}, config)
    ours = dict(trainer.model.named_parameters())
    for key, stored in run["final_parameter_statistics"].items():
        assert ours[names[key]].norm().item() == pytest.approx(stored["l2"], rel=1e-4)


def test_schedules():
    _, case = load("schedules")
    for entry in (*case["cosine_scheduler"], *case["cosine_scheduler_recipes_sampled"]):
        settings = entry["settings"]
        steps = settings["niter_per_ep"]
        warmup = settings.get("warmup_steps", -1)
        warmup = warmup if warmup > 0 else settings.get("warmup_epochs", 0) * steps
        ours = cosine_schedule(
            settings["base_value"],
            settings["final_value"],
            settings["epochs"] * steps,
            warmup,
            settings.get("start_warmup_value", 0.0),
        )
        indices = entry.get("indices", list(range(len(ours))))
        assert ours[indices] == pytest.approx(entry["values"], rel=1e-12, abs=1e-18)
        assert len(ours) == entry.get("length", len(entry["values"]))


def test_parameter_groups():
    _, case = load("param_groups")
    for key, stored in case.items():
        size = key.split("ViT-")[1][0].lower()
        is_student = key.startswith("student")
        config = MVDConfig.from_name(f"mvd-{size}", num_labels=400)
        with torch.device("meta"):
            from mvd_hf import MVDForFeatureDistillation

            model = MVDForFeatureDistillation(config) if is_student else MVDForVideoClassification(config)
        layer_decay = None if is_student else float(key.split("_")[-1])
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        ours = {}
        for group in parameter_groups(model, 0.05, layer_decay):
            for parameter in group["params"]:
                ours[names[id(parameter)]] = (group["weight_decay"], group["lr_scale"])
        official = {
            name: (group["weight_decay"], group["lr_scale"])
            for group in stored["groups_in_order"]
            for name in group["names"]
        }
        marks = convert_names({name: torch.zeros(1) for name in official}, config)
        assert ours.keys() == set(marks.values())
        for name, values in official.items():
            assert ours[marks[name]] == pytest.approx(values, rel=1e-12), name


def test_frame_sampling(monkeypatch):
    _, case = load("sampling")
    draws = []

    def force(which):
        def draw(low, high, generator):
            draws.append((low, high))
            return low if which == "lowest" else high

        draws.clear()
        monkeypatch.setattr(frame_sampling, "draw", draw)

    for entry in case["k400_test"]:
        setting = entry["setting"]
        ours = frame_sampling.dense_test_frames(
            entry["num_frames"], setting["clip_len"], setting["rate"], setting["nseg"]
        )
        assert ours.tolist() == entry["segments"]
    for entry in case["ssv2_test"]:
        setting = entry["setting"]
        ours = frame_sampling.uniform_test_frames(
            entry["num_frames"], setting["num_segment"], setting["test_num_segment"]
        )
        assert ours.tolist() == entry["segments"]
    for entry in case["k400_train_and_validation"]:
        arguments = entry["num_frames"], entry["setting"]["clip_len"], entry["setting"]["rate"]
        if entry["deterministic"]:
            assert frame_sampling.dense_frames(*arguments)[0].tolist() == entry["indices"]
            continue
        for which, key in (("lowest", "indices_at_first_start"), ("highest", "indices_at_last_start")):
            force(which)
            assert frame_sampling.dense_frames(*arguments)[0].tolist() == entry[key]
            assert draws == [(entry["randint_low_inclusive"], entry["randint_high_exclusive"] - 1)]
    for entry in case["ssv2_train_and_validation"]:
        for which in ("lowest", "highest"):
            force(which)
            ours = frame_sampling.uniform_frames(entry["num_frames"], entry["num_segment"])
            assert ours[0].tolist() == entry[f"indices_all_{which}"]
            assert [list(pair) for pair in draws] == entry["per_segment_inclusive_range"]
    for entry in case["pretrain"]:
        setting = entry["setting"]
        arguments = entry["num_frames"], setting["new_length"], setting["new_step"], setting["num_sample"]
        if entry["deterministic"]:
            assert frame_sampling.pretraining_frames(*arguments).tolist() == entry["indices_per_sample"]
            continue
        for which in ("lowest", "highest"):
            force(which)
            assert frame_sampling.pretraining_frames(*arguments).tolist() == entry[f"indices_at_{which}"]


@pytest.mark.parametrize("part", ["plain", "duplicated_views"])
def test_multi_view_merge(part, record_property):
    _, case = load("multiview_merge")
    rows = [row for rank in case[part]["rows_per_rank"] for row in rank]
    logits = np.array([row["logits"] for row in rows])
    videos, probabilities, counts = merge_views(
        logits, [row["id"] for row in rows], [(row["chunk"], row["split"]) for row in rows]
    )
    labels = {row["id"]: row["label"] for row in rows}
    top1, top5 = (top_k_hits(probabilities, np.array([labels[video] for video in videos]), k) for k in (1, 5))
    official = {entry["id"]: entry for entry in case[part]["per_video"]}
    assert set(videos) == set(official)
    worst = 0.0
    for i, video in enumerate(videos):
        entry = official[video]
        worst = max(worst, abs(probabilities[i] - entry["mean_softmax"]).max())
        assert (probabilities[i].argmax(), counts[i]) == (entry["prediction"], entry["views_kept"])
        assert (top1[i], top5[i]) == (entry["top1"], entry["top5"])
    record_property("probabilities", float(worst))
    assert worst < 1e-12
    assert 100 * top1.mean() == pytest.approx(case[part]["final_top1"])
    assert 100 * top5.mean() == pytest.approx(case[part]["final_top5"])


def test_views_whose_numbers_look_alike_when_joined_are_all_counted():
    _, case = load("multiview_merge")
    rows = [row for rank in case["chunk_split_string_collision"]["rows_per_rank"] for row in rank]
    views = [(row["chunk"], row["split"]) for row in rows]
    _, _, counts = merge_views(np.array([row["logits"] for row in rows]), [row["id"] for row in rows], views)
    # the official program takes clip 1, crop 11 and clip 11, crop 1 for the same view
    assert counts.sum() == len(set(views)) > case["chunk_split_string_collision"]["per_video"][0]["views_kept"]


def test_masks():
    _, case = load("masks")
    for entry in case["table"]:
        grid, ratio = tuple(entry["grid_t_h_w"]), entry["ratio"]
        tube = tube_mask(grid, ratio).view(grid[0], -1)
        assert tube.sum().item() == entry["tube_total_masked"]
        assert tube[0].sum().item() == entry["tube_masked_per_frame"]
        assert (tube == tube[0]).all()
        assert random_mask(grid, ratio).sum().item() == entry["random_total_masked"]


def test_multi_scale_crop(record_property):
    tensors, case = load("multiscale_crop")
    for table in case["tables"]:
        width, height = table["image_w_h"]
        crop = MultiScaleCrop(table["input_size"])
        assert [[w, h] for h, w in crop.sizes(height, width)] == table["pairs_crop_w_h_in_order"]
        boxes = crop.boxes(height, width)
        offsets = [[[left, top] for top, left, _, _ in places] for places in boxes]
        assert offsets == table["offsets_x_y_per_pair_in_order"]
    if not tensors:
        return
    clip = tensors["input.clip_uint8_THWC"].numpy()
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for entry in case["clip_cases"]:
        boxes = MultiScaleCrop(entry["student_size"]).boxes(*clip.shape[1:3])
        top, left, height, width = boxes[entry["pair_index"]][entry["offset_index"]]
        region = np.ascontiguousarray(clip[:, top : top + height, left : left + width])
        for role in ("student", "teacher"):
            official = ((tensors[f"case{entry['case']}.{role}"] * std + mean) * 255).round().transpose(0, 1)
            ours = resize_frames(region, entry[f"{role}_size"])
            difference = (ours.float() - official).abs()
            record_property(f"case{entry['case']}_{role}_grey_levels", difference.max().item())
            assert difference.max() <= 2
            assert difference.mean() < 0.1
