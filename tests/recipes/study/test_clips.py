"""Videos of the study: their copies, their split without overlap, and nested shares of the labels."""

import csv

import numpy as np
import pandas as pd
import pytest

from mvd_hf.data.decoding import read_frames
from mvd_hf.data.toy import write_video
from recipes.study.clips import VideoArguments, prepare_clips, with_share, write_list


def make_videos(folder, count: int = 10, frames: int = 50):
    """Class folders of videos whose brightness is 5 times the number of the frame."""
    for label in ("train_in", "out"):  # the first looks like a split
        (folder / label).mkdir(parents=True)
        for i in range(count):
            values = np.arange(frames, dtype=np.uint8)[:, None, None, None] * np.uint8(5)
            write_video(folder / label / f"{label}{i}.mp4", np.broadcast_to(values, (frames, 40, 60, 3)))
    return folder


def test_copies_are_small_and_keep_the_duration(tmp_path):
    folder = make_videos(tmp_path / "videos", 4)
    table = prepare_clips(str(folder), VideoArguments(frames_per_second=5, short_side=20), tmp_path / "copies")
    frames = read_frames(table["path"][0], lambda total: range(total))
    assert frames.shape == (11, 20, 30, 3)  # 50 frames of 25 per second last 1.96 s from the first to the last
    assert np.abs(frames[:, 0, 0, 0] - np.linspace(0, 245, 11)).max() < 12
    assert set(table["label"]) == {"train_in", "out"}
    again = prepare_clips(str(folder), VideoArguments(frames_per_second=5, short_side=20), tmp_path / "copies")
    pd.testing.assert_frame_equal(table, again)
    with pytest.raises(ValueError, match="copies"):
        prepare_clips(str(folder), VideoArguments(short_side=10), tmp_path / "copies")


def test_every_part_has_all_classes_and_a_list_names_the_test(tmp_path):
    folder = make_videos(tmp_path / "videos", 10, frames=4)
    table = prepare_clips(str(folder), VideoArguments(), tmp_path / "copies")
    assert len(table) == len(set(table["name"])) == 20
    assert table.groupby(["part", "label"]).size().to_dict() == {
        **{(part, label): 2 for part in ("test", "validation") for label in ("out", "train_in")},
        **{("train", label): 6 for label in ("out", "train_in")},
    }
    with (folder / "val.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["fname", "label"], ["out3.npy", "out"], ["train_in0.npy", "x"]])
    table = prepare_clips(str(folder), VideoArguments(test_videos="val.csv"), tmp_path / "listed")
    assert set(table["name"][table["part"] == "test"]) == {"out3", "train_in0"}


def test_segments_are_cut_around_their_middle(tmp_path):
    folder = make_videos(tmp_path / "videos", 6)
    rows = [
        {"file": f"out{i}.mp4", "kind": kind, "label": label, "first_frame": 20, "end_frame": 24}
        for i in range(6)
        for kind, label in (("digit", str(i % 2)), ("colour", "red"))
    ]
    pd.DataFrame(rows).to_csv(folder / "words.csv", index=False)
    arguments = VideoArguments(segments="words.csv", segment_kind="digit", segment_frames=8, validation_fraction=0.3)
    table = prepare_clips(str(folder), arguments, tmp_path / "copies")
    frames = read_frames(table["path"][0], lambda total: range(total))
    whole, table = table[table["label"] == ""], table[table["label"] != ""]
    assert (len(table), set(table["label"])) == (6, {"0", "1"})
    # the videos themselves, for pre-training, with all their frames; none holds a segment of the test
    parts = table.set_index(table["name"].str.split("_").str[0])["part"]
    assert whole.set_index("name")["part"].to_dict() == parts[parts != "test"].to_dict()
    assert len(read_frames(whole["path"].iloc[0], lambda total: range(total))) == 50
    assert np.abs(frames[:, 0, 0, 0] / 5 - np.arange(18, 26)).max() < 2
    with pytest.raises(ValueError, match="segment_kind=letter"):
        prepare_clips(str(folder), VideoArguments(segments="words.csv", segment_kind="letter"), tmp_path / "letters")


def test_larger_shares_hold_the_smaller_ones_and_every_class(tmp_path):
    labels = ["a"] * 40 + ["b"] * 9 + ["c"]
    table = pd.DataFrame({"path": [f"{i}.mp4" for i in range(50)], "label": labels})
    shares = [with_share(table, share, seed=1) for share in (0.1, 0.3, 1.0)]
    assert [share["label"].value_counts().to_dict() for share in shares] == [
        {"a": 4, "b": 1, "c": 1},
        {"a": 12, "b": 3, "c": 1},
        {"a": 40, "b": 9, "c": 1},
    ]
    assert set(shares[0].index) < set(shares[1].index) < set(shares[2].index)
    assert set(shares[0].index) != set(with_share(table, 0.1, seed=2).index)
    path = write_list(shares[0], ["a", "b", "c"], tmp_path / "lists" / "list.csv")
    assert path.read_text().splitlines()[-1] == "49.mp4,2"
