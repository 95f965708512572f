"""k-NN accuracy of the student on a small labelled set, reported while it is distilled."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from transformers import TrainerCallback

from ..data.labels import LabelReader
from ..data.sources import load_rows
from ..evaluation.encoders import pool_tokens
from ..evaluation.metrics import knn_scores
from ..evaluation.views import VideoViews
from .optimization import bare_model

logger = logging.getLogger(__name__)


@dataclass
class KnnArguments:
    """The labelled videos of a report, its steps and its neighbours.

    Args:
        dataset, split, root: labelled videos, see `mvd_hf.data.sources.load_rows`.
        label_column: column of the labels.
        steps: optimizer steps between reports.
        videos: number of videos, spread over the data set; a clip of each stays in memory.
        neighbours: neighbours that vote.
    """

    dataset: str
    split: str = "train"
    root: str | None = None
    label_column: str = "label"
    steps: int = 500
    videos: int = 200
    neighbours: int = 10

    def __post_init__(self):
        for name in ("steps", "videos", "neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} of knn must be at least 1.")


def two_fold_accuracy(features: torch.Tensor, labels: torch.Tensor, neighbours: int) -> float:
    """Accuracy of k-NN on features (N, D): each half of the videos, every second one, is the bank of the other."""
    hits, num_classes = 0, int(labels.max()) + 1
    for bank, asked in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        votes = knn_scores(features[asked], features[bank], labels[bank], num_classes, neighbours)
        hits += int((votes.argmax(axis=1) == labels[asked].numpy()).sum())
    return hits / len(labels)


class KnnCallback(TrainerCallback):
    """Logs `knn_accuracy` of the student's encoder every so many steps; training itself does not change.

    The feature of a video is the mean of all tokens of its middle clip. The share of the most frequent class, which a
    useless encoder reaches, is logged once.

    Args:
        trainer: whose student is reported.
        arguments: see [`KnnArguments`].

    Raises:
        ValueError: if fewer than four videos can be read.
    """

    def __init__(self, trainer, arguments: KnnArguments):
        self.trainer, self.arguments = trainer, arguments
        rows = load_rows(arguments.dataset, arguments.split, arguments.root)
        count = min(arguments.videos, len(rows))
        rows = rows.select(np.linspace(0, len(rows) - 1, count).round().astype(int))
        reader, videos = LabelReader(rows, arguments.label_column), VideoViews(rows, trainer.processing_class)
        clips, labels = [], []
        for row, name, views, problem in map(videos.__getitem__, range(count)):
            if views is None:
                logger.warning("%s is left out of the k-NN report: %s", name, problem)
                continue
            clips.append(views)
            labels.append(reader(rows[row]))
        if len(clips) < 4:
            raise ValueError(f"{len(clips)} videos of {arguments.dataset!r} are too few for k-NN: give 4 or more.")
        # shuffled, so that a data set in the order of its classes has each of them in both halves
        order = np.random.default_rng(0).permutation(len(clips))
        self.clips, self.labels = torch.cat(clips)[order], torch.tensor(labels)[order]
        share = self.labels.bincount().max() / len(self.labels)
        logger.info("k-NN is reported on %d videos; the most frequent class has %.3f.", len(clips), share)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Of the student as it is now."""
        encoder, args = bare_model(self.trainer.model).mvd, self.trainer.args
        was_training = encoder.training
        encoder.eval()
        with self.trainer.accelerator.autocast():
            parts = [
                pool_tokens(encoder(part.to(args.device)).last_hidden_state).cpu()
                for part in self.clips.split(args.per_device_eval_batch_size)
            ]
        encoder.train(was_training)
        return two_fold_accuracy(torch.cat(parts), self.labels, self.arguments.neighbours)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.arguments.steps == 0:
            should_log = control.should_log  # which logging switches off
            self.trainer.log({"knn_accuracy": self.accuracy()})
            control.should_log = should_log


def report_knn(trainer, fields: Mapping):
    """Add a [`KnnCallback`] with these [`KnnArguments`] to a trainer; none without fields."""
    if fields:
        if "dataset" not in fields:
            raise ValueError("knn has no data set: give --knn.dataset with labelled videos.")
        if trainer.is_fsdp_enabled:
            raise ValueError("knn cannot be reported under FSDP, which divides the student: leave knn out.")
        trainer.add_callback(KnnCallback(trainer, KnnArguments(**fields)))
