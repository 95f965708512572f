"""Results on cards: measured ones from an evaluation's file, reported ones marked as such, and never mixed."""

import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCardData, parse_eval_result_entries
from safetensors.torch import save_file

from mvd_hf.data.hashing import hash_of_checkpoint
from mvd_hf.hub.results import (
    METRICS_NAME,
    Result,
    eval_result_file,
    measured_results,
    protocol_in_words,
    reported_results,
)

METRICS = {
    "protocol": "16x5x3",
    "num_videos": 1000,
    "missing": 2,
    "video_top1": 0.81234,
    "video_top5": 0.95,
    "clip_top1": 0.77,
    "clip_top5": 0.93,
}


def write(folder, **changes):
    path = folder / METRICS_NAME
    path.parent.mkdir(exist_ok=True)
    metrics = METRICS | {"weights": hash_of_checkpoint(folder)} | changes
    path.write_text(json.dumps({key: value for key, value in metrics.items() if value is not None}))
    return folder


def test_protocols_in_words():
    assert protocol_in_words("16x5x3") == "16 frames x 5 clips x 3 crops"
    assert protocol_in_words("16x4") == "16 frames with stride 4"
    assert protocol_in_words("16 frames, stride 4") == "16 frames, stride 4"


def test_measured_results_are_percentages_with_their_protocol(tmp_path):
    (result,) = measured_results(write(tmp_path), "Kinetics-400")
    assert (result.dataset, result.protocol) == ("Kinetics-400", "16 frames x 5 clips x 3 crops")
    assert result.metrics == pytest.approx(
        {"top-1 of videos": 81.234, "top-5 of videos": 95, "top-1 of single clips": 77, "top-5 of single clips": 93}
    )
    assert not result.reported
    assert result.remark == "measured on 1000 videos; 2 more could not be read"
    assert measured_results(write(tmp_path, missing=0), "K")[0].remark == "measured on 1000 videos"


def test_a_test_of_few_classes_has_no_top_5(tmp_path):
    (result,) = measured_results(write(tmp_path, video_top5=None, clip_top5=None), "K")
    assert list(result.metrics) == ["top-1 of videos", "top-1 of single clips"]


def test_without_an_evaluation_there_are_none(tmp_path):
    assert measured_results(tmp_path, None) == []


def test_results_of_other_weights_are_left_out(tmp_path, caplog):
    write(tmp_path)
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert measured_results(tmp_path, "K") == []
    assert METRICS_NAME in caplog.text
    assert len(measured_results(write(tmp_path), "K")) == 1


def test_incomplete_results_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.json' lacks protocol, clip_top1"):
        measured_results(write(tmp_path, protocol=None, clip_top1=None), "K")
    with pytest.raises(ValueError, match="evaluated_on"):
        measured_results(write(tmp_path), None)


def test_reported_results_are_marked():
    first, second = reported_results(
        [
            {"dataset": "Kinetics-400", "protocol": "16x5x3", "top-1": 83.4, "top-5": 95.8},
            {"dataset": "AVA v2.2", "protocol": "16 frames", "mAP": 31.1, "remark": "by others"},
        ]
    )
    assert first.reported
    assert first.metrics == {"top-1": 83.4, "top-5": 95.8}
    assert first.remark == "*reported by the authors*"
    assert second.remark == "*reported by the authors*; by others"


def test_metadata_keep_measured_and_reported_results_apart(tmp_path):
    measured = measured_results(write(tmp_path), "Kinetics-400")
    reported = reported_results([{"dataset": "Kinetics-400", "protocol": "16x5x3", "top-1": 83.4}])
    entries = [entry for result in (*measured, *reported) for entry in result.entries()]
    index = ModelCardData(model_name="x", eval_results=entries).to_dict()["model-index"][0]["results"]
    assert len(index) == 2
    ours, theirs = index
    assert "source" not in ours
    assert theirs["source"] == {"name": "reported by the authors", "url": "https://arxiv.org/abs/2212.04500"}
    assert theirs["metrics"] == [{"type": "accuracy", "value": 83.4, "name": "top-1, reported by the authors"}]
    assert ours["metrics"][0] == {"type": "accuracy", "value": 81.23, "name": "top-1 of videos"}
    for result in index:
        assert result["dataset"]["type"] == "kinetics-400"
        assert result["dataset"]["name"] == "Kinetics-400 (16 frames x 5 clips x 3 crops)"


def test_results_for_a_benchmark(tmp_path):
    results = measured_results(write(tmp_path), "K") + reported_results(
        [{"dataset": "K", "protocol": "x", "top-1": 9}]
    )
    (entry,) = parse_eval_result_entries(yaml.safe_load(eval_result_file(results, "me/kinetics", "default")))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("me/kinetics", "default", 81.23)
    assert "16 frames x 5 clips x 3 crops" in entry.notes


def test_numbers_keep_four_digits_and_are_not_in_percent(tmp_path):
    (tmp_path / METRICS_NAME).parent.mkdir()
    found = {"protocol": "x", "num_videos": 9, "missing": 0, "video_mae": 0.00423456, "video_spearman": 0.9}
    (tmp_path / METRICS_NAME).write_text(json.dumps(found | {"weights": hash_of_checkpoint(tmp_path)}))
    results = measured_results(tmp_path, "ages")
    error, correlation = results[0].entries()
    assert (error.metric_type, error.metric_value, correlation.metric_type) == ("mae", 0.004235, "spearmanr")
    (entry,) = parse_eval_result_entries(yaml.safe_load(eval_result_file(results, "me/ages", "default")))
    assert (entry.value, "percent" in entry.notes) == (0.004235, False)
    heads = Result("d", "p", {"error_kind, top-1 of videos": 1.0})
    assert heads.entries()[0].metric_type == "accuracy"


def test_the_result_of_an_action_detector_goes_to_its_benchmark(tmp_path):
    found = {"protocol": "16x4", "num_key_frames": 9, "missing": 0, "mAP": 0.25}
    (tmp_path / METRICS_NAME).parent.mkdir()
    (tmp_path / METRICS_NAME).write_text(json.dumps(found | {"weights": hash_of_checkpoint(tmp_path)}))
    results = measured_results(tmp_path, "AVA")
    (entry,) = parse_eval_result_entries(yaml.safe_load(eval_result_file(results, "me/ava", "default")))
    assert (entry.value, entry.notes) == (25, "mAP in percent, 16 frames with stride 4; measured on 9 key frames")
