"""The families of vision transformers that can teach, and how each becomes a frozen encoder of patches.

| `model_type` of the configuration | models | input | features by default |
|---|---|---|---|
| `mvd` | MVD; MAE and VideoMAE in our format | clips or images | before the final norm |
| `vit_mae` | MAE | images | before the final norm |
| `videomae` | VideoMAE | clips | before the final norm |
| `dinov2`, `dinov2_with_registers`, `dinov3_vit` | DINOv2, DINOv3 | images | after it |
| `clip_vision_model` | CLIP | images | after it |
| `siglip_vision_model`, `siglip2_vision_model` | SigLIP, SigLIP 2 (fixed sizes, NaFlex) | images | after it |
| `vit` | ViT classifiers | images | after it |
| `vjepa2` | V-JEPA 2 | clips | after it |

Of CLIP, SigLIP and SigLIP 2 with a text part, the vision part teaches. A new family is one entry of [`FAMILIES`].

Letters in shapes: N inputs (clips, or images as clips of one frame), T frames, C channels, S x S pixels; t x h x w the
grid of patches, D their width. Every model returns its patches in (time, row, column) order, behind its class and
register tokens.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, cached_file

from ..arguments import check_path
from ..model.configuration_mvd import IMAGENET_MEAN, IMAGENET_STD
from ..model.patches_mvd import position_table, split_patches

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Normalization:
    """How pixels become a model's input: (byte * rescale_factor - mean) / std.

    Args:
        mean, std: one number per channel, or one for all.
        rescale_factor: 1/255 if the mean and std are those of pixels from 0 to 1.

    Raises:
        ValueError: if a standard deviation or the factor is 0, or there are neither 1 nor 3 means and deviations.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]
    rescale_factor: float = 1 / 255

    def __post_init__(self):
        for name in ("mean", "std"):
            value = getattr(self, name)
            values = tuple(value) if isinstance(value, Sequence) else (value,) * 3
            if len(values) != 3:
                raise ValueError(f"{name}={value} must be one number or one for each of the 3 channels.")
            object.__setattr__(self, name, values)
        if 0 in self.std or self.rescale_factor == 0:
            raise ValueError(f"std={self.std} and rescale_factor={self.rescale_factor} must not be 0.")

    def from_bytes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and offset, each (3, 1, 1) in float64, from bytes to the model's input."""
        mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (self.mean, self.std))
        return self.rescale_factor / std, -mean / std

    def from_normalized(self, other: "Normalization") -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and offset, each (3, 1, 1) in float64, from pixels in another normalization to the model's input."""
        scale, offset = self.from_bytes()
        other_scale, other_offset = other.from_bytes()
        return scale / other_scale, offset - other_offset * scale / other_scale


IMAGENET = Normalization(IMAGENET_MEAN, IMAGENET_STD)
HALF = Normalization(IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
OPENAI_CLIP = Normalization(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)


# the arguments of each family's forward pass, from normalized pixels (N, T, C, S, S) and the size of a patch


def clip_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For a video model."""
    return {"pixel_values": pixels}


def vjepa2_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For the encoder of V-JEPA 2."""
    return {"pixel_values_videos": pixels}


def image_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For an image model that accepts every size (DINOv2, DINOv3)."""
    return {"pixel_values": pixels[:, 0]}


def interpolated_image_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For an image model that interpolates its positions on request."""
    return {"pixel_values": pixels[:, 0], "interpolate_pos_encoding": True}


def vit_mae_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For ViTMAE, which sorts its patches by noise: increasing noise keeps their order."""
    count = (pixels.shape[-2] // patch_size) * (pixels.shape[-1] // patch_size)
    noise = torch.arange(count, device=pixels.device, dtype=torch.float32).expand(pixels.shape[0], -1)
    return {**interpolated_image_inputs(pixels, patch_size), "noise": noise}


def naflex_inputs(pixels: torch.Tensor, patch_size: int) -> dict:
    """For SigLIP 2 of the NaFlex kind: flat patches, channels last.

    One grid stands for all images, so that the model resizes its positions once. It stays on the CPU, where the model
    reads it.
    """
    patches = split_patches(pixels, 1, patch_size)[:, 0, :, :, 0]  # (N, h, w, C, patch, patch)
    return {
        "pixel_values": patches.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2),
        "pixel_attention_mask": None,
        "spatial_shapes": torch.tensor([patches.shape[1:3]]),
    }


# changes to a model for a grid of patches, where its forward pass alone does not adapt


def use_official_epsilon(model: nn.Module):
    """Set the epsilon of layer norms to MAE's and VideoMAE's 1e-6 where transformers has its default of 1e-12."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and module.eps == 1e-12:
            module.eps = 1e-6


def fit_vit_mae(model: nn.Module, grid: Grid):
    """Mask nothing, and compute fixed positions for the grid at integer places, as MVD does.

    Positions that were trained are left to the model, which interpolates them.
    """
    use_official_epsilon(model)
    model.config.mask_ratio = 0.0
    positions = model.embeddings.position_embeddings
    width, side = positions.shape[-1], math.isqrt(positions.shape[1] - 1)
    if side * side == grid[1] * grid[2] or side * side != positions.shape[1] - 1:
        return
    fixed = position_table("space", (1, side, side), width)
    if positions.is_meta or torch.allclose(positions[0, 1:].float(), fixed, atol=1e-2):
        table = position_table("space", (1, *grid[1:]), width).to(positions)
        table = torch.cat([positions[:, :1], table[None]], dim=1)
        model.embeddings.position_embeddings = nn.Parameter(table, requires_grad=False)


def fit_videomae(model: nn.Module, grid: Grid):
    """Compute the fixed positions for the grid, as a buffer that moves with the model."""
    use_official_epsilon(model)
    embeddings = model.embeddings
    patches = embeddings.patch_embeddings
    patches.image_size = tuple(size * patch for size, patch in zip(grid[1:], patches.patch_size, strict=True))
    patches.num_patches = embeddings.num_patches = math.prod(grid)
    del embeddings.position_embeddings
    table = position_table("flat", grid, model.config.hidden_size)[None]
    embeddings.register_buffer("position_embeddings", table, persistent=False)


def fit_vjepa2(model: nn.Module, grid: Grid):
    """Let the rotary positions count the rows and columns of the grid instead of the configured crop's."""
    if grid[1] != grid[2]:
        raise ValueError(f"V-JEPA 2 needs a square grid of patches, not {grid[1]}x{grid[2]}.")
    for layer in model.layer:
        layer.attention.grid_size = grid[1]


@dataclass(frozen=True)
class InputSizes:
    """The input that a model's configuration describes.

    Args:
        patch_size: pixels of a patch's side.
        image_size: pixels of the side (rows) of an image or a frame.
        tubelet_size: frames of a patch.
        num_frames: frames the model was trained with; 1 for an image model.
    """

    patch_size: int
    image_size: int
    tubelet_size: int = 1
    num_frames: int = 1


@dataclass(frozen=True)
class TeacherFamily:
    """How the models of one `config.model_type` give a feature for each patch.

    Args:
        layers, final_norm: names of the encoder's list of layers and of the norm behind them.
        norm: the default of `TeacherConfig.norm`: `pre` for models trained to reconstruct pixels, as in MVD, `post`
            for the others.
        normalization: of the pixels if the checkpoint has no processor; `None` if the configuration has it.
        inputs: arguments of the forward pass for normalized pixels (N, T, C, S, S) and the patch size.
        frames_field: field of the configuration with the number of frames; `None` for image models.
        size_field: field of the configuration with the image size; without it `num_patches` says the size.
        has_class_token: whether the first token is a class token, if the configuration does not say so. Register
            tokens are always in the configuration.
        fit: prepares the encoder for a grid of patches, where the forward pass alone does not adapt to it.
        encoder: name of the encoder in the loaded model, if that has more parts.
        unused: parts of the encoder that features do not need, and the value that switches each off.
        old_names: replacements for published weight names that transformers 5.17 does not map, by pattern.
        optional: endings of the names of weights that may be missing, as they do not change the features.
    """

    layers: str
    final_norm: str
    norm: str
    normalization: Normalization | None
    inputs: Callable[[torch.Tensor, int], dict]
    frames_field: str | None = None
    size_field: str = "image_size"
    has_class_token: bool = False
    fit: Callable[[nn.Module, Grid], None] | None = None
    encoder: str | None = None
    unused: dict[str, object] = field(default_factory=dict)
    old_names: dict[str, str] | None = None
    optional: tuple[str, ...] = ("mask_token",)

    def sizes(self, config: PreTrainedConfig, source: str) -> InputSizes:
        """Patch, image, tubelet and number of frames of a model.

        Raises:
            ValueError: if its patches are not square.
        """
        sides = {config.patch_size} if isinstance(config.patch_size, int) else set(config.patch_size)
        if len(sides) != 1:
            raise ValueError(
                f"The teacher {source!r} has patches of {config.patch_size} pixels: choose a model with square ones."
            )
        patch_size = sides.pop()
        image_size = getattr(config, self.size_field, None) or math.isqrt(config.num_patches) * patch_size
        image_size = image_size if isinstance(image_size, int) else image_size[0]
        if self.frames_field is None:
            return InputSizes(patch_size, image_size)
        return InputSizes(patch_size, image_size, config.tubelet_size, getattr(config, self.frames_field))

    def num_extra_tokens(self, config: PreTrainedConfig) -> int:
        """Class and register tokens in front of the patches."""
        has_class_token = getattr(config, "use_class_token", self.has_class_token)
        return int(has_class_token) + getattr(config, "num_register_tokens", 0)

    def take_encoder(self, model: PreTrainedModel, grid: Grid, num_layers: int) -> tuple[nn.Module, nn.Module | None]:
        """The first layers of a model's encoder, fitted to a grid of patches, and its final norm if it has one.

        The model is changed in place: unused parts, later layers and the final norm are removed from it.
        """
        encoder = getattr(model, self.encoder, model) if self.encoder else model
        for name, value in self.unused.items():
            setattr(encoder, name, value)
        if self.fit is not None:
            self.fit(encoder, grid)
        del encoder.get_submodule(self.layers)[num_layers:]
        final_norm = getattr(encoder, self.final_norm)
        setattr(encoder, self.final_norm, nn.Identity())
        return encoder, final_norm


DINO = {
    "final_norm": "layernorm",
    "norm": "post",
    "normalization": IMAGENET,
    "inputs": image_inputs,
    "has_class_token": True,
}
CONTRASTIVE = {"layers": "encoder.layers", "final_norm": "post_layernorm", "norm": "post", "encoder": "vision_model"}
WITHOUT_HEAD = {"use_head": False, "head": None}
FAMILIES = {
    "mvd": TeacherFamily("layers", "layernorm", "pre", None, clip_inputs, frames_field="num_frames"),
    "vit_mae": TeacherFamily(
        "layers", "layernorm", "pre", IMAGENET, vit_mae_inputs, has_class_token=True, fit=fit_vit_mae
    ),
    "videomae": TeacherFamily(
        "encoder.layer",
        "layernorm",
        "pre",
        IMAGENET,
        clip_inputs,
        frames_field="num_frames",
        fit=fit_videomae,
        old_names={
            r"attention\.attention\.q_bias": "attention.attention.query.bias",
            r"attention\.attention\.v_bias": "attention.attention.value.bias",
        },
        optional=("key.bias",),  # adds the same to all scores of a query, which the softmax takes out again
    ),
    "dinov2": TeacherFamily("encoder.layer", **DINO),
    "dinov2_with_registers": TeacherFamily("encoder.layer", **DINO),
    "dinov3_vit": TeacherFamily("model.layer", **(DINO | {"final_norm": "norm"})),
    "clip_vision_model": TeacherFamily(
        normalization=OPENAI_CLIP, inputs=interpolated_image_inputs, has_class_token=True, **CONTRASTIVE
    ),
    "siglip_vision_model": TeacherFamily(
        normalization=HALF, inputs=interpolated_image_inputs, unused=WITHOUT_HEAD, **CONTRASTIVE
    ),
    "siglip2_vision_model": TeacherFamily(
        normalization=HALF, inputs=naflex_inputs, unused=WITHOUT_HEAD, **CONTRASTIVE
    ),
    "vit": TeacherFamily(
        "layers", "layernorm", "post", HALF, interpolated_image_inputs, has_class_token=True, unused={"pooler": None}
    ),
    "vjepa2": TeacherFamily(
        "layer",
        "layernorm",
        "post",
        IMAGENET,
        vjepa2_inputs,
        frames_field="frames_per_clip",
        size_field="crop_size",
        fit=fit_vjepa2,
        encoder="encoder",
    ),
}
# models of images and text, of which the vision part teaches
WITH_TEXT = ("clip", "siglip", "siglip2")


def find_family(config: PreTrainedConfig, source: str) -> TeacherFamily:
    """The family of a model's configuration.

    Raises:
        ValueError: if it cannot teach, with the reason.
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    if isinstance(getattr(config, "depths", None), Sequence):
        reason = "merges its patches from stage to stage (a hierarchical model), so no token is left for each"
    elif not hasattr(config, "patch_size") and not hasattr(config, "vision_config"):
        reason = "does not cut images into patches (a text model, for example), so it has no token for each"
    else:
        reason = "arranges its tokens in an unknown way"
    known = ", ".join([*FAMILIES, *WITH_TEXT])
    raise ValueError(
        f"The teacher {source!r} is a model of the type {config.model_type!r}, which {reason}. Choose one of the "
        f"types {known}."
    )


def read_config(source: str) -> PreTrainedConfig:
    """The configuration of the model that teaches, in a local folder or at a Hub id.

    Of a model with a text part it is the configuration of the vision part.

    Raises:
        ValueError: if there is no such model, it needs custom code, or its type cannot teach.
    """
    check_path(source, "model")
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
                f"The teacher {source!r} needs custom code (trust_remote_code), which is never run here. Choose a "
                "model whose class is part of transformers."
            )
        raise ValueError(f"The teacher {source!r} is of the type {kind!r}, which transformers does not know.")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"The configuration of the teacher {source!r} cannot be read: {error}") from error
    config = config.vision_config if kind in WITH_TEXT else config
    find_family(config, source)
    return config


def read_json(source: str, name: str) -> dict | None:
    """Content of a JSON file of a local folder or Hub id; `None` if there is no such file."""
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def read_normalization(source: str, config: PreTrainedConfig) -> Normalization | None:
    """The normalization that the processor of a local folder or Hub id applies; `None` without a processor.

    Raises:
        ValueError: if the processor's file cannot be read or makes no sense.
    """
    family = FAMILIES[config.model_type]
    kinds, files = ["image_processor"], [IMAGE_PROCESSOR_NAME]
    if family.frames_field is not None:
        kinds, files = ["video_processor", *kinds], [VIDEO_PROCESSOR_NAME, *files]
    try:
        together = read_json(source, PROCESSOR_NAME) or {}
        candidates = [*(together.get(kind) for kind in kinds), *(read_json(source, file) for file in files)]
        stored = next((candidate for candidate in candidates if candidate is not None), None)
        if stored is None:
            return None
        defaults = {"image_mean": family.normalization.mean, "image_std": family.normalization.std}
        mean, std = (value if stored.get(name) is None else stored[name] for name, value in defaults.items())
        if not stored.get("do_normalize", True):
            mean, std = 0.0, 1.0
        factor = stored.get("rescale_factor", 1 / 255) if stored.get("do_rescale", True) else 1.0
        return Normalization(mean, std, factor)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"The processor of the teacher {source!r} cannot be read: {error}") from error
