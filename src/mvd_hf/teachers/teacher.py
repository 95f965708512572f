"""Frozen teachers: models of many families that give one feature for each patch of the student's grid.

`load_teachers` loads them by name from Hub ids or folders, [`TeacherConfig`] is one entry of a recipe, [`Teacher`] the
frozen module. `mvd_hf.teachers.families` lists the models that can teach.
"""

import copy
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AttentionInterface, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.integrations import deepspeed
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..model.configuration_mvd import Size, compact_size, height_and_width
from ..model.loading_mvd import listed
from .families import Architecture, TeacherFamily, find_family, import_family, read_config
from .grids import can_resize, resize_features
from .inputs import Grid
from .normalization import IMAGENET, Normalization, read_normalization

logger = logging.getLogger(__name__)

# with this variable `accelerate launch` asks for loading without weights in all processes but one
RAM_EFFICIENT_LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"
# name of `attend_and_keep` in transformers
KEEPING_ATTENTION = "mvd_keeping_class_attention"
# the values of a TeacherConfig's fields
CHOICES = {
    "frames": (None, "first_of_tubelet", "all", "clip"),
    "norm": (None, "pre", "post"),
    "target_norm": ("none", "layernorm", "standardize", "phi_s"),
    "loss": ("smooth_l1", "l1", "l2", "cosine", "cosine_smooth_l1"),
    "summary": (False, True),
    "guides_masks": (False, True),
    "on": ("masked", "visible", "all"),
    "visible_weighting": ("uniform", "distance"),
    "dtype": ("float32", "bfloat16", "float16"),
    "compile": (False, True),
    "shard": (False, True),
    "grid": ("exact", "resize"),
    "trust_remote_code": (False, True),
}


@dataclass
class TeacherConfig:
    """One teacher, as an entry of a recipe.

    Args:
        model: Hub id or local folder of a model that can teach, see `mvd_hf.teachers.families`.
        frames: the teacher's input: `first_of_tubelet` (the first frame of each of the student's tubelets, as images:
            MVD's image teacher), `all` (every frame as an image; the features of a tubelet's frames are averaged) or
            `clip` (all frames together). By default `clip` for video models, `first_of_tubelet` for image models.
        image_size: pixels of its input: the side of a square, or [height, width]; by default its patch size times the
            student's rows and columns (196 for patch 14).
        layer: the hidden state that the features are: 0 is the input of the first layer, n the output of layer n, -1
            the last. Later layers are not computed.
        layers: several hidden states instead; the loss is the mean over them. One decoder predicts all.
        norm: features `pre` or `post` the final layer norm. By default `pre` for models trained to reconstruct pixels
            (ours, ViTMAE, VideoMAE), as in MVD, and `post` for all others. It applies to an inner `layer`, too.
        target_norm: `none` (MVD); `layernorm`: standardize every feature vector (no affine parameters, eps 1e-6);
            `standardize` every channel by its mean and deviation over the training clips (UNIC, DUNE), or `phi_s`, by
            one deviation after a rotation (RADIO), see `mvd_hf.teachers.targets`.
        loss: `smooth_l1` (MVD, beta 1), `l1`, `l2`, `cosine` or `cosine_smooth_l1`, see `mvd_hf.distillation_losses`.
        weight: factor of its loss in the sum.
        on: the patches that are compared: `masked` (MVD); `visible`, which a linear layer on the encoder predicts,
            without a decoder (as in UMT); or `all`, which the decoder predicts (V-JEPA 2.1).
        visible_weight: factor of the loss on visible patches for `on: all`.
        visible_weighting: `uniform`, or `distance`: the loss at a visible patch is divided by the square root of its
            distance to the nearest masked one (V-JEPA 2.1), in patches.
        summary: whether the student also predicts a summary of the clip: the teacher's class token, or the mean of its
            patches if it has none, averaged over the images of a clip. Its loss has the same `weight`.
        guides_masks: whether the attention of its class token chooses the visible patches, for `mask_type: attention`
            (UMT): that of the last layer that is computed, as a mean over heads and over the images of a tubelet.
        dtype: `float32`, `bfloat16` or `float16`, of its weights. A `float32` teacher runs under the trainer's
            autocast. The others run without it, as it would only cast their layer norms to float32 and back.
        compile: whether the model is compiled with `torch.compile`.
        frames_per_pass: largest number of frames in a forward pass, at least one clip; by default the whole batch.
        shard: whether the processes of a machine divide its weights among them (FSDP2) and gather those of a layer
            while it is computed; by default each process holds all of them.
        grid: `exact`: the teacher's patches must match the student's; or `resize`: features of a finer grid are
            averaged and those of a coarser one interpolated, if one divides the other along each axis.
        family: `package.module:NAME` of a `mvd_hf.teachers.TeacherFamily` of yours, for models of no known family.
        revision: branch, tag or commit of the model's repository.
        trust_remote_code: whether code of the model's repository may run; the `revision` must then be a commit, so
            that it is the code that you have read.

    Raises:
        ValueError: if a value is not one of the choices, or two choices exclude each other.
    """

    model: str
    frames: str | None = None
    image_size: int | list[int] | None = None
    layer: int = -1
    layers: list[int] | None = None
    norm: str | None = None
    target_norm: str = "none"
    loss: str = "smooth_l1"
    weight: float = 1.0
    on: str = "masked"
    visible_weight: float = 1.0
    visible_weighting: str = "uniform"
    summary: bool = False
    guides_masks: bool = False
    dtype: str = "float32"
    compile: bool = False
    frames_per_pass: int | None = None
    shard: bool = False
    grid: str = "exact"
    family: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self):
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                known = ", ".join(str(choice) for choice in choices if choice is not None)
                raise ValueError(f"{field}={getattr(self, field)!r} of a teacher must be one of {known}.")
        if self.shard and self.compile:
            raise ValueError(
                "shard=True and compile=True of a teacher exclude each other, as every layer would break the "
                "compiled graph: choose one."
            )
        is_commit = re.fullmatch("[0-9a-f]{40}", self.revision or "") is not None
        if self.trust_remote_code and not is_commit and not os.path.isdir(self.model):
            raise ValueError(
                f"trust_remote_code=True of the teacher {self.model!r} needs as its revision the commit of the code "
                f"that you have read (40 hexadecimal digits), not {self.revision!r}."
            )
        limit = self.frames_per_pass
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"frames_per_pass={limit!r} of a teacher must be a whole number above 0.")
        if self.image_size is not None:
            height_and_width(self.image_size)
        if not isinstance(self.layer, int):
            raise ValueError(f"layer={self.layer!r} of a teacher must be a whole number.")
        if self.layers is not None:
            self._check_layers()
        if self.visible_weight != 1 and self.on != "all":
            raise ValueError(f"visible_weight={self.visible_weight} of a teacher has no effect with on: {self.on}.")
        if self.visible_weighting != "uniform" and self.on == "masked":
            raise ValueError(f"visible_weighting={self.visible_weighting!r} of a teacher needs on: visible or all.")

    def _check_layers(self):
        layers = self.layers
        is_list = isinstance(layers, list) and all(isinstance(layer, int) for layer in layers)
        if not is_list or not layers or len(set(layers)) < len(layers):
            raise ValueError(f"layers={layers!r} of a teacher must be a list of different whole numbers.")
        if self.layer != -1:
            raise ValueError(f"layer={self.layer} and layers={layers} of a teacher exclude each other: give layers.")

    @classmethod
    def from_entry(cls, name: str, entry: "TeacherConfig | Mapping | str", **defaults) -> "TeacherConfig":
        """A recipe's entry as a `TeacherConfig`.

        Args:
            name: its name in the recipe.
            entry: a `TeacherConfig`, its fields, or just the model's id or folder.
            defaults: fields that the entry may leave out.

        Raises:
            ValueError: if the entry has an unknown field or no model.
        """
        if isinstance(entry, TeacherConfig):
            return entry
        entry = {"model": entry} if isinstance(entry, str) else entry
        known = [field.name for field in fields(cls)]
        unknown = sorted(entry.keys() - set(known))
        if unknown or "model" not in entry:
            problem = f"unknown keys {', '.join(unknown)}" if unknown else "no key 'model'"
            raise ValueError(f"The entry {name!r} has {problem}; the keys are {', '.join(known)}.")
        return cls(**(defaults | dict(entry)))


def machine_mesh(device: torch.device) -> DeviceMesh:
    """All processes in one row per machine; in a single row if machines have different numbers of processes."""
    count = dist.get_world_size()
    sizes: list[int] = [0] * count
    dist.all_gather_object(sizes, int(os.environ.get("LOCAL_WORLD_SIZE", 0)))
    per_machine = sizes[0]
    if len(set(sizes)) > 1 or per_machine < 1 or count % per_machine:
        logger.warning(
            "The processes' LOCAL_WORLD_SIZE, %s, does not divide %d processes into equal machines: the weights of "
            "teachers are divided among all processes and also gathered between machines.",
            sorted(set(sizes)),
            count,
        )
        per_machine = count
    if per_machine == count:
        return init_device_mesh(device.type, (count,), mesh_dim_names=("processes",))
    return init_device_mesh(device.type, (count // per_machine, per_machine), mesh_dim_names=("machines", "processes"))


def choose_family(config: TeacherConfig, model_config: PreTrainedConfig) -> TeacherFamily:
    """The family that an entry of a recipe names, or else that of a model's configuration."""
    return find_family(model_config, config.model) if config.family is None else import_family(config.family)


def tokens_of(output: Any) -> torch.Tensor:
    """The tokens (N, L, D) that a forward pass returns, alone or as `last_hidden_state`."""
    return output if torch.is_tensor(output) else output.last_hidden_state


def attend_and_keep(module, query, key, value, attention_mask, scaling, **kwargs):
    """Fused attention; the module keeps that of its class tokens to all tokens, a mean over heads (N, tokens)."""
    scores = query[:, :, : module.num_class_tokens] @ key.transpose(2, 3) * scaling
    module.class_attention = scores.float().softmax(dim=-1).mean(dim=(1, 2))
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(KEEPING_ATTENTION, attend_and_keep)


class Teacher(nn.Module):
    """A frozen model whose features are targets: `teacher(clips)` returns (B, L [+ 1], D), D of all its layers.

    With `guides_masks` the attention of its class token is one more channel, the last one.

    Args:
        config: the entry of a recipe.
        model: the network, of a known family. The teacher keeps its encoder and changes it in place: later layers and
            the final norm are removed, and positions are fitted to the student's grid.
        student_grid: patches of the student's clip, (time, rows, columns).
        num_frames: frames of the student's clip.
        normalization: of the pixels the model was trained on; by default that of its configuration or family.
        clip_normalization: the normalization of clips that arrive as floats; it is undone.

    Raises:
        ValueError: if the teacher's patches cannot match the student's, or it lacks what the config asks for.
    """

    def __init__(
        self,
        config: TeacherConfig,
        model: nn.Module,
        student_grid: Grid,
        num_frames: int,
        normalization: Normalization | None = None,
        clip_normalization: Normalization = IMAGENET,
    ):
        super().__init__()
        self.config, self.student_grid = config, student_grid
        model_config = getattr(model, "config", model)
        model_config = getattr(model_config, "vision_config", model_config)
        self.family = choose_family(config, model_config)
        sizes = self.family.architecture(model_config, config.model)
        self.num_extra_tokens, self.has_class_token = sizes.num_extra_tokens, sizes.num_class_tokens > 0
        self.patch_size = sizes.patch_size
        default = [sizes.patch_size * side for side in student_grid[1:]]
        self.image_size = compact_size(default if config.image_size is None else config.image_size)
        self.frames, self.frame_step, self.input_frames = self._choose_frames(sizes, num_frames)
        self.layers, self.layer_dim = self._layers(sizes.num_hidden_layers), sizes.hidden_size
        self.feature_dim = self.layer_dim * len(self.layers) + config.guides_masks
        self.model, final_norm = self.family.take_encoder(model, self._grid(sizes, num_frames), max(self.layers))
        self.guide = self._keep_attention(sizes.num_class_tokens) if config.guides_masks else None
        self.inner_states: dict[int, torch.Tensor] = {}
        for number in self.layers:
            if number < max(self.layers):
                self._keep_state(number)
        norm = config.norm or ("pre" if final_norm is None else self.family.norm)
        self.final_norm = final_norm if norm == "post" else None
        if norm == "post" and final_norm is None:
            raise ValueError(f"The teacher {config.model!r} has no final norm: choose norm: pre.")
        if normalization is None:
            default = self.family.normalization
            normalization = default if isinstance(default, Normalization) else default(model_config)
        factors = {"byte": normalization.from_bytes(), "float": normalization.from_normalized(clip_normalization)}
        for name, (scale, offset) in factors.items():
            self.register_buffer(f"{name}_scale", scale.float(), persistent=False)
            self.register_buffer(f"{name}_offset", offset.float(), persistent=False)
        self.mesh: DeviceMesh | None = None  # of the processes that divide the weights among them
        self.eval().requires_grad_(False)
        if config.compile:
            # teachers of one class share a cache, in which their different sizes would look like dynamic shapes
            self.model.compile(dynamic=False)

    def _choose_frames(self, sizes: Architecture, num_frames: int) -> tuple[str, int, int]:
        """The kind of input, the step between the frames that are used, and the number of frames in one input."""
        is_image_model = sizes.num_frames == 1
        frames = self.config.frames or ("first_of_tubelet" if is_image_model else "clip")
        if frames == "clip" and is_image_model:
            raise ValueError(
                f"The teacher {self.config.model!r} is an image model: choose frames: first_of_tubelet or all."
            )
        if frames != "clip" and sizes.tubelet_size > 1:
            raise ValueError(
                f"The teacher {self.config.model!r} has tubelets of {sizes.tubelet_size} frames, which single images "
                f"(frames: {frames}) cannot fill: choose frames: clip."
            )
        student_tubelet = num_frames // self.student_grid[0]
        if frames == "first_of_tubelet":
            return frames, student_tubelet, 1
        if frames == "all":
            return frames, 1, 1
        # as many frames as in the teacher's own training, if its tubelets then lie within the student's
        step = num_frames // sizes.num_frames
        if step < 1 or num_frames % sizes.num_frames or student_tubelet % (step * sizes.tubelet_size):
            step = 1
        return frames, step, num_frames // step

    def _grid(self, sizes: Architecture, num_frames: int) -> Grid:
        """The grid of one input, after a check that the patches of all inputs match the student's."""
        time, rows, columns = self.student_grid
        patch, tubelet, size = sizes.patch_size, sizes.tubelet_size, height_and_width(self.image_size)
        if self.input_frames % tubelet:
            raise ValueError(
                f"The teacher {self.config.model!r} takes tubelets of {tubelet} frames, and {self.input_frames} is no "
                "multiple: give clips another num_frames."
            )
        is_divisible = not any(side % patch for side in size)
        grid = (self.input_frames // tubelet, *(side // patch for side in size))
        seen = num_frames // self.frame_step
        slots = seen // self.input_frames * grid[0]
        found = (slots, *grid[1:])
        fits = found[1:] == (rows, columns) and slots > 0 and slots % time == 0
        is_resized = self.config.grid == "resize" and can_resize(found, self.student_grid)
        if not is_divisible or not (fits or is_resized):
            wanted = patch * rows if rows == columns else [patch * rows, patch * columns]
            raise ValueError(
                f"The teacher {self.config.model!r} gives {slots}x{grid[1]}x{grid[2]} patches (image_size="
                f"{self.image_size}, patch {patch}, {seen} frames, tubelet {tubelet}) for the student's "
                f"{time}x{rows}x{columns}. Its patches match with image_size={wanted} and, on clips, {time * tubelet} "
                "frames or a multiple; grid: resize takes a grid that divides the student's or is divided by it."
            )
        return grid

    def _layers(self, available: int) -> list[int]:
        """The numbers of the hidden states that the features are, from 0 to the number of layers."""
        layers = self.config.layers or [self.config.layer]
        for layer in layers:
            if not -available - 1 <= layer <= available:
                raise ValueError(
                    f"layer={layer} of the teacher {self.config.model!r} does not exist: it has {available} layers, "
                    f"choose from {-available - 1} to {available}."
                )
        numbers = [layer if layer >= 0 else available + 1 + layer for layer in layers]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"layers={layers} of the teacher {self.config.model!r} names a layer twice.")
        return numbers

    def _keep_state(self, number: int):
        """Let the forward pass leave an inner hidden state: the output of layer `number`, or the first's input."""
        layers = self.model.get_submodule(self.family.layers)

        def keep_output(module, inputs, output):
            self.inner_states[number] = output[0] if isinstance(output, tuple) else output

        def keep_input(module, inputs, options):
            self.inner_states[number] = inputs[0] if inputs else options["hidden_states"]

        if number:
            layers[number - 1].register_forward_hook(keep_output)
        else:
            layers[0].register_forward_pre_hook(keep_input, with_kwargs=True)

    def _keep_attention(self, num_class_tokens: int) -> nn.Module:
        """The attention of the last layer, which from now on keeps that of the class tokens.

        Raises:
            ValueError: if there is no class token, or no attention of transformers.
        """
        last = self.model.get_submodule(self.family.layers)[-1:]
        found = [each for each in last.modules() if hasattr(each, "is_causal") and hasattr(each, "config")]
        if not num_class_tokens or len(found) != 1:
            lacks = "no layer whose attention can be read" if num_class_tokens else "no class token"
            raise ValueError(
                f"guides_masks=True of the teacher {self.config.model!r}: it has {lacks}. Choose an image model with "
                "one, such as CLIP or DINOv2, or another mask_type."
            )
        attention = found[0]
        attention.num_class_tokens, attention.config = num_class_tokens, copy.copy(attention.config)
        attention.config._attn_implementation = KEEPING_ATTENTION
        return attention

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode, whatever the mode."""
        return super().train(False)

    def shard(self, device: torch.device):
        """Divide the weights among the processes of a machine, and gather those of a layer when it is computed.

        The targets do not change, as every process still computes its own. A single process keeps all weights.

        Args:
            device: where the weights go.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        self.mesh, total = machine_mesh(device), sum(parameter.numel() for parameter in self.model.parameters())
        for module in (*self.model.get_submodule(self.family.layers), self.model):
            fully_shard(module, mesh=self.mesh, reshard_after_forward=True)
        local = sum(parameter.to_local().numel() for parameter in self.model.parameters())
        logger.info("Of the %d weights of the teacher %r this process holds %d.", total, self.config.model, local)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """The model's input, in its dtype, from uint8 or normalized floats (..., C, H, W)."""
        kind = "float" if pixels.is_floating_point() else "byte"
        pixels = pixels * getattr(self, f"{kind}_scale") + getattr(self, f"{kind}_offset")
        return pixels.to(next(self.model.parameters()).dtype)

    def patch_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (N, t*h*w [+ 1], D) of inputs (N, T, C, H, W), without class and register tokens.

        The layers are side by side in the channels; the summary, if there is one, comes last.
        """
        is_half = next(self.model.parameters()).dtype != torch.float32
        with torch.autocast(pixels.device.type, enabled=False) if is_half else nullcontext():
            inputs = self.family.inputs(self.normalize(pixels), self.patch_size)
            last = tokens_of(self.model(**inputs))
            states = [last if number == max(self.layers) else self.inner_states.pop(number) for number in self.layers]
            # VideoPrism's temporal layers have (N * places, times, D)
            states = [
                state if len(state) == len(last) else state.unflatten(0, (len(last), -1)).transpose(1, 2).flatten(1, 2)
                for state in states
            ]
            parts = [self._tokens(state) for state in states]
            if self.guide is not None:
                attention = self.guide.class_attention[:, self.num_extra_tokens :, None]
                num_summaries = parts[0].shape[1] - attention.shape[1]
                parts.append(nn.functional.pad(attention, (0, 0, 0, num_summaries)).to(parts[0].dtype))
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _tokens(self, state: torch.Tensor) -> torch.Tensor:
        """The patches, and the summary if one is wanted, of a hidden state."""
        if not self.config.summary:
            patches = state[:, self.num_extra_tokens :]
            return patches if self.final_norm is None else self.final_norm(patches)
        state = state if self.final_norm is None else self.final_norm(state)
        patches = state[:, self.num_extra_tokens :]
        summary = state[:, :1] if self.has_class_token else patches.mean(dim=1, keepdim=True)
        return torch.cat([patches, summary], dim=1)

    def _as_many_as_elsewhere(self, passes: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The passes, the last repeated where other processes have more: they gather sharded weights together."""
        if self.mesh is None or self.config.frames_per_pass is None:
            return passes
        count = torch.tensor(len(passes), device=passes[0].device)
        dist.all_reduce(count, dist.ReduceOp.MAX, self.mesh.get_group("processes"))
        return passes + passes[-1:] * (int(count) - len(passes))

    @torch.no_grad()
    def forward(self, clips: Mapping[Size, torch.Tensor]) -> torch.Tensor:
        """Features (B, L [+ 1], D) for clips (B, T, C, H, W) by their size: the side of a square, or (H, W).

        Clips are uint8, or floats in the `clip_normalization`; the teacher applies its own normalization to both.
        Several layers are side by side in the channels. A summary comes behind the patches. `standardize` and `phi_s`
        are left to the trainer, which has the statistics.

        Raises:
            ValueError: if no clip has the teacher's size.
        """
        size = height_and_width(self.image_size)
        if self.image_size not in clips:
            found = ", ".join("{}x{}".format(*height_and_width(known)) for known in clips)
            raise ValueError(
                f"The teacher {self.config.model!r} needs clips of {size[0]}x{size[1]} pixels, the batch has {found}: "
                "let the data set make that size too (`sizes` of its augmentation)."
            )
        time, rows, columns = self.student_grid
        clip = clips[self.image_size][:, :: self.frame_step]
        inputs = clip.reshape(-1, self.input_frames, *clip.shape[2:])
        limit = self.config.frames_per_pass
        per_pass = len(inputs) if limit is None else max(1, limit // self.input_frames)
        parts = [self.patch_features(part) for part in self._as_many_as_elsewhere(inputs.split(per_pass))]
        features = parts[0] if len(parts) == 1 else torch.cat(parts)[: len(inputs)]
        summary = None
        if self.config.summary:
            features, summary = features[:, :-1], features[:, -1:]
            summary = summary.reshape(clip.shape[0], -1, self.feature_dim).mean(1, keepdim=True)
        if self.config.grid == "resize":
            sides = [side // self.patch_size for side in size]
            features = features.reshape(clip.shape[0], -1, *sides, self.feature_dim)
            features = resize_features(features, self.student_grid).flatten(1, 3)
        else:
            features = features.reshape(clip.shape[0], time, -1, rows * columns, self.feature_dim)
            features = features[:, :, 0] if features.shape[2] == 1 else features.mean(2)
            features = features.flatten(1, 2)
        features = features if summary is None else torch.cat([features, summary], dim=1)
        if self.config.target_norm == "layernorm":
            width = self.layer_dim * len(self.layers)
            layers, attention = features[..., :width].unflatten(-1, (-1, self.layer_dim)), features[..., width:]
            features = nn.functional.layer_norm(layers, (self.layer_dim,), eps=1e-6).flatten(-2)
            features = features if self.guide is None else torch.cat([features, attention], dim=-1)
        return features


@contextmanager
def undivided_loading() -> Iterator[None]:
    """Let `from_pretrained` give each process all weights.

    Otherwise DeepSpeed ZeRO-3 divides them, and FSDP's RAM-efficient loading leaves them out, in every model; but only
    the trained model is wrapped in what puts them together again.
    """
    reference = deepspeed._hf_deepspeed_config_weak_ref
    ram_efficient = os.environ.pop(RAM_EFFICIENT_LOADING, None)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if reference is not None and reference() is not None:
            deepspeed.set_hf_deepspeed_config(reference())
        if ram_efficient is not None:
            os.environ[RAM_EFFICIENT_LOADING] = ram_efficient


def load_network(
    config: TeacherConfig, model_config: PreTrainedConfig
) -> tuple[PreTrainedModel, dict[str, nn.Parameter]]:
    """A teacher's model, and by name the weights that its checkpoint lacks or has in another shape."""
    family = choose_family(config, model_config)
    if config.trust_remote_code:
        logger.warning("The teacher %r runs code of its repository, commit %s.", config.model, config.revision)
    try:
        with undivided_loading():
            model, report = AutoModel.from_pretrained(
                config.model,
                config=model_config,
                dtype=getattr(torch, config.dtype),
                attn_implementation=family.attention,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
                key_mapping=family.old_names,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise ValueError(f"The weights of the teacher {config.model!r} cannot be loaded: {error}") from error
    mismatched = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    fresh = mismatched | set(report["missing_keys"])
    return model, {name: parameter for name, parameter in model.named_parameters() if name in fresh}


def stored_normalization(config: TeacherConfig, model_config: PreTrainedConfig) -> Normalization | None:
    """The normalization of a model's processor; `None` without one, or if the configuration has its statistics."""
    family = choose_family(config, model_config)
    if not isinstance(family.normalization, Normalization):
        return None
    is_video = family.frames_field is not None
    return read_normalization(config.model, family.normalization, is_video, config.revision)


def load_teacher(
    config: TeacherConfig, student_grid: Grid, num_frames: int, clip_normalization: Normalization = IMAGENET
) -> Teacher:
    """A frozen teacher from a Hub id or local folder, on the CPU, with every weight it needs.

    Its pixels are normalized as its processor says, or by the default of its family if it has none.

    Args:
        config: the entry of a recipe.
        student_grid: patches of the student's clip, (time, rows, columns).
        num_frames: frames of the student's clip.
        clip_normalization: the normalization of clips that arrive as floats.

    Raises:
        ValueError: if the model cannot be loaded completely, or its patches cannot match the grid.
    """
    source = config.model
    custom = None if config.family is None else import_family(config.family)
    if custom is not None and custom.load is not None:
        model = custom.load(source).to(getattr(torch, config.dtype))
        return Teacher(config, model, student_grid, num_frames, clip_normalization=clip_normalization)
    model_config = read_config(source, custom, config.revision, config.trust_remote_code)
    family = choose_family(config, model_config)
    normalization, default = stored_normalization(config, model_config), family.normalization
    if normalization is None and isinstance(default, Normalization):
        normalization = default
        logger.warning(
            "The teacher %r has no processor: its pixels are normalized by mean %s and std %s, the default of %s.",
            source,
            normalization.mean,
            normalization.std,
            model_config.model_type,
        )
    model, fresh = load_network(config, model_config)
    teacher = Teacher(config, model, student_grid, num_frames, normalization, clip_normalization)
    used = {id(parameter) for parameter in teacher.parameters()}
    missing = sorted(name for name, p in fresh.items() if id(p) in used and not name.endswith(family.optional))
    if missing:
        raise ValueError(
            f"The teacher {source!r} lacks weights, or has them in another shape: {listed(missing)}. Use a complete "
            "checkpoint, or choose norm: pre or a lower layer if they are not needed."
        )
    return teacher


def load_teachers(
    teachers: Mapping[str, TeacherConfig | Mapping | str],
    student_grid: Grid,
    num_frames: int,
    clip_normalization: Normalization = IMAGENET,
) -> dict[str, Teacher]:
    """Frozen teachers by name, on the CPU.

    Args:
        teachers: per name a [`TeacherConfig`], its fields, or just the model's id or folder.
        student_grid: patches of the student's clip, (time, rows, columns).
        num_frames: frames of the student's clip.
        clip_normalization: the normalization of clips that arrive as floats.

    Raises:
        ValueError: if an entry has an unknown field, or a model cannot teach that grid.
    """
    configs = {name: TeacherConfig.from_entry(name, entry) for name, entry in teachers.items()}
    return {
        name: load_teacher(config, student_grid, num_frames, clip_normalization) for name, config in configs.items()
    }
