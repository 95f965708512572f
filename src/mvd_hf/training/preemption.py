"""Preemption: a run that gets SIGTERM or Ctrl-C ends its step on all processes and leaves a checkpoint."""

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.distributed as dist


class StopRequest:
    """Remembers SIGTERM and SIGINT (Ctrl-C) within its `with` block, instead of ending the process at once.

    Another Ctrl-C after two seconds does end it at once; launchers repeat the first one sooner than that.

    Attributes:
        signal: the signal that has come, or `None`.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self.since = 0.0
        self.former: dict = {}
        self.group = self.pending = None

    def __enter__(self) -> "StopRequest":
        # elsewhere than in the main thread Python takes no signals
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.former[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception):
        for number, handler in self.former.items():
            signal.signal(number, handler)
        self.former = {}
        self.finish()

    def _remember(self, number, frame):
        if self.signal is None:
            self.signal, self.since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.since > 2:
            raise KeyboardInterrupt

    def agree(self) -> bool:
        """Whether to stop after this step, the same on all processes.

        The processes add up their answers on the CPU while the next step is computed, so that nobody waits: with
        several processes a signal is answered one or two steps later.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self.signal is not None
        if self.group is None:
            self.group = dist.new_group(backend="gloo")
        answer = self.finish()
        total = torch.tensor([int(self.signal is not None)])
        self.pending = total, dist.all_reduce(total, group=self.group, async_op=True)
        return answer

    def finish(self) -> bool:
        """Wait for the sum that is under way, and give its answer."""
        if self.pending is None:
            return False
        (total, work), self.pending = self.pending, None
        work.wait()
        return total.item() > 0


def end_worker(is_ending: torch.Tensor, number: int, frame):
    """A data worker's answer to a signal: end only where the main process ends too."""
    if is_ending:
        os._exit(0)


def start_worker(former: Callable[[int], None] | None, is_ending: torch.Tensor, worker: int):
    """Begin a data worker that leaves it to the main process to stop: a scheduler signals both."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(end_worker, is_ending))
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
    """A loader's `worker_init_fn` whose workers outlive a signal, in front of the one that it has."""
    return partial(start_worker, former, ending_flag())
