"""MVDForActionDetection: the actions of each person in the middle frame of a clip, from the person's box.

Letters in shapes: B clips, P people per clip (padded), T frames, C channels, H x W pixels; t x h x w the grid of
patches, D their width; K action classes. Boxes are x1, y1, x2, y2 in pixels of the clip, from its upper left corner.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.ops import roi_align
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .boxes_mvd import enlarge_boxes, pad_people
from .configuration_mvd import MVDConfig
from .modeling_mvd import MVDForVideoClassification, MVDModel, MVDPreTrainedModel
from .patches_mvd import patch_grid

FINAL_NORMS = ("fc_norm", "fresh")


@dataclass
class MVDForActionDetectionOutput(ModelOutput):
    """Output of [`MVDForActionDetection`].

    Args:
        loss (`()`): binary cross entropy, averaged over the classes and summed over the people of all clips.
        logits (`(B, P, K)`): each person's scores of the actions, before the sigmoid; meaningless for padding.
        boxes (`(B, P, 4)`): the people's boxes, as given.
        box_mask (`(B, P)` int64): 1 for people, 0 for padding.
        hidden_states, attentions: of the encoder, on request.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    box_mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class MVDForActionDetection(MVDPreTrainedModel):
    """Stage 3, the action detector (AVA).

    The patch tokens after the encoder's final norm are averaged over time; RoIAlign pools each person's box, and a
    linear layer classifies the maximum of its bins.

    A student's checkpoint has the final norm, a mean-pooling classifier's has not (see [`from_classifier`]). Frames
    can have any height and width that the patches divide, with position embeddings as in `config.detection_positions`.
    """

    _head_parts = ("classifier",)
    weight_init = "finetune"

    def __init__(self, config: MVDConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.mvd = MVDModel(config, weight_init=self.weight_init)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self.classifier:
            init.trunc_normal_(module.weight, std=self.config.initializer_range * self.config.head_init_scale)

    @classmethod
    def from_classifier(cls, pretrained_model_name_or_path, final_norm: str, **overrides) -> "MVDForActionDetection":
        """A detector with a new head and the encoder of a mean-pooling classifier, which has no final norm.

        Args:
            pretrained_model_name_or_path: the checkpoint of an [`MVDForVideoClassification`].
            final_norm: the detector's final norm: `"fc_norm"`, the classifier's, which was trained on the mean of the
                same tokens; or `"fresh"`, of weights 1 and biases 0, as in the AVA runs with Kinetics labels.
            overrides: configuration fields that differ, such as `num_labels` or `id2label`.

        Raises:
            ValueError: if `final_norm` is neither, or the classifier has a final norm.
        """
        if final_norm not in FINAL_NORMS:
            raise ValueError(f"There is no final_norm={final_norm!r}; choose {', '.join(FINAL_NORMS)}.")
        classifier = MVDForVideoClassification.from_pretrained(pretrained_model_name_or_path)
        if classifier.fc_norm is None:
            raise ValueError(
                f"{pretrained_model_name_or_path!s} has a final encoder norm: load it with from_pretrained."
            )
        of_labels = {"label_heads": None, "problem_type": None}
        config = cls.config_class.from_dict({**classifier.config.to_dict(), **of_labels, **overrides})
        model = cls(config).eval()
        weights = classifier.mvd.state_dict()
        norm = classifier.fc_norm if final_norm == "fc_norm" else model.mvd.layernorm
        weights |= {f"layernorm.{name}": value for name, value in norm.state_dict().items()}
        model.mvd.load_state_dict(weights)
        return model

    def check_people(
        self, pixel_values: torch.Tensor, boxes: torch.Tensor | None, box_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The mask of the people (B, P) as bool, by default all True; ValueError if shapes or types do not fit."""
        batch = pixel_values.shape[0]
        if boxes is None:
            raise ValueError(
                "boxes (clips, people, 4) are missing: x1, y1, x2, y2 of each person in pixels of the clip."
            )
        if boxes.dim() != 3 or boxes.shape[0] != batch or boxes.shape[2] != 4 or not boxes.is_floating_point():
            raise ValueError(
                f"boxes must be ({batch} clips, people, 4) floats, or a list of (people, 4) for each clip, got "
                f"{tuple(boxes.shape)} {boxes.dtype}."
            )
        if box_mask is None:
            return torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        if box_mask.shape != boxes.shape[:2] or box_mask.is_floating_point():
            raise ValueError(
                f"box_mask must be {tuple(boxes.shape[:2])} bool or integers, got {tuple(box_mask.shape)} "
                f"{box_mask.dtype}."
            )
        return box_mask.bool()

    def pool_people(self, features: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Features (B, h, w, D) float32, averaged over time, to one vector per person (B, P, D)."""
        size, num_people = self.config.detection_pool_size, boxes.shape[1]
        clip = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(-1, num_people).flatten()
        regions = torch.cat([clip[:, None].to(features.dtype), boxes.flatten(0, 1).to(features.dtype)], dim=1)
        # in float32, as RoIAlign has no bfloat16 kernel on CPUs
        with torch.autocast(device_type=features.device.type, enabled=False):
            bins = roi_align(features.permute(0, 3, 1, 2), regions, size, 1 / self.config.patch_size)
        return bins.flatten(2).max(dim=2).values.unflatten(0, (boxes.shape[0], num_people))

    def loss(self, labels: torch.Tensor, logits: torch.Tensor, box_mask: torch.Tensor) -> torch.Tensor:
        """Binary cross entropy, averaged over the classes and summed over the people."""
        if labels.shape != logits.shape:
            raise ValueError(
                f"labels must be {tuple(logits.shape)} (clips, people, classes), 1 for each action of a person, got "
                f"{tuple(labels.shape)}."
            )
        entropy = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        return entropy.mean(dim=2).masked_fill(~box_mask, 0.0).sum()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        boxes: torch.Tensor | Sequence[torch.Tensor] | None = None,
        box_mask: torch.Tensor | None = None,
        labels: torch.Tensor | Sequence[torch.Tensor] | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MVDForActionDetectionOutput:
        r"""
        Args:
            pixel_values (`(B, T, C, H, W)`): frames, uint8 or normalised floats.
            boxes (`(B, P, 4)` float, or a list of `(people, 4)` for each clip): x1, y1, x2, y2 in pixels of the clip.
                Evaluation enlarges them by `config.detection_margin`, within the clip.
            box_mask (`(B, P)` bool or 0 and 1, *optional*): which rows are people; by default all, or as many as the
                lists have.
            labels (`(B, P, K)`, or a list of `(people, K)`, *optional*): 1 for each action of a person, else 0.
            interpolate_pos_encoding (*optional*): as in [`MVDModel`]; by default set by `config.detection_positions`.

        Raises:
            ValueError: if the clip does not fit the patches, or boxes, mask or labels do not fit the clip.
        """
        if isinstance(boxes, list | tuple):
            boxes, box_mask = pad_people(boxes)
        if isinstance(labels, list | tuple):
            labels, _ = pad_people(labels)
        box_mask = self.check_people(pixel_values, boxes, box_mask)
        if interpolate_pos_encoding is None:
            interpolate_pos_encoding = self.config.detection_positions == "interpolated"
        encoded = self.mvd(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        tokens = encoded.last_hidden_state[:, int(self.config.use_class_token) :]
        features = tokens.unflatten(1, patch_grid(pixel_values, self.config)).mean(dim=1, dtype=torch.float32)
        regions = (
            boxes if self.training else enlarge_boxes(boxes, self.config.detection_margin, pixel_values.shape[-2:])
        )
        people = self.pool_people(features, regions).to(self.classifier.weight.dtype)
        logits = self.classifier(self.dropout(people))
        return MVDForActionDetectionOutput(
            loss=None if labels is None else self.loss(labels, logits, box_mask),
            logits=logits,
            boxes=boxes,
            box_mask=box_mask.long(),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


__all__ = ["MVDForActionDetection", "MVDForActionDetectionOutput"]
