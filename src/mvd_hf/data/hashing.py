"""Hashes of weights and of lists of names, to detect changes."""

import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import safe_open


def hash_of_names(names: Iterable[str]) -> str:
    """Hash of names in their order."""
    found = blake2b(digest_size=16)
    for name in names:
        found.update(name.encode(errors="surrogateescape") + b"\0")
    return found.hexdigest()


def hash_of_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hash of named tensors in their order; floats are hashed as float32, the precision of evaluation."""
    found = blake2b(digest_size=16)
    for name, value in tensors:
        value = value.float() if value.is_floating_point() else value
        found.update(name.encode() + b"\0")
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def hash_of_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Hash of the weights of a model, from its `state_dict()`."""
    return hash_of_tensors(sorted(weights.items()))


def hash_of_checkpoint(folder: str | os.PathLike) -> str:
    """Hash of the weights in a folder, equal to that of the model loaded from it."""
    places = {}
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            places |= dict.fromkeys(file.keys(), path)

    def read(name: str) -> torch.Tensor:
        with safe_open(places[name], "pt") as file:
            return file.get_tensor(name)

    return hash_of_tensors((name, read(name)) for name in sorted(places))
