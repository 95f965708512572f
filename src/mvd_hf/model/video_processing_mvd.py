"""MVDVideoProcessor makes the input of a model from videos, exactly as in the tests of the paper (arXiv 2212.04500).

Letters in shapes: B videos, V views of each, K clips, T frames, C channels, H x W pixels of a frame.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import VideosKwargs
from transformers.utils import IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .boxes_mvd import Placement, as_pixels, clip_boxes, pad_people
from .frame_sampling import dense_test_frames, frames_by_seconds, uniform_test_frames
from .saving_mvd import forget_absent_code
from .video_inputs_mvd import downloaded, is_box_matrix, is_encoded, list_videos, stack_frames
from .video_reading import VideoReader

# arguments of all video processors that this one does not support
UNUSED_ARGUMENTS = ("do_pad", "data_format", "video_metadata")
# tasks of transformers that load our models but give them images, and the task to use
VIDEO_TASKS = {"object-detection": "video-action-detection", "image-feature-extraction": "video-feature-extraction"}
SAMPLING_ARGUMENTS = ("sampling", "num_frames", "frame_sampling_rate", "fps", "num_clips")

Taps = tuple[torch.Tensor, torch.Tensor]


def bilinear_taps(old: int, new: int, is_width: bool) -> Taps:
    """For each new pixel of a line the two old pixels (2, new) that it mixes, and their weights in 1/2048."""
    place = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).float()
    before = place.floor()
    fraction = place - before
    if is_width:  # OpenCV mixes border rows with themselves, which rounds, but takes border columns as they are
        fraction = fraction.where((before >= 0) & (before < old - 1), 0.0)
    pixels = torch.stack([before, before + 1]).long().clamp_(0, old - 1)
    return pixels, (2048 * torch.stack([1 - fraction, fraction])).round().int()


def blend(frames: torch.Tensor, columns: Taps, rows: Taps) -> torch.Tensor:
    """Weighted sums of pixels of uint8 frames over columns, then over rows, with the integer arithmetic of OpenCV."""
    left, right = (
        frames.index_select(-1, pixels).int().mul_(weights) for pixels, weights in zip(*columns, strict=True)
    )
    wide = left.add_(right).bitwise_right_shift_(4)
    upper, lower = (
        wide.index_select(-2, pixels).mul_(weights[:, None]).bitwise_right_shift_(16)
        for pixels, weights in zip(*rows, strict=True)
    )
    return upper.add_(lower).add_(2).bitwise_right_shift_(2).clamp_(0, 255).to(torch.uint8)


def resize_bilinear(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize frames (n, C, H, W) to (n, C, height, width), bilinearly and without antialiasing.

    The dtype stays. uint8 results equal those of `INTER_LINEAR` of OpenCV, which the official programs use, exactly.
    """
    if frames.is_floating_point():
        return torch.nn.functional.interpolate(frames, (height, width), mode="bilinear")
    old_height, old_width = frames.shape[-2:]
    columns, rows = (
        tuple(part.to(frames.device) for part in bilinear_taps(old, new, is_width))
        for old, new, is_width in ((old_width, width, True), (old_height, height, False))
    )
    # one frame at a time: its sums stay in the cache of the CPU, which more than halves the time
    return torch.cat([blend(frame, columns, rows) for frame in frames.split(1)])


def resize_short_side(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Frames (n, C, H, W) resized so that the short side has `size` pixels; see [`resize_bilinear`].

    The long side is rounded down. Frames that have the size already are not copied.
    """
    height, width = short_side_size(*frames.shape[-2:], size)
    return frames if (height, width) == frames.shape[-2:] else resize_bilinear(frames, height, width)


def short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) of a frame whose short side is resized to `size`; the long one is rounded down."""
    short = min(height, width)
    return size * height // short, size * width // short


def crop_offsets(height: int, width: int, size: int | tuple[int, int], num_crops: int = 1) -> list[tuple[int, int]]:
    """(top, left) of the centre crop of a frame, or of several crops evenly spread along its longer side.

    Args:
        height, width: pixels of the frame.
        size: pixels of the square crop, or its (height, width).
        num_crops: number of crops: one as in the official validation, several as in the official test.

    Raises:
        ValueError: if the crop is larger than the frame, or `num_crops` is below one.
    """
    crop_height, crop_width = (size, size) if isinstance(size, int) else size
    if num_crops < 1:
        raise ValueError(f"num_crops={num_crops} must be at least 1.")
    if crop_height > height or crop_width > width:
        raise ValueError(
            f"A crop of {crop_height}x{crop_width} (height x width) does not fit into frames of {height}x{width}; "
            f"resize them to a larger size, or choose a smaller crop_size."
        )
    free = (height - crop_height, width - crop_width)
    centre = (round(free[0] / 2), round(free[1] / 2))
    if num_crops == 1:
        return [centre]
    along_height = height >= width
    step = free[0 if along_height else 1] / (num_crops - 1)
    starts = [int(crop * step) for crop in range(num_crops)]
    return [(start, centre[1]) if along_height else (centre[0], start) for start in starts]


class MVDVideoProcessorKwargs(VideosKwargs, total=False):
    """Arguments of [`MVDVideoProcessor`] that other video processors do not have."""

    sampling: Literal["dense", "uniform"] | None
    frame_sampling_rate: int | None
    num_clips: int | None
    num_crops: int | None
    box_unit: Literal["relative", "pixels"] | None
    size_divisor: int | None


class MVDVideoProcessor(BaseVideoProcessor):
    r"""
    Makes the input of an MVD model from videos, as in the tests of the paper.

    A video is a path, an http(s) URL, bytes, a binary file object, `{"path": ..., "bytes": ...}` as `datasets` gives
    it, a (T, H, W, C) array, a (T, C, H, W) tensor or a list of PIL images. A list of videos, or a five-dimensional
    array or tensor, is a batch. All arguments can be set here, and are saved with the model, or for a single call.
    Unknown arguments and wrong types are refused.

    Args:
        do_sample_frames (`bool`, *optional*): whether to choose frames; `False` takes all frames as one clip. By
            default the processor chooses frames of encoded videos and takes decoded frames as one clip.
        sampling (`"dense"` or `"uniform"`, defaults to `"dense"`): frames of a clip, as in training: every
            `frame_sampling_rate`-th (Kinetics, UCF101, HMDB51), or the middle of each of `num_frames` equal parts of
            the video (Something-Something). A video that is too short repeats its last frame.
        num_frames (`int`, defaults to 16): frames of a clip.
        frame_sampling_rate (`int`, defaults to 4): distance of the frames of a dense clip.
        fps (`float`, *optional*): frames per second of a dense clip, by the times of the frames, instead of
            `frame_sampling_rate`; for files, also with a changing rate. Of two stored or passed ones a call decides.
        num_clips (`int`, defaults to 1): clips, evenly spread over the video; a single dense one is in the middle.
        num_crops (`int`, defaults to 1): crops of a clip, evenly spread along the longer side; a single one is the
            centre crop.
        size (defaults to `{"shortest_edge": 224}`): pixels of the short side, or `{"height": ..., "width": ...}`.
        crop_size (defaults to `{"height": 224, "width": 224}`): pixels of the crop.
        box_unit (`"relative"` or `"pixels"`, defaults to `"relative"`): unit of `boxes`: parts of the width and height
            of the frame, or pixels.
        size_divisor (`int`, *optional*): pad the right and lower sides with zeros to a multiple of it.
        do_resize, do_center_crop, do_rescale, do_normalize, do_convert_rgb (`bool`, defaults to `True`): whether to
            resize, crop, multiply by `rescale_factor`, normalise, and convert grey frames to RGB.
        rescale_factor (`float`, defaults to 1/255), image_mean, image_std (default to those of ImageNet): pixel
        values. input_data_format (`str`, *optional*): `"channels_first"` or `"channels_last"` for arrays and tensors.
        device (*optional*): device that resizes and normalises frames, and of the result. return_metadata (`bool`,
        defaults to `False`): whether to return the chosen frame numbers, as `video_metadata`.

    Frames are uint8, or floats in [0, 1] with `do_rescale=False`. With `return_tensors="pt"` the processor returns
    `pixel_values` (B, T, C, H, W) or, if `num_clips * num_crops` is more than one, (B, V, T, C, H, W), with all crops
    of the first clip first. They are float32, or uint8 with neither rescaling nor normalisation. With `boxes`, the
    people in the middle frame of each clip as (people, 4) x1, y1, x2, y2, it also returns `boxes` (B, P, 4) in pixels
    of the result and `box_mask` (B, P): see [`MVDForActionDetection`].

    Raises:
        VideoReadError: (a `ValueError`) if a video cannot be downloaded or decoded; it names the video and the reason.
        ValueError: if frames have a form, type, size or number that does not fit.
    """

    valid_kwargs = MVDVideoProcessorKwargs
    model_input_names = ["pixel_values"]
    sampling = "dense"
    num_frames = 16
    frame_sampling_rate = 4
    num_clips = 1
    num_crops = 1
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    box_unit = "relative"
    size_divisor = None

    def __init__(self, **kwargs):
        self._check(kwargs, is_file="video_processor_type" in kwargs)
        super().__init__(**kwargs)
        if self.fps is not None and kwargs.get("frame_sampling_rate") is None:
            self.frame_sampling_rate = None
        self.complete({})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "MVDVideoProcessor":
        """Load a processor; see [`~transformers.BaseVideoProcessor.from_pretrained`].

        Raises:
            ValueError: if a pipeline for images asks for it; the message names the task for videos.
        """
        task = kwargs.get("_from_pipeline")
        if task in VIDEO_TASKS:
            raise ValueError(f"MVD takes videos: use pipeline({VIDEO_TASKS[task]!r}) instead of pipeline({task!r}).")
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def __call__(self, *videos, **kwargs) -> BatchFeature:
        """The model's input; see [`preprocess`]. Raises ValueError for `images`, as pipelines for images pass them."""
        if "images" in kwargs:
            tasks = ", ".join(VIDEO_TASKS.values())
            raise ValueError(f"{type(self).__name__} takes videos, not images: use a pipeline for videos ({tasks}).")
        return super().__call__(*videos, **kwargs)

    @classmethod
    def for_model(cls, config: PreTrainedConfig, **kwargs) -> "MVDVideoProcessor":
        """The processor for a model, with its number of frames, size and normalisation.

        Args:
            config: an `MVDConfig`.
            kwargs: further arguments, such as `sampling="uniform"`.
        """
        height, width = config.frame_size
        fields = {
            "size": {"shortest_edge": min(height, width)},
            "crop_size": {"height": height, "width": width},
            "num_frames": config.num_frames,
            "image_mean": config.image_mean,
            "image_std": config.image_std,
        }
        return cls(**(fields | kwargs))

    @classmethod
    def for_detection(cls, config: PreTrainedConfig, **kwargs) -> "MVDVideoProcessor":
        """The processor for an action detector, as in the test on AVA: whole frames without a crop.

        The short side is 256/224 times that of the training crop.

        Args:
            config: an `MVDConfig`.
            kwargs: further arguments.
        """
        fields = {
            "size": {"shortest_edge": round(min(config.frame_size) * 256 / 224)},
            "do_center_crop": False,
            "size_divisor": config.patch_size,
        }
        return cls.for_model(config, **(fields | kwargs))

    def _check(self, kwargs: dict, is_file: bool = False):
        """Refuse unknown arguments, wrong types and unsupported arguments.

        A saved file may have other fields too: those of another version of transformers, and of remote code.
        """
        names = self.valid_kwargs.__annotations__
        validate_typed_dict(self.valid_kwargs, {k: v for k, v in kwargs.items() if k in names or not is_file})
        for name in UNUSED_ARGUMENTS:
            if kwargs.get(name) is not None:
                raise ValueError(f"{type(self).__name__} has no use for {name}={kwargs[name]!r}; leave it out.")
        if kwargs.get("resample") not in (None, PILImageResampling.BILINEAR):
            raise ValueError(f"resample={kwargs['resample']!r} is not possible; frames are resized bilinearly (2).")

    def complete(self, kwargs: dict) -> dict:
        """All arguments: the given ones, else the stored ones. A given distance of frames replaces the stored one.

        Raises:
            ValueError: if both or neither distance is given, or `fps` with uniform sampling.
        """
        given = {name: value for name, value in kwargs.items() if value is not None}
        options = {name: getattr(self, name, None) for name in self.valid_kwargs.__annotations__}
        if "fps" in given or "frame_sampling_rate" in given:
            options["fps"] = options["frame_sampling_rate"] = None
        options |= given
        fps, stride = options["fps"], options["frame_sampling_rate"]
        if (fps is None) == (stride is None):
            raise ValueError(f"Give either fps={fps} or frame_sampling_rate={stride}, and leave the other out.")
        if fps is not None and options["sampling"] == "uniform":
            raise ValueError(f"fps={fps:g} is for sampling='dense': uniform clips are spread over the whole video.")
        return options

    def preprocess(self, videos, boxes=None, **kwargs) -> BatchFeature:
        """The model's input from one video or a batch; see [`MVDVideoProcessor`].

        Args:
            videos: one video, or a batch.
            boxes (*optional*): (people, 4) of one video, or for each video of the batch.
            kwargs: arguments of the processor.
        """
        self._check(kwargs)
        options = self._standardize_kwargs(**self.complete(kwargs))
        self._validate_preprocess_kwargs(**options)
        batch = list_videos(videos)
        people = self._list_boxes(boxes, len(batch), options)
        clips, metadata, placed = [], [], []
        for video, of_video in zip(batch, people, strict=True):
            frames, description = self._choose_frames(video, options)
            clips.append(self._make_views(frames.to(device=options["device"]), options))
            metadata.append(description)
            if of_video is not None:
                placed.append(self._place_boxes(of_video, frames.shape[-2:], options))
        features = {"pixel_values": clips}
        if boxes is not None and options["return_tensors"]:
            features["boxes"], features["box_mask"] = pad_people(placed)
        elif boxes is not None:
            features["boxes"] = placed
        output = BatchFeature(features, tensor_type=options["return_tensors"])
        if options["return_metadata"]:
            output["video_metadata"] = metadata
        return output

    def sample_frames(self, metadata: VideoMetadata, times: np.ndarray | None = None, **kwargs) -> np.ndarray:
        """Frame numbers (K * T,) of the clips of a video with `metadata.total_num_frames` frames.

        Args:
            metadata: of the video.
            times: (frames,) seconds of each frame, for `fps`; by default they follow from `metadata.fps`.
            kwargs: `sampling`, `num_frames`, `frame_sampling_rate`, `fps`, `num_clips`; by default the stored ones.

        Raises:
            ValueError: if `fps` is used and there are no times.
        """
        self._check(kwargs)
        options = self.complete(kwargs)
        total, num_frames, num_clips = metadata.total_num_frames, options["num_frames"], options["num_clips"]
        if options["sampling"] == "uniform":
            return uniform_test_frames(total, num_frames, num_clips).ravel()
        clips = partial(dense_test_frames, num_frames=num_frames, num_clips=num_clips)
        if options["fps"] is None:
            return clips(total, stride=options["frame_sampling_rate"]).ravel()
        if times is None and not metadata.fps:
            raise ValueError(
                f"fps={options['fps']:g} needs the times of the frames: pass a video file, or frame_sampling_rate."
            )
        times = np.arange(total) / metadata.fps if times is None else times
        return frames_by_seconds(clips, times, options["fps"]).ravel()

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """Write `video_preprocessor_config.json`; see [`~transformers.BaseVideoProcessor.save_pretrained`].

        A second file, `preprocessor_config.json`, makes this the checkpoint's image processor too: without one the
        pipelines of transformers neither make batches nor save the processor.
        """
        forget_absent_code(self, save_directory)
        pointer = {"image_processor_type": type(self).__name__}
        if self._auto_class is not None or "auto_map" in vars(self):
            pointer["auto_map"] = {"AutoImageProcessor": f"{__name__.rpartition('.')[2]}.{type(self).__name__}"}
        os.makedirs(save_directory, exist_ok=True)
        text = json.dumps(pointer, indent=2, sort_keys=True) + "\n"
        (Path(save_directory) / IMAGE_PROCESSOR_NAME).write_text(text, encoding="utf-8")
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def from_dict(cls, video_processor_dict: dict, **kwargs):
        """A processor of stored arguments; a given distance of frames replaces the stored one."""
        if {"fps", "frame_sampling_rate"} & kwargs.keys():
            drop = {"fps", "frame_sampling_rate"} - kwargs.keys()
            video_processor_dict = {key: value for key, value in video_processor_dict.items() if key not in drop}
        return super().from_dict(video_processor_dict, **kwargs)

    @classmethod
    def get_video_processor_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> tuple[dict, dict]:
        """The stored arguments; see [`~transformers.BaseVideoProcessor.get_video_processor_dict`].

        Raises:
            OSError: if there is only the second file of [`save_pretrained`], which does not have them.
        """
        stored, kwargs = super().get_video_processor_dict(pretrained_model_name_or_path, **kwargs)
        if stored.get("image_processor_type") == cls.__name__:
            source = str(pretrained_model_name_or_path)
            raise OSError(f"{source!r} has no {VIDEO_PROCESSOR_NAME}, only {IMAGE_PROCESSOR_NAME}.")
        return stored, kwargs

    def push_to_hub(self, repo_id: str, *, private: bool | None = True, **kwargs) -> str:
        """Upload the processor; a new repository is private by default, which is also the meaning of `None`."""
        return super().push_to_hub(repo_id, private=private is not False, **kwargs)

    def fetch_videos(self, video_url_or_urls, sample_indices_fn: Callable | None = None):
        """Decoded frames (n, H, W, 3) uint8 and metadata of a video, or of each video of a list.

        Args:
            video_url_or_urls: path, http(s) URL, bytes or binary file object, or a list of these.
            sample_indices_fn: returns the frame numbers for the metadata; `None` for all frames.

        Raises:
            VideoReadError: if a video cannot be downloaded or decoded.
        """
        if isinstance(video_url_or_urls, list | tuple):
            return list(
                zip(*(self.fetch_videos(video, sample_indices_fn) for video in video_url_or_urls), strict=True)
            )

        def choose(reader: VideoReader, metadata: VideoMetadata) -> np.ndarray:
            return np.arange(len(reader)) if sample_indices_fn is None else sample_indices_fn(metadata=metadata)

        return self._read(video_url_or_urls, choose)

    @staticmethod
    def _read(video: Any, choose: Callable[[VideoReader, VideoMetadata], np.ndarray]):
        """The chosen frames (n, H, W, 3) uint8 of an encoded video, and its metadata."""
        with VideoReader(downloaded(video)) as reader:
            metadata = VideoMetadata(total_num_frames=len(reader), video_backend="pyav")
            indices = choose(reader, metadata)
            frames = reader.read(indices)
        metadata.frames_indices = [int(index) for index in indices]
        metadata.height, metadata.width = frames.shape[1:3]
        return frames, metadata

    def _choose_frames(self, video: Any, options: dict) -> tuple[torch.Tensor, VideoMetadata]:
        """The frames (K * T, C, H, W) of the clips of a video, and metadata with their numbers."""
        do_sample = options["do_sample_frames"]
        is_sampled = is_encoded(video) if do_sample is None else do_sample
        if not is_sampled and options["num_clips"] != 1:
            raise ValueError(
                f"num_clips={options['num_clips']} clips cannot be made of frames that are taken as they are; "
                f"pass do_sample_frames=True."
            )
        arguments = {name: options[name] for name in SAMPLING_ARGUMENTS}
        choose = partial(self.sample_frames, **arguments) if is_sampled else None
        if is_encoded(video) and is_sampled and options["fps"] is not None:
            frames, metadata = self._read(video, lambda reader, found: choose(found, times=reader.stored_times()))
            return torch.from_numpy(frames).movedim(-1, 1), metadata
        if is_encoded(video):
            frames, metadata = self.fetch_videos(video, choose)
            return torch.from_numpy(frames).movedim(-1, 1), metadata
        frames = stack_frames(video, options["input_data_format"])
        metadata = VideoMetadata(total_num_frames=len(frames), height=frames.shape[-2], width=frames.shape[-1])
        indices = choose(metadata) if is_sampled else range(len(frames))
        if do_sample is None and len(frames) != options["num_frames"]:
            raise ValueError(
                f"The video has {len(frames)} frames, a clip has num_frames={options['num_frames']}; pass "
                f"do_sample_frames=True to choose from them, or False to take them as they are."
            )
        metadata.frames_indices = [int(index) for index in indices]
        return frames[metadata.frames_indices] if is_sampled else frames, metadata

    def _make_views(self, frames: torch.Tensor, options: dict) -> torch.Tensor:
        """The view (T, C, H, W), or views (V, T, C, H, W), of the frames (K * T, C, H, W) of clips."""
        if frames.dtype != torch.uint8 and not (frames.is_floating_point() and not options["do_rescale"]):
            raise ValueError(
                f"Frames of {frames.dtype} cannot be processed; pass uint8 from 0 to 255, or floats in [0, 1] with "
                f"do_rescale=False."
            )
        if frames.shape[1] == 1 and options["do_convert_rgb"]:
            frames = frames.expand(-1, 3, -1, -1)
        if options["do_resize"]:
            frames = self.resize(frames, options["size"])
        clips = frames.unflatten(0, (options["num_clips"], -1))
        if options["do_center_crop"]:
            size = options["crop_size"].height, options["crop_size"].width
            offsets = crop_offsets(*frames.shape[-2:], size, options["num_crops"])
            crops = [clips[..., top : top + size[0], left : left + size[1]] for top, left in offsets]
        elif options["num_crops"] == 1:
            crops = [clips]
        else:
            raise ValueError(f"num_crops={options['num_crops']} crops need do_center_crop=True.")
        arguments = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        views = torch.stack(crops, dim=1).flatten(0, 1)
        views = self.rescale_and_normalize(views, *(options[name] for name in arguments))
        if options["size_divisor"] is not None:
            rows, columns = (-side % options["size_divisor"] for side in views.shape[-2:])
            views = torch.nn.functional.pad(views, (0, columns, 0, rows))
        return views[0] if len(views) == 1 else views

    # people

    @staticmethod
    def _list_boxes(boxes, num_videos: int, options: dict) -> list:
        """The boxes of each video of a batch; a list of `None` without boxes."""
        if boxes is None:
            return [None] * num_videos
        if options["num_clips"] * options["num_crops"] != 1:
            raise ValueError("Boxes go with a single view of a video: leave num_clips and num_crops at 1.")
        listed = [boxes] if is_box_matrix(boxes) else list(boxes)
        if len(listed) != num_videos:
            raise ValueError(f"There are boxes for {len(listed)} of {num_videos} videos; give (people, 4) for each.")
        return listed

    def _placement(self, height: int, width: int, options: dict) -> Placement:
        """The place of frames of this size in the model's input."""
        size, resized = options["size"], (height, width)
        if options["do_resize"]:
            by_short_side = size.shortest_edge and not size.longest_edge
            resized = (
                short_side_size(height, width, size.shortest_edge) if by_short_side else (size.height, size.width)
            )
        offset = (0, 0)
        if options["do_center_crop"]:
            (offset,) = crop_offsets(*resized, (options["crop_size"].height, options["crop_size"].width))
        return Placement((height, width), resized, offset)

    def _place_boxes(self, boxes, size: tuple[int, int], options: dict) -> torch.Tensor:
        """Boxes (P, 4) of frames of `size` (height, width) in pixels of the model's input, clipped to it."""
        placement = self._placement(*size, options)
        placed = placement.place(as_pixels(boxes, options["box_unit"], *size)).to(device=options["device"])
        crop = options["crop_size"]
        visible = (crop.height, crop.width) if options["do_center_crop"] else placement.size
        return clip_boxes(placed, *visible)

    def post_process_action_detection(
        self,
        outputs,
        threshold: float = 0.5,
        top_k: int | None = None,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        **kwargs,
    ) -> list[list[dict[str, torch.Tensor]]]:
        """The actions of each person, from the output of [`MVDForActionDetection`].

        Args:
            outputs: the model's output.
            threshold: least probability of an action.
            top_k: largest number of actions per person; `None` for all.
            target_sizes: (height, width) of each original video in pixels, for boxes in these pixels. By default boxes
                are in pixels of the model's input.
            kwargs: arguments of the processor's call that change sizes.

        Returns:
            For each clip, for each person: `box` (4,), and `labels` (n,) and `scores` (n,) of the actions, the most
            probable first.

        Raises:
            ValueError: if the number of target sizes is not that of clips.
        """
        self._check(kwargs)
        options = self._standardize_kwargs(**self.complete(kwargs))
        num_clips = len(outputs.logits)
        if target_sizes is not None and len(target_sizes) != num_clips:
            raise ValueError(f"There are {len(target_sizes)} target_sizes for {num_clips} clips; give one for each.")
        results = []
        for clip in range(num_clips):
            is_person = outputs.box_mask[clip].bool()
            boxes = outputs.boxes[clip][is_person].float()
            if target_sizes is not None:
                boxes = self._placement(*(int(side) for side in target_sizes[clip]), options).undo(boxes)
            probabilities = outputs.logits[clip][is_person].detach().float().sigmoid()
            scores, labels = probabilities.sort(dim=1, descending=True, stable=True)
            counts = (scores >= threshold)[:, :top_k].sum(dim=1).tolist()
            people = zip(boxes, labels, scores, counts, strict=True)
            results.append([{"box": box, "labels": label[:n], "scores": score[:n]} for box, label, score, n in people])
        return results

    def resize(self, image: torch.Tensor, size, **kwargs) -> torch.Tensor:
        """Frames (n, C, H, W) resized to a short side or to a height and width; see [`resize_bilinear`].

        Raises:
            ValueError: if the size has neither.
        """
        if size.shortest_edge and not size.longest_edge:
            return resize_short_side(image, size.shortest_edge)
        if size.height and size.width:
            return resize_bilinear(image, size.height, size.width)
        raise ValueError(f"size={dict(size)} must be {{'shortest_edge': ...}} or {{'height': ..., 'width': ...}}.")


__all__ = [
    "MVDVideoProcessor",
    "MVDVideoProcessorKwargs",
    "crop_offsets",
    "resize_bilinear",
    "resize_short_side",
    "short_side_size",
]
