"""Every documented command and snippet is run on the tiny job or resolved to its full configuration."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from launching import ROOT, launch, start
from mvd_hf import MVDConfig, MVDForActionDetection, MVDTrainingArguments, MVDVideoProcessor, TeacherConfig
from mvd_hf.arguments import find_recipe, keys_of, load_yaml, parse_arguments
from mvd_hf.arguments import resolve as resolve_yaml
from mvd_hf.cli import COMMANDS as COMMANDS_BY_NAME
from mvd_hf.data.arguments import DataArguments
from mvd_hf.data.toy import toy_videos, write_video
from mvd_hf.detection.ava import read_label_map
from mvd_hf.detection.ava_audit import AvaAuditArguments
from mvd_hf.detection.toy import ToyDetectionSettings, make_toy_detection_dataset
from mvd_hf.detection.trainer import DetectionArguments
from mvd_hf.hub.export import ExportArguments
from mvd_hf.hub.warm_start import StartingPoint
from mvd_hf.model.modeling_mvd import MVDLayer
from mvd_hf.visualization.demo import DemoArguments
from recipes.study.plan import StudyArguments
from starting_points import without_weights

DOCS = ROOT / "docs"
READMES = sorted([ROOT / "README.md", *DOCS.glob("*.md"), *ROOT.glob("recipes/*/README.md")])
TRAINING = [f"recipes/{name}.py" for name in ("pretrain", "distill", "finetune", "detect")]
RECIPES = sorted(ROOT.glob("recipes/*/*.yaml"))
# tests/recipes/study resolves the stages of the study
RECIPES = [path for path in RECIPES if path.parent.name not in ("accelerate", "study")]
DETECTION = [path for path in RECIPES if path.parent.name == "ava" or path.stem == "detect"]


def blocks(path: Path, language: str) -> list[str]:
    """Code blocks of a language, without the indentation of a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]


def commands(path: Path) -> list[list[str]]:
    """The Python commands of a README, as words, without `&&` and the launcher."""
    lines = [line for block in blocks(path, "bash") for line in block.replace("\\\n", " ").splitlines()]
    parts = [shlex.split(part) for line in lines for part in line.split("&&")]
    parts = [without_short_form(part) if part[:1] == ["mvd-hf"] else part for part in parts]
    return [part for part in parts if part and part[0] in ("python", "accelerate")]


def without_short_form(words: list[str]) -> list[str]:
    """The command of a script for `mvd-hf ...`."""
    if words[1] == "recipes":
        return []
    script, arguments = f"recipes/{COMMANDS_BY_NAME[words[1]]}", words[2:]
    if script in TRAINING and not arguments[0].startswith("--"):
        recipe = find_recipe(arguments[0], ROOT / script)
        arguments[0] = str(recipe.relative_to(ROOT) if recipe.is_absolute() else recipe)
    return ["python", script, *arguments]


COMMANDS = [(path, command) for path in READMES for command in commands(path)]


def script_and_arguments(command: list[str]) -> tuple[str, list[str]]:
    start = next(i for i, word in enumerate(command) if word.startswith("recipes/") and word.endswith(".py"))
    return command[start], command[start + 1 :]


def load_script(script: str):
    spec = importlib.util.spec_from_file_location(Path(script).stem + "_recipe", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def resolve(script: str, arguments: list[str]):
    """The arguments of a training recipe, and the configuration of its model."""
    module = load_script(script)
    kind = module.StudentArguments if script.endswith("distill.py") else module.ModelArguments
    arguments = [str(ROOT / word) if word.endswith(".yaml") else word for word in arguments]
    recipe, data, training = parse_arguments([*arguments, "--use_cpu"], kind, DataArguments, MVDTrainingArguments)
    source = recipe.student if script.endswith("distill.py") else recipe.model
    with without_weights():
        return recipe, data, training, StartingPoint(source, recipe.config, recipe.keep_layers).config


def resolve_detection(script: str, arguments: list[str]) -> list:
    """The arguments of training, checking or drawing action detection."""
    arguments = [str(ROOT / word) if word.endswith(".yaml") else word for word in arguments]
    if script == "recipes/audit.py":
        return parse_arguments(arguments, AvaAuditArguments)
    if script == "recipes/visualize.py":
        kind, _ = load_script(script).FIGURES[arguments[0]]
        return parse_arguments(arguments[1:], kind)
    kinds = load_script(script).DetectorArguments, DetectionArguments, MVDTrainingArguments
    return parse_arguments([*arguments, "--use_cpu"], *kinds)


@pytest.fixture(scope="module")
def tiny_job(tmp_path_factory):
    """A folder in which the README's first command was run with little to train on, and what it printed."""
    folder = tmp_path_factory.mktemp("fresh")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    words = next(command for path, command in COMMANDS if path == ROOT / "README.md")
    assert words == ["python", "recipes/tiny/run.py"]
    return folder, launch(ROOT / words[1], folder=folder, videos=32, test_videos=16, epochs=1, seeds=2)


def run_in(folder: Path, *words: str) -> tuple[int, str]:
    """The exit code of a script, or of code after `-c`, that runs in a folder without the Hub, and what it prints."""
    if words[0] == "-c":
        (folder / "snippet.py").write_text(words[1], encoding="utf-8")
        words = ("snippet.py", *words[2:])
    run = start(str(folder / words[0]), *words[1:], folder=folder)
    (code,) = run.wait()
    return code, run.text()


@pytest.mark.slow
def test_the_tiny_job_trains_every_stage(tiny_job):
    folder, log = tiny_job
    assert len(log.splitlines()) <= 50  # two screens, without progress bars
    assert max(map(len, log.splitlines())) <= 119
    assert "it/s" not in log
    assert len(re.findall(r"Held-out loss: .* trained", log)) == 3
    output = folder / "outputs" / "tiny"
    for name in ("mae", "videomae", "image_teacher", "video_teacher", "student", "classifier", "scratch-1"):
        assert (output / name / "model.safetensors").exists()
    assert list(tiny_accuracies(log)) == ["distilled student", "trained from scratch", "chance"]
    assert tiny_accuracies(log)["chance"] == 25
    assert len(re.findall(r"%   \(\d+\.\d, \d+\.\d\)$", log, re.MULTILINE)) == 2  # of both seeds
    with Image.open(output / "predictions.png") as picture:
        assert min(picture.size) > 500
    stage = (output / "logs" / "student.txt").read_text()
    assert re.search(r"TFLOPs per clip +forward +training\n.*teacher video +\d\.\d*[1-9]", stage, re.DOTALL)


def tiny_accuracies(log: str) -> dict[str, float]:
    """The table at the end of the tiny job, in percent."""
    return {name: float(value) for name, value in re.findall(r"^  (\w.*?) +(\d+\.\d) %", log, re.MULTILINE)}


@pytest.mark.slow
def test_the_tiny_job_ends_with_the_message_of_a_stage_that_fails(tmp_path):
    run = start(ROOT / "recipes/tiny/run.py", "--videos=16", "--test_videos=4", folder=tmp_path)
    assert run.wait() == [2]
    assert "'MAE' ended with exit code 2" in run.text()
    assert "has 16 samples, fewer than the total batch of 32" in run.text()


@pytest.mark.slow
@pytest.mark.long
def test_the_student_of_the_tiny_job_is_clearly_better_than_training_from_scratch(tmp_path):
    accuracy = tiny_accuracies(launch(ROOT / "recipes/tiny/run.py", folder=tmp_path))
    assert accuracy["distilled student"] >= accuracy["trained from scratch"] + 20


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/accelerate/*.yaml")), ids=lambda path: path.stem)
def test_every_launcher_file_is_read_as_it_is_meant(path):
    config = load_config_from_file(str(path))
    kinds = {"fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED", "one_gpu": "NO"}
    assert config.distributed_type == kinds.get(path.stem, "MULTI_GPU")
    assert config.mixed_precision == "bf16"
    assert config.num_processes == {"one_gpu": 1, "two_machines": 16}.get(path.stem, 8)
    if path.stem == "fsdp2":
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == MVDLayer.__name__
    if config.distributed_type == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])


@pytest.mark.parametrize("name", ["distill", "transcode"])
def test_the_scheduler_script_is_sound_shell_and_its_files_exist(name):
    script = ROOT / "recipes" / "accelerate" / f"{name}.slurm"
    subprocess.run(["bash", "-n", script], check=True)
    named = re.findall(r"recipes/\S+\.(?:yaml|py|slurm)", script.read_text())
    assert len(named) >= 3
    assert all((ROOT / name).exists() for name in named)


def test_the_readmes_classification_runs(tmp_path, monkeypatch, capsys):
    config = VideoMAEConfig(
        image_size=32,
        patch_size=16,
        num_frames=8,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=400,
        use_mean_pooling=True,
    )
    VideoMAEForVideoClassification(config).save_pretrained(tmp_path / "MCG-NJU/videomae-base-finetuned-kinetics")
    (video,) = toy_videos(1, 40, 40, 48, seed=0)
    write_video(tmp_path / "clip.mp4", video[-1])
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks(ROOT / "README.md", "python")
    exec(snippet, {})
    guesses = re.findall(r"0\.0\d LABEL_\d+\n", capsys.readouterr().out)
    assert len(guesses) == 5


def test_the_readme_is_short():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(text.split()) <= 1000


@pytest.mark.slow
def test_the_documented_python_runs(tiny_job):
    folder, _ = tiny_job
    snippets = [text for page in ("models.md", "finetuning.md") for text in blocks(DOCS / page, "python")]
    checks = [
        "assert features.shape == (1, 64, 64)",
        "assert (vector.shape, windows['features'].shape, windows['frames'].shape) == ((1, 64), (2, 4, 64), (2, 8))",
        "assert 0 < loss.item() < 1.6",
    ]
    for snippet, check in zip(snippets, checks, strict=True):
        code, printed = run_in(folder, "-c", f"{snippet}\n{check}")
        assert code == 0, printed[-3000:]


@pytest.mark.slow
def test_the_documented_figures_and_programs_are_made(tiny_job):
    folder, _ = tiny_job
    scripts = "recipes/visualize.py", "recipes/export.py"
    commands = [words for path, words in COMMANDS if path == DOCS / "figures.md" and words[1] in scripts]
    commands = [words for words in commands if words[2] != "detect"]
    assert len(commands) == 5
    for words in commands:
        code, printed = run_in(folder, *words[1:])
        assert code == 0, printed[-3000:]
    made = {path.name for path in (folder / "outputs" / "figures").glob("*")}
    names = "similarity", "tokens", "reconstruction", "attention"
    assert made >= {f"{name}.png" for name in names} | {"similarity.json", "tokens.mp4", "attention.npz"}
    assert (folder / "outputs" / "export" / "model.pt2").exists()


@pytest.mark.slow
def test_the_documented_python_for_action_detection_runs(tmp_path):
    data = make_toy_detection_dataset(tmp_path / "outputs/tiny/detection", ToyDetectionSettings(0, 3))
    recipe = yaml.safe_load((ROOT / "recipes/tiny/detect.yaml").read_text())
    names = read_label_map(data / "actions.pbtxt")
    config = MVDConfig.from_name("mvd-b", **recipe["config"], id2label={i - 1: name for i, name in names.items()})
    for part in (MVDForActionDetection(config), MVDVideoProcessor.for_detection(config)):
        part.save_pretrained(tmp_path / "outputs/tiny/detector")
    (snippet,) = blocks(DOCS / "detection.md", "python")
    checks = "\nassert outputs.logits.shape == (1, 2, 8)\nassert [len(p['labels']) for p in people] == [8, 8]"
    code, printed = run_in(tmp_path, "-c", snippet + checks)
    assert code == 0, printed[-3000:]


@pytest.mark.slow
def test_the_documented_publications_can_be_tried(tiny_job):
    folder, _ = tiny_job
    dry_runs = [words for path, words in COMMANDS if path == DOCS / "hub.md"]
    for words, expected in zip(dry_runs, ("modeling_mvd.py", "its class in the column `label`"), strict=True):
        code, printed = run_in(folder, *words[1:])
        assert code == 0, printed[-3000:]
        assert expected in printed
        assert "A dry run: nothing was uploaded" in printed


@pytest.mark.slow
def test_a_mistake_on_the_command_line_ends_with_a_clear_message(tiny_job):
    folder, _ = tiny_job
    for arguments, message in (
        (["--dataset=nowhere.csv", "--eval_split=null"], "There is no data set 'nowhere.csv'"),
        (["--dataset=nowhere.csv"], "give eval_dataset"),
        (["--num_train_epoch=3"], "Unknown key 'num_train_epoch'"),
        (["--config.mask_ratio=0.001"], "mask_ratio=0.001 masks 0 of 16 patches"),
        (["--per_device_train_batch_size=1000"], "fewer than the total batch of 1000"),
    ):
        code, printed = run_in(
            folder, "recipes/distill.py", "recipes/tiny/distill.yaml", "--output_dir=elsewhere", *arguments
        )
        assert code != 0
        assert message in printed


@pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else value.stem
)
def test_every_documented_command_can_be_resolved(path, command, tmp_path, monkeypatch):
    monkeypatch.setattr("mvd_hf.training.arguments.check_trackers", lambda names: None)  # they need not be installed
    script, arguments = script_and_arguments(command)
    if "my_recipe.yaml" in arguments:  # the one that the page shows
        (tmp_path / "my_recipe.yaml").write_text(blocks(path, "yaml")[0])
        arguments = [str(tmp_path / word) if word == "my_recipe.yaml" else word for word in arguments]
    assert (ROOT / script).exists()
    if script in ("recipes/distill.py", "recipes/pretrain.py"):
        resolve(script, arguments)
    elif script == "recipes/finetune.py":
        module = load_script(script)
        arguments = [str(ROOT / word) if word.endswith(".yaml") else word for word in arguments]
        parse_arguments([*module.with_recipe(arguments), "--use_cpu", "--bf16=false"], *module.KINDS)
    elif script in ("recipes/probe.py", "recipes/propagate.py"):
        parse_arguments(arguments, *load_script(script).KINDS)
    elif script == "recipes/audit.py" and "--ava" not in arguments:
        module = load_script(script)
        parse_arguments(arguments, module.AuditArguments, module.AuditSettings, first="dataset")
    elif script == "recipes/evaluate.py":
        module = load_script(script)
        parse_arguments(arguments, module.EvaluationArguments, first="model")
    elif script == "recipes/transcode.py":
        parse_arguments(arguments, load_script(script).TranscodeArguments, first="dataset")
    elif script == "recipes/prepare.py":
        module = load_script(script)
        parse_arguments(arguments, module.PrepareArguments, first="data_set")
    elif script == "recipes/three_splits.py":
        module = load_script(script)
        runs, _ = module.split_runs([str(ROOT / arguments[0]), *arguments[1:]])
        kinds = load_script("recipes/finetune.py").KINDS
        parse_arguments([runs.recipe, *runs.arguments, "--use_cpu", "--bf16=false"], *kinds)
        launcher = runs.launcher or []
        if "--config_file" in launcher:
            assert (ROOT / launcher[launcher.index("--config_file") + 1]).exists()
    elif script == "recipes/convert.py":
        module = load_script(script)
        parse_arguments(arguments, module.ConversionArguments, first="checkpoint")
    elif script == "recipes/demo.py":
        parse_arguments(arguments, DemoArguments, first="model")
    elif script == "recipes/export.py":
        parse_arguments(arguments, ExportArguments, first="model")
    elif script == "recipes/publish.py":
        what, *keys = arguments
        module = load_script(script)
        first, *kinds = {
            "model": ("folder", module.ModelArguments, module.CardDetails),
            "dataset": ("dataset", module.SourceArguments, module.DatasetDetails),
        }[what]
        to, *_ = parse_arguments(keys, module.UploadArguments, *kinds, first=first)
        assert to.dry_run
    elif script in ("recipes/detect.py", "recipes/audit.py", "recipes/visualize.py"):
        resolve_detection(script, arguments)
    elif script == "recipes/study/run.py":
        parse_arguments([str(ROOT / arguments[0]), *arguments[1:]], StudyArguments)
    else:
        bare = ("tiny/run.py", "tiny/run_detection.py", "teachers.py")
        assert script.removeprefix("recipes/") in bare
        assert not arguments
    if "--config_file" in command:
        config = ROOT / command[command.index("--config_file") + 1]
        assert yaml.safe_load(config.read_text())["num_processes"] >= 1


def test_every_stage_of_the_tiny_detection_job_resolves():
    module = load_script("recipes/tiny/run_detection.py")
    assert [words[0] for _, words in module.STAGES] == [
        "recipes/audit.py",
        "recipes/detect.py",
        "recipes/detect.py",
        "recipes/visualize.py",
    ]
    for _, (script, *arguments) in module.STAGES:
        resolve_detection(script, arguments)


def test_the_tiny_detection_job_runs_from_any_folder_and_ends_with_a_stage_that_fails(tmp_path, monkeypatch):
    module, started = load_script("recipes/tiny/run_detection.py"), []

    def run(words, env):
        started.append(words)
        return SimpleNamespace(returncode=7 * (len(started) == 2))

    monkeypatch.chdir(tmp_path)
    settings = ToyDetectionSettings(num_train=1, num_validation=1, height=32, width=32)
    monkeypatch.setattr(module, "make_toy_detection_dataset", lambda path: make_toy_detection_dataset(path, settings))
    monkeypatch.setattr(module.subprocess, "run", run)
    assert module.main([]) == 7
    assert len(started) == 2
    assert all(Path(words[1]).is_file() for words in started)
    assert Path(started[1][2]).is_file()
    assert (tmp_path / "outputs" / "tiny" / "detection" / "shuffled_boxes.csv").is_file()


@pytest.mark.parametrize("path", DETECTION, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_detection_recipe_resolves_and_opens_with_its_command(path):
    resolve_detection("recipes/detect.py", [str(path.relative_to(ROOT))])
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"recipes/detect.py {path.relative_to(ROOT)}" in " ".join(line.strip("# \\") for line in header)


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path not in DETECTION], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_recipe_resolves_and_opens_with_its_command(path):
    text = path.read_text()
    is_finetuning = "recipes/finetune.py" in text
    script = "distill.py" if "teachers:" in text else "finetune.py" if is_finetuning else "pretrain.py"
    header = " ".join(line.strip("# \\") for line in text.splitlines() if line.startswith("#"))
    assert f"recipes/{script} {path.relative_to(ROOT)}" in header
    if is_finetuning:
        parse_arguments(
            [str(path), "--use_cpu", "--bf16=false", "--dataset=x"], *load_script(f"recipes/{script}").KINDS
        )
        return
    recipe, _, _, config = resolve(f"recipes/{script}", [str(path.relative_to(ROOT))])
    assert config.num_masked_patches > 0
    for entry in getattr(recipe, "teachers", {}).values():
        assert TeacherConfig(**entry) if isinstance(entry, dict) else entry


@pytest.mark.parametrize("path", READMES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_documented_recipes_and_imports_are_known(path):
    known = set().union(*(keys_of(kind) for script in TRAINING for kind in load_script(script).KINDS))
    for text in blocks(path, "yaml"):
        block = resolve_yaml(load_yaml(text, str(path)))
        assert set(block) <= known
        for entry in block.get("teachers", {}).values():
            assert TeacherConfig(**entry) if isinstance(entry, dict) else entry
    for node in (node for block in blocks(path, "python") for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "mvd_hf":
            if node.module == "mvd_hf.evaluation.mteb_adapter" and importlib.util.find_spec("mteb") is None:
                continue  # needs an extra
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", READMES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_links_between_pages_lead_somewhere(path):
    for target, _, heading in re.findall(r"\]\((?!https?:)([^)#]*)(#?)([^)]*)\)", path.read_text(encoding="utf-8")):
        page = path.parent / target if target else path
        assert page.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_the_published_run_resolves_to_the_papers_numbers(monkeypatch):
    monkeypatch.setattr(MVDTrainingArguments, "world_size", property(lambda self: 8))
    _, data, training, config = resolve(
        "recipes/distill.py", ["recipes/mvd-vit-b-from-vit-l/distill.yaml", "--dataset=k400_train.csv"]
    )
    assert training.total_batch_size == 1024
    assert (training.learning_rate, training.min_learning_rate) == pytest.approx((6e-4, 4e-4))
    assert (training.num_train_epochs, training.schedule_epochs, training.warmup_epochs) == (400, 401, 40)
    assert (data.stride, data.crop) == (4, "multi_scale")
    assert (config.drop_path_rate, config.num_masked_patches) == (0.1, 1408)
    assert (config.decoder_num_hidden_layers, config.decoder_hidden_size) == (2, 768)
