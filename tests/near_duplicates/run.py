"""Misses and false alarms of `mvd_hf.curation.near_duplicates`, on versions that it makes of videos.

    python tests/near_duplicates/run.py [--videos folder] [--toys 32]

Each video is encoded again, resized, cropped, retimed and cut; every version must be found to have footage in common
with the video. The first and the last 45 % of a video are two takes at one place, unless still or repetitive;
they must not be found, nor versions of different videos (`--same a b` names two files that show the same).
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import datasets
import numpy as np
from PIL import Image

from mvd_hf.curation.fingerprints import read_fingerprints
from mvd_hf.curation.near_duplicates import find_near_duplicates
from mvd_hf.data.toy import toy_videos
from mvd_hf.model.video_reading import VideoReader, VideoReadError

MAX_FRAMES, MAX_PIXELS = 400, 640 * 480


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames (T, height, width, 3)."""
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


def scaled(frames: np.ndarray, factor: float) -> np.ndarray:
    """Frames of `factor` times the height and width, at least 16 pixels."""
    return resized(frames, *(max(int(size * factor), 16) for size in frames.shape[1:3]))


def cropped(frames: np.ndarray, top: float, left: float, bottom: float, right: float) -> np.ndarray:
    """Frames without these parts of their height and width."""
    height, width = frames.shape[1:3]
    rows = slice(round(top * height), height - round(bottom * height))
    return frames[:, rows, round(left * width) : width - round(right * width)]


def brighter(frames: np.ndarray) -> np.ndarray:
    """Frames with more contrast and light."""
    return np.clip(frames * 1.15 + 12, 0, 255).astype(np.uint8)


# frames -> frames, part of the frame rate, quality (constant rate factor)
VERSIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float, int]] = {
    "encoded badly (crf 38)": (lambda x: x, 1, 38),
    "half the size": (lambda x: scaled(x, 0.5), 1, 28),
    "112 x 112": (lambda x: resized(x, 112, 112), 1, 28),
    "brighter": (brighter, 1, 23),
    "3 % off each side": (lambda x: cropped(x, 0.03, 0.03, 0.03, 0.03), 1, 23),
    "5 % off each side": (lambda x: cropped(x, 0.05, 0.05, 0.05, 0.05), 1, 23),
    "10 % off two sides": (lambda x: cropped(x, 0, 0, 0.1, 0.1), 1, 23),
    "half the frame rate": (lambda x: x[::2], 0.5, 28),
    "5/6 of the frame rate": (lambda x: x[np.arange(0, len(x), 1.2).astype(int)], 5 / 6, 28),
    "first 60 %": (lambda x: x[: int(0.6 * len(x))], 1, 28),
    "last half": (lambda x: x[len(x) // 2 :], 1, 28),
    "middle third": (lambda x: x[len(x) // 3 : 2 * len(x) // 3], 1, 28),
    "middle half, two thirds the size, half the rate": (
        lambda x: scaled(x[len(x) // 4 : 3 * len(x) // 4 : 2], 2 / 3),
        0.5,
        30,
    ),
    "middle half, 5 % off each side": (
        lambda x: cropped(x[len(x) // 4 : 3 * len(x) // 4], 0.05, 0.05, 0.05, 0.05),
        1,
        25,
    ),
}
WHOLE = "as it is"
TAKES = {"first 45 %": lambda x: x[: int(0.45 * len(x))], "last 45 %": lambda x: x[int(0.55 * len(x)) :]}
ALL = {WHOLE: (lambda x: x, 1, 18), **VERSIONS, **{name: (cut, 1, 23) for name, cut in TAKES.items()}}


def write(path: Path, frames: np.ndarray, rate: Fraction, quality: int):
    """Write frames (T, H, W, 3) as H.264, without a last odd row or column."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(quality), "preset": "veryfast"})
        stream.height, stream.width = (size // 2 * 2 for size in frames.shape[1:3])
        stream.pix_fmt = "yuv420p"
        for frame in frames[:, : stream.height, : stream.width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def sources(arguments: argparse.Namespace):
    """(name, frames, frame rate) of the videos."""
    if arguments.videos is None:
        for i, (_, _, frames) in enumerate(toy_videos(arguments.toys, 64, 96, 128, seed=5)):
            yield f"toy {i}", frames, Fraction(25)
        return
    for path in sorted(path for path in arguments.videos.iterdir() if path.is_file()):
        try:
            with VideoReader(path) as reader:
                frames = reader.read(range(min(len(reader), MAX_FRAMES)))
        except VideoReadError as error:
            print(f"left out: {error}")
            continue
        area = frames.shape[1] * frames.shape[2]
        yield path.name, scaled(frames, (MAX_PIXELS / area) ** 0.5) if area > MAX_PIXELS else frames, Fraction(30)


def make_versions(arguments: argparse.Namespace, folder: Path) -> list[tuple[str, str, Path]]:
    """(video, version, file) of all versions that have a frame."""
    made = []
    for name, frames, rate in sources(arguments):
        for version, (change, part, quality) in ALL.items():
            changed = change(frames)
            if len(changed):
                path = folder / f"{len(made):05d}.mp4"
                write(path, changed, (rate * Fraction(part)).limit_denominator(1000), quality)
                made.append((name, version, path))
    return made


def main(words: list[str]):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, help="a folder; toy videos are made without it")
    parser.add_argument("--toys", type=int, default=32)
    parser.add_argument("--same", nargs=2, action="append", default=[], metavar="file")
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        made = make_versions(arguments, Path(folder))
        rows = datasets.Dataset.from_dict({"video": [{"path": str(path), "bytes": None} for *_, path in made]})
        fingerprints = read_fingerprints(rows)
    found = {frozenset((pair.first, pair.second)) for pair in find_near_duplicates(fingerprints)}
    place = {(name, version): i for i, (name, version, _) in enumerate(made)}
    shown = {name for (name, version), i in place.items() if version == WHOLE and not fingerprints[i].is_flat}
    print(f"{len(shown)} videos that show something\n\n| version | videos | missed |\n|---|---|---|")
    for version in VERSIONS:
        pairs = {name: frozenset((place[name, WHOLE], place.get((name, version), -1))) for name in sorted(shown)}
        pairs = {name: pair for name, pair in pairs.items() if -1 not in pair}
        missed = [name for name, pair in pairs.items() if pair not in found]
        print(f"| {version} | {len(pairs)} | {len(missed)} {', '.join(missed)} |")
    takes = [tuple(place.get((name, take)) for take in TAKES) for name in sorted(shown)]
    alarms = [made[first][0] for first, last in takes if frozenset((first, last)) in found]
    print(f"\nFalse alarms between first and last 45 %: {len(alarms)} of {len(takes)} {', '.join(alarms)}")
    same = {frozenset(pair) for pair in arguments.same}
    different = [
        (i, j)
        for i, j in itertools.combinations(range(len(made)), 2)
        if made[i][0] != made[j][0] and frozenset((made[i][0], made[j][0])) not in same
    ]
    alarms = [f"{made[i][:2]} and {made[j][:2]}" for i, j in different if frozenset((i, j)) in found]
    print(f"False alarms between versions of different videos: {len(alarms)} of {len(different)} {'; '.join(alarms)}")


if __name__ == "__main__":
    main(sys.argv[1:])
