"""Tiny models, teachers, videos and a Hub that several test files share."""

import gc
import os
from collections import Counter

import datasets
import pytest
import torch
from huggingface_hub import constants
from transformers.utils import logging as transformers_logging

from loopback_hub import LoopbackHub
from mvd_hf import MVDConfig, MVDForPixelReconstruction
from mvd_hf.data.toy import make_toy_dataset
from tiny_models import TINY

torch.set_num_threads(1)  # tiny networks are fastest on one core, by far where others compete for the rest


def pytest_configure(config):
    """No test asks the real Hub: a machine without a network would retry each request for half a minute."""
    config.option.loadscopereorder = False  # or files of few tests, which may be slow ones, would come last
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def pytest_collection_modifyitems(items):
    """Files with many slow tests come first, so that no process is left alone with one of them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Test files run side by side with `-n logical`: one per core, eight at most, for the memory they take."""
    return min(os.cpu_count() or 1, 8)


@pytest.fixture(autouse=True, scope="session")
def quiet_loading():
    """No progress bars and load reports between the tests' own output."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


@pytest.fixture(autouse=True, scope="module")
def short_collections():
    """What the libraries hold is not walked each time that a trainer collects garbage, a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory):
    """Keep the tables that `datasets` prepares out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture
def tiny_student_config() -> MVDConfig:
    """A student of 2 x 4 x 4 patches with two teachers of width 32."""
    return MVDConfig.from_name("mvd-b", **TINY, num_frames=4, teacher_dims={"image": 32, "video": 32})


@pytest.fixture(scope="session")
def tiny_teachers(tmp_path_factory) -> dict[str, str]:
    """Folders of an image teacher (MAE) and a video teacher (VideoMAE) that match the tiny student."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)  # whichever test asks first, its weights are the same
    models = {
        "image": MVDForPixelReconstruction(MVDConfig.from_name("mae-b", **TINY)),
        "video": MVDForPixelReconstruction(MVDConfig.from_name("videomae-b", **TINY, num_frames=4)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> str:
    """A folder of 32 training and 16 validation videos of 20 frames."""
    folder = tmp_path_factory.mktemp("toy")
    return str(make_toy_dataset(folder, num_train=32, num_validation=16, num_frames=20, height=40, width=48))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this machine, which this process takes for the real one."""
    with LoopbackHub() as running:
        running.adopt_process(monkeypatch, tmp_path / "hub_home")
        yield running
