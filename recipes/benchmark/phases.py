"""Where the time of a step goes: its phases, one inside the other, and how often it waits for the device."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OTHER = "other"
# operators that give the host values of the device, or shapes that depend on them
WAITING_OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")
# those that do so if they are given a mask
PICKING_OPERATORS = ("index", "index_put", "index_put_", "_unsafe_index")
# what reads a tensor of a CPU without an operator
WAITING_METHODS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu)


class PhaseClock:
    """Milliseconds per phase; what happens inside an inner phase is not counted in the outer one.

    On a CUDA device marks are events in its stream, so that nothing waits before the phases are read.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.open: list[str] = [OTHER]
        self.marks: list[tuple[str, float | torch.cuda.Event]] = []

    def mark(self, phase: str):
        """Say which phase comes next."""
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.marks.append((phase, now))

    def restart(self):
        """Forget what was until now; the present phase goes on."""
        self.marks.clear()
        self.mark(self.open[-1])

    def enter(self, phase: str):
        """Begin a phase inside the present one."""
        self.open.append(phase)
        self.mark(phase)

    def leave(self):
        """End the present phase: the one around it goes on."""
        self.open.pop()
        self.mark(self.open[-1])

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside is this phase."""
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
        """Milliseconds of each phase since the last call, in the order of their beginning; forgets them."""
        total: Counter[str] = Counter()
        if self.marks and self.device.type == "cuda":
            self.marks[-1][1].synchronize()
        for (phase, start), (_, stop) in zip(self.marks, self.marks[1:], strict=False):
            total[phase] += start.elapsed_time(stop) if self.device.type == "cuda" else 1e3 * (stop - start)
        self.marks.clear()
        return dict(total)


class WaitingOperators(TorchDispatchMode):
    """Counts the operators that give the host values of a device."""

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
        """Whether a copy to a device leaves this one for the host."""
        return device is not None and torch.device(device).type == "cpu" != self.device.type


def is_mask(index) -> bool:
    """Whether an index is a mask, from which the number of elements does not follow without looking."""
    return torch.is_tensor(index) and index.dtype in (torch.bool, torch.uint8)


class WaitingMethods(TorchFunctionMode):
    """Counts the methods of tensors on a CPU that give their values without an operator."""

    def __init__(self, counts: Counter[str]):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in WAITING_METHODS:
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count, by operator, what makes the host wait for values of a device.

    On a CPU nothing waits, but the same operators run: what is counted there would wait on a GPU.
    """
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(WaitingOperators(counts, device))
        if device.type == "cpu":
            stack.enter_context(WaitingMethods(counts))
        yield counts
