"""Multi-view testing: figures, identities, labels, processes, resuming, and what it leaves behind."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from launching import launch
from mvd_hf import MVDConfig, MVDForVideoClassification, MVDVideoProcessor, evaluate_views
from mvd_hf.data.toy import APPEARANCES, toy_frames, write_video
from mvd_hf.evaluation.metrics import softmax
from mvd_hf.evaluation.multiview import Evaluation, read_labels
from mvd_hf.evaluation.reports import write_report
from tiny_models import TINY

NAMES = list(APPEARANCES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two folders of videos whose names are the same, one of them unreadable, in a list file."""
    folder = tmp_path_factory.mktemp("videos")
    lines = []
    for i in range(9):
        path = folder / ("ab"[i % 2]) / f"{i // 2}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, toy_frames(NAMES[i % 4], "left", 12, 40, 48, np.random.default_rng(i)))
        lines.append(f"{path.relative_to(folder)} {i % 4}")
    (folder / "b" / "3.mp4").write_bytes(b"no video")
    (folder / "test.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def rows(folder) -> datasets.Dataset:
    from mvd_hf.data.sources import load_rows

    return load_rows(str(folder / "test.csv"))


@pytest.fixture(scope="module")
def model() -> MVDForVideoClassification:
    torch.manual_seed(0)
    config = MVDConfig.from_name("mvd-b", **TINY, num_frames=4, num_labels=4, head_init_scale=100.0)
    return MVDForVideoClassification(config).eval()


@pytest.fixture
def processor(model) -> MVDVideoProcessor:
    return MVDVideoProcessor.for_model(model.config, num_clips=3, num_crops=2, frame_sampling_rate=2)


def test_the_score_of_a_video_is_the_mean_of_its_views_probabilities(model, rows, processor, tmp_path):
    evaluation = evaluate_views(model, rows, processor, folder=tmp_path, views_per_pass=4, num_workers=0)
    assert evaluation.rows == [0, 1, 2, 3, 4, 5, 6, 8]
    assert evaluation.logits.shape == (8, 6, 4)
    assert [Path(name).name for name, _ in evaluation.missing] == ["3.mp4"]
    for i, name in enumerate(evaluation.videos):
        views = processor(name, return_tensors="pt")["pixel_values"][0]
        with torch.no_grad():
            logits = model(pixel_values=views).logits.double()
        assert evaluation.logits[i] == pytest.approx(logits.numpy(), abs=1e-4)
        assert evaluation.probabilities[i] == pytest.approx(logits.softmax(dim=1).mean(dim=0).numpy(), abs=1e-5)
    figures = evaluation.metrics()
    hits = evaluation.probabilities.argmax(axis=1) == evaluation.labels
    view_hits = evaluation.logits.argmax(axis=2) == evaluation.labels[:, None]
    assert figures["video_top1"] == hits.mean()
    assert figures["clip_top1"] == view_hits.mean()
    assert (figures["protocol"], figures["num_videos"], figures["missing"]) == ("4x3x2", 8, 1)
    assert "8 videos, 4x3x2 (frames x clips x crops)" in evaluation.describe()
    assert "video_top5" not in figures  # of four classes
    assert "1 more videos" in evaluation.describe()


def test_few_videos_and_few_classes_are_reported_as_such(tmp_path, rows):
    def perfect(count: int, classes: int) -> Evaluation:
        labels = np.arange(count) % classes
        logits = np.eye(classes, dtype=np.float32)[labels][:, None] * 9
        names = [str(i) for i in range(classes)]
        return Evaluation([str(i) for i in range(count)], list(range(count)), labels, logits, names, "4x1x1", "hash")

    assert "between 61 % and 100 %" in perfect(6, 3).describe()
    assert "top-5" not in perfect(6, 3).describe()
    assert "95 %" not in perfect(200, 6).describe()
    assert "top-5" in perfect(200, 6).describe()
    (tmp_path / "mistakes.png").write_bytes(b"of an earlier test")
    write_report(perfect(6, 3), rows, tmp_path)
    assert (tmp_path / "confusion.png").exists()
    assert not (tmp_path / "mistakes.png").exists()


def test_nothing_is_left_of_a_test_without_a_folder(model, rows, processor, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    evaluation = evaluate_views(model.train(), rows, processor, num_workers=0)
    assert len(evaluation.videos) == 8
    assert not list(tmp_path.iterdir())
    assert model.training
    model.eval()


def test_one_view_is_what_training_evaluates(model, rows, processor):
    """The single test view has the pixels of fine-tuning's validation clips."""
    from mvd_hf.data.arguments import DataArguments, FinetuningClipArguments, finetuning_clips

    processor.num_clips = processor.num_crops = 1
    for sampling in ("dense", "uniform"):
        processor.sampling = sampling
        evaluation = evaluate_views(model, rows, processor, num_workers=0)
        keys = FinetuningClipArguments(sampling=sampling)
        data = DataArguments(dataset="unused.csv", stride=2)
        clips = finetuning_clips(data, keys, model.config, rows, evaluation=True)
        for i, row in enumerate(evaluation.rows):
            with torch.no_grad():
                logits = model(pixel_values=clips[row]["pixel_values"][None]).logits[0]
            assert evaluation.logits[i, 0] == pytest.approx(logits.numpy(), abs=1e-5)


def test_a_videomae_of_transformers_is_tested_with_its_own_normalisation(rows):
    config = VideoMAEConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_frames=4,
        num_labels=4,
    )
    model = VideoMAEForVideoClassification(config).eval()
    processor = MVDVideoProcessor(
        num_frames=4, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=0.5, image_std=0.5
    )
    evaluation = evaluate_views(model, rows, processor, num_workers=0)
    with torch.no_grad():
        logits = model(**processor(evaluation.videos[0], return_tensors="pt")).logits
    assert evaluation.logits[0] == pytest.approx(logits.numpy(), abs=1e-5)


def synthetic(logits: np.ndarray, labels: list[int], **fields) -> Evaluation:
    return Evaluation(
        videos=[f"{i}.mp4" for i in range(len(labels))],
        rows=list(range(len(labels))),
        labels=np.array(labels),
        logits=logits.astype(np.float32),
        names=["dog", "cat", "class"],
        protocol="16x5x3",
        weights="digest",
        **fields,
    )


def test_mistakes_and_confusions_come_worst_first():
    logits = np.log([[[0.7, 0.2, 0.1]], [[0.9, 0.05, 0.05]], [[0.1, 0.6, 0.3]], [[0.3, 0.6, 0.1]], [[0.8, 0.1, 0.1]]])
    evaluation = synthetic(logits, [1, 1, 2, 1, 0])
    mistakes = evaluation.mistakes()
    assert [mistake["video"] for mistake in mistakes] == ["1.mp4", "0.mp4", "2.mp4"]
    assert mistakes[0]["prediction"] == "dog"
    assert mistakes[0]["confidence"] == pytest.approx(0.9)
    assert mistakes[0]["probability_of_label"] == pytest.approx(0.05)
    assert [entry["accuracy"] for entry in evaluation.per_class()] == [1, pytest.approx(1 / 3), 0]
    assert evaluation.metrics()["mean_class_accuracy"] == pytest.approx(4 / 9)


def test_a_result_no_better_than_the_most_frequent_class_says_so():
    always_dog = np.log([[[0.7, 0.2, 0.1]]] * 4)
    labels = [0, 0, 0, 1]
    assert "majority_top1" not in synthetic(always_dog, labels).metrics()
    dull = synthetic(always_dog, labels, majority_class=0)
    assert dull.metrics()["majority_top1"] == 0.75
    assert "not better than always naming 'dog'" in dull.describe()
    assert "75.00 %" in dull.describe().splitlines()[-1]
    assert "not better" not in synthetic(always_dog, labels, majority_class=1).describe()


def test_a_report_holds_every_table_and_figure(model, rows, processor, tmp_path):
    evaluation = evaluate_views(model, rows, processor, num_workers=0)
    write_report(evaluation, rows, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == evaluation.metrics()
    predictions = datasets.Dataset.from_parquet(str(tmp_path / "predictions.parquet"))
    assert predictions["video"][:] == evaluation.videos
    assert np.array(predictions["view_logits"][:]) == pytest.approx(evaluation.logits)
    again = softmax(np.array(predictions["view_logits"][:])).mean(axis=1)
    assert again.argmax(axis=1).tolist() == predictions["prediction"][:]
    with (tmp_path / "confusion.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["", "0", "1", "2", "3"]
    assert np.array([line[1:] for line in lines]).astype(int).tolist() == evaluation.confusion.tolist()
    with (tmp_path / "missing.csv").open(newline="") as file:
        assert [Path(row["video"]).name for row in csv.DictReader(file)] == ["3.mp4"]
    for name in ("per_class.csv", "confused_pairs.csv", "mistakes.csv"):
        assert len((tmp_path / name).read_text().splitlines()) > 1
    for name in ("confusion.png", "mistakes.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_report_of_nothing_wrong_and_of_empty_classes_is_written(rows, tmp_path):
    evaluation = synthetic(np.log([[[0.7, 0.2, 0.1]], [[0.1, 0.8, 0.1]]]), [0, 1])
    write_report(evaluation, rows, tmp_path)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        assert [row["accuracy"] for row in csv.DictReader(file)] == ["1.0", "1.0", ""]
    assert (tmp_path / "mistakes.csv").read_text().count("\n") == 1


def named_rows(labels: list, names: list[str] | None = None) -> datasets.Dataset:
    feature = datasets.ClassLabel(names=names) if names else None
    columns = {"video": [{"path": f"{i}.mp4", "bytes": None} for i in range(len(labels))], "label": labels}
    rows = datasets.Dataset.from_dict(columns)
    return rows.cast_column("label", feature) if names else rows


def test_labels_are_those_of_the_model_by_name_and_else_by_number():
    model_names = ["jump", "run", "walk"]
    assert read_labels(named_rows([0, 1, 1], ["walk", "jump"]), "label", 3, model_names).tolist() == [2, 0, 0]
    assert read_labels(named_rows(["run", "walk"]), "label", 3, model_names).tolist() == [1, 2]
    assert read_labels(named_rows([2, 0]), "label", 3, model_names).tolist() == [2, 0]
    assert read_labels(named_rows([1, 0]), "label", 3, model_names, ["walk", "jump"]).tolist() == [0, 2]
    assert read_labels(named_rows([0, 1], ["walk", "jump"]), "label", 2, None).tolist() == [0, 1]


def test_labels_that_the_model_does_not_have_are_named():
    for rows, model_names, message in (
        (named_rows([0, 1], ["walk", "swim"]), ["walk", "run"], r"1 \(swim\)"),
        (named_rows([0, 7]), None, "1.mp4: the label 7"),
        (named_rows([0, -1]), ["walk", "run"], "1.mp4: the label -1"),
    ):
        with pytest.raises(ValueError, match=message):
            read_labels(rows, "label", 2, model_names)


def test_a_test_without_readable_videos_is_refused(model, processor, tmp_path):
    rows = named_rows([0, 1])
    with pytest.raises(ValueError, match="2 videos"):
        evaluate_views(model, rows, processor, folder=tmp_path, num_workers=0)


def test_equal_names_in_two_rows_are_reported(model, rows, processor, caplog):
    twice = datasets.concatenate_datasets([rows.select([0, 1]), rows.select([0])])
    evaluation = evaluate_views(model, twice, processor, num_workers=0)
    assert evaluation.metrics()["num_videos"] == 3
    assert "1 rows" in caplog.text


@pytest.mark.slow
def test_processes_interruptions_and_workers_do_not_change_the_result(model, processor, folder, tmp_path):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")

    def test(output: str, processes: int, **options) -> dict:
        keys = {"dataset": folder / "test.csv", "num_clips": 2, "num_crops": 3, "output": tmp_path / output}
        log = launch("evaluate.py", tmp_path / "model", processes=processes, **keys, **options)
        assert "top-1" in log
        columns = datasets.Dataset.from_parquet(
            str(tmp_path / output / "predictions.parquet"), cache_dir=str(tmp_path)
        )
        figures = json.loads((tmp_path / output / "metrics.json").read_text())
        return {"figures": figures, "rows": columns["row"][:], "logits": np.array(columns["view_logits"][:])}

    one = test("one", 1, num_workers=0)
    two = test("two", 2, num_workers=1, views_per_pass=5)
    assert one["figures"] == two["figures"]
    assert one["figures"]["protocol"] == "4x2x3"
    assert one["rows"] == two["rows"]
    assert one["logits"] == pytest.approx(two["logits"], abs=1e-5)
    # what one process of two wrote is not computed again
    part = next((tmp_path / "two" / "views").glob("part-*-of-1.arrow"))
    kept = next((tmp_path / "two" / "views").glob("part-*-of-0.arrow"))
    part.unlink()
    before = kept.stat().st_mtime_ns
    again = test("two", 1)
    assert again["figures"] == one["figures"]
    assert kept.stat().st_mtime_ns == before
