"""What a recipe does around training: resume, stop on a signal, save, evaluate, push, and report in the log."""

import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy

from ..data.clips import ClipDataset
from ..data.streaming import StreamingClips
from ..hub.run_record import facts_of, last_metrics, metric_prefixes, precision_of
from .checkpoints import last_complete_checkpoint, refuse_overwriting, remove_checkpoints

logger = logging.getLogger(__name__)

# what to do with the model of a run, by its class; {folder} is where the model lies
NEXT_STEPS = {
    "MVDForPixelReconstruction": "Let it teach: mvd-hf distill RECIPE --teachers.NAME {folder}",
    "MVDForFeatureDistillation": "Next: mvd-hf finetune --dataset VIDEOS --model {folder}",
    "MVDForVideoClassification": "Next: mvd-hf demo {folder}",
    "MVDForActionDetection": "Next: mvd-hf visualize detect --model {folder} --video FILE --boxes FILE",
}
# width up to which a network trains faster on one thread of a CPU than on several
SMALL_WIDTH = 128


def run_training(trainer, then: Callable[[], None] | None = None):
    """Train from the last checkpoint of the output folder, if there is one, and save the model there.

    Logs what the run arrived at and, with an evaluation set, the loss on it before and after. It is the last thing
    that a recipe does: the processes wait for each other and leave their group. After SIGTERM or Ctrl-C it saves a
    checkpoint and ends the program with exit code 143 or 130.

    Args:
        trainer: an [`MVDTrainer`].
        then: what remains to be done with the trained model, on all processes.
    """
    args, is_main = trainer.args, trainer.is_world_process_zero()
    choose_threads(trainer)
    if is_main:
        logger.info(describe_run(trainer))
    checkpoint = checkpoint_to_resume(trainer)
    if checkpoint is not None and is_main:
        logger.info("Resuming from %s", checkpoint)
        warn_about_surplus(trainer, checkpoint)
    evaluates_first = trainer.evaluates_first or args.eval_on_start
    args.eval_on_start = evaluates_first and trainer.eval_dataset is not None and checkpoint is None
    with trainer.stop_request as stop:
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except torch.OutOfMemoryError as error:
            raise ValueError(describe_shortage(args)) from error
        if not trainer.is_stopped:
            if trainer.is_fsdp_enabled:  # checkpoints may be sharded, the model is whole
                trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
            trainer.save_model()
    stop_if_asked(trainer, stop.signal)
    if trainer.eval_dataset is not None:
        trained = last_evaluation(trainer) or trainer.evaluate()
        trainer.report_bad_videos()
        if is_main:
            trainer.run_record.save(args.output_dir, args, facts_of(trainer))
        if args.eval_on_start and is_main:
            describe_progress(trainer, trained)
    trainer.save_state()
    if then is not None:
        then()
    if args.push_to_hub and not (trainer.eval_dataset is None and then is None):
        trainer.push_to_hub("Results of the evaluation")
    if is_main:
        logger.info(describe_end(trainer))
    leave(trainer)


def warn_about_surplus(trainer, checkpoint: str):
    """Warn if a checkpoint has more steps than the run asks for."""
    args, state = trainer.args, TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
    wanted = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * trainer.steps_per_epoch())
    if state.global_step > wanted:
        key = "max_steps" if args.max_steps > 0 else "num_train_epochs"
        logger.warning(
            "%s has %d steps (%g epochs), %s=%g asks for %d: nothing is trained, and the model keeps all its steps. "
            "For a shorter training choose another output_dir.",
            checkpoint,
            state.global_step,
            state.epoch,
            key,
            getattr(args, key),
            wanted,
        )


def choose_threads(trainer):
    """Compute a small network on one thread of a CPU, unless OMP_NUM_THREADS says how many.

    Threads that wait for each other take longer than its matrix products, most of all beside other programs.
    """
    config = trainer.model.config
    is_small = config.hidden_size <= SMALL_WIDTH and trainer.args.device.type == "cpu"
    if is_small and "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        logger.info("Computing on one thread, as the network is small. OMP_NUM_THREADS sets another number.")


def checkpoint_to_resume(trainer) -> str | None:
    """The last checkpoint of this run, if there is one.

    Raises:
        ValueError: if the output folder holds another run's checkpoints or model, unless they may be overwritten.
    """
    args = trainer.args
    checkpoint = last_complete_checkpoint(args.output_dir)
    if checkpoint is None:
        if not args.overwrite:
            refuse_overwriting(args.output_dir)
        return None
    try:
        trainer.check_identity(Path(checkpoint))
    except ValueError:
        if not args.overwrite:
            raise
        trainer.accelerator.wait_for_everyone()  # every process has looked
        if args.should_save:
            remove_checkpoints(args.output_dir)
        trainer.accelerator.wait_for_everyone()
        return None
    return checkpoint


def stop_if_asked(trainer, number: signal.Signals | None):
    """End the program if any process was signalled."""
    number = int(trainer.accelerator.gather(torch.tensor([number or 0], device=trainer.args.device)).max())
    if not number:
        return
    if trainer.is_world_process_zero():
        name = signal.Signals(number).name
        logger.warning("Stopped by %s after step %d. %s", name, trainer.state.global_step, how_to_go_on(trainer))
    leave(trainer)
    sys.exit(128 + number)


def how_to_go_on(trainer) -> str:
    """What a stopped run reports at its end."""
    if not trainer.is_stopped:
        return f"Training had ended, the model is in {trainer.args.output_dir}: the same command does the rest."
    if trainer.args.save_strategy == SaveStrategy.NO:
        return "No checkpoint was saved, as save_strategy is no."
    return f"{trainer.checkpoint_folder()} is complete: start the same command again to go on."


def leave(trainer):
    """Wait for the other processes and leave their group."""
    trainer.accelerator.wait_for_everyone()
    # Without DistributedDataParallel's hold on the process group its threads end here, not within Python's own end.
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()


def describe_run(trainer) -> str:
    """What the run arrived at: batch, learning rate, processes, precision, steps and sizes."""
    args = trainer.args
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    counts = {"clips": args.clips_per_video, "masks": args.masks_per_clip}
    is_ours = isinstance(trainer.train_dataset, ClipDataset | StreamingClips)
    repeats = trainer.train_dataset.reader.clip_sampler.repeats if is_ours else 1
    clips = "".join(f"{count} {name} x " for name, count in counts.items() if count > 1)
    scaled = "" if args.base_learning_rate is None else f" (base {args.base_learning_rate:g} x batch / 256)"
    return (
        f"{type(trainer.model).__name__}: {trainable:,} trainable parameters. "
        f"Effective batch {args.effective_batch_size} = {args.train_batch_size} videos x "
        f"{clips}{args.gradient_accumulation_steps} accumulation steps x {args.world_size} processes. "
        f"Learning rate {args.learning_rate:g}{scaled}, floor {args.min_learning_rate:g}. "
        f"{trainer.num_samples()} samples, {trainer.steps_per_epoch()} steps per epoch, "
        f"{length}. Precision {precision_of(args)} on {args.device}."
        + (f" Each video gives {repeats} clips of the same frames." if repeats > 1 else "")
    )


def describe_shortage(args) -> str:
    """The keys that lower the memory of a run."""
    batch, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    return (
        f"The memory of {args.device} is too small. Halve the batch and double the accumulation "
        f"(--per_device_train_batch_size {max(batch // 2, 1)} --gradient_accumulation_steps {2 * steps}), add "
        "--gradient_checkpointing true, or, with teachers, --teachers.NAME.dtype bfloat16."
    )


def describe_end(trainer) -> str:
    """Time and speed of the training, where the model lies, and what can be done with it."""
    entries = [entry for entry in trainer.state.log_history if "train_runtime" in entry]
    speed = entries[-1]["train_samples_per_second"]
    folder, network = trainer.args.output_dir, type(trainer.model).__name__
    whole = timedelta(seconds=round(trainer.run_record.seconds))  # with the time before it was resumed
    trained = f"Trained in {whole} ({speed:.3g} samples per second)"
    return f"{trained}. The model is in {folder}. {NEXT_STEPS.get(network, '').format(folder=folder)}".rstrip()


def last_evaluation(trainer) -> dict[str, float] | None:
    """The figures of the evaluation after the last step, if there was one."""
    metrics = last_metrics(trainer.state.log_history, metric_prefixes(trainer.eval_dataset))
    return metrics if metrics.get("step") == trainer.state.global_step else None


def describe_progress(trainer, trained: Mapping[str, float]):
    """Log how far each held-out loss fell since the evaluation before training."""
    for name in (name for name in trained if name.startswith("eval_") and name.endswith("_loss")):
        untrained = next(entry[name] for entry in trainer.state.log_history if name in entry)
        logger.info(
            "Held-out %s: %.4f untrained, %.4f trained (%.0f %% lower).",
            name.removeprefix("eval_"),
            untrained,
            trained[name],
            100 * (1 - trained[name] / untrained),
        )
