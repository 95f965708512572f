"""From a folder of clips to a tested model: every method, and what is refused before training."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from transformers import pipeline

from mvd_hf import FinetuningArguments, MVDForVideoClassification, MVDModel
from mvd_hf.data.arguments import DataArguments, FinetuningClipArguments
from mvd_hf.data.toy import toy_frames, write_video
from mvd_hf.evaluation.multiview import evaluate_views
from mvd_hf.evaluation.probing import ProbeArguments
from mvd_hf.finetuning.adaptation import TRAINED, Adaptation, AdaptationArguments
from mvd_hf.finetuning.preparation import PreparationArguments
from mvd_hf.hub import snippets
from mvd_hf.hub.cards import CardDetails, render_card
from mvd_hf.hub.licenses import source_models
from mvd_hf.hub.results import measured_results
from mvd_hf.hub.run_record import read_run_record
from mvd_hf.hub.snippets import Snippet

NAMES = ["dots", "stripes"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder of two classes of ten videos."""
    folder = tmp_path_factory.mktemp("own") / "clips"
    for i, name in enumerate(NAMES):
        for j in range(10):
            path = folder / name / f"{j}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, toy_frames(name, "left", 16, 40, 48, np.random.default_rng((i, j))))
    return folder


def adapt(
    clips, encoder, folder, method="full", probe=None, training=None, preparation=None, keys=None, **recipe
) -> Adaptation:
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "num_train_epochs": 2,
        "warmup_epochs": 0,
        "base_learning_rate": 0.1,
        "per_device_train_batch_size": 4,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return Adaptation(
        AdaptationArguments(**{"model": encoder, "method": method, "test_clips": 2, "test_crops": 2, **recipe}),
        DataArguments(dataset=str(clips), stride=2),
        FinetuningClipArguments(rand_augment=None, **(keys or {})),
        PreparationArguments(**(preparation or {})),
        ProbeArguments(**(probe or {})),
        FinetuningArguments(**(options | (training or {}))),
    )


# what the record of a run says, and what it logged last, by method
RECORDS = {
    "full": ({"epochs": 2.0, "effective_batch": 4, "learning_rate": 0.1 * 4 / 256}, {"loss", "grad_norm"}),
    "lora": ({"epochs": 2.0, "effective_batch": 4}, {"loss", "grad_norm"}),
    "linear_probe": ({"clips_per_video": 2}, {"L2 penalty"}),
    "attentive_probe": ({"epochs": 3, "effective_batch": 8, "clips_per_video": 2}, {"loss"}),
}
PROBE = {"probe_epochs": 3, "probe_clips": 2, "probe_batch_size": 8}


@pytest.fixture(scope="module", params=RECORDS)
def adapted(request, clips, encoder, tmp_path_factory) -> tuple[str, Path]:
    """A method and what it leaves."""
    method, folder = request.param, tmp_path_factory.mktemp("adapted")
    training = {"ema_decay": 0.5, "logging_steps": 1}
    adaptation = adapt(clips, encoder, folder, method, PROBE, training, lora={"r": 2} if method == "lora" else {})
    adaptation.run({"model": encoder, "method": method, "dataset": "clips", "hub_token": "secret"})
    return method, folder


def test_every_method_leaves_a_tested_model_that_the_pipeline_loads(adapted, clips, encoder):
    method, folder = adapted
    figures = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert figures["protocol"] == "4x2x2"
    assert figures["num_videos"] == 4
    assert 0 <= figures["video_top1"] <= 1
    assert figures["majority_top1"] == 0.5
    model = MVDForVideoClassification.from_pretrained(folder)
    frozen, loaded = MVDModel.from_pretrained(encoder).state_dict(), model.mvd.state_dict()
    is_same = all(torch.equal(loaded[name], value) for name, value in frozen.items() if name in loaded)
    assert is_same == method.endswith("probe")
    assert list(model.config.id2label.values()) == NAMES
    labels = pipeline("video-classification", model=str(folder))(str(clips / "dots" / "0.mp4"))
    assert {entry["label"] for entry in labels} == set(NAMES)
    assert sum(entry["score"] for entry in labels) == pytest.approx(1)
    assert (folder / "best" / "model.safetensors").exists() == (method in TRAINED)


def test_every_saved_model_has_a_record_for_its_card(adapted, encoder):
    method, output = adapted
    facts, logged = RECORDS[method]
    for name in ("", "best", "ema") if method in TRAINED else ("",):
        folder = output / name
        run = read_run_record(folder)
        assert run["recipe"] == {"model": Path(encoder).name, "method": method, "dataset": "clips"}
        assert (run["model"], run["videos"]) == ("MVDForVideoClassification", 16)
        assert {key: run[key] for key in facts} == pytest.approx(facts) or name == "best"
        assert logged <= set(run["training"])
        assert 0 < run["seconds"] < 600
        assert not (folder / "adapter_config.json").exists()  # or it would be added to what it is merged into
        if "evaluation" in run:
            prefix = "eval_ema_" if name == "ema" else "eval_"
            names = ("loss", "top1", "balanced_accuracy", "macro_f1")
            assert set(run["evaluation"]) == {f"{prefix}{key}" for key in names}
        (base,) = source_models(run, HfApi())
        assert (base.part, base.model, base.license) == ("base", Path(encoder).name, "cc-by-nc-4.0")
        card = render_card(folder, "me/x", CardDetails(license="mit"), Snippet("snippet"), [base]).text
        assert re.search("cc-by-nc-4.0.*stricter than mit", card)
        assert ("| weights |" in card) == (name == "ema")
        assert ("| clips | 4 frames x 2 clips x 2 crops | top-1 of videos |" in card) == (name == "")


def test_a_trainer_pushes_what_was_tested_and_nothing_else(clips, encoder, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(snippets, "run_snippet", lambda *args: "printed\n")
    training = {"push_to_hub": True, "license": "mit", "hub_model_id": "me/adapted", "ema_decay": 0.5}
    adapt(clips, encoder, tmp_path, "lora", training=training).run({"model": encoder, "dataset": "clips"})
    assert {"ema", "best", "adapter", "evaluation"} <= {path.name for path in tmp_path.iterdir()}
    files = hub.model("me/adapted").files()
    assert set(files) - {".gitattributes"} == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_run.json"),
        *("video_preprocessor_config.json", "evaluation/metrics.json", "evaluation/confusion.png"),
    }
    assert "| clips | 4 frames x 2 clips x 2 crops | top-1 of videos |" in files["README.md"].content.decode()
    assert files["model.safetensors"].content == (tmp_path / "model.safetensors").read_bytes()


def test_a_probe_is_not_pushed_by_a_trainer(clips, encoder, tmp_path):
    training = {"push_to_hub": True, "license": "mit"}
    with pytest.raises(ValueError, match=r"method=linear_probe.*push_to_hub"):
        adapt(clips, encoder, tmp_path, "linear_probe", training=training)


def test_nearest_neighbours_leave_figures_and_no_model(clips, encoder, tmp_path):
    adapt(clips, encoder, tmp_path, "knn", {"probe_clips": 1, "neighbours": 3}).run()
    figures = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert figures["protocol"] == "4x2x2, k=3"
    assert set(figures) == {"protocol", "num_videos", "missing", "knn_top1", "majority_top1"}
    assert not (tmp_path / "model.safetensors").exists()


def test_the_model_of_another_run_is_not_replaced(clips, encoder, tmp_path):
    adapt(clips, encoder, tmp_path, "linear_probe", PROBE).run()
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for method in ("knn", "attentive_probe", "full"):
        with pytest.raises(ValueError, match=r"model\.safetensors.*overwrite"):
            adapt(clips, encoder, tmp_path, method, PROBE)
    assert kept == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


@pytest.mark.parametrize("probe", ["linear_probe", "attentive_probe"])
def test_full_training_after_a_probe_starts_from_its_head(clips, encoder, tmp_path, probe):
    config = {"use_attentive_pooling": probe == "attentive_probe"}
    still = {"base_learning_rate": 1e-9, "weight_decay": 0.0}
    for name, method in (("probe", probe), ("full", "probe_then_full")):
        torch.manual_seed(0)
        adapt(clips, encoder, tmp_path / name, method, PROBE, still, config=config).run()
    expected, found = (
        MVDForVideoClassification.from_pretrained(tmp_path / name).state_dict() for name in ("probe", "full")
    )
    assert expected["classifier.weight"].abs().max() > 1e-3  # a fresh head is at 2e-5
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


def test_the_chosen_weights_are_tested(clips, encoder, tmp_path):
    adaptation = adapt(clips, encoder, tmp_path, training={"ema_decay": 0.5}, test_weights="ema")
    adaptation.run()
    model = MVDForVideoClassification.from_pretrained(tmp_path / "ema")
    again = evaluate_views(model, adaptation.videos.validation, adaptation.test_processor(), num_workers=0)
    again.majority_class = adaptation.majority_class()
    assert again.metrics() == json.loads((tmp_path / "ema" / "evaluation" / "metrics.json").read_text())
    assert not (tmp_path / "evaluation").exists()
    assert measured_results(tmp_path / "ema", "clips")


def test_without_validation_it_trains_and_does_not_test(clips, encoder, tmp_path):
    adapt(clips, encoder, tmp_path, preparation={"validation_fraction": 0}).run()
    assert (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "evaluation").exists()
    with pytest.raises(ValueError, match=r"method=knn.*validation_fraction"):
        adapt(clips, encoder, tmp_path / "knn", "knn", preparation={"validation_fraction": 0}).run()


def test_a_finished_run_that_is_started_again_is_only_tested(clips, encoder, tmp_path):
    adapt(clips, encoder, tmp_path).run()
    weights = (tmp_path / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "evaluation")
    adapt(clips, encoder, tmp_path).run()
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "evaluation" / "metrics.json").exists()


def test_a_finished_run_goes_on_with_more_epochs_and_other_views(clips, encoder, tmp_path, caplog):
    adapt(clips, encoder, tmp_path, training={"num_train_epochs": 1}).run()
    earlier = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    adapt(clips, encoder, tmp_path, training={"num_train_epochs": 2}, test_clips=1).run()
    later = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert (earlier["protocol"], later["protocol"]) == ("4x2x2", "4x1x2")
    assert earlier["weights"] != later["weights"]
    assert "nothing is trained" not in caplog.text
    adapt(clips, encoder, tmp_path, training={"num_train_epochs": 1}).run()
    assert "num_train_epochs=1" in caplog.text
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["weights"] == later["weights"]


def test_a_probe_is_fitted_again_to_other_clips(clips, encoder, tmp_path):
    for probe_clips in (1, 2):
        adapt(clips, encoder, tmp_path, "linear_probe", {"probe_clips": probe_clips}).run()
    assert read_run_record(tmp_path)["clips_per_video"] == 2


def test_impossible_recipes_are_refused(clips, encoder, tmp_path):
    for arguments, message in (
        ({"model": ""}, "--model"),
        ({"model": "x", "method": "prompt"}, "method='prompt'.*full, probe_then_full, lora"),
        ({"model": "x", "head": "old"}, "head='old'.*new, probe"),
        ({"model": "x", "head": "probe", "method": "knn"}, "head=probe.*method=knn"),
        ({"model": "x", "test_weights": "first"}, "test_weights='first'.*last, best, ema"),
    ):
        with pytest.raises(ValueError, match=message):
            AdaptationArguments(**arguments)
    with pytest.raises(ValueError, match="test_weights=ema needs ema_decay"):
        adapt(clips, encoder, tmp_path, test_weights="ema")
    with pytest.raises(ValueError, match="class_weights='equal'"):
        FinetuningClipArguments(class_weights="equal")
    with pytest.raises(ValueError, match=r"class_weights=balanced.*method=knn"):
        adapt(clips, encoder, tmp_path, "knn", keys={"class_weights": "balanced"})


def test_balanced_class_weights_follow_from_the_training_labels(clips, encoder, tmp_path):
    adaptation = adapt(clips, encoder, tmp_path, keys={"class_weights": "balanced"})
    counts = np.bincount(adaptation.videos.labels)
    assert adaptation.class_weights() == pytest.approx(counts.sum() / (2 * counts))
    assert adapt(clips, encoder, tmp_path).class_weights() is None
