"""Digests: short texts by which weights, and lists of names, are told apart."""

import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import safe_open


def hash_of_names(names: Iterable[str]) -> str:
    """A digest of names in their order."""
    digest = blake2b(digest_size=16)
    for name in names:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def hash_of_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A digest of named tensors in their order; numbers count as single precision, as which weights are tested."""
    digest = blake2b(digest_size=16)
    for name, value in tensors:
        value = value.float() if value.is_floating_point() else value
        digest.update(name.encode() + b"\0")
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_of_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """A digest of the weights of a model, from its `state_dict()`."""
    return hash_of_tensors(sorted(weights.items()))


def hash_of_checkpoint(folder: str | os.PathLike) -> str:
    """The digest of the weights in a folder: that of the model which is loaded from there."""
    places = {}
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            places |= dict.fromkeys(file.keys(), path)

    def read(name: str) -> torch.Tensor:
        with safe_open(places[name], "pt") as file:
            return file.get_tensor(name)

    return hash_of_tensors((name, read(name)) for name in sorted(places))
