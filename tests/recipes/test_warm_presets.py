"""Recipes that start from a checkpoint, against the configuration that the checkpoint would have."""

import pytest
import torch

from launching import ROOT
from mvd_hf import MVDConfig
from mvd_hf.arguments import parse_arguments
from mvd_hf.data.arguments import DataArguments
from mvd_hf.hub.warm_start import StartingPoint
from mvd_hf.model.modeling_mvd import MVDForFeatureDistillation
from mvd_hf.recipes.distill import StudentArguments
from mvd_hf.training.arguments import MVDTrainingArguments
from mvd_hf.training.costs import distillation_parts
from starting_points import without_weights

RECIPES = ROOT / "recipes"


@pytest.mark.parametrize(
    ("name", "grid", "batch", "layers"),
    [
        ("mvd-vit-b-cooldown/336_pixels", (8, 21, 21), 1024, 12),
        ("mvd-vit-b-cooldown/32_frames", (16, 14, 14), 1024, 12),
        ("mvd-vit-b-six-layers/six_layers", (8, 14, 14), 1024, 6),
        ("continued_pretraining/student", (8, 14, 14), 256, 12),
    ],
)
def test_a_student_from_a_checkpoint_resolves_and_its_teachers_fit(name, grid, batch, layers):
    path = RECIPES / f"{name}.yaml"
    recipe, data, training = parse_arguments(
        [str(path), "--use_cpu"], StudentArguments, DataArguments, MVDTrainingArguments
    )
    with without_weights():
        config = StartingPoint(recipe.student, recipe.config, recipe.keep_layers).config
    assert config.grid == grid
    assert config.num_hidden_layers == layers
    assert config.teacher_dims.keys() == recipe.teachers.keys()  # so that its decoders are kept
    parts = distillation_parts(config, recipe.teachers)  # raises where patches do not match
    assert sum(part.kind == "teacher" for part in parts) == 2
    processes = 8 if batch == 1024 else 1
    assert training.total_batch_size * processes == batch
    assert data.stride == 4
    assert training.output_dir == f"outputs/{name.removesuffix('/six_layers')}"


def test_the_readmes_parameters_of_a_cut_student_are_right():
    config = MVDConfig.from_name("mvd-b", num_hidden_layers=6)
    with torch.device("meta"):
        encoder = MVDForFeatureDistillation(config).mvd
    assert round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e6, 1) == 43.7
    assert "43.7 million" in (RECIPES / "mvd-vit-b-six-layers" / "README.md").read_text()
