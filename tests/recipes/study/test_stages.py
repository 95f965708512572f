"""Stages of the study: which belong to an arm, which run again, and how a killed run continues."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from launching import ROOT
from mvd_hf import MVDTrainingArguments
from mvd_hf.arguments import parse_arguments, read_yaml
from mvd_hf.data.arguments import DataArguments
from mvd_hf.evaluation.probing import ProbeArguments
from recipes.study.probes import SceneProbeArguments
from recipes.study.scenes import SceneSettings
from recipes.study.stages import (
    ARMS,
    RECIPE,
    RECORD,
    SCHEDULE,
    Plan,
    Stage,
    StudyArguments,
    load_script,
    read_record,
    run_stages,
    seconds_left,
    training_history,
)

SETTINGS = sorted((ROOT / "recipes" / "study").glob("*.yaml"))


def study(path: Path = ROOT / "recipes/study/small.yaml", *arguments: str) -> StudyArguments:
    (parsed,) = parse_arguments([str(path), *arguments], StudyArguments)
    return parsed


def stages_by_name(arguments: StudyArguments) -> dict[str, Stage]:
    return {stage.name: stage for stage in Plan(arguments, ROOT / "recipes").stages()}


def test_an_arm_has_an_encoder_two_tasks_and_probes():
    stages = list(stages_by_name(study(SETTINGS[0], "--seeds=[7, 8]", "--arms=[scratch, video]")).values())
    assert [stage.name for stage in stages[: len(stages) // 2]] == [
        "seed7/video_teacher",
        *(f"seed7/scratch/{stage}" for stage in ("finetune_appearance", "finetune_motion", "probe")),
        *(f"seed7/video/{stage}" for stage in ("encoder", "finetune_appearance", "finetune_motion", "probe")),
    ]
    for number, stage in enumerate(stages):
        assert set(stage.needs) <= {before.name for before in stages[:number]}
        seed = stage.name.partition("/")[0]
        assert all(name.startswith(seed) for name in stage.needs)
        assert f"seed{stage.keys['seed']}" == seed


def test_students_differ_in_their_teachers_alone():
    stages = stages_by_name(study(SETTINGS[0], "--seeds=[0]", f"--arms={json.dumps(list(ARMS))}"))
    keys = {arm: dict(stages[f"seed0/{arm}/encoder"].keys) for arm in ARMS if ARMS[arm].teachers}
    for arm, of_arm in keys.items():
        assert tuple(of_arm.pop("teachers")) == ARMS[arm].teachers
        assert of_arm.pop("output_dir").endswith(f"seed0/{arm}/encoder")
    # the same number of updates and of masked clips, from half the clips
    assert keys["both_two_masks"].pop("masks_per_clip") == 2
    for key in SCHEDULE[:3]:
        assert keys["both_two_masks"][key] * 2 == keys["both"][key]
        keys["both_two_masks"][key] = keys["both"][key]
    assert keys["image"] == keys["video"] == keys["both"] == keys["both_two_masks"]


def test_the_video_mae_has_the_students_size_and_schedule():
    stages = stages_by_name(study())
    keys, student = stages["seed0/videomae/encoder"].keys, stages["seed0/both/encoder"].keys
    for key in SCHEDULE[:3]:
        assert keys[key] == student[key]
    for key in ("hidden_size", "num_hidden_layers", "num_frames", "image_size", "patch_size"):
        assert keys["config"][key] == student["config"][key]
    with pytest.raises(ValueError, match="warmup_epochs"):
        replace(study(), student={"num_train_epochs": 1})


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_every_stage_of_every_setting_resolves(path, tmp_path):
    assert f"recipes/study/run.py recipes/study/{path.name}" in path.read_text().split("\noutput")[0]
    arguments = study(path)
    SceneSettings(**arguments.scenes)
    for stage in {stage.kind: stage for stage in Plan(arguments, ROOT / "recipes").stages()}.values():
        recipe = tmp_path / RECIPE
        recipe.write_text(yaml.safe_dump(stage.keys))
        extra = [] if stage.kind == "probe" else ["--use_cpu", "--bf16=false"]
        parse_arguments([str(recipe), *extra], *kinds_of(stage.script))


def kinds_of(script: str) -> list:
    """The dataclasses that a script reads its keys with."""
    name, module = Path(script).stem, load_script(script)
    if name == "finetune":
        return list(module.KINDS)
    if name == "probe":
        return [SceneProbeArguments, ProbeArguments]
    first = module.StudentArguments if name == "distill" else module.ModelArguments
    return [first, DataArguments, MVDTrainingArguments]


def test_impossible_studies_are_refused():
    odd_batch = {**dict.fromkeys(SCHEDULE, 2), "per_device_train_batch_size": 15}
    for keys, message in (
        ({"arms": ["boht"]}, "boht"),
        ({"arms": []}, "arms"),
        ({"seeds": [1, 1]}, "seeds=.1, 1."),
        ({"processes": 0}, "processes=0"),
        ({"arms": list(ARMS), "scenes": {"train": 30}, "student": odd_batch}, "30 videos in batches of 15"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(study(), **keys)


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


def test_the_time_left_is_that_of_stages_of_the_same_kind():
    stages = [Stage(name, name[0], "", {}) for name in ("a1", "a2", "b1", "b2", "c1")]
    assert seconds_left(stages, {}, 2) is None
    assert seconds_left(stages, {"a1": 10.0, "b1": 30.0}, 2) == (10 + 30 + 20) / 2
    assert seconds_left(stages, {stage.name: 1.0 for stage in stages}, 2) == 0


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_study_continues_from_its_checkpoint_to_its_report(tmp_path):
    output = tmp_path / "smallest"
    keys = {
        **{"output": str(output), "seeds": [3], "processes": 1, "arms": ["scratch", "video"]},
        "scenes": {"train": 32, "validation": 16, "test": 16, "frames": 20, "height": 40, "width": 48},
        **{"video_teacher.num_train_epochs": 40, "student.num_train_epochs": 3, "finetune.num_train_epochs": 3},
        **{"training.save_steps": 10, "training.logging_steps": 1, "probe.probe_epochs": 1},
    }
    words = [f"--{key}={json.dumps(value)}" for key, value in keys.items()]
    command = [sys.executable, "recipes/study/run.py", "recipes/study/small.yaml", *words]
    teacher = output / "seed3" / "video_teacher"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: process.poll() is not None or list(teacher.glob("checkpoint-*/trainer_state.json")))
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    # the stage's own process notices that the study is gone
    wait_until(lambda: "Stopped by SIGTERM" in (teacher / "log.txt").read_text())
    assert not (teacher / RECORD).exists()

    def run_again() -> tuple[str, dict]:
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stderr, json.loads((output / "results.json").read_text())

    log, results = run_again()
    assert "Resuming from" in (teacher / "log.txt").read_text()
    assert "0 of 8 stages had finished" in log
    assert results["seeds"] == [3]
    assert set(results["accuracies"]["finetune"]["test"]["motion"]) == {"scratch", "video"}
    assert all(part for part in results["losses"].values())
    assert (output / "README.md").exists()
    log, again = run_again()
    assert "8 of 8 stages had finished" in log
    assert again == results


def wait_until(is_so, seconds: float = 120):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"the condition does not hold after {seconds} s"
        time.sleep(0.1)
