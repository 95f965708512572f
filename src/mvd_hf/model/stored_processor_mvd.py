"""Saving and loading of a video processor, and errors for pipelines of images."""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import json
import os
from pathlib import Path

from transformers.image_processing_utils import BatchFeature
from transformers.utils import IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME
from transformers.video_processing_utils import BaseVideoProcessor

from .saving_mvd import forget_absent_code

# tasks of transformers that load our models but give them images, and the task to use
VIDEO_TASKS = {"object-detection": "video-action-detection", "image-feature-extraction": "video-feature-extraction"}
DISTANCES = {"fps", "frame_sampling_rate"}


class StoredVideoProcessor(BaseVideoProcessor):
    """A video processor that pipelines save with a model, and that refuses images."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
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

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """Write `video_preprocessor_config.json`; see [`~transformers.BaseVideoProcessor.save_pretrained`].

        A second file, `preprocessor_config.json`, makes this the checkpoint's image processor too: without one the
        pipelines of transformers neither make batches nor save the processor.
        """
        forget_absent_code(self, save_directory)
        name, module = type(self).__name__, type(self).__module__.rpartition(".")[2]
        pointer = {"image_processor_type": name}
        if self._auto_class is not None or "auto_map" in vars(self):
            pointer["auto_map"] = {"AutoImageProcessor": f"{module}.{name}"}
        os.makedirs(save_directory, exist_ok=True)
        text = json.dumps(pointer, indent=2, sort_keys=True) + "\n"
        (Path(save_directory) / IMAGE_PROCESSOR_NAME).write_text(text, encoding="utf-8")
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def from_dict(cls, video_processor_dict: dict, **kwargs):
        """A processor of stored arguments; a given distance of frames replaces the stored one."""
        if DISTANCES & kwargs.keys():
            drop = DISTANCES - kwargs.keys()
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


__all__ = ["StoredVideoProcessor"]
