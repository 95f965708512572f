"""What may end a run before its time: a request to stop (SIGTERM), a full disk, another number of processes."""

import atexit
import errno
import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch

PROCESSES = "processes.json"


class StopRequest:
    """Remembers a SIGTERM within its `with` block, instead of ending the process at once.

    Attributes:
        is_made: whether the signal has come.
    """

    def __init__(self):
        self.is_made = self.is_watching = False

    def __enter__(self) -> "StopRequest":
        # elsewhere than in the main thread Python takes no signals
        self.is_watching = threading.current_thread() is threading.main_thread()
        if self.is_watching:
            self.former = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *exception):
        if self.is_watching:
            signal.signal(signal.SIGTERM, self.former)

    def _remember(self, number, frame):
        self.is_made = True


def end_worker(is_ending: torch.Tensor, number: int, frame):
    """A data worker's answer to SIGTERM: end only where the main process ends too."""
    if is_ending:
        os._exit(0)


def start_worker(former: Callable[[int], None] | None, is_ending: torch.Tensor, worker: int):
    """Begin a data worker that leaves it to the main process to stop: a scheduler signals both."""
    signal.signal(signal.SIGTERM, partial(end_worker, is_ending))
    if former is not None:
        former(worker)


@cache
def ending_flag() -> torch.Tensor:
    """True, for this process and its data workers, as soon as this process is ending."""
    is_ending = torch.zeros((), dtype=torch.bool).share_memory_()
    # At its end Python sends SIGTERM to the workers that are left, and waits for them. What is registered later than
    # that, as here, is called before.
    atexit.register(is_ending.fill_, True)
    return is_ending


def outlive_signals(former: Callable[[int], None] | None) -> Callable[[int], None]:
    """A loader's `worker_init_fn` whose workers outlive a SIGTERM, in front of the one that it has."""
    return partial(start_worker, former, ending_flag())


# how writers say that no more can be written where they give no number; torch's says no more than that it could not
FULL_SIGNS = ("No space left", "StorageFull", "Disk quota", "QuotaExceeded", "iostream error", "unexpected pos")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of writing a file says that no more can be written: by its number, or by text."""
    known = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return known or any(sign in str(error) for sign in FULL_SIGNS)


@dataclass(frozen=True)
class Processes:
    """By how many processes, and in which portions, a run takes its steps.

    Args:
        num_processes: of the whole run.
        batch_size: videos per process and micro-step.
        accumulation: micro-steps per step.
    """

    num_processes: int
    batch_size: int
    accumulation: int

    @property
    def total(self) -> int:
        """Videos per step."""
        return self.num_processes * self.batch_size * self.accumulation

    def __str__(self) -> str:
        return f"{self.batch_size} x {self.accumulation} x {self.num_processes} processes"

    def save(self, folder: Path):
        """Write it into a checkpoint."""
        (folder / PROCESSES).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Processes | None":
        """Read it from a checkpoint; `None` if an earlier version wrote that."""
        path = folder / PROCESSES
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{str(path)!r} is damaged ({error}): delete its checkpoint to go on.") from error

    def compare(self, former: "Processes | None") -> str | None:
        """What changes for a run that was begun otherwise; `None` if nothing does."""
        if former in (None, self):
            return None
        begin = f"Resuming with {self} (before: {former})"
        if former.total != self.total:
            return (
                f"{begin}: a step has {self.total} videos, before it had {former.total}. Steps are counted on, so "
                "that epochs and data begin at another place, and the rate follows the new batch. To keep them, keep "
                "the product of per_device_train_batch_size, gradient_accumulation_steps and processes."
            )
        return (
            f"{begin}: steps have the same videos, clips, masks and rates. What a process draws for itself "
            "(stochastic depth, dropout, which clips are mixed) and the order of sums differ."
        )
