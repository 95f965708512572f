"""The torchcodec backend gives the frames of the PyAV reader or refuses; where torchcodec is missing it says so."""

import importlib.util
import io
import os
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest

from mvd_hf.model import torchcodec_reading
from mvd_hf.model.torchcodec_reading import TorchCodecReader
from mvd_hf.model.video_reading import VideoReader, VideoReadError, open_video, read_frames

NUM_FRAMES = 30
needs_torchcodec = pytest.mark.skipif(
    torchcodec_reading.VideoDecoder is None,
    reason=f"torchcodec cannot be used: {getattr(torchcodec_reading, 'torchcodec_import_error', None)}",
)


@cache
def moving_frames(height: int = 64, width: int = 96) -> np.ndarray:
    """Frames (30, height, width, 3) of a texture that moves too far between frames for two to be mistaken."""
    coarse = np.random.default_rng(0).integers(40, 200, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return np.stack([np.roll(texture, (5 * i, 11 * i), (0, 1)) for i in range(NUM_FRAMES)])


def write(path: Path, frames=None, codec="libx264", pix_fmt="yuv420p", gop=10, tag=None, **options) -> Path:
    frames = moving_frames() if frames is None else frames
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size, stream.codec_context.thread_count = pix_fmt, gop, 1
        if tag is not None:
            tag(stream)
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def copy_packets(source: Path, target: Path, change) -> Path:
    """Copy the stream packet by packet, each changed by `change(packet)`."""
    with av.open(str(source)) as old, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in (p for p in old.demux(video=0) if p.size):
            change(packet)
            packet.stream = stream
            new.mux(packet)
    return target


H264 = {"preset": "veryfast", "crf": "20", "mbtree": "0", "bf": "3"}
# containers and codecs that torchcodec reads; the last number is the largest mean difference of a frame's colours
READ = {
    "h264": ("mp4", H264, 0),
    "h264_mkv": ("mkv", H264, 0),
    "h264_flv": ("flv", H264, 0),
    "h264_no_b_frames": ("mp4", H264 | {"bf": "0"}, 0),
    "h264_open_gop": ("mp4", H264 | {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:b-adapt=0"}, 0),
    "h264_10_bit": ("mp4", H264 | {"pix_fmt": "yuv420p10le"}, 6),
    "hevc": ("mp4", {"codec": "libx265", "preset": "ultrafast", "x265-params": "log-level=none:keyint=10"}, 0),
    "vp9": ("webm", {"codec": "libvpx-vp9", "crf": "30", "b": "0", "cpu-used": "8", "deadline": "realtime"}, 0),
    "mpeg4_avi": ("avi", {"codec": "mpeg4", "b": "2M"}, 0),
    "gif": ("gif", {"codec": "gif", "pix_fmt": "rgb8"}, 0),
}
REFUSED = {
    "h264_ts": ("ts", H264, "seeks in the format mpegts"),
    "mpeg2_ps": ("mpg", {"codec": "mpeg2video", "b": "2M", "bf": "2"}, "seeks in the format mpeg"),
    "h264_elementary_stream": ("h264", H264, "seeks in the format h264"),
    "h264_b_frames_avi": ("avi", H264, "do not give the order of the frames"),
    "mpeg4_b_frames_avi": ("avi", {"codec": "mpeg4", "b": "2M", "bf": "2"}, "do not give the order of the frames"),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """30 frames as H.264 with B-frames, a key frame at least every 10."""
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", **H264)


def assert_same_frames(read: np.ndarray, expected: np.ndarray, everything: np.ndarray, tolerance: float):
    """Frames are the expected ones up to a mean difference of colours, and no other frame is as near."""
    assert read.shape == expected.shape
    assert read.dtype == np.uint8
    for frame, wanted in zip(read.astype(int), expected, strict=True):
        distances = np.abs(everything - frame).mean((1, 2, 3))
        assert np.abs(frame - wanted).mean() <= tolerance
        assert np.array_equal(everything[distances.argmin()], wanted)


def orders(count: int) -> list:
    rng = np.random.default_rng(0)
    return [
        range(count),
        [count - 1],
        [0],
        rng.permutation(count)[: count // 2],
        [5, 5, 2, 5],
        *([i] for i in range(count)),
    ]


@needs_torchcodec
@pytest.mark.parametrize("name", READ)
def test_frames_are_those_of_the_pyav_reader(tmp_path, name):
    suffix, options, tolerance = READ[name]
    path = write(tmp_path / f"clip.{suffix}", **options)
    everything = read_frames(path, range)
    assert len(everything) == NUM_FRAMES
    with TorchCodecReader(path) as reader:
        assert len(reader) == NUM_FRAMES
        for order in orders(NUM_FRAMES):
            assert_same_frames(reader.read(order), everything[np.array(order)], everything, tolerance)


@needs_torchcodec
@pytest.mark.parametrize("name", REFUSED)
def test_what_torchcodec_may_read_wrongly_is_refused_with_the_remedy(tmp_path, name):
    suffix, options, reason = REFUSED[name]
    path = write(tmp_path / f"clip.{suffix}", **options)
    with pytest.raises(VideoReadError, match=rf"clip\.{suffix}: .*{reason}.*use backend='pyav'"):
        TorchCodecReader(path)
    assert len(read_frames(path, range)) == NUM_FRAMES


@needs_torchcodec
def test_edit_list_that_hides_frames_is_refused(tmp_path, clip):
    def nine_frames_earlier(packet):
        shift = int(Fraction(9, 25) / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift

    path = copy_packets(clip, tmp_path / "cut.mp4", nine_frames_earlier)
    with VideoReader(path) as reader:
        assert len(reader) == NUM_FRAMES - 9
    with pytest.raises(VideoReadError, match="an edit list hides frames; use backend='pyav'"):
        TorchCodecReader(path)


@needs_torchcodec
def test_equal_times_are_refused(tmp_path):
    def halve(packet):
        packet.pts = packet.dts = packet.pts // 80 * 80

    path = copy_packets(write(tmp_path / "clip.mkv", **H264 | {"bf": "0"}), tmp_path / "equal.mkv", halve)
    with pytest.raises(VideoReadError, match="do not give the order of the frames"):
        TorchCodecReader(path)


@needs_torchcodec
def test_frame_with_another_time_is_refused(clip, monkeypatch):
    with TorchCodecReader(clip) as reader:
        decoder = reader._video
        get_frame_at = decoder.get_frame_at
        monkeypatch.setattr(decoder, "get_frame_at", lambda index: get_frame_at(index + (index == 7)))
        with pytest.raises(VideoReadError, match=r"frame 7 came out as one of 0\.320 s; use backend='pyav'"):
            reader.read([3, 7])


@needs_torchcodec
def test_other_number_of_frames_is_refused(clip, monkeypatch):
    monkeypatch.setattr(torchcodec_reading.VideoDecoder, "__len__", lambda self: NUM_FRAMES + 1)
    with pytest.raises(VideoReadError, match="it counts 31 frames instead of 30; use backend='pyav'"):
        TorchCodecReader(clip)


@needs_torchcodec
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turned_videos_are_upright_and_mirrored_ones_refused(tmp_path, degrees, mirror):
    path = write(tmp_path / "clip.mp4", tag=lambda stream: stream.set_display_rotation(degrees, hflip=mirror), **H264)
    if mirror:
        with pytest.raises(VideoReadError, match=r"does not turn or mirror the frames.*use backend='pyav'"):
            TorchCodecReader(path)
        return
    everything = read_frames(path, range)
    assert everything.shape[1:3] == ((96, 64) if degrees % 180 else (64, 96))
    assert_same_frames(read_frames(path, [20, 3], backend="torchcodec"), everything[[20, 3]], everything, 0)


@needs_torchcodec
def test_box_is_a_slice_of_the_upright_frame(clip):
    whole = read_frames(clip, [4, 20])
    with TorchCodecReader(clip) as reader:
        assert np.array_equal(reader.read([4, 20], (5, 11, 20, 34)), whole[:, 5:25, 11:45])
        asked = reader.read([4, 20], lambda height, width: (height // 2, 3, height // 2, width - 3))
        assert np.array_equal(asked, whole[:, 32:, 3:])
        with pytest.raises(ValueError, match="is not inside 64x96"):
            reader.read([4], (60, 0, 8, 8))


@needs_torchcodec
@pytest.mark.parametrize("kind", ["str", "path", "bytes", "bytearray", "file", "buffer"])
def test_source_may_be_a_path_bytes_or_a_file_object(clip, kind):
    expected = read_frames(clip, [20, 3, 20])
    with clip.open("rb") as file:
        source = {
            "str": str(clip),
            "path": clip,
            "bytes": clip.read_bytes(),
            "bytearray": bytearray(clip.read_bytes()),
            "file": file,
            "buffer": io.BytesIO(clip.read_bytes()),
        }[kind]
        assert np.array_equal(read_frames(source, [20, 3, 20], backend="torchcodec"), expected)
        assert not file.closed


@needs_torchcodec
def test_relative_name_is_never_a_protocol(clip, tmp_path, monkeypatch):
    (tmp_path / "http:clip.mp4").write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    expected = read_frames(clip, [9])
    assert np.array_equal(read_frames("http:clip.mp4", [9], backend="torchcodec"), expected)


@needs_torchcodec
@pytest.mark.parametrize(
    ("indices", "reason"),
    [
        ([3, 30], "frame 30 was asked for, the video has 30 frames"),
        ([3, -1], "frame -1 was asked for, the video has 30 frames"),
        ([], "no frame was asked for"),
    ],
)
def test_frame_that_is_not_in_the_video_is_refused_by_number(clip, indices, reason):
    with TorchCodecReader(clip) as reader:
        with pytest.raises(VideoReadError, match=rf"clip\.mp4: {reason}"):
            reader.read(indices)
        assert len(reader.read([3])) == 1


@needs_torchcodec
@pytest.mark.parametrize("content", [b"", b"this is not a video\n" * 60, np.random.default_rng(0).bytes(9000)])
def test_what_is_no_video_is_named_with_the_reason(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(VideoReadError, match=r"clip\.mp4: cannot be opened as a video"):
        TorchCodecReader(tmp_path / "clip.mp4")
    with pytest.raises(VideoReadError, match="no such file"):
        TorchCodecReader(tmp_path / "other.mp4")


@needs_torchcodec
def test_too_large_frames_are_refused_before_torchcodec_sees_them(clip, monkeypatch):
    monkeypatch.setattr(torchcodec_reading, "VideoDecoder", lambda *arguments, **options: pytest.fail("opened"))
    with pytest.raises(VideoReadError, match=r"clip\.mp4: frames of 96x64 exceed max_pixels=6143"):
        TorchCodecReader(clip, max_pixels=64 * 96 - 1)


@needs_torchcodec
def test_errors_of_torchcodec_name_the_file(clip, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("unheard of")

    with monkeypatch.context() as patch:
        patch.setattr(torchcodec_reading, "VideoDecoder", fail)
        with pytest.raises(VideoReadError, match=r"clip\.mp4: torchcodec cannot open it \(unheard of\)"):
            TorchCodecReader(clip)
    with TorchCodecReader(clip) as reader:
        monkeypatch.setattr(reader._video, "get_frame_at", fail)
        with pytest.raises(VideoReadError, match=r"clip\.mp4: torchcodec cannot decode frame 3 \(unheard of\)"):
            reader.read([3])
        assert np.array_equal(reader.read([3]), read_frames(clip, [3]))  # with a fresh decoder


@needs_torchcodec
def test_damaged_frame_is_refused_whatever_was_read_before(tmp_path):
    path = write(tmp_path / "clip.mp4", sc_threshold="0", **H264 | {"bf": "0"})
    everything = read_frames(path, range)
    with av.open(str(path)) as container:
        damaged = [packet for packet in container.demux(video=0) if packet.size][13]
    data = bytearray(path.read_bytes())
    data[damaged.pos : damaged.pos + damaged.size] = bytes(damaged.size)
    path.write_bytes(data)
    with TorchCodecReader(path) as reader:
        assert np.array_equal(reader.read([12]), everything[[12]])
        for index in (13, 14, 14, 19, 13):
            with pytest.raises(VideoReadError, match=rf"cannot decode frame {index} "):
                reader.read([index])
        assert np.array_equal(reader.read([25, 2]), everything[[25, 2]])


@needs_torchcodec
def test_files_are_closed_after_use_and_after_errors(clip, tmp_path):
    stream = write(tmp_path / "clip.ts", **H264)
    read_frames(clip, [5], backend="torchcodec")
    before, kept = len(os.listdir("/proc/self/fd")), []
    for _ in range(20):
        with TorchCodecReader(clip) as reader:
            reader.read([5])
        with pytest.raises(VideoReadError, match="the reader is closed"):
            reader.read([5])
        kept.append(reader)
        for source, index in ((clip, 60), (stream, 0)):
            with pytest.raises(VideoReadError) as error:
                read_frames(source, [index], backend="torchcodec")
            kept.append(error)
    assert len(os.listdir("/proc/self/fd")) <= before


@needs_torchcodec
def test_open_video_and_read_frames_choose_the_backend(clip):
    with open_video(clip, "torchcodec", num_threads=2, max_pixels=10_000) as reader:
        assert type(reader) is TorchCodecReader
        frames = reader.read([2, 9])
    assert np.array_equal(read_frames(clip, lambda count: [2, count - 21], backend="torchcodec"), frames)


def test_pyav_is_the_default_backend(clip):
    with open_video(clip) as reader, open_video(clip, "pyav", num_threads=2) as other:
        assert type(reader) is type(other) is VideoReader
        assert np.array_equal(read_frames(clip, [2, 9], backend="pyav"), reader.read([2, 9]))


@pytest.mark.parametrize("backend", ["decord", "", None, "PyAV"])
def test_unknown_backend_is_refused_with_the_two_that_exist(clip, backend):
    with pytest.raises(ValueError, match=rf"backend {backend!r} does not exist: use 'pyav' or 'torchcodec'"):
        open_video(clip, backend)
    with pytest.raises(ValueError, match="does not exist: use 'pyav' or 'torchcodec'"):
        read_frames(clip, [0], backend=backend)


class Unimportable:
    """An import finder that fails for torchcodec as a missing package or an unloadable library does."""

    def __init__(self, error: Exception):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchcodec":
            raise self.error


@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError("No module named 'torchcodec'"), RuntimeError("no libavutil"), OSError("no libnvrtc")],
)
def test_missing_torchcodec_is_an_import_error_with_the_command(clip, monkeypatch, error):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Unimportable(error), *sys.meta_path])
    spec = importlib.util.spec_from_file_location(torchcodec_reading.__name__, torchcodec_reading.__file__)
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    with pytest.raises(ImportError, match=rf"pip install torchcodec \({error}\)"):
        without.TorchCodecReader(clip)
    monkeypatch.setattr(torchcodec_reading, "VideoDecoder", None)
    monkeypatch.setattr(torchcodec_reading, "torchcodec_import_error", error, raising=False)
    with pytest.raises(ImportError, match="pip install torchcodec"):
        read_frames(clip, [0], backend="torchcodec")
