"""Small video files of numbered frames."""

from functools import cache
from pathlib import Path

import av
import numpy as np
import torch

from mvd_hf.data.decoding import read_frames
from mvd_hf.model.video_reading import Frames

NUM_FRAMES = 60

BLOCKS = 10

H264 = {"preset": "veryfast", "crf": "20", "mbtree": "0"}


@cache
def numbered_frames(count: int = NUM_FRAMES, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames (count, height, width, 3) of a moving texture, their numbers in a row of dark and bright blocks."""
    coarse = np.random.default_rng(0).integers(60, 190, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    frames = np.stack([np.roll(texture, (i, 2 * i), (0, 1)) for i in range(count)])
    for i, frame in enumerate(frames):
        for block in range(BLOCKS):
            bit = 1 if block == 0 else 0 if block == BLOCKS - 1 else i >> (block - 1) & 1
            frame[8:24, 8 + 8 * block : 16 + 8 * block] = 235 if bit else 20
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that upright frames carry, -1 where the guard blocks are not in place."""
    blocks = [frames[:, 10:22, 10 + 8 * block : 14 + 8 * block].mean(axis=(1, 2, 3)) > 128 for block in range(BLOCKS)]
    number = sum(bit.astype(int) << place for place, bit in enumerate(blocks[1:-1]))
    return np.where(blocks[0] & ~blocks[-1], number, -1).tolist()


def add_video(container, frames: np.ndarray, codec="libx264", pix_fmt="yuv420p", gop=12, rate=25, **options):
    stream = container.add_stream(codec, rate=rate, options=options)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt, stream.gop_size, stream.codec_context.thread_count = pix_fmt, gop, 1
    return stream


def encode(container, stream, frames: np.ndarray, times=None):
    for i, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        if times is not None:
            frame.pts = int(times[i])
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write(path: Path, frames: np.ndarray | None = None, times=None, movflags: str = "", tag=None, **options) -> Path:
    """A file with one video stream of numbered frames."""
    frames = numbered_frames() if frames is None else frames
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = add_video(container, frames, **options)
        if tag is not None:
            tag(stream)
        encode(container, stream, frames, times)
    return path


# seconds of the frames of the same four seconds in videos of three rates, and of one whose rate changes
MOMENTS = {str(rate): np.arange(4 * rate) / rate for rate in (10, 25, 60)}
MOMENTS["variable"] = np.sort(np.random.default_rng(0).choice(240, 180, replace=False)) / 60
MOMENTS["variable"][0] = 0.0


def write_moments(folder: Path, name: str) -> Path:
    """A file of [`MOMENTS`]: each frame carries its time in sixtieths of a second as its number."""
    moments = np.round(60 * MOMENTS[name]).astype(int)
    rate = 60 if name == "variable" else int(name)
    times = moments if name == "variable" else np.arange(len(moments))
    return write(folder / f"{name}.mp4", numbered_frames(240)[moments], times, rate=rate, **H264)


def all_frames(path: str | Path) -> np.ndarray:
    """Every frame of a file, (T, H, W, 3)."""
    return read_frames(path, range)


def first_and_last(total_frames: int, generator) -> np.ndarray:
    """A frame sampler of a clip of two frames."""
    return np.array([[0, total_frames - 1]])


def whole(frames: Frames, generator) -> dict[int, torch.Tensor]:
    """An augmentation that leaves the frames as they are, (T, H, W, 3)."""
    return {0: torch.from_numpy(frames.rgb())}
