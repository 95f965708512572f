"""An open video file: its packets, a decoder for them, and upright RGB frames, with PyAV."""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import io
import itertools
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

try:
    import av
    from av.stream import Discard, Disposition
    from av.video.reformatter import VideoReformatter
except ImportError as error:  # models work without PyAV; only opening a video raises this error
    av, av_import_error = None, error

# containers that are a single file: playlists and manifests would open other files
SINGLE_FILE_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,m4v,vvc,av1,obu,ivf,flv,asf,ogg,"
    "gif,apng,mxf,nut,dv,rm,wtv,swf,yuv4mpegpipe,mjpeg,live_flv,mp3,wav,aac,flac"
)
# an 8K frame has 33 million pixels; a file of 200 KB can announce frames of gigabytes
MAX_PIXELS = 36_000_000

Source = str | bytes | os.PathLike | io.IOBase


class VideoReadError(ValueError):
    """A video cannot be read: the message names the file and the reason."""

    def __init__(self, source: Source, reason: str | None = None):
        # data loaders raise a worker's error again from its message alone
        super().__init__(source_name(source) if reason is None else f"{source_name(source)}: {reason}")
        self.source, self.reason = source, reason

    def __reduce__(self):
        return type(self), (source_name(self.source), self.reason)


def source_name(source: Source) -> str:
    """Name of a source in messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes of video>"
    return os.fspath(source) if isinstance(source, str | os.PathLike) else str(getattr(source, "name", source))


def orientation(frame) -> tuple[bool, bool, bool]:
    """How to turn a decoded frame upright: whether to swap rows and columns, then flip rows, then flip columns.

    Follows the display matrix [[a, b], [c, d]] of the stream, rounded to right angles.
    """
    for side_data in frame.side_data:
        if side_data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(side_data)[:20], dtype="<i4").tolist()
            if abs(a) + abs(d) >= abs(b) + abs(c):
                return False, d < 0, a < 0
            return True, b < 0, c < 0
    return False, False, False


class OpenVideo:
    """An open video file whose packets can be decoded. Use it in a `with` block.

    Args:
        source: path, bytes or binary file object. A path is never taken as a URL or protocol.
        num_threads: decoder threads. Use one in data workers, which run in parallel.
        max_pixels: largest size of a frame, in pixels.

    Raises:
        VideoReadError: if the source cannot be opened, has no video stream, or too large frames.
    """

    def __init__(self, source: Source, *, num_threads: int = 1, max_pixels: int = MAX_PIXELS):
        if av is None:
            raise ImportError(f"Reading video files needs PyAV: pip install av ({av_import_error}).")
        self.source = source
        self._max_pixels = max_pixels
        self._threads = ("SLICE" if num_threads > 1 else "NONE", num_threads)
        self._reformatter = VideoReformatter()
        self._start()
        try:
            self._check_size(self._decoder.width, self._decoder.height)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Close the file and the decoder."""
        self._container.close()

    @property
    def pixel_aspect(self) -> Fraction | None:
        """Width over height of a pixel, if the file states it."""
        return self._stream.sample_aspect_ratio or self._decoder.sample_aspect_ratio

    def _start(self):
        """Open the source, from its beginning, and prepare the decoder of its video stream."""
        self._container = self._open(self.source)
        try:
            self._stream = self._choose_stream()
            self._decoder = self._stream.codec_context
            self._decoder.thread_type, self._decoder.thread_count = self._threads
        except BaseException:
            self._container.close()
            raise

    @staticmethod
    def _open(source: Source):
        """Open the container of a source."""
        if isinstance(source, bytes | bytearray | memoryview):
            file = io.BytesIO(source)
        elif isinstance(source, str | os.PathLike):
            file = os.path.abspath(os.fspath(source))  # a relative "name:x.mp4" would be read as a protocol
            if not os.path.isfile(file):
                raise VideoReadError(source, "no such file")
        else:
            file = source
        options = {"protocol_whitelist": "file", "format_whitelist": SINGLE_FILE_FORMATS}
        try:
            return av.open(file, mode="r", options=options)
        except Exception as error:  # FFmpeg's errors, or any error of a file object's read and seek
            raise VideoReadError(source, f"cannot be opened as a video ({error})") from error

    def _choose_stream(self):
        """The best video stream that can be decoded and is no cover picture; discards all others."""
        streams = [
            stream
            for stream in self._container.streams.video
            if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic
        ]
        if not streams:
            raise VideoReadError(self.source, "has no video stream that can be decoded")
        best = self._container.streams.best("video")
        chosen = best if best in streams else streams[0]
        for stream in self._container.streams:
            if stream is not chosen:
                stream.discard = Discard.all
        return chosen

    def _check_size(self, width: int, height: int):
        if width * height > self._max_pixels:
            raise VideoReadError(self.source, f"frames of {width}x{height} exceed max_pixels={self._max_pixels}")

    def _demux(self, start: int | None = None) -> Iterator:
        """Packets of the stream from the key packet before the time `start`, or from the beginning."""
        try:
            if start is not None:
                self._container.seek(start, stream=self._stream)
            yield from (packet for packet in self._container.demux(self._stream) if packet.size)
        except av.error.FFmpegError:
            raise
        except IndexError:  # PyAV's, after the last packet, if streams appear that the header does not announce
            return
        except Exception as error:  # any error of a file object's read and seek
            raise VideoReadError(self.source, f"cannot be read ({error})") from error

    def _decode_packets(self, packets: Iterable, failed: list | None = None) -> Iterator:
        """Frames of packets in output order. Appends packets that cannot be decoded to `failed`."""
        try:
            for packet in itertools.chain(packets, [None]):
                try:
                    frames = self._decoder.decode(packet)
                except av.error.FFmpegError:
                    frames = []
                    if failed is not None and packet is not None:
                        failed.append(packet)
                yield from frames
        finally:
            self._decoder.skip_frame = "DEFAULT"
            self._decoder.flush_buffers()

    def _check_frame(self, frame: "av.VideoFrame", size: tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) of a decoded frame; it must be `size`, that of the frames before it, if there are any."""
        if size is None:
            self._check_size(frame.width, frame.height)  # it may differ from what the container says
        elif (frame.height, frame.width) != size:
            raise VideoReadError(
                self.source, f"frames change from {size[1]}x{size[0]} to {frame.width}x{frame.height}"
            )
        return frame.height, frame.width

    def _to_rgb(
        self, frame: "av.VideoFrame", turn: tuple[bool, bool, bool], size: tuple[int, int] = (0, 0)
    ) -> np.ndarray:
        """A frame as upright (height, width, 3) uint8, sharing the memory of the conversion's buffer.

        With `size`, (width, height) before it is turned, the conversion resizes it, too.
        """
        # the whole frame: for the region alone its planes would have to be copied, to save less than 1 % of a clip
        try:
            rgb = self._reformatter.reformat(frame, size[0] or None, size[1] or None, "rgb24", threads=1)
        except av.error.FFmpegError as error:  # such as colors of a kind that is tagged as reserved
            raise VideoReadError(self.source, f"its colors cannot be converted to RGB ({error})") from error
        plane = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(rgb.height, plane.line_size)
        pixels = rows[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)
        swap, flip_rows, flip_columns = turn
        pixels = pixels.swapaxes(0, 1) if swap else pixels
        return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


__all__ = ["OpenVideo", "VideoReadError", "orientation"]
