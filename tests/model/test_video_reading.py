"""The video reader returns the right frames of any file, or its error names the file and the reason."""

import io
import os
import pickle
import re
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from mvd_hf.data.decoding import read_frames
from mvd_hf.data.toy import write_video
from mvd_hf.model import video_reading
from mvd_hf.model.video_reading import VideoReader, VideoReadError
from video_files import H264, NUM_FRAMES, add_video, encode, numbered_frames, numbers, write


def encode_silence(container, stream, seconds: float):
    for i in range(int(seconds * 16000 / 1024)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = 16000, Fraction(1, 16000), 1024 * i
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_audio(path: Path) -> Path:
    """A second of silence without a video stream."""
    with av.open(str(path), "w") as container:
        encode_silence(container, container.add_stream("aac", rate=16000, layout="mono"), 1)
    return path


def packets_of(path: Path) -> list:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def copy_packets(source: Path, target: Path, change) -> Path:
    """Copy the stream packet by packet; `change(i, packet)` gives the packet to write, or None."""
    with av.open(str(source)) as old, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for i, packet in enumerate(p for p in old.demux(video=0) if p.size):
            changed = change(i, packet)
            if changed is not None:
                changed.stream = stream
                new.mux(changed)
    return target


def exhaustive(path: Path) -> np.ndarray:
    """All frames of the best video stream in the order in which the decoder gives them, as they are stored."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        for packet in [*(p for p in container.demux(stream) if p.size), None]:
            try:
                frames.extend(frame.to_ndarray(format="rgb24") for frame in stream.decode(packet))
            except av.error.InvalidDataError:
                continue
    return np.stack(frames)


def assert_reads(source, expected: np.ndarray):
    """The reader counts and returns exactly the expected frames, in any order, few or all."""
    count, rng = len(expected), np.random.default_rng(0)
    orders = [range(count), [count - 1], [0], range(3, count, 7), [5, 5, 2, 5]]
    orders += [rng.permutation(count)[: count // 2], rng.integers(0, count, 16)]
    for order in orders:
        with VideoReader(source) as reader:
            assert len(reader) == count
            assert np.array_equal(reader.read(order), expected[np.array(order)])
    with VideoReader(source) as reader:
        for order in (*orders, *([i] for i in range(count))):
            assert np.array_equal(reader.read(order), expected[np.array(order)])


# without mbtree, which makes x264's output vary from run to run
OPEN_GOP = {
    "crf": "20",
    "mbtree": "0",
    "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0:b-pyramid=normal",
}
INTRA_REFRESH = {"crf": "20", "mbtree": "0", "x264-params": "intra-refresh=1:keyint=12:bframes=2"}
HEVC = {"codec": "libx265", "preset": "ultrafast"}
X265 = "log-level=none:pools=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"
VP9 = {"codec": "libvpx-vp9", "crf": "30", "b": "0", "cpu-used": "8", "deadline": "realtime"}
LATE = {"times": np.arange(NUM_FRAMES) + 75}
IRREGULAR = {"times": np.cumsum(np.arange(NUM_FRAMES) % 7 % 3 + 1)}
FORMATS = {
    "h264_gop_12": ("mp4", H264 | {"bf": "3"}),
    "h264_gop_250": ("mp4", H264 | {"bf": "3", "gop": 250}),
    "h264_no_b_frames": ("mp4", H264 | {"bf": "0"}),
    "h264_intra_only": ("mp4", H264 | {"gop": 1}),
    "h264_open_gop": ("mp4", OPEN_GOP),
    "h264_open_gop_mkv": ("mkv", OPEN_GOP),
    "h264_open_gop_ts": ("ts", OPEN_GOP),
    "h264_intra_refresh": ("mp4", INTRA_REFRESH),
    "h264_intra_refresh_ts": ("ts", INTRA_REFRESH),
    "h264_mkv": ("mkv", H264),
    "h264_mov": ("mov", H264),
    "h264_flv": ("flv", H264),
    "h264_ts": ("ts", H264),
    "h264_avi_b_frames": ("avi", H264 | {"bf": "3"}),
    "h264_elementary_stream": ("h264", H264 | {"bf": "0"}),
    "h264_elementary_stream_b_frames": ("h264", H264 | {"bf": "3"}),
    "h264_fragmented": ("mp4", H264 | {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "h264_10_bit": ("mp4", H264 | {"pix_fmt": "yuv420p10le"}),
    "h264_422": ("mp4", H264 | {"pix_fmt": "yuv422p"}),
    "h264_gray": ("mp4", H264 | {"pix_fmt": "gray"}),
    "h264_full_range": ("mp4", H264 | {"pix_fmt": "yuvj420p"}),
    "h264_late_start": ("mp4", H264 | LATE),
    "h264_late_start_mkv": ("mkv", H264 | LATE),
    "h264_late_start_ts": ("ts", H264 | LATE),
    "h264_irregular_times": ("mp4", H264 | IRREGULAR),
    "h264_irregular_times_mkv": ("mkv", H264 | IRREGULAR),
    "h264_equal_times_mkv": ("mkv", H264 | {"bf": "0", "times": np.arange(NUM_FRAMES) // 2 * 2}),
    "hevc": ("mp4", HEVC | {"x265-params": X265}),
    "hevc_open_gop_mkv": ("mkv", HEVC | {"x265-params": f"{X265}:open-gop=1"}),
    "hevc_10_bit": ("mp4", HEVC | {"x265-params": X265, "pix_fmt": "yuv420p10le"}),
    "hevc_elementary_stream": ("hevc", HEVC | {"x265-params": X265}),
    "vp9": ("webm", VP9),
    "av1": ("mp4", {"codec": "libsvtav1", "preset": "10", "crf": "20"}),
    "av1_mkv": ("mkv", {"codec": "libsvtav1", "preset": "10", "crf": "20"}),
    "vp8": ("webm", {"codec": "libvpx", "crf": "20", "b": "500k", "deadline": "realtime"}),
    "mpeg4_avi": ("avi", {"codec": "mpeg4", "b": "2M"}),
    "mpeg4_avi_b_frames": ("avi", {"codec": "mpeg4", "b": "2M", "bf": "2"}),
    "mpeg4_b_frames": ("mp4", {"codec": "mpeg4", "b": "2M", "bf": "2"}),
    "mpeg2_b_frames": ("mpg", {"codec": "mpeg2video", "b": "2M", "bf": "2"}),
    "mpeg2_elementary_stream_b_frames": ("m2v", {"codec": "mpeg2video", "b": "2M", "bf": "2"}),
    "mjpeg": ("avi", {"codec": "mjpeg", "b": "3M", "pix_fmt": "yuvj420p"}),
    "wmv2": ("wmv", {"codec": "wmv2", "b": "2M"}),
    "flv1": ("flv", {"codec": "flv", "b": "2M"}),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """60 numbered frames as H.264 with B-frames, a key frame at least every 12."""
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", **H264)


@pytest.mark.parametrize("name", FORMATS)
def test_any_reading_equals_an_exhaustive_decode(tmp_path, name):
    suffix, options = FORMATS[name]
    path = write(tmp_path / f"clip.{suffix}", **options)
    expected = exhaustive(path)
    assert numbers(expected) == list(range(NUM_FRAMES))
    assert_reads(path, expected)


@pytest.mark.parametrize("name", [name for name, (suffix, _) in FORMATS.items() if suffix in ("mp4", "mov")])
def test_long_files_are_read_exactly_where_frames_are_wanted(tmp_path, name, monkeypatch):
    monkeypatch.setattr(video_reading, "MIN_INDEXED_PACKETS", 1)
    suffix, options = FORMATS[name]
    path = write(tmp_path / f"clip.{suffix}", **options)
    assert_reads(path, exhaustive(path))


def test_long_files_are_not_read_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(video_reading, "MIN_INDEXED_PACKETS", 1)
    path = tmp_path / "clip.mp4"
    write_video(path, numbered_frames(240), gop_size=12)
    fetched, fetch = [], VideoReader._read_range

    def counting(self, start, stop):
        packets = fetch(self, start, stop)
        fetched.extend(packets)
        return packets

    monkeypatch.setattr(VideoReader, "_read_range", counting)
    monkeypatch.delattr(VideoReader, "_scan")
    with VideoReader(path) as reader:
        assert len(reader) == 240
        assert numbers(reader.read([100, 101])) == [100, 101]
        assert len(fetched) <= 3 * 12


def test_a_misleading_table_is_replaced_by_a_scan(clip, monkeypatch):
    monkeypatch.setattr(video_reading, "MIN_INDEXED_PACKETS", 1)
    monkeypatch.setattr(VideoReader, "_read_range", lambda self, start, stop: [])
    expected = exhaustive(clip)
    with clip.open("rb") as file:
        for source in (clip, file):
            with VideoReader(source) as reader:
                assert np.array_equal(reader.read([50, 3, 20]), expected[[50, 3, 20]])
                assert np.array_equal(reader.read([7]), expected[[7]])


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("mp4", H264 | {"pix_fmt": "yuv444p"}), ("webm", VP9), ("avi", {"codec": "mpeg4", "b": "4M"})],
)
def test_odd_sizes_lose_no_pixel(tmp_path, suffix, options):
    path = write(tmp_path / f"clip.{suffix}", numbered_frames(24, 181, 225), **options)
    expected = exhaustive(path)
    assert expected.shape == (24, 181, 225, 3)
    assert numbers(expected) == list(range(24))
    assert_reads(path, expected)


def test_very_short_videos_are_read(tmp_path):
    for count in (1, 2):
        path = tmp_path / f"{count}.mp4"
        write_video(path, numbered_frames()[:count])
        expected = exhaustive(path)
        assert len(expected) == count
        with VideoReader(path) as reader:
            assert len(reader) == count
            assert np.array_equal(reader.read([count - 1] * 16), expected[[count - 1] * 16])


def test_frames_equal_the_written_ones_up_to_compression(clip):
    frames = read_frames(clip, range(NUM_FRAMES))
    assert np.abs(frames.astype(int) - numbered_frames()).mean() < 8


def test_audio_longer_than_the_video_adds_no_frame(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = add_video(container, numbered_frames(), **H264)
        sound = container.add_stream("aac", rate=16000, layout="mono")
        encode(container, stream, numbered_frames())
        encode_silence(container, sound, 10)
    with av.open(str(path)) as container:
        assert container.duration > 9_000_000
    expected = exhaustive(path)
    assert len(expected) == NUM_FRAMES
    assert_reads(path, expected)


def test_best_of_two_video_streams_is_read(tmp_path):
    path, dark = tmp_path / "clip.mp4", np.zeros((10, 32, 48, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        first, second = add_video(container, dark, **H264), add_video(container, numbered_frames(), **H264)
        first.disposition, second.disposition = Disposition(0), Disposition.default
        encode(container, first, dark)
        encode(container, second, numbered_frames())
    expected = exhaustive(path)
    assert numbers(expected) == list(range(NUM_FRAMES))
    assert_reads(path, expected)


def test_a_cover_image_is_not_the_video(tmp_path):
    frames = numbered_frames()
    for with_video in (True, False):
        path = tmp_path / f"{with_video}.mp4"
        with av.open(str(path), "w") as container:
            cover = add_video(container, frames, codec="mjpeg", pix_fmt="yuvj420p")
            cover.disposition = Disposition.attached_pic
            video = add_video(container, frames, **H264) if with_video else None
            sound = container.add_stream("aac", rate=16000, layout="mono")
            encode(container, cover, frames[:1])
            if with_video:
                encode(container, video, frames)
            encode_silence(container, sound, 1)
        if with_video:
            assert numbers(read_frames(path, range)) == list(range(NUM_FRAMES))
        else:
            assert_refused(path, r"False\.mp4: has no video stream")


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path):
    source = write(tmp_path / "source.mp4", gop=24, **H264)

    def nine_frames_earlier(i, packet):
        shift = int(Fraction(9, 25) / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        return packet

    path = copy_packets(source, tmp_path / "cut.mp4", nine_frames_earlier)
    assert sum(packet.is_discard for packet in packets_of(path)) == 9
    expected = exhaustive(path)
    assert numbers(expected) == list(range(9, NUM_FRAMES))
    assert_reads(path, expected)


def test_stream_that_starts_between_key_frames_is_read_from_the_first_whole_frame(tmp_path):
    source = write(tmp_path / "source.ts", **OPEN_GOP)
    path = copy_packets(source, tmp_path / "cut.ts", lambda i, packet: None if i < 5 else packet)
    assert not packets_of(path)[0].is_keyframe
    expected = exhaustive(path)
    assert 0 < len(expected) < NUM_FRAMES - 5
    assert_reads(path, expected)


class WithLateStreams:
    """A container that demuxes like PyAV if streams appear that the header does not announce."""

    def __init__(self, container):
        self.container = container

    def __getattr__(self, name):
        return getattr(self.container, name)

    def demux(self, *streams):
        yield from self.container.demux(*streams)
        raise IndexError("list index out of range")


def test_streams_that_the_header_does_not_announce_are_ignored(clip, monkeypatch):
    expected, opened = exhaustive(clip), VideoReader._open
    monkeypatch.setattr(VideoReader, "_open", staticmethod(lambda source: WithLateStreams(opened(source))))
    for min_indexed_packets in (1, 10**6):
        monkeypatch.setattr(video_reading, "MIN_INDEXED_PACKETS", min_indexed_packets)
        assert_reads(clip, expected)


def test_the_content_decides_the_format_not_the_name(tmp_path):
    for suffix, other in (("mp4", "avi"), ("webm", "mp4"), ("mp4", "jpg"), ("mp4", "")):
        path = write(tmp_path / f"clip.{suffix}", **(H264 if suffix == "mp4" else VP9))
        expected = exhaustive(path)
        assert np.array_equal(read_frames(path.rename(tmp_path / f"other.{other}"), [7, 3]), expected[[7, 3]])


# degrees counter-clockwise, then a mirror: how a stored frame is shown
@pytest.mark.parametrize(
    ("suffix", "degrees", "mirror"),
    [*(("mp4", degrees, mirror) for degrees in (0, 90, 180, 270) for mirror in (False, True)), ("mkv", 90, False)],
)
def test_turned_and_mirrored_videos_are_read_upright(tmp_path, suffix, degrees, mirror):
    upright = numbered_frames()
    stored = np.rot90(upright[:, :, ::-1] if mirror else upright, -degrees // 90, (1, 2))
    path = write(
        tmp_path / f"clip.{suffix}",
        np.ascontiguousarray(stored),
        tag=lambda stream: stream.set_display_rotation(degrees, hflip=mirror),
        **H264,
    )
    expected = np.rot90(exhaustive(path), degrees // 90, (1, 2))
    expected = expected[:, :, ::-1] if mirror else expected
    assert numbers(expected) == list(range(NUM_FRAMES))
    assert_reads(path, expected)
    assert_boxes(path, expected)


def assert_boxes(path: Path, expected: np.ndarray):
    """A box is a slice of the upright frames."""
    height, width = expected.shape[1:3]
    boxes = [(0, 0, height, width), (5, 11, 20, 34), (height - 7, 0, 7, 3), (0, width - 5, height, 5), (3, 4, 1, 1)]
    with VideoReader(path) as reader:
        for top, left, h, w in boxes:
            region = expected[[4, 50], top : top + h, left : left + w]
            frames = reader.decode([4, 50])
            assert frames.size == (height, width)
            assert np.array_equal(frames.rgb((top, left, h, w)), region)


def test_box_of_an_upright_video_is_a_slice(clip):
    assert_boxes(clip, exhaustive(clip))


def test_box_outside_the_frame_is_refused_with_both_sizes(clip):
    with VideoReader(clip) as reader:
        frames = reader.decode([0])
    for box in ((-1, 0, 8, 8), (0, -1, 8, 8), (0, 0, 0, 8), (0, 0, 8, 0), (60, 0, 8, 8), (0, 90, 8, 8)):
        with pytest.raises(ValueError, match=rf"{re.escape(str(box))}.*64x96"):
            frames.rgb(box)


def test_several_threads_give_the_same_frames(clip):
    assert np.array_equal(read_frames(clip, range(NUM_FRAMES), num_threads=2), exhaustive(clip))


def test_indices_may_depend_on_the_number_of_frames(clip):
    frames = read_frames(clip, lambda count: [count - 1, count // 2])
    assert numbers(frames) == [59, 30]


def test_source_may_be_a_path_bytes_or_a_file_object(clip):
    expected, content = exhaustive(clip), clip.read_bytes()
    with clip.open("rb") as file:
        for source in (str(clip), clip, content, bytearray(content), file, io.BytesIO(content)):
            assert np.array_equal(read_frames(source, [40, 3, 40]), expected[[40, 3, 40]])
        assert not file.closed


def test_a_name_is_never_interpreted(tmp_path, monkeypatch, clip):
    monkeypatch.chdir(tmp_path)
    for name in (
        "colon:name.mp4",
        "http:clip.mp4",
        "-leading dash.mp4",
        "name with spaces, ünïcødé 视频 №7.mp4",
        'quote\'s & "(paren)" [b] %03d #1?.mp4',
        os.fsdecode(b"not_utf8_\xff.mp4"),
    ):
        shutil.copy(clip, tmp_path / name)
        for source in (name, Path(name), tmp_path / name, str(tmp_path / name)):
            assert numbers(read_frames(source, [12, 34])) == [12, 34]


@pytest.fixture(scope="module")
def no_video(tmp_path_factory) -> Path:
    """A folder of files without a readable video."""
    folder = tmp_path_factory.mktemp("no_video")
    (folder / "folder.mp4").mkdir()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is not a video\n" * 60)
    (folder / "page.mp4").write_text("<!DOCTYPE html><html><body><h1>404 not found</h1></body></html>\n")
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(20000))
    write_audio(folder / "audio.mp4")
    whole = write(folder / "whole.mp4", **H264).read_bytes()
    (folder / "no_index.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    noise = bytearray(whole)
    for packet in packets_of(folder / "whole.mp4"):
        noise[packet.pos : packet.pos + packet.size] = np.random.default_rng(packet.pos).bytes(packet.size)
    (folder / "noise.mp4").write_bytes(noise)
    return folder


def assert_refused(source, message: str):
    with pytest.raises(VideoReadError, match=message) as error:
        VideoReader(source)
    assert isinstance(error.value, ValueError)
    copy = pickle.loads(pickle.dumps(error.value))
    assert type(copy) is VideoReadError
    assert (str(copy), copy.reason) == (str(error.value), error.value.reason)


def test_files_without_video_are_refused_with_the_reason(no_video):
    for name, reason in {
        **dict.fromkeys(("missing", "folder"), "no such file"),
        **dict.fromkeys(("empty", "text", "page", "random", "no_index"), "cannot be opened as a video"),
        "audio": "has no video stream",
        "noise": "no frame can be decoded",
    }.items():
        path = no_video / f"{name}.mp4"
        for source in (path, str(path)):
            assert_refused(source, f"{re.escape(str(path))}: {reason}")
    noise = (no_video / "noise.mp4").read_bytes()
    assert_refused(b"", "<0 bytes of video>: cannot be opened as a video")
    assert_refused(b"no video", "<8 bytes of video>: cannot be opened as a video")
    assert_refused(noise, f"<{len(noise)} bytes of video>: no frame can be decoded")
    assert_refused(io.BytesIO(noise), "BytesIO object.*: no frame can be decoded")
    with (no_video / "text.mp4").open("rb") as file:
        assert_refused(file, r"text\.mp4: cannot be opened as a video")


def test_reserved_color_spaces_are_refused(tmp_path):
    def tag(stream):
        stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = 1

    path = write(tmp_path / "clip.mp4", codec="mpeg4", b="2M", tag=tag)
    assert numbers(read_frames(path, [3])) == [3]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"colrnclx") + 12  # behind two bytes each for primaries and transfer
    data[matrix : matrix + 2] = bytes((0, 3))
    path.write_bytes(data)
    with pytest.raises(VideoReadError, match=r"clip\.mp4: its colors cannot be converted to RGB"):
        read_frames(path, [3])


class LostFile(io.BytesIO):
    """A file object whose connection is lost after some reads."""

    num_reads = 0

    def read(self, size=-1):
        self.num_reads -= 1
        if self.num_reads < 0:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize("min_indexed_packets", [1, 10**6])
@pytest.mark.parametrize("error", [ConnectionError("lost"), RuntimeError("lost"), ValueError("lost")])
def test_a_failing_file_object_is_named_and_its_failure_is_not_the_end(
    tmp_path, monkeypatch, min_indexed_packets, error
):
    monkeypatch.setattr(video_reading, "MIN_INDEXED_PACKETS", min_indexed_packets)
    noise = np.random.default_rng(0).integers(0, 256, (24, 64, 96, 3), dtype=np.uint8)
    data = write(tmp_path / "clip.mp4", noise, **H264).read_bytes()
    expected, failures = exhaustive(tmp_path / "clip.mp4"), []
    for num_reads in range(200):
        file = LostFile(data)
        file.error, file.num_reads = error, num_reads
        try:
            frames = read_frames(file, range)
        except VideoReadError as failure:
            failures.append(str(failure))
            # the failure does not affect other files
            assert np.array_equal(read_frames(tmp_path / "clip.mp4", [3]), expected[[3]])
        else:
            assert np.array_equal(frames, expected)
            break
    assert 3 < len(failures) < 200
    reason = re.compile(r"LostFile object.*: cannot be (opened as a video|read) \(lost\)")
    assert all(reason.search(failure) for failure in failures)


def test_a_path_is_never_a_url_or_protocol(no_video):
    path = str(no_video / "whole.mp4")
    with av.open(f"file:{path}") as container:
        assert container.streams.video
    assert_refused(f"file:{path}", "no such file")
    assert_refused("http://localhost/clip.mp4", "no such file")


def test_a_playlist_does_not_open_the_files_that_it_names(tmp_path):
    write(tmp_path / "clip.ts", **H264)
    m3u8 = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\nclip.ts\n#EXT-X-ENDLIST\n"
    concat = "ffconcat version 1.0\nfile clip.ts\n"
    for name, text in (("list.m3u8", m3u8), ("list.mp4", m3u8), ("concat.mp4", concat)):
        (tmp_path / name).write_text(text)
        if name != "list.mp4":  # FFmpeg itself refuses this name
            with av.open(str(tmp_path / name)) as container:
                assert container.streams.video
        for source in (tmp_path / name, text.encode(), io.BytesIO(text.encode())):
            assert_refused(source, "cannot be opened as a video")


def test_frames_above_the_largest_accepted_size_are_refused(clip):
    with pytest.raises(VideoReadError, match=r"clip\.mp4: frames of 96x64 exceed max_pixels=6143"):
        VideoReader(clip, max_pixels=64 * 96 - 1)
    with pytest.raises(VideoReadError, match="exceed max_pixels=100"):
        read_frames(clip, [0], max_pixels=100)
    assert len(read_frames(clip, [0], max_pixels=64 * 96)) == 1


def test_frame_that_is_not_in_the_video_is_refused_by_number(clip):
    for indices, reason in [
        ([3, 60], "frame 60 was asked for, the video has 60 frames"),
        ([3, -1], "frame -1 was asked for, the video has 60 frames"),
        ([], "no frame was asked for"),
    ]:
        for as_array in [False, True]:
            with VideoReader(clip) as reader:
                with pytest.raises(VideoReadError, match=rf"clip\.mp4: {reason}"):
                    reader.read(np.array(indices, dtype=int) if as_array else indices)
                assert numbers(reader.read([3])) == [3]


@pytest.mark.parametrize("part", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize(("suffix", "b_frames"), [("mp4", "0"), ("mp4", "3"), ("mkv", "3")])
def test_file_cut_off_in_the_middle_gives_the_frames_that_are_there(tmp_path, suffix, b_frames, part):
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    whole = write(tmp_path / f"whole.{suffix}", bf=b_frames, **H264, **options)
    data, path = whole.read_bytes(), tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: int(len(data) * part)])
    expected, complete = exhaustive(path), exhaustive(whole)
    assert 0 < len(expected) < NUM_FRAMES
    assert_reads(path, expected)
    there = numbers(expected)
    assert np.array_equal(expected[:-4], complete[there[:-4]])


@pytest.mark.parametrize(("damaged", "part"), [(15, "all"), (24, "all"), (24, "rest")])
def test_damaged_frame_is_refused_and_other_groups_are_exact(tmp_path, damaged, part):
    whole = write(tmp_path / "whole.mp4", bf="0", sc_threshold="0", **H264)
    expected, packets = exhaustive(whole), packets_of(whole)
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 12, 24, 36, 48]
    start, size = packets[damaged].pos, packets[damaged].size
    start, size = (start, size) if part == "all" else (start + size // 3, size - size // 3)
    data = bytearray(whole.read_bytes())
    data[start : start + size] = bytes(size)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    others = [*range(damaged // 12 * 12), *range(damaged // 12 * 12 + 12, NUM_FRAMES)]
    with VideoReader(path) as reader:
        assert len(reader) == NUM_FRAMES
        with pytest.raises(VideoReadError, match=rf"damaged\.mp4: .*\b{damaged}\b"):
            reader.read([damaged, 2])
        # what refers to the damaged frame would come out wrong: it is refused too, up to the next key frame
        for index in range(damaged, damaged // 12 * 12 + 12):
            with pytest.raises(VideoReadError, match=rf"\b{index}\b"):
                reader.read([index])
        assert np.array_equal(reader.read(others), expected[others])
        assert np.array_equal(reader.read(others[::-5]), expected[others[::-5]])


def test_frames_that_vp8_hides_are_not_counted(tmp_path):
    whole = write(tmp_path / "whole.webm", codec="libvpx", **{"auto-alt-ref": "0"})

    def hide(i, packet):
        if i not in (20, 33):
            return packet
        data = bytearray(bytes(packet))
        data[0] &= ~0x10  # the bit that says whether the frame is shown
        hidden = av.Packet(bytes(data))
        hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
        return hidden

    path = copy_packets(whole, tmp_path / "hidden.webm", hide)
    expected = exhaustive(path)
    assert len(expected) == NUM_FRAMES - 2
    assert_reads(path, expected)


def test_frames_of_another_size_are_refused_and_each_part_is_exact(tmp_path):
    small = write(tmp_path / "small.ts", numbered_frames(24), **H264)
    large = write(tmp_path / "large.ts", numbered_frames(24, 80), times=np.arange(24) + 30, **H264)
    path = tmp_path / "both.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with VideoReader(path) as reader:
        assert len(reader) == 48
        with pytest.raises(VideoReadError, match=r"both\.ts: frames change from 96x64 to 96x80"):
            reader.read([20, 30])
        assert np.array_equal(reader.read([3, 20]), exhaustive(small)[[3, 20]])
        assert np.array_equal(reader.read([27, 44]), exhaustive(large)[[3, 20]])
    with VideoReader(path, max_pixels=64 * 96) as reader:
        assert len(reader.read([3, 20])) == 2
        with pytest.raises(VideoReadError, match=r"both\.ts: frames of 96x80 exceed max_pixels=6144"):
            reader.read([30])


def test_files_are_closed_after_use_and_after_errors(clip, no_video):
    # readers and errors are kept, so that nothing is closed merely because it is forgotten
    before, kept = len(os.listdir("/proc/self/fd")), []
    for _ in range(50):
        with VideoReader(clip) as reader:
            reader.read([5])
        kept.append(reader)
        read_frames(clip, [5])
    for _ in range(50):
        for source, index, limit in (
            (no_video / "text.mp4", 0, 10**6),
            (no_video / "audio.mp4", 0, 10**6),
            (no_video / "noise.mp4", 0, 10**6),
            (clip, 60, 10**6),
            (clip, 0, 100),
        ):
            with pytest.raises(VideoReadError) as error:
                read_frames(source, [index], max_pixels=limit)
            kept.append(error)
    assert len(kept) == 300
    assert len(os.listdir("/proc/self/fd")) <= before


def test_only_the_groups_of_the_wanted_frames_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    write_video(path, numbered_frames(240), gop_size=12)
    decoded, decode = [], VideoReader._decode_packets

    def counting(self, packets, *arguments):
        def count():
            for packet in packets:
                decoded.append(packet)
                yield packet

        return decode(self, count(), *arguments)

    monkeypatch.setattr(VideoReader, "_decode_packets", counting)
    with VideoReader(path) as reader:
        assert len(reader) == 240
        assert decoded == []
        assert numbers(reader.read([10, 100, 200])) == [10, 100, 200]
        assert 3 <= len(decoded) <= 3 * 12
        decoded.clear()
        assert numbers(reader.read([100, 101, 102])) == [100, 101, 102]
        assert 3 <= len(decoded) <= 24


def test_memory_does_not_grow_with_the_number_of_reads(clip):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    order = np.arange(0, NUM_FRAMES, 4)
    for _ in range(100):
        read_frames(clip, order)
    before = resident()
    for _ in range(500):
        read_frames(clip, order)
    # the frames of one read are 276 kB, the compressed file 15 kB
    assert resident() - before < 4 << 20


# times


def test_the_frame_at_a_time(tmp_path):
    write_video(tmp_path / "clip.mp4", numbered_frames()[:50], fps=10)
    with VideoReader(tmp_path / "clip.mp4") as reader:
        np.testing.assert_allclose(reader.times(), np.arange(50) / 10)
        assert [reader.frame_at(time) for time in (0, 1, 2.34, 2.36, 4.9, 5.0)] == [0, 10, 23, 24, 49, 49]
        for time in (-0.1, 5.01, 900):
            with pytest.raises(VideoReadError, match=f"the time {time:g} s was asked for, the video has 5.00 s"):
                reader.frame_at(time)


def test_times_of_a_video_with_a_changing_rate_or_a_late_start(tmp_path):
    for options in (IRREGULAR, LATE):
        with VideoReader(write(tmp_path / "clip.mp4", **H264, **options)) as reader:
            seconds = (options["times"] - options["times"][0]) / 25
            np.testing.assert_allclose(reader.times(), seconds, atol=1e-6)
            assert reader.frame_at(seconds[40] + 0.001) == 40


@pytest.mark.parametrize("name", ["h264_gop_12", "h264_open_gop", "h264_irregular_times", "h264_late_start"])
def test_times_are_the_same_from_a_long_file_s_table(tmp_path, name, monkeypatch):
    suffix, options = FORMATS[name]
    path = write(tmp_path / f"clip.{suffix}", **options)
    with VideoReader(path) as reader:
        scanned = reader.times()
    monkeypatch.setattr(video_reading, "MIN_INDEXED_PACKETS", 1)
    with VideoReader(path) as reader:
        assert reader._entries
        if name == "h264_irregular_times":  # decoding times lie between those of the presentation
            assert reader.times()[-1] == pytest.approx(scanned[-1], rel=0.1)
        else:
            np.testing.assert_allclose(reader.times(), scanned, atol=1e-6)


def test_times_follow_from_the_rate_if_packets_have_none(tmp_path):
    write_video(tmp_path / "clip.mp4", numbered_frames()[:20], fps=10)
    elementary = copy_packets(tmp_path / "clip.mp4", tmp_path / "clip.h264", lambda i, packet: packet)
    with VideoReader(elementary) as reader:
        rate = float(reader._stream.average_rate or reader._stream.guessed_rate)
        np.testing.assert_allclose(reader.times(), np.arange(len(reader)) / rate)


def test_only_times_that_the_file_stores_count_as_stored(tmp_path):
    clip = write(tmp_path / "clip.ts", **H264)
    with VideoReader(clip) as reader:
        assert np.array_equal(reader.stored_times(), reader.times())
    (tmp_path / "twice.ts").write_bytes(2 * clip.read_bytes())
    elementary = copy_packets(clip, tmp_path / "clip.h264", lambda i, packet: packet)
    for path, problem in ((tmp_path / "twice.ts", "time of another"), (elementary, "stores no times")):
        with VideoReader(path) as reader, pytest.raises(VideoReadError, match=problem):
            reader.stored_times()


def test_times_that_go_back_are_refused(tmp_path):
    first = write(tmp_path / "first.ts", numbered_frames()[:10], **H264, bf="0", times=100 + 2 * np.arange(10))
    second = write(tmp_path / "second.ts", numbered_frames()[10:20], **H264, bf="0", times=1 + 2 * np.arange(10))
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + second.read_bytes())
    with VideoReader(tmp_path / "both.ts") as reader, pytest.raises(VideoReadError, match="go back"):
        reader.stored_times()


@pytest.mark.parametrize("name", FORMATS)
def test_stored_times_are_those_of_the_reader(tmp_path, name):
    suffix, options = FORMATS[name]
    with VideoReader(write(tmp_path / f"clip.{suffix}", **options)) as reader:
        if name == "h264_equal_times_mkv" or "elementary" in name:
            with pytest.raises(VideoReadError, match="stride"):
                reader.stored_times()
        else:
            np.testing.assert_allclose(reader.stored_times(), reader.times(), atol=1e-3)
