"""Generated videos to measure on, with content as in natural videos."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np

GOP_SIZES = (250, 12)
# smoothness (in frame heights), contrast (grey levels) and speed (pixels per frame) of the content's layers
LAYERS = ((1 / 6, 45, 0.6), (1 / 24, 22, 1.2), (1 / 80, 14, 1.0), (1 / 256, 8, 1.0))
GRAIN = 3.0  # grey levels of noise, drawn for every frame


def natural_frames(num_frames: int, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """Yield frames (height, width, 3) uint8 with drifting texture, moving shapes and grain, as in natural videos."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    layers = []
    for smoothness, contrast, speed in LAYERS:
        blur = np.exp(-2 * (np.pi * smoothness * height) ** 2 * (rows**2 + columns**2))
        spectrum = np.fft.rfft2(rng.standard_normal((3, height, width))) * blur
        spectrum *= contrast / np.fft.irfft2(spectrum, (height, width)).std()
        layers.append((spectrum, speed * rng.normal(size=2)))
    shapes = [
        (rng.random(2) * (height, width), 2.5 * rng.normal(size=2), rng.uniform(0.06, 0.16) * height, rng.random(3))
        for _ in range(5)
    ]
    for i in range(num_frames):
        drift = [i * (rows * down + columns * right) for _, (down, right) in layers]
        moved = sum(layer[0] * np.exp(-2j * np.pi * shift) for layer, shift in zip(layers, drift, strict=True))
        frame = 118 + np.fft.irfft2(moved, (height, width))
        for start, velocity, radius, color in shapes:
            top, left = (start + i * velocity) % (height, width)
            inside = np.hypot(np.arange(height)[:, None] - top, np.arange(width)[None] - left) < radius
            frame[:, inside] = 0.3 * frame[:, inside] + 170 * color[:, None]
        frame += GRAIN * rng.standard_normal((height, width))
        yield np.ascontiguousarray(frame.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def make_video(path: Path, frames: Iterable[np.ndarray], gop_size: int):
    """Write frames (H, W, 3) uint8, H and W even, as an H.264 mp4 file with the defaults of the encoder."""
    unfinished = path.with_suffix(".part")
    with av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "23"})
        stream.pix_fmt, stream.gop_size, stream.codec_context.thread_count = "yuv420p", gop_size, 1
        for i, frame in enumerate(frames):
            if i == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    unfinished.rename(path)


def make_large_video(folder: Path, height: int, width: int, num_frames: int = 300, gop_size: int = 250) -> Path:
    """Path of a video of any size; above 540 lines its content is drawn smaller and enlarged. A file is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"large_{width}x{height}_{num_frames}_gop{gop_size}.mp4"
    factor = max(height // 540, 1)
    frames = natural_frames(num_frames, height // factor, width // factor, seed=0)
    if not path.exists():
        make_video(path, (frame.repeat(factor, axis=0).repeat(factor, axis=1) for frame in frames), gop_size)
    return path


def make_videos(folder: Path, num_frames: int = 300, height: int = 256, width: int = 340) -> dict[str, list[str]]:
    """Paths of two videos for each GOP size; existing files are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[str]] = {}
    for gop_size, seed in itertools.product(GOP_SIZES, range(2)):
        path = folder / f"content{seed}_{width}x{height}_{num_frames}_gop{gop_size}.mp4"
        if not path.exists():
            make_video(path, natural_frames(num_frames, height, width, seed), gop_size)
        groups.setdefault(f"GOP {gop_size}", []).append(str(path))
    return groups
