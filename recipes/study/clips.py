"""The videos of the study: small copies of labelled videos, their split, and lists with a part of the labels."""

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from mvd_hf.curation.splitting import split_rows
from mvd_hf.data.arguments import DataArguments
from mvd_hf.data.decoding import open_media
from mvd_hf.data.labels import LabelReader
from mvd_hf.data.sources import load_rows, media_column, media_name
from mvd_hf.data.toy import write_video
from mvd_hf.finetuning.preparation import find_validation_split
from mvd_hf.model.loading_mvd import listed
from mvd_hf.model.video_reading import VideoReadError

logger = logging.getLogger(__name__)

# the table of all copies, and what it was made of
TABLE, SOURCE = "videos.csv", "source.json"
CRF = 16  # of the copies


@dataclass
class VideoArguments:
    """Which videos the study takes, and how small their copies are.

    Args:
        frames_per_second: of the copies, at most; `None` keeps all frames.
        short_side: pixels of the copies.
        segments: a CSV file in the data set's folder with the columns `file`, `label`, `first_frame` and `end_frame`
            (exclusive), for videos that hold several labelled segments. Files are looked for below that folder.
        segment_kind: rows of the column `kind` to take.
        segment_frames: frames around the middle of each segment.
        test_videos: a CSV file in the data set's folder, with a heading, whose first column names the test videos;
            suffixes do not count. By default a validation or test folder of the data set, or else a part of each
            class; of segments, every fifth video by the hash of its name.
        test_fraction, validation_fraction: parts of each class for the test (if nothing else says which), and of the
            training videos for the choice of settings.
    """

    frames_per_second: float | None = 5.0
    short_side: int = 80
    segments: str | None = None
    segment_kind: str | None = None
    segment_frames: int = 16
    test_videos: str | None = None
    test_fraction: float = 0.2
    validation_fraction: float = 0.2


@dataclass
class StudyVideo:
    """A video, or a segment of one: file, name, class, frames (`None` for all) and part of the split.

    A video without a class is one that labelled segments are cut from; networks are pre-trained on those of the
    training part.
    """

    item: dict | str
    name: str
    label: str
    frames: range | None = None
    part: str = "train"


def labelled_videos(dataset: str, split: str, part: str) -> list[StudyVideo]:
    """The videos of a split of a data set."""
    rows = load_rows(dataset, split)
    reader = LabelReader(rows, "label", None)
    videos = []
    for row in rows:
        item, label = row[media_column(rows)], reader(row)
        name = reader.names[label] if reader.names else str(label)
        videos.append(StudyVideo(item, Path(media_name(item)).stem, name, part=part))
    return videos


def segment_videos(dataset: str, arguments: VideoArguments) -> list[StudyVideo]:
    """The segments that a CSV file lists; segments of one test video are all in the test."""
    table = pd.read_csv(Path(dataset) / arguments.segments, dtype={"label": str}, keep_default_na=False)
    if arguments.segment_kind is not None:
        table = table[table["kind"] == arguments.segment_kind]
    files = {path.name: path for path in Path(dataset).rglob("*") if path.is_file()}
    absent = sorted(set(table["file"]) - files.keys())
    if absent or table.empty:
        problem = f"files that are not there: {listed(absent)}" if absent else "no such segments"
        raise ValueError(f"{arguments.segments} names {problem} (segment_kind={arguments.segment_kind}).")
    videos = []
    for i, row in enumerate(table.to_dict("records")):
        part = "test" if int(sha256(row["file"].encode()).hexdigest(), 16) % 5 == 0 else "train"
        first = max(0, (row["first_frame"] + row["end_frame"] - arguments.segment_frames) // 2)
        videos.append(
            StudyVideo(
                str(files[row["file"]]),
                f"{Path(row['file']).stem}_{i}",
                row["label"],
                range(first, first + arguments.segment_frames),
                part,
            )
        )
    return videos


def part_of_each_class(videos: Sequence[StudyVideo], fraction: float, part: str) -> list[StudyVideo]:
    """The videos, a fraction of each class in another part; videos whose names tell of one source stay together."""
    names = sorted({video.label for video in videos})
    rows = datasets.Dataset.from_dict({"video": [f"{video.label}/{video.name}.mp4" for video in videos]})
    chosen = set(split_rows(rows, [names.index(v.label) for v in videos], fraction=fraction).validation)
    return [replace(video, part=part) if i in chosen else video for i, video in enumerate(videos)]


def find_videos(dataset: str, arguments: VideoArguments) -> list[StudyVideo]:
    """All labelled videos, each in its part: train, validation or test."""
    if arguments.segments is not None:
        videos = segment_videos(dataset, arguments)
    else:
        videos = labelled_videos(dataset, "train", "train")
        split = find_validation_split(DataArguments(dataset=dataset))
        if arguments.test_videos is not None:
            with (Path(dataset) / arguments.test_videos).open(encoding="utf-8", newline="") as file:
                names = {Path(row[0]).stem for row in list(csv.reader(file))[1:] if row}
            videos = [replace(video, part="test" if video.name in names else "train") for video in videos]
        elif split is not None:
            videos += labelled_videos(dataset, split, "test")
        else:
            videos = part_of_each_class(videos, arguments.test_fraction, "test")
    test = [video for video in videos if video.part == "test"]
    train = [video for video in videos if video.part == "train"]
    if not test or not train:
        raise ValueError(f"{len(train)} training and {len(test)} test videos of {dataset!r}: both must be there.")
    return part_of_each_class(train, arguments.validation_fraction, "validation") + test


def whole_videos(segments: Sequence[StudyVideo]) -> list[StudyVideo]:
    """The videos, without labels, that segments of the training and validation part are cut from."""
    parts = {}
    for segment in segments:
        if segment.frames is not None and segment.part != "test":
            # a video with a segment in the validation part is no training video while settings are chosen
            parts[segment.item] = max(segment.part, parts.get(segment.item, ""))
    return [StudyVideo(item, Path(item).stem, "", part=part) for item, part in parts.items()]


def copy_frames(video: StudyVideo, arguments: VideoArguments) -> np.ndarray:
    """The frames (T, H, W, 3) of a video's small copy; raises VideoReadError if it cannot be read."""
    with open_media(video.item) as reader:
        total = len(reader)
        if video.frames is not None:
            first = max(0, min(video.frames.start, total - len(video.frames)))
            chosen = np.arange(first, min(first + len(video.frames), total))
        else:
            rate = arguments.frames_per_second if video.label else None  # segments keep all frames, too
            seconds = np.diff(reader.times()[[0, -1]]).item() if rate and total > 1 else 0.0
            count = min(total, round(seconds * (rate or 0)) + 1) if seconds else total
            chosen = np.linspace(0, total - 1, count).round().astype(int)
        frames = reader.read(chosen)
    height, width = frames.shape[1:3]
    scale = min(1.0, arguments.short_side / min(height, width))
    size = tuple(max(2, round(side * scale / 2) * 2) for side in (width, height))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def prepare_clips(dataset: str, arguments: VideoArguments, folder: Path) -> pd.DataFrame:
    """Write the small copies, unless they are there, and return their table: path, label, part, name.

    Args:
        dataset: a folder of class folders, a list file or a data set of the Hub; or the folder of a file of segments.
        arguments: which videos, and how small.
        folder: of the copies.

    Raises:
        ValueError: if the folder holds copies of other videos, or there are no videos.
    """
    source = {"dataset": str(dataset), **asdict(arguments)}
    if (folder / TABLE).exists():
        if json.loads((folder / SOURCE).read_text(encoding="utf-8")) != source:
            raise ValueError(f"{str(folder)!r} holds copies of other videos: choose another output, or delete it.")
        return pd.read_csv(folder / TABLE, dtype=str, keep_default_na=False)
    videos, rows = find_videos(dataset, arguments), []
    videos += whole_videos(videos)
    names = sorted({video.label for video in videos})
    for i, video in enumerate(tqdm(videos, desc="copying", unit=" videos")):
        path = folder / str(names.index(video.label)) / f"{i:05d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            frames = copy_frames(video, arguments)
        except VideoReadError as error:
            logger.warning("%s is left out: %s", video.name, error)
            continue
        write_video(path, frames, crf=CRF)
        rows.append({"path": str(path.resolve()), "label": video.label, "part": video.part, "name": video.name})
    (folder / SOURCE).write_text(json.dumps(source), encoding="utf-8")
    table = pd.DataFrame(rows)
    table.to_csv(folder / TABLE, index=False)  # last: the copies are complete
    return table


def with_share(table: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """A share of the videos of each class, at least one; a larger share of a seed holds the smaller ones."""
    order = table.sample(frac=1.0, random_state=seed)
    place = order.groupby("label").cumcount()
    size = order.groupby("label")["label"].transform("size")
    return order[place < np.ceil(share * size - 1e-9).clip(lower=1)].sort_index()


def write_list(table: pd.DataFrame, names: Sequence[str], path: Path) -> Path:
    """Write a list file: path and class index of each video, 0 of a video without a class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    indices = table["label"].map(lambda label: list(names).index(label) if label else 0)
    table[["path"]].assign(label=indices).to_csv(path, header=False, index=False)
    return path
