"""The three ways to a published checkpoint, each in a fresh interpreter, and whole recipes against a Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import pipeline

from checkpoints import save
from launching import ROOT
from loopback_hub import LoopbackHub
from mvd_hf import (
    MVDConfig,
    MVDForActionDetection,
    MVDForFeatureDistillation,
    MVDForVideoClassification,
    MVDVideoProcessor,
)
from mvd_hf.data.toy import make_toy_dataset
from mvd_hf.hub.publish import stage
from mvd_hf.hub.snippets import write_example
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
# what all three ways must give: every class, and what the pipelines say of a video
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
def hub():
    with LoopbackHub() as running:
        yield running


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


def run(hub: LoopbackHub, home: Path, *command: str, **environment: str) -> str:
    """What a program prints; it has a home of its own and takes the hub for the real one."""
    env = os.environ | hub.environment(home) | environment
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=400, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-5000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def published(hub, workplace) -> LoopbackHub:
    """The hub with both checkpoints, published by the recipe."""
    program = "import sys; sys.path.insert(0, 'recipes'); from publish import main\n"
    for name in ("student", "classifier"):
        program += f"main(['model', {str(workplace / name)!r}, '--repo', 'me/{name}', '--license', 'mit'])\n"
    printed = run(hub, workplace / "home", "-c", program)
    for name in ("student", "classifier"):
        assert f"Uploaded to {hub.url}/me/{name}/commit/" in printed
        assert hub.model(f"me/{name}").private
    return hub


@pytest.fixture(scope="module")
def expected(published, workplace) -> dict:
    """What the installed package gives for the folders that were published."""
    return everything(published, workplace, "expected", "import mvd_hf\n", workplace, trust=False)


def everything(hub: LoopbackHub, workplace: Path, name: str, prelude: str, place: Path | str, trust: bool) -> dict:
    """What a fresh interpreter gets from the checkpoints at a place, a folder or a namespace of the hub."""
    arguments = [f"{place}/student", f"{place}/classifier", str(workplace / "clip.mp4"), str(workplace / name)]
    run(hub, workplace / f"home-{name}", "-c", prelude + EVERYTHING, *arguments, json.dumps(trust))
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
    check(
        everything(published, workplace, "imported", "import mvd_hf\n", "me", trust=False), expected, is_remote=False
    )
    assert "GET /me/student/resolve" in " ".join(published.requests).replace("HEAD", "GET")


def test_not_installed_from_the_hub(published, workplace, expected):
    found = everything(published, workplace, "remote", WITHOUT_PACKAGE, "me", trust=True)
    check(found, expected, is_remote=True)
    check_pipelines(found, workplace)


def test_not_installed_from_a_local_folder(published, workplace, expected):
    place = workplace / "downloaded"
    program = "import sys; from huggingface_hub import snapshot_download as get\n"
    program += "for name in ('student', 'classifier'): get(f'me/{name}', local_dir=f'{sys.argv[1]}/{name}')"
    run(published, workplace / "home-download", "-c", program, str(place))
    assert (place / "student" / "modeling_mvd.py").exists()
    for name in ("attentive", "detector"):  # as they would be downloaded, which spares two uploads
        (place / name).mkdir()
        stage(workplace / name, place / name)
    found = everything(published, workplace, "local", WITHOUT_PACKAGE, place, trust=True)
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


def test_what_was_loaded_from_code_saves_what_it_names(published, workplace):
    """A model and its processor that came with code are saved with all the code they name."""
    program = WITHOUT_PACKAGE + (
        "from transformers import AutoModelForVideoClassification, AutoVideoProcessor, pipeline\n"
        "folder, video = sys.argv[1:]\n"
        "for auto in (AutoModelForVideoClassification, AutoVideoProcessor):\n"
        "    auto.from_pretrained('me/classifier', trust_remote_code=True).save_pretrained(folder)\n"
        "print(pipeline('video-classification', model=folder, trust_remote_code=True, device='cpu')(video))\n"
    )
    saved = workplace / "saved"
    arguments = (str(saved), str(workplace / "clip.mp4"))
    assert "LABEL_" in run(published, workplace / "home-saved", "-c", program, *arguments)
    for name in ("config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        content = json.loads((saved / name).read_text())
        references = [
            *content["auto_map"].values(),
            *(e["impl"] for e in content.get("custom_pipelines", {}).values()),
        ]
        assert references
        assert all((saved / f"{reference.partition('.')[0]}.py").exists() for reference in references)


def test_private_checkpoints_are_only_for_those_who_may_see_them(published, workplace):
    program = (
        "from transformers import AutoConfig\n"
        "try: AutoConfig.from_pretrained('me/student', trust_remote_code=True)\n"
        "except OSError as error: print('refused')\n"
    )
    assert "refused" in run(published, workplace / "home-stranger", "-c", program, HF_TOKEN="somebody_else")


def test_an_interrupted_download_goes_on(published, workplace):
    published.breaks["model.safetensors"] = 10_000
    program = (
        "import sys, torch, mvd_hf\n"
        "from safetensors.torch import load_file\n"
        "model = mvd_hf.MVDForVideoClassification.from_pretrained('me/classifier')\n"
        "weights = load_file(sys.argv[1])\n"
        "assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())\n"
        "print('complete')\n"
    )
    before = len(published.requests)
    weights = str(workplace / "classifier" / "model.safetensors")
    assert "complete" in run(published, workplace / "home-interrupted", "-c", program, weights)
    assert not published.breaks
    downloads = [request for request in published.requests[before:] if request.startswith("GET")]
    assert sum("model.safetensors" in request for request in downloads) == 2


def test_a_revision_is_loaded_by_name(published, workplace):
    repository = published.model("me/student")
    tokens = "print(AutoModel.from_pretrained('me/student', trust_remote_code=True{}).layernorm.weight.sum().item())\n"
    program = (
        WITHOUT_PACKAGE + "from transformers import AutoModel\n" + tokens.format(", revision='v1'") + tokens.format("")
    )
    first = repository.branches["main"]
    repository.tags["v1"] = first
    model = MVDForFeatureDistillation.from_pretrained(workplace / "student")
    with torch.no_grad():
        model.mvd.layernorm.weight.fill_(3.0)
    model.save_pretrained(workplace / "changed")
    files = dict(repository.files())
    content = (workplace / "changed" / "model.safetensors").read_bytes()
    files["model.safetensors"] = type(files["config.json"])(content, is_large=True)
    repository.commit("main", "Other weights", files)
    printed = run(published, workplace / "home-revision", "-c", program).split()
    numbers = [float(word) for word in printed if word.replace(".", "", 1).isdigit()]
    assert numbers[-2:] == [32.0, 96.0]
    repository.branches["main"] = first


# whole recipes


@pytest.fixture(scope="module")
def clips(hub, workplace) -> str:
    """A data set of the hub, published by the recipe."""
    folder = make_toy_dataset(workplace / "toy", num_train=32, num_validation=8, num_frames=20, height=40, width=48)
    names = ["--label_column", "motion", "--label_names", "[up, down, left, right]"]
    arguments = (str(folder), "--repo", "me/clips", "--license", "cc0-1.0", "--min_shards", "4", *names)
    printed = run(hub, workplace / "home", "recipes/publish.py", "dataset", *arguments)
    assert "data/train-00003-of-00004.parquet" in printed
    return "me/clips"


def test_a_student_is_distilled_from_a_stream_of_the_hub_and_pushed_there(hub, workplace, clips, tiny_teachers):
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
    keys = ("--dataset", clips, "--streaming", "true", "--eval_split", "null", "--probe", "label")
    printed = run(hub, workplace / "home-distill", "recipes/distill.py", str(path), *keys)
    assert "32 samples, 4 steps per epoch" in printed
    repository = hub.model("me/distilled")
    assert repository.private
    assert not [name for name in repository.files() if name.endswith(".py")]
    card = ModelCard(repository.files()["README.md"].content.decode())
    assert card.data.datasets == ["me/clips"]
    assert "| data | me/clips: 32 videos |" in card.text
    assert "loss_image" in card.text
    assert "The license of image (image) is not known" in card.text
    assert "torch.Size([1, 32])" in card.text  # what the snippet printed
    record = json.loads(repository.files()["training_run.json"].content)
    assert record["recipe"]["streaming"] is True
    assert record["sources"]["video"]["model"] == "video"
