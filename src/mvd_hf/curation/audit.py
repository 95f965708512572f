"""Audit of a data set before training: which files decode, what they hold, duplicates, overlap with another set."""

import csv
import dataclasses
import hashlib
import io
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import datasets
import numpy as np
from av.stream import Disposition
from PIL import Image
from tqdm import tqdm

from ..data.decoding import fetch, open_media
from ..data.sources import (
    Rows,
    column_names,
    field_of,
    holds_images,
    media_column,
    media_name,
    num_videos,
)
from ..model.video_reading import FORMATS_WITHOUT_TIMES, SINGLE_FILE_FORMATS, VideoReadError
from .workers import run_guarded

# short files are usable (frames repeat), and so are duplicates
USABLE = ("ok", "short", "duplicate")
STATUSES = (*USABLE, "no_video", "unreadable")
# what a manifest may leave out, and what it leaves out by default
DROPPABLE = (*STATUSES, "overlap")
DROP = ("unreadable", "no_video")
# frames decoded of each file, spread from the first to the last
NUM_PROBES = 5
# lines of a histogram, characters of its longest bar, and files named per finding in the description
MAX_LINES, BAR_LENGTH, NUM_EXAMPLES = 10, 40, 3

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class FileReport:
    """What an audit knows about a file; blank (`None` or empty) where nothing is known.

    Args:
        file: its name, see `mvd_hf.data.sources.media_name`.
        status: `ok`; `short` (fewer frames than a clip spans); `duplicate` (usable, the same bytes as a file before);
            `no_video` (a media file without a video stream); `unreadable`.
        reason: why it is not `ok`.
        num_frames: frames that the file holds, whatever its header says.
        width, height: pixels of the upright frame.
        fps, duration: average frame rate and seconds of the video, as the container declares them, not verified. A
            duration that may be that of the sound is left blank.
        codec: of the video, or the format of the image.
        bytes, digest: size and BLAKE2b digest (16 bytes, as hexadecimal digits) of the content.
        label: its label as text; the name of the class where the data set knows it.
        same_as: the first file with the same bytes, of a `duplicate`.
        overlap: file of the other data set with the same bytes.
        declared_frames: number of frames that the container declares.
        decoded_frames: frames that were decoded to check them.
        backend: what decoded them: `pyav`, or `pillow` for images.
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
    digest: str = ""
    label: str = ""
    same_as: str = ""
    overlap: str = ""
    declared_frames: int | None = None
    decoded_frames: int | None = None
    backend: str = ""


COLUMNS = [field.name for field in dataclasses.fields(FileReport)]
INTEGERS = ("num_frames", "width", "height", "bytes", "declared_frames", "decoded_frames")
FLOATS = ("fps", "duration")


@dataclass
class AuditSettings:
    """What is checked and by how many processes, as a recipe's keys.

    Args:
        num_frames, stride: of a clip; a video with fewer than `num_frames * stride` frames is `short`.
        thorough: decode every frame, instead of the first, the last and three between them.
        workers: processes, each with one file at a time. Where processes are not forked (macOS, Windows) a script
            needs the guard `if __name__ == "__main__"`.
        time_limit: seconds after which a file is given up as unreadable and its process is ended.
    """

    num_frames: int = 16
    stride: int = 4
    thorough: bool = False
    workers: int = 2
    time_limit: float = 60.0

    def __post_init__(self):
        for name in ("num_frames", "stride", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.time_limit <= 0:
            raise ValueError(f"time_limit={self.time_limit} must be more than 0 seconds.")


# one file


def has_content(item: dict | str | bytes | None) -> bool:
    """Whether a row has a file at all."""
    return bool(item["path"] or item["bytes"] is not None) if isinstance(item, dict) else item is not None


def with_content(item: dict | str | bytes) -> dict | str | bytes:
    """A row's file, fetched if it is a URL, so that it is fetched once."""
    path = item["path"] if isinstance(item, dict) and item["bytes"] is None else item
    return {"path": path, "bytes": fetch(path)} if isinstance(path, str) and "://" in path else item


def source_of(item: dict | str | bytes) -> str | bytes:
    """Bytes of a row's file, or its path."""
    if isinstance(item, dict):
        return item["path"] if item["bytes"] is None else item["bytes"]
    return item


def size_of(source: str | bytes) -> int | None:
    """Number of bytes of a file; `None` of a URL, or if there is no such file."""
    if isinstance(source, bytes):
        return len(source)
    with suppress(OSError):
        return os.path.getsize(source)
    return None


def new_digest():
    """An empty BLAKE2b digest of the length that `media_name` has."""
    return hashlib.blake2b(digest_size=16)


def size_and_digest(source: str | bytes) -> tuple[int, str]:
    """Number of bytes and digest of a file; raises VideoReadError if it cannot be read."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            digest = hashlib.file_digest(file, new_digest).hexdigest()
            return file.seek(0, io.SEEK_END), digest
    except FileNotFoundError as error:
        raise VideoReadError(source, "no such file") from error
    except OSError as error:
        raise VideoReadError(source, f"cannot be read ({error})") from error


def digest_item(item: dict | str | bytes) -> str:
    """Digest of a row's file; empty if it cannot be read."""
    try:
        return size_and_digest(source_of(with_content(item)))[1]
    except VideoReadError:
        return ""


def container_facts(source: str | bytes) -> dict:
    """What the container of a video declares, as fields of a `FileReport`; nothing if it cannot be opened.

    The status `no_video` stands for a container without a video stream; cover pictures do not count.
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


@dataclass
class FileInspector:
    """Reads a row's file and reports on it.

    Args:
        is_image: whether rows hold images, not videos.
        thorough: as in [`AuditSettings`].
    """

    is_image: bool = False
    thorough: bool = False

    @property
    def decoder(self) -> str:
        """What decodes the files, as in a `FileReport`."""
        return "pillow" if self.is_image else "pyav"

    def __call__(self, item: dict | str | bytes) -> FileReport:
        """Report on a file: `ok`, `no_video` or `unreadable`.

        Raises:
            ImportError: if PyAV is missing.
        """
        report = FileReport(media_name(item), backend=self.decoder)
        try:
            self._inspect(with_content(item), report)
        except VideoReadError as error:
            report.reason = error.reason or str(error)
        except ImportError:
            raise
        except Exception as error:  # whatever else a library stumbles over in a file, it is this file's fault
            report.reason = f"{type(error).__name__}: {error}"
        return report

    def _inspect(self, item: dict | str | bytes, report: FileReport):
        """Fill in the report, field by field, as far as the file can be read."""
        source = source_of(item)
        report.bytes, report.digest = size_and_digest(source)
        for name, value in (image_facts if self.is_image else container_facts)(source).items():
            setattr(report, name, value)
        with open_media(item, self.is_image) as reader:
            report.num_frames = len(reader)
            last = report.num_frames - 1
            probes = range(last + 1) if self.thorough else np.unique(np.linspace(0, last, NUM_PROBES).round())
            frames = reader.decode(probes)
            frames.rgb((0, 0, 1, 1))  # a pixel of each says whether its colours can be converted
            report.height, report.width = frames.size
            report.decoded_frames, report.status = len(probes), "ok"


# the manifest


def write_rows(path: str | Path, rows: Iterable[dict], columns: Sequence[str]):
    """Write a CSV file, all of it or nothing."""
    unfinished = Path(f"{path}.new")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    with open(unfinished, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(unfinished, path)


def read_reports(path: str | Path) -> list[FileReport]:
    """Reports from a manifest or what an interrupted audit left of one, as far as they depend on the file alone.

    Raises:
        ValueError: if the file is something else.
    """
    try:
        content = Path(path).read_bytes()
        text = content[: content.rfind(b"\n") + 1].decode()  # the last line may have been cut off
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The manifest {str(path)!r} cannot be read: {error}") from error
    table = csv.DictReader(io.StringIO(text, newline=""))
    if not set(COLUMNS) <= set(table.fieldnames or ()):
        raise ValueError(f"{str(path)!r} is not a manifest of recipes/audit.py: write the manifest to another file.")
    reports = []
    for row in table:
        values = {name: row[name] for name in COLUMNS}
        if None in values.values():
            continue
        values |= {name: int(values[name]) if values[name] else None for name in INTEGERS}
        values |= {name: float(values[name]) if values[name] else None for name in FLOATS}
        if values["status"] in USABLE:
            values |= {"status": "ok", "reason": ""}
        reports.append(FileReport(**{**values, "same_as": "", "overlap": ""}))
    return reports


class Journal:
    """Reports of earlier audits, and the file `<output>.partial` to which new ones are added as they come.

    Args:
        output: the manifest that is to be written; `None` for nothing to read and nothing to write.

    Raises:
        ValueError: if either file exists and is no manifest.
    """

    def __init__(self, output: str | Path | None):
        self.known: dict[str, FileReport] = {}
        self.file = None
        if output is None:
            return
        path = Path(f"{output}.partial")
        # of a finished audit, what could not be read is read again: it may have been repaired
        finished = read_reports(output) if os.path.exists(output) else []
        interrupted = read_reports(path) if path.exists() else []
        self.known |= {report.file: report for report in finished if report.status != "unreadable"}
        self.known |= {report.file: report for report in interrupted}
        write_rows(path, map(dataclasses.asdict, self.known.values()), COLUMNS)
        self.file = open(path, "a", newline="", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception):
        if self.file is not None:
            self.file.close()

    def find(self, item: dict | str | bytes, inspector: FileInspector) -> FileReport | None:
        """An earlier report on a file, if it still holds: by the digest of bytes, by the size of a local file."""
        known = self.known.get(media_name(item))
        if known is None or known.backend != inspector.decoder:
            return None
        if inspector.thorough and known.status == "ok" and known.decoded_frames != known.num_frames:
            return None
        source = source_of(item)
        if isinstance(source, bytes):  # names of bytes may repeat; what crashed its process has no digest
            is_same = known.digest in ("", size_and_digest(source)[1]) and known.bytes == len(source)
        else:
            is_same = "://" in source or known.bytes == size_of(source)
        return dataclasses.replace(known) if is_same else None

    def add(self, report: FileReport):
        """Write a report down at once."""
        if self.file is not None:
            csv.DictWriter(self.file, COLUMNS, lineterminator="\n").writerow(dataclasses.asdict(report))
            self.file.flush()


def check_drop(drop: Sequence[str]):
    """Raise ValueError if a manifest is to leave out what there is not."""
    for name in drop:
        if name not in DROPPABLE:
            raise ValueError(f"There is no {name!r} to drop; choose among {', '.join(DROPPABLE)}.")


def write_manifest(path: str | Path, reports: Sequence[FileReport], drop: Sequence[str] = DROP) -> int:
    """Write reports as a CSV file with the columns `file`, `use` and the other fields of [`FileReport`].

    `mvd_hf.data.sources.read_manifest` reads it. A name that several rows have is used if none of them is to be
    left out.
    Removes `<path>.partial`.

    Args:
        path: the file; it is written as a whole or not at all.
        reports: from [`audit_videos`].
        drop: statuses of files not to use; `overlap` leaves out those that are in the other data set, too.

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
    write_rows(path, rows, ["file", "use", *COLUMNS[1:]])
    Path(f"{path}.partial").unlink(missing_ok=True)
    return sum(row["use"] == "yes" for row in rows)


# the data set


def label_reader(rows: Rows, column: str | None) -> Callable[[dict], str]:
    """Gives the label of a row as text; of the column `label` by default, empty if there is none."""
    if column is None:
        if "label" not in column_names(rows):
            return lambda row: ""
        column = "label"
    feature = (rows.features or {}).get(column)

    def read(row: dict) -> str:
        label = field_of(row, column)
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
        output: manifest that is to be written. New reports are added to `<output>.partial` as they come; files that
            it knows from an interrupted audit are not read again (bytes with the same digest, local files of the same
            size, any URL). Of an earlier manifest `output` all files that could be read are taken over, too.

    Raises:
        ValueError: if there is no row, no column of videos or images, no such label column, or `output` is a file
            of another kind.
        ImportError: if PyAV is missing.
    """
    settings = settings or AuditSettings()
    column, label_of = media_column(rows), label_reader(rows, label_column)
    inspector = FileInspector(holds_images(rows, column), settings.thorough)
    total = num_videos(rows, str(rows.split))
    reports: list[FileReport] = []

    def jobs() -> Iterator[tuple[int, dict | str | bytes]]:
        """Files that must be read. Every row's report is entered here, with what the main process knows."""
        for row in rows:
            item, report = row[column], None
            if not has_content(item):
                report = FileReport(f"row {len(reports)}", reason="the row has neither a path nor bytes")
            else:
                report = journal.find(item, inspector)
            is_new = report is None
            if is_new:
                report = FileReport(media_name(item), bytes=size_of(source_of(item)), backend=inspector.decoder)
            report.label = label_of(row)
            reports.append(report)
            if is_new:
                yield len(reports) - 1, item
            else:
                bar.update()

    with Journal(output) as journal, tqdm(total=total, desc="audit", unit=" files") as bar:
        for index, result, reason in run_guarded(inspector, jobs(), settings.workers, settings.time_limit):
            if result is None:
                reports[index].reason = reason
            else:
                reports[index] = dataclasses.replace(result, label=reports[index].label)
            journal.add(reports[index])
            bar.update()
    if not reports:
        raise ValueError("The data set is empty: it names no video.")
    mark_short(reports, settings.num_frames * settings.stride)
    mark_duplicates(reports)
    return reports


def mark_short(reports: Sequence[FileReport], span: int):
    """Give readable videos of fewer than `span` frames the status `short`."""
    for report in reports:
        if report.status == "ok" and report.backend != "pillow" and report.num_frames < span:
            report.status = "short"
            report.reason = f"{report.num_frames} frames, a clip spans {span}: frames repeat"


def mark_duplicates(reports: Sequence[FileReport]):
    """Give readable files the status `duplicate` where another name came first with the same bytes."""
    first: dict[str, FileReport] = {}
    for report in reports:
        if report.status not in USABLE:
            continue
        original = first.setdefault(report.digest, report)
        if original.file != report.file:
            report.status, report.same_as = "duplicate", original.file
            report.reason = f"same bytes as {original.file}"
            if original.label != report.label:
                report.reason += f", with label {report.label!r} instead of {original.label!r}"


def find_overlap(reports: Sequence[FileReport], against: Rows, settings: AuditSettings | None = None):
    """Enter in the reports which readable files are, byte for byte, in another data set, such as the one to test on.

    Args:
        reports: from [`audit_videos`]; their `overlap` is set.
        against: rows of the other data set, see `mvd_hf.data.sources.load_rows`.
        settings: number of workers and time limit.
    """
    settings = settings or AuditSettings()
    column = media_column(against)
    names: list[str] = []

    def jobs() -> Iterator[tuple[int, dict | str | bytes]]:
        for row in against:
            if has_content(row[column]):
                names.append(media_name(row[column]))
                yield len(names) - 1, row[column]

    digests: dict[int, str] = {}
    results = run_guarded(digest_item, jobs(), settings.workers, settings.time_limit)
    total = num_videos(against, str(against.split))
    for index, digest, _ in tqdm(results, total=total, desc="other data set", unit=" files"):
        if digest:
            digests[index] = digest
    if len(digests) < len(names):
        unread = [name for index, name in enumerate(names) if index not in digests]
        logger.warning("Files of the other data set that cannot be read: %s", some_of(unread))
    name_of = {digests[index]: names[index] for index in sorted(digests, reverse=True)}  # the first of equal ones
    for report in reports:
        report.overlap = name_of.get(report.digest, "") if report.status in USABLE else ""


# the description


def some_of(names: Sequence[str]) -> str:
    """How many there are, and the first few."""
    more = ", ..." if len(names) > NUM_EXAMPLES else ""
    return f"{len(names)} ({', '.join(names[:NUM_EXAMPLES])}{more})" if names else "0"


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
    """Lines of a histogram with bins from one power of two to the next; values that are not known have a line."""
    values = list(values)
    powers = Counter(math.floor(math.log2(value)) for value in values if value)
    bins = range(min(powers), max(powers) + 1) if powers else ()
    counts = [(f"{2.0**power:g} to {2.0 ** (power + 1):g}", powers[power]) for power in bins]
    unknown = len(values) - powers.total()
    return bars(title, counts + ([("unknown", unknown)] if unknown else []))


def findings(reports: Sequence[FileReport]) -> list[str]:
    """Lines on what is not wrong with a single file: labels that disagree, names that repeat, headers, overlap."""
    usable = [report for report in reports if report.status in USABLE]
    labels: dict[str, set[str]] = {}
    digests: dict[str, set[str]] = {}
    for report in usable:
        labels.setdefault(report.digest, set()).add(report.label)
    for report in reports:
        if report.digest:
            digests.setdefault(report.file, set()).add(report.digest)
    names = Counter(report.file for report in reports)
    found = {
        "same content, different labels": [report.file for report in usable if len(labels[report.digest]) > 1],
        "names in several rows": [name for name, count in names.items() if count > 1],
        "one name, different contents (the manifest uses all of them or none)": [
            name for name, contents in digests.items() if len(contents) > 1
        ],
        "fewer frames than the container declares (cut short, or hidden by an edit list)": [
            report.file for report in usable if report.num_frames < (report.declared_frames or 0)
        ],
        "also in the other data set": [report.file for report in usable if report.overlap],
    }
    return [f"{finding}: {some_of(files)}" for finding, files in found.items() if files]


def describe(reports: Sequence[FileReport]) -> str:
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
    if any(report.backend != "pillow" for report in usable):
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
