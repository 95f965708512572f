"""Publishing a checkpoint: what is taken, the code and its map, licenses, privacy, dry runs and uploads."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from checkpoints import RUN, save, write_metrics
from mvd_hf import MVDForActionDetection, MVDForFeatureDistillation, MVDForVideoClassification, MVDTrainer, publish
from mvd_hf.data.toy import toy_frames, write_video
from mvd_hf.hub import snippets
from mvd_hf.hub.cards import CardDetails
from mvd_hf.hub.datasets import DatasetDetails, publish_dataset
from mvd_hf.hub.publish import AUTO_MAP, MODEL_CODE, PROCESSOR_CLASS, stage, write_code
from mvd_hf.hub.results import METRICS_NAME
from mvd_hf.hub.run_record import RUN_RECORD_NAME

MIT = CardDetails(license="mit")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint as a training leaves it, with much that nobody should see."""
    folder = save(tmp_path / "model")
    for name in ("training_args.bin", "optimizer.pt", "bad_videos.csv", "notes.txt", ".env", "checkpoint-4/model.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    return folder


@pytest.fixture
def quick(monkeypatch) -> list:
    """Snippets are remembered, not executed."""
    seen = []
    monkeypatch.setattr(snippets, "run_snippet", lambda *args: seen.append(args) or "printed\n")
    return seen


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


# code


def test_the_code_is_the_whole_of_the_model_package(folder):
    write_code(folder)
    files = {path.name for path in folder.glob("*.py")}
    assert files == {path.name for path in MODEL_CODE.glob("*.py")} - {"__init__.py"}
    for name in files:
        assert (folder / name).read_text() == (MODEL_CODE / name).read_text()


def test_every_class_of_the_map_is_in_its_file(folder):
    write_code(folder)
    config = read(folder, "config.json")
    references = [*config["auto_map"].values(), *(entry["impl"] for entry in config["custom_pipelines"].values())]
    references += [
        read(folder, name)["auto_map"][auto]
        for name, auto in (
            ("video_preprocessor_config.json", "AutoVideoProcessor"),
            ("preprocessor_config.json", "AutoImageProcessor"),
        )
    ]
    assert len(references) == len(AUTO_MAP) + 2 + 2
    for reference in references:
        module, name = reference.split(".")
        tree = ast.parse((folder / f"{module}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_every_head_is_in_the_map():
    heads = {
        node.name
        for path in MODEL_CODE.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and any(getattr(b, "id", "") == "MVDPreTrainedModel" for b in node.bases)
    }
    assert heads == {reference.partition(".")[2] for reference in AUTO_MAP.values()} - {"MVDConfig"}
    assert PROCESSOR_CLASS == "video_processing_mvd.MVDVideoProcessor"


def test_pipelines_suit_the_checkpoint(folder, tmp_path):
    write_code(folder)
    pipelines = read(folder, "config.json")["custom_pipelines"]
    assert set(pipelines) == {"video-multiview-classification", "video-feature-extraction"}
    assert {tuple(entry["pt"]) for entry in pipelines.values()} == {("AutoModelForVideoClassification",)}
    detector = save(tmp_path / "detector", MVDForActionDetection)
    write_code(detector)
    (task, entry), *others = read(detector, "config.json")["custom_pipelines"].items()
    assert (task, entry["pt"], others) == ("video-action-detection", ["AutoModelForObjectDetection"], [])
    student = save(tmp_path / "student", MVDForFeatureDistillation)
    write_code(student)
    assert read(student, "config.json")["custom_pipelines"] == {
        "video-feature-extraction": {
            "impl": "pipelines_mvd.MVDFeatureExtractionPipeline",
            "pt": ["AutoModel"],
            "type": "video",
        }
    }


# what is taken


def test_only_what_belongs_to_a_checkpoint_is_taken(folder, tmp_path):
    (folder / RUN_RECORD_NAME).write_text(json.dumps(RUN))
    (folder / "figures").mkdir()
    (folder / "figures" / "masks.png").write_bytes(b"png")
    (folder / "evaluation").mkdir()
    for name in ("confusion.png", "mistakes.png", "predictions.parquet"):
        (folder / "evaluation" / name).write_bytes(b"private")
    stage(folder, tmp_path / "staged")
    names = {str(path.relative_to(tmp_path / "staged")) for path in (tmp_path / "staged").rglob("*") if path.is_file()}
    assert {name for name in names if not name.endswith(".py")} == {
        *("config.json", "model.safetensors", "video_preprocessor_config.json", "preprocessor_config.json"),
        *(RUN_RECORD_NAME, "figures/masks.png", "evaluation/confusion.png", "example.mp4"),
    }
    assert not any("private" in path.read_text(errors="ignore") for path in (tmp_path / "staged").glob("*.json"))


def test_weights_of_several_files_are_taken_with_their_index(tmp_path):
    folder = save(tmp_path / "model")
    model = MVDForVideoClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    stage(folder, tmp_path / "staged")
    assert (tmp_path / "staged" / "model.safetensors.index.json").exists()
    MVDForVideoClassification.from_pretrained(tmp_path / "staged")


def test_an_example_of_ones_own(folder, tmp_path):
    import numpy as np

    write_video(tmp_path / "own.mp4", toy_frames("dots", "up", 8, 32, 32, np.random.default_rng(0)))
    stage(folder, tmp_path / "staged", tmp_path / "own.mp4")
    assert (tmp_path / "staged" / "example.mp4").read_bytes() == (tmp_path / "own.mp4").read_bytes()
    for bad in ("missing.mp4", folder / "config.json"):
        with pytest.raises(ValueError, match=r"missing\.mp4|config\.json"):
            stage(folder, tmp_path / "again", bad)


def test_folders_without_checkpoint_or_processor_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        stage(tmp_path, tmp_path / "staged")
    (folder / "video_preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"MVDVideoProcessor\.for_model"):
        stage(folder, tmp_path / "staged")
    with pytest.raises(ValueError, match="There is no folder"):
        publish(tmp_path / "nowhere", "me/tiny", MIT)


# publishing


def test_nothing_is_published_without_a_license(folder, hub, quick):
    for dry_run in (True, False):
        with pytest.raises(ValueError, match="license="):
            publish(folder, "me/tiny", dry_run=dry_run)
    assert not hub.requests
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert "license: cc-by-nc-4.0" in publish(folder, "me/tiny", dry_run=True).card


def test_a_dry_run_uploads_nothing_and_tells_everything(folder, hub, quick):
    publication = publish(folder, "me/tiny", MIT, dry_run=True)
    assert not [request for request in hub.requests if not request.startswith("GET")]
    assert publication.url is None
    assert publication.files["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert publication.card.startswith("---\nlibrary_name: transformers")
    text = publication.describe()
    assert "bytes  modeling_mvd.py" in text
    assert "nothing was uploaded to me/tiny" in text
    uploaded = publish(folder, "me/tiny", MIT)
    assert set(uploaded.files) == set(publication.files) == set(hub.model("me/tiny").files())
    assert f"Uploaded to {uploaded.url}" in uploaded.describe()


def test_a_repository_is_private_unless_told_otherwise(folder, hub, quick):
    publish(folder, "me/tiny", MIT)
    assert hub.model("me/tiny").private
    publish(folder, "me/open", MIT, private=False)
    assert not hub.model("me/open").private
    with pytest.raises(ValueError, match="me/open exists and is public"):
        publish(folder, "me/open", MIT)
    publish(folder, "open", MIT, private=False)  # the name alone is one of one's own


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "me/it's", 'me/a"b', "me/..", "me/a/b", ""])
def test_names_that_the_hub_does_not_accept_are_refused_before_anything_else(name, hub):
    for call in (
        lambda: publish("nowhere", name),
        lambda: publish_dataset({}, name, DatasetDetails(license="mit")),
    ):
        with pytest.raises(ValueError, match=f"repo_id={re.escape(repr(name))}"):
            call()
    assert not hub.requests


def test_a_name_alone_is_completed_with_the_user_who_is_logged_in(folder, hub, quick, monkeypatch):
    publication = publish(folder, "my-model", MIT, dry_run=True)
    assert publication.repo_id == "me/my-model"
    assert 'model="me/my-model"' in publication.card
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="user/my-model"):
        publish(folder, "my-model", MIT, dry_run=True)


def test_the_name_of_a_benchmark_is_checked(folder, hub, quick):
    with pytest.raises(ValueError, match=r"benchmark='me/\.\./x'"):
        publish(folder, "me/tiny", CardDetails(license="mit", benchmark="me/../x"), dry_run=True)


def test_code_and_weights_of_another_time_are_deleted(folder, hub, quick):
    publish(folder, "me/tiny", MIT)
    api = HfApi()
    for name in ("old_code.py", "model-00001-of-00002.safetensors", "notes.md"):
        api.upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id="me/tiny")
    publish(folder, "me/tiny", MIT)
    files = hub.model("me/tiny").files()
    assert "notes.md" in files
    assert not {"old_code.py", "model-00001-of-00002.safetensors"} & set(files)


def test_a_revision_leaves_main_alone(folder, hub, quick):
    publish(folder, "me/tiny", MIT)
    before = dict(hub.model("me/tiny").files())
    publish(folder, "me/tiny", CardDetails(license="mit", title="Another"), revision="another")
    assert hub.model("me/tiny").files() == before
    assert b"# Another" in hub.model("me/tiny").files("another")["README.md"].content


def test_the_card_is_executed_with_what_is_uploaded(folder, hub, quick):
    publish(folder, "me/tiny", MIT)
    (snippet, name, place, video, with_code) = quick[0]
    assert 'model="me/tiny", trust_remote_code=True' in snippet
    assert (name, with_code, Path(video).name) == ("me/tiny", True, "example.mp4")
    assert Path(place) != folder
    card = ModelCard(hub.model("me/tiny").files()["README.md"].content.decode())
    assert "with the files of this repository alone" in card.text


def test_a_checkpoint_that_cannot_be_used_is_not_uploaded(folder, hub, monkeypatch):
    def fail(*args):
        raise ValueError("cannot be used as its card would say")

    monkeypatch.setattr(snippets, "run_snippet", fail)
    with pytest.raises(ValueError, match="cannot be used"):
        publish(folder, "me/tiny", MIT)
    assert not hub.repositories


def test_stricter_licenses_are_reported(folder, hub, quick):
    (folder / RUN_RECORD_NAME).write_text(json.dumps(RUN))
    publication = publish(folder, "me/tiny", MIT, dry_run=True)
    assert "stricter than mit" in publication.describe()
    assert publish(folder, "me/tiny", CardDetails(license="cc-by-nc-4.0"), dry_run=True).warnings == []


def test_results_go_into_the_card_and_to_the_benchmark(folder, hub, quick):
    details = CardDetails(license="mit", evaluated_on="Kinetics-400", benchmark="me/kinetics")
    with pytest.raises(ValueError, match=r"'me/kinetics' .*metrics\.json"):
        publish(folder, "me/tiny", details, dry_run=True)
    write_metrics(folder)
    publish(folder, "me/tiny", details)
    files = hub.model("me/tiny").files()
    (entry,) = yaml.safe_load(files[".eval_results/kinetics.yaml"].content)
    assert entry["dataset"] == {"id": "me/kinetics", "task_id": "default"}
    assert entry["value"] == 51.25
    assert files[METRICS_NAME].content == (folder / METRICS_NAME).read_bytes()
    assert b"16 frames x 5 clips x 3 crops" in files["README.md"].content


# the trainer


def trainer_of(folder: Path, **options) -> MVDTrainer:
    from mvd_hf import MVDForPixelReconstruction, MVDVideoProcessor
    from short_runs import Clips, arguments, videomae

    config = videomae()
    args = arguments(folder, num_train_epochs=1, warmup_epochs=0, **options)
    processor = MVDVideoProcessor.for_model(config)
    return MVDTrainer(MVDForPixelReconstruction(config), args, processing_class=processor, train_dataset=Clips(config))


def test_a_trainer_pushes_privately_with_our_card(hub, quick, tmp_path):
    trainer = trainer_of(tmp_path / "run", license="mit", hub_model_id="me/run", push_to_hub=True)
    trainer.run_record.set_recipe({"model": "videomae-b", "dataset": "me/clips"})
    trainer.run()
    repository = hub.model("me/run")
    assert repository.private
    card = ModelCard(repository.files()["README.md"].content.decode())
    assert card.data.license == "mit"
    assert "| effective batch | 4 clips |" in card.text
    assert 'model="me/run"' in card.text
    assert "import mvd_hf" in card.text
    assert len(quick) == 1
    assert {RUN_RECORD_NAME, "model.safetensors", "video_preprocessor_config.json"} <= set(repository.files())
    assert not any(name.endswith(".py") or name.startswith("checkpoint-") for name in repository.files())


def test_a_trainer_does_not_push_without_a_license(hub, quick, tmp_path):
    with pytest.raises(ValueError, match="push_to_hub needs the license"):
        trainer_of(tmp_path / "run", push_to_hub=True)
    trainer = trainer_of(tmp_path / "run", hub_model_id="me/run")
    trainer.train()
    with pytest.raises(ValueError, match="license="):
        trainer.push_to_hub()
    assert not hub.repositories
    trainer.push_to_hub(license="apache-2.0", tags=["toy"], private=False)
    assert not hub.model("me/run").private
    card = ModelCard(hub.model("me/run").files()["README.md"].content.decode())
    assert (card.data.license, "toy" in card.data.tags) == ("apache-2.0", True)
