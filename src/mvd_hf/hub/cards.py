"""Model cards, written from what lies in a checkpoint's folder: its run or conversion, its results, its license.

A card claims no number that was not measured with the checkpoint, unless it is marked as reported by the authors.
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
from ..model.video_processing_mvd import MVDVideoProcessor
from .licenses import SourceModel, check_license, license_warnings, source_models
from .results import METRICS_NAME, PAPER, REPORTED, Result, measured_results, reported_results
from .run_record import CARD_NAME, RUN_RECORD_NAME, read_run_record
from .snippets import EXAMPLE_NAME, Snippet, execute_snippet

logger = logging.getLogger(__name__)

CONVERSION_NAME, PICTURES, CONFUSION_NAME = "conversion.json", "pictures", "evaluation/confusion.png"
PICTURE_SUFFIXES = (".png", ".gif", ".jpg", ".webp")
ZOO = f"the model zoo of the authors of [Masked Video Distillation]({PAPER})"
CLASSIFIER, STUDENT = "MVDForVideoClassification", "MVDForFeatureDistillation"
DETECTOR = "MVDForActionDetection"
# what a checkpoint is, by the class of its model
KINDS = {
    CLASSIFIER: "A classifier of videos",
    DETECTOR: "A detector of the actions of each person in the middle frame of a clip, given where they are",
    STUDENT: f"An encoder of videos, the student of [Masked Video Distillation]({PAPER})",
    "MVDForPixelReconstruction": f"A masked autoencoder, as those that teach in [Masked Video Distillation]({PAPER})",
    "MVDModel": f"An encoder in the manner of [Masked Video Distillation]({PAPER})",
}
# classes with a head of their own, as `mvd_hf.hub.snippets.SNIPPETS` and as the Hub names them
SNIPPET_KINDS = {CLASSIFIER: "classifier", DETECTOR: "detector"}
TASKS = {CLASSIFIER: "video-classification", DETECTOR: "video-classification"}
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
    """What a card says that its folder does not tell.

    Args:
        license: of the weights, as the Hub writes it.
        license_name, license_link: of a license that the Hub calls `other`.
        title: the heading; by default the name of the repository.
        base_model: Hub id of the model that this one was fine-tuned from; by default what the run recorded.
        evaluated_on: name of the data set of the results in `evaluation/metrics.json`; by default as in the recipe.
        benchmark, benchmark_task: Hub id of that data set and the name of its task, for `.eval_results/`.
        tags: further tags.
        reported: results of this model that its authors report, as entries of `model_cards/zoo.yaml` have them.
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
    """A template of this package; what it names must be given."""
    text = importlib.resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    return jinja2.Environment(undefined=jinja2.StrictUndefined, **options).from_string(text)


def read_shapes(folder: str | Path) -> dict[str, list[int]]:
    """Shapes of the weights of the checkpoint in a folder, from the heads of its files alone.

    Raises:
        ValueError: if there is no checkpoint.
    """
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        raise ValueError(f"There are no weights in {str(folder)!r}: give the folder of a saved model.")
    shapes = {}
    for path in paths:
        with safe_open(path, "pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def snippet_kind(folder: str | Path) -> str:
    """What the checkpoint in a folder is, as `mvd_hf.hub.snippets.SNIPPETS` has it."""
    kind = kind_of(MVDConfig.from_pretrained(folder))
    if kind in SNIPPET_KINDS:
        return SNIPPET_KINDS[kind]
    has_norm = any(name.removeprefix("mvd.") == "layernorm.weight" for name in read_shapes(folder))
    return "encoder" if has_norm else "encoder without final norm"


def kind_of(config: MVDConfig) -> str:
    """The class of a checkpoint's model.

    Raises:
        ValueError: if no card can be written for it.
    """
    kind = (config.architectures or ["MVDModel"])[0]
    if kind not in KINDS:
        raise ValueError(f"No card can be written for a checkpoint of {kind}, only for {', '.join(KINDS)}.")
    return kind


def frames_of(config: MVDConfig) -> str:
    """What a model sees."""
    height, width = config.frame_size
    size = f"{height} x {width} pixels"
    return f"images of {size}" if config.num_frames == 1 else f"clips of {config.num_frames} frames of {size}"


def summarise(config: MVDConfig, kind: str, parameters: int) -> str:
    """What a checkpoint is, in a sentence or two."""
    text = f"{KINDS[kind]}: a vision transformer of {config.num_hidden_layers} layers and width {config.hidden_size} "
    text += f"for {frames_of(config)}; {parameters:,} parameters"
    if kind in SNIPPET_KINDS:
        return f"{text}, {config.num_labels} classes."
    if kind == STUDENT:
        teachers = " and ".join(f"`{name}` (width {width})" for name, width in config.teacher_dims.items())
        return f"{text} with the decoders, which predict the features of the teachers {teachers} at masked patches."
    return f"{text}."


def load_processor(folder: str | Path) -> MVDVideoProcessor:
    """The video processor of a checkpoint.

    Raises:
        ValueError: if there is none.
    """
    try:
        return MVDVideoProcessor.from_pretrained(folder)
    except OSError as error:
        raise ValueError(
            f"{str(folder)!r} holds no {VIDEO_PROCESSOR_NAME}, so nobody would know how to make the model's input: "
            "save MVDVideoProcessor.for_model(model.config, ...) there, with sampling as in training."
        ) from error


def describe_sampling(processor: MVDVideoProcessor, kind: str) -> str:
    """How a checkpoint of a kind chooses frames."""
    count, rate = processor.num_frames, processor.frame_sampling_rate
    if kind == DETECTOR:
        side = processor.size["shortest_edge"]
        return (
            f"By default {count} frames are taken as in training, at a distance of {rate} around that of the people; "
            f"their short side is resized to {side} pixels."
        )
    if count == 1:
        return "Its middle frame is taken."
    chosen = f"frames number 0, {rate}, {2 * rate}, ... of a clip of {count * rate} in the middle"
    if processor.sampling == "uniform":
        chosen = f"the middles of {count} equal parts of the video"
    return f"By default {count} frames are taken as in training: {chosen}."


def facts_of_run(run: Mapping) -> dict[str, str]:
    """A run's record as the rows of a table."""
    hardware, hours = run["hardware"], run["seconds"] / 3600
    counts = [f"{run[name]:{form}} {name}" for name, form in (("epochs", "g"), ("steps", ",")) if run.get(name)]
    recipe = run["recipe"]
    unit = "key frames" if "annotations" in recipe else "videos"
    data = recipe.get("dataset") or recipe.get("annotations") or "not recorded"
    facts = {"data": f"{data if isinstance(data, str) else ', '.join(map(str, data))}: {run['videos']:,} {unit}"}
    facts |= {"weights": "moving average over the steps"} if run.get("is_average") else {}
    facts |= {"length": ", ".join(counts)} if counts else {}
    facts |= {"effective batch": f"{run['effective_batch']} clips"} if "effective_batch" in run else {}
    facts |= {"peak learning rate": f"{run['learning_rate']:g}"} if "learning_rate" in run else {}
    facts |= {
        "hardware": f"{hardware['count']} x {hardware['device']}, {run['precision']}",
        "time": f"{hours:.2f} hours, {hours * hardware['count']:.2f} device hours",
    }
    for name, title in (("training", "last logged in training"), ("evaluation", "on held-out videos, after training")):
        values = [f"{key} {value:.4g}" for key, value in run.get(name, {}).items() if isinstance(value, int | float)]
        facts |= {title: ", ".join(values)} if values else {}
    return facts | {"versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items())}


def read_conversion(folder: str | Path) -> dict | None:
    """What a conversion left in a folder: the paper, the authors' file and its digest; `None` if there was none."""
    path = Path(folder) / CONVERSION_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def evaluated_on(run: Mapping | None) -> str | None:
    """What a run calls the data set that its model was evaluated on."""
    recipe = {} if run is None else run["recipe"]
    names = ("eval_dataset", "dataset", "eval_annotations")
    return next((recipe[name] for name in names if recipe.get(name)), None)


def describe_making(run: Mapping | None, conversion: Mapping | None) -> str:
    """Where the weights come from."""
    if conversion is not None:
        return (
            f"The weights are those of [{conversion['title']}](https://arxiv.org/abs/{conversion['arxiv']}), "
            f"converted by mvd_hf from the authors' file `{conversion['file']}`. All weights of the file were used, "
            f"none is new. SHA-256 of the file: `{conversion['sha256']}`."
        )
    if run is not None:
        return "The weights were trained with mvd_hf. What the run recorded:"
    return "Nothing is recorded of how these weights were made."


def find_pictures(folder: str | Path) -> list[Path]:
    """Pictures for the card of the checkpoint in a folder: those in `pictures/`, and an evaluation's confusion matrix.

    The pictures of an evaluation's mistakes are left out: they show other people's videos.
    """
    folder = Path(folder)
    pictures = [*sorted((folder / PICTURES).glob("*")), folder / CONFUSION_NAME]
    return [path for path in pictures if path.is_file() and path.suffix in PICTURE_SUFFIXES]


def checkpoint_files(folder: str | Path) -> list[Path]:
    """The files of a folder that belong to its checkpoint.

    Weights, configuration, processor, card, where it comes from, its test's figures and pictures; of everything else,
    such as optimizer states, lists of videos and logs, nothing.
    """
    folder = Path(folder)
    names = [CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, VIDEO_PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, CARD_NAME]
    names += [RUN_RECORD_NAME, CONVERSION_NAME, METRICS_NAME]
    files = [*sorted(folder.glob("*.safetensors")), *(folder / name for name in names), *find_pictures(folder)]
    return [path for path in files if path.is_file()]


def describe_license(details: CardDetails, conversion: Mapping | None) -> str:
    """Under which terms the weights are."""
    name = details.license
    if name == "other":
        name = f"[{details.license_name}]({details.license_link})"
    owner = "" if conversion is None else " the authors', and"
    return f"The weights are{owner} under {name}."


def card_head(name: str, task: str, details: CardDetails, results: Sequence[Result], **options) -> ModelCardData:
    """The head of a card, by which the Hub finds and shows a model.

    Args:
        name: of the repository.
        task: as the Hub names it.
        details: license, base and tags.
        results: measured and reported ones.
        options: further entries.
    """
    if details.base_model is not None:
        options |= {"base_model": details.base_model, "base_model_relation": "finetune"}
    if results:
        entries = [entry for result in results for entry in result.entries()]
        options |= {"model_name": name.rpartition("/")[2], "eval_results": entries, "metrics": ["accuracy"]}
    return ModelCardData(
        license=details.license,
        license_name=details.license_name,
        license_link=details.license_link,
        library_name="transformers",
        pipeline_tag=task,
        tags=["mvd", "masked-video-distillation", "video", *details.tags],
        **options,
    )


def hub_base(run: Mapping | None) -> str | None:
    """The model of the Hub that a run fine-tuned, if it was one."""
    base = {} if run is None else run["sources"].get("base", {})
    return None if base.get("is_local", True) else base["model"]


def head_of_folder(folder: str | Path, name: str, details: CardDetails, results: Sequence[Result]) -> ModelCardData:
    """The head of the card of the checkpoint in a folder: its task, its data set of the Hub, and an example to try."""
    run = read_run_record(folder)
    details = replace(details, base_model=details.base_model or hub_base(run))
    kind = kind_of(MVDConfig.from_pretrained(folder))
    task = TASKS.get(kind, "feature-extraction")
    options: dict = {}
    if run is not None and run["hub_dataset"] is not None:
        options["datasets"] = [run["hub_dataset"]]
    if kind == CLASSIFIER and (Path(folder) / EXAMPLE_NAME).is_file():
        address = f"https://huggingface.co/{name}/resolve/main/{EXAMPLE_NAME}"
        options["widget"] = [{"src": address, "example_title": "An example"}]
    return card_head(name, task, details, results, **options)


def render_card(
    folder: str | Path, name: str, details: CardDetails, snippet: Snippet, sources: Sequence[SourceModel] = ()
) -> ModelCard:
    """The card of the checkpoint in a folder.

    Args:
        folder: of the checkpoint, with its processor and what was recorded of it.
        name: of its repository.
        details: what the folder does not tell.
        snippet: how to use the checkpoint.
        sources: what it was made from, see `mvd_hf.hub.licenses.source_models`.

    Raises:
        ValueError: if there is no license, no checkpoint of ours, no processor, or what was recorded is incomplete.
    """
    license = check_license(details.license, details.license_name, details.license_link)
    config, processor = MVDConfig.from_pretrained(folder), load_processor(folder)
    run, conversion = read_run_record(folder), read_conversion(folder)
    results = measured_results(folder, details.evaluated_on or evaluated_on(run))
    results += reported_results(details.reported)
    pictures = [str(path.relative_to(folder)) for path in find_pictures(folder)]
    papers = dict.fromkeys([*([] if conversion is None else [conversion["arxiv"]]), "2212.04500"])
    body = read_template("model_card.md").render(
        title=details.title or name.rpartition("/")[2],
        summary=summarise(config, kind_of(config), sum(math.prod(shape) for shape in read_shapes(folder).values())),
        preparation="",
        snippet=snippet,
        sampling=describe_sampling(processor, kind_of(config)),
        results=results,
        has_reported=any(result.reported for result in results),
        reported=REPORTED,
        zoo=ZOO,
        making=describe_making(run, conversion),
        facts={} if run is None else facts_of_run(run),
        sources=sources,
        recipe=yaml.safe_dump(run["recipe"], sort_keys=False) if run and run["recipe"] else "",
        pictures=pictures,
        frames=frames_of(config),
        license=describe_license(details, conversion),
        warnings=license_warnings(license, sources),
        citation="\n".join(CITATIONS[paper] for paper in papers),
    )
    return ModelCard(f"---\n{head_of_folder(folder, name, details, results).to_yaml()}\n---\n\n{body}")


def write_card(folder: str | Path, name: str, details: CardDetails, with_code: bool = False) -> list[str]:
    """Write the card of a checkpoint into its folder, after executing what it says about its use.

    Gives, and logs, a warning for each model it was made from whose license is stricter.

    Args:
        folder: of the checkpoint, with its processor.
        name: of its repository.
        details: what the folder does not tell.
        with_code: whether the folder holds the code of its model, see `mvd_hf.hub.publish`.

    Raises:
        ValueError: as [`render_card`], or if the checkpoint cannot be used as the card would say.
    """
    load_processor(folder)
    snippet = execute_snippet(folder, name, snippet_kind(folder), with_code)
    sources = source_models(read_run_record(folder), HfApi())
    render_card(folder, name, details, snippet, sources).save(Path(folder) / CARD_NAME)
    warnings = license_warnings(details.license, sources)
    for warning in warnings:
        logger.warning("%s", warning)
    return warnings
