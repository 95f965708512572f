"""Stage 3, fine-tuning: the paper's recipe in a trainer, with mixing of clips, averaged weights and accuracies.

B clips in a batch, K classes.
"""

import copy
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from ..data.mixup import Mixup
from ..hub.run_record import facts_of
from ..model.modeling_mvd import MVDForVideoClassification
from ..training.arguments import MVDTrainingArguments
from ..training.optimization import without_adapters
from ..training.trainer import MVDTrainer

logger = logging.getLogger(__name__)

EMA = "ema.safetensors"
# folders, inside the output folder, of the best model, the averaged one, and the adapters alone
BEST_FOLDER, EMA_FOLDER, ADAPTER_FOLDER = "best", "ema", "adapter"


@dataclass
class FinetuningArguments(MVDTrainingArguments):
    """Training arguments with the paper's defaults for fine-tuning (ViT-B on Kinetics-400).

    Args:
        ema_decay: if given, an exponential moving average of the weights is kept with this decay per step, evaluated
            as `eval_ema_*` and saved in the folder `ema`.

    The best model by `metric_for_best_model` (`top1` by default, `ema_top1` for the averaged weights) is kept in the
    folder `best` of the output folder, beside the last one.
    """

    ema_decay: float | None = field(default=None)

    base_learning_rate: float | None = field(default=5e-4)
    base_min_learning_rate: float = field(default=1e-6)
    num_train_epochs: float = field(default=75.0)
    warmup_epochs: float = field(default=5.0)
    adam_beta2: float = field(default=0.999)
    layer_decay: float | None = field(default=0.75)
    eval_strategy: str = field(default="epoch")
    metric_for_best_model: str | None = field(default="top1")
    save_total_limit: int | None = field(default=2)  # 1 would end with the best alone, from which a run goes on

    def _check(self):
        super()._check()
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be between 0 and 1, such as 0.9999.")
        if self.clips_per_video != 1:
            raise ValueError(f"clips_per_video={self.clips_per_video} is for pre-training: give repeats instead.")
        if self.masks_per_clip != 1:
            raise ValueError(f"masks_per_clip={self.masks_per_clip} is for pre-training: fine-tuning masks nothing.")


class WeightAverage:
    """An exponential moving average of a model's weights (that of the official programs' `ModelEma`).

    Args:
        model: the model; its weights are the first average.
        decay: part of the average that stays in a step.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.update(model)

    def update(self, model: nn.Module):
        """Add the weights after a step."""
        self.averaged.update_parameters(model)

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    def _swap(self, model: nn.Module):
        for own, average in zip(model.parameters(), self.averaged.module.parameters(), strict=True):
            own.data, average.data = average.data, own.data

    def save(self, path: Path):
        """Write the average's weights, as those of a model are written."""
        weights = {name: value.contiguous() for name, value in self.averaged.module.state_dict().items()}
        save_file(weights, path, metadata={"format": "pt"})

    def load(self, path: Path):
        """Continue an average that [`save`] wrote."""
        self.averaged.module.load_state_dict(load_file(path))


class AfterSteps(TrainerCallback):
    """Adds the weights after each step to the average."""

    def __init__(self, trainer: "FinetuningTrainer"):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.average.update(self.trainer.accelerator.unwrap_model(self.trainer.model))


class FinetuningTrainer(MVDTrainer):
    """Trains a classifier by the paper's recipe.

    Beyond [`MVDTrainer`]: clips of a batch are mixed on the device, an average of the weights is kept on request, and
    evaluations log `top1` and `top5` of single views (one per video, where the data set gives one) as exact means over
    the videos that can be read.

    Args:
        model: the classifier.
        args: the arguments.
        mixup: mixes the clips of a training batch and makes soft labels; `None` takes the labels as they are.
        kwargs: as for [`MVDTrainer`].

    Raises:
        ValueError: if weights are to be averaged that are divided among processes.
    """

    evaluates_first = False

    def __init__(
        self, model: MVDForVideoClassification, args: FinetuningArguments, mixup: Mixup | None = None, **kwargs
    ):
        super().__init__(model=model, args=args, **kwargs)
        self.mixup = mixup
        self.average: WeightAverage | None = None
        if args.ema_decay is not None:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise ValueError("ema_decay cannot average weights that are divided among processes: use DDP.")
            self.average = WeightAverage(self.model, args.ema_decay)
            self.add_callback(AfterSteps(self))

    def model_inputs(self, inputs: Mapping) -> dict:
        inputs = super().model_inputs(inputs)
        if self.mixup is not None and self.model.training:
            # torch's own generator has a new seed at every step, so a resumed run mixes as an uninterrupted one
            inputs = self.mixup(inputs, torch.default_generator)
        return inputs

    def loss_parts(self, outputs, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The loss and, of labels that are not mixed, top-1 and top-5 accuracy."""
        parts, labels = super().loss_parts(outputs, inputs), inputs["labels"]
        if labels.ndim == 1:
            likeliest = outputs.logits.detach().topk(min(5, outputs.logits.shape[-1])).indices
            hits = likeliest == labels[:, None]
            parts |= {"top1": hits[:, 0].float().mean(), "top5": hits.any(dim=1).float().mean()}
        return parts

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Figures of the evaluation set; those of the averaged weights are `<prefix>_ema_*`."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.average is not None:
            with self.average.swapped(self.accelerator.unwrap_model(self.model)):
                metrics |= super().evaluate(eval_dataset, ignore_keys, f"{metric_key_prefix}_ema")
        if self.is_best(metrics):
            self.save_best()
        return metrics

    def save_beside_model(self, folder: Path):
        super().save_beside_model(folder)
        if self.average is not None:
            self.average.save(folder / EMA)

    def resume(self, checkpoint: Path):
        super().resume(checkpoint)
        if self.average is not None:
            if not (checkpoint / EMA).exists():
                raise ValueError(
                    f"{checkpoint} has no averaged weights ({EMA}): its run had no ema_decay. Leave ema_decay out, or "
                    "choose another output_dir."
                )
            self.average.load(checkpoint / EMA)

    @property
    def has_adapters(self) -> bool:
        """Whether the model has adapters of `peft`."""
        return without_adapters(self.model) is not self.model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Save the last weights, and at the end of a run the averaged ones in the folder `ema` beside them.

        Adapters of `peft` are merged into the model at the end of a run; they alone are in the folder `adapter`.
        """
        folder = Path(output_dir or self.args.output_dir)
        is_checkpoint = _internal_call and output_dir is not None  # what is pushed to the Hub is no checkpoint
        if self.args.should_save and not is_checkpoint:
            if self.average is not None:
                self.save_whole(self.average.averaged.module.state_dict(), folder / EMA_FOLDER, is_average=True)
            if self.has_adapters:
                self.model.save_pretrained(folder / ADAPTER_FOLDER)
                self.save_whole(self.model.state_dict(), folder)
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
        """Save the evaluated weights in the folder `best`, which is there as a whole or as it was."""
        folder = Path(self.args.output_dir) / BEST_FOLDER
        unfinished = folder.with_suffix(".new")
        is_average = self.args.metric_for_best_model.removeprefix("eval_").startswith("ema_")
        if not is_average and not self.has_adapters:
            super().save_model(str(unfinished), _internal_call=True)  # with all processes, which may hold parts
        elif self.args.should_save:
            source = self.average.averaged.module if is_average else self.model
            self.save_whole(source.state_dict(), unfinished, is_average)
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)

    def save_whole(self, weights: Mapping[str, torch.Tensor], folder: Path, is_average: bool = False):
        """Save a model with these weights, its adapters merged, the video processor, and the record of the run."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(weights)
        if without_adapters(model) is not model:
            model = model.merge_and_unload()
        model.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        self.run_record.save(folder, self.args, facts_of(self, is_average))
