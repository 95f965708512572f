"""Presets against the published tables: distillation and fine-tuning settings, sizes, teachers' grids and costs."""

import importlib.util
import inspect
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest
import torch
import yaml

from launching import ROOT
from mvd_hf import MVDConfig, MVDForFeatureDistillation, MVDTrainingArguments, TeacherConfig
from mvd_hf.arguments import parse_arguments, read_yaml
from mvd_hf.data.arguments import DataArguments, FinetuningClipArguments
from mvd_hf.data.augmentation import FinetuningAugmentation
from mvd_hf.data.mixup import Mixup
from mvd_hf.model.frame_sampling import PAPER_VIEWS
from mvd_hf.teachers.families import find_family
from mvd_hf.training.costs import teacher_model_config

RECIPES = ROOT / "recipes"
DISTILL = sorted([*RECIPES.glob("mvd-*/distill.yaml"), *RECIPES.glob("ablations/*.yaml")])
FINETUNE = sorted(RECIPES.glob("mvd-*/finetune_*.yaml"))
# per data set fine-tuned on in three splits without published settings: classes, top-1 reported from ViT-B and ViT-L
TRANSFER = {"ucf101": (101, ("97.0", "97.5")), "hmdb51": (51, ("76.4", "79.7"))}
OWN = [RECIPES / "own_videos" / f"{name}.yaml" for name in ("cpu", "one_gpu")]
READMES = [RECIPES / "README.md", *sorted({path.parent / "README.md" for path in DISTILL})]
NUM_PROCESSES = 8

# per published run: student, teachers, epochs, total batch, peak rate, floor, drop path, decoder (layers, width,
# heads), gradient checkpointing
DISTILLATION = {
    "mvd-vit-s-from-vit-b": ("s", "b", 400, 1024, 6e-4, 4e-4, 0.1, (2, 384, 6), False),
    "mvd-vit-s-from-vit-l": ("s", "l", 400, 1024, 6e-4, 4e-4, 0.1, (2, 384, 6), False),
    "mvd-vit-b-from-vit-b": ("b", "b", 400, 1024, 6e-4, 4e-4, 0.1, (2, 768, 12), False),
    "mvd-vit-b-from-vit-l": ("b", "l", 400, 1024, 6e-4, 4e-4, 0.1, (2, 768, 12), False),
    "mvd-vit-l-from-vit-l-400": ("l", "l", 400, 512, 3e-4, 2e-4, 0.1, (4, 512, 8), False),
    "mvd-vit-l-from-vit-l-800": ("l", "l", 800, 512, 3e-4, 2e-5, 0.1, (4, 512, 8), False),
    "mvd-vit-h-from-vit-h": ("h", "h", 800, 512, 3e-4, 2e-5, 0.2, (8, 640, 8), True),
}
# trainable parameters of the student: encoder, one decoder, together
PARAMETERS = {
    "mvd-vit-s-from-vit-b": (21_879_936, 3_992_832, 29_865_600),
    "mvd-vit-s-from-vit-l": (21_879_936, 4_091_392, 30_062_720),
    "mvd-vit-b-from-vit-b": (86_227_200, 15_357_696, 116_942_592),
    "mvd-vit-b-from-vit-l": (86_227_200, 15_554_560, 117_336_320),
    "mvd-vit-l-from-vit-l-400": (303_860_736, 13_659_136, 331_179_008),
    "mvd-vit-h-from-vit-h": (631_607_040, 41_025_280, 713_657_600),
}
# epochs, total batch, peak rate, floor, layer decay, drop path, dropout before the classifier, gradient checkpointing
SMALL_K400 = (150, 384, 7.5e-4, 1.5e-6, 0.75, 0.1, 0, False)
BASE_K400 = (75, 384, 7.5e-4, 1.5e-6, 0.75, 0.1, 0, False)
SMALL_SSV2 = (40, 384, 1.5e-3, 1.5e-6, 0.7, 0.1, 0, False)
BASE_SSV2 = (30, 384, 7.5e-4, 1.5e-6, 0.75, 0.1, 0, True)
LARGE_SSV2 = (30, 256, 5e-4, 1e-6, 0.75, 0.3, 0.5, True)
FINETUNING = {
    "mvd-vit-s-from-vit-b": {"k400": SMALL_K400, "ssv2": SMALL_SSV2},
    "mvd-vit-s-from-vit-l": {"k400": SMALL_K400, "ssv2": SMALL_SSV2},
    "mvd-vit-b-from-vit-b": {"k400": BASE_K400, "ssv2": BASE_SSV2},
    "mvd-vit-b-from-vit-l": {"k400": BASE_K400, "ssv2": BASE_SSV2},
    "mvd-vit-l-from-vit-l-400": {"k400": (50, 512, 2e-3, 2e-6, 0.75, 0.3, 0.5, False), "ssv2": LARGE_SSV2},
    "mvd-vit-l-from-vit-l-800": {"k400": (50, 512, 2e-3, 2e-6, 0.75, 0.3, 0.5, True), "ssv2": LARGE_SSV2},
    "mvd-vit-h-from-vit-h": {
        "k400": (50, 256, 1e-3, 1e-6, 0.75, 0.3, 0.5, True),
        "ssv2": (30, 128, 2.5e-4, 5e-6, 0.75, 0.3, 0.5, True),
    },
}
# per data set: classes, training frames, probability of a flip, clips and crops of the test
PROTOCOLS = {"k400": (400, "dense", 0.5, 5, 3), "ssv2": (174, "uniform", 0.0, 2, 3)}
# what clips of both data sets go through
AUGMENTATION = {
    "rand_augment": "rand-m7-n4-mstd0.5-inc1",
    "erasing": 0.25,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "switch_prob": 0.5,
    "label_smoothing": 0.1,
}
# top-1 reported after fine-tuning on Kinetics-400 and Something-Something v2
RESULTS = {
    "mvd-vit-s-from-vit-b": ("80.6", "70.7"),
    "mvd-vit-s-from-vit-l": ("81.0", "70.9"),
    "mvd-vit-b-from-vit-b": ("82.7", "72.5"),
    "mvd-vit-b-from-vit-l": ("83.4", "73.7"),
    "mvd-vit-l-from-vit-l-400": ("86.0", "76.1"),
    "mvd-vit-l-from-vit-l-800": ("86.4", "76.7"),
    "mvd-vit-h-from-vit-h": ("87.3", "77.3"),
    "vit-s-image-only": ("80.4", "69.4"),
    "vit-s-video-only": ("80.1", "70.0"),
    "vit-b-image-only": ("82.3", "71.4"),
    "vit-b-video-only": ("82.1", "71.8"),
}


def name_of(path: Path) -> str:
    return path.parent.name if path.parent.name != "ablations" else path.stem


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A connection is an error, and training is on eight processes, as the commands say."""

    def refuse(*args, **kwargs):
        raise AssertionError("A preset must resolve without network.")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(MVDTrainingArguments, "world_size", property(lambda self: NUM_PROCESSES))


@pytest.fixture
def load_recipe(monkeypatch):
    """Loads a script of recipes/, which may import its neighbours as when it is run."""
    monkeypatch.syspath_prepend(str(RECIPES))

    def load(name: str):
        spec = importlib.util.spec_from_file_location(f"{name}_preset_recipe", RECIPES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def resolve(load_recipe, path: Path, *arguments: str):
    """The keys of a distillation recipe, its data, its training and the student's configuration."""
    kinds = load_recipe("distill").StudentArguments, DataArguments, MVDTrainingArguments
    recipe, data, training = parse_arguments([str(path), *arguments, "--use_cpu"], *kinds)
    return recipe, data, training, MVDConfig.from_name(recipe.student, **recipe.config)


def commands(path: Path) -> list[list[str]]:
    """The commands in a README's code blocks, as words."""
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


def test_every_published_run_has_its_folder():
    assert {name_of(path) for path in DISTILL} >= set(RESULTS)
    assert {path.parent.name for path in FINETUNE} == set(DISTILLATION) == set(FINETUNING)
    assert all(readme.exists() for readme in READMES)


@pytest.mark.parametrize("path", DISTILL, ids=name_of)
def test_a_preset_resolves_and_its_teachers_fit_the_student(load_recipe, path):
    recipe, data, training, config = resolve(load_recipe, path)
    config.check_encoder()
    config.check_decoder()
    assert config.grid == (8, 14, 14)
    assert config.num_masked_patches == 1408
    assert (data.stride, data.crop) == (4, "multi_scale")
    assert config.teacher_dims.keys() == recipe.teachers.keys()
    for name, entry in recipe.teachers.items():
        teacher = TeacherConfig(**({"model": entry} if isinstance(entry, str) else entry))
        teacher_config = teacher_model_config(teacher.model)
        size = find_family(teacher_config, teacher.model).architecture(teacher_config, teacher.model)
        assert teacher_config.hidden_size == config.teacher_dims[name]
        pixels = teacher.image_size or size.patch_size * 14
        slots = 8 if size.num_frames == 1 else config.num_frames // size.tubelet_size
        assert (slots, pixels // size.patch_size, pixels % size.patch_size) == (8, 14, 0)
        assert teacher.frames in (None, "first_of_tubelet" if size.num_frames == 1 else "clip")
    assert training.bf16
    folder = path.parent / path.stem if path.parent.name == "ablations" else path.parent
    assert training.output_dir == f"outputs/{folder.relative_to(RECIPES)}"
    # an equal number of clips, however many a video gives
    assert training.total_batch_size * training.clips_per_video in (512, 1024)
    assert training.num_train_epochs * training.clips_per_video in (400, 800)
    assert training.warmup_epochs * training.clips_per_video == 40


@pytest.mark.parametrize("name", DISTILLATION)
def test_a_published_distillation_has_the_papers_numbers(load_recipe, name):
    student, teachers, epochs, batch, peak, floor, drop_path, decoder, checkpointing = DISTILLATION[name]
    recipe, _, training, config = resolve(load_recipe, RECIPES / name / "distill.yaml")
    assert recipe.student == f"mvd-{student}"
    assert recipe.teachers == {"image": f"teachers/mae-{teachers}", "video": f"teachers/videomae-{teachers}"}
    assert (training.num_train_epochs, training.schedule_epochs) == (epochs, epochs + 1)
    assert training.total_batch_size == batch
    assert (training.base_learning_rate, training.clips_per_video) == (1.5e-4, 1)
    assert (training.learning_rate, training.min_learning_rate) == pytest.approx((peak, floor))
    assert (training.warmup_epochs, training.weight_decay, training.max_grad_norm) == (40, 0.05, 0)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert bool(training.gradient_checkpointing) == checkpointing
    assert (config.drop_path_rate, config.mask_ratio, config.mask_type) == (drop_path, 0.9, "tube")
    sizes = config.decoder_num_hidden_layers, config.decoder_hidden_size, config.decoder_num_attention_heads
    assert sizes == decoder


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_student_has_the_published_number_of_parameters(load_recipe, name):
    *_, config = resolve(load_recipe, RECIPES / name / "distill.yaml")
    with torch.device("meta"):
        model = MVDForFeatureDistillation(config)
    encoder, decoder, together = PARAMETERS[name]

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

    assert count(model.mvd) == encoder
    assert {count(part) for part in model.decoders.values()} == {decoder}
    assert count(model) == together


@pytest.mark.parametrize("student", ["s", "b"])
@pytest.mark.parametrize("teacher", ["image", "video"])
def test_an_ablation_differs_from_the_run_with_both_teachers_in_nothing_else(student, teacher):
    one = read_yaml(RECIPES / "ablations" / f"vit-{student}-{teacher}-only.yaml")
    both = read_yaml(RECIPES / f"mvd-vit-{student}-from-vit-b" / "distill.yaml")
    assert one.pop("teachers") == {teacher: both.pop("teachers")[teacher]}
    assert one.pop("config") == {"teacher_dims": {teacher: 768}}
    del one["output_dir"], both["output_dir"]
    assert one == both


@pytest.mark.parametrize("path", FINETUNE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_published_fine_tuning_has_the_papers_numbers(load_recipe, path):
    data_set = path.stem.removeprefix("finetune_")
    epochs, batch, peak, floor, layer_decay, drop_path, dropout, checkpointing = FINETUNING[path.parent.name][data_set]
    num_labels, sampling, flip, clips, crops = PROTOCOLS[data_set]
    recipe, data, keys, _, _, training = parse_arguments([str(path), "--use_cpu"], *load_recipe("finetune").KINDS)
    distillation = read_yaml(path.parent / "distill.yaml")
    assert (recipe.model, recipe.method, recipe.test_weights) == (distillation["output_dir"], "full", "last")
    config = MVDConfig.from_name(distillation["student"], **recipe.config)
    assert (config.num_labels, config.drop_path_rate, config.classifier_dropout) == (num_labels, drop_path, dropout)
    assert (training.num_train_epochs, training.warmup_epochs, training.schedule_epochs) == (epochs, 5, None)
    assert training.total_batch_size == batch
    assert (training.learning_rate, training.min_learning_rate) == pytest.approx((peak, floor))
    assert (training.layer_decay, training.weight_decay, training.max_grad_norm) == (layer_decay, 0.05, 0)
    assert (training.adam_beta1, training.adam_beta2) == (0.9, 0.999)
    assert bool(training.gradient_checkpointing) == checkpointing
    # clips of one video count neither in the batch nor in the rate
    assert (keys.repeats, training.clips_per_video) == (2, 1)
    assert (keys.sampling, keys.flip, data.stride, config.num_frames) == (sampling, flip, 4, 16)
    assert (recipe.test_clips, recipe.test_crops) == (clips, crops) == PAPER_VIEWS[sampling]
    assert (keys.crop_scale, keys.mixup_prob, keys.cutmix_axes) == ((0.08, 1.0), 1.0, "spatial")
    assert (training.ema_decay, training.metric_for_best_model) == (None, "top1")
    assert {name: getattr(keys, name) for name in AUGMENTATION} == AUGMENTATION
    assert {data.dataset, data.eval_dataset} == {f"{data_set}_train.csv", f"{data_set}_val.csv"}


@pytest.mark.parametrize("name", TRANSFER)
def test_a_fine_tuning_on_three_splits_has_the_nearest_published_numbers(load_recipe, name):
    """VideoMAE's for UCF101; clips and augmentation as in MVD's program."""
    num_labels, results = TRANSFER[name]
    path = RECIPES / name / "finetune.yaml"
    recipe, data, keys, preparation, _, training = parse_arguments(
        [str(path), "--use_cpu"], *load_recipe("finetune").KINDS
    )
    assert (recipe.model, recipe.method) == ("outputs/mvd-vit-b-from-vit-l", "full")
    config = MVDConfig.from_name("mvd-b", **recipe.config)
    assert (config.num_labels, config.drop_path_rate, config.classifier_dropout) == (num_labels, 0.2, 0.5)
    assert (training.num_train_epochs, training.warmup_epochs, training.total_batch_size) == (100, 5, 128)
    assert (training.learning_rate, training.min_learning_rate) == pytest.approx((2.5e-4, 5e-6))
    assert (training.layer_decay, training.weight_decay, training.adam_beta2) == (0.7, 0.05, 0.999)
    assert training.gradient_checkpointing
    assert (keys.repeats, keys.sampling, keys.flip, data.stride) == (2, "dense", 0.5, 4)
    assert (recipe.test_clips, recipe.test_crops) == (5, 3)
    assert {key: getattr(keys, key) for key in AUGMENTATION} == AUGMENTATION
    assert (data.dataset, data.eval_dataset) == (f"data/{name}/train_1.csv", f"data/{name}/test_1.csv")
    assert keys.label_names == f"data/{name}/classes.txt"
    assert preparation.compare_content is False  # an official split is not changed
    comment = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    readme = (path.parent / "README.md").read_text(encoding="utf-8")
    assert "NOT published" in comment
    assert f"{results[1]} % top-1" in comment
    assert "The batch of 128 videos = 16 x 1 accumulation steps x 8 processes" in comment
    assert all(f"| {result} |" in readme for result in results)
    assert "not reproduced by us" in readme


def test_the_fine_tuning_keys_are_parameters_of_the_augmentation():
    parameters = {
        **inspect.signature(FinetuningAugmentation).parameters,
        **inspect.signature(Mixup).parameters,
    }
    for name, value in {**AUGMENTATION, "flip": 0.5}.items():
        assert parameters[name].default == value
    defaults = FinetuningClipArguments()
    assert {name: getattr(defaults, name) for name in AUGMENTATION} == AUGMENTATION


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_a_recipe_for_ones_own_videos_needs_nothing_but_the_videos(load_recipe, path, monkeypatch):
    monkeypatch.setattr(MVDTrainingArguments, "world_size", property(lambda self: 1))
    arguments = [str(path), "--dataset", "clips", "--use_cpu", "--bf16", "false"]
    recipe, _, keys, preparation, _, training = parse_arguments(arguments, *load_recipe("finetune").KINDS)
    assert recipe.model.startswith("MCG-NJU/videomae-")
    assert keys.sampling is None
    assert keys.flip is None
    assert preparation.validation_fraction == 0.2
    text = path.read_text(encoding="utf-8")
    assert "Not trained by us" in text
    assert "CC-BY-NC-4.0" in text
    assert f"python recipes/finetune.py recipes/own_videos/{path.name} --dataset folder" in text
    if path.stem == "cpu":
        assert (recipe.method, recipe.head) == ("linear_probe", "new")
        recipe, *_ = parse_arguments([*arguments, "--method", "probe_then_full"], *load_recipe("finetune").KINDS)
    assert (recipe.head, training.min_steps, training.total_batch_size) == ("probe", 400, 8)
    assert training.learning_rate == (5e-5 if path.stem == "one_gpu" else 1e-4)
    assert keys.mixup(4) is None


@pytest.mark.parametrize("has_gpu", [True, False])
def test_without_a_recipe_that_for_the_machine_is_taken(load_recipe, monkeypatch, has_gpu):
    finetune = load_recipe("finetune")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    recipe, *rest = finetune.with_recipe(["--dataset", "clips"])
    assert Path(recipe) in OWN
    assert (Path(recipe).stem, rest) == ("one_gpu" if has_gpu else "cpu", ["--dataset", "clips"])
    assert finetune.with_recipe(["a.yaml", "--dataset", "clips"]) == ["a.yaml", "--dataset", "clips"]


@pytest.mark.parametrize("path", [*DISTILL, *FINETUNE], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_comment_tells_batch_and_results(path):
    values = read_yaml(path)
    text = path.read_text(encoding="utf-8")
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    factors = values["per_device_train_batch_size"], values.get("gradient_accumulation_steps", 1)
    batch = factors[0] * factors[1] * NUM_PROCESSES * values.get("clips_per_video", 1)
    stated = re.search(
        r"The batch of (\d+) (?:videos |clips )?= (\d+) .*?(\d+) accumulation steps x 8 processes", comment
    )
    assert tuple(map(int, stated.groups())) == (batch, *factors)
    if name_of(path) in RESULTS:
        results = RESULTS[name_of(path)]
        wanted = results if path in DISTILL else results[:1] if path.stem.endswith("k400") else results[1:]
        assert all(f"{result} %" in comment for result in wanted)
        readme = (path.parent / "README.md").read_text(encoding="utf-8")
        assert all(result in readme for result in results)
        assert "not reproduced by us" in readme
    else:
        assert "Not trained by us" in comment


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_commands_of_a_readme_have_known_keys_and_files(load_recipe, readme):
    found = commands(readme)
    assert found
    distilled = set()
    for command in found:
        start = next(i for i, word in enumerate(command) if word.startswith("recipes/") and word.endswith(".py"))
        script, arguments = Path(command[start]).stem, command[start + 1 :]
        if script == "distill":
            resolve(load_recipe, ROOT / arguments[0], *arguments[1:])
            distilled.add(ROOT / arguments[0])
            launcher = ROOT / command[command.index("--config_file") + 1]
            assert yaml.safe_load(launcher.read_text())["num_processes"] == NUM_PROCESSES
        elif script == "finetune":
            finetune = load_recipe("finetune")
            arguments = [str(ROOT / word) if word.endswith(".yaml") else word for word in arguments]
            parse_arguments([*finetune.with_recipe(arguments), "--use_cpu", "--bf16=false"], *finetune.KINDS)
        elif script == "convert":
            parse_arguments(arguments, load_recipe("convert").ConversionArguments, first="checkpoint")
        else:
            assert script == "cost"
            assert all(list(ROOT.glob(pattern)) for pattern in arguments)
    if readme.parent != RECIPES:
        assert distilled == {path for path in DISTILL if path.parent == readme.parent}


def test_the_teachers_that_a_readme_converts_are_those_of_its_recipes():
    for readme in READMES:
        outputs = {command[-1] for command in commands(readme) if "recipes/convert.py" in command}
        entries = [read_yaml(path)["teachers"] for path in DISTILL if path.parent == readme.parent]
        local = {entry for teachers in entries for entry in teachers.values() if str(entry).startswith("teachers/")}
        assert outputs == local


def cost_table() -> tuple[str, list[str]]:
    """The page with the table of costs, and the recipes of the command that makes it."""
    (command,) = (words for words in commands(RECIPES / "README.md") if "recipes/mvd-*/distill.yaml" in words)
    recipes = [str(path) for pattern in command[2:] for path in sorted(Path().glob(pattern))]
    return (RECIPES / "README.md").read_text(encoding="utf-8"), recipes


def test_the_table_of_costs_has_every_recipe_and_its_hours(load_recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    text, recipes = cost_table()
    assert len(recipes) == len(DISTILL)
    cost = load_recipe("cost")
    assert cost.CostArguments().summary() in text
    *_, row = cost.table(["recipes/mvd-vit-s-from-vit-b/distill.yaml"], []).splitlines()
    numbers = [cell for cell in row.split("|") if cell.strip(" -")]
    (line,) = (line for line in text.splitlines() if line.startswith("| `mvd-vit-s-from-vit-b` |"))
    assert [cell for cell in line.split("|") if cell.strip(" -")] == numbers


@pytest.mark.long
def test_the_table_of_costs_is_what_the_command_says(load_recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    text, recipes = cost_table()
    assert load_recipe("cost").table(recipes, []) in text


def test_the_cost_of_one_recipe_is_told_part_by_part(load_recipe, caplog):
    caplog.set_level("INFO")
    path = str(RECIPES / "mvd-vit-b-from-vit-l" / "distill.yaml")
    cost = load_recipe("cost")
    cost.main([path, "--mfu", "0.2"])
    text = caplog.text
    assert all(part in text for part in ("decoder image", "projections video", "teacher video", "together"))
    _, parts, clips, _ = cost.recipe_cost([path])
    assert clips == 400 * 240_000
    flops = clips * sum(part.training for part in parts)
    assert f"{flops:.3g} FLOPs, {flops / 989e12 / 0.2 / 3600:.0f} GPU hours" in text
    assert "MFU 0.2" in text
    with pytest.raises(ValueError, match="at least one recipe"):
        cost.main(["--mfu", "0.2"])


def test_clips_of_one_video_count_in_the_cost(load_recipe):
    _, _, clips, _ = load_recipe("cost").recipe_cost([str(RECIPES / "mvd-vit-b-salt" / "distill.yaml")])
    assert clips == 200 * 240_000 * 2


def test_stored_targets_have_a_size_and_spare_passes_of_teachers(load_recipe, caplog):
    caplog.set_level("INFO")
    path, folder = str(RECIPES / "mvd-vit-s-from-vit-b" / "distill.yaml"), "--target_cache.folder=targets"
    cost = load_recipe("cost")
    _, before, clips, nothing = cost.recipe_cost([path])
    for views, names in ((800, None), (1, "video")):
        options = [folder, f"--target_cache.views={views}", *([f"--target_cache.teachers={names}"] if names else [])]
        _, parts, same, text = cost.recipe_cost([path, *options])
        assert (same, nothing) == (clips, "")
        for part, full in zip(parts, before, strict=True):
            is_stored = part.kind == "teacher" and names in (None, part.teacher)
            assert part.forward == pytest.approx(full.forward * (min(1, views / 400) if is_stored else 1), rel=1e-6)
        size = 1568 * 768 * 2 * (1 if names else 2)
        assert f"{size / 1e6:.1f} MB" in text
        assert f"{size * 240_000 * views / 1e9:,.0f} GB for {views} views" in text
    cost.main([path, folder])
    assert "Targets on disk: 4.8 MB per clip" in caplog.text
