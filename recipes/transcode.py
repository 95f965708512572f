"""Write the videos of a data set as files that train fast: small, many key frames, every frame and its time kept.

    python recipes/transcode.py videos --output videos_256 [--on_bad_video skip] [--fps 10] [--clips 900:1800]

The first argument is a list file, a folder, parquet or WebDataset files, or a data set of the Hub. Names, folders and
labels stay: give the output to other recipes as `--dataset`. Start it again after an interruption to continue. For
several machines: `--shard 3/64` and at last `--merge true`, as in `recipes/accelerate/transcode.slurm`. Keys:
`mvd_hf.curation.transcode_job.TranscodeArguments`.
"""

import logging

from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.curation.transcode_job import TranscodeArguments, transcode_dataset


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (job,) = parse_arguments(arguments, TranscodeArguments, first="dataset")
    transcode_dataset(job)


if __name__ == "__main__":
    run_script(main)
