"""A run is only continued by a run of the same identity, and never replaces another run's model without a word."""

import json

import pytest

from masked_clips import Clips, arguments
from mvd_hf import DistillationTrainer, MVDForFeatureDistillation, load_teachers
from mvd_hf.data.arguments import DataArguments
from mvd_hf.hub.run_record import read_run_record
from mvd_hf.training.identity import changes


def distillation(folder, teachers, config, stride=2, weight=1.0, **options) -> DistillationTrainer:
    entries = {"image": {"model": teachers["image"], "weight": weight}, "video": teachers["video"]}
    trainer = DistillationTrainer(
        MVDForFeatureDistillation(config),
        load_teachers(entries, config.grid, config.num_frames),
        args=arguments(folder, **options),
        train_dataset=Clips(config),
    )
    trainer.run_record.set_recipe({}, DataArguments(dataset="clips.csv", stride=stride, memory_gib=1.0))
    return trainer


def test_changes_are_found_by_dotted_key_and_unknown_keys_do_not_count():
    before = {"a": {"b": 1, "old": 0}, "names": ["x", "y"], "sizes": (1, 2)}
    now = {"a": {"b": 2, "new": 0}, "names": ["x"], "sizes": [1, 2]}
    assert changes(before, now) == {"a.b": (1, 2), "names": (["x", "y"], ["x"])}


def test_another_run_is_refused_and_leaves_all_as_it_was(tmp_path, tiny_teachers, tiny_student_config):
    made = (tmp_path, tiny_teachers, tiny_student_config)
    distillation(*made, save_strategy="epoch").run()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for options, key in (
        ({"stride": 4}, r"data\.stride 4 \(before: 2\)"),
        ({"weight": 0.5}, r"teachers\.image\.weight 0\.5 \(before: 1\.0\)"),
    ):
        with pytest.raises(ValueError, match=rf"{key}.*overwrite"):
            distillation(*made, save_strategy="epoch", **options).run()
    tiny_student_config.mask_ratio = 0.5
    with pytest.raises(ValueError, match=r"config\.mask_ratio 0\.5"):
        distillation(*made, save_strategy="epoch").run()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == kept
    distillation(*made, save_strategy="epoch", overwrite=True).run()
    assert read_run_record(tmp_path)["identity"]["config"]["mask_ratio"] == 0.5
    assert [part["from_step"] for part in read_run_record(tmp_path)["segments"]] == [0]


def test_what_may_change_is_logged_and_recorded_as_a_segment(tmp_path, tiny_teachers, tiny_student_config, caplog):
    made = (tmp_path, tiny_teachers, tiny_student_config)
    distillation(*made, save_strategy="epoch", schedule_epochs=4).run()
    again = distillation(*made, save_strategy="epoch", schedule_epochs=4, num_train_epochs=3, weight_decay=0.1)
    again.run()
    assert "weight_decay 0.1 (before: 0.05)" in caplog.text
    assert "num_train_epochs 3 (before: 2)" in caplog.text
    segments = read_run_record(tmp_path)["segments"]
    assert [(part["from_step"], part["weight_decay"]) for part in segments] == [(0, 0.05), (4, 0.1)]


def test_a_model_without_checkpoints_is_not_replaced(tmp_path, tiny_teachers, tiny_student_config):
    made = (tmp_path, tiny_teachers, tiny_student_config)
    distillation(*made).run()
    record = json.loads((tmp_path / "training_run.json").read_text())
    with pytest.raises(ValueError, match=r"config\.json.*overwrite"):
        distillation(*made).run()
    assert json.loads((tmp_path / "training_run.json").read_text()) == record
    distillation(*made, overwrite=True).run()
