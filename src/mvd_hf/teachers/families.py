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
| `videoprism_vision_model` | VideoPrism | clips | after it |
| `ijepa` | I-JEPA | images | after it |
| `tipsv2_vision_model` | TIPSv2 | images | after it |
| `radio` | C-RADIO | images | it has no final norm |
| `timm_wrapper` | vision transformers of timm: EVA, Perception Encoder, ... (`pip install timm`) | images | after it |

Of CLIP, SigLIP, SigLIP 2 and TIPSv2 with a text part, the vision part teaches. A new family is one entry of
[`FAMILIES`]. Every model returns its patches in (time, row, column) order, behind its class and
register tokens.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig
from transformers.utils import is_timm_available

from ..arguments import check_path
from ..model.configuration_mvd import Size, compact_size
from .inputs import (
    Grid,
    clip_inputs,
    fit_timm,
    fit_videomae,
    fit_videoprism,
    fit_vit_mae,
    fit_vjepa2,
    image_inputs,
    interpolated_image_inputs,
    naflex_inputs,
    timm_inputs,
    video_inputs,
    vit_mae_inputs,
)
from .normalization import HALF, IMAGENET, OPENAI_CLIP, UNIT_RANGE, Normalization


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model that can teach.

    Args:
        patch_size: pixels of a patch's side.
        image_size: pixels of an image or a frame: the side of a square, or (height, width).
        hidden_size: width of its features.
        num_hidden_layers: layers of its encoder.
        tubelet_size: frames of a patch.
        num_frames: frames the model was trained with; 1 for an image model.
        num_class_tokens, num_register_tokens: tokens in front of the patches.
    """

    patch_size: int
    image_size: Size
    hidden_size: int
    num_hidden_layers: int
    tubelet_size: int = 1
    num_frames: int = 1
    num_class_tokens: int = 0
    num_register_tokens: int = 0

    @property
    def num_extra_tokens(self) -> int:
        """Class and register tokens in front of the patches."""
        return self.num_class_tokens + self.num_register_tokens


# for families whose configuration has other names for its sizes or statistics


def radio_architecture(config: PreTrainedConfig) -> Architecture:
    """Of C-RADIO, whose class tokens give the summaries of its own teachers."""
    sizes = config.patch_size, config.image_size, config.hidden_size, config.num_hidden_layers
    return Architecture(*sizes, num_class_tokens=config.num_cls_tokens, num_register_tokens=config.num_registers)


def videoprism_architecture(config: PreTrainedConfig) -> Architecture:
    """Of VideoPrism; its layers are those of its temporal encoder, behind all layers of the spatial one."""
    tubelet_size, patch_size, _ = config.tubelet_size
    sizes = patch_size, compact_size(config.image_size), config.hidden_size, config.num_temporal_layers
    return Architecture(*sizes, tubelet_size=tubelet_size, num_frames=config.num_frames)


def timm_architecture(config: PreTrainedConfig) -> Architecture:
    """Of a vision transformer of timm, which is built without weights to read its sizes.

    Raises:
        ValueError: if timm is not installed, or the model has no token for each patch.
    """
    if not is_timm_available():
        raise ValueError(f"The teacher's architecture {config.architecture!r} is one of timm: pip install timm.")
    with torch.device("meta"):
        model = AutoModel.from_config(config).timm_model
    missing = [name for name in ("blocks", "norm", "num_prefix_tokens", "set_input_size") if not hasattr(model, name)]
    if missing:
        raise ValueError(
            f"The teacher's architecture {config.architecture!r} is no plain vision transformer of timm (it has no "
            f"{', '.join(missing)}): choose one whose tokens stand for the patches of one grid."
        )
    embeddings, num_class_tokens = model.patch_embed, int(getattr(model, "cls_token", None) is not None)
    return Architecture(
        embeddings.patch_size[0],
        compact_size(embeddings.img_size),
        model.embed_dim,
        len(model.blocks),
        num_class_tokens=num_class_tokens,
        num_register_tokens=model.num_prefix_tokens - num_class_tokens,
    )


def own_statistics(config: PreTrainedConfig) -> Normalization:
    """Of our models."""
    return Normalization(config.image_mean, config.image_std)


def radio_statistics(config: PreTrainedConfig) -> Normalization:
    """Of C-RADIO's input conditioner, which is replaced: its statistics are applied in float32 whatever the dtype."""
    return Normalization(config.norm_mean, config.norm_std)


def timm_statistics(config: PreTrainedConfig) -> Normalization:
    """Of a model of timm; ImageNet's if its configuration has none, as in timm."""
    stored = getattr(config, "pretrained_cfg", None) or {}
    return Normalization(stored.get("mean", IMAGENET.mean), stored.get("std", IMAGENET.std))


@dataclass(frozen=True)
class TeacherFamily:
    """How models of one kind give a feature for each patch; `TeacherConfig.family` takes one of yours.

    The forward pass returns tokens (N, [extra +] t*h*w, D), or an output that has them as `last_hidden_state`.

    Args:
        layers, final_norm: names of the encoder's list of layers and of the norm behind them, if there is one.
        norm: the default of `TeacherConfig.norm`: `pre` for models trained to reconstruct pixels, as in MVD, `post`
            for the others; models without a final norm have no other choice than `pre`.
        normalization: of the pixels if the checkpoint has no processor; or a function that reads it from the
            configuration (or the model), whatever the processor says.
        inputs: arguments of the forward pass for normalized pixels (N, T, C, H, W) and the patch size.
        frames_field: field of the configuration with the number of frames; `None` for image models.
        size_field: field of the configuration with the image size; without it `num_patches` says the size.
        has_class_token: whether the first token is a class token, if the configuration does not say so. Register
            tokens are always in the configuration.
        fit: prepares the encoder for a grid of patches, where the forward pass alone does not adapt to it.
        read: the architecture from a configuration whose fields have other names than those of most models, or from
            the model itself if it has no configuration.
        load: the complete model from `TeacherConfig.model`; by default transformers loads it.
        attention: its implementation.
        encoder: name of the encoder in the loaded model, if that has more parts.
        unused: parts of the encoder that features do not need, and the value that switches each off.
        old_names: replacements for published weight names that transformers 5.17 does not map, by pattern.
        optional: endings of the names of weights that may be missing, as they do not change the features.
    """

    layers: str
    final_norm: str | None
    norm: str
    normalization: Normalization | Callable[[Any], Normalization]
    inputs: Callable[[torch.Tensor, int], dict]
    frames_field: str | None = None
    size_field: str = "image_size"
    has_class_token: bool = False
    fit: Callable[[nn.Module, Grid], None] | None = None
    read: Callable[[Any], Architecture] | None = None
    load: Callable[[str], nn.Module] | None = None
    attention: str = "sdpa"
    encoder: str | None = None
    unused: dict[str, object] = field(default_factory=dict)
    old_names: dict[str, str] | None = None
    optional: tuple[str, ...] = ("mask_token",)

    def architecture(self, config: PreTrainedConfig, source: str) -> Architecture:
        """The sizes of a model.

        Raises:
            ValueError: if its patches are not square, or it is no model of this kind.
        """
        if self.read is not None:
            return self.read(config)
        sides = {config.patch_size} if isinstance(config.patch_size, int) else set(config.patch_size)
        if len(sides) != 1:
            raise ValueError(
                f"The teacher {source!r} has patches of {config.patch_size} pixels: choose a model with square ones."
            )
        patch_size = sides.pop()
        image_size = getattr(config, self.size_field, None) or math.isqrt(config.num_patches) * patch_size
        clips = {}
        if self.frames_field is not None:
            clips = {"tubelet_size": config.tubelet_size, "num_frames": getattr(config, self.frames_field)}
        return Architecture(
            patch_size,
            compact_size(image_size),
            config.hidden_size,
            config.num_hidden_layers,
            num_class_tokens=int(getattr(config, "use_class_token", self.has_class_token)),
            num_register_tokens=getattr(config, "num_register_tokens", 0),
            **clips,
        )

    def take_encoder(self, model: nn.Module, grid: Grid, num_layers: int) -> tuple[nn.Module, nn.Module | None]:
        """The first layers of a model's encoder, fitted to a grid of patches, and its final norm if it has one.

        The model is changed in place: unused parts, later layers and the final norm are removed from it.
        """
        encoder = getattr(model, self.encoder, model) if self.encoder else model
        for name, value in self.unused.items():
            setattr(encoder, name, value)
        if self.fit is not None:
            self.fit(encoder, grid)
        del encoder.get_submodule(self.layers)[num_layers:]
        if self.final_norm is None:
            return encoder, None
        owner, _, name = self.final_norm.rpartition(".")
        owner = encoder.get_submodule(owner)
        final_norm = getattr(owner, name)
        setattr(owner, name, nn.Identity())
        return encoder, None if isinstance(final_norm, nn.Identity) else final_norm


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
    "mvd": TeacherFamily("layers", "layernorm", "pre", own_statistics, clip_inputs, frames_field="num_frames"),
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
        video_inputs,
        frames_field="frames_per_clip",
        size_field="crop_size",
        fit=fit_vjepa2,
        encoder="encoder",
    ),
    "ijepa": TeacherFamily("layers", "layernorm", "post", IMAGENET, interpolated_image_inputs),
    "radio": TeacherFamily(
        "encoder.layer",
        None,
        "pre",
        radio_statistics,
        image_inputs,
        read=radio_architecture,
        unused={"input_conditioner": nn.Identity()},
    ),
    "tipsv2_vision_model": TeacherFamily("encoder.layer", **(DINO | {"normalization": UNIT_RANGE})),
    "videoprism_vision_model": TeacherFamily(
        "temporal_layers",
        "layernorm2",
        "post",
        UNIT_RANGE,
        video_inputs,
        frames_field="num_frames",
        fit=fit_videoprism,
        read=videoprism_architecture,
        attention="eager",  # it caps its scores, which torch's fused attention cannot
    ),
    "timm_wrapper": TeacherFamily(
        "timm_model.blocks",
        "timm_model.norm",
        "post",
        timm_statistics,
        timm_inputs,
        read=timm_architecture,
        fit=fit_timm,
    ),
}
# models of images or videos and text, of which the vision part teaches
WITH_TEXT = ("clip", "siglip", "siglip2", "tipsv2")
# why other models that look like teachers are none
REFUSED = dict.fromkeys(
    ("pe_video", "pe_video_encoder"),
    "gives one token for each frame and none for its patches; the image model inside it can teach, such as "
    "timm/vit_pe_core_large_patch14_336.fb",
)


def import_family(name: str) -> TeacherFamily:
    """The family that `package.module:NAME` names.

    Raises:
        ValueError: if there is no such module, or no family in it.
    """
    module, _, attribute = name.partition(":")
    try:
        family = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"family={name!r} cannot be imported ({error}): write package.module:NAME of a module that is installed "
            "or on PYTHONPATH."
        ) from error
    if not isinstance(family, TeacherFamily):
        raise ValueError(f"family={name!r} is a {type(family).__name__}, it must be a TeacherFamily.")
    return family


def find_family(config: PreTrainedConfig, source: str) -> TeacherFamily:
    """The family of a model's configuration.

    Raises:
        ValueError: if it cannot teach, with the reason.
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    if config.model_type in REFUSED:
        reason = REFUSED[config.model_type]
    elif isinstance(getattr(config, "depths", None), Sequence):
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


def read_config(
    source: str, family: TeacherFamily | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The configuration of the model that teaches, in a local folder or at a Hub id.

    Of a model with a text part it is the configuration of the vision part.

    Args:
        source: the folder or id.
        family: of the model, if it is none of [`FAMILIES`].
        revision: of the repository.
        trust_remote_code: whether the repository's own code may run.

    Raises:
        ValueError: if there is no such model, it needs custom code, or its type cannot teach.
    """
    check_path(source, "model")
    cause = None
    try:
        stored, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    except OSError as error:
        stored, cause = {}, error
    if not stored:
        raise ValueError(
            f"The teacher {source!r} cannot be found: give a local folder with a config.json or the id of a model of "
            f"the Hub that you have access to{f' ({cause})' if cause else ''}."
        ) from cause
    kind, needs_code = stored.get("model_type"), "auto_map" in stored
    if kind not in CONFIG_MAPPING and not (needs_code and trust_remote_code):
        if needs_code:
            raise ValueError(
                f"The teacher {source!r} needs custom code of its repository. If you have read it, give "
                "trust_remote_code: true, its revision, and the family that says how it teaches (docs/teachers.md)."
            )
        raise ValueError(
            f"The teacher {source!r} is of the type {kind!r}, which transformers {transformers.__version__} does not "
            "know: a later version may."
        )
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ValueError(f"The configuration of the teacher {source!r} cannot be read: {error}") from error
    config = config.vision_config if kind in WITH_TEXT else config
    if family is None:
        find_family(config, source)
    return config
