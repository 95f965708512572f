"""The list of held-out videos: which a run leaves, and what `evaluate.py` tests without a data set."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from launching import launch, start
from mvd_hf import FinetuningArguments
from mvd_hf.arguments import check_path
from mvd_hf.data.arguments import DataArguments, FinetuningClipArguments, evaluation_rows
from mvd_hf.data.sources import media_name
from mvd_hf.data.toy import toy_frames, write_video
from mvd_hf.evaluation.probing import ProbeArguments
from mvd_hf.finetuning.adaptation import Adaptation, AdaptationArguments
from mvd_hf.finetuning.held_out import HeldOut
from mvd_hf.finetuning.preparation import PreparationArguments
from mvd_hf.hub.loading import load_classifier
from tiny_models import TINY


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "clips"
    for i, name in enumerate(("dots", "stripes")):
        for j in range(5):
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_video(
                folder / name / f"{j}.mp4", toy_frames(name, "left", 16, 40, 48, np.random.default_rng((i, j)))
            )
    return folder


def adaptation(clips, folder, model="mvd-b") -> Adaptation:
    config = TINY | {"num_frames": 4} if model == "mvd-b" else {}
    return Adaptation(
        AdaptationArguments(model=model, config=config, method="linear_probe", test_clips=2, test_crops=1),
        DataArguments(dataset=str(clips), stride=2),
        FinetuningClipArguments(),
        PreparationArguments(),
        ProbeArguments(probe_clips=1),
        FinetuningArguments(output_dir=str(folder), use_cpu=True, report_to="none", dataloader_num_workers=0),
    )


def test_a_model_is_tested_on_its_held_out_videos_without_a_data_set(clips, tmp_path):
    torch.manual_seed(0)
    run = adaptation(clips, tmp_path / "run")
    run.run()
    expected = [media_name(item) for item in run.videos.validation["video"]]
    assert [media_name(item) for item in HeldOut.load(tmp_path / "run").rows()["video"]] == expected
    launch("evaluate.py", tmp_path / "run", num_workers=0, num_crops=2)
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert (metrics["num_videos"], metrics["protocol"]) == (len(expected), "4x5x2")
    text = launch("evaluate.py", tmp_path / "run", dataset=clips, num_workers=0, num_clips=1, num_crops=1)
    assert "'train'" in text
    other = json.loads((tmp_path / "run" / "evaluation_clips" / "metrics.json").read_text())
    assert other["num_videos"] == 10
    assert json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text()) == metrics


def test_held_out_videos_that_are_gone_are_named(clips, tmp_path):
    copied = shutil.copytree(clips, tmp_path / "copied")
    run = adaptation(copied, tmp_path / "run")
    Path(run.videos.validation["video"][0]["path"]).unlink()
    held_out = HeldOut.load(tmp_path / "run")
    with pytest.raises(ValueError, match=r"copied.*--dataset"):
        held_out.rows()
    assert HeldOut.load(tmp_path) is None


def test_the_split_to_evaluate_on_is_the_usual_one_or_must_be_given(clips, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    for split in ("train", "test"):
        shutil.copytree(clips, tmp_path / split)
    assert len(evaluation_rows(str(tmp_path))) == 10
    assert "'test'" in caplog.text
    monkeypatch.setattr("mvd_hf.data.sources.split_names", lambda *args: ["first", "second"])
    with pytest.raises(ValueError, match="first, second"):
        evaluation_rows(str(tmp_path))


def test_a_missing_model_is_found_missing_before_any_video_is_read(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("mvd_hf.finetuning.adaptation.prepare_videos", lambda *args, **kwargs: pytest.fail("read"))
    for model in (str(tmp_path / "nothing"), "outputs/nothing"):
        with pytest.raises(ValueError, match="nothing"):
            adaptation(clips, tmp_path / "run", model)


def test_what_is_written_as_a_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for source in ("outputs/nothing", "runs/nothing", "./nothing", "a/b/c", "lists/train.csv", "weights.pth"):
        with pytest.raises(ValueError, match=source):
            check_path(source, "model")
    for source in ("MCG-NJU/videomae-base", "gpt2", "runs"):
        check_path(source, "model")
    with pytest.raises(ValueError, match=r"outputs/nothing.*no such file"):
        load_classifier("outputs/nothing", 2)
    run = start("evaluate.py", "outputs/nothing", dataset=tmp_path, folder=tmp_path)
    assert run.wait() == [2]
    assert "'outputs/nothing'" in run.text()
