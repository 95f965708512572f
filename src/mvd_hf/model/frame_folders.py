"""Folders of extracted frames (`img_00001.jpg`, `frame_0000000001.jpg`, ...) as videos."""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .frame_sampling import check_fps
from .video_file import MAX_PIXELS, Source, VideoReadError, av
from .video_inputs_mvd import FOLDER_FACTS, downloaded, is_row
from .video_reading import Frames, VideoReader
from .video_streaming import SequentialReader

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FRAME_NAME = re.compile(r"(?P<name>.*?)(?P<number>[0-9]+)(?P<suffix>\.\w+)")


def read_image(source: Any, name: Source) -> np.ndarray:
    """An image file, upright (height, width, 3) uint8; raises VideoReadError, which names it, if it cannot be read."""
    try:
        with Image.open(source) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError as error:  # its message may contain a memory address
        raise VideoReadError(name, "cannot be read as an image (of no known format)") from error
    except Exception as error:  # Pillow's decoders raise errors of all kinds on damaged files
        raise VideoReadError(name, f"cannot be read as an image ({error})") from error


def frame_files(folder: str | os.PathLike) -> list[Path]:
    """The images of a folder in the order of their numbers, from the first one on.

    Raises:
        VideoReadError: if there is none, one has no number or another name than the others, or a number is missing.
    """
    try:
        files = [path for path in Path(folder).iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise VideoReadError(folder, f"cannot be read ({error})") from error
    images = [path for path in files if path.suffix.lower() in FRAME_SUFFIXES]
    names = {path: FRAME_NAME.fullmatch(path.name) for path in images}
    kinds = {f"{name['name']}*{name['suffix']}" if name else path.name for path, name in names.items()}
    if not images:
        raise VideoReadError(folder, "holds no images: a folder of frames has img_00001.jpg, img_00002.jpg, ...")
    if len(kinds) > 1:
        found = ", ".join(sorted(kinds)[:4])
        raise VideoReadError(folder, f"holds images of different names ({found}): keep those of one kind in it")
    if None in names.values():
        raise VideoReadError(folder, f"holds an image without a number ({images[0].name}): name it img_00001.jpg")
    numbers: dict[int, Path] = {}
    for path, name in names.items():
        if numbers.setdefault(int(name["number"]), path) != path:
            raise VideoReadError(folder, f"holds frame {int(name['number'])} twice ({path.name})")
    for number in range(min(numbers), max(numbers)):
        if number not in numbers:
            raise VideoReadError(folder, f"misses frame {number}: it has {min(numbers)} to {max(numbers)} with gaps")
    return [numbers[number] for number in sorted(numbers)]


class FrameFolderReader(SequentialReader):
    """A folder of frames with the interface of [`VideoReader`], of [`SequentialReader`] and of `VideoStream`.

    Args:
        source: the folder.
        fps: frames per second, without which it has no times.
        num_frames: number of images that it must hold, if that is known.

    Raises:
        VideoReadError: as [`frame_files`], or if there are more or fewer images.
        ValueError: if `fps` is not positive.
    """

    pixel_aspect, _max_pixels = None, MAX_PIXELS

    def __init__(self, source: str | os.PathLike, fps: float | None = None, num_frames: int | None = None):
        if fps is not None:
            check_fps(fps)
        self.source, self.fps, self.files = source, fps, frame_files(source)
        if num_frames not in (None, len(self.files)):
            raise VideoReadError(source, f"holds {len(self.files)} frames, not {num_frames}")

    def __len__(self) -> int:
        return len(self.files)

    def close(self):
        """Nothing is open."""

    def decode(self, indices: Sequence[int] | np.ndarray) -> Frames:
        """Frames by number; they are read when their pixels are.

        Raises:
            VideoReadError: if an index is not in the video, an image cannot be read, or their sizes differ.
        """
        numbers, _ = self._checked(indices)
        first = self._image(numbers[0])

        def to_rgb(number: int) -> np.ndarray:
            pixels = first if number == numbers[0] else self._image(number)
            if pixels.shape != first.shape:
                sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (first, pixels)]
                raise VideoReadError(self.source, f"frames change from {sizes[0]} to {sizes[1]}")
            return pixels

        return Frames(first.shape[:2], numbers, to_rgb)

    def _image(self, number: int) -> np.ndarray:
        path = self.files[number]
        try:
            return read_image(path, path)
        except VideoReadError as error:
            raise VideoReadError(self.source, f"{path.name} {error.reason}") from error

    def times(self) -> np.ndarray:
        """Seconds from the first frame to each frame, (frames,); raises VideoReadError without a rate."""
        if self.fps is None:
            raise VideoReadError(
                self.source, "images have no times: give frame_folder_fps, in Python {'path': folder, 'fps': 30}"
            )
        return np.arange(len(self)) / self.fps

    stored_times = times

    def frames(self, is_wanted: Callable[[int], bool]) -> Iterator[np.ndarray | None]:
        """Every frame in order (height, width, 3) uint8; `None` for frames that are not wanted."""
        for number in range(len(self)):
            yield self.read([number])[0] if is_wanted(number) else None

    def between(self, start: int, stop: int) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Frames `start` to `stop - 1` in order, each with its number; raises VideoReadError if their sizes differ."""
        self._reformatter = av.video.reformatter.VideoReformatter()
        size = None
        for number in range(start, stop):
            frame = av.VideoFrame.from_ndarray(self.read([number])[0], format="rgb24")
            size = self._check_frame(frame, size)
            yield number, frame


def open_video(video: Any, reader: type = VideoReader) -> Any:
    """The reader of an encoded video (a file, URL, bytes or row) or of a folder of frames, for a `with` block.

    Args:
        video: as for `MVDVideoProcessor`; a row may have `fps` and `num_frames` of a folder of frames.
        reader: class that reads files: `VideoReader`, `SequentialReader` or `VideoStream`.

    Raises:
        VideoReadError: if it cannot be opened.
        ValueError: if a file has an `fps`, which it stores itself.
    """
    source = downloaded(video)
    facts = {name: video.get(name) for name in FOLDER_FACTS} if is_row(video) else {}
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        return FrameFolderReader(source, **facts)
    if facts.get("fps") is not None:
        raise ValueError(f"fps={facts['fps']} of {source} is for a folder of frames, a file has its own times.")
    return reader(source)


__all__ = ["FRAME_SUFFIXES", "FrameFolderReader", "frame_files", "open_video", "read_image"]
