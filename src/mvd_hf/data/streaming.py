"""Training clips from a stream of rows, sharded over processes and workers; resuming decodes nothing again."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence

import datasets
import torch

from ..model.video_reading import VideoReadError
from .clips import ClipSampler, RowReader, check_rule, sample_generator, sample_generators
from .labels import LabelNames
from .sources import media_name


def part_of(rows: datasets.IterableDataset, part: int, num_parts: int, block_size: int = 1) -> Iterator[dict]:
    """Rows of one of `num_parts` readers of a stream, which together read each row once.

    Readers open shards of their own if there are enough. Otherwise several readers share a shard: each takes every
    n-th row or, of a single shard, every n-th block of `block_size` rows.
    """
    num_shards = rows.num_shards
    block_size = block_size if num_shards == 1 else 1  # the last of several shards may be short of blocks
    if num_shards >= num_parts:
        sharing, place = 1, 0
        rows = rows.shard(num_parts, part)
    else:
        sharing = len(range(part % num_shards, num_parts, num_shards))
        place = part // num_shards
        rows = rows.shard(num_shards, part % num_shards)
    # iterating the data set itself would divide its shards among the loader's workers again
    for i, batch in enumerate(rows.iter(batch_size=1)):
        if i // block_size % sharing == place:
            yield {column: values[0] for column, values in batch.items()}


class StreamingClips(torch.utils.data.IterableDataset):
    """Training clips of a stream, for the data loader of `MVDTrainer`; items are those of [`ClipDataset`].

    An epoch has `size` videos. Each epoch shuffles the shards, then the rows within a buffer, and divides them among
    the workers of all processes. The division is exact for a single shard and for parts of equal size. Otherwise a
    worker with a smaller part starts it again, with other crops, and one with a larger part skips its end. The random
    numbers of a clip follow from the seed, the epoch and the name of the file. Which clips share a batch depends on
    the number of processes and workers.

    Args:
        rows: stream of videos with optional labels, see `mvd_hf.data.sources.load_rows`.
        clip_sampler: takes clips from a video.
        size: number of videos of the stream.
        label_column, label_names, problem_type: as in [`ClipDataset`].
        seed: seed of all random choices.
        on_bad_video: `raise` or `skip`, as in [`ClipDataset`].
        shuffle_buffer: number of rows, with the bytes of their videos if they have them, to draw the next row from.

    Raises:
        ValueError: if there is no row, no such label column or no such rule.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        clip_sampler: ClipSampler,
        size: int,
        label_column: str | Sequence[str] | None = None,
        label_names: LabelNames | None = None,
        seed: int = 0,
        on_bad_video: str = "raise",
        shuffle_buffer: int = 256,
        problem_type: str | None = None,
    ):
        if next(iter(rows), None) is None or size < 1:
            raise ValueError("The data set is empty: it names no video.")
        check_rule(on_bad_video)
        if on_bad_video == "substitute":
            raise ValueError("A stream has no other video at hand for on_bad_video='substitute'; choose 'skip'.")
        self.rows, self.size, self.seed = rows, size, seed
        self.on_bad_video, self.shuffle_buffer = on_bad_video, shuffle_buffer
        self.reader = RowReader(rows, clip_sampler, label_column, label_names, problem_type)
        # shared memory: workers, which may outlive an epoch, read it when an epoch begins
        self.epoch_place = torch.zeros(6, dtype=torch.int64).share_memory_()
        self.begin_epoch(0)

    def __len__(self) -> int:
        """Number of videos of an epoch in this process."""
        _, _, num_batches, batch_size, _, _ = self.epoch_place.tolist()
        return num_batches * batch_size

    def begin_epoch(
        self,
        epoch: int,
        *,
        skipped_batches: int = 0,
        num_batches: int | None = None,
        batch_size: int = 1,
        process: int = 0,
        num_processes: int = 1,
    ):
        """Prepare the next iteration.

        Args:
            epoch: number of the epoch.
            skipped_batches: number of batches to yield `None`s for, as a resumed run has trained on them.
            num_batches: batches of this process in an epoch.
            batch_size: videos per batch of a process.
            process, num_processes: index of this process, and number of processes that share the stream.
        """
        if num_batches is None:
            num_batches = self.size // (batch_size * num_processes)
        values = (epoch, skipped_batches, num_batches, batch_size, process, num_processes)
        self.epoch_place.copy_(torch.tensor(values))

    def __iter__(self) -> Iterator[dict | list[dict] | None]:
        epoch, skipped, num_batches, batch_size, process, num_processes = self.epoch_place.tolist()
        worker = torch.utils.data.get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # the loader takes batches from its workers in turn; with this order readers divide a single shard exactly
        part, num_parts = number * num_processes + process, num_processes * num_workers
        samples = self._samples(epoch, part, num_parts, batch_size)
        for batch in range(number, num_batches, num_workers):
            for reading, row in itertools.islice(samples, batch_size):
                yield None if batch < skipped else self._read(row, epoch, reading)

    def _samples(self, epoch: int, part: int, num_parts: int, batch_size: int) -> Iterator[tuple[int, dict]]:
        """Rows of a part in the order of an epoch, endlessly, each with the number of earlier passes over the part."""
        rows = self.rows
        if self.shuffle_buffer > 1:
            order = int(torch.randint(2**31, (), generator=sample_generator(self.seed, epoch)))
            rows = rows.shuffle(seed=order, buffer_size=self.shuffle_buffer)
        for reading in itertools.count():
            row = None
            for row in part_of(rows, part, num_parts, batch_size):
                yield reading, row
            if row is None:
                raise ValueError(
                    f"Reader {part + 1} of {num_parts} finds no video in the stream: use fewer processes or workers."
                )

    def _read(self, row: dict, epoch: int, reading: int) -> dict | list[dict]:
        """Clips of a row, or a blank clip if it is skipped."""
        name = hashlib.blake2b(media_name(row[self.reader.column]).encode(errors="surrogateescape"), digest_size=8)
        sample = reading, int.from_bytes(name.digest())
        generators = sample_generators(self.seed, epoch, *sample, views=self.reader.views)
        try:
            first, *others = self.reader.clips(row, *generators)
        except VideoReadError as error:
            if self.on_bad_video == "raise":
                raise self.reader.refusal(error) from error
            return self.reader.blank(self.reader.event(row, error))
        return [first, *others] if others else first
