"""One table for students, teachers and baselines: accuracies, intervals, paired differences, and what is written."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from launching import ROOT
from mvd_hf import MVDForFeatureDistillation
from mvd_hf.data.sources import load_rows
from mvd_hf.evaluation.comparison import (
    Comparison,
    ComparisonArguments,
    ComparisonResults,
    GridArguments,
    LabelledSplit,
    Outcome,
)
from mvd_hf.evaluation.tables import as_markdown, comparison_text, write_comparison


@pytest.fixture(scope="module")
def student(tmp_path_factory, tiny_teachers) -> str:
    from tiny_models import TINY

    torch.manual_seed(0)
    config = MVDForFeatureDistillation.config_class.from_name(
        "mvd-b", **TINY, num_frames=4, teacher_dims={"image": 32, "video": 32}
    )
    folder = tmp_path_factory.mktemp("student")
    MVDForFeatureDistillation(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def split(toy_folder) -> LabelledSplit:
    train, test = (load_rows(toy_folder, part) for part in ("train", "validation"))
    labels = [np.array(rows["appearance"][:]) for rows in (train, test)]
    return LabelledSplit(train, test, *labels, ["stripes", "checkerboard", "dots", "rings"], "uniform")


def outcome(model: str, right: int, role: str, count: int = 200, method: str = "linear", rows=None) -> Outcome:
    """A probe that names class 0 of four for `right` of `count` videos whose class it is, and else class 1."""
    rows = list(range(count)) if rows is None else rows
    probabilities = np.array([[0.7, 0.1, 0.1, 0.1] if row < right else [0.1, 0.7, 0.1, 0.1] for row in rows])
    return Outcome(model, method, role, "", rows, probabilities)


def results(outcomes: list[Outcome], count: int = 200, classes: int = 4) -> ComparisonResults:
    split = LabelledSplit(None, [None] * count, None, np.zeros(count, dtype=np.int64), list("abcdefgh")[:classes])
    return ComparisonResults(outcomes, split, "protocol")


def test_a_row_has_the_accuracy_its_interval_and_the_share_of_the_best_teacher():
    outcomes = [outcome("student", 120, "student"), outcome("a", 150, "teacher"), outcome("b", 100, "teacher")]
    student, best, other = results(outcomes).table()
    assert (student["top1"], best["top1"], other["top1"]) == (60, 75, 50)
    assert (student["kept"], best["kept"]) == (80, 100)
    assert student["kept"] > other["kept"]
    # the standard error of 60 % of 200 videos is 3.46 points
    assert student["top1_low"] == pytest.approx(60 - 1.96 * 3.46, abs=1)
    assert student["top1_high"] == pytest.approx(60 + 1.96 * 3.46, abs=1)
    assert "top5" not in student
    # all are of class 0: its F1 is 2 * 0.6 / 1.6, that of the class that is only predicted 0
    assert student["macro_f1"] == pytest.approx(37.5)
    assert student["macro_f1_low"] < 37.5 < student["macro_f1_high"]


def test_top_5_is_reported_of_more_than_five_classes():
    wide = Outcome("a", "knn", "teacher", "", [0, 1], np.eye(6)[[3, 3]])
    assert "top5" not in results([outcome("a", 1, "teacher", 2)], 2).table()[0]
    assert results([wide], 2, classes=6).table()[0]["top5"] == 100  # ties favour the lower class


def test_differences_are_paired():
    student, teacher = outcome("student", 120, "student"), outcome("a", 118, "teacher")
    (row,) = results([student, teacher]).differences()
    assert (row["model"], row["against"], row["difference"]) == ("student", "a", pytest.approx(1))
    # only two videos differ: unpaired intervals would be about seven points wide
    assert row["high"] - row["low"] < 3.5


def test_a_student_below_a_baseline_is_named():
    outcomes = [
        outcome("student", 80, "student"),
        outcome("a", 150, "teacher"),
        outcome("random student", 79, "baseline"),
        outcome("pixels", 90, "baseline"),
        outcome("majority", 80, "baseline", method="none"),
    ]
    warnings = results(outcomes).warnings()
    assert [("pixels" in text, "majority" in text) for text in warnings] == [(True, False), (False, True)]
    assert all(text.startswith("student (linear)") for text in warnings)


def test_models_are_compared_on_the_videos_that_all_can_read():
    some = outcome("a", 50, "teacher", rows=list(range(0, 200, 2)))
    found = results([outcome("student", 100, "student"), some])
    assert len(found.rows) == 100
    assert [row["top1"] for row in found.table()] == [50, 25]
    assert any("100 test videos" in text for text in found.warnings())


def test_everything_is_written(split, tmp_path):
    outcomes = [outcome("student", 4, "student", 16), outcome("majority", 4, "baseline", 16, "none")]
    written = ComparisonResults(outcomes, split, "the protocol")
    text = write_comparison(written, tmp_path)
    assert (tmp_path / "table.md").read_text() == text + "\n"
    assert text == comparison_text(written)
    assert "the protocol" in text
    table = pd.read_parquet(tmp_path / "table.parquet")
    assert table["model"].tolist() == pd.read_csv(tmp_path / "table.csv")["model"].tolist() == ["student", "majority"]
    predictions = pd.read_parquet(tmp_path / "predictions.parquet")
    assert len(predictions) == 16
    assert predictions["student linear"].tolist() == ["stripes"] * 4 + ["checkerboard"] * 12
    assert (tmp_path / "table.png").stat().st_size > 5000
    assert len(pd.read_csv(tmp_path / "differences.csv")) == 1


def test_the_protocol_names_the_column_of_groups(split):
    grouped = replace(split, groups=list(range(32)), group_column="camera")
    assert "(by camera)" in Comparison(ComparisonArguments({"a": "x"}), GridArguments(), grouped).protocol()


def test_markdown_is_aligned():
    assert as_markdown([["a", "bb"], ["ccc", "d"]]) == "| a   | bb |\n| --- | -- |\n| ccc | d  |"


@pytest.mark.slow
def test_a_comparison_probes_students_teachers_and_baselines(split, student, tiny_teachers, tmp_path):
    models = {**tiny_teachers, "student": {"model": student, "layers": [1, 2]}}
    arguments = ComparisonArguments(
        models,
        methods=["knn", "linear", "attentive"],
        baselines=["majority", "pixels", "random"],
        image_frames=2,
        test_clips=2,
        export="npz",
        num_workers=0,
        output_dir=str(tmp_path),
        device="cpu",
    )
    probe = GridArguments(
        probe_clips=1, probe_epochs=2, probe_learning_rate=[1e-2, 1e-3], probe_weight_decay=0.1, neighbours=[1, 5]
    )
    found = Comparison(arguments, probe, split, {"image": "mit"}).run()
    rows = {(row["model"], row["method"]): row for row in found.table()}
    assert list(dict.fromkeys(model for model, _ in rows)) == [
        *("student", "image", "video", "random student", "pixels", "majority")
    ]
    assert len(rows) == 4 * 3 + 2
    assert rows["image", "knn"]["license"] == "mit"
    assert rows["image", "knn"]["input"] == "2x32"
    assert rows["student", "knn"]["gflops_per_clip"] > 0
    counts = np.bincount(split.train_labels)
    assert rows["majority", "none"]["top1"] == 100 * (split.test_labels == counts.argmax()).mean()
    assert "4 classes" in found.protocol
    exported = tmp_path / "exported" / "student" / "test"
    index = json.loads((exported / "index.json").read_text())
    assert np.load(exported / next(iter(index.values())))["features"].shape == (2, 64)


def test_choices_that_do_not_exist_are_refused():
    for fields, bad in (
        ({"models": {}}, "--models"),
        ({"methods": ["svm"]}, "svm"),
        ({"methods": []}, r"methods=\[\]"),
        ({"baselines": ["chance"]}, "chance"),
        ({"students": ["b"]}, "students has b"),
        ({"export": "csv"}, "'csv'"),
        ({"test_clips": 0}, "test_clips=0"),
    ):
        with pytest.raises(ValueError, match=bad):
            ComparisonArguments(**({"models": {"a": "x"}} | fields))
    with pytest.raises(ValueError, match="probe_blocks=0"):
        GridArguments(probe_blocks=0)


@pytest.fixture
def recipe(monkeypatch):
    spec = importlib.util.spec_from_file_location("probe_recipe", ROOT / "recipes" / "probe.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_recipe_gives_the_numbers_of_the_linear_probe_of_fine_tuning(
    recipe, student, toy_folder, tmp_path, caplog
):
    """The same encoder, clips, splits and penalties: the yardstick is the probe of `finetune.py`."""
    from mvd_hf import FinetuningArguments
    from mvd_hf.data.arguments import DataArguments, FinetuningClipArguments
    from mvd_hf.evaluation.probing import ProbeArguments
    from mvd_hf.finetuning.adaptation import Adaptation, AdaptationArguments
    from mvd_hf.finetuning.preparation import PreparationArguments

    words = ["--dataset", toy_folder, "--label_column", "motion", "--compare_content", "false"]
    words += ["--sampling", "uniform", "--probe_clips", "2", "--methods", "linear", "--num_workers", "0"]
    caplog.set_level("INFO")
    recipe.main(["--models.student", student, *words, "--output_dir", str(tmp_path / "probe")])
    table = pd.read_csv(tmp_path / "probe" / "table.csv")
    arguments = FinetuningArguments(
        output_dir=str(tmp_path / "finetune"), use_cpu=True, dataloader_num_workers=0, report_to="none"
    )
    Adaptation(
        AdaptationArguments(student, method="linear_probe", test_clips=1, test_crops=1),
        DataArguments(toy_folder),
        FinetuningClipArguments(label_column="motion", sampling="uniform"),
        PreparationArguments(compare_content=False),
        ProbeArguments(probe_clips=2),
        arguments,
    ).run()
    metrics = json.loads((tmp_path / "finetune" / "evaluation" / "metrics.json").read_text())
    assert table["top1"].tolist() == [pytest.approx(100 * metrics["video_top1"])]
    penalty = table["setting"][0].removeprefix("L2 penalty ")
    assert f"L2 penalty {penalty}, chosen" in caplog.text


def test_the_recipe_refuses_keys_that_have_no_effect(recipe, student, toy_folder, tmp_path):
    words = ["--models.student", student, "--dataset", toy_folder, "--output_dir", str(tmp_path)]
    for key, value in (("memory_gib", "1"), ("crop", "random_resized"), ("streaming", "true")):
        with pytest.raises(ValueError, match=key):
            recipe.main([*words, f"--{key}", value])


def test_the_recipe_names_a_missing_model_before_it_reads_a_video(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"'\./nowhere'"):
        recipe.main(["--models.a", "./nowhere", "--dataset", str(tmp_path / "nothing.csv")])
