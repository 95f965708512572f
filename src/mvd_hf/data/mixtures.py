"""Clips of several data sets in fixed shares: which video stands where follows from (seed, epoch, position) alone."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch

from .clips import ClipDataset, SampleDataset, sample_generator

logger = logging.getLogger(__name__)

# last number of the seeds of a data set's order
OF_ORDER = 2


@lru_cache(16)
def order_of_pass(size: int, seed: int, part: int, number: int) -> np.ndarray:
    """The order of the videos of a data set in one of its passes."""
    return torch.randperm(size, generator=sample_generator(seed, number, part, OF_ORDER)).numpy()


def share_out(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that sum to `total`, in proportion to the weights; the largest remainders are rounded up.

    Raises:
        ValueError: naming a part whose weight is not a positive number, or that gets nothing.
    """
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"The weight of {name!r} is {weight!r}: give a positive number, or leave it out.")
    exact = {name: total * weight / sum(weights.values()) for name, weight in weights.items()}
    shares = {name: math.floor(value) for name, value in exact.items()}
    left = total - sum(shares.values())
    for name in sorted(exact, key=lambda name: shares[name] - exact[name])[:left]:
        shares[name] += 1
    nothing = [name for name, share in shares.items() if share == 0]
    if nothing:
        raise ValueError(f"{nothing[0]!r} gets none of {total} videos per epoch: raise its weight or epoch_videos.")
    return shares


class MixtureDataset(SampleDataset):
    """Clips of several data sets: `dataset[(epoch, position)]`, in fixed shares of an epoch.

    The first positions belong to the first data set, and so on; a sampler shuffles them. Each data set goes through
    its videos in random order and begins anew, with other clips, when all were seen: they are seen equally often.

    Args:
        parts: the data sets by name.
        weights: shares of an epoch, in any unit.
        epoch_videos: videos of an epoch; by default as many as all data sets have.
        seed: seed of all random choices.

    Attributes:
        shares: videos of an epoch by data set.

    Raises:
        ValueError: if a weight is not positive, a data set gets no video, or clips are fixed views.
    """

    def __init__(
        self,
        parts: Mapping[str, ClipDataset],
        weights: Mapping[str, float],
        epoch_videos: int | None = None,
        seed: int = 0,
    ):
        total = sum(map(len, parts.values())) if epoch_videos is None else epoch_videos
        self.shares = share_out(total, weights)
        self.parts, self.names = list(parts.values()), list(parts)
        self.ends = np.cumsum([self.shares[name] for name in self.names])
        if any(part.reader.clip_sampler.views is not None for part in self.parts):
            raise ValueError("Fixed views of videos (a target cache) take one dataset, not a mixture of datasets.")
        super().__init__(range(total), self.parts[0].reader, seed)
        for line in self.describe(1):
            logger.info("%s", line)

    def place(self, epoch: int, position: int) -> tuple[int, int]:
        """The number of the data set and the row in it that stand at a position of an epoch."""
        part = int(np.searchsorted(self.ends, position, side="right"))
        share, size = self.shares[self.names[part]], len(self.parts[part])
        number, row = divmod(epoch * share + position - int(self.ends[part]) + share, size)
        return part, int(order_of_pass(size, self.seed, part, number)[row])

    def sample(self, epoch: int, index: int):
        part, row = self.place(epoch, index)
        return self.parts[part].read(row, *self.generators(epoch, index))

    def name(self, epoch: int, index: int) -> str:
        part, row = self.place(epoch, index)
        return f"{self.names[part]}: {self.parts[part].name(epoch, row)}"

    def describe(self, epochs: float) -> list[str]:
        """How often videos of each data set are seen in so many epochs."""
        return [
            f"{name}: {self.shares[name] * epochs:.0f} videos in {epochs:g} epochs, "
            f"{self.shares[name] / len(self):.1%} of the mixture, each of its {len(part)} videos "
            f"{self.shares[name] * epochs / len(part):.2f} times"
            for name, part in zip(self.names, self.parts, strict=True)
        ]


def entry_names(entries: Sequence[Mapping]) -> list[str]:
    """A name for each entry of a mixture: its `dataset`, with a number if several are of the same one."""
    sources = [str(entry["dataset"]) for entry in entries]
    return [
        source if sources.count(source) == 1 else f"{source} ({sources[: i + 1].count(source)})"
        for i, source in enumerate(sources)
    ]


__all__ = ["MixtureDataset", "entry_names", "share_out"]
