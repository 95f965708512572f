"""Finds the videos of an action detection data set and opens the frames around a time."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from ..data.folders import VIDEO_SUFFIXES
from ..model.loading_mvd import listed
from ..model.video_reading import VideoReader, VideoReadError

# a file or a folder of seconds, and its first and last second
Part = tuple[Path, float, float]


def second_files(folder: Path) -> dict[int, Path]:
    """The files of a folder by their second, `902.mp4` or `0902.mp4`."""
    return {int(path.stem): path for path in folder.iterdir() if path.stem.isdigit()}


def check_second(files: dict[int, Path], folder: Path, second: float):
    """Raise VideoReadError if a second is not among the files of a folder."""
    if second % 1:
        raise VideoReadError(folder, f"files of one second have no key frame at {second:g} s, only at whole seconds")
    if second not in files:
        known = f"has the seconds {min(files)} to {max(files)}" if files else "has no file of a second (902.mp4)"
        raise VideoReadError(folder, f"there is no file of second {second:g}: the folder {known}")


class SecondFiles:
    """The frames around the beginning of a second, from files of one second each, with the interface of `VideoReader`.

    Args:
        folder: holds `902.mp4` or `0902.mp4`, and so on.
        second: the second whose first frame is the key frame.
        span: number of frames wanted on either side, if there are as many.

    Attributes:
        key_frame: index of the key frame.

    Raises:
        VideoReadError: if there is no file of the second, or a file that is needed cannot be read.
    """

    def __init__(self, folder: Path, second: float, span: int):
        self.folder = folder
        files = second_files(folder)
        check_second(files, folder, second)
        self._stack = ExitStack()
        try:
            second = int(second)
            before = self._open(files, range(second - 1, second - 1 - span, -1), span)[::-1]
            after = self._open(files, range(second, second + span), span)
        except BaseException:
            self._stack.close()
            raise
        self._readers = [*before, *after]
        self._ends = np.cumsum([len(reader) for reader in self._readers])
        self.key_frame = sum(len(reader) for reader in before)

    def _open(self, files: dict[int, Path], seconds: range, span: int) -> list[VideoReader]:
        """Readers of successive seconds, until they have `span` frames or a second is missing."""
        readers: list[VideoReader] = []
        for second in seconds:
            if second not in files or sum(map(len, readers)) >= span:
                break
            readers.append(self._stack.enter_context(VideoReader(files[second])))
        return readers

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __enter__(self) -> "SecondFiles":
        return self

    def __exit__(self, *exception):
        self._stack.close()

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames (n, height, width, 3) by number."""
        indices = np.asarray(indices)
        owners = np.searchsorted(self._ends, indices, side="right")
        frames: dict[int, np.ndarray] = {}
        for owner in np.unique(owners):
            reader = self._readers[owner]
            frames[owner] = reader.read(indices[owners == owner] - (self._ends[owner] - len(reader)))
        if len({part.shape[1:] for part in frames.values()}) > 1:
            raise VideoReadError(self.folder, "its files have frames of different sizes")
        result = np.empty((len(indices), *next(iter(frames.values())).shape[1:]), dtype=np.uint8)
        for owner, part in frames.items():
            result[owners == owner] = part
        return result


class VideoFolders:
    """Videos by id in folders: `<id>.mp4`; `<id>/902.mp4`, a file for each second; or `<id>_000010_000020.mp4`.

    The last form is that of Kinetics (for AVA-Kinetics): the file begins and ends at these seconds of the original
    video. Files may also lie in sub-folders.

    Args:
        roots: the folders.
        start: second of the original video at which the files of whole videos begin: 0, or 900 where only AVA's
            annotated quarter of an hour was downloaded.

    Raises:
        ValueError: if a folder does not exist.
    """

    def __init__(self, roots: str | os.PathLike | Sequence[str | os.PathLike], start: float = 0.0):
        self.roots = [Path(root) for root in ([roots] if isinstance(roots, str | os.PathLike) else roots)]
        self.start = start
        self._found: dict[str, list[Part]] = {}
        self._has_searched = False
        for root in self.roots:
            if not root.is_dir():
                raise ValueError(f"There is no folder of videos {str(root)!r}: give the folder that holds the videos.")
            self._add(sorted(root.iterdir()))

    def _add(self, paths: Iterable[Path]):
        """Register files and folders under their possible ids."""
        for path in paths:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                self._found.setdefault(path.stem, []).append((path, self.start, np.inf))
                if part := re.fullmatch(r"(.+)_(\d{6})_(\d{6})", path.stem):
                    name, first, last = part.groups()
                    self._found.setdefault(name, []).append((path, float(first), float(last)))
            elif path.is_dir():
                self._found.setdefault(path.name, []).append((path, 0.0, np.inf))

    def locate(self, video: str, timestamp: float) -> tuple[Path, float]:
        """The file or folder of seconds that holds a time of a video, and the second at which it begins."""
        parts = self.parts(video)
        for path, first, last in parts:
            if timestamp <= last and (first <= timestamp or last == np.inf):
                return path, first
        roots = ", ".join(map(str, self.roots))
        if parts:
            seconds = ", ".join(f"{first:g} to {last:g}" for _, first, last in parts)
            raise VideoReadError(video, f"no file in {roots} holds second {timestamp:g}: there are {seconds}")
        raise VideoReadError(
            video, f"no such video in {roots} (neither {video}.mp4, {video}/902.mp4 nor Kinetics' form)"
        )

    def parts(self, video: str) -> list[Part]:
        """Files of a video, or its folder of seconds, with their first and last second."""
        name = video.removesuffix(Path(video).suffix) if Path(video).suffix.lower() in VIDEO_SUFFIXES else video
        if name not in self._found and not self._has_searched:
            self._has_searched = True
            for root in self.roots:
                self._add(path for path in sorted(root.rglob("*")) if path.parent != root)
        return self._found.get(name, [])

    def check(self, videos: Iterable[str]):
        """Raise ValueError naming missing videos."""
        missing = sorted({video for video in videos if not self.parts(video)})
        if missing:
            roots = ", ".join(map(str, self.roots))
            raise ValueError(
                f"Videos missing in {roots}: {listed(missing)}. Check the files with recipes/audit.py --ava, or train "
                "without these videos (on_bad_video=skip)."
            )

    @contextmanager
    def open(self, video: str, timestamp: float, span: int) -> Iterator[tuple[VideoReader | SecondFiles, int]]:
        """A reader of the frames around a time of a video, and the index of the frame that is nearest to it.

        `span` is the number of frames wanted on either side. Raises VideoReadError if the video is missing, too short,
        or cannot be read.
        """
        path, first = self.locate(video, timestamp)
        if not path.is_dir():
            with VideoReader(path) as reader:
                yield reader, reader.frame_at(timestamp - first)
            return
        with SecondFiles(path, timestamp, span) as reader:
            yield reader, reader.key_frame
