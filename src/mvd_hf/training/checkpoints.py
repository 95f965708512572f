"""Checkpoints of a run: which one is complete, how its steps were divided, and what a full disk leaves."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

LAYOUT_NAME = "processes.json"
# what a finished run leaves in its output folder
MODEL_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "training_run.json")


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


def remove_checkpoints(folder: str | os.PathLike):
    """Remove all checkpoints of an output folder."""
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(path)


def refuse_overwriting(folder: str | os.PathLike):
    """Raise ValueError if an output folder holds a model, which a run would replace."""
    held = [name for name in MODEL_FILES if (Path(folder) / name).exists()]
    if held:
        raise ValueError(
            f"{str(folder)!r} holds {', '.join(held)} of an earlier run: give another output_dir, or overwrite: true "
            "to replace them."
        )


# how writers say that no more can be written where they give no number; torch's says no more than that it could not
FULL_SIGNS = ("No space left", "StorageFull", "Disk quota", "QuotaExceeded", "iostream error", "unexpected pos")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of writing a file says that no more can be written: by its number, or by text."""
    known = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return known or any(sign in str(error) for sign in FULL_SIGNS)


@contextmanager
def removed_if_disk_is_full(folder: Path, is_owner: bool) -> Iterator[None]:
    """Within it a checkpoint is written; where the disk is full what was written of it is removed.

    Args:
        folder: the checkpoint's, in the output folder.
        is_owner: whether this process removes it.

    Raises:
        OSError: that names the last complete checkpoint, if the disk is full.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        free = shutil.disk_usage(folder.parent).free / 1e6
        if is_owner:
            shutil.rmtree(folder, ignore_errors=True)
        last = last_complete_checkpoint(folder.parent)
        raise OSError(
            errno.ENOSPC,
            f"{folder.name} could not be written and was removed: the disk is full ({free:,.0f} MB were free), or "
            f"a quota is used up. {f'{last} is complete' if last else 'There is no earlier checkpoint'}. Free "
            "space, or keep fewer checkpoints (save_total_limit), and start the same command again",
        ) from error


@dataclass(frozen=True)
class StepLayout:
    """How a step is divided: by processes, accumulation and batches.

    Args:
        num_processes: of the whole run.
        batch_size: videos per process and micro-step.
        accumulation: micro-steps per step.
    """

    num_processes: int
    batch_size: int
    accumulation: int

    @property
    def total(self) -> int:
        """Videos per step."""
        return self.num_processes * self.batch_size * self.accumulation

    def __str__(self) -> str:
        return f"{self.batch_size} x {self.accumulation} x {self.num_processes} processes"

    def save(self, folder: Path):
        """Write it into a checkpoint."""
        (folder / LAYOUT_NAME).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "StepLayout | None":
        """Read it from a checkpoint; `None` if an earlier version wrote that."""
        path = folder / LAYOUT_NAME
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{str(path)!r} is damaged ({error}): delete its checkpoint to go on.") from error

    def compare(self, former: "StepLayout | None") -> str | None:
        """What changes for a run that was begun otherwise; `None` if nothing does."""
        if former in (None, self):
            return None
        begin = f"Resuming with {self} (before: {former})"
        if former.total != self.total:
            return (
                f"{begin}: a step has {self.total} videos, before it had {former.total}. Steps are counted on, so "
                "that epochs and data begin at another place, and the rate follows the new batch. To keep them, keep "
                "the product of per_device_train_batch_size, gradient_accumulation_steps and processes."
            )
        return (
            f"{begin}: steps have the same videos, clips, masks and rates. What a process draws for itself "
            "(stochastic depth, dropout, which clips are mixed) and the order of sums differ."
        )
