"""Tiny networks that many tests share: their sizes, their inputs, and how two of them are compared."""

import torch
from torch import nn

from mvd_hf import MVDConfig

TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}
NUM_PATCHES, NUM_MASKED = 32, 24


def tiny_config(**fields) -> MVDConfig:
    """A grid of 2 x 4 x 4 = 32 patches of 4 pixels, of which 24 are masked."""
    sizes = {
        "image_size": 16,
        "patch_size": 4,
        "num_frames": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "decoder_num_hidden_layers": 1,
        "mask_ratio": 0.75,
        "teacher_dims": {"image": 8, "video": 12},
        "num_labels": 3,
    }
    return MVDConfig(**(sizes | fields))


def tiny(model_class, *args, **fields):
    """A tiny model in evaluation mode, all its parameters drawn anew: none is zero or one, no two are equal."""
    model = model_class(tiny_config(**fields), *args).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def clips(batch: int = 2, frames: int = 4, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(batch, frames, 3, height, width)


def masks(batch: int = 2, num_masked: int = NUM_MASKED, length: int = NUM_PATCHES) -> torch.Tensor:
    """Another random mask for every clip."""
    return torch.stack([torch.randperm(length) < num_masked for _ in range(batch)])


def ids_of(mask: torch.Tensor) -> torch.Tensor:
    """Ascending positions of the True values of each row, found one by one."""
    return torch.tensor([[i for i, value in enumerate(row) if value] for row in mask.tolist()])


def some_of(mask: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` masked patches of one row and the last of the next."""
    chosen = torch.stack([ids[:count] if b % 2 == 0 else ids[-count:] for b, ids in enumerate(ids_of(mask))])
    return torch.zeros_like(mask).scatter(1, chosen, True)


def assert_same_weights(module: nn.Module, other: nn.Module):
    weights, others = module.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert [key for key in weights if not torch.equal(weights[key], others[key])] == []
