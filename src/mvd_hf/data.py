"""From video files to training clips: Hub data sets, folders and list files, read on the fly.

Randomness is a function of (seed, epoch, sample): the same clip, crop and mask come out with any number of workers and
processes, and after resuming.
"""

import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps

from .augmentation import PretrainingAugmentation
from .masking import MASKS
from .model.configuration_mvd import MVDConfig
from .model.frame_sampling import pretraining_frames
from .model.video_reading import VideoReader, VideoReadError

LIST_FILE_SUFFIXES = (".csv", ".txt", ".list", ".lst")
FILE_BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}

# (number of frames of the video, generator=) -> (1, T) frame numbers
FrameSampler = Callable[..., np.ndarray]


@dataclass
class DataArguments:
    """Where the videos come from and how clips are cut out, as a recipe's keys.

    Args:
        dataset: list file, folder or Hub data set id.
        dataset_config: configuration of a Hub data set.
        split, eval_split: splits to train and to evaluate on; no `eval_split`, no evaluation.
        eval_dataset: another data set to evaluate on.
        root: folder of the videos of a list file.
        max_samples: use only the first so many videos.
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
    stride: int = 4
    crop: str = "multi_scale"

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("No data: give --dataset with a list file, a folder of videos or a Hub data set id.")


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The random numbers of one sample in one epoch."""
    state = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def read_list_file(path: str | Path, root: str | Path | None = None) -> datasets.Dataset:
    """Videos named in a list file in the Kinetics format, as a data set with columns `video` and `label`.

    Args:
        path: a file with one `path label` per line, separated by spaces, tabs or commas, paths with separators in
            quotes; the label (an integer) may be missing on all lines.
        root: folder in front of relative paths; the list file's own folder by default.

    Raises:
        ValueError: naming the line that is neither.
    """
    path = Path(path)
    root = path.parent if root is None else Path(root)
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    filled = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not filled:
        raise ValueError(f"The list file {str(path)!r} names no video.")
    delimiter = next((sign for sign in (",", "\t") if all(sign in line for _, line in filled)), " ")
    videos, labels = [], []
    for number, line in filled:
        row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
        if len(row) > 2 or (len(row) == 2 and not re.fullmatch(r"\s*-?[0-9]+\s*", row[1])):
            raise ValueError(
                f"Line {number} of {str(path)!r} is not 'path label' with an integer label: {line!r}. "
                "Put a path that contains spaces or commas in double quotes."
            )
        videos.append(str(root / row[0]))
        labels.append(int(row[1]) if len(row) == 2 else None)
    if None in labels and any(label is not None for label in labels):
        number = filled[labels.index(None)][0]
        raise ValueError(f"Line {number} of {str(path)!r} has no label while other lines have one.")
    columns = {"video": [{"path": video, "bytes": None} for video in videos]}
    if None not in labels:
        columns["label"] = labels
    return datasets.Dataset.from_dict(columns)


def load_rows(source: str, split: str = "train", root: str | None = None, name: str | None = None) -> datasets.Dataset:
    """The videos (or images) of a source, undecoded: a column of `{"path", "bytes"}` and what labels there are.

    Args:
        source: a list file, a parquet or WebDataset (.tar) file, a folder (`videofolder`, `imagefolder`, parquet,
            WebDataset) or a Hub data set id.
        split: which split of a folder or Hub data set.
        root: folder of the videos of a list file.
        name: configuration of a Hub data set.

    Raises:
        ValueError: if there is no such source or split, or it is empty.
    """
    suffix = Path(source).suffix.lower()
    if suffix in LIST_FILE_SUFFIXES and os.path.isfile(source):
        return read_list_file(source, root)
    is_local = suffix in (*LIST_FILE_SUFFIXES, *FILE_BUILDERS) or source.startswith(("/", ".", "~")) or "\\" in source
    if (is_local or source.count("/") > 1) and not os.path.exists(source):
        raise ValueError(f"There is no data set {source!r}: no such file or folder.")
    try:
        if os.path.isfile(source) and suffix in FILE_BUILDERS:
            rows = datasets.load_dataset(FILE_BUILDERS[suffix], data_files={split: source}, split=split)
        else:
            rows = datasets.load_dataset(source, name, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise ValueError(f"The data set {source!r} has no split {split!r} that can be loaded: {error}") from error
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Video | datasets.Image):
            rows = rows.cast_column(column, type(feature)(decode=False))
    return rows


def media_column(rows: datasets.Dataset) -> str:
    """The column of videos or images: by type, else by name; raises ValueError if there is none."""
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Video | datasets.Image):
            return column
    for column in ("video", "mp4", "webm", "avi", "mkv", "mov", "image", "jpg", "png"):
        if column in rows.features:
            return column
    raise ValueError(f"No column holds videos or images; the columns are {', '.join(rows.column_names)}.")


class ImageReader:
    """An image as a video of one frame, with the interface of `VideoReader`."""

    def __init__(self, source: str | bytes):
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                self.pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except OSError as error:
            raise VideoReadError(source, f"cannot be read as an image ({error})") from error

    def __len__(self) -> int:
        return 1

    def read(self, indices: Sequence[int] | np.ndarray, box=None) -> np.ndarray:
        height, width = self.pixels.shape[:2]
        top, left, height, width = (0, 0, height, width) if box is None else box(height, width)
        region = self.pixels[top : top + height, left : left + width]
        return np.repeat(region[None], len(indices), axis=0)


@contextmanager
def open_media(item: dict | str, is_image: bool):
    """Reader of a `{"path", "bytes"}` item (bytes win), closed on leaving."""
    source = item if isinstance(item, str) else item["bytes"] if item["bytes"] is not None else item["path"]
    if is_image:
        yield ImageReader(source)
    else:
        with VideoReader(source) as reader:
            yield reader


class ClipDataset(torch.utils.data.Dataset):
    """Training clips: `dataset[(epoch, index)]`, or `dataset[index]` for epoch 0.

    An item has `pixel_values` (T, 3, S, S) uint8 for the first of the augmentation's sizes, `pixel_values_<size>` for
    each other one, `bool_masked_pos` (L,) if there is a mask, and `labels` if the rows have them.

    Args:
        rows: videos or images with optional labels, see [`load_rows`].
        frames: chooses the frames of a clip.
        augmentation: makes clips of frames, see `mvd_hf.augmentation`.
        mask: draws a mask (L,), called with `generator=`, if masks are wanted.
        label_column: column of the integer labels, if labels are wanted.
        seed: seed of all random choices.

    Raises:
        ValueError: if there is no row, or no such label column.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        frames: FrameSampler,
        augmentation,
        mask: Callable[..., torch.Tensor] | None = None,
        label_column: str | None = None,
        seed: int = 0,
    ):
        if len(rows) == 0:
            raise ValueError("The data set is empty: it names no video.")
        if label_column is not None and label_column not in rows.column_names:
            raise ValueError(f"There is no label column {label_column!r}; the columns are {rows.column_names}.")
        self.rows, self.frames, self.augmentation, self.mask = rows, frames, augmentation, mask
        self.column, self.label_column, self.seed = media_column(rows), label_column, seed
        self.is_image = isinstance(rows.features[self.column], datasets.Image) or self.column in (
            "image",
            "jpg",
            "png",
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        generator = sample_generator(self.seed, epoch, index)
        row = self.rows[index]
        with open_media(row[self.column], self.is_image) as reader:
            indices = self.frames(len(reader), generator=generator)[0]
            clips = self.augmentation(lambda box: reader.read(indices, box), generator)
        first, *others = clips
        item = {"pixel_values": clips[first], **{f"pixel_values_{size}": clips[size] for size in others}}
        if self.mask is not None:
            item["bool_masked_pos"] = self.mask(generator=generator)
        if self.label_column is not None:
            item["labels"] = torch.tensor(row[self.label_column])
        return item


def load_clips(
    source: str,
    frames: FrameSampler,
    augmentation,
    *,
    split: str = "train",
    root: str | None = None,
    name: str | None = None,
    max_samples: int | None = None,
    mask: Callable[..., torch.Tensor] | None = None,
    label_column: str | None = None,
    seed: int = 0,
) -> ClipDataset:
    """Clips of a list file, a folder or a Hub data set; arguments as in [`load_rows`] and [`ClipDataset`].

    Args:
        max_samples: use only the first so many videos.
    """
    rows = load_rows(source, split, root, name)
    if max_samples is not None:
        rows = rows.select(range(min(max_samples, len(rows))))
    return ClipDataset(rows, frames, augmentation, mask, label_column, seed)


def pretraining_clips(
    data: DataArguments, config: MVDConfig, sizes: Sequence[int] = (), evaluation: bool = False, seed: int = 0
) -> ClipDataset | None:
    """Clips and masks for stages 1 and 2.

    Args:
        data: the source.
        config: the model's configuration: frames, square image size, mask.
        sizes: pixels of further clips of the same crop, for teachers.
        evaluation: the evaluation split (`None` if there is none) instead of the training split.
        seed: seed of all random choices.
    """
    if evaluation and data.eval_split is None and data.eval_dataset is None:
        return None
    height, width = config.frame_size
    if height != width:
        raise ValueError(f"Pre-training crops are square, the model wants {height}x{width} pixels.")
    return load_clips(
        data.eval_dataset or data.dataset if evaluation else data.dataset,
        partial(pretraining_frames, num_frames=config.num_frames, stride=data.stride),
        PretrainingAugmentation([height, *sizes], data.crop),
        split=data.eval_split or data.split if evaluation else data.split,
        root=data.root,
        name=data.dataset_config,
        max_samples=data.max_samples,
        mask=partial(MASKS[config.mask_type], config.grid, config.mask_ratio),
        seed=seed,
    )
