"""Model cards, filled from the files of a checkpoint: training run or conversion, results, license.

A card states only numbers that were measured with the checkpoint; numbers that the authors report are marked.
"""

import importlib.resources
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData
from safetensors import safe_open
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_INDEX_NAME, VIDEO_PROCESSOR_NAME

from ..model.configuration_mvd import MVDConfig
from ..model.labels_mvd import MULTI_LABEL, REGRESSION
from ..model.video_processing_mvd import MVDVideoProcessor
from .licenses import SourceModel, check_license, license_in_words, license_warnings, source_models
from .results import METRICS_NAME, PAPER, REPORTED, Result, measured_results, reported_results
from .run_record import CARD_NAME, RUN_RECORD_NAME, TARGET_STATISTICS, read_run_record
from .snippets import EXAMPLE_NAME, Snippet, execute_snippet

logger = logging.getLogger(__name__)

CONVERSION_NAME, FIGURES_FOLDER, CONFUSION_NAME = "conversion.json", "figures", "evaluation/confusion.png"
FIGURE_SUFFIXES = (".png", ".gif", ".jpg", ".webp")
ZOO = f"the model zoo of the authors of [Masked Video Distillation]({PAPER})"
CLASSIFIER, STUDENT = "MVDForVideoClassification", "MVDForFeatureDistillation"
DETECTOR = "MVDForActionDetection"
# a checkpoint in words, by its model class
MODEL_CLASSES = {
    CLASSIFIER: "A video classifier",
    DETECTOR: "A detector of the actions of each person in the middle frame of a clip, given the boxes of the people",
    STUDENT: f"A video encoder, the student of [Masked Video Distillation]({PAPER})",
    "MVDForPixelReconstruction": f"A masked autoencoder, as a teacher in [Masked Video Distillation]({PAPER})",
    "MVDModel": f"A video encoder as in [Masked Video Distillation]({PAPER})",
}
# model classes with a task head: the kind of their snippet, and their task on the Hub
SNIPPET_KINDS = {CLASSIFIER: "classifier", DETECTOR: "detector"}
HEAD_TASK, ENCODER_TASK = "video-classification", "feature-extraction"
# by arXiv number
CITATIONS = {
    "2212.04500": r"""@inproceedings{wang2023masked,
  title = {Masked Video Distillation: Rethinking Masked Feature Modeling for Self-supervised Video Representation
           Learning},
  author = {Wang, Rui and Chen, Dongdong and Wu, Zuxuan and Chen, Yinpeng and Dai, Xiyang and Liu, Mengchen and
            Yuan, Lu and Jiang, Yu-Gang},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {6312--6322},
  year = {2023}
}
""",
    "2203.12602": r"""@inproceedings{tong2022videomae,
  title = {VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video Pre-Training},
  author = {Tong, Zhan and Song, Yibing and Wang, Jue and Wang, Limin},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2022}
}
""",
    "2111.06377": r"""@inproceedings{he2022masked,
  title = {Masked Autoencoders Are Scalable Vision Learners},
  author = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\'a}r, Piotr and Girshick, Ross},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2022}
}
""",
}


@dataclass
class CardDetails:
    """What a card says that is not in the files of the checkpoint.

    Args:
        license: of the weights, by its name on the Hub.
        license_name, license_link: of a license that the Hub calls `other`.
        title: the heading; by default the name of the repository.
        base_model: Hub id of the model that was fine-tuned; by default from the record of the run.
        evaluated_on: name of the data set of `evaluation/metrics.json`; by default from the record of the run.
        benchmark, benchmark_task: Hub id of that data set and the name of its task, for `.eval_results/`.
        tags: further tags.
        reported: results that the authors report, as entries of `model_cards/zoo.yaml`.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    title: str | None = None
    base_model: str | None = None
    evaluated_on: str | None = None
    benchmark: str | None = None
    benchmark_task: str = "default"
    tags: list[str] = field(default_factory=list)
    reported: list[dict] = field(default_factory=list)


def read_template(name: str) -> jinja2.Template:
    """A template of this package; rendering fails if a variable is not given."""
    text = importlib.resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    return jinja2.Environment(undefined=jinja2.StrictUndefined, **options).from_string(text)


def read_shapes(folder: str | Path) -> dict[str, list[int]]:
    """Shapes of the weights in a folder, read without the weights; raises ValueError if there are none."""
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        raise ValueError(f"There are no weights in {str(folder)!r}: give the folder of a saved model.")
    shapes = {}
    for path in paths:
        with safe_open(path, "pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def model_class(config: MVDConfig) -> str:
    """The name of the model class of a checkpoint; raises ValueError if there is no card for it."""
    name = (config.architectures or ["MVDModel"])[0]
    if name not in MODEL_CLASSES:
        raise ValueError(f"No card can be written for a checkpoint of {name}, only for {', '.join(MODEL_CLASSES)}.")
    return name


def snippet_kind(folder: str | Path) -> str:
    """The kind of snippet for a checkpoint, a key of `mvd_hf.hub.snippets.SNIPPETS`."""
    name = model_class(MVDConfig.from_pretrained(folder))
    if name in SNIPPET_KINDS:
        return SNIPPET_KINDS[name]
    has_norm = any(weight.removeprefix("mvd.") == "layernorm.weight" for weight in read_shapes(folder))
    return "encoder" if has_norm else "encoder without final norm"


def describe_input(config: MVDConfig) -> str:
    """The input of a model, in words."""
    height, width = config.frame_size
    size = f"{height} x {width} pixels"
    return f"images of {size}" if config.num_frames == 1 else f"clips of {config.num_frames} frames of {size}"


def describe_classes(config: MVDConfig) -> str:
    """What a classifier predicts, in words."""
    if config.label_heads:
        counts = " and ".join(f"{size} classes of `{head}`" for head, size in config.label_heads.items())
        return f"with a head for each of {counts}"
    if config.problem_type == REGRESSION:
        return f"which predicts the number `{config.id2label[0]}`"
    return f"{config.num_labels} classes{', any number of them at once' * (config.problem_type == MULTI_LABEL)}"


def summarise(config: MVDConfig, name: str, parameters: int) -> str:
    """A checkpoint in a sentence or two, by the name of its model class."""
    text = (
        f"{MODEL_CLASSES[name]}: a vision transformer of {config.num_hidden_layers} layers and width "
        f"{config.hidden_size} for {describe_input(config)}; {parameters:,} parameters"
    )
    if name in SNIPPET_KINDS:
        return f"{text}, {describe_classes(config)}."
    if name == STUDENT:
        teachers = " and ".join(f"`{name}` (width {width})" for name, width in config.teacher_dims.items())
        return f"{text} with the decoders, which predict the features of the teachers {teachers} at masked patches."
    return f"{text}."


def read_stored_processor(folder: str | Path) -> MVDVideoProcessor:
    """The video processor in a checkpoint folder; raises ValueError if there is none."""
    try:
        return MVDVideoProcessor.from_pretrained(folder)
    except OSError as error:
        raise ValueError(
            f"{str(folder)!r} holds no {VIDEO_PROCESSOR_NAME}, which users need to prepare the model's input: save "
            "MVDVideoProcessor.for_model(model.config, ...) there, with the sampling of the training."
        ) from error


def describe_sampling(processor: MVDVideoProcessor, name: str) -> str:
    """How a checkpoint samples frames, by the name of its model class."""
    count, rate, fps = processor.num_frames, processor.frame_sampling_rate, processor.fps
    apart = f"{rate} frames apart" if fps is None else f"{1 / fps:g} seconds apart"
    if name == DETECTOR:
        side = processor.size["shortest_edge"]
        return (
            f"By default it samples {count} frames as in training, {apart}, around the frame of the "
            f"boxes; their short side is resized to {side} pixels."
        )
    if count == 1:
        return "It samples the middle frame."
    if fps is not None:
        chosen = f"{fps:g} per second, of a clip of {count / fps:g} seconds in the middle"
    elif processor.sampling == "dense":
        chosen = f"frames 0, {rate}, {2 * rate}, ... of a clip of {count * rate} in the middle"
    else:
        chosen = f"the middle frames of {count} equal parts of the video"
    return f"By default it samples {count} frames as in training: {chosen}."


def run_table(run: Mapping) -> dict[str, str]:
    """Rows of the table that shows the record of a run."""
    hardware, hours = run["hardware"], run["seconds"] / 3600
    counts = [f"{run[name]:{form}} {name}" for name, form in (("epochs", "g"), ("steps", ",")) if run.get(name)]
    recipe = run["recipe"]
    unit = "key frames" if "annotations" in recipe else "videos"
    mixture = [entry["dataset"] for entry in recipe.get("datasets") or ()]
    data = recipe.get("dataset") or mixture or recipe.get("annotations") or "not recorded"
    rows = {"data": f"{data if isinstance(data, str) else ', '.join(map(str, data))}: {run['videos']:,} {unit}"}
    rows |= {"weights": "exponential moving average over the steps"} if run.get("is_average") else {}
    rows |= {"length": ", ".join(counts)} if counts else {}
    rows |= {"effective batch": f"{run['effective_batch']} clips"} if "effective_batch" in run else {}
    rows |= {"peak learning rate": f"{run['learning_rate']:g}"} if "learning_rate" in run else {}
    rows |= {
        "hardware": f"{hardware['count']} x {hardware['device']}, {run['precision']}",
        "time": f"{hours:.2f} hours, {hours * hardware['count']:.2f} device hours",
    }
    for name, title in (("training", "last logged in training"), ("evaluation", "on held-out videos, after training")):
        values = [f"{key} {value:.4g}" for key, value in run.get(name, {}).items() if isinstance(value, int | float)]
        rows |= {title: ", ".join(values)} if values else {}
    return rows | {"versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items())}


def read_conversion(folder: str | Path) -> dict | None:
    """The record of the conversion in a folder; `None` if there is none."""
    path = Path(folder) / CONVERSION_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def evaluation_dataset(details: CardDetails, run: Mapping | None) -> str | None:
    """The data set of the measured results: as given, or as the recipe of the run names it."""
    recipe = {} if run is None else run["recipe"]
    names = ("eval_dataset", "dataset", "eval_annotations")
    return details.evaluated_on or next((recipe[name] for name in names if recipe.get(name)), None)


def describe_origin(run: Mapping | None, conversion: Mapping | None) -> str:
    """Where the weights come from."""
    if conversion is not None:
        return (
            f"The weights are those of [{conversion['title']}](https://arxiv.org/abs/{conversion['arxiv']}), "
            f"converted by mvd_hf from the authors' file `{conversion['file']}`. The conversion uses all weights of "
            f"the file and adds none. SHA-256 of the file: `{conversion['sha256']}`."
        )
    if run is not None:
        return "The weights were trained with mvd_hf. The record of the run:"
    return "There is no record of how these weights were made."


def find_figures(folder: str | Path) -> list[Path]:
    """Figures for the card of a checkpoint: those in `figures/`, and the confusion matrix of its evaluation.

    The figure of an evaluation's mistakes is left out because it shows frames of videos.
    """
    folder = Path(folder)
    figures = [*sorted((folder / FIGURES_FOLDER).glob("*")), folder / CONFUSION_NAME]
    return [path for path in figures if path.is_file() and path.suffix in FIGURE_SUFFIXES]


def checkpoint_files(folder: str | Path) -> list[Path]:
    """The files of a folder that are published: weights, configuration, processor, card, records, results, figures.

    With a student go the statistics of its targets, which further training of its decoders needs.
    Other files, such as optimizer states, lists of videos and logs, are left out.
    """
    folder = Path(folder)
    names = [CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, VIDEO_PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, CARD_NAME]
    names += [RUN_RECORD_NAME, CONVERSION_NAME, METRICS_NAME, TARGET_STATISTICS]
    files = [*sorted(folder.glob("*.safetensors")), *(folder / name for name in names), *find_figures(folder)]
    return [path for path in files if path.is_file()]


def card_metadata(name: str, task: str, details: CardDetails, results: Sequence[Result], **options) -> ModelCardData:
    """The metadata of a card, by which the Hub finds and shows a model; `options` are fields of `ModelCardData`."""
    if details.base_model is not None:
        options |= {"base_model": details.base_model, "base_model_relation": "finetune"}
    if results:
        entries = [entry for result in results for entry in result.entries()]
        metrics = sorted({entry.metric_type for entry in entries})
        options |= {"model_name": name.rpartition("/")[2], "eval_results": entries, "metrics": metrics}
    return ModelCardData(
        license=details.license,
        license_name=details.license_name,
        license_link=details.license_link,
        library_name="transformers",
        pipeline_tag=task,
        tags=["mvd", "masked-video-distillation", "video", *details.tags],
        **options,
    )


def checkpoint_metadata(
    folder: str | Path, name: str, details: CardDetails, results: Sequence[Result]
) -> ModelCardData:
    """The metadata of the card of a checkpoint: its task, base model, data set of the Hub, and example video."""
    run = read_run_record(folder)
    options: dict = {}
    if run is not None:
        base = run["sources"].get("base", {"is_local": True})
        details = replace(details, base_model=details.base_model or (None if base["is_local"] else base["model"]))
        options |= {} if run["hub_dataset"] is None else {"datasets": [run["hub_dataset"]]}
    kind = model_class(MVDConfig.from_pretrained(folder))
    if kind == CLASSIFIER and (Path(folder) / EXAMPLE_NAME).is_file():
        address = f"https://huggingface.co/{name}/resolve/main/{EXAMPLE_NAME}"
        options["widget"] = [{"src": address, "example_title": "An example"}]
    return card_metadata(name, HEAD_TASK if kind in SNIPPET_KINDS else ENCODER_TASK, details, results, **options)


def render_card(
    folder: str | Path, name: str, details: CardDetails, snippet: Snippet, sources: Sequence[SourceModel] = ()
) -> ModelCard:
    """The card of a checkpoint.

    Args:
        folder: the checkpoint, with its video processor.
        name: of its repository.
        details: what is not in the folder.
        snippet: how to use the checkpoint.
        sources: the models behind it, see `mvd_hf.hub.licenses.source_models`.

    Raises:
        ValueError: if the license, the checkpoint or the processor is missing, or a record is incomplete.
    """
    check_license(details.license, details.license_name, details.license_link)
    config, processor = MVDConfig.from_pretrained(folder), read_stored_processor(folder)
    run, conversion = read_run_record(folder), read_conversion(folder)
    results = measured_results(folder, evaluation_dataset(details, run)) + reported_results(details.reported)
    papers = dict.fromkeys([*([] if conversion is None else [conversion["arxiv"]]), "2212.04500"])
    license = license_in_words(details.license, details.license_name, details.license_link)
    body = read_template("model_card.md").render(
        title=details.title or name.rpartition("/")[2],
        summary=summarise(config, model_class(config), sum(map(math.prod, read_shapes(folder).values()))),
        preparation="",
        snippet=snippet,
        sampling=describe_sampling(processor, model_class(config)),
        results=results,
        has_reported=any(result.reported for result in results),
        reported=REPORTED,
        zoo=ZOO,
        origin=describe_origin(run, conversion),
        facts={} if run is None else run_table(run),
        sources=sources,
        recipe=yaml.safe_dump(run["recipe"], sort_keys=False) if run and run["recipe"] else "",
        figures=[str(path.relative_to(folder)) for path in find_figures(folder)],
        frames=describe_input(config),
        license=f"The weights are{'' if conversion is None else ' by their authors and'} under {license}.",
        warnings=license_warnings(details.license, sources),
        citation="\n".join(CITATIONS[paper] for paper in papers),
    )
    metadata = checkpoint_metadata(folder, name, details, results)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def write_card(folder: str | Path, name: str, details: CardDetails, with_code: bool = False) -> list[str]:
    """Run the snippet of a checkpoint and write its card; returns and logs a warning per stricter source model.

    Raises:
        ValueError: as [`render_card`], or if the snippet fails.
    """
    read_stored_processor(folder)
    snippet = execute_snippet(folder, name, snippet_kind(folder), with_code)
    sources = source_models(read_run_record(folder), HfApi())
    render_card(folder, name, details, snippet, sources).save(Path(folder) / CARD_NAME)
    warnings = license_warnings(details.license, sources)
    for warning in warnings:
        logger.warning("%s", warning)
    return warnings
