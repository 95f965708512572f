"""Makes small video files of moving textures or shapes, with appearance and motion as independent labels."""

import csv
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

APPEARANCES = ("stripes", "checkerboard", "dots", "rings")
# easier to learn than textures: bright shapes in front of a dark background
SHAPES = ("square", "disk", "cross", "ring")
# mbtree would make the encoded frames differ from run to run
ENCODER_OPTIONS = {"preset": "veryfast", "mbtree": "0"}
# (rows, columns) per step
MOTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def texture(appearance: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square patch (size, size, 3) of a two-colored pattern with random colors, period and phase, in 0 to 255."""
    row, column = np.mgrid[:size, :size]
    period = size / rng.uniform(2.5, 4.0)
    row, column = row + rng.uniform(0, period), column + rng.uniform(0, period)
    patterns = {
        "stripes": np.sin(2 * np.pi * (row + column) / period) > 0,
        "checkerboard": np.sin(2 * np.pi * row / period) * np.sin(2 * np.pi * column / period) > 0,
        "dots": (row % period - period / 2) ** 2 + (column % period - period / 2) ** 2 < (0.3 * period) ** 2,
        "rings": np.sin(4 * np.pi * np.hypot(row - row.mean(), column - column.mean()) / period) > 0,
    }
    dark, bright = rng.uniform(0, 90, 3), rng.uniform(150, 255, 3)
    return np.where(patterns[appearance][..., None], bright, dark)


def shape_mask(shape: str, size: int) -> np.ndarray:
    """The pixels (size, size) bool of one of `SHAPES`."""
    row, column = np.abs((np.mgrid[:size, :size] + 0.5) / size * 2 - 1)
    radius = np.hypot(row, column)
    return {
        "square": radius < np.inf,
        "disk": radius < 1,
        "cross": np.minimum(row, column) < 0.36,
        "ring": (radius < 1) & (radius > 0.55),
    }[shape]


def toy_frames(
    appearance: str, motion: str, num_frames: int, height: int, width: int, rng: np.random.Generator
) -> np.ndarray:
    """Frames (T, height, width, 3) uint8: a textured square or a shape moves over a smooth random background.

    It wraps around at the borders. Its appearance and its motion are independent.

    Raises:
        ValueError: if there is no such appearance or motion.
    """
    if appearance not in APPEARANCES + SHAPES or motion not in MOTIONS:
        known = APPEARANCES + SHAPES
        raise ValueError(f"{appearance!r} must be one of {known} and {motion!r} one of {tuple(MOTIONS)}.")
    side = int(min(height, width) * rng.uniform(0.4, 0.5))
    is_shape = appearance in SHAPES
    patch = np.full((side, side, 3), rng.uniform(150, 255, 3)) if is_shape else texture(appearance, side, rng)
    inside = np.nonzero(shape_mask(appearance if is_shape else "square", side))
    coarse = rng.integers(*((0, 90) if is_shape else (20, 230)), (2, 3, 3), dtype=np.uint8)
    background = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    start = np.array([rng.integers(height), rng.integers(width)])
    step = np.array(MOTIONS[motion]) * rng.uniform(1.5, 3.0) * min(height, width) / 64
    rows, columns = inside
    frames = np.empty((num_frames, height, width, 3), dtype=np.uint8)
    for i in range(num_frames):
        top, left = np.round(start + i * step).astype(int)
        frames[i] = background
        frames[i, (top + rows) % height, (left + columns) % width] = patch[inside]
    return frames


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: int = 25, gop_size: int = 12, crf: int = 20):
    """Write frames (H, W, 3) uint8, or an array (T, H, W, 3) of them, H and W even, as an H.264 mp4 file.

    Args:
        path, frames: the file, and its frames.
        fps: frames per second.
        gop_size: frames from one key frame to the next.
        crf: constant rate factor of x264, from 0 (loses only color resolution) to 51.

    Raises:
        ValueError: if there is no frame.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"There is no frame to write to {str(path)!r}.")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={**ENCODER_OPTIONS, "crf": str(crf)})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt, stream.gop_size, stream.codec_context.thread_count = "yuv420p", gop_size, 1
        for frame in itertools.chain([first], frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def toy_videos(
    num_videos: int,
    num_frames: int,
    height: int,
    width: int,
    seed: int,
    appearances: Sequence[str] = APPEARANCES,
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(appearance, motion, frames) of videos; the numbers of videos per combination differ by one at most."""
    combinations = list(itertools.product(appearances, MOTIONS))
    for i in range(num_videos):
        appearance, motion = combinations[i % len(combinations)]
        yield (
            appearance,
            motion,
            toy_frames(appearance, motion, num_frames, height, width, np.random.default_rng((seed, i))),
        )


def make_toy_dataset(
    folder: str | Path,
    num_train: int = 128,
    num_validation: int = 32,
    num_frames: int = 32,
    height: int = 64,
    width: int = 80,
    seed: int = 0,
    appearances: Sequence[str] = APPEARANCES,
) -> Path:
    """Write a `videofolder` data set of H.264 files and return its folder.

    `train/` and `validation/` each hold mp4 files and a `metadata.csv` with the columns `file_name`, `appearance`,
    `motion` (class indices in the order of `appearances` and `MOTIONS`). A complete copy of the same data set is not
    written again.
    """
    folder = Path(folder)
    for split, count, split_seed in (("train", num_train, 2 * seed), ("validation", num_validation, 2 * seed + 1)):
        target, seal = folder / split, folder / f".{split}.json"
        names = [f"{i:04d}.mp4" for i in range(count)]
        size = {"frames": num_frames, "height": height, "width": width}
        settings = {**size, "seed": split_seed, "videos": count, "appearances": list(appearances)}
        if seal.exists() and json.loads(seal.read_text()) == {**settings, "bytes": sizes(target)}:
            continue
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        rows = []
        for name, video in zip(
            names, toy_videos(count, num_frames, height, width, split_seed, appearances), strict=True
        ):
            appearance, motion, frames = video
            write_video(target / name, frames)
            rows.append((name, appearances.index(appearance), list(MOTIONS).index(motion)))
        with (target / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "appearance", "motion"), *rows])
        seal.write_text(json.dumps({**settings, "bytes": sizes(target)}))  # last: the split is complete
    return folder


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file of a folder, by name."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*"))}
