"""Cost of masked video distillation: FLOPs of student, decoders and teachers, and GPU hours of a run.

`torch.utils.flop_counter` counts the matrix products of the models' own forward passes, on tensors without data, with
two FLOPs per multiply-accumulate. A backward pass takes twice its forward pass. Elementwise operations, the optimizer,
activations that gradient checkpointing computes again and the reading of videos are left out: these are model FLOPs as
in "model FLOPs utilization" (MFU).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.initialization import no_init_weights

from ..model.configuration_mvd import MVDConfig, height_and_width
from ..model.modeling_mvd import (
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDModel,
)
from ..teachers.cache import DTYPES, TargetCacheConfig, empty_teacher
from ..teachers.families import import_family, read_config
from ..teachers.targets import student_fields
from ..teachers.teacher import Teacher, TeacherConfig, choose_family
from .arguments import MVDTrainingArguments

# forward and backward pass of what is trained, as multiples of the forward pass
TRAINING_PASSES = 3
# bytes of a trained parameter: itself, its gradient and the two moments of AdamW in float32, and a copy in bfloat16
BYTES_PER_PARAMETER = 18
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
HUGE = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120}
# configurations of models of the Hub, so that the cost of a recipe needs neither network nor weights
HUB_MODELS = {
    "facebook/vit-mae-base": MVDConfig.from_name("mae-b"),
    "facebook/vit-mae-large": MVDConfig.from_name("mae-l"),
    "facebook/vit-mae-huge": MVDConfig.from_name("mae-h"),
    "facebook/dinov2-base": AutoConfig.for_model("dinov2", patch_size=14),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": AutoConfig.for_model("dinov3_vit", **BASE, num_register_tokens=4),
    "google/siglip2-base-patch16-224": AutoConfig.for_model("siglip_vision_model"),
    "MCG-NJU/videomae-base": MVDConfig.from_name("videomae-b"),
    "MCG-NJU/videomae-large": MVDConfig.from_name("videomae-l"),
    "facebook/vjepa2-vitl-fpc64-256": AutoConfig.for_model("vjepa2"),
    "openai/clip-vit-base-patch16": AutoConfig.for_model("clip_vision_model", patch_size=16),
    "google/tipsv2-b14": AutoConfig.for_model("tipsv2_vision_model"),
    "facebook/ijepa_vith14_1k": AutoConfig.for_model("ijepa", **HUGE, patch_size=14),
    "nvidia/C-RADIOv4-H": AutoConfig.for_model("radio"),
    "google/vit-base-patch16-224": AutoConfig.for_model("vit"),
    "google/videoprism-base-f16r288": AutoConfig.for_model("videoprism_vision_model"),
}


@dataclass(frozen=True)
class Part:
    """FLOPs of one part of a distillation, per clip.

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
        """FLOPs in training: forward and backward pass, but only the forward pass of a frozen teacher."""
        return self.forward if self.kind == "teacher" else TRAINING_PASSES * self.forward


def build(model: type[nn.Module], config: MVDConfig, **options) -> nn.Module:
    """A model without weights, with attention whose products are counted on every device."""
    config = type(config).from_dict(config.to_dict())
    config._attn_implementation = "eager"
    with torch.device("meta"):
        return model(config, **options).eval()


def count(run: Callable[[], object]) -> dict[str, int]:
    """FLOPs of a call by the name of the module they are in; all of them under `Global`."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return {name: sum(operators.values()) for name, operators in counter.get_flop_counts().items()}


def clip_for(config: MVDConfig) -> torch.Tensor:
    """A clip (1, T, C, S, S) without data."""
    return torch.empty(1, config.num_frames, config.num_channels, *config.frame_size, device="meta")


def mask_for(config: MVDConfig) -> torch.Tensor:
    """A mask (1, L) without data."""
    return torch.empty(1, config.num_patches, dtype=torch.bool, device="meta")


def encoder_flops(config: MVDConfig) -> int:
    """FLOPs of an encoder's forward pass over all patches of one clip."""
    model = build(MVDModel, config, add_final_norm=False)
    return count(lambda: model(clip_for(config)))["Global"]


def classifier_flops(config: MVDConfig) -> int:
    """FLOPs of a classifier's forward pass over one clip."""
    model = build(MVDForVideoClassification, config)
    return count(lambda: model(clip_for(config)))["Global"]


def reconstruction_flops(config: MVDConfig) -> int:
    """FLOPs of training a masked autoencoder (stage 1), per clip."""
    model = build(MVDForPixelReconstruction, config)
    masked = {"bool_masked_pos": mask_for(config), "num_masked": config.num_masked_patches}
    return TRAINING_PASSES * count(lambda: model(clip_for(config), **masked))["Global"]


def teacher_model_config(model: str, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a teacher, without network and without its weights.

    Args:
        model: a Hub id in `HUB_MODELS` or whose configuration is in the cache; a folder with a `config.json`; or a
            folder that does not exist yet and has a name that `MVDConfig.from_name` knows, such as `teachers/mae-l`.
        revision: branch, tag or commit of a Hub id.

    Raises:
        ValueError: if it is none of those.
    """
    if model in HUB_MODELS:
        return HUB_MODELS[model]
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, local_files_only=True)
    except OSError as error:
        try:
            config = MVDConfig.from_name(Path(model).name)
        except ValueError:
            raise ValueError(
                f"The size of the teacher {model!r} is unknown: create or download it first, give a folder with a "
                f"config.json, or one of {', '.join(HUB_MODELS)}."
            ) from error
    return getattr(config, "vision_config", config)


def teacher_network(teacher: TeacherConfig) -> nn.Module:
    """A teacher's model without weights, unless its own family loads it."""
    custom = None if teacher.family is None else import_family(teacher.family)
    if custom is not None and custom.load is not None:
        return custom.load(teacher.model)
    config = (
        teacher_model_config(teacher.model, teacher.revision)
        if custom is None
        else read_config(teacher.model, custom, teacher.revision, teacher.trust_remote_code)
    )
    if isinstance(config, MVDConfig):
        return build(MVDModel, config)
    with torch.device("meta"):
        return AutoModel.from_config(config, attn_implementation="eager", trust_remote_code=teacher.trust_remote_code)


def teacher_width(teacher: TeacherConfig) -> int:
    """The width of a teacher's features, without its weights."""
    config = (
        teacher_model_config(teacher.model, teacher.revision) if teacher.family is None else teacher_network(teacher)
    )
    config = getattr(config, "config", config)
    return choose_family(teacher, config).architecture(config, teacher.model).hidden_size


def fit_to_teachers(config: MVDConfig, teachers: Mapping[str, TeacherConfig | Mapping | str]):
    """Set what a student predicts, as `mvd_hf.teachers.fit_student` does, without the teachers' weights.

    Args:
        config: the student's configuration.
        teachers: entries of a recipe, see `mvd_hf.load_teachers`.

    Raises:
        ValueError: if the size of one is unknown.
    """
    entries = {name: TeacherConfig.from_entry(name, entry) for name, entry in teachers.items()}
    widths = {name: teacher_width(entry) for name, entry in entries.items()}
    for field, value in student_fields(entries, widths).items():
        setattr(config, field, value)


def teacher_flops(teacher: TeacherConfig, student: MVDConfig) -> int:
    """FLOPs of a teacher's forward pass over one clip of the student.

    Raises:
        ValueError: if the teacher's size is unknown, or its patches cannot match the student's.
    """
    size_of_clip = student.grid, student.num_frames
    if teacher.family is None:
        loaded = empty_teacher(teacher, teacher_model_config(teacher.model, teacher.revision), *size_of_clip)
    else:
        loaded = Teacher(replace(teacher, compile=False), teacher_network(teacher), *size_of_clip).to("meta")
    sides = height_and_width(loaded.image_size)
    clip = torch.empty(1, student.num_frames, student.num_channels, *sides, device="meta")
    return count(lambda: loaded({loaded.image_size: clip}))["Global"]


def distillation_parts(
    config: MVDConfig, teachers: Mapping[str, TeacherConfig | Mapping | str], masks_per_clip: int = 1
) -> list[Part]:
    """FLOPs per clip of the student's encoder on visible patches, its decoders and its teachers.

    The student and its decoders process a clip once for each of its masks, a teacher only once. Decoders process the
    visible patches and the part `decoder_keep` of the masked ones.

    Args:
        config: the student's configuration; its `teacher_dims` are the teachers' widths.
        teachers: entries of a recipe, see `mvd_hf.load_teachers`.
        masks_per_clip: masks of each clip.

    Raises:
        ValueError: if `teacher_dims` has other names, or a teacher's size is unknown.
    """
    if config.teacher_dims.keys() != teachers.keys():
        raise ValueError(f"teacher_dims names {sorted(config.teacher_dims)}, the teachers are {sorted(teachers)}.")
    entries = {name: TeacherConfig.from_entry(name, entry) for name, entry in teachers.items()}
    own = student_parts(config, masks_per_clip)
    return own + [Part("teacher", name, teacher_flops(entry, config)) for name, entry in entries.items()]


def student_parts(config: MVDConfig, masks_per_clip: int = 1) -> list[Part]:
    """FLOPs per clip of a student's encoder and of the decoder or the heads of each of its `teacher_dims`."""
    model = build(MVDForFeatureDistillation, config)
    masked = {"bool_masked_pos": mask_for(config), "num_masked": config.num_masked_patches}
    if config.num_decoded_patches < config.num_masked_patches:
        masked |= {"bool_decoded_pos": mask_for(config)}
    counts = count(lambda: model(clip_for(config), **masked))
    name = type(model).__name__
    parts = [Part("student", "", masks_per_clip * counts[f"{name}.mvd"])]
    for teacher in config.teacher_dims:
        decoder, heads = f"{name}.decoders.{teacher}", f"{name}.encoder_heads"
        projections = sum(counts.get(f"{heads}.{kind}.{teacher}", 0) for kind in ("visible", "summary"))
        if decoder in counts:
            of_decoder = counts[f"{decoder}.embed"] + counts[f"{decoder}.head"]
            parts.append(Part("decoder", teacher, masks_per_clip * (counts[decoder] - of_decoder)))
            projections += of_decoder
        parts.append(Part("projections", teacher, masks_per_clip * projections))
    return parts


def with_stored_targets(parts: Sequence[Part], cache: TargetCacheConfig, num_epochs: float) -> list[Part]:
    """FLOPs per clip as means over a run whose teachers see each view once and whose targets are stored."""
    share = min(1.0, cache.views / num_epochs)
    is_stored = [part.kind == "teacher" and cache.holds(part.teacher) for part in parts]
    return [
        replace(part, forward=round(share * part.forward)) if stored else part
        for part, stored in zip(parts, is_stored, strict=True)
    ]


def describe_stored_targets(
    config: MVDConfig, parts: Sequence[Part], cache: TargetCacheConfig, num_clips: int, device_tflops: float
) -> str:
    """Size of a cache of targets on disk, and from which epoch on it pays.

    Args:
        config: the student's configuration; its `teacher_dims` are the teachers' widths.
        parts: FLOPs per clip without a cache.
        cache: where the targets are stored.
        num_clips: clips of an epoch.
        device_tflops: that a device reaches.
    """
    width = sum(dim for name, dim in config.teacher_dims.items() if cache.holds(name))
    size = config.num_patches * width * DTYPES[cache.dtype].itemsize
    flops = sum(part.training for part in parts if not (part.kind == "teacher" and cache.holds(part.teacher)))
    total, rate = size * num_clips * cache.views / 1e9, size * device_tflops / flops * 1e3
    return (
        f"Targets on disk: {size / 1e6:.1f} MB per clip in {cache.dtype}, {total:,.0f} GB for {cache.views} views of "
        f"{num_clips:,} clips. It pays after {cache.views} epochs, as later ones have no pass of these teachers, "
        f"where the disk gives {rate:.2f} GB/s to each device."
    )


def kept_bytes(config: MVDConfig, num_clips: int, gradient_checkpointing: bool = False) -> int:
    """Bytes that a student's forward pass in bfloat16 keeps for its backward pass, without computing it."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with FakeTensorMode(), no_init_weights():
        model = MVDForFeatureDistillation(type(config).from_dict(config.to_dict())).train()
        if gradient_checkpointing:
            model.gradient_checkpointing_enable()
        parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        clips = torch.zeros(num_clips, config.num_frames, config.num_channels, *config.frame_size, dtype=torch.uint8)
        masked = {"bool_masked_pos": torch.zeros(num_clips, config.num_patches, dtype=torch.bool)}
        if config.num_decoded_patches < config.num_masked_patches:
            masked |= {"bool_decoded_pos": masked["bool_masked_pos"]}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu"):
            model(clips, num_masked=config.num_masked_patches, **masked)
    return sum(storage.nbytes() for number, storage in kept.items() if number not in parameters)


def training_memory(
    config: MVDConfig,
    teachers: Mapping[str, TeacherConfig | Mapping | str],
    masks_per_clip: int = 1,
    gradient_checkpointing: bool = False,
) -> tuple[float, float]:
    """GB on one device of a distillation in bfloat16: of all weights and optimizer states, and of each clip.

    Counted are the trained parameters (`BYTES_PER_PARAMETER`), the weights of teachers in their dtype, and what the
    student keeps for the backward pass. Left out: CUDA's own memory, fragments, and what teachers need for a moment.

    Args:
        config, teachers, masks_per_clip: as in [`distillation_parts`].
        gradient_checkpointing: whether layers are computed again in the backward pass.
    """
    size = sum(parameter.numel() for parameter in build(MVDForFeatureDistillation, config).parameters())
    fixed = BYTES_PER_PARAMETER * size
    for name, entry in teachers.items():
        teacher = TeacherConfig.from_entry(name, entry)
        width = 4 if teacher.dtype == "float32" else 2
        fixed += width * sum(parameter.numel() for parameter in teacher_network(teacher).parameters())
    one, two = (kept_bytes(config, count, gradient_checkpointing) for count in (1, 2))
    return fixed / 1e9, masks_per_clip * (two - one) / 1e9


def describe_memory(config: MVDConfig, teachers: Mapping, training: MVDTrainingArguments) -> str:
    """The memory of a distillation on one device, in words; arguments as in [`training_memory`]."""
    options = training.masks_per_clip, training.gradient_checkpointing
    fixed, per_clip = training_memory(config, teachers, *options)
    clips = training.per_device_train_batch_size * training.clips_per_video
    return (
        f"Memory of a device in bf16, computed: {fixed:.1f} GB of weights and optimizer states and {per_clip:.3f} GB "
        f"per clip, {fixed + clips * per_clip:.1f} GB for {clips} clips; leave a fifth free for all else."
    )


def gpu_hours(flops: float, device_tflops: float, mfu: float) -> float:
    """Hours on one device.

    Args:
        flops: FLOPs of the whole run.
        device_tflops: peak of the device in TFLOP/s.
        mfu: the part of the peak that is reached, above 0 and at most 1.

    Raises:
        ValueError: if the peak or the part is out of its range.
    """
    if device_tflops <= 0:
        raise ValueError(f"device_tflops={device_tflops} must be above 0.")
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu={mfu} must be above 0 and at most 1, as it is a part of the device's peak.")
    return flops / (device_tflops * 1e12 * mfu) / 3600


def format_parts(parts: Sequence[Part]) -> str:
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
