"""Files of rows as readers of frames: bytes, paths, URLs and images, and errors that name the row's file."""

import io

import fsspec
import numpy as np
import pytest
from PIL import Image

from mvd_hf.data.decoding import ImageReader, open_media, read_url
from mvd_hf.data.sources import media_name
from mvd_hf.model.video_reading import VideoReader, VideoReadError
from video_files import numbered_frames, write


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A file of 12 frames."""
    return write(tmp_path_factory.mktemp("video") / "video.mp4", numbered_frames(12))


def test_an_error_names_the_row_although_its_bytes_are_read(video):
    for item, name in (
        ({"path": "row.mp4", "bytes": b"no video"}, "row.mp4"),
        ({"path": None, "bytes": b"no video"}, media_name(b"no video")),
    ):
        with pytest.raises(VideoReadError, match=rf"^{name}: cannot be opened as a video"), open_media(item):
            pass
    item = {"path": "row.mp4", "bytes": (video).read_bytes()}
    with pytest.raises(VideoReadError, match=r"^row\.mp4: frame 99 was asked for"), open_media(item) as reader:
        reader.read([99])


def test_a_reader_is_closed_on_leaving(video, monkeypatch):
    closed = []
    monkeypatch.setattr(VideoReader, "close", lambda self: closed.append(self))
    with pytest.raises(KeyError), open_media(str(video)) as reader:
        raise KeyError
    assert closed == [reader]


def test_a_row_without_a_file_is_an_unreadable_video():
    for is_image in [False, True]:
        for item in [None, {"path": None, "bytes": None}]:
            with pytest.raises(VideoReadError, match="<a row without a file>: has neither a path nor bytes"):
                open_media(item, is_image).__enter__()


def test_a_url_that_cannot_be_fetched_is_an_unreadable_video(monkeypatch):
    with pytest.raises(VideoReadError, match=r"memory://videos/none\.mp4: cannot be fetched"):
        open_media("memory://videos/none.mp4").__enter__()

    class ClientError(Exception):
        """As the HTTP clients under file systems have them."""

    def fail(*args, **kwargs):
        raise ClientError("connection lost")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "open", fail)
    with pytest.raises(VideoReadError, match=r"0000\.mp4: cannot be fetched \(connection lost\)"):
        read_url("memory://videos/0000.mp4")


def test_a_missing_package_of_a_protocol_is_no_bad_video(monkeypatch):
    def fail(*args):
        raise ImportError("install the package")

    monkeypatch.setattr(fsspec, "open", fail)
    with pytest.raises(ImportError, match="install the package"):
        read_url("s3://videos/0000.mp4")


def png(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_is_a_video_of_one_frame():
    with ImageReader(png(6, 8)) as reader:
        assert len(reader) == 1
        frames = reader.read([0, 0, 0])
        assert frames.shape == (3, 6, 8, 3)
        assert (frames == np.asarray(Image.open(io.BytesIO(png(6, 8))))).all()
        assert (reader.decode([0]).rgb((1, 2, 3, 4)) == frames[:1, 1:4, 2:6]).all()


def test_an_image_is_turned_upright_and_read_as_rgb(tmp_path):
    frame = np.zeros((40, 56), dtype=np.uint8)
    frame[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter clockwise
    Image.fromarray(frame).save(tmp_path / "gray.png", exif=exif)
    with open_media(str(tmp_path / "gray.png"), is_image=True) as reader:
        (upright,) = reader.read([0])
        assert upright.shape == (56, 40, 3)
        assert (upright[:8] == 255).all()
        assert (upright[8:] == 0).all()


def test_an_image_of_too_many_pixels_is_an_unreadable_video(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    item = {"path": "bomb.png", "bytes": png(20, 20)}
    with pytest.raises(VideoReadError, match=r"bomb\.png: cannot be read as an image \(Image size"):
        open_media(item, is_image=True).__enter__()


def test_whatever_is_wrong_with_an_image_it_is_an_unreadable_video():
    content, reasons = png(16, 16), set()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        try:
            ImageReader(bytes(damaged))
        except VideoReadError as error:
            reasons.add(error.reason)
    assert len(reasons) > 5
    assert not any("0x" in reason for reason in reasons)  # an address would tell the same file as new every time
