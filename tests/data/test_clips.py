"""Clips cut out of videos: random numbers, several clips per video, labels, unreadable videos, workers."""

import itertools
import random
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from launching import warm_server
from mvd_hf.data.augmentation import PretrainingAugmentation
from mvd_hf.data.clips import MAX_SUBSTITUTES, ClipDataset, ClipSampler, collate_clips, sample_generator
from mvd_hf.data.masking import tube_mask
from mvd_hf.data.toy import make_toy_dataset
from mvd_hf.model.frame_sampling import dense_frames, dense_test_frames, pretraining_frames, uniform_frames
from mvd_hf.model.video_reading import VideoReader, VideoReadError
from video_files import MOMENTS, all_frames, first_and_last, numbers, whole, write_moments

FRAMES = partial(pretraining_frames, num_frames=4, stride=2)
MASK = partial(tube_mask, (2, 4, 4), 0.75)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> list[str]:
    """Paths of 6 videos of 16 frames."""
    folder = tmp_path_factory.mktemp("toy")
    make_toy_dataset(folder, num_train=6, num_validation=0, num_frames=16, height=48, width=64)
    return sorted(map(str, folder.glob("train/*.mp4")))


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """How often videos are opened and frames of them are decoded."""
    counts = Counter()
    open_file, decode = VideoReader.__init__, VideoReader.decode

    def counted_open(self, *args, **kwargs):
        counts["opened"] += 1
        open_file(self, *args, **kwargs)

    def counted_decode(self, indices):
        counts["decoded"] += 1
        counts["frames"] += len(indices)
        return decode(self, indices)

    monkeypatch.setattr(VideoReader, "__init__", counted_open)
    monkeypatch.setattr(VideoReader, "decode", counted_decode)
    return counts


def rows_of(paths: list[str]) -> datasets.Dataset:
    """Rows with a label of their own, which is their place."""
    return datasets.Dataset.from_dict({"video": paths, "label": list(range(len(paths)))})


def clips(paths: list[str], mask=None, repeats: int = 1, frames=FRAMES, **options) -> ClipDataset:
    return ClipDataset(rows_of(paths), ClipSampler(frames, PretrainingAugmentation([32]), mask, repeats), **options)


def damaged(toy: list[str], folder: Path, *places: int) -> list[str]:
    """The videos, with unreadable ones at some places."""
    paths = list(toy)
    for place in places:
        paths[place] = str(folder / f"bad {place}.mp4")
        Path(paths[place]).write_bytes(b"no video")
    return paths


def described(item: dict) -> dict:
    return {key: (tuple(value.shape), value.dtype) for key, value in item.items() if isinstance(value, torch.Tensor)}


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def drop(item: dict) -> dict:
    return {key: value for key, value in item.items() if key not in ("is_blank", "bad_videos")}


def as_list(item) -> list[dict]:
    return item if isinstance(item, list) else [item]


def test_an_item_has_clips_mask_and_label_of_the_stated_shapes(toy):
    clip_sampler = ClipSampler(FRAMES, PretrainingAugmentation([32, 48, 24]), MASK)
    item = ClipDataset(rows_of(toy), clip_sampler, label_column="label")[3]
    assert described(item) == {
        "pixel_values": ((4, 3, 32, 32), torch.uint8),
        "pixel_values_48": ((4, 3, 48, 48), torch.uint8),
        "pixel_values_24": ((4, 3, 24, 24), torch.uint8),
        "bool_masked_pos": ((32,), torch.bool),
        "labels": ((), torch.int64),
    }
    assert item["bool_masked_pos"].sum() == 24
    assert item["labels"] == 3
    assert clips(toy)[0].keys() == {"pixel_values"}


def test_an_item_shows_the_chosen_frames_of_its_video(toy):
    chosen = [15, 3, 3, 0]
    data = ClipDataset(rows_of(toy), ClipSampler(lambda total, generator: np.array([chosen]), whole))
    for i, path in enumerate(toy):
        assert (data[i]["pixel_values"].numpy() == all_frames(path)[chosen]).all()


def test_the_number_of_frames_is_handed_to_the_sampler(toy):
    totals = []
    ClipSampler(lambda total, generator: totals.append(total) or np.array([[0]]), whole)(toy[0], None)
    assert totals == [16]


def test_an_item_may_hold_bytes_or_a_path(toy):
    for kind in ["bytes", "bytes beside a path", "path", "plain path", "plain bytes"]:
        content = Path(toy[0]).read_bytes()
        item = {
            "bytes": {"path": None, "bytes": content},
            "bytes beside a path": {"path": "gone.mp4", "bytes": content},
            "path": {"path": toy[0], "bytes": None},
            "plain path": toy[0],
            "plain bytes": content,
        }[kind]
        (clip,) = ClipSampler(first_and_last, whole)(item, None)
        assert (clip["pixel_values"].numpy() == all_frames(toy[0])[[0, 15]]).all()


def test_an_image_is_a_clip_of_one_repeated_frame(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    rows = datasets.Dataset.from_dict({"png": [str(tmp_path / "0.png")]})
    clip = ClipDataset(rows, ClipSampler(FRAMES, whole))[0]["pixel_values"].numpy()
    assert clip.shape == (4, 40, 56, 3)
    assert (clip == pixels).all()


def test_epoch_and_index_decide_the_item_whatever_the_order(toy):
    data = clips(toy, mask=MASK, label_column="label", seed=1)
    keys = list(itertools.product(range(2), range(len(data))))
    expected = {key: data[key] for key in keys}
    random.Random(0).shuffle(keys)
    for key in keys:
        assert equal(data[key], expected[key]), key


@pytest.mark.parametrize(
    ("workers", "persistent", "context"),
    [
        (0, False, None),
        (1, False, None),
        (2, False, None),
        (2, True, None),
        pytest.param(2, True, "forkserver", marks=pytest.mark.slow),
    ],
)
def test_workers_do_not_change_the_items(toy, tmp_path, workers, persistent, context):
    """Nor what is drawn in place of an unreadable one."""
    frames = partial(FRAMES, num_clips=2)
    data = clips(damaged(toy, tmp_path, 1), MASK, 2, frames, label_column="label", on_bad_video="substitute")
    keys = [[(epoch, i) for i in order] for epoch in range(2) for order in ([0, 1], [5, 2], [4])]
    loader = torch.utils.data.DataLoader(
        data,
        batch_sampler=keys,
        num_workers=workers,
        persistent_workers=persistent,
        multiprocessing_context=context and warm_server(),
        collate_fn=collate_clips,
    )
    for _ in range(2):
        for batch, expected in zip(loader, keys, strict=True):
            wanted = collate_clips([data[key] for key in expected])
            assert batch.pop("bad_videos", None) == wanted.pop("bad_videos", None)
            assert equal(batch, wanted)


def test_an_index_behind_the_last_row_ends_an_iteration(toy):
    assert len(list(clips(toy[:2]))) == 2
    with pytest.raises(IndexError):
        clips(toy)[6]


def test_several_clips_of_a_video_are_decoded_at_once(toy, decoded):
    clip_sampler = ClipSampler(partial(FRAMES, num_clips=3), PretrainingAugmentation([32, 24]), MASK, repeats=2)
    (items,) = [ClipDataset(rows_of(toy[:1]), clip_sampler, label_column="label")[0]]
    assert len(items) == 6
    assert decoded["opened"] == decoded["decoded"] == 1
    assert decoded["frames"] <= 12  # no frame twice
    for item in items:
        assert described(item) == {
            "pixel_values": ((4, 3, 32, 32), torch.uint8),
            "pixel_values_24": ((4, 3, 24, 24), torch.uint8),
            "bool_masked_pos": ((32,), torch.bool),
            "labels": ((), torch.int64),
        }


def test_repeats_are_the_same_frames_cropped_and_masked_anew(toy):
    clip_sampler = ClipSampler(partial(FRAMES, num_clips=2), whole, MASK, repeats=3)
    whole_clips = clip_sampler(toy[0], sample_generator(0, 0, 0))
    frames = [clip["pixel_values"] for clip in whole_clips]
    assert all(torch.equal(frames[i], frames[0]) for i in (1, 2))
    assert all(torch.equal(frames[i], frames[3]) for i in (4, 5))
    assert not torch.equal(frames[0], frames[3])
    cropped = ClipSampler(FRAMES, PretrainingAugmentation([32]), MASK, repeats=3)(toy[0], sample_generator(0, 0, 0))
    for key in ("pixel_values", "bool_masked_pos"):
        for one, other in itertools.combinations(cropped, 2):
            assert not torch.equal(one[key], other[key])


def test_the_first_of_several_repeats_is_the_single_clip(toy):
    single, several = (clips(toy, MASK, repeats, label_column="label") for repeats in (1, 3))
    for key in ((0, 0), (3, 5)):
        assert equal(several[key][0], single[key])


def test_several_clips_are_those_of_the_same_draws(toy):
    """Frames are drawn first, then crop and mask of each clip in turn."""
    augmentation = PretrainingAugmentation([32, 24])
    clip_sampler = ClipSampler(partial(FRAMES, num_clips=2), augmentation, MASK)
    clips_of_video = clip_sampler(toy[0], sample_generator(0, 0, 0))
    generator = sample_generator(0, 0, 0)
    chosen = FRAMES(16, num_clips=2, generator=generator)
    with VideoReader(toy[0]) as reader:
        for indices, clip in zip(chosen, clips_of_video, strict=True):
            sizes = augmentation(reader.decode(indices), generator)
            assert torch.equal(clip["pixel_values"], sizes[32])
            assert torch.equal(clip["pixel_values_24"], sizes[24])
            assert torch.equal(clip["bool_masked_pos"], MASK(generator=generator))


def test_less_than_one_repeat_is_refused():
    with pytest.raises(ValueError, match="repeats=0 must be at least 1"):
        ClipSampler(FRAMES, whole, repeats=0)


@pytest.mark.parametrize("label_column", [None, "label"])
@pytest.mark.parametrize("num_clips", [1, 2])
def test_a_blank_clip_is_like_a_real_one(toy, label_column, num_clips):
    clip_sampler = ClipSampler(partial(FRAMES, num_clips=num_clips), PretrainingAugmentation([32, 24]), MASK)
    data = ClipDataset(rows_of(toy), clip_sampler, label_column=label_column)
    real = data[0] if num_clips == 1 else data[0][0]
    blank = data[(7, -1)]
    assert described(blank) == described(real)
    assert blank.keys() - real.keys() == {"is_blank", "bad_videos"}
    assert blank["is_blank"] is True
    assert blank["bad_videos"] == []
    assert not blank["pixel_values"].any()
    assert blank["bool_masked_pos"].sum() == real["bool_masked_pos"].sum()
    assert equal(data[-1]["pixel_values"], data[(3, -1)]["pixel_values"])


def test_an_unreadable_video_is_named(toy, tmp_path):
    data = clips(damaged(toy, tmp_path, 2))
    assert data[1]["pixel_values"].shape == (4, 3, 32, 32)
    with pytest.raises(VideoReadError, match=r"bad 2\.mp4: cannot be opened"):
        data[2]
    with pytest.raises(VideoReadError, match=r"gone\.mp4: no such file"):
        clips(["gone.mp4"])[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_video_is_named_through_the_loader_too(toy, tmp_path, workers):
    data = clips(damaged(toy, tmp_path, 1))
    iterator = iter(torch.utils.data.DataLoader(data, batch_size=2, num_workers=workers))
    with pytest.raises(VideoReadError, match=r"bad 1\.mp4: cannot be opened"):
        next(iterator)
    assert len(list(iterator)) == 2  # which lets the worker end


@pytest.mark.parametrize("num_clips", [1, 2])
def test_an_unreadable_video_is_skipped_and_told(toy, tmp_path, num_clips):
    frames = partial(FRAMES, num_clips=num_clips)
    data = clips(damaged(toy, tmp_path, 2), MASK, 1, frames, label_column="label", on_bad_video="skip")
    blank = data[(1, 2)]
    ((file, reason),) = blank["bad_videos"]
    assert file == str(tmp_path / "bad 2.mp4")
    assert reason.startswith("cannot be opened as a video")
    assert blank["is_blank"] is True
    assert equal(drop(blank), drop(data[-1]))
    sound = clips(toy, MASK, 1, frames, label_column="label")
    for i in (0, 1, 3, 4, 5):
        for one, other in zip(as_list(data[(1, i)]), as_list(sound[(1, i)]), strict=True):
            assert equal(one, other)


def test_a_row_without_a_file_is_skipped_too(toy):
    rows = datasets.Dataset.from_dict({"video": [{"path": toy[0], "bytes": None}, None]})
    data = ClipDataset(rows.cast_column("video", datasets.Video(decode=False)), ClipSampler(FRAMES, whole))
    with pytest.raises(VideoReadError, match="<a row without a file>"):
        data[1]
    data.on_bad_video = "skip"
    assert data[1]["bad_videos"] == [("<a row without a file>", "has neither a path nor bytes")]


def test_a_video_that_fails_while_it_is_read_is_skipped(toy):
    data = ClipDataset(rows_of(toy), ClipSampler(lambda total, generator: np.array([[99 if total > 1 else 0]]), whole))
    data.on_bad_video = "skip"
    ((file, reason),) = data[0]["bad_videos"]
    assert file == toy[0]
    assert reason.startswith("frame 99 was asked for")


def test_a_substitute_has_its_own_label_and_the_draws_of_the_sample(toy, tmp_path):
    paths = damaged(toy, tmp_path, 1, 2, 4)
    data = clips(paths, MASK, label_column="label", on_bad_video="substitute")
    labels = set()
    for epoch in range(20):
        item = data[(epoch, 2)]
        files = [Path(file).name for file, _ in item["bad_videos"]]
        assert files[0] == "bad 2.mp4"
        assert set(files) <= {"bad 1.mp4", "bad 2.mp4", "bad 4.mp4"}
        label = item["labels"].item()
        labels.add(label)
        generator = sample_generator(0, epoch, 2)  # an unreadable video draws nothing but the next one
        order = [int(torch.randint(6, (), generator=generator)) for _ in files]
        assert [f"bad {i}.mp4" for i in order[:-1]] == files[1:]
        assert order[-1] == label
        (clip,) = data.reader.clip_sampler(toy[label], generator)
        assert torch.equal(item["pixel_values"], clip["pixel_values"])
        assert "is_blank" not in item
        assert equal(drop(item), drop(data[(epoch, 2)]))
    assert labels == {0, 3, 5}


def test_several_clips_tell_of_a_substituted_video_once(toy, tmp_path):
    data = clips(damaged(toy[:2], tmp_path, 0), repeats=3, on_bad_video="substitute")
    items = data[(0, 0)]
    assert len(items) == 3
    assert {file for file, _ in items[0]["bad_videos"]} == {str(tmp_path / "bad 0.mp4")}
    assert all("bad_videos" not in item for item in items[1:])


def test_no_more_than_so_many_substitutes_are_tried(toy, tmp_path, decoded):
    data = clips(damaged(toy, tmp_path, *range(6)), on_bad_video="substitute")
    with pytest.raises(
        VideoReadError, match=r"^/.*bad 3\.mp4: no substitute can be read either; tried .*bad"
    ) as error:
        data[3]
    assert decoded["opened"] == MAX_SUBSTITUTES + 1
    assert str(error.value).count(".mp4") == MAX_SUBSTITUTES + 2


def test_unknown_rule_and_empty_data_set_are_refused(toy):
    with pytest.raises(ValueError, match="no on_bad_video='ignore'; choose raise, skip, substitute"):
        clips(toy, on_bad_video="ignore")
    with pytest.raises(ValueError, match="data set is empty"):
        clips([])
    with pytest.raises(ValueError, match=r"no column 'motion'; the columns are video, label"):
        clips(toy, label_column="motion")


def test_rows_without_videos_are_refused_with_their_columns():
    rows = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    with pytest.raises(ValueError, match="No column holds videos or images; the columns are text, label"):
        ClipDataset(rows, ClipSampler(FRAMES, whole))


def test_index_alone_means_epoch_0(toy):
    data = clips(toy, mask=MASK)
    assert equal(data[2], data[(0, 2)])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_can_be_set_for_those_who_give_an_index_alone(toy, workers):
    dataset = clips(toy)
    loader = torch.utils.data.DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, batch_size=None)
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        for index, item in enumerate(loader):
            assert equal(item, dataset[(epoch, index)])


def test_another_epoch_index_or_seed_gives_another_clip_and_mask(toy):
    paths = [toy[0], toy[0]]
    data, other = clips(paths, mask=MASK), clips(paths, mask=MASK, seed=1)
    items = [*(data[(epoch, index)] for epoch in range(3) for index in range(2)), other[0], other[1]]
    for one, two in itertools.combinations(items, 2):
        assert not torch.equal(one["pixel_values"], two["pixel_values"])
        assert not torch.equal(one["bool_masked_pos"], two["bool_masked_pos"])


def test_fixed_views_come_again_with_other_masks_and_the_same_substitute(toy, tmp_path):
    paths = damaged(toy, tmp_path, 2)
    sampler = ClipSampler(FRAMES, PretrainingAugmentation([32]), MASK, views=2)
    data = ClipDataset(rows_of(paths), sampler, on_bad_video="substitute")
    fresh = clips(paths, MASK, on_bad_video="substitute")
    for index in (1, 2):
        items = [data[epoch, index] for epoch in range(4)]
        for epoch, item in enumerate(items):
            assert torch.equal(item["pixel_values"], fresh[epoch % 2, index]["pixel_values"])
        assert len(torch.stack([item["bool_masked_pos"] for item in items]).unique(dim=0)) == 4
    with pytest.raises(ValueError, match="views=0 must be at least 1"):
        ClipSampler(FRAMES, whole, views=0)


def test_global_random_state_neither_matters_nor_changes(toy):
    data = clips(toy, mask=MASK)
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
    data = clips(toy, mask=MASK, label_column="label")
    (batch,) = torch.utils.data.DataLoader(data, batch_size=6)
    assert batch["pixel_values"].shape == (6, 4, 3, 32, 32)
    assert batch["bool_masked_pos"].shape == (6, 32)
    assert batch["labels"].tolist() == [0, 1, 2, 3, 4, 5]


# batches


def numbered(value: int, **more) -> dict:
    return {"pixel_values": torch.full((2, 3), value, dtype=torch.uint8), "labels": torch.tensor(value), **more}


def blank_item(*bad_videos) -> dict:
    return numbered(0, is_blank=True, bad_videos=list(bad_videos))


BAD = [(f"{name}.mp4", "cannot be opened") for name in "abc"]


def test_a_batch_has_the_clips_in_order_without_blank_ones_and_reports_unreadable_videos():
    items = [numbered(1), blank_item(BAD[0]), [numbered(2, bad_videos=BAD[1:]), numbered(3)], blank_item()]
    batch = collate_clips(items)
    assert batch.keys() == {"pixel_values", "labels", "bad_videos"}
    assert batch["labels"].tolist() == batch["pixel_values"][:, 1, 2].tolist() == [1, 2, 3]
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["bad_videos"] == BAD
    assert items[1].keys() == {"pixel_values", "labels", "is_blank", "bad_videos"}  # left as it is
    assert collate_clips([numbered(1), numbered(2)]).keys() == {"pixel_values", "labels"}


def test_a_batch_without_a_readable_video_keeps_one_blank_clip():
    batch = collate_clips([blank_item(BAD[0]), blank_item(BAD[1])])
    assert batch["is_blank"] is True
    assert batch["bad_videos"] == BAD[:2]
    assert batch["pixel_values"].shape == (1, 2, 3)
    assert "bad_videos" not in collate_clips([blank_item(), blank_item()])


def test_skipped_items_give_no_batch():
    assert collate_clips([None] * 4) is None


def middle_clip(total_frames: int, stride: int, generator=None) -> np.ndarray:
    return dense_test_frames(total_frames, 8, stride, num_clips=1)


@pytest.mark.parametrize("memory_gib", [0.0, 0.1])
@pytest.mark.parametrize("sampler", [pretraining_frames, dense_frames, middle_clip])
def test_the_same_motion_gives_the_same_displacement_at_every_rate(tmp_path, sampler, memory_gib):
    frames = sampler if sampler is middle_clip else partial(sampler, num_frames=8)
    shown = {}
    for name in MOMENTS:
        cut = ClipSampler(frames, whole, fps=5, memory_gib=memory_gib)
        item = {"path": str(write_moments(tmp_path, name)), "bytes": None}
        for _ in range(2):  # the second time from the memory, if there is one
            (clip,) = cut(item, sample_generator(0, 0))
            shown[name] = np.array(numbers(clip["pixel_values"].numpy()))
    assert (shown["60"] >= 0).all()
    if sampler is not dense_frames:  # whose frames are spread over both ends of their span
        assert (np.diff(shown["60"]) == 12).all()
        assert (np.diff(shown["10"]) == 12).all()
    for name, error in (("10", 3), ("25", 2), ("variable", 2)):  # half of the largest distance of its frames
        assert np.abs(shown[name] - shown["60"]).max() <= error, name


def test_an_image_is_a_still_clip_at_any_rate(tmp_path):
    Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / "red.png")
    (clip,) = ClipSampler(FRAMES, whole, fps=4)(str(tmp_path / "red.png"), sample_generator(0, 0), is_image=True)
    assert clip["pixel_values"].shape == (4, 32, 32, 3)
    assert clip["pixel_values"][..., 0].min() == 200


def test_a_sampler_without_a_stride_takes_no_fps():
    with pytest.raises(ValueError, match="fps=4"):
        ClipSampler(uniform_frames, whole, fps=4)
    with pytest.raises(ValueError, match="fps=0"):
        ClipSampler(FRAMES, whole, fps=0)
