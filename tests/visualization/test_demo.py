"""The demo page: predictions of windows, the mask game, errors, and answers over HTTP if gradio is installed."""

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml

import mvd_hf.visualization.demo as module
from launching import ROOT
from mvd_hf import MVDConfig, MVDForFeatureDistillation, MVDForVideoClassification, MVDVideoProcessor
from mvd_hf.arguments import parse_arguments
from mvd_hf.data.toy import write_video
from mvd_hf.model.video_reading import VideoReadError
from mvd_hf.visualization.demo import (
    NUM_SHOWN,
    Demo,
    DemoArguments,
    WindowPredictions,
    build_page,
    classify_windows,
    launch,
    window_starts,
)
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


def test_windows_reach_from_the_start_to_the_end():
    assert window_starts(10, 10, 16).tolist() == [0]
    assert window_starts(6, 10, 16).tolist() == [0]
    assert window_starts(20, 10, 16).tolist() == [0, 5, 10]
    assert window_starts(21, 10, 16).tolist() == [0, 4, 7, 11]  # nowhere more than half a window apart
    assert window_starts(1010, 10, 5).tolist() == [0, 250, 500, 750, 1000]
    assert window_starts(4, 1, 16).tolist() == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> str:
    """Four seconds, dark for the first half and bright for the second, ten frames in each."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    levels = np.repeat(np.array([20, 230], dtype=np.uint8), 20)
    write_video(path, np.broadcast_to(levels[:, None, None, None], (40, 48, 64, 3)), fps=10)
    return str(path)


@pytest.fixture
def brightness_classifier() -> Mock:
    """A classifier of dark and bright clips."""
    config = SimpleNamespace(id2label={0: "dark", 1: "bright"}, problem_type=None)
    model = Mock(config=config, device=torch.device("cpu"))
    model.side_effect = lambda pixel_values: SimpleNamespace(
        logits=torch.stack([-pixel_values.mean(), pixel_values.mean()])[None] * 10
    )
    return model


@pytest.mark.parametrize("options", [{"sampling": "dense"}, {"sampling": "uniform"}, {"fps": 5}])
def test_probabilities_change_when_the_video_changes(film, brightness_classifier, options):
    processor = MVDVideoProcessor(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        num_frames=4,
        **({"frame_sampling_rate": 2} | options if "fps" not in options else options),
    )
    found = classify_windows(brightness_classifier, processor, film, seconds=0.8)
    assert found.names == ["dark", "bright"]
    assert len(found.seconds) == 9  # windows of 8 frames, every 4
    assert found.probabilities.sum(axis=1) == pytest.approx(1)
    for seconds, name in ((found.seconds < 1.5, 0), (found.seconds > 2.5, 1)):
        assert (found.probabilities[seconds, name] > 0.99).all()
        assert ((found.frames[seconds].mean(axis=(1, 2, 3)) > 128) == name).all()
    assert (found.seconds.min(), found.seconds.max()) == pytest.approx((0.35, 3.55), abs=0.11)
    assert len(classify_windows(brightness_classifier, processor, film, max_windows=3, seconds=0.8).seconds) == 3


def test_a_video_shorter_than_a_window_is_one_window(film, brightness_classifier):
    processor = MVDVideoProcessor(num_frames=16, frame_sampling_rate=4)
    assert classify_windows(brightness_classifier, processor, film).probabilities.shape == (1, 2)
    with pytest.raises(VideoReadError):
        classify_windows(brightness_classifier, processor, "nowhere.mp4")


def test_probabilities_are_the_models_own_for_the_frames_of_a_window(film):
    torch.manual_seed(0)
    config = MVDConfig(
        image_size=16,
        patch_size=8,
        num_frames=4,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_init_scale=1.0,
        num_labels=3,
    )
    model = MVDForVideoClassification(config).eval()
    processor = MVDVideoProcessor.for_model(config, frame_sampling_rate=4)
    found = classify_windows(model, processor, film, max_windows=1)
    clip = processor(film, do_sample_frames=False, return_tensors="pt")["pixel_values"][:, [0, 4, 8, 12]]
    with torch.no_grad():
        expected = model(clip).logits.softmax(-1).numpy()
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)


def test_classes_that_lead_in_a_window_are_drawn_first():
    probabilities = np.full((10, 8), 0.02)
    probabilities[:8, 6], probabilities[8, 2], probabilities[9, 5] = 0.9, 0.9, 0.9
    names = [f"class {i}" for i in range(8)]
    found = WindowPredictions(probabilities, np.arange(10.0), names, np.zeros((10, 4, 6, 3), np.uint8))
    assert found.drawn_classes()[:3] == [6, 2, 5]
    assert len(found.drawn_classes()) == NUM_SHOWN
    assert next(iter(found.overall().items())) == ("class 6", pytest.approx(0.724))
    drawn = found.draw().axes
    assert [axes.get_title() for axes in drawn if axes.images] == ["0.0 s", "3.0 s", "6.0 s", "9.0 s"]
    (axes,) = (axes for axes in drawn if axes.get_lines())
    assert [line.get_label() for line in axes.get_lines()] == [names[i] for i in found.drawn_classes()]
    np.testing.assert_array_equal(axes.get_lines()[0].get_xydata(), np.stack([np.arange(10), probabilities[:, 6]], 1))


def test_predictions_are_those_of_the_classifier(demo, video):
    found = demo.predict(video)
    assert found.probabilities.shape == (4, 3)  # of 20 frames, windows of 8
    assert sorted(found.overall()) == ["fly", "hop", "sit"]


def test_the_mask_game_masks_the_same_patches_in_all_frames(demo, video, monkeypatch):
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


def test_the_page_names_its_model_and_has_an_example_without_any_given(demo, models):
    text = demo.describe_model()
    assert models["classifier"] in text
    assert "3 classes, clips of 4 frames of 32 pixels" in text
    (example,) = demo.examples()
    assert demo.predict(example).probabilities.shape[1] == 3


def test_the_page_gets_images(demo, video):
    for image in (*demo.mask_game(video, 0.5, seed=0), demo.compare(video)):
        assert image.ndim == 3
        assert image.dtype == np.uint8
        assert image.std() > 10


def test_arguments_that_cannot_work_are_refused(models, tmp_path):
    with pytest.raises(ValueError, match="--model"):
        DemoArguments()
    with pytest.raises(ValueError, match="max_windows=0"):
        DemoArguments("x", max_windows=0)
    with pytest.raises(ValueError, match="'nowhere'"):
        DemoArguments("x", examples=["nowhere"]).example_files()
    with pytest.raises(ValueError, match="norm: pre"):
        Demo(DemoArguments(models["classifier"], norm="post"))
    # before a model is looked for on the Hub
    for options in ({"model": "outputs/none"}, {"models": ["outputs/none"]}, {"examples": ["outputs/none"]}):
        with pytest.raises(ValueError, match="outputs/none"):
            Demo(DemoArguments(**{"model": "me/model"} | options))
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
    with pytest.raises(ValueError, match="--model"):
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
        seen, truth = client.predict(clip, 75, 3, api_name="/mask")
        revealed = client.predict(clip, 75, 3, api_name="/reveal")
        compared = client.predict(clip, api_name="/compare")
        assert truth is None
        for image in (course, seen, revealed, compared):
            assert Path(image).stat().st_size > 1000
        (tmp_path / "broken.mp4").write_bytes(b"nothing")
        broken = client_module.handle_file(tmp_path / "broken.mp4")
        with pytest.raises(client_module.exceptions.AppError, match=r"broken\.mp4"):
            client.predict(broken, api_name="/predict")
        with pytest.raises(client_module.exceptions.AppError, match="Upload a video"):
            client.predict(None, api_name="/predict")
    finally:
        page.close()
