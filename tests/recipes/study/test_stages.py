"""Stages of the study: which run again, when one goes on, and what is left of them."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mvd_hf.arguments import read_yaml
from recipes.study.stages import RECIPE, RECORD, Stage, read_record, run_stages, seconds_left, training_history


@pytest.fixture
def script(tmp_path) -> str:
    """A recipe that writes down its calls, and fails if a file `broken` exists."""
    path = tmp_path / "note.py"
    path.write_text(
        "import yaml\n"
        "from pathlib import Path\n"
        "def main(arguments):\n"
        "    keys = yaml.safe_load(Path(arguments[0]).read_text())\n"
        "    print('this is', keys['name'])\n"
        "    if Path(keys['calls']).with_name('broken').exists():\n"
        "        raise OSError('the disk is gone')\n"
        "    with open(keys['calls'], 'a') as file:\n"
        "        file.write(keys['name'] + ' ')\n"
    )
    return str(path)


def chain(script: str, tmp_path: Path, *names: str) -> list[Stage]:
    """Stages that each need the previous one."""
    needs = [(), *((name,) for name in names)]
    keys = {"calls": str(tmp_path / "calls")}
    return [
        Stage(name, "note", script, {**keys, "name": name}, need) for name, need in zip(names, needs, strict=False)
    ]


def run(stages: list[Stage], tmp_path: Path):
    with ThreadPoolExecutor(1) as pool:
        run_stages(stages, tmp_path / "study", pool, 1)


def test_finished_stages_do_not_run_again(script, tmp_path, caplog):
    caplog.set_level("INFO")
    stages = chain(script, tmp_path, "a", "b", "c")
    run(stages[:1], tmp_path)
    run(stages, tmp_path)
    assert (tmp_path / "calls").read_text() == "a b c "
    assert "1 of 3 stages" in caplog.text
    assert "3 of 3 stages" in caplog.text
    assert (tmp_path / "study" / "a" / "log.txt").read_text() == "this is a\n"


def test_a_failing_stage_is_named_and_continued(script, tmp_path):
    stages = chain(script, tmp_path, "a", "b")
    (tmp_path / "broken").touch()
    with pytest.raises(RuntimeError, match=r"a failed \(OSError: the disk is gone\).*log\.txt"):
        run(stages, tmp_path)
    assert not (tmp_path / "study" / "a" / RECORD).exists()
    (tmp_path / "broken").unlink()
    run(stages, tmp_path)
    assert (tmp_path / "calls").read_text() == "a b "


def test_a_stage_with_different_keys_is_refused(script, tmp_path):
    (stage,) = chain(script, tmp_path, "a")
    run([stage], tmp_path)
    changed = replace(stage, keys={**stage.keys, "epochs": 3})
    with pytest.raises(ValueError, match="epochs"):
        run([changed], tmp_path)
    assert read_record(stage, tmp_path / "study")["keys"] == stage.keys
    assert read_yaml(tmp_path / "study" / "a" / RECIPE) == stage.keys


def test_a_stage_keeps_its_log_history_and_deletes_its_checkpoints(script, tmp_path):
    (stage,) = chain(script, tmp_path, "a")
    folder = tmp_path / "study" / "a"
    for step in (8, 16, 10):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        state = {"log_history": [{"step": step, "loss": 0.5}]}
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    assert training_history(folder) == [{"step": 16, "loss": 0.5}]
    run([stage], tmp_path)
    assert read_record(stage, tmp_path / "study")["history"] == [{"step": 16, "loss": 0.5}]
    assert not list(folder.glob("checkpoint-*"))


def test_a_stage_goes_on_with_twice_the_epochs_until_its_loss_has_fallen(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import json, yaml\n"
        "from pathlib import Path\n"
        "def main(arguments):\n"
        "    keys = yaml.safe_load(Path(arguments[0]).read_text())\n"
        "    folder = Path(keys['output_dir'], 'checkpoint-%d' % keys['num_train_epochs'])\n"
        "    folder.mkdir()\n"
        "    history = [{'loss': 4 / keys['num_train_epochs']}, {'eval_loss': 0}]\n"
        "    (folder / 'trainer_state.json').write_text(json.dumps({'log_history': history}))\n"
    )
    for enough, epochs in ((None, 2), (1.5, 4), (0.1, 16)):  # at most three times longer
        name = f"teacher{enough}"
        keys = {"num_train_epochs": 2, "output_dir": str(tmp_path / "study" / name)}
        stage = Stage(name, "pretrain", str(script), keys, enough=enough)
        run([stage], tmp_path)
        record = read_record(stage, tmp_path / "study")
        assert record["epochs"] == epochs
        assert record["history"][0]["loss"] == 4 / epochs


def test_the_time_left_is_that_of_stages_of_the_same_kind():
    stages = [Stage(name, name[0], "", {}) for name in ("a1", "a2", "b1", "b2", "c1")]
    assert seconds_left(stages, {}, 2) is None
    assert seconds_left(stages, {"a1": 10.0, "b1": 30.0}, 2) == (10 + 30 + 20) / 2
    assert seconds_left(stages, {stage.name: 1.0 for stage in stages}, 2) == 0
