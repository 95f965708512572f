"""Stage 2: distil a masked student from named frozen teachers (spatial-temporal co-teaching).

    accelerate launch recipes/distill.py recipes/tiny/distill.yaml [--teachers.image.weight 2.0 ...]

Keys: the student and its teachers (below), the data (`mvd_hf.data.arguments.DataArguments`), the training
(`mvd_hf.MVDTrainingArguments`).
"""

import logging
from dataclasses import dataclass, field
from typing import Annotated

from transformers import set_seed

from mvd_hf import (
    DistillationTrainer,
    MVDForFeatureDistillation,
    MVDTrainingArguments,
    MVDVideoProcessor,
    TeacherConfig,
)
from mvd_hf.arguments import parse_arguments, read_arguments, run_script
from mvd_hf.data.arguments import DataArguments, pretraining_clips
from mvd_hf.hub.warm_start import StartingPoint
from mvd_hf.model.configuration_mvd import ConfigFields
from mvd_hf.teachers import TargetCacheConfig, fit_student, load_cached_teachers
from mvd_hf.training.costs import distillation_parts, format_parts
from mvd_hf.training.diagnostics import OnlineProbe
from mvd_hf.training.distillation import NORM_CLIPS
from mvd_hf.training.knn import KnnArguments, report_knn


@dataclass
class StudentArguments:
    """The student and its teachers.

    Args:
        student: a published name, for random weights; or the folder, Hub id or official .pth file of an MVD or
            VideoMAE model whose encoder, and decoders for teachers of the same name and width, are the start.
        config: the fields of its `MVDConfig` that differ.
        keep_layers: numbers of the layers of that encoder that are kept, counted from 0; by default all.
        teachers: by name, each a model's id or folder, or a mapping of the fields of `mvd_hf.TeacherConfig`.
        target_cache: where targets are stored, as a mapping of the fields of `mvd_hf.teachers.TargetCacheConfig`.
        balance: `loss_scale` keeps the losses of several targets of equal size (`mvd_hf.training.losses.LossScale`).
        norm_clips: about so many clips fit the statistics of `target_norm: standardize` and `phi_s`.
        probe: the column of labels, if a linear probe is to be trained beside the student.
        probe_classes: how many classes it has, if the data set does not know.
        knn: fields of `mvd_hf.training.knn.KnnArguments`, to report k-NN accuracy on labelled videos.
    """

    student: str = "mvd-b"
    config: ConfigFields = field(default_factory=dict)
    keep_layers: list[int] | None = None
    teachers: dict[str, str | Annotated[dict, TeacherConfig]] = field(default_factory=dict)
    target_cache: Annotated[dict, TargetCacheConfig] = field(default_factory=dict)
    balance: str | None = None
    norm_clips: int = NORM_CLIPS
    probe: str | None = None
    probe_classes: int | None = None
    knn: Annotated[dict, KnnArguments] = field(default_factory=dict)


KINDS = (StudentArguments, DataArguments, MVDTrainingArguments)


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe, data, training = parse_arguments(arguments, *KINDS)
    set_seed(training.seed)
    start = StartingPoint(recipe.student, recipe.config, recipe.keep_layers)
    config, cache = start.config, TargetCacheConfig(**recipe.target_cache) if recipe.target_cache else None
    teachers = load_cached_teachers(recipe.teachers, cache, config.grid, config.num_frames)
    fit_student(config, teachers)
    if training.process_index == 0:
        logging.info("%s", format_parts(distillation_parts(config, recipe.teachers, training.masks_per_clip)))
    options = {"label_column": recipe.probe, "views": cache and cache.views}
    clips = pretraining_clips(data, config, training, teachers, **options)
    trainer = DistillationTrainer(
        start.build(MVDForFeatureDistillation),
        teachers,
        probe=recipe.probe and OnlineProbe.for_clips(clips, config.hidden_size, recipe.probe_classes),
        balance=recipe.balance,
        norm_clips=recipe.norm_clips,
        args=training,
        processing_class=MVDVideoProcessor.for_model(config, **data.distance),
        train_dataset=clips,
        eval_dataset=pretraining_clips(data, config, training, teachers, evaluation=True),
    )
    if start.keeps_decoders:
        trainer.take_statistics(recipe.student)
    report_knn(trainer, recipe.knn)
    trainer.run_record.set_recipe(read_arguments(arguments, *KINDS), data)
    trainer.run_record.sources |= start.sources()
    trainer.run()


if __name__ == "__main__":
    run_script(main)
