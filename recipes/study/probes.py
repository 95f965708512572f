"""Linear, attentive and k-NN probes of a frozen encoder on every label of the scenes.

Features are computed once. The similarity of features between the time slots of a clip is measured, too.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import torch

from mvd_hf.data.sources import first_rows, load_rows
from mvd_hf.evaluation.features import LabelledViews
from mvd_hf.evaluation.metrics import top_k_accuracy
from mvd_hf.evaluation.probing import (
    ProbeArguments,
    cache_features,
    fit_attentive,
    fit_linear,
    nearest_neighbours,
    pooled_features,
)
from mvd_hf.evaluation.views import ViewResults
from mvd_hf.hub.loading import load_classifier
from mvd_hf.model.configuration_mvd import ConfigFields, MVDConfig
from mvd_hf.model.modeling_mvd import MVDForVideoClassification
from mvd_hf.model.video_processing_mvd import MVDVideoProcessor
from mvd_hf.visualization.similarity import slot_similarity

from .scenes import PARTS, SPLITS, TASKS, class_names

PROBES, SIMILARITY, FEATURES = "probes.json", "similarity.json", "features"


@dataclass
class SceneProbeArguments:
    """The encoder and the scenes: keys of a recipe.

    Args:
        model: folder of an encoder, or a published size for an untrained one.
        config: `MVDConfig` fields that differ.
        dataset: folder of the scenes.
        train_videos: number of training videos, the first ones, that probes are fitted on; by default all.
        stride: distance between the frames of a clip.
        views_per_pass: clips per forward pass.
        seed: of the attentive probe and of an untrained encoder.
        output_dir: folder for the accuracies.
    """

    model: str = ""
    config: ConfigFields = field(default_factory=dict)
    dataset: str = ""
    train_videos: int | None = None
    stride: int = 2
    views_per_pass: int = 64
    seed: int = 0
    output_dir: str = "outputs/study/probe"


class SceneProbes:
    """The probes of one encoder.

    Args:
        arguments: the encoder and the scenes.
        probe: how probes are fitted.
    """

    def __init__(self, arguments: SceneProbeArguments, probe: ProbeArguments):
        self.arguments, self.probe, self.folder = arguments, probe, Path(arguments.output_dir)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.rows = {split: load_rows(arguments.dataset, split) for split in SPLITS}
        if arguments.train_videos is not None:
            if arguments.train_videos < 1:
                raise ValueError(f"train_videos={arguments.train_videos} must be at least 1.")
            self.rows["train"] = first_rows(self.rows["train"], arguments.train_videos)

    def labels(self, split: str, column: str) -> np.ndarray:
        """Class indices of a split."""
        return np.array(self.rows[split][column])

    def model(self, num_labels: int, attentive: bool) -> MVDForVideoClassification:
        """A classifier with a new head on the encoder."""
        torch.manual_seed(self.arguments.seed)
        config = self.arguments.config | {"use_attentive_pooling": attentive}
        model, _ = load_classifier(self.arguments.model, num_labels, config)
        return model.to(self.device)

    def features(self, model: MVDForVideoClassification, kind: str) -> dict[str, ViewResults]:
        """Features of each split, with several clips per training video."""
        results = {}
        for split, rows in self.rows.items():
            processor = MVDVideoProcessor.for_model(
                model.config,
                sampling="dense",
                frame_sampling_rate=self.arguments.stride,
                num_clips=self.probe.probe_clips if split == "train" else 1,
                num_crops=1,
            )
            folder = self.folder / FEATURES / kind / split
            results[split] = self.read(model, rows, processor, folder)
        return results

    def read(
        self, model: MVDForVideoClassification, rows: datasets.Dataset, processor: MVDVideoProcessor, folder: Path
    ) -> ViewResults:
        """Features of the views of all videos; each video must be readable."""
        per_pass = self.arguments.views_per_pass
        results = cache_features(model, rows, processor, folder, views_per_pass=per_pass, num_workers=0)
        if results.problems:
            raise ValueError(f"{len(results.problems)} scenes cannot be read: delete {self.arguments.dataset!r}.")
        return results

    def linear(self, features: Mapping[str, ViewResults], column: str) -> dict[str, float]:
        """Accuracies of a linear probe, by split."""
        known, labels, rows = pooled_features(features["train"], self.labels("train", column))
        head = torch.nn.Linear(known.shape[1], len(class_names(column)))
        fit_linear(known, labels, rows, head)
        with torch.no_grad():
            logits = {split: head(torch.from_numpy(features[split].stack("pooled"))[:, 0]) for split in SPLITS[1:]}
        return {split: top_k_accuracy(part.numpy(), self.labels(split, column), 1) for split, part in logits.items()}

    def knn(self, features: Mapping[str, ViewResults], column: str) -> dict[str, float]:
        """Accuracies of the votes of the nearest training clips, by split."""
        views = LabelledViews(features["train"], "pooled", self.labels("train", column))
        count = len(class_names(column))
        votes = {split: nearest_neighbours(views, features[split], count, self.probe)[1] for split in SPLITS[1:]}
        return {split: top_k_accuracy(part, self.labels(split, column), 1) for split, part in votes.items()}

    def attentive(self, features: Mapping[str, ViewResults], column: str) -> dict[str, float]:
        """Accuracies of an attentive probe, by split."""
        model = self.model(len(class_names(column)), attentive=True)
        labels = self.labels("train", column)
        fit_attentive(model, features["train"], labels, self.probe, self.arguments.seed)
        accuracies = {}
        for split in SPLITS[1:]:
            tokens = torch.from_numpy(features[split].stack("tokens"))[:, 0].float().to(self.device)
            with torch.no_grad():
                logits = model.classifier(model.pooler(tokens)).cpu().numpy()
            accuracies[split] = top_k_accuracy(logits, self.labels(split, column), 1)
        return accuracies

    def similarity(self, features: Mapping[str, ViewResults], config: MVDConfig) -> dict[str, list]:
        """Mean cosine similarity (t, t) between time slots of the test clips, see [`slot_similarity`]."""
        tokens = torch.from_numpy(features["test"].stack("tokens"))[:, 0].float()
        found = {average: slot_similarity(tokens, config.grid, average) for average in ("place", "slot")}
        return {average: matrices.mean(dim=0).tolist() for average, matrices in found.items()}

    def run(self):
        """Fit and test all probes, then delete the features.

        Writes `probes.json` (method, split, column: accuracy) and `similarity.json` (average: matrix).
        """
        columns = [*PARTS, *TASKS]
        pooled = self.features(self.model(2, attentive=False), "pooled")
        found = {
            "linear": {column: self.linear(pooled, column) for column in columns},
            "knn": {column: self.knn(pooled, column) for column in columns},
        }
        reader = self.model(2, attentive=True)
        tokens = self.features(reader, "tokens")
        found["attentive"] = {task: self.attentive(tokens, task) for task in TASKS}
        by_split = {
            method: {split: {column: values[split] for column, values in part.items()} for split in SPLITS[1:]}
            for method, part in found.items()
        }
        similarity = self.similarity(tokens, reader.config)
        (self.folder / SIMILARITY).write_text(json.dumps(similarity) + "\n", encoding="utf-8")
        (self.folder / PROBES).write_text(json.dumps(by_split, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(self.folder / FEATURES)
