"""Opens the files of rows as readers of frames; an image is a video of one frame."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..model.frame_folders import open_video, read_image
from ..model.video_inputs_mvd import FOLDER_FACTS
from ..model.video_reading import Frames, Source, VideoReader, VideoReadError
from .sources import media_name
from .urls import open_ranges, read_url

Item = dict | str | bytes


def read_frames(source: Source, indices: Sequence[int] | Callable[[int], Sequence[int]], **options) -> np.ndarray:
    """Frames of a video by number, upright RGB: (n, height, width, 3) uint8.

    Args:
        source: path, bytes or binary file object.
        indices: (n,) frame numbers from 0, repeats allowed; or a function of the number of frames that gives them.
        options: `num_threads` and `max_pixels`, see `VideoReader`.

    Raises:
        VideoReadError: (a ValueError) naming the file and the reason.
    """
    with VideoReader(source, **options) as reader:
        return reader.read(indices(len(reader)) if callable(indices) else indices)


class ImageReader:
    """An image as a video of one frame, with the interface of `VideoReader`."""

    def __init__(self, source: str | bytes):
        self.pixels = read_image(io.BytesIO(source) if isinstance(source, bytes) else source, source)

    def __len__(self) -> int:
        return 1

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *exception):
        """Nothing to close."""

    def stored_times(self) -> np.ndarray:
        """The time of its frame, 0 seconds."""
        return np.zeros(1)

    def decode(self, indices: Sequence[int]) -> Frames:
        """The image, once per index."""
        return Frames(self.pixels.shape[:2], [self.pixels] * len(indices))

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The image (n, height, width, 3) uint8, once per index."""
        return self.decode(indices).rgb()


def media_content(item: Item) -> str | bytes:
    """Bytes or local path of a row's file: the bytes if the row has both, the content of a URL.

    Raises:
        VideoReadError: if the row has no file, or its URL cannot be read.
    """
    content = item["bytes"] if isinstance(item, dict) and item["bytes"] is not None else item
    content = content["path"] if isinstance(content, dict) else content
    if content is None:
        raise VideoReadError(media_name(item), "has neither a path nor bytes")
    return read_url(content) if isinstance(content, str) and "://" in content else content


def encoded_video(item: Item) -> Item:
    """A row's video as `MVDVideoProcessor` takes it, a URL fetched; errors as in [`media_content`]."""
    content = media_content(item)
    facts = {name: item.get(name) for name in FOLDER_FACTS} if isinstance(item, dict) else {}
    return {"path": content, **facts} if any(value is not None for value in facts.values()) else content


@contextmanager
def open_media(
    item: Item, is_image: bool = False, reader: type[VideoReader] = VideoReader
) -> Iterator[VideoReader | ImageReader]:
    """Reader of a row's file or folder of frames, in a `with` block; `reader` is its class for files of videos.

    Raises:
        VideoReadError: if the file cannot be read, also while the block runs; it names the row's file.
    """
    try:
        place = item["path"] if isinstance(item, dict) and item["bytes"] is None else item
        is_remote = isinstance(place, str) and "://" in place and not is_image
        source = (open_ranges(place) if is_remote else None) or encoded_video(item)
        with ImageReader(source) if is_image else open_video(source, reader) as opened:
            yield opened
    except VideoReadError as error:
        raise VideoReadError(media_name(item), error.reason or str(error)) from error
