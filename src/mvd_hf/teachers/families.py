"""Families of vision transformers that can teach: layers, tokens, positions and pixel statistics of each.

Letters in shapes: N inputs (clips, or images as clips of one frame), T frames, C channels, S x S pixels; t x h x w the
grid of patches, D their width. The models of all families give their patches in (time, row, column) order, behind
their class and register tokens.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, cached_file

from ..model.configuration_mvd import IMAGENET_MEAN, IMAGENET_STD
from ..model.patches_mvd import position_table, split_patches

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Normalization:
    """How pixels become a model's input: (byte * rescale_factor - mean) / std.

    Args:
        mean, std: one per channel, or one for all.
        rescale_factor: 1/255 for input from 0 to 1 before the normalisation.

    Raises:
        ValueError: if a standard deviation or the factor is 0, or there are neither 1 nor 3 of mean and std.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]
    rescale_factor: float = 1 / 255

    def __post_init__(self):
        for name in ("mean", "std"):
            value = getattr(self, name)
            values = tuple(value) if isinstance(value, Sequence) else (value,) * 3
            if len(values) != 3:
                raise ValueError(f"A {name} of {value} must be one number or one for each of the 3 channels.")
            object.__setattr__(self, name, values)
        if 0 in self.std or self.rescale_factor == 0:
            raise ValueError(f"std={self.std} and rescale_factor={self.rescale_factor} must not be 0.")

    def of_bytes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Factor and offset, each (3, 1, 1) in float64, from bytes to the model's input."""
        mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (self.mean, self.std))
        return self.rescale_factor / std, -mean / std

    def of_normalized(self, other: "Normalization") -> tuple[torch.Tensor, torch.Tensor]:
        """Factor and offset, each (3, 1, 1) in float64, from another model's input to this model's."""
        factor, offset = self.of_bytes()
        other_factor, other_offset = other.of_bytes()
        return factor / other_factor, offset - other_offset * factor / other_factor


IMAGENET = Normalization(IMAGENET_MEAN, IMAGENET_STD)
HALF = Normalization(IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
OPENAI_CLIP = Normalization(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)


def clip_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """Arguments of a video model."""
    return {"pixel_values": pixels}


def encoder_clip_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """Arguments of V-JEPA 2's encoder."""
    return {"pixel_values_videos": pixels}


def image_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """Arguments of an image model that takes every size (DINOv2, DINOv3)."""
    return {"pixel_values": pixels[:, 0]}


def interpolated_image_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """Arguments of an image model that takes other sizes than its own on request."""
    return {"pixel_values": pixels[:, 0], "interpolate_pos_encoding": True}


def unshuffled_image_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """Arguments of ViTMAE, which sorts its patches by noise: rising noise keeps their order."""
    count = (pixels.shape[-2] // patch_size) * (pixels.shape[-1] // patch_size)
    noise = torch.arange(count, device=pixels.device, dtype=torch.float32).expand(pixels.shape[0], -1)
    return {**interpolated_image_inputs(pixels, patch_size), "noise": noise}


def patch_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """Arguments of SigLIP 2 of the NaFlex kind: flat patches, channel last, and one grid for all images.

    The grid stays on the CPU, where the model reads it. Given once, its positions are resized once and broadcast.
    """
    patches = split_patches(pixels, 1, patch_size)[:, 0, :, :, 0]  # (N, h, w, C, patch, patch)
    return {
        "pixel_values": patches.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2),
        "pixel_attention_mask": None,
        "spatial_shapes": torch.tensor([patches.shape[1:3]]),
    }


def use_official_epsilon(model: nn.Module):
    """Give layer norms MAE's and VideoMAE's epsilon of 1e-6, where a configuration has transformers' default 1e-12."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and module.eps == 1e-12:
            module.eps = 1e-6


def fit_vit_mae(model: nn.Module, grid: Grid):
    """Let a ViTMAE mask nothing, and recompute its fixed positions for another grid at integer positions, as MVD does.

    Positions that are not the fixed code are left to the model, which interpolates them.
    """
    use_official_epsilon(model)
    model.config.mask_ratio = 0.0
    positions = model.embeddings.position_embeddings
    width, side = positions.shape[-1], math.isqrt(positions.shape[1] - 1)
    fixed = position_table("space", (1, side, side), width)
    if side * side == grid[1] * grid[2] or side * side != positions.shape[1] - 1:
        return
    if torch.allclose(positions[0, 1:].float(), fixed, atol=1e-2):
        table = position_table("space", (1, *grid[1:]), width).to(positions)
        table = torch.cat([positions[:, :1], table[None]], dim=1)
        model.embeddings.position_embeddings = nn.Parameter(table, requires_grad=False)


def fit_videomae(model: nn.Module, grid: Grid):
    """Recompute the fixed positions of a VideoMAE for a grid, and keep them where the model is."""
    use_official_epsilon(model)
    embeddings = model.embeddings
    patches = embeddings.patch_embeddings
    patches.image_size = tuple(size * patch for size, patch in zip(grid[1:], patches.patch_size, strict=True))
    patches.num_patches = embeddings.num_patches = math.prod(grid)
    del embeddings.position_embeddings
    table = position_table("flat", grid, model.config.hidden_size)[None]
    embeddings.register_buffer("position_embeddings", table, persistent=False)


def fit_vjepa2(model: nn.Module, grid: Grid):
    """Let V-JEPA 2's rotary positions count the rows and columns of this grid instead of the configured crop's."""
    if grid[1] != grid[2]:
        raise ValueError(f"V-JEPA 2 sees square grids of patches, not {grid[1]}x{grid[2]}.")
    for layer in model.layer:
        layer.attention.grid_size = grid[1]


@dataclass(frozen=True)
class TeacherFamily:
    """How to look through the models of one `config.model_type`.

    Args:
        layers, final_norm: names of its list of layers and of the norm behind them.
        norm: the features taken by default: `pre` the norm for models trained to reconstruct pixels, as in MVD, `post`
            for the others.
        normalization: of its pixels where its folder has no processor (`None`: in its configuration).
        sees_clips: whether its input is a clip, (N, T, C, S, S).
        has_class_token: whether its first token is a class token. Register tokens are in its configuration.
        inputs: arguments of its forward pass for normalised pixels (N, T, C, S, S) and its patch size.
        fit: prepares a model for a grid of patches, where its forward pass alone does not.
        encoder: name of the encoder in the class that is loaded, where that is more.
        unused: what of the model features do not need, and the value that switches it off.
        old_names: weights by a pattern of their published name, where transformers 5.17 does not know it.
        optional: endings of weights without influence on features, which a checkpoint may lack.
    """

    layers: str
    final_norm: str
    norm: str
    normalization: Normalization | None
    inputs: Callable[[torch.Tensor, int], dict]
    sees_clips: bool = False
    has_class_token: bool = False
    fit: Callable[[nn.Module, Grid], None] | None = None
    encoder: str | None = None
    unused: dict[str, object] = field(default_factory=dict)
    old_names: dict[str, str] | None = None
    optional: tuple[str, ...] = ("mask_token",)


DINO = {"final_norm": "layernorm", "norm": "post", "normalization": IMAGENET, "has_class_token": True}
CONTRASTIVE = {"layers": "encoder.layers", "final_norm": "post_layernorm", "norm": "post", "encoder": "vision_model"}
FAMILIES = {
    "mvd": TeacherFamily("layers", "layernorm", "pre", None, clip_inputs, sees_clips=True),
    "vit_mae": TeacherFamily(
        "layers", "layernorm", "pre", IMAGENET, unshuffled_image_inputs, has_class_token=True, fit=fit_vit_mae
    ),
    "videomae": TeacherFamily(
        "encoder.layer",
        "layernorm",
        "pre",
        IMAGENET,
        clip_inputs,
        sees_clips=True,
        fit=fit_videomae,
        old_names={
            r"attention\.attention\.q_bias": "attention.attention.query.bias",
            r"attention\.attention\.v_bias": "attention.attention.value.bias",
        },
        optional=("key.bias",),  # adds the same to all scores of a query, which the softmax takes out again
    ),
    "dinov2": TeacherFamily("encoder.layer", inputs=image_inputs, **DINO),
    "dinov2_with_registers": TeacherFamily("encoder.layer", inputs=image_inputs, **DINO),
    "dinov3_vit": TeacherFamily("model.layer", inputs=image_inputs, **(DINO | {"final_norm": "norm"})),
    "clip_vision_model": TeacherFamily(
        normalization=OPENAI_CLIP, inputs=interpolated_image_inputs, has_class_token=True, **CONTRASTIVE
    ),
    "siglip_vision_model": TeacherFamily(
        normalization=HALF, inputs=interpolated_image_inputs, unused={"use_head": False, "head": None}, **CONTRASTIVE
    ),
    "siglip2_vision_model": TeacherFamily(
        normalization=HALF, inputs=patch_inputs, unused={"use_head": False, "head": None}, **CONTRASTIVE
    ),
    "vjepa2": TeacherFamily(
        "layer",
        "layernorm",
        "post",
        IMAGENET,
        encoder_clip_inputs,
        sees_clips=True,
        fit=fit_vjepa2,
        encoder="encoder",
    ),
    "vit": TeacherFamily(
        "layers",
        "layernorm",
        "post",
        HALF,
        interpolated_image_inputs,
        has_class_token=True,
        unused={"pooler": None},
    ),
}
# models of images and text, of which the vision part teaches
WITH_TEXT = ("clip", "siglip", "siglip2")


def family_of(config: PreTrainedConfig, source: str) -> TeacherFamily:
    """The family of a model's configuration.

    Raises:
        ValueError: if it cannot teach, saying why.
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    if isinstance(getattr(config, "depths", None), Sequence):
        reason = "merges its patches from stage to stage (a hierarchical model), so that no token is left for each"
    elif not hasattr(config, "patch_size") and not hasattr(config, "vision_config"):
        reason = "does not cut images into patches (it is for text, say), so that it has no token for each"
    else:
        reason = "has an order of tokens that is not known here"
    known = ", ".join([*FAMILIES, *WITH_TEXT])
    raise ValueError(
        f"The teacher {source!r} is a model of the type {config.model_type!r}, which {reason}. Choose one of the "
        f"types {known}."
    )


def read_config(source: str) -> PreTrainedConfig:
    """Configuration of what teaches in a local folder or at a Hub id: of the vision part, where there is text too.

    Raises:
        ValueError: if there is no such model, it needs code of its own, or its type cannot teach.
    """
    cause = None
    try:
        stored, _ = PreTrainedConfig.get_config_dict(source)
    except OSError as error:
        stored, cause = {}, error
    if not stored:
        raise ValueError(
            f"The teacher {source!r} cannot be found: give a local folder with a config.json or the id of a model of "
            f"the Hub that you have access to{f' ({cause})' if cause else ''}."
        ) from cause
    kind = stored.get("model_type")
    if kind not in CONFIG_MAPPING:
        if "auto_map" in stored:
            raise ValueError(
                f"The teacher {source!r} needs code of its own (trust_remote_code), which is never run here. Choose a "
                "model whose class is part of transformers."
            )
        raise ValueError(f"The teacher {source!r} is of the type {kind!r}, which transformers does not know.")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"The configuration of the teacher {source!r} cannot be read: {error}") from error
    config = config.vision_config if kind in WITH_TEXT else config
    family_of(config, source)
    return config


def read_json(source: str, name: str) -> dict | None:
    """Content of a JSON file of a local folder or Hub id; `None` if it is not there."""
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def read_normalization(source: str, config: PreTrainedConfig) -> Normalization | None:
    """Normalisation that the processor of a local folder or Hub id says; `None` if there is none.

    Raises:
        ValueError: if that file cannot be read or makes no sense.
    """
    family = FAMILIES[config.model_type]
    kinds = ("video_processor", "image_processor") if family.sees_clips else ("image_processor",)
    files = (VIDEO_PROCESSOR_NAME, IMAGE_PROCESSOR_NAME) if family.sees_clips else (IMAGE_PROCESSOR_NAME,)
    try:
        together = read_json(source, PROCESSOR_NAME) or {}
        candidates = [*(together.get(kind) for kind in kinds), *(read_json(source, file) for file in files)]
        stored = next((candidate for candidate in candidates if candidate is not None), None)
        if stored is None:
            return None
        usual = {"image_mean": family.normalization.mean, "image_std": family.normalization.std}
        mean, std = (value if stored.get(name) is None else stored[name] for name, value in usual.items())
        if not stored.get("do_normalize", True):
            mean, std = 0.0, 1.0
        factor = stored.get("rescale_factor", 1 / 255) if stored.get("do_rescale", True) else 1.0
        return Normalization(mean, std, factor)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"The processor of the teacher {source!r} cannot be read: {error}") from error


@dataclass(frozen=True)
class InputSizes:
    """What a model's configuration says about its input.

    Args:
        patch_size: pixels of a patch's side.
        tubelet_size: frames of a patch.
        num_frames: frames it was trained with; 1 for an image model.
    """

    patch_size: int
    tubelet_size: int = 1
    num_frames: int = 1


def input_sizes(config: PreTrainedConfig, source: str) -> InputSizes:
    """Patch, tubelet and number of frames of a model.

    Raises:
        ValueError: if its patches are not square.
    """
    sides = {config.patch_size} if isinstance(config.patch_size, int) else set(config.patch_size)
    if len(sides) != 1:
        raise ValueError(f"The teacher {source!r} has patches of {config.patch_size} pixels; only square ones match.")
    if not FAMILIES[config.model_type].sees_clips:
        return InputSizes(sides.pop())
    num_frames = config.frames_per_clip if config.model_type == "vjepa2" else config.num_frames
    return InputSizes(sides.pop(), config.tubelet_size, num_frames)


def num_extra_tokens(config: PreTrainedConfig) -> int:
    """Class and register tokens in front of the patches."""
    has_class_token = getattr(config, "use_class_token", FAMILIES[config.model_type].has_class_token)
    return int(has_class_token) + getattr(config, "num_register_tokens", 0)


def take_encoder(model: PreTrainedModel, grid: Grid, num_layers: int) -> tuple[nn.Module, nn.Module | None]:
    """The encoder of a model for a grid of patches, cut off after its first layers and without its final norm.

    Args:
        model: changed in place.
        grid: patches of its input, (time, rows, columns).
        num_layers: how many layers stay.

    Returns:
        The encoder, and its final norm if it has one.
    """
    family = FAMILIES[getattr(model.config, "vision_config", model.config).model_type]
    encoder = getattr(model, family.encoder, model) if family.encoder else model
    for name, value in family.unused.items():
        setattr(encoder, name, value)
    if family.fit is not None:
        family.fit(encoder, grid)
    del encoder.get_submodule(family.layers)[num_layers:]
    final_norm = getattr(encoder, family.final_norm)
    setattr(encoder, family.final_norm, nn.Identity())
    return encoder, final_norm
