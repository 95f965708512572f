"""Test a classifier on several views of each video: top-1 and top-5 accuracy, with tables and figures.

    accelerate launch recipes/evaluate.py outputs/mvd-vit-b-k400 --dataset k400_val.csv --num_clips 5 --num_crops 3

The results do not depend on the number of processes. Start it again after an interruption to continue. Keys: below.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoModelForVideoClassification

from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.data.arguments import evaluation_rows
from mvd_hf.evaluation.multiview import evaluate_views
from mvd_hf.evaluation.reports import write_report
from mvd_hf.hub.loading import load_processor
from mvd_hf.model.frame_sampling import PAPER_VIEWS


@dataclass
class EvaluationArguments:
    """The classifier, the videos, their views, and the folder of the results.

    Args:
        model: folder or Hub id of a classifier, MVD or VideoMAE of transformers.
        dataset, dataset_config, split, root, streaming, max_samples: as in `mvd_hf.data.arguments.DataArguments`.
        label_column, label_names: as in `mvd_hf.data.arguments.FinetuningClipArguments`.
        sampling: `dense` or `uniform`; by default as in training.
        num_clips, num_crops: views of a video; by default as in the paper: 5 x 3 dense, 2 x 3 uniform.
        output: folder of the results; by default `evaluation` in the model's folder.
        views_per_pass: largest number of views per forward pass.
        num_workers: decoding workers.
        mixed_precision: `no`, `bf16` or `fp16`; by default that of `accelerate launch`.
        figures: whether to draw the confusion matrix and the most confident mistakes.
    """

    model: str
    dataset: str
    dataset_config: str | None = None
    split: str = "validation"
    root: str | None = None
    video_column: str | None = None
    class_level: str | None = None
    streaming: bool = False
    max_samples: int | None = None
    label_column: str = "label"
    label_names: list[str] | str | None = None
    sampling: str | None = None
    num_clips: int | None = None
    num_crops: int | None = None
    output: str | None = None
    views_per_pass: int = 16
    num_workers: int = 2
    mixed_precision: str | None = None
    figures: bool = True


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (test,) = parse_arguments(arguments, EvaluationArguments, first="model")
    accelerator = Accelerator(mixed_precision=test.mixed_precision)
    model = AutoModelForVideoClassification.from_pretrained(test.model, dtype="float32").to(accelerator.device)
    processor = load_processor(test.model, model.config, test.sampling)
    num_clips, num_crops = PAPER_VIEWS[processor.sampling]
    processor.num_clips = num_clips if test.num_clips is None else test.num_clips
    processor.num_crops = num_crops if test.num_crops is None else test.num_crops
    choices = {"video_column": test.video_column, "class_level": test.class_level}
    options = test.root, test.dataset_config, test.streaming, test.max_samples
    rows = evaluation_rows(test.dataset, test.split, *options, **choices)
    folder = Path(test.output or Path(test.model if Path(test.model).is_dir() else "outputs") / "evaluation")
    evaluation = evaluate_views(
        model,
        rows,
        processor,
        label_column=test.label_column,
        label_names=test.label_names,
        folder=folder,
        autocast=accelerator.autocast,
        views_per_pass=test.views_per_pass,
        num_workers=test.num_workers,
    )
    if accelerator.is_main_process:
        write_report(evaluation, rows, folder, test.figures)
        logging.info("%s\nWritten to %s", evaluation.describe(), folder)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
