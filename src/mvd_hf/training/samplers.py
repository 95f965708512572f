"""The order of samples in training and evaluation, the same on every process, and the loaders of streams."""

import math
from collections.abc import Iterator
from itertools import islice

import datasets
import numpy as np
from torch.utils.data import DataLoader, Sampler

from ..data.clips import ClipSampler, SampleDataset
from ..data.mixtures import MixtureDataset
from ..data.streaming import StreamingClips
from ..model.video_processing_mvd import MVDVideoProcessor
from .arguments import MVDTrainingArguments
from .preemption import outlive_signals


def check_size(num_samples: int, total_batch_size: int):
    """Raise ValueError if a data set is smaller than one optimizer step."""
    if num_samples < total_batch_size:
        raise ValueError(
            f"The data set has {num_samples} samples, fewer than the total batch of {total_batch_size}: lower "
            "per_device_train_batch_size or gradient_accumulation_steps."
        )


def check_samples(dataset):
    """Raise ValueError if a training set does not take (epoch, index) keys, and is none of ours."""
    if dataset is None or isinstance(dataset, SampleDataset | StreamingClips):
        return
    remedy = "Make it with mvd_hf.load_clips, or let dataset[(epoch, index)] give a sample."
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ValueError(f"A training set of type {type(dataset).__name__} has no length or no index. {remedy}")
    try:
        if isinstance(dataset, datasets.Dataset):
            raise TypeError("it takes a pair for two rows")
        dataset[(0, 0)]
    except (TypeError, KeyError, IndexError, NotImplementedError) as error:
        raise ValueError(
            f"A {type(dataset).__name__} does not take (epoch, index) keys ({error}). {remedy}"
        ) from error


def check_frame_distance(dataset, processor):
    """Raise ValueError if a processor samples frames by seconds and the training clips do not, or the reverse."""
    sampler = getattr(getattr(dataset, "reader", None), "clip_sampler", None)
    if isinstance(dataset, MixtureDataset):  # its data sets may differ
        return
    if not isinstance(sampler, ClipSampler) or not isinstance(processor, MVDVideoProcessor):
        return
    if sampler.fps != processor.fps:
        raise ValueError(
            f"The clips are sampled with fps={sampler.fps}, the processor that is saved with the model has "
            f"fps={processor.fps}: give both the same."
        )


class EpochSampler(Sampler):
    """Shuffled (epoch, index) pairs, the same on every process, as many as whole optimizer steps take.

    Args:
        num_samples: size of the data set.
        total_batch_size: samples per optimizer step over all processes.
        seed: seed of the order.

    Raises:
        ValueError: if the data set is smaller than one step.
    """

    def __init__(self, num_samples: int, total_batch_size: int, seed: int):
        check_size(num_samples, total_batch_size)
        self.num_samples, self.seed, self.epoch = num_samples, seed, 0
        self.length = num_samples // total_batch_size * total_batch_size

    def set_epoch(self, epoch: int):
        """Choose the epoch whose order and random draws come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def order(self, epoch: int) -> list[tuple[int, int]]:
        """The pairs of an epoch."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)
        return [(epoch, int(index)) for index in order[: self.length]]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.order(self.epoch))


class EvaluationSampler(Sampler):
    """(0, index) of every sample in order, then blank samples (0, -1) until all processes have whole batches.

    Args:
        num_samples: size of the data set.
        total_batch_size: samples per step over all processes.
    """

    def __init__(self, num_samples: int, total_batch_size: int):
        self.num_samples = num_samples
        self.length = math.ceil(num_samples / total_batch_size) * total_batch_size

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(0, index if index < self.num_samples else -1) for index in range(self.length)])


def sample_names(
    dataset, sampler: EpochSampler, args: MVDTrainingArguments, step: int, batch: int, process: int
) -> list[str]:
    """Names of the samples of a process's micro-batch of an optimizer step, counted from 1.

    A sample of a data set that is none of ours has its index for a name.
    """
    steps_per_epoch = len(sampler) // args.total_batch_size
    epoch, step_of_epoch = divmod(step - 1, steps_per_epoch)
    size, accumulation = args.train_batch_size, args.gradient_accumulation_steps
    first = ((step_of_epoch * accumulation + batch) * args.world_size + process) * size
    indices = [index for _, index in sampler.order(epoch)[first : first + size]]
    if not isinstance(dataset, SampleDataset):
        return [str(index) for index in indices]
    return [dataset.name(epoch, index) for index in indices]


def start_stream(stream: StreamingClips, args: MVDTrainingArguments, epoch: int, steps_done: int):
    """Give a stream the epoch that comes, this process's part of it, and how much of it was trained on."""
    accumulation = args.gradient_accumulation_steps
    stream.begin_epoch(
        epoch,
        skipped_batches=steps_done * accumulation,
        num_batches=stream.size // args.total_batch_size * accumulation,
        batch_size=args.train_batch_size,
        process=args.process_index,
        num_processes=args.world_size,
    )


def stream_loader(stream: StreamingClips, args: MVDTrainingArguments, collate) -> DataLoader:
    """Loader of a stream, which divides itself among the processes."""
    check_size(stream.size, args.total_batch_size)
    return DataLoader(
        stream,
        batch_size=args.train_batch_size,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        worker_init_fn=outlive_signals(None),
    )


def first_batches(
    dataset, sampler: EpochSampler | None, args: MVDTrainingArguments, collate, num_steps: int
) -> Iterator[dict]:
    """This process's micro-batches of the first steps of a training, apart from the training itself.

    Args:
        dataset: samples for (epoch, index), or a stream.
        sampler: the order of the samples; `None` for a stream.
        args: the training arguments, with the batch sizes.
        collate: makes a batch of samples.
        num_steps: number of optimizer steps, at most those of the first epoch.
    """
    if isinstance(dataset, StreamingClips):
        start_stream(dataset, args, epoch=0, steps_done=0)
        loader = stream_loader(dataset, args, collate)
    else:
        order = sampler.order(0)[: num_steps * args.total_batch_size]
        loader = DataLoader(
            dataset,
            batch_size=args.train_batch_size,
            sampler=order[args.process_index :: args.world_size],
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=outlive_signals(None),
        )
    return islice(loader, num_steps * args.gradient_accumulation_steps)
