"""Starting points of pre-training: random weights of a published size, or a checkpoint (a warm start)."""

import logging
from collections.abc import Mapping, Sequence, Set

import torch
from huggingface_hub import HfApi

from ..model.configuration_mvd import MVDConfig
from ..model.loading_mvd import loading_problems, refuse_partial_load
from ..model.modeling_mvd import MVDPreTrainedModel
from ..teachers.teacher import undivided_loading
from .licenses import hub_license
from .loading import LABEL_FIELDS, is_published_name, load_source, read_source_config
from .run_record import is_hub_id, source_record

logger = logging.getLogger(__name__)

# fields that the weights of an encoder are for; with other values they would compute something else
ENCODER_FIELDS = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act", "layer_norm_eps"),
    *("num_channels", "patch_size", "tubelet_size", "position_embedding_type", "use_class_token", "key_bias"),
)
FINAL_NORM = ("mvd.layernorm.weight", "mvd.layernorm.bias")
LAYERS = "mvd.layers."


class StartingPoint:
    """What pre-training starts from.

    A checkpoint gives its configuration and its encoder, in which positions are computed for the grid of `config`. Of
    its decoders those are kept whose name and shapes are the new model's; all others are drawn anew.

    Args:
        source: a published size such as `mvd-b`, for random weights; or the folder or Hub id of an MVD model of any
            stage or of a VideoMAE of transformers, an official .pth file or a DeepSpeed folder.
        overrides: `MVDConfig` fields that differ.
        keep_layers: layers of the checkpoint's encoder that are kept, counted from 0 and ascending; by default all.

    Attributes:
        config: the configuration of the new model; `teacher_dims` may be set before [`build`].
        keeps_decoders: whether the model from [`build`] has decoders, or heads on the encoder, of the checkpoint.

    Raises:
        ValueError: if there is no such checkpoint, a field does not fit its encoder, or it has no such layers.
    """

    def __init__(self, source: str, overrides: Mapping | None = None, keep_layers: Sequence[int] | None = None):
        overrides = dict(overrides or {})
        MVDConfig.check_fields(overrides)
        self.source, self.keep_layers = source, keep_layers
        self.is_warm, self.keeps_decoders = not is_published_name(source), False
        if not self.is_warm:
            if keep_layers is not None:
                raise ValueError(
                    f"keep_layers={list(keep_layers)} needs a checkpoint to take the layers from, and {source!r} is a "
                    "published size: give config.num_hidden_layers instead."
                )
            self.config = MVDConfig.from_name(source, **overrides)
            return
        self._overrides, self.stored = overrides, read_source_config(source, overrides)
        if keep_layers is not None:
            self._check_layers(keep_layers)
        fields = {key: value for key, value in self.stored.to_diff_dict().items() if key not in LABEL_FIELDS}
        fields["num_hidden_layers"] = len(keep_layers or range(self.stored.num_hidden_layers))
        self._check_encoder(overrides, fields["num_hidden_layers"])
        self.config = MVDConfig(**(fields | overrides))

    def _check_layers(self, keep_layers: Sequence[int]):
        available = self.stored.num_hidden_layers
        if not keep_layers or list(keep_layers) != sorted(set(keep_layers) & set(range(available))):
            raise ValueError(
                f"keep_layers={list(keep_layers)} must be ascending numbers from 0 to {available - 1}, as "
                f"{self.source!r} has {available} layers."
            )

    def _check_encoder(self, overrides: Mapping, num_layers: int):
        """Refuse fields with which the encoder of the checkpoint would compute something else."""
        stored = {field: getattr(self.stored, field) for field in ENCODER_FIELDS} | {"num_hidden_layers": num_layers}
        for field, value in stored.items():
            if overrides.get(field, value) != value:
                remedy = ", or keep_layers for a shallower student" if field == "num_hidden_layers" else ""
                raise ValueError(
                    f"{field}={overrides[field]} does not fit {self.source!r}, which has {field}={value}: leave it "
                    f"out{remedy}, or start from a published size such as mvd-b."
                )

    def sources(self) -> dict[str, dict]:
        """The checkpoint as the source `base` of a run record, with its license; empty for random weights."""
        if not self.is_warm:
            return {}
        license = hub_license(self.source, HfApi()) if is_hub_id(self.source) else None
        found = {"license": license, "keep_layers": self.keep_layers}
        return {"base": source_record(self.source) | {key: value for key, value in found.items() if value}}

    def build(self, model_class: type[MVDPreTrainedModel]) -> MVDPreTrainedModel:
        """A model of `config`; of a warm start, the log names what is new.

        Raises:
            CheckpointMismatchError: (a ValueError) if weights of the checkpoint's encoder are missing, unexpected or
                of another shape.
        """
        model = model_class(self.config)
        if not self.is_warm:
            return model
        kept = fill(model, self._found(model_class))
        self.keeps_decoders = any(name.startswith(("decoders.", "encoder_heads.")) for name in kept)
        self._report(new=model.state_dict().keys() - kept)
        return model

    def _report(self, new: Set[str]):
        parts = sorted(set(map(part_of_model, new)))
        logger.info("Started from %s. New weights: %s.", self.source, ", ".join(parts) or "none")
        if self.keep_layers is not None:
            layers = ", ".join(map(str, self.keep_layers))
            logger.info("Of its %d layers those with the numbers %s are kept.", self.stored.num_hidden_layers, layers)
        if self.stored.grid != self.config.grid:
            now, before = ("x".join(map(str, config.grid)) for config in (self.config, self.stored))
            logger.info("Positions are computed for a grid of %s patches (before: %s).", now, before)

    def _found(self, model_class: type[MVDPreTrainedModel]) -> dict[str, torch.Tensor]:
        """The weights of the checkpoint under the names of a model class; what the checkpoint lacks is left out."""
        with undivided_loading():
            _, weights = load_source(self.source, self._overrides)
            model, report = model_class.from_pretrained(
                self.source if weights is None else None,
                config=self.stored,
                state_dict=weights,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # refused below
                output_loading_info=True,
            )
        problems = loading_problems(report)
        missing = problems["missing"] | problems["of another shape"]
        if missing.issuperset(FINAL_NORM):  # a classifier that averages its tokens has none
            problems["missing"] = problems["missing"].difference(FINAL_NORM)
        refuse_partial_load(model, self.source, problems, new_head=True, replace_head=True)
        names = {name: self._new_name(name) for name in model.state_dict().keys() - missing}
        return {new: model.state_dict()[name] for name, new in names.items() if new is not None}

    def _new_name(self, name: str) -> str | None:
        """The name of a weight after layers are left out; `None` if it is in one of those."""
        if self.keep_layers is None or not name.startswith(LAYERS):
            return name
        layer, _, rest = name.removeprefix(LAYERS).partition(".")
        return f"{LAYERS}{self.keep_layers.index(int(layer))}.{rest}" if int(layer) in self.keep_layers else None


def part_of_model(name: str) -> str:
    """The part of a weight: `decoder`, `decoders.image`, `encoder_heads.summary.image`, `mvd.layernorm`."""
    words = name.split(".")
    return ".".join(words[: {"decoder": 1, "encoder_heads": 3}.get(words[0], 2)])


def fill(model: MVDPreTrainedModel, weights: Mapping[str, torch.Tensor]) -> set[str]:
    """Load the parts of a model of which all weights are given in their shapes; returns the names of these weights."""
    names: dict[str, list[str]] = {}
    for name in model.state_dict():
        names.setdefault(part_of_model(name), []).append(name)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    fits = {name for name, shape in shapes.items() if name in weights and weights[name].shape == shape}
    kept = {name for part in names.values() if fits.issuperset(part) for name in part}
    model.load_state_dict({name: weights[name] for name in kept}, strict=False)
    return kept
