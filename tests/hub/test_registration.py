"""`import mvd_hf` is light, and the Auto classes know MVD whenever they are imported."""

import subprocess
import sys

import pytest

from launching import run_fresh
from mvd_hf.hub import registration


def test_importing_the_package_imports_no_library_that_takes_seconds():
    heavy = ("torch", "torchvision", "transformers", "datasets", "pandas", "av", "matplotlib")
    code = f"import sys, mvd_hf; mvd_hf.__version__; print(sorted(set(sys.modules) & set({heavy})))"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("order", ["import mvd_hf\n{}", "{}\nimport mvd_hf"], ids=["before", "after"])
def test_auto_classes_and_pipelines_know_mvd_whichever_is_imported_first(order):
    imports = "from transformers import AutoConfig, AutoModel, AutoVideoProcessor, pipelines"
    code = """
model = AutoModel.from_config(AutoConfig.for_model("mvd", num_hidden_layers=1, hidden_size=48))
assert type(model).__module__ == "mvd_hf.model.modeling_mvd", type(model)
print([task for task in pipelines.PIPELINE_REGISTRY.get_supported_tasks() if task.startswith("video-")])
"""
    printed = run_fresh(order.format(imports) + code)
    assert all(task in printed for task in ("video-multiview-classification", "video-feature-extraction"))


def test_a_module_is_itself_after_its_registration(tmp_path, monkeypatch):
    (tmp_path / "watched_module.py").write_text("value = 1\n")
    (tmp_path / "other_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registration, "REGISTRATIONS", {"watched_module": lambda module: seen.append(module.value)})
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    seen = []
    registration.register_with_transformers()
    import other_module  # noqa: F401
    import watched_module

    assert seen == [1]
    assert watched_module.__spec__.loader is watched_module.__loader__
    assert not isinstance(watched_module.__loader__, registration.WatchedLoader)
    registration.register_with_transformers()  # the module is there already
    assert seen == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modeling", "detection", "video_processing", "pipelines"])
def test_any_of_the_model_files_can_be_imported_first(name):
    code = f"import mvd_hf.model.{name}_mvd; from transformers import AutoModel, AutoConfig\n"
    code += "print(type(AutoModel.from_config(AutoConfig.for_model('mvd', num_hidden_layers=1))).__name__)"
    assert "MVDModel" in run_fresh(code).splitlines()
