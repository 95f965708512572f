"""Time of the nested phases of a step, and how often the host waits for the device."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OTHER = "other"
# operators that copy values of the device to the host, or whose output shapes depend on such values
WAITING_OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")
# operators that do so if they get a mask
PICKING_OPERATORS = ("index", "index_put", "index_put_", "_unsafe_index")
# methods that read a CPU tensor without an operator
WAITING_METHODS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu)


class PhaseClock:
    """Milliseconds per phase; time of an inner phase does not count for the outer one.

    On a CUDA device the marks are events in its stream, so that nothing waits until the phases are read.

    Args:
        device: device of the measured work.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.open: list[str] = [OTHER]
        self.marks: list[tuple[str, float | torch.cuda.Event]] = []

    def mark(self, phase: str):
        """Mark the start of a phase."""
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.marks.append((phase, now))

    def restart(self):
        """Forget all times; the current phase goes on."""
        self.marks.clear()
        self.mark(self.open[-1])

    def enter(self, phase: str):
        """Start a phase inside the current one."""
        self.open.append(phase)
        self.mark(phase)

    def leave(self):
        """End the current phase; the one around it goes on."""
        self.open.pop()
        self.mark(self.open[-1])

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Context that is a phase."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def watch(self, module: nn.Module, name: str):
        """Make the forward pass of a module a phase."""
        module.register_forward_pre_hook(lambda *_: self.enter(name))
        module.register_forward_hook(lambda *_: self.leave())

    def read(self) -> dict[str, float]:
        """Milliseconds of each phase since the last call, in the order of their starts; forgets them."""
        total: Counter[str] = Counter()
        if self.marks and self.device.type == "cuda":
            self.marks[-1][1].synchronize()
        for (phase, start), (_, stop) in zip(self.marks, self.marks[1:], strict=False):
            total[phase] += start.elapsed_time(stop) if self.device.type == "cuda" else 1e3 * (stop - start)
        self.marks.clear()
        return dict(total)


class WaitingOperators(TorchDispatchMode):
    """Counts operators that copy values of a device to the host."""

    def __init__(self, counts: Counter[str], device: torch.device):
        super().__init__()
        self.counts, self.device = counts, device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if self.is_here(args[0] if args else None) and (
            name in WAITING_OPERATORS
            or (name in PICKING_OPERATORS and any(is_mask(index) for index in args[1]))
            or (name == "_to_copy" and self.is_host(kwargs.get("device")))
        ):
            self.counts[name] += 1
        if name == "copy_" and self.is_here(args[1]) and self.is_host(args[0].device):
            self.counts[name] += 1
        return func(*args, **kwargs)

    def is_here(self, value) -> bool:
        """Whether a value is a tensor on the device."""
        return torch.is_tensor(value) and value.device.type == self.device.type

    def is_host(self, device: torch.device | None) -> bool:
        """Whether a copy to a device is one from ours to the host."""
        return device is not None and torch.device(device).type == "cpu" != self.device.type


def is_mask(index) -> bool:
    """Whether an index is a mask, so that the number of elements depends on its values."""
    return torch.is_tensor(index) and index.dtype in (torch.bool, torch.uint8)


class WaitingMethods(TorchFunctionMode):
    """Counts methods that read CPU tensors without an operator."""

    def __init__(self, counts: Counter[str]):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in WAITING_METHODS:
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count, by operator, how often the host waits for values of a device.

    On a CPU nothing waits, but the same operators run: those counted there would wait on a GPU.
    """
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(WaitingOperators(counts, device))
        if device.type == "cpu":
            stack.enter_context(WaitingMethods(counts))
        yield counts
