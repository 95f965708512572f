"""The plan of the study: what an arm needs, what arms have in common, and that all keys are known."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from launching import ROOT
from mvd_hf import MVDConfig, MVDTrainingArguments
from mvd_hf.arguments import parse_arguments
from mvd_hf.data.arguments import DataArguments
from mvd_hf.evaluation.comparison import ComparisonArguments, GridArguments
from mvd_hf.finetuning.preparation import PreparationArguments
from recipes.study.clips import VideoArguments
from recipes.study.plan import ARMS, SCHEDULE, Plan, StudyArguments
from recipes.study.stages import RECIPE, Stage, load_script

SETTINGS = sorted((ROOT / "recipes" / "study").glob("*.yaml"))


def study(path: Path = ROOT / "recipes/study/common.yaml", *arguments: str) -> StudyArguments:
    (parsed,) = parse_arguments([str(path), "--dataset", "videos", *arguments], StudyArguments)
    return parsed


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Plan:
    """The plan with a small image teacher of another kind."""
    MVDConfig.from_name("mae-b", image_size=64, hidden_size=96).save_pretrained(tmp_path / "mae")
    return Plan(study(SETTINGS[0], f"--image_teacher.model={tmp_path / 'mae'}"), ROOT / "recipes")


def by_name(plan: Plan) -> dict[str, Stage]:
    return {stage.name: stage for stage in plan.stages()}


def test_every_arm_is_fine_tuned_with_every_share_after_what_it_needs():
    plan = Plan(study(SETTINGS[0], "--seeds=[7]", "--arms=[scratch, video]", "--shares=[0.1, 1]"), ROOT / "recipes")
    stages = plan.stages()
    assert [stage.name for stage in stages] == [
        "seed7/video_teacher",
        "seed7/video/encoder",
        *(f"seed7/{arm}/finetune_{share}" for share in (10, 100) for arm in ("scratch", "video")),
        *(f"seed7/probe_{share}" for share in (10, 100)),
    ]
    assert by_name(plan)["seed7/scratch/finetune_10"].keys["method"] == "full"  # nothing is known before
    for number, stage in enumerate(stages):
        assert set(stage.needs) <= {before.name for before in stages[:number]}
        assert stage.keys["output_dir"] == str(plan.folder / stage.name)
    assert stages[-1].keys["models"].keys() == {"student_video", "video_teacher", "random"}


def test_students_differ_in_their_teachers_alone(plan):
    stages = by_name(plan)
    keys = {arm: dict(stages[f"seed0/{arm}/encoder"].keys) for arm in ARMS if ARMS[arm].teachers}
    for arm, of_arm in keys.items():
        assert tuple(of_arm.pop("teachers")) == ARMS[arm].teachers
        assert of_arm.pop("output_dir").endswith(f"seed0/{arm}/encoder")
    assert keys["image"] == keys["video"] == keys["both"]


def test_a_videomae_has_the_students_size_and_its_updates_or_its_compute(plan):
    stages = by_name(plan)
    student = stages["seed0/both/encoder"].keys
    equal, longer = (stages[f"seed0/{arm}/encoder"].keys for arm in ("videomae", "videomae_compute"))
    for key in SCHEDULE:
        assert equal.get(key) == student.get(key)
    for key in ("hidden_size", "num_hidden_layers", "num_frames", "image_size"):
        assert equal["config"][key] == student["config"][key]
    assert longer["num_train_epochs"] == pytest.approx(student["num_train_epochs"] * plan.compute_ratio(), abs=0.01)
    assert plan.compute_ratio() > 1.5
    masked = replace(plan.study, student=plan.study.student | {"masks_per_clip": 8})
    assert Plan(masked, ROOT / "recipes").compute_ratio() < plan.compute_ratio()  # teachers see a clip once


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_every_stage_of_every_setting_resolves(path, plan, tmp_path):
    assert f"recipes/study/run.py recipes/study/{path.name} --dataset folder" in path.read_text()
    VideoArguments(**study(path).videos)
    of_path = Plan(replace(study(path), image_teacher=plan.study.image_teacher, seeds=[0]), ROOT / "recipes")
    of_path.names = ["a", "b"]
    for stage in {stage.script: stage for stage in of_path.stages()}.values():
        recipe = tmp_path / RECIPE
        recipe.write_text(yaml.safe_dump(stage.keys))
        extra = [] if Path(stage.script).stem == "probe" else ["--use_cpu", "--bf16=false"]
        parse_arguments([str(recipe), *extra], *kinds_of(stage.script))


def kinds_of(script: str) -> list:
    """The dataclasses that a script reads its keys with."""
    name, module = Path(script).stem, load_script(script)
    if name == "finetune":
        return list(module.KINDS)
    if name == "probe":
        split = [DataArguments, module.LabelArguments, PreparationArguments]
        return [ComparisonArguments, GridArguments, *split]
    return [
        module.StudentArguments if name == "distill" else module.ModelArguments,
        DataArguments,
        MVDTrainingArguments,
    ]


def test_impossible_studies_are_refused():
    for keys, message in (
        ({"dataset": ""}, "--dataset"),
        ({"evaluate_on": "train"}, "evaluate_on='train'"),
        ({"arms": ["boht"]}, "boht"),
        ({"seeds": [1, 1]}, "seeds=.1, 1."),
        ({"shares": [0.0, 1.0]}, "shares=.0.0, 1.0."),
        ({"processes": 0}, "processes=0"),
        ({"student": {"num_train_epochs": 1}}, "warmup_epochs"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(study(), **keys)
