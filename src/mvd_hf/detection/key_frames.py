"""Key frames of an action detection data set with their people, and batches of the clips around them.

P people of a key frame, K action classes. Logit number c stands for the class id c + 1, as ids count from 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ..data.clips import BAD_VIDEOS, IS_BLANK
from ..model.boxes_mvd import LARGEST_PART, pad_people
from ..model.frame_sampling import key_frame_clip
from ..model.video_reading import VideoReadError
from .ava import BOX, KEY, Table, frame_keys, name_of, read_boxes, read_person_boxes, refuse_rows, without
from .video_folders import VideoFolders

# people of key frames


@dataclass(frozen=True)
class KeyFrame:
    """A key frame and its people.

    Args:
        number: its index among the key frames.
        video, timestamp: id of the video, and seconds.
        boxes: (P, 4) float32, relative.
        labels: (P, K) float32, 1 for each action of a person; `None` for the boxes of a detector.
        scores: (P,) float64 of the person detector; 1 for annotations.
    """

    number: int
    video: str
    timestamp: float
    boxes: torch.Tensor
    labels: torch.Tensor | None
    scores: np.ndarray


@dataclass(frozen=True)
class KeyFrames(Sequence):
    """N key frames with M people, at least one in each, stored as a few arrays: AVA has 268,000.

    Args:
        videos, timestamps: (N,) ids and seconds.
        ends: (N,) end of each key frame's rows among those of all people.
        boxes: (M, 4), relative.
        scores: (M,) of the person detector; 1 for annotations.
        labels: (M, K) bool, or `None`.
    """

    videos: Sequence[str]
    timestamps: np.ndarray
    ends: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray | None

    @classmethod
    def of_people(cls, people: pd.DataFrame, labels: np.ndarray | None = None) -> "KeyFrames":
        """Key frames in the order of their first person, from a table with a row per person and labels (rows, K)."""
        (keys,) = frame_keys(people)
        order = np.argsort(keys, kind="stable")
        people = people.iloc[order]
        ends = np.flatnonzero(np.diff(keys[order], append=-1)) + 1
        frames = people.iloc[ends - 1]
        return cls(
            frames["video"].tolist(),
            frames["timestamp"].to_numpy(),
            ends,
            people[BOX].to_numpy(),
            people["score"].to_numpy(),
            None if labels is None else labels[order],
        )

    @classmethod
    def joined(cls, parts: Sequence["KeyFrames"]) -> "KeyFrames":
        """Key frames of several files, one after the other; all have labels or none."""
        shifts = np.cumsum([0, *(len(part.boxes) for part in parts)])
        return cls(
            [video for part in parts for video in part.videos],
            np.concatenate([part.timestamps for part in parts]),
            np.concatenate([part.ends + shift for part, shift in zip(parts, shifts, strict=False)]),
            np.concatenate([part.boxes for part in parts]),
            np.concatenate([part.scores for part in parts]),
            None if parts[0].labels is None else np.concatenate([part.labels for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> KeyFrame:
        part = slice(self.ends[number - 1] if number else 0, self.ends[number])
        return KeyFrame(
            number,
            self.videos[number],
            float(self.timestamps[number]),
            torch.tensor(self.boxes[part], dtype=torch.float32),
            None if self.labels is None else torch.tensor(self.labels[part], dtype=torch.float32),
            self.scores[part],
        )

    def first(self, count: int | None) -> "KeyFrames":
        """The first `count` key frames; all of them for `None`."""
        if count is None or count >= len(self):
            return self
        people = slice(self.ends[count - 1])
        return KeyFrames(
            self.videos[:count],
            self.timestamps[:count],
            self.ends[:count],
            self.boxes[people],
            self.scores[people],
            None if self.labels is None else self.labels[people],
        )


def check_boxes(table: pd.DataFrame, source: Table):
    """Raise ValueError naming the row of a box that ends before it begins or is in pixels."""
    is_inverted = (table["x1"] >= table["x2"]) | (table["y1"] >= table["y2"])
    refuse_rows(table, is_inverted, source, "has a box that ends before it begins: give x1, y1, x2, y2")
    is_large = (table[BOX].abs() > LARGEST_PART).any(axis=1)
    refuse_rows(table, is_large, source, "has a box in pixels: divide by the frame's width and height")


def annotated_people(source: Table, num_classes: int, excluded: Table | None = None) -> KeyFrames:
    """Key frames with the people of an annotation file, each box once with all its actions.

    Args:
        source: see `mvd_hf.detection.ava.read_boxes`; key frames without people are left out.
        num_classes: K, the largest class id.
        excluded: key frames to leave out.

    Raises:
        ValueError: naming the row of an invalid box or class id, or if nobody is left.
    """
    table = without(read_boxes(source), excluded).dropna(subset=BOX)
    if table.empty:
        raise ValueError(f"{name_of(source)} has no person in a key frame that is not excluded.")
    check_boxes(table, source)
    is_outside = (table["action"] < 1) | (table["action"] > num_classes)
    refuse_rows(table, is_outside, source, f"has a class id outside 1 to {num_classes}; ids count from 1")
    numbers = table.groupby([*KEY, *BOX], sort=False).ngroup().to_numpy()
    _, rows = np.unique(numbers, return_index=True)
    labels = np.zeros((len(rows), num_classes), dtype=bool)
    labels[numbers, table["action"].to_numpy(np.int64) - 1] = True
    return KeyFrames.of_people(table.iloc[rows].assign(score=1.0), labels)


def detected_people(
    source: Table, annotations: Table, min_score: float = 0.8, excluded: Table | None = None
) -> KeyFrames:
    """Key frames of an annotation file with the people that a detector found in them.

    Args:
        source: see `mvd_hf.detection.ava.read_person_boxes`.
        annotations: names the key frames, see `mvd_hf.detection.ava.read_boxes`.
        min_score: least score of a person.
        excluded: key frames to leave out.

    Raises:
        ValueError: naming the row of an invalid box, or if nobody is left.
    """
    table, frames = read_person_boxes(source), without(read_boxes(annotations), excluded)
    check_boxes(table, source)
    keys, known = frame_keys(table, frames)
    there = table[np.isin(keys, known)]
    if there.empty:
        raise ValueError(
            f"{name_of(source)} and {name_of(annotations)} have no key frame in common, such as "
            f"{first_key(table)} and {first_key(frames)}: ids and seconds must be the same."
        )
    sure = there[there["score"] >= min_score]
    if sure.empty:
        raise ValueError(
            f"No box of {name_of(source)} has a score of at least min_score={min_score}, the highest is "
            f"{there['score'].max():g}."
        )
    return KeyFrames.of_people(sure)


def first_key(table: pd.DataFrame) -> str:
    """The first key frame of a table, for a message."""
    return f"({table['video'].iloc[0]}, {table['timestamp'].iloc[0]:g})" if len(table) else "(none)"


# clips and batches


@dataclass(frozen=True)
class KeyFrameReader:
    """Reads the clip around a key frame with the boxes and labels of its people, for [`SampleDataset`].

    Args:
        videos: folders of the videos.
        augmentation: see `mvd_hf.detection.augmentation`.
        num_frames, stride: of a clip.
        blank_size: (height, width) of a blank clip.
        num_classes: K, or `None` without labels.
        max_people: a clip has the boxes of at most so many people, drawn at random; `None` for all.
    """

    videos: VideoFolders
    augmentation: object
    num_frames: int
    stride: int
    blank_size: tuple[int, int]
    num_classes: int | None
    max_people: int | None = None

    def clips(self, row: KeyFrame, generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
        """The clip of a key frame: `pixel_values`, `boxes` in its pixels, `labels` if it has any, and `key_frame`."""
        span = self.num_frames * self.stride // 2 + self.stride
        with self.videos.open(row.video, row.timestamp, span) as (reader, key_frame):
            (indices,) = key_frame_clip(key_frame, len(reader), self.num_frames, self.stride)
            chosen = torch.arange(len(row.boxes))
            if self.max_people is not None and len(chosen) > self.max_people:
                chosen = torch.randperm(len(chosen), generator=generator)[: self.max_people]
            clip, boxes, kept = self.augmentation(reader.read(indices), row.boxes[chosen], generator)
        sample = {"pixel_values": clip, "boxes": boxes, "key_frame": torch.tensor(row.number)}
        return [sample if row.labels is None else {**sample, "labels": row.labels[chosen[kept]]}]

    def blank(self, *bad_videos: tuple[str, str]) -> dict:
        """A black clip without people, instead of an unreadable key frame."""
        clip = torch.zeros(self.num_frames, 3, *self.blank_size, dtype=torch.uint8)
        sample = {"pixel_values": clip, "boxes": torch.zeros(0, 4), "key_frame": torch.tensor(-1)}
        if self.num_classes is not None:
            sample["labels"] = torch.zeros(0, self.num_classes)
        return {**sample, IS_BLANK: True, BAD_VIDEOS: list(bad_videos)}

    def refusal(self, error: VideoReadError) -> VideoReadError:
        """The error that ends a run, with remedies."""
        remedy = "on_bad_video=skip goes on without it, recipes/audit.py --ava finds all such key frames"
        return VideoReadError(error.source, f"{error.reason or 'cannot be read'} ({remedy})")

    def name(self, row: KeyFrame) -> str:
        """Name of a key frame."""
        return f"{row.video} at {row.timestamp:g} s"

    def event(self, row: KeyFrame, error: VideoReadError) -> tuple[str, str]:
        """Name of a key frame and why it could not be read."""
        return self.name(row), error.reason or str(error)


def collate_key_frames(items: list[dict]) -> dict:
    """A batch of clips of [`KeyFrameReader`]: people are padded with zeros, and `box_mask` marks the real ones.

    Clips of different sizes, as in evaluation, become `groups`, a list of batches, one per size. They are not padded,
    as predictions would then depend on the other clips of the batch. Blank clips are left out, see [`collate_clips`].
    """
    good = [item for item in items if not item.get(IS_BLANK)]
    sizes: dict[torch.Size, list[dict]] = {}
    for item in good or items[:1]:
        sizes.setdefault(item["pixel_values"].shape, []).append(item)
    batches = [stack(group) for group in sizes.values()]
    batch = batches[0] if len(batches) == 1 else {"groups": batches}
    if not good:
        batch[IS_BLANK] = True
    bad_videos = [event for item in items for event in item.get(BAD_VIDEOS, ())]
    if bad_videos:
        batch[BAD_VIDEOS] = bad_videos
    return batch


def stack(items: list[dict]) -> dict[str, torch.Tensor]:
    """A batch of clips of one size."""
    batch = {name: torch.stack([item[name] for item in items]) for name in ("pixel_values", "key_frame")}
    batch["boxes"], batch["box_mask"] = pad_people([item["boxes"] for item in items])
    if "labels" in items[0]:
        batch["labels"], _ = pad_people([item["labels"] for item in items])
    return batch
