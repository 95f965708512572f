"""Reading a video from end to end with PyAV, one frame at a time: memory does not grow with its length."""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable, Iterator

import numpy as np

from .video_reading import VideoReader, VideoReadError, av, orientation


class VideoStream(VideoReader):
    """An open video that is read once, from its beginning: the frames of `VideoReader`, but neither number nor choice.

    Nothing is known of the video before it is read, and nothing is kept.

    Args:
        source, num_threads, max_pixels: as in `VideoReader`.

    Raises:
        VideoReadError: if the source cannot be opened, has no video stream, or too large frames.
    """

    def _find_frames(self):
        """Nothing: that would keep the compressed video in memory."""
        self._whole, self._entries = None, []

    def frames(self, is_wanted: Callable[[int], bool]) -> Iterator[np.ndarray | None]:
        """Every frame in order, upright RGB (H, W, 3) uint8; `None` for those that are not wanted.

        Args:
            is_wanted: whether the frame of a number, counted from 0, is wanted.

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
        """Raise VideoReadError if packets could not be decoded: the numbers of the frames behind them are not known.

        In front of the first frame they are what is left of frames that were cut off.
        """
        if failed and (number > 0 or self._starts_with_key):
            raise VideoReadError(self.source, f"{len(failed)} packets near frame {number} cannot be decoded")
        failed.clear()

    def _packets(self) -> Iterator:
        """Packets in their order. What is cut off at the end of the file is left out."""
        previous = None
        try:
            for packet in self._demux():
                if previous is None:
                    self._starts_with_key = packet.is_keyframe
                else:
                    yield previous
                previous = packet
        except av.error.FFmpegError:
            pass  # the end of what there is
        if previous is not None and not previous.is_corrupt:
            yield previous


__all__ = ["VideoStream"]
