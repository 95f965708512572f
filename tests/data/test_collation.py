"""Batches of clips: several per video side by side, unreadable ones left out, values of every kind."""

import numpy as np
import pytest
import torch

from mvd_hf.data.clips import collate_clips


def clip(value: int, **more) -> dict:
    return {"pixel_values": torch.full((2, 3), value, dtype=torch.uint8), "labels": torch.tensor(value), **more}


def blank(*bad_videos) -> dict:
    return clip(0, is_blank=True, bad_videos=list(bad_videos))


BAD = [(f"{name}.mp4", "cannot be opened") for name in "abc"]


def test_clips_are_stacked():
    batch = collate_clips([clip(1), clip(2)])
    assert batch.keys() == {"pixel_values", "labels"}
    assert batch["labels"].tolist() == [1, 2]
    assert batch["pixel_values"][:, 0, 0].tolist() == [1, 2]
    assert batch["pixel_values"].shape == (2, 2, 3)
    assert batch["pixel_values"].dtype == torch.uint8


def test_clips_of_a_video_lie_next_to_each_other():
    batch = collate_clips([[clip(1), clip(2), clip(3)], clip(4), [clip(5), clip(6)]])
    assert batch["labels"].tolist() == [1, 2, 3, 4, 5, 6]
    assert batch["pixel_values"][:, 1, 2].tolist() == [1, 2, 3, 4, 5, 6]


def test_unreadable_videos_are_left_out_and_told():
    batch = collate_clips([clip(1), blank(BAD[0]), [clip(2, bad_videos=BAD[1:]), clip(3)], blank()])
    assert batch.keys() == {"pixel_values", "labels", "bad_videos"}
    assert batch["labels"].tolist() == [1, 2, 3]
    assert batch["bad_videos"] == BAD


def test_a_batch_without_a_readable_video_keeps_one_blank_clip():
    batch = collate_clips([blank(BAD[0]), blank(BAD[1])])
    assert batch["is_blank"] is True
    assert batch["bad_videos"] == BAD[:2]
    assert batch["pixel_values"].shape == (1, 2, 3)
    assert batch["labels"].tolist() == [0]


def test_a_batch_of_padding_tells_of_no_video():
    assert collate_clips([blank(), blank()]).keys() == {"pixel_values", "labels", "is_blank"}


@pytest.mark.parametrize("count", [1, 4])
def test_skipped_items_give_no_batch(count):
    assert collate_clips([None] * count) is None


def test_values_of_other_kinds_are_batched_as_usual():
    rows = [
        clip(1, count=3, ratio=0.5, box=np.array([1.0, 2.0]), size=np.float32(1), name="a", nested={"x": 1}),
        clip(2, count=4, ratio=1.5, box=np.array([3.0, 4.0]), size=np.float32(2), name="b", nested={"x": 2}),
    ]
    batch = collate_clips(rows)
    expected = torch.utils.data.default_collate(rows)
    assert batch.keys() == expected.keys()
    for key in ("count", "ratio", "box", "size"):
        assert torch.equal(batch[key], expected[key])
        assert batch[key].dtype == expected[key].dtype
    assert batch["count"].tolist() == [3, 4]
    assert batch["ratio"].dtype == torch.float64
    assert batch["box"].tolist() == [[1, 2], [3, 4]]
    assert batch["name"] == ["a", "b"]
    assert batch["nested"]["x"].tolist() == [1, 2]


def test_the_items_are_left_as_they_are():
    items = [clip(1), blank(BAD[0])]
    collate_clips(items)
    assert items[1].keys() == {"pixel_values", "labels", "is_blank", "bad_videos"}
