"""Digests of weights: of a model as of its checkpoint, whatever its files, precision and order."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvd_hf import MVDConfig, MVDForVideoClassification
from mvd_hf.data.hashing import hash_of_checkpoint, hash_of_names, hash_of_weights
from tiny_models import TINY


def test_names_are_told_apart_with_their_order():
    names = [["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a\udcff", "b"]]
    assert len({hash_of_names(part) for part in names}) == len(names)
    assert hash_of_names(iter(names[0])) == hash_of_names(names[0])


def test_models_are_told_apart_by_their_weights():
    models = [torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)]
    first, second = (hash_of_weights(model.state_dict()) for model in models)
    assert first != second
    models[1].load_state_dict(models[0].state_dict())
    assert hash_of_weights(models[1].state_dict()) == first
    assert hash_of_weights(dict(reversed(models[1].state_dict().items()))) == first
    assert hash_of_weights(models[0].half().state_dict()) != first


@pytest.mark.parametrize("size", ["5GB", "20KB"])
@pytest.mark.parametrize("pooling", [True, False])
def test_a_checkpoint_has_the_digest_of_the_model_that_is_loaded_from_it(tmp_path, size, pooling):
    config = MVDConfig.from_name("mvd-b", **TINY, num_frames=4, num_labels=3, use_attentive_pooling=pooling)
    MVDForVideoClassification(config).bfloat16().save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "20KB")
    loaded = MVDForVideoClassification.from_pretrained(tmp_path, dtype=torch.float32)
    digest = hash_of_checkpoint(tmp_path)
    assert digest == hash_of_weights(loaded.state_dict())
    path = next(tmp_path.glob("*.safetensors"))
    weights = load_file(path)
    weights[next(iter(weights))] += 1
    save_file(weights, path, metadata={"format": "pt"})
    assert hash_of_checkpoint(tmp_path) != digest
