"""Reads a video from end to end with PyAV, one frame at a time: memory does not grow with its length."""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable, Iterator

import numpy as np

from .video_file import OpenVideo, VideoReadError, av, orientation
from .video_reading import VideoReader, packet_runs


class VideoStream(OpenVideo):
    """An open video that is read once, from its beginning to its end, with the frames of `VideoReader`.

    It keeps nothing in memory, and does not know the number of frames in advance.
    """

    def frames(self, is_wanted: Callable[[int], bool]) -> Iterator[np.ndarray | None]:
        """Every frame in order, upright RGB (H, W, 3) uint8; `None` for frames that are not wanted.

        Args:
            is_wanted: whether the frame of a number from 0 is wanted.

        Raises:
            VideoReadError: if a wanted frame is damaged or follows a damaged one, if any frame is missing or changes
                its size, or if there is none.
        """
        failed: list = []
        follows_damage, size, turn, number = False, None, None, -1
        for number, frame in enumerate(self._decode_packets(self._packets(), failed)):
            self._refuse_lost_frames(failed, number)
            follows_damage = frame.is_corrupt or (follows_damage and not frame.key_frame)
            if not is_wanted(number):
                yield None
                continue
            if follows_damage:
                raise VideoReadError(self.source, f"frame {number} is damaged, or follows a damaged frame")
            turn = orientation(frame) if size is None else turn
            size = self._check_frame(frame, size)
            yield self._to_rgb(frame, turn).copy()
        self._refuse_lost_frames(failed, number + 1)
        if number < 0:
            raise VideoReadError(self.source, "no frame can be decoded")

    def _refuse_lost_frames(self, failed: list, number: int):
        """Raise VideoReadError if packets could not be decoded, as the numbers of later frames are then unknown.

        Before the first frame such packets are the rest of frames that were cut off.
        """
        if failed and (number > 0 or self._starts_with_key):
            raise VideoReadError(self.source, f"{len(failed)} packets near frame {number} cannot be decoded")
        failed.clear()

    def _packets(self) -> Iterator:
        """Packets in order, without one that the end of the file cuts off."""
        previous = None
        try:
            for packet in self._demux():
                if previous is None:
                    self._starts_with_key = packet.is_keyframe
                else:
                    yield previous
                previous = packet
        except av.error.FFmpegError:
            pass  # the file is cut off here
        if previous is not None and not previous.is_corrupt:
            yield previous


class SequentialReader(VideoReader):
    """A [`VideoReader`] that also decodes many frames one after the other, without keeping them."""

    def between(self, start: int, stop: int) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Frames `start` to `stop - 1` in order, each with its number, as they are decoded.

        Raises:
            VideoReadError: if one of them is missing, damaged, follows a damaged one, or changes its size.
        """
        expected, size = start, None
        for index, frame in self._between(start, stop):
            size = self._check_frame(frame, size)
            if index != expected:
                break
            yield index, frame
            expected += 1
        if expected != stop:
            raise VideoReadError(self.source, f"frame {expected} cannot be decoded")

    def rgb(self, frame: "av.VideoFrame", turn: tuple[bool, bool, bool], size: tuple[int, int]) -> np.ndarray:
        """A frame resized to (width, height) and then turned upright, (height, width, 3) uint8; see `orientation`."""
        return self._to_rgb(frame, turn, size).copy()

    def _between(self, start: int, stop: int) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """As [`between`], but a frame may be missing."""
        for segment in self._segments(list(range(start, stop))):
            if not segment.order:
                yield from self._decode_in_order(segment.packets, set(range(start, stop)))
                return
            packets, first = segment.packets, segment.first_frame
            wanted = range(max(start, first), min(stop, first + len(segment.order)))
            index_of = {packets[segment.order[index - first]].pts: index for index in wanted}
            # from the key packet before the nearest one, which may be a recovery point, to the last packet needed
            begin = packet_runs(packets, [segment.order[wanted[0] - first]], 1)[0][0]
            end = 1 + max(segment.order[index - first] for index in wanted)
            failed: list = []
            for frame in self._decode_packets(packets[begin:end], failed):
                if frame.is_corrupt or any(packet.pts >= packets[begin].pts for packet in failed):
                    if frame.pts >= min(index_of):
                        return
                elif frame.pts in index_of:
                    yield index_of[frame.pts], frame


__all__ = ["SequentialReader", "VideoStream"]
