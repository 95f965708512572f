"""Reads a video from end to end with PyAV, one frame at a time: memory does not grow with its length."""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable, Iterator

import numpy as np

from .video_file import OpenVideo, VideoReadError, av, orientation


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


__all__ = ["VideoStream"]
