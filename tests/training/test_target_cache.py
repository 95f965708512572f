"""Distillation from targets on disk: the same losses, fresh masks, and no teacher where all targets are stored."""

import pytest
import torch

from masked_clips import arguments
from mvd_hf import DistillationTrainer, MVDForFeatureDistillation, load_teachers
from mvd_hf.data.arguments import DataArguments, pretraining_clips
from mvd_hf.teachers import TargetCacheConfig, load_cached_teachers
from mvd_hf.teachers import cache as cache_module


@pytest.fixture
def make(tmp_path, tiny_teachers, tiny_student_config, toy_folder):
    """Makes a trainer whose 32 videos have fixed views, with a cache or without; keys of the data have dots."""

    def make(cache: dict | None = None, name: str = "run", views: int | None = 1, **options) -> DistillationTrainer:
        data = {key[5:]: options.pop(key) for key in list(options) if key.startswith("data_")}
        config, folder = tiny_student_config, tmp_path / "cache"
        grid = config.grid, config.num_frames
        if cache is None:
            teachers = load_teachers(tiny_teachers, *grid)
        else:
            cache = TargetCacheConfig(str(folder), **({"dtype": "float32", "views": views} | cache))
            teachers = load_cached_teachers(tiny_teachers, cache, *grid)
        training = arguments(tmp_path / name, **({"per_device_train_batch_size": 16, "num_train_epochs": 2} | options))
        torch.manual_seed(0)
        data = DataArguments(toy_folder, eval_split="validation", stride=2, **data)
        return DistillationTrainer(
            MVDForFeatureDistillation(config),
            teachers,
            args=training,
            train_dataset=pretraining_clips(data, config, training, teachers, views=views),
            eval_dataset=pretraining_clips(data, config, training, teachers, evaluation=True),
        )

    return make


def trained(trainer: DistillationTrainer) -> DistillationTrainer:
    trainer.train()
    return trainer


def losses(trainer: DistillationTrainer) -> list[dict]:
    names = ("loss", "loss_image", "loss_video", "cosine_image", "grad_norm", "eval_loss")
    return [{name: entry[name] for name in names if name in entry} for entry in trainer.state.log_history]


def passes(trainer: DistillationTrainer) -> list[int]:
    return [entry["teacher_passes"] for entry in trainer.state.log_history if "teacher_passes" in entry]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.long),
        {
            "masks_per_clip": 2,
            "gradient_accumulation_steps": 2,
            "clips_per_video": 2,
            "per_device_train_batch_size": 4,
        },
        {"data_streaming": True, "data_stream_size": 32, "data_shuffle_buffer": 1},
        pytest.param({"dataloader_num_workers": 3}, marks=[pytest.mark.slow, pytest.mark.long]),
    ],
    ids=["plain", "masks and accumulation", "stream", "workers"],
)
def test_losses_in_float32_equal_those_without_a_cache_to_the_bit(make, options, monkeypatch):
    without, cached = make(name="without", **options), make({}, name="cached", **options)
    for trainer in (without, cached):
        trainer.train()
    assert losses(cached) == losses(without)
    steps = len(passes(cached)) // 2  # of an epoch
    assert passes(cached)[steps - 1 :] == [64 // cached.args.train_batch_size] * (steps + 1)  # 32 videos, 2 teachers
    assert passes(without) == []

    def refuse(*_):
        raise AssertionError("a teacher is loaded")

    monkeypatch.setattr(cache_module, "load_teacher", refuse)
    again = make({}, name="again", **options)
    again.train()
    assert losses(again) == losses(without)
    assert set(passes(again)) == {0}


def test_views_take_turns_and_every_epoch_has_new_masks(make):
    clips = make({}, views=2).train_dataset
    items = [clips[epoch, 3] for epoch in range(4)]
    fresh = make(None, name="fresh", views=None).train_dataset
    for item, view in zip(items, (0, 1, 0, 1), strict=True):
        assert torch.equal(item["pixel_values"], fresh[view, 3]["pixel_values"])
    masks = torch.stack([item["bool_masked_pos"] for item in items])
    assert len(masks.unique(dim=0)) == 4
    assert passes(trained(make({}, views=2, num_train_epochs=3))) == [2, 4, 6, 8, 8, 8]


def test_evaluations_read_targets_too(make):
    cached = make({})
    first = cached.evaluate()
    counts = {name: teacher.passes for name, teacher in cached.cached.items()}
    assert cached.evaluate()["eval_loss"] == first["eval_loss"] == make().evaluate()["eval_loss"]
    assert {name: teacher.passes for name, teacher in cached.cached.items()} == counts


def test_a_full_cache_goes_on_with_teachers(make):
    limited = make({"gib": 100e3 / 2**30})
    trained(limited)
    assert losses(limited) == losses(trained(make(name="without")))
    assert passes(limited)[-1] > passes(limited)[1] == 4
    files = list((limited.cached["image"].stored.folder.parent).rglob("*.safetensors"))
    assert 0 < sum(path.stat().st_size for path in files) <= 100e3


def test_half_precision_trains_on_the_same_targets_in_every_run(make):
    first, second = trained(make({"dtype": "bfloat16"})), trained(make({"dtype": "bfloat16"}, name="second"))
    assert losses(first) == losses(second) != losses(trained(make(name="without")))
    assert set(passes(second)) == {0}


def test_a_run_is_not_continued_with_other_views(make):
    trained(make({}, save_strategy="epoch"))
    for changes, views in (({"dtype": "bfloat16"}, 1), ({}, 2), (None, 1)):
        with pytest.raises(ValueError, match="target_cache"):
            make(changes, views=views, save_strategy="epoch").run()


def test_clips_of_other_views_are_refused(make):
    for views in (None, 2):
        with pytest.raises(ValueError, match=f"views={views}, the cache of the teacher 'image' has views=1"):
            make({"views": 1}, views=views)
