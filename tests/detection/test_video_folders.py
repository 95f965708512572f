"""Folders of videos: whole files, a file per second, Kinetics' names; the same frames from all, and clear errors."""

from pathlib import Path

import numpy as np
import pytest

from mvd_hf.data.toy import write_video
from mvd_hf.detection.video_folders import SecondFiles, VideoFolders
from mvd_hf.model.video_reading import VideoReadError

FPS = 10


def numbered(first: int, count: int) -> np.ndarray:
    """Grey frames whose level is ten times their number, the last of which is 24."""
    return np.stack([np.full((32, 32, 3), 10 * number, dtype=np.uint8) for number in range(first, first + count)])


def levels(frames: np.ndarray) -> list[int]:
    return [round(frame.mean() / 10) for frame in frames]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A video of frames 0 to 24 in all three forms."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "whole.mp4", numbered(0, 25), fps=FPS)
    (folder / "parts").mkdir()
    for second, (first, count) in enumerate([(0, 10), (10, 10), (20, 5)]):
        write_video(folder / "parts" / f"{900 + second:04d}.mp4", numbered(first, count), fps=FPS)
    (folder / "kinetics").mkdir()
    write_video(folder / "kinetics" / "-_ab_c_000900_000902.mp4", numbered(0, 25), fps=FPS)
    return folder


@pytest.mark.parametrize(
    ("video", "start", "timestamp"), [("whole", 0, 1), ("whole", 900, 901), ("parts", 0, 901), ("-_ab_c", 0, 901)]
)
def test_the_frames_around_a_second_are_the_same_in_every_form(root, video, start, timestamp):
    with VideoFolders(root, start).open(video, timestamp, span=8) as (reader, key_frame):
        offsets = np.array([-5, 0, 3, 0, 7])
        assert levels(reader.read(key_frame + offsets)) == [5, 10, 13, 10, 17]


def test_only_the_seconds_that_are_wanted_are_opened(root):
    with SecondFiles(root / "parts", 901, span=8) as reader:
        assert (len(reader), reader.key_frame) == (20, 10)
    with SecondFiles(root / "parts", 901, span=12) as reader:
        assert (len(reader), reader.key_frame) == (25, 10)  # there is no more
    with SecondFiles(root / "parts", 900, span=30) as reader:
        assert (len(reader), reader.key_frame) == (25, 0)


def test_several_folders_and_a_name_with_its_suffix(root, tmp_path):
    folders = VideoFolders([tmp_path, root])
    assert folders.locate("whole", 1) == (root / "whole.mp4", 0.0)
    assert folders.locate("whole.mp4", 1) == (root / "whole.mp4", 0.0)
    assert [path for path, _, _ in folders.parts("-_ab_c")] == [root / "kinetics" / "-_ab_c_000900_000902.mp4"]
    assert folders.parts("nothing") == []
    folders.check(["whole", "parts", "-_ab_c"])
    with pytest.raises(ValueError, match=r"2 \(a, nothing\)"):
        folders.check(["whole", "nothing", "a", "a"])


def test_a_name_may_look_like_kinetics_and_a_number(root, tmp_path):
    name = "-_ab_c_000900_000902"
    assert VideoFolders(root).locate(name, 1) == (root / "kinetics" / f"{name}.mp4", 0.0)
    write_video(tmp_path / "0007.mp4", numbered(0, 5), fps=FPS)
    assert VideoFolders(tmp_path).locate("0007", 0) == (tmp_path / "0007.mp4", 0.0)


def test_what_is_missing_is_named(root):
    for video, timestamp, message in (
        ("nothing", 1, "nothing.mp4, nothing/902.mp4"),
        ("whole", 3, "the time 3 s .* 2.50 s"),
        ("parts", 905, "second 905: .*900 to 902"),
        ("parts", 900.5, "900.5 s"),
        ("-_ab_c", 5, "second 5: .*900 to 902"),
    ):
        with pytest.raises(VideoReadError, match=message), VideoFolders(root).open(video, timestamp, span=8):
            pass


def test_a_folder_without_seconds_and_no_folder(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoReadError, match=r"has no file of a second \(902.mp4\)"):
        SecondFiles(tmp_path / "empty", 902, span=8)
    with pytest.raises(ValueError, match="no folder of videos"):
        VideoFolders(tmp_path / "nowhere")


def test_seconds_of_different_sizes_are_refused(tmp_path):
    for second, side in ((1, 32), (2, 48)):
        write_video(tmp_path / f"{second}.mp4", np.zeros((10, side, 32, 3), dtype=np.uint8), fps=FPS)
    with SecondFiles(tmp_path, 2, span=8) as reader, pytest.raises(VideoReadError, match="different sizes"):
        reader.read([0, 15])
