"""Stage 3 begins: a classifier from any MVD or VideoMAE checkpoint, saying which of its weights are new."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForPreTraining, AutoModelForVideoClassification, PreTrainedConfig
from transformers.utils import CONFIG_NAME

from ..model.configuration_mvd import MVDConfig
from ..model.loading_mvd import listed, loading_problems, refuse_partial_load
from ..model.modeling_mvd import MVDForVideoClassification
from ..model.video_processing_mvd import MVDVideoProcessor
from ..teachers.families import FAMILIES, read_normalization
from .conversion import convert_checkpoint, videomae_config, videomae_weights

logger = logging.getLogger(__name__)

Weights = dict[str, torch.Tensor]


def is_published_name(source: str) -> bool:
    """Whether it names a published size (`mvd-s`), not a folder or a model of the Hub."""
    if os.path.exists(source) or "/" in source:
        return False
    try:
        MVDConfig.from_name(source)
    except ValueError:
        return False
    return True


def read_stored_config(source: str) -> dict:
    """The configuration in a folder or at a Hub id.

    Raises:
        ValueError: if there is none, saying what a model may be.
    """
    try:
        stored, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"The model {source!r} cannot be had: give a folder with a {CONFIG_NAME}, the id of a model of the Hub, a "
            f".pth file, or, to train from scratch, a published size such as mvd-s ({error})."
        ) from error
    return stored


def load_videomae(source: str, stored: Mapping) -> tuple[MVDConfig, Weights]:
    """Our configuration and weights of one of transformers' VideoMAE models: of its encoder and its classifier."""
    config = AutoConfig.for_model(**stored)
    is_classifier = any("VideoClassification" in name for name in stored.get("architectures") or ())
    auto_class = AutoModelForVideoClassification if is_classifier else AutoModelForPreTraining
    model = auto_class.from_pretrained(
        source, config=config, dtype=torch.float32, key_mapping=FAMILIES["videomae"].old_names
    )
    normalization = read_normalization(source, config) or FAMILIES["videomae"].normalization
    return videomae_config(config, normalization.mean, normalization.std), videomae_weights(model)


def load_source(source: str, overrides: Mapping) -> tuple[MVDConfig, Weights | None]:
    """Configuration of a checkpoint and its weights, `None` where `from_pretrained` reads them itself.

    Raises:
        ValueError: if there is no such checkpoint, or one of another type.
    """
    path = Path(source)
    if path.is_file() or (path.is_dir() and not (path / CONFIG_NAME).exists()):
        unknown = ("num_attention_heads", "decoder_num_attention_heads", "position_embedding_type")
        model = convert_checkpoint(path, **{key: overrides[key] for key in unknown if key in overrides})
        return model.config, model.state_dict()
    stored = read_stored_config(source)
    if stored.get("model_type") == "videomae":
        return load_videomae(source, stored)
    if stored.get("model_type") != "mvd":
        raise ValueError(
            f"The model {source!r} is of the type {stored.get('model_type')!r}; fine-tuning takes MVD and VideoMAE."
        )
    try:
        return MVDConfig.from_pretrained(source), None
    except (StrictDataclassError, TypeError, AttributeError) as error:
        raise ValueError(f"The {CONFIG_NAME} of the model {source!r} is not an MVD model's: {error}") from error


def has_class_names(config: PreTrainedConfig) -> bool:
    """Whether the classes of a configuration have names of their own."""
    return list(config.id2label.values()) != [f"LABEL_{i}" for i in range(len(config.id2label))]


def load_processor(source: str, config: PreTrainedConfig, sampling: str | None = None) -> MVDVideoProcessor:
    """The video processor of a classifier; one of transformers' VideoMAE gets ours, with its own normalisation.

    Args:
        source: folder or Hub id of the classifier.
        config: its configuration.
        sampling: `dense` or `uniform`, if another than the stored one.

    Raises:
        ValueError: if there is none and no sampling is given, as only the training knows it.
    """
    chosen = {} if sampling is None else {"sampling": sampling}
    if config.model_type == "mvd":
        try:
            return MVDVideoProcessor.from_pretrained(source, **chosen)
        except OSError as error:
            if sampling is None:
                raise ValueError(
                    f"The model {source!r} has no video processor that says how frames were sampled in training: give "
                    f"sampling, dense or uniform ({error})."
                ) from error
            return MVDVideoProcessor.for_model(config, **chosen)
    normalization = read_normalization(source, config) or FAMILIES["videomae"].normalization
    return MVDVideoProcessor.for_model(videomae_config(config, normalization.mean, normalization.std), **chosen)


def load_classifier(
    source: str, classes: Sequence[str] | int, config: Mapping | None = None
) -> tuple[MVDForVideoClassification, list[str]]:
    """A classifier whose encoder comes from a checkpoint, and the names of its new weights, which are logged, too.

    The head of a checkpoint is kept if it is for the same classes, which then stand in the given order, or for as many
    where either has no names. All else must be complete.

    Args:
        source: a folder or Hub id of an MVD model of any stage or of transformers' VideoMAE; an official .pth file or
            DeepSpeed folder; or a published size such as `mvd-s`, for training from scratch.
        classes: names of the classes, or their number.
        config: `MVDConfig` fields that shall differ, such as `drop_path_rate`.

    Raises:
        ValueError: if there is no such model, or it is none of these.
        CheckpointMismatchError: (a ValueError) naming weights of the encoder that are missing, left over or of another
            shape.
    """
    overrides = {key: value for key, value in (config or {}).items() if key != "num_labels"}
    MVDConfig.check_fields(overrides)
    names = None if isinstance(classes, int) else list(classes)
    labels = {"num_labels": classes} if names is None else as_labels(names)
    labels["problem_type"] = "single_label_classification"
    if is_published_name(source):
        model = MVDForVideoClassification(MVDConfig.from_name(source, **(labels | overrides)))
        logger.info("All weights are new: %s is trained from scratch.", source)
        return model, [name for name, _ in model.named_parameters()]
    stored, weights = load_source(source, overrides)
    own = list(stored.id2label.values()) if has_class_names(stored) else None
    if names is None and own is not None and len(own) == classes:
        labels = {**as_labels(own), "problem_type": labels["problem_type"]}
    kept = {key: value for key, value in stored.to_diff_dict().items() if key not in ("id2label", "label2id")}
    try:
        model, report = MVDForVideoClassification.from_pretrained(
            None if weights is not None else source,
            config=MVDConfig(**(kept | labels | overrides)),
            state_dict=weights,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # judged below, by name
            output_loading_info=True,
        )
    except (SafetensorError, OSError) as error:
        raise ValueError(f"The weights of the model {source!r} cannot be read: {error}") from error
    problems = loading_problems(report)
    refuse_partial_load(model, source, problems, new_head=True, replace_head=True)
    fresh = problems["missing"] | problems["of another shape"]
    if own is not None and names is not None and sorted(own) != sorted(names):
        fresh |= replace_head(model)
        logger.info("The classes of %s are replaced: %s by %s.", source, listed(own, 3), listed(names, 3))
    elif own is not None and names is not None:
        reorder_head(model, [own.index(name) for name in names])
    logger.info("New weights: %s. All others are from %s.", ", ".join(sorted(fresh)) or "none", source)
    return model, sorted(fresh)


@torch.no_grad()
def reorder_head(model: MVDForVideoClassification, order: Sequence[int]):
    """Let class i be what class `order[i]` was."""
    for parameter in model.classifier.parameters():
        parameter.copy_(parameter[list(order)].clone())


def as_labels(names: Sequence[str]) -> dict[str, dict]:
    """Names of classes as fields of a configuration."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def replace_head(model: MVDForVideoClassification) -> set[str]:
    """Draw the classifier anew, where the loaded one is for as many other classes; gives the names of its weights."""
    names = set()
    for name, parameter in model.classifier.named_parameters():
        parameter._is_hf_initialized = False
        names.add(f"classifier.{name}")
    model._init_weights(model.classifier)
    return names
