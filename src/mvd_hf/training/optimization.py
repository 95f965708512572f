"""The paper's learning-rate schedule, weight-decay rule and layer-wise rates."""

import numpy as np
from torch import nn
from transformers.utils import is_peft_available

from ..model.modeling_mvd import MVDForPixelReconstruction, MVDPreTrainedModel


def cosine_schedule(peak: float, floor: float, total_steps: int, warmup_steps: int, start: float = 0.0) -> np.ndarray:
    """A value per step: linear from the start to the peak, both included, then half a cosine towards the floor.

    The peak occurs at two consecutive steps, the floor is approached and not reached, as in the official schedule.

    Raises:
        ValueError: if the warm-up is longer than the schedule.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"A warm-up of {warmup_steps} steps does not fit a schedule of {total_steps} steps: train for more epochs "
            "or lower warmup_epochs (or warmup_steps)."
        )
    warmup = np.linspace(start, peak, warmup_steps)
    steps = np.arange(total_steps - warmup_steps)
    cosine = floor + 0.5 * (peak - floor) * (1 + np.cos(np.pi * steps / max(len(steps), 1)))
    return np.concatenate([warmup, cosine])


def without_adapters(model: nn.Module) -> nn.Module:
    """The model itself, where `peft` has wrapped it."""
    if is_peft_available():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            return model.get_base_model()
    return model


def has_weight_decay(name: str, parameter: nn.Parameter, model: MVDPreTrainedModel) -> bool:
    """The official rule: no decay for vectors, biases, the class token and VideoMAE's mask token.

    The student's mask tokens do decay (their official names escape the rule's list), and so do MAE's tokens. An
    attentive pooler's query, which the official programs do not have, is a token and does not.
    """
    if parameter.dim() == 1 or name.endswith("bias"):
        return False
    if model.config.pixel_target == "mae" and isinstance(model, MVDForPixelReconstruction):
        return True
    return name not in ("mvd.embeddings.class_token", "decoder.mask_token", "pooler.query")


def layer_of(name: str, num_layers: int) -> int:
    """Place of a parameter for layer-wise decay: 0 the embeddings, i + 1 layer i, `num_layers + 1` the rest."""
    name = name.removeprefix("mvd.")
    if name.startswith("embeddings."):
        return 0
    if name.startswith("layers."):
        return int(name.split(".")[1]) + 1
    return num_layers + 1


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict]:
    """Optimizer groups of the trainable parameters: one per weight decay and rate, the head's first.

    Args:
        model: an MVD model, or one with `peft` adapters.
        weight_decay: of the parameters that have some.
        layer_decay: factor of the learning rate per layer, counted from the head.

    Returns:
        Dicts with `params`, `weight_decay` and `lr_scale` (1 without `layer_decay`).
    """
    model = without_adapters(model)
    num_layers = model.config.num_hidden_layers
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if has_weight_decay(name, parameter, model) else 0.0
        scale = 1.0 if layer_decay is None else layer_decay ** (num_layers + 1 - layer_of(name, num_layers))
        group = groups.setdefault((scale, decay), {"params": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]
