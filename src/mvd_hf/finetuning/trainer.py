"""FinetuningTrainer: the paper's recipe for fine-tuning, with mixup, EMA, accuracies and the best model."""

import copy
import itertools
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel, gather_object
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from ..data.clips import IS_BLANK
from ..data.mixup import Mixup, soft_targets
from ..evaluation.metrics import class_accuracies, macro_f1, mean_average_precision, spearman
from ..hub.run_record import facts_of, metric_prefixes
from ..model.configuration_mvd import MVDConfig
from ..model.labels_mvd import MULTI_LABEL, REGRESSION, head_slices
from ..model.modeling_mvd import MVDForVideoClassification
from ..training.arguments import MVDTrainingArguments
from ..training.optimization import bare_model, without_adapters
from ..training.trainer import MVDTrainer

logger = logging.getLogger(__name__)

EMA_NAME = "ema.safetensors"
# folders in the output folder: the best model, the model with averaged weights, the adapters alone
BEST_FOLDER, EMA_FOLDER, ADAPTER_FOLDER = "best", "ema", "adapter"


def number_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean absolute error and Spearman's correlation of predictions (N, 1) of numbers (N,)."""
    return {"mae": float(np.abs(logits[:, 0] - labels).mean()), "spearman": spearman(logits[:, 0], labels)}


# metrics of all logits (N, K) and labels of an evaluation, by problem type
METRICS = {
    MULTI_LABEL: lambda logits, labels: {"mAP": mean_average_precision(logits, labels)},
    REGRESSION: number_metrics,
}
# names of metrics by the kind of labels; the best model is chosen by the first
CLASS_METRICS = ("top1", "top5", "balanced_accuracy", "macro_f1", "loss")
METRIC_NAMES = {MULTI_LABEL: ("mAP", "loss"), REGRESSION: ("loss", "mae", "spearman"), "heads": ("top1", "loss")}
ALL_METRICS = {*CLASS_METRICS, *itertools.chain(*METRIC_NAMES.values())}


@dataclass
class FinetuningArguments(MVDTrainingArguments):
    """Training arguments with the paper's defaults for fine-tuning (ViT-B on Kinetics-400).

    Args:
        ema_decay: decay per step of an exponential moving average (EMA) of the weights, which is evaluated as
            `eval_ema_*` and saved in the folder `ema`; `None` for no average.
        min_steps: optimizer steps that a run takes at least: with few videos it has more epochs than
            `num_train_epochs`.

    The best model by `metric_for_best_model` (`top1` by default; `ema_top1` for averaged weights) is saved in the
    folder `best` of the output folder. For labels of several classes the default is `mAP`, for numbers `loss`.
    """

    ema_decay: float | None = field(default=None)
    min_steps: int = field(default=0)

    base_learning_rate: float | None = field(default=5e-4)
    base_min_learning_rate: float = field(default=1e-6)
    num_train_epochs: float = field(default=75.0)
    warmup_epochs: float = field(default=5.0)
    adam_beta2: float = field(default=0.999)
    layer_decay: float | None = field(default=0.75)
    eval_strategy: str = field(default="epoch")
    metric_for_best_model: str | None = field(default="top1")
    # with 1, `Trainer` would keep the best checkpoint, not the last one
    save_total_limit: int | None = field(default=2)

    def __post_init__(self):
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith("mae"):
            self.greater_is_better = False  # as transformers has it for a loss alone
        super().__post_init__()

    def _check(self):
        super()._check()
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be between 0 and 1, such as 0.9999.")
        if self.min_steps > 0 and self.max_steps > 0:
            raise ValueError(f"min_steps={self.min_steps} and max_steps={self.max_steps} exclude each other.")
        if self.clips_per_video != 1:
            raise ValueError(f"clips_per_video={self.clips_per_video} is for pre-training: give repeats instead.")
        if self.masks_per_clip != 1:
            raise ValueError(f"masks_per_clip={self.masks_per_clip} is for pre-training: fine-tuning masks nothing.")


def copy_on_cpu(model: nn.Module) -> nn.Module:
    """A copy of a model whose weights are on the CPU, so that the model's device holds no second copy."""
    copies = {
        id(weight): nn.Parameter(weight.detach().to("cpu", copy=True), weight.requires_grad)
        for weight in model.parameters()
    }
    copies |= {id(buffer): buffer.detach().to("cpu", copy=True) for buffer in model.buffers()}
    return copy.deepcopy(model, copies)


class EMACallback(TrainerCallback):
    """An exponential moving average of the weights of a model, updated after each step, as `ModelEma` of timm.

    Args:
        model: its weights are the first average.
        decay: weight of the previous average in each update.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.average.update_parameters(model)

    @property
    def model(self) -> nn.Module:
        """A model with the averaged weights."""
        return self.average.module

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.average.update_parameters(extract_model_from_parallel(model))

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Give a model the averaged weights inside of a `with` block."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    def _swap(self, model: nn.Module):
        for trained, average in zip(model.parameters(), self.model.parameters(), strict=True):
            trained.data, average.data = average.data, trained.data

    def save(self, path: Path):
        """Write the averaged weights to a safetensors file."""
        weights = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        save_file(weights, path, metadata={"format": "pt"})

    def load(self, path: Path):
        """Continue from averaged weights that [`save`] wrote."""
        self.model.load_state_dict(load_file(path))


class FinetuningTrainer(MVDTrainer):
    """Fine-tunes a classifier with the paper's recipe.

    In addition to [`MVDTrainer`], it applies mixup on the device, can keep an EMA of the weights, and logs `top1` and
    `top5` (of more than five classes) of single views in evaluations, as exact means over the readable videos, and
    `balanced_accuracy` and `macro_f1`, in which rare classes count as much as frequent ones. By `config.problem_type`
    and `config.label_heads` of the model it logs instead `mAP` (several classes), `top1` (all heads right) and
    `<head>_top1`, or `mae` and `spearman` (numbers).

    Args:
        model: the classifier.
        args: the training arguments.
        mixup: mixes the clips of a training batch and their labels; `None` for none.
        class_weights: (classes,) weights of the loss in training, such as `balanced_class_weights` of
            `mvd_hf.evaluation.metrics`; by default all are 1.
        kwargs: see [`MVDTrainer`].

    Raises:
        ValueError: if `ema_decay` is given for weights that are sharded over processes, or class weights or
            `metric_for_best_model` are not defined for the labels of the model.
    """

    evaluates_first = False

    def __init__(
        self,
        model: MVDForVideoClassification,
        args: FinetuningArguments,
        mixup: Mixup | None = None,
        class_weights: Sequence[float] | None = None,
        **kwargs,
    ):
        super().__init__(model=model, args=args, **kwargs)
        self.class_weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if class_weights is not None and len(class_weights) != self.config.num_labels:
            raise ValueError(f"There are {len(class_weights)} class_weights: give one for each class of the model.")
        if class_weights is not None and self.config.problem_type in METRICS:
            raise ValueError(f"class_weights are not defined for problem_type={self.config.problem_type}.")
        self.confusion: torch.Tensor | None = None
        self.scores: list[tuple[np.ndarray, np.ndarray]] | None = None
        self.choose_metric()
        self.lengthen()
        self.mixup = mixup
        self.ema: EMACallback | None = None
        if args.ema_decay is not None:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise ValueError(
                    f"ema_decay={args.ema_decay} cannot average sharded weights: use DDP, or leave it out."
                )
            self.ema = EMACallback(self.model, args.ema_decay)
            self.add_callback(self.ema)

    @property
    def config(self) -> MVDConfig:
        """The configuration of the model."""
        return bare_model(self.model).config

    def choose_metric(self):
        """Choose the best model by a metric of these labels, in place of `top1`, the default.

        Raises:
            ValueError: if `metric_for_best_model` is a metric of other labels.
        """
        kind = "heads" if self.config.label_heads else self.config.problem_type
        chosen, known = self.args.metric_for_best_model, METRIC_NAMES.get(kind, CLASS_METRICS)
        if self.config.num_labels <= 5:  # every answer is among the top 5
            known = tuple(name for name in known if name != "top5")
        if chosen == "top1" and chosen not in known:
            logger.info("The best model is that of the best %s (metric_for_best_model).", known[0])
            self.args.metric_for_best_model, self.args.greater_is_better = known[0], known[0] != "loss"
        elif self.compute_metrics is None and f"_{chosen}".endswith(
            tuple(f"_{name}" for name in ALL_METRICS.difference(known))
        ):
            raise ValueError(
                f"metric_for_best_model={chosen!r} is not measured for these labels, but {', '.join(known)}."
            )

    def lengthen(self):
        """Add epochs until the run has `min_steps`."""
        args = self.args
        steps = self.steps_per_epoch() if args.min_steps and self.train_dataset is not None else 0
        if steps == 0 or args.num_train_epochs * steps >= args.min_steps:
            return
        epochs = -(-args.min_steps // steps)
        logger.info(
            "%d steps per epoch: %d epochs instead of %g make min_steps=%d.",
            steps,
            epochs,
            args.num_train_epochs,
            args.min_steps,
        )
        args.num_train_epochs = epochs

    def model_inputs(self, inputs: Mapping) -> dict:
        inputs = super().model_inputs(inputs)
        if self.mixup is not None and self.model.training:
            # torch's default generator is seeded at every step, so a resumed run mixes like an uninterrupted one
            inputs = self.mixup(inputs, torch.default_generator)
        if self.class_weights is not None and self.model.training:
            labels, weights = inputs["labels"], self.class_weights.to(inputs["labels"].device)
            # the cross entropy is linear in soft labels
            is_soft = labels.is_floating_point()
            targets = labels if is_soft else soft_targets(labels, len(weights), heads=self.config.label_heads)
            inputs["labels"] = weights * targets
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        labels = inputs["labels"]
        if self.scores is not None and not inputs.get(IS_BLANK, False):
            self.scores.append((outputs.logits.float().cpu().numpy(), labels.cpu().numpy()))
        if self.confusion is not None and labels.ndim == 1 and not inputs.get(IS_BLANK, False):
            classes = self.confusion.shape[0]
            pairs = labels.long() * classes + outputs.logits.detach().argmax(dim=-1)
            self.confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        """Evaluate as [`MVDTrainer`], with metrics of all videos together."""
        classes, metrics = self.config.num_labels, METRICS.get(self.config.problem_type)
        if metrics is not None:
            self.scores = []
        elif not self.config.label_heads:
            self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=self.args.device)
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        found = {}
        if self.scores is not None:
            scores, self.scores = gather_object(self.scores), None
            if scores:
                found = metrics(*map(np.concatenate, zip(*scores, strict=True)))
        if self.confusion is not None:
            confusion, self.confusion = self.accelerator.reduce(self.confusion, "sum").cpu().numpy(), None
            if confusion.any():
                balanced = float(np.nanmean(class_accuracies(confusion)))
                found = {"balanced_accuracy": balanced, "macro_f1": macro_f1(confusion)}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def loss_parts(self, outputs, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The loss and, for classes that are not mixed, top-1 and top-5 accuracy."""
        parts, labels = super().loss_parts(outputs, inputs), inputs["labels"]
        if labels.is_floating_point():
            return parts
        if self.config.label_heads:
            is_right = []
            for (head, place), truth in zip(head_slices(self.config.label_heads).items(), labels.T, strict=True):
                is_right.append(outputs.logits[:, place].detach().argmax(dim=-1) == truth)
                parts[f"{head}_top1"] = is_right[-1].float().mean()
            parts["top1"] = torch.stack(is_right).all(dim=0).float().mean()
        elif labels.ndim == 1:
            top5 = outputs.logits.detach().topk(min(5, outputs.logits.shape[-1])).indices
            hits = top5 == labels[:, None]
            parts["top1"] = hits[:, 0].float().mean()
            if outputs.logits.shape[-1] > 5:  # or every answer is right
                parts["top5"] = hits.any(dim=1).float().mean()
        return parts

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Metrics on the evaluation set, or on each of several; those of the averaged weights are `<prefix>_ema_*`."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.ema is not None and not isinstance(sets, dict):  # each of several sets comes here by itself
            with self.ema.swapped(self.accelerator.unwrap_model(self.model)):
                metrics |= super().evaluate(eval_dataset, ignore_keys, f"{metric_key_prefix}_ema")
        if metric_key_prefix == "eval" and self.is_best(metrics):
            self.save_best()
        return metrics

    def save_beside_model(self, folder: Path):
        super().save_beside_model(folder)
        if self.ema is not None:
            self.ema.save(folder / EMA_NAME)

    def resume(self, checkpoint: Path):
        super().resume(checkpoint)
        if self.ema is not None:
            if not (checkpoint / EMA_NAME).exists():
                raise ValueError(
                    f"{checkpoint} has no {EMA_NAME}, as its run had no ema_decay: leave ema_decay out, or choose "
                    "another output_dir."
                )
            self.ema.load(checkpoint / EMA_NAME)

    @property
    def has_adapters(self) -> bool:
        """Whether the model has adapters of `peft`."""
        return without_adapters(self.model) is not self.model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Save the last weights, and at the end of a run the averaged weights in the folder `ema`.

        At the end of a run, adapters of `peft` are merged into the model and also saved in the folder `adapter`.
        """
        folder = Path(output_dir or self.args.output_dir)
        is_checkpoint = _internal_call and output_dir is not None  # a push to the Hub has no output_dir
        if self.args.should_save and not is_checkpoint:
            if self.ema is not None:
                self.save_whole(self.ema.model, folder / EMA_FOLDER, is_average=True)
            if self.has_adapters:
                self.model.save_pretrained(folder / ADAPTER_FOLDER)
                self.save_whole(self.model, folder)
        if is_checkpoint or not self.has_adapters:
            super().save_model(output_dir, _internal_call)
        elif self.args.push_to_hub and not _internal_call:
            self.push_to_hub("Model save")

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation during training is the best so far, by the rule of `Trainer`."""
        name = self.args.metric_for_best_model
        if name is None or not self.is_in_train or self.state.global_step == 0:
            return False
        value = metrics.get(name if name.startswith("eval_") else f"eval_{name}")
        best = self.state.best_metric
        if value is None or best is None:
            return value is not None
        return value > best if self.args.greater_is_better else value < best

    def save_best(self):
        """Replace the folder `best` by the evaluated weights, atomically."""
        folder = Path(self.args.output_dir) / BEST_FOLDER
        unfinished = folder.with_suffix(".new")
        metric = f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"
        is_average = any(metric.startswith(f"{prefix}ema_") for prefix in metric_prefixes(self.eval_dataset))
        if not is_average and not self.has_adapters:
            super().save_model(str(unfinished), _internal_call=True)  # on all processes, which may hold shards
        elif self.args.should_save:
            self.save_whole(self.ema.model if is_average else self.model, unfinished, is_average)
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)

    def save_whole(self, model: nn.Module, folder: Path, is_average: bool = False):
        """Save a model with merged adapters, the video processor, and the record of the run."""
        model = copy_on_cpu(model)
        if without_adapters(model) is not model:
            model = model.merge_and_unload()
        model.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        self.run_record.save(folder, self.args, facts_of(self, is_average))
