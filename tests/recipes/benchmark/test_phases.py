"""Phases of a step, and operators for which the host waits for the device."""

import time

import pytest
import torch
from torch import nn

from recipes.benchmark.phases import OTHER, PhaseClock, host_waits

CPU = torch.device("cpu")


class Slow(nn.Module):
    def __init__(self, seconds: float, inner: nn.Module | None = None):
        super().__init__()
        self.seconds, self.inner = seconds, inner

    def forward(self, x):
        time.sleep(self.seconds)
        return x if self.inner is None else self.inner(x)


def test_inner_phases_do_not_count_in_outer_ones():
    clock = PhaseClock(CPU)
    inner = Slow(0.03)
    outer = Slow(0.02, inner)
    clock.watch(inner, "inner")
    clock.watch(outer, "outer")
    with clock.phase("whole"):
        outer(1)
        time.sleep(0.01)
    time.sleep(0.01)
    clock.mark("end")
    total = clock.read()
    assert list(total) == ["whole", "outer", "inner", OTHER]
    for name, expected in {"whole": 10, "outer": 20, "inner": 30, OTHER: 10}.items():
        assert expected <= total[name] < expected + 60  # sleeping takes at least as long
    assert clock.read() == {}


def test_a_restarted_clock_forgets():
    clock = PhaseClock(CPU)
    with clock.phase("before"):
        time.sleep(0.01)
    clock.restart()
    with clock.phase("after"):
        pass
    clock.mark("end")
    assert list(clock.read()) == [OTHER, "after"]


def test_a_phase_ends_with_an_error():
    clock = PhaseClock(CPU)
    with pytest.raises(KeyError), clock.phase("broken"):
        raise KeyError
    assert clock.open == [OTHER]


def test_operators_for_which_the_host_waits_are_counted():
    x = torch.arange(4.0)
    calls = [
        ("_local_scalar_dense", lambda: x.sum().item()),
        ("_local_scalar_dense", lambda: 1 if x.sum() > 0 else 0),
        ("index", lambda: x[x > 0]),
        ("index_put_", lambda: x.__setitem__(x > 0, 1.0)),
        ("nonzero", lambda: torch.where(x > 0)),
        ("_unique2", lambda: x.unique()),
        ("tolist", lambda: x.tolist()),
        ("numpy", lambda: x.numpy()),
        ("cpu", lambda: x.cpu()),
    ]
    for name, call in calls:
        with host_waits(CPU) as counts:
            call()
        assert counts == {name: 1}


def test_operators_on_the_device_alone_are_not_counted():
    x = torch.arange(4.0, requires_grad=True)
    with host_waits(CPU) as counts:
        y = x[torch.tensor([0, 2])] * torch.tensor([1.0, 2.0])
        torch.where(y > 0, y, 0.0).sum().backward()
        x.detach().argsort().to(torch.uint8)
    assert not counts
    x.sum().item()  # no longer watched
    assert not counts
