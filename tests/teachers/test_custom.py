"""Teachers of no known family: the documented example, and models with code of their repository."""

import re

import pytest
import torch

from launching import ROOT
from mvd_hf import TeacherConfig, load_teachers
from mvd_hf.hub.licenses import source_models
from mvd_hf.teachers.cache import CachedTeacher, TargetCacheConfig
from mvd_hf.training.costs import distillation_parts, fit_to_teachers
from mvd_hf.training.distillation import teacher_record

GRID = (2, 4, 4)
PAGE = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(# my_teachers\.py\n.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture
def my_teachers(tmp_path, monkeypatch):
    """The example of the documentation as a module, and a checkpoint of its network."""
    (tmp_path / "my_teachers.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_teachers", raising=False)
    module = __import__("my_teachers")
    network = module.Network().eval()
    torch.save({"model": network.state_dict()}, tmp_path / "network.pth")
    return network, {"model": str(tmp_path / "network.pth"), "family": "my_teachers:FAMILY"}


def clips(size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (2, 4, 3, size, size), dtype=torch.uint8)


def test_the_documented_example_teaches(my_teachers):
    network, entry = my_teachers
    assert len(EXAMPLE.splitlines()) <= 45
    clip = clips()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    frames = ((clip[:, ::2].flatten(0, 1) / 255) - mean) / std
    with torch.no_grad():
        expected = network(frames).reshape(2, 32, -1)
    features = load_teachers({"mine": entry}, GRID, 4)["mine"]({64: clip})
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)
    inner = load_teachers({"mine": entry | {"layer": 1, "norm": "pre"}}, GRID, 4)["mine"]
    assert len(inner.model.blocks) == 1
    assert inner({64: clip}).shape == features.shape


def test_the_cost_of_an_example_is_counted_and_its_targets_are_not_cached(my_teachers, tiny_student_config, tmp_path):
    _, entry = my_teachers
    fit_to_teachers(tiny_student_config, {"mine": entry})
    parts = distillation_parts(tiny_student_config, {"mine": entry})
    assert next(part.forward for part in parts if part.kind == "teacher") > 0
    with pytest.raises(ValueError, match="cannot be cached"):
        CachedTeacher(TeacherConfig(**entry), TargetCacheConfig(str(tmp_path)), GRID, 4)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("nowhere:FAMILY", "'nowhere:FAMILY' cannot be imported"),
        ("math:pi", "'math:pi' is a float"),
        ("math", "'math'"),
    ],
)
def test_families_that_cannot_be_imported_are_refused(family, message):
    with pytest.raises(ValueError, match=message):
        load_teachers({"mine": {"model": "x", "family": family}}, GRID, 4)


CONFIGURATION = """
from transformers import PreTrainedConfig

class CustomConfig(PreTrainedConfig):
    model_type = "custom-vit"
    hidden_size: int = 24
    num_hidden_layers: int = 2
    patch_size: int = 16
    image_size: int = 64
"""
MODEL = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from .configuration_custom import CustomConfig

class CustomModel(PreTrainedModel):
    config_class = CustomConfig

    def __init__(self, config):
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.hidden_size, 16, stride=16)
        self.layers = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size) for _ in range(2))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(self, pixel_values):
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = tokens + layer(tokens)
        return BaseModelOutput(last_hidden_state=self.norm(tokens))
"""
FAMILY = """
from mvd_hf.teachers import Normalization, TeacherFamily

FAMILY = TeacherFamily(
    layers="layers",
    final_norm="norm",
    norm="post",
    normalization=Normalization(0.5, 0.5),
    inputs=lambda pixels, patch_size: {"pixel_values": pixels[:, 0]},
    attention="eager",
)
"""


@pytest.fixture
def with_code(tmp_path, monkeypatch) -> str:
    """A folder with a model and its code."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "configuration_custom.py").write_text(CONFIGURATION)
    (folder / "modeling_custom.py").write_text(MODEL)
    (tmp_path / "custom_family.py").write_text(FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    from transformers import AutoConfig, AutoModel

    (folder / "config.json").write_text(
        '{"model_type": "custom-vit", "auto_map": {"AutoConfig": "configuration_custom.CustomConfig", '
        '"AutoModel": "modeling_custom.CustomModel"}}'
    )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    AutoModel.from_config(config, trust_remote_code=True).save_pretrained(folder)
    return str(folder)


def test_code_of_a_repository_runs_only_on_request_and_is_named(with_code, caplog):
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_teachers({"a": {"model": with_code, "family": "custom_family:FAMILY"}}, GRID, 4)
    entry = {"model": with_code, "family": "custom_family:FAMILY", "trust_remote_code": True}
    assert load_teachers({"a": entry}, GRID, 4)["a"]({64: clips()}).shape == (2, 32, 24)
    assert "runs code of its repository" in caplog.text
    record = {"sources": {"a": teacher_record(TeacherConfig(**entry))}}
    (source,) = source_models(record, None)
    assert "custom_family:FAMILY" in source.custom_code
    assert "code of its repository" in source.custom_code


@pytest.mark.parametrize("revision", [None, "main", "0123abc"])
def test_code_of_the_hub_needs_the_commit_that_was_read(revision):
    with pytest.raises(ValueError, match=rf"revision.*{revision}"):
        TeacherConfig("me/model", trust_remote_code=True, revision=revision)
    assert TeacherConfig("me/model", trust_remote_code=True, revision="0" * 40).revision == "0" * 40
