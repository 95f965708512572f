"""How fast programs compute that take turns on one device: time, share of the device's own rate, peak memory.

On a CPU, ratios rest on the CPU time of the process, which other programs disturb little; on a CUDA device, on the
time until the device is done.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# side of the square matrices whose product gives a device's rate
MATRIX_SIZES = {"cpu": 1536, "cuda": 8192}


def choose_device(name: str | None) -> torch.device:
    """A device by name; by default the CUDA device, or the CPU where there is none.

    Raises:
        ValueError: if there is no such device.
    """
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type not in MATRIX_SIZES or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"There is no device {name!r} to measure here; choose cpu, or cuda where there is one.")
    return device


def synchronize(device: torch.device):
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall and CPU milliseconds of a call, until the device is done."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronize(device)
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def take_turns(
    calls: Sequence[Callable[[], object]], rounds: int, device: torch.device, seed: int = 0
) -> list[np.ndarray]:
    """Wall and CPU milliseconds (rounds, 2) of each call; in every round they take turns in random order."""
    rng = np.random.default_rng(seed)
    times = np.zeros((len(calls), rounds, 2))
    for i in range(rounds):
        for number in rng.permutation(len(calls)):
            times[number, i] = timed(calls[number], device)
    return list(times)


class MatrixProduct:
    """The product of two random square matrices: what the device's rate is measured with.

    Args:
        device: where.
        dtype: of the matrices.
        size: rows of a matrix.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, size: int | None = None):
        self.size = size or MATRIX_SIZES[device.type]
        generator = torch.Generator(device).manual_seed(0)
        shape = (self.size, self.size)
        self.factors = [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2)]
        self.result = torch.empty_like(self.factors[0])

    @property
    def flops(self) -> int:
        """FLOPs of a call."""
        return 2 * self.size**3

    def __call__(self):
        torch.matmul(*self.factors, out=self.result)


# memory


def resident_mb(peak: bool = False) -> float:
    """Megabytes of memory that this process holds, or held at most since [`forget_peak`] (Linux)."""
    name = "VmHWM" if peak else "VmRSS"
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def forget_peak(device: torch.device) -> float | None:
    """Megabytes in use now, from which a peak is counted; `None` where the system does not tell peaks."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return resident_mb()
    except OSError:
        return None


def peak_mb(device: torch.device) -> float:
    """The most megabytes in use since [`forget_peak`]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resident_mb(peak=True)


# contenders


@dataclass
class Contender:
    """A program that is measured: a row of a table.

    Args:
        columns: what tells the row from others.
        build: makes the program, a call without arguments.
        clips: clips of a call.
        flops: model FLOPs of a call.
    """

    columns: dict
    build: Callable[[], Callable[[], object]]
    clips: int
    flops: float


def speed(contender: Contender, times: np.ndarray, rate: np.ndarray, base: np.ndarray | None, clock: int) -> dict:
    """The figures of a contender.

    Args:
        contender: the program.
        times: its wall and CPU milliseconds (rounds, 2).
        rate: (rounds,) FLOPs per millisecond of a matrix product in the same rounds.
        base: (rounds,) milliseconds per clip of what it is compared with, if that could be measured.
        clock: which of the times the ratios rest on.

    Returns:
        Medians over the rounds: `ms` and `cpu_ms` of a call; `clips_per_s`; `tflops` per second; `mfu`, the part of
        the matrix product's rate that the model FLOPs reach; `speedup` over what it is compared with, between `low`
        and `high` in half of the rounds.
    """
    wall, cpu = (float(value) for value in np.median(times, axis=0))
    low, middle, high = [None] * 3
    if base is not None:
        ratios = np.quantile(base / (times[:, clock] / contender.clips), (0.25, 0.5, 0.75))
        low, middle, high = (float(ratio) for ratio in ratios)
    return {
        "ms": wall,
        "cpu_ms": cpu,
        "clips_per_s": 1e3 * contender.clips / wall,
        "tflops": contender.flops / wall / 1e9,
        "mfu": float(np.median(contender.flops / times[:, clock] / rate)),
        "speedup": middle,
        "low": low,
        "high": high,
    }


@dataclass
class Race:
    """Contenders that are measured in one run: the first is what the others are compared with.

    Args:
        device: where they compute.
        dtype: of the matrix product that tells the device's rate.
        rounds: calls of each that count.
        seed: seed of the order.
        matrix_size: of the matrix product.
    """

    device: torch.device
    dtype: torch.dtype
    rounds: int = 5
    seed: int = 0
    matrix_size: int | None = None

    def start(self, contender: Contender) -> tuple[Callable[[], object] | None, float | None]:
        """The program, called twice to warm up, and the megabytes that it adds at most; `None` if it fails."""
        before = forget_peak(self.device)
        try:
            call = contender.build()
            call()
            call()
            synchronize(self.device)
        except (RuntimeError, ImportError, ValueError) as error:  # out of memory, a missing kernel or package
            logger.warning("%s fails: %s", contender.columns, error)
            return None, None
        return call, None if before is None else peak_mb(self.device) - before

    def run(self, contenders: Sequence[Contender]) -> list[dict]:
        """A row for each contender: its columns, its figures (see [`speed`]) and `peak_mb`; `None` if it fails."""
        clock = 0 if self.device.type == "cuda" else 1
        product = MatrixProduct(self.device, self.dtype, self.matrix_size)
        product()
        started = [self.start(contender) for contender in contenders]
        alive = [i for i, (call, _) in enumerate(started) if call is not None]
        matrix, *others = take_turns([product, *(started[i][0] for i in alive)], self.rounds, self.device, self.seed)
        times = dict(zip(alive, others, strict=True))
        rate = product.flops / matrix[:, clock]
        base = times[0][:, clock] / contenders[0].clips if 0 in times else None
        rows = []
        for i, contender in enumerate(contenders):
            figures = speed(contender, times.get(i, np.ones_like(matrix)), rate, base, clock)
            if i not in times:
                figures = dict.fromkeys(figures)
            if self.device.type == "cuda":
                del figures["cpu_ms"]
            rows.append({**contender.columns, **figures, "peak_mb": started[i][1]})
        return rows
