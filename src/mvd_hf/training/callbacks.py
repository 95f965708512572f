"""What a run does at each step and epoch beside the Trainer's own work: schedules, checks, stopping."""

import logging
import math

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from ..data.mixtures import MixtureDataset

logger = logging.getLogger(__name__)

# steps between two checks of the losses, each of which waits for the device; also at every step that is logged
CHECK_STEPS = 10


class ScheduleCallback(TrainerCallback):
    """Sets what depends on the epoch and the step alone: the data's epoch, random seeds, weight decay and rates."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step > 0 and not self.trainer.is_deepspeed_enabled:
            restore_rates(self.trainer)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.begin_epoch(math.floor(state.epoch + 1e-6))

    def on_step_begin(self, args, state, control, **kwargs):
        # Every step has a seed of its own, so that a resumed run draws stochastic depth as an uninterrupted one.
        entropy = np.random.SeedSequence((args.seed, args.process_index, state.global_step))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        weight_decays = self.trainer.weight_decays
        if weight_decays is not None:
            decay = float(weight_decays[min(state.global_step, len(weight_decays) - 1)])
            for group in self.trainer.optimizer.param_groups:
                if group["weight_decay"] > 0:
                    group["weight_decay"] = decay


def restore_rates(trainer):
    """Set the rates and weight decays of this run's arguments after a checkpoint has brought back its own."""
    scheduler = trainer.lr_scheduler
    peaks, decays = zip(*trainer.initial_rates, strict=True)
    before = max(scheduler.base_lrs)
    if before != max(peaks) and trainer.is_world_process_zero():
        logger.warning("Resuming with a peak learning rate of %g, before it was %g.", max(peaks), before)
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    rates = [peak * factor for peak, factor in zip(peaks, factors, strict=True)]
    scheduler.base_lrs, scheduler._last_lr = list(peaks), rates
    for group, peak, rate, decay in zip(trainer.optimizer.param_groups, peaks, rates, decays, strict=True):
        group["initial_lr"], group["lr"], group["weight_decay"] = peak, rate, decay


class MixtureCallback(TrainerCallback):
    """Logs how often the videos of each data set of a mixture were seen."""

    def __init__(self, mixture: MixtureDataset):
        self.mixture = mixture

    def on_epoch_end(self, args, state, control, **kwargs):
        for line in self.mixture.describe(state.epoch) if state.is_world_process_zero else ():
            logger.info("Seen: %s", line)


class CheckCallback(TrainerCallback):
    """Stops a run whose loss is not finite, or that a signal asks to stop, whatever is logged and when."""

    def __init__(self, trainer):
        self.trainer = trainer

    def check(self):
        self.trainer.losses["loss"].check(self.trainer.accelerator)

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.stop_request.agree():
            self.trainer.is_stopped = control.should_training_stop = True
            control.should_save = args.save_strategy != SaveStrategy.NO
        # a model that met NaN is not worth keeping
        is_reported = control.should_log or control.should_evaluate or control.should_save
        if is_reported or state.global_step % CHECK_STEPS == 0:
            self.check()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.check()

    def on_train_end(self, args, state, control, **kwargs):
        self.check()
        self.trainer.report_bad_videos()
