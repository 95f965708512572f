"""MVDTrainer: the Hugging Face Trainer with the paper's rates, schedule and parameter groups, and exact resume."""

import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_utils import IntervalStrategy

from ..data.clips import BAD_VIDEOS, IS_BLANK, ClipDataset, collate_clips
from ..data.mixtures import MixtureDataset
from ..data.streaming import StreamingClips
from ..hub.run_record import metric_prefixes
from ..model.modeling_mvd import MVDForFeatureDistillation, MVDForPixelReconstruction, MVDPreTrainedModel
from .arguments import MVDTrainingArguments
from .callbacks import CheckCallback, MixtureCallback, ScheduleCallback
from .masked_batches import masked_inputs
from .meters import MAX_BLANK_BATCHES, LossMeter
from .optimization import bare_model, parameter_groups, parameter_rules, training_schedule
from .preemption import outlive_signals
from .run import run_training
from .samplers import (
    EpochSampler,
    EvaluationSampler,
    check_frame_distance,
    check_samples,
    sample_names,
    start_stream,
    stream_loader,
)
from .saving import SavingTrainer

logger = logging.getLogger(__name__)


def check_best_metric(args: MVDTrainingArguments, eval_dataset):
    """Raise ValueError if the metric of the best model is of none of several evaluation sets."""
    metric = args.metric_for_best_model
    if not isinstance(eval_dataset, dict) or metric is None or args.eval_strategy == IntervalStrategy.NO:
        return
    name, sets = metric.removeprefix("eval_"), list(eval_dataset)
    if not any(f"eval_{name}".startswith(prefix) for prefix in metric_prefixes(eval_dataset)):
        raise ValueError(
            f"metric_for_best_model={metric!r} does not say on which of the evaluation sets {', '.join(sets)}: give "
            f"{' or '.join(f'{each}_{name}' for each in sets)}."
        )


class MVDTrainer(SavingTrainer):
    """Trains any MVD model by the paper's rules. Stage 1 uses it as it is; distillation and fine-tuning build on it.

    Differences to `Trainer`: base-rate scaling, the official schedule and weight-decay groups, optional layer-wise
    rates, samples drawn by (seed, epoch, index) so that a resumed run continues exactly, parts of the loss in the
    log, and a stop with step and part when a loss is not finite.

    Args:
        model: an MVD model, also with adapters of `peft`.
        args: the arguments.
        kwargs: as for `Trainer`; `eval_dataset` may be several data sets by name. Training sets are made by
            `mvd_hf.load_clips` or `mvd_hf.data.pretraining_clips`, or give a sample for `dataset[(epoch, index)]`.
    """

    # whether a run evaluates before the first step, so that it can report what it learned
    evaluates_first = True

    def __init__(self, model: MVDPreTrainedModel, args: MVDTrainingArguments, **kwargs):
        if not isinstance(args, MVDTrainingArguments):
            raise ValueError(f"MVDTrainer needs MVDTrainingArguments, got {type(args).__name__}.")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("MVDTrainer takes the model's own loss: override compute_loss for another one.")
        check_samples(kwargs.get("train_dataset"))
        check_frame_distance(kwargs.get("train_dataset"), kwargs.get("processing_class"))
        check_best_metric(args, kwargs.get("eval_dataset"))
        self.epoch_sampler: EpochSampler | None = None
        self.weight_decays: np.ndarray | None = None
        self.losses = {"loss": LossMeter(self.samples_of, MAX_BLANK_BATCHES), "eval_loss": LossMeter()}
        kwargs.setdefault("data_collator", collate_clips)
        super().__init__(model=model, args=args, **kwargs)
        stages = MVDForPixelReconstruction | MVDForFeatureDistillation
        self.is_pretraining = isinstance(bare_model(self.model), stages)
        self.parameter_rules = parameter_rules(self.model)
        for callback in (ScheduleCallback(self), CheckCallback(self)):
            self.add_callback(callback)
        if isinstance(self.train_dataset, MixtureDataset):
            self.add_callback(MixtureCallback(self.train_dataset))

    # ---- Data ----

    def num_samples(self) -> int:
        """Videos of an epoch."""
        is_stream = isinstance(self.train_dataset, StreamingClips)
        return self.train_dataset.size if is_stream else len(self.train_dataset)

    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; leftover samples are dropped."""
        return self.num_samples() // self.args.total_batch_size

    def samples_of(self, step: int, batch: int, process: int) -> list[str]:
        """Names of the samples in a micro-batch of a process, see [`~mvd_hf.training.samplers.sample_names`]."""
        if self.epoch_sampler is None:
            return []
        return sample_names(self.train_dataset, self.epoch_sampler, self.args, step, batch, process)

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.epoch_sampler = EpochSampler(len(train_dataset), self.args.total_batch_size, seed)
        return self.epoch_sampler

    def _get_eval_sampler(self, eval_dataset) -> Sampler | None:
        if self.compute_metrics is not None or not isinstance(eval_dataset, ClipDataset):
            return super()._get_eval_sampler(eval_dataset)
        return EvaluationSampler(len(eval_dataset), self.args.eval_batch_size * self.args.world_size)

    def _get_dataloader(self, *args, **kwargs) -> DataLoader:
        loader = super()._get_dataloader(*args, **kwargs)
        workers = getattr(loader, "base_dataloader", loader)  # accelerate's wrapper starts none itself
        workers.worker_init_fn = outlive_signals(workers.worker_init_fn)
        return loader

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """Loader for predictions: every clip once and in order, without the blank ones of an evaluation."""
        return self._get_dataloader(
            test_dataset, "test", self.args.eval_batch_size, sampler_fn=super()._get_eval_sampler
        )

    def get_train_dataloader(self) -> DataLoader:
        """Loader of training batches; a stream divides itself among the processes."""
        if not isinstance(self.train_dataset, StreamingClips):
            return super().get_train_dataloader()
        self.begin_epoch(0)
        return stream_loader(self.train_dataset, self.args, self.data_collator)

    def begin_epoch(self, epoch: int):
        """Give the data the epoch that comes, and a stream how much of it was trained on before resuming."""
        if self.epoch_sampler is not None:
            self.epoch_sampler.set_epoch(epoch)
        if isinstance(self.train_dataset, StreamingClips):
            steps_done = 0 if self.args.ignore_data_skip else self.state.global_step - epoch * self.steps_per_epoch()
            start_stream(self.train_dataset, self.args, epoch, steps_done)

    # ---- Optimizer and schedule ----

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(model, self.args.weight_decay, self.args.layer_decay, self.parameter_rules)
            for group in groups:
                group["lr"] = self.args.learning_rate * group["lr_scale"]
            self.optimizer = optimizer_class(groups, **options)
            self.initial_rates = [(group["lr"], group["weight_decay"]) for group in groups]
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            factors, self.weight_decays = training_schedule(self.args, num_training_steps, self.steps_per_epoch())
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer if optimizer is None else optimizer, lambda step: factors[min(step, len(factors) - 1)]
            )
            self._created_lr_scheduler = True  # so that another training lays out its own
        return self.lr_scheduler

    # ---- Steps and evaluation ----

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        self.bad_videos.add("training", inputs.pop(BAD_VIDEOS, []))
        if self.args.dataloader_pin_memory:  # a stream's batches are still in pinned memory: no waiting for the copy
            inputs = {
                name: value.to(self.args.device, non_blocking=True) if torch.is_tensor(value) else value
                for name, value in inputs.items()
            }
        return super().training_step(model, inputs, num_items_in_batch)

    def model_inputs(self, inputs: Mapping) -> dict:
        """What the model takes of a batch."""
        inputs = {name: value for name, value in inputs.items() if name not in (BAD_VIDEOS, IS_BLANK)}
        if not self.is_pretraining:
            return inputs
        masks_per_clip = self.args.masks_per_clip if self.model.training else None
        return inputs | masked_inputs(inputs, self.model.config, masks_per_clip)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        seen = self.model_inputs(inputs)
        outputs = model(**seen)
        if outputs.loss is None:
            raise ValueError(f"The model gives no loss for a batch of {', '.join(seen)}: labels are missing.")
        loss = self.record(self.loss_parts(outputs, seen), inputs)
        return (loss, outputs) if return_outputs else loss

    def loss_parts(self, outputs, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is logged of a batch, as means over its clips: the `loss`, and what else a kind of training adds."""
        return {"loss": outputs.loss}

    def record(self, parts: Mapping[str, torch.Tensor], inputs: Mapping) -> torch.Tensor:
        """Add the loss of a micro-batch, its parts and other metrics to the meter.

        Args:
            parts: means over the batch's clips by name: `loss`, which is trained on, its parts and other metrics.
            inputs: the batch.

        Returns:
            The loss; times 0 for a blank batch, which takes part for the sake of other processes only.
        """
        is_blank = inputs.get(IS_BLANK, False)
        meter = self.losses["loss" if self.model.training else "eval_loss"]
        meter.add(parts, self.state.global_step + 1, 0 if is_blank else len(inputs["pixel_values"]))
        return parts["loss"] * 0 if is_blank else parts["loss"]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Outputs of an evaluation batch; where the loss alone is wanted it is only recorded, weighted by clips.

        Raises:
            ValueError: if outputs are wanted for a video that cannot be read.
        """
        bad_videos = inputs.pop(BAD_VIDEOS, [])
        self.bad_videos.add("evaluation", bad_videos)
        if not prediction_loss_only and not self.is_pretraining:
            for file, reason in bad_videos:
                raise ValueError(
                    f"There is no prediction for {file}, which cannot be read ({reason}): leave it out, or use "
                    "mvd_hf.evaluate_views, which reports such videos."
                )
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():
            self.compute_loss(model, self._prepare_inputs(inputs))
        return None, None, None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Evaluate, with the loss, its parts and other metrics as exact means over the clips that can be read.

        `<prefix>_missing` is how many videos cannot be read.
        """
        meter = self.losses["eval_loss"] = LossMeter()
        missing = -self.bad_videos.total("evaluation")
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        meter.check(self.accelerator)
        means = meter.means(self.accelerator)
        if not means and meter.blank_batches:
            raise ValueError(f"There is nothing for the {description.lower()}: no video could be read.")
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        missing = self.sum_over_processes(missing + self.bad_videos.total("evaluation"))
        if missing:
            output.metrics[f"{metric_key_prefix}_missing"] = missing
            if self.is_world_process_zero():
                readable = output.num_samples - missing
                logger.warning("The %s is on %d of %d videos.", description.lower(), readable, output.num_samples)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each part of the loss and of other metrics.

        `bad_videos` counts how often a training video could not be read since training began.
        """
        if "loss" in logs:
            means = self.losses["loss"].means(self.accelerator)
            logs.update({name: value for name, value in means.items() if name != "loss"})
            bad_videos = self.sum_over_processes(self.bad_videos.total("training"))
            if bad_videos:
                logs["bad_videos"] = bad_videos
        super().log(logs, start_time)

    def run(self, then: Callable[[], None] | None = None):
        """Train from the last checkpoint of the output folder, if there is one, and save the model there.

        See [`~mvd_hf.training.run.run_training`].
        """
        run_training(self, then)
