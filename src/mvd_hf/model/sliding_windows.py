"""Windows that slide over a whole video, frame by frame, whatever its length."""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


class SlidingWindows:
    """Clips of T frames, `stride` apart, that begin every `step` frames of a video, whose length need not be known.

    The last window is the first whose T * stride frames reach the end of the video; where the video ends within a
    window its last frame repeats, as in short videos.

    Args:
        num_frames: frames T of a window.
        stride: distance of a window's frames.
        step: distance of the windows' first frames.

    Raises:
        ValueError: if one of them is below one.
    """

    def __init__(self, num_frames: int, stride: int, step: int):
        for name, value in (("num_frames", num_frames), ("stride", stride), ("step", step)):
            if value < 1:
                raise ValueError(f"{name}={value} of sliding windows must be at least 1.")
        self.num_frames, self.stride, self.step = num_frames, stride, step

    def is_used(self, number: int) -> bool:
        """Whether a frame belongs to a window, if the video is long enough for it."""
        first = max(number - (self.num_frames - 1) * self.stride, 0)
        starts = range(-(-first // self.step) * self.step, number + 1, self.step)
        return any((number - start) % self.stride == 0 for start in starts)

    def cut(self, frames: Iterable[Any]) -> Iterator[tuple[np.ndarray, list]]:
        """The numbers (T,) and the frames of each window, as soon as they are there.

        Args:
            frames: every frame of a video in order; what `is_used` has no use for is not kept.
        """
        waiting: list[tuple[int, list[int], list]] = []
        number = -1
        for number, frame in enumerate(frames):
            if number % self.step == 0:
                waiting.append((number, [], []))
            for start, numbers, kept in waiting:
                if (number - start) % self.stride == 0 and len(kept) < self.num_frames:
                    numbers.append(number)
                    kept.append(frame)
            while waiting and len(waiting[0][2]) == self.num_frames and self._is_needed(waiting[0][0], number):
                _, numbers, kept = waiting.pop(0)
                yield np.array(numbers), kept
        for start, numbers, kept in waiting:
            if self._is_needed(start, number):
                missing = self.num_frames - len(kept)
                yield np.array(numbers + numbers[-1:] * missing), kept + kept[-1:] * missing

    def _is_needed(self, start: int, last: int) -> bool:
        """Whether the window before that of `start` ends in front of the frame `last`."""
        return start == 0 or start - self.step + self.num_frames * self.stride <= last


__all__ = ["SlidingWindows"]
