"""Writes a video again so that clips of it load fast: small, with many key frames, every frame and its time kept."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..model.frame_sampling import check_fps, resampled_frames
from ..model.video_file import orientation
from ..model.video_reading import VideoReader, VideoReadError
from ..model.video_streaming import SequentialReader
from .decoding import Item, open_media

TIME_BASE = Fraction(1, 90_000)
# options of encoders in order of preference; quick decoding is worth more than small files
ENCODERS = {
    "libx264": {"preset": "veryfast", "tune": "fastdecode", "bf": "3"},
    "libopenh264": {},
    "mpeg4": {"bf": "0"},
}
# frames that are compared with the source
NUM_COMPARED = 8
# constant rate factors of H.264 and quantisers of MPEG-4, tried until the quality suffices
QUALITIES = {"libx264": (20, 12, 4), "libopenh264": (20, 12, 4), "mpeg4": (3, 2, 1)}


@dataclass
class TranscodeSettings:
    """How videos are written.

    Args:
        short_side: pixels of the short side; smaller videos keep their size.
        key_frame_every: distance of key frames.
        fps: frames per second of the result; by default every frame is kept, with its time.
        min_psnr: least peak signal-to-noise ratio of the brightness of a frame to the source at the new size, in dB.
            A file that misses it is encoded again at higher quality, and at last refused.
    """

    short_side: int = 256
    key_frame_every: int = 12
    fps: float | None = None
    min_psnr: float = 30.0

    def __post_init__(self):
        if self.short_side < 16 or self.key_frame_every < 1:
            raise ValueError(
                f"short_side={self.short_side} must be at least 16, key_frame_every={self.key_frame_every} at least 1."
            )
        if not 0 <= self.min_psnr < 60:
            raise ValueError(f"min_psnr={self.min_psnr} must be from 0 to 60 dB.")
        if self.fps is not None:
            check_fps(self.fps)


@dataclass
class TranscodedFile:
    """What was written: number of frames, seconds from the first to the last one, bytes, and the least PSNR in dB."""

    frames: int
    seconds: float
    bytes: int
    psnr: float


def encoder_name() -> str:
    """The best encoder of this build of PyAV; raises ImportError if it has none."""
    for name in ENCODERS:
        try:
            av.Codec(name, "w")
        except ValueError:  # PyAV's error for an unknown codec
            continue
        return name
    raise ImportError(f"This build of PyAV has no encoder of {', '.join(ENCODERS)}: pip install --upgrade av.")


def target_size(width: int, height: int, pixel_aspect: Fraction | None, short_side: int) -> tuple[int, int]:
    """(width, height) of the result: even, with square pixels, not larger than the source with square pixels."""
    aspect = float(pixel_aspect or 1)
    aspect = aspect if 1 / 8 <= aspect <= 8 else 1.0
    square = (width * max(aspect, 1), height * max(1 / aspect, 1))
    scale = min(short_side / min(square), 1)
    return tuple(max(2 * round(side * scale / 2), 2) for side in square)


def choose_frames(
    reader: VideoReader, fps: float | None, segment: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the frames of the result, in order, and their times (seconds from the first one)."""
    times = reader.times() if fps is None and segment is None else reader.stored_times()
    numbers = np.arange(len(times))
    if segment is not None:
        numbers = np.flatnonzero((times >= segment[0] - 1e-6) & (times < segment[1] - 1e-6))
        if len(numbers) == 0:
            reason = f"has no frame from {segment[0]:g} to {segment[1]:g} s: it ends at {times[-1]:.2f} s"
            raise VideoReadError(reader.source, reason)
    if fps is not None:
        numbers = numbers[0] + resampled_frames(times[numbers], fps)
        return numbers, np.arange(len(numbers)) / fps
    return numbers, times[numbers] - times[numbers[0]]


def small_frames(reader: SequentialReader, numbers: np.ndarray, short_side: int) -> Iterator[np.ndarray]:
    """The frames of the result, upright (height, width, 3) uint8; memory does not grow with their number."""
    counts = dict(zip(*np.unique(numbers, return_counts=True), strict=True))
    size = turn = None
    for number, frame in reader.between(int(numbers[0]), int(numbers[-1]) + 1):
        if number not in counts:
            continue
        if size is None:
            turn = orientation(frame)
            size = target_size(frame.width, frame.height, reader.pixel_aspect, short_side)
        yield from itertools.repeat(reader.rgb(frame, turn, size), int(counts[number]))


def write_frames(frames: Iterator[np.ndarray], ticks: np.ndarray, path: Path, quality: int, gop: int):
    """Encode frames with their times in ticks of the time base."""
    name = encoder_name()
    options = ENCODERS[name] | {"crf" if name == "libx264" else "qp": str(quality)}
    if name == "libx264":
        options |= {"bf": "0"} if len(ticks) < 3 else {}  # or its header promises what no frame needs
        options |= {"x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:b-adapt=0:b-pyramid=0:open-gop=0"}
    rate = Fraction(len(ticks) * 90_000, max(int(ticks[-1]), 1)).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(name, rate=min(max(rate, Fraction(1)), Fraction(1000)), options=options)
        stream.pix_fmt, stream.gop_size = "yuv420p", gop
        stream.codec_context.thread_count = 1
        stream.time_base = stream.codec_context.time_base = TIME_BASE
        for i, (pixels, tick) in enumerate(zip(frames, ticks, strict=True)):
            if i == 0:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = int(tick), TIME_BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def brightness_psnr(frames: np.ndarray, references: np.ndarray) -> float:
    """Least peak signal-to-noise ratio of the brightness of frames (n, H, W, 3) to others, in dB, at most 99."""
    weights = np.array([0.299, 0.587, 0.114])
    errors = (((frames.astype(np.float64) - references) @ weights) ** 2).mean(axis=(1, 2))
    return float(10 * np.log10(255**2 / max(errors.max(), 1e-5)))


def verify(path: Path, ticks: np.ndarray, references: dict[int, np.ndarray]) -> float:
    """The least PSNR of the compared frames; raises ValueError if a file has other frames or times than it should."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stored = sorted(packet.pts for packet in container.demux(stream) if packet.size)
        unit = float(stream.time_base)
    with VideoReader(path) as reader:
        if not len(stored) == len(reader) == len(ticks):
            raise ValueError(f"{len(reader)} of {len(ticks)} frames were written")
        error = np.abs((np.array(stored) - stored[0]) * unit - ticks / 90_000).max()
        if error > 1e-3:
            raise ValueError(f"times of frames are {error:.4f} s off")
        return brightness_psnr(reader.read(list(references)), np.stack(list(references.values())))


def transcode(
    item: Item,
    path: str | Path,
    settings: TranscodeSettings,
    segment: tuple[float, float] | None = None,
    max_frames: int | None = None,
) -> TranscodedFile:
    """Write a video as an mp4 file that trains fast: see [`TranscodeSettings`].

    The file has H.264 (or the best codec of PyAV's build) in 8-bit 4:2:0, upright frames with square pixels, and no
    sound. It is written beside its place, compared with its source, and then put there at once.

    Args:
        item: path, URL, bytes or `{"path", "bytes"}`.
        path: of the result; its folder is created.
        settings: size, key frames, rate, least quality.
        segment: (start, end) in seconds from the first frame; the end is not included.
        max_frames: write only the first so many.

    Raises:
        VideoReadError: if a frame of the source cannot be decoded, or the result differs from it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open_media(item, reader=SequentialReader) as reader:
            numbers, times = (part[:max_frames] for part in choose_frames(reader, settings.fps, segment))
            ticks = np.round(times * 90_000).astype(np.int64)
            ticks = np.maximum.accumulate(ticks - np.arange(len(ticks))) + np.arange(len(ticks))  # each one later
            compared = set(np.linspace(0, len(ticks) - 1, min(NUM_COMPARED, len(ticks))).round().astype(int).tolist())
            for quality in QUALITIES[encoder_name()]:
                references: dict[int, np.ndarray] = {}

                def frames(references=references) -> Iterator[np.ndarray]:
                    for i, frame in enumerate(small_frames(reader, numbers, settings.short_side)):
                        if i in compared:
                            references[i] = frame
                        yield frame

                write_frames(frames(), ticks, unfinished, quality, settings.key_frame_every)
                psnr = verify(unfinished, ticks, references)
                if psnr >= settings.min_psnr:
                    break
            else:
                raise VideoReadError(reader.source, f"its copy has {psnr:.1f} dB, less than {settings.min_psnr:g}")
        os.replace(unfinished, path)
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, VideoReadError):
            raise
        raise VideoReadError(str(item), f"cannot be written again ({error})") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return TranscodedFile(len(ticks), float(times[-1]), path.stat().st_size, psnr)
