"""Saved folders name only code that is in them, wherever the model, configuration or processor came from."""

import json
from pathlib import Path

import pytest
import torch

from mvd_hf import MVDConfig, MVDForVideoClassification, MVDVideoProcessor
from mvd_hf.model import saving_mvd
from mvd_hf.model.saving_mvd import forget_absent_code

AUTO_MAP = {"AutoConfig": "configuration_mvd.MVDConfig", "AutoModel": "modeling_mvd.MVDModel"}
PIPELINES = {"video-feature-extraction": {"impl": "pipelines_mvd.Pipe", "pt": ["AutoModel"], "type": "video"}}
TINY = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def test_only_names_of_code_in_the_folder_stay(tmp_path):
    config = MVDConfig(**TINY, auto_map=AUTO_MAP, custom_pipelines=PIPELINES)
    forget_absent_code(config, tmp_path)
    assert not {"auto_map", "custom_pipelines"} & set(vars(config))
    for name in ("modeling_mvd.py", "pipelines_mvd.py"):
        (tmp_path / name).touch()
    elsewhere = {"AutoModelForPreTraining": "me/other--modeling_mvd.MVDModel"}
    config = MVDConfig(**TINY, auto_map=AUTO_MAP | elsewhere, custom_pipelines=PIPELINES)
    forget_absent_code(config, tmp_path)
    assert config.auto_map == {"AutoModel": "modeling_mvd.MVDModel"}
    assert config.custom_pipelines == PIPELINES


@pytest.mark.parametrize("with_code", [True, False])
def test_saved_models_and_processors_name_only_code_in_their_folder(with_code, tmp_path):
    published, saved = tmp_path / "published", tmp_path / "saved"
    config = MVDConfig(**TINY, num_frames=4)
    MVDForVideoClassification(config).save_pretrained(published)
    MVDVideoProcessor.for_model(config).save_pretrained(published)
    for name, key in (("config.json", "AutoConfig"), ("video_preprocessor_config.json", "AutoVideoProcessor")):
        content = read(published, name) | {"auto_map": {key: "video_processing_mvd.Class"}}
        (published / name).write_text(json.dumps(content))
    saved.mkdir()
    if with_code:
        (saved / "video_processing_mvd.py").touch()
    MVDForVideoClassification.from_pretrained(published).save_pretrained(saved)
    MVDVideoProcessor.from_pretrained(published).save_pretrained(saved)
    for name in ("config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        assert ("auto_map" in read(saved, name)) == with_code
    if with_code:
        pointer = read(saved, "preprocessor_config.json")["auto_map"]
        assert pointer == {"AutoImageProcessor": "video_processing_mvd.MVDVideoProcessor"}


def test_ordinary_checkpoints_carry_no_code(tmp_path):
    config = MVDConfig(**TINY, num_frames=4)
    MVDForVideoClassification(config).save_pretrained(tmp_path)
    MVDVideoProcessor.for_model(config).save_pretrained(tmp_path)
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "video_preprocessor_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert not any("auto_map" in path.read_text() for path in tmp_path.glob("*.json"))
    assert saving_mvd.CODE_ATTRIBUTES == ("auto_map", "custom_pipelines")


# uploads


def test_models_and_processors_are_pushed_privately(hub):
    config = MVDConfig(**TINY, num_frames=4)
    model, processor = MVDForVideoClassification(config), MVDVideoProcessor.for_model(config)
    model.push_to_hub("me/tiny")
    processor.push_to_hub("me/tiny")
    processor.push_to_hub("me/processor", private=None)
    model.push_to_hub("me/default", private=None)
    assert hub.model("me/default").private
    assert hub.model("me/tiny").private
    assert hub.model("me/processor").private
    assert {"model.safetensors", "config.json", "video_preprocessor_config.json"} <= set(hub.model("me/tiny").files())
    loaded = MVDForVideoClassification.from_pretrained("me/tiny")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert MVDVideoProcessor.from_pretrained("me/tiny").to_dict() == processor.to_dict()


def test_weights_are_not_pushed_publicly_without_a_license(hub):
    model = MVDForVideoClassification(MVDConfig(**TINY, num_frames=4))
    with pytest.raises(ValueError, match=r"license.*mvd_hf\.publish"):
        model.push_to_hub("me/public", private=False)
    assert not hub.repositories
    MVDVideoProcessor().push_to_hub("me/open", private=False)  # a processor holds no weights
    assert not hub.model("me/open").private
