"""The record of a run: the recipe without secrets, where it starts, its time, and what a training writes."""

import json

import pytest
import torch

from mvd_hf import MVDForPixelReconstruction, MVDTrainer
from mvd_hf.hub import run_record
from mvd_hf.hub.run_record import (
    RUN_RECORD_NAME,
    RunRecord,
    describe_device,
    is_hub_id,
    library_versions,
    read_run_record,
    source_record,
    stored_license,
    without_private_parts,
)
from short_runs import Clips, arguments, videomae


def test_versions_are_of_everything_that_matters():
    assert torch.__version__.startswith(library_versions()["torch"])
    assert {"python", "mvd_hf", "transformers", "datasets", "av"} <= library_versions().keys()


def test_devices_have_names():
    assert describe_device(torch.device("cpu")).startswith("CPU (")
    assert describe_device(torch.device("mps")) == "mps"


def test_tokens_and_folders_of_this_machine_are_left_out():
    recipe = {
        "hub_token": "secret",
        "dataset": "/home/somebody/k400/train.csv",
        "root": "~/videos",
        "output_dir": "outputs/run",
        "teachers": {"image": {"model": "/home/somebody/mae-b", "token": "secret"}, "video": "me/teacher"},
        "sizes": ["/data/a", 3],
    }
    assert without_private_parts(recipe) == {
        "dataset": "train.csv",
        "root": "videos",
        "output_dir": "outputs/run",
        "teachers": {"image": {"model": "mae-b"}, "video": "me/teacher"},
        "sizes": ["a", 3],
    }


def test_hub_ids_are_told_from_files_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "local").mkdir(parents=True)
    others = ("me/local", "me/list.csv", "a/b/c", "clips", "hf://a/b", None)
    assert [name for name in ("me/clips", "me/v1.5", *others) if is_hub_id(name)] == ["me/clips", "me/v1.5"]


def test_sources_carry_license_and_their_own_run(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (tmp_path / RUN_RECORD_NAME).write_text(json.dumps({"sources": {}}))
    assert stored_license(tmp_path) == "cc-by-nc-4.0"
    expected = {"model": tmp_path.name, "is_local": True, "license": "cc-by-nc-4.0", "run": {"sources": {}}}
    assert source_record(str(tmp_path)) == expected
    assert source_record("me/teacher") == {"model": "me/teacher", "is_local": False}
    assert stored_license(tmp_path / "nowhere") is None


def test_a_model_of_the_recipe_is_where_the_run_starts(tmp_path):
    record = RunRecord()
    record.set_recipe({"model": "videomae-b", "dataset": "me/clips"})
    assert record.sources == {}
    assert record.hub_dataset == "me/clips"
    record.set_recipe({"model": str(tmp_path), "dataset": "videos.csv"})
    assert record.sources == {"base": {"model": tmp_path.name, "is_local": True}}
    assert record.hub_dataset is None
    record.set_recipe({"model": "me/student"})
    assert record.sources == {"base": {"model": "me/student", "is_local": False}}


def test_time_runs_while_it_trains(monkeypatch, tmp_path):
    now = [100.0]
    monkeypatch.setattr(run_record.time, "monotonic", lambda: now[0])
    record = RunRecord()
    assert record.seconds == 0
    record.start()
    now[0] += 5
    assert record.seconds == 5
    record.stop()
    now[0] += 50
    assert record.seconds == 5
    (tmp_path / RUN_RECORD_NAME).write_text(json.dumps({"seconds": 7.5}))
    record.resume(tmp_path)
    record.start()
    now[0] += 2
    assert record.seconds == 9.5
    record.resume(tmp_path / "without")
    assert record.seconds == 2


def test_a_damaged_record_is_named(tmp_path):
    assert read_run_record(tmp_path) is None
    (tmp_path / RUN_RECORD_NAME).write_text("{")
    with pytest.raises(ValueError, match=r"training_run\.json' cannot be read"):
        read_run_record(tmp_path)


def test_training_writes_it_with_every_checkpoint(tmp_path):
    config = videomae()
    trainer = MVDTrainer(
        MVDForPixelReconstruction(config),
        arguments(tmp_path, num_train_epochs=2, warmup_epochs=0, save_strategy="epoch", gradient_accumulation_steps=2),
        train_dataset=Clips(config),
        eval_dataset=Clips(config, 4),
    )
    trainer.run_record.set_recipe({"model": "videomae-b", "hub_token": "secret"})
    trainer.run()
    record, first = read_run_record(tmp_path), read_run_record(tmp_path / "checkpoint-1")
    assert first["steps"] == 1
    assert not first["evaluation"] or "eval_loss" in first["evaluation"]
    assert record["model"] == "MVDForPixelReconstruction"
    assert record["recipe"] == {"model": "videomae-b"}
    assert (record["steps"], record["epochs"], record["videos"], record["effective_batch"]) == (2, 2, 8, 8)
    assert record["seconds"] >= first["seconds"] >= 0  # in tenths, of which a fast machine needs none
    assert trainer.run_record.seconds > 0
    assert record["hardware"]["count"] == 1
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert record["training"]["loss"] == last["loss"]
    final = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert record["evaluation"] == {"eval_loss": final["eval_loss"]}
    assert not list(tmp_path.rglob("*.py"))  # ordinary checkpoints carry no code


def test_a_resumed_run_counts_the_time_before(tmp_path, monkeypatch):
    config = videomae()

    def trainer(epochs: int) -> MVDTrainer:
        args = arguments(tmp_path, num_train_epochs=epochs, warmup_epochs=0, save_strategy="epoch", schedule_epochs=3)
        return MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=Clips(config))

    trainer(1).train()
    path = tmp_path / "checkpoint-2" / RUN_RECORD_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 3600.0}))
    resumed = trainer(2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert 3600 < resumed.run_record.seconds < 3700
