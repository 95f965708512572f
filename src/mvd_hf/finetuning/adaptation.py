"""Adaptation of an encoder to labelled videos: fine-tuning, LoRA, probes or k-NN, followed by a multi-view test."""

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import PartialState
from transformers.utils import is_peft_available

from ..data.arguments import DataArguments, FinetuningClipArguments, finetuning_clips
from ..evaluation.features import LabelledViews
from ..evaluation.metrics import balanced_class_weights, top_k_accuracy
from ..evaluation.multiview import evaluate_views, read_labels
from ..evaluation.probing import (
    ProbeArguments,
    cache_features,
    fit_attentive,
    fit_linear,
    nearest_neighbours,
    pooled_features,
)
from ..evaluation.reports import write_report
from ..evaluation.results import Evaluation
from ..evaluation.views import ViewResults, protocol_of
from ..hub.loading import check_fps_of_source, check_source, load_classifier
from ..hub.run_record import RunRecord, read_run_record, without_private_parts
from ..model.configuration_mvd import ConfigFields
from ..model.frame_sampling import PAPER_VIEWS
from ..model.labels_mvd import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..model.modeling_mvd import MVDForVideoClassification
from ..model.video_processing_mvd import MVDVideoProcessor
from ..training.checkpoints import last_complete_checkpoint, refuse_overwriting
from .held_out import HeldOut
from .preparation import PreparationArguments, choose_clips, find_validation_split, is_single_label, prepare_videos
from .trainer import BEST_FOLDER, EMA_FOLDER, FinetuningArguments, FinetuningTrainer

logger = logging.getLogger(__name__)

TRAINED = ("full", "lora")  # methods with a trainer
METHODS = ("full", "probe_then_full", "lora", "linear_probe", "attentive_probe", "knn")
HEADS = ("new", "probe")
WEIGHTS = {"last": "", "best": BEST_FOLDER, "ema": EMA_FOLDER}
# folders of cached features, in the output folder, and of the results of the test, beside the tested weights
FEATURES_FOLDER, TEST_FOLDER = "features", "evaluation"


@dataclass
class AdaptationArguments:
    """The model, the method and the test at the end.

    Args:
        model: an MVD or VideoMAE checkpoint, or a published size to train from scratch; see
            `mvd_hf.load_classifier`.
        config: `MVDConfig` fields to change.
        method: `full` (trains all weights, as in the paper), `probe_then_full` (`full` with `head: probe`), `lora`
            (trains adapters of `peft`), `linear_probe` or `attentive_probe` (freezes the encoder), or `knn` (trains
            and saves nothing).
        head: how the head of `full` and `lora` starts: `new` (as in the paper, or as loaded), or `probe`: fitted to
            frozen features (arXiv 2202.10054), for few videos.
        lora: fields of `peft.LoraConfig`; by default rank 8 on all attention layers.
        test_clips, test_crops: views of a video in the test; by default as in the paper, 5 x 3 dense, 2 x 3 uniform.
        test_weights: weights to test: `last` (as in the paper), `best` or `ema`.
    """

    model: str = ""
    config: ConfigFields = field(default_factory=dict)
    method: str = "full"
    head: str = "new"
    lora: dict = field(default_factory=dict)
    test_clips: int | None = None
    test_crops: int | None = None
    test_weights: str = "last"

    def __post_init__(self):
        if not self.model:
            raise ValueError(
                "There is no model: give --model with a folder, the id of a model of the Hub, a .pth file, or, to "
                "train from scratch, a published size such as mvd-s."
            )
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} must be one of {', '.join(METHODS)}.")
        if self.head not in HEADS:
            raise ValueError(f"head={self.head!r} must be one of {', '.join(HEADS)}.")
        if self.method == "probe_then_full":
            self.method, self.head = "full", "probe"
        if self.head == "probe" and self.method not in TRAINED:
            raise ValueError(
                f"head={self.head} is for full and lora, method={self.method} has a head of its own: give --head new."
            )
        if self.test_weights not in WEIGHTS:
            raise ValueError(f"test_weights={self.test_weights!r} must be one of {', '.join(WEIGHTS)}.")


def check_labels_of_recipe(recipe: AdaptationArguments, keys: FinetuningClipArguments):
    """Raise ValueError if keys are not defined for the kind of the labels."""
    kind = keys.problem_type if isinstance(keys.label_column, str) else f"label_column={keys.label_column}"
    given = recipe.config.get("problem_type")
    if given not in (None, keys.problem_type or SINGLE_LABEL):
        raise ValueError(f"config.problem_type={given} follows from the labels: give --problem_type {given}.")
    if "label_heads" in recipe.config:
        raise ValueError("config.label_heads follows from the labels: give --label_column with several columns.")
    if not is_single_label(keys) and recipe.method == "knn":
        raise ValueError(f"method=knn votes for one class, not for {kind}: give method=linear_probe.")
    if keys.class_weights is not None and keys.problem_type in (MULTI_LABEL, REGRESSION):
        raise ValueError(f"class_weights={keys.class_weights} is not defined for problem_type={kind}: leave it out.")
    if keys.problem_type == REGRESSION and keys.label_smoothing and recipe.method in TRAINED:
        raise ValueError(f"label_smoothing={keys.label_smoothing} is not defined for problem_type={kind}: give 0.")


class Adaptation:
    """An adaptation: data, model, training and test.

    Args:
        recipe, data, keys, preparation, probe, training: the arguments, by topic.

    Raises:
        ValueError: if arguments, data and model do not match.
    """

    def __init__(
        self,
        recipe: AdaptationArguments,
        data: DataArguments,
        keys: FinetuningClipArguments,
        preparation: PreparationArguments,
        probe: ProbeArguments,
        training: FinetuningArguments,
    ):
        self.recipe, self.probe, self.training = recipe, probe, training
        self.folder = Path(training.output_dir)
        self.origin = without_private_parts({"method": recipe.method, "model": recipe.model})
        self.check_folder()
        if training.ema_decay is None and recipe.test_weights == "ema":
            raise ValueError("test_weights=ema needs ema_decay, such as 0.9999.")
        if training.push_to_hub and recipe.method not in TRAINED:
            raise ValueError(f"method={recipe.method} cannot push_to_hub: publish its output_dir afterwards.")
        if keys.class_weights is not None and recipe.method not in TRAINED:
            raise ValueError(f"class_weights={keys.class_weights} is for full and lora, not method={recipe.method}.")
        check_labels_of_recipe(recipe, keys)
        defaults = DataArguments(dataset=data.dataset or "-")
        for key in ("crop", "crop_scales"):
            if getattr(data, key) != getattr(defaults, key):
                raise ValueError(f"{key}={getattr(data, key)!r} is for pre-training: set crop_scale.")
        check_source(recipe.model)
        self.record = RunRecord()
        num_labels = recipe.config.get("num_labels")
        self.videos = prepare_videos(data, keys, preparation, self.folder, num_labels=num_labels, seed=training.seed)
        if self.videos.validation is not None and PartialState().is_main_process:
            data = replace(data, eval_split=find_validation_split(data))
            HeldOut.of(self.videos.validation, data, keys).save(self.folder)
        config = recipe.config | ({"use_attentive_pooling": True} if recipe.method == "attentive_probe" else {})
        config |= {} if keys.problem_type is None else {"problem_type": keys.problem_type}
        config |= {"label_heads": self.videos.heads} if self.videos.heads else {}
        self.model, new = load_classifier(recipe.model, self.videos.names or self.videos.num_labels, config)
        if keys.problem_type == REGRESSION and "classifier.bias" in new and self.videos.labels is not None:
            self.model.classifier.bias.data.fill_(float(self.videos.labels.mean()))  # else it is far from all numbers
        self.keys, self.data = choose_clips(keys, data, self.videos, self.model.config.num_frames)
        self.processor = MVDVideoProcessor.for_model(
            self.model.config, sampling=self.keys.sampling, **self.data.distance
        )
        check_fps_of_source(recipe.model, self.processor)

    def check_folder(self):
        """Raise ValueError if the output folder holds the model of another run, unless it may be overwritten."""
        is_resumed = self.recipe.method in TRAINED and last_complete_checkpoint(self.folder) is not None
        if self.training.overwrite or is_resumed:
            return
        before = (read_run_record(self.folder) or {}).get("recipe", {})
        # a probe may be fitted again, with other settings
        if self.recipe.method in TRAINED or any(before.get(key) != value for key, value in self.origin.items()):
            refuse_overwriting(self.folder)

    def run(self, given: Mapping | None = None):
        """Adapt the model, save it with its video processor, and test it.

        Args:
            given: the keys of the recipe, for the record of the run.
        """
        self.record.model = type(self.model).__name__
        self.record.set_recipe(given or self.origin, self.data, self.keys)
        self.record.start()
        getattr(self, self.recipe.method)()

    def full(self):
        """Train all weights."""
        self.start_head()
        self.train(self.model)

    def start_head(self):
        """Fit the head to frozen features, if training starts from a probe."""
        if self.recipe.head == "probe":
            self.fit_head()

    def lora(self):
        """Train the head and adapters of the attention; raises ImportError if `peft` is missing."""
        if not is_peft_available():
            raise ImportError('method=lora needs peft: pip install "mvd_hf[adapters]".')
        from peft import LoraConfig, get_peft_model

        self.start_head()
        fields = {
            "r": 8,
            "lora_alpha": 16,
            "target_modules": ["qkv", "proj"],
            "modules_to_save": ["classifier", "fc_norm"],
        }
        self.train(get_peft_model(self.model, LoraConfig(**(fields | self.recipe.lora))))

    def class_weights(self) -> np.ndarray | None:
        """Weights of the classes in the loss, as the recipe wants them."""
        if self.keys.class_weights is None:
            return None
        if self.videos.labels is None:
            raise ValueError("class_weights=balanced needs the labels of all videos: leave out streaming.")
        sizes = self.videos.heads.values() or [self.videos.num_labels]
        labels = self.videos.labels.reshape(len(self.videos.labels), -1).T
        return np.concatenate([balanced_class_weights(*part) for part in zip(labels, sizes, strict=True)])

    def train(self, model: torch.nn.Module):
        """Train with the paper's recipe; resumes from the last checkpoint of the output folder."""
        config, seed = self.model.config, self.training.seed
        keys = replace(self.keys, label_names=self.videos.label_names)  # a set may lack classes of the other
        validation = None
        if self.videos.validation is not None:
            rows = self.videos.validation
            validation = finetuning_clips(self.data, keys, config, rows, evaluation=True, seed=seed)
        else:
            self.training.eval_strategy, self.training.metric_for_best_model = "no", None
        trainer = FinetuningTrainer(
            model,
            self.training,
            self.keys.mixup(self.videos.num_labels, self.videos.heads),
            self.class_weights(),
            train_dataset=finetuning_clips(self.data, keys, config, self.videos.train, seed=seed),
            eval_dataset=validation,
            processing_class=self.processor,
        )
        trainer.run_record = self.record
        trainer.run(then=self.test)

    def fit_head(self) -> dict:
        """Fit the linear layer to frozen features, with the attentive pooler if there is one; facts for the record."""
        if self.model.pooler is not None:
            return self.fit_attentive_head()
        features, labels, rows = pooled_features(self.training_features(), self.videos.labels)
        parts = (part.to(self.training.device) for part in (features, labels, rows))
        penalty = fit_linear(*parts, self.model.classifier, loss=self.model.loss)
        logger.info("Linear probe on %d clips; L2 penalty %g, chosen on every fifth video.", len(features), penalty)
        return {"training": {"L2 penalty": penalty}}

    def fit_attentive_head(self) -> dict:
        """Train a pooler and the linear layer on the frozen tokens; facts for the record."""
        setting, losses = fit_attentive(
            self.model, self.training_features(), self.videos.labels, self.probe, self.training.seed
        )
        logger.info("Attentive probe: training loss %.4f in the first epoch, %.4f in the last.", losses[0], losses[-1])
        return {
            "effective_batch": self.probe.probe_batch_size,
            "learning_rate": setting.rate,
            "epochs": self.probe.probe_epochs,
            "training": {"loss": losses[-1]},
        }

    def linear_probe(self):
        """Fit the head to frozen features."""
        self.save_and_test(self.fit_head())

    attentive_probe = linear_probe  # whose head has a pooler

    def knn(self):
        """Classify by the votes of the nearest training clips; trains nothing."""
        videos, keys = self.videos, self.keys
        if videos.validation is None:
            raise ValueError("method=knn needs validation videos: give a validation_fraction.")
        bank = self.training_features()
        folder = self.folder / FEATURES_FOLDER / "validation"
        results = self.features(videos.validation, self.test_processor(), folder)
        views = LabelledViews(bank, "pooled", videos.labels)
        neighbours, votes = nearest_neighbours(views, results, videos.num_labels, self.probe)
        labels = read_labels(videos.validation, keys.label_column, videos.num_labels, videos.names, keys.label_names)
        truth = labels[results.rows()]
        figures = {
            "protocol": f"{protocol_of(self.test_processor())}, k={neighbours}",
            "num_videos": len(truth),
            "missing": len(results.problems),
            **{f"knn_top{k}": top_k_accuracy(votes, truth, k) for k in ((1, 5) if videos.num_labels > 5 else (1,))},
            "majority_top1": float((truth == self.majority_class()).mean()),
        }
        if PartialState().is_main_process:
            path = self.folder / TEST_FOLDER / "metrics.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
            logger.info(
                "k-NN, k=%d of %d training videos, on %d videos: top-1 %.2f %%%s; always naming the most frequent "
                "class of training: %.2f %%. Written to %s",
                neighbours,
                len(bank.rows()),
                len(truth),
                100 * figures["knn_top1"],
                f", top-5 {100 * figures['knn_top5']:.2f} %" if "knn_top5" in figures else "",
                100 * figures["majority_top1"],
                path,
            )

    def majority_class(self) -> int | None:
        """The most frequent class of the training videos; `None` for a stream, and where a video has not one class."""
        labels = self.videos.labels
        return None if labels is None or not is_single_label(self.keys) else int(np.bincount(labels).argmax())

    def training_features(self) -> ViewResults:
        """Features of the training videos, cached in the output folder."""
        if isinstance(self.videos.train, datasets.IterableDataset):
            raise ValueError(f"method={self.recipe.method} reads its data more than once: leave out streaming.")
        processor = deepcopy(self.processor)
        processor.num_clips = self.probe.probe_clips
        return self.features(self.videos.train, processor, self.folder / FEATURES_FOLDER / "train")

    def features(self, rows: datasets.Dataset, processor: MVDVideoProcessor, folder: Path) -> ViewResults:
        """Features of videos, cached in a folder."""
        self.model.to(self.training.device)
        return cache_features(
            self.model,
            rows,
            processor,
            folder,
            autocast=self.autocast,
            views_per_pass=self.training.eval_batch_size,
            num_workers=self.training.dataloader_num_workers,
            replace=True,
        )

    def autocast(self) -> AbstractContextManager:
        """A context with the precision of the training arguments."""
        kind = torch.bfloat16 if self.training.bf16 else torch.float16 if self.training.fp16 else None
        return nullcontext() if kind is None else torch.autocast(self.training.device.type, kind)

    def save_and_test(self, facts: Mapping):
        """Save the model of a probe with its video processor and record, and test it."""
        self.record.stop()
        if PartialState().is_main_process:
            self.model.save_pretrained(self.folder)
            self.processor.save_pretrained(self.folder)
            videos = {"videos": len(self.videos.train), "clips_per_video": self.probe.probe_clips}
            self.record.save(self.folder, self.training, videos | facts)
        self.test()

    def test_processor(self) -> MVDVideoProcessor:
        """The video processor with the views of the test."""
        processor, (clips, crops) = deepcopy(self.processor), PAPER_VIEWS[self.keys.sampling]
        processor.num_clips = clips if self.recipe.test_clips is None else self.recipe.test_clips
        processor.num_crops = crops if self.recipe.test_crops is None else self.recipe.test_crops
        return processor

    def test(self):
        """Test the saved model on all views, and write the report to the folder `evaluation` beside it."""
        state = PartialState()
        state.wait_for_everyone()  # the main process has saved
        if self.videos.validation is None:
            logger.info("There is no validation set to test on.")
            return
        source = self.folder / WEIGHTS[self.recipe.test_weights]
        model = MVDForVideoClassification.from_pretrained(source, dtype=torch.float32).to(self.training.device)
        evaluation = evaluate_views(
            model,
            self.videos.validation,
            self.test_processor(),
            label_column=self.keys.label_column,
            label_names=self.keys.label_names,
            folder=source / TEST_FOLDER,
            autocast=self.autocast,
            views_per_pass=self.training.eval_batch_size,
            num_workers=self.training.dataloader_num_workers,
            replace=True,  # those of the run before it was continued
        )
        if isinstance(evaluation, Evaluation):
            evaluation.majority_class = self.majority_class()
        if state.is_main_process:
            write_report(evaluation, self.videos.validation, source / TEST_FOLDER)
            logger.info("%s\nThe model is in %s, its test in %s", evaluation.describe(), source, source / TEST_FOLDER)
        state.wait_for_everyone()
