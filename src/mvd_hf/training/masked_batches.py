"""What a model in pre-training sees of a batch: each clip once for each of its masks."""

from collections.abc import Mapping

import torch

from ..model.configuration_mvd import MVDConfig

MASKS = ("bool_masked_pos", "bool_decoded_pos")


def masked_inputs(
    inputs: Mapping[str, torch.Tensor], config: MVDConfig, masks_per_clip: int | None = None
) -> dict[str, torch.Tensor | int]:
    """Inputs of a pre-training model, in which a clip with m masks comes m times.

    Args:
        inputs: `pixel_values` (B, ...), `bool_masked_pos` (B, L) or (B, m, L), `bool_decoded_pos` alike.
        config: the model's.
        masks_per_clip: m of the training arguments, which the batch must have; `None` in an evaluation.

    Returns:
        `pixel_values` (B * m, ...), the masks as (B * m, L), and `num_masked`.

    Raises:
        ValueError: if a training batch has other masks than the arguments and the configuration ask for.
    """
    masks = {name: inputs[name] for name in MASKS if inputs.get(name) is not None}
    per_clip = next((mask.shape[1] for mask in masks.values() if mask.dim() == 3), 1)
    if masks_per_clip is not None:
        check_masks(per_clip, "bool_decoded_pos" in masks, config, masks_per_clip)
    pixel_values = inputs["pixel_values"]
    return {
        "pixel_values": pixel_values if per_clip == 1 else pixel_values.repeat_interleave(per_clip, dim=0),
        **{name: mask.flatten(0, -2) for name, mask in masks.items()},
        "num_masked": config.num_masked_patches,
    }


def check_masks(per_clip: int, has_decoded_part: bool, config: MVDConfig, masks_per_clip: int):
    """Raise ValueError if a training batch has other masks than the arguments and the configuration ask for."""
    remedy = "make the data set with mvd_hf.data.pretraining_clips from the same arguments and configuration"
    if per_clip != masks_per_clip:
        raise ValueError(f"masks_per_clip={masks_per_clip}, but the data set draws {per_clip} per clip: {remedy}.")
    if has_decoded_part != (config.num_decoded_patches < config.num_masked_patches):
        has = "has" if has_decoded_part else "lacks"
        raise ValueError(f"decoder_keep={config.decoder_keep}, but the batch {has} bool_decoded_pos: {remedy}.")
