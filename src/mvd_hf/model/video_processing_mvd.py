"""MVDVideoProcessor makes the input of a model from videos, exactly as in the tests of the paper (arXiv 2212.04500).

Letters in shapes: B videos, V views of each, K clips, T frames, C channels, H x W pixels of a frame.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import VideosKwargs
from transformers.video_utils import VideoMetadata

from .boxes_mvd import pad_people
from .frame_folders import open_video
from .frame_sampling import dense_test_frames, frames_by_seconds, uniform_test_frames
from .stored_processor_mvd import StoredVideoProcessor
from .video_inputs_mvd import is_encoded, list_videos, stack_frames
from .video_reading import VideoReader
from .views_mvd import actions_of_people, list_boxes, make_views, place_boxes

# arguments of all video processors that this one does not support
UNUSED_ARGUMENTS = ("do_pad", "data_format", "video_metadata")
SAMPLING_ARGUMENTS = ("sampling", "num_frames", "frame_sampling_rate", "fps", "num_clips")


class MVDVideoProcessorKwargs(VideosKwargs, total=False):
    """Arguments of [`MVDVideoProcessor`] that other video processors do not have."""

    sampling: Literal["dense", "uniform"] | None
    frame_sampling_rate: int | None
    num_clips: int | None
    num_crops: int | None
    box_unit: Literal["relative", "pixels"] | None
    size_divisor: int | None


class MVDVideoProcessor(StoredVideoProcessor):
    r"""
    Makes the input of an MVD model from videos, as in the tests of the paper.

    A video is a path, an http(s) URL, bytes, a binary file object, `{"path": ..., "bytes": ...}` as `datasets` gives
    it, a folder of numbered frames (with a rate: `{"path": folder, "fps": 30}`), a (T, H, W, C) array, a (T, C, H, W)
    tensor or a list of PIL images. A list of videos, or a five-dimensional array or tensor, is a batch. All arguments
    can be set here, and are saved with the model, or for a single call. Unknown arguments and wrong types are refused.

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
        num_crops (`int`, defaults to 1): crops of a clip, evenly spread along the side with more room; a single one
            is the centre crop.
        size (defaults to `{"shortest_edge": 224}`): pixels of the short side (more where a crop that is not square
            needs it), or `{"height": ..., "width": ...}`.
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
        people = list_boxes(boxes, len(batch), options)
        clips, metadata, placed = [], [], []
        for video, of_video in zip(batch, people, strict=True):
            frames, description = self._choose_frames(video, options)
            clips.append(make_views(frames.to(device=options["device"]), options, self.rescale_and_normalize))
            metadata.append(description)
            if of_video is not None:
                placed.append(place_boxes(of_video, frames.shape[-2:], options))
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
        with open_video(video) as reader:
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
        options, num_clips = self._standardize_kwargs(**self.complete(kwargs)), len(outputs.logits)
        if target_sizes is not None and len(target_sizes) != num_clips:
            raise ValueError(f"There are {len(target_sizes)} target_sizes for {num_clips} clips; give one for each.")
        return actions_of_people(outputs, threshold, top_k, target_sizes, options)


__all__ = ["MVDVideoProcessor", "MVDVideoProcessorKwargs"]
