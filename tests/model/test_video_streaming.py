"""Videos read from end to end: the frames of the reader, one after the other, and clear errors for damage."""

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from mvd_hf.data.decoding import read_frames
from mvd_hf.model.video_reading import VideoReader, VideoReadError
from mvd_hf.model.video_streaming import VideoStream
from video_files import H264, numbered_frames, write


def damage(folder: Path, packet: int, part: float) -> Path:
    """A copy of a video with a key frame every 12, one of whose packets is overwritten but for its first part."""
    whole = write(folder / "whole.mp4", bf="0", sc_threshold="0", **H264)
    with av.open(str(whole)) as container:
        start, size = next((p.pos, p.size) for i, p in enumerate(container.demux(video=0)) if i == packet)
    content = bytearray(whole.read_bytes())
    kept = int(size * part)
    content[start + kept : start + size] = bytes(size - kept)
    damaged = folder / "damaged.mp4"
    damaged.write_bytes(content)
    return damaged


def all_frames(source) -> list[np.ndarray]:
    with VideoStream(source) as stream:
        return list(stream.frames(lambda number: True))


@pytest.mark.parametrize(
    "options", [{}, {"gop": 60, "bf": "3"}, {"codec": "mpeg4"}], ids=["gop 12", "b-frames", "mpeg4"]
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_frames_are_those_of_the_reader(suffix, options, tmp_path):
    path = write(tmp_path / f"video{suffix}", **options)
    expected = read_frames(path, lambda total: range(total))
    for source in (path, path.read_bytes()):
        assert np.array_equal(np.stack(all_frames(source)), expected)


@pytest.mark.parametrize(("degrees", "mirror"), [(90, False), (180, False), (270, True)])
def test_frames_are_upright(degrees, mirror, tmp_path):
    path = write(tmp_path / "turned.mp4", tag=lambda stream: stream.set_display_rotation(degrees, hflip=mirror))
    frames = all_frames(path)
    assert np.array_equal(np.stack(frames), read_frames(path, range(60)))
    assert all(frame.flags.c_contiguous and frame.flags.writeable for frame in frames)  # as torch wants them


def test_only_wanted_frames_are_made_but_all_are_counted(tmp_path):
    path = write(tmp_path / "video.mp4")
    with VideoStream(path) as stream:
        frames = list(stream.frames(lambda number: number % 25 == 3))
    assert len(frames) == 60
    assert [number for number, frame in enumerate(frames) if frame is not None] == [3, 28, 53]
    assert np.array_equal(np.stack([frames[3], frames[28], frames[53]]), read_frames(path, [3, 28, 53]))


def test_a_frame_belongs_to_its_receiver(tmp_path):
    frames = all_frames(write(tmp_path / "video.mp4"))
    frames[0][:] = 0
    assert frames[1].any()


def test_the_stream_is_read_as_far_as_it_is_asked_for(tmp_path):
    path = write(tmp_path / "video.mkv")
    with VideoStream(path) as stream:
        frames = stream.frames(lambda number: True)
        assert np.array_equal(np.stack(list(itertools.islice(frames, 3))), read_frames(path, range(3)))


def test_what_is_cut_off_is_left_out(tmp_path):
    whole = write(tmp_path / "whole.mkv", numbered_frames(60))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with VideoReader(cut) as reader:
        expected = reader.read(range(len(reader)))
    assert 0 < len(expected) < 60
    assert np.array_equal(np.stack(all_frames(cut)), expected)


@pytest.mark.parametrize("lost", [12, 24])
def test_lost_frames_are_refused_because_the_next_numbers_are_not_known(lost, tmp_path):
    damaged = damage(tmp_path, lost, part=0)
    with (
        VideoStream(damaged) as stream,
        pytest.raises(VideoReadError, match=rf"damaged\.mp4: 1 packets near frame {lost}"),
    ):
        list(stream.frames(lambda number: False))


def test_damage_is_refused_where_it_is_wanted(tmp_path):
    damaged = damage(tmp_path, 24, part=0.3)
    expected = read_frames(tmp_path / "whole.mp4", range(60))
    with VideoStream(damaged) as stream:
        frames = list(stream.frames(lambda number: not 24 <= number < 36))
    sound = [*range(24), *range(36, 60)]
    assert np.array_equal(np.stack([frames[number] for number in sound]), expected[sound])
    for wanted in (24, 30, 35):
        with VideoStream(damaged) as stream, pytest.raises(VideoReadError, match=f"frame {wanted} is damaged, or fol"):
            list(stream.frames(lambda number, wanted=wanted: number == wanted))


def test_frames_that_change_their_size_are_refused(tmp_path):
    small, large, both = tmp_path / "small.h264", tmp_path / "large.h264", tmp_path / "both.h264"
    write(small, numbered_frames(8, 64, 96))
    write(large, numbered_frames(8, 96, 128))
    both.write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(VideoReadError, match="frames change from 96x64 to 128x96"):
        all_frames(both)


@pytest.mark.parametrize("content", [b"", b"no video at all"])
def test_what_is_no_video_is_named(content, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoReadError, match=r"broken\.mp4: cannot be opened"):
        all_frames(path)
    with pytest.raises(VideoReadError, match="no such file"):
        all_frames(tmp_path / "missing.mp4")
