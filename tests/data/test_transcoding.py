"""Files written again: frames and times kept, size, key frames, segments, rates, and what is refused."""

import av
import numpy as np
import pytest

from mvd_hf.data import transcoding
from mvd_hf.data.transcoding import TranscodeSettings, target_size, transcode
from mvd_hf.model.video_reading import VideoReader, VideoReadError
from video_files import H264, MOMENTS, all_frames, numbered_frames, numbers, write, write_moments

SETTINGS = TranscodeSettings()


def key_frames(path) -> list[int]:
    with av.open(str(path)) as container:
        return [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]


@pytest.mark.parametrize("name", MOMENTS)
def test_every_frame_and_its_time_is_kept(tmp_path, name):
    source = write_moments(tmp_path, name)
    done = transcode(str(source), tmp_path / "new" / "clip.mp4", SETTINGS)
    with VideoReader(tmp_path / "new" / "clip.mp4") as reader:
        np.testing.assert_allclose(reader.stored_times(), MOMENTS[name], atol=1e-4)
        assert numbers(reader.read(range(len(reader)))) == np.round(60 * MOMENTS[name]).tolist()
    assert (done.frames, done.seconds) == (len(MOMENTS[name]), pytest.approx(MOMENTS[name][-1], abs=1e-4))
    assert done.psnr > 30
    assert done.bytes == (tmp_path / "new" / "clip.mp4").stat().st_size
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "clip.mp4"]


@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_the_result_has_key_frames_no_sound_and_plain_pixels(tmp_path, count):
    transcode(str(write(tmp_path / "a.mkv", numbered_frames(count), **H264)), tmp_path / "b.mp4", SETTINGS)
    with av.open(str(tmp_path / "b.mp4")) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert key_frames(tmp_path / "b.mp4") == list(range(0, count, 12))
    assert len(all_frames(tmp_path / "b.mp4")) == count


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ((1920, 1080, 1), (456, 256)),
        ((1080, 1920, 1), (256, 456)),
        ((64, 48, 1), (64, 48)),  # never enlarged
        ((225, 181, 1), (224, 180)),
        ((720, 576, 16 / 11), (466, 256)),
        ((160, 120, 0.5), (160, 240)),
        ((160, 120, 1e-9), (160, 120)),  # no real shape of a pixel
        ((3, 1000, 1), (4, 1000)),
    ],
)
def test_sizes_are_even_with_square_pixels_and_a_short_side(source, expected):
    assert target_size(*source, 256) == expected


def test_rotated_frames_are_stored_upright(tmp_path):
    source = write(tmp_path / "a.mp4", np.rot90(numbered_frames(12), axes=(1, 2)), **H264)
    with av.open(str(source)) as container, av.open(str(tmp_path / "turned.mp4"), "w") as turned:
        stream = turned.add_stream_from_template(container.streams.video[0])
        try:
            stream.set_display_rotation(90)
        except AttributeError:
            pytest.skip("this PyAV writes no display matrix")
        for packet in container.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                turned.mux(packet)
    expected = all_frames(tmp_path / "turned.mp4")
    transcode(str(tmp_path / "turned.mp4"), tmp_path / "b.mp4", SETTINGS)
    found = all_frames(tmp_path / "b.mp4")
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("name", ["25", "variable"])
def test_a_segment_has_the_frames_between_its_times(tmp_path, name):
    source = write_moments(tmp_path, name)
    done = transcode(str(source), tmp_path / "b.mp4", SETTINGS, (1.0, 2.5))
    kept = [moment for moment in MOMENTS[name] if 1.0 <= moment < 2.5]
    assert numbers(all_frames(tmp_path / "b.mp4")) == [round(60 * moment) for moment in kept]
    with VideoReader(tmp_path / "b.mp4") as reader:
        np.testing.assert_allclose(reader.stored_times(), np.array(kept) - kept[0], atol=1e-4)
    assert done.frames == len(kept)
    with pytest.raises(VideoReadError, match="9 to 12 s"):
        transcode(str(source), tmp_path / "b.mp4", SETTINGS, (9, 12))


@pytest.mark.parametrize("name", MOMENTS)
def test_another_rate_takes_the_nearest_frames(tmp_path, name):
    source = write_moments(tmp_path, name)
    transcode(str(source), tmp_path / "b.mp4", TranscodeSettings(fps=12))
    with VideoReader(tmp_path / "b.mp4") as reader:
        np.testing.assert_allclose(reader.stored_times(), np.arange(48) / 12, atol=1e-4)
        shown = np.array(numbers(reader.read(range(48)))) / 60
    assert np.abs(shown - np.arange(48) / 12).max() <= 0.051


def test_low_quality_is_encoded_again_and_at_last_refused(tmp_path, monkeypatch):
    source = write(tmp_path / "a.mp4", **H264)
    monkeypatch.setattr(transcoding, "QUALITIES", dict.fromkeys(transcoding.ENCODERS, (51, 8)))
    assert transcode(str(source), tmp_path / "b.mp4", SETTINGS).psnr > 35
    with pytest.raises(VideoReadError, match="less than 59"):
        transcode(str(source), tmp_path / "c.mp4", TranscodeSettings(min_psnr=59))
    assert not (tmp_path / "c.mp4").exists()


def test_a_copy_with_other_frames_or_times_is_refused(tmp_path):
    transcode(str(write(tmp_path / "a.mp4", **H264)), tmp_path / "b.mp4", SETTINGS)
    ticks, right = np.arange(60) * 3600, {0: all_frames(tmp_path / "b.mp4")[0]}
    assert transcoding.verify(tmp_path / "b.mp4", ticks, right) > 90
    with pytest.raises(ValueError, match="60 of 59 frames"):
        transcoding.verify(tmp_path / "b.mp4", ticks[:59], right)
    with pytest.raises(ValueError, match="off"):
        transcoding.verify(tmp_path / "b.mp4", ticks + 900 * (np.arange(60) == 30), right)


def test_a_damaged_video_leaves_nothing(tmp_path):
    content = write(tmp_path / "a.mp4", **H264).read_bytes()
    middle = len(content) // 2
    for bad in (b"no video", content[:middle] + bytes(2000) + content[middle + 2000 :]):
        with pytest.raises(VideoReadError):
            transcode({"path": "bad.mp4", "bytes": bad}, tmp_path / "new" / "b.mp4", SETTINGS)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("wrong", [{"short_side": 8}, {"key_frame_every": 0}, {"min_psnr": -1}, {"fps": 0}])
def test_settings_out_of_range_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        TranscodeSettings(**wrong)
