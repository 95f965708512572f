"""Compare frozen models on labelled videos under one protocol: students, teachers and baselines, in one table.

    python recipes/probe.py --models.student outputs/my_student --models.image facebook/dinov2-base \\
        --models.video MCG-NJU/videomae-base --dataset my_clips --baselines majority pixels random

Image models see single frames, video models clips. Features are computed once. The table, its figure and the
predictions go to `--output_dir`. Keys: `mvd_hf.evaluation.comparison.ComparisonArguments` (models, methods) and
`GridArguments` (probes), the videos (below and `mvd_hf.data.arguments.DataArguments`), their split
(`mvd_hf.finetuning.preparation.PreparationArguments`).
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from huggingface_hub import HfApi

from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.curation.splitting import file_names, group_videos
from mvd_hf.data.arguments import DataArguments, FinetuningClipArguments
from mvd_hf.evaluation.comparison import Comparison, ComparisonArguments, GridArguments, LabelledSplit
from mvd_hf.evaluation.multiview import read_labels
from mvd_hf.evaluation.tables import write_comparison
from mvd_hf.finetuning.preparation import PreparationArguments, choose_clips, prepare_videos, read_groups
from mvd_hf.hub.licenses import hub_license
from mvd_hf.hub.run_record import source_record
from mvd_hf.teachers.families import read_config

# keys of the data that have no effect on frozen models
UNUSED = ("fps", "crop", "crop_scales", "memory_gib", "on_bad_video", "streaming", "stream_size", "shuffle_buffer")


@dataclass
class LabelArguments:
    """The labels, and the frames of a clip.

    Args:
        label_column, label_names, sampling: as in `mvd_hf.data.arguments.FinetuningClipArguments`.
    """

    label_column: str = "label"
    label_names: list[str] | str | None = None
    sampling: str | None = None


KINDS = (ComparisonArguments, GridArguments, DataArguments, LabelArguments, PreparationArguments)


def read_license(model: str) -> str | None:
    """The license of a local folder or of a model of the Hub, if it is known."""
    source = source_record(model)
    return source.get("license") if source["is_local"] else hub_license(model, HfApi())


def make_split(
    data: DataArguments, labels: LabelArguments, preparation: PreparationArguments, folder: Path, seed: int
) -> LabelledSplit:
    """The labelled videos, split without leaks if the data set has no test part."""
    for key in UNUSED:
        if getattr(data, key) != getattr(DataArguments(dataset=data.dataset or "-"), key):
            raise ValueError(f"{key}={getattr(data, key)!r} is for training, a probe does not use it: leave it out.")
    keys = FinetuningClipArguments(**vars(labels), flip=0.0)
    videos = prepare_videos(data, keys, preparation, folder, seed=seed)
    if videos.validation is None:
        raise ValueError("There are no test videos: give a validation_fraction above 0, or eval_dataset.")
    keys, data = choose_clips(keys, data, videos, num_frames=16)
    names = videos.names or [str(i) for i in range(videos.num_labels)]
    truth = read_labels(videos.validation, keys.label_column, len(names), videos.names, keys.label_names)
    files, _ = file_names(videos.train)
    sources = read_groups(videos.train, preparation.group_column)
    groups = group_videos(files, videos.labels.tolist(), label_names=videos.names, sources=sources)
    return LabelledSplit(
        videos.train,
        videos.validation,
        videos.labels,
        truth,
        names,
        keys.sampling,
        data.stride,
        groups,
        preparation.group_column,
    )


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    comparison, probe, data, labels, preparation = parse_arguments(arguments, *KINDS)
    folder, encoders = Path(comparison.output_dir), comparison.encoders()
    for entry in encoders.values():
        read_config(entry.model)  # before any video is read
    split = make_split(data, labels, preparation, folder, comparison.seed)
    licenses = {name: read_license(entry.model) for name, entry in encoders.items()}
    results = Comparison(comparison, probe, split, licenses).run()
    if PartialState().is_main_process:
        logging.info("\n%s\n\nWritten to %s", write_comparison(results, folder), folder)


if __name__ == "__main__":
    run_script(main)
