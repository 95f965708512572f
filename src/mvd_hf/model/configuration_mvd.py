"""MVDConfig: every size and stage of Masked Video Distillation (arXiv 2212.04500) in one configuration."""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Annotated, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .saving_mvd import forget_absent_code

# width, layers, heads of the encoder
ENCODER_SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "h": (1280, 32, 16)}
# width, layers, heads of the decoder, per family of models
DECODER_SIZES = {
    "mvd": {"s": (384, 2, 6), "b": (768, 2, 12), "l": (512, 4, 8), "h": (640, 8, 8)},
    "videomae": {"s": (192, 4, 3), "b": (384, 4, 6), "l": (512, 12, 8), "h": (640, 12, 8)},
    "mae": dict.fromkeys(ENCODER_SIZES, (512, 8, 16)),
}
# feature width of the teachers of each published student
TEACHER_WIDTHS = {"s": 768, "b": 768, "l": 1024, "h": 1280}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# pixels of a frame: the side of a square, or (height, width)
Size = int | tuple[int, int]

# what a configuration takes besides its fields
OTHER_FIELDS = {"num_labels": int, "attn_implementation": str}


def height_and_width(size: Size | list[int]) -> tuple[int, int]:
    """(height, width) of a size; raises ValueError if it is neither a positive number of pixels nor two of them."""
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"image_size={size!r} must be a positive number of pixels, or [height, width].")
    return sides


def compact_size(size: Size | list[int]) -> Size:
    """A size with a square as the number of its side."""
    height, width = height_and_width(size)
    return height if height == width else (height, width)


def size_text(size: Size) -> str:
    """A size as text: `224`, or `256x512` for 256 rows of 512 pixels."""
    return "x".join(map(str, (size,) if isinstance(size, int) else size))


def published_fields(name: str) -> dict:
    """The fields of a published model that differ from the defaults; raises ValueError if there is no such name."""
    family, _, size = name.partition("-")
    if family not in DECODER_SIZES or size not in ENCODER_SIZES:
        known = ", ".join(f"{family}-{size}" for family in DECODER_SIZES for size in ENCODER_SIZES)
        raise ValueError(f"There is no model named {name!r}; known names: {known}.")
    width, layers, heads = ENCODER_SIZES[size]
    decoder_width, decoder_layers, decoder_heads = DECODER_SIZES[family][size]
    fields = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "decoder_hidden_size": decoder_width,
        "decoder_num_hidden_layers": decoder_layers,
        "decoder_num_attention_heads": decoder_heads,
    }
    if family == "mvd":
        fields["teacher_dims"] = {"image": TEACHER_WIDTHS[size], "video": TEACHER_WIDTHS[size]}
        fields["drop_path_rate"] = 0.2 if size == "h" else 0.1
    elif family == "videomae":
        fields |= {"position_embedding_type": "flat", "decoder_embed_bias": False}
    else:
        fields |= {
            "num_frames": 1,
            "tubelet_size": 1,
            "patch_size": 14 if size == "h" else 16,
            "position_embedding_type": "space",
            "use_class_token": True,
            "key_bias": True,
            "mask_ratio": 0.75,
            "mask_type": "random",
            "pixel_target": "mae",
        }
    return fields


@strict
class MVDConfig(PreTrainedConfig):
    r"""
    Configuration of all MVD models. The image teacher (MAE, with an image as a clip of one frame), the video teacher
    (VideoMAE), the student and the classifiers share one network and differ in the fields below. The defaults are the
    ViT-B student of the paper; `MVDConfig.from_name` gives the other published sizes.

    Args:
        image_size (`int` or `(height, width)`, defaults to 224): pixels of a frame.
        patch_size (`int`, defaults to 16): pixels of a patch's side.
        num_channels (`int`, defaults to 3): color channels.
        num_frames (`int`, defaults to 16): frames of a clip.
        tubelet_size (`int`, defaults to 2): frames of a patch.
        hidden_size (`int`, defaults to 768): width of the encoder.
        num_hidden_layers (`int`, defaults to 12): encoder layers.
        num_attention_heads (`int`, defaults to 12): encoder attention heads.
        intermediate_size (`int`, *optional*): width of the encoder's MLP; `None` means four times `hidden_size`.
        hidden_act (`str`, defaults to `"gelu"`): activation of the MLP (the exact, erf, GELU).
        hidden_dropout_prob (`float`, defaults to 0): dropout after the attention output and after the MLP.
        attention_probs_dropout_prob (`float`, defaults to 0): dropout of the attention weights.
        drop_path_rate (`float`, defaults to 0): stochastic depth of the last layer; earlier layers scale linearly
            from 0. Encoder and decoders both use it.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of every layer norm.
        initializer_range (`float`, defaults to 0.02): standard deviation of tokens and of a classifier's weights.
        encoder_init_std (`float`, *optional*): standard deviation of the initial weights of the encoder's linear
            layers; `None` means the official initialisation (Xavier uniform in pre-training, `initializer_range` in
            fine-tuning). Narrow encoders learn motion sooner with larger weights, such as 0.2 at width 64.
        key_bias (`bool`, defaults to `False`): whether the keys have a bias (MAE). It does not change the output.
        position_embedding_type (`"spacetime"`, `"space"` or `"flat"`, defaults to `"spacetime"`): fixed sin-cos
            embeddings of time, column and row (MVD); of column and row (MAE); or of the flattened index (VideoMAE).
        use_class_token (`bool`, defaults to `False`): whether a class token is prepended, without a position.
        mask_ratio (`float`, defaults to 0.9): part of the patches masked in pre-training.
        mask_type (`"tube"`, `"random"`, `"multi_block"` or `"attention"`, defaults to `"tube"`): one spatial mask for
            all times, free, V-JEPA's blocks over all times, or UMT's masks by the attention of a teacher.
        decoder_keep (`float`, defaults to 1): part of the masked patches, drawn anew for each mask, that pre-training
            decodes; the others take no part in the decoders and the loss.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size
            (`int`, *optional*, two layers by default): the decoder(s); `None` means as in the encoder (MLP: four times
            the decoder's width).
        decoder_embed_bias (`bool`, defaults to `True`): whether the encoder-to-decoder projection has a bias.
        teacher_dims (`dict[str, int]`, *optional*, defaults to `{"image": 768, "video": 768}`): feature width of each
            named teacher; the student has one decoder per entry.
        teacher_tokens (`dict[str, "masked" | "visible" | "all"]`, *optional*, defaults to `{}`): at which patches the
            student predicts a teacher's features; `masked` for teachers that it does not name. Visible patches alone
            need no decoder.
        summary_dims (`dict[str, int]`, *optional*, defaults to `{}`): width of the summary (of the whole clip) of each
            teacher whose summary the student predicts.
        pixel_target (`"videomae"` or `"mae"`, defaults to `"videomae"`): how stage 1 normalises its pixel targets:
            per patch and channel on [0, 1] pixels, or per patch on normalised pixels.
        norm_pix_loss (`bool`, defaults to `True`): whether stage 1 normalises its pixel targets per patch.
        image_mean, image_std (`float` or one per channel, defaults to ImageNet's): normalisation of the input pixels.
        use_mean_pooling (`bool`, defaults to `True`): whether the classifier takes the normalised mean of the patch
            tokens; otherwise it takes the first token after the encoder's final norm.
        use_attentive_pooling (`bool`, defaults to `False`): whether the classifier takes the output of an attentive
            pooler on the tokens after the encoder's final norm (an attentive probe), instead of either.
        classifier_dropout (`float`, defaults to 0): dropout in front of the classifier.
        head_init_scale (`float`, defaults to 0.001): factor on the initial weights of a classifier.
        label_heads (`dict[str, int]`, *optional*, defaults to `{}`): number of classes of each head of a classifier
            that names one class per head, such as a verb and a noun, in alphabetical order; they sum to `num_labels`.
        detection_pool_size (`int`, defaults to 7): bins along each side of a person's box in action detection.
        detection_margin (`(x, y)`, defaults to `(0.1, 0.05)`): how much of its width and height evaluation adds to a
            person's box; training jitters the boxes instead.
        detection_positions (`"interpolated"` or `"recomputed"`, defaults to `"interpolated"`): position embeddings of
            frames of another size in action detection: the configured ones resized (bicubic) at each time, within the
            range seen in training, or computed at integer positions.

    A model whose sizes do not divide each other as needed raises a `ValueError` when it is built.
    """

    model_type = "mvd"

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3
    num_frames: int = 16
    tubelet_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    encoder_init_std: float | int | None = None
    key_bias: bool = False
    position_embedding_type: Literal["spacetime", "space", "flat"] = "spacetime"
    use_class_token: bool = False
    mask_ratio: float | int = 0.9
    mask_type: Literal["tube", "random", "multi_block", "attention"] = "tube"
    decoder_keep: float | int = 1.0
    decoder_hidden_size: int | None = None
    decoder_num_hidden_layers: int = 2
    decoder_num_attention_heads: int | None = None
    decoder_intermediate_size: int | None = None
    decoder_embed_bias: bool = True
    teacher_dims: dict[str, int] | None = None
    teacher_tokens: dict[str, Literal["masked", "visible", "all"]] | None = None
    summary_dims: dict[str, int] | None = None
    pixel_target: Literal["videomae", "mae"] = "videomae"
    norm_pix_loss: bool = True
    image_mean: float | list[float] | tuple[float, ...] | None = None
    image_std: float | list[float] | tuple[float, ...] | None = None
    use_mean_pooling: bool = True
    use_attentive_pooling: bool = False
    classifier_dropout: float | int = 0.0
    head_init_scale: float | int = 0.001
    label_heads: dict[str, int] | None = None
    detection_pool_size: int = 7
    detection_margin: list[float | int] | tuple[float | int, float | int] | None = None
    detection_positions: Literal["interpolated", "recomputed"] = "interpolated"

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.decoder_hidden_size is None:
            self.decoder_hidden_size = self.hidden_size
        if self.decoder_num_attention_heads is None:
            self.decoder_num_attention_heads = self.num_attention_heads
        if self.decoder_intermediate_size is None:
            self.decoder_intermediate_size = 4 * self.decoder_hidden_size
        if self.teacher_dims is None:
            self.teacher_dims = {"image": 768, "video": 768}
        self.teacher_tokens = self.teacher_tokens or {}
        self.summary_dims = self.summary_dims or {}
        self.label_heads = dict(sorted((self.label_heads or {}).items()))  # as a saved configuration has them
        self.image_mean = list(IMAGENET_MEAN) if self.image_mean is None else self.image_mean
        self.image_std = list(IMAGENET_STD) if self.image_std is None else self.image_std
        self.detection_margin = [0.1, 0.05] if self.detection_margin is None else self.detection_margin
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Write `config.json`; see [`~transformers.PreTrainedConfig.save_pretrained`].

        The file names custom code only if that code is in the folder.
        """
        forget_absent_code(self, save_directory)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def to_dict(self) -> dict:
        """All fields as a mapping; those that few models need are left out where they are empty."""
        fields, rare = super().to_dict(), ("teacher_tokens", "summary_dims", "label_heads")
        return {name: value for name, value in fields.items() if value or name not in rare}

    def check_encoder(self):
        """Raise ValueError, naming the values, if the encoder's sizes do not divide each other as needed."""
        if self.num_frames % self.tubelet_size:
            raise ValueError(f"num_frames={self.num_frames} must be divisible by tubelet_size={self.tubelet_size}.")
        for side, pixels in zip(("height", "width"), self.frame_size, strict=True):
            if pixels % self.patch_size:
                raise ValueError(f"The image {side} {pixels} must be divisible by patch_size={self.patch_size}.")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if not isinstance(value, float) and len(value) != self.num_channels:
                raise ValueError(f"{name}={value} must have one value for each of the {self.num_channels} channels.")
        if self.encoder_init_std is not None and not self.encoder_init_std > 0:
            raise ValueError(f"encoder_init_std={self.encoder_init_std} must be above 0.")
        self._check_width("", self.hidden_size, self.num_attention_heads)

    def check_decoder(self):
        """Raise ValueError, naming the values, if the decoder's sizes do not divide each other as needed."""
        self._check_width("decoder_", self.decoder_hidden_size, self.decoder_num_attention_heads)

    def _check_width(self, part: str, width: int, heads: int):
        divisor = {"spacetime": 16, "space": 4, "flat": 2}[self.position_embedding_type]
        if width % heads:
            raise ValueError(f"{part}hidden_size={width} must be divisible by {part}num_attention_heads={heads}.")
        if width % divisor:
            raise ValueError(
                f"{part}hidden_size={width} must be divisible by {divisor} for the "
                f"{self.position_embedding_type!r} position embeddings."
            )

    @property
    def frame_size(self) -> tuple[int, int]:
        """Pixels of a frame: (height, width)."""
        return height_and_width(self.image_size)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches of a clip: (time, rows, columns)."""
        height, width = self.frame_size
        return self.num_frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of a clip: the product of `grid`."""
        time, rows, columns = self.grid
        return time * rows * columns

    @property
    def num_masked_patches(self) -> int:
        """Masked patches in pre-training: `mask_ratio` of each time (tube, attention) or of the clip (others).

        Raises:
            ValueError: if that is no patch, or every patch.
        """
        time, rows, columns = self.grid
        repeats = time if self.mask_type in ("tube", "attention") else 1
        candidates = time * rows * columns // repeats
        masked = int(self.mask_ratio * candidates)
        if not 0 < masked < candidates:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} masks {masked} of {candidates} patches; choose a ratio that masks at "
                "least one patch and leaves at least one visible, for example 0.9."
            )
        return masked * repeats

    @property
    def num_decoded_patches(self) -> int:
        """Patches that pre-training decodes: `decoder_keep` of the masked ones.

        Raises:
            ValueError: if that is none of them, or more than all.
        """
        masked = self.num_masked_patches
        decoded = int(self.decoder_keep * masked)
        if not 0 < decoded <= masked:
            raise ValueError(
                f"decoder_keep={self.decoder_keep} decodes {decoded} of {masked} masked patches; choose a part above "
                "0 and at most 1."
            )
        return decoded

    @classmethod
    def check_fields(cls, names: Iterable[str]):
        """Raise ValueError for a name that is no field; the constructor itself accepts any name as an attribute."""
        known = {field.name for field in fields(cls)} | OTHER_FIELDS.keys()
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, sorted(known), n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"An MVDConfig has no field {name!r}.{hint}")

    @classmethod
    def from_name(cls, name: str, **overrides) -> "MVDConfig":
        """The configuration of a published model, for example `MVDConfig.from_name("mvd-b", num_frames=8)`.

        Args:
            name: family and size: `mvd-{s,b,l,h}` (the distilled student and its classifier), `videomae-{s,b,l,h}`
                (video teacher), `mae-{s,b,l,h}` (image teacher; `mae-h` has patches of 14 pixels).
            overrides: fields that differ.

        Raises:
            ValueError: if there is no such name or field.
        """
        cls.check_fields(overrides)
        return cls(**(published_fields(name) | overrides))


# the type of a recipe's key that holds fields of the configuration
ConfigFields = Annotated[dict, MVDConfig, *OTHER_FIELDS.items()]

__all__ = ["MVDConfig", "Size", "compact_size", "height_and_width", "size_text"]
