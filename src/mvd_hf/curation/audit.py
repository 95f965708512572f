"""Audit of a data set before training: which files decode, what they hold, duplicates, overlap with another set."""

import dataclasses
import hashlib
import io
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import av
import datasets
import numpy as np
from av.stream import Disposition
from PIL import Image

from ..data.decoding import open_media
from ..data.labels import is_missing
from ..data.sources import (
    Rows,
    column_names,
    field_of,
    holds_images,
    media_column,
    media_name,
    num_videos,
    write_table,
)
from ..data.urls import read_url
from ..model.frame_folders import frame_files
from ..model.loading_mvd import listed
from ..model.video_file import SINGLE_FILE_FORMATS, VideoReadError
from ..model.video_reading import FORMATS_WITHOUT_TIMES
from .workers import Journal, read_files

# short files are usable (frames repeat), and so are duplicates
USABLE = ("ok", "short", "duplicate")
STATUSES = (*USABLE, "no_video", "unreadable")
# what a manifest may leave out, and what it leaves out by default
DROPPABLE = (*STATUSES, "overlap")
DROP = ("unreadable", "no_video")
# frames decoded of each file, spread from the first to the last
NUM_CHECKED_FRAMES = 5
# lines of a histogram, characters of its longest bar, and files named per finding in the description
MAX_LINES, BAR_LENGTH, NUM_EXAMPLES = 10, 40, 3

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class FileReport:
    """What an audit finds out about a file; `None` or empty where nothing is known.

    Args:
        file: its name, see `mvd_hf.data.sources.media_name`.
        status: `ok`; `short` (fewer frames than a clip spans); `duplicate` (usable, the same bytes as a file before);
            `no_video` (a media file without a video stream); `unreadable`.
        reason: why it is not `ok`.
        num_frames: frames that the file holds, whatever its header says.
        width, height: pixels of the upright frame.
        fps, duration: average frame rate and seconds of the video, as the container declares them. The duration is
            left out where it may be that of the sound.
        codec: of the video, or the format of the image.
        bytes, hash: size and BLAKE2b hash (16 bytes, in hexadecimal) of the content.
        label: its label as text; the name of the class where the data set knows it.
        same_as: the first file with the same bytes, for a `duplicate`.
        overlap: file of the other data set with the same bytes.
        declared_frames: number of frames that the container declares.
        decoded_frames: frames that were decoded to check them.
    """

    file: str
    status: str = "unreadable"
    reason: str = ""
    num_frames: int | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    duration: float | None = None
    codec: str = ""
    bytes: int | None = None
    hash: str = ""
    label: str = ""
    same_as: str = ""
    overlap: str = ""
    declared_frames: int | None = None
    decoded_frames: int | None = None

    @property
    def is_readable(self) -> bool:
        return self.status != "unreadable"


COLUMNS = [field.name for field in dataclasses.fields(FileReport)]
INTEGERS = ("num_frames", "width", "height", "bytes", "declared_frames", "decoded_frames")
FLOATS = ("fps", "duration")


@dataclass
class AuditSettings:
    """What an audit checks, by how many processes, and which files its manifest leaves out.

    Args:
        num_frames, stride: of a clip; a video with fewer than `num_frames * stride` frames is `short`.
        thorough: decode every frame, instead of the first, the last and three between them.
        workers: processes, each with one file at a time. Where processes are not forked (macOS, Windows) a script
            needs the guard `if __name__ == "__main__"`.
        time_limit: seconds after which a file counts as unreadable and its process is ended.
        drop: statuses of files that the manifest leaves out, see [`FileReport`]; `overlap` for those that are in the
            other data set.
    """

    num_frames: int = 16
    stride: int = 4
    thorough: bool = False
    workers: int = 2
    time_limit: float = 60.0
    drop: list[str] = field(default_factory=lambda: list(DROP))

    def __post_init__(self):
        for name in ("num_frames", "stride", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.time_limit <= 0:
            raise ValueError(f"time_limit={self.time_limit} must be more than 0 seconds.")
        self.drop = [self.drop] if isinstance(self.drop, str) else list(self.drop or ())
        check_drop(self.drop)


def check_drop(drop: Sequence[str]):
    """Raise ValueError if `drop` has an unknown status."""
    for name in drop:
        if name not in DROPPABLE:
            raise ValueError(f"There is no {name!r} to drop; choose among {', '.join(DROPPABLE)}.")


# one file


def with_content(item: dict | str | bytes) -> dict | str | bytes:
    """A row's file, fetched if it is a URL, so that it is fetched once."""
    path = item["path"] if isinstance(item, dict) and item["bytes"] is None else item
    return {"path": path, "bytes": read_url(path)} if isinstance(path, str) and "://" in path else item


def source_of(item: dict | str | bytes) -> str | bytes:
    """Bytes of a row's file, or its path."""
    if isinstance(item, dict):
        return item["path"] if item["bytes"] is None else item["bytes"]
    return item


def parts_of(source: str | bytes) -> list:
    """The file of a row, or the files of a folder of frames."""
    is_folder = isinstance(source, str) and os.path.isdir(source)
    return frame_files(source) if is_folder else [source]


def size_and_hash(source: str | bytes) -> tuple[int, str]:
    """Number of bytes and hash of a file or folder of frames; raises VideoReadError if it cannot be read."""
    content_hash, size = hashlib.blake2b(digest_size=16), 0
    try:
        for part in parts_of(source):
            with io.BytesIO(part) if isinstance(part, bytes) else open(part, "rb") as file:
                hashlib.file_digest(file, lambda: content_hash)
                size += file.seek(0, io.SEEK_END)
        return size, content_hash.hexdigest()
    except FileNotFoundError as error:
        raise VideoReadError(source, "no such file") from error
    except OSError as error:
        raise VideoReadError(source, f"cannot be read ({error})") from error


def known_unread(item: dict | str | bytes) -> tuple[str, int | None, str]:
    """Name, size and hash of a row's file, as far as they are known without reading it: the hash of bytes alone."""
    source = source_of(item)
    if isinstance(source, bytes):
        return media_name(item), *size_and_hash(source)
    size = None
    with suppress(OSError, VideoReadError):  # a URL, no such file, or no folder of frames
        size = sum(map(os.path.getsize, parts_of(source)))
    return media_name(item), size, ""


def container_facts(source: str | bytes) -> dict:
    """What the container of a video declares, as fields of a `FileReport`; nothing if it cannot be opened.

    The status is `no_video` for a container without a video stream; cover images do not count as one.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else os.path.abspath(source)
    options = {"protocol_whitelist": "file", "format_whitelist": SINGLE_FILE_FORMATS}
    try:
        container = av.open(file, options=options)
    except (av.error.FFmpegError, OSError, ValueError):
        return {}
    with container:
        videos = [video for video in container.streams.video if not video.disposition & Disposition.attached_pic]
        if not videos:
            return {"status": "no_video"}
        decodable = [video for video in videos if video.codec_context is not None]
        if not decodable:
            return {}
        best = container.streams.best("video")  # as `VideoReader` chooses
        video = best if best in decodable else decodable[0]
        duration = None
        if video.duration is not None and video.time_base is not None:
            duration = round(float(video.duration * video.time_base), 3)
        elif container.duration is not None and len(container.streams) == 1:
            duration = round(container.duration / 1_000_000, 3)  # microseconds
        rate = video.average_rate if container.format.name not in FORMATS_WITHOUT_TIMES else None
        return {
            "codec": video.codec_context.codec.canonical_name,
            "fps": round(float(rate), 3) if rate else None,
            "duration": duration,
            "declared_frames": video.frames or None,
        }


def image_facts(source: str | bytes) -> dict:
    """The format of an image; nothing if it cannot be opened."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return {"codec": (image.format or "").lower()}
    except OSError:
        return {}


def describe_error(error: Exception) -> str:
    """Why a file cannot be read: any error of a library is the file's fault, except ImportError, which is raised."""
    if isinstance(error, VideoReadError):
        return error.reason or str(error)
    if isinstance(error, ImportError):
        raise error
    return f"{type(error).__name__}: {error}"


@dataclass
class FileInspector:
    """Reads a row's file and reports on it; `thorough` as in [`AuditSettings`]."""

    is_image: bool = False
    thorough: bool = False

    result_type = FileReport

    def blank(self, item: dict | str | bytes) -> FileReport:
        """What is known before the file is read."""
        name, size, content_hash = known_unread(item)
        return FileReport(name, bytes=size, hash=content_hash)

    def is_current(self, report: FileReport) -> bool:
        """Whether an earlier report suffices: a thorough audit needs every frame decoded."""
        return not self.thorough or report.status != "ok" or report.decoded_frames == report.num_frames

    def __call__(self, item: dict | str | bytes) -> FileReport:
        """Report on a file: `ok`, `no_video` or `unreadable`."""
        report = FileReport(media_name(item))
        try:
            self._inspect(with_content(item), report)
        except Exception as error:
            report.reason = describe_error(error)
        return report

    def _inspect(self, item: dict | str | bytes, report: FileReport):
        """Fill in the report, field by field, as far as the file can be read."""
        source = source_of(item)
        report.bytes, report.hash = size_and_hash(source)
        for name, value in (image_facts if self.is_image else container_facts)(source).items():
            setattr(report, name, value)
        with open_media(item, self.is_image) as reader:
            report.num_frames = len(reader)
            last = report.num_frames - 1
            checked = range(last + 1) if self.thorough else np.unique(np.linspace(0, last, NUM_CHECKED_FRAMES).round())
            frames = reader.decode(np.asarray(checked, dtype=np.int64))
            frames.rgb((0, 0, 1, 1))  # a pixel of each says whether its colors can be converted
            report.height, report.width = frames.size
            report.decoded_frames, report.status = len(checked), "ok"


class FileHasher(FileInspector):
    """Reports on size and hash alone, without decoding."""

    def _inspect(self, item: dict | str | bytes, report: FileReport):
        report.bytes, report.hash = size_and_hash(source_of(item))


# the manifest


def report_of_row(row: dict[str, str]) -> FileReport:
    """A report from a row of a manifest, as far as it depends on the file alone."""
    values: dict = {name: row[name] for name in COLUMNS}
    values |= {name: int(row[name]) if row[name] else None for name in INTEGERS}
    values |= {name: float(row[name]) if row[name] else None for name in FLOATS}
    if values["status"] in USABLE:
        values |= {"status": "ok", "reason": ""}
    return FileReport(**{**values, "same_as": "", "overlap": ""})


def write_manifest(path: str | Path, reports: Sequence[FileReport], drop: Sequence[str] = DROP) -> int:
    """Write reports as a CSV file with the columns `file`, `use` and the other fields of [`FileReport`].

    `mvd_hf.data.sources.read_manifest` reads it. A name that several rows have is used if all of these rows are.

    Args:
        path: the file; it is written as a whole or not at all. `<path>.partial` is removed.
        reports: from [`audit_videos`].
        drop: statuses of files not to use; `overlap` for those that are in the other data set.

    Returns:
        Number of rows to use.

    Raises:
        ValueError: if there is no such status.
    """
    check_drop(drop)
    use: dict[str, bool] = {}
    for report in reports:
        is_dropped = report.status in drop or ("overlap" in drop and report.overlap != "")
        use[report.file] = use.get(report.file, True) and not is_dropped
    rows = [{**dataclasses.asdict(report), "use": "yes" if use[report.file] else "no"} for report in reports]
    write_table(path, rows, ["file", "use", *COLUMNS[1:]])
    Path(f"{path}.partial").unlink(missing_ok=True)
    return sum(row["use"] == "yes" for row in rows)


# the data set


def label_reader(rows: Rows, column: str | None) -> Callable[[dict], str]:
    """A function that gives the label of a row as text: by default of the column `label`, if there is one."""
    if column is None:
        if "label" not in column_names(rows):
            return lambda row: ""
        column = "label"
    feature = (rows.features or {}).get(column)

    def read(row: dict) -> str:
        label = field_of(row, column)
        if is_missing(label):
            return ""
        if isinstance(feature, datasets.ClassLabel) and isinstance(label, int) and label >= 0:
            label = feature.int2str(label)
        return label.decode(errors="replace") if isinstance(label, bytes) else str(label)

    return read


def audit_videos(
    rows: Rows,
    settings: AuditSettings | None = None,
    *,
    label_column: str | None = None,
    output: str | Path | None = None,
) -> list[FileReport]:
    """Report on each row of a data set, in its order.

    Args:
        rows: videos or images with optional labels, see `mvd_hf.data.sources.load_rows`.
        settings: what is checked and by how many processes.
        label_column: column of the labels; `label`, if there is one, by default.
        output: manifest that is to be written. New reports are added to `<output>.partial` as they come. Files that
            an earlier audit reported are not read again: bytes with the same hash, local files of the same size, any
            URL. What a finished manifest calls unreadable is tried again.

    Raises:
        ValueError: if there is no row, no column of videos or images, no such label column, or `output` is a file
            of another kind.
    """
    settings = settings or AuditSettings()
    column, label_of = media_column(rows), label_reader(rows, label_column)
    is_image = holds_images(rows, column)
    labels: list[str] = []

    def items() -> Iterator:
        for row in rows:
            labels.append(label_of(row))
            yield row[column]

    journal = Journal(output, COLUMNS, dataclasses.asdict, report_of_row)
    inspector = FileInspector(is_image, settings.thorough)
    reports = read_files(items(), inspector, journal, settings, num_videos(rows, str(rows.split)), "audit")
    for report, label in zip(reports, labels, strict=True):
        report.label = label
    if not is_image:
        mark_short(reports, settings.num_frames * settings.stride)
    mark_duplicates(reports)
    return reports


def mark_short(reports: Sequence[FileReport], span: int):
    """Give readable videos of fewer than `span` frames the status `short`."""
    for report in reports:
        if report.status == "ok" and report.num_frames < span:
            report.status = "short"
            report.reason = f"{report.num_frames} frames, a clip spans {span}: frames repeat"


def mark_duplicates(reports: Sequence[FileReport]):
    """Give readable files the status `duplicate` where another name came first with the same bytes."""
    first: dict[str, FileReport] = {}
    for report in reports:
        if report.status not in USABLE:
            continue
        original = first.setdefault(report.hash, report)
        if original.file != report.file:
            report.status, report.same_as = "duplicate", original.file
            report.reason = f"same bytes as {original.file}"
            if original.label != report.label:
                report.reason += f", with label {report.label!r} instead of {original.label!r}"


def find_overlap(reports: Sequence[FileReport], against: Rows, settings: AuditSettings | None = None):
    """Mark files of `reports` that are, byte for byte, in another data set, such as the one to test on.

    Args:
        reports: from [`audit_videos`]; their `overlap` is set.
        against: rows of the other data set, see `mvd_hf.data.sources.load_rows`.
        settings: number of workers and time limit.
    """
    column = media_column(against)
    total = num_videos(against, str(against.split))
    journal = Journal(None, COLUMNS, dataclasses.asdict, report_of_row)
    items = (row[column] for row in against)
    others = read_files(items, FileHasher(), journal, settings or AuditSettings(), total, "other data set")
    if unread := [other.file for other in others if not other.hash]:
        logger.warning("Files of the other data set that cannot be read: %s", listed(unread))
    name_of = {other.hash: other.file for other in reversed(others) if other.hash}  # the first of equal ones
    for report in reports:
        report.overlap = name_of.get(report.hash, "") if report.status in USABLE else ""


# the description


def bars(title: str, counts: Sequence[tuple[str, int]], num_others: int = 0) -> list[str]:
    """Lines of a text histogram of (name, count) pairs."""
    largest = max((count for _, count in counts), default=1) or 1
    width = max((len(name) for name, _ in counts), default=0)
    lines = [
        f"  {name:>{width}} {count:>8} {'#' * math.ceil(BAR_LENGTH * count / largest)}".rstrip()
        for name, count in counts
    ]
    return [title, *lines, *([f"  and {num_others} others"] if num_others else [])]


def most_common(title: str, values: Iterable[str]) -> list[str]:
    """Lines of a histogram of the most common values."""
    counts = Counter(values)
    return bars(title, counts.most_common(MAX_LINES), max(len(counts) - MAX_LINES, 0))


def doubling(title: str, values: Iterable[float | None]) -> list[str]:
    """Lines of a histogram with bins from one power of two to the next, and a line for unknown values."""
    values = list(values)
    powers = Counter(math.floor(math.log2(value)) for value in values if value)
    bins = range(min(powers), max(powers) + 1) if powers else ()
    counts = [(f"{2.0**power:g} to {2.0 ** (power + 1):g}", powers[power]) for power in bins]
    unknown = len(values) - powers.total()
    return bars(title, counts + ([("unknown", unknown)] if unknown else []))


def findings(reports: Sequence[FileReport]) -> list[str]:
    """Lines on what concerns several files or the whole set: labels, names, headers, overlap."""
    usable = [report for report in reports if report.status in USABLE]
    labels: dict[str, set[str]] = {}
    contents: dict[str, set[str]] = {}
    for report in usable:
        labels.setdefault(report.hash, set()).add(report.label)
    for report in reports:
        if report.hash:
            contents.setdefault(report.file, set()).add(report.hash)
    names = Counter(report.file for report in reports)
    found = {
        "same content, different labels": [report.file for report in usable if len(labels[report.hash]) > 1],
        "names in several rows": [name for name, count in names.items() if count > 1],
        "one name, different contents (the manifest uses all of them or none)": [
            name for name, hashes in contents.items() if len(hashes) > 1
        ],
        "fewer frames than the container declares (cut short, or hidden by an edit list)": [
            report.file for report in usable if report.num_frames < (report.declared_frames or 0)
        ],
        "also in the other data set": [report.file for report in usable if report.overlap],
    }
    return [f"{finding}: {listed(files, NUM_EXAMPLES)}" for finding, files in found.items() if files]


def describe_audit(reports: Sequence[FileReport]) -> str:
    """A text of several lines on a data set: statuses with examples, findings, histograms, classes, bytes."""
    usable = [report for report in reports if report.status in USABLE]
    lines = [f"{len(reports)} files, {sum(report.bytes or 0 for report in reports):,} bytes"]
    for status in STATUSES:
        having = [report for report in reports if report.status == status]
        lines.append(f"{status}: {len(having)}")
        for report in having[:NUM_EXAMPLES] if status != "ok" else ():
            lines.append(f"  {report.file}: {report.reason}")
    lines += findings(reports)
    lines += most_common("width x height", (f"{report.width}x{report.height}" for report in usable))
    if any(report.num_frames > 1 for report in usable):  # not of images
        lines += doubling("number of frames", (report.num_frames for report in usable))
        lines += doubling("seconds, as declared", (report.duration for report in usable))
        lines += most_common(
            "frames per second, as declared", (f"{report.fps:g}" if report.fps else "unknown" for report in usable)
        )
    lines += most_common("codec", (report.codec for report in usable))
    if any(report.label for report in reports):
        classes = Counter({report.label: 0 for report in reports})
        classes.update(report.label for report in usable)
        fewest = sorted(classes.items(), key=lambda entry: (entry[1], entry[0]))[:MAX_LINES]
        lines += bars(f"usable files of the rarest of {len(classes)} labels", fewest)
    return "\n".join(lines)
