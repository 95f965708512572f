"""Three-split protocol: one run per split, skipped when finished, and honest figures of what there is."""

import json
import statistics
import sys
from pathlib import Path

import pytest

from launching import ROOT
from recipes import three_splits
from recipes.three_splits import ACCURACIES, SplitRuns, describe, read_result, summarize

RECIPE = ROOT / "recipes" / "three_splits.py"
# stands in for recipes/finetune.py: keeps its arguments, and writes the result that its test set says
FINETUNE = """
import json, os, sys
from pathlib import Path

keys = {}
for argument in sys.argv[2:]:
    key, _, value = argument.removeprefix("--").partition("=")
    keys[key] = value
folder = Path(keys["output_dir"])
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "calls.txt", "a") as file:
    keys["launched"] = "ACCELERATE_MIXED_PRECISION" in os.environ
    file.write(json.dumps({"recipe": sys.argv[1], **keys}) + "\\n")
result = json.loads(Path(keys["eval_dataset"]).read_text())
if result == "fail":
    sys.exit(3)
if result is not None:
    folder = folder / keys.get("test_weights", "") / "evaluation"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(result))
"""


def metrics(top1: float, **changed) -> dict:
    result = {"protocol": "16x5x3", "num_videos": 100, "missing": 0, "loss": 1.5, "video_top1": top1}
    return {**result, "video_top5": top1 + 0.1, "clip_top1": top1 - 0.1, "clip_top5": top1, **changed}


@pytest.fixture
def job(tmp_path):
    """A folder with a recipe, list files of three splits (each holds the result of its test), and the stand-in."""
    (tmp_path / "finetune.py").write_text(FINETUNE, encoding="utf-8")
    (tmp_path / "finetune.yaml").write_text("output_dir: outputs/ucf101\nnum_train_epochs: 100\n", encoding="utf-8")
    data = tmp_path / "my data"
    data.mkdir()
    (data / "classes.txt").write_text("a\nb\n", encoding="utf-8")
    for split, top1 in ((1, 0.81), (2, 0.84), (3, 0.78)):
        (data / f"train_{split}.csv").write_text("", encoding="utf-8")
        (data / f"test_{split}.csv").write_text(json.dumps(metrics(top1)), encoding="utf-8")
    return tmp_path


def runs(job: Path, *arguments: str, **options) -> SplitRuns:
    arguments = [f"--output_dir={job / 'outputs'}", *arguments]
    return SplitRuns(
        str(job / "finetune.py"), str(job / "finetune.yaml"), str(job / "my data"), arguments=arguments, **options
    )


def calls(job: Path, split: int) -> list[dict]:
    path = job / "outputs" / f"split{split}" / "calls.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_split_is_run_with_its_lists_and_folder(job):
    runs(job, "--num_train_epochs=5", "--config.num_labels=2").run()
    for split in (1, 2, 3):
        (call,) = calls(job, split)
        assert call == {
            "dataset": str(job / "my data" / f"train_{split}.csv"),
            "eval_dataset": str(job / "my data" / f"test_{split}.csv"),
            "label_names": str(job / "my data" / "classes.txt"),
            "output_dir": str(job / "outputs" / f"split{split}"),
            "num_train_epochs": "5",
            "config.num_labels": "2",
            "recipe": str(job / "finetune.yaml"),
            "launched": False,
        }


def test_results_lie_beside_the_weights_that_were_tested(job):
    runs(job, "--test_weights=best", splits=[1]).run()
    assert (job / "outputs" / "split1" / "best" / "evaluation" / "metrics.json").exists()
    assert runs(job, "--test_weights=best", splits=[1]).collect()["mean"]["video_top1"] == pytest.approx(0.81)
    with pytest.raises(ValueError, match="splits 1 "):
        runs(job, splits=[1]).collect()


def test_tests_of_few_classes_have_no_top_5(job):
    for split in (1, 2):
        few = {key: value for key, value in metrics(0.5).items() if "top5" not in key}
        (job / "my data" / f"test_{split}.csv").write_text(json.dumps(few), encoding="utf-8")
    these = runs(job, splits=[1, 2])
    these.run()
    summary = these.collect()
    assert summary["mean"] == pytest.approx({"video_top1": 0.5, "clip_top1": 0.4})
    assert "| 1 | 100 | 0 | 50.00 | 40.00 |" in describe(summary)


def test_mean_and_sample_standard_deviation(job):
    these = runs(job)
    these.run()
    summary = these.collect()
    assert summary == json.loads((job / "outputs" / "three_splits.json").read_text())
    assert (summary["protocol"], summary["missing_splits"]) == ("16x5x3", [])
    assert summary["mean"]["video_top1"] == pytest.approx(0.81)
    assert summary["standard_deviation"]["video_top1"] == pytest.approx(0.03)
    assert summary["standard_deviation"]["clip_top5"] == pytest.approx(statistics.stdev([0.81, 0.84, 0.78]))
    assert summary["mean"].keys() == set(ACCURACIES)
    assert "loss" not in summary["splits"]["1"]
    text = describe(summary)
    assert "| 2 | 100 | 0 | 84.00 | 94.00 | 74.00 | 84.00 |" in text
    assert "| mean of 3 |  |  | 81.00 ± 3.00 | 91.00 ± 3.00 | 71.00 ± 3.00 | 81.00 ± 3.00 |" in text
    assert "(frames x clips x crops): 16x5x3" in text
    assert "No result" not in text


def test_finished_splits_are_not_run_again(job, caplog):
    caplog.set_level("INFO")
    runs(job, splits=(2,)).run()
    runs(job).run()
    runs(job).run()
    assert [len(calls(job, split)) for split in (1, 2, 3)] == [1, 1, 1]
    assert "Split 2 is finished" in caplog.text


def test_a_split_that_fails_is_named_and_the_rest_waits(job):
    (job / "my data" / "test_2.csv").write_text('"fail"', encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"Split 2 .* 3"):
        runs(job).run()
    assert [len(calls(job, split)) for split in (1, 2, 3)] == [1, 1, 0]
    summary = runs(job).collect()
    assert summary["missing_splits"] == [2, 3]
    assert summary["standard_deviation"]["video_top1"] is None
    assert "| mean of 1 |  |  | 81.00 |" in describe(summary)
    assert "split 2, 3" in describe(summary)


def test_a_run_that_writes_no_result_is_an_error(job):
    (job / "my data" / "test_1.csv").write_text("null", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"Split 1 .*metrics\.json"):
        runs(job).run()


def test_nothing_is_started_before_all_lists_are_there(job):
    (job / "my data" / "train_3.csv").unlink()
    with pytest.raises(ValueError, match=r"train_3\.csv'.*prepare\.py"):
        runs(job).run()
    assert calls(job, 1) == []


def test_different_protocols_are_not_mixed():
    results = {1: metrics(0.8), 2: metrics(0.8, protocol="16x2x3"), 3: None}
    with pytest.raises(ValueError, match="split 1: 16x5x3, split 2: 16x2x3"):
        summarize(results)
    with pytest.raises(ValueError, match="splits 1, 2 "):
        summarize({1: None, 2: None})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        (json.dumps({"protocol": "16x5x3"}), "has no 'num_videos'"),
        (json.dumps(metrics(0.8, video_top5=80.0)), "video_top5=80.0, not a number from 0 to 1"),
        (json.dumps(metrics(0.8, clip_top1=float("nan"))), "clip_top1=nan"),
        (json.dumps(metrics(0.8, clip_top1=None)), "cannot be read"),
    ],
)
def test_a_result_that_is_not_what_it_must_be(tmp_path, content, message):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "metrics.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_result(tmp_path)
    assert read_result(tmp_path / "elsewhere") is None


def test_arguments_that_cannot_be(job):
    with pytest.raises(ValueError, match=r"--dataset .*--data,"):
        runs(job, "--dataset", "k400.csv")
    with pytest.raises(ValueError, match="splits="):
        runs(job, splits=(1, 1))
    (job / "finetune.yaml").write_text("num_train_epochs: 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="--output_dir"):
        SplitRuns("finetune.py", str(job / "finetune.yaml"), "data")


@pytest.fixture
def main():
    return three_splits.main


def test_the_recipe_runs_collects_and_says_what_is_missing(job, main, caplog):
    caplog.set_level("INFO")
    arguments = [str(job / "finetune.yaml"), "--data", str(job / "my data"), "--script", str(job / "finetune.py")]
    keys = [f"--output_dir={job / 'outputs'}", "--num_train_epochs=3"]
    assert main([*arguments, "--splits", "1", "3", *keys]) == 0
    assert calls(job, 1)[0]["num_train_epochs"] == "3"
    assert calls(job, 2) == []
    assert "| mean of 2 |" in caplog.text
    assert main([*arguments, "--collect", *keys]) == 1
    assert "split 2" in caplog.text
    assert calls(job, 2) == []


def test_launcher_arguments_lead_to_accelerate(job, main, monkeypatch):
    commands = []
    monkeypatch.setattr("recipes.three_splits.SplitRuns.run", lambda self: commands.append(self.command(1)))
    with pytest.raises(ValueError, match="splits 1"):
        main(
            [
                *(
                    str(job / "finetune.yaml"),
                    "--data",
                    str(job / "my data"),
                    "--launcher=--num_processes 2 --multi_gpu",
                ),
                *("--output_dir", str(job / "outputs"), "--bf16"),
            ]
        )
    (command,) = commands
    assert command[:6] == [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]
    assert command[6:8] == [str(RECIPE.with_name("finetune.py")), str(job / "finetune.yaml")]
    assert "--bf16" in command


@pytest.mark.slow
def test_a_split_is_run_through_accelerate(job):
    these = runs(job, splits=(1,), launcher=["--num_processes", "1", "--mixed_precision", "no", "--cpu"])
    these.run()
    assert calls(job, 1)[0]["launched"]
    assert these.collect()["mean"]["video_top1"] == 0.81
