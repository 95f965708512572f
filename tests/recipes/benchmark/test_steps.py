"""The benchmark of the step: variants, phases, waits, and the comparison with the naive step."""

import copy

import pytest
import torch

from mvd_hf.training.costs import distillation_parts
from recipes.benchmark.steps import (
    REFERENCE,
    Distillation,
    ReferenceStep,
    StepBenchmarkArguments,
    StepVariant,
    TrainerStep,
    count_waits,
    official_batch,
    phase_rows,
    step_benchmark,
)

CPU = torch.device("cpu")


@pytest.fixture
def distillation(tiny_student_config, tiny_teachers) -> Distillation:
    return Distillation(tiny_student_config, tiny_teachers)


def arguments(folder, **overrides) -> StepBenchmarkArguments:
    return StepBenchmarkArguments(**({"output": str(folder), "device": "cpu", "rounds": 2} | overrides))


def test_a_variant_changes_only_what_it_names(distillation):
    before = copy.deepcopy(distillation)
    variant = StepVariant.parse("masks_per_clip=3 decoder_keep=0.5 teacher_dtype=bfloat16 attention=eager")
    varied = distillation.varied(variant)
    assert (varied.masks_per_clip, varied.config.decoder_keep) == (3, 0.5)
    assert varied.config._attn_implementation == "eager"
    assert {entry["dtype"] for entry in varied.teachers.values()} == {"bfloat16"}
    assert not any("compile" in entry for entry in varied.teachers.values())
    assert distillation.config.to_dict() == before.config.to_dict()
    same = distillation.varied(StepVariant.parse(""))
    assert (same.masks_per_clip, same.config.to_dict()) == (1, before.config.to_dict())
    assert {name: entry["model"] for name, entry in same.teachers.items()} == distillation.teachers
    distillation.config.mask_type = "attention"
    with pytest.raises(ValueError, match=r"decoder_keep=0\.5"):
        distillation.varied(variant)


def test_unknown_variants_and_values_are_refused():
    for text in ("masks=4", "masks_per_clip", "masks_per_clip="):
        with pytest.raises(ValueError, match=f"'{text}'"):
            StepBenchmarkArguments(variants=[text])
    with pytest.raises(ValueError, match="int8"):
        StepBenchmarkArguments(dtype="int8")
    with pytest.raises(ValueError, match="batch_size=0"):
        StepBenchmarkArguments(batch_size=0)


def test_a_recipes_student_gets_a_decoder_for_each_teacher():
    teachers = {"image": "teachers/mae-l", "video": {"model": "teachers/videomae-b", "weight": 2.0}}
    distillation = Distillation.from_recipe("mvd-s", {"drop_path_rate": 0.0}, teachers, 2)
    assert distillation.config.teacher_dims == {"image": 1024, "video": 768}
    parts = distillation_parts(distillation.config, teachers, 2)
    assert distillation.flops == sum(part.training for part in parts)


@pytest.mark.slow
def test_missing_folders_give_random_teachers_of_the_published_size(tiny_student_config, tiny_teachers):
    tiny_student_config.patch_size, tiny_student_config.image_size = 16, 32
    entries = {"image": {"model": "nowhere/mae-s", "dtype": "bfloat16"}}
    teacher = Distillation(tiny_student_config, entries).load_teachers()["image"]
    assert (teacher.feature_dim, teacher.image_size) == (384, 32)
    assert next(teacher.model.parameters()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="'nowhere/other' cannot be found"):
        Distillation(tiny_student_config, {"image": "nowhere/other"}).load_teachers()


def test_batches_have_the_keys_of_our_collator(distillation):
    config = distillation.config
    varied = distillation.varied(StepVariant(masks_per_clip=3, decoder_keep=0.5))
    batch = varied.batch(2, [32, 28], seed=0)
    assert batch["pixel_values"].shape == (2, 4, 3, 32, 32)
    assert batch["pixel_values_28"].shape == (2, 4, 3, 28, 28)
    assert batch["bool_masked_pos"].shape == (2, 3, config.num_patches)
    assert not (batch["bool_decoded_pos"] & ~batch["bool_masked_pos"]).any()
    assert (batch["bool_decoded_pos"].sum(-1) == varied.config.num_decoded_patches).all()
    official = official_batch(distillation.batch(2, [], seed=0), config)
    assert official["student"].shape == official["teacher"].shape == (2, 3, 4, 32, 32)
    assert -3 < official["student"].min() < 0 < official["student"].max() < 3


def test_a_step_trains_the_student_and_has_phases(distillation, tmp_path):
    step = TrainerStep(distillation, arguments(tmp_path))
    before = copy.deepcopy(step.trainer.model.state_dict())
    step()
    after = step.trainer.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    phases = step.phases(2)
    assert {"host to device", "teacher image", "teacher video", "student encoder", "decoders"} < phases.keys()
    assert {"loss and diagnostics", "backward", "optimizer", "other"} < phases.keys()
    assert all(value >= 0 for value in phases.values())
    assert sum(row["share"] for row in phase_rows({"step": "ours"}, phases)) == pytest.approx(1)


def test_our_step_never_waits_but_the_naive_one_does(distillation, tmp_path):
    assert count_waits(TrainerStep(distillation, arguments(tmp_path)), CPU) == 0
    varied = distillation.varied(StepVariant(masks_per_clip=2, decoder_keep=0.5))
    assert count_waits(TrainerStep(varied, arguments(tmp_path)), CPU) == 0
    assert count_waits(ReferenceStep(distillation, arguments(tmp_path)), CPU) > 3


@pytest.mark.long
@pytest.mark.slow
def test_the_report_compares_with_the_reference(distillation, tmp_path, caplog):
    keys = arguments(tmp_path, variants=["", "masks_per_clip=2"], dtype="bfloat16")
    report = step_benchmark(distillation, keys)
    reference, ours, twice = report["step"]
    assert [row["step"] for row in report["step"]] == [REFERENCE, "mvd_hf", "mvd_hf masks_per_clip=2"]
    assert (reference["speedup"], ours["host_waits"]) == (1, 0)
    assert reference["host_waits"] > 0
    assert twice["masked_clips_per_s"] == 2 * twice["clips_per_s"]
    assert ours["masked_clips_per_s"] == ours["clips_per_s"]
    assert {row["step"] for row in report["phases"]} == {"mvd_hf", "mvd_hf masks_per_clip=2"}
    assert report["about"]["precision"] == "bfloat16"

    distillation.teachers = {name: {"model": path, "loss": "l2"} for name, path in distillation.teachers.items()}
    reference, ours = step_benchmark(distillation, arguments(tmp_path))["step"]
    assert reference["ms"] is None  # it does not support these teachers
    assert ours["ms"] > 0
    assert REFERENCE in caplog.text


def test_a_cached_step_reads_targets_after_the_first_call(distillation, tmp_path):
    varied = distillation.varied(StepVariant.parse("cached=true"))
    step = TrainerStep(varied, arguments(tmp_path))
    for _ in range(3):
        step()
    assert {name: teacher.passes for name, teacher in step.trainer.cached.items()} == {"image": 1, "video": 1}
    assert "target lookup" in step.phases(1)
    teachers = {part for part in distillation_parts(varied.config, varied.teachers) if part.kind == "teacher"}
    assert distillation.flops - varied.flops == sum(part.training for part in teachers) > 0


@pytest.mark.long
@pytest.mark.slow
def test_a_compiled_step_has_one_phase_for_the_student(distillation, tmp_path, monkeypatch):
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: original(model, backend="eager"))
    step = TrainerStep(distillation, arguments(tmp_path), compiles=True)
    step()
    phases = step.phases(1)
    assert "student" in phases
    assert "student encoder" not in phases
