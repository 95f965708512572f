"""The ways to a published checkpoint, with and without the package, and recipes against a Hub."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants, snapshot_download
from safetensors.torch import load_file
from transformers import AutoConfig, pipeline

from checkpoints import save
from launching import run_fresh
from loopback_hub import LoopbackHub
from mvd_hf import (
    MVDConfig,
    MVDForActionDetection,
    MVDForFeatureDistillation,
    MVDForVideoClassification,
    MVDModel,
    MVDVideoProcessor,
    publish,
)
from mvd_hf.data.toy import make_toy_dataset
from mvd_hf.hub import snippets
from mvd_hf.hub.cards import CardDetails
from mvd_hf.hub.publish import stage
from mvd_hf.hub.snippets import write_example
from recipes import distill
from recipes import publish as publish_recipe
from tiny_models import TINY as TINY_STUDENT

pytestmark = pytest.mark.slow


# makes `import mvd_hf` fail, wherever it is installed
WITHOUT_PACKAGE = """
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mvd_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NotInstalled())
try:
    import mvd_hf
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("mvd_hf can be imported")
"""
# what every way must give: every class, and the output of the pipelines for a video
EVERYTHING = """
import os, sys, json, torch, transformers
student, classifier, video, output, trust = *sys.argv[1:5], json.loads(sys.argv[5])
attentive, detector = (student.replace("student", name) for name in ("attentive", "detector"))
boxes = [[0.1, 0.2, 0.5, 0.9], [0.5, 0.1, 0.9, 0.6]]
load = {"trust_remote_code": True} if trust else {}
heads = {
    "AutoModel": {},
    "AutoModelForPreTraining": {},
    "AutoModelForMaskedImageModeling": {"ignore_mismatched_sizes": True},
    "AutoModelForVideoClassification": {"num_labels": 3},
    "AutoModelForObjectDetection": {"num_labels": 3},
}
names = {}
for auto, options in heads.items():
    model = getattr(transformers, auto).from_pretrained(student, **load, **options)
    names[auto] = type(model).__name__
processor = transformers.AutoVideoProcessor.from_pretrained(student, **load)
model = transformers.AutoModel.from_pretrained(student, **load)
with torch.no_grad():
    tokens = model(**processor(video, return_tensors="pt")).last_hidden_state
pipe = lambda task, name: transformers.pipeline(task, model=name, device="cpu", **load)
torch.save({
    "names": names,
    "config": type(model.config).__name__,
    "processor": [type(processor).__name__, processor.sampling, processor.num_frames],
    "module": type(model).__module__,
    "tokens": tokens,
    "stock": pipe("video-classification", classifier)(video, top_k=6),
    "batch": pipe("video-classification", classifier)([video] * 3, top_k=6, batch_size=2),
    "attentive": pipe("video-classification", attentive)(video, top_k=6) if os.path.isdir(attentive) else None,
    **({
        "views": pipe("video-multiview-classification", classifier)(video, top_k=6, batch_size=4),
        "features": pipe("video-feature-extraction", student)(video, window_step=16)["features"],
        "pooled": pipe("video-feature-extraction", classifier)(video)["features"],
        "people": (
            pipe("video-action-detection", detector)(video, boxes=boxes, time=1) if os.path.isdir(detector) else None
        ),
    } if trust else {}),
}, output)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub for this process and for the programs that it starts."""
    with LoopbackHub() as running, pytest.MonkeyPatch.context() as patch:
        running.adopt_process(patch, tmp_path_factory.mktemp("home"))
        yield running


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """A cache without downloads."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A student, a classifier and a video."""
    folder = tmp_path_factory.mktemp("workplace")
    torch.manual_seed(0)
    for name, kind in (("student", MVDForFeatureDistillation), ("classifier", MVDForVideoClassification)):
        save(folder / name, kind, {"sampling": "uniform"})
    save(folder / "attentive", processor={"sampling": "uniform"}, use_attentive_pooling=True)
    save(folder / "detector", MVDForActionDetection)
    MVDVideoProcessor.for_detection(MVDConfig.from_pretrained(folder / "detector")).save_pretrained(
        folder / "detector"
    )
    write_example(folder / "clip.mp4")
    return folder


def run(hub: LoopbackHub, home: Path, code: str, *arguments: str) -> str:
    """The output of a program with a home of its own, which takes the hub for the real one."""
    return run_fresh(code, *arguments, variables=hub.environment(home))


@pytest.fixture(scope="module")
def published(hub, workplace) -> LoopbackHub:
    """The hub with both checkpoints; the snippet of the classifier was run without the package."""
    classifier = publish(workplace / "classifier", "me/classifier", CardDetails(license="mit"))
    assert classifier.url.startswith(f"{hub.url}/me/classifier/commit/")
    assert "LABEL_" in classifier.card
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snippets, "run_snippet", lambda *args: "printed\n")
        publish_recipe.main(["model", str(workplace / "student"), "--repo", "me/student", "--license", "mit"])
    assert all(hub.model(f"me/{name}").private for name in ("student", "classifier"))
    return hub


@pytest.fixture(scope="module")
def expected(workplace) -> dict:
    """What the installed package gives for the folders that were published."""
    return everything_here(workplace, workplace)


def everything_here(workplace: Path, place: Path | str) -> dict:
    """What this process gets from the checkpoints at a place, a folder or a namespace of the hub."""
    output = workplace / "here"
    arguments = [f"{place}/student", f"{place}/classifier", str(workplace / "clip.mp4"), str(output), "false"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *arguments])
        exec(EVERYTHING, {})
    return torch.load(output)


def everything(hub: LoopbackHub, workplace: Path, name: str, place: Path | str) -> dict:
    """What a fresh interpreter without the package gets from the checkpoints at a place."""
    arguments = [f"{place}/student", f"{place}/classifier", str(workplace / "clip.mp4"), str(workplace / name)]
    run(hub, workplace / f"home-{name}", WITHOUT_PACKAGE + EVERYTHING, *arguments, "true")
    return torch.load(workplace / name)


def check(found: dict, expected: dict, is_remote: bool):
    assert found["module"].startswith("transformers_modules" if is_remote else "mvd_hf")
    for key in ("names", "config", "processor"):
        assert found[key] == expected[key]
    assert torch.allclose(found["tokens"], expected["tokens"], atol=1e-5)
    for scores, right in zip((found["stock"], *found["batch"]), (expected["stock"], *expected["batch"]), strict=True):
        assert [item["label"] for item in scores] == [item["label"] for item in right]
        assert [item["score"] for item in scores] == pytest.approx([item["score"] for item in right], abs=1e-5)


def check_pipelines(found: dict, workplace: Path):
    """Our pipelines, against this process's own."""
    video = str(workplace / "clip.mp4")
    views = pipeline("video-multiview-classification", model=str(workplace / "classifier"), device="cpu")(
        video, top_k=6
    )
    assert [item["label"] for item in found["views"]] == [item["label"] for item in views]
    assert [item["score"] for item in found["views"]] == pytest.approx([item["score"] for item in views], abs=1e-5)
    for key, folder, options in (("features", "student", {"window_step": 16}), ("pooled", "classifier", {})):
        extract = pipeline("video-feature-extraction", model=str(workplace / folder), device="cpu")
        assert torch.allclose(found[key], extract(video, **options)["features"], atol=1e-5)


def test_every_head_is_what_it_should_be(expected):
    assert expected["names"] == {
        "AutoModel": "MVDModel",
        "AutoModelForPreTraining": "MVDForFeatureDistillation",
        "AutoModelForMaskedImageModeling": "MVDForPixelReconstruction",
        "AutoModelForVideoClassification": "MVDForVideoClassification",
        "AutoModelForObjectDetection": "MVDForActionDetection",
    }
    assert expected["processor"] == ["MVDVideoProcessor", "uniform", 4]


def test_imported_from_the_hub_over_http(published, workplace, expected):
    before = len(published.requests)
    check(everything_here(workplace, "me"), expected, is_remote=False)
    assert any("/me/student/resolve" in request for request in published.requests[before:])


def test_not_installed_from_the_hub(published, workplace, expected):
    found = everything(published, workplace, "remote", "me")
    check(found, expected, is_remote=True)
    check_pipelines(found, workplace)


def test_not_installed_from_a_local_folder(published, workplace, expected):
    place = workplace / "downloaded"
    for name in ("student", "classifier"):
        snapshot_download(f"me/{name}", local_dir=place / name)
    assert (place / "student" / "modeling_mvd.py").exists()
    for name in ("attentive", "detector"):  # the same files without two uploads
        (place / name).mkdir()
        stage(workplace / name, place / name)
    found = everything(published, workplace, "local", place)
    check(found, expected, is_remote=True)
    check_pipelines(found, workplace)
    assert [item["label"] for item in found["attentive"]] == [item["label"] for item in expected["attentive"]]
    scores = [[item["score"] for item in result["attentive"]] for result in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    detect = pipeline("video-action-detection", model=str(workplace / "detector"), device="cpu")
    people = detect(str(workplace / "clip.mp4"), boxes=[[0.1, 0.2, 0.5, 0.9], [0.5, 0.1, 0.9, 0.6]], time=1)
    for person, right in zip(found["people"], people, strict=True):
        assert person["box"] == right["box"]
        scores = [{action["label"]: action["score"] for action in one["actions"]} for one in (person, right)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_model_loaded_with_its_code_is_saved_with_its_code(published, workplace):
    program = WITHOUT_PACKAGE + (
        "from transformers import AutoModelForVideoClassification, AutoVideoProcessor, pipeline\n"
        "folder, video = sys.argv[1:]\n"
        "for auto in (AutoModelForVideoClassification, AutoVideoProcessor):\n"
        "    auto.from_pretrained('me/classifier', trust_remote_code=True).save_pretrained(folder)\n"
        "print(pipeline('video-classification', model=folder, trust_remote_code=True, device='cpu')(video))\n"
    )
    saved = workplace / "saved"
    arguments = (str(saved), str(workplace / "clip.mp4"))
    assert "LABEL_" in run(published, workplace / "home-saved", program, *arguments)
    for name in ("config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        content = json.loads((saved / name).read_text())
        references = [
            *content["auto_map"].values(),
            *(e["impl"] for e in content.get("custom_pipelines", {}).values()),
        ]
        assert references
        assert all((saved / f"{reference.partition('.')[0]}.py").exists() for reference in references)


def test_private_checkpoints_are_only_for_those_who_may_see_them(published, empty_cache):
    with pytest.raises(OSError, match="me/student"):
        AutoConfig.from_pretrained("me/student", token="somebody_else")


def test_an_interrupted_download_goes_on(published, workplace, empty_cache):
    published.breaks["model.safetensors"] = 10_000
    before = len(published.requests)
    model = MVDForVideoClassification.from_pretrained("me/classifier")
    weights = load_file(workplace / "classifier" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not published.breaks
    downloads = [request for request in published.requests[before:] if request.startswith("GET")]
    assert sum("model.safetensors" in request for request in downloads) == 2


def test_a_revision_is_loaded_by_name(published, workplace):
    repository = published.model("me/student")
    first = repository.branches["main"]
    repository.tags["v1"] = first
    model = MVDForFeatureDistillation.from_pretrained(workplace / "student")
    torch.nn.init.constant_(model.mvd.layernorm.weight, 3.0)
    model.save_pretrained(workplace / "changed")
    files = dict(repository.files())
    content = (workplace / "changed" / "model.safetensors").read_bytes()
    files["model.safetensors"] = type(files["config.json"])(content, is_large=True)
    repository.commit("main", "Other weights", files)
    sums = [MVDModel.from_pretrained("me/student", revision=r).layernorm.weight.sum() for r in ("v1", "main")]
    assert sums == [32.0, 96.0]
    repository.branches["main"] = first


# recipes


def test_a_student_is_distilled_from_a_stream_of_the_hub_and_pushed_there(
    hub, workplace, tiny_teachers, caplog, monkeypatch
):
    monkeypatch.setattr(snippets, "run_snippet", lambda *args: "printed\n")
    folder = make_toy_dataset(workplace / "toy", num_train=32, num_validation=8, num_frames=20, height=40, width=48)
    names = ["--label_column", "motion", "--label_names", "[up, down, left, right]"]
    to = ["--repo", "me/clips", "--license", "cc0-1.0", "--min_shards", "4"]
    publish_recipe.main(["dataset", str(folder), *to, *names])
    assert "data/train-00003-of-00004.parquet" in hub.dataset("me/clips").files()
    recipe = {
        "student": "mvd-b",
        "config": {**TINY_STUDENT, "num_frames": 4, "teacher_dims": {"image": 32, "video": 32}},
        "teachers": tiny_teachers,
        "stride": 2,
        "num_train_epochs": 2,
        "warmup_epochs": 0,
        "per_device_train_batch_size": 8,
        "dataloader_num_workers": 0,
        "save_strategy": "no",
        "use_cpu": True,
        "output_dir": str(workplace / "distilled"),
        "license": "apache-2.0",
        "push_to_hub": True,
        "logging_steps": 1,
        "hub_model_id": "me/distilled",
    }
    path = workplace / "distill.yaml"
    path.write_text(yaml.safe_dump(recipe))
    caplog.set_level("INFO")
    keys = ["--dataset", "me/clips", "--streaming", "true", "--eval_split", "null", "--probe", "label"]
    distill.main([str(path), *keys])
    assert "32 samples, 4 steps per epoch" in caplog.text
    repository = hub.model("me/distilled")
    assert repository.private
    assert not [name for name in repository.files() if name.endswith(".py")]
    card = ModelCard(repository.files()["README.md"].content.decode())
    assert card.data.datasets == ["me/clips"]
    assert "| data | me/clips: 32 videos |" in card.text
    assert "loss_image" in card.text
    assert "image (image)" in card.text  # its license is not known
    assert "printed" in card.text
    record = json.loads(repository.files()["training_run.json"].content)
    assert record["recipe"]["streaming"] is True
    assert record["sources"]["video"]["model"] == "video"
