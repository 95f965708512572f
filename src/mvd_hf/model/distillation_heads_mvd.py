"""What a student predicts beside the masked patches: its heads on visible patches and on summaries, and its output.

Letters in shapes: B clips, V visible and M masked patches, D a width.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from .configuration_mvd import MVDConfig


@dataclass
class MVDForFeatureDistillationOutput(ModelOutput):
    """Output of [`MVDForFeatureDistillation`].

    Args:
        last_hidden_state (`(B, [1 +] V, D)`): the encoder's features of the visible patches, after the final norm.
        predictions (`dict` of `(B, M, D_teacher)`): the predicted features of the masked patches, in ascending order,
            by name of the teacher; `(B, V, D_teacher)` of the visible patches, or `(B, V + M, D_teacher)` of both, the
            visible ones first, where `config.teacher_tokens` says so.
        hidden_states, attentions: of the encoder, on request.
        summaries (`dict` of `(B, D_teacher)`, *optional*): the predicted summaries of the clips, by name of the
            teacher.
    """

    last_hidden_state: torch.Tensor | None = None
    predictions: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    summaries: dict[str, torch.Tensor] | None = None


class MVDSummaryHead(nn.Module):
    """Predicts a teacher's summary of a clip from the mean of the encoder's patch tokens, by two linear layers."""

    def __init__(self, config: MVDConfig, output_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(config.hidden_size, output_dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, V, D) to (B, output_dim)."""
        return self.fc2(self.activation(self.fc1(tokens.mean(dim=1))))


class MVDEncoderHeads(nn.Module):
    """Heads on the encoder alone: linear ones for visible patches, small MLPs for summaries."""

    def __init__(self, config: MVDConfig):
        super().__init__()
        self.num_extra_tokens = int(config.use_class_token)
        widths = {name: config.teacher_dims[name] for name, on in config.teacher_tokens.items() if on == "visible"}
        self.visible = nn.ModuleDict({name: nn.Linear(config.hidden_size, dim) for name, dim in widths.items()})
        self.summary = nn.ModuleDict({name: MVDSummaryHead(config, dim) for name, dim in config.summary_dims.items()})

    def forward(self, encoded: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Encoder output (B, [1 +] V, D) to predictions (B, V, D_teacher) and summaries (B, D_teacher) by teacher."""
        tokens = encoded[:, self.num_extra_tokens :]
        predictions = {name: head(tokens) for name, head in self.visible.items()}
        return predictions, {name: head(tokens) for name, head in self.summary.items()}


def check_teachers(config: MVDConfig):
    """Raise ValueError, naming the values, if a student cannot have the teachers of its configuration."""
    if not config.teacher_dims:
        raise ValueError('config.teacher_dims names no teacher; give for example {"image": 768, "video": 768}.')
    for name in config.teacher_dims:
        if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"The teacher name {name!r} must be an identifier that names no method of a module.")
    for field in ("teacher_tokens", "summary_dims"):
        unknown = sorted(getattr(config, field).keys() - config.teacher_dims.keys())
        if unknown:
            raise ValueError(f"config.{field} names {', '.join(unknown)}, which config.teacher_dims does not.")
    has_decoder = any(config.teacher_tokens.get(name) != "visible" for name in config.teacher_dims)
    if config.decoder_keep < 1 and not has_decoder:
        raise ValueError(
            f"decoder_keep={config.decoder_keep} has no effect, as all teachers are compared on visible patches, "
            "which no decoder predicts: leave it out, or compare one on masked patches or all."
        )


__all__ = ["MVDEncoderHeads", "MVDForFeatureDistillationOutput", "MVDSummaryHead", "check_teachers"]
