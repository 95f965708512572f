"""Recipes of other methods: each resolves without network, says what it costs, and learns at a tiny size."""

import re
import shlex

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel

from launching import ROOT, launch
from mvd_hf import MVDConfig, MVDForFeatureDistillation, MVDForPixelReconstruction
from mvd_hf.arguments import parse_arguments, read_yaml
from mvd_hf.recipes import cost, distill, pretrain
from mvd_hf.training.costs import fit_to_teachers
from tiny_models import TINY

RECIPES = ROOT / "recipes"
NAMES = ("radio-style-vit-b", "salt-vit-b", "umt-vit-b", "vjepa2.1-style-vit-b")
# per method: decoded and visible teachers, summaries, masked patches, decoder layers
STUDENTS = {
    "radio-style-vit-b": ({"dino", "siglip", "vjepa"}, set(), {"dino", "siglip", "vjepa"}, 1176, 2),
    "salt-vit-b": ({"video"}, set(), set(), 1411, 12),
    "umt-vit-b": (set(), {"clip"}, set(), 1248, 2),
    "vjepa2.1-style-vit-b": ({"video"}, set(), set(), 1411, 2),
}
VISION = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
TEACHERS = {
    "openai/clip-vit-base-patch16": ("clip_vision_model", {"intermediate_size": 64}),
    "facebook/dinov2-base": ("dinov2", {}),
    "google/siglip2-base-patch16-224": ("siglip_vision_model", {"intermediate_size": 64}),
    "facebook/vjepa2-vitl-fpc64-256": ("vjepa2", {"crop_size": 32, "frames_per_clip": 4}),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_method_resolves_and_makes_the_heads_it_needs(name):
    arguments = [str(RECIPES / name / "distill.yaml"), "--use_cpu", "--bf16=false"]
    recipe, _, training = parse_arguments(arguments, *distill.KINDS)
    config = MVDConfig.from_name(recipe.student, **recipe.config)
    fit_to_teachers(config, recipe.teachers)
    with torch.device("meta"):
        model = MVDForFeatureDistillation(config)
    decoded, visible, summaries, masked, layers = STUDENTS[name]
    heads = model.encoder_heads
    assert set(model.decoders) == decoded
    assert set(heads.visible if heads else ()) == visible
    assert set(heads.summary if heads else ()) == summaries
    assert (config.num_masked_patches, config.decoder_num_hidden_layers) == (masked, layers)
    assert training.total_batch_size * 8 * training.masks_per_clip * training.clips_per_video == 1024


def test_the_first_stage_of_salt_has_the_masks_of_the_second():
    path = RECIPES / "salt-vit-b" / "pretrain.yaml"
    recipe, _, training = parse_arguments([str(path), "--use_cpu", "--bf16=false"], *pretrain.KINDS)
    second = read_yaml(RECIPES / "salt-vit-b" / "distill.yaml")
    assert recipe.config["mask_type"] == second["config"]["mask_type"] == "multi_block"
    assert training.output_dir == second["teachers"]["video"]["model"]


@pytest.mark.parametrize("name", NAMES)
def test_comment_and_readme_say_batch_source_and_what_is_not_the_papers(name):
    values, text = read_yaml(RECIPES / name / "distill.yaml"), (RECIPES / name / "distill.yaml").read_text()
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    batch, clips, steps = re.search(r"The batch of (\d+) = (\d+) clips .*?(\d+) accumulation steps", comment).groups()
    assert (int(clips), int(steps)) == (values["per_device_train_batch_size"], values["gradient_accumulation_steps"])
    assert int(batch) == int(clips) * int(steps) * 8 * values.get("masks_per_clip", 1)
    readme = " ".join((RECIPES / name / "README.md").read_text().split())
    assert "arxiv.org/abs/" in readme
    assert "Not the paper" in readme
    assert "Not trained by us" in comment


@pytest.mark.long
def test_the_table_of_costs_is_what_the_command_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (RECIPES / "README.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("python recipes/cost.py recipes/umt-vit-b"))
    recipes = shlex.split(line)[2:]
    assert sorted(recipes) == [f"recipes/{name}/distill.yaml" for name in NAMES]
    assert cost.table(recipes, []) in text


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory) -> dict[str, str]:
    """Folders of tiny models in place of those that the recipes name."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    torch.manual_seed(0)
    for name, (kind, fields) in TEACHERS.items():
        model = AutoModel.from_config(AutoConfig.for_model(kind, **{**VISION, **fields}))
        made[name] = str(folder / name)
        model.save_pretrained(made[name])
    teacher = MVDConfig.from_name("videomae-b", **TINY, num_frames=4, mask_type="multi_block")
    made["outputs/salt-vit-b/videomae-b"] = str(folder / "video")
    MVDForPixelReconstruction(teacher).save_pretrained(folder / "video")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_method_learns_at_a_tiny_size(name, tmp_path, tiny_models, toy_folder):
    values = read_yaml(RECIPES / name / "distill.yaml")
    for teacher in values["teachers"].values():
        teacher["model"] = tiny_models[teacher["model"]]
        if "layers" in teacher:
            teacher["layers"] = [1, 2, 3, 4]
    values["config"] |= {**TINY, "num_frames": 4, "drop_path_rate": 0.0}
    values |= {
        "dataset": toy_folder,
        "eval_split": "validation",
        "stride": 2,
        "bf16": False,
        "num_train_epochs": 15,
        "warmup_epochs": 2,
        "base_learning_rate": 0.04,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "dataloader_num_workers": 0,
        "save_strategy": "no",
        "disable_tqdm": True,
        "output_dir": str(tmp_path / "run"),
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    log = launch("distill.py", path)
    (lower,) = re.findall(r"Held-out loss: .* trained \((\d+) % lower\)", log)
    assert int(lower) >= 10
