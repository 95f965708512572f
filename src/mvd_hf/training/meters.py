"""Meters of a run: the mean of each loss over clips, and the videos that could not be read."""

import csv
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ..model.loading_mvd import listed

logger = logging.getLogger(__name__)

# so many batches in a row without a readable video mean that the source is gone, not that files are damaged
MAX_BLANK_BATCHES = 20
# so many samples of a micro-batch are named
MAX_NAMES = 32


class LossMeter:
    """Sums of named losses and metrics on the device, and the first micro-batch at which one was not finite.

    Adding does not wait for the device; `means` and `check` do, and are called on all processes together.

    Args:
        samples_of: names the samples of an optimizer step's micro-batch of a process.
        max_blank_batches: so many batches in a row without a readable video are an error.
    """

    def __init__(
        self,
        samples_of: Callable[[int, int, int], list[str]] | None = None,
        max_blank_batches: float = math.inf,
    ):
        self.samples_of, self.max_blank_batches = samples_of, max_blank_batches
        self.names: tuple[str, ...] = ()
        self.step, self.batch = 0, -1  # the micro-batch within its step
        self.num_batches = self.num_clips = 0
        self.blank_batches = 0  # in a row, until now

    def add(self, parts: Mapping[str, torch.Tensor], step: int, num_clips: int):
        """Add the mean losses of the `num_clips` clips of a micro-batch of optimizer step `step`."""
        values = torch.stack([part.detach().float() for part in parts.values()])
        if self.num_batches == 0:
            self.names = tuple(parts)
            self.sums = torch.zeros_like(values)
            # step and micro-batch of each part
            self.first_bad = torch.stack([torch.full_like(values, torch.inf), torch.zeros_like(values)])
        self.step, self.batch = step, self.batch + 1 if step == self.step else 0
        self.sums += values * num_clips
        steps, batches = self.first_bad
        is_first = ~values.isfinite() & steps.isinf()
        self.first_bad = torch.stack([steps.masked_fill(is_first, step), batches.masked_fill(is_first, self.batch)])
        self.num_batches += 1
        self.num_clips += num_clips
        self.blank_batches = 0 if num_clips else self.blank_batches + 1

    def means(self, accelerator) -> dict[str, float]:
        """Mean of each loss over the clips of all processes since the last call; nothing if there was no clip."""
        if self.num_batches == 0:
            return {}
        counts = torch.tensor([self.num_clips], device=self.sums.device)
        *sums, num_clips = accelerator.reduce(torch.cat([self.sums, counts]), "sum").tolist()
        self.num_batches = self.num_clips = 0
        return {name: value / num_clips for name, value in zip(self.names, sums, strict=True)} if num_clips else {}

    def check(self, accelerator):
        """Look at what was added until now.

        Raises:
            FloatingPointError: naming step, part and samples, if a loss was NaN or infinite.
            ValueError: if none of many batches in a row had a video that could be read.
        """
        if self.num_batches == 0:
            return
        blank_batches = torch.full_like(self.first_bad[:1], self.blank_batches)
        found = accelerator.gather(torch.cat([self.first_bad, blank_batches])).view(-1, 3, len(self.names))
        steps, batches, blank_batches = found.unbind(dim=1)
        if steps.isfinite().any():
            process, part = divmod(int(steps.argmin()), len(self.names))
            step, batch = int(steps[process, part]), int(batches[process, part])
            raise FloatingPointError(
                f"{self.names[part]!r} is NaN or infinite at step {step}{self._where(step, batch, process)}. Training "
                "stops, the last checkpoint is kept. Lower the learning rate, use bf16 instead of fp16, or check the "
                "inputs."
            )
        blank_batches = blank_batches[:, 0]
        if blank_batches.min() > 0 and blank_batches.sum() >= self.max_blank_batches:
            raise ValueError(
                f"No video of the last {int(blank_batches.sum())} batches could be read: the warnings above name them."
            )

    def _where(self, step: int, batch: int, process: int) -> str:
        samples = [] if self.samples_of is None else self.samples_of(step, batch, process)
        if not samples:
            return ""
        return f", micro-batch {batch} of process {process}, samples: {listed(samples, MAX_NAMES)}"


class BadVideoMeter:
    """Videos that could not be read, counted by split, file and reason; the log names each once."""

    def __init__(self):
        self.counts: Counter[tuple[str, str, str]] = Counter()

    def add(self, split: str, events: list[tuple[str, str]]):
        """Count (file, reason) events of a batch."""
        for file, reason in events:
            if (split, file, reason) not in self.counts:
                logger.warning("Left out of %s: %s: %s", split, file, reason)
            self.counts[split, file, reason] += 1

    def total(self, split: str) -> int:
        """How often a video of a split could not be read."""
        return sum(times for (kind, _, _), times in self.counts.items() if kind == split)

    def gather(self):
        """Move the counts of all processes to the main process."""
        gathered = gather_object([dict(self.counts)])
        self.counts = Counter()
        if PartialState().is_main_process:
            for counts in gathered:
                self.counts.update(counts)

    def save(self, path: str | os.PathLike):
        """Write the counts as CSV with the columns split, file, reason, times."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["split", "file", "reason", "times"])
            writer.writerows([*event, times] for event, times in sorted(self.counts.items()))

    def load(self, path: str | os.PathLike):
        """Add the counts of a file that [`save`] wrote; raises ValueError if it is damaged."""
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self.counts.update({(row["split"], row["file"], row["reason"]): int(row["times"]) for row in rows})
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{str(path)!r} is damaged ({error}): delete its checkpoint to go on.") from error

    def describe(self) -> str:
        """How many files could not be read, how often, and the first of them."""
        files, reasons = Counter(), {}
        for (_, file, reason), times in self.counts.items():
            files[file] += times
            reasons.setdefault(file, reason)  # others of the same file, such as another damaged frame, are in the CSV
        lines = [f"  {times} x {file}: {reasons[file]}" for file, times in files.most_common(20)]
        more = [f"  ... and {len(files) - 20} more"] if len(files) > 20 else []
        heading = f"{len(files)} videos could not be read, {sum(files.values())} times in all:"
        return "\n".join([heading, *lines, *more])
