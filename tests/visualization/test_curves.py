"""Training curves: every figure of the log, runs beside each other, and logs that cannot be drawn."""

import json

import numpy as np
import pytest

from mvd_hf.visualization.curves import (
    CurveArguments,
    draw_curves,
    find_log,
    name_runs,
    panels_of,
    read_curves,
    write_curves,
)

HISTORY = [
    {"epoch": 0, "step": 0, "eval_loss": 9.0, "eval_loss_image": 5.0, "eval_runtime": 1.0},
    {"epoch": 1.0, "step": 4, "loss": 4.0, "loss_image": 3.0, "cosine_image": 0.1, "learning_rate": 1e-3},
    {"epoch": 2.0, "step": 8, "loss": 2.0, "loss_image": 1.0, "cosine_image": 0.4, "learning_rate": 1e-5},
    {"epoch": 2.0, "step": 8, "eval_loss": 2.5, "eval_samples_per_second": 3.0, "eval_jit_compilation_time": 2.0},
    {"epoch": 2.0, "step": 8, "train_loss": 3.0, "train_runtime": 9.0, "total_flos": 1.0},
]


def write_log(folder, history=HISTORY, name="trainer_state.json") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"log_history": history}))
    return str(folder)


def test_curves_are_the_figures_of_the_log(tmp_path):
    curves = read_curves(write_log(tmp_path))
    assert sorted(curves) == ["cosine_image", "eval_loss", "eval_loss_image", "learning_rate", "loss", "loss_image"]
    np.testing.assert_array_equal(curves["loss"], [[1, 4], [2, 2]])
    np.testing.assert_array_equal(curves["eval_loss"], [[0, 9], [2, 2.5]])


def test_the_log_is_found_in_a_run_and_in_its_last_checkpoint(tmp_path):
    write_log(tmp_path / "checkpoint-9")
    write_log(tmp_path / "checkpoint-10")
    assert find_log(tmp_path).parent.name == "checkpoint-10"
    write_log(tmp_path)
    assert find_log(tmp_path).parent == tmp_path
    (tmp_path / "history.json").write_text(json.dumps(HISTORY))
    assert read_curves(tmp_path / "history.json").keys() == read_curves(tmp_path).keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "give a run's folder"),
        ("no json", "is no log of a training run"),
        ('{"log": []}', "is no log of a training run"),
        ('{"log_history": [{"loss": 1.0}]}', "KeyError: 'epoch'"),
        ('{"log_history": []}', "has no figures yet"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_curves(tmp_path)


def test_losses_come_first_and_held_out_figures_with_them(tmp_path):
    run = read_curves(write_log(tmp_path))
    panels = panels_of({"a": run, "b": {"probe_accuracy": np.array([[1, 0.5]]), "loss_video": run["loss"]}})
    assert panels == ["loss", "loss_image", "loss_video", "cosine_image", "probe_accuracy", "learning_rate"]


def test_each_run_has_a_colour_and_a_name(tmp_path):
    run = read_curves(write_log(tmp_path))
    figure = draw_curves({"first": run, "second": run})
    drawn = {axes.get_title(): axes for axes in figure.axes}
    lines = drawn["loss"].get_lines()
    assert [line.get_label() for line in lines] == ["first", "first, held out", "second", "second, held out"]
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert lines[1].get_linestyle() == "None"  # two points are no curve
    assert drawn["learning_rate"].get_yscale() == "log"
    assert drawn["loss"].get_yscale() == "linear"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [line.get_label() for line in lines]


def test_picture_and_numbers_are_written(tmp_path):
    run = write_log(tmp_path / "run")
    path = write_curves(CurveArguments({"mine": run}, str(tmp_path / "pictures" / "curves.png")))
    assert path.read_bytes().startswith(b"\x89PNG")
    numbers = json.loads(path.with_suffix(".json").read_text())
    assert numbers["mine"]["loss"] == [[1.0, 4.0], [2.0, 2.0]]


def test_runs_are_named():
    assert name_runs(["a", "b"]) == {"a": "a", "b": "b"}
    assert name_runs({"x": "a"}) == {"x": "a"}
    with pytest.raises(ValueError, match="give --runs"):
        name_runs([])
    with pytest.raises(ValueError, match="drawn once"):
        name_runs(["a", "a"])
    with pytest.raises(ValueError, match="no run to draw"):
        draw_curves({})
