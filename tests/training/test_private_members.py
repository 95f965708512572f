"""The few private members of `Trainer` that our trainers rely on are still there."""

import inspect

import pytest
from transformers import Trainer

from mvd_hf import DetectionTrainer, DistillationTrainer, FinetuningTrainer, MVDTrainer
from mvd_hf.training.saving import PRIVATE_MEMBERS, SavingTrainer

TRAINERS = (SavingTrainer, MVDTrainer, DistillationTrainer, FinetuningTrainer, DetectionTrainer)
# what each overridden member is called with
PARAMETERS = {
    "_get_train_sampler": ["train_dataset"],
    "_get_eval_sampler": ["eval_dataset"],
    "_get_dataloader": ["dataset", "description", "batch_size", "sampler_fn"],
    "_save_checkpoint": ["model", "trial"],
}
# what our trainers call or set and do not override
USED = ("_get_output_dir", "_finish_current_push", "_prepare_inputs", "_created_lr_scheduler")


@pytest.mark.parametrize("name", PRIVATE_MEMBERS)
def test_members_that_we_override_exist_with_their_parameters(name):
    assert hasattr(Trainer, name), f"transformers has renamed Trainer.{name}: {PRIVATE_MEMBERS[name]}"
    found = list(inspect.signature(getattr(Trainer, name)).parameters)
    assert found[1 : 1 + len(PARAMETERS[name])] == PARAMETERS[name], f"Trainer.{name} takes other parameters"


@pytest.mark.parametrize("name", USED)
def test_members_that_we_use_exist(name):
    assert name in inspect.getsource(Trainer), f"transformers has renamed Trainer.{name}"


def test_nothing_else_that_is_private_is_overridden():
    def is_private(name):
        return name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name)

    overridden = {name for trainer in TRAINERS for name in vars(trainer) if is_private(name)}
    assert overridden == set(PRIVATE_MEMBERS)


def test_every_trainer_is_small_enough_to_read():
    lengths = {trainer.__name__: len(inspect.getsource(trainer).splitlines()) for trainer in TRAINERS}
    assert max(lengths.values()) <= 250, lengths
