"""The paper's learning-rate schedule, weight-decay rule and layer-wise rates."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers.utils import is_peft_available

from ..model.modeling_mvd import MVDForPixelReconstruction, MVDPreTrainedModel
from .arguments import MVDTrainingArguments


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


def training_schedule(
    args: MVDTrainingArguments, num_steps: int, steps_per_epoch: int
) -> tuple[list[float], np.ndarray | None]:
    """Factor of the peak learning rate at every step, and the weight decays if they change."""
    total = num_steps if args.schedule_epochs is None else round(args.schedule_epochs * steps_per_epoch)
    warmup = args.get_warmup_steps(total) if args.warmup_steps else 0
    warmup = warmup or int(args.warmup_epochs * steps_per_epoch)
    factors = cosine_schedule(args.learning_rate, args.min_learning_rate, total, warmup) / args.learning_rate
    weight_decays = None
    if args.weight_decay_end is not None:
        weight_decays = cosine_schedule(args.weight_decay, args.weight_decay_end, total, 0)
    return factors.tolist(), weight_decays  # checkpoints hold the last factor and are read back without NumPy's types


def without_adapters(model: nn.Module) -> nn.Module:
    """The model itself, where `peft` has wrapped it."""
    if is_peft_available():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            return model.get_base_model()
    return model


def bare_model(model: nn.Module) -> nn.Module:
    """The MVD model inside the wrappers of adapters, compilation and parallel training."""
    return without_adapters(extract_model_from_parallel(model, keep_torch_compile=False))


# what adapters, compilation, checkpointing and parallel training put into the names of parameters
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def unwrapped_name(name: str) -> str:
    """The name of a parameter in the bare model."""
    name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    return name.removeprefix("module.").removeprefix("base_model.model.")


def has_weight_decay(name: str, parameter: nn.Parameter, model: MVDPreTrainedModel) -> bool:
    """The official rule: no decay for vectors, biases, the class token and VideoMAE's mask token.

    The student's mask tokens do decay (their official names escape the rule's list), and so do MAE's tokens. The
    query of an attentive pooler, which the official programs do not have, is a token and does not decay.
    """
    # DeepSpeed ZeRO-3 leaves an empty tensor in the place of a parameter, and its shape beside it
    shape = getattr(parameter, "ds_shape", parameter.shape)
    if len(shape) == 1 or name.endswith("bias"):
        return False
    if model.config.pixel_target == "mae" and isinstance(model, MVDForPixelReconstruction):
        return True
    return name not in ("mvd.embeddings.class_token", "decoder.mask_token", "pooler.query")


def layer_of(name: str, num_layers: int) -> int:
    """Depth of a parameter for layer-wise decay: 0 for the embeddings, i + 1 for layer i, `num_layers + 1` above."""
    name = name.removeprefix("mvd.")
    if name.startswith("embeddings."):
        return 0
    if name.startswith("layers."):
        return int(name.split(".")[1]) + 1
    return num_layers + 1


@dataclass(frozen=True)
class ParameterRule:
    """Whether a parameter decays, and how many layers it lies below the head (0: the head itself)."""

    decays: bool
    depth: int


def parameter_rules(model: nn.Module) -> dict[str, ParameterRule]:
    """The rule of every parameter, by its unwrapped name.

    Call it before parallel training wraps the model: afterwards parameters may be flat pieces without their shape.
    """
    bare = bare_model(model)
    top = bare.config.num_hidden_layers + 1
    return {
        unwrapped_name(name): ParameterRule(has_weight_decay(name, parameter, bare), top - layer_of(name, top - 1))
        for name, parameter in bare.named_parameters()
    }


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    layer_decay: float | None = None,
    rules: Mapping[str, ParameterRule] | None = None,
) -> list[dict]:
    """Optimizer groups of the trainable parameters: one per weight decay and rate, the head's first.

    Args:
        model: an MVD model; adapters, `torch.compile` and parallel training may have wrapped it.
        weight_decay: of the parameters that decay.
        layer_decay: factor of the learning rate per layer, counted from the head.
        rules: from [`parameter_rules`], made before the model was wrapped; by default they are made here.

    Returns:
        Dicts with `params`, `weight_decay` and `lr_scale` (1 without `layer_decay`).

    Raises:
        ValueError: naming a parameter without a rule, such as the flat one of FSDP without the original parameters.
    """
    rules = parameter_rules(model) if rules is None else rules
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rule = rules.get(unwrapped_name(name))
        if rule is None:
            raise ValueError(
                f"The parameter {name!r} is none of the model's own, so its weight decay and rate are unknown. FSDP "
                "needs fsdp_use_orig_params: true."
            )
        decay = weight_decay if rule.decays else 0.0
        scale = 1.0 if layer_decay is None else layer_decay**rule.depth
        group = groups.setdefault((scale, decay), {"params": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, reverse=True)]
