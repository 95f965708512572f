"""Test a classifier on several views of each video: top-1 and top-5 accuracy, with tables and figures.

    accelerate launch recipes/evaluate.py outputs/mvd-vit-b-k400 --dataset k400_val.csv --num_clips 5 --num_crops 3

The results do not depend on the number of processes. Start it again after an interruption to continue. Keys:
`mvd_hf.finetuning.testing.EvaluationArguments`.
"""

import logging

from accelerate import Accelerator

from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.evaluation.multiview import evaluate_views
from mvd_hf.evaluation.reports import write_report
from mvd_hf.finetuning.testing import EvaluationArguments, choose_videos
from mvd_hf.hub.loading import check_source, load_processor, load_trained_classifier
from mvd_hf.model.frame_sampling import PAPER_VIEWS


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (test,) = parse_arguments(arguments, EvaluationArguments, first="model")
    check_source(test.model)
    rows, folder = choose_videos(test)
    accelerator = Accelerator(mixed_precision=test.mixed_precision)
    model = load_trained_classifier(test.model).to(accelerator.device)
    processor = load_processor(test.model, model.config, test.sampling)
    num_clips, num_crops = PAPER_VIEWS[processor.sampling]
    processor.num_clips = num_clips if test.num_clips is None else test.num_clips
    processor.num_crops = num_crops if test.num_crops is None else test.num_crops
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
        replace=test.dataset is None and test.output is None,
    )
    if accelerator.is_main_process:
        write_report(evaluation, rows, folder, test.figures)
        logging.info("%s\nWritten to %s", evaluation.describe(), folder)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
