"""Timing: turns, figures, memory, and contenders that fail."""

import time

import numpy as np
import pytest
import torch

from recipes.benchmark.timing import (
    Contender,
    MatrixProduct,
    Race,
    choose_device,
    forget_peak,
    peak_mb,
    speed,
    take_turns,
)

CPU = torch.device("cpu")


def busy(seconds: float):
    """Use the CPU for this many seconds."""
    stop = time.process_time() + seconds
    while time.process_time() < stop:
        pass


def test_calls_take_turns_in_random_order():
    order = []
    calls = [lambda name=name: order.append(name) for name in "abc"]
    times = take_turns(calls, 8, CPU)
    assert [each.shape for each in times] == [(8, 2)] * 3
    rounds = ["".join(order[i : i + 3]) for i in range(0, 24, 3)]
    assert all(sorted(each) == list("abc") for each in rounds)
    assert len(set(rounds)) > 1


def test_wall_and_cpu_time_are_measured_separately():
    ((wall, cpu),) = take_turns([lambda: time.sleep(0.05)], 1, CPU)[0]
    assert wall >= 50
    assert cpu < 25
    ((wall, cpu),) = take_turns([lambda: busy(0.03)], 1, CPU)[0]
    assert wall >= cpu * 0.99
    assert cpu >= 30


def test_the_matrix_product_counts_its_flops():
    product = MatrixProduct(CPU, torch.float32, size=16)
    product()
    torch.testing.assert_close(product.result, product.factors[0] @ product.factors[1])
    assert product.flops == 2 * 16**3
    assert MatrixProduct(CPU, torch.bfloat16, size=8).result.dtype == torch.bfloat16


def test_figures_follow_from_times():
    times = np.array([[10.0, 4.0], [30.0, 8.0], [20.0, 6.0]])
    contender = Contender({}, None, clips=2, flops=12e9)
    figures = speed(contender, times, rate=np.full(3, 4e9), base=np.array([6.0, 6.0, 6.0]), clock=1)
    expected = {"ms": 20, "cpu_ms": 6, "clips_per_s": 100, "tflops": 12e9 / 0.02 / 1e12}
    expected |= {"mfu": 0.5, "speedup": 2, "low": 1.75, "high": 2.5}  # 2e9 of 4e9 FLOPs per ms; 6 ms per clip to 3
    assert figures == pytest.approx(expected)


def test_a_race_compares_with_the_first_contender_that_works(caplog):
    def broken():
        raise RuntimeError("out of memory")

    slow = Contender({"name": "slow"}, lambda: lambda: busy(0.02), clips=1, flops=1e6)
    fast = Contender({"name": "fast"}, lambda: lambda: busy(0.01), clips=2, flops=1e6)
    fails = Contender({"name": "broken"}, broken, clips=1, flops=1e6)
    race = Race(CPU, torch.float32, rounds=3, matrix_size=16)
    first, second, failed = race.run([slow, fast, fails])
    assert first["speedup"] == 1
    assert 2.5 < second["speedup"] < 5  # twice the clips in half the time
    assert second["mfu"] > first["mfu"] > 0
    assert failed == {"name": "broken"} | dict.fromkeys(key for key in first if key != "name")
    assert "out of memory" in caplog.text
    failed, alone = race.run([fails, fast])
    assert (failed["ms"], alone["speedup"]) == (None, None)
    assert alone["ms"] > 0


def test_peak_memory_counts_freed_blocks():
    before = forget_peak(CPU)
    if before is None:
        pytest.skip("this system does not report peaks")
    block = torch.ones(64, 2**18)  # 64 MiB
    del block
    assert 60 < peak_mb(CPU) - before < 100
    before = forget_peak(CPU)
    assert peak_mb(CPU) - before < 30


def test_an_unavailable_device_is_refused():
    assert choose_device("cpu") == CPU
    with pytest.raises(ValueError, match="'meta'"):
        choose_device("meta")
    if not torch.cuda.is_available():
        assert choose_device(None) == CPU
        with pytest.raises(ValueError, match="'cuda'"):
            choose_device("cuda")
