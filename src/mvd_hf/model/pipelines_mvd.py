"""Pipelines for videos: classification with several views, features of long videos, actions of people.

They travel with a checkpoint. Letters in shapes: V views (or windows) of a video, T frames, C channels, H x W pixels;
t x h x w the grid of patches, D the width of their features.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline

from .frame_folders import open_video
from .frame_sampling import PAPER_VIEWS, key_frame_clip, key_frame_clip_by_seconds, resampled_frames
from .labels_mvd import head_class_names, head_slices
from .patches_mvd import patch_grid
from .video_inputs_mvd import downloaded, is_encoded, is_frame, is_row, stack_frames
from .video_streaming import VideoStream

FUNCTIONS = {"softmax": lambda logits: logits.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda logits: logits}
FUNCTION_OF_PROBLEM = {"regression": "none", "multi_label_classification": "sigmoid"}
FEATURES = ("pooled", "tubelets", "tokens")
SAMPLING_OPTIONS = ("sampling", "num_frames", "frame_sampling_rate", "fps", "num_clips", "num_crops")
# options of sliding windows
WINDOW_OPTIONS = ("num_frames", "frame_sampling_rate", "fps")
# options of a frame with people
PEOPLE_OPTIONS = ("boxes", "time", "num_frames", "frame_sampling_rate", "fps", "box_unit")


def mark_last(chunks: Iterable[dict]) -> Iterator[dict]:
    """Add `is_last` to dictionaries: pipelines group the parts of an input by it."""
    previous = None
    for chunk in chunks:
        if previous is not None:
            yield {**previous, "is_last": False}
        previous = chunk
    if previous is not None:
        yield {**previous, "is_last": True}


def middle_of(total_frames: int) -> int:
    """Number of the middle frame; of an even number of frames the first of the middle two."""
    return (total_frames - 1) // 2


class SlidingWindows:
    """Windows of T frames with distance `stride` that begin every `step` frames of a video of unknown length.

    The last window is the first one whose T * stride frames reach the end of the video. A window beyond the end
    repeats the last frame.

    Args:
        num_frames: frames T of a window.
        stride: distance of a window's frames.
        step: distance of the windows' first frames.

    Raises:
        ValueError: if an argument is below one.
    """

    def __init__(self, num_frames: int, stride: int, step: int):
        for name, value in (("num_frames", num_frames), ("stride", stride), ("step", step)):
            if value < 1:
                raise ValueError(f"{name}={value} of sliding windows must be at least 1.")
        self.num_frames, self.stride, self.step = num_frames, stride, step

    def is_used(self, number: int) -> bool:
        """Whether a frame belongs to a window of a video that is long enough."""
        first = max(number - (self.num_frames - 1) * self.stride, 0)
        starts = range(-(-first // self.step) * self.step, number + 1, self.step)
        return any((number - start) % self.stride == 0 for start in starts)

    def cut(self, frames: Iterable[Any]) -> Iterator[tuple[np.ndarray, list]]:
        """The numbers (T,) and the frames of each window, as soon as its last frame is read.

        Args:
            frames: every frame of a video in order.
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
        """Whether the window before the one of `start` ends before the frame `last`."""
        return start == 0 or start - self.step + self.num_frames * self.stride <= last


class MVDVideoPipeline(ChunkPipeline):
    """Base of the pipelines: needs a video processor, and makes batches of views."""

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.video_processor is None:
            raise ValueError(f"{type(self).__name__} needs video_processor, for example an MVDVideoProcessor.")
        # transformers makes batches with, and saves, only a feature extractor
        self.feature_extractor = self.video_processor

    def __call__(self, inputs: Any, **kwargs):
        """The results of one video or of several: a list of frames is one video, a column of `datasets` is several."""
        if isinstance(inputs, list) and inputs and all(map(is_frame, inputs)):
            inputs = tuple(inputs)
        elif isinstance(inputs, Sequence) and not isinstance(inputs, list | tuple) and not is_encoded(inputs):
            return list(super().__call__((video for video in inputs), **kwargs))  # one video at a time in memory
        return super().__call__(inputs, **kwargs)

    def sample_views(self, video: Any, options: dict) -> Iterator[dict]:
        """Views of a video as `pixel_values` (1, T, C, H, W), with their frame numbers `frames` (1, T)."""
        output = self.video_processor(
            video, do_sample_frames=True, return_tensors="pt", return_metadata=True, **options
        )
        views = output["pixel_values"].flatten(0, -5)  # one view has no axis of views
        frames = torch.tensor(output["video_metadata"][0].frames_indices).view(-1, views.shape[1])
        frames = frames.repeat_interleave(len(views) // len(frames), dim=0)  # the crops of a clip show the same frames
        for view, numbers in zip(views, frames, strict=True):
            yield {"pixel_values": view[None], "frames": numbers[None]}


def best_classes(scores: torch.Tensor, names: Sequence[str], top_k: int) -> list[dict]:
    """The `top_k` classes of highest score (K,), best first."""
    best = scores.topk(min(top_k, len(names)))
    return [
        {"score": score, "label": names[label]}
        for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


class MVDMultiViewClassificationPipeline(MVDVideoPipeline):
    """Classifies a video by the mean over several clips and crops, as in the tests of the paper.

    `pipe(video)` returns the most likely classes as `{"score": ..., "label": ...}`, best first; of a model with
    several heads a mapping from heads to such lists; of a regression the number as the score. For a list of videos it
    returns a list. Videos have any form that `MVDVideoProcessor` takes. Arguments of the pipeline or of a call:

    - `num_clips`, `num_crops`: views of a video. The default is stored in the processor or, if that is one view, that
      of the paper: 5 clips x 3 crops for dense sampling, 2 x 3 for uniform sampling.
    - `sampling`, `num_frames`, `frame_sampling_rate`, `fps`: as in `MVDVideoProcessor`.
    - `top_k`: number of classes, 5 by default.
    - `function_to_apply`: `softmax`, `sigmoid` or `none`, applied to each view before the mean; by default it follows
      the `problem_type` of the model.
    - `batch_size`: views per forward pass.
    """

    def _sanitize_parameters(self, top_k: int | None = None, function_to_apply: str | None = None, **options):
        unknown = options.keys() - set(SAMPLING_OPTIONS)
        if unknown:
            raise ValueError(f"{type(self).__name__} has no argument {', '.join(sorted(unknown))}.")
        if function_to_apply not in (None, *FUNCTIONS):
            raise ValueError(f"function_to_apply={function_to_apply!r} must be one of {', '.join(FUNCTIONS)}.")
        given = {"top_k": top_k, "function_to_apply": function_to_apply}
        return options, {}, {name: value for name, value in given.items() if value is not None}

    def preprocess(self, video: Any, **options) -> Iterator[dict]:
        """The views of a video."""
        stored = self.video_processor
        if stored.num_clips * stored.num_crops == 1:
            clips, crops = PAPER_VIEWS[options.get("sampling") or stored.sampling]
            options = {"num_clips": clips, "num_crops": crops} | options
        yield from mark_last(self.sample_views(video, options))

    def _forward(self, inputs: dict) -> dict:
        return {"logits": self.model(pixel_values=inputs["pixel_values"]).logits, "is_last": inputs["is_last"]}

    def postprocess(
        self, views: list[dict], top_k: int = 5, function_to_apply: str | None = None
    ) -> list[dict] | dict[str, list[dict]]:
        """Mean over the views, and the best classes."""
        config, heads = self.model.config, getattr(self.model.config, "label_heads", None)
        function = FUNCTIONS[function_to_apply or FUNCTION_OF_PROBLEM.get(config.problem_type, "softmax")]
        logits = torch.cat([view["logits"] for view in views]).double()
        if not heads:
            names = [config.id2label[i] for i in range(config.num_labels)]
            return best_classes(function(logits).mean(dim=0), names, top_k)
        return {
            head: best_classes(function(logits[:, place]).mean(dim=0), head_class_names(config, head), top_k)
            for head, place in head_slices(heads).items()
        }


class MVDFeatureExtractionPipeline(MVDVideoPipeline):
    """Features of a video: of the clips that its processor chooses, or of windows that slide over the whole video.

    `pipe(video)` returns `{"features": ..., "frames": ...}`: float32 features of V views, and the numbers (V, T) of
    their frames; for a list of videos it returns a list. Videos have any form that `MVDVideoProcessor` takes.
    Arguments of the pipeline or of a call:

    - `features`: `pooled` (V, D), the mean over the patches of a view; `tubelets` (V, t, D), the mean over the patches
    of
      each time; `tokens` (V, t, h, w, D), every patch. They pass the final norm of the model; in a mean-pooling
      classifier, whose norm follows the mean, only `pooled` does.
    - `window_step`: distance of the first frames of windows, which slide to the end of the video. Each frame is
    decoded
      once, and memory does not grow with the length of a file; a URL is downloaded whole.
    - `num_frames`, `frame_sampling_rate` or `fps`: frames of a view, and their distance; by default as stored in the
      processor. With `fps`, windows begin `window_step / fps` seconds apart; the times of all frames are read first.
    - `sampling`, `num_clips`, `num_crops`: as in `MVDVideoProcessor`, without `window_step`.
    - `batch_size`: views per forward pass.

    [`stream`] returns the features of one window after the other, if all of them do not fit into memory.
    """

    def _sanitize_parameters(self, features: str | None = None, window_step: int | None = None, **options):
        known = SAMPLING_OPTIONS if window_step is None else WINDOW_OPTIONS
        unknown = options.keys() - set(known)
        if unknown:
            with_windows = "" if window_step is None else " together with window_step"
            raise ValueError(f"{type(self).__name__} has no argument {', '.join(sorted(unknown))}{with_windows}.")
        if features not in (None, *FEATURES):
            raise ValueError(f"features={features!r} must be one of {', '.join(FEATURES)}.")
        options |= {} if window_step is None else {"window_step": window_step}
        return options, {} if features is None else {"features": features}, {}

    def preprocess(self, video: Any, window_step: int | None = None, **options) -> Iterator[dict]:
        """The views or windows of a video."""
        views = self.sample_views(video, options) if window_step is None else self.slide(video, window_step, **options)
        yield from mark_last(views)

    def slide(self, video: Any, step: int, **options) -> Iterator[dict]:
        """Windows over a whole video: `pixel_values` (1, T, C, H, W) and the numbers of their frames, (1, T)."""
        chosen = self.video_processor.complete(options)
        if chosen["fps"] is not None:
            yield from self._slide_by_seconds(video, step, chosen["num_frames"], chosen["fps"])
            return
        windows = SlidingWindows(chosen["num_frames"], chosen["frame_sampling_rate"], step)
        for numbers, frames in windows.cut(self._prepared_frames(video, windows.is_used)):
            yield {"pixel_values": torch.stack(frames)[None], "frames": torch.from_numpy(numbers)[None]}

    def _slide_by_seconds(self, video: Any, step: int, num_frames: int, fps: float) -> Iterator[dict]:
        """Windows as [`slide`], over the frames that show the video at `fps` frames per second."""
        if not is_encoded(video):
            raise ValueError(f"fps={fps:g} needs the times of frames: pass a video file, or frame_sampling_rate.")
        video = video if is_row(video) and "fps" in video else downloaded(video)
        with open_video(video) as reader:
            seen, total = resampled_frames(reader.stored_times(), fps), len(reader)
        if hasattr(video, "seek"):
            video.seek(0)
        windows, counts = SlidingWindows(num_frames, 1, step), np.bincount(seen, minlength=total)
        used = {int(number) for place, number in enumerate(seen) if windows.is_used(place)}
        frames = self._prepared_frames(video, used.__contains__)
        shown = itertools.chain.from_iterable(itertools.repeat(f, n) for f, n in zip(frames, counts, strict=True))
        for places, kept in windows.cut(shown):
            yield {"pixel_values": torch.stack(kept)[None], "frames": torch.from_numpy(seen[places])[None]}

    def _prepared_frames(self, video: Any, is_used: Callable[[int], bool]) -> Iterator[torch.Tensor | None]:
        """Every frame of a video in order, processed to (C, H, W); `None` if no window uses it."""

        def prepare(frame: np.ndarray | torch.Tensor) -> torch.Tensor:
            options = {"do_sample_frames": False, "num_clips": 1, "num_crops": 1, "return_tensors": "pt"}
            return self.video_processor(frame[None], **options)["pixel_values"][0, 0]

        if not is_encoded(video):
            for number, frame in enumerate(stack_frames(video)):
                yield prepare(frame) if is_used(number) else None
            return
        with open_video(video, VideoStream) as stream:
            for frame in stream.frames(is_used):
                yield None if frame is None else prepare(frame)

    def _forward(self, inputs: dict, features: str = "pooled") -> dict:
        pixel_values, encoder = inputs["pixel_values"], self.model.base_model
        tokens = encoder(pixel_values).last_hidden_state
        patches = tokens[:, int(self.model.config.use_class_token) :]
        patches = patches.unflatten(1, patch_grid(pixel_values, self.model.config))
        if features == "tokens":
            output = patches
        elif features == "tubelets":
            output = patches.mean(dim=(2, 3))
        elif encoder.layernorm is None and encoder is not self.model:  # a mean-pooling classifier norms the mean
            output = self.model.pool(tokens)
        else:
            output = patches.mean(dim=(1, 2, 3))
        return {"features": output.float(), "frames": inputs["frames"], "is_last": inputs["is_last"]}

    def postprocess(self, views: list[dict]) -> dict[str, torch.Tensor]:
        """The features of all views of a video, and the numbers of their frames."""
        return {name: torch.cat([view[name] for view in views]) for name in ("features", "frames")}

    def stream(self, video: Any, *, batch_size: int = 1, **options) -> Iterator[dict[str, torch.Tensor]]:
        """The features of each view or window of a video in turn, without the axis V.

        Args:
            video: one video.
            batch_size: views per forward pass.
            options: arguments of a call.
        """
        preparation, forward, _ = self._sanitize_parameters(**options)
        views = self.preprocess(video, **(self._preprocess_params | preparation))
        while batch := list(itertools.islice(views, batch_size)):
            inputs = {name: torch.cat([view[name] for view in batch]) for name in ("pixel_values", "frames")}
            outputs = self.forward(inputs | {"is_last": False}, **(self._forward_params | forward))
            for features, frames in zip(outputs["features"], outputs["frames"], strict=True):
                yield {"features": features, "frames": frames}


class MVDActionDetectionPipeline(MVDVideoPipeline):
    """Recognises the actions of people in a frame of a video, given their boxes, as in AVA.

    `pipe(video, boxes=boxes)`, or `pipe({"video": ..., "boxes": ..., "time": ...})`, returns for each person, in the
    order of the boxes, `{"box": {"xmin": ..., "ymin": ..., "xmax": ..., "ymax": ...}, "actions": [...]}`: the box in
    pixels of the video, and actions as `{"score": ..., "label": ...}`, the most likely first. For a list of inputs it
    returns a list. Videos have any form that `MVDVideoProcessor` takes. Arguments of the pipeline or of a call:

    - `boxes`: (people, 4) x1, y1, x2, y2 of the people in the frame, from a person detector.
    - `box_unit`: `relative`, parts of the width and height of the frame, or `pixels`; by default as stored in the
      processor.
    - `time`: seconds from the beginning to the frame; the default is the middle frame. - `num_frames`,
    `frame_sampling_rate` or `fps`: frames of the clip around the frame, and their distance; by default as stored
      in the processor. For decoded frames that are such a clip, pass a distance of 1.
    - `top_k`: number of actions of each person, 5 by default; `threshold`: their least score, 0 by default.
    - `batch_size`: frames per batch; those of one size share a forward pass.
    """

    def _sanitize_parameters(self, threshold: float | None = None, top_k: int | None = None, **options):
        unknown = options.keys() - set(PEOPLE_OPTIONS)
        if unknown:
            raise ValueError(f"{type(self).__name__} has no argument {', '.join(sorted(unknown))}.")
        given = {"threshold": threshold, "top_k": top_k}
        return options, {}, {name: value for name, value in given.items() if value is not None}

    def preprocess(self, video: Any, **options) -> Iterator[dict]:
        """The clip around a frame of a video, with its people."""
        given = {**video} if isinstance(video, Mapping) and not is_encoded(video) else {"video": video}
        unknown = given.keys() - {"video", *PEOPLE_OPTIONS}
        if unknown or "video" not in given:
            raise ValueError(f"The input {', '.join(map(repr, given))} must be video, boxes, and perhaps time.")
        yield {**self._place_people(**(options | given)), "is_last": True}

    def _place_people(
        self,
        video: Any,
        boxes: Any = None,
        time: float | None = None,
        box_unit: str | None = None,
        **options,
    ) -> dict:
        """The model's input, and the (height, width) of the video as `sizes` (1, 2)."""
        if boxes is None:
            raise ValueError("boxes are needed: x1, y1, x2, y2 of each person, such as boxes=[[0.2, 0.1, 0.5, 0.9]].")
        stored = self.video_processor
        chosen = stored.complete(options)
        shape, fps = (chosen["num_frames"], chosen["frame_sampling_rate"]), chosen["fps"]
        if is_encoded(video):
            with open_video(video) as reader:
                frame = middle_of(len(reader)) if time is None else reader.frame_at(time)
                if fps is None:
                    clip = key_frame_clip(frame, len(reader), *shape)
                else:
                    clip = key_frame_clip_by_seconds(frame, reader.stored_times(), shape[0], fps)
                frames = stack_frames(reader.read(clip[0]))
        elif time is not None:
            raise ValueError(f"time={time} is of a video file; of decoded frames the middle one is taken.")
        elif fps is not None:
            raise ValueError(f"fps={fps:g} needs the times of frames: pass a video file, or frame_sampling_rate.")
        else:
            frames = stack_frames(video)
            frames = frames[key_frame_clip(middle_of(len(frames)), len(frames), *shape)[0]]
        inputs = stored(frames, boxes=boxes, box_unit=box_unit, do_sample_frames=False, return_tensors="pt")
        clip = [inputs.pop("pixel_values")]  # in a list, which batches keep: videos differ in size
        return {**inputs, "clip": clip, "sizes": torch.tensor([frames.shape[-2:]])}

    def _forward(self, inputs: dict) -> dict:
        clips = [part[0] if isinstance(part, list) else part for part in inputs["clip"]]
        logits: list[torch.Tensor] = [None] * len(clips)
        by_size: dict[torch.Size, list[int]] = {}
        for number, clip in enumerate(clips):
            by_size.setdefault(clip.shape, []).append(number)
        for numbers in by_size.values():
            people = {name: inputs[name][numbers] for name in ("boxes", "box_mask")}
            outputs = self.model(pixel_values=torch.cat([clips[number] for number in numbers]), **people)
            for number, of_clip in zip(numbers, outputs.logits, strict=True):
                logits[number] = of_clip
        kept = {name: inputs[name] for name in ("boxes", "box_mask", "sizes", "is_last")}
        return {"logits": torch.stack(logits), **kept}

    def postprocess(self, frames: list[dict], threshold: float = 0.0, top_k: int = 5) -> list[dict]:
        """The people of a frame and their actions."""
        (frame,) = frames
        names = self.model.config.id2label
        (people,) = self.video_processor.post_process_action_detection(
            SimpleNamespace(**frame), threshold, top_k, target_sizes=frame["sizes"].tolist()
        )
        return [
            {
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), person["box"].tolist(), strict=True)),
                "actions": [
                    {"score": score, "label": names[label]}
                    for score, label in zip(person["scores"].tolist(), person["labels"].tolist(), strict=True)
                ],
            }
            for person in people
        ]


__all__ = ["MVDMultiViewClassificationPipeline", "MVDFeatureExtractionPipeline", "MVDActionDetectionPipeline"]
