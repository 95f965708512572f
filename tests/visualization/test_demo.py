"""The demo page: what it shows, what it says of bad input, and that it answers over HTTP where gradio is installed."""

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import mvd_hf.visualization.demo as module
from launching import ROOT
from mvd_hf import MVDConfig, MVDForFeatureDistillation, MVDForVideoClassification, MVDVideoProcessor
from mvd_hf.arguments import parse_arguments
from mvd_hf.visualization.demo import Demo, DemoArguments, build_page, launch
from mvd_hf.visualization.reconstruction import MASK_BRIGHTNESS

SPACE = ROOT / "recipes" / "demo_space"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A classifier with its processor, and a student."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    config = MVDConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        id2label={0: "sit", 1: "hop", 2: "fly"},
    )
    MVDForVideoClassification(config).save_pretrained(folder / "classifier")
    MVDVideoProcessor.for_model(config, sampling="dense", frame_sampling_rate=2).save_pretrained(folder / "classifier")
    MVDForFeatureDistillation(config).save_pretrained(folder / "student")
    return {name: str(folder / name) for name in ("classifier", "student")}


@pytest.fixture(scope="module")
def demo(models) -> Demo:
    return Demo(DemoArguments(models["classifier"], models=dict(models)))


@pytest.fixture(scope="module")
def video(toy_folder) -> str:
    return f"{toy_folder}/validation/0001.mp4"


def test_predictions_are_those_of_the_classifier(demo, video):
    found = demo.predict(video)
    assert found.probabilities.shape == (4, 3)  # of 20 frames, windows of 8
    assert sorted(found.overall()) == ["fly", "hop", "sit"]


def test_the_mask_game_hides_what_it_says(demo, video, monkeypatch):
    monkeypatch.setattr(module, "draw_strips", lambda strips, titles: strips[""])
    monkeypatch.setattr(module, "figure_pixels", lambda strip: strip)
    visible, truth = demo.mask_game(video, 0.75, seed=1)
    assert visible.shape == truth.shape == (4, 32, 32, 3)
    masked = (visible == MASK_BRIGHTNESS).all(axis=-1)
    assert masked.mean() == pytest.approx(0.75, abs=0.02)
    patches = masked.reshape(4, 4, 8, 4, 8).all(axis=(2, 4))
    assert patches.sum(axis=(1, 2)).tolist() == [12] * 4
    assert (patches == patches[0]).all()  # the same place at all times
    np.testing.assert_array_equal(visible[~masked], truth[~masked])
    assert (demo.mask_game(video, 0.75, seed=2)[0] != visible).any()
    assert (demo.mask_game(video, 0.75, seed=1)[0] == visible).all()


def test_pictures_are_pixels(demo, video):
    for picture in (*demo.mask_game(video, 0.5, seed=0), demo.compare(video)):
        assert picture.ndim == 3
        assert picture.dtype == np.uint8
        assert picture.std() > 10


def test_what_is_missing_is_named(models, tmp_path):
    with pytest.raises(ValueError, match="give --model"):
        DemoArguments()
    with pytest.raises(ValueError, match="max_windows=0"):
        DemoArguments("x", max_windows=0)
    with pytest.raises(ValueError, match="'nowhere' does not exist"):
        DemoArguments("x", examples=["nowhere"]).example_files()
    with pytest.raises(ValueError, match="norm: pre"):
        Demo(DemoArguments(models["classifier"], norm="post"))
    (tmp_path / "b.mp4").touch()
    (tmp_path / "a.webm").touch()
    (tmp_path / "metadata.csv").touch()
    files = DemoArguments("x", examples=[str(tmp_path)]).example_files()
    assert [Path(file).name for file in files] == ["a.webm", "b.mp4"]


def test_without_gradio_the_page_says_what_to_install(demo, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"mvd_hf\[demo\]"):
        build_page(demo)
    with pytest.raises(ImportError, match=r"mvd_hf\[demo\]"):
        launch(DemoArguments("nowhere"))


def test_the_commands_keys_are_those_of_the_page():
    command = re.search(r"python recipes/demo.py (.*)", (SPACE / "README.md").read_text())[1]
    (arguments,) = parse_arguments(command.split(), DemoArguments, first="model")
    assert list(arguments.models) == ["student", "image_teacher"]
    assert (arguments.norm, arguments.device) == ("pre", "cpu")


def test_the_spaces_folder_is_complete(tmp_path, monkeypatch):
    text = (SPACE / "README.md").read_text()
    settings = yaml.safe_load(text.split("---")[1])
    assert (settings["sdk"], settings["app_file"], settings["license"]) == ("gradio", "app.py", "apache-2.0")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (SPACE / "requirements.txt").read_text().split() == project["dependencies"]
    (needed,) = project["optional-dependencies"]["demo"]
    assert settings["sdk_version"].startswith(needed.removeprefix("gradio>="))
    for name in ("recipes", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    clips = tmp_path / "outputs" / "tiny" / "data" / "validation"
    clips.mkdir(parents=True)
    (clips / "0000.mp4").touch()
    commands = re.search(r"```bash\n(mkdir.*?)```", text, re.DOTALL)[1]
    subprocess.run(commands, shell=True, cwd=tmp_path, check=True)
    space = tmp_path / "outputs" / "space"
    assert {"app.py", "requirements.txt", "README.md", "mvd_hf", "clips"} <= {path.name for path in space.iterdir()}
    monkeypatch.chdir(space)
    spec = importlib.util.spec_from_file_location("space_app", space / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    with pytest.raises(ValueError, match="give --model"):
        app.arguments()
    monkeypatch.setenv("MODEL", "me/model")
    assert app.arguments() == DemoArguments("me/model", examples=["clips"])
    assert app.arguments().example_files() == ["clips/0000.mp4"]


@pytest.mark.slow
def test_the_page_answers_over_http(models, video, tmp_path):
    pytest.importorskip("gradio")
    client_module = pytest.importorskip("gradio_client")
    arguments = DemoArguments(models["classifier"], models=dict(models), examples=[video])
    page = launch(arguments, prevent_thread_lock=True, quiet=True)
    try:
        client = client_module.Client(page.local_url, verbose=False, download_files=str(tmp_path))
        clip = client_module.handle_file(video)
        label, course = client.predict(clip, api_name="/predict")
        assert label["label"] in ("sit", "hop", "fly")
        assert sum(entry["confidence"] for entry in label["confidences"]) == pytest.approx(1, abs=1e-4)
        seen, truth = client.predict(clip, 75, 3, api_name="/hide")
        revealed = client.predict(clip, 75, 3, api_name="/reveal")
        compared = client.predict(clip, api_name="/compare")
        assert truth is None
        for picture in (course, seen, revealed, compared):
            assert Path(picture).stat().st_size > 1000
        (tmp_path / "broken.mp4").write_bytes(b"nothing")
        broken = client_module.handle_file(tmp_path / "broken.mp4")
        with pytest.raises(client_module.exceptions.AppError, match=r"broken\.mp4"):
            client.predict(broken, api_name="/predict")
        with pytest.raises(client_module.exceptions.AppError, match="Upload a video"):
            client.predict(None, api_name="/predict")
    finally:
        page.close()
