"""A run that starts from a checkpoint: what it records, when it goes on, and what the start is worth."""

import pytest
from huggingface_hub import HfApi

from masked_clips import Clips, arguments
from mvd_hf import DistillationTrainer, MVDForFeatureDistillation, MVDVideoProcessor, load_teachers
from mvd_hf.data.arguments import DataArguments, pretraining_clips
from mvd_hf.hub.licenses import source_models
from mvd_hf.hub.run_record import read_run_record
from mvd_hf.hub.warm_start import StartingPoint
from short_runs import counts
from tiny_models import TINY

SIZES = TINY | {"num_frames": 4, "drop_path_rate": 0.0}


def distillation(folder, teachers, source="mvd-b", clips=Clips, keep_layers=None, **options) -> DistillationTrainer:
    start = StartingPoint(str(source), SIZES if source == "mvd-b" else {}, keep_layers)
    loaded = load_teachers(teachers, start.config.grid, start.config.num_frames)
    start.config.teacher_dims = {name: teacher.feature_dim for name, teacher in loaded.items()}
    trainer = DistillationTrainer(
        start.build(MVDForFeatureDistillation),
        loaded,
        args=arguments(folder, **options),
        processing_class=MVDVideoProcessor.for_model(start.config),
        train_dataset=clips(start.config),
    )
    trainer.run_record.sources |= start.sources()
    return trainer


def test_the_checkpoint_and_its_license_are_recorded_for_the_card(tmp_path, tiny_teachers):
    source, output = tmp_path / "ancestor", tmp_path / "child"
    distillation(source, tiny_teachers).run()
    (source / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    distillation(output, tiny_teachers, source).run()
    record = read_run_record(output)
    assert record["sources"]["base"]["run"]["model"] == "MVDForFeatureDistillation"
    found = [(model.part, model.model, model.license) for model in source_models(record, HfApi())]
    assert ("base", "ancestor", "cc-by-nc-4.0") in found
    assert "image of base" in [part for part, _, _ in found]  # the teachers of the ancestor, too


def test_a_run_goes_on_from_its_checkpoints_and_not_from_another_start(tmp_path, tiny_teachers):
    source, output = tmp_path / "ancestor", tmp_path / "child"
    distillation(source, tiny_teachers).run()
    options = {"save_strategy": "epoch", "schedule_epochs": 4}
    distillation(output, tiny_teachers, source, num_train_epochs=1, **options).run()
    again = distillation(output, tiny_teachers, source, num_train_epochs=2, **options)
    again.run()
    assert [part["from_step"] for part in read_run_record(output)["segments"]] == [0, 2]
    for start, layers, message in (("mvd-b", None, "start.model"), (source, [0, 1], "start.keep_layers")):
        with pytest.raises(ValueError, match=message):
            distillation(output, tiny_teachers, start, keep_layers=layers, num_train_epochs=3, **options).run()


@pytest.mark.slow
def test_fifty_steps_after_a_warm_start_the_held_out_loss_is_below_that_from_random_weights(
    tmp_path, tiny_teachers, toy_folder
):
    data = DataArguments(dataset=toy_folder, stride=2, eval_split="validation")

    def held_out(source, folder, seed: int, steps: int = 50) -> float:
        options = {"max_steps": steps, "warmup_epochs": 0, "base_learning_rate": 0.05, "seed": seed}
        trainer = distillation(
            folder, tiny_teachers, source, lambda config: pretraining_clips(data, config, counts(seed=seed)), **options
        )
        evaluation = pretraining_clips(data, trainer.model.config, counts(), evaluation=True)
        trainer.train()
        trainer.save_model()
        return trainer.evaluate(evaluation)["eval_loss"]

    held_out("mvd-b", tmp_path / "source", seed=7, steps=60)
    for seed in range(3):
        random, warm = (held_out(source, tmp_path / f"{seed}", seed) for source in ("mvd-b", tmp_path / "source"))
        assert warm < random
