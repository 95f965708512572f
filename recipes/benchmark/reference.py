"""A naive distillation step to compare ours with; it follows the description of the official program, not its code.

The data loader provides float clips for the student and for the teachers. Attention materializes its weights (N, N),
masked patches are embedded and then dropped, masks are boolean indices, the optimizer updates one parameter after the
other, and the host waits for the loss and the gradient norm in every step. Losses and gradients equal those of our
step with the same weights (`tests/recipes/benchmark/test_reference.py`).

Letters in shapes: B clips, T frames, C channels, H x W pixels, L patches, N tokens, D their width.
"""

import math
from collections.abc import Mapping

import torch
from torch import nn

from mvd_hf.model.configuration_mvd import compact_size
from mvd_hf.model.modeling_mvd import MVDAttention, MVDDecoder, MVDForFeatureDistillation, MVDLayer, MVDModel
from mvd_hf.teachers.teacher import Teacher, TeacherConfig
from mvd_hf.training.optimization import parameter_groups


def attend(attention: MVDAttention, tokens: torch.Tensor) -> torch.Tensor:
    """Self-attention of tokens (B, N, D) with materialized weights (B, heads, N, N)."""
    batch, count, width = tokens.shape
    qkv = attention.qkv
    key_bias = torch.zeros_like(qkv.q_bias) if qkv.k_bias is None else qkv.k_bias
    projected = nn.functional.linear(tokens, qkv.weight, torch.cat((qkv.q_bias, key_bias, qkv.v_bias)))
    query, key, value = projected.reshape(batch, count, 3, -1, attention.head_dim).permute(2, 0, 3, 1, 4)
    weights = (query * attention.scaling @ key.transpose(-2, -1)).softmax(dim=-1)
    return attention.proj((weights @ value).transpose(1, 2).reshape(batch, count, width))


def run_layers(layers: nn.ModuleList, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, D) through pre-norm layers with stochastic depth."""
    layer: MVDLayer
    for layer in layers:
        tokens = tokens + layer.drop_path(attend(layer.attention, layer.norm1(tokens)))
        tokens = tokens + layer.drop_path(layer.mlp(layer.norm2(tokens)))
    return tokens


def kept(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Tokens (B, n, D) of tokens (B, L, D) where a mask (B, L) with n True values per row is True."""
    return tokens[mask].reshape(tokens.shape[0], -1, tokens.shape[-1])


def encode(model: MVDModel, clips: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Features (B, L, D) of clips (B, C, T, H, W); with a mask (B, L), only those of visible patches."""
    embeddings = model.embeddings
    projection = embeddings.projection
    tokens = nn.functional.conv3d(clips, projection.weight, projection.bias, projection.stride)
    positions = embeddings.positions(tuple(tokens.shape[2:]))
    tokens = tokens.flatten(2).transpose(1, 2)
    has_class_token = embeddings.class_token is not None
    # MAE's positions are a float32 parameter, so that its tokens stay in float32
    tokens = tokens + (positions if has_class_token else positions.to(tokens.dtype))
    if mask is not None:
        tokens = kept(tokens, ~mask)
    if has_class_token:
        tokens = torch.cat((embeddings.class_token.expand(len(tokens), -1, -1), tokens), dim=1)
    tokens = run_layers(model.layers, tokens)
    return tokens if model.layernorm is None else model.layernorm(tokens)


def decode(decoder: MVDDecoder, encoded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Predictions (B, M, D_teacher) of the masked patches of a mask (B, L) from visible tokens (B, V, D)."""
    visible = decoder.embed(encoded)
    positions = decoder.positions.table.to(visible.dtype).expand(len(mask), -1, -1)
    masked = decoder.mask_token + kept(positions, mask)
    tokens = run_layers(decoder.layers, torch.cat((visible + kept(positions, ~mask), masked), dim=1))
    return decoder.head(decoder.norm(tokens[:, -masked.shape[1] :]))


def teach(teacher: Teacher, clips: torch.Tensor) -> torch.Tensor:
    """Targets (B, L, D) from clips (B, C, T, H, W)."""
    seen = clips[:, :, :: teacher.frame_step]
    batch, channels, frames, *size = seen.shape
    if teacher.input_frames == 1:  # images: time goes into the batch
        seen = seen.transpose(1, 2).reshape(batch * frames, channels, 1, *size)
    features = encode(teacher.model, seen)[:, teacher.num_extra_tokens :]
    return features.reshape(batch, -1, features.shape[-1])


def check_teacher(name: str, teacher: Teacher):
    """Raise ValueError if the official program has no such teacher."""
    is_plain = isinstance(teacher.model, MVDModel) and teacher.final_norm is None
    plain = TeacherConfig(teacher.config.model)
    options = ("loss", "target_norm", "layers", "on", "summary", "guides_masks")
    if not is_plain or any(getattr(teacher.config, option) != getattr(plain, option) for option in options):
        raise ValueError(
            f"The naive step does not support the teacher {name!r} ({teacher.config.model}): use an MVDModel of MAE "
            f"or VideoMAE without final norm and without {', '.join(options)}."
        )


class NaiveStep:
    """A training step on a batch as the official data loader makes it.

    Args:
        student: the student, trained in place.
        teachers: MAE and VideoMAE encoders by name.
        learning_rate, weight_decay: of AdamW.
        precision: `float32`, or `bfloat16` or `float16` for autocast; `float16` scales gradients.

    Raises:
        ValueError: if a teacher is not supported.
    """

    def __init__(
        self,
        student: MVDForFeatureDistillation,
        teachers: Mapping[str, Teacher],
        learning_rate: float = 1.5e-4,
        weight_decay: float = 0.05,
        precision: str = "float32",
    ):
        for name, teacher in teachers.items():
            check_teacher(name, teacher)
        self.student, self.teachers = student.train(), teachers
        self.device = next(student.parameters()).device
        groups = parameter_groups(student, weight_decay)
        self.optimizer = torch.optim.AdamW(groups, learning_rate, betas=(0.9, 0.95), foreach=False)
        self.precision = getattr(torch, precision)
        scales = precision == "float16" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scales)

    def losses(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The loss against each teacher for `student` and `teacher` clips (B, C, T, H, W) and `mask` (B, L)."""
        mask = batch["mask"]
        half = self.precision != torch.float32
        with torch.autocast(self.device.type, self.precision if half else torch.bfloat16, enabled=half):
            targets = {}
            with torch.no_grad():
                for name, teacher in self.teachers.items():
                    is_image = teacher.input_frames == 1
                    fits = compact_size(batch["student"].shape[-2:]) == teacher.image_size
                    targets[name] = teach(teacher, batch["teacher" if is_image or not fits else "student"])
            encoded = encode(self.student.mvd, batch["student"], mask)
            predictions = {name: decode(decoder, encoded, mask) for name, decoder in self.student.decoders.items()}
            return {
                name: nn.functional.smooth_l1_loss(prediction, kept(targets[name], mask))
                for name, prediction in predictions.items()
            }

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> float:
        """Train on a batch on the host, see [`losses`], and return the loss."""
        batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        losses = self.losses(batch)
        loss = sum(teacher.config.weight * losses[name] for name, teacher in self.teachers.items())
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"The loss is {value}.")
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"]]
        self.gradient_norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return value
