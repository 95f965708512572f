"""A small generated action detection data set: moving shapes with two actions each, in AVA's files.

One action is the appearance of a shape, the other its motion; they are independent.
"""

import csv
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.toy import APPEARANCES, MOTIONS, texture, write_video

# class ids count from 1: the appearances, then the motions
ACTIONS = dict(enumerate((*APPEARANCES, *(f"moves {motion}" for motion in MOTIONS)), start=1))
# attempts to find a path for a shape that crosses no other path
TRIES = 50


@dataclass(frozen=True)
class Shape:
    """A textured rectangle that moves at constant speed and stays inside the frames.

    Args:
        appearance, motion: of `APPEARANCES` and `MOTIONS`.
        size: (height, width) in pixels.
        start, step: (top, left) in the first frame, and the move per frame.
    """

    appearance: str
    motion: str
    size: tuple[int, int]
    start: tuple[float, float]
    step: tuple[float, float]

    def corner(self, frame: int) -> tuple[int, int]:
        """(top, left) in a frame."""
        top, left = (round(start + frame * step) for start, step in zip(self.start, self.step, strict=True))
        return top, left

    def box(self, frame: int, height: int, width: int) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 relative to frames of this size."""
        top, left = self.corner(frame)
        return left / width, top / height, (left + self.size[1]) / width, (top + self.size[0]) / height

    @property
    def action_ids(self) -> tuple[int, int]:
        """Class ids of appearance and motion."""
        return APPEARANCES.index(self.appearance) + 1, len(APPEARANCES) + list(MOTIONS).index(self.motion) + 1


def place_shapes(count: int, num_frames: int, height: int, width: int, rng: np.random.Generator) -> list[Shape]:
    """At most `count` shapes whose paths, from the first to the last frame, do not cross."""
    shapes: list[Shape] = []
    paths: list[tuple[float, float, float, float]] = []
    for _ in range(count * TRIES):
        if len(shapes) == count:
            break
        motion = str(rng.choice(list(MOTIONS)))
        size = tuple(int(side) for side in np.round(min(height, width) * rng.uniform(0.25, 0.4, size=2)))
        speed = rng.uniform(0.4, 0.6) * min(height, width) / num_frames
        step = tuple(float(speed * direction) for direction in MOTIONS[motion])
        ends = [step[axis] * (num_frames - 1) for axis in (0, 1)]
        lows = [max(0.0, -end) for end in ends]
        highs = [full - side - max(0.0, end) - 1 for full, side, end in zip((height, width), size, ends, strict=True)]
        if any(high < low for low, high in zip(lows, highs, strict=True)):
            continue
        start = tuple(float(rng.uniform(low, high)) for low, high in zip(lows, highs, strict=True))
        top, left = (min(begin, begin + end) for begin, end in zip(start, ends, strict=True))
        path = top, left, top + size[0] + abs(ends[0]), left + size[1] + abs(ends[1])
        if all(path[0] > p[2] or p[0] > path[2] or path[1] > p[3] or p[1] > path[3] for p in paths):
            shapes.append(Shape(str(rng.choice(APPEARANCES)), motion, size, start, step))
            paths.append(path)
    return shapes


def draw_shapes(shapes: list[Shape], num_frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Frames (T, height, width, 3) uint8 of the shapes over a smooth random background."""
    coarse = rng.integers(20, 230, (2, 3, 3), dtype=np.uint8)
    background = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    patches = [texture(shape.appearance, max(shape.size), rng)[: shape.size[0], : shape.size[1]] for shape in shapes]
    frames = np.repeat(background[None], num_frames, axis=0)
    for number, frame in enumerate(frames):
        for shape, patch in zip(shapes, patches, strict=True):
            top, left = shape.corner(number)
            frame[top : top + shape.size[0], left : left + shape.size[1]] = patch
    return frames


@dataclass(frozen=True)
class ToyDetectionSettings:
    """Sizes of the data set.

    Args:
        num_train, num_validation: videos; each has a key frame at every whole second but the first and the last.
        fps, seconds: frames per second, length of a video.
        height, width: pixels of a frame.
        max_shapes: largest number of shapes in a video; one in eight validation videos has none.
        seed: of everything random.
    """

    num_train: int = 400
    num_validation: int = 80
    fps: int = 8
    seconds: int = 3
    height: int = 64
    width: int = 80
    max_shapes: int = 3
    seed: int = 0


def make_toy_detection_dataset(folder: str | Path, settings: ToyDetectionSettings | None = None) -> Path:
    """Write an action detection data set of H.264 files and return its folder.

    `videos/` holds `train_0000.mp4` and so on; `train.csv` and `validation.csv` are annotations in AVA's format;
    `actions.pbtxt` names the actions. `validation_boxes.csv` simulates a person detector: inexact boxes with scores
    above 0.8, and false ones below. A folder with the complete data set is left as it is.
    """
    folder, settings = Path(folder), settings or ToyDetectionSettings()
    seal = folder / ".complete.json"
    if seal.exists() and json.loads(seal.read_text()) == asdict(settings):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "videos").mkdir(parents=True)
    entries = [f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for number, name in ACTIONS.items()]
    (folder / "actions.pbtxt").write_text("".join(entries), encoding="utf-8")
    for kind, (split, count) in enumerate(
        {"train": settings.num_train, "validation": settings.num_validation}.items()
    ):
        annotations, boxes = [], []
        for number in range(count):
            rng = np.random.default_rng((settings.seed, kind, number))
            video = f"{split}_{number:04d}"
            rows, detected = make_video(folder / "videos" / f"{video}.mp4", video, settings, rng, number)
            annotations += rows
            boxes += detected
        write_csv(folder / f"{split}.csv", annotations)
        if split == "validation":
            write_csv(folder / "validation_boxes.csv", boxes)
    seal.write_text(json.dumps(asdict(settings)))  # last: the data set is complete
    return folder


def make_video(
    path: Path, video: str, settings: ToyDetectionSettings, rng: np.random.Generator, number: int
) -> tuple[list[tuple], list[tuple]]:
    """Write one video; return its rows of annotations and of detected boxes."""
    num_frames, size = settings.fps * settings.seconds, (settings.height, settings.width)
    is_empty = video.startswith("validation") and number % 8 == 7
    shapes = [] if is_empty else place_shapes(int(rng.integers(1, settings.max_shapes + 1)), num_frames, *size, rng)
    write_video(path, draw_shapes(shapes, num_frames, *size, rng), fps=settings.fps)
    annotations: list[tuple] = []
    boxes: list[tuple] = []
    for second in range(1, settings.seconds):
        if not shapes:
            annotations.append((video, f"{second:04d}"))
        for person, shape in enumerate(shapes):
            box = np.array(shape.box(second * settings.fps, *size))
            cells = [f"{edge:.4f}" for edge in box]
            annotations += [(video, f"{second:04d}", *cells, action, person) for action in shape.action_ids]
            moved = box + rng.uniform(-0.02, 0.02, size=4)
            boxes.append(
                (video, f"{second:04d}", *(f"{edge:.4f}" for edge in moved), "", f"{rng.uniform(0.85, 1):.4f}")
            )
        corner = rng.uniform(0, 0.5, size=2)
        false = (*corner, *(corner + 0.3))
        boxes.append((video, f"{second:04d}", *(f"{edge:.4f}" for edge in false), "", f"{rng.uniform(0, 0.7):.4f}"))
    return annotations, boxes


def write_csv(path: Path, rows: list[tuple]):
    """Write rows without a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
