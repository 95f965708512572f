"""The naive step equals ours: losses, gradients, and weights after a step."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mvd_hf import (
    DistillationTrainer,
    MVDConfig,
    MVDForFeatureDistillation,
    MVDTrainingArguments,
    TeacherConfig,
    load_teachers,
)
from mvd_hf.model.modeling_mvd import MVDModel
from mvd_hf.teachers.teacher import Teacher
from recipes.benchmark.reference import NaiveStep, decode, encode
from recipes.benchmark.steps import Distillation, official_batch


def both_steps(tmp_path, config, teachers, **training):
    """A trainer and a naive step with the same student, and a batch."""
    student = MVDForFeatureDistillation(config)
    args = MVDTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        base_learning_rate=None,
        learning_rate=1e-3,
        per_device_train_batch_size=3,
        **training,
    )
    trainer = DistillationTrainer(copy.deepcopy(student), teachers, args=args)
    precision = "bfloat16" if training.get("bf16") else "float32"
    naive = NaiveStep(student, teachers, learning_rate=1e-3, precision=precision)
    sizes = [teacher.image_size for teacher in teachers.values()]
    return trainer, naive, Distillation(config, {}).batch(3, sizes, seed=0)


def run_ours(trainer, batch) -> dict[str, torch.Tensor]:
    optimizer = trainer.create_optimizer()
    model, optimizer = trainer.accelerator.prepare(trainer.model, optimizer)
    model.train()
    torch.manual_seed(7)  # stochastic depth
    loss = trainer.compute_loss(model, batch)
    trainer.accelerator.backward(loss)
    optimizer.step()
    return {"loss": loss.detach(), **dict(trainer.model.named_parameters())}


@pytest.mark.parametrize("fields", [{}, {"drop_path_rate": 0.5, "decoder_num_hidden_layers": 2}], ids=str)
def test_one_step_gives_the_same_loss_gradients_and_weights(tmp_path, tiny_teachers, tiny_student_config, fields):
    for name, value in fields.items():
        setattr(tiny_student_config, name, value)
    entries = {"image": {"model": tiny_teachers["image"], "weight": 0.5}, "video": tiny_teachers["video"]}
    teachers = load_teachers(entries, tiny_student_config.grid, tiny_student_config.num_frames)
    trainer, naive, batch = both_steps(tmp_path, tiny_student_config, teachers)
    ours = run_ours(trainer, batch)
    torch.manual_seed(7)
    gradients = {}
    zero_grad = naive.optimizer.zero_grad
    naive.optimizer.zero_grad = lambda: (
        gradients.update({name: p.grad.clone() for name, p in naive.student.named_parameters()}),
        zero_grad(),
    )
    loss = naive(official_batch(batch, tiny_student_config))
    assert loss == pytest.approx(ours.pop("loss").item(), rel=1e-6)
    theirs = dict(naive.student.named_parameters())
    assert theirs.keys() == ours.keys()
    for name, parameter in ours.items():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)
        # AdamW's first step follows the sign of a gradient, which is noise if the gradient is near 0
        clear = parameter.grad.abs() > 1e-5
        torch.testing.assert_close(theirs[name][clear], parameter[clear], atol=1e-5, rtol=0)
    norm = torch.stack([p.grad.norm() for p in ours.values()]).norm().item()
    assert naive.gradient_norm == pytest.approx(norm, rel=1e-5)


def test_under_autocast_losses_agree_within_bfloat16(tmp_path, tiny_teachers, tiny_student_config):
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)
    trainer, naive, batch = both_steps(tmp_path, tiny_student_config, teachers, bf16=True)
    seen = {}
    for name, teacher in teachers.items():
        teacher.model.layers[-1].norm2.register_forward_pre_hook(
            lambda module, args, name=name: seen.update({name: args[0].dtype})
        )
    torch.manual_seed(7)
    loss = naive(official_batch(batch, tiny_student_config))
    assert seen == {"image": torch.float32, "video": torch.bfloat16}  # as in the official teachers
    assert loss == pytest.approx(run_ours(trainer, batch)["loss"].item(), rel=0.01)


@pytest.mark.parametrize(("width", "name"), [(4, "pixel_values_28"), (8, "pixel_values_28x56")])
def test_teachers_of_another_size_get_clips_of_their_size(tmp_path, tiny_student_config, width, name):
    """Also of rectangles."""
    tiny_student_config.image_size = [32, 8 * width]
    fields = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    image_model = MVDModel(MVDConfig.from_name("mae-b", image_size=28, patch_size=7, **fields), add_final_norm=False)
    tiny_student_config.teacher_dims = {"image": 32}
    grid, frames = tiny_student_config.grid, tiny_student_config.num_frames
    teachers = {"image": Teacher(TeacherConfig("m"), image_model, grid, frames)}
    trainer, naive, batch = both_steps(tmp_path, tiny_student_config, teachers)
    assert set(batch) == {"pixel_values", name, "bool_masked_pos"}
    torch.manual_seed(7)
    loss = naive(official_batch(batch, tiny_student_config))
    assert loss == pytest.approx(run_ours(trainer, batch)["loss"].item(), rel=1e-6)


def test_it_materializes_attention_weights_and_embeds_masked_patches(tiny_student_config):
    student = MVDForFeatureDistillation(tiny_student_config)
    batch = official_batch(Distillation(tiny_student_config, {}).batch(2, [], seed=0), tiny_student_config)
    largest = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.shape[-1] * tensor.shape[-2]) if tensor.dim() == 4 else largest
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoded = encode(student.mvd, batch["student"], batch["mask"])
        decode(student.decoders["image"], encoded, batch["mask"])
    assert largest >= tiny_student_config.num_patches**2
    with FlopCounterMode(display=False) as counter:
        encode(student.mvd, batch["student"], batch["mask"])
    assert "convolution" in str(counter.get_flop_counts()["Global"])


def test_other_teachers_are_refused(tiny_teachers, tiny_student_config):
    grid, frames = tiny_student_config.grid, tiny_student_config.num_frames
    options = {"loss": "l1", "target_norm": "layernorm", "on": "all", "layers": [1, 2], "guides_masks": True}
    for field, value in options.items():
        teachers = load_teachers({"image": {"model": tiny_teachers["image"], field: value}}, grid, frames)
        with pytest.raises(ValueError, match="'image'"):
            NaiveStep(MVDForFeatureDistillation(tiny_student_config), teachers)
