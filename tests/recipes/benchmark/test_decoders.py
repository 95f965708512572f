"""All decoders return the same frames; the floor decodes only what is needed."""

from functools import partial

import av
import numpy as np
import pytest

from recipes.benchmark.decoders import (
    DecoderFloor,
    check_frames,
    decode_ours,
    decoders,
    fixed_frames,
    optional,
)
from recipes.benchmark.reports import NOT_MEASURED
from recipes.benchmark.videos import make_video, natural_frames


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    """A video of 24 frames with a key frame every 8 and B-frames between."""
    path = tmp_path_factory.mktemp("videos") / "tiny.mp4"
    make_video(path, natural_frames(24, 48, 64, seed=0), gop_size=8)
    return str(path)


def numbers(*indices: int):
    return partial(fixed_frames, np.array(indices))


def test_installed_decoders_give_the_same_frames(video):
    choose = numbers(3, 5, 5, 21)
    expected = decode_ours(video, choose)
    assert expected.shape == (4, 48, 64, 3)
    for decode in decoders().values():
        assert decode is None or np.array_equal(decode(video, choose), expected)


def test_check_frames_reports_other_frames_and_failures(video):
    tasks = [(video, numbers(1, 9))]
    assert check_frames(decode_ours, tasks) == "same"
    assert check_frames(lambda path, choose: decode_ours(path, numbers(1, 8)), tasks) == "other frames"
    assert check_frames(lambda path, choose: {1}, tasks) == "other frames"
    assert check_frames(lambda path, choose: decode_ours("missing.mp4", choose), tasks) == "fails (VideoReadError)"
    assert check_frames(None, tasks) == NOT_MEASURED


def test_the_floor_decodes_only_what_is_needed(video):
    floor = DecoderFloor()
    for indices in ([0], [7], [8], [23], [1, 9], [6, 7, 8], [2, 20], range(24)):
        assert floor(video, numbers(*indices)) == set(indices)
    _, packets, order = floor.videos[video]
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    assert floor._runs(packets, [keys[1]]) == [[keys[1], keys[1] + 1]]
    assert floor._runs(packets, [0, order[23]]) == [[0, 1], [keys[-1], order[23] + 1]]
    floor.close()


def test_the_floor_needs_timestamps(tmp_path, video):
    path = tmp_path / "raw.h264"
    with av.open(video) as source, av.open(str(path), "w", format="h264") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    with pytest.raises(ValueError, match=r"raw\.h264"):
        DecoderFloor.open(str(path))
    assert check_frames(DecoderFloor(), [(str(path), numbers(0))]) == "fails (ValueError)"


def test_a_package_that_is_missing_is_none():
    assert optional("no_such_package") is None
