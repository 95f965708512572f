"""Speed of programs that take turns on one device: time, model FLOPs utilization, peak memory.

On a CPU, ratios are based on the CPU time of the process, which depends little on other programs; on a CUDA device, on
the time until the device has finished.
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
# side of the square matrices whose product measures the FLOPs per second of a device
MATRIX_SIZES = {"cpu": 1536, "cuda": 8192}


def choose_device(name: str | None) -> torch.device:
    """A device by name; by default CUDA if available, otherwise the CPU.

    Raises:
        ValueError: if the device is not available.
    """
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type not in MATRIX_SIZES or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"The device {name!r} is not available; choose cpu, or cuda on a machine with a GPU.")
    return device


def synchronize(device: torch.device):
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall and CPU milliseconds of a call, until the device has finished."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronize(device)
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def take_turns(
    calls: Sequence[Callable[[], object]], rounds: int, device: torch.device, seed: int = 0
) -> list[np.ndarray]:
    """Wall and CPU milliseconds (rounds, 2) of each call; each round runs the calls in random order."""
    rng = np.random.default_rng(seed)
    times = np.zeros((len(calls), rounds, 2))
    for i in range(rounds):
        for number in rng.permutation(len(calls)):
            times[number, i] = timed(calls[number], device)
    return list(times)


class MatrixProduct:
    """The product of two random square matrices, which measures the FLOPs per second of a device.

    Args:
        device: device of the matrices.
        dtype: dtype of the matrices.
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
    """Resident memory of this process in MB, or its peak since [`forget_peak`] (Linux)."""
    name = "VmHWM" if peak else "VmRSS"
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def forget_peak(device: torch.device) -> float | None:
    """Reset the peak and return the MB in use; `None` if the system does not report peaks."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return resident_mb()
    except OSError:
        return None


def peak_mb(device: torch.device) -> float:
    """Peak MB in use since [`forget_peak`]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resident_mb(peak=True)


# contenders


@dataclass
class Contender:
    """A program to measure: a row of a table.

    Args:
        columns: values that identify the row.
        build: returns the program, a function without arguments.
        clips: clips per call.
        flops: model FLOPs per call.
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
        base: (rounds,) milliseconds per clip of the contender to compare with, if it could be measured.
        clock: column of `times` for the ratios.

    Returns:
        Medians over the rounds: `ms` and `cpu_ms` of a call; `clips_per_s`; `tflops` per second; `mfu`, the model
        FLOPs per second as a fraction of the matrix product's; `speedup` over `base`, with its quartiles `low` and
        `high`.
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
    """Measures contenders in one run and compares them with the first.

    Args:
        device: device of the contenders.
        dtype: dtype of the matrix product that measures the device.
        rounds: measured calls of each contender.
        seed: seed of the order.
        matrix_size: rows of the matrices.
    """

    device: torch.device
    dtype: torch.dtype
    rounds: int = 5
    seed: int = 0
    matrix_size: int | None = None

    def start(self, contender: Contender) -> tuple[Callable[[], object] | None, float | None]:
        """The program after two warm-up calls, and the peak MB that it adds; `None` if it fails."""
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
        """A row for each contender: columns, figures (see [`speed`]) and `peak_mb`; figures are `None` if it fails."""
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
