"""What only a CUDA device shows: mixed precision, flash attention, a training step without host synchronisation."""

import pytest
import torch

from mvd_hf import (
    DistillationTrainer,
    MVDForFeatureDistillation,
    MVDTrainingArguments,
    distillation_losses,
    load_teachers,
    tube_mask,
)
from mvd_hf.finetuning.trainer import copy_on_cpu
from recipes.benchmark.steps import Distillation, StepBenchmarkArguments, StepVariant, TrainerStep

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def batch(config, count: int = 4) -> dict[str, torch.Tensor]:
    shape = (count, config.num_frames, 3, *config.frame_size)
    return {
        "pixel_values": torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda"),
        "bool_masked_pos": torch.stack([tube_mask(config.grid, config.mask_ratio) for _ in range(count)]).cuda(),
    }


class Clips(torch.utils.data.Dataset):
    def __init__(self, config):
        self.config = config

    def __len__(self):
        return 16

    def __getitem__(self, key):
        return {name: value[0].cpu() for name, value in batch(self.config, 1).items()}


def test_a_copy_for_saving_takes_no_memory_of_the_device():
    model = torch.nn.Linear(1024, 1024, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    copied = copy_on_cpu(model)
    assert torch.cuda.max_memory_allocated() == before
    assert torch.equal(copied.weight, model.weight.cpu())


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_distillation_trains_in_every_precision(tmp_path, tiny_teachers, tiny_student_config, precision):
    teachers = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)
    args = MVDTrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        warmup_epochs=0,
        per_device_train_batch_size=4,
        dataloader_num_workers=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **({} if precision == "fp32" else {precision: True}),
    )
    student = MVDForFeatureDistillation(tiny_student_config)
    trainer = DistillationTrainer(student, teachers, args=args, train_dataset=Clips(tiny_student_config))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert all(0 < loss < 10 for loss in losses)


def test_cuda_and_cpu_agree(tiny_student_config):
    student = MVDForFeatureDistillation(tiny_student_config).eval()
    inputs = batch(tiny_student_config)
    with torch.no_grad():
        on_cpu = student(**{name: value.cpu() for name, value in inputs.items()}).predictions
        on_cuda = student.cuda()(**inputs).predictions
    for name, value in on_cpu.items():
        torch.testing.assert_close(on_cuda[name].cpu(), value, atol=2e-3, rtol=2e-3)


def test_a_step_does_not_wait_for_the_device(tiny_teachers, tiny_student_config):
    config = tiny_student_config
    teachers = load_teachers(tiny_teachers, config.grid, config.num_frames)
    teachers = {name: teacher.to("cuda") for name, teacher in teachers.items()}
    student = MVDForFeatureDistillation(config).cuda().train()
    optimizer = torch.optim.AdamW(student.parameters(), fused=True)
    inputs = batch(config)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            with torch.no_grad():
                targets = {name: teacher({32: inputs["pixel_values"]}) for name, teacher in teachers.items()}
            predictions = student(**inputs, num_masked=config.num_masked_patches).predictions
            loss = sum(distillation_losses(predictions, targets, inputs["bool_masked_pos"]).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("variant", ["", "masks_per_clip=2 decoder_keep=0.5", "teacher_dtype=bfloat16"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_trainers_step_does_not_either(tmp_path, tiny_teachers, tiny_student_config, variant, dtype):
    distillation = Distillation(tiny_student_config, tiny_teachers).varied(StepVariant.parse(variant))
    keys = StepBenchmarkArguments(output=str(tmp_path), dtype=dtype, device="cuda")
    step = TrainerStep(distillation, keys)
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_compiled_run_trains_on_the_device(tmp_path, tiny_teachers, tiny_student_config):
    entries = {name: {"model": folder, "compile": True} for name, folder in tiny_teachers.items()}
    distillation = Distillation(tiny_student_config, entries)
    step = TrainerStep(distillation, StepBenchmarkArguments(output=str(tmp_path), dtype="bfloat16"), compiles=True)
    losses = []
    record = step.trainer.record
    step.trainer.record = lambda *args: losses.append(record(*args)) or losses[-1]
    for _ in range(20):
        step()
    losses = torch.stack(losses).tolist()
    assert losses[-1] < losses[0]
