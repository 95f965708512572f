"""Configurations that the checkpoints named by recipes would have, without network and without weights."""

from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

from launching import ROOT
from mvd_hf import MVDConfig
from mvd_hf.arguments import read_yaml
from mvd_hf.hub import warm_start
from mvd_hf.training.costs import teacher_model_config


def stored_config(source: str, overrides: dict) -> MVDConfig:
    """The configuration of a model of the Hub, or of the output of another recipe."""
    if not source.startswith("outputs/"):
        return teacher_model_config(source)
    recipe = read_yaml(ROOT / "recipes" / Path(source).relative_to("outputs") / "distill.yaml")
    return MVDConfig.from_name(recipe["student"], **recipe.get("config", {}))


def without_weights() -> AbstractContextManager:
    """Within it a `StartingPoint` takes such a configuration."""
    return mock.patch.object(warm_start, "read_source_config", stored_config)
