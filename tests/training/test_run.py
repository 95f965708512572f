"""What a recipe does around training."""

from types import SimpleNamespace

import pytest
import torch

from mvd_hf.training.run import SMALL_WIDTH, choose_threads


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
