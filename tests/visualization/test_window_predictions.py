"""Windows over a video: from its beginning to its end, sampled as in training, told by the classes that lead."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mvd_hf import MVDConfig, MVDForVideoClassification, MVDVideoProcessor
from mvd_hf.data.toy import write_video
from mvd_hf.model.video_reading import VideoReadError
from mvd_hf.visualization.window_predictions import NUM_TOLD, WindowPredictions, classify_windows, window_starts


def test_windows_reach_from_the_beginning_to_the_end():
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
def lamp() -> SimpleNamespace:
    """A classifier that tells how bright a clip is."""

    def classify(pixel_values):
        return SimpleNamespace(logits=torch.stack([-pixel_values.mean(), pixel_values.mean()])[None] * 10)

    config = SimpleNamespace(id2label={0: "dark", 1: "bright"})

    class Lamp:
        device = torch.device("cpu")

        def __call__(self, pixel_values):
            return classify(pixel_values)

    model = Lamp()
    model.config = config
    return model


@pytest.mark.parametrize("sampling", ["dense", "uniform"])
def test_what_happens_is_told_when_it_happens(film, lamp, sampling):
    processor = MVDVideoProcessor(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        num_frames=4,
        frame_sampling_rate=2,
        sampling=sampling,
    )
    found = classify_windows(lamp, processor, film, seconds=0.8)
    assert found.names == ["dark", "bright"]
    assert len(found.seconds) == 9  # windows of 8 frames, every 4
    assert found.probabilities.sum(axis=1) == pytest.approx(1)
    assert (found.probabilities[found.seconds < 1.5, 0] > 0.99).all()
    assert (found.probabilities[found.seconds > 2.5, 1] > 0.99).all()
    assert (found.seconds.min(), found.seconds.max()) == pytest.approx((0.35, 3.55), abs=0.11)
    assert len(classify_windows(lamp, processor, film, max_windows=3, seconds=0.8).seconds) == 3


def test_a_video_shorter_than_a_window_is_one_window(film, lamp):
    processor = MVDVideoProcessor(num_frames=16, frame_sampling_rate=4)
    assert classify_windows(lamp, processor, film).probabilities.shape == (1, 2)
    with pytest.raises(VideoReadError):
        classify_windows(lamp, processor, "nowhere.mp4")


def test_windows_are_what_the_model_says_of_their_frames(film):
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


def test_classes_that_lead_somewhere_are_told():
    probabilities = np.full((10, 8), 0.02)
    probabilities[:8, 6], probabilities[8, 2], probabilities[9, 5] = 0.9, 0.9, 0.9
    names = [f"class {i}" for i in range(8)]
    found = WindowPredictions(probabilities, np.arange(10.0), names)
    assert found.told()[:3] == [6, 2, 5]
    assert len(found.told()) == NUM_TOLD
    assert next(iter(found.overall().items())) == ("class 6", pytest.approx(0.724))
    (axes,) = found.draw().axes
    assert [line.get_label() for line in axes.get_lines()] == [names[i] for i in found.told()]
    np.testing.assert_array_equal(axes.get_lines()[0].get_xydata(), np.stack([np.arange(10), probabilities[:, 6]], 1))
