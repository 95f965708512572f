"""Comparison: students, teachers and baselines, probed on the same videos under one protocol.

Letters in shapes: N videos, K classes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import datasets
import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from ..model.configuration_mvd import size_text
from .encoders import Encoder, EncoderArguments, PixelEncoder
from .features import EXPORT_FORMATS, LabelledViews, export_features, extract_features
from .metrics import percentile_interval, resampled_metrics, resampling_weights, softmax, top_k_hits
from .probing import AttentiveHead, ProbeArguments, fit_head, fit_linear, head_logits, nearest_neighbours
from .views import ViewResults

logger = logging.getLogger(__name__)

METHODS = ("knn", "linear", "attentive")
BASELINES = ("majority", "pixels", "random")
# classes up to which top-5 says nothing
FEW_CLASSES = 5


@dataclass
class GridArguments(ProbeArguments):
    """Arguments of the probes of a comparison: [`ProbeArguments`] with a grid of settings.

    The rates and weight decays are as many as in V-JEPA 2's evaluation (arXiv 2506.09985), 20 heads. They need a GPU:
    on a CPU give fewer.

    Args:
        probe_blocks: blocks of an attentive probe: 1 as in V-JEPA, or 4 as in V-JEPA 2.
    """

    probe_learning_rate: float | list[float] = field(default_factory=lambda: [5e-3, 3e-3, 1e-3, 3e-4, 1e-4])
    probe_weight_decay: float | list[float] = field(default_factory=lambda: [0.8, 0.4, 0.1, 0.01])
    neighbours: int | list[int] = field(default_factory=lambda: [1, 5, 10, 20, 50])
    probe_blocks: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.probe_blocks < 1:
            raise ValueError(f"probe_blocks={self.probe_blocks} must be at least 1.")


@dataclass
class ComparisonArguments:
    """The models, and how they are compared.

    Args:
        models: by name, each a Hub id or folder, or a mapping of the fields of
            `mvd_hf.evaluation.encoders.EncoderArguments`.
        students: names of the models that are students; by default those whose name begins with `student`. The others
            are teachers.
        methods: `knn`, `linear` (logistic regression), `attentive` (see `probe_blocks`).
        baselines: `majority` (the most frequent class), `pixels` (colors of 4 frames of 16 x 16, linear), `random`
            (the network of each student, or else of the first model, with random weights).
        image_frames: frames of a clip that an image model sees.
        test_clips, test_crops: views of a test video, whose probabilities are averaged.
        resamples: bootstrap resamples of the test videos for the intervals.
        export: `npz` or `safetensors` to write the features of each video to `exported/<model>/<train or test>`.
        features_dir: folder of the features, which several comparisons may share; by default in `output_dir`.
        output_dir: folder of the results.
        views_per_pass: largest number of clips per forward pass.
        num_workers: decoding workers.
        device: such as `cuda`; by default what there is.
        seed: of random weights, attentive probes and resamples.
    """

    models: dict[str, str | Annotated[dict, EncoderArguments]] = field(default_factory=dict)
    students: list[str] | None = None
    methods: list[str] = field(default_factory=lambda: ["knn", "linear"])
    baselines: list[str] = field(default_factory=list)
    image_frames: int = 8
    test_clips: int = 1
    test_crops: int = 1
    resamples: int = 2000
    export: str | None = None
    features_dir: str | None = None
    output_dir: str = "outputs/probe"
    views_per_pass: int = 8
    num_workers: int = 2
    device: str | None = None
    seed: int = 0

    def __post_init__(self):
        if not self.models:
            raise ValueError("There is no model to probe: give --models.NAME with a Hub id or a folder.")
        for name, known in (("methods", METHODS), ("baselines", BASELINES), ("students", self.models)):
            unknown = [value for value in getattr(self, name) or () if value not in known]
            if unknown:
                raise ValueError(f"{name} has {', '.join(unknown)}; choose from {', '.join(known)}.")
        if not self.methods:
            raise ValueError(f"methods={self.methods} must name one of {', '.join(METHODS)}.")
        if self.export not in (None, *EXPORT_FORMATS):
            raise ValueError(f"export={self.export!r} must be one of {', '.join(EXPORT_FORMATS)}.")
        for name in ("image_frames", "test_clips", "test_crops", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.students is None:
            self.students = [name for name in self.models if name.startswith("student")]

    def encoders(self) -> dict[str, EncoderArguments]:
        """The models by name, students first, then the random networks that the baselines ask for."""
        entries = {
            name: EncoderArguments(**({"model": entry} if isinstance(entry, str) else entry))
            for name, entry in sorted(self.models.items(), key=lambda item: item[0] not in self.students)
        }
        if "random" in self.baselines:
            for name in self.students or list(entries)[:1]:
                entries[f"random {name}"] = replace(entries[name], random_weights=True)
        return entries


@dataclass
class LabelledSplit:
    """Training and test videos of a comparison.

    Args:
        train, test: the videos.
        train_labels, test_labels: class index of each.
        names: of the classes.
        sampling: `dense` or `uniform`, of the frames of a clip.
        stride: of dense clips of 16 frames.
        groups: of each training video: a group is held out as a whole where settings are chosen.
        group_column: the column that the groups follow besides names, if there is one.
    """

    train: datasets.Dataset
    test: datasets.Dataset
    train_labels: np.ndarray
    test_labels: np.ndarray
    names: list[str]
    sampling: str = "uniform"
    stride: int = 4
    groups: Sequence[int] | None = None
    group_column: str | None = None


@dataclass
class Outcome:
    """The test of one probe: a row of the table.

    Args:
        model, method: names.
        role: `student`, `teacher` or `baseline`.
        setting: of the probe, as chosen.
        rows: (N,) rows of the test videos.
        probabilities: (N, K) of the classes.
        facts: input, cost and license of the model.
    """

    model: str
    method: str
    role: str
    setting: str
    rows: list[int]
    probabilities: np.ndarray
    facts: dict = field(default_factory=dict)


def predict(logits: torch.Tensor, num_videos: int) -> np.ndarray:
    """Mean probabilities (N, K) of videos from the logits of their views (N * V, K)."""
    return softmax(logits.numpy()).reshape(num_videos, -1, logits.shape[1]).mean(axis=1)


class Prober:
    """Fits the probes of one encoder and tests them.

    Args:
        train: features of the training videos.
        test: features of the test videos.
        split: labels and groups.
        probe: arguments of the probes.
        device: to fit on.
        seed: of attentive probes.
    """

    def __init__(
        self,
        train: ViewResults,
        test: ViewResults,
        split: LabelledSplit,
        probe: GridArguments,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        self.train, self.test, self.split, self.probe = train, test, split, probe
        self.device, self.seed, self.num_classes = device, seed, len(split.names)

    def views(self, kind: str) -> LabelledViews:
        """Features and labels of the training views."""
        return LabelledViews(self.train, kind, self.split.train_labels, self.split.groups)

    def knn(self) -> tuple[str, np.ndarray]:
        """The chosen number of neighbours in words, and probabilities (N, K)."""
        k, votes = nearest_neighbours(self.views("pooled"), self.test, self.num_classes, self.probe)
        return f"k={k}", votes

    def linear(self) -> tuple[str, np.ndarray]:
        """The chosen penalty in words, and probabilities (N, K)."""
        views = self.views("pooled")
        features = views.read().to(self.device)
        head = nn.Linear(features.shape[1], self.num_classes).to(self.device)
        penalty = fit_linear(features, views.labels.to(self.device), views.groups.to(self.device), head)
        return f"L2 penalty {penalty:g}", self.test_head(head, "pooled")

    def attentive(self) -> tuple[str, np.ndarray]:
        """The chosen rate and weight decay in words, and probabilities (N, K)."""
        views = self.views("tokens")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = AttentiveHead(views.read([0]).shape[-1], self.num_classes, self.probe.probe_blocks)
        head = head.to(self.device)
        setting, _ = fit_head(head, views, self.probe, self.seed)
        return str(setting), self.test_head(head, "tokens")

    def test_head(self, head: nn.Module, kind: str) -> np.ndarray:
        """Probabilities (N, K) of the test videos."""
        views = LabelledViews(self.test, kind, self.split.test_labels)
        return predict(head_logits([head], views, np.arange(len(views)))[0], len(self.test.rows()))


class Comparison:
    """Probes of several models on the same videos.

    Args:
        arguments: models and methods.
        probe: arguments of the probes.
        split: the videos.
        licenses: of models, by name.
    """

    def __init__(
        self,
        arguments: ComparisonArguments,
        probe: GridArguments,
        split: LabelledSplit,
        licenses: Mapping[str, str | None] | None = None,
    ):
        self.arguments, self.probe, self.split, self.licenses = arguments, probe, split, licenses or {}
        self.device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.features_dir = Path(arguments.features_dir or Path(arguments.output_dir) / "features")
        for part, labels in (("training", split.train_labels), ("test", split.test_labels)):
            if len(labels) == 0:
                raise ValueError(f"There is no {part} video.")

    def run(self) -> "ComparisonResults":
        """Extract the features, fit and test all probes."""
        outcomes = []
        for name, entry in self.arguments.encoders().items():
            role = "baseline" if entry.random_weights else "student" if name in self.arguments.students else "teacher"
            encoder = Encoder(name, entry, self.arguments.image_frames, self.arguments.seed).to(self.device)
            facts = self.facts(encoder)
            outcomes += self.probe_encoder(encoder, self.arguments.methods, role, facts)
        if "pixels" in self.arguments.baselines:
            outcomes += self.probe_encoder(PixelEncoder(), ["linear"], "baseline", {"input": "4x16"})
        if "majority" in self.arguments.baselines:
            outcomes.append(self.majority(outcomes[0].rows))
        return ComparisonResults(outcomes, self.split, self.protocol(), self.arguments.resamples, self.arguments.seed)

    def facts(self, encoder: Encoder) -> dict:
        """Input, cost and license of a model, for the table."""
        return {
            "input": f"{encoder.num_frames}x{size_text(encoder.image_size)}",
            "parameters_m": encoder.num_parameters() / 1e6,
            "gflops_per_clip": encoder.flops() / 1e9,
            "clips_per_s": encoder.clips_per_second(),
            "license": self.licenses.get(encoder.name),
        }

    def probe_encoder(
        self, encoder: Encoder | PixelEncoder, methods: Sequence[str], role: str, facts: dict
    ) -> list[Outcome]:
        """The outcomes of all methods for one encoder."""
        arguments, split = self.arguments, self.split
        views = {"train": (self.probe.probe_clips, 1), "test": (arguments.test_clips, arguments.test_crops)}
        features = {}
        for part, counts in views.items():
            processor = encoder.processor(split.sampling, split.stride, *counts)
            rows = getattr(split, part)
            logger.info("Features of %s for the %s videos:", encoder.name, part)
            features[part] = extract_features(
                encoder,
                rows,
                processor,
                self.features_dir,
                tokens="attentive" in methods,
                views_per_pass=arguments.views_per_pass,
                num_workers=arguments.num_workers,
            )
            if arguments.export is not None and PartialState().is_main_process:
                folder = Path(arguments.output_dir) / "exported" / encoder.name / part
                export_features(features[part], rows, processor, folder, arguments.export)
        prober = Prober(features["train"], features["test"], split, self.probe, self.device, arguments.seed)
        outcomes = []
        for method in methods:
            setting, probabilities = getattr(prober, method)()
            outcomes.append(
                Outcome(encoder.name, method, role, setting, features["test"].rows(), probabilities, facts)
            )
        return outcomes

    def majority(self, rows: list[int]) -> Outcome:
        """The baseline that knows only how frequent classes are."""
        counts = np.bincount(self.split.train_labels, minlength=len(self.split.names))
        probabilities = np.tile(counts / counts.sum(), (len(rows), 1))
        return Outcome("majority", "none", "baseline", self.split.names[int(counts.argmax())], rows, probabilities)

    def protocol(self) -> str:
        """What was done, in a line."""
        split, arguments = self.split, self.arguments
        frames = f"dense, stride {split.stride} at 16 frames" if split.sampling == "dense" else "uniform"
        unit = "video" if split.groups is None else "group of videos"
        unit += f" (by {split.group_column})" if split.group_column else ""
        return (
            f"{len(split.train)} training and {len(split.test)} test videos, {len(split.names)} classes; frozen "
            f"encoders; {frames}; {self.probe.probe_clips} clips per training video, {arguments.test_clips} x "
            f"{arguments.test_crops} views (clips x crops) per test video; settings chosen on every fifth training "
            f"{unit}, then fitted to all; seed {arguments.seed}."
        )


@dataclass
class ComparisonResults:
    """The outcomes of a comparison on the videos that all models could read.

    Args:
        outcomes: of all probes, students first, baselines last.
        split: the videos.
        protocol: what was done, in a line.
        resamples, seed: of the bootstrap over videos.
    """

    outcomes: list[Outcome]
    split: LabelledSplit
    protocol: str
    resamples: int = 2000
    seed: int = 0

    @cached_property
    def rows(self) -> list[int]:
        """Rows of the test videos that every model could read."""
        shared = set.intersection(*(set(outcome.rows) for outcome in self.outcomes))
        if not shared:
            raise ValueError("No test video could be read by all models.")
        return sorted(shared)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) class indices."""
        return self.split.test_labels[self.rows]

    @cached_property
    def weights(self) -> np.ndarray:
        """Bootstrap resamples, the same for all outcomes, so that differences are paired."""
        return resampling_weights(len(self.rows), self.resamples, self.seed)

    def probabilities(self, outcome: Outcome) -> np.ndarray:
        """(N, K) on the shared videos."""
        place = {row: i for i, row in enumerate(outcome.rows)}
        return outcome.probabilities[[place[row] for row in self.rows]]

    def hits(self, outcome: Outcome, k: int = 1) -> np.ndarray:
        """(N,) whether the true class is among the k most probable ones."""
        return top_k_hits(self.probabilities(outcome), self.labels, k)

    def best_teacher(self, method: str) -> Outcome | None:
        """The teacher with the best top-1 accuracy by a method."""
        teachers = [o for o in self.outcomes if o.role == "teacher" and o.method == method]
        return max(teachers, key=lambda outcome: self.hits(outcome).mean(), default=None)

    def table(self) -> list[dict]:
        """A row for each outcome; accuracies in percent, intervals at 95 % by bootstrap over videos."""
        table = []
        for outcome in self.outcomes:
            predictions = self.probabilities(outcome).argmax(axis=1)
            draws = resampled_metrics(predictions, self.labels, self.weights)
            exact = resampled_metrics(predictions, self.labels, np.ones((1, len(predictions))))
            teacher = self.best_teacher(outcome.method)
            row = {"model": outcome.model, "role": outcome.role, "method": outcome.method}
            for name, values in draws.items():
                row[name] = 100 * float(exact[name][0])
                row[f"{name}_low"], row[f"{name}_high"] = (100 * bound for bound in percentile_interval(values))
            if len(self.split.names) > FEW_CLASSES:
                row["top5"] = 100 * self.hits(outcome, 5).mean()
            row["kept"] = None if teacher is None else row["top1"] / max(self.hits(teacher).mean(), 1e-12)
            facts = dict.fromkeys(("input", "parameters_m", "gflops_per_clip", "clips_per_s", "license"))
            table.append(row | facts | outcome.facts | {"setting": outcome.setting})
        return table

    def difference(self, outcome: Outcome, other: Outcome) -> dict:
        """The paired difference of top-1 accuracies in percent points, with its interval."""
        gaps = self.hits(outcome).astype(float) - self.hits(other)
        low, high = percentile_interval(self.weights @ gaps / len(gaps))
        return {
            "model": outcome.model,
            "against": other.model,
            "method": outcome.method,
            "difference": 100 * float(gaps.mean()),
            "low": 100 * low,
            "high": 100 * high,
        }

    def differences(self) -> list[dict]:
        """Paired differences of each student, or else of the best teacher, from all others of the same method.

        Baselines that have one method are compared with every method.
        """
        found = []
        for method in dict.fromkeys(outcome.method for outcome in self.outcomes if outcome.role != "baseline"):
            own = [o for o in self.outcomes if o.role == "student" and o.method == method]
            own = own or [self.best_teacher(method)]
            baselines = [o for o in self.outcomes if o.role == "baseline" and o.model in ("pixels", "majority")]
            others = [o for o in self.outcomes if o.method == method and o not in baselines] + baselines
            found += [self.difference(one, other) for one in own for other in others if one is not other]
        return found

    def warnings(self) -> list[str]:
        """A sentence for each student that does not beat a baseline, and for test videos that are left out."""
        found = []
        baselines = {outcome.model for outcome in self.outcomes if outcome.role == "baseline"}
        for row in self.differences():
            if row["against"] in baselines and row["difference"] <= 0:
                found.append(
                    f"{row['model']} ({row['method']}) does not beat the baseline {row['against']!r}: "
                    f"{row['difference']:+.1f} points ({row['low']:+.1f} to {row['high']:+.1f})."
                )
        missing = len(self.split.test) - len(self.rows)
        return found + ([f"{missing} test videos could not be read and are left out."] if missing else [])
