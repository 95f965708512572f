"""Reads chosen frames of a video file with PyAV: decodes only what they need, and returns those of a full decode.

A scan of the packets, without decoding, gives the true number of frames, whatever the header says. Decoding then
starts at the key frame before the wanted frames and skips frames that no wanted frame refers to. Frames are upright
RGB.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import bisect
import io
import itertools
import logging
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .video_file import MAX_PIXELS, OpenVideo, Source, VideoReadError, av, orientation, source_name

# demuxers without presentation times, and decoders whose skip_frame does not change other frames
FORMATS_WITHOUT_TIMES = {"h264", "hevc", "m4v", "mpegvideo"}
DECODERS_THAT_SKIP = {"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video"}
logger = logging.getLogger(__name__)

# frames of a video without usable times stay in memory up to this size, instead of being decoded again
MAX_CACHED_BYTES = 512 << 20
# from so many packets on (a minute and a half) an mp4 file is read through its own table of packets
MIN_INDEXED_PACKETS = 2500
Box = tuple[int, int, int, int]


@dataclass
class Segment:
    """Consecutive packets of a video in decoding order, and the frames that they show.

    Args:
        packets: compressed packets; the first is a key packet.
        order: position of the packet of each frame, in display order.
        first_frame: number of the first frame of `order` in the video.
    """

    packets: list
    order: list[int]
    first_frame: int = 0

    def frames(self) -> range:
        """Numbers of its frames."""
        return range(self.first_frame, self.first_frame + len(self.order))


class Frames:
    """Decoded frames of one size. [`rgb`] converts and copies them, or the region that a crop needs.

    Args:
        size: (height, width) of the upright frames.
        frames: the frames; repeats are the same object.
        to_rgb: makes an upright (height, width, 3) uint8 array of a frame; by default frames are such arrays.
    """

    def __init__(self, size: tuple[int, int], frames: Sequence, to_rgb: Callable[[Any], np.ndarray] = np.asarray):
        self.size, self.frames, self.to_rgb = size, frames, to_rgb

    def __len__(self) -> int:
        return len(self.frames)

    def rgb(self, box: Box | None = None) -> np.ndarray:
        """The frames, or a region of them, as (n, height, width, 3) uint8.

        Args:
            box: (top, left, height, width) in pixels; `None` for whole frames.

        Raises:
            ValueError: if the box is not inside the frames.
            VideoReadError: if the colors of a file cannot be converted.
        """
        top, left, height, width = box = (0, 0, *self.size) if box is None else box
        bottom, right = top + height, left + width
        if min(top, left) < 0 or min(height, width) < 1 or bottom > self.size[0] or right > self.size[1]:
            raise ValueError(
                f"The box {box} (top, left, height, width) is not inside frames of {self.size[0]}x{self.size[1]}."
            )
        output = np.empty((len(self.frames), height, width, 3), dtype=np.uint8)
        for i, frame in enumerate(self.frames):
            is_repeated = i > 0 and frame is self.frames[i - 1]
            output[i] = output[i - 1] if is_repeated else self.to_rgb(frame)[top:bottom, left:right]
        return output


def display_order(packets: list, decoder, format_name: str) -> list[int]:
    """Position of the packet of each frame in display order; empty if the times do not give that order."""
    hides_frames = decoder.name == "vp8"  # VP8 has reference frames that are not shown
    shown = [
        (packet.pts, i)
        for i, packet in enumerate(packets)
        if not packet.is_discard and not (hides_frames and not memoryview(packet)[0] & 0x10)
    ]
    times = [time for time, _ in shown]
    if None in times or len(set(times)) != len(times):
        return []
    if format_name in FORMATS_WITHOUT_TIMES or not packets[0].is_keyframe:
        return []
    # times that never go back although the decoder reorders frames are decoding times, as always in AVI
    reordered = any(later < earlier for earlier, later in itertools.pairwise(times))
    if decoder.has_b_frames and (format_name == "avi" or not reordered):
        return []
    return [i for _, i in sorted(shown)]


def joined(ranges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Ranges whose beginnings ascend, with those that touch joined into one."""
    runs: list[list[int]] = []
    for start, stop in ranges:
        if runs and start <= runs[-1][1]:
            runs[-1][1] = max(runs[-1][1], stop)
        else:
            runs.append([start, stop])
    return runs


def packet_runs(packets: list, shown: Iterable[int], keys_back: int | None) -> list[list[int]]:
    """Runs [start, stop) of packets that decode the packets `shown`, in display order; runs that touch are joined.

    A run starts `keys_back` key packets before the nearest one (None: at the first packet).
    """
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    runs = []
    for packet in shown:
        before = [i for i in keys if i <= packet and packets[i].pts <= packets[packet].pts]
        start = before[max(len(before) - 1 - keys_back, 0)] if before and keys_back is not None else 0
        runs.append((start, packet + 1))
    return joined(runs)


def spoilt_by(damaged: set[int | None], packets: list, start: int, stop: int) -> set[int]:
    """Packets of a run that are damaged, or follow a damaged one before the next key packet in decoding order.

    Frames shown before the run's first key frame refer to earlier packets: they fail without harm to others.
    """
    spoilt: set[int] = set()
    is_spoilt = False
    for i in range(start, stop) if damaged else ():
        leads = packets[i].pts is not None and packets[i].pts < packets[start].pts
        is_spoilt = (is_spoilt and not packets[i].is_keyframe) or (i in damaged and not leads)
        if is_spoilt:
            spoilt.add(i)
    return spoilt


class VideoReader(OpenVideo):
    """An open video of `len(reader)` frames; `reader.read(indices)` returns some. Use it in a `with` block.

    Args:
        source, num_threads, max_pixels: as in [`OpenVideo`].

    Raises:
        VideoReadError: as [`OpenVideo`], or if the video has no frame.
    """

    def __init__(self, source: Source, *, num_threads: int = 1, max_pixels: int = MAX_PIXELS):
        super().__init__(source, num_threads=num_threads, max_pixels=max_pixels)
        self._cache: list | None = None
        try:
            self._entries = self._read_index()
            self._whole = None if self._entries else self._scan()
            self._num_frames = self._count_frames()
            if self._num_frames == 0:
                raise VideoReadError(self.source, "no frame can be decoded")
        except BaseException:
            super().close()
            raise

    def __len__(self) -> int:
        return self._num_frames

    def close(self):
        super().close()
        self._whole, self._entries, self._cache = None, [], None

    def decode(self, indices: Sequence[int] | np.ndarray) -> Frames:
        """Decode frames by number; repeats are allowed.

        Args:
            indices: (n,) frame numbers from 0.

        Raises:
            VideoReadError: if an index is not in the video, or a wanted frame is damaged or of another size.
        """
        indices, wanted = self._checked(indices)
        decoded: dict[int, av.VideoFrame] = {}
        size = None
        for index, frame in self._decode(wanted):
            size = self._check_frame(frame, size)
            decoded[index] = frame
        if len(decoded) < len(wanted):
            missing = [index for index in wanted if index not in decoded]
            names = ", ".join(map(str, missing[:4]))
            raise VideoReadError(self.source, f"{len(missing)} of {len(wanted)} frames cannot be decoded ({names})")
        turn = orientation(next(iter(decoded.values())))
        upright_size = size[::-1] if turn[0] else size
        return Frames(upright_size, [decoded[index] for index in indices], partial(self._to_rgb, turn=turn))

    def _checked(self, indices: Sequence[int] | np.ndarray) -> tuple[list[int], list[int]]:
        """Frame numbers, and the sorted different ones; raises VideoReadError if one is not in the video."""
        indices = [int(index) for index in indices]
        wanted = sorted(set(indices))
        if not wanted:
            raise VideoReadError(self.source, "no frame was asked for")
        if wanted[0] < 0 or wanted[-1] >= len(self):
            outside = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise VideoReadError(self.source, f"frame {outside} was asked for, the video has {len(self)} frames")
        return indices, wanted

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames by number as upright RGB, (n, height, width, 3) uint8; arguments and errors as in [`decode`]."""
        return self.decode(indices).rgb()

    def times(self) -> np.ndarray:
        """Seconds from the first frame to each frame, (frames,).

        Raises:
            VideoReadError: if neither the packets nor the header have times.
        """
        if self._entries:  # decoding times: their distances are those of the presentation times
            times = np.sort([entry.timestamp for entry in self._entries if not entry.is_discard])
        elif self._whole is not None and self._whole.order:
            times = np.array([self._whole.packets[i].pts for i in self._whole.order])
        else:
            rate = self._stream.average_rate or self._stream.guessed_rate
            if not rate:
                raise VideoReadError(self.source, "neither its frames nor its header have times")
            return np.arange(self._num_frames) / float(rate)
        return (times - times[0]) * float(self._stream.time_base)

    def stored_times(self) -> np.ndarray:
        """Seconds as [`times`], but only those that the file stores.

        Raises:
            VideoReadError: if it stores none, or they repeat or go back.
        """
        name, has_order = self._container.format.name, bool(self._entries or self._whole.order)
        if name in FORMATS_WITHOUT_TIMES:
            raise VideoReadError(self.source, f"stores no times of its frames ({name}): sample with stride, not fps")
        if has_order or (name == "avi" and self._stream.average_rate):
            times = self.times()
        else:
            ticks = [packet.pts for packet in self._whole.packets if not packet.is_discard]
            if None in ticks or len(set(ticks)) != self._num_frames:
                raise VideoReadError(
                    self.source, "has frames without a time, or with the time of another: sample with stride, not fps"
                )
            times = (np.sort(ticks) - min(ticks)) * float(self._stream.time_base)
        shown = [p.pts for p in self._whole.packets if p.pts is not None] if self._whole is not None else []
        if not self._decoder.has_b_frames and any(later < earlier for earlier, later in itertools.pairwise(shown)):
            raise VideoReadError(self.source, "the times of its frames go back: sample with stride, not fps")
        return times

    def frame_at(self, seconds: float) -> int:
        """Number of the frame nearest to a time in seconds from the first frame.

        Raises:
            VideoReadError: if the video has no such time, or no times at all.
        """
        times = self.times()
        end = float(times[-1] + (np.median(np.diff(times)) if len(times) > 1 else 1.0))
        if not 0 <= seconds <= end:
            raise VideoReadError(self.source, f"the time {seconds:g} s was asked for, the video has {end:.2f} s")
        return int(np.abs(times - seconds).argmin())

    # which packets show which frames

    def _read_index(self) -> list:
        """The container's own table of packets if the video is long and the table complete, else an empty list.

        With it a long mp4 file is read only around the wanted frames, instead of from end to end.
        """
        entries = self._stream.index_entries
        is_whole = 0 < self._stream.frames <= len(entries)  # a fragmented file's table grows while it is read
        if len(entries) < MIN_INDEXED_PACKETS or not is_whole or "mp4" not in self._container.format.name:
            return []
        entries = list(entries)
        if not entries[0].is_keyframe or entries[-1].pos + entries[-1].size > self._container.size:
            return []
        return entries

    def _scan(self) -> Segment:
        """The whole video, still compressed, without a packet that the end of the file cuts off."""
        packets: list = []
        try:
            packets.extend(self._demux())
        except av.error.FFmpegError as error:
            if not packets:
                raise VideoReadError(self.source, f"no packet can be read ({error})") from error
        if packets and packets[-1].is_corrupt:
            packets.pop()
        if not packets:
            raise VideoReadError(self.source, "the video stream is empty")
        return Segment(packets, self._order(packets))

    def _order(self, packets: list) -> list[int]:
        return display_order(packets, self._decoder, self._container.format.name)

    def _count_frames(self) -> int:
        """Number of frames. A video without usable times is decoded, and its frames stay in memory if they fit."""
        if self._entries:
            return sum(not entry.is_discard for entry in self._entries)
        if self._whole.order:
            return len(self._whole.order)
        count = size = 0
        self._cache = []
        for frame in self._decode_packets(self._whole.packets):
            count += 1
            size += sum(plane.buffer_size for plane in frame.planes)
            if size > MAX_CACHED_BYTES:
                self._cache = None
            if self._cache is not None:
                self._cache.append(frame)
        return count

    def _segments(self, wanted: list[int]) -> Iterator[Segment]:
        """Segments that show the wanted frames: of a long video the parts around them, else all of it."""
        if self._whole is not None:
            yield self._whole
            return
        visible = [not entry.is_discard for entry in self._entries]
        before = [0, *itertools.accumulate(visible)]  # number of frames shown by earlier packets
        keys = [i for i, entry in enumerate(self._entries) if entry.is_keyframe]
        first_frames = [before[key] for key in keys]
        ends = [*keys[1:], len(self._entries)]
        groups = (bisect.bisect_right(first_frames, index) - 1 for index in wanted)
        # frames shown before a key frame may refer to the previous group
        for first, last in joined((max(group - 1, 0), group) for group in groups):
            packets = self._read_range(keys[first], ends[last])
            order = self._order(packets) if packets else []
            if len(order) != before[ends[last]] - before[keys[first]]:
                yield self._scan_after_all()
                return
            yield Segment(packets, order, before[keys[first]])

    def _scan_after_all(self) -> Segment:
        """The whole video, after the container's table has led to other packets."""
        super().close()
        if isinstance(self.source, io.IOBase):
            self.source.seek(0)
        self._start()
        self._entries, self._whole = [], self._scan()
        if self._count_frames() != self._num_frames:
            raise VideoReadError(self.source, f"its table of packets does not hold its {self._num_frames} frames")
        return self._whole

    def _read_range(self, start: int, stop: int) -> list:
        """Packets of a range of the container's table; empty if the file has others there."""
        packets: list = []
        try:
            for packet in self._demux(self._entries[start].timestamp):
                if packet.pos == self._entries[start + len(packets)].pos:
                    packets.append(packet)
                elif packets or packet.dts is None or packet.dts >= self._entries[start].timestamp:
                    break  # before the range there may be packets: a seek ends at an earlier key packet
                if len(packets) == stop - start:
                    return packets
        except av.error.FFmpegError as error:
            logger.debug("%s: packets %d to %d cannot be read: %s", source_name(self.source), start, stop, error)
        return []

    # decoding

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Each wanted frame with its number, once."""
        missing = set(wanted)
        for segment in self._segments(wanted):
            if not segment.order:
                yield from self._decode_in_order(segment.packets, missing)
                return
            # a key packet may be a recovery point, whose first frames never come out: start earlier for those
            for keys_back in (0, 1, None):
                left = [index for index in wanted if index in missing and index in segment.frames()]
                for index, frame in self._decode_runs(segment, left, keys_back):
                    if index in missing:
                        missing.remove(index)
                        yield index, frame

    def _decode_in_order(self, packets: list, wanted: set[int]) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Wanted frames of a video without usable times, numbered in output order."""
        last = max(wanted)
        follows_damage = False
        for index, frame in enumerate(self._decode_packets(packets) if self._cache is None else self._cache):
            follows_damage = frame.is_corrupt or (follows_damage and not frame.key_frame)
            if index in wanted:
                if follows_damage:
                    raise VideoReadError(self.source, f"frame {index} is damaged, or follows a damaged frame")
                yield index, frame
            if index == last:
                return

    def _decode_runs(
        self, segment: Segment, wanted: list[int], keys_back: int | None
    ) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Decode from the key packet before each wanted frame (or `keys_back` earlier, None: from the start)."""
        packets = segment.packets
        number_of = {segment.order[index - segment.first_frame]: index for index in wanted}
        skips = keys_back == 0 and self._decoder.name in DECODERS_THAT_SKIP
        for start, stop in packet_runs(packets, number_of, keys_back):
            packet_at = {packets[i].pts: i for i in range(start, stop)}
            run = self._skip_unreferenced(packets, start, stop, number_of) if skips else packets[start:stop]
            failed: list = []
            kept, damaged = [], set()
            for frame in self._decode_packets(run, failed):
                packet = packet_at.get(frame.pts)
                if frame.is_corrupt:
                    damaged.add(packet)
                if packet in number_of:
                    kept.append((packet, frame))
            damaged |= {packet_at.get(packet.pts) for packet in failed}
            spoilt = spoilt_by(damaged, packets, start, stop)
            for packet, frame in kept:
                if packet in spoilt:
                    reason = f"frame {number_of[packet]} is damaged, or refers to a damaged frame"
                    raise VideoReadError(self.source, reason)
                yield number_of[packet], frame

    def _skip_unreferenced(self, packets: list, start: int, stop: int, needed: Container[int]) -> Iterator:
        """Packets of a run; the decoder skips those that are neither needed nor referred to."""
        for i in range(start, stop):
            self._decoder.skip_frame = "DEFAULT" if i in needed else "NONREF"
            yield packets[i]
        self._decoder.skip_frame = "DEFAULT"


__all__ = ["Frames", "VideoReader", "VideoReadError"]
