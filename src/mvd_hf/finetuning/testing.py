"""What `recipes/evaluate.py` tests: a classifier on a data set, or on the videos that its fine-tuning held out."""

import logging
from dataclasses import dataclass
from pathlib import Path

import datasets

from ..data.arguments import evaluation_rows
from ..data.sources import source_choices
from .held_out import HELD_OUT_NAME, HeldOut

logger = logging.getLogger(__name__)


@dataclass
class EvaluationArguments:
    """The classifier, the videos, their views, and the folder of the results.

    Args:
        model: folder or Hub id of a classifier, MVD or VideoMAE of transformers.
        dataset: as in `mvd_hf.data.arguments.DataArguments`; by default the videos that fine-tuning held out.
        split: by default that with a usual name, such as `validation`, or the only one.
        dataset_config, root, streaming, max_samples: as in `mvd_hf.data.arguments.DataArguments`.
        label_column, label_names: as in `mvd_hf.data.arguments.FinetuningClipArguments`.
        sampling: `dense` or `uniform`; by default as in training.
        num_clips, num_crops: views of a video; by default as in the paper: 5 x 3 dense, 2 x 3 uniform.
        output: folder of the results; by default `evaluation` in the model's folder, or beside the test of the
            held-out videos `evaluation_<dataset>`.
        views_per_pass: largest number of views per forward pass.
        num_workers: decoding workers.
        mixed_precision: `no`, `bf16` or `fp16`; by default that of `accelerate launch`.
        figures: whether to draw the confusion matrix and the most confident mistakes.
    """

    model: str
    dataset: str | None = None
    dataset_config: str | None = None
    split: str | None = None
    root: str | None = None
    video_column: str | None = None
    class_level: str | None = None
    allow_local_urls: bool = False
    frame_folder_fps: float | None = None
    streaming: bool = False
    max_samples: int | None = None
    label_column: str | list[str] = "label"
    label_names: list[str] | str | dict[str, list[str] | str] | None = None
    sampling: str | None = None
    num_clips: int | None = None
    num_crops: int | None = None
    output: str | None = None
    views_per_pass: int = 16
    num_workers: int = 2
    mixed_precision: str | None = None
    figures: bool = True


def choose_videos(test: EvaluationArguments) -> tuple[datasets.Dataset, Path]:
    """The videos of a test, and the folder of its results; raises ValueError if there are no videos."""
    held_out = HeldOut.load(test.model)
    folder = Path(test.model if Path(test.model).is_dir() else "outputs")
    if test.dataset is not None:
        name = "evaluation" if held_out is None else f"evaluation_{Path(test.dataset).stem}"
        options = test.root, test.dataset_config, test.streaming, test.max_samples
        rows = evaluation_rows(test.dataset, test.split, *options, **source_choices(test))
        return rows, Path(test.output or folder / name)
    if held_out is None:
        raise ValueError(f"{test.model!r} has no list of held-out videos ({HELD_OUT_NAME}): give --dataset.")
    for key in ("split", "root", "dataset_config", "video_column", "class_level", "frame_folder_fps", "max_samples"):
        if getattr(test, key) is not None:
            raise ValueError(f"{key}={getattr(test, key)!r} needs a --dataset.")
    rows = held_out.rows(test.allow_local_urls)
    logger.info("Testing on the %d videos of %s that fine-tuning held out.", len(rows), held_out.dataset)
    test.label_column, test.label_names = held_out.label_column, held_out.label_names
    return rows, Path(test.output or folder / "evaluation")
