"""Loading a classifier or a detector from any MVD or VideoMAE checkpoint, with a report of its new weights."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import CONFIG_NAME

from ..arguments import check_path
from ..model.configuration_mvd import MVDConfig
from ..model.detection_mvd import MVDForActionDetection
from ..model.loading_mvd import CheckpointMismatchError, listed, loading_problems, refuse_partial_load
from ..model.modeling_mvd import MVDForVideoClassification, MVDPreTrainedModel
from ..model.video_processing_mvd import MVDVideoProcessor
from ..teachers.families import FAMILIES
from ..teachers.normalization import IMAGENET, read_normalization
from .conversion import convert_checkpoint, videomae_config, videomae_weights

logger = logging.getLogger(__name__)

Weights = dict[str, torch.Tensor]
# fields of a configuration that say what its classes are
LABEL_FIELDS = ("id2label", "label2id", "label_heads", "problem_type")


def is_published_name(source: str) -> bool:
    """Whether a source names a published size (`mvd-s`), and not a folder or a model of the Hub."""
    if os.path.exists(source) or "/" in source:
        return False
    try:
        MVDConfig.from_name(source)
    except ValueError:
        return False
    return True


def read_stored_config(source: str) -> dict:
    """The configuration in a folder or repository of the Hub; raises ValueError if there is none."""
    check_path(source, "model")
    try:
        stored, _ = PreTrainedConfig.get_config_dict(source)
        if "model_type" not in stored:
            raise ValueError("its configuration is missing or has no model_type")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"The model {source!r} cannot be loaded: give a folder with a {CONFIG_NAME}, the id of a model of the "
            f"Hub, a .pth file, or, to train from scratch, a published size such as mvd-s ({error})."
        ) from error
    return stored


def converted_videomae_config(source: str, config: PreTrainedConfig) -> MVDConfig:
    """The `MVDConfig` for a VideoMAE model of transformers, with the normalisation of its processor."""
    normalization = read_normalization(source, IMAGENET, is_video=True) or IMAGENET
    return videomae_config(config, normalization.mean, normalization.std)


def load_videomae(source: str, stored: Mapping) -> tuple[MVDConfig, Weights]:
    """Configuration and weights of a VideoMAE model of transformers, encoder and head, under our names.

    Weights that the checkpoint lacks are left out.
    """
    config = AutoConfig.for_model(**stored)
    is_classifier = any("VideoClassification" in name for name in stored.get("architectures") or ())
    auto_class = AutoModelForVideoClassification if is_classifier else AutoModelForPreTraining
    model, missing = load_with_report(auto_class, source, config)
    return converted_videomae_config(source, config), videomae_weights(model, missing)


def load_with_report(auto_class: type, source: str, config: PreTrainedConfig) -> tuple[PreTrainedModel, set[str]]:
    """A VideoMAE model of transformers, and the names of the weights that its checkpoint lacks."""
    videomae = FAMILIES["videomae"]
    options = {"key_mapping": videomae.old_names, "output_loading_info": True, "dtype": torch.float32}
    model, report = auto_class.from_pretrained(source, config=config, **options)
    return model, {name for name in report["missing_keys"] if not name.endswith(videomae.optional)}


def load_trained_classifier(source: str) -> PreTrainedModel:
    """An MVD or VideoMAE classifier with the head that it was trained with.

    Args:
        source: folder or Hub id.

    Raises:
        ValueError: if it is a model of another kind, such as a student.
        CheckpointMismatchError: (a ValueError) naming weights that it lacks.
    """
    stored = read_stored_config(source)
    kinds = stored.get("architectures") or ()
    if kinds and not any("VideoClassification" in kind for kind in kinds):
        raise ValueError(f"{source!r} is a {kinds[0]}, not a classifier: fine-tune it first, and give the result.")
    if stored.get("model_type") != "videomae":
        return AutoModelForVideoClassification.from_pretrained(source, dtype=torch.float32)
    model, missing = load_with_report(AutoModelForVideoClassification, source, AutoConfig.for_model(**stored))
    if missing:
        raise CheckpointMismatchError(
            f"{source} is no trained classifier: it lacks the weights {listed(sorted(missing))}. Fine-tune it first, "
            "or give the result of a fine-tuning."
        )
    return model


def holds_official_weights(source: str) -> bool:
    """Whether a source is a file or folder of the official format, not one of transformers or a model of the Hub."""
    path = Path(source)
    return path.is_file() or (path.is_dir() and not (path / CONFIG_NAME).exists())


def read_source_config(source: str, overrides: Mapping) -> MVDConfig:
    """The configuration of a checkpoint; its weights are read only if they are of the official format."""
    if not holds_official_weights(source):
        stored = read_stored_config(source)
        if stored.get("model_type") == "videomae":
            return converted_videomae_config(source, AutoConfig.for_model(**stored))
    return load_source(source, overrides)[0]


def load_source(source: str, overrides: Mapping) -> tuple[MVDConfig, Weights | None]:
    """Configuration and weights of a checkpoint; no weights where `from_pretrained` can read them."""
    path = Path(source)
    if holds_official_weights(source):
        unknown = ("num_attention_heads", "decoder_num_attention_heads", "position_embedding_type")
        model = convert_checkpoint(path, **{key: overrides[key] for key in unknown if key in overrides})
        return model.config, model.state_dict()
    stored = read_stored_config(source)
    if stored.get("model_type") == "videomae":
        return load_videomae(source, stored)
    if stored.get("model_type") != "mvd":
        raise ValueError(
            f"The model {source!r} has the type {stored.get('model_type')!r}; training starts from MVD and VideoMAE."
        )
    try:
        return MVDConfig.from_pretrained(source), None
    except (StrictDataclassError, TypeError, AttributeError) as error:
        raise ValueError(f"The {CONFIG_NAME} of the model {source!r} is not valid: {error}") from error


def check_source(source: str):
    """Raise ValueError if there is no such model to start from, before long work: only its configuration is read."""
    path = Path(source)
    if not is_published_name(source) and not path.is_file() and not any(path.rglob("*.pt")):
        read_stored_config(source)


def has_class_names(config: PreTrainedConfig) -> bool:
    """Whether the classes of a configuration have names other than the default ones."""
    return list(config.id2label.values()) != [f"LABEL_{i}" for i in range(len(config.id2label))]


def load_processor(source: str, config: PreTrainedConfig, sampling: str | None = None) -> MVDVideoProcessor:
    """The video processor of a model; a VideoMAE of transformers gets one of ours with its normalisation.

    Args:
        source: folder or Hub id of the model.
        config: its configuration.
        sampling: `dense` or `uniform`, to replace the stored one.

    Raises:
        ValueError: if there is no stored processor and no sampling is given.
    """
    chosen = {} if sampling is None else {"sampling": sampling}
    if config.model_type == "mvd":
        try:
            return MVDVideoProcessor.from_pretrained(source, **chosen)
        except OSError as error:
            if sampling is None:
                raise ValueError(
                    f"The model {source!r} has no video processor, which stores how training sampled frames: give "
                    f"sampling, dense or uniform ({error})."
                ) from error
            return MVDVideoProcessor.for_model(config, **chosen)
    return MVDVideoProcessor.for_model(converted_videomae_config(source, config), **chosen)


def check_fps_of_source(source: str, processor: MVDVideoProcessor):
    """Raise ValueError if a model was trained on clips by seconds, and the processor of a run has a stride."""
    if is_published_name(source) or os.path.isfile(source):
        return
    try:
        stored, _ = MVDVideoProcessor.get_video_processor_dict(source)
    except OSError:  # it has no processor
        return
    fps = stored.get("fps")
    if fps is not None and processor.fps is None and processor.sampling == "dense":
        raise ValueError(
            f"The model {source!r} was trained on clips of {fps:g} frames per second, the recipe has "
            f"stride={processor.frame_sampling_rate}: give fps={fps:g}, or another fps."
        )


def load_classifier(
    source: str, classes: Sequence[str] | int, config: Mapping | None = None
) -> tuple[MVDForVideoClassification, list[str]]:
    """A classifier with the encoder of a checkpoint, and the names of its new weights, which are also logged.

    A classification head for the same classes is kept and put into the given order. A head for the same number of
    classes is kept where the classes of either side have no names. All other weights must be complete.

    Args:
        source: folder or Hub id of an MVD model of any stage, or of a VideoMAE of transformers; an official .pth file
            or DeepSpeed folder; or a published size such as `mvd-s`, to train from scratch.
        classes: names of the classes, or their number.
        config: `MVDConfig` fields to change, such as `drop_path_rate`.

    Raises:
        ValueError: if the source is none of these.
        CheckpointMismatchError: (a ValueError) if weights of the encoder are missing, unexpected or of another shape.
    """
    overrides = {key: value for key, value in (config or {}).items() if key != "num_labels"}
    MVDConfig.check_fields(overrides)
    names = None if isinstance(classes, int) else list(classes)
    labels = {"num_labels": classes} if names is None else label_fields(names)
    if is_published_name(source):
        fields = {"problem_type": "single_label_classification"} | labels | overrides
        model = MVDForVideoClassification(MVDConfig.from_name(source, **fields))
        logger.info("All weights are new: %s is trained from scratch.", source)
        return model, [name for name, _ in model.named_parameters()]
    stored, weights = load_source(source, overrides)
    stored_names = list(stored.id2label.values()) if has_class_names(stored) else None
    if names is None and stored_names is not None and len(stored_names) == classes:
        labels = label_fields(stored_names)
    fields = {key: value for key, value in stored.to_diff_dict().items() if key not in LABEL_FIELDS}
    fields |= {"problem_type": "single_label_classification"} | labels | overrides
    model, new = load_weights(MVDForVideoClassification, source, MVDConfig(**fields), weights)
    if stored_names is not None and names is not None:
        if sorted(stored_names) == sorted(names):
            reorder_head(model, [stored_names.index(name) for name in names])
        else:
            new |= reset_head(model)
            logger.info("The classes of %s are replaced: %s by %s.", source, listed(stored_names, 3), listed(names, 3))
    return model, log_new_weights(source, new)


def load_detector(
    source: str, actions: Mapping[int, str], config: Mapping | None = None, final_norm: str = "checkpoint"
) -> tuple[MVDForActionDetection, list[str]]:
    """A detector with the encoder of a checkpoint, and the names of its new weights, which are also logged.

    The head of a detector that knows all the actions is kept, its classes matched by name. A head for the same number
    of classes without names is kept. All other weights must be complete.

    Args:
        source: as in [`load_classifier`].
        actions: class ids, from 1, and names. A class of the model whose id is missing is called `unused <id>`.
        config: `MVDConfig` fields to change, such as `drop_path_rate`.
        final_norm: source of the encoder's final norm: `checkpoint`, or `fc_norm` or `fresh` for a mean-pooling
            classifier, which has none, see [`MVDForActionDetection.from_classifier`].

    Raises:
        ValueError: if the source is none of these, or has no such norm.
        CheckpointMismatchError: (a ValueError) if weights of the encoder are missing, unexpected or of another shape.
    """
    overrides = {key: value for key, value in (config or {}).items() if key != "num_labels"}
    MVDConfig.check_fields(overrides)
    names = [actions.get(number, f"unused {number}") for number in range(1, max(actions) + 1)]
    if is_published_name(source):
        model = MVDForActionDetection(MVDConfig.from_name(source, **label_fields(names), **overrides))
        logger.info("All weights are new: %s is trained from scratch.", source)
        return model, [name for name, _ in model.named_parameters()]
    if final_norm != "checkpoint":
        read_stored_config(source)  # the error says what a model may be
        model = MVDForActionDetection.from_classifier(source, final_norm, **overrides, **label_fields(names))
        return model, log_new_weights(source, {"classifier.weight", "classifier.bias"})
    stored, weights = load_source(source, overrides)
    stored_names = list(stored.id2label.values()) if has_class_names(stored) else None
    is_detector = MVDForActionDetection.__name__ in (stored.architectures or ())
    is_known = is_detector and stored_names is not None and set(stored_names) >= set(actions.values())
    fields = {key: value for key, value in stored.to_diff_dict().items() if key not in LABEL_FIELDS}
    fields |= label_fields(stored_names if is_known else names) | overrides
    model, new = load_weights(MVDForActionDetection, source, MVDConfig(**fields), weights)
    if is_known and stored_names != names:
        select_classes(model, names)
        logger.info("The %d classes of %s are matched by name.", len(stored_names), source)
    elif not is_known and (stored_names is not None or not is_detector):
        new = new or reset_head(model)
        if is_detector:
            logger.info("The classes of %s are replaced: %s by %s.", source, listed(stored_names, 3), listed(names, 3))
    return model, log_new_weights(source, new)


def log_new_weights(source: str, new: Collection[str]) -> list[str]:
    """Log which weights are new, and return their names in order."""
    logger.info("New weights: %s. All others are from %s.", ", ".join(sorted(new)) or "none", source)
    return sorted(new)


def load_weights(
    kind: type[MVDPreTrainedModel], source: str, config: MVDConfig, weights: Weights | None
) -> tuple[MVDPreTrainedModel, set[str]]:
    """A model with the given weights, or else those of the source, and the names of its new weights."""
    try:
        model, report = kind.from_pretrained(
            None if weights is not None else source,
            config=config,
            state_dict=weights,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # refused below, except in the head
            output_loading_info=True,
        )
    except (SafetensorError, OSError) as error:
        raise ValueError(f"The weights of the model {source!r} cannot be read: {error}") from error
    problems = loading_problems(report)
    refuse_partial_load(model, source, problems, new_head=True, replace_head=True)
    return model, problems["missing"] | problems["of another shape"]


def label_fields(names: Sequence[str]) -> dict[str, dict]:
    """Names of classes as fields of a configuration."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


@torch.no_grad()
def reorder_head(model: MVDForVideoClassification, order: Sequence[int]):
    """Make class `order[i]` of the head class i."""
    for parameter in model.classifier.parameters():
        parameter.copy_(parameter[list(order)].clone())


@torch.no_grad()
def select_classes(model: MVDForActionDetection, names: Sequence[str]):
    """Give a detector the classes of these names; those that its head does not know are initialised."""
    trained, known = model.classifier, model.config.label2id
    model.config.update(label_fields(names))
    model.num_labels = len(names)
    model.classifier = nn.Linear(trained.in_features, len(names))
    reset_head(model)
    rows = [row for row, name in enumerate(names) if name in known]
    for name, parameter in model.classifier.named_parameters():
        parameter[rows] = getattr(trained, name)[[known[names[row]] for row in rows]]


def reset_head(model: MVDForVideoClassification | MVDForActionDetection) -> set[str]:
    """Initialise the linear layer of the head again; returns the names of its weights."""
    names = set()
    for name, parameter in model.classifier.named_parameters():
        parameter._is_hf_initialized = False  # or transformers would skip it
        names.add(f"classifier.{name}")
    model._init_weights(model.classifier)
    return names
