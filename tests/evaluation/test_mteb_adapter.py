"""A checkpoint of ours in mteb: a small video task runs and scores what can be seen in the videos."""

import io

import av
import datasets
import numpy as np
import pytest

pytest.importorskip("mteb", reason="needs mvd_hf[mteb]")

import mteb
from mteb.mocks.mock_tasks.classification import MockVideoClassification
from torch.utils.data import DataLoader

from mvd_hf import MVDConfig, MVDForFeatureDistillation
from mvd_hf.evaluation.mteb_adapter import MTEBEncoder
from mvd_hf.model.video_reading import VideoReadError
from tiny_models import TINY


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("student")
    config = MVDConfig.from_name("mvd-b", **TINY, num_frames=4, teacher_dims={"image": 32})
    MVDForFeatureDistillation(config).save_pretrained(folder)
    return str(folder)


def encoded(colour: int) -> bytes:
    """A video of one grey."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 48
        for i in range(8):
            noise = np.random.default_rng(i).integers(0, 20, (48, 48, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray((colour + noise).astype(np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


class Greys(MockVideoClassification):
    """Dark and bright videos."""

    def load_data(self, **kwargs):
        videos = {"video": [encoded(20 + i) for i in range(6)] + [encoded(200 + i) for i in range(6)]}
        part = datasets.Dataset.from_dict({**videos, "label": [0] * 6 + [1] * 6})
        self.dataset = datasets.DatasetDict({"train": part, "test": part}).cast_column("video", datasets.Video())
        self.data_loaded = True


def test_a_task_is_run_and_scored(student):
    results = mteb.evaluate(MTEBEncoder(student, num_workers=0), Greys(), cache=None)
    assert results.task_results[0].get_score() == 1
    assert results.model_name.startswith("local/student")


def test_a_video_is_the_mean_of_its_clips(student):
    rows = datasets.Dataset.from_dict({"video": [encoded(90), b"no video"]}).cast_column("video", datasets.Video())
    one, two = (MTEBEncoder(student, num_clips=clips, num_workers=0) for clips in (1, 2))
    metadata = Greys.metadata
    found = [model.encode(DataLoader(rows.select([0])), task_metadata=metadata) for model in (one, two)]
    assert found[0].shape == found[1].shape == (1, 32)
    assert not np.allclose(*found)
    with pytest.raises(VideoReadError):
        one.encode(DataLoader(rows), task_metadata=metadata)
    with pytest.raises(ValueError, match="text"):
        one.encode(DataLoader(rows.add_column("text", ["a", "b"])), task_metadata=metadata)
