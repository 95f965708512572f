"""Transcoding of data sets: folders, labels, resumption, shards, bad files."""

import csv
import shutil
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest

from mvd_hf.curation import transcode_job
from mvd_hf.curation.transcode_job import RECORDS, TranscodeArguments, find_jobs, transcode_dataset, write_videos
from mvd_hf.data.arguments import DataArguments
from mvd_hf.data.labels import LabelReader
from mvd_hf.data.sources import load_rows, media_column, media_name
from mvd_hf.data.toy import make_toy_dataset
from video_files import H264, all_frames, numbered_frames, numbers, write


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """A folder of class folders with four videos, of which `b/same.avi` and `b/same.mp4` share a name."""
    folder = tmp_path_factory.mktemp("classes") / "videos"
    for i, name in enumerate(("a/one two.mp4", "a/three.mkv", "b/same.mp4", "b/same.avi")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, numbered_frames(40)[10 * i : 10 * i + 10], **H264 | {"bf": "0"})
    return folder


def job(source, output, **options) -> list:
    return transcode_dataset(TranscodeArguments(dataset=str(source), output=str(output), workers=2, **options))


def files_of(output: Path) -> list[str]:
    return sorted(str(path.relative_to(output)) for path in output.rglob("*.mp4"))


def test_folders_names_and_labels_stay(classes, tmp_path, caplog):
    caplog.set_level("INFO")
    outcomes = job(classes, tmp_path / "new")
    assert files_of(tmp_path / "new") == ["a/one two.mp4", "a/three.mp4", "b/same.avi.mp4", "b/same.mp4.mp4"]
    assert numbers(all_frames(tmp_path / "new" / "a" / "three.mp4")) == list(range(10, 20))
    rows = DataArguments(dataset=str(tmp_path / "new")).rows()
    reader = LabelReader(rows, "label")
    assert reader.names == ["a", "b"]
    assert [reader(row) for row in rows] == [0, 0, 1, 1]
    assert all(outcome.source_bytes > 0 for outcome in outcomes)
    assert "times as fast" in caplog.text
    manifest = tmp_path / "new" / RECORDS / "manifest.csv"
    assert len(DataArguments(dataset=str(tmp_path / "new"), manifest=str(manifest)).rows()) == 4


def test_a_list_file_becomes_one_of_the_same_name(classes, tmp_path):
    (tmp_path / "train.csv").write_text('"a/one two.mp4" run\nb/same.mp4 "sit down"\n')
    job(tmp_path / "train.csv", tmp_path / "new", root=str(classes))
    rows = load_rows(str(tmp_path / "new" / "train.csv"))
    assert rows["label"] == ["run", "sit down"]
    assert [Path(media_name(item)).name for item in rows[media_column(rows)]] == ["one two.mp4", "same.mp4"]
    assert all_frames(media_name(rows[1]["video"])).shape[0] == 10


def test_all_splits_and_columns_of_a_data_set_stay(tmp_path):
    source = make_toy_dataset(tmp_path / "toy", num_train=3, num_validation=2, num_frames=6, height=32, width=32)
    job(source, tmp_path / "new")
    for split in ("train", "validation"):
        before, after = (load_rows(str(place), split) for place in (source, tmp_path / "new"))
        for column in ("appearance", "motion"):
            assert before[column] == after[column]
    parquet = datasets.Dataset.from_dict(
        {"video": [{"path": "x/1.mp4", "bytes": (source / "train" / "0000.mp4").read_bytes()}], "tags": [["a", "b"]]}
    )
    parquet.to_parquet(tmp_path / "data.parquet")
    job(tmp_path / "data.parquet", tmp_path / "from_parquet")
    assert load_rows(str(tmp_path / "from_parquet"))["tags"] == [["a", "b"]]


def test_embedded_videos_of_one_path_stay_apart_with_their_columns(tmp_path):
    contents = [write(tmp_path / f"{i}.mp4", numbered_frames(20)[10 * i :][:10]).read_bytes() for i in range(2)]
    videos = [{"path": "001.mp4", "bytes": content} for content in contents]
    (tmp_path / "shards").mkdir()
    rows = {"video": videos, "label": ["first", "second"], "thumbnail": [b"x", b"y"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "shards" / "train.parquet")
    job(tmp_path / "shards", tmp_path / "new")
    written = load_rows(str(tmp_path / "new"))
    firsts = {row["label"]: numbers(all_frames(media_name(row["video"])))[0] for row in written}
    assert firsts == {"first": 0, "second": 10}


def test_a_folder_behind_a_link_keeps_its_classes(classes, tmp_path):
    (tmp_path / "link").symlink_to(classes)
    job(tmp_path / "link", tmp_path / "new")
    assert "a/three.mp4" in files_of(tmp_path / "new")


def test_the_output_of_another_data_set_is_refused(classes, tmp_path):
    job(classes, tmp_path / "new")
    shutil.copytree(classes, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"copy/a/.*another output"):
        job(tmp_path / "copy", tmp_path / "new")


def test_an_interrupted_job_writes_only_what_is_missing(classes, tmp_path):
    job(classes, tmp_path / "new")
    before = {name: (tmp_path / "new" / name).stat().st_mtime_ns for name in files_of(tmp_path / "new")}
    (tmp_path / "new" / "a" / "three.mp4").write_bytes(b"half")
    (tmp_path / "new" / "b" / "same.mp4.mp4").unlink()
    (record,) = (tmp_path / "new" / RECORDS).glob("*.jsonl")
    record.write_bytes(record.read_bytes()[:-5])  # the last line is cut off
    job(classes, tmp_path / "new")
    again = {name: (tmp_path / "new" / name).stat().st_mtime_ns for name in files_of(tmp_path / "new")}
    changed = {name for name in before if before[name] != again[name]}
    assert {"a/three.mp4", "b/same.mp4.mp4"} <= changed < before.keys()
    with pytest.raises(ValueError, match="short_side=256"):
        job(classes, tmp_path / "new", short_side=128)


def test_shards_are_merged_when_all_are_there(classes, tmp_path):
    (tmp_path / "all.csv").write_text(
        "".join(f'"{name}"\n' for name in ("a/one two.mp4", "a/three.mkv", "b/same.mp4"))
    )
    options = {"root": str(classes)}
    job(tmp_path / "all.csv", tmp_path / "new", shard="1/2", **options)
    with pytest.raises(ValueError, match=r"1 of 3 videos are not written yet, first 'a/three\.mp4'"):
        job(tmp_path / "all.csv", tmp_path / "new", merge=True, **options)
    job(tmp_path / "all.csv", tmp_path / "new", shard="2/2", **options)
    assert not (tmp_path / "new" / "all.csv").exists()
    outcomes = job(tmp_path / "all.csv", tmp_path / "new", merge=True, **options)
    assert len(outcomes) == len(load_rows(str(tmp_path / "new" / "all.csv"))) == 3
    for wrong in ("0/2", "3/2", "x", "9/9"):
        with pytest.raises(ValueError, match=f"shard='?{wrong}"):
            job(tmp_path / "all.csv", tmp_path / "other", shard=wrong, **options)


def test_bad_videos_stop_the_job_or_are_listed(classes, tmp_path):
    shutil.copytree(classes, tmp_path / "videos")
    (tmp_path / "videos" / "a" / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"a/bad\.mp4.*on_bad_video=skip"):
        job(tmp_path / "videos", tmp_path / "new")
    outcomes = job(tmp_path / "videos", tmp_path / "new", on_bad_video="skip")
    assert len(files_of(tmp_path / "new")) == 4
    assert [Path(outcome.source).name for outcome in outcomes if outcome.result is None] == ["bad.mp4"]
    with open(tmp_path / "new" / RECORDS / "bad_videos.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["file"].endswith("a/bad.mp4")
    assert "cannot be opened" in row["reason"]


def test_parts_of_videos_are_cut_by_seconds_or_by_columns(tmp_path):
    (tmp_path / "videos").mkdir()
    write(tmp_path / "videos" / "long.mp4", numbered_frames(60), **H264)
    job(tmp_path / "videos", tmp_path / "fixed", clips="0.4:1.2")
    assert numbers(all_frames(tmp_path / "fixed" / "long_0.4_1.2.mp4")) == list(range(10, 30))
    lines = [
        {"file_name": "long.mp4", "from": start, "to": start + 0.2, "label": label}
        for start, label in ((0.0, "x"), (1.0, "y"))
    ]
    videos = [{**line, "video": str(tmp_path / "videos" / line.pop("file_name"))} for line in lines]
    datasets.Dataset.from_list(videos).to_parquet(tmp_path / "rows.parquet")
    job(tmp_path / "rows.parquet", tmp_path / "new", clips="from:to")
    assert files_of(tmp_path / "new") == ["train/long_0_0.2.mp4", "train/long_1_1.2.mp4"]
    assert load_rows(str(tmp_path / "new"))["label"] == ["x", "y"]
    for wrong in ("label:to", "from:from", "no:to"):
        with pytest.raises(ValueError, match=r"long\.mp4"):
            job(tmp_path / "rows.parquet", tmp_path / "wrong", clips=wrong)
    with pytest.raises(ValueError, match="clips='5'"):
        job(tmp_path / "rows.parquet", tmp_path / "wrong", clips="5")


def test_the_output_is_not_the_source(classes, tmp_path):
    for output in (classes, classes / "new", classes.parent):
        with pytest.raises(ValueError, match="output="):
            job(classes, output)


def test_an_estimate_comes_before_any_video_is_written(classes, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(transcode_job, "run_job", None)
    with pytest.raises(TypeError):
        job(classes, tmp_path / "new")
    assert "4 videos take about" in caplog.text
    assert "(estimated from 4 of them)" in caplog.text
    assert files_of(tmp_path / "new") == []
    result = transcode_job.TranscodedFile(frames=10, seconds=0.4, bytes=2**20, psnr=40.0)
    trials = [transcode_job.Trial(30, result, 2.0, 2**22), transcode_job.Trial(10, result, 6.0, 2**22)]
    text = transcode_job.estimate(trials, 600, 2)
    assert "600 videos take about 30 minutes" in text
    assert "1.2 GiB, 2.3 GiB before" in text
    assert "not known" in transcode_job.estimate([], 5, 2)
    assert transcode_job.spread(100, 3) == [0, 50, 99]
    assert transcode_job.spread(2, 8) == [0, 1]
    assert np.isnan(transcode_job.loading_gain([], Path()))


def test_embedded_videos_are_not_held_in_memory(tmp_path, monkeypatch):
    """Neither when they are listed nor while they wait for a worker."""
    count, size = 40, 2**18
    content = np.random.default_rng(0).bytes(size)
    rows = {"video": [{"path": None, "bytes": bytes([i]) + content} for i in range(count)]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    arguments = TranscodeArguments(dataset=str(tmp_path / "train.parquet"), output=str(tmp_path / "new"), workers=2)
    taken = []

    def run(function, work, *options):
        for name, (item, *_) in work:
            taken.append(item["bytes"][:1])
            yield name, None, "is no video"

    monkeypatch.setattr(transcode_job, "run_guarded", run)
    arguments.on_bad_video = "skip"
    load_rows(arguments.dataset)  # copied to the cache of the library
    tracemalloc.start()
    jobs = find_jobs(arguments)
    write_videos(arguments, jobs, {})
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(jobs) == count
    assert taken[-count:] == [bytes([i]) for i in range(count)]
    assert kept < 2 * size
    assert most < count * size / 2
