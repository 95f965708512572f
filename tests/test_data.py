"""Sources of videos and the clips that come out of them: list files, folders, bytes, images, workers, errors."""

import itertools
import random
import re
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mvd_hf import MVDConfig
from mvd_hf.augmentation import PretrainingAugmentation
from mvd_hf.clips import ClipCutter, ClipDataset, sample_generator
from mvd_hf.data import DataArguments, load_clips, pretraining_clips
from mvd_hf.masking import tube_mask
from mvd_hf.model.frame_sampling import pretraining_frames
from mvd_hf.model.video_reading import VideoReader, VideoReadError
from mvd_hf.sources import load_rows, media_column, read_list_file
from mvd_hf.toy import make_toy_dataset, toy_frames, write_video

FRAMES = partial(pretraining_frames, num_frames=4, stride=2)
MASK = partial(tube_mask, (2, 4, 4), 0.75)
CONFIG = MVDConfig(image_size=32, patch_size=8, num_frames=4, mask_ratio=0.75)


@pytest.fixture(scope="module", autouse=True)
def private_cache(tmp_path_factory):
    """Keep the tables that `datasets` prepares out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A videofolder of 6 and 3 videos of 16 frames."""
    folder = tmp_path_factory.mktemp("toy")
    return make_toy_dataset(folder, num_train=6, num_validation=3, num_frames=16, height=48, width=64)


def clips(rows, mask=None, **options) -> ClipDataset:
    return ClipDataset(rows, ClipCutter(FRAMES, PretrainingAugmentation([32]), mask), **options)


def whole(read, generator) -> dict[int, torch.Tensor]:
    """An augmentation that leaves the frames as they are, (T, H, W, 3)."""
    return {0: torch.from_numpy(read(lambda height, width: (0, 0, height, width)))}


def first_and_last(total_frames: int, generator) -> np.ndarray:
    return np.array([[0, total_frames - 1]])


def frames_of(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return reader.read(range(len(reader)))


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def list_file(folder: Path, text: str, name: str = "list.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "names", "labels"),
    [
        ("a.mp4 3\nsub/b.mp4 -1\n", ["a.mp4", "sub/b.mp4"], [3, -1]),
        ("a.mp4,3\nsub/b.mp4,1\n", ["a.mp4", "sub/b.mp4"], [3, 1]),
        ("a.mp4, 3\nsub/b.mp4,   1\n", ["a.mp4", "sub/b.mp4"], [3, 1]),
        ("a.mp4  3\r\n\r\n   \r\n  b.mp4 1  ", ["a.mp4", "b.mp4"], [3, 1]),
        ('"name with spaces.mp4" 3\nb.mp4 1\n', ["name with spaces.mp4", "b.mp4"], [3, 1]),
        ('"name with spaces, and comma.mp4",3\nb.mp4,1\n', ["name with spaces, and comma.mp4", "b.mp4"], [3, 1]),
        ("name with spaces.mp4,3\nb.mp4,1\n", ["name with spaces.mp4", "b.mp4"], [3, 1]),
        ("a,b.mp4 3\nc.mp4 1\n", ["a,b.mp4", "c.mp4"], [3, 1]),
        ("-a.mp4 3\n#b.mp4 1\n视频.mp4 2", ["-a.mp4", "#b.mp4", "视频.mp4"], [3, 1, 2]),
        ("a.mp4\nb.mp4\n", ["a.mp4", "b.mp4"], None),
        ('"a b.mp4"\n', ["a b.mp4"], None),
        ("a b.mp4\t3\nc.mp4\t1\n", ["a b.mp4", "c.mp4"], [3, 1]),
        ("\ufeffa.mp4 3\nb.mp4 -1\n", ["a.mp4", "b.mp4"], [3, -1]),
    ],
)
def test_list_file_gives_paths_and_labels(tmp_path, text, names, labels):
    rows = read_list_file(list_file(tmp_path, text))
    assert rows["video"][:] == [{"path": str(tmp_path / name), "bytes": None} for name in names]
    if labels is None:
        assert rows.column_names == ["video"]
    else:
        assert rows["label"][:] == labels


def test_root_goes_in_front_of_relative_paths_only(tmp_path):
    path = list_file(tmp_path, "a.mp4 0\n/elsewhere/b.mp4 1\n")
    rows = read_list_file(path, root="videos")
    assert [item["path"] for item in rows["video"]] == ["videos/a.mp4", "/elsewhere/b.mp4"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a.mp4 0\n\nname with spaces.mp4 1\n", 3),
        ("a.mp4 0\nb.mp4 cat\n", 2),
        ("a.mp4 1.5\n", 1),
        ("a.mp4 0\nb.mp4 --1\n", 2),
        ("a.mp4 \u00b2\n", 1),
        ("a.mp4,0\nb.mp4,1,2\n", 2),
        ("a.mp4 0 1\nb.mp4 1 2\n", 1),
        ("path,label\na.mp4,0\n", 1),
        ("a.mp4 0\nb.mp4 1\n\nc.mp4\n", 4),
        ("a.mp4\nb.mp4 1\n", 1),
    ],
)
def test_line_that_is_no_path_and_label_is_refused_by_number(tmp_path, text, line):
    with pytest.raises(ValueError, match=rf"Line {line} of '.*list\.txt'"):
        read_list_file(list_file(tmp_path, text))


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_empty_list_file_is_refused_by_name(tmp_path, text):
    with pytest.raises(ValueError, match=r"list\.txt' names no video"):
        read_list_file(list_file(tmp_path, text))


@pytest.mark.parametrize("name", ["videos.txt", "videos.csv", "videos.CSV", "videos.list", "videos.lst"])
def test_list_files_are_known_by_their_suffix(tmp_path, toy, name):
    path = list_file(tmp_path, "train/0001.mp4 5\n", name)
    data = load_clips(str(path), first_and_last, whole, root=str(toy), label_column="label")
    item = data[0]
    assert item["labels"] == 5
    assert (item["pixel_values"].numpy() == frames_of(toy / "train" / "0001.mp4")[[0, 15]]).all()


def test_videofolder_gives_undecoded_videos_and_the_columns_of_its_metadata(toy):
    rows = load_rows(str(toy), "validation")
    assert len(rows) == 3
    assert media_column(rows) == "video"
    assert rows["appearance"][:] == [0, 0, 0]
    assert rows["motion"][:] == [0, 1, 2]
    assert rows[1]["video"] == {"path": str(toy / "validation" / "0001.mp4"), "bytes": None}


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


def test_image_is_cropped_turned_upright_and_read_as_rgb(tmp_path):
    frame = np.zeros((40, 56), dtype=np.uint8)
    frame[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter clockwise
    Image.fromarray(frame).save(tmp_path / "gray.png", exif=exif)
    rows = datasets.Dataset.from_dict({"image": [{"path": str(tmp_path / "gray.png"), "bytes": None}]})
    (upright,) = ClipDataset(rows, ClipCutter(partial(FRAMES, num_frames=1), whole))[0]["pixel_values"].numpy()
    assert upright.shape == (56, 40, 3)
    assert (upright[:8] == 255).all()
    assert (upright[8:] == 0).all()
    cropped = ClipDataset(
        rows, ClipCutter(FRAMES, lambda read, generator: {0: torch.from_numpy(read(lambda h, w: (4, 2, 6, 9)))})
    )
    assert (cropped[0]["pixel_values"].numpy() == upright[4:10, 2:11]).all()


def test_broken_image_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    rows = datasets.Dataset.from_dict({"image": [{"path": str(tmp_path / "broken.png"), "bytes": None}]})
    with pytest.raises(VideoReadError, match=r"broken\.png: cannot be read as an image"):
        clips(rows)[0]


@pytest.mark.parametrize("kind", ["bytes", "bytes beside a path", "path", "plain path", "video feature"])
def test_item_may_hold_bytes_or_a_path(toy, kind):
    path = toy / "train" / "0000.mp4"
    item = {
        "bytes": {"path": None, "bytes": path.read_bytes()},
        "bytes beside a path": {"path": "gone.mp4", "bytes": path.read_bytes()},
        "path": {"path": str(path), "bytes": None},
        "plain path": str(path),
        "video feature": {"path": None, "bytes": path.read_bytes()},
    }[kind]
    rows = datasets.Dataset.from_dict({"video": [item, item]})
    if kind == "video feature":
        rows = rows.cast_column("video", datasets.Video(decode=False))
    frames = ClipDataset(rows, ClipCutter(first_and_last, whole))[1]["pixel_values"].numpy()
    assert (frames == frames_of(path)[[0, 15]]).all()


@pytest.mark.parametrize("typed", [True, False])
def test_parquet_folder_holds_the_bytes(tmp_path, toy, typed):
    items = [{"path": None, "bytes": (toy / "train" / f"000{i}.mp4").read_bytes()} for i in range(3)]
    rows = datasets.Dataset.from_dict({"label": [4, 5, 6], "video": items})
    rows = rows.cast_column("video", datasets.Video(decode=False)) if typed else rows
    rows.to_parquet(tmp_path / "train.parquet")
    data = load_clips(str(tmp_path), first_and_last, whole, label_column="label")
    assert [data[i]["labels"].item() for i in range(3)] == [4, 5, 6]
    assert (data[2]["pixel_values"].numpy() == frames_of(toy / "train" / "0002.mp4")[[0, 15]]).all()


def test_source_that_does_not_exist_is_named(tmp_path):
    for name in ("none", "none.txt", "none.csv"):
        with pytest.raises(ValueError, match=re.escape(f"There is no data set '{tmp_path / name}'")):
            load_rows(str(tmp_path / name))


def test_folder_without_data_is_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load_rows(str(tmp_path))


def test_missing_split_is_named_with_the_known_ones(toy):
    with pytest.raises(ValueError, match=r"has no split 'test'.*train.*validation"):
        load_rows(str(toy), "test")


def test_empty_data_set_is_refused(toy):
    rows = load_rows(str(toy))
    with pytest.raises(ValueError, match="data set is empty"):
        clips(rows.select([]))
    with pytest.raises(ValueError, match="data set is empty"):
        load_clips(str(toy), FRAMES, whole, max_samples=0)


def test_unknown_label_column_is_refused_with_the_known_ones(toy):
    with pytest.raises(ValueError, match=r"no column 'label'.*appearance.*motion"):
        clips(load_rows(str(toy)), label_column="label")


def test_rows_without_videos_are_refused_with_their_columns():
    with pytest.raises(ValueError, match="No column holds videos or images; the columns are text, label"):
        clips(datasets.Dataset.from_dict({"text": ["a"], "label": [0]}))


def test_max_samples_takes_the_first_videos(toy):
    assert [len(load_clips(str(toy), FRAMES, whole, max_samples=n)) for n in (None, 2, 6, 100)] == [6, 2, 6, 6]
    few = load_clips(str(toy), FRAMES, whole, max_samples=2, label_column="motion")
    assert [few[i]["labels"].item() for i in range(2)] == [0, 1]


def test_item_has_clips_mask_and_label_of_the_stated_shapes(toy):
    data = ClipDataset(
        load_rows(str(toy)), ClipCutter(FRAMES, PretrainingAugmentation([32, 48, 24]), MASK), label_column="motion"
    )
    item = data[3]
    assert {key: (tuple(value.shape), value.dtype) for key, value in item.items()} == {
        "pixel_values": ((4, 3, 32, 32), torch.uint8),
        "pixel_values_48": ((4, 3, 48, 48), torch.uint8),
        "pixel_values_24": ((4, 3, 24, 24), torch.uint8),
        "bool_masked_pos": ((32,), torch.bool),
        "labels": ((), torch.int64),
    }
    assert item["bool_masked_pos"].sum() == 24
    assert item["labels"] == 3


def test_item_has_nothing_that_was_not_asked_for(toy):
    assert clips(load_rows(str(toy)))[0].keys() == {"pixel_values"}


def test_item_shows_the_chosen_frames_of_its_video(toy):
    data = load_clips(str(toy), lambda total, generator: np.array([[total - 1, 3, 3, 0]]), whole)
    for i in range(len(data)):
        expected = frames_of(toy / "train" / f"{i:04d}.mp4")[[15, 3, 3, 0]]
        assert (data[i]["pixel_values"].numpy() == expected).all()


def test_epoch_and_index_decide_the_item_whatever_the_order_and_the_workers(toy):
    data = clips(load_rows(str(toy)), mask=MASK, label_column="motion", seed=1)
    keys = list(itertools.product(range(2), range(len(data))))
    expected = {key: data[key] for key in keys}
    for workers in (0, 2):
        random.Random(workers).shuffle(keys)
        loader = torch.utils.data.DataLoader(data, batch_size=None, sampler=keys, num_workers=workers)
        for key, item in zip(keys, loader, strict=True):
            assert equal(item, expected[key]), key


def test_index_alone_means_epoch_0(toy):
    data = clips(load_rows(str(toy)), mask=MASK)
    assert equal(data[2], data[(0, 2)])


def test_another_epoch_index_or_seed_gives_another_clip_and_mask(toy):
    rows = load_rows(str(toy)).select([0, 0])
    data, other = clips(rows, mask=MASK), clips(rows, mask=MASK, seed=1)
    items = [*(data[(epoch, index)] for epoch in range(3) for index in range(2)), other[0], other[1]]
    for one, two in itertools.combinations(items, 2):
        assert not torch.equal(one["pixel_values"], two["pixel_values"])
        assert not torch.equal(one["bool_masked_pos"], two["bool_masked_pos"])


def test_global_random_state_neither_matters_nor_changes(toy):
    data = clips(load_rows(str(toy)), mask=MASK)
    torch.manual_seed(0)
    first, state = data[1], torch.get_rng_state()
    assert torch.equal(state, torch.Generator().manual_seed(0).get_state())
    torch.manual_seed(1)
    assert equal(first, data[1])


def test_sample_generators_do_not_repeat():
    draws = {
        torch.randint(2**62, (), generator=sample_generator(*key)).item()
        for key in itertools.product(range(10), range(10), range(50))
    }
    assert len(draws) == 5000


def test_items_batch_with_the_default_collator(toy):
    data = clips(load_rows(str(toy)), mask=MASK, label_column="motion")
    (batch,) = torch.utils.data.DataLoader(data, batch_size=6)
    assert batch["pixel_values"].shape == (6, 4, 3, 32, 32)
    assert batch["bool_masked_pos"].shape == (6, 32)
    assert batch["labels"].tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_video_is_named_through_the_loader_too(tmp_path, toy, workers):
    path = list_file(tmp_path, f"{toy}/train/0000.mp4\ngone.mp4\n")
    data = load_clips(str(path), FRAMES, PretrainingAugmentation([32]))
    assert data[0]["pixel_values"].shape == (4, 3, 32, 32)
    with pytest.raises(VideoReadError, match=re.escape(str(tmp_path / "gone.mp4"))):
        data[1]
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=workers)
    with pytest.raises(VideoReadError, match=re.escape(str(tmp_path / "gone.mp4"))):
        next(iter(loader))


def test_broken_video_is_named(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    data = load_clips(str(list_file(tmp_path, "broken.mp4 0\n")), FRAMES, whole)
    with pytest.raises(VideoReadError, match=r"broken\.mp4: cannot be opened"):
        data[0]


def test_pretraining_clips_fit_the_configuration(toy):
    data = pretraining_clips(DataArguments(dataset=str(toy), stride=2), CONFIG, sizes=[24, 32])
    assert len(data) == 6
    item = data[0]
    assert {key: (tuple(value.shape), value.dtype) for key, value in item.items()} == {
        "pixel_values": ((4, 3, 32, 32), torch.uint8),
        "pixel_values_24": ((4, 3, 24, 24), torch.uint8),
        "bool_masked_pos": ((CONFIG.num_patches,), torch.bool),
    }
    assert item["bool_masked_pos"].sum() == CONFIG.num_masked_patches


def test_pretraining_clips_use_the_stride_mask_and_crop_of_the_recipe(toy):
    config = MVDConfig(image_size=32, patch_size=8, num_frames=4, mask_type="random", mask_ratio=0.6)
    data = pretraining_clips(DataArguments(dataset=str(toy), stride=3, crop="random_resized"), config)
    assert (np.diff(data.reader.cutter.frames(16, generator=sample_generator(0, 0, 0))) == 3).all()
    mask = data[0]["bool_masked_pos"].view(config.grid)
    assert mask.sum() == config.num_masked_patches
    assert not (mask == mask[0]).all()
    direct = PretrainingAugmentation([32], "random_resized")
    expected = ClipDataset(data.rows, ClipCutter(data.reader.cutter.frames, direct, data.reader.cutter.mask))
    assert equal(data[0], expected[0])


def test_evaluation_clips_come_from_the_evaluation_split_or_data_set(tmp_path, toy):
    assert pretraining_clips(DataArguments(dataset=str(toy)), CONFIG, evaluation=True) is None
    split = DataArguments(dataset=str(toy), eval_split="validation")
    assert len(pretraining_clips(split, CONFIG, evaluation=True)) == 3
    assert len(pretraining_clips(split, CONFIG)) == 6
    path = list_file(tmp_path, "train/0000.mp4\ntrain/0001.mp4\n")
    other = DataArguments(dataset=str(toy), eval_dataset=str(path), root=str(toy), max_samples=5)
    assert len(pretraining_clips(other, CONFIG, evaluation=True)) == 2
    assert len(pretraining_clips(other, CONFIG)) == 5


def test_pretraining_clips_of_a_model_that_is_not_square_are_refused(toy):
    config = MVDConfig(image_size=(32, 48), patch_size=8, num_frames=4)
    with pytest.raises(ValueError, match="the model wants 32x48 pixels"):
        pretraining_clips(DataArguments(dataset=str(toy)), config)


def test_recipe_without_data_is_refused():
    with pytest.raises(ValueError, match="give --dataset"):
        DataArguments()
