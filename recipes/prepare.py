"""Write list files of the official splits of a data set, for `recipes/finetune.py` and `recipes/three_splits.py`.

    python recipes/prepare.py ucf101 --videos UCF-101 --splits ucfTrainTestlist --output data/ucf101

The first argument is `ucf101`, `hmdb51`, `ssv2` or `kinetics`. The output is `train_1.csv`, `test_1.csv` and so on, or
`train.csv` and `validation.csv`, and `classes.txt`: the `dataset`, `eval_dataset` and `label_names` of other recipes.
Your own folders of videos need no preparation: `recipes/finetune.py` splits them.
"""

import logging
from dataclasses import dataclass

from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.curation.official_splits import SPLIT_READERS, find_videos, write_lists


@dataclass
class PrepareArguments:
    """Which official splits, and where videos and list files are.

    Args:
        data_set: name of the data set, the first argument.
        videos: folder of the videos, with folders for the classes or without.
        splits: folder of the official split files.
        output: folder of the list files.
        allow_missing: leave out videos that are missing, and classes without any video, and log them.
    """

    data_set: str
    videos: str
    splits: str
    output: str
    allow_missing: bool = False

    def __post_init__(self):
        if self.data_set not in SPLIT_READERS:
            raise ValueError(f"data_set={self.data_set!r} must be one of {', '.join(SPLIT_READERS)}.")


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (prepare,) = parse_arguments(arguments, PrepareArguments, first="data_set")
    splits = SPLIT_READERS[prepare.data_set](prepare.splits)
    lists, label_names = find_videos(splits, prepare.videos, allow_missing=prepare.allow_missing)
    write_lists(prepare.output, lists, label_names)
    for name, videos in lists.items():
        logging.info("%s/%s.csv: %d videos", prepare.output, name, len(videos))


if __name__ == "__main__":
    run_script(main)
