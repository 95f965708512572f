"""The toy videos: real H.264 files, labels that tell nothing about each other, motion in the named direction."""

import csv
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from mvd_hf.data.toy import APPEARANCES, MOTIONS, SHAPES, make_toy_dataset, toy_frames, toy_videos, write_video
from mvd_hf.model.video_reading import VideoReader

# (rows, columns), rows counted from the top
DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
SMALL = {"num_train": 4, "num_validation": 2, "num_frames": 4, "height": 32, "width": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_toy_dataset(tmp_path_factory.mktemp("toy"), num_train=32, num_validation=16, num_frames=24)


def table(split: Path) -> list[dict[str, str]]:
    with (split / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return reader.read(range(len(reader)))


def distance(one: Path, other: Path) -> float:
    """Mean difference of two videos in grey levels; the encoder does not give the same bytes every time."""
    return float(np.abs(read(one).astype(int) - read(other)).mean())


def assert_same_videos(one: Path, other: Path):
    for split in ("train", "validation"):
        assert table(one / split) == table(other / split)
        assert {path.name for path in (one / split).iterdir()} == {path.name for path in (other / split).iterdir()}
        for row in table(one / split):
            assert distance(one / split / row["file_name"], other / split / row["file_name"]) < 3


def travel(frames: np.ndarray) -> np.ndarray:
    """How far the moving thing came, in (rows, columns), from the phase of its mask's first harmonics."""
    background = np.median(frames, axis=0)
    mask = np.abs(frames - background).mean(axis=-1)
    mask = np.where(mask > 25, mask, 0)
    distances = []
    for axis, length in ((1, frames.shape[1]), (2, frames.shape[2])):
        profile = mask.sum(axis=3 - axis)
        phases = np.angle(profile @ np.exp(2j * np.pi * np.arange(length) / length))
        distances.append(np.unwrap(phases)[-1] - np.unwrap(phases)[0])
        distances[-1] *= length / (2 * np.pi)
    return np.array(distances)


def assert_moves(frames: np.ndarray, motion: str):
    distance = travel(frames.astype(np.float64))
    direction = np.array(DIRECTIONS[motion])
    along, across = distance @ direction, np.abs(distance) @ (1 - np.abs(direction))
    assert along > len(frames) / 2
    assert across < 0.2 * along


def test_square_moves_in_the_named_direction():
    for motion in DIRECTIONS:
        for appearance in APPEARANCES + SHAPES:
            for seed in range(3):
                assert_moves(toy_frames(appearance, motion, 32, 64, 80, np.random.default_rng(seed)), motion)


def test_square_of_a_file_moves_as_its_label_says(folder):
    for row in table(folder / "validation"):
        assert_moves(read(folder / "validation" / row["file_name"]), list(DIRECTIONS)[int(row["motion"])])


def test_motions_of_one_appearance_start_from_the_same_frame():
    for appearance in APPEARANCES:
        first = [toy_frames(appearance, motion, 2, 64, 80, np.random.default_rng(5))[0] for motion in MOTIONS]
        assert all((frame == first[0]).all() for frame in first)


def test_appearances_look_different():
    for names in (APPEARANCES, SHAPES):
        first = [toy_frames(name, "up", 1, 64, 80, np.random.default_rng(5))[0].astype(int) for name in names]
        for i, one in enumerate(first):
            for other in first[:i]:
                assert np.abs(one - other).mean() > 5


def test_unknown_appearance_or_motion_is_refused():
    for appearance, motion in [("plain", "up"), ("dots", "sideways")]:
        with pytest.raises(ValueError, match="must be one of"):
            toy_frames(appearance, motion, 2, 32, 32, np.random.default_rng(0))


def test_files_are_h264_of_the_stated_size_and_length(folder):
    for split, count in (("train", 32), ("validation", 16)):
        paths = sorted((folder / split).glob("*.mp4"))
        assert len(paths) == count
        for path in paths:
            with av.open(str(path)) as container:
                (stream,) = container.streams
                assert stream.codec_context.codec.canonical_name == "h264"
                assert (stream.codec_context.height, stream.codec_context.width) == (64, 80)
                assert sum(1 for _ in container.decode(stream)) == 24


def test_written_frames_come_back_nearly_unchanged(tmp_path):
    frames = toy_frames("rings", "left", 8, 64, 80, np.random.default_rng(0))
    write_video(tmp_path / "clip.mp4", frames)
    assert np.abs(read(tmp_path / "clip.mp4").astype(int) - frames).mean() < 8


@pytest.mark.parametrize("gop_size", [4, 12])
def test_key_frames_are_at_most_one_gop_apart(tmp_path, gop_size):
    frames = toy_frames("rings", "left", 40, 64, 80, np.random.default_rng(0))
    write_video(tmp_path / "clip.mp4", frames, fps=10, gop_size=gop_size)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].average_rate == 10
        keys = [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert np.diff([*keys, 40]).max() == gop_size


def test_labels_are_balanced_and_independent(folder):
    for split, each in [("train", 2), ("validation", 1)]:
        pairs = Counter((row["appearance"], row["motion"]) for row in table(folder / split))
        assert pairs == {(str(a), str(m)): each for a in range(len(APPEARANCES)) for m in range(len(MOTIONS))}


def test_metadata_names_every_file_of_its_split(folder):
    for split in ("train", "validation"):
        names = [row["file_name"] for row in table(folder / split)]
        assert names == sorted(path.name for path in (folder / split).glob("*.mp4"))


def test_seed_decides_the_videos():
    first, again, other = (list(toy_videos(16, 4, 32, 48, seed)) for seed in (1, 1, 2))
    for one, two, three in zip(first, again, other, strict=True):
        assert one[:2] == two[:2] == three[:2]
        assert (one[2] == two[2]).all()
        assert (one[2] != three[2]).any()


def test_seed_decides_the_files(tmp_path):
    first, again, other = (
        make_toy_dataset(tmp_path / name, seed=seed, **SMALL)
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert_same_videos(first, again)
    for path in first.glob("*/*.mp4"):
        assert path.read_bytes() == (again / path.relative_to(first)).read_bytes()
    for split in ("train", "validation"):
        assert table(first / split) == table(other / split)
        for row in table(first / split):
            assert distance(first / split / row["file_name"], other / split / row["file_name"]) > 10


def test_no_two_videos_of_both_splits_are_equal(folder):
    first = [read(path)[0].astype(int) for path in folder.glob("*/*.mp4")]
    assert len(first) == 48
    for i, one in enumerate(first):
        assert all(np.abs(one - other).mean() > 10 for other in first[:i])


def test_videos_are_made_one_by_one():
    videos = toy_videos(10**9, 2, 32, 48, seed=0)
    assert next(videos)[:2] == (APPEARANCES[0], next(iter(MOTIONS)))
    assert next(videos)[2].shape == (2, 32, 48, 3)


def test_complete_data_set_is_left_as_it_is(tmp_path):
    make_toy_dataset(tmp_path, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert make_toy_dataset(tmp_path, **SMALL) == tmp_path
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("change", [{"seed": 5}, {"num_frames": 9}, {"num_train": 3}])
def test_data_set_made_with_other_settings_is_made_anew(tmp_path, change):
    make_toy_dataset(tmp_path / "folder", **SMALL)
    wanted = make_toy_dataset(tmp_path / "wanted", **(SMALL | change))
    assert_same_videos(make_toy_dataset(tmp_path / "folder", **(SMALL | change)), wanted)


@pytest.mark.parametrize("lost", ["metadata", "rows", "split"])
def test_incomplete_data_set_is_completed(tmp_path, lost):
    complete = make_toy_dataset(tmp_path / "complete", **SMALL)
    folder = make_toy_dataset(tmp_path / "folder", **SMALL)
    split = folder / "train"
    lines = (split / "metadata.csv").read_text().splitlines()
    (split / "0001.mp4").write_bytes(b"half a file")
    if lost == "rows":
        (split / "metadata.csv").write_text("\n".join(lines[:-1]))
    else:
        (split / "metadata.csv").unlink()
    if lost == "split":
        for path in split.iterdir():
            path.unlink()
        split.rmdir()
    assert make_toy_dataset(folder, **SMALL) == folder
    assert_same_videos(folder, complete)
