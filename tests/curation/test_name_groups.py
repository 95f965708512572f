"""Groups of videos by their names: segments of one video, as opposed to videos that are merely numbered."""

import pytest

from mvd_hf.curation.name_groups import name_groups, overlapping


def grouped(names: list[str], labels=None, label_names=None) -> list[list[str]]:
    """The files of each group, in the order of the first."""
    groups: dict[str, list[str]] = {}
    for name, group in zip(names, name_groups(names, labels, label_names), strict=True):
        if group is not None:
            groups.setdefault(group, []).append(name)
    return list(groups.values())


def test_segments_of_ucf101():
    names = [f"UCF-101/Archery/v_Archery_g{g:02d}_c{c:02d}.avi" for g in (1, 2) for c in (1, 2, 3)]
    assert grouped(names) == [names[:3], names[3:]]
    assert grouped(names[:3]) == [names[:3]]  # also where they are the whole class


def test_times_of_kinetics_and_others():
    names = ["x/-Qz_9-4_000010_000020.mp4", "y/-Qz_9-4_000110_000120.mp4", "x/-qz_9-4_000010_000020.mp4"]
    assert grouped(names, [0, 1, 0]) == [names[:2], names[2:]]  # across classes; the case of an id matters
    names = ["talk_12.50_20.00.mp4", "talk_20.00_31.25.mp4", "show_0.00_4.00.mp4"]
    assert grouped(names) == [names[:2], names[2:]]


def test_numbers_with_a_word_for_a_segment():
    for pair in (
        "_seg3|_seg12",
        "-part2|-part3",
        ".clip04|.clip5",
        "-Scene-003|-Scene-004",
        " (part 1 of 2)| (part 2 of 2)",
        "_segment_1|_segment_2",
        " copy| copy 2",
        " - Copy| - Copy (2)",
        "[cut 1]|[cut 2]",
        "_shot#1|_shot#2",
    ):
        names = [f"{name}{ending}.mp4" for name in ("match", "final game") for ending in pair.split("|")]
        assert grouped(names) == [names[:2], names[2:]]
        assert grouped([*names[:2], "match.mp4"]) == [[*names[:2], "match.mp4"]]  # the whole of which they are parts
        assert grouped(names[:2]) == [names[:2]]


def test_plain_numbering_is_no_group():
    labels = [0] * 5 + [1] * 5
    patterns = ("{:04d}", "video_{}", "clip{}", "clip {:02d}", "IMG_{:04d}", "person-{}")
    for pattern in (*patterns, "walk ({})", "walk_{:03d}", "walk_clip{}"):
        files = [(name, pattern.replace("walk", name).format(i)) for name in ("walk", "run") for i in range(1, 6)]
        in_folders = [f"{name}/{file}.mp4" for name, file in files]
        assert grouped(in_folders, labels) == []
        for names in (in_folders, [f"{file}.mp4" for _, file in files], [f"all/{a}_{b}.mp4" for a, b in files]):
            assert grouped(names, labels, ["walk", "run"]) == []


def test_plain_numbering_in_one_folder_without_names_of_classes():
    names = [f"{name}_clip{i}.mp4" for name in ("walk", "run") for i in range(5)]
    assert grouped(names, [0] * 5 + [1] * 5) == []  # what begins all names of each class names the class
    assert grouped([f"{i:04d}.mp4" for i in range(5)]) == []
    assert grouped([f"walk_{i}.mp4" for i in range(5)]) == []
    assert grouped([f"walks2023/{i:04d}.mp4" for i in range(5)]) == []  # one folder, one class
    assert grouped([f"{word}_{i}.mp4" for word in ("video", "clip", "IMG", "film") for i in (1, 2)]) == []
    assert grouped([*(f"video_part{i}.mp4" for i in (1, 2)), "a.mp4", "b.mp4"]) == []


def test_counted_names_are_groups_where_numbers_start_anew():
    names = [f"{person}_{i}.mp4" for person in ("anna", "bob", "carl") for i in (1, 2)]
    assert grouped(names) == [names[:2], names[2:4], names[4:]]
    assert grouped([*names, "anna.mp4"])[0] == [*names[:2], "anna.mp4"]
    assert grouped(names[:4]) == []  # two names may be two conditions
    on = [
        f"{place}_{i}.mp4"
        for place, numbers in (("pool", (1, 2)), ("park", (3, 4)), ("path", (5, 6)))
        for i in numbers
    ]
    assert grouped(on) == []  # numbered throughout
    days = [f"VID_2023010{day}_1200{second:02d}.mp4" for day in (1, 2, 3) for second in (1, 2)]
    assert grouped(days) == []  # times of the day


def test_hmdb51():
    names = [
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi",
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_1.avi",
        "brush_hair/Blonde_being_brushed_brush_hair_f_nm_np2_ba_med_0.avi",
        "brush_hair/Brushing_raychel_s_Hair_brush_hair_u_cm_np2_ba_goo_0.avi",
        "brush_hair/Brushing_raychel_s_Hair_brush_hair_u_cm_np2_ba_goo_1.avi",
    ]
    assert grouped(names)[0] == names[:2]
    assert grouped(names)[-1] == names[3:]


def test_folders_name_groups_of_numbered_files():
    names = ["walk/film1/0001.mp4", "walk/film1/0002.mp4", "walk/007/seg1.mp4", "walk/007/seg2.mp4", "run/a/1.mp4"]
    assert grouped(names, [0, 0, 0, 0, 1]) == [names[:2], names[2:4]]
    sides = ["train/walk/1.mp4", "train/walk/2.mp4", "val/walk/1.mp4", "train/run/1.mp4", "val/run/2.mp4"]
    assert grouped(sides, [0, 0, 0, 1, 1]) == []  # folders of classes, twice
    assert grouped(sides, [0, 0, 0, 1, 1], ["walk", "run"]) == []


def test_backslashes_and_no_folder():
    names = [r"C:\clips\match_part1.mp4", r"C:\clips\match_part2.mp4", "match_part3.mp4"]
    assert grouped(names) == [names]
    assert name_groups(["match_part1.mp4"]) == ["match"]
    # one video, several classes: its name is no name of theirs
    names = ["kitchen_part1.mp4", "kitchen_part2.mp4", "office_part1.mp4", "office_part2.mp4"]
    assert name_groups(names, [(0, 1), (0, 1), (2,), (2,)]) == ["kitchen", "kitchen", "office", "office"]
    assert name_groups([]) == []


def test_labels_must_be_as_many_as_names():
    with pytest.raises(ValueError, match="2 names have 1 labels"):
        name_groups(["a", "b"], [0])


def test_overlapping_ranges():
    assert overlapping({"a": (1, 10), "b": (2, 3), "c": (9, 12), "d": (13, 14)}) == {"a", "b", "c"}
    assert overlapping({"a": (1, 2), "b": (3, 4)}) == set()
    assert overlapping({"a": (5, 5), "b": (5, 5), "c": (6, 7)}) == {"a", "b"}
    assert overlapping({}) == set()
