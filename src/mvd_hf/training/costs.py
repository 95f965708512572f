"""Cost of masked video distillation: arithmetic (FLOPs) of student, decoders and teachers, GPU hours of a run.

Counted are matrix products, two FLOPs per multiply-accumulate; a backward pass takes twice its forward pass. Left out
are norms, softmax, activations, biases, positions, losses, the optimizer, pooling heads of teachers, what gradient
checkpointing computes again, and the reading of videos: model FLOPs as in "model FLOPs utilisation" (MFU).

Letters: N tokens, D their width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from ..model.configuration_mvd import MVDConfig

FLOPS_PER_MAC = 2
# forward and backward pass of what is trained, as multiples of the forward pass
TRAINING_PASSES = 3
# what AutoConfig calls the families without a class token
WITHOUT_CLASS_TOKEN = ("videomae", "siglip_vision_model", "siglip2_vision_model", "vjepa2")


@dataclass(frozen=True)
class NetworkSize:
    """What the arithmetic of a vision transformer depends on.

    Args:
        hidden_size: width of the tokens.
        num_layers: layers.
        intermediate_size: width of the MLP.
        patch_size: pixels of a patch's side.
        tubelet_size: frames of a patch.
        num_frames: frames of an input; 1 for images.
        extra_tokens: class and register tokens.
        gated: whether the MLP has a gate, a third product.
    """

    hidden_size: int
    num_layers: int
    intermediate_size: int
    patch_size: int = 16
    tubelet_size: int = 1
    num_frames: int = 1
    extra_tokens: int = 0
    gated: bool = False

    def flops(self, num_patches: int) -> int:
        """FLOPs of a forward pass over the patches of one input: patch projection and layers."""
        width = self.hidden_size
        tokens = num_patches + self.extra_tokens
        projection = num_patches * 3 * self.tubelet_size * self.patch_size**2 * width
        layers = layer_macs(tokens, width, self.intermediate_size, self.gated) * self.num_layers
        return FLOPS_PER_MAC * (projection + layers)


# published sizes of models of the Hub, so that a recipe's cost needs neither network nor weights
HUB_SIZES = {
    "facebook/vit-mae-base": NetworkSize(768, 12, 3072, extra_tokens=1),
    "facebook/vit-mae-large": NetworkSize(1024, 24, 4096, extra_tokens=1),
    "facebook/vit-mae-huge": NetworkSize(1280, 32, 5120, patch_size=14, extra_tokens=1),
    "facebook/dinov2-base": NetworkSize(768, 12, 3072, patch_size=14, extra_tokens=1),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": NetworkSize(768, 12, 3072, extra_tokens=5),
    "google/siglip2-base-patch16-224": NetworkSize(768, 12, 3072),
    "MCG-NJU/videomae-base": NetworkSize(768, 12, 3072, tubelet_size=2, num_frames=16),
    "MCG-NJU/videomae-large": NetworkSize(1024, 24, 4096, tubelet_size=2, num_frames=16),
    "facebook/vjepa2-vitl-fpc64-256": NetworkSize(1024, 24, 4096, tubelet_size=2, num_frames=64),
}


@dataclass(frozen=True)
class Part:
    """Arithmetic of one part of a distillation, per clip.

    Args:
        kind: `student` (its encoder), `decoder`, `projections` (to the decoder's and to the teacher's width) or
            `teacher`.
        teacher: name of the teacher that the part belongs to; empty for the student's encoder.
        forward: FLOPs of the forward pass.
    """

    kind: str
    teacher: str
    forward: int

    @property
    def training(self) -> int:
        """FLOPs in training: forward and backward pass, and for a frozen teacher the forward pass alone."""
        return self.forward if self.kind == "teacher" else TRAINING_PASSES * self.forward


def layer_macs(tokens: int, width: int, intermediate_size: int, gated: bool = False) -> int:
    """Multiply-accumulates of a transformer layer: 4 N D^2 (projections), 2 N^2 D (attention) and the MLP."""
    mlp = (3 if gated else 2) * tokens * width * intermediate_size
    return 4 * tokens * width**2 + 2 * tokens**2 * width + mlp


def student_size(config: MVDConfig) -> NetworkSize:
    """The size of one of our encoders."""
    return NetworkSize(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        intermediate_size=config.intermediate_size,
        patch_size=config.patch_size,
        tubelet_size=config.tubelet_size,
        num_frames=config.num_frames,
        extra_tokens=int(config.use_class_token),
    )


def transformers_size(config: PreTrainedConfig, model: str) -> NetworkSize:
    """The size of the vision transformer that a configuration of transformers describes.

    Raises:
        ValueError: if it is no plain vision transformer.
    """
    config = getattr(config, "vision_config", config)
    width, patch_size = getattr(config, "hidden_size", None), getattr(config, "patch_size", None)
    if not isinstance(width, int) or not hasattr(config, "num_hidden_layers") or patch_size is None:
        raise ValueError(f"{model!r} ({config.model_type}) is no plain vision transformer: its cost is not known.")
    intermediate_size = getattr(config, "intermediate_size", None) or int(width * config.mlp_ratio)
    is_swiglu = getattr(config, "use_swiglu_ffn", False)
    if is_swiglu:  # as DINOv2 rounds it
        intermediate_size = (intermediate_size * 2 // 3 + 7) // 8 * 8
    has_class_token = config.model_type not in WITHOUT_CLASS_TOKEN
    return NetworkSize(
        hidden_size=width,
        num_layers=config.num_hidden_layers,
        intermediate_size=intermediate_size,
        patch_size=patch_size if isinstance(patch_size, int) else patch_size[0],
        tubelet_size=getattr(config, "tubelet_size", 1),
        num_frames=getattr(config, "num_frames", getattr(config, "frames_per_clip", 1)),
        extra_tokens=int(has_class_token) + getattr(config, "num_register_tokens", 0),
        gated=is_swiglu or getattr(config, "use_gated_mlp", False),
    )


def teacher_size(model: str) -> NetworkSize:
    """The size of a teacher, without network and without its weights.

    Args:
        model: a Hub id whose published size is known here or whose configuration is in the cache; a folder with a
            `config.json`; or a folder that is still to be written and is named as `MVDConfig.from_name` names models,
            such as `teachers/mae-l`.

    Raises:
        ValueError: if it is none of those.
    """
    if model in HUB_SIZES:
        return HUB_SIZES[model]
    try:
        config = AutoConfig.from_pretrained(model, local_files_only=True)
    except OSError as error:
        try:
            config = MVDConfig.from_name(Path(model).name)
        except ValueError:
            raise ValueError(
                f"The size of the teacher {model!r} is not known: make or download it first, give a folder with a "
                f"config.json, or one of {', '.join(HUB_SIZES)}."
            ) from error
    return student_size(config) if isinstance(config, MVDConfig) else transformers_size(config, model)


def teacher_widths(teachers: Mapping[str, Mapping | str]) -> dict[str, int]:
    """A student's `teacher_dims`: the width of each teacher's features, without its weights.

    Args:
        teachers: per name a model or the fields of a `mvd_hf.TeacherConfig`.

    Raises:
        ValueError: if the size of one is not known.
    """
    return {
        name: teacher_size(entry if isinstance(entry, str) else entry["model"]).hidden_size
        for name, entry in teachers.items()
    }


def teacher_flops(teacher: Mapping | str, student: MVDConfig) -> int:
    """FLOPs of a teacher's forward pass over one clip of the student.

    Args:
        teacher: a model, or the fields of a `mvd_hf.TeacherConfig`. Layers above its `layer` are not counted.
        student: the student's configuration.

    Raises:
        ValueError: if no model is named, its size is not known, or it has no such layer.
    """
    entry = {"model": teacher} if isinstance(teacher, str) else teacher
    if "model" not in entry:
        raise ValueError(f"A teacher has no key 'model', only {', '.join(map(repr, entry))}.")
    size = teacher_size(entry["model"])
    layers, layer = range(size.num_layers + 1), entry.get("layer", -1)
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"The teacher {entry['model']!r} has {size.num_layers} layers, there is no layer={layer}.")
    size = replace(size, num_layers=layers[layer])
    slots, rows, columns = student.grid
    frames = entry.get("frames") or ("first_of_tubelet" if size.num_frames == 1 else "clip")
    if entry.get("image_size"):
        rows = columns = entry["image_size"] // size.patch_size
    if frames == "clip":
        return size.flops(student.num_frames // size.tubelet_size * rows * columns)
    num_images = slots if frames == "first_of_tubelet" else student.num_frames
    return num_images * size.flops(rows * columns)


def classifier_flops(config: MVDConfig) -> int:
    """FLOPs of a classifier's forward pass over one clip, no patch hidden."""
    return student_size(config).flops(config.num_patches) + FLOPS_PER_MAC * config.hidden_size * config.num_labels


def reconstruction_flops(config: MVDConfig) -> int:
    """FLOPs of training a masked autoencoder (stage 1), per clip: encoder of visible patches, and decoder."""
    masked = config.num_masked_patches
    visible, class_token = config.num_patches - masked, int(config.use_class_token)
    width, pixels = config.decoder_hidden_size, config.num_channels * config.tubelet_size * config.patch_size**2
    decoder = config.decoder_num_hidden_layers * layer_macs(
        config.num_patches + class_token, width, config.decoder_intermediate_size
    )
    projections = (visible + class_token) * config.hidden_size * width + masked * width * pixels
    return TRAINING_PASSES * (student_size(config).flops(visible) + FLOPS_PER_MAC * (decoder + projections))


def distillation_parts(
    config: MVDConfig, teachers: Mapping[str, Mapping | str], masks_per_clip: int = 1
) -> list[Part]:
    """Arithmetic per clip of the student's encoder, which sees visible patches only, its decoders and its teachers.

    The student and its decoders see a clip under each of its masks, a teacher sees it once. Decoders see the visible
    patches and the part `decoder_keep` of the hidden ones.

    Args:
        config: the student's configuration; its `teacher_dims` are the teachers' widths.
        teachers: per name a model or the fields of a `mvd_hf.TeacherConfig`.
        masks_per_clip: masks of each clip.

    Raises:
        ValueError: if `teacher_dims` names others, or a teacher's size is not known.
    """
    if config.teacher_dims.keys() != teachers.keys():
        raise ValueError(f"teacher_dims names {sorted(config.teacher_dims)}, the teachers are {sorted(teachers)}.")
    decoded = config.num_decoded_patches
    visible, class_token = config.num_patches - config.num_masked_patches, int(config.use_class_token)
    width = config.decoder_hidden_size
    decoder = config.decoder_num_hidden_layers * layer_macs(
        visible + decoded + class_token, width, config.decoder_intermediate_size
    )
    parts = [Part("student", "", masks_per_clip * student_size(config).flops(visible))]
    for name, dim in config.teacher_dims.items():
        projections = (visible + class_token) * config.hidden_size * width + decoded * width * dim
        parts.append(Part("decoder", name, FLOPS_PER_MAC * masks_per_clip * decoder))
        parts.append(Part("projections", name, FLOPS_PER_MAC * masks_per_clip * projections))
    return parts + [Part("teacher", name, teacher_flops(entry, config)) for name, entry in teachers.items()]


def gpu_hours(flops: float, device_tflops: float, mfu: float) -> float:
    """Hours on one device.

    Args:
        flops: arithmetic of the whole run.
        device_tflops: peak of the device in TFLOP/s.
        mfu: the part of the peak that is reached, above 0 and at most 1.

    Raises:
        ValueError: if the peak or the part is out of its range.
    """
    if device_tflops <= 0:
        raise ValueError(f"device_tflops={device_tflops} must be above 0.")
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu={mfu} is a part of the device's peak: above 0 and at most 1.")
    return flops / (device_tflops * 1e12 * mfu) / 3600


def describe_parts(parts: Sequence[Part]) -> str:
    """Lines of text: TFLOPs per clip of each part, forward and in training, and their sum."""
    rows = [(f"{part.kind} {part.teacher}".strip(), part.forward, part.training) for part in parts]
    rows.append(("together", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = [f"{'TFLOPs per clip':24}{'forward':>10}{'training':>10}"]
    return "\n".join(lines + [f"{name:24}{forward / 1e12:10.4g}{work / 1e12:10.4g}" for name, forward, work in rows])


def training_tflops(parts: Sequence[Part]) -> dict[str, float]:
    """TFLOPs per clip in training: `student`, `decoders`, `projections`, `teacher <name>` and `together`."""
    sums: dict[str, float] = {"student": 0.0, "decoders": 0.0, "projections": 0.0}
    for part in parts:
        key = {"teacher": f"teacher {part.teacher}", "decoder": "decoders"}.get(part.kind, part.kind)
        sums[key] = sums.get(key, 0.0) + part.training / 1e12
    return {**sums, "together": sum(sums.values())}
