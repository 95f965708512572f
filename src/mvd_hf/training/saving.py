"""SavingTrainer: checkpoints that are complete or absent, the record of the run beside every model, and its card."""

import logging
from pathlib import Path

import torch
from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..hub.cards import CardDetails, checkpoint_files, write_card
from ..hub.licenses import check_license
from ..hub.run_record import RunRecord, facts_of, precision_of, read_run_record
from .checkpoints import StepLayout, last_complete_checkpoint, removed_if_disk_is_full
from .identity import changes, config_identity, in_words
from .meters import BadVideoMeter
from .optimization import bare_model
from .preemption import StopRequest

logger = logging.getLogger(__name__)

BAD_VIDEOS_NAME = "bad_videos.csv"
# Private members of `Trainer` that our trainers override, each because there is no public way.
PRIVATE_MEMBERS = {
    "_get_train_sampler": "samples are (epoch, index) pairs in an order that every process and a resumed run knows",
    "_get_eval_sampler": "every process gets whole batches, so that all of them meet in the collectives",
    "_get_dataloader": "data workers outlive the signal that asks the run to stop",
    "_save_checkpoint": "our files are written before the state that marks a checkpoint as complete",
}


class SavingTrainer(Trainer):
    """What [`MVDTrainer`] saves, resumes from and publishes.

    Attributes:
        run_record: written as `training_run.json` beside all saved weights; the card is made from it.
        bad_videos: videos that could not be read.
        is_stopped: whether a signal has ended the training before its last step.
    """

    def __init__(self, *args, **kwargs):
        self.run_record = RunRecord()
        self.bad_videos = BadVideoMeter()
        self.stop_request = StopRequest()
        self.is_stopped = False
        super().__init__(*args, **kwargs)
        self.run_record.model = type(bare_model(self.model)).__name__

    @property
    def step_layout(self) -> StepLayout:
        """How this run divides its steps."""
        return StepLayout(self.args.world_size, self.args.train_batch_size, self.args.gradient_accumulation_steps)

    def checkpoint_folder(self, trial=None) -> Path:
        """Where the checkpoint of this step goes."""
        return Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def sum_over_processes(self, number: int) -> int:
        """Sum of a number of each process."""
        return int(self.accelerator.reduce(torch.tensor(number, device=self.args.device), "sum"))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train as `Trainer` does; `True` resumes from the last complete checkpoint of the output folder.

        Raises:
            ValueError: if there is no complete checkpoint to resume from.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no complete checkpoint in {self.args.output_dir!r} to resume from.")
        # An evaluation marks the model as prepared, which would leave it without DistributedDataParallel.
        if not self.is_deepspeed_enabled and not self.is_fsdp_enabled:
            self.model._is_accelerate_prepared = False
        self.run_record.segments = [{"from_step": 0, **self.conditions()}]
        if resume_from_checkpoint:
            self.resume(Path(resume_from_checkpoint))
        self.run_record.start()
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.run_record.stop()

    def identity(self) -> dict:
        """What this run trains and on what, see `mvd_hf.training.identity`."""
        return {
            "model": self.run_record.model,
            "config": config_identity(bare_model(self.model).config),
            "clips_per_video": self.args.clips_per_video,
            "masks_per_clip": self.args.masks_per_clip,
            "data": self.run_record.data,
            "start": self.run_record.start_identity(),
        }

    def conditions(self) -> dict:
        """What may change where a run is continued; changes are logged and recorded as segments of the run."""
        args = self.args
        return {
            "num_train_epochs": args.num_train_epochs,
            "max_steps": args.max_steps,
            "effective_batch": args.effective_batch_size,
            "learning_rate": args.learning_rate,
            "min_learning_rate": args.min_learning_rate,
            "warmup_epochs": args.warmup_epochs,
            "weight_decay": args.weight_decay,
            "layer_decay": args.layer_decay,
            "max_grad_norm": args.max_grad_norm,
            "precision": precision_of(args),
            "seed": args.seed,
            "processes": args.world_size,
        }

    def check_identity(self, checkpoint: Path):
        """Raise ValueError if a checkpoint is one of another run."""
        record = read_run_record(checkpoint) or {}
        found = changes(record.get("identity", {}), self.identity())
        if found:
            raise ValueError(
                f"{checkpoint} is of a run with other settings: {in_words(found)}. Give the former values, or another "
                "output_dir; overwrite: true removes the checkpoints and begins anew."
            )

    def resume(self, checkpoint: Path):
        """Read what [`save_beside_model`] wrote."""
        self.check_identity(checkpoint)
        found = changes(self.run_record.resume(checkpoint, self.conditions()), self.conditions())
        if found and self.is_world_process_zero():
            logger.warning("Resuming with %s.", in_words(found))
        change = self.step_layout.compare(StepLayout.load(checkpoint))
        if change is not None and self.is_world_process_zero():
            logger.warning("%s", change)
        self.bad_videos = BadVideoMeter()
        path = checkpoint / BAD_VIDEOS_NAME
        if self.is_world_process_zero() and path.exists():
            self.bad_videos.load(path)

    def save_beside_model(self, folder: Path):
        """Write what a checkpoint holds besides the Trainer's files."""
        self.step_layout.save(folder)
        if self.bad_videos.counts:
            self.bad_videos.save(folder / BAD_VIDEOS_NAME)

    def _save_checkpoint(self, model, trial):
        self.bad_videos.gather()
        folder = self.checkpoint_folder(trial)
        with removed_if_disk_is_full(folder, self.args.should_save):
            if self.args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                self.save_beside_model(folder)
            super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Save the model as `Trainer` does, and the record of the run beside it."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save and self.train_dataset is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.run_record.save(folder, self.args, facts_of(self))
        super().save_model(output_dir, _internal_call)

    def report_bad_videos(self):
        """Report which videos could not be read, in the log and in `bad_videos.csv` of the output folder."""
        self.bad_videos.gather()
        if self.bad_videos.counts:
            path = Path(self.args.output_dir) / BAD_VIDEOS_NAME
            path.parent.mkdir(parents=True, exist_ok=True)
            self.bad_videos.save(path)
            logger.warning("%s\nAll of them are in %s.", self.bad_videos.describe(), path)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        **others,
    ):
        """Write the card of what was trained into the output folder.

        Args:
            license: of the weights; by default that of the training arguments.
            tags: further tags.
            model_name: heading of the card.
            language, others: the other arguments of [`~transformers.Trainer.create_model_card`], which scripts may
                pass. The log says that they are not used: the run's record has base model, data, task and results.
        """
        if not self.is_world_process_zero():
            return
        unused = sorted(name for name, value in {"language": language, **others}.items() if value)
        if unused:
            logger.info("The card is made from the record of the run and does not use %s.", ", ".join(unused))
        tags = [tags] if isinstance(tags, str) else tags or []
        details = CardDetails(license=license or self.args.license, title=model_name, tags=tags)
        write_card(self.args.output_dir, self.hub_model_id or Path(self.args.output_dir).resolve().name, details)

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
        """Upload the last weights, processor, card and test results; nothing else of the output folder.

        Args:
            commit_message, blocking, token, revision, private: see [`~transformers.Trainer.push_to_hub`].
            license: of the weights; by default that of the training arguments.
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
