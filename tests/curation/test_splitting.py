"""Splits of your videos: no leaks, every class on both sides where possible, warnings by name, sampling."""

import csv
import itertools
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

from mvd_hf.curation.fingerprints import FingerprintSettings, VideoFingerprint, read_fingerprints
from mvd_hf.curation.near_duplicates import NearDuplicate
from mvd_hf.curation.splitting import (
    Split,
    choose_sampling,
    choose_validation,
    class_warnings,
    find_overlap_by_content,
    group_videos,
    split_rows,
    write_duplicates,
)
from mvd_hf.data.toy import toy_frames, write_video
from mvd_hf.model.frame_sampling import dense_frames, uniform_test_frames


def rows_of(names: list[str | None]) -> datasets.Dataset:
    """Rows that name files, which need not be there."""
    features = datasets.Features({"video": datasets.Video(decode=False)})
    cells = [None if name is None else {"path": name, "bytes": None} for name in names]
    return datasets.Dataset.from_dict({"video": cells}, features=features)


def ucf_names(num_groups: int, num_clips: int, name: str = "Walk") -> list[str]:
    return [f"{name}/v_{name}_g{g:02d}_c{c:02d}.avi" for g in range(num_groups) for c in range(num_clips)]


def parts(split: Split, labels: list[int]) -> dict[int, float]:
    """The part of each class that is in validation."""
    held_out = Counter(labels[i] for i in split.validation)
    usable = Counter(labels[i] for i in [*split.train, *split.validation])
    return {label: held_out[label] / count for label, count in usable.items()}


def assert_sound(split: Split, num_rows: int, num_left_out: int = 0):
    assert not {split.groups[i] for i in split.train} & {split.groups[i] for i in split.validation}
    assert sorted({*split.train, *split.validation}) == sorted([*split.train, *split.validation])
    assert len(split.train) + len(split.validation) == num_rows - num_left_out
    assert split.train == sorted(split.train)


# groups


def test_groups_by_name_and_by_content():
    names = ["v_A_g01_c01.avi", "v_A_g02_c01.avi", "v_A_g01_c02.avi", "0001.mp4", "0002.mp4", "0003.mp4", "0003.mp4"]
    assert group_videos(names) == [0, 1, 0, 2, 3, 4, 4]
    pairs = [NearDuplicate(3, 1, "same", 1, 1), NearDuplicate(4, 2, "part", 1, 1)]
    assert group_videos(names, None, pairs) == [0, 1, 0, 1, 0, 2, 2]
    chain = [NearDuplicate(i, i + 1, "overlap", 0.5, 1) for i in range(3, 6)]
    assert group_videos(names, None, chain) == [0, 1, 0, 2, 2, 2, 2]
    assert group_videos(names, sources=["a", "b", "c", "b", None, None, "c"]) == [0, 1, 0, 1, 2, 0, 0]


def test_groups_of_many_videos_in_a_long_chain():
    pairs = [NearDuplicate(i, i + 1, "same", 1, 1) for i in range(5_000 - 1)]
    assert set(group_videos([f"{i:05d}.mp4" for i in range(5_000)], None, pairs)) == {0}


# the split


def test_groups_stay_together_and_every_class_has_its_part():
    names = [*ucf_names(25, 4, "Walk"), *ucf_names(10, 6, "Run"), *[f"Jump/{i:04d}.mp4" for i in range(50)]]
    labels = [0] * 100 + [1] * 60 + [2] * 50
    split = split_rows(rows_of(names), labels)
    assert_sound(split, 210)
    assert len(set(split.groups)) == 25 + 10 + 50
    assert parts(split, labels) == {0: 0.2, 1: 0.2, 2: 0.2}
    assert split.warnings == []


def test_names_that_begin_with_their_classes_make_no_groups_of_several_heads_either():
    pairs = [(verb, noun) for verb in range(3) for noun in range(2)]
    names = [f"{'cpw'[verb]}ut_{'ab'[noun]}x_{i}.mp4" for verb, noun in pairs for i in range(10)]
    labels = [(verb, 3 + noun) for verb, noun in pairs for _ in range(10)]
    split = split_rows(rows_of(names), labels)
    assert len(set(split.groups)) == len(split.validation) * 5 == 60
    labels[:5] = [()] * 5
    assert split_rows(rows_of(names), labels).warnings == []


@pytest.mark.parametrize("fraction", [0.1, 0.35, 0.5])
def test_the_fraction_is_met_as_well_as_groups_allow(fraction):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 60)
    names = [f"v_Walk_g{g:02d}_c{c:02d}.avi" for g, size in enumerate(sizes) for c in range(size)]
    split = split_rows(rows_of(names), [0] * len(names), fraction=fraction)
    assert_sound(split, len(names))
    assert parts(split, [0] * len(names))[0] == pytest.approx(fraction, abs=2 / len(names))


def test_a_split_is_a_function_of_its_seed():
    names, labels = ucf_names(20, 3), [0] * 60
    splits = [split_rows(rows_of(names), labels, seed=seed) for seed in (0, 0, 1, 2)]
    assert splits[0] == splits[1]
    assert len({tuple(split.validation) for split in splits}) == 3


def test_validation_is_not_made_of_the_largest_groups():
    """A group that fits the fraction exactly is not taken before many small ones."""
    groups = [Counter({0: 20}), *[Counter({0: 1})] * 80]
    chosen = [choose_validation(groups, 0.2, np.random.default_rng(seed)) for seed in range(40)]
    assert all(sum(groups[i][0] for i in found) == 20 for found in chosen)
    assert sum(0 in found for found in chosen) < 10


def test_two_groups_are_one_on_either_side_and_one_stays_in_training(caplog):
    names = [*ucf_names(2, 3, "Walk"), *ucf_names(1, 5, "Run"), "Jump/0001.mp4"]
    labels = [0] * 6 + [1] * 5 + [2]
    split = split_rows(rows_of(names), labels, label_names=["walk", "run", "jump"])
    assert_sound(split, 12)
    assert parts(split, labels) == {0: 0.5, 1: 0, 2: 0}
    found = [warning for warning in split.warnings if "stays in training" in warning]
    assert len(found) == 2
    assert "'run'" in found[0]
    assert "v_Run_g00_c00.avi" in found[0]
    assert "'jump'" in found[1]
    assert any("missing from validation" in warning and "2 ('run', 'jump')" in warning for warning in split.warnings)
    assert [record.getMessage() for record in caplog.records] == split.warnings


def test_groups_across_classes_leave_every_class_something_to_train_on():
    for seed, size in itertools.product(range(20), (2, 3, 5)):
        rng = np.random.default_rng((seed, size))
        names = [f"id{rng.integers(12):02d}_{i:06d}_{i + 10:06d}.mp4" for i in range(40)]
        labels = rng.integers(size, size=40).tolist()
        split = split_rows(rows_of(names), labels, seed=seed)
        assert_sound(split, 40)
        assert {labels[i] for i in split.train} == set(labels)
        groups = {
            label: {group for group, own in zip(split.groups, labels, strict=True) if own == label} for label in labels
        }
        missing = {label for label in labels if label not in {labels[i] for i in split.validation}}
        assert all(len(groups[label]) < 3 for label in missing)


def test_groups_that_allow_no_better_split_are_reported():
    names = [*ucf_names(2, 10, "Walk"), *[f"Run/{i:04d}.mp4" for i in range(20)]]
    split = split_rows(rows_of(names), [0] * 20 + [1] * 20)
    (warning,) = split.warnings
    assert all(value in warning for value in ("Class 0", "50%", "20%", "2 groups"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> tuple[datasets.Dataset, list[int], list[VideoFingerprint]]:
    """Rows of 12 toy videos and a part of one; of the second class a copy, a black video and no video."""
    folder = tmp_path_factory.mktemp("clips")
    appearances = ("stripes", "checkerboard", "dots", "rings")
    for i in range(12):
        rng = np.random.default_rng(i)
        frames = toy_frames(appearances[i % 4], ("up", "left", "down")[i % 3], 40, 64, 80, rng)
        write_video(folder / f"{i:04d}.mp4", frames)
        if i == 3:
            write_video(folder / "copied.mp4", frames[:, ::2, ::2])
        if i == 4:
            write_video(folder / "cut.mp4", frames[8:36])
    write_video(folder / "black.mp4", np.zeros((20, 64, 80, 3), dtype=np.uint8))
    (folder / "text.mp4").write_text("no video", encoding="utf-8")
    names = sorted(path.name for path in folder.iterdir())
    rows = rows_of([str(folder / name) for name in names])
    labels = [int(name in ("copied.mp4", "black.mp4", "text.mp4")) for name in names]
    return rows, labels, read_fingerprints(rows)


def test_a_split_by_content(clips):
    rows, labels, fingerprints = clips
    names = [Path(fingerprint.file).name for fingerprint in fingerprints]
    split = split_rows(rows, labels, fingerprints=fingerprints, label_names=["toy", "made of it"], fraction=0.3)
    assert_sound(split, 16, num_left_out=1)
    group = dict(zip(names, split.groups, strict=True))
    assert group["copied.mp4"] == group["0003.mp4"]
    assert group["cut.mp4"] == group["0004.mp4"]
    assert len(set(split.groups)) == 14
    assert [(names[pair.first], names[pair.second], pair.kind) for pair in split.duplicates] == [
        ("0003.mp4", "copied.mp4", "same"),
        ("cut.mp4", "0004.mp4", "part"),
    ]
    assert [Path(name).name for name in split.unreadable] == ["text.mp4"]
    assert [Path(name).name for name in split.flat] == ["black.mp4"]
    text = "\n".join(split.warnings)
    assert "1 ('made of it')" in text
    assert "0003.mp4 ('toy') and " in text
    assert "text.mp4: cannot be opened" in text
    assert "black.mp4" in text


def test_without_fingerprints_only_names_count(clips):
    rows, labels, _ = clips
    split = split_rows(rows, labels)
    assert_sound(split, 16)
    assert len(set(split.groups)) == 16
    assert (split.duplicates, split.unreadable, split.flat) == ([], {}, [])


def test_rows_without_a_file_are_left_out_by_number():
    split = split_rows(rows_of([None, "a.mp4", None, "b.mp4"]), [0, 0, 0, 0], fraction=0.5)
    assert list(split.unreadable) == ["row 0", "row 2"]
    assert_sound(split, 4, num_left_out=2)
    assert any("2 (row 0: " in text for text in split.warnings)


def test_arguments_that_cannot_be(clips):
    rows, labels, fingerprints = clips
    for fraction in (0, 1, -0.2):
        with pytest.raises(ValueError, match=f"fraction={fraction} "):
            split_rows(rows, labels, fraction=fraction)
    with pytest.raises(ValueError, match="16 rows have 15 labels"):
        split_rows(rows, labels[1:])
    with pytest.raises(ValueError, match="16 rows have 2 fingerprints"):
        split_rows(rows, labels, fingerprints=fingerprints[:2])
    bad = [VideoFingerprint(fingerprint.file, reason="no such file") for fingerprint in fingerprints]
    with pytest.raises(ValueError, match=r"16 \(.*no such file"):
        split_rows(rows, labels, fingerprints=bad)


def test_duplicates_are_written_by_name(tmp_path):
    write_duplicates(tmp_path / "pairs.csv", [NearDuplicate(2, 0, "part", 0.95, 0.9)], ["a, b.mp4", "c", "d"])
    with open(tmp_path / "pairs.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["first", "second", "kind", "share", "similarity"],
            ["d", "a, b.mp4", "part", "0.95", "0.9"],
        ]


# warnings


def test_warnings_on_classes_name_them():
    train = [0] * 300 + [1] * 12 + [2] * 9 + [5] * 20
    validation = [0] * 60 + [1] * 3 + [3] * 11
    empty, tiny, lost, unmeasured, uneven = class_warnings(train, validation, ["a", "b", "c", "d", "e", "f"])
    for warning, names in ((empty, "1 ('e')"), (tiny, "1 ('c')"), (lost, "1 ('d')"), (unmeasured, "2 ('c', 'f')")):
        assert warning.endswith(f": {names}.")
    assert all(part in uneven for part in ("40 to 1", "'a' has 360", "'c' has 9"))
    assert class_warnings([0] * 10 + [1] * 10, [0] * 2 + [1] * 2) == []
    assert class_warnings([], []) == []
    (long,) = class_warnings([0] * 10, [0] * 10, ["used", *[f"c{i}" for i in range(30)]])
    assert "30 ('c0', 'c1'" in long
    assert long.endswith("'c9', ...).")


# two data sets


def test_overlap_by_content_names_both_videos(clips, tmp_path):
    rows, _, fingerprints = clips
    names = [Path(fingerprint.file).name for fingerprint in fingerprints]
    of = {name: i for i, name in enumerate(names)}
    train = rows.select([of[name] for name in ("0003.mp4", "0004.mp4", "0005.mp4", "text.mp4")])
    validation = rows.select([of[name] for name in ("0006.mp4", "cut.mp4", "black.mp4", "copied.mp4")])
    cache = tmp_path / "fingerprints.csv"
    overlap = find_overlap_by_content(train, validation, FingerprintSettings(workers=1), cache)
    pairs = {(Path(one).name, Path(other).name, pair.kind) for one, other, pair in overlap.pairs}
    assert pairs == {("cut.mp4", "0004.mp4", "part"), ("copied.mp4", "0003.mp4", "same")}
    assert [Path(name).name for name in overlap.unreadable] == ["text.mp4"]
    assert [Path(name).name for name in overlap.flat] == ["black.mp4"]
    text = overlap.describe()
    assert all(name in text for name in ("2 (", "text.mp4", "black.mp4", "0004.mp4 (part"))
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 8
    clean = find_overlap_by_content(train.select([2]), validation.select([0]), cache=cache)
    assert clean.describe().endswith(": 0")


# which frames


def test_dense_where_clips_are_longer_than_a_clip_spans():
    sampling = choose_sampling([300, 280, 64, 90, 40])
    assert (sampling.kind, sampling.stride) == ("dense", 4)
    assert "20% of 5 videos (median: 90 frames) are shorter than the 64 frames" in sampling.reason


def test_uniform_where_most_are_shorter():
    lengths = [40, 45, 50, 48, 100]
    sampling = choose_sampling(lengths)
    assert sampling.kind == "uniform"
    assert "80% of 5 videos" in sampling.reason
    # as frames of a dense clip of such a video repeat, those of a uniform one do not
    assert len(set(dense_frames(48)[0])) == 12
    assert len(set(uniform_test_frames(48)[0])) == 16
    assert "repeat in any case" in choose_sampling([10, 12, 20]).reason


def test_a_smaller_stride_where_some_are_short():
    lengths = [50] * 4 + [100] * 6
    sampling = choose_sampling(lengths)
    assert (sampling.kind, sampling.stride) == ("dense", 3)
    assert "with stride 3 it is 0%" in sampling.reason
    assert choose_sampling([35] * 4 + [100] * 6).stride == 2
    assert choose_sampling([10] * 4 + [100] * 6) == choose_sampling([10] * 4 + [100] * 6)
    assert choose_sampling([10] * 4 + [100] * 6).stride == 4  # no stride helps
    assert choose_sampling(lengths, num_frames=8).stride == 4


def test_lengths_that_cannot_be():
    for arguments in (([],), ([0, 10],), ([10], 0), ([10], 16, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            choose_sampling(*arguments)
