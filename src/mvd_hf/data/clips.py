"""Training clips from the rows of a data set, sampled on the fly, and their batches.

All random choices follow from (seed, epoch, sample): clips, crops and masks are the same for any number of workers and
processes, and after resuming.
"""

import inspect
from collections.abc import Callable, Sequence

import datasets
import numpy as np
import torch
from torch.utils.data import default_collate

from ..model.configuration_mvd import size_text
from ..model.frame_sampling import check_fps, frames_by_seconds
from ..model.video_reading import Frames, VideoReadError
from .decoding import Item, open_media
from .frame_memory import PROCESS_MEMORY, check_memory
from .labels import LabelNames, label_reader
from .masking import NOISE
from .sources import holds_images, media_column, media_name

# keys of an item beside its tensors
BAD_VIDEOS, IS_BLANK = "bad_videos", "is_blank"
BAD_VIDEO_RULES = ("raise", "skip", "substitute")
# number of other videos to try in place of one that cannot be read
MAX_SUBSTITUTES = 10
# last number of the seeds of masks that are drawn apart from their clip
OF_MASKS = 1

# (number of frames of the video, generator=) -> (K, T) frame numbers of K clips
FrameSampler = Callable[..., np.ndarray]


def sample_generator(seed: int, epoch: int, *sample: int) -> torch.Generator:
    """The random generator of one sample in one epoch."""
    state = np.random.SeedSequence((seed, epoch, *sample)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def sample_generators(seed: int, epoch: int, *sample: int, views: int | None = None) -> tuple[torch.Generator, ...]:
    """Generators of a sample in one epoch: of all its choices or, with `views`, of its clips and of its masks.

    With `views` fixed views per video, the clips of an epoch are those of epoch `epoch % views`, its masks are new.
    """
    if views is None:
        return (sample_generator(seed, epoch, *sample),)
    return sample_generator(seed, epoch % views, *sample), sample_generator(seed, epoch, *sample, OF_MASKS)


class ClipSampler:
    """Samples clips from a video: frames, crop and mask, all drawn from one generator.

    Args:
        frames: chooses the frames of K clips, see `mvd_hf.model.frame_sampling`.
        augmentation: makes a clip of frames, see `mvd_hf.data.augmentation`.
        mask: draws a mask (L,), or several (m, L) for the same clip; it is called with `generator=`. Noise (float),
            from which masks are made later, becomes `mask_noise` of the clip.
        repeats: number of clips with the same frames and different crops (repeated augmentation).
        decoded: chooses the masked patches to decode, if not all; it is called with the mask and `generator=`.
        memory_gib: GiB of decoded frames that each process keeps for later epochs
            (`mvd_hf.data.frame_memory.PROCESS_MEMORY`).
        fps: choose frames at a distance of 1/fps seconds, by their times, instead of by number: `frames` is a sampler
            with a stride, and called as by `mvd_hf.model.frame_sampling.frames_by_seconds`.
        views: number of fixed views (frames, crop and flip) of each video, which epochs take in turn; masks are new
            in every epoch. By default every epoch has a view of its own.

    Raises:
        ValueError: if a number is out of range, or `frames` has no stride that `fps` could replace.
    """

    def __init__(
        self,
        frames: FrameSampler,
        augmentation,
        mask: Callable[..., torch.Tensor] | None = None,
        repeats: int = 1,
        decoded: Callable[..., torch.Tensor] | None = None,
        memory_gib: float = 0.0,
        fps: float | None = None,
        views: int | None = None,
    ):
        if fps is not None:
            check_fps(fps)
            if "stride" not in inspect.signature(frames).parameters:
                raise ValueError(f"fps={fps:g} needs a sampler of frames with a stride, such as pretraining_frames.")
        if repeats < 1:
            raise ValueError(f"repeats={repeats} must be at least 1.")
        if views is not None and views < 1:
            raise ValueError(f"views={views} must be at least 1.")
        self.frames, self.augmentation, self.mask = frames, augmentation, mask
        self.repeats, self.decoded = repeats, decoded
        check_memory(memory_gib)
        self.memory_gib, self.fps, self.views = memory_gib, fps, views

    def __call__(
        self,
        item: Item,
        generator: torch.Generator,
        is_image: bool = False,
        mask_generator: torch.Generator | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """The clips of a row's file, which is opened and decoded at most once.

        Raises:
            VideoReadError: if the file cannot be read.
        """
        generators = generator, mask_generator or generator
        with self._open(item, is_image) as video:
            if self.fps is None:
                chosen = self.frames(len(video), generator=generator)
            else:
                chosen = frames_by_seconds(self.frames, video.stored_times(), self.fps, generator=generator)
            if len(chosen) * self.repeats == 1:
                return [self._clip(video.decode(chosen[0]), *generators)]
            numbers, places = np.unique(chosen, return_inverse=True)
            frames = video.decode(numbers)
            decoded = list(frames.rgb())  # converted once, as clips share frames
            return [
                self._clip(Frames(frames.size, [decoded[place] for place in clip]), *generators)
                for clip in places.reshape(chosen.shape)
                for _ in range(self.repeats)
            ]

    def _open(self, item: Item, is_image: bool):
        """The video or image of a row, through the memory of decoded frames if there is one."""
        if self.memory_gib == 0:
            return open_media(item, is_image)
        PROCESS_MEMORY.allow(self.memory_gib)  # here and not in __init__: this may be the process of a worker
        return PROCESS_MEMORY.open(item, is_image)

    def _clip(
        self, frames: Frames, generator: torch.Generator, mask_generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """One clip in each size of the augmentation, and its mask."""
        clips = self.augmentation(frames, generator)
        first, *others = clips
        clip = {"pixel_values": clips[first], **{f"pixel_values_{size_text(size)}": clips[size] for size in others}}
        if self.mask is not None:
            mask = self.mask(generator=mask_generator)
            clip[NOISE if mask.is_floating_point() else "bool_masked_pos"] = mask
            if self.decoded is not None:
                clip["bool_decoded_pos"] = self.decoded(clip["bool_masked_pos"], generator=mask_generator)
        return clip

    def blank(self) -> dict[str, torch.Tensor]:
        """A black clip of the shapes of real ones."""
        generator = torch.Generator().manual_seed(0)
        black = np.zeros((64, 64, 3), dtype=np.uint8)
        num_frames = len(self.frames(1, generator=generator)[0])
        return self._clip(Frames(black.shape[:2], [black] * num_frames), generator, generator)


class RowReader:
    """Makes the clips and the label of a row, or a blank clip for an unreadable one.

    Args:
        rows: videos or images with optional labels, see `mvd_hf.data.sources.load_rows`.
        clip_sampler: takes clips from a video.
        label_column: column of the labels, or a column for each of several heads; `None` for no labels.
        label_names, problem_type: see `mvd_hf.data.labels.label_reader`.
    """

    def __init__(
        self,
        rows,
        clip_sampler: ClipSampler,
        label_column: str | Sequence[str] | None = None,
        label_names: LabelNames | None = None,
        problem_type: str | None = None,
    ):
        self.clip_sampler, self.column = clip_sampler, media_column(rows)
        self.is_image = holds_images(rows, self.column)
        self.views = getattr(clip_sampler, "views", None)
        self.labels = None
        if label_column is not None:
            self.labels = label_reader(rows, label_column, label_names, problem_type)

    def clips(self, row: dict, *generators: torch.Generator) -> list[dict[str, torch.Tensor]]:
        """Clips of a row, each with its label, drawn with what [`sample_generators`] gives.

        Raises:
            VideoReadError: if the file cannot be read.
            ValueError: if the label is none of the classes.
        """
        clips = self.clip_sampler(row[self.column], generators[0], self.is_image, *generators[1:])
        if self.labels is not None:
            try:
                label = torch.tensor(self.labels(row))
            except ValueError as error:
                raise ValueError(f"{media_name(row[self.column])}: {error}") from error
            clips = [{**clip, "labels": label} for clip in clips]
        return clips

    def blank(self, *bad_videos: tuple[str, str]) -> dict:
        """A black clip without weight, in place of a row that cannot be read."""
        clip = {**self.clip_sampler.blank(), IS_BLANK: True, BAD_VIDEOS: list(bad_videos)}
        return clip if self.labels is None else {**clip, "labels": torch.tensor(self.labels.blank)}

    def refusal(self, error: VideoReadError) -> VideoReadError:
        """The error that ends a run, with remedies."""
        remedy = "on_bad_video=skip or substitute goes on without it, recipes/audit.py finds all such files"
        return VideoReadError(error.source, f"{error.reason or 'cannot be read'} ({remedy})")

    def name(self, row: dict) -> str:
        """Name of a row's file."""
        return media_name(row[self.column])

    def event(self, row: dict, error: VideoReadError) -> tuple[str, str]:
        """Name of a row's file, and the reason why it cannot be read."""
        return self.name(row), error.reason or str(error)


def check_rows(rows: Sequence):
    """Raise ValueError if there is no row."""
    if len(rows) == 0:
        raise ValueError("The data set is empty: it names no video.")


def check_rule(on_bad_video: str):
    """Raise ValueError if there is no such rule for unreadable videos."""
    if on_bad_video not in BAD_VIDEO_RULES:
        raise ValueError(f"There is no on_bad_video={on_bad_video!r}; choose {', '.join(BAD_VIDEO_RULES)}.")


class SampleDataset(torch.utils.data.Dataset):
    """Samples of videos, made on the fly: `dataset[(epoch, index)]`, or `dataset[index]` in the epoch of `set_epoch`.

    Index -1 gives a blank sample. If a video gives several samples, an item is a list of them.

    Args:
        rows: one row for each video.
        reader: makes samples of a row and blank samples, as [`RowReader`] does.
        seed: seed of all random choices.
        on_bad_video: what to do about a video that cannot be read: `raise`; `skip` it, which makes its batch smaller;
            or `substitute` another video, drawn at random. The batch reports skipped and substituted videos.

    Raises:
        ValueError: if there is no row or no such rule.
    """

    def __init__(self, rows: Sequence, reader, seed: int = 0, on_bad_video: str = "raise"):
        check_rows(rows)
        check_rule(on_bad_video)
        self.rows, self.reader, self.seed, self.on_bad_video = rows, reader, seed, on_bad_video
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers may outlive an epoch

    def set_epoch(self, epoch: int):
        """Set the epoch of `dataset[index]`, for training loops that do not pass (epoch, index)."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def generators(self, epoch: int, index: int) -> tuple[torch.Generator, ...]:
        """What the reader draws a sample with."""
        return sample_generators(self.seed, epoch, index)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        epoch, index = key if isinstance(key, tuple) else (int(self.epoch), key)
        return self.reader.blank() if index == -1 else self.sample(epoch, index)

    def sample(self, epoch: int, index: int) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """The sample at a place of an epoch."""
        return self.read(index, *self.generators(epoch, index))

    def name(self, epoch: int, index: int) -> str:
        """Name of the file at a place of an epoch."""
        return self.reader.name(self.rows[index])

    def read(self, index: int, *generators: torch.Generator) -> dict | list[dict]:
        """The sample of a row, drawn with the generators."""
        bad_videos: list[tuple[str, str]] = []
        while True:
            row = self.rows[index]
            try:
                first, *others = self.reader.clips(row, *generators)
            except VideoReadError as error:
                bad_videos.append(self.reader.event(row, error))
                if self.on_bad_video == "skip":
                    return self.reader.blank(*bad_videos)
                if self.on_bad_video == "raise":
                    raise self.reader.refusal(error) from error
                if len(bad_videos) > MAX_SUBSTITUTES:
                    names = ", ".join(name for name, _ in bad_videos)
                    raise VideoReadError(
                        bad_videos[0][0], f"no substitute can be read either; tried {names}; audit the data set"
                    ) from error
                index = int(torch.randint(len(self.rows), (), generator=generators[0]))
                continue
            if bad_videos:
                first = {**first, BAD_VIDEOS: bad_videos}
            return [first, *others] if others else first


class ClipDataset(SampleDataset):
    """Training clips: `dataset[(epoch, index)]`, or `dataset[index]` in the epoch of `set_epoch`.

    An item has `pixel_values` (T, 3, h, w) uint8 for the first size of the augmentation, `pixel_values_<side>` or
    `pixel_values_<h>x<w>` for each other size, `bool_masked_pos` (L,) if there is a mask ((m, L) if there are
    several), `bool_decoded_pos` of the same shape if only some masked patches are decoded, and `labels` if there is a
    label column. If a video gives several clips, an item is a list of them. Batch items with [`collate_clips`].

    Args:
        rows: videos or images with optional labels, see `mvd_hf.data.sources.load_rows`.
        clip_sampler: takes clips from a video.
        label_column, label_names, problem_type: as in [`RowReader`].
        seed, on_bad_video: as in [`SampleDataset`].

    Raises:
        ValueError: if there is no row, no such label column or no such rule.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        clip_sampler: ClipSampler,
        label_column: str | Sequence[str] | None = None,
        label_names: LabelNames | None = None,
        seed: int = 0,
        on_bad_video: str = "raise",
        problem_type: str | None = None,
    ):
        check_rows(rows)  # before the reader looks at the first row
        reader = RowReader(rows, clip_sampler, label_column, label_names, problem_type)
        super().__init__(rows, reader, seed, on_bad_video)

    def generators(self, epoch: int, index: int) -> tuple[torch.Generator, ...]:
        return sample_generators(self.seed, epoch, index, views=self.reader.views)


def collate_clips(items: list) -> dict | None:
    """A batch of items of a [`ClipDataset`] or [`StreamingClips`]; clips of one video are adjacent.

    Blank clips, which stand for unreadable videos, are left out. A batch of blank clips alone keeps one of them and
    has the key `is_blank`: its loss has no weight, but the other processes do not wait for this one. `bad_videos`
    lists (file, reason) for every unreadable video of the batch.

    Args:
        items: clips or lists of clips, as dicts of tensors. If all are `None`, as for the skipped batches of a resumed
            run, the result is `None`.
    """
    if all(item is None for item in items):
        return None
    clips = [clip for item in items for clip in (item if isinstance(item, list) else [item])]
    good = [clip for clip in clips if not clip.get(IS_BLANK)]
    kept = good or clips[:1]
    batch = default_collate(
        [{key: value for key, value in clip.items() if key not in (BAD_VIDEOS, IS_BLANK)} for clip in kept]
    )
    if not good:
        batch[IS_BLANK] = True
    bad_videos = [event for clip in clips for event in clip.get(BAD_VIDEOS, ())]
    if bad_videos:
        batch[BAD_VIDEOS] = bad_videos
    return batch
