"""Timing: turns, rates and ratios, memory, and what fails."""

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
    """Use the CPU for so long."""
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


def test_wall_and_cpu_time_are_told_apart():
    ((wall, cpu),) = take_turns([lambda: time.sleep(0.05)], 1, CPU)[0]
    assert wall >= 50
    assert cpu < 25
    ((wall, cpu),) = take_turns([lambda: busy(0.03)], 1, CPU)[0]
    assert wall >= cpu * 0.99
    assert cpu >= 30


def test_the_matrix_product_counts_its_arithmetic():
    product = MatrixProduct(CPU, torch.float32, size=16)
    product()
    torch.testing.assert_close(product.result, product.factors[0] @ product.factors[1])
    assert product.flops == 2 * 16**3
    assert MatrixProduct(CPU, torch.bfloat16, size=8).result.dtype == torch.bfloat16


def test_figures_follow_from_times():
    times = np.array([[10.0, 4.0], [30.0, 8.0], [20.0, 6.0]])
    contender = Contender({}, None, clips=2, flops=12e9)
    figures = speed(contender, times, rate=np.full(3, 4e9), base=np.array([6.0, 6.0, 6.0]), clock=1)
    assert figures["ms"] == 20
    assert figures["cpu_ms"] == 6
    assert figures["clips_per_s"] == pytest.approx(100)
    assert figures["tflops"] == pytest.approx(12e9 / 0.02 / 1e12)
    assert figures["mfu"] == pytest.approx(0.5)  # 2e9 of 4e9 FLOPs per millisecond of CPU time
    assert figures["speedup"] == pytest.approx(2)  # 6 ms per clip against 3
    assert figures["low"] == pytest.approx((1.5 + 2) / 2)
    assert figures["high"] == pytest.approx((2 + 3) / 2)


def test_a_race_compares_with_the_first_and_leaves_out_what_fails(caplog):
    def broken():
        raise RuntimeError("out of memory")

    contenders = [
        Contender({"name": "slow"}, lambda: lambda: busy(0.02), clips=1, flops=1e6),
        Contender({"name": "fast"}, lambda: lambda: busy(0.01), clips=2, flops=1e6),
        Contender({"name": "broken"}, broken, clips=1, flops=1e6),
    ]
    slow, fast, failed = Race(CPU, torch.float32, rounds=3, matrix_size=16).run(contenders)
    assert slow["speedup"] == 1
    assert 2.5 < fast["speedup"] < 5  # twice the clips in half the time
    assert fast["mfu"] > slow["mfu"] > 0
    assert failed == {"name": "broken"} | dict.fromkeys(key for key in slow if key != "name")
    assert "out of memory" in caplog.text


def test_without_the_first_there_is_no_comparison():
    def broken():
        raise ImportError("no such kernel")

    contenders = [Contender({}, broken, 1, 1.0), Contender({}, lambda: lambda: None, 1, 1.0)]
    first, second = Race(CPU, torch.float32, rounds=2, matrix_size=16).run(contenders)
    assert first["ms"] is None
    assert second["ms"] >= 0
    assert second["speedup"] is None


def test_peak_memory_is_what_was_held_at_most():
    before = forget_peak(CPU)
    if before is None:
        pytest.skip("this system does not tell peaks")
    block = torch.ones(64, 2**18)  # 64 MiB
    del block
    assert 60 < peak_mb(CPU) - before < 100
    before = forget_peak(CPU)
    assert peak_mb(CPU) - before < 30


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu") == CPU
    with pytest.raises(ValueError, match="no device 'meta'"):
        choose_device("meta")
    if not torch.cuda.is_available():
        assert choose_device(None) == CPU
        with pytest.raises(ValueError, match="no device 'cuda'"):
            choose_device("cuda")
