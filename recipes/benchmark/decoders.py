"""Ways to decode the frames of a clip: ours, decord, torchcodec, plain PyAV, and the minimal time of libav.

T frames of H x W pixels.
"""

import importlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from mvd_hf.model.video_reading import DECODERS_THAT_SKIP, VideoReader

from .reports import NOT_MEASURED

OURS, FLOOR = "mvd_hf", "floor: bare decoding of the packets needed"

# maps the number of frames of a video to the frame numbers (T,) to read
ChooseFrames = Callable[[int], np.ndarray]


def optional(name: str):
    """A package, or `None` if it cannot be imported."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError):
        return None


decord, torchcodec = optional("decord"), optional("torchcodec.decoders")


def fixed_frames(indices: np.ndarray, total_frames: int) -> np.ndarray:
    """These frame numbers, whatever the number of frames."""
    return indices


# decoding: (path, choose) to frames (T, H, W, 3) uint8


def decode_ours(path: str, choose: ChooseFrames) -> np.ndarray:
    """Frames read by [`VideoReader`]."""
    with VideoReader(path) as reader:
        return reader.read(choose(len(reader)))


def decode_decord(path: str, choose: ChooseFrames) -> np.ndarray:
    """Frames read by decord with one decoder thread, as in the official program."""
    reader = decord.VideoReader(path, num_threads=1)
    return reader.get_batch(choose(len(reader))).asnumpy()


def decode_torchcodec(path: str, choose: ChooseFrames) -> np.ndarray:
    """Frames read by torchcodec in its exact mode with one decoder thread."""
    decoder = torchcodec.VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    return decoder.get_frames_at([int(index) for index in choose(len(decoder))]).data.numpy()


def decode_everything(path: str, choose: ChooseFrames, convert_all: bool) -> np.ndarray:
    """Frames read with PyAV's `decode` from the first to the last.

    Args:
        path: the file.
        choose: returns the frame numbers to keep.
        convert_all: convert every frame to RGB with PyAV's defaults, as many tutorials do, instead of only the kept
            ones with one converter and one thread.
    """
    with av.open(path) as container:
        stream = container.streams.video[0]
        if not convert_all:
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        count = stream.frames
        if count == 0:
            count = sum(packet.size > 0 for packet in container.demux(stream))
            container.seek(0)
        indices, reformatter, kept = choose(count), VideoReformatter(), {}
        wanted = {int(index) for index in indices}
        for index, frame in enumerate(container.decode(stream)):
            if convert_all:
                pixels = frame.to_ndarray(format="rgb24")
            elif index in wanted:
                pixels = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            if index in wanted:
                kept[index] = pixels
    return np.stack([kept[int(index)] for index in indices])


class DecoderFloor:
    """The time of the decoder alone: packets are in memory, only needed ones are decoded, colors are not converted.

    The packets of a file are read when it is first decoded.
    """

    def __init__(self):
        self.videos: dict[str, tuple] = {}

    @staticmethod
    def open(path: str) -> tuple:
        """Container, packets, and packets of the frames in display order.

        Raises:
            ValueError: if the packets have no timestamps.
        """
        container = av.open(path)
        stream = container.streams.best("video")
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        packets = [packet for packet in container.demux(stream) if packet.size]
        times = [packet.pts for packet in packets if not packet.is_discard]
        if None in times or len(set(times)) != len(times) or not packets[0].is_keyframe:
            container.close()
            raise ValueError(f"The packets of {path!r} have no timestamps; choose another file.")
        order = sorted((i for i, packet in enumerate(packets) if not packet.is_discard), key=lambda i: packets[i].pts)
        return container, packets, order

    def __call__(self, path: str, choose: ChooseFrames) -> set[int]:
        """Decode the packets that the frames need; return the numbers of the decoded frames."""
        if path not in self.videos:
            self.videos[path] = self.open(path)
        _, packets, order = self.videos[path]
        decoder = packets[0].stream.codec_context
        skips = decoder.name in DECODERS_THAT_SKIP
        number_of = {packets[order[index]].pts: int(index) for index in choose(len(order))}
        wanted = sorted(order[index] for index in number_of.values())
        came_out: set[int] = set()
        for start, stop in self._runs(packets, wanted):
            for packet in itertools.chain(packets[start:stop], [None]):
                if packet is not None and skips:
                    decoder.skip_frame = "DEFAULT" if packet.pts in number_of else "NONREF"
                came_out |= {number_of[frame.pts] for frame in decoder.decode(packet) if frame.pts in number_of}
            decoder.flush_buffers()
        return came_out

    @staticmethod
    def _runs(packets: list, wanted: list[int]) -> list[list[int]]:
        """Ranges of packets from the key packet before wanted packets to the last of them."""
        runs: list[list[int]] = []
        for i in wanted:
            start = max(j for j in range(i + 1) if packets[j].is_keyframe and packets[j].pts <= packets[i].pts)
            if runs and start <= runs[-1][1]:
                runs[-1][1] = max(runs[-1][1], i + 1)
            else:
                runs.append([start, i + 1])
        return runs

    def close(self):
        """Close all files."""
        for container, *_ in self.videos.values():
            container.close()


def decoders() -> dict[str, Callable | None]:
    """All ways to decode, by name; `None` for packages that are not installed."""
    return {
        OURS: decode_ours,
        "decord, 1 thread": decord and decode_decord,
        "torchcodec, exact": torchcodec and decode_torchcodec,
        "PyAV, decode all, convert the clip's": partial(decode_everything, convert_all=False),
        "PyAV, decode and convert all": partial(decode_everything, convert_all=True),
    }


def check_frames(method: Callable | None, tasks: Sequence[tuple]) -> str:
    """Compare a decoder with an exhaustive decode: `same`, `other frames`, or its error."""
    if method is None:
        return NOT_MEASURED
    for path, choose in tasks:
        try:
            frames = method(path, choose)
        except Exception as error:  # of any type: other packages'
            return f"fails ({type(error).__name__})"
        if isinstance(frames, set):  # the floor keeps no frames
            agrees = frames == set(choose(0).tolist())
        else:
            agrees = np.array_equal(frames, decode_everything(path, choose, convert_all=False))
        if not agrees:
            return "other frames"
    return "same"
