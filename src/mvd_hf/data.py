"""From a recipe's keys to training clips: any source of videos, streamed or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets

from .augmentation import PretrainingAugmentation
from .clips import ClipCutter, ClipDataset
from .masking import MASKS
from .model.configuration_mvd import MVDConfig
from .model.frame_sampling import pretraining_frames
from .sources import (
    FILE_BUILDERS,
    LIST_FILE_SUFFIXES,
    Rows,
    first_rows,
    keep_listed,
    keep_stream,
    load_rows,
    media_column,
    num_videos,
    read_manifest,
)
from .streaming import StreamingClips


@dataclass
class DataArguments:
    """Where the videos come from and how clips are cut out, as a recipe's keys.

    Args:
        dataset: list file, folder, parquet or WebDataset files, or Hub data set id; see `mvd_hf.sources.load_rows`.
        dataset_config: configuration of a Hub data set.
        split, eval_split: splits to train and to evaluate on; no `eval_split`, no evaluation.
        eval_dataset: another data set to evaluate on.
        root: folder of the videos of a list file.
        max_samples: use only the first so many videos.
        manifest: train only on the files that this manifest of `recipes/audit.py` says to use.
        streaming: read the training split as it comes instead of downloading it first.
        stream_size: number of videos of a stream, where the data set does not say.
        shuffle_buffer: videos of a stream, per worker, among which the next is drawn.
        on_bad_video: what to do about training videos that cannot be read: `raise`, `skip` or `substitute`.
            Evaluation leaves them out and says how many are missing.
        backend: `pyav` or `torchcodec`.
        stride: every `stride`-th frame of a video is in a clip.
        crop: `multi_scale` (MVD, VideoMAE) or `random_resized` (MAE).
    """

    dataset: str = ""
    dataset_config: str | None = None
    split: str = "train"
    eval_split: str | None = None
    eval_dataset: str | None = None
    root: str | None = None
    max_samples: int | None = None
    manifest: str | None = None
    streaming: bool = False
    stream_size: int | None = None
    shuffle_buffer: int = 256
    on_bad_video: str = "raise"
    backend: str = "pyav"
    stride: int = 4
    crop: str = "multi_scale"

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("No data: give --dataset with a list file, a folder of videos or a Hub data set id.")
        is_file = Path(self.dataset).suffix.lower() in (*LIST_FILE_SUFFIXES, *FILE_BUILDERS)
        if is_file and self.eval_dataset is None and self.eval_split not in (None, self.split):
            raise ValueError(
                f"The file {self.dataset!r} has no splits, eval_split={self.eval_split!r} would be the same videos: "
                "give eval_dataset."
            )

    def rows(self, evaluation: bool = False) -> Rows:
        """Rows of the training split, without what the manifest leaves out, or of the evaluation split.

        The evaluation split of a stream is read once and kept in the data sets' cache, so that every evaluation sees
        each video once.
        """
        source = self.eval_dataset or self.dataset if evaluation else self.dataset
        split = self.eval_split or self.split if evaluation else self.split
        rows = load_rows(source, split, self.root, self.dataset_config, self.streaming)
        if evaluation and isinstance(rows, datasets.IterableDataset):
            rows = keep_stream(source, split, self.dataset_config, self.max_samples)
        if self.manifest is not None and not evaluation:
            rows = keep_listed(rows, media_column(rows), read_manifest(self.manifest))
        return rows if self.max_samples is None else first_rows(rows, self.max_samples)

    def clips(
        self,
        cutter: ClipCutter,
        *,
        evaluation: bool = False,
        label_column: str | None = None,
        label_names: Sequence[str] | str | None = None,
        seed: int = 0,
    ) -> ClipDataset | StreamingClips | None:
        """Clips of the training split, or of the evaluation split: `None` if there is none."""
        if evaluation and self.eval_split is None and self.eval_dataset is None:
            return None
        rows = self.rows(evaluation)
        options = {"label_column": label_column, "label_names": label_names, "seed": seed}
        if evaluation:
            return ClipDataset(rows, cutter, **options, on_bad_video="skip")
        if isinstance(rows, datasets.Dataset):
            return ClipDataset(rows, cutter, **options, on_bad_video=self.on_bad_video)
        # what a stream declares counts the files that the manifest leaves out
        size = self.stream_size or (None if self.manifest is not None else num_videos(rows, self.split))
        if self.max_samples is not None:
            size = self.max_samples if size is None else min(size, self.max_samples)
        if size is None:
            of_manifest = " of the manifest" if self.manifest is not None else ""
            raise ValueError(
                f"The stream {self.dataset!r} does not say how many videos{of_manifest} it has: give stream_size."
            )
        return StreamingClips(
            rows, cutter, size, **options, on_bad_video=self.on_bad_video, shuffle_buffer=self.shuffle_buffer
        )


def load_clips(
    source: str,
    frames,
    augmentation,
    *,
    mask=None,
    repeats: int = 1,
    label_column: str | None = None,
    label_names: Sequence[str] | str | None = None,
    seed: int = 0,
    **options,
) -> ClipDataset | StreamingClips:
    """Training clips of a list file, folder, parquet or WebDataset files, or Hub data set.

    Args:
        source: where the videos are, see `mvd_hf.sources.load_rows`.
        frames, augmentation, mask, repeats: how clips are cut out, see `mvd_hf.clips.ClipCutter`.
        label_column, label_names, seed: see [`ClipDataset`].
        options: further fields of `mvd_hf.data.DataArguments`: `split`, `root`, `max_samples`, `streaming`,
            `on_bad_video`, ...

    Raises:
        ValueError: if there is no such source, split, label column or option, or no video.
    """
    try:
        data = DataArguments(dataset=source, **options)
    except TypeError as error:
        raise ValueError(f"load_clips cannot take these options: {error}.") from error
    cutter = ClipCutter(frames, augmentation, mask, repeats, data.backend)
    return data.clips(cutter, label_column=label_column, label_names=label_names, seed=seed)


def pretraining_clips(
    data: DataArguments,
    config: MVDConfig,
    sizes: Sequence[int] = (),
    *,
    clips_per_video: int = 1,
    label_column: str | None = None,
    evaluation: bool = False,
    seed: int = 0,
) -> ClipDataset | StreamingClips | None:
    """Clips and masks for stages 1 and 2.

    Args:
        data: the source.
        config: the model's configuration: frames, square image size, mask.
        sizes: pixels of further clips of the same crop, for teachers.
        clips_per_video: clips cut from as many parts of each training video, which is decoded once.
        label_column: column of labels for an online probe, if there is one.
        evaluation: the evaluation split (`None` if there is none) instead of the training split.
        seed: seed of all random choices.
    """
    height, width = config.frame_size
    if height != width:
        raise ValueError(f"Pre-training crops are square, the model wants {height}x{width} pixels.")
    num_clips = 1 if evaluation else clips_per_video
    cutter = ClipCutter(
        partial(pretraining_frames, num_frames=config.num_frames, stride=data.stride, num_clips=num_clips),
        PretrainingAugmentation([height, *sizes], data.crop),
        partial(MASKS[config.mask_type], config.grid, config.mask_ratio),
        backend=data.backend,
    )
    return data.clips(cutter, evaluation=evaluation, label_column=label_column, seed=seed)
