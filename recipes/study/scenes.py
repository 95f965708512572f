"""Videos for the study of teachers: moving objects with independent labels of appearance and motion.

A scene is periodic at the borders of the frame, so that the position of an object does not reveal its direction.
Scenes come in pairs; the second plays the first backwards: the frames are the same, the motion differs.

Letters in shapes: T frames of H x W pixels. Lengths are fractions of the frame's short side, angles are in radians.
"""

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mvd_hf.data.toy import sizes, write_video

SHAPES = ("disc", "square", "triangle", "cross")
TEXTURES = ("stripes", "checkerboard", "dots", "rings")
# range of hues, as fractions of the colour circle
PALETTES = {"red": (0.95, 0.05), "yellow": (0.12, 0.2), "green": (0.3, 0.42), "blue": (0.55, 0.68)}
# (rows, columns) of a step
DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
ROTATIONS = {"clockwise": 1, "anticlockwise": -1}
SPEEDS = ("faster", "slower")
ORDERS = ("passes", "is_passed")
# the columns of labels: parts, and the two tasks that the parts make up
PARTS = {
    "texture": TEXTURES,
    "shape": SHAPES,
    "palette": tuple(PALETTES),
    "direction": tuple(DIRECTIONS),
    "rotation": tuple(ROTATIONS),
    "speed": SPEEDS,
    "order": ORDERS,
}
TASKS = {"appearance": ("texture", "shape"), "motion": ("direction", "rotation", "speed")}
APPEARANCE_PARTS, MOTION_PARTS = ("texture", "shape", "palette"), ("direction", "rotation", "speed", "order")
# variants of each texture and direction in training and validation; the test has as many others
NUM_VARIANTS = 12
SPLITS = ("train", "validation", "test")


@dataclass
class SceneSettings:
    """Number and size of the videos, and what their backgrounds show.

    Args:
        train, validation, test: number of videos, even.
        frames: frames of a video.
        height, width: pixels of a frame, even.
        clutter: number of small objects without labels.
        waves: largest number of periods of the background's waves along a side.
        drift: largest motion of the background along either side.
        shake: standard deviation of the camera's motion between frames, along either side.
        crf: constant rate factor of H.264, see `mvd_hf.data.toy.write_video`.
        seed: seed of all random choices.
    """

    train: int = 512
    validation: int = 128
    test: int = 256
    frames: int = 20
    height: int = 40
    width: int = 48
    clutter: int = 4
    waves: int = 3
    drift: float = 0.4
    shake: float = 0.008
    crf: int = 20
    seed: int = 0

    def __post_init__(self):
        for name in (*SPLITS, "height", "width"):
            value = getattr(self, name)
            if value < 2 or value % 2:
                raise ValueError(f"{name}={value} of the scenes must be a positive even number.")
        for name in ("clutter", "waves", "drift", "shake"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} of the scenes must not be below 0.")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf={self.crf} of the scenes must be from 0 to 51.")
        if self.frames < 2:
            raise ValueError(f"frames={self.frames} of the scenes must be at least 2.")


@dataclass(frozen=True)
class TextureVariant:
    """Parameters of a texture: period (in radii of the object), bright fraction of a period, phase (2,), angle."""

    period: float
    duty: float
    phase: tuple[float, float]
    angle: float


@dataclass(frozen=True)
class TrajectoryVariant:
    """Parameters of a trajectory: deviation from its direction (angle), length, sideways bend, rotation (angle)."""

    deviation: float
    length: float
    bend: float
    turn: float


def texture_variant(texture: str, number: int) -> TextureVariant:
    """A variant of a texture; from `NUM_VARIANTS` on, periods and duties lie outside the range of the earlier ones."""
    rng = np.random.default_rng((1, TEXTURES.index(texture), number))
    is_seen = number < NUM_VARIANTS
    coarse = rng.random() < 0.5
    period = rng.uniform(0.62, 0.8) if is_seen else rng.uniform(0.82, 0.95) if coarse else rng.uniform(0.5, 0.6)
    duty = rng.uniform(0.44, 0.56) if is_seen else rng.uniform(*((0.58, 0.66) if coarse else (0.34, 0.42)))
    return TextureVariant(period, duty, tuple(rng.uniform(0, 1, 2)), rng.uniform(0, np.pi))


def trajectory_variant(direction: str, number: int) -> TrajectoryVariant:
    """A variant of a trajectory; from `NUM_VARIANTS` on, all deviate and bend more than the earlier ones."""
    # opposite directions share their variants: played backwards, a variant is one of the opposite direction
    axis = int(direction in ("left", "right"))
    rng = np.random.default_rng((2, axis, number))
    deviation, bend = (rng.uniform(0, 0.2), rng.uniform(0, 0.04))
    if number >= NUM_VARIANTS:
        deviation, bend = rng.uniform(0.22, 0.4), rng.uniform(0.05, 0.1)
    sign, side = rng.choice([-1, 1], 2)
    return TrajectoryVariant(sign * deviation, rng.uniform(0.6, 0.8), side * bend, rng.uniform(2.0, 3.2))


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points, in radii from an object's centre, are in a shape."""
    if shape == "disc":
        return u**2 + v**2 < 0.8
    if shape == "square":
        return np.maximum(abs(u), abs(v)) < 0.8
    if shape == "triangle":
        return (v < 0.62) & (abs(u) < 0.5 * (v + 1.1))
    return ((abs(u) < 0.32) | (abs(v) < 0.32)) & (np.maximum(abs(u), abs(v)) < 0.98)


def brightness(texture: str, variant: TextureVariant, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points, in radii from an object's centre, have the brighter colour of a texture."""
    cosine, sine = np.cos(variant.angle), np.sin(variant.angle)
    a = (cosine * u + sine * v) / variant.period + variant.phase[0]
    b = (cosine * v - sine * u) / variant.period + variant.phase[1]
    if texture == "stripes":
        return a % 1 < variant.duty
    if texture == "checkerboard":
        return (a % 1 < variant.duty) ^ (b % 1 < 0.5)
    if texture == "dots":
        return (a % 1 - 0.5) ** 2 + (b % 1 - 0.5) ** 2 < 0.32 * variant.duty
    # off-centre, so that a rotation is visible
    shift_u, shift_v = 0.5 * (variant.phase[0] - 0.5) + 0.3, 0.5 * (variant.phase[1] - 0.5)
    return np.hypot(u - shift_u, v - shift_v) / variant.period % 1 < variant.duty


def hue_color(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB (3,), 0 to 255, of a hue (fraction of the circle), saturation and value."""
    distance = abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3)
    return 255 * value * (1 - saturation * (1 - np.clip(distance - 1, 0, 1)))


class Canvas:
    """Frames (T, 2H, 2W, 3) at twice the resolution, periodic at the borders, to paint objects on."""

    def __init__(self, num_frames: int, height: int, width: int):
        self.shape = np.array([2 * height, 2 * width])
        self.side = 2 * min(height, width)
        self.frames = np.empty((num_frames, *self.shape, 3), dtype=np.float32)
        self.rows, self.columns = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32)

    def fill(self, image: np.ndarray, offsets: np.ndarray):
        """Paint an image (2H, 2W, 3), moved by offsets (T, 2), over all frames."""
        for frame, (row, column) in zip(self.frames, np.round(offsets * self.side).astype(int), strict=True):
            frame[:] = np.roll(image, (row, column), axis=(0, 1))

    def points(self, centres: np.ndarray, angles: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (T, 2H, 2W) of the pixels along the axes of an object, in radii from its centres (T, 2)."""
        places = [centres[:, i, None, None] * self.side for i in (0, 1)]
        height, width = self.shape
        down = (self.rows - places[0] + height / 2) % height - height / 2
        right = (self.columns - places[1] + width / 2) % width - width / 2
        cosine, sine = (function(angles)[:, None, None] / (radius * self.side) for function in (np.cos, np.sin))
        return cosine * right + sine * down, cosine * down - sine * right

    def paint(self, mask: np.ndarray, colors: np.ndarray):
        """Paint the pixels of a mask (T, 2H, 2W) in one colour (3,) or in a colour for each pixel."""
        self.frames[mask] = colors

    def pixels(self) -> np.ndarray:
        """Frames (T, H, W, 3) uint8: means of 2 x 2 pixels."""
        num_frames, height, width, _ = self.frames.shape
        blocks = self.frames.reshape(num_frames, height // 2, 2, width // 2, 2, 3)
        return np.clip(blocks.mean(axis=(2, 4)).round(), 0, 255).astype(np.uint8)


def background(canvas: Canvas, most_waves: int, rng: np.random.Generator) -> np.ndarray:
    """A periodic image (2H, 2W, 3) of waves in random colours, with at most `most_waves` periods along a side."""
    image = np.full((*canvas.shape, 3), rng.uniform(70, 150, 3), dtype=np.float32)
    for _ in range(5):
        waves = rng.integers(-most_waves, most_waves + 1, 2)
        phase = 2 * np.pi * (waves[0] * canvas.rows / canvas.shape[0] + waves[1] * canvas.columns / canvas.shape[1])
        image += np.cos(phase + rng.uniform(0, 2 * np.pi))[..., None] * rng.uniform(-25, 25, 3)
    return image


def paint_surroundings(canvas: Canvas, settings: SceneSettings, shake: np.ndarray, rng: np.random.Generator):
    """Paint what has no label: a drifting background and small objects.

    Args:
        canvas: canvas to paint on.
        settings: settings of the scenes.
        shake: motion (T, 2) of the camera since the first frame.
        rng: draws appearance and motion.
    """
    time, extent = np.linspace(0, 1, len(shake))[:, None], canvas.shape / canvas.side
    image = background(canvas, settings.waves, rng)
    canvas.fill(image, shake + time * rng.uniform(-settings.drift, settings.drift, 2))
    for _ in range(settings.clutter):
        shape, radius = SHAPES[rng.integers(len(SHAPES))], rng.uniform(0.07, 0.12)
        centres = rng.uniform(0, extent) + time * rng.uniform(-0.8, 0.8, 2) + shake
        angles = rng.uniform(0, 2 * np.pi) + time[:, 0] * rng.uniform(-3, 3)
        color = hue_color(rng.uniform(), rng.uniform(0.2, 0.9), rng.uniform(0.3, 1))
        canvas.paint(inside(shape, *canvas.points(centres, angles, radius)), color)


def paint_object(canvas: Canvas, scene: "Scene", centres: np.ndarray, angles: np.ndarray, rng: np.random.Generator):
    """Paint the labelled object at centres (T, 2), rotated by angles (T,)."""
    u, v = canvas.points(centres, angles, 0.3)
    low, high = PALETTES[scene.labels["palette"]]
    hue = low + rng.uniform() * ((high - low) % 1)
    dark = hue_color(hue, rng.uniform(0.8, 1), rng.uniform(0.25, 0.45))
    bright = hue_color(hue, rng.uniform(0.35, 0.7), rng.uniform(0.85, 1))
    texture, mask = scene.labels["texture"], inside(scene.labels["shape"], u, v)
    is_bright = brightness(texture, texture_variant(texture, scene.texture_id), u[mask], v[mask])
    canvas.paint(mask, np.where(is_bright[:, None], bright, dark))


def scene_frames(scene: "Scene", settings: SceneSettings, rng: np.random.Generator) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 of a scene: surroundings, partner and object, seen by a shaking camera.

    Args:
        scene: labels and variants.
        settings: settings of the scenes.
        rng: draws everything without a label.
    """
    canvas = Canvas(settings.frames, settings.height, settings.width)
    time, labels = np.linspace(0, 1, settings.frames), scene.labels
    shake = np.cumsum(rng.normal(0, settings.shake, (settings.frames, 2)), axis=0)
    paint_surroundings(canvas, settings, shake, rng)

    way = trajectory_variant(labels["direction"], scene.trajectory_id)
    progress = time**1.8 if labels["speed"] == "faster" else 1 - (1 - time) ** 1.8
    step = np.array(DIRECTIONS[labels["direction"]], dtype=float)
    cosine, sine = np.cos(way.deviation), np.sin(way.deviation)
    ahead = np.array([cosine * step[0] + sine * step[1], cosine * step[1] - sine * step[0]])
    aside = np.array([-ahead[1], ahead[0]])
    bend = (way.bend * np.sin(np.pi * progress))[:, None] * aside
    middle = rng.uniform(0, canvas.shape / canvas.side) + shake
    centres = middle + (progress - 0.5)[:, None] * way.length * ahead + bend

    # the partner falls behind or moves ahead; in the middle of the video it is beside the object
    gap = (0.5 - time) * (0.5 if labels["order"] == "passes" else -0.5)
    partner = centres + gap[:, None] * ahead + rng.choice([-1, 1]) * 0.16 * aside
    u, v = canvas.points(partner, np.zeros(settings.frames), 0.16)
    canvas.paint(u**2 + v**2 < 1, np.full(3, rng.uniform(10, 40)))
    canvas.paint(u**2 + v**2 < 0.5, np.full(3, rng.uniform(215, 245)))

    angles = rng.uniform(0, 2 * np.pi) + ROTATIONS[labels["rotation"]] * way.turn * (time - 0.5)
    paint_object(canvas, scene, centres, angles, rng)
    return canvas.pixels()


def balanced(parts: tuple[str, ...], count: int, rng: np.random.Generator) -> list[dict[str, str]]:
    """`count` combinations of values in random order; their frequencies differ by at most one."""
    sizes_of_parts = [len(PARTS[part]) for part in parts]
    total = int(np.prod(sizes_of_parts))
    cells = np.concatenate([rng.permutation(total) for _ in range(-(-count // total))])[:count]
    numbers = np.array(np.unravel_index(rng.permutation(cells), sizes_of_parts)).T
    return [{part: PARTS[part][i] for part, i in zip(parts, row, strict=True)} for row in numbers]


def class_number(task: str, labels: dict[str, str]) -> int:
    """The class of a task: the values of its parts as digits, the first part first."""
    number = 0
    for part in TASKS[task]:
        number = number * len(PARTS[part]) + PARTS[part].index(labels[part])
    return number


def class_names(column: str) -> list[str]:
    """Names of the classes of a part or a task, by number."""
    if column in PARTS:
        return list(PARTS[column])
    shape = [len(PARTS[part]) for part in TASKS[column]]
    cells = zip(*np.unravel_index(range(int(np.prod(shape))), shape), strict=True)
    return ["-".join(PARTS[part][i] for part, i in zip(TASKS[column], cell, strict=True)) for cell in cells]


@dataclass(frozen=True)
class Scene:
    """What a scene shows: a value of each part in `PARTS`, and the variants of its texture and trajectory."""

    labels: dict[str, str]
    texture_id: int
    trajectory_id: int

    def backwards(self) -> "Scene":
        """The scene played backwards; `order` stays, as the faster object stays the faster one."""
        pairs = (("up", "down"), ("left", "right"), tuple(ROTATIONS), SPEEDS)
        opposite = {one: other for pair in pairs for one, other in (pair, pair[::-1])}
        labels = {part: opposite.get(value, value) for part, value in self.labels.items()}
        return Scene(labels, self.texture_id, self.trajectory_id)

    def row(self) -> dict[str, int]:
        """Class numbers: its row in `metadata.csv`."""
        numbers = {"texture_id": self.texture_id, "trajectory_id": self.trajectory_id}
        numbers |= {part: PARTS[part].index(value) for part, value in self.labels.items()}
        return numbers | {task: class_number(task, self.labels) for task in TASKS}


def plan_scenes(split: str, settings: SceneSettings) -> list[Scene]:
    """The scenes of a split, without those played backwards."""
    rng = np.random.default_rng((settings.seed, SPLITS.index(split)))
    num_pairs = getattr(settings, split) // 2
    # drawn separately, so that appearance and motion are independent
    appearances, motions = balanced(APPEARANCE_PARTS, num_pairs, rng), balanced(MOTION_PARTS, num_pairs, rng)
    first = NUM_VARIANTS if split == "test" else 0
    variants = first + rng.integers(NUM_VARIANTS, size=(num_pairs, 2))
    drawn = zip(appearances, motions, variants.tolist(), strict=True)
    return [Scene(appearance | motion, *ids) for appearance, motion, ids in drawn]


def scenes(split: str, settings: SceneSettings) -> Iterator[tuple[dict[str, int], np.ndarray]]:
    """Yield each video of a split: its row in `metadata.csv`, without `file_name`, and frames (T, H, W, 3) uint8."""
    for pair, scene in enumerate(plan_scenes(split, settings)):
        rng = np.random.default_rng((settings.seed, SPLITS.index(split), pair))
        frames = scene_frames(scene, settings, rng)
        yield {"pair": pair, "is_reversed": 0, **scene.row()}, frames
        yield {"pair": pair, "is_reversed": 1, **scene.backwards().row()}, frames[::-1]


def make_scenes(folder: str | Path, settings: SceneSettings) -> Path:
    """Write a `videofolder` data set of H.264 files with a card, and return its folder.

    Each split has a folder of mp4 files with a `metadata.csv`; `README.md` describes the columns. Complete splits with
    the same settings are kept.
    """
    folder = Path(folder)
    for split in SPLITS:
        target, seal = folder / split, folder / f".{split}.json"
        stamp = asdict(settings)
        if seal.exists() and json.loads(seal.read_text()) == {**stamp, "bytes": sizes(target)}:
            continue
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        rows = []
        videos = tqdm(scenes(split, settings), desc=f"scenes: {split}", total=getattr(settings, split), unit=" videos")
        for i, (row, frames) in enumerate(videos):
            rows.append({"file_name": f"{i:05d}.mp4", **row})
            write_video(target / rows[-1]["file_name"], frames, crf=settings.crf)
        with (target / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        (folder / "README.md").write_text(scene_card(settings), encoding="utf-8")
        seal.write_text(json.dumps({**stamp, "bytes": sizes(target)}))  # last: it marks the split as complete
    return folder


def scene_card(settings: SceneSettings) -> str:
    """The card of the data set: columns, counts, how it was made."""
    classes = "\n".join(f"| `{part}` | {', '.join(values)} |" for part, values in PARTS.items())
    tasks = "\n".join(
        f"| `{task}` | {len(class_names(task))} classes: {' x '.join(parts)}, the first part first |"
        for task, parts in TASKS.items()
    )
    return f"""---
license: apache-2.0
task_categories: [video-classification]
pretty_name: Scenes of moving objects with independent labels of appearance and motion
---
# Scenes of moving objects

{settings.train} videos to train on, {settings.validation} for validation, {settings.test} for the test. Each has
{settings.frames} frames of {settings.width}x{settings.height} pixels (H.264 with rate factor {settings.crf}, 25 frames
per second). `recipes.study.scenes` made them from seed {settings.seed}.

The labels describe the largest object. It passes a black and white disc, its partner, or is passed by it.
{settings.clutter} small objects, the background and a shaking camera move independently. What leaves the frame on one
side returns on the other, so that the position of an object does not reveal its direction. As fractions of the short
side, the background drifts by up to {settings.drift:g} and the camera shakes by {settings.shake:g} per frame. The
waves of the background have at most {settings.waves} periods along a side.

| column of `metadata.csv` | class numbers, from 0 |
|---|---|
{classes}
{tasks}
| `pair`, `is_reversed` | two videos with the same `pair` show the same scene, one of them backwards |
| `texture_id`, `trajectory_id` | variants of the texture and of the trajectory; those of the test occur nowhere else |

- Appearance (texture, shape, palette) and motion (direction, rotation, speed, order) are balanced and drawn
  independently.
- A single frame says nothing about motion: a video and its reverse have the same frames, but a different direction,
  rotation and speed.
- The test has finer and coarser textures with other fractions of dark and bright, and trajectories with larger
  deviations and bends. Training and validation share their variants.
"""
