"""Real runs of the distillation recipe: batch splits, processes and crashes do not change what is learned."""

import csv
import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from launching import PATIENCE, ROOT, history, launch, launch_for_real, signal_when, start
from tiny_models import TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_teachers, toy_folder) -> Path:
    """A recipe of 6 epochs of 2 steps of 16 clips."""
    path = tmp_path_factory.mktemp("recipe") / "distill.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "student": "mvd-b",
                "config": {**TINY, "num_frames": 4, "drop_path_rate": 0.0},
                "teachers": tiny_teachers,
                "dataset": toy_folder,
                "stride": 2,
                "num_train_epochs": 6,
                "warmup_epochs": 1,
                "base_learning_rate": 0.05,
                "per_device_train_batch_size": 16,
                "dataloader_num_workers": 0,
                "logging_steps": 1,
                "save_steps": 3,
                "save_strategy": "steps",
                "disable_tqdm": True,
            }
        )
    )
    return path


def run(recipe: Path, output: Path, processes: int = 1, **options) -> str:
    return launch("distill.py", recipe, processes=processes, output_dir=output, **options)


def figures(output: Path) -> list[float]:
    keys = ("loss", "loss_image", "loss_video", "grad_norm", "learning_rate")
    return [entry[key] for entry in history(output).values() for key in keys]


@pytest.fixture(scope="module")
def reference(recipe, tmp_path_factory) -> Path:
    """One process, batches of 16."""
    output = tmp_path_factory.mktemp("reference")
    run(recipe, output)
    return output


def test_it_learns(reference):
    losses = [entry["loss"] for entry in history(reference).values()]
    assert len(losses) == 12
    assert losses[-1] < 0.8 * losses[0]


def test_how_a_batch_is_split_does_not_matter(recipe, reference, tmp_path):
    counts = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    log = launch_for_real("distill.py", recipe, processes=2, output_dir=tmp_path, **counts)
    # the run says how many processes there were: a launcher may quietly start one only
    assert "Effective batch 16 = 4 videos x 2 accumulation steps x 2 processes" in log
    assert figures(tmp_path) == pytest.approx(figures(reference), rel=1e-4)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, reference))
    assert max((ours[key] - theirs[key]).abs().max().item() for key in theirs) < 1e-4


def test_statistics_of_targets_and_loss_scales_are_those_of_one_process(recipe, tiny_teachers, tmp_path):
    norms = {"image": "standardize", "video": "phi_s"}
    options = {
        "teachers": {
            name: {"model": tiny_teachers[name], "target_norm": norm, "guides_masks": name == "image"}
            for name, norm in norms.items()
        },
        "config": {**TINY, "num_frames": 4, "drop_path_rate": 0.0, "mask_type": "attention"},
        "balance": "loss_scale",
        "norm_clips": 16,
        "num_train_epochs": 2,
    }
    path = tmp_path / "norms.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | options))
    for processes in (1, 2):
        run(path, tmp_path / str(processes), processes, per_device_train_batch_size=16 // processes)
    assert figures(tmp_path / "2") == pytest.approx(figures(tmp_path / "1"), rel=1e-4)
    one, two = (
        torch.load(tmp_path / folder / "checkpoint-3" / "target_state.pt", weights_only=True) for folder in ("1", "2")
    )
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    assert one["norms.image.count"] == 16 * 32 * (1 + 3)  # the fit and three steps, on all processes
    assert one["norms.video.count"] == 16 * 32


def evaluations(output: Path) -> list[float]:
    state = json.loads((output / "checkpoint-12" / "trainer_state.json").read_text())
    names = [f"eval_loss{part}" for part in ("", "_image", "_video")]
    return [entry[name] for entry in state["log_history"] if "eval_loss" in entry for name in names]


EVALUATED = {"eval_split": "validation", "eval_strategy": "epoch"}


@pytest.fixture(scope="module")
def evaluated(recipe, tmp_path_factory) -> Path:
    """One process whose data workers read the clips, evaluated after each epoch."""
    output = tmp_path_factory.mktemp("evaluated")
    run(recipe, output, per_device_eval_batch_size=8, dataloader_num_workers=2, **EVALUATED)
    return output


def test_neither_workers_nor_evaluations_change_training(reference, evaluated):
    assert figures(evaluated) == figures(reference)


def test_teachers_that_processes_divide_among_them_teach_and_evaluate_the_same(
    recipe, tiny_teachers, reference, evaluated, tmp_path
):
    sharded = {n: {"model": path, "shard": True, "frames_per_pass": 8} for n, path in tiny_teachers.items()}
    path = tmp_path / "sharded.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"teachers": sharded} | EVALUATED))
    options = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 3}
    log = run(path, tmp_path / "run", 2, **options)
    assert figures(tmp_path / "run") == pytest.approx(figures(reference), rel=1e-4)
    assert len(evaluations(evaluated)) >= 3 * 6
    assert evaluations(tmp_path / "run") == pytest.approx(evaluations(evaluated), rel=1e-4)
    for model in tiny_teachers.values():
        pattern = rf"Of the (\d+) weights of the teacher '{re.escape(model)}' this process holds (\d+)\."
        shares = [tuple(map(int, found)) for found in re.findall(pattern, log)]
        assert len(shares) == 2
        assert sum(own for _, own in shares) == shares[0][0]
        assert all(own < 0.6 * total for total, own in shares)


@pytest.fixture(scope="module")
def damaged(toy_folder, tmp_path_factory) -> Path:
    """A list of the 32 training videos, three of which cannot be read."""
    folder = tmp_path_factory.mktemp("damaged")
    videos = sorted(Path(toy_folder, "train").glob("*.mp4"))
    for i in (3, 17, 30):
        videos[i] = folder / f"bad {i}.mp4"
        videos[i].write_bytes(b"no video")
    path = folder / "train.csv"
    path.write_text("".join(f'"{video}",0\n' for video in videos))
    return path


def test_a_bad_video_ends_a_run_of_two_processes_by_name(recipe, damaged, tmp_path):
    options = {"dataset": damaged, "per_device_train_batch_size": 8, "dataloader_num_workers": 1}
    failed = start("distill.py", recipe, processes=2, output_dir=tmp_path, **options)
    assert any(failed.wait())
    assert "VideoReadError" in failed.text()
    assert "bad " in failed.text()


@pytest.mark.parametrize(
    ("rule", "processes", "batch", "workers"),
    [pytest.param("skip", 2, 8, 2, marks=pytest.mark.long), ("skip", 2, 1, 1), ("substitute", 1, 16, 2)],
)
def test_bad_videos_are_left_out_and_listed(recipe, damaged, tmp_path, rule, processes, batch, workers):
    log = run(
        recipe,
        tmp_path,
        processes,
        dataset=damaged,
        on_bad_video=rule,
        per_device_train_batch_size=batch,
        dataloader_num_workers=workers,
        num_train_epochs=2,
    )
    with (tmp_path / "bad_videos.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["file"]).name for row in rows} == {"bad 3.mp4", "bad 17.mp4", "bad 30.mp4"}
    assert {row["split"] for row in rows} == {"training"}
    times = sum(int(row["times"]) for row in rows)
    assert times == 6 if rule == "skip" else times >= 6
    assert f"3 videos could not be read, {times} times in all" in log
    last = list(history(tmp_path).values())[-1]
    assert last["bad_videos"] >= 3


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_stream_resumes_with_the_same_clips(recipe, tmp_path, toy_folder, processes):
    options = {
        "dataset": toy_folder,
        "streaming": "true",
        "stream_size": 32,
        "shuffle_buffer": 8,
        "per_device_train_batch_size": 16 // processes // 2,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 3 - processes,
        "num_train_epochs": 4,
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(recipe, whole, processes, **options)
    shutil.copytree(whole, cut)
    for name in ("checkpoint-6", "model.safetensors", "config.json"):  # as if killed between steps 3 and 6
        path = cut / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(cut / "checkpoint-8", ignore_errors=True)
    log = run(recipe, cut, processes, **options)
    assert f"Resuming from {cut / 'checkpoint-3'}" in log
    assert figures(cut) == figures(whole)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (cut, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("processes", "is_warm"),
    [pytest.param(1, True, marks=pytest.mark.long), (2, False)],
    ids=["one, warm start", "two"],
)
def test_a_killed_run_resumes_as_if_nothing_had_happened(recipe, reference, tmp_path, processes, is_warm):
    options = {
        "student": reference if is_warm else "mvd-b",
        "per_device_train_batch_size": 16 // processes // 2,
        "gradient_accumulation_steps": 2,
        "config.drop_path_rate": 0.2,
        "dataloader_num_workers": 2,
        "num_train_epochs": 15,
        "save_steps": 9,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(recipe, whole, processes, **options)
    complete = killed / "checkpoint-9" / "trainer_state.json"
    signal_when(complete, signal.SIGKILL, "distill.py", recipe, processes=processes, output_dir=killed, **options)
    assert not (killed / "model.safetensors").exists(), "it was killed too late"
    log = run(recipe, killed, processes, **options)
    assert "Resuming from" in log
    assert (f"Started from {reference}. New weights: none." in log) == is_warm
    assert history(killed).keys() == history(whole).keys()
    assert figures(killed) == figures(whole)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (killed, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_two_processes_share_stored_targets_and_go_on_exactly_after_a_kill(recipe, tmp_path):
    """With masks by the attention, which is stored as well."""
    by_attention = {"teachers.image.guides_masks": True, "config.mask_type": "attention"}
    options = {"per_device_train_batch_size": 4, "dataloader_num_workers": 1, "save_steps": 1, "num_train_epochs": 3}
    options |= by_attention
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(recipe, whole, 2, **options, **{"target_cache.folder": tmp_path / "a"})
    passes = [entry["teacher_passes"] for entry in history(whole).values()]
    assert passes == [4, 8, 12] + [16] * 9  # of an epoch's 4 steps, 2 processes and 2 teachers
    assert len(list((tmp_path / "a").rglob("*.safetensors"))) == 2 * 32
    options["target_cache.folder"] = tmp_path / "b"
    complete = killed / "checkpoint-2" / "trainer_state.json"
    signal_when(complete, signal.SIGKILL, "distill.py", recipe, processes=2, output_dir=killed, **options)
    assert not (killed / "model.safetensors").exists(), "it was killed too late"
    assert "Resuming from" in run(recipe, killed, 2, **options)
    assert figures(killed) == figures(whole)
    stored = [{path.name: path.read_bytes() for path in (tmp_path / each).rglob("*.safetensors")} for each in "ab"]
    assert stored[0] == stored[1]


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_as_if_nothing_had_happened(recipe, tmp_path, processes):
    options = {
        "per_device_train_batch_size": 16 // processes,
        "dataloader_num_workers": 2,
        "num_train_epochs": 24,
        "save_steps": 12,
        "logging_strategy": "no",
    }
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(recipe, whole, processes, **options)
    complete = stopped / "checkpoint-12" / "trainer_state.json"
    # as a scheduler does it: the processes and their data workers all get the signal
    codes = signal_when(
        complete, signal.SIGTERM, "distill.py", recipe, processes=processes, output_dir=stopped, **options
    )
    assert codes == [128 + signal.SIGTERM] * processes
    assert not (stopped / "model.safetensors").exists(), "it was stopped too late"
    steps = {int(path.name.split("-")[1]) for path in stopped.glob("checkpoint-*")}
    assert max(steps) > 12
    assert max(steps) not in (24, 36)
    assert (stopped / f"checkpoint-{max(steps)}" / "trainer_state.json").exists()
    log = run(recipe, stopped, processes, **options)
    assert f"Resuming from {stopped / f'checkpoint-{max(steps)}'}" in log
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (stopped, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_another_number_of_processes_goes_on_and_says_what_changes(recipe, reference, tmp_path):
    run(recipe, tmp_path, 2, per_device_train_batch_size=8, num_train_epochs=3, schedule_epochs=6)
    (tmp_path / "model.safetensors").unlink()
    log = run(recipe, tmp_path, 1)
    assert "Resuming with 16 x 1 x 1 processes (before: 8 x 1 x 2 processes): steps have the same videos" in log
    assert figures(tmp_path) == pytest.approx(figures(reference), rel=1e-4)


@pytest.mark.parametrize(
    ("content", "divided"),
    [
        pytest.param("FULL_STATE_DICT", False, marks=pytest.mark.long),
        pytest.param("SHARDED_STATE_DICT", False, marks=pytest.mark.long),
        ("SHARDED_STATE_DICT", True),
    ],
    ids=["full", "sharded", "sharded, teachers too"],
)
def test_sharded_processes_train_as_one_and_resume_exactly(
    recipe, tiny_teachers, reference, tmp_path, content, divided
):
    if divided:
        teachers = {name: {"model": path, "shard": True} for name, path in tiny_teachers.items()}
        values = yaml.safe_load(recipe.read_text()) | {"teachers": teachers}
        recipe = tmp_path / "divided.yaml"
        recipe.write_text(yaml.safe_dump(values))
    config = yaml.safe_load((ROOT / "recipes" / "accelerate" / "fsdp2.yaml").read_text())
    config |= {"num_processes": 2, "mixed_precision": "no", "main_process_port": 0, "use_cpu": True}
    config["fsdp_config"]["fsdp_state_dict_type"] = content
    (tmp_path / "fsdp2.yaml").write_text(yaml.safe_dump(config))
    words = [f"--config_file={tmp_path / 'fsdp2.yaml'}", str(ROOT / "tests" / "sharded.py")]
    launcher, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    sharding = {key: value for key, value in prepare_multi_gpu_env(launcher).items() if "FSDP" in key}
    options = {"output_dir": tmp_path / "run", "per_device_train_batch_size": 8, "variables": sharding}
    script = str(ROOT / "tests" / "sharded.py")

    def train():
        log = launch(script, ROOT / "recipes" / "distill.py", recipe, processes=2, **options)
        assert ("this process holds" in log) == divided
        return figures(tmp_path / "run"), load_file(tmp_path / "run" / "model.safetensors")

    losses, weights = train()
    assert losses == pytest.approx(figures(reference), rel=1e-4)
    theirs = load_file(reference / "model.safetensors")
    assert weights.keys() == theirs.keys()
    assert all(torch.allclose(weights[name], theirs[name], atol=1e-5) for name in theirs)
    for path in ("checkpoint-12", "checkpoint-9"):
        shutil.rmtree(tmp_path / "run" / path)
    (tmp_path / "run" / "model.safetensors").unlink()
    again, resumed = train()
    assert again == losses
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_ctrl_c_ends_two_processes_with_a_checkpoint_and_without_a_traceback(recipe, tmp_path):
    keys = {"processes": 2, "per_device_train_batch_size": 8, "num_train_epochs": 60, "save_steps": 10}
    run = start("distill.py", recipe, output_dir=tmp_path, dataloader_num_workers=1, **keys)
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "checkpoint-10" / "trainer_state.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.signal(signal.SIGINT)  # as a terminal does it, to all of its processes
    assert run.wait() == [128 + signal.SIGINT] * 2, run.text()[-3000:]
    assert run.text().count("Stopped by SIGINT after step") == 1
    assert "Traceback" not in run.text()
    assert max(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")) > 10
