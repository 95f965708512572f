"""MVDTrainer: the Hugging Face Trainer with the paper's rates, schedule and parameter groups, and exact resume."""

import errno
import json
import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import CommitInfo, HfApi
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from ..data.clips import BAD_VIDEOS, IS_BLANK, ClipDataset, SampleDataset, collate_clips
from ..data.streaming import StreamingClips
from ..hub.cards import CardDetails, checkpoint_files, write_card
from ..hub.licenses import check_license
from ..hub.run_record import RunRecord, facts_of
from ..model.modeling_mvd import MVDForFeatureDistillation, MVDForPixelReconstruction, MVDPreTrainedModel
from .arguments import MVDTrainingArguments
from .meters import BadVideos, LossParts
from .optimization import cosine_schedule, parameter_groups, without_adapters
from .preemption import Processes, StopRequest, is_disk_full, outlive_signals
from .samplers import EpochSampler, EvaluationSampler, check_samples, check_size

logger = logging.getLogger(__name__)

BAD_VIDEOS_NAME = "bad_videos.csv"


def last_complete_checkpoint(folder: str | os.PathLike) -> str | None:
    """The newest checkpoint of an output folder that was written to its end; one cut off by a crash is passed over.

    Raises:
        ValueError: if that checkpoint holds a model alone, from which training cannot continue.
    """
    steps = {
        path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"): path
        for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    }
    for step in sorted((step for step in steps if step.isdigit()), key=int, reverse=True):
        checkpoint = steps[step]
        try:
            json.loads((checkpoint / TRAINER_STATE_NAME).read_text())  # the file that is written last
        except (OSError, ValueError) as error:
            logger.warning("%s is incomplete and is passed over (%s).", checkpoint, error)
            continue
        if not (checkpoint / SCHEDULER_NAME).exists():
            raise ValueError(
                f"{checkpoint} holds the model alone (save_only_model): training cannot continue from it. Choose "
                "another output_dir, or move the checkpoint away."
            )
        return str(checkpoint)
    return None


class PaperRules(TrainerCallback):
    """Sets what depends on the epoch, step and process alone: the data's epoch, the random seed, the weight decay."""

    def __init__(self, trainer: "MVDTrainer"):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.begin_epoch(math.floor(state.epoch + 1e-6))

    def on_step_begin(self, args, state, control, **kwargs):
        # stochastic depth follows the step, so that a resumed run draws as an uninterrupted one
        entropy = np.random.SeedSequence((args.seed, args.process_index, state.global_step))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        if self.trainer.weight_decays is not None:
            step = min(state.global_step, len(self.trainer.weight_decays) - 1)
            for group in self.trainer.optimizer.param_groups:
                if group["weight_decay"] > 0:
                    group["weight_decay"] = float(self.trainer.weight_decays[step])

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size == 1:  # several processes agree where they log
            self.trainer.stop_if(self.trainer.stop_request.is_made)

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.parts["loss"].check(self.trainer.accelerator)
        self.trainer.report_bad_videos()


class MVDTrainer(Trainer):
    """Trains any MVD model by the paper's rules; stage 1 and fine-tuning use it as it is.

    Differences to `Trainer`: base-rate scaling, the official schedule and weight-decay groups, optional layer-wise
    rates, samples drawn by (seed, epoch, index) so that a resumed run continues exactly, parts of the loss in the
    log, and a stop with step and part when a loss is not finite.
    """

    # whether a run evaluates before the first step, so that it can say what it learned
    evaluates_first = True

    def __init__(self, model: MVDPreTrainedModel, args: MVDTrainingArguments, **kwargs):
        if not isinstance(args, MVDTrainingArguments):
            raise ValueError(f"MVDTrainer needs MVDTrainingArguments, got {type(args).__name__}.")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("MVDTrainer takes the model's own loss: override compute_loss for another one.")
        check_samples(kwargs.get("train_dataset"))
        self.epoch_sampler: EpochSampler | None = None
        self.weight_decays: np.ndarray | None = None
        self.parts = {"loss": LossParts(self.samples_of), "eval_loss": LossParts()}
        self.bad_videos = BadVideos()
        self.stop_request = StopRequest()
        self.is_stopped = False
        self.run_record = RunRecord()
        kwargs.setdefault("data_collator", collate_clips)
        super().__init__(model=model, args=args, **kwargs)
        bare_model = without_adapters(self.model)
        self.run_record.model = type(bare_model).__name__
        is_pretraining = isinstance(bare_model, MVDForPixelReconstruction | MVDForFeatureDistillation)
        self.num_masked = self.model.config.num_masked_patches if is_pretraining else None
        self.add_callback(PaperRules(self))

    def num_samples(self) -> int:
        """Videos of an epoch."""
        is_stream = isinstance(self.train_dataset, StreamingClips)
        return self.train_dataset.size if is_stream else len(self.train_dataset)

    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; leftover samples are dropped."""
        return self.num_samples() // self.args.total_batch_size

    def describe(self) -> str:
        """What the run arrived at: batch, learning rate, processes, precision, steps and sizes."""
        args = self.args
        length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        counts = {"clips": args.clips_per_video, "masks": args.masks_per_clip}
        clips = "".join(f"{count} {name} x " for name, count in counts.items() if count > 1)
        batch = args.total_batch_size * args.clips_per_video * args.masks_per_clip
        processes = self.accelerator.num_processes
        scaled = "" if args.base_learning_rate is None else f" (base {args.base_learning_rate:g} x batch / 256)"
        return (
            f"{type(self.model).__name__}: {trainable:,} trainable parameters. "
            f"Effective batch {batch} = {args.train_batch_size} videos x "
            f"{clips}{args.gradient_accumulation_steps} accumulation steps x {processes} processes. "
            f"Learning rate {args.learning_rate:g}{scaled}, floor {args.min_learning_rate:g}. "
            f"{self.num_samples()} samples, {self.steps_per_epoch()} steps per epoch, "
            f"{length}. Precision {precision} on {args.device}."
        )

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.epoch_sampler = EpochSampler(len(train_dataset), self.args.total_batch_size, seed)
        return self.epoch_sampler

    def samples_of(self, step: int, batch: int, process: int) -> list[str]:
        """Names of the samples of a process's micro-batch of an optimizer step, counted from 1; none of a stream.

        A sample of a data set that is none of ours has its index.
        """
        if self.epoch_sampler is None:
            return []
        epoch, step_of_epoch = divmod(step - 1, self.steps_per_epoch())
        size, accumulation = self.args.train_batch_size, self.args.gradient_accumulation_steps
        first = ((step_of_epoch * accumulation + batch) * self.args.world_size + process) * size
        indices = [index for _, index in self.epoch_sampler.order(epoch)[first : first + size]]
        data = self.train_dataset
        if not isinstance(data, SampleDataset):
            return [str(index) for index in indices]
        return [data.reader.name(data.rows[index]) for index in indices]

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
        check_size(self.num_samples(), self.args.total_batch_size)
        self.begin_epoch(0)
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=outlive_signals(None),
        )

    def begin_epoch(self, epoch: int):
        """Tell the data which epoch comes, and a stream how much of it was trained on before resuming."""
        if self.epoch_sampler is not None:
            self.epoch_sampler.set_epoch(epoch)
        if isinstance(self.train_dataset, StreamingClips):
            accumulation = self.args.gradient_accumulation_steps
            steps_done = 0 if self.args.ignore_data_skip else self.state.global_step - epoch * self.steps_per_epoch()
            self.train_dataset.begin_epoch(
                epoch,
                skipped_batches=steps_done * accumulation,
                num_batches=self.steps_per_epoch() * accumulation,
                batch_size=self.args.train_batch_size,
                process=self.args.process_index,
                num_processes=self.args.world_size,
            )

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(model, self.args.weight_decay, self.args.layer_decay)
            for group in groups:
                group["lr"] = self.args.learning_rate * group["lr_scale"]
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            args = self.args
            total = num_training_steps
            if args.schedule_epochs is not None:
                total = round(args.schedule_epochs * self.steps_per_epoch())
            warmup = args.get_warmup_steps(total) if args.warmup_steps else 0
            warmup = warmup or int(args.warmup_epochs * self.steps_per_epoch())
            rates = cosine_schedule(args.learning_rate, args.min_learning_rate, total, warmup) / args.learning_rate
            rates = rates.tolist()  # checkpoints hold the last rate and are read back without NumPy's types
            if args.weight_decay_end is not None:
                self.weight_decays = cosine_schedule(args.weight_decay, args.weight_decay_end, total, 0)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer if optimizer is None else optimizer, lambda step: rates[min(step, total - 1)]
            )
            self._created_lr_scheduler = True  # so that another training lays out its own
        return self.lr_scheduler

    def _prepare_inputs(self, inputs):
        inputs = dict(inputs)
        self.bad_videos.add("training" if self.model.training else "evaluation", inputs.pop(BAD_VIDEOS, []))
        if self.args.dataloader_pin_memory:  # a stream's batches are still in pinned memory: no waiting for the copy
            inputs = {
                name: value.to(self.args.device, non_blocking=True) if torch.is_tensor(value) else value
                for name, value in inputs.items()
            }
        return super()._prepare_inputs(inputs)

    def check_masks(self, per_clip: int, has_decoded_part: bool):
        """Raise ValueError if a training batch has other masks than the arguments and the configuration say.

        Args:
            per_clip: masks of each clip.
            has_decoded_part: whether the batch says which of the hidden patches are decoded.
        """
        config = self.model.config
        if per_clip != self.args.masks_per_clip:
            raise ValueError(
                f"masks_per_clip={self.args.masks_per_clip}, but the data set draws {per_clip} for each clip: give "
                "masks_per_clip to mvd_hf.data.arguments.pretraining_clips, too."
            )
        if has_decoded_part != (config.num_decoded_patches < config.num_masked_patches):
            says = "which hidden patches are decoded" if has_decoded_part else "not which hidden patches are decoded"
            raise ValueError(
                f"decoder_keep={config.decoder_keep}, but the data set says {says}: make it with "
                "mvd_hf.data.arguments.pretraining_clips and the model's configuration."
            )

    def masked_inputs(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | int]:
        """What a model in pre-training sees of a batch: each clip once for each of its m masks.

        Args:
            inputs: `pixel_values` (B, ...), `bool_masked_pos` (B, L) or (B, m, L), `bool_decoded_pos` alike.

        Returns:
            `pixel_values` (B * m, ...), the others as (B * m, L), and `num_masked`.

        Raises:
            ValueError: as [`check_masks`].
        """
        names = ("bool_masked_pos", "bool_decoded_pos")
        masks = {name: inputs[name] for name in names if inputs.get(name) is not None}
        per_clip = next((mask.shape[1] for mask in masks.values() if mask.dim() == 3), 1)
        if self.model.training:
            self.check_masks(per_clip, "bool_decoded_pos" in masks)
        pixel_values = inputs["pixel_values"]
        return {
            "pixel_values": pixel_values if per_clip == 1 else pixel_values.repeat_interleave(per_clip, dim=0),
            **{name: mask.flatten(0, -2) for name, mask in masks.items()},
            "num_masked": self.num_masked,
        }

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        is_blank = inputs.pop(IS_BLANK, False)
        if self.num_masked is not None:
            inputs |= self.masked_inputs(inputs)
        outputs = model(**inputs)
        if outputs.loss is None:
            raise ValueError(f"The model gives no loss for a batch of {', '.join(inputs)}: labels are missing.")
        loss = self.record(self.loss_parts(outputs, inputs), inputs["pixel_values"], is_blank)
        return (loss, outputs) if return_outputs else loss

    def loss_parts(self, outputs, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is logged of a batch, as means over its clips: the `loss`, and what else a kind of training adds."""
        return {"loss": outputs.loss}

    def record(self, parts: Mapping[str, torch.Tensor], clips: torch.Tensor, is_blank: bool = False) -> torch.Tensor:
        """Remember the loss of a micro-batch, its parts and other metrics for the log.

        Args:
            parts: means over the batch's clips by name: `loss`, which is trained on, its parts and other metrics.
            clips: the batch's clips.
            is_blank: whether none of them is a real one.

        Returns:
            The loss; times 0 for a blank batch, which takes part for the sake of other processes only.
        """
        num_clips = 0 if is_blank else len(clips)
        kind = "loss" if self.model.training else "eval_loss"
        self.parts[kind].add(parts, self.state.global_step + 1, num_clips)
        return parts["loss"] * 0 if is_blank else parts["loss"]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Outputs of an evaluation batch; where the loss alone is wanted it is only recorded, weighted by clips.

        Raises:
            ValueError: if outputs are wanted for a video that cannot be read.
        """
        if not prediction_loss_only and self.num_masked is None:
            if inputs.get(BAD_VIDEOS):
                (file, reason), *_ = inputs[BAD_VIDEOS]
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

        How many videos cannot is `<prefix>_missing`.
        """
        self.parts["eval_loss"] = LossParts()
        missing = -self.bad_videos.total("evaluation")
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        means = self.parts["eval_loss"].means(self.accelerator)
        if not means and self.parts["eval_loss"].blank_batches:
            raise ValueError(f"There is nothing for the {description.lower()}: no video could be read.")
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        missing = self.sum_over_processes(missing + self.bad_videos.total("evaluation"))
        if missing:
            output.metrics[f"{metric_key_prefix}_missing"] = missing
            if self.is_world_process_zero():
                logger.warning(
                    "The %s rests on %d of %d videos; the others cannot be read.",
                    description.lower(),
                    output.num_samples - missing,
                    output.num_samples,
                )
        return output

    def sum_over_processes(self, number: int) -> int:
        """Sum of a number of each process."""
        return int(self.accelerator.reduce(torch.tensor(number, device=self.args.device), "sum"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each part of the loss and of other metrics, and stop if one is not finite.

        `bad_videos` counts how often a training video could not be read since training began.
        """
        if "loss" in logs:
            means = self.parts["loss"].means(self.accelerator)
            logs.update({name: value for name, value in means.items() if name != "loss"})
            bad_videos = self.sum_over_processes(self.bad_videos.total("training"))
            if bad_videos:
                logs["bad_videos"] = bad_videos
            # where all processes meet anyway they agree whether to stop, after the same step
            self.stop_if(self.sum_over_processes(int(self.stop_request.is_made)) > 0)
        super().log(logs, start_time)

    def stop_if(self, is_asked: bool):
        """After this step save a checkpoint and end the training, if that is asked for."""
        if is_asked and self.is_in_train:
            self.is_stopped = self.control.should_training_stop = True
            self.control.should_save = self.args.save_strategy != SaveStrategy.NO

    def checkpoint_folder(self, trial=None) -> Path:
        """Where the checkpoint of this step goes."""
        return Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    @property
    def processes(self) -> Processes:
        """By how many processes, and in which portions, this run takes its steps."""
        return Processes(self.args.world_size, self.args.train_batch_size, self.args.gradient_accumulation_steps)

    def _save_checkpoint(self, model, trial):
        self.parts["loss"].check(self.accelerator)  # a model that met NaN is not worth keeping
        self.bad_videos.gather()
        folder = self.checkpoint_folder(trial)
        try:
            if self.args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                self.save_beside_model(folder)
            super()._save_checkpoint(model, trial)
        except Exception as error:
            if not is_disk_full(error):
                raise
            free = shutil.disk_usage(self.args.output_dir).free / 1e6
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            last = last_complete_checkpoint(self.args.output_dir)
            raise OSError(
                errno.ENOSPC,
                f"{folder.name} could not be written and was removed: the disk is full ({free:,.0f} MB were free), or "
                f"a quota is used up. {f'{last} is complete' if last else 'There is no earlier checkpoint'}. Free "
                "space, or keep fewer checkpoints (save_total_limit), and start the same command again",
            ) from error

    def save_beside_model(self, folder: Path):
        """Write what a checkpoint holds besides the Trainer's files, before its state, which marks it as complete."""
        self.processes.save(folder)
        if self.bad_videos.counts:
            self.bad_videos.save(folder / BAD_VIDEOS_NAME)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        super()._save(output_dir, state_dict)
        if self.args.should_save and self.train_dataset is not None:
            folder = self.args.output_dir if output_dir is None else output_dir
            self.run_record.save(folder, self.args, facts_of(self))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        change = self.processes.compare(Processes.load(Path(resume_from_checkpoint)))
        if change is not None and self.is_world_process_zero():
            logger.warning("%s", change)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.run_record.resume(resume_from_checkpoint)
        self.bad_videos = BadVideos()
        path = Path(resume_from_checkpoint) / BAD_VIDEOS_NAME
        if self.is_world_process_zero() and path.exists():
            self.bad_videos.load(path)

    def _load_optimizer_and_scheduler(self, checkpoint):
        """Restore optimizer and schedule; rates that this run's arguments set otherwise are this run's."""
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        rates = list(self.lr_scheduler.base_lrs)
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        before = max(self.lr_scheduler.base_lrs)
        if before != max(rates) and self.is_world_process_zero():
            logger.warning("Resuming with a peak learning rate of %g, before it was %g.", max(rates), before)
        step = self.lr_scheduler.last_epoch
        factors = [factor(step) for factor in self.lr_scheduler.lr_lambdas]
        self.lr_scheduler.base_lrs = rates
        self.lr_scheduler._last_lr = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
        for i, group in enumerate(self.optimizer.param_groups):
            group["initial_lr"], group["lr"] = rates[i], self.lr_scheduler._last_lr[i]
            group["weight_decay"] = decays[i]

    def create_model_card(
        self, license: str | None = None, model_name: str | None = None, tags: list[str] | None = None
    ):
        """Write the card of what was trained into the output folder.

        Args:
            license: of the weights; by default that of the arguments.
            model_name: heading of the card.
            tags: further tags.
        """
        if self.is_world_process_zero():
            details = CardDetails(license=license or self.args.license, title=model_name, tags=tags or [])
            write_card(self.args.output_dir, self.hub_model_id or model_name, details)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        license: str | None = None,
        **kwargs,
    ) -> CommitInfo | None:
        """Upload the last weights, processor, card and test results; of all else in the output folder, nothing.

        Args:
            commit_message, blocking, token, revision, private: see [`~transformers.Trainer.push_to_hub`].
            license: of the weights; by default that of the arguments.
            kwargs: arguments of [`create_model_card`].

        Raises:
            ValueError: if there is no license.
        """
        license = check_license(license or self.args.license)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if private is not None:
            self.args.hub_private_repo = private
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(license=license, **kwargs)
        self._finish_current_push()
        folder = Path(self.args.output_dir)
        return HfApi().upload_folder(
            repo_id=self.hub_model_id,
            folder_path=folder,
            commit_message=commit_message,
            token=token or self.args.hub_token,
            run_as_future=not blocking,
            allow_patterns=[path.relative_to(folder).as_posix() for path in checkpoint_files(folder)],
            revision=revision or self.args.hub_revision,
        )

    def train(self, *args, **kwargs):
        """Train as `Trainer` does, on all processes together even after an evaluation."""
        # an evaluation marks the model as prepared, which would leave it without DistributedDataParallel
        if not self.is_deepspeed_enabled and not self.is_fsdp_enabled:
            self.model._is_accelerate_prepared = False
        self.run_record.start()
        try:
            return super().train(*args, **kwargs)
        finally:
            self.run_record.stop()

    def report_bad_videos(self):
        """Say which videos could not be read, in the log and in `bad_videos.csv` of the output folder."""
        self.bad_videos.gather()
        if self.bad_videos.counts:
            path = Path(self.args.output_dir) / BAD_VIDEOS_NAME
            path.parent.mkdir(parents=True, exist_ok=True)
            self.bad_videos.save(path)
            logger.warning("%s\nAll of them are in %s.", self.bad_videos.describe(), path)

    def run(self, then: Callable[[], None] | None = None):
        """Train from the last checkpoint of the output folder, if there is one, and save the model there.

        Logs what the run arrived at and, with an evaluation set, the loss on it before and after. It is the last
        thing a recipe does: the processes wait for each other and leave their group. After a SIGTERM it saves a
        checkpoint (several processes at the next logging step) and ends the program with exit code 143.

        Args:
            then: what remains to be done with the trained model, on all processes.
        """
        is_main = self.is_world_process_zero()
        if is_main:
            logger.info(self.describe())
        checkpoint = last_complete_checkpoint(self.args.output_dir)
        if checkpoint is not None and is_main:
            logger.info("Resuming from %s", checkpoint)
        self.args.eval_on_start = self.evaluates_first and self.eval_dataset is not None and checkpoint is None
        with self.stop_request:
            self.train(resume_from_checkpoint=checkpoint)
            if not self.is_stopped:
                if self.is_fsdp_enabled:  # checkpoints may be divided, the model is whole
                    self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
                self.save_model()
        if self.sum_over_processes(int(self.stop_request.is_made)) > 0:
            if is_main:
                logger.warning("Stopped by SIGTERM after step %d. %s", self.state.global_step, self.how_to_go_on())
            self.leave()
            sys.exit(128 + signal.SIGTERM)
        if self.eval_dataset is not None:
            trained = self.last_evaluation() or self.evaluate()
            self.report_bad_videos()
            if is_main:
                self.run_record.save(self.args.output_dir, self.args, facts_of(self))
            if self.args.eval_on_start and is_main:
                self.describe_progress(trained)
        self.save_state()  # the log, which `recipes/visualize.py curves` draws
        if then is not None:
            then()
        if self.args.push_to_hub and not (self.eval_dataset is None and then is None):
            self.push_to_hub("Results of the evaluation")
        self.leave()

    def how_to_go_on(self) -> str:
        """What a stopped run says at its end."""
        if not self.is_stopped:
            return f"Training had ended, the model is in {self.args.output_dir}: the same command again does the rest."
        if self.args.save_strategy == SaveStrategy.NO:
            return "No checkpoint was saved, as save_strategy is no."
        return f"{self.checkpoint_folder()} is complete: start the same command again to go on."

    def leave(self):
        """Wait for the other processes and leave their group."""
        self.accelerator.wait_for_everyone()
        # without DistributedDataParallel's hold on the process group its threads end here, not within Python's own end
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def last_evaluation(self) -> dict[str, float] | None:
        """The figures of the evaluation after the last step, if there was one."""
        entries = [entry for entry in self.state.log_history if "eval_loss" in entry]
        return entries[-1] if entries and entries[-1]["step"] == self.state.global_step else None

    def describe_progress(self, trained: Mapping[str, float]):
        """Log how far each held-out loss fell since the evaluation before training."""
        for name in (name for name in trained if name.startswith("eval_") and name.endswith("_loss")):
            untrained = next(entry[name] for entry in self.state.log_history if name in entry)
            logger.info(
                "Held-out %s: %.4f untrained, %.4f trained (%.0f %% lower).",
                name.removeprefix("eval_"),
                untrained,
                trained[name],
                100 * (1 - trained[name] / untrained),
            )
