"""Fingerprints of videos: a few kilobytes of small grayscale thumbnails, stored so that each video is read once.

Fingerprints are made to be compared (`near_duplicates`): thumbnails hardly change when a video is encoded again,
resized or given another frame rate, and they are dense enough in time to follow motion.

Letters in shapes: T thumbnails of a fingerprint.
"""

import base64
import binascii
import dataclasses
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.decoding import open_media
from ..data.sources import Rows, holds_images, media_column, num_videos
from .audit import container_facts, describe_error, known_unread, source_of, with_content
from .workers import Journal, read_files

# rows and columns of a thumbnail
THUMBNAIL_SIZE = 12
# thumbnails per second, and the frame rate of videos that do not declare theirs
THUMBNAILS_PER_SECOND, USUAL_RATE = 7, 28
# fewest thumbnails, if the video has so many frames, and most: more do not fit in a line of the file
MIN_THUMBNAILS, MAX_THUMBNAILS = 16, 320
# standard deviation, in gray levels of 255, below which a thumbnail shows nothing to compare: black, fog, one color
FLAT_CONTRAST = 3.0
# the fraction of a video's thumbnails that must show something
MIN_SHOWN = 0.2
# gray levels are stored in fractions of 1 / 257, as 16 bits: motion may change the mean of a cell by less than one
GRAY_STEPS = 257
# frames of one call to the reader, in bytes
MAX_READ_BYTES = 256 << 20


@dataclass
class FingerprintSettings:
    """How fingerprints are taken and by how many processes.

    Args:
        max_thumbnails: of a long video; more of them find shorter parts of it.
        workers: processes, each with one file at a time.
        time_limit: seconds after which a file counts as unreadable and its process is ended.
    """

    max_thumbnails: int = 64
    workers: int = 2
    time_limit: float = 60.0

    def __post_init__(self):
        if not MIN_THUMBNAILS <= self.max_thumbnails <= MAX_THUMBNAILS:
            raise ValueError(
                f"max_thumbnails={self.max_thumbnails} must be from {MIN_THUMBNAILS} to {MAX_THUMBNAILS}."
            )
        if self.workers < 1:
            raise ValueError(f"workers={self.workers} must be at least 1.")
        if self.time_limit <= 0:
            raise ValueError(f"time_limit={self.time_limit} must be more than 0 seconds.")


def thumbnail_positions(num_frames: int, fps: float | None, max_thumbnails: int) -> np.ndarray:
    """Frame numbers (T,) of thumbnails: evenly spaced from first to last, about seven per second if they fit."""
    wanted = round(num_frames / (fps or USUAL_RATE) * THUMBNAILS_PER_SECOND)
    count = min(max(wanted, MIN_THUMBNAILS), max_thumbnails, num_frames)
    return np.linspace(0, num_frames - 1, count).round().astype(np.int64)


@dataclass(slots=True, eq=False)
class VideoFingerprint:
    """Thumbnails of a video, or the reason why there are none.

    Args:
        file: its name, see `mvd_hf.data.sources.media_name`.
        reason: why it cannot be read; empty if it can.
        bytes, hash: size of the file, and hash of the content where the row holds it instead of a path.
        num_frames: frames of the video, 0 if it cannot be read.
        fps: average frame rate as the container declares it.
        max_thumbnails: as in [`FingerprintSettings`].
        thumbnails: (T, 12, 12) uint16, mean gray levels times 257 of the cells of a grid.
    """

    file: str
    reason: str = ""
    bytes: int | None = None
    hash: str = ""
    num_frames: int = 0
    fps: float | None = None
    max_thumbnails: int = 64
    thumbnails: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros((0, THUMBNAIL_SIZE, THUMBNAIL_SIZE), dtype=np.uint16)
    )

    @property
    def is_readable(self) -> bool:
        return not self.reason

    @property
    def positions(self) -> np.ndarray:
        """Frame numbers (T,) of the thumbnails."""
        if not self.num_frames:
            return np.zeros(0, dtype=np.int64)
        return thumbnail_positions(self.num_frames, self.fps, self.max_thumbnails)

    @property
    def contrast(self) -> np.ndarray:
        """Standard deviation (T,) of the gray levels (0 to 255) of each thumbnail."""
        return self.thumbnails.reshape(len(self.thumbnails), -1).std(axis=1, dtype=np.float64) / GRAY_STEPS

    @property
    def is_flat(self) -> bool:
        """Whether the video can be read but shows nothing to compare: nearly all frames are of about one color."""
        return self.num_frames > 0 and float((self.contrast >= FLAT_CONTRAST).mean()) < MIN_SHOWN


# one file


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) uint8 as (12, 12) uint16: the mean gray level of each cell of a grid, times 257."""
    gray = Image.fromarray(frame).convert("L").convert("F")  # F: Pillow rounds the means of other modes
    cells = gray.resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BOX)
    return (np.asarray(cells) * GRAY_STEPS).round().astype(np.uint16)


def read_thumbnails(reader, positions: np.ndarray) -> np.ndarray:
    """Thumbnails (T, 12, 12) of frames of an open video, read in parts that fit in memory."""
    first = reader.read(positions[:1])
    thumbnails = [thumbnail(first[0])]
    per_read = max(MAX_READ_BYTES // first.nbytes, 1)
    for start in range(1, len(positions), per_read):
        thumbnails += [thumbnail(frame) for frame in reader.read(positions[start : start + per_read])]
    return np.stack(thumbnails)


@dataclass
class FingerprintReader:
    """Reads a row's file and takes its fingerprint."""

    max_thumbnails: int
    is_image: bool = False

    result_type = VideoFingerprint

    def blank(self, item: dict | str | bytes) -> VideoFingerprint:
        """What is known before the file is read."""
        name, size, content_hash = known_unread(item)
        return VideoFingerprint(name, bytes=size, hash=content_hash, max_thumbnails=self.max_thumbnails)

    def is_current(self, fingerprint: VideoFingerprint) -> bool:
        """Whether an earlier fingerprint was taken with the same settings."""
        return fingerprint.max_thumbnails == self.max_thumbnails

    def __call__(self, item: dict | str | bytes) -> VideoFingerprint:
        """The fingerprint of a file; one without thumbnails, with the reason, if it cannot be read."""
        fingerprint = self.blank(item)
        try:
            item = with_content(item)
            with open_media(item, self.is_image) as reader:
                fps = None if self.is_image else container_facts(source_of(item)).get("fps")
                positions = thumbnail_positions(len(reader), fps, self.max_thumbnails)
                thumbnails = read_thumbnails(reader, positions)
                return dataclasses.replace(fingerprint, num_frames=len(reader), fps=fps, thumbnails=thumbnails)
        except Exception as error:
            return dataclasses.replace(fingerprint, reason=describe_error(error))


# the file of fingerprints

COLUMNS = [field.name for field in dataclasses.fields(VideoFingerprint)]


def pack(thumbnails: np.ndarray) -> str:
    """Thumbnails (T, 12, 12) as text: differences from each to the next, compressed."""
    steps = np.diff(thumbnails, axis=0, prepend=np.zeros_like(thumbnails[:1]))  # modulo 2 ** 16
    return base64.b64encode(zlib.compress(steps.astype("<u2").tobytes())).decode()


def unpack(text: str) -> np.ndarray:
    """Thumbnails (T, 12, 12) from the text that [`pack`] made; raises ValueError if it is something else."""
    try:
        steps = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<u2")
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"not thumbnails: {error}") from error
    return np.cumsum(steps.reshape(-1, THUMBNAIL_SIZE, THUMBNAIL_SIZE), axis=0, dtype=np.uint16)


def row_of(fingerprint: VideoFingerprint) -> dict[str, str | int | float | None]:
    """A fingerprint as a row of the file."""
    return {name: getattr(fingerprint, name) for name in COLUMNS} | {"thumbnails": pack(fingerprint.thumbnails)}


def fingerprint_of_row(row: dict[str, str]) -> VideoFingerprint:
    """A fingerprint from a row of the file; raises ValueError if a cell is damaged."""
    numbers = {
        "bytes": int(row["bytes"]) if row["bytes"] else None,
        "num_frames": int(row["num_frames"]),
        "fps": float(row["fps"]) if row["fps"] else None,
        "max_thumbnails": int(row["max_thumbnails"]),
    }
    fingerprint = VideoFingerprint(**{**row, **numbers, "thumbnails": unpack(row["thumbnails"])})
    if len(fingerprint.thumbnails) != len(fingerprint.positions):
        raise ValueError(f"{len(fingerprint.thumbnails)} thumbnails instead of {len(fingerprint.positions)}")
    return fingerprint


# the data set


def read_fingerprints(
    rows: Rows, settings: FingerprintSettings | None = None, cache: str | Path | None = None
) -> list[VideoFingerprint]:
    """The fingerprint of each row of a data set, in its order. Unreadable files have a reason instead of thumbnails.

    Args:
        rows: videos or images, see `mvd_hf.data.sources.load_rows`.
        settings: how fingerprints are taken and by how many processes.
        cache: CSV file of fingerprints, which several data sets may share. Files that it has with the same size are
            not read again, nor those of an interrupted run (`<cache>.partial`).

    Raises:
        ValueError: if there is no row, no column of videos or images, or `cache` is a file of another kind.
    """
    settings = settings or FingerprintSettings()
    column = media_column(rows)
    reader = FingerprintReader(settings.max_thumbnails, holds_images(rows, column))
    journal = Journal(cache, COLUMNS, row_of, fingerprint_of_row)
    items, total = (row[column] for row in rows), num_videos(rows, str(rows.split))
    fingerprints = read_files(items, reader, journal, settings, total, "fingerprints")
    if cache is not None:
        os.replace(f"{cache}.partial", cache)
    return fingerprints


def unreadable(fingerprints: Sequence[VideoFingerprint]) -> dict[str, str]:
    """Name and reason of each file that could not be read."""
    return {fingerprint.file: fingerprint.reason for fingerprint in fingerprints if fingerprint.reason}


def flat(fingerprints: Sequence[VideoFingerprint]) -> list[str]:
    """Names of videos that show nothing to compare."""
    return [fingerprint.file for fingerprint in fingerprints if fingerprint.is_flat]
