"""Mixtures of data sets: shares, order, workers, still clips, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader

from launching import history, launch
from mvd_hf import MVDConfig, MVDForPixelReconstruction, MVDTrainer
from mvd_hf.data.arguments import DataArguments, pretraining_clips
from mvd_hf.data.clips import collate_clips
from mvd_hf.data.mixtures import share_out
from mvd_hf.data.toy import make_toy_dataset
from mvd_hf.training.checkpoints import last_complete_checkpoint
from mvd_hf.training.samplers import EpochSampler
from short_runs import arguments, counts, videomae
from tiny_models import TINY

CONFIG = MVDConfig(image_size=32, patch_size=8, num_frames=4, mask_ratio=0.75)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """A folder of 6 videos, a list of 4 of them, and a folder of 3 images."""
    folder = tmp_path_factory.mktemp("sources")
    toy = make_toy_dataset(folder / "toy", num_train=6, num_validation=2, num_frames=16, height=40, width=48)
    (folder / "four.csv").write_text("".join(f"train/{i:04d}.mp4\n" for i in range(4)))
    for i in range(3):
        (folder / "images" / "train").mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / "train" / f"{i}.png")
    return {"toy": toy, "four": folder / "four.csv", "images": folder / "images"}


def mixture(sources, weights=(3, 1, 1), seed=0, **options):
    entries = [
        {"dataset": str(sources["toy"]), "weight": weights[0], "stride": 2},
        {"dataset": str(sources["four"]), "weight": weights[1], "root": str(sources["toy"]), "fps": 10},
        {"dataset": str(sources["images"]), "weight": weights[2]},
    ]
    data = DataArguments(datasets=entries, **options)
    return pretraining_clips(data, CONFIG, counts(seed=seed))


def test_shares_of_an_epoch_are_those_of_the_weights(sources, caplog):
    caplog.set_level("INFO")
    clips = mixture(sources, epoch_videos=50)
    assert len(clips) == 50
    assert list(clips.shares.values()) == [30, 10, 10]
    found = np.bincount([clips.place(4, position)[0] for position in range(50)])
    assert found.tolist() == [30, 10, 10]
    assert (
        f"{sources['toy']}: 30 videos in 1 epochs, 60.0% of the mixture, each of its 6 videos 5.00 times"
        in caplog.text
    )
    assert list(mixture(sources, weights=(1, 1, 1)).shares.values()) == [5, 4, 4]  # 13 videos by default


def test_videos_of_a_data_set_are_seen_equally_often_in_another_order_each_time(sources):
    clips = mixture(sources, weights=(1, 2, 1), epoch_videos=16)
    seen = [[clips.place(epoch, position) for position in range(16)] for epoch in range(6)]
    for part, size, times in ((0, 6, 24), (1, 4, 48), (2, 3, 24)):
        rows = np.bincount([row for epoch in seen for which, row in epoch if which == part], minlength=size)
        assert rows.sum() == times
        assert rows.max() - rows.min() <= 1
    assert len({tuple(epoch) for epoch in seen}) == 6
    other = mixture(sources, weights=(1, 2, 1), epoch_videos=16, seed=1)
    assert [other.place(0, position) for position in range(16)] != seen[0]


def batches(clips, num_workers: int) -> list[torch.Tensor]:
    sampler = EpochSampler(len(clips), 4, seed=0)
    loader = DataLoader(clips, 4, sampler=sampler, num_workers=num_workers, collate_fn=collate_clips)
    found = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        found += [batch[key] for batch in loader for key in ("pixel_values", "bool_masked_pos")]
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_seed_epoch_and_position_decide_for_any_number_of_workers(sources):
    alone = batches(mixture(sources, epoch_videos=8), 0)
    for num_workers in (1, 3):
        found = batches(mixture(sources, epoch_videos=8), num_workers)
        assert len(found) == len(alone) == 8
        assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))
    clips = mixture(sources, epoch_videos=30)
    again = [clips[(0, position)]["pixel_values"] for position in range(18)]  # 6 videos, 3 times each
    assert len({clip.numpy().tobytes() for clip in again}) == 18


def test_images_are_still_clips_and_each_data_set_has_its_own_distance(sources):
    clips = mixture(sources, epoch_videos=10)
    image = clips[(0, 9)]["pixel_values"]
    assert clips.place(0, 9)[0] == 2
    assert (image == image[0]).all()
    assert not (clips[(0, 0)]["pixel_values"] == clips[(0, 0)]["pixel_values"][0]).all()
    assert [part.reader.clip_sampler.fps for part in clips.parts] == [None, 10, None]
    assert clips.parts[0].reader.clip_sampler.frames.keywords["stride"] == 2
    assert clips.name(0, 9).endswith(".png")


def test_a_resumed_run_of_a_mixture_equals_an_uninterrupted_one(sources, tmp_path, caplog):
    caplog.set_level("INFO")

    def trained(folder: Path, resume: str | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        config = videomae(mask_ratio=CONFIG.mask_ratio)
        options = {"num_train_epochs": 3, "save_steps": 3, "save_strategy": "steps", "warmup_epochs": 0}
        trainer = MVDTrainer(
            MVDForPixelReconstruction(config),
            arguments(folder, **options),
            train_dataset=mixture(sources, epoch_videos=8),
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    whole = trained(tmp_path)
    first = min(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert str(first) != last_complete_checkpoint(tmp_path)
    resumed = trained(tmp_path, str(first))
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    assert "Seen: " in caplog.text


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "2", True])
def test_weights_that_are_not_positive_are_refused_by_name(sources, weight):
    with pytest.raises(ValueError, match=r"four\.csv"):
        mixture(sources, weights=(1, weight, 1))


def test_a_data_set_without_a_video_is_refused_by_name(sources, tmp_path):
    with pytest.raises(ValueError, match=r"images.*none of 9 videos"):
        mixture(sources, weights=(1, 1, 1e-6), epoch_videos=9)
    (tmp_path / "empty.csv").write_text("\n")
    for wrong in (str(tmp_path / "empty.csv"), str(tmp_path / "nowhere.csv")):
        data = DataArguments(datasets=[{"dataset": str(sources["toy"])}, {"dataset": wrong}])
        with pytest.raises(ValueError, match=wrong):
            pretraining_clips(data, CONFIG, counts())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"datasets": []}, "datasets=\\[\\]"),
        ({"datasets": [{"weight": 1}]}, "names no dataset"),
        ({"datasets": [{"dataset": "a", "wieght": 1}]}, "wieght"),
        ({"datasets": [{"dataset": "a"}], "dataset": "b"}, "dataset='b'"),
        ({"datasets": [{"dataset": "a"}], "streaming": True}, "streaming=True"),
        ({"datasets": [{"dataset": "a"}], "eval_split": "test"}, "eval_split='test'"),
        ({"datasets": [{"dataset": "a"}], "epoch_videos": 0}, "epoch_videos=0"),
        ({"dataset": "a", "epoch_videos": 5}, "epoch_videos=5"),
    ],
)
def test_keys_that_do_not_go_with_a_mixture_are_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        DataArguments(**wrong)


def test_a_mixture_is_for_pretraining_without_fixed_views_or_a_probe(sources):
    data = DataArguments(
        datasets=[{"dataset": str(sources["toy"])}, {"dataset": str(sources["toy"]), "split": "validation"}]
    )
    assert [name[-3:] for name in data.entries()] == ["(1)", "(2)"]
    with pytest.raises(ValueError, match="pre-training"):
        data.rows()
    for options in ({"label_column": "motion"}, {"views": 2}):
        with pytest.raises(ValueError, match="mixture"):
            pretraining_clips(data, CONFIG, counts(), **options)


def test_shares_sum_to_the_epoch():
    assert share_out(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert share_out(7, {"a": 0.5, "b": 0.25}) == {"a": 5, "b": 2}


@pytest.mark.long
@pytest.mark.slow
def test_processes_and_workers_do_not_change_what_a_mixture_teaches(sources, tmp_path):
    recipe = {
        "model": "videomae-b",
        "config": {**TINY, "num_frames": 4},
        "datasets": [
            {"dataset": str(sources["toy"]), "weight": 2, "stride": 2},
            {"dataset": str(sources["images"])},
        ],
        "epoch_videos": 12,
        "num_train_epochs": 2,
        "warmup_epochs": 0,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "disable_tqdm": True,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    found = []
    for processes, workers in ((1, 0), (2, 1)):
        output = tmp_path / str(processes)
        options = {"per_device_train_batch_size": 4 // processes, "dataloader_num_workers": workers}
        launch("pretrain.py", path, processes=processes, output_dir=output, **options)
        found.append([entry["loss"] for entry in history(output).values() if "loss" in entry])
    assert len(found[0]) == 6
    assert found[0] == pytest.approx(found[1], rel=1e-5)
