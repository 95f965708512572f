"""Generated videos resemble natural ones and are made once."""

from pathlib import Path

import av
import numpy as np
import pytest

from recipes.benchmark.videos import make_video, make_videos, natural_frames


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    """A video of 24 frames with a key frame every 8 and B-frames between."""
    path = tmp_path_factory.mktemp("videos") / "tiny.mp4"
    make_video(path, natural_frames(24, 48, 64, seed=0), gop_size=8)
    return str(path)


def test_videos_resemble_natural_ones(video):
    with av.open(video) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert (stream.width, stream.height, stream.codec_context.name) == (64, 48, "h264")
    assert len(packets) == 24
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    assert keys[0] == 0
    assert np.diff([*keys, len(packets)]).max() <= 8
    assert [packet.pts for packet in packets] != sorted(packet.pts for packet in packets)  # B-frames
    frames = list(natural_frames(3, 48, 64, seed=0))
    assert frames[0].std() > 20
    assert 0 < np.abs(frames[1].astype(int) - frames[0]).mean() < np.abs(frames[0] - frames[0].mean()).mean()
    assert np.array_equal(frames[0], next(natural_frames(1, 48, 64, seed=0)))


def test_videos_are_made_once(tmp_path):
    groups = make_videos(tmp_path, num_frames=3, height=16, width=16)
    assert list(groups) == ["GOP 250", "GOP 12"]
    paths = [Path(path) for group in groups.values() for path in group]
    times = [path.stat().st_mtime_ns for path in paths]
    assert len(set(paths)) == 4
    assert make_videos(tmp_path, num_frames=3, height=16, width=16) == groups
    assert [path.stat().st_mtime_ns for path in paths] == times
    assert sorted(tmp_path.iterdir()) == sorted(paths)  # nothing unfinished
