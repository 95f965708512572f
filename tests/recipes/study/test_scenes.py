"""Scenes: appearance and motion are independent, reverses have the same frames, the test shows unseen variants."""

import csv
from collections import Counter
from itertools import product

import numpy as np
import pytest

from mvd_hf.data.decoding import read_frames
from mvd_hf.data.sources import load_rows
from recipes.study.scenes import (
    DIRECTIONS,
    MOTION_PARTS,
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


def all_rows(count: int) -> list[dict[str, int]]:
    """Class numbers of this many training videos, reverses included."""
    forward = plan_scenes("train", SceneSettings(train=count))
    return [scene.row() for pair in forward for scene in (pair, pair.backwards())]


def test_scenes_follow_from_the_seed():
    first, again, other = (list(scenes("train", SceneSettings(**{**vars(SMALL), "seed": i}))) for i in (0, 0, 1))
    for (row, frames), (same_row, same_frames), (_, other_frames) in zip(first, again, other, strict=True):
        assert row == same_row
        np.testing.assert_array_equal(frames, same_frames)
        assert np.abs(frames.astype(int) - other_frames).mean() > 5


def test_a_video_and_its_reverse_have_the_same_frames_and_different_motion():
    videos = list(scenes("test", SMALL))
    for (row, frames), (reverse, reversed_frames) in zip(videos[::2], videos[1::2], strict=True):
        np.testing.assert_array_equal(frames, reversed_frames[::-1])
        differing = {part for part in row if row[part] != reverse[part]}
        assert differing == {"is_reversed", "motion", *MOTION_PARTS} - {"order"}
    for scene in plan_scenes("train", SceneSettings(train=64)):
        assert scene.backwards().backwards() == scene


def test_appearance_and_motion_are_independent_and_balanced():
    rows = all_rows(4096)
    for appearance, motion in product(("texture", "appearance"), ("motion", *MOTION_PARTS)):
        counts = Counter((row[appearance], row[motion]) for row in rows)
        sizes = [len(class_names(column)) for column in (appearance, motion)]
        expected = len(rows) / np.prod(sizes)
        chi_squared = sum((counts[cell] - expected) ** 2 / expected for cell in product(*map(range, sizes)))
        freedom = np.prod(np.array(sizes) - 1)
        # pairs share their appearance, which at most doubles the statistic; five standard deviations above its mean
        assert chi_squared < 2 * (freedom + 5 * (2 * freedom) ** 0.5)
    for column in (*PARTS, *TASKS):
        assert set(Counter(row[column] for row in rows).values()) == {4096 // len(class_names(column))}


def test_the_test_has_unseen_textures_and_trajectories():
    for name in ("texture_id", "trajectory_id"):
        settings = SceneSettings(train=512, validation=512, test=512)
        used = {split: {getattr(scene, name) for scene in plan_scenes(split, settings)} for split in SPLITS}
        assert used["train"] == used["validation"]
        assert used["train"].isdisjoint(used["test"])
    ids = range(NUM_VARIANTS), range(NUM_VARIANTS, 2 * NUM_VARIANTS)
    seen, unseen = ([texture_variant(name, i) for name in TEXTURES for i in part] for part in ids)
    for field in ("period", "duty"):
        values = [getattr(variant, field) for variant in seen]
        assert all(not min(values) <= getattr(variant, field) <= max(values) for variant in unseen)
    seen, unseen = ([trajectory_variant(name, i) for name in DIRECTIONS for i in part] for part in ids)
    for field in ("deviation", "bend"):
        assert max(abs(getattr(way, field)) for way in seen) < min(abs(getattr(way, field)) for way in unseen)


def object_mask(labels: dict[str, str]) -> np.ndarray:
    """Where the object is (T, H, W): where another palette makes a difference."""
    settings = SceneSettings(frames=16)
    red, blue = (
        scene_frames(Scene(labels | {"palette": palette}, 0, 3), settings, np.random.default_rng(3))
        for palette in ("red", "blue")
    )
    return np.abs(red.astype(int) - blue).sum(axis=-1) > 60


def progress(labels: dict[str, str]) -> np.ndarray:
    """Path of the object (T, 2) in pixels from its start: rows and columns, across the borders too."""
    mask = object_mask(labels)
    place = []
    for axis, length in ((2, mask.shape[1]), (1, mask.shape[2])):
        phases = np.angle(mask.sum(axis=axis) @ np.exp(2j * np.pi * np.arange(length) / length))
        place.append((np.unwrap(phases) - phases[0]) * length / (2 * np.pi))
    return np.stack(place, axis=1)


def test_the_object_moves_in_its_direction_at_its_speed():
    for (direction, step), speed in product(DIRECTIONS.items(), PARTS["speed"]):
        way = progress(LABELS | {"shape": "disc", "direction": direction, "speed": speed})
        ahead = way @ np.array(step)
        assert ahead[-1] > 15
        assert ahead[-1] > 2 * np.linalg.norm(way[-1] - ahead[-1] * np.array(step))
        first_half = ahead[len(ahead) // 2] / ahead[-1]
        assert first_half < 0.45 if speed == "faster" else first_half > 0.55


def test_rotations_go_opposite_ways_from_a_common_middle():
    clockwise, anticlockwise = (
        object_mask(LABELS | {"shape": "square", "rotation": rotation}) for rotation in PARTS["rotation"]
    )
    differences = (clockwise ^ anticlockwise).sum(axis=(1, 2))
    assert differences[0] > 100
    assert differences[len(differences) // 2 - 1] < 0.5 * differences[0]


def test_surroundings_follow_the_settings():
    def surroundings(**settings) -> np.ndarray:
        canvas = Canvas(6, 40, 48)
        still = {"clutter": 0, "waves": 0, "drift": 0.0} | settings
        paint_surroundings(canvas, SceneSettings(**still), np.zeros((6, 2)), np.random.default_rng(0))
        return canvas.frames

    def num_colors(frame: np.ndarray) -> int:
        return len(np.unique(frame.reshape(-1, 3), axis=0))

    assert all(num_colors(frame) == 1 for frame in surroundings())
    assert num_colors(surroundings(clutter=1)[0]) == 2
    assert 3 <= num_colors(surroundings(clutter=4)[0]) <= 5  # some objects may cover others
    waves, drifting = surroundings(waves=1), surroundings(waves=1, drift=0.3)
    assert num_colors(waves[0]) > 100
    assert (waves == waves[0]).all()
    assert (drifting[0] == waves[0]).all()
    assert (drifting[-1] != drifting[0]).any()


def test_the_camera_shakes_as_the_settings_say(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "recipes.study.scenes.paint_surroundings", lambda canvas, settings, shake, rng: seen.append(shake)
    )
    for shake in (0.0, 0.02):
        seen.clear()
        list(scenes("train", SceneSettings(**{**vars(SMALL), "train": 20, "shake": shake})))
        assert np.diff(np.stack(seen), axis=1).std() == pytest.approx(shake, rel=0.15)


def test_the_position_of_an_object_does_not_reveal_its_direction(monkeypatch):
    places = {direction: [] for direction in DIRECTIONS}

    def note(canvas, scene, centres, angles, rng):
        places[scene.labels["direction"]].append(centres[0] * canvas.side / canvas.shape)

    monkeypatch.setattr("recipes.study.scenes.paint_object", note)
    monkeypatch.setattr("recipes.study.scenes.paint_surroundings", lambda canvas, *rest: canvas.frames.fill(0))
    settings = SceneSettings(train=1200, height=8, width=10)
    for number, scene in enumerate(plan_scenes("train", settings)):
        scene_frames(scene, settings, np.random.default_rng(number))
    for found in places.values():
        # positions spread evenly over a periodic frame have their circular mean near the centre
        assert np.abs(np.exp(2j * np.pi * np.array(found)).mean(axis=0)).max() < 0.25


def test_class_numbers_are_the_parts_as_digits():
    labels = {"direction": "down", "rotation": "anticlockwise", "speed": "faster"}
    assert class_number("motion", labels) == 1 * 4 + 1 * 2 + 0
    assert class_names("motion")[6] == "down-anticlockwise-faster"
    assert class_names("texture") == list(TEXTURES)


def test_the_data_set_is_written_once_and_repaired(tmp_path):
    folder = make_scenes(tmp_path / "scenes", SMALL)
    for split in SPLITS:
        assert len(load_rows(str(folder), split)) == getattr(SMALL, split)
        expected = [row for row, _ in scenes(split, SMALL)]
        with (folder / split / "metadata.csv").open(newline="") as file:
            for row, written in zip(expected, csv.DictReader(file), strict=True):
                assert {key: int(written[key]) for key in row} == row
    (_, frames), (_, backwards), *_ = scenes("test", SMALL)
    decoded = read_frames(folder / "test" / "00000.mp4", range(SMALL.frames)).astype(int)
    assert np.abs(frames - decoded).mean() < 0.5 * np.abs(backwards - decoded).mean()
    card = (folder / "README.md").read_text()
    assert all(f"`{column}`" in card for column in expected[0])

    video = folder / "train" / "00000.mp4"
    before = video.stat().st_mtime_ns
    make_scenes(folder, SMALL)
    assert video.stat().st_mtime_ns == before
    video.write_bytes(b"cut off")
    make_scenes(folder, SceneSettings(**{**vars(SMALL), "test": 2}))
    assert video.stat().st_size > 100
    assert len(load_rows(str(folder), "test")) == 2


def test_impossible_settings_are_refused():
    for key, value in {"train": 3, "test": 0, "width": 47, "frames": 1, "shake": -0.1, "crf": 52}.items():
        with pytest.raises(ValueError, match=f"{key}={value}"):
            SceneSettings(**{key: value})
