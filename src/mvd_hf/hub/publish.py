"""Publishing checkpoints: weights, the code of the model, the video processor and a card in one commit."""

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, httpx, validate_repo_id
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from ..model.configuration_mvd import MVDConfig
from .cards import (
    CLASSIFIER,
    DETECTOR,
    CardDetails,
    checkpoint_files,
    evaluation_dataset,
    model_class,
    read_stored_processor,
    write_card,
)
from .licenses import check_license
from .results import METRICS_NAME, eval_result_file, measured_results
from .run_record import CARD_NAME, read_run_record, stored_license
from .snippets import EXAMPLE_NAME, write_example

MODEL_CODE = Path(__file__).parents[1] / "model"
# classes in the code of a checkpoint, by auto class
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
# pipelines by task; for models with a task head, the auto class that the pipelines load and their tasks
PIPELINES = {
    "video-feature-extraction": "pipelines_mvd.MVDFeatureExtractionPipeline",
    "video-multiview-classification": "pipelines_mvd.MVDMultiViewClassificationPipeline",
    "video-action-detection": "pipelines_mvd.MVDActionDetectionPipeline",
}
ENCODER_PIPELINES = ("AutoModel", ["video-feature-extraction"])
HEAD_PIPELINES = {
    CLASSIFIER: (
        "AutoModelForVideoClassification",
        ["video-feature-extraction", "video-multiview-classification"],
    ),
    DETECTOR: ("AutoModelForObjectDetection", ["video-action-detection"]),
}


@dataclass
class Publication:
    """An upload, or what a dry run would upload.

    Args:
        repo_id: the repository.
        files: bytes of each file, by path.
        card: the text of the card.
        warnings: about source models with stricter licenses.
        url: of the commit; `None` in a dry run.
    """

    repo_id: str
    files: dict[str, int]
    card: str
    warnings: list[str]
    url: str | None = None

    def describe(self) -> str:
        """Files and warnings, a line each."""
        done = f"Uploaded to {self.url}" if self.url else f"A dry run: nothing was uploaded to {self.repo_id}"
        lines = [f"{size:>14,} bytes  {path}" for path, size in sorted(self.files.items())]
        return "\n".join([*lines, f"{sum(self.files.values()):>14,} bytes in all", *self.warnings, done])


def add_keys(path: Path, keys: dict):
    """Add keys to a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) | keys
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_code(folder: str | Path):
    """Add the code of the model to the folder of a checkpoint with its video processor.

    With `trust_remote_code=True` the folder then loads without this package: configuration, models with all heads,
    processor and pipelines.
    """
    folder = Path(folder)
    auto_class, tasks = HEAD_PIPELINES.get(model_class(MVDConfig.from_pretrained(folder)), ENCODER_PIPELINES)
    for path in sorted(MODEL_CODE.glob("*.py")):
        if path.stem != "__init__":
            shutil.copyfile(path, folder / path.name)
    custom = {task: {"impl": PIPELINES[task], "pt": [auto_class], "type": "video"} for task in tasks}
    add_keys(folder / CONFIG_NAME, {"auto_map": AUTO_MAP, "custom_pipelines": custom})
    for name, auto_class in PROCESSOR_MAPS.items():
        add_keys(folder / name, {"auto_map": {auto_class: PROCESSOR_CLASS}})


def stage(folder: str | Path, target: str | Path, example: str | Path | None = None):
    """Copy the files to publish (see `checkpoint_files`) to an empty folder, and add code and an example video."""
    folder, target = Path(folder), Path(target)
    if not (folder / CONFIG_NAME).is_file() or not list(folder.glob("*.safetensors")):
        raise ValueError(f"{str(folder)!r} holds no checkpoint: it needs {CONFIG_NAME} and safetensors files.")
    for path in checkpoint_files(folder):
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    read_stored_processor(folder).save_pretrained(target)
    (target / CARD_NAME).unlink(missing_ok=True)
    write_code(target)
    if example is None:
        write_example(target / EXAMPLE_NAME)
    elif Path(example).suffix == ".mp4" and Path(example).is_file():
        shutil.copyfile(example, target / EXAMPLE_NAME)
    else:
        raise ValueError(f"example={str(example)!r} is not an mp4 file.")


def check_repo_id(repo_id: str, argument: str):
    """Raise ValueError unless a name from outside, which goes into paths and code, is one that the Hub accepts."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{argument}={repo_id!r} is not a name on the Hub: give user/name ({error}).") from error


def full_repo_id(repo_id: str) -> str:
    """A valid `user/name`; a name alone is one of the user who is logged in.

    Raises:
        ValueError: if the name is not valid on the Hub, or nobody is logged in to complete it.
    """
    check_repo_id(repo_id, "repo_id")
    if "/" in repo_id:
        return repo_id
    try:
        return f"{HfApi().whoami()['name']}/{repo_id}"
    except (OSError, httpx.HTTPError) as error:
        raise ValueError(
            f"repo_id={repo_id!r} names no user, and the Hub does not say who is logged in: give user/{repo_id}, or "
            f"run `hf auth login` ({error})."
        ) from error


def find_repository(api: HfApi, repo_id: str, private: bool, revision: str | None, repo_type: str = "model") -> str:
    """The name of a repository, created with its branch if needed; raises ValueError if it must not be public."""
    repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise ValueError(f"{repo_id} exists and is public: give private=False to publish there, or take another name.")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
    return repo_id


def upload(folder: str | Path, repo_id: str, private: bool, revision: str | None) -> str:
    """Upload a folder in one commit, which deletes old code and weights; returns the URL of the commit."""
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
    """Upload a checkpoint to the Hub: weights, code, video processor, example video, results and card.

    Before the upload, the snippet of the card runs on these files in an interpreter without this package.

    Args:
        folder: a checkpoint that was trained or converted.
        repo_id: `user/name`, or a name of yours.
        details: of the card; the license is by default that of the card in the folder.
        example: an mp4 video for the snippet; by default a synthetic one.
        private: whether a new repository is private.
        revision: branch to upload to.
        dry_run: whether to prepare everything without the upload.

    Raises:
        ValueError: if a name is not valid on the Hub, if there is no license, checkpoint or processor, if the snippet
            fails, or if `private`, but the repository exists and is public.
    """
    repo_id = full_repo_id(repo_id)
    if not Path(folder).is_dir():
        raise ValueError(f"There is no folder {str(folder)!r}.")
    details = CardDetails() if details is None else details
    details = replace(details, license=details.license or stored_license(folder))
    check_license(details.license, details.license_name, details.license_link)
    if details.benchmark is not None:
        check_repo_id(details.benchmark, "benchmark")
    with tempfile.TemporaryDirectory() as place:
        stage(folder, place, example)
        warnings = write_card(place, repo_id, details, with_code=True)
        if details.benchmark is not None:
            results = measured_results(place, evaluation_dataset(details, read_run_record(place)))
            if not results:
                raise ValueError(f"benchmark={details.benchmark!r} needs {METRICS_NAME} of these weights.")
            path = Path(place) / ".eval_results" / f"{details.benchmark.rpartition('/')[2]}.yaml"
            path.parent.mkdir()
            path.write_text(eval_result_file(results, details.benchmark, details.benchmark_task), encoding="utf-8")
        files = {
            str(path.relative_to(place)): path.stat().st_size for path in Path(place).rglob("*") if path.is_file()
        }
        card = (Path(place) / CARD_NAME).read_text(encoding="utf-8")
        url = None if dry_run else upload(place, repo_id, private, revision)
    return Publication(repo_id, files, card, warnings, url)
