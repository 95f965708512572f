"""The forms in which a video comes: encoded (path, URL, bytes, file, row of `datasets`), or decoded frames."""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants, get_session
from huggingface_hub.utils import httpx
from PIL import Image
from transformers.image_utils import ChannelDimension

from .video_file import VideoReadError

# what a row may know of a folder of frames
FOLDER_FACTS = ("fps", "num_frames")


def downloaded(video: Any) -> Any:
    """An encoded video as it is; of an http(s) URL or a row with bytes the file, which messages name by URL or path.

    Raises:
        VideoReadError: if it cannot be downloaded.
    """
    if is_row(video):
        video, path = video.get("path") if video.get("bytes") is None else video["bytes"], video.get("path")
        if isinstance(video, bytes) and path is not None:
            file = io.BytesIO(video)
            file.name = path
            return file
    if not (isinstance(video, str) and video.startswith(("http://", "https://"))):
        return video
    try:
        response = get_session().get(video, follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        response.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise VideoReadError(video, f"cannot be downloaded ({error})") from error
    file = io.BytesIO(response.content)
    file.name = video
    return file


def is_frame(value: Any) -> bool:
    """Whether a value is one decoded frame."""
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 3)


def is_row(video: Any) -> bool:
    """Whether a video is what `datasets` gives without decoding: `path` and `bytes`, of which one is set.

    Of a folder of frames it may have `fps` and `num_frames`, too.
    """
    if not isinstance(video, Mapping) or not video.keys() <= {"path", "bytes", *FOLDER_FACTS}:
        return False
    return video.get("path") is not None or video.get("bytes") is not None


def is_encoded(video: Any) -> bool:
    """Whether a video must be decoded: a path, a URL, bytes, a binary file object, or a row of `datasets`."""
    is_file = isinstance(video, str | bytes | bytearray | memoryview | os.PathLike) or hasattr(video, "read")
    return is_file or is_row(video)


def is_box_matrix(boxes: Any) -> bool:
    """Whether boxes are those of one video, (people, 4), and not of a batch."""
    if isinstance(boxes, np.ndarray | torch.Tensor):
        return boxes.ndim == 2
    return all(np.ndim(row) == 1 and len(row) == 4 for row in boxes)


def list_videos(videos: Any) -> list:
    """The videos of an input that is one video or a batch.

    Raises:
        ValueError: if the batch is empty.
    """
    if isinstance(videos, np.ndarray | torch.Tensor):
        is_batch = videos.ndim == 5
    else:
        is_batch = isinstance(videos, list | tuple) and not (videos and all(is_frame(item) for item in videos))
    batch = list(videos) if is_batch else [videos]
    if not batch:
        raise ValueError("There is no video in the batch; pass at least one.")
    return batch


def stack_frames(video: Any, input_data_format: str | ChannelDimension | None = None) -> torch.Tensor:
    """Decoded frames in any form as (T, C, H, W), with 1 or 3 channels.

    Args:
        video: (T, H, W, C) array, (T, C, H, W) tensor, or a list of PIL images, (H, W, C) arrays or (C, H, W) tensors.
        input_data_format: "channels_first" or "channels_last"; `None` takes the axis with 1 or 3 entries: of two such
            axes the last one of an array, the first one of a tensor.

    Raises:
        ValueError: if the video has another form.
    """
    if isinstance(video, list | tuple) and video and all(is_frame(frame) for frame in video):
        frames = [np.array(frame.convert("RGB")) if isinstance(frame, Image.Image) else frame for frame in video]
        if len(shapes := {tuple(frame.shape) for frame in frames}) > 1:
            raise ValueError(f"The frames of a video have the shapes {sorted(shapes)}; give them one shape.")
        video = torch.stack(frames) if all(isinstance(f, torch.Tensor) for f in frames) else np.stack(frames)
    if not isinstance(video, np.ndarray | torch.Tensor) or video.ndim != 4 or len(video) == 0:
        found = f"shape {tuple(video.shape)}" if hasattr(video, "shape") else f"type {type(video).__name__}"
        if is_frame(video):
            raise ValueError(
                f"A single image of {found} is not a video: pass all frames of a video, in a pipeline as a tuple."
            )
        if isinstance(video, Mapping):
            found = f"{found} with {', '.join(map(repr, video)) or 'no keys'}"
        raise ValueError(
            f"A video of {found} cannot be read; pass a path, URL, bytes, binary file, {{'path', 'bytes'}} of a data "
            f"set, (T, H, W, C) array, (T, C, H, W) tensor, a list of PIL images, or a list of these."
        )
    axes = (-1, 1) if isinstance(video, np.ndarray) else (1, -1)
    if input_data_format is not None:
        axes = (1,) if ChannelDimension(input_data_format) is ChannelDimension.FIRST else (-1,)
    axis = next((axis for axis in axes if video.shape[axis] in (1, 3)), None)
    if axis is None:
        raise ValueError(
            f"Frames of shape {tuple(video.shape)} have no axis of 1 or 3 channels"
            f"{f' at {input_data_format}' if input_data_format else ''}; convert them to RGB."
        )
    if isinstance(video, np.ndarray):
        video = torch.from_numpy(np.require(video, requirements=["C", "W"]))
    return video.movedim(axis, 1)


__all__ = ["downloaded", "is_box_matrix", "is_encoded", "is_frame", "list_videos", "stack_frames"]
