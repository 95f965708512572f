"""Reading chosen frames of a video file with PyAV: only what is needed is decoded, every frame is the right one.

A video is scanned packet by packet without decoding, which gives the true number of frames whatever the header says.
Then only the packets between a key frame and the wanted frames are decoded, leaving out those that nothing wanted
refers to. The frames are those an exhaustive decode gives, upright, as RGB.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import io
import itertools
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

import numpy as np

try:
    import av
    from av.stream import Discard, Disposition
    from av.video.reformatter import VideoReformatter
except ImportError as error:  # the model files work without PyAV; reading a file says what is missing
    av, av_import_error = None, error

# demuxers without presentation times, and decoders whose skip_frame leaves wanted frames untouched
FORMATS_WITHOUT_TIMES = {"h264", "hevc", "m4v", "mpegvideo"}
DECODERS_THAT_SKIP = {"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video"}
# containers that are one file; playlists and manifests, which open other files, are refused
SINGLE_FILE_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,m4v,vvc,av1,obu,ivf,flv,asf,ogg,"
    "gif,apng,mxf,nut,dv,rm,wtv,swf,yuv4mpegpipe,mjpeg,live_flv,mp3,wav,aac,flac"
)
# decoded frames of a video without usable times are kept up to this many bytes, instead of decoding them again
MAX_CACHED_BYTES = 512 << 20
# pixels of a frame (a 8K frame has 33 million); a 200 KB file can announce frames of gigabytes
MAX_PIXELS = 36_000_000

Source = str | bytes | os.PathLike | io.IOBase
Box = tuple[int, int, int, int]


class VideoReadError(ValueError):
    """A video cannot be read: the message names the file and the reason."""

    def __init__(self, source: Source, reason: str | None = None):
        # a data worker's error is made anew from its message alone
        super().__init__(describe(source) if reason is None else f"{describe(source)}: {reason}")
        self.source, self.reason = source, reason

    def __reduce__(self):
        return type(self), (describe(self.source), self.reason)


def describe(source: Source) -> str:
    """A short name of a source for messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes of video>"
    return os.fspath(source) if isinstance(source, str | os.PathLike) else str(getattr(source, "name", source))


def orientation(frame) -> tuple[bool, bool, bool]:
    """How a decoded frame becomes upright: swap rows and columns, then flip rows, then flip columns.

    From the display matrix [[a, b], [c, d]] of the stream, rounded to right angles.
    """
    for side_data in frame.side_data:
        if side_data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(side_data)[:20], dtype="<i4").tolist()
            if abs(a) + abs(d) >= abs(b) + abs(c):
                return False, d < 0, a < 0
            return True, b < 0, c < 0
    return False, False, False


class VideoReader:
    """An open video: `len(reader)` frames, `reader.read(indices)` decodes some. Use it in a `with` block.

    Args:
        source: path, bytes or binary file object. A path is never taken as a URL or protocol.
        num_threads: decoder threads. One is right inside data workers, which run side by side.
        max_pixels: largest frame that is accepted, in pixels.

    Raises:
        VideoReadError: if the source cannot be opened, has no video stream, no frame, or too large ones.
    """

    def __init__(self, source: Source, *, num_threads: int = 1, max_pixels: int = MAX_PIXELS):
        if av is None:
            raise ImportError(f"Reading video files needs PyAV: pip install av ({av_import_error}).")
        self.source = source
        self._container = self._open(source)
        try:
            self._stream = self._choose_stream()
            self._decoder = self._stream.codec_context
            if self._decoder.width * self._decoder.height > max_pixels:
                size = f"{self._decoder.width}x{self._decoder.height}"
                raise VideoReadError(source, f"frames of {size} exceed max_pixels={max_pixels}")
            self._decoder.thread_type = "SLICE" if num_threads > 1 else "NONE"
            self._decoder.thread_count = num_threads
            self._reformatter = VideoReformatter()
            self._packets = self._scan()
            self._display_order = self._order_by_time()
            self._cache: list | None = None
            self._num_frames = len(self._display_order) if self._display_order else self._count_by_decoding()
            if self._num_frames == 0:
                raise VideoReadError(source, "no frame can be decoded")
        except BaseException:
            self._container.close()
            raise

    def __len__(self) -> int:
        return self._num_frames

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Free the file and the decoder."""
        self._container.close()
        self._packets, self._cache = [], None

    def read(
        self, indices: Sequence[int] | np.ndarray, box: Box | Callable[[int, int], Box] | None = None
    ) -> np.ndarray:
        """Frames by number, repeats allowed, as upright RGB.

        Args:
            indices: (n,) frame numbers from 0.
            box: (top, left, height, width) of an upright region, or a function of the upright (height, width) that
                gives one; only that region is converted and copied.

        Returns:
            (n, height, width, 3) uint8.

        Raises:
            VideoReadError: if an index is not in the video, or a wanted frame is damaged or of another size.
        """
        wanted = sorted({int(index) for index in indices})
        if not wanted:
            raise VideoReadError(self.source, "no frame was asked for")
        if wanted[0] < 0 or wanted[-1] >= self._num_frames:
            outside = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise VideoReadError(
                self.source, f"frame {outside} was asked for, the video has {self._num_frames} frames"
            )
        rows: dict[int, list[int]] = {}
        for row, index in enumerate(indices):
            rows.setdefault(int(index), []).append(row)
        output = size = None
        for index, frame in self._decode(wanted):
            if output is None:
                size = frame.height, frame.width
                turn = orientation(frame)
                region, upright = self._region(size, turn, box)
                output = np.empty((len(indices), *upright, 3), dtype=np.uint8)
            if (frame.height, frame.width) != size:
                raise VideoReadError(
                    self.source, f"frames change from {size[1]}x{size[0]} to {frame.width}x{frame.height}"
                )
            pixels = self._to_rgb(frame)[region]
            if turn[0]:
                pixels = pixels.swapaxes(0, 1)
            output[rows.pop(index)] = pixels[:: -1 if turn[1] else 1, :: -1 if turn[2] else 1]
        if rows:
            missing = ", ".join(map(str, sorted(rows)[:4]))
            raise VideoReadError(self.source, f"{len(rows)} of {len(wanted)} frames cannot be decoded ({missing})")
        return output

    @staticmethod
    def _open(source: Source):
        """Container of a path, of bytes or of a file object."""
        if isinstance(source, bytes | bytearray | memoryview):
            file = io.BytesIO(source)
        elif isinstance(source, str | os.PathLike):
            file = os.path.abspath(os.fspath(source))  # a relative "name:x.mp4" would be read as a protocol
            if not os.path.isfile(file):
                raise VideoReadError(source, "no such file")
        else:
            file = source
        try:
            return av.open(
                file, mode="r", options={"protocol_whitelist": "file", "format_whitelist": SINGLE_FILE_FORMATS}
            )
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise VideoReadError(source, f"cannot be opened as a video ({error})") from error

    def _choose_stream(self):
        """The best video stream that can be decoded; cover pictures do not count. All other streams are discarded."""
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

    def _scan(self) -> list:
        """All packets in decoding order, still compressed. What is cut off at the end of the file is left out."""
        packets = []
        try:
            packets.extend(packet for packet in self._container.demux(self._stream) if packet.size)
        except av.error.FFmpegError as error:
            if not packets:
                raise VideoReadError(self.source, f"no packet can be read ({error})") from error
        if packets and packets[-1].is_corrupt:
            packets.pop()
        if not packets:
            raise VideoReadError(self.source, "the video stream is empty")
        return packets

    def _order_by_time(self) -> list[int]:
        """Packet of each shown frame, in display order; empty if the presentation times cannot be trusted."""
        hides_frames = self._decoder.name == "vp8"  # VP8 has reference frames that are not shown
        shown = [
            (packet.pts, i)
            for i, packet in enumerate(self._packets)
            if not packet.is_discard and not (hides_frames and not memoryview(packet)[0] & 0x10)
        ]
        times = [time for time, _ in shown]
        if None in times or len(set(times)) != len(times):
            return []
        if self._container.format.name in FORMATS_WITHOUT_TIMES or not self._packets[0].is_keyframe:
            return []
        # a decoder that reorders although the times never do was given decoding times, as always in AVI
        reordered = any(later < earlier for earlier, later in itertools.pairwise(times))
        if self._decoder.has_b_frames and (self._container.format.name == "avi" or not reordered):
            return []
        return [i for _, i in sorted(shown)]

    def _count_by_decoding(self) -> int:
        """Number of frames of a video without usable times; the decoded frames are kept if they are small enough."""
        count = size = 0
        self._cache = []
        for frame in self._decode_packets(self._packets):
            count += 1
            size += sum(plane.buffer_size for plane in frame.planes)
            if size > MAX_CACHED_BYTES:
                self._cache = None
            if self._cache is not None:
                self._cache.append(frame)
        return count

    def _decode_packets(self, packets: Iterable, damaged: list | None = None) -> Iterator:
        """Frames of packets in output order. Leaves the decoder fresh.

        A damaged packet gives no frame and is appended to `damaged`.
        """
        try:
            for packet in itertools.chain(packets, [None]):
                try:
                    frames = self._decoder.decode(packet)
                except av.error.FFmpegError:
                    frames = []
                    if damaged is not None and packet is not None:
                        damaged.append(packet)
                yield from frames
        finally:
            self._decoder.flush_buffers()

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Wanted frames with their numbers, each once."""
        if not self._display_order:
            yield from self._decode_in_order(set(wanted), wanted[-1])
            return
        # a key packet may be a mere recovery point whose first frames never come out: start earlier for those
        for keys_back in (0, 1, None):
            found = set()
            for index, frame in self._decode_runs(wanted, keys_back):
                if index not in found:
                    found.add(index)
                    yield index, frame
            wanted = [index for index in wanted if index not in found]
            if not wanted:
                return

    def _decode_in_order(self, wanted: set[int], last: int) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Wanted frames of a video without usable times, counted in output order."""
        frames = self._decode_packets(self._packets) if self._cache is None else self._cache
        follows_damage = False
        for index, frame in enumerate(frames):
            follows_damage = frame.is_corrupt or (follows_damage and not frame.key_frame)
            if index in wanted:
                if follows_damage:
                    raise VideoReadError(self.source, f"frame {index} is damaged, or follows a damaged frame")
                yield index, frame
            if index == last:
                return

    def _decode_runs(self, wanted: list[int], keys_back: int | None) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Decode from the key packet before each wanted frame (or `keys_back` earlier, None: from the start)."""
        packets, order = self._packets, self._display_order
        keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
        runs: list[list[int]] = []
        for index in wanted:
            packet = order[index]
            before = [i for i in keys if i <= packet and packets[i].pts <= packets[packet].pts]
            start = before[max(len(before) - 1 - keys_back, 0)] if before and keys_back is not None else 0
            if runs and start <= runs[-1][1]:
                runs[-1][1] = max(runs[-1][1], packet + 1)
            else:
                runs.append([start, packet + 1])
        packet_at = {packets[i].pts: i for i in order}
        number_of = {order[index]: index for index in wanted}
        skips = keys_back == 0 and self._decoder.name in DECODERS_THAT_SKIP
        for start, stop in runs:
            run = self._skip_unreferenced(start, stop, number_of) if skips else packets[start:stop]
            failed: list = []
            decoded = [(packet_at.get(frame.pts), frame) for frame in self._decode_packets(run, failed)]
            damaged = {packet_at.get(packet.pts) for packet in failed}
            damaged |= {i for i, frame in decoded if frame.is_corrupt}
            unusable = self._spoilt_by(damaged, start, stop)
            for i, frame in decoded:
                if i in number_of:
                    if i in unusable:
                        raise VideoReadError(
                            self.source, f"frame {number_of[i]} is damaged, or refers to a damaged frame"
                        )
                    yield number_of[i], frame

    def _spoilt_by(self, damaged: set[int | None], start: int, stop: int) -> set[int]:
        """Packets of a run that are damaged or come, in decoding order, between a damaged one and the next key packet.

        Frames shown before the run's first key frame refer to what lies before the run: they fail and spoil nothing.
        """
        spoilt: set[int] = set()
        is_spoilt = False
        for i in range(start, stop):
            leads = self._packets[i].pts is not None and self._packets[i].pts < self._packets[start].pts
            is_spoilt = (is_spoilt and not self._packets[i].is_keyframe) or (i in damaged and not leads)
            if is_spoilt:
                spoilt.add(i)
        return spoilt

    def _skip_unreferenced(self, start: int, stop: int, needed: Container[int]) -> Iterator:
        """Packets of a run, telling the decoder to pass over those not needed that no other frame refers to."""
        for i in range(start, stop):
            self._decoder.skip_frame = "DEFAULT" if i in needed else "NONREF"
            yield self._packets[i]
        self._decoder.skip_frame = "DEFAULT"

    @staticmethod
    def _region(
        size: tuple[int, int], turn: tuple[bool, bool, bool], box
    ) -> tuple[tuple[slice, slice], tuple[int, int]]:
        """Slices of a decoded frame of `size` that hold the upright `box`, and the box's (height, width)."""
        swap, flip_rows, flip_columns = turn
        upright_height, upright_width = size[::-1] if swap else size
        if box is None:
            box = 0, 0, upright_height, upright_width
        elif callable(box):
            box = box(upright_height, upright_width)
        top, left, height, width = box
        if (
            top < 0
            or left < 0
            or height < 1
            or width < 1
            or top + height > upright_height
            or left + width > upright_width
        ):
            raise ValueError(
                f"The box {box} (top, left, height, width) is not inside {upright_height}x{upright_width}."
            )
        if flip_rows:
            top = upright_height - top - height
        if flip_columns:
            left = upright_width - left - width
        rows, columns = slice(top, top + height), slice(left, left + width)
        return (columns, rows) if swap else (rows, columns), (height, width)

    def _to_rgb(self, frame) -> np.ndarray:
        """A frame as (H, W, 3) uint8, sharing the memory of the conversion's buffer."""
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        plane = rgb.planes[0]
        return (
            np.frombuffer(plane, np.uint8)
            .reshape(rgb.height, plane.line_size)[:, : rgb.width * 3]
            .reshape(rgb.height, rgb.width, 3)
        )


def read_frames(
    source: Source,
    indices: Sequence[int] | Callable[[int], Sequence[int]],
    num_threads: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Frames of a video by number, upright RGB: (n, H, W, 3) uint8.

    Args:
        source: path, bytes or binary file object.
        indices: (n,) frame numbers from 0, repeats allowed; or a function of the number of frames that gives them.
        num_threads, max_pixels: as in [`VideoReader`].

    Raises:
        VideoReadError: (a ValueError) naming the file and the reason.
    """
    with VideoReader(source, num_threads=num_threads, max_pixels=max_pixels) as reader:
        return reader.read(indices(len(reader)) if callable(indices) else indices)


__all__ = ["VideoReader", "VideoReadError", "read_frames"]
