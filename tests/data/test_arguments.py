"""From a recipe's keys to clips: sources, splits, manifests, streams, and the clips of a configuration."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mvd_hf import MVDConfig, MVDVideoProcessor
from mvd_hf.data.arguments import (
    DataArguments,
    FinetuningClipArguments,
    finetuning_clips,
    load_clips,
    pretraining_clips,
)
from mvd_hf.data.augmentation import PretrainingAugmentation
from mvd_hf.data.clips import ClipDataset, ClipSampler, sample_generator
from mvd_hf.data.streaming import StreamingClips
from mvd_hf.data.toy import make_toy_dataset, toy_frames, write_video
from mvd_hf.model.frame_sampling import pretraining_frames
from mvd_hf.model.video_reading import VideoReadError
from mvd_hf.teachers.cache import clips_by_size
from short_runs import counts
from video_files import all_frames, first_and_last, whole

FRAMES = partial(pretraining_frames, num_frames=4, stride=2)
CONFIG = MVDConfig(image_size=32, patch_size=8, num_frames=4, mask_ratio=0.75)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A videofolder of 6 and 3 videos of 16 frames."""
    folder = tmp_path_factory.mktemp("toy")
    return make_toy_dataset(folder, num_train=6, num_validation=3, num_frames=16, height=48, width=64)


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def list_file(folder: Path, text: str, name: str = "list.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["videos.txt", "videos.csv", "videos.CSV", "videos.list", "videos.lst"])
def test_list_files_are_known_by_their_suffix(tmp_path, toy, name):
    path = list_file(tmp_path, "train/0001.mp4 5\n", name)
    data = load_clips(str(path), first_and_last, whole, root=str(toy), label_column="label")
    item = data[0]
    assert item["labels"] == 5
    assert (item["pixel_values"].numpy() == all_frames(toy / "train" / "0001.mp4")[[0, 15]]).all()


def test_class_folders_give_labels_in_the_order_of_their_names(tmp_path):
    for name, motion in (("zebra", "up"), ("ant", "down")):
        for i in range(2):
            path = tmp_path / "train" / name / f"{i}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, toy_frames("dots", motion, 4, 32, 48, np.random.default_rng(i)))
    data = load_clips(str(tmp_path), FRAMES, PretrainingAugmentation([32]), label_column="label")
    assert data.rows.features["label"].names == ["ant", "zebra"]
    paths = [Path(item["path"]) for item in data.rows["video"]]
    assert [data[i]["labels"].item() for i in range(4)] == [int(path.parent.name == "zebra") for path in paths]


def test_images_are_clips_of_one_repeated_frame(tmp_path):
    for name in ("ant", "zebra"):
        (tmp_path / name).mkdir()
        frame = toy_frames("rings", "up", 1, 40, 56, np.random.default_rng(len(name)))[0]
        Image.fromarray(frame).save(tmp_path / name / "0.png")
    data = load_clips(str(tmp_path), FRAMES, whole, label_column="label")
    item = data[1]
    assert item["labels"] == 1
    assert item["pixel_values"].shape == (4, 40, 56, 3)
    assert (item["pixel_values"].numpy() == np.asarray(Image.open(tmp_path / "zebra" / "0.png"))).all()


@pytest.mark.parametrize("typed", [True, False])
def test_parquet_folder_holds_the_bytes(tmp_path, toy, typed):
    items = [{"path": None, "bytes": (toy / "train" / f"000{i}.mp4").read_bytes()} for i in range(3)]
    rows = datasets.Dataset.from_dict({"label": [4, 5, 6], "video": items})
    rows = rows.cast_column("video", datasets.Video(decode=False)) if typed else rows
    rows.to_parquet(tmp_path / "train.parquet")
    data = load_clips(str(tmp_path), first_and_last, whole, label_column="label")
    assert [data[i]["labels"].item() for i in range(3)] == [4, 5, 6]
    assert (data[2]["pixel_values"].numpy() == all_frames(toy / "train" / "0002.mp4")[[0, 15]]).all()


def test_max_samples_takes_the_first_videos(toy):
    assert [len(load_clips(str(toy), FRAMES, whole, max_samples=n)) for n in (None, 2, 6, 100)] == [6, 2, 6, 6]
    few = load_clips(str(toy), FRAMES, whole, max_samples=2, label_column="motion")
    assert [few[i]["labels"].item() for i in range(2)] == [0, 1]


def test_pretraining_clips_fit_the_configuration(toy):
    teachers = {name: SimpleNamespace(image_size=size) for name, size in (("image", 24), ("video", 32))}
    data = pretraining_clips(DataArguments(dataset=str(toy), stride=2), CONFIG, counts(), teachers)
    assert len(data) == 6
    item = data[0]
    assert {key: (tuple(value.shape), value.dtype) for key, value in item.items()} == {
        "pixel_values": ((4, 3, 32, 32), torch.uint8),
        "pixel_values_24": ((4, 3, 24, 24), torch.uint8),
        "bool_masked_pos": ((CONFIG.num_patches,), torch.bool),
    }
    assert item["bool_masked_pos"].sum() == CONFIG.num_masked_patches


def test_pretraining_clips_are_cropped_at_the_scales_of_the_recipe(toy):
    for scales in ([1.0, 0.875, 0.75, 0.66], [0.5]):
        keys = {} if len(scales) == 4 else {"crop_scales": scales}
        data = pretraining_clips(DataArguments(dataset=str(toy), **keys), CONFIG, counts())
        assert data.reader.clip_sampler.augmentation.crop.scales == tuple(scales)


def test_pretraining_clips_use_the_stride_mask_and_crop_of_the_recipe(toy):
    config = MVDConfig(image_size=32, patch_size=8, num_frames=4, mask_type="random", mask_ratio=0.6)
    data = pretraining_clips(DataArguments(dataset=str(toy), stride=3, crop="random_resized"), config, counts())
    assert (np.diff(data.reader.clip_sampler.frames(16, generator=sample_generator(0, 0, 0))) == 3).all()
    mask = data[0]["bool_masked_pos"].view(config.grid)
    assert mask.sum() == config.num_masked_patches
    assert not (mask == mask[0]).all()
    direct = PretrainingAugmentation([32], "random_resized")
    expected = ClipDataset(
        data.rows, ClipSampler(data.reader.clip_sampler.frames, direct, data.reader.clip_sampler.mask)
    )
    assert equal(data[0], expected[0])


def test_evaluation_clips_come_from_the_evaluation_split_or_data_set(tmp_path, toy):
    assert pretraining_clips(DataArguments(dataset=str(toy)), CONFIG, counts(), evaluation=True) is None
    split = DataArguments(dataset=str(toy), eval_split="validation")
    assert len(pretraining_clips(split, CONFIG, counts(), evaluation=True)) == 3
    assert len(pretraining_clips(split, CONFIG, counts())) == 6
    path = list_file(tmp_path, "train/0000.mp4\ntrain/0001.mp4\n")
    other = DataArguments(dataset=str(toy), eval_dataset=str(path), root=str(toy), max_samples=5)
    assert len(pretraining_clips(other, CONFIG, counts(), evaluation=True)) == 2
    assert len(pretraining_clips(other, CONFIG, counts())) == 5


def test_clips_of_a_rectangle(toy):
    """The frames have 48x64 pixels: those of an evaluation are enlarged where the crop needs it."""
    config, data = (
        MVDConfig(image_size=[32, 64], patch_size=8, num_frames=4),
        DataArguments(dataset=str(toy), stride=2),
    )
    teachers = {"image": SimpleNamespace(image_size=(28, 56)), "video": SimpleNamespace(image_size=(32, 64))}
    item = pretraining_clips(data, config, counts(), teachers)[0]
    assert {key: tuple(value.shape) for key, value in item.items()} == {
        "pixel_values": (4, 3, 32, 64),
        "pixel_values_28x56": (4, 3, 28, 56),
        "bool_masked_pos": (2 * 4 * 8,),
    }
    batch = {key: value[None] for key, value in item.items()}
    assert {size: clip.shape[-2:] for size, clip in clips_by_size(batch).items()} == {
        (32, 64): (32, 64), (28, 56): (28, 56)
    }  # fmt: skip
    keys = FinetuningClipArguments(sampling="dense", flip=0.0, label_column="motion", repeats=1)
    assert finetuning_clips(data, keys, config)[0]["pixel_values"].shape == (4, 3, 32, 64)
    data = replace(data, eval_split="validation")
    clip = finetuning_clips(data, keys, config, evaluation=True)[0]["pixel_values"]
    processor = MVDVideoProcessor.for_model(config, frame_sampling_rate=2, do_rescale=False, do_normalize=False)
    expected = processor(str(toy / "validation" / "0000.mp4"), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(clip, expected)


def test_recipe_without_data_is_refused():
    with pytest.raises(ValueError, match="give --dataset"):
        DataArguments()


def test_empty_data_set_is_refused(toy):
    with pytest.raises(ValueError, match="data set is empty"):
        load_clips(str(toy), FRAMES, whole, max_samples=0)


@pytest.fixture(scope="module")
def parquet(toy, tmp_path_factory) -> str:
    """A folder of 3 parquet files with 2 of the training videos each, and one with 2 validation videos."""
    folder = tmp_path_factory.mktemp("parquet")
    for name, split, numbers in (
        ("train-0", "train", (0, 1)),
        ("train-1", "train", (2, 3)),
        ("train-2", "train", (4, 5)),
        ("validation-0", "validation", (0, 1)),
    ):
        paths = [toy / split / f"{number:04d}.mp4" for number in numbers]
        items = [{"path": f"{split}/{path.name}", "bytes": path.read_bytes()} for path in paths]
        rows = datasets.Dataset.from_dict({"video": items, "number": numbers})
        rows.cast_column("video", datasets.Video(decode=False)).to_parquet(folder / f"{name}.parquet")
    return str(folder)


CLIP_SAMPLER = ClipSampler(FRAMES, PretrainingAugmentation([16]))


def manifest(folder: Path, **use: bool) -> str:
    lines = ["file,use", *(f"{name},{'yes' if used else 'no'}" for name, used in use.items())]
    return str(list_file(folder, "\n".join(lines), "manifest.csv"))


def numbers_of(rows) -> list[int]:
    return [row["number"] for row in rows]


def test_a_stream_gives_streamed_clips(parquet):
    data = load_clips(
        parquet,
        FRAMES,
        PretrainingAugmentation([16]),
        streaming=True,
        stream_size=6,
        shuffle_buffer=0,
        label_column="number",
        seed=3,
        on_bad_video="skip",
    )
    assert isinstance(data, StreamingClips)
    assert (data.size, data.seed, data.on_bad_video, data.shuffle_buffer) == (6, 3, "skip", 0)
    assert [item["labels"].item() for item in data] == list(range(6))


@pytest.mark.parametrize(
    ("declared", "given", "max_samples", "size"),
    [
        (6, None, None, 6),
        (6, 4, None, 4),
        (None, 5, None, 5),
        (6, None, 4, 4),
        (6, None, 9, 6),
        (None, None, 3, 3),
        (None, 5, 3, 3),
        (None, 2, 3, 2),
    ],
)
def test_the_size_of_a_stream_is_declared_or_given(parquet, monkeypatch, declared, given, max_samples, size):
    rows = datasets.load_dataset(parquet, split="train", streaming=True).decode(False)
    splits = None if declared is None else {"train": datasets.SplitInfo("train", num_examples=declared)}
    rows.info.splits = splits and datasets.splits.SplitDict(splits)
    monkeypatch.setattr("mvd_hf.data.arguments.load_rows", lambda *args, **choices: rows)
    arguments = DataArguments(dataset=parquet, streaming=True, stream_size=given, max_samples=max_samples)
    assert arguments.clips(CLIP_SAMPLER).size == size


def test_a_stream_of_unknown_size_is_refused(parquet, monkeypatch):
    monkeypatch.setattr("mvd_hf.data.arguments.num_videos", lambda rows, split: None)
    with pytest.raises(ValueError, match="does not say how many videos it has: give stream_size"):
        load_clips(parquet, FRAMES, whole, streaming=True)


@pytest.mark.parametrize("readers", [1, 2, 4])
def test_the_first_videos_of_a_stream_are_the_same_for_any_number_of_readers(parquet, readers):
    data = DataArguments(dataset=parquet, streaming=True, max_samples=4, shuffle_buffer=2)
    clips = data.clips(CLIP_SAMPLER, label_column="number")
    labels = []
    for process in range(readers):
        clips.begin_epoch(0, process=process, num_processes=readers)
        labels += [item["labels"].item() for item in clips]
    assert sorted(labels) == [0, 1, 2, 3]


def test_the_first_videos_of_a_stream_are_the_same_for_any_number_of_workers(parquet):
    data = DataArguments(dataset=parquet, streaming=True, max_samples=4, shuffle_buffer=2)
    clips = data.clips(CLIP_SAMPLER, label_column="number")
    loader = torch.utils.data.DataLoader(clips, batch_size=1, num_workers=2)
    assert sorted(batch["labels"].item() for batch in loader) == [0, 1, 2, 3]


def test_a_stream_is_evaluated_on_all_rows_of_its_evaluation_split(parquet, toy):
    data = DataArguments(dataset=parquet, eval_split="validation", streaming=True, stream_size=6)
    clips = data.clips(CLIP_SAMPLER, evaluation=True, label_column="number")
    assert isinstance(clips, ClipDataset)
    assert clips.on_bad_video == "skip"
    assert [row["video"]["path"] for row in clips.rows] == ["validation/0000.mp4", "validation/0001.mp4"]
    assert clips.rows[1]["video"]["bytes"] == (toy / "validation" / "0001.mp4").read_bytes()
    assert [clips[i]["labels"].item() for i in range(2)] == [0, 1]
    same = DataArguments(dataset=parquet, eval_split="validation").clips(CLIP_SAMPLER, evaluation=True)
    assert torch.equal(same[1]["pixel_values"], clips[1]["pixel_values"])
    few = DataArguments(dataset=parquet, eval_split="train", streaming=True, stream_size=6, max_samples=3)
    assert numbers_of(few.rows(evaluation=True)) == [0, 1, 2]


def test_a_list_file_is_not_streamed(tmp_path, toy):
    path = list_file(tmp_path, "train/0000.mp4\ntrain/0001.mp4\n")
    data = load_clips(str(path), FRAMES, whole, root=str(toy), streaming=True)
    assert isinstance(data, ClipDataset)
    assert len(data) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_only_videos_of_the_manifest_are_used(parquet, tmp_path, streaming):
    use = {f"train/000{i}.mp4": i in (1, 3, 4) for i in range(6)}
    options = {"dataset": parquet, "manifest": manifest(tmp_path, **use), "streaming": streaming}
    assert numbers_of(DataArguments(**options).rows()) == [1, 3, 4]
    assert numbers_of(DataArguments(**options, max_samples=2).rows()) == [1, 3]
    # a manifest is of the training videos: evaluation takes all of its own, and says which cannot be read
    for max_samples, expected in ((None, [0, 1]), (1, [0])):
        rows = DataArguments(**options, eval_split="validation", max_samples=max_samples).rows(evaluation=True)
        assert isinstance(rows, datasets.Dataset)
        assert numbers_of(rows) == expected


def test_a_manifest_of_other_videos_is_refused(parquet, tmp_path):
    data = DataArguments(dataset=parquet, manifest=manifest(tmp_path, **{"train/0000.mp4": True}))
    with pytest.raises(ValueError, match=r"does not list 'train/0001\.mp4': it is of other files, or `root` differs"):
        data.rows()


def test_a_stream_with_a_manifest_needs_the_number_of_its_videos(parquet, tmp_path, monkeypatch):
    """The number that a data set declares counts those that are left out."""
    monkeypatch.setattr("mvd_hf.data.arguments.num_videos", lambda rows, split: 6)
    use = {f"train/000{i}.mp4": i < 2 for i in range(6)}
    options = {"dataset": parquet, "streaming": True, "manifest": manifest(tmp_path, **use)}
    with pytest.raises(ValueError, match="how many videos of the manifest it has: give stream_size"):
        DataArguments(**options).clips(CLIP_SAMPLER)
    assert DataArguments(**options, stream_size=2).clips(CLIP_SAMPLER).size == 2


@pytest.mark.parametrize("name", ["videos.csv", "videos.parquet", "videos-*.tar", "https://host/videos.TXT"])
def test_a_file_has_no_split_to_evaluate_on(name):
    with pytest.raises(ValueError, match="has no splits, eval_split='validation' would be the same videos"):
        DataArguments(dataset=name, eval_split="validation")
    DataArguments(dataset=name, eval_split="train")
    DataArguments(dataset=name, eval_split="validation", eval_dataset="other.csv")


def test_options_that_do_not_exist_are_refused(toy):
    with pytest.raises(ValueError, match=r"load_clips cannot take these options: .*'num_workers'"):
        load_clips(str(toy), FRAMES, whole, num_workers=3)
    with pytest.raises(ValueError, match="no on_bad_video='ignore'"):
        load_clips(str(toy), FRAMES, whole, on_bad_video="ignore")


def test_unreadable_videos_are_treated_by_the_rule_in_training_and_left_out_in_evaluation(tmp_path, toy):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    path = str(list_file(tmp_path, f"bad.mp4\n{toy}/train/0000.mp4\n"))
    for rule in ("raise", "skip", "substitute"):
        data = DataArguments(dataset=path, eval_dataset=path, on_bad_video=rule)
        assert data.clips(CLIP_SAMPLER).on_bad_video == rule
        assert data.clips(CLIP_SAMPLER, evaluation=True)[0]["is_blank"] is True
    with pytest.raises(VideoReadError, match=r"bad\.mp4"):
        load_clips(path, FRAMES, whole)[0]


def test_repeats_and_masks_of_load_clips(toy):
    masks = iter(range(100))
    data = load_clips(str(toy), FRAMES, whole, mask=lambda generator: torch.tensor(next(masks)), repeats=2)
    assert [item["bool_masked_pos"].item() for item in data[0]] == [0, 1]
    assert torch.equal(*(item["pixel_values"] for item in data[0]))


def test_unknown_label_column_is_refused_with_the_known_ones(toy):
    with pytest.raises(ValueError, match=r"no column 'label'.*appearance.*motion"):
        load_clips(str(toy), FRAMES, whole, label_column="label")


def test_several_clips_per_video_are_for_training_only(toy):
    data = DataArguments(dataset=str(toy), eval_split="validation", stride=2)
    items = pretraining_clips(data, CONFIG, counts(clips_per_video=3), label_column="motion")[1]
    assert len(items) == 3
    assert all(item["labels"] == 1 for item in items)
    assert isinstance(pretraining_clips(data, CONFIG, counts(clips_per_video=3), evaluation=True)[1], dict)


def test_the_seed_reaches_the_clips(toy):
    data = DataArguments(dataset=str(toy), eval_split="validation", stride=2)
    for evaluation in (False, True):
        first, same, other = (
            pretraining_clips(data, CONFIG, counts(seed=s), evaluation=evaluation)[0] for s in (0, 0, 1)
        )
        assert equal(first, same)
        assert not torch.equal(first["bool_masked_pos"], other["bool_masked_pos"])


def test_masks_and_decoded_parts_follow_from_seed_epoch_and_sample(toy):
    config = MVDConfig(image_size=32, patch_size=8, num_frames=4, mask_ratio=0.75, decoder_keep=0.5)
    data = DataArguments(dataset=str(toy), eval_split="validation")
    clips = pretraining_clips(data, config, counts(masks_per_clip=3, seed=4))
    item = clips[(2, 1)]
    assert item["bool_masked_pos"].shape == item["bool_decoded_pos"].shape == (3, config.num_patches)
    assert (item["bool_masked_pos"].sum(1) == config.num_masked_patches).all()
    assert (item["bool_decoded_pos"].sum(1) == config.num_decoded_patches).all()
    assert len(item["bool_masked_pos"].unique(dim=0)) == 3
    assert equal(item, pretraining_clips(data, config, counts(masks_per_clip=3, seed=4))[(2, 1)])
    for other in (
        clips[(3, 1)],
        clips[(2, 0)],
        pretraining_clips(data, config, counts(masks_per_clip=3, seed=5))[(2, 1)],
    ):
        assert not torch.equal(other["bool_masked_pos"], item["bool_masked_pos"])
        assert not torch.equal(other["bool_decoded_pos"], item["bool_decoded_pos"])


def test_one_mask_of_which_all_is_decoded_is_the_default(toy):
    data = DataArguments(dataset=str(toy), eval_split="validation")
    item = pretraining_clips(data, CONFIG, counts(seed=4))[(2, 1)]
    assert item.keys() == {"pixel_values", "bool_masked_pos"}
    assert equal(item, pretraining_clips(data, CONFIG, counts(masks_per_clip=1, seed=4))[(2, 1)])
    # further masks and parts are drawn after what was drawn without them
    config = MVDConfig(image_size=32, patch_size=8, num_frames=4, mask_ratio=0.75, decoder_keep=0.5)
    more = pretraining_clips(data, config, counts(masks_per_clip=2, seed=4))[(2, 1)]
    assert torch.equal(more["pixel_values"], item["pixel_values"])
    assert torch.equal(more["bool_masked_pos"][0], item["bool_masked_pos"])


def test_an_evaluation_has_one_mask_and_decodes_all(toy):
    config = MVDConfig(image_size=32, patch_size=8, num_frames=4, mask_ratio=0.75, decoder_keep=0.5)
    data = DataArguments(dataset=str(toy), eval_split="validation")
    item = pretraining_clips(data, config, counts(masks_per_clip=3, seed=4), evaluation=True)[(0, 1)]
    assert item.keys() == {"pixel_values", "bool_masked_pos"}
    assert item["bool_masked_pos"].shape == (config.num_patches,)


def test_blank_clips_have_as_many_masks(toy):
    config = MVDConfig(image_size=32, patch_size=8, num_frames=4, mask_ratio=0.75, decoder_keep=0.5)
    blank = pretraining_clips(DataArguments(dataset=str(toy)), config, counts(masks_per_clip=3))[(0, -1)]
    assert blank["bool_masked_pos"].shape == blank["bool_decoded_pos"].shape == (3, config.num_patches)


def test_seconds_replace_the_stride_of_a_recipe(toy):
    assert DataArguments(dataset=str(toy)).distance == {"frame_sampling_rate": 4}
    data = DataArguments(dataset=str(toy), fps=5)
    assert data.distance == {"fps": 5}
    clips = pretraining_clips(data, CONFIG, counts())
    assert clips.reader.clip_sampler.fps == 5
    assert clips[0]["pixel_values"].shape[0] == CONFIG.num_frames
    for wrong in ({"fps": 5, "stride": 4}, {"fps": -1}):
        with pytest.raises(ValueError, match=f"fps={wrong['fps']}"):
            DataArguments(dataset=str(toy), **wrong)


@pytest.mark.parametrize("evaluation", [False, True])
def test_uniform_clips_take_no_seconds(toy, evaluation):
    data, keys = (
        DataArguments(dataset=str(toy), fps=5),
        FinetuningClipArguments("motion", sampling="uniform", flip=0.5),
    )
    with pytest.raises(ValueError, match="fps=5"):
        finetuning_clips(data, keys, CONFIG, evaluation=evaluation)
    keys.sampling = "dense"
    assert finetuning_clips(data, keys, CONFIG).reader.clip_sampler.fps == 5
