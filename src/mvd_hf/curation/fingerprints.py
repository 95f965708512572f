"""What a video shows, in kilobytes: small grey pictures of frames, kept in a file so that each video is read once.

A signature is made to be compared (`near_duplicates`): its pictures hardly change when a video is encoded
again, resized or given other frame times, and they are close enough in time to follow what moves.

Letters in shapes: T frames of a signature.
"""

import base64
import binascii
import csv
import dataclasses
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.decoding import open_media
from ..data.sources import Rows, holds_images, media_column, media_name, num_videos
from ..model.video_reading import VideoReadError
from .audit import (
    container_facts,
    has_content,
    size_and_digest,
    size_of,
    source_of,
    with_content,
    write_rows,
)
from .workers import run_guarded

# rows and columns of a picture
PICTURE_SIZE = 12
# pictures per second, and the frame rate of videos that do not say theirs
PICTURES_PER_SECOND, USUAL_RATE = 7, 28
# fewest pictures of a signature, if the video has so many frames, and most: more do not fit in a line of the file
MIN_PICTURES, MAX_PICTURES = 16, 320
# standard deviation, in grey levels of 255, below which a picture shows nothing to compare: black, fog, a plain colour
FLAT_CONTRAST = 3.0
# of the pictures of a video, so many must show something
MIN_SHOWN = 0.2
# grey levels are kept in fractions of 1 / 257, as 16 bits: what moves may change the mean of a cell by less than one
GREY_STEPS = 257
# frames of one call to the reader, in bytes
MAX_READ_BYTES = 256 << 20


@dataclass
class SignatureSettings:
    """How signatures are taken and by how many processes, as a recipe's keys.

    Args:
        max_pictures: frames of a long video; more of them find shorter parts of it.
        workers: processes, each with one file at a time.
        time_limit: seconds after which a file is given up as unreadable and its process is ended.
    """

    max_pictures: int = 64
    workers: int = 2
    time_limit: float = 60.0

    def __post_init__(self):
        if not MIN_PICTURES <= self.max_pictures <= MAX_PICTURES:
            raise ValueError(f"max_pictures={self.max_pictures} must be from {MIN_PICTURES} to {MAX_PICTURES}.")
        if self.workers < 1:
            raise ValueError(f"workers={self.workers} must be at least 1.")
        if self.time_limit <= 0:
            raise ValueError(f"time_limit={self.time_limit} must be more than 0 seconds.")


def picture_positions(num_frames: int, fps: float | None, max_pictures: int) -> np.ndarray:
    """Frame numbers (T,) of a signature: evenly spaced from the first to the last, seven per second if that is enough.

    Args:
        num_frames: frames of the video.
        fps: its frame rate; `None` if it does not say.
        max_pictures: the largest T.
    """
    wanted = round(num_frames / (fps or USUAL_RATE) * PICTURES_PER_SECOND)
    count = min(max(wanted, MIN_PICTURES), max_pictures, num_frames)
    return np.linspace(0, num_frames - 1, count).round().astype(np.int64)


@dataclass(slots=True, eq=False)
class Signature:
    """What a video shows, or why that is not known.

    Args:
        file: its name, see `mvd_hf.data.sources.media_name`.
        reason: why it cannot be read; empty if it can.
        bytes: size of the file; `None` of a URL, or if there is no such file.
        digest: of the content, where the row holds the content instead of a path.
        num_frames: frames of the video, 0 if it cannot be read.
        fps: average frame rate as the container declares it.
        max_pictures: as in [`SignatureSettings`].
        pictures: (T, 12, 12) uint16, grey levels times 257: means over the cells of a grid on the frames of
            `positions`.
    """

    file: str
    reason: str = ""
    bytes: int | None = None
    digest: str = ""
    num_frames: int = 0
    fps: float | None = None
    max_pictures: int = 64
    pictures: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros((0, PICTURE_SIZE, PICTURE_SIZE), dtype=np.uint16)
    )

    @property
    def positions(self) -> np.ndarray:
        """Numbers (T,) of the frames of the pictures."""
        return picture_positions(self.num_frames, self.fps, self.max_pictures) if self.num_frames else np.zeros(0, int)

    @property
    def contrast(self) -> np.ndarray:
        """Standard deviation (T,) of the grey levels (0 to 255) of each picture."""
        return self.pictures.reshape(len(self.pictures), -1).std(axis=1, dtype=np.float64) / GREY_STEPS

    @property
    def is_flat(self) -> bool:
        """Whether the video can be read but shows nothing to compare: nearly all frames are of about one colour."""
        return self.num_frames > 0 and float((self.contrast >= FLAT_CONTRAST).mean()) < MIN_SHOWN


# one file


def small_picture(frame: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) uint8 as (12, 12) uint16: the mean grey level of each cell of a grid, times 257."""
    grey = Image.fromarray(frame).convert("L").convert("F")  # F: Pillow rounds the means of other modes
    cells = grey.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BOX)
    return (np.asarray(cells) * GREY_STEPS).round().astype(np.uint16)


def read_pictures(reader, positions: np.ndarray) -> np.ndarray:
    """Small pictures (T, 12, 12) of frames of an open video, read in parts that fit in memory."""
    first = reader.read(positions[:1])
    pictures = [small_picture(first[0])]
    per_read = max(MAX_READ_BYTES // first.nbytes, 1)
    for start in range(1, len(positions), per_read):
        pictures += [small_picture(frame) for frame in reader.read(positions[start : start + per_read])]
    return np.stack(pictures)


@dataclass
class SignatureReader:
    """Reads a row's file and gives its signature.

    Args:
        settings: how.
        is_image: whether rows hold images, not videos.
    """

    settings: SignatureSettings
    is_image: bool = False

    def blank(self, item: dict | str | bytes) -> Signature:
        """What is known of a file before it is read."""
        source = source_of(item)
        digest = size_and_digest(source)[1] if isinstance(source, bytes) else ""
        return Signature(media_name(item), "", size_of(source), digest, max_pictures=self.settings.max_pictures)

    def __call__(self, item: dict | str | bytes) -> Signature:
        """The signature of a file; one without pictures, with the reason, if it cannot be read.

        Raises:
            ImportError: if PyAV is missing.
        """
        signature = self.blank(item)
        try:
            item = with_content(item)
            with open_media(item, self.is_image) as reader:
                fps = None if self.is_image else container_facts(source_of(item)).get("fps")
                positions = picture_positions(len(reader), fps, self.settings.max_pictures)
                pictures = read_pictures(reader, positions)
                return dataclasses.replace(signature, num_frames=len(reader), fps=fps, pictures=pictures)
        except VideoReadError as error:
            reason = error.reason or str(error)
        except ImportError:
            raise
        except Exception as error:  # whatever else a library stumbles over in a file, it is this file's fault
            reason = f"{type(error).__name__}: {error}"
        return dataclasses.replace(signature, reason=reason)


# the file of signatures

# what cannot be read is not kept, so that it is tried again
COLUMNS = [field.name for field in dataclasses.fields(Signature) if field.name != "reason"]


def pack(pictures: np.ndarray) -> str:
    """Pictures (T, 12, 12) as text: differences from picture to picture, compressed."""
    steps = np.diff(pictures, axis=0, prepend=np.zeros_like(pictures[:1]))  # modulo 2 ** 16
    return base64.b64encode(zlib.compress(steps.astype("<u2").tobytes())).decode()


def unpack(text: str) -> np.ndarray:
    """Pictures (T, 12, 12) from the text that [`pack`] made.

    Raises:
        ValueError: if it is something else.
    """
    try:
        steps = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<u2")
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"not the pictures of a signature: {error}") from error
    return np.cumsum(steps.reshape(-1, PICTURE_SIZE, PICTURE_SIZE), axis=0, dtype=np.uint16)


def as_row(signature: Signature) -> dict[str, str | int | float | None]:
    """A signature as a row of the file."""
    return {**{name: getattr(signature, name) for name in COLUMNS}, "pictures": pack(signature.pictures)}


def from_row(row: dict[str, str]) -> Signature:
    """A signature from a row of the file.

    Raises:
        ValueError: if a cell is not what [`as_row`] writes.
    """
    signature = Signature(
        row["file"],
        bytes=int(row["bytes"]) if row["bytes"] else None,
        digest=row["digest"],
        num_frames=int(row["num_frames"]),
        fps=float(row["fps"]) if row["fps"] else None,
        max_pictures=int(row["max_pictures"]),
        pictures=unpack(row["pictures"]),
    )
    if len(signature.pictures) != len(signature.positions):
        raise ValueError(f"{len(signature.pictures)} pictures instead of {len(signature.positions)}")
    return signature


def load_signatures(path: str | Path) -> list[Signature]:
    """Signatures from a file, whole or what an interrupted run left of it.

    Raises:
        ValueError: naming the file, and the line, if it is something else.
    """
    try:
        content = Path(path).read_bytes()
        text = content[: content.rfind(b"\n") + 1].decode()  # the last line may have been cut off
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The signatures {str(path)!r} cannot be read: {error}") from error
    table = csv.DictReader(io.StringIO(text, newline=""))
    if table.fieldnames != COLUMNS:
        raise ValueError(f"{str(path)!r} is not a file of signatures: keep them in another file.")
    signatures = []
    for row in table:
        try:
            signatures.append(from_row(row))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"Line {table.line_num} of the signatures {str(path)!r} is damaged ({error}): delete the file, "
                "and it is made again."
            ) from error
    return signatures


class SignatureCache:
    """Signatures of earlier runs, and the file `<path>.partial` to which new ones are added as they come.

    Args:
        path: the file of signatures; `None` for nothing to read and nothing to write.

    Raises:
        ValueError: if either file exists and is something else.
    """

    def __init__(self, path: str | Path | None):
        self.path, self.file = path, None
        self.known: dict[str, Signature] = {}
        if path is None:
            return
        if self.partial.exists():
            kept = load_signatures(self.partial)
        else:
            kept = load_signatures(path) if os.path.exists(path) else []
        self.known = {signature.file: signature for signature in kept}
        write_rows(self.partial, map(as_row, self.known.values()), COLUMNS)
        self.file = open(self.partial, "a", newline="", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    @property
    def partial(self) -> Path:
        """Where signatures are added; it begins as a copy of the file."""
        return Path(f"{self.path}.partial")

    def __enter__(self) -> "SignatureCache":
        return self

    def __exit__(self, kind, *exception):
        if self.file is not None:
            self.file.close()
            if kind is None:
                os.replace(self.partial, self.path)

    def find(self, blank: Signature) -> Signature | None:
        """An earlier signature of a file, if that has the same size (and, in memory, content) and it was taken so."""
        known = self.known.get(blank.file)
        if known is None:
            return None
        is_same = (known.bytes, known.digest) == (blank.bytes, blank.digest)
        return known if is_same and known.max_pictures == blank.max_pictures else None

    def add(self, signature: Signature):
        """Write a readable video's signature down at once."""
        if self.file is not None and not signature.reason:
            csv.DictWriter(self.file, COLUMNS, lineterminator="\n").writerow(as_row(signature))
            self.file.flush()


# the data set


def read_signatures(
    rows: Rows, settings: SignatureSettings | None = None, cache: str | Path | None = None
) -> list[Signature]:
    """The signature of each row of a data set, in its order. What cannot be read is there with the reason.

    Args:
        rows: videos or images, see `mvd_hf.data.sources.load_rows`.
        settings: how signatures are taken and by how many processes.
        cache: CSV file of signatures. Those that it or an interrupted run left in `<cache>.partial` are not taken
            again, if the file has the same size; several data sets may share it.

    Raises:
        ValueError: if there is no row, no column of videos or images, or `cache` is a file of another kind.
        ImportError: if PyAV is missing.
    """
    settings = settings or SignatureSettings()
    column = media_column(rows)
    reader = SignatureReader(settings, holds_images(rows, column))
    signatures: list[Signature] = []

    def jobs() -> Iterator[tuple[int, dict | str | bytes]]:
        """Files that must be read; every row's signature is entered here, as far as it is known."""
        for row in rows:
            item, known = row[column], None
            if has_content(item):
                blank = reader.blank(item)
                known = cached.find(blank)
            else:
                known = blank = Signature(f"row {len(signatures)}", "the row has neither a path nor bytes")
            signatures.append(known or blank)
            if known is None:
                yield len(signatures) - 1, item
            else:
                bar.update()

    total = num_videos(rows, str(rows.split))
    with SignatureCache(cache) as cached, tqdm(total=total, desc="signatures", unit=" files") as bar:
        for index, result, reason in run_guarded(reader, jobs(), settings.workers, settings.time_limit):
            signatures[index] = result or dataclasses.replace(signatures[index], reason=reason)
            cached.add(signatures[index])
            bar.update()
    if not signatures:
        raise ValueError("The data set is empty: it names no video.")
    return signatures


def unreadable(signatures: Sequence[Signature]) -> dict[str, str]:
    """Name and reason of each file that could not be read."""
    return {signature.file: signature.reason for signature in signatures if signature.reason}


def flat(signatures: Sequence[Signature]) -> list[str]:
    """Names of videos that show nothing to compare."""
    return [signature.file for signature in signatures if signature.is_flat]
