"""Several classes, several heads and numbers as labels: from the data to a tested model, pipelines and a card."""

import inspect
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from transformers import Trainer, TrainingArguments, VideoClassificationPipeline, pipeline

from mvd_hf import FinetuningArguments, MVDForVideoClassification, load_clips
from mvd_hf.data import collate_clips
from mvd_hf.data.arguments import DataArguments, FinetuningClipArguments
from mvd_hf.data.augmentation import FinetuningAugmentation
from mvd_hf.data.sources import load_rows
from mvd_hf.data.toy import write_video
from mvd_hf.evaluation.multiview import evaluate_views
from mvd_hf.evaluation.probing import ProbeArguments
from mvd_hf.evaluation.reports import write_report
from mvd_hf.finetuning.adaptation import Adaptation, AdaptationArguments
from mvd_hf.finetuning.preparation import PreparationArguments
from mvd_hf.hub.cards import CardDetails, render_card
from mvd_hf.hub.loading import load_processor
from mvd_hf.hub.snippets import Snippet
from mvd_hf.model.frame_sampling import dense_frames

MULTI, REGRESSION = "multi_label_classification", "regression"
KINDS = {
    MULTI: {"label_column": "colors", "problem_type": MULTI},
    "heads": {"label_column": ["red", "green"]},
    REGRESSION: {"label_column": "level", "problem_type": REGRESSION},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Videos of a color: which of its parts are bright, the red and the green part, and the level of the blue one."""
    folder, rng, lines = tmp_path_factory.mktemp("colors") / "clips", np.random.default_rng(0), []
    folder.mkdir()
    for i in range(40):
        color = np.array([(60, 200)[i % 2], (60, 200)[i // 2 % 2], 40 + 4 * i + 20 * (i >= 20)])
        frames = np.clip(color + rng.normal(0, 8, (6, 32, 32, 3)), 0, 255).astype(np.uint8)
        write_video(folder / f"{i:02d}.mp4", frames)
        is_bright = dict(zip(("red", "green", "blue"), (color > 130).tolist(), strict=True))
        words = {name: ("dark", "bright")[bright] for name, bright in is_bright.items()}
        labels = {"colors": [name for name in is_bright if is_bright[name]], **words, "level": color[2] / 10}
        lines.append(json.dumps({"file_name": f"{i:02d}.mp4", **labels}, default=float))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def adapt(clips, encoder, folder, kind, method="linear_probe", keys=None, training=None, **recipe) -> Adaptation:
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "dataloader_num_workers": 0}
    options |= {"num_train_epochs": 1, "warmup_epochs": 0, "per_device_train_batch_size": 8, "logging_steps": 1}
    clip_keys = {"sampling": "uniform", "flip": 0.0, "repeats": 1, "rand_augment": None, "label_smoothing": 0.0}
    return Adaptation(
        AdaptationArguments(**{"model": encoder, "method": method, "test_clips": 1, "test_crops": 1, **recipe}),
        DataArguments(dataset=str(clips)),
        FinetuningClipArguments(**(clip_keys | KINDS[kind] | (keys or {}))),
        PreparationArguments(compare_content=False),
        ProbeArguments(probe_clips=1, probe_epochs=2),
        FinetuningArguments(output_dir=str(folder), **(options | (training or {}))),
    )


@pytest.fixture(scope="module", params=KINDS)
def probed(request, clips, encoder, tmp_path_factory) -> tuple[str, Path, Adaptation]:
    """A kind of labels, and the folder and the run of a linear probe."""
    folder = tmp_path_factory.mktemp("probed")
    adaptation = adapt(clips, encoder, folder, request.param)
    adaptation.run({"dataset": "clips"})
    return request.param, folder, adaptation


def test_a_probe_learns_labels_that_the_color_decides(probed):
    kind, folder, adaptation = probed
    figures = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert figures["num_videos"] == len(adaptation.videos.validation) >= 6
    if kind == MULTI:
        assert figures["video_mAP"] == 1.0
        assert figures["num_classes"] == 3
    elif kind == REGRESSION:
        assert figures["video_spearman"] > 0.97
        assert figures["video_mae"] < 0.15 * figures["label_std"]
    else:
        assert (figures["video_top1"], figures["red_top1"], figures["green_top1"]) == (1.0, 1.0, 1.0)
    stored = MVDForVideoClassification.from_pretrained(folder).config
    assert stored.problem_type == KINDS[kind].get("problem_type", "single_label_classification")
    assert stored.label_heads == ({"green": 2, "red": 2} if kind == "heads" else {})


def test_pipelines_reports_and_cards_know_the_kind_of_the_labels(probed, clips):
    kind, folder, _ = probed
    report, video = folder / "evaluation", str(clips / "31.mp4")  # red, green and blue are bright, the level is 18.4
    # old versions of transformers take softmax for every model
    old = inspect.signature(VideoClassificationPipeline.postprocess).parameters["function_to_apply"].default
    options = {"function_to_apply": {MULTI: "sigmoid", REGRESSION: "none"}.get(kind, "softmax")} if old else {}
    stock = pipeline("video-classification", model=str(folder))(video, **options)
    ours = pipeline("video-multiview-classification", model=str(folder))(video, num_clips=1, num_crops=1)
    card = str(render_card(folder, "me/it", CardDetails("mit", evaluated_on="clips"), Snippet("code")))
    if kind == MULTI:
        assert min(entry["score"] for entry in stock) > 0.5  # sigmoid: all three at once
        assert sorted(entry["label"] for entry in ours) == ["blue", "green", "red"]
        assert (report / "per_class.csv").read_text().splitlines()[0] == "class,name,videos,average_precision"
        assert "3 classes, any number of them at once" in card
        assert re.search(r"mAP of videos \| 100\.00", card)
    elif kind == REGRESSION:
        assert stock == [{"score": pytest.approx(18.4, abs=2), "label": "level"}]
        assert ours == [{"score": pytest.approx(stock[0]["score"], rel=1e-3), "label": "level"}]
        assert "predicts the number `level`" in card
        assert "| mean absolute error of videos | " in card
    else:
        # the stock pipeline shares the sum of all scores among the heads
        best = {entry["label"]: entry["score"] for entry in stock[:2]}
        assert best.keys() == {"red: bright", "green: bright"}
        assert {head: entries[0]["label"] for head, entries in ours.items()} == {"red": "bright", "green": "bright"}
        assert ours["red"][0]["score"] == pytest.approx(2 * best["red: bright"], rel=1e-3)
        assert (report / "red" / "confusion.csv").is_file()
        assert "a head for each of 2 classes of `green` and 2 classes of `red`" in card
        assert "| all heads right, top-1 of videos | 100.00" in card


def test_a_later_test_reads_the_labels_by_the_model(probed, clips, tmp_path):
    kind, folder, _ = probed
    model = MVDForVideoClassification.from_pretrained(folder)
    rows, processor = load_rows(str(clips)).select(range(0, 40, 5)), load_processor(str(folder), model.config)
    column = KINDS[kind]["label_column"]
    evaluation = evaluate_views(model, rows, processor, label_column=column, num_workers=0)
    write_report(evaluation, rows, tmp_path)
    assert evaluation.metrics()["num_videos"] == 8
    if kind == MULTI:
        expected = average_precision_score(evaluation.labels, evaluation.probabilities, average="macro")
        assert evaluation.metrics()["video_mAP"] == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"dark|label_column=red.*green, red"):
        evaluate_views(model, rows, processor, label_column="red", num_workers=0)


@pytest.mark.parametrize("kind", KINDS)
def test_training_mixes_evaluates_and_keeps_the_best_model(clips, encoder, tmp_path, kind):
    smoothing = {} if kind == REGRESSION else {"label_smoothing": 0.1}
    weights = {"class_weights": "balanced"} if kind == "heads" else {}
    adaptation = adapt(clips, encoder, tmp_path, kind, "full", {**smoothing, **weights}, {"ema_decay": 0.5})
    adaptation.run({"dataset": "clips"})
    state = json.loads(next(tmp_path.glob("checkpoint-*/trainer_state.json")).read_text())
    logged = {key for entry in state["log_history"] for key in entry}
    metrics = {
        MULTI: {"eval_mAP", "eval_ema_mAP"},
        REGRESSION: {"eval_mae", "eval_spearman", "eval_ema_mae"},
        "heads": {"eval_top1", "eval_red_top1", "eval_green_top1", "eval_ema_top1"},
    }[kind]
    assert metrics <= logged
    assert not {"eval_balanced_accuracy", "eval_top5"} & logged
    assert state["best_metric"] is not None
    assert (tmp_path / "best" / "model.safetensors").is_file()


def test_a_trained_head_starts_at_the_mean_of_the_numbers_and_another_kind_replaces_it(clips, encoder, tmp_path):
    first = adapt(clips, encoder, tmp_path / "a", REGRESSION)
    assert first.model.classifier.bias.item() == pytest.approx(first.videos.labels.mean(), rel=1e-5)
    first.model.save_pretrained(tmp_path / "saved")
    again = adapt(clips, str(tmp_path / "saved"), tmp_path / "b", REGRESSION)
    assert torch.equal(again.model.classifier.weight, first.model.classifier.weight)
    other = adapt(clips, str(tmp_path / "saved"), tmp_path / "c", "heads").model
    assert other.config.problem_type == "single_label_classification"
    assert list(other.config.id2label.values()) == ["green: bright", "green: dark", "red: bright", "red: dark"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_stock_trainer_trains_every_kind(clips, encoder, tmp_path, kind):
    fields = {
        MULTI: {"num_labels": 3, "problem_type": MULTI},
        "heads": {"num_labels": 5, "label_heads": {"red": 3, "green": 2}},
        REGRESSION: {"num_labels": 1, "problem_type": REGRESSION},
    }[kind]
    model = MVDForVideoClassification.from_pretrained(encoder, **fields)
    names = {"label_names": ["blue", "green", "red"]} if kind == MULTI else {}  # the first videos lack blue
    frames, augmentation = partial(dense_frames, num_frames=4, stride=1), FinetuningAugmentation(32, None)
    data = load_clips(str(clips), frames, augmentation, max_samples=8, **names, **KINDS[kind])
    options = {
        "use_cpu": True,
        "report_to": "none",
        "remove_unused_columns": False,
        "logging_steps": 1,
        "max_steps": 1,
    }
    trainer = Trainer(
        model, TrainingArguments(str(tmp_path), **options), data_collator=collate_clips, train_dataset=data
    )
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss"])


def test_heads_given_to_from_pretrained_are_in_alphabetical_order_and_can_be_given_up(encoder, tmp_path):
    heads = {"verb": 2, "noun": 3}
    model = MVDForVideoClassification.from_pretrained(encoder, num_labels=5, label_heads=heads)
    assert list(model.config.label_heads.items()) == [("noun", 3), ("verb", 2)]
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"num_labels=10.*label_heads=\{\}"):
        MVDForVideoClassification.from_pretrained(tmp_path, num_labels=10, ignore_mismatched_sizes=True)
    plain = MVDForVideoClassification.from_pretrained(
        tmp_path, num_labels=10, label_heads={}, ignore_mismatched_sizes=True
    )
    assert (len(plain.classifier.weight), plain.config.label_heads) == (10, {})


def test_keys_that_are_not_defined_for_a_kind_are_refused(clips, encoder, tmp_path):
    for kind, method, keys, recipe, message in (
        (MULTI, "knn", {}, {}, "method=knn"),
        ("heads", "knn", {}, {}, "method=knn.*red"),
        (MULTI, "full", {"class_weights": "balanced"}, {}, "class_weights=balanced"),
        (REGRESSION, "full", {"label_smoothing": 0.1}, {}, r"label_smoothing=0\.1"),
        ("heads", "full", {"label_column": ["red", "noun"]}, {}, "'noun'"),
        ("heads", "full", {"label_names": ["a"]}, {}, "label_names"),
        (MULTI, "full", {"problem_type": None}, {}, f"problem_type={MULTI}"),
        (REGRESSION, "full", {"problem_type": None}, {}, f"problem_type={REGRESSION}"),
        (REGRESSION, "full", {"label_column": "red"}, {}, r"00\.mp4.*'dark'"),
        (MULTI, "full", {}, {"config": {"problem_type": REGRESSION}}, "config.problem_type"),
        (MULTI, "full", {}, {"config": {"num_labels": 7}}, "config.num_labels=7"),
    ):
        with pytest.raises(ValueError, match=message):
            adapt(clips, encoder, tmp_path, kind, method, keys, **recipe)
    with pytest.raises(ValueError, match="problem_type='multi'"):
        FinetuningClipArguments(problem_type="multi")
    with pytest.raises(ValueError, match=r"problem_type=multi_label.*'a', 'b'"):
        FinetuningClipArguments(label_column=["a", "b"], problem_type=MULTI)


def test_the_best_model_by_error_is_that_of_the_smallest(tmp_path):
    arguments = FinetuningArguments(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model="mae")
    assert arguments.greater_is_better is False
