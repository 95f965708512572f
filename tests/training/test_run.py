"""What a recipe does around training."""

from types import SimpleNamespace

import pytest
import torch

from mvd_hf import MVDForPixelReconstruction, MVDTrainer
from mvd_hf.training.run import SMALL_WIDTH, choose_threads
from short_runs import Clips, arguments, videomae


@pytest.fixture
def two_threads(monkeypatch):
    """Two threads, and no word on how many there should be."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


def trainer(width: int, device: str = "cpu") -> SimpleNamespace:
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    return SimpleNamespace(model=model, args=SimpleNamespace(device=torch.device(device)))


def test_small_networks_compute_on_one_thread_of_a_cpu(two_threads, monkeypatch):
    choose_threads(trainer(SMALL_WIDTH + 1))
    choose_threads(trainer(SMALL_WIDTH, "cuda"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    choose_threads(trainer(SMALL_WIDTH))
    assert torch.get_num_threads() == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    choose_threads(trainer(SMALL_WIDTH))
    assert torch.get_num_threads() == 1


def short_run(folder) -> MVDTrainer:
    config = videomae()
    args = arguments(folder, num_train_epochs=1, warmup_epochs=0)
    return MVDTrainer(MVDForPixelReconstruction(config), args, train_dataset=Clips(config))


def test_a_run_ends_with_its_speed_its_folder_and_a_next_step(tmp_path, caplog):
    caplog.set_level("INFO")
    short_run(tmp_path).run()
    last = caplog.records[-1].getMessage()
    assert last.startswith("Trained in 0:00:0")
    assert "samples per second" in last
    assert f"The model is in {tmp_path}. Let it teach: mvd-hf distill" in last


def test_too_little_memory_names_the_keys_that_help(tmp_path, monkeypatch):
    def run_out(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer = short_run(tmp_path)
    monkeypatch.setattr(trainer, "training_step", run_out)
    with pytest.raises(
        ValueError, match=r"batch_size 2 --gradient_accumulation_steps 2.*gradient_checkpointing.*dtype"
    ):
        trainer.run()
