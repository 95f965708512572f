"""The study's scenes: looks and moves independent, reverses with the same frames, a test of unseen variants."""

import csv
from collections import Counter
from itertools import product

import numpy as np
import pytest

from mvd_hf.data.decoding import read_frames
from mvd_hf.data.sources import load_rows
from recipes.study.scenes import (
    DIRECTIONS,
    LOOKS,
    MOVES,
    NUM_VARIANTS,
    PARTS,
    SPLITS,
    TASKS,
    TEXTURES,
    Canvas,
    Scene,
    SceneSettings,
    class_names,
    class_number,
    make_scenes,
    paint_surroundings,
    plan_scenes,
    scene_frames,
    scenes,
    texture_variant,
    trajectory_variant,
)

SMALL = SceneSettings(train=6, validation=2, test=4, frames=12, height=32, width=40)
LABELS = {part: values[0] for part, values in PARTS.items()}


def all_scenes(split: str, count: int) -> list[Scene]:
    forward = plan_scenes(split, SceneSettings(**{split: count}))
    return [scene for pair in forward for scene in (pair, pair.backwards())]


def test_scenes_follow_from_the_seed():
    first, again = (list(scenes("train", SMALL)) for _ in range(2))
    other = list(scenes("train", SceneSettings(**{**vars(SMALL), "seed": 1})))
    for (row, frames), (same_row, same_frames), (_, other_frames) in zip(first, again, other, strict=True):
        assert row == same_row
        np.testing.assert_array_equal(frames, same_frames)
        assert np.abs(frames.astype(int) - other_frames).mean() > 5


def test_a_video_and_its_reverse_have_the_same_frames_and_other_moves():
    videos = list(scenes("test", SMALL))
    for (row, frames), (reverse, reversed_frames) in zip(videos[::2], videos[1::2], strict=True):
        np.testing.assert_array_equal(frames, reversed_frames[::-1])
        assert not np.array_equal(frames, reversed_frames)
        assert (row["pair"], row["is_reversed"]) == (reverse["pair"], 0)
        assert reverse["is_reversed"] == 1
        for part in (*LOOKS, "order", "appearance", "texture_id", "trajectory_id"):
            assert row[part] == reverse[part]
        for part in (*(part for part in MOVES if part != "order"), "motion"):
            assert row[part] != reverse[part]


def test_what_is_played_backwards_twice_is_as_before():
    for scene in plan_scenes("train", SceneSettings(train=64)):
        assert scene.backwards().backwards() == scene


@pytest.mark.parametrize(("look", "move"), list(product(("texture", "appearance"), ("motion", *MOVES))))
def test_looks_and_moves_are_independent(look, move):
    rows = [scene.row() for scene in all_scenes("train", 4096)]
    counts = Counter((row[look], row[move]) for row in rows)
    cells = len(class_names(look)) * len(class_names(move))
    expected = len(rows) / cells
    chi_squared = sum((counts[cell] - expected) ** 2 / expected for cell in product(*map(classes_of, (look, move))))
    freedom = (len(class_names(look)) - 1) * (len(class_names(move)) - 1)
    # pairs share their looks, which at most doubles the statistic; five standard deviations above its mean
    assert chi_squared < 2 * (freedom + 5 * (2 * freedom) ** 0.5)


def classes_of(column: str) -> range:
    return range(len(class_names(column)))


def test_every_class_is_equally_frequent():
    rows = [scene.row() for scene in all_scenes("train", 512)]
    for column in (*PARTS, *TASKS):
        counts = Counter(row[column] for row in rows)
        assert set(counts.values()) == {512 // len(class_names(column))}


def test_the_test_has_textures_and_ways_of_its_own():
    used = {}
    for split in SPLITS:
        planned = plan_scenes(split, SceneSettings(train=512, validation=512, test=512))
        used[split] = [{getattr(scene, name) for scene in planned} for name in ("texture_id", "trajectory_id")]
    assert used["train"] == used["validation"]
    for seen, unseen in zip(used["train"], used["test"], strict=True):
        assert seen.isdisjoint(unseen)
    ids = range(NUM_VARIANTS), range(NUM_VARIANTS, 2 * NUM_VARIANTS)
    seen, unseen = ([texture_variant(name, i) for name in TEXTURES for i in part] for part in ids)
    periods, duties = ([getattr(variant, name) for variant in seen] for name in ("period", "duty"))
    for variant in unseen:
        assert not min(periods) <= variant.period <= max(periods)
        assert not min(duties) <= variant.duty <= max(duties)
    seen, unseen = ([trajectory_variant(name, i) for name in DIRECTIONS for i in part] for part in ids)
    assert max(abs(way.deviation) for way in seen) < min(abs(way.deviation) for way in unseen)
    assert max(abs(way.bend) for way in seen) < min(abs(way.bend) for way in unseen)


def object_mask(labels: dict[str, str]) -> np.ndarray:
    """Where the object is (T, H, W): where another palette makes a difference."""
    settings = SceneSettings(frames=16)
    red, blue = (
        scene_frames(Scene(labels | {"palette": palette}, 0, 3), settings, np.random.default_rng(3))
        for palette in ("red", "blue")
    )
    return np.abs(red.astype(int) - blue).sum(axis=-1) > 60


def progress(labels: dict[str, str]) -> np.ndarray:
    """How far the object has come in each frame (T, 2), in pixels: rows and columns, across the borders too."""
    mask = object_mask(labels)
    place = []
    for axis, length in ((2, mask.shape[1]), (1, mask.shape[2])):
        phases = np.angle(mask.sum(axis=axis) @ np.exp(2j * np.pi * np.arange(length) / length))
        place.append((np.unwrap(phases) - phases[0]) * length / (2 * np.pi))
    return np.stack(place, axis=1)


@pytest.mark.parametrize(("direction", "speed"), product(DIRECTIONS, PARTS["speed"]))
def test_the_object_goes_in_its_direction_at_its_speed(direction, speed):
    way = progress(LABELS | {"shape": "disc", "direction": direction, "speed": speed})
    ahead = way @ np.array(DIRECTIONS[direction])
    assert ahead[-1] > 15
    assert ahead[-1] > 2 * np.linalg.norm(way[-1] - ahead[-1] * np.array(DIRECTIONS[direction]))
    first_half = ahead[len(ahead) // 2] / ahead[-1]
    assert first_half < 0.45 if speed == "faster" else first_half > 0.55


def test_rotations_go_opposite_ways_from_a_common_middle():
    clockwise, anticlockwise = (
        object_mask(LABELS | {"shape": "square", "rotation": rotation}) for rotation in PARTS["rotation"]
    )
    differences = (clockwise ^ anticlockwise).sum(axis=(1, 2))
    assert differences[0] > 100
    assert differences[len(differences) // 2 - 1] < 0.5 * differences[0]


def surroundings(seed: int = 0, **settings) -> np.ndarray:
    """Frames (T, 2H, 2W, 3) without objects that carry labels, under a camera that does not shake."""
    canvas = Canvas(6, 40, 48)
    still = {"clutter": 0, "waves": 0, "drift": 0.0}
    paint_surroundings(canvas, SceneSettings(**{**still, **settings}), np.zeros((6, 2)), np.random.default_rng(seed))
    return canvas.frames


def num_colors(frame: np.ndarray) -> int:
    return len(np.unique(frame.reshape(-1, 3), axis=0))


def test_surroundings_have_as_much_as_the_settings_say():
    assert all(num_colors(frame) == 1 for frame in surroundings())
    assert num_colors(surroundings(waves=1)[0]) > 100
    # small objects of a colour each, of which some may lie upon others
    assert num_colors(surroundings(clutter=1)[0]) == 2
    assert 3 <= num_colors(surroundings(clutter=4)[0]) <= 5

    waves = surroundings(waves=1)
    assert (waves == waves[0]).all()
    drifting = surroundings(waves=1, drift=0.3)
    assert (drifting[0] == waves[0]).all()
    assert (drifting[-1] != drifting[0]).any()


@pytest.mark.parametrize("shake", [0.0, 0.02])
def test_the_camera_shakes_as_much_as_the_settings_say(monkeypatch, shake):
    seen = []
    monkeypatch.setattr(
        "recipes.study.scenes.paint_surroundings", lambda canvas, settings, shaken, rng: seen.append(shaken)
    )
    settings = SceneSettings(**{**vars(SMALL), "train": 20, "shake": shake})
    list(scenes("train", settings))
    steps = np.diff(np.stack(seen), axis=1)
    assert steps.std() == pytest.approx(shake, rel=0.15)


def test_where_an_object_is_does_not_tell_where_it_goes(monkeypatch):
    places = {direction: [] for direction in DIRECTIONS}

    def note(canvas, scene, centres, angles, rng):
        places[scene.labels["direction"]].append(centres[0] * canvas.side / canvas.shape)

    monkeypatch.setattr("recipes.study.scenes.paint_object", note)
    monkeypatch.setattr("recipes.study.scenes.paint_surroundings", lambda canvas, *rest: canvas.frames.fill(0))
    settings = SceneSettings(train=1200, height=8, width=10)
    for number, scene in enumerate(plan_scenes("train", settings)):
        scene_frames(scene, settings, np.random.default_rng(number))
    for found in places.values():
        # of places spread evenly over a periodic frame the mean position on the circle is near its centre
        assert np.abs(np.exp(2j * np.pi * np.array(found)).mean(axis=0)).max() < 0.25


def test_class_numbers_are_the_parts_as_digits():
    labels = {"direction": "down", "rotation": "anticlockwise", "speed": "faster"}
    assert class_number("motion", labels) == 1 * 4 + 1 * 2 + 0
    assert class_names("motion")[6] == "down-anticlockwise-faster"
    assert class_names("texture") == list(TEXTURES)


def test_the_data_set_is_written_once_and_told_by_its_card(tmp_path):
    folder = make_scenes(tmp_path / "scenes", SMALL)
    for split in SPLITS:
        rows = load_rows(str(folder), split)
        assert len(rows) == getattr(SMALL, split)
        expected = [row for row, _ in scenes(split, SMALL)]
        with (folder / split / "metadata.csv").open(newline="") as file:
            for row, written in zip(expected, csv.DictReader(file), strict=True):
                assert {key: int(written[key]) for key in row} == row
    (_, frames), (_, backwards), *_ = scenes("test", SMALL)
    decoded = read_frames(folder / "test" / "00000.mp4", range(SMALL.frames)).astype(int)
    assert np.abs(frames - decoded).mean() < 0.5 * np.abs(backwards - decoded).mean()
    card = (folder / "README.md").read_text()
    assert "6 videos to train on, 2 for validation, 4 for the test" in card
    assert all(f"`{column}`" in card for column in expected[0])

    video = folder / "train" / "00000.mp4"
    before = video.stat().st_mtime_ns
    make_scenes(folder, SMALL)
    assert video.stat().st_mtime_ns == before
    video.write_bytes(b"cut off")
    make_scenes(folder, SMALL)
    assert video.stat().st_size > 100
    make_scenes(folder, SceneSettings(**{**vars(SMALL), "test": 2}))
    assert len(load_rows(str(folder), "test")) == 2


@pytest.mark.parametrize(
    ("key", "value"), [("train", 3), ("test", 0), ("width", 47), ("frames", 1), ("shake", -0.1), ("crf", 52)]
)
def test_sizes_that_cannot_be(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}"):
        SceneSettings(**{key: value})
