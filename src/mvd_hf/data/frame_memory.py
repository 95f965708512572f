"""Keeps decoded frames in memory, so that later epochs of small videos do not decode them again."""

import hashlib
import math
import os
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from ..model.video_reading import Frames, VideoReadError
from .decoding import Item, open_media
from .sources import media_name

# a video of at most so many frames is decoded whole: that takes no longer than opening it a second time
WHOLE_FRAMES = 64


def media_key(item: Item) -> Hashable:
    """Identity of a row's file: the hash of its bytes, or its path with the size and time of a local file.

    That of a folder of frames has the rate of the row, too.
    """
    content = item["bytes"] if isinstance(item, dict) and item["bytes"] is not None else item
    if isinstance(content, bytes):
        return hashlib.blake2b(content, digest_size=16).digest()
    name = media_name(item)
    try:
        status = os.stat(name)
    except (OSError, ValueError):  # a URL, or a file that does not exist
        return name
    rate = item.get("fps") if isinstance(item, dict) else None
    return name, status.st_size, status.st_mtime_ns, *(() if rate is None else (rate,))


def check_memory(gib: float):
    """Raise ValueError if a size of memory is no number, or negative."""
    if not isinstance(gib, int | float) or not 0 <= gib < math.inf:
        raise ValueError(f"memory_gib={gib!r} must be a number of GiB, at least 0.")


@dataclass
class CachedFrames:
    """Number of frames of a video, its decoded frames (height, width, 3) by number, and its times, if read."""

    total: int
    frames: dict[int, np.ndarray] = field(default_factory=dict)
    times: np.ndarray | None = None


class FrameMemory:
    """Memory of decoded frames. When it is full, it keeps what it has, as an epoch reads every video once.

    Args:
        gib: capacity in GiB.

    Raises:
        ValueError: if the capacity is no number, or negative.
    """

    def __init__(self, gib: float = 0.0):
        self.capacity = self.size = 0
        self.videos: dict[Hashable, CachedFrames] = {}
        self.allow(gib)

    def allow(self, gib: float):
        """Raise the capacity to `gib`, if it is lower."""
        check_memory(gib)
        self.capacity = max(self.capacity, int(gib * 2**30))

    def open(self, item: Item, is_image: bool = False) -> "CachedVideo":
        """A row's video, as by `mvd_hf.data.decoding.open_media`."""
        return CachedVideo(self, item, is_image)

    def keep(self, key: Hashable, total: int, frames: dict[int, np.ndarray], times: np.ndarray | None = None):
        """Add frames of a video of `total` frames, and its times if they are known, if there is room."""
        size = sum(frame.nbytes for frame in frames.values())
        if self.size + size <= self.capacity:
            self.size += size
            video = self.videos.setdefault(key, CachedFrames(total))
            video.frames.update(frames)
            video.times = video.times if times is None else times


class CachedVideo:
    """A video that is opened only for frames that are not in memory. Use it in a `with` block.

    Its frames and errors are those of the file's reader.
    """

    def __init__(self, memory: FrameMemory, item: Item, is_image: bool):
        self.memory, self.item, self.key = memory, item, (media_key(item), is_image)
        self.is_image = is_image
        self.opened, self.reader, self.times = ExitStack(), None, None

    def __enter__(self) -> "CachedVideo":
        return self

    def __exit__(self, *exception):
        return self.opened.__exit__(*exception)  # names the row's file in errors of its reader

    def __len__(self) -> int:
        kept = self.memory.videos.get(self.key)
        return len(self._open()) if kept is None else kept.total

    def stored_times(self) -> np.ndarray:
        """Seconds of each frame, as in `VideoReader.stored_times`."""
        kept = self.memory.videos.get(self.key)
        if kept is not None and kept.times is not None:
            return kept.times
        self.times = self._open().stored_times()
        return self.times

    def _open(self):
        """The reader of the file, open until the `with` block ends."""
        if self.reader is None:
            self.reader = self.opened.enter_context(open_media(self.item, self.is_image))
        return self.reader

    def _frames(self, wanted: set[int]) -> dict[int, np.ndarray]:
        """Whole frames by number, from memory or decoded now."""
        kept = self.memory.videos.get(self.key)
        known = {} if kept is None else kept.frames
        missing = sorted(wanted - known.keys())
        if not missing:
            return known
        total = len(self._open())
        decoded = self._decode(missing, [i for i in range(total) if i not in known])
        self.memory.keep(self.key, total, decoded, self.times)
        return known | decoded

    def _decode(self, missing: list[int], unknown: list[int]) -> dict[int, np.ndarray]:
        """The missing frames; of a short video all that are unknown."""
        reader = self._open()
        if len(reader) <= WHOLE_FRAMES and set(missing) < set(unknown):
            try:
                return dict(zip(unknown, reader.read(unknown), strict=True))
            except VideoReadError:
                pass  # a frame is damaged: the next line raises if it is a wanted one
        return dict(zip(missing, reader.read(missing), strict=True))

    def decode(self, indices: Sequence[int] | np.ndarray) -> Frames:
        """Frames by number; errors as in `VideoReader.decode`."""
        numbers = [int(index) for index in indices]
        frames = self._frames(set(numbers))
        height, width = frames[numbers[0]].shape[:2]
        for number in numbers:
            found_height, found_width = frames[number].shape[:2]
            if (found_height, found_width) != (height, width):
                reason = f"frames change from {width}x{height} to {found_width}x{found_height}"
                raise VideoReadError(media_name(self.item), reason)
        return Frames((height, width), [frames[number] for number in numbers])


# all data sets of a process share this memory
PROCESS_MEMORY = FrameMemory()
