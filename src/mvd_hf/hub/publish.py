"""Checkpoints for the Hub: weights, the code of their model, the video processor and a card, uploaded together."""

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from ..model.configuration_mvd import MVDConfig
from .cards import (
    CLASSIFIER,
    DETECTOR,
    CardDetails,
    checkpoint_files,
    evaluated_on,
    kind_of,
    load_processor,
    write_card,
)
from .licenses import check_license
from .results import METRICS_NAME, eval_result_file, measured_results
from .run_record import CARD_NAME, read_run_record, stored_license
from .snippets import EXAMPLE_NAME, write_example

MODEL_CODE = Path(__file__).parents[1] / "model"
# where transformers finds the classes of a checkpoint, by its own class for any model
AUTO_MAP = {
    "AutoConfig": "configuration_mvd.MVDConfig",
    "AutoModel": "modeling_mvd.MVDModel",
    "AutoModelForPreTraining": "modeling_mvd.MVDForFeatureDistillation",
    "AutoModelForMaskedImageModeling": "modeling_mvd.MVDForPixelReconstruction",
    "AutoModelForVideoClassification": "modeling_mvd.MVDForVideoClassification",
    "AutoModelForObjectDetection": "detection_mvd.MVDForActionDetection",
}
PROCESSOR_CLASS = "video_processing_mvd.MVDVideoProcessor"
PROCESSOR_MAPS = {VIDEO_PROCESSOR_NAME: "AutoVideoProcessor", IMAGE_PROCESSOR_NAME: "AutoImageProcessor"}
# the class of transformers that loads a model with a head of its own, and the pipelines that use it, by task
FEATURES = {"video-feature-extraction": "pipelines_mvd.MVDFeatureExtractionPipeline"}
VIEWS = {"video-multiview-classification": "pipelines_mvd.MVDMultiViewClassificationPipeline"}
PEOPLE = {"video-action-detection": "pipelines_mvd.MVDActionDetectionPipeline"}
PIPELINES = {
    CLASSIFIER: ("AutoModelForVideoClassification", FEATURES | VIEWS),
    DETECTOR: ("AutoModelForObjectDetection", PEOPLE),
}


@dataclass
class Publication:
    """What was uploaded, or in a dry run would be.

    Args:
        repo_id: the repository.
        files: bytes of each file, by path.
        card: the text of the card.
        warnings: where licenses of what the model comes from are stricter than its own.
        url: of the commit; `None` in a dry run.
    """

    repo_id: str
    files: dict[str, int]
    card: str
    warnings: list[str]
    url: str | None = None

    def describe(self) -> str:
        """Its files and warnings, a line each."""
        done = f"Uploaded to {self.url}" if self.url else f"A dry run: nothing was uploaded to {self.repo_id}"
        lines = [f"{size:>14,} bytes  {path}" for path, size in sorted(self.files.items())]
        return "\n".join([*lines, f"{sum(self.files.values()):>14,} bytes in all", *self.warnings, done])


def add_keys(path: Path, keys: dict):
    """Add keys to a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) | keys
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_code(folder: str | Path):
    """Add to a checkpoint's folder the code of its model, so that it is used without this package.

    `trust_remote_code=True` then gives every class: configuration, models with all heads, processor and pipelines.

    Args:
        folder: of the checkpoint, with its processor.
    """
    folder = Path(folder)
    auto_class, pipelines = PIPELINES.get(kind_of(MVDConfig.from_pretrained(folder)), ("AutoModel", FEATURES))
    for path in sorted(MODEL_CODE.glob("*.py")):
        if path.stem != "__init__":
            shutil.copyfile(path, folder / path.name)
    custom = {task: {"impl": name, "pt": [auto_class], "type": "video"} for task, name in pipelines.items()}
    add_keys(folder / CONFIG_NAME, {"auto_map": AUTO_MAP, "custom_pipelines": custom})
    for name, auto_class in PROCESSOR_MAPS.items():
        add_keys(folder / name, {"auto_map": {auto_class: PROCESSOR_CLASS}})


def stage(folder: str | Path, target: str | Path, example: str | Path | None = None):
    """Copy what shall be published from a checkpoint's folder, and add code and an example video.

    Of everything else in the folder, such as optimizer states and logs, nothing is taken.

    Args:
        folder: of the checkpoint.
        target: an empty folder.
        example: an mp4 video to show the model with; by default a made-up one.

    Raises:
        ValueError: if the folder holds no checkpoint or no processor, or the example is no mp4 file.
    """
    folder, target = Path(folder), Path(target)
    if not (folder / CONFIG_NAME).is_file() or not list(folder.glob("*.safetensors")):
        raise ValueError(f"{str(folder)!r} holds no checkpoint: it needs {CONFIG_NAME} and safetensors files.")
    for path in checkpoint_files(folder):
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    load_processor(folder).save_pretrained(target)
    (target / CARD_NAME).unlink(missing_ok=True)  # it is written anew
    write_code(target)
    if example is None:
        write_example(target / EXAMPLE_NAME)
    elif Path(example).suffix == ".mp4" and Path(example).is_file():
        shutil.copyfile(example, target / EXAMPLE_NAME)
    else:
        raise ValueError(f"example={str(example)!r} is no mp4 file.")


def find_repository(api: HfApi, repo_id: str, private: bool, revision: str | None, repo_type: str = "model") -> str:
    """The full name of a repository to upload to, made with its branch if it does not exist.

    Raises:
        ValueError: if it shall be private, but exists and is public.
    """
    repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise ValueError(f"{repo_id} exists and is public: give private=False to publish there, or take another name.")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
    return repo_id


def upload(folder: str | Path, repo_id: str, private: bool, revision: str | None) -> str:
    """Upload everything in a folder as one commit and give its address; code and weights of another time go."""
    api = HfApi()
    commit = api.upload_folder(
        repo_id=find_repository(api, repo_id, private, revision),
        folder_path=folder,
        commit_message="Upload with mvd_hf",
        revision=revision,
        delete_patterns=["*.py", "*.safetensors"],
    )
    return commit.commit_url


def publish(
    folder: str | Path,
    repo_id: str,
    details: CardDetails | None = None,
    *,
    example: str | Path | None = None,
    private: bool = True,
    revision: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """Upload a checkpoint to the Hub: weights, code, processor, an example, results and a card.

    Before that, the card's snippet is executed with what will be uploaded, in an interpreter without this package.

    Args:
        folder: of the checkpoint: `save_model`'s or a conversion's.
        repo_id: `user/name`.
        details: license, and what else the card shall say; the license is by default that of the folder's card.
        example: an mp4 video to show the model with; by default a made-up one.
        private: whether a new repository is private.
        revision: branch to upload to.
        dry_run: whether everything is made, but nothing uploaded.

    Raises:
        ValueError: if there is no license, checkpoint or processor, if the checkpoint cannot be used as the card would
            say, or if the repository is public against expectation.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"There is no folder {str(folder)!r}.")
    details = CardDetails() if details is None else details
    details = replace(details, license=details.license or stored_license(folder))
    check_license(details.license, details.license_name, details.license_link)
    with tempfile.TemporaryDirectory() as place:
        stage(folder, place, example)
        warnings = write_card(place, repo_id, details, with_code=True)
        if details.benchmark is not None:
            results = measured_results(place, details.evaluated_on or evaluated_on(read_run_record(place)))
            if not results:
                raise ValueError(
                    f"benchmark={details.benchmark!r} needs measured results, there is no {METRICS_NAME}."
                )
            path = Path(place) / ".eval_results" / f"{details.benchmark.rpartition('/')[2]}.yaml"
            path.parent.mkdir()
            path.write_text(eval_result_file(results, details.benchmark, details.benchmark_task), encoding="utf-8")
        files = {
            str(path.relative_to(place)): path.stat().st_size for path in Path(place).rglob("*") if path.is_file()
        }
        card = (Path(place) / CARD_NAME).read_text(encoding="utf-8")
        url = None if dry_run else upload(place, repo_id, private, revision)
    return Publication(repo_id, files, card, warnings, url)
