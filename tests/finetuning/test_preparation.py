"""Before fine-tuning: divided without leaks, compared by content, and the choices that a recipe leaves open."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mvd_hf.data.arguments import DataArguments, FinetuningClipArguments
from mvd_hf.data.sources import media_name
from mvd_hf.data.toy import APPEARANCES, toy_frames, write_video
from mvd_hf.finetuning.preparation import (
    PreparationArguments,
    choose_clips,
    names_directions,
    prepare_videos,
)

NAMES = sorted(APPEARANCES)
KEYS = FinetuningClipArguments()


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """A folder of four classes of five videos; one is there twice, a fifth class has none."""
    folder = tmp_path_factory.mktemp("own") / "classes"
    for i, name in enumerate(NAMES):
        for j in range(5):
            path = folder / name / f"{j}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng((i, j))
            write_video(path, toy_frames(name, "left", 20, 40, 48, rng))
    shutil.copy(folder / "dots" / "1.mp4", folder / "dots" / "copy.mp4")
    (folder / "spirals").mkdir()
    return folder


def prepare(source, folder, arguments=None, keys=KEYS, **options):
    data = DataArguments(dataset=str(source), **options.pop("data", {}))
    return prepare_videos(data, keys, arguments or PreparationArguments(), folder, **options)


def files(rows) -> list[str]:
    return [str(Path(media_name(item)).relative_to(Path(media_name(item)).parents[1])) for item in rows["video"]]


def test_a_folder_of_classes_is_divided_class_by_class_and_copies_stay_together(classes, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    videos = prepare(classes, tmp_path)
    assert videos.names == NAMES
    assert videos.num_labels == 4
    train, validation = files(videos.train), files(videos.validation)
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == 21
    assert {Path(name).parent.name for name in validation} == set(NAMES)
    assert ("dots/1.mp4" in train) == ("dots/copy.mp4" in train)
    assert videos.labels.tolist() == [NAMES.index(Path(name).parent.name) for name in train]
    assert "1 (spirals)" in caplog.text
    assert "fewer than 10" in caplog.text
    assert "copy.mp4" in (tmp_path / "near_duplicates.csv").read_text()
    again = prepare(classes, tmp_path)  # from the fingerprints that are there
    assert files(again.validation) == validation
    assert files(prepare(classes, tmp_path, seed=1).validation) != validation


def test_without_comparison_copies_may_be_on_both_sides(classes, tmp_path):
    videos = prepare(classes, tmp_path, PreparationArguments(compare_content=False))
    assert len(videos.train) + len(videos.validation) == 21
    assert not (tmp_path / "fingerprints.csv").exists()


def test_a_fraction_of_0_leaves_no_validation(classes, tmp_path):
    videos = prepare(classes, tmp_path, PreparationArguments(validation_fraction=0))
    assert videos.validation is None
    assert len(videos.train) == len(videos.labels) == 21


@pytest.fixture
def splits(classes, tmp_path) -> Path:
    """The first three videos of each class for training, the others in a split called `val`."""
    folder = tmp_path / "splits"
    for name in NAMES:
        for j in range(5):
            path = folder / ("train" if j < 3 else "val") / name / f"{name}{j}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(classes / name / f"{j}.mp4", path)
    return folder


def test_a_split_with_a_usual_name_is_validated_on(splits, tmp_path, caplog):
    videos = prepare(splits, tmp_path)
    assert (len(videos.train), len(videos.validation)) == (12, 8)
    assert "fewer than 10" in caplog.text


def test_training_videos_in_a_given_validation_set_are_found_by_content(splits, tmp_path, caplog):
    shutil.copy(splits / "train" / "dots" / "dots0.mp4", splits / "val" / "dots" / "another name.mp4")
    with pytest.raises(ValueError, match=r"(?s)another name\.mp4.*on_overlap drop"):
        prepare(splits, tmp_path)
    kept = prepare(splits, tmp_path, PreparationArguments(on_overlap="keep"))
    assert len(kept.validation) == 9
    dropped = prepare(splits, tmp_path, PreparationArguments(on_overlap="drop"))
    assert len(dropped.validation) == 8
    assert "another name.mp4" not in " ".join(files(dropped.validation))
    assert "1 of 9" in caplog.text
    unseen = prepare(splits, tmp_path, PreparationArguments(compare_content=False))
    assert len(unseen.validation) == 9


def with_cameras(folder, name: str, paths, cameras) -> str:
    """A parquet file of videos with their classes and cameras."""
    labels = [path.parent.name for path in paths]
    rows = datasets.Dataset.from_dict({"video": list(map(str, paths)), "label": labels, "camera": list(cameras)})
    rows.cast_column("video", datasets.Video(decode=False)).to_parquet(folder / name)
    return str(folder / name)


def test_videos_of_a_group_are_on_one_side_of_the_split(classes, tmp_path):
    paths = [path for path in sorted(classes.glob("*/*.mp4")) if path.stem != "copy"]
    source = with_cameras(tmp_path, "all.parquet", paths, [int(path.stem) // 2 for path in paths])
    by_camera = PreparationArguments(compare_content=False, group_column="camera")
    videos = prepare(source, tmp_path, by_camera)
    assert not set(videos.train["camera"]) & set(videos.validation["camera"])
    assert len(videos.train) + len(videos.validation) == 20
    for unknown in (PreparationArguments(group_column="lens", validation_fraction=fraction) for fraction in (0, 0.2)):
        with pytest.raises(ValueError, match=r"'lens'.*camera"):
            prepare(source, tmp_path, unknown)
    with pytest.raises(ValueError, match=r"group_column='camera'.*stream"):
        prepare(source, tmp_path, by_camera, data={"streaming": True}, num_labels=4)


def test_groups_of_training_in_a_given_validation_set_follow_on_overlap(classes, tmp_path):
    paths = [path for path in sorted(classes.glob("*/*.mp4")) if path.stem != "copy"]
    source = with_cameras(tmp_path, "train.parquet", paths[::2], [1.0, None] * 5)
    other = with_cameras(tmp_path, "val.parquet", paths[1::2], ["1", *"bbbbbbbbb"])

    def validation(rule):
        keys = PreparationArguments(compare_content=False, group_column="camera", on_overlap=rule)
        return prepare(source, tmp_path, keys, data={"eval_dataset": other}).validation

    with pytest.raises(ValueError, match=r"1 of 10 .* camera of training: 1 \(1\)"):
        validation("raise")
    assert (len(validation("keep")), len(validation("drop"))) == (10, 9)


def test_a_validation_set_that_is_the_training_set_is_refused(splits, tmp_path):
    shutil.rmtree(splits / "val")
    shutil.copytree(splits / "train", splits / "val")
    with pytest.raises(ValueError, match="eval_dataset"):
        prepare(splits, tmp_path, PreparationArguments(on_overlap="drop"))


def test_labels_and_numbers_of_classes_that_do_not_fit_are_named(classes, tmp_path):
    with pytest.raises(ValueError, match=r"config.num_labels=400.* 4 \(checkerboard"):
        prepare(classes, tmp_path, num_labels=400)
    with pytest.raises(ValueError, match=r"'action'.*video, label"):
        prepare(classes, tmp_path, keys=replace(KEYS, label_column="action"))
    listed = tmp_path / "train.csv"
    listed.write_text("".join(f"{classes}/dots/{i}.mp4 {i}\n" for i in range(5)))
    with pytest.raises(ValueError, match=r"dots/3\.mp4: the label 3"):
        prepare(listed, tmp_path, num_labels=3)
    assert prepare(listed, tmp_path, PreparationArguments(validation_fraction=0)).num_labels == 5


def test_labels_that_are_numbered_from_1_are_refused_unless_their_number_is_given(classes, tmp_path):
    listed = tmp_path / "train.csv"
    listed.write_text("".join(f"{classes}/dots/{i}.mp4 {i + 1}\n" for i in range(3)))
    with pytest.raises(ValueError, match=r"from 1 to 3.*num_labels=4"):
        prepare(listed, tmp_path)
    whole = PreparationArguments(validation_fraction=0)
    assert prepare(listed, tmp_path, whole, num_labels=4).num_labels == 4
    assert prepare(listed, tmp_path, whole, keys=replace(KEYS, label_names=["a", "b", "c", "d"])).num_labels == 4


def test_numbers_of_classes_that_no_video_has_are_warned_of(classes, tmp_path, caplog):
    listed = tmp_path / "train.csv"
    listed.write_text("".join(f"{classes}/dots/{i}.mp4 {label}\n" for i, label in enumerate((0, 1, 7))))
    assert prepare(listed, tmp_path, PreparationArguments(validation_fraction=0)).num_labels == 8
    assert "5 (2, 3, 4, 5" in caplog.text


def test_videos_that_belong_together_cannot_be_divided(tmp_path):
    folder = tmp_path / "one source"
    for name in NAMES[:2]:
        for j in range(2):
            path = folder / name / f"v_Walk_g01_c0{j}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, toy_frames(name, "left", 12, 40, 48, np.random.default_rng(j)))
    with pytest.raises(ValueError, match="eval_dataset"):
        prepare(folder, tmp_path)


def test_validation_videos_without_any_class_are_refused_and_no_class_is_none(tmp_path, caplog):
    run, none = '{"video": "a.mp4", "label": ["run"]}\n', '{"video": "b.mp4", "label": []}\n'
    (tmp_path / "train.jsonl").write_text(10 * run + none)
    (tmp_path / "val.jsonl").write_text(none)
    keys = replace(KEYS, problem_type="multi_label_classification")
    source, unchecked = tmp_path / "train.jsonl", PreparationArguments(compare_content=False)
    with pytest.raises(ValueError, match="None of the 1 validation videos has a class in column 'label'"):
        prepare(source, tmp_path, unchecked, keys, data={"eval_dataset": str(tmp_path / "val.jsonl")})
    (tmp_path / "val.jsonl").write_text(run + none)
    prepare(source, tmp_path, unchecked, keys, data={"eval_dataset": str(tmp_path / "val.jsonl")})
    assert "no class" not in caplog.text
    assert "fewer than 10" not in caplog.text


def test_a_stream_needs_the_number_of_classes_and_the_sampling(classes, tmp_path):
    listed = datasets.load_dataset(str(classes), split="train").cast_column("video", datasets.Video(decode=False))
    listed = listed.remove_columns("label").add_column("label", [0] * 21).add_column("appearance", [0] * 21)
    listed.to_parquet(tmp_path / "train.parquet")
    options = {"data": {"streaming": True}}
    with pytest.raises(ValueError, match=r"label_names or config\.num_labels"):
        prepare(tmp_path / "train.parquet", tmp_path, **options)
    with pytest.raises(ValueError, match="label_names for appearance and label"):
        prepare(
            tmp_path / "train.parquet", tmp_path, keys=replace(KEYS, label_column=["label", "appearance"]), **options
        )
    videos = prepare(tmp_path / "train.parquet", tmp_path, num_labels=4, **options)
    assert (videos.num_labels, videos.labels, videos.validation) == (4, None, None)
    with pytest.raises(ValueError, match="give sampling"):
        choose_clips(KEYS, DataArguments(dataset="x"), videos, 16)


@pytest.mark.parametrize(
    ("num_frames", "stride", "sampling"), [(4, 4, "dense"), (16, 4, "uniform"), (5, 4, "dense"), (5, 5, "uniform")]
)
def test_frames_are_sampled_by_the_videos_lengths(classes, tmp_path, caplog, num_frames, stride, sampling):
    caplog.set_level(logging.INFO)
    videos = prepare(classes, tmp_path)
    data = DataArguments(dataset=str(classes), stride=stride)
    keys, chosen = choose_clips(KEYS, data, videos, num_frames)
    assert (keys.sampling, keys.flip, chosen.stride) == (sampling, 0.5, stride)
    assert f"Sampling {sampling}" in caplog.text
    uniform = replace(KEYS, sampling="uniform", flip=0.1)
    with pytest.raises(ValueError, match="stride=2"):
        choose_clips(uniform, replace(data, stride=2), videos, num_frames)
    given, _ = choose_clips(uniform, replace(data, stride=4), videos, num_frames)
    assert (given.sampling, given.flip) == ("uniform", 0.1)


def test_classes_that_distinguish_left_from_right_are_not_flipped(classes, tmp_path):
    assert names_directions(["run", "turn left"])
    assert names_directions(["Pushing something from right to left", "x"])
    assert names_directions(["TurnRight", "TurnLeft"])
    for name in (
        "counterclockwise",
        "move leftwards",
        "lefthook",
        "swipeleft",
        "Righthand",
        "rotate_ccw",
        "throwright",
    ):
        assert names_directions(["run", name]), name
    assert names_directions(["swipe_l", "swipe_r"])
    assert not names_directions(["bright light", "cleft", "leftover", "sit upright", "shipwright", "letter r"])
    assert not names_directions(None)
    videos = replace(prepare(classes, tmp_path), names=["turn left", "turn right"])
    keys, _ = choose_clips(KEYS, DataArguments(dataset=str(classes)), videos, 4)
    assert keys.flip == 0


def test_frames_of_videos_are_not_taken_for_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "frames" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "frames" / name / "img_00001.png")
    with pytest.raises(ValueError, match=r"'image'.*frame_folder_fps"):
        prepare(tmp_path / "frames", tmp_path / "out")


def test_impossible_preparation_is_refused():
    with pytest.raises(ValueError, match="validation_fraction=1"):
        PreparationArguments(validation_fraction=1)
    with pytest.raises(ValueError, match=r"on_overlap='ignore'.*raise, drop, keep"):
        PreparationArguments(on_overlap="ignore")
