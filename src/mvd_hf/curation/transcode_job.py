"""Transcodes a data set: many processes or machines, resumable, with its folders and labels, and a report."""

import csv
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
from tqdm import tqdm

from ..data.augmentation import PretrainingAugmentation
from ..data.clips import ClipSampler, sample_generator
from ..data.decoding import Item, open_media
from ..data.sources import (
    LIST_FILE_SUFFIXES,
    field_of,
    has_content,
    load_rows,
    media_column,
    media_name,
    source_choices,
    split_names,
    write_table,
)
from ..data.transcoding import TranscodedFile, TranscodeSettings, choose_frames, transcode
from ..model.frame_sampling import pretraining_frames
from ..model.video_reading import VideoReadError
from .audit import known_unread
from .workers import run_guarded

logger = logging.getLogger(__name__)

# folder in the output, hidden from `datasets`, with the results of each shard and the manifest
RECORDS = ".transcoding"
MANIFEST, BAD_VIDEOS = "manifest.csv", "bad_videos.csv"
# videos that are tried before all are written, frames of each, and videos whose loading is timed afterwards
NUM_TIMED, NUM_TRIED_FRAMES = 8, 64


@dataclass
class TranscodeArguments(TranscodeSettings):
    """The videos, where they go, and how the work is divided; the size, rate and quality: `TranscodeSettings`.

    Args:
        dataset, root, dataset_config, video_column, class_level, allow_local_urls, frame_folder_fps: as in
            `mvd_hf.data.arguments.DataArguments`.
        split: the only split to write; by default all of them.
        output: folder of the result.
        clips: `start:end`, seconds of the part of each video to keep, or the columns of the rows that hold them.
        on_bad_video: what to do about a video that cannot be read: `raise` or `skip`.
        shard: `3/64` writes the third of 64 parts; write the others elsewhere, then `merge`.
        merge: only check that all parts are there, and write the lists of labels and the manifest.
        workers: number of processes; by default one per core.
        time_limit: seconds per video.
    """

    dataset: str = ""
    output: str = ""
    root: str | None = None
    dataset_config: str | None = None
    split: str | None = None
    video_column: str | None = None
    class_level: str | None = None
    allow_local_urls: bool = False
    frame_folder_fps: float | None = None
    clips: str | None = None
    on_bad_video: str = "raise"
    shard: str = "1/1"
    merge: bool = False
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    time_limit: float = 3600.0

    def __post_init__(self):
        super().__post_init__()
        if not self.dataset or not self.output:
            raise ValueError("Give the videos (a list file, a folder or a data set of the Hub) and --output FOLDER.")
        if self.on_bad_video not in ("raise", "skip"):
            raise ValueError(f"on_bad_video={self.on_bad_video!r} must be raise or skip.")
        if self.clips is not None and (len(self.clips.split(":")) != 2 or "" in self.clips.split(":")):
            raise ValueError(f"clips={self.clips!r} must be start:end, two numbers of seconds or two columns.")
        if self.workers < 1 or self.time_limit <= 0:
            raise ValueError(f"workers={self.workers} and time_limit={self.time_limit} must be positive.")
        source, output = os.path.realpath(self.dataset), os.path.realpath(self.output)
        if os.path.isdir(source) and os.path.commonpath((source, output)) in (source, output):
            raise ValueError(f"output={self.output!r} must be another folder than the videos, and not inside of it.")
        self.part()

    def part(self) -> tuple[int, int]:
        """Place, from 0, and number of shards."""
        place, _, count = self.shard.partition("/")
        if not (place.isdecimal() and count.isdecimal() and 1 <= int(place) <= int(count)):
            raise ValueError(f"shard={self.shard!r} must be like 3/64: the third of 64 parts.")
        return int(place) - 1, int(count)

    def settings(self) -> TranscodeSettings:
        """How videos are written."""
        return TranscodeSettings(self.short_side, self.key_frame_every, self.fps, self.min_psnr)


@dataclass
class Job:
    """A video to write: its row, its source, the place of the result in the output, its split, and its columns."""

    videos: datasets.Dataset
    index: int
    source: str
    name: str
    split: str
    row: dict
    segment: tuple[float, float] | None = None

    @property
    def item(self) -> Item:
        """The video, whose bytes are only read now where the row holds them."""
        (item,) = self.videos[self.index].values()
        return item

    def work(self) -> tuple[Item, str, str, tuple | None]:
        """What a worker process needs."""
        return self.item, self.source, self.name, self.segment


@dataclass
class Outcome:
    """A result (`None` if there is none, with the reason), and the bytes of its source if they are known."""

    name: str
    source: str
    result: TranscodedFile | None
    reason: str = ""
    source_bytes: int | None = None


# what to write


def number_or_column(row: dict, text: str) -> float:
    """Seconds of a part of a video: a number, or the value of a column; raises ValueError if it is none."""
    try:
        value = float(text)
    except ValueError:
        value = field_of(row, text)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"clips needs seconds from 0 on, the row has {value!r} in {text!r}.")
    return float(value)


def segment_of(row: dict, clips: str | None) -> tuple[float, float] | None:
    """Start and end of the part of a row's video; raises ValueError if it is empty."""
    if clips is None:
        return None
    start, end = (number_or_column(row, text) for text in clips.split(":"))
    if start >= end:
        raise ValueError(f"clips={clips!r}: the part from {start:g} to {end:g} s is empty.")
    return start, end


def has_bytes(value) -> bool:
    """Whether a column's value is a file of its own, such as a thumbnail, which no table of text holds."""
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))


def source_of(item: Item) -> str:
    """Absolute path or URL of a video, or a hash of its bytes: embedded videos of one name may differ."""
    content = item.get("bytes") if isinstance(item, dict) else None
    name = media_name(item if content is None else content)
    return name if "://" in name or name.startswith("blake2b:") else os.path.abspath(name)


def relative_name(source: str, folder: str | None, split: str, index: int) -> str:
    """Place of a video below the folder of its source, or else in the folder of its split."""
    if source.startswith("blake2b:"):
        return f"{split}/{index:08d}"
    if folder is not None and "://" not in source:
        name = os.path.relpath(os.path.abspath(source), folder)
        if not name.startswith(".."):
            return name
    return f"{split}/{os.path.basename(source.partition('?')[0])}"


def unique_names(jobs: Sequence[Job]):
    """Give each job the name of an mp4 file: `a.mp4` for `a.avi`, but `a.avi.mp4` beside another `a`."""
    stems = [job.name if os.path.isdir(job.source) else os.path.splitext(job.name)[0] for job in jobs]
    owners: dict[str, set[str]] = {}
    for stem, job in zip(stems, jobs, strict=True):
        owners.setdefault(stem, set()).add(job.source)
    taken: dict[str, tuple] = {}
    for i, (stem, job) in enumerate(zip(stems, jobs, strict=True)):
        name = stem if len(owners[stem]) == 1 else job.name
        name += "" if job.segment is None else "_{:g}_{:g}".format(*job.segment)
        job.name = f"{name}.mp4"
        if taken.setdefault(job.name, (job.source, job.segment)) != (job.source, job.segment):
            job.name = f"{name}_{i}.mp4"


def find_jobs(arguments: TranscodeArguments) -> list[Job]:
    """Every video of a data set; raises ValueError if there is none, or a part of a video is not one."""
    source = arguments.dataset
    is_list = Path(source).suffix.lower() in LIST_FILE_SUFFIXES
    known = [arguments.split] if arguments.split else None
    splits = known or split_names(source, arguments.dataset_config, arguments.frame_folder_fps) or ["train"]
    folder = os.path.realpath(source) if os.path.isdir(source) else None
    if is_list and "://" not in source:
        folder = os.path.abspath(arguments.root or Path(source).parent)
    jobs = []
    for split in splits:
        rows = load_rows(source, split, arguments.root, arguments.dataset_config, **source_choices(arguments))
        column = media_column(rows)
        videos = rows.select_columns(column)
        for index, row in enumerate(rows):
            item = row.pop(column)
            if not has_content(item):
                raise ValueError(f"Row {index} of {source!r} has neither a path nor bytes: leave it out.")
            try:
                segment = segment_of(row, arguments.clips)
            except ValueError as error:
                raise ValueError(f"{media_name(item)}: {error}") from error
            row = {key: value for key, value in row.items() if not has_bytes(value)}
            for key, feature in (rows.features or {}).items():
                if isinstance(feature, datasets.ClassLabel) and row.get(key) is not None:
                    row[key] = feature.int2str(row[key])
            place = relative_name(media_name(item), folder, split, index)
            jobs.append(Job(videos, index, source_of(item), place, split, row, segment))
    if not jobs:
        raise ValueError(f"The data set {source!r} is empty: it names no video.")
    unique_names(jobs)
    return jobs


# the work


@dataclass
class Trial:
    """The first frames of a video, written for an estimate: frames of all of it, and what those written took."""

    frames: int
    written: TranscodedFile
    seconds: float
    source_bytes: int


def source_size(item: Item, source: str) -> int | None:
    """Bytes of a video, if they are known without reading it."""
    content = item["bytes"] if isinstance(item, dict) else item
    return len(content) if isinstance(content, bytes) else known_unread(source)[1]


def run_job(work: tuple[Item, str, str, tuple | None], output: str, settings: TranscodeSettings) -> Outcome:
    """Write one video, in a worker process."""
    item, source, name, segment = work
    size = source_size(item, source)
    try:
        return Outcome(name, source, transcode(item, Path(output) / name, settings, segment), "", size)
    except VideoReadError as error:
        return Outcome(name, source, None, error.reason or str(error), size)


def run_trial(work: tuple[Item, str, str, tuple | None], folder: str, settings: TranscodeSettings) -> Trial | None:
    """Write the first frames of a video, in a worker process; `None` if it cannot be read."""
    item, source, _, segment = work
    try:
        with open_media(item) as reader:
            frames = len(choose_frames(reader, settings.fps, segment)[0])
        start = time.monotonic()
        written = transcode(item, Path(folder) / f"{os.getpid()}.mp4", settings, segment, NUM_TRIED_FRAMES)
    except VideoReadError:
        return None
    return Trial(frames, written, time.monotonic() - start, source_size(item, source) or 0)


def whole_lines(path: Path) -> bytes:
    """Content of a file without a last line that was cut off; nothing if there is no file."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def read_outcomes(arguments: TranscodeArguments) -> dict[str, Outcome]:
    """Results of earlier runs by name, whose files are still there; raises ValueError if they had other settings."""
    known: dict[str, Outcome] = {}
    for path in sorted((Path(arguments.output) / RECORDS).glob("*.jsonl")):
        for entry in map(json.loads, whole_lines(path).splitlines()):
            if "settings" in entry:
                now = asdict(arguments.settings()) | {"clips": arguments.clips}
                other = [key for key, value in entry["settings"].items() if now.get(key) != value]
                if other:
                    was = ", ".join(f"{key}={entry['settings'][key]}" for key in other)
                    raise ValueError(f"{arguments.output!r} has videos of {was}: give the same, or another output.")
                continue
            result = entry["result"] and TranscodedFile(**entry["result"])
            file = Path(arguments.output) / entry["name"]
            if result is None or (file.is_file() and file.stat().st_size == result.bytes):
                known[entry["name"]] = Outcome(**(entry | {"result": result}))
    return known


def spread(count: int, number: int) -> list[int]:
    """At most `number` places spread over `count`."""
    number = min(number, count)
    return sorted({round(i * (count - 1) / max(number - 1, 1)) for i in range(number)})


def describe_size(count: float) -> str:
    """A number of bytes as text."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def write_videos(arguments: TranscodeArguments, jobs: Sequence[Job], known: dict[str, Outcome]):
    """Write the videos that are missing, and add their results to those known; first say how long it takes."""
    records = Path(arguments.output) / RECORDS
    records.mkdir(parents=True, exist_ok=True)
    left = {job.name: job for job in jobs if job.name not in known or known[job.name].result is None}
    if left:
        logger.info("%s", estimate(try_videos(arguments, list(left.values())), len(left), arguments.workers))
    function = partial(run_job, output=arguments.output, settings=arguments.settings())
    work = ((name, job.work()) for name, job in left.items())  # one by one: rows may hold the bytes of videos
    place, count = arguments.part()
    path = records / f"part-{place + 1}-of-{count}.jsonl"
    path.write_bytes(whole_lines(path))
    with (
        closing(run_guarded(function, work, arguments.workers, arguments.time_limit)) as ended,  # ends the workers
        open(path, "a", encoding="utf-8") as file,
        tqdm(total=len(jobs), initial=len(jobs) - len(left), desc="transcoding", unit=" videos", disable=None) as bar,
    ):
        file.write(json.dumps({"settings": asdict(arguments.settings()) | {"clips": arguments.clips}}) + "\n")
        for name, outcome, reason in ended:
            known[name] = outcome = outcome or Outcome(name, left[name].source, None, reason)
            file.write(json.dumps(asdict(outcome)) + "\n")
            file.flush()
            bar.update()
            if outcome.result is None:
                if arguments.on_bad_video == "raise":
                    raise ValueError(f"{outcome.source}: {outcome.reason} (on_bad_video=skip goes on without it)")
                logger.warning("%s is left out: %s", outcome.source, outcome.reason)


def try_videos(arguments: TranscodeArguments, jobs: Sequence[Job]) -> list[Trial]:
    """The first frames of some videos, written to a temporary folder; those that cannot be read are left out."""
    work = ((i, jobs[i].work()) for i in spread(len(jobs), NUM_TIMED))
    with TemporaryDirectory(dir=Path(arguments.output) / RECORDS) as folder:
        function = partial(run_trial, folder=folder, settings=arguments.settings())
        ended = run_guarded(function, work, min(arguments.workers, NUM_TIMED), arguments.time_limit)
        return [trial for _, trial, _ in ended if trial is not None]


def estimate(trials: Sequence[Trial], total: int, workers: int) -> str:
    """How long videos take and how large they become, from the first frames of some of them."""
    if not trials:
        return "How long it takes is not known, as none of the videos that were tried can be read."
    parts = [trial.frames / trial.written.frames for trial in trials]
    seconds = sum(trial.seconds * part for trial, part in zip(trials, parts, strict=True))
    size = sum(trial.written.bytes * part for trial, part in zip(trials, parts, strict=True))
    before, factor = sum(trial.source_bytes for trial in trials), total / len(trials)
    seconds *= factor / min(workers, total)
    took = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    return (
        f"{total} videos take about {took} with {workers} workers and then have about {describe_size(size * factor)}"
        + (f", {describe_size(before * factor)} before" if before else "")
        + f" (estimated from {len(trials)} of them)."
    )


# what is left


def write_list(path: Path, jobs: Sequence[Job]):
    """A list file, `path,label`, of videos below its folder."""
    lines = [[job.name, *([job.row["label"]] if "label" in job.row else [])] for job in jobs]
    unfinished = path.with_name(f".{path.name}.new")
    with open(unfinished, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(lines)
    os.replace(unfinished, path)


def write_metadata(folder: Path, output: Path, jobs: Sequence[Job]):
    """The file `metadata.jsonl` of a folder of videos, with all columns of the rows."""
    lines = [{"file_name": os.path.relpath(output / job.name, folder)} | job.row for job in jobs]
    unfinished = folder / ".metadata.new"
    unfinished.write_text("".join(json.dumps(line, default=str) + "\n" for line in lines), encoding="utf-8")
    os.replace(unfinished, folder / "metadata.jsonl")


def finish(arguments: TranscodeArguments, jobs: Sequence[Job], known: dict[str, Outcome]) -> list[Outcome]:
    """Write the labels, the manifest and the list of bad videos, once every video has a result."""
    missing = [job.name for job in jobs if job.name not in known]
    if missing:
        raise ValueError(f"{len(missing)} of {len(jobs)} videos are not written yet, first {missing[0]!r}: run again.")
    output, source = Path(arguments.output), Path(arguments.dataset)
    good = [job for job in jobs if known[job.name].result is not None]
    if not good:
        raise ValueError(f"None of the {len(jobs)} videos of {arguments.dataset!r} can be read.")
    root = os.path.join(os.path.realpath(source), "")
    is_plain = source.is_dir() and not any(source.rglob("metadata.*")) and arguments.clips is None
    is_plain = is_plain and all(job.source.startswith(root) for job in good)  # no shards
    if source.suffix.lower() in LIST_FILE_SUFFIXES and source.suffix.lower() != ".jsonl":
        write_list(output / source.name, good)
    elif not is_plain:
        for split in dict.fromkeys(job.split for job in good):
            of_split = [job for job in good if job.split == split]
            common = os.path.commonpath([os.path.dirname(job.name) for job in of_split])
            write_metadata(output / common, output, of_split)
    outcomes = [known[job.name] for job in jobs]
    rows = [
        {"file": os.path.abspath(output / outcome.name), "use": "yes", "source": outcome.source}
        | asdict(outcome.result)
        | {"source_bytes": outcome.source_bytes}
        for outcome in {outcome.name: outcome for outcome in outcomes}.values()
        if outcome.result is not None
    ]
    write_table(output / RECORDS / MANIFEST, rows, list(rows[0]))
    bad = [{"file": outcome.source, "reason": outcome.reason} for outcome in outcomes if outcome.result is None]
    write_table(output / RECORDS / BAD_VIDEOS, bad, ["file", "reason"])
    return outcomes


def loading_gain(jobs: Sequence[Job], output: Path) -> float:
    """How many times faster training clips load, over videos that are written whole; `nan` if none of them loads."""
    cut = ClipSampler(pretraining_frames, PretrainingAugmentation([224]))
    seconds: Counter = Counter()
    for turn, job in enumerate(job for _ in range(2) for job in jobs):
        for which, item in (("before", job.item), ("after", str(output / job.name))):
            start = time.process_time()
            try:
                cut(item, sample_generator(0, turn))
            except VideoReadError:
                continue
            seconds[which] += time.process_time() - start if turn >= len(jobs) else 0.0  # the first turn warms up
    return seconds["before"] / seconds["after"] if seconds["after"] else math.nan


def transcode_dataset(arguments: TranscodeArguments) -> list[Outcome]:
    """Write every video of a data set as a file that trains fast, under the same names and folders.

    Interrupted work continues when it is started again. The result is a source for every recipe: a folder with the
    same class folders, or a list file of the same name, or a folder with `metadata.jsonl`.

    Returns:
        The outcomes of this shard, or of all videos if there is one shard or after `merge`.

    Raises:
        ValueError: if there is no video, one cannot be read and is not to be skipped, or earlier files in the output
            have other settings.
    """
    jobs, known = find_jobs(arguments), read_outcomes(arguments)
    for job in jobs:
        if job.name in known and known[job.name].source != job.source:
            raise ValueError(
                f"{arguments.output!r} has {job.name!r} of {known[job.name].source!r}, not of {job.source!r}: give "
                "another output."
            )
    place, count = arguments.part()
    mine = jobs[place::count]
    if not mine:
        raise ValueError(f"shard={arguments.shard} is empty: there are {len(jobs)} videos.")
    if not arguments.merge:
        write_videos(arguments, mine, known)
    good = [job for job in mine if (outcome := known.get(job.name)) is not None and outcome.result is not None]
    total = sum(known[job.name].result.bytes for job in good)
    logger.info("%d of %d videos are in %s, %s.", len(good), len(mine), arguments.output, describe_size(total))
    whole = [job for job in good if job.segment is None]
    if whole and not arguments.merge:
        gain = loading_gain([whole[i] for i in spread(len(whole), NUM_TIMED)], Path(arguments.output))
        logger.info("Clips of 16 frames load %.1f times as fast as before, in CPU time.", gain)
    if count > 1 and not arguments.merge:
        logger.info("When all %d shards are done, give --merge true.", count)
        return [known[job.name] for job in mine]
    outcomes = finish(arguments, jobs, known)
    bad = sum(outcome.result is None for outcome in outcomes)
    logger.info("Manifest: %s", Path(arguments.output) / RECORDS / MANIFEST)
    if bad:
        logger.warning("%d videos are left out: %s", bad, Path(arguments.output) / RECORDS / BAD_VIDEOS)
    return outcomes
