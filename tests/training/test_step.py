"""A training step of the trainer: it never waits for the device, is compiled once and whole, and copies ahead."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from masked_clips import Clips, SeveralMasks, arguments
from mvd_hf import (
    DistillationTrainer,
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDTrainer,
    load_teachers,
)
from mvd_hf.training.checkpoints import last_complete_checkpoint
from recipes.benchmark.phases import host_waits

CPU = torch.device("cpu")


def distillation(folder, teachers, config, data=None, evaluated=None, **overrides) -> DistillationTrainer:
    torch.manual_seed(0)
    return DistillationTrainer(
        MVDForFeatureDistillation(config),
        load_teachers(teachers, config.grid, config.num_frames),
        args=arguments(folder, **overrides),
        train_dataset=data or Clips(config),
        eval_dataset=evaluated,
    )


class Watched(nn.Module):
    """Counts what a trainer's steps wait for, between its logs."""

    def __init__(self, trainer):
        self.counts = []
        step = trainer.training_step

        def training_step(*args, **kwargs):
            with host_waits(CPU) as counts:
                loss = step(*args, **kwargs)
            self.counts.append(dict(counts))
            return loss

        trainer.training_step = training_step


@pytest.mark.parametrize("masks", [1, 2])
def test_a_distillation_step_never_waits_for_the_device(tmp_path, tiny_teachers, tiny_student_config, masks):
    tiny_student_config.decoder_keep = 1.0 if masks == 1 else 0.5
    data = SeveralMasks(tiny_student_config, masks)
    trainer = distillation(tmp_path, tiny_teachers, tiny_student_config, data=data, masks_per_clip=masks)
    watched = Watched(trainer)
    trainer.train()
    assert watched.counts == [{}] * 4


def test_steps_of_the_other_stages_do_not_either(tmp_path, tiny_student_config):
    pixels = MVDTrainer(
        MVDForPixelReconstruction(tiny_student_config),
        arguments(tmp_path),
        train_dataset=Clips(tiny_student_config),
    )

    class Labelled(Clips):
        def __getitem__(self, key):
            return {"pixel_values": super().__getitem__(key)["pixel_values"], "labels": torch.tensor(1)}

    classes = MVDTrainer(
        MVDForVideoClassification(tiny_student_config),
        arguments(tmp_path),
        train_dataset=Labelled(tiny_student_config),
    )
    for trainer in (pixels, classes):
        watched = Watched(trainer)
        trainer.train()
        assert watched.counts == [{}] * 4


def test_the_optimizer_is_fused_and_keeps_the_groups(tmp_path, tiny_teachers, tiny_student_config):
    trainer = distillation(tmp_path, tiny_teachers, tiny_student_config)
    trainer.train()
    groups = trainer.optimizer.param_groups
    assert [(group["fused"], group["weight_decay"]) for group in groups] == [(True, 0.05), (True, 0.0)]
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.model.parameters()))


def test_batches_are_pinned_and_copied_without_waiting_where_there_is_a_gpu(tmp_path, monkeypatch):
    on_cpu = arguments(tmp_path)
    assert (on_cpu.dataloader_pin_memory, on_cpu.accelerator_config.non_blocking) == (False, False)
    found = type(on_cpu).device.fget  # also finds out the number of processes
    monkeypatch.setattr(type(on_cpu), "device", property(lambda self: found(self) and torch.device("cuda")))
    on_gpu = arguments(tmp_path, use_cpu=False)
    assert (on_gpu.dataloader_pin_memory, on_gpu.accelerator_config.non_blocking) == (True, True)
    unpinned = arguments(tmp_path, use_cpu=False, dataloader_pin_memory=False)
    assert (unpinned.dataloader_pin_memory, unpinned.accelerator_config.non_blocking) == (False, False)


@pytest.fixture
def fresh_compiler():
    """Counters of the compiler, without what other tests compiled; compiling anything again is an error."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield counters
    torch._dynamo.reset()
    counters.clear()


COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


@pytest.mark.parametrize("masks", [1, 2])
def test_a_compiled_run_is_one_graph_for_the_student_and_two_for_what_is_logged(
    tmp_path, tiny_teachers, tiny_student_config, fresh_compiler, masks
):
    tiny_student_config.drop_path_rate = 0.0  # compiled, its random numbers are others
    tiny_student_config.decoder_keep = 1.0 if masks == 1 else 0.5
    options = {"data": SeveralMasks(tiny_student_config, masks), "masks_per_clip": masks}
    options |= {"gradient_accumulation_steps": 2, "bf16": True}
    histories = []
    for compiled in ({}, COMPILED):
        config = copy.deepcopy(tiny_student_config)
        trainer = distillation(tmp_path, tiny_teachers, config, **options, **compiled)
        trainer.train()
        histories.append([entry for entry in trainer.state.log_history if "loss" in entry])
    assert fresh_compiler["stats"]["unique_graphs"] == 3  # student, losses, agreement
    assert not fresh_compiler["graph_break"]
    for eager, compiled in zip(*histories, strict=True):
        for name in ("loss", "loss_image", "loss_video", "cosine_image", "target_variance_video", "grad_norm"):
            assert compiled[name] == pytest.approx(eager[name], rel=0.02)


def test_a_compiled_run_evaluates_saves_and_resumes_exactly(tmp_path, tiny_teachers, tiny_student_config):
    torch._dynamo.reset()
    counters.clear()

    def run(folder):
        trainer = distillation(
            folder,
            tiny_teachers,
            copy.deepcopy(tiny_student_config),
            evaluated=Clips(tiny_student_config, count=7),
            num_train_epochs=3,
            save_strategy="steps",
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            per_device_eval_batch_size=3,  # the last batch is a smaller one
            **COMPILED,
        )
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
        history = trainer.state.log_history
        figures = {entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry}
        evaluated = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
        return figures, evaluated

    whole = run(tmp_path / "whole")
    assert counters["stats"]["unique_graphs"] == 3  # evaluations are not compiled: nothing to wait for again
    assert not counters["graph_break"]
    assert len(whole[0]) == 6
    assert list(whole[1]) == [2, 4, 6]
    student = MVDForFeatureDistillation.from_pretrained(tmp_path / "whole" / "checkpoint-6")  # complete or refused
    assert student.state_dict().keys() == MVDForFeatureDistillation(tiny_student_config).state_dict().keys()
    (tmp_path / "resumed").mkdir()
    (tmp_path / "whole" / "checkpoint-4").rename(tmp_path / "resumed" / "checkpoint-4")
    assert run(tmp_path / "resumed") == whole


def test_compiled_teachers_are_one_graph_each_for_its_own_sizes(
    tmp_path, tiny_teachers, tiny_student_config, monkeypatch
):
    torch._dynamo.reset()
    counters.clear()
    graphs = []

    def backend(graph, inputs):
        graphs.append([value for value in inputs if isinstance(value, torch.SymInt)])
        return graph.forward

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: original(self, backend=backend, **options))
    entries = {name: {"model": folder, "compile": True} for name, folder in tiny_teachers.items()}
    trainer = distillation(tmp_path, entries, tiny_student_config)
    trainer.train()
    assert graphs == [[], []]  # none whose sizes may change
    assert not counters["graph_break"]
    plain = load_teachers(tiny_teachers, tiny_student_config.grid, tiny_student_config.num_frames)
    clips = {32: Clips(tiny_student_config)[0]["pixel_values"][None].repeat(4, 1, 1, 1, 1)}
    for name, teacher in trainer.teachers.items():
        torch.testing.assert_close(teacher(clips), plain[name](clips), atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()
