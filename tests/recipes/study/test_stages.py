"""The study's stages: what belongs to an arm, what is run again and what is not, and how a killed run goes on."""

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
from mvd_hf.arguments import parse_arguments, read_yaml
from recipes.study.scenes import SceneSettings
from recipes.study.stages import (
    ARMS,
    RECIPE,
    RECORD,
    SCHEDULE,
    Plan,
    Stage,
    StudyArguments,
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
    names = list(stages_by_name(study(SETTINGS[0], "--seeds=[7]", "--arms=[scratch, video]")))
    assert names == [
        "seed7/video_teacher",
        *(f"seed7/scratch/{stage}" for stage in ("finetune_appearance", "finetune_motion", "probe")),
        *(f"seed7/video/{stage}" for stage in ("encoder", "finetune_appearance", "finetune_motion", "probe")),
    ]


def test_every_stage_comes_behind_those_it_needs_and_seeds_share_nothing():
    stages = stages_by_name(study(SETTINGS[0], "--seeds=[0, 1]"))
    names = list(stages)
    for number, stage in enumerate(stages.values()):
        assert set(stage.needs) <= set(names[:number])
        seed = stage.name.partition("/")[0]
        assert all(name.startswith(seed) for name in stage.needs)
        assert stage.keys["seed"] == int(seed.removeprefix("seed"))
        assert ("encoder" in stage.name) == (
            stage.kind.split()[0] in ("distill", "pretrain") and "/" in stage.name[6:]
        )


def test_students_differ_in_their_teachers_alone():
    stages = stages_by_name(study(SETTINGS[0], "--seeds=[0]", f"--arms={json.dumps(list(ARMS))}"))
    keys = {arm: dict(stages[f"seed0/{arm}/encoder"].keys) for arm in ARMS if ARMS[arm].teachers}
    for arm, of_arm in keys.items():
        assert tuple(of_arm.pop("teachers")) == ARMS[arm].teachers
        assert of_arm.pop("output_dir").endswith(f"seed0/{arm}/encoder")
    # as many updates of as many masked clips, at the same rates, from half the clips
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
    with pytest.raises(ValueError, match="student has no warmup_epochs"):
        replace(study(), student={"num_train_epochs": 1})


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_every_stage_of_every_setting_resolves(path, tmp_path):
    assert f"recipes/study/run.py recipes/study/{path.name}" in path.read_text().split("\noutput")[0]
    arguments = study(path)
    SceneSettings(**arguments.scenes)
    scripts = {}
    for stage in Plan(arguments, ROOT / "recipes").stages():
        scripts.setdefault(stage.kind, stage)
    for stage in scripts.values():
        kinds = kinds_of(stage.script)
        recipe = tmp_path / RECIPE
        recipe.write_text(yaml.safe_dump(stage.keys))
        extra = [] if stage.kind == "probe" else ["--use_cpu", "--bf16=false"]
        parse_arguments([str(recipe), *extra], *kinds)


def kinds_of(script: str) -> list:
    """The dataclasses that a script reads its keys with."""
    from mvd_hf import MVDTrainingArguments
    from mvd_hf.data.arguments import DataArguments
    from mvd_hf.evaluation.probing import ProbeArguments
    from recipes.study.probes import SceneProbeArguments
    from recipes.study.stages import load_script

    module = load_script(script)
    if Path(script).stem == "finetune":
        return list(module.KINDS)
    if Path(script).stem == "probe":
        return [SceneProbeArguments, ProbeArguments]
    first = module.StudentArguments if Path(script).stem == "distill" else module.ModelArguments
    return [first, DataArguments, MVDTrainingArguments]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"arms": ["boht"]}, "arms=.'boht'.: choose from scratch, videomae, image"),
        ({"arms": []}, "choose from"),
        ({"seeds": [1, 1]}, "seeds=.1, 1. must be different"),
        ({"processes": 0}, "processes=0 must be at least 1"),
        (
            {
                "arms": list(ARMS),
                "scenes": {"train": 30},
                "student": {**dict.fromkeys(SCHEDULE, 2), "per_device_train_batch_size": 15},
            },
            "in batches of 15, with 2 masks per clip, do not give",
        ),
    ],
)
def test_studies_that_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message):
        replace(study(), **keys)


@pytest.fixture
def script(tmp_path) -> str:
    """A recipe that notes its calls and fails where it is told to."""
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
    """Stages of which each needs the one before."""
    needs = [(), *((name,) for name in names)]
    keys = {"calls": str(tmp_path / "calls")}
    return [
        Stage(name, "note", script, {**keys, "name": name}, need) for name, need in zip(names, needs, strict=False)
    ]


def run(stages: list[Stage], tmp_path: Path):
    with ThreadPoolExecutor(1) as pool:
        run_stages(stages, tmp_path / "study", pool, 1)


def test_finished_stages_are_not_run_again(script, tmp_path, caplog):
    caplog.set_level("INFO")
    stages = chain(script, tmp_path, "a", "b", "c")
    run(stages[:1], tmp_path)
    run(stages, tmp_path)
    assert (tmp_path / "calls").read_text() == "a b c "
    assert "1 of 3 stages have ended before." in caplog.text
    assert "3 of 3 stages, 0 min; about 0 min left. c took" in caplog.text
    assert (tmp_path / "study" / "a" / "log.txt").read_text() == "this is a\n"


def test_a_failing_stage_is_named_and_gone_on_with(script, tmp_path):
    stages = chain(script, tmp_path, "a", "b")
    (tmp_path / "broken").touch()
    with pytest.raises(RuntimeError, match=r"a failed \(OSError: the disk is gone\); '.*log.txt' says more"):
        run(stages, tmp_path)
    assert not (tmp_path / "study" / "a" / RECORD).exists()
    (tmp_path / "broken").unlink()
    run(stages, tmp_path)
    assert (tmp_path / "calls").read_text() == "a b "


def test_a_stage_of_other_keys_is_not_taken_for_finished(script, tmp_path):
    (stage,) = chain(script, tmp_path, "a")
    run([stage], tmp_path)
    changed = replace(stage, keys={**stage.keys, "epochs": 3})
    with pytest.raises(ValueError, match="was made with another epochs: give another output, or delete"):
        run([changed], tmp_path)
    assert read_record(stage, tmp_path / "study")["keys"] == stage.keys
    assert read_yaml(tmp_path / "study" / "a" / RECIPE) == stage.keys


def test_a_stage_keeps_what_it_logged_and_drops_its_checkpoints(script, tmp_path):
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


@pytest.fixture(scope="module")
def smallest(tmp_path_factory) -> list[str]:
    """The command of a study of seconds."""
    output = tmp_path_factory.mktemp("study") / "smallest"
    keys = {
        "output": str(output),
        "seeds": [3],
        "processes": 1,
        "arms": ["scratch", "video"],
        "scenes": {"train": 32, "validation": 16, "test": 16, "frames": 20, "height": 40, "width": 48},
        "finetune.num_train_epochs": 3,
        "video_teacher.num_train_epochs": 40,
        "student.num_train_epochs": 3,
        "training.save_steps": 10,
        "training.logging_steps": 1,
        "probe.probe_epochs": 1,
    }
    arguments = [f"--{key}={json.dumps(value)}" for key, value in keys.items()]
    return [sys.executable, "recipes/study/run.py", "recipes/study/small.yaml", *arguments]


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_study_goes_on_from_its_checkpoint_to_its_report(smallest):
    output = Path(smallest[3].partition("=")[2].strip('"'))
    teacher = output / "seed3" / "video_teacher"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(smallest, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: process.poll() is not None or list(teacher.glob("checkpoint-*/trainer_state.json")))
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    # the stage's own process sees that no one waits for it
    wait_until(lambda: "Stopped by SIGTERM" in (teacher / "log.txt").read_text())
    assert not (teacher / RECORD).exists()

    result = subprocess.run(smallest, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Resuming from" in (teacher / "log.txt").read_text()
    assert "0 of 8 stages have ended before." in result.stderr
    assert "8 of 8 stages" in result.stderr
    results = json.loads((output / "results.json").read_text())
    assert results["seeds"] == [3]
    assert set(results["accuracies"]["finetune"]["test"]["motion"]) == {"scratch", "video"}
    assert all(part for part in results["losses"].values())
    assert "# What each teacher teaches" in (output / "README.md").read_text()

    again = subprocess.run(smallest, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "8 of 8 stages have ended before." in again.stderr
    assert json.loads((output / "results.json").read_text()) == results


def wait_until(is_so, seconds: float = 120):
    """Wait for something to happen."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.1)
