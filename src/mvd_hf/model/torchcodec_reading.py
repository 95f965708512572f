"""Reading chosen frames of a video file with torchcodec, every frame checked against the packets' own times.

torchcodec seeks by presentation time. Where a container's seeks or times do not mean what it takes them for, it gives
other frames without an error. So PyAV first reads the packets, without decoding them, for the number and the times of
the frames; a video that torchcodec may read wrongly, or a frame with another time, is refused and never returned.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .video_reading import MAX_PIXELS, Source, VideoReader, VideoReadError, orientation

try:
    from torchcodec.decoders import VideoDecoder
except (ImportError, RuntimeError, OSError) as error:  # the last two: FFmpeg's libraries cannot be loaded
    VideoDecoder, torchcodec_import_error = None, error

# containers whose seeks lead to the key frame that was asked for; those of MPEG streams do not
SEEKABLE_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf", "ogg", "gif"}
# what `orientation` gives for the counter-clockwise degrees that torchcodec turns a video by
TURNS = {
    0: (False, False, False),
    90: (True, True, False),
    180: (False, True, True),
    -90: (True, False, True),
    -180: (False, True, True),
}


@dataclass
class DecodedFrame:
    """A frame as torchcodec gives it: upright RGB, (height, width, 3) uint8."""

    pixels: np.ndarray
    side_data: tuple = ()  # no display matrix: it has been applied

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]


class TorchCodecReader(VideoReader):
    """An open video that torchcodec decodes, in its exact mode: the interface and the frames of [`VideoReader`].

    Colours differ from those of [`VideoReader`] where torchcodec converts them otherwise: 10-bit, interlaced and
    odd-sized videos. Damage that the decoder conceals without an error is not seen and not refused.

    Args:
        source, num_threads, max_pixels: as in [`VideoReader`].

    Raises:
        ImportError: if torchcodec or PyAV is missing.
        VideoReadError: as in [`VideoReader`], and for what torchcodec cannot be trusted with: MPEG-TS and MPEG-PS,
            elementary streams, times that do not give the order of the frames (B-frames in AVI), frames hidden by an
            edit list, mirrored videos. The backend "pyav" reads all of them.
    """

    def __init__(self, source: Source, *, num_threads: int = 1, max_pixels: int = MAX_PIXELS):
        if VideoDecoder is None:
            raise ImportError(
                "Reading videos with torchcodec needs it and FFmpeg's libraries: pip install torchcodec "
                f"({torchcodec_import_error})."
            )
        super().__init__(source, max_pixels=max_pixels)
        try:
            self._num_ffmpeg_threads, self._stream_index = num_threads, self._stream.index
            self._turn = self._first_turn()
            packets, self._time_base = self._whole.packets, self._stream.time_base
            self._times = [packets[i].pts for i in self._whole.order]
        finally:
            super().close()  # and let go of the compressed packets
        self._video = self._open_torchcodec()

    def close(self):
        """Free the file and the decoder."""
        super().close()
        self._video, self._times = None, []

    # opening

    def _read_index(self) -> list:
        """Nothing: the times of all packets are needed, which the container's table does not have."""
        return []

    def _count_frames(self) -> int:
        """Number of frames of a video that torchcodec can be trusted with."""
        name = self._container.format.name
        if name not in SEEKABLE_FORMATS:
            raise self._refusal(f"seeks in the format {name} do not lead to the wanted frame")
        if not self._whole.order:
            raise self._refusal("the times of the packets do not give the order of the frames")
        if any(packet.is_discard for packet in self._whole.packets):
            raise self._refusal("an edit list hides frames")
        return len(self._whole.order)

    def _first_turn(self) -> tuple[bool, bool, bool]:
        """Orientation of the first frame that can be decoded."""
        for frame in self._decode_packets(self._whole.packets):
            return orientation(frame)
        raise VideoReadError(self.source, "no frame can be decoded")

    def _open_torchcodec(self) -> "VideoDecoder":
        """torchcodec's decoder of the stream, if it agrees on the number of frames and on which way is up."""
        if isinstance(self.source, str | os.PathLike):
            source = os.path.abspath(os.fspath(self.source))
        elif isinstance(self.source, bytes | bytearray | memoryview):
            source = bytes(self.source)
        else:
            source = self.source
        try:
            if source is self.source and not isinstance(source, str | bytes):
                source.seek(0)
            video = VideoDecoder(
                source,
                stream_index=self._stream_index,
                dimension_order="NHWC",
                num_ffmpeg_threads=self._num_ffmpeg_threads,
                device="cpu",
                seek_mode="exact",
            )
        except Exception as error:  # of many types: RuntimeError, ValueError, AssertionError, those of a file object
            raise VideoReadError(self.source, f"torchcodec cannot open it ({error})") from error
        if len(video) != self._num_frames:
            raise self._refusal(f"it counts {len(video)} frames instead of {self._num_frames}")
        if TURNS.get(round(getattr(video.metadata, "rotation", None) or 0)) != self._turn:
            raise self._refusal("it does not turn or mirror the frames as the video says")
        return video

    def _refusal(self, reason: str) -> VideoReadError:
        return VideoReadError(self.source, f"torchcodec may return other frames: {reason}; use backend='pyav'")

    # decoding

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, DecodedFrame]]:
        """Wanted frames with their numbers, each once."""
        if not self._times:
            raise VideoReadError(self.source, "the reader is closed")
        # a decoder that failed would go on behind the damage, as if nothing were missing
        video, self._video = self._video or self._open_torchcodec(), None
        for index in wanted:
            try:
                frame = video.get_frame_at(index)
                pixels = frame.data.numpy()
            except Exception as error:
                raise VideoReadError(self.source, f"torchcodec cannot decode frame {index} ({error})") from error
            if abs(frame.pts_seconds - self._times[index] * self._time_base) > self._time_base / 2:
                raise self._refusal(f"frame {index} came out as one of {frame.pts_seconds:.3f} s")
            yield index, DecodedFrame(pixels)
        self._video = video

    def _to_rgb(self, frame: DecodedFrame) -> np.ndarray:
        return frame.pixels


__all__ = ["TorchCodecReader"]
