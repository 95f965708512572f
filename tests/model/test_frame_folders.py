"""Folders of extracted frames: the same frames as in a video, in clips, pipelines and files, and clear errors."""

import csv
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launching import ROOT
from mvd_hf import MVDConfig, MVDModel, MVDVideoProcessor, load_clips
from mvd_hf.curation.audit import AuditSettings, audit_videos
from mvd_hf.curation.transcode_job import TranscodeArguments, transcode_dataset
from mvd_hf.data.frame_memory import FrameMemory
from mvd_hf.data.labels import LabelReader
from mvd_hf.data.sources import load_rows, media_name, split_names
from mvd_hf.evaluation.views import VideoViews, map_views
from mvd_hf.model.frame_folders import FrameFolderReader, open_video
from mvd_hf.model.frame_sampling import pretraining_frames
from mvd_hf.model.pipelines_mvd import MVDFeatureExtractionPipeline
from mvd_hf.model.video_reading import VideoReader, VideoReadError
from mvd_hf.model.video_streaming import VideoStream
from tiny_models import TINY
from video_files import all_frames, first_and_last, numbered_frames, numbers, whole, write


def frame_folder(path: Path, frames: np.ndarray, name: str = "img_{:05}.png", first: int = 1) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / name.format(first + i))
    return path


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Two splits of class folders with a video of 12, 20 or 28 frames each, whose first frames are 0, 10 and 20."""
    root = tmp_path_factory.mktemp("frames") / "videos"
    for i, name in enumerate(("train/run/v.1", "train/sit/v.2", "test/run/v3")):
        frame_folder(root / name, numbered_frames(60)[10 * i :][: 12 + 8 * i])
    return root


@pytest.mark.parametrize("name", ["img_{:05}.png", "frame_{:010}.bmp", "{}.png"])
def test_frames_are_in_the_order_of_their_numbers(tmp_path, name):
    frames = numbered_frames(60)[:12]
    folder = frame_folder(tmp_path / "v", frames, name, first=0)
    (folder / "notes.txt").touch()
    with open_video({"path": str(folder), "fps": 10}) as reader:
        assert len(reader) == 12
        assert (reader.read([11, 2, 2]) == frames[[11, 2, 2]]).all()
        assert (reader.decode([3]).rgb((4, 8, 16, 24)) == frames[3:4, 4:20, 8:32]).all()
        assert np.allclose(reader.stored_times(), np.arange(12) / 10)
        assert reader.frame_at(0.52) == 5
        with pytest.raises(VideoReadError, match=r"frame 12 .*12 frames"):
            reader.read([12])
    with open_video(folder, VideoStream) as stream:
        assert [shown is None for shown in stream.frames(lambda number: number != 4)] == [i == 4 for i in range(12)]
        with pytest.raises(VideoReadError, match="frame_folder_fps"):
            stream.times()


def test_bad_folders_are_refused_by_name_and_reason(tmp_path):
    frames = numbered_frames(60)[:4]
    kinds = ("gap", "kinds", "unnumbered", "twice", "size", "image")
    broken = {kind: frame_folder(tmp_path / kind, frames) for kind in kinds}
    (broken["gap"] / "img_00002.png").unlink()
    frame_folder(broken["kinds"], frames, "flow_x_{:05}.png")
    Image.fromarray(frames[0]).save(broken["unnumbered"] / "cover.png")
    Image.fromarray(frames[0]).save(broken["twice"] / "img_2.png")
    Image.fromarray(frames[0, :32]).save(broken["size"] / "img_00003.png")
    (broken["image"] / "img_00003.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    frame_folder(tmp_path / "lone", frames[:1], "cover.png")
    for name, reason in (
        ("gap", "misses frame 2"),
        ("kinds", r"flow_x_\*.png, img_\*.png"),
        ("unnumbered", "cover.png"),
        ("lone", "cover.png"),
        ("twice", "frame 2 twice"),
        ("size", "96x64 to 96x32"),
        ("image", "img_00003.png .*no known format"),
        ("empty", "no images"),
    ):
        with (
            pytest.raises(VideoReadError, match=rf"/{name}: .*{reason}"),
            open_video(str(tmp_path / name)) as reader,
        ):
            reader.read(range(4))
    with pytest.raises(VideoReadError, match="4 frames, not 5"):
        FrameFolderReader(frame_folder(tmp_path / "v", frames), num_frames=5)
    with pytest.raises(ValueError, match=r"fps=30 of .*mp4"):
        open_video({"path": str(write(tmp_path / "v.mp4", frames)), "fps": 30})


def test_folders_of_frames_in_class_folders_are_videos(classes, tmp_path, caplog):
    assert len(load_rows(str(classes))) == 32  # still clips
    assert "frame_folder_fps" in caplog.text
    assert split_names(str(classes), frame_folder_fps=30) == ["train", "test"]
    rows = load_rows(str(classes), "train", frame_folder_fps=30)
    reader = LabelReader(rows, "label")
    assert [(Path(media_name(row["video"])).name, reader.names[reader(row)]) for row in rows] == [
        ("v.1", "run"), ("v.2", "sit")
    ]  # fmt: skip
    data = load_clips(str(classes), first_and_last, whole, frame_folder_fps=30, label_column="label", memory_gib=0.1)
    for _ in range(2):  # read, and from memory
        assert numbers(data[1]["pixel_values"].numpy()) == [10, 29]
    for source, problem in ((classes / "train" / "run" / "v.1", "itself"), (tmp_path, "holds no folders of frames")):
        with pytest.raises(ValueError, match=problem):
            load_rows(str(source), frame_folder_fps=30)
    for name in ("cat", "dog"):
        frame_folder(tmp_path / "pets" / name, numbered_frames(60)[:1], "tom.png")
    assert len(load_rows(str(tmp_path / "pets"))) == 2  # images without numbers


def test_images_beside_folders_of_frames_are_refused(tmp_path):
    for name in ("run/a", "run/b", "sit/c"):
        frame_folder(tmp_path / name, numbered_frames(60)[:2])
    assert load_rows(str(tmp_path), frame_folder_fps=30).features["label"].names == ["run", "sit"]
    for place in (tmp_path / "run", tmp_path):
        frame_folder(place, numbered_frames(60)[:1], "cover.png")
        with pytest.raises(ValueError, match=f"'{place}'"):
            load_rows(str(tmp_path), frame_folder_fps=30)


def test_list_files_name_folders_of_frames(classes, tmp_path):
    """Also with the number of frames in front of the label, as for TSN, which must then be right."""
    path = tmp_path / "list.txt"
    for text in ("train/run/v.1 0\ntrain/sit/v.2 1\n", "train/run/v.1 12 0\ntrain/sit/v.2 20 1\n"):
        path.write_text(text)
        for options in ({}, {"frame_folder_fps": 30}):
            data = load_clips(str(path), first_and_last, whole, root=str(classes), label_column="label", **options)
            assert [data[i]["labels"].item() for i in range(2)] == [0, 1]
            assert numbers(data[1]["pixel_values"].numpy()) == [10, 29]
    path.write_text("train/run/v.1 13 0\n")
    with pytest.raises(VideoReadError, match=r"v\.1: holds 12 frames, not 13"):
        load_clips(str(path), first_and_last, whole, root=str(classes))[0]
    path.write_text("a.mp4 0\n")
    with pytest.raises(ValueError, match="frame_folder_fps=30"):
        load_rows(str(path), frame_folder_fps=30)


def test_seconds_count_by_the_rate_of_the_folder(classes):
    def chosen(**options) -> list[int]:
        frames = lambda total, stride=1, generator=None: pretraining_frames(total, 4, stride, generator=generator)  # noqa: E731
        options |= {"frame_folder_fps": 30}
        return numbers(load_clips(str(classes), frames, whole, **options)[1]["pixel_values"].numpy())

    assert set(np.diff(chosen(fps=10))) == {3}
    processor = MVDVideoProcessor(num_frames=4, size=64, crop_size=64, fps=10)
    folder = str(classes / "test" / "run" / "v3")
    output = processor({"path": folder, "fps": 30}, return_tensors="pt", return_metadata=True)
    assert set(np.diff(output["video_metadata"][0].frames_indices)) == {3}
    with pytest.raises(VideoReadError, match="frame_folder_fps"):
        processor(folder)
    rows = load_rows(str(classes), "test", frame_folder_fps=30)
    assert torch.equal(VideoViews(rows, processor, as_bytes=False)[0][2][0], output["pixel_values"][0])


def test_results_of_another_rate_are_not_used_again(classes, tmp_path):
    def views(rate: float, **options) -> VideoViews:
        rows = load_rows(str(classes), "test", frame_folder_fps=rate)
        return VideoViews(rows, MVDVideoProcessor(num_frames=4, size=64, crop_size=64, **options))

    def results(folder: str, videos: VideoViews):
        return map_views(lambda clips: {"mean": clips.float().mean((1, 2, 3, 4))}, videos, tmp_path / folder, {})

    results("seconds", views(30, fps=10))
    with pytest.raises(ValueError, match="differ in frame_folder_fps:"):
        results("seconds", views(15, fps=10))
    for rate in (30, 15):  # which frames are chosen by number does not depend on it
        results("frames", views(rate, frame_sampling_rate=2))
    memory = FrameMemory(1)
    for rate in (30, 15):
        with memory.open(views(rate).rows[0]["video"]) as video:
            assert video.stored_times()[3] == 3 / rate
            video.decode([0])


def test_windows_slide_over_a_folder(classes):
    model = MVDModel(MVDConfig(**TINY, num_frames=4))
    processor = MVDVideoProcessor.for_model(model.config, frame_sampling_rate=2)
    pipeline = MVDFeatureExtractionPipeline(model, video_processor=processor)
    folder = str(classes / "train" / "run" / "v.1")
    expected = pipeline(numbered_frames(60)[:12], window_step=4)
    for video in (folder, {"path": folder, "fps": 30}):
        found = pipeline(video, window_step=4)
        torch.testing.assert_close(found["features"], expected["features"])
    by_seconds = pipeline({"path": folder, "fps": 30}, window_step=4, fps=15)
    assert by_seconds["frames"][0].tolist() == [0, 2, 4, 6]


def test_folders_of_frames_are_audited_and_become_files(classes, tmp_path):
    reports = audit_videos(load_rows(str(classes), "train", frame_folder_fps=30), AuditSettings(workers=1))
    assert [(report.num_frames, report.width) for report in reports] == [(12, 96), (20, 96)]
    assert reports[0].bytes == sum(path.stat().st_size for path in (classes / "train" / "run" / "v.1").iterdir())
    audit = runpy.run_path(str(ROOT / "recipes" / "audit.py"))["main"]
    against = ["--against", str(classes), "--against_split=train", f"--output={tmp_path / 'audit.csv'}"]
    assert audit([str(classes), "--frame_folder_fps=30", "--workers=1", *against]) == 0
    with (tmp_path / "audit.csv").open(encoding="utf-8") as file:
        assert [Path(row["overlap"]).name for row in csv.DictReader(file)] == ["v.1", "v.2"]
    output = tmp_path / "new"
    job = {"dataset": str(classes), "output": str(output), "workers": 1, "min_psnr": 20.0}
    with pytest.raises(ValueError, match=r"img_00001\.png: cannot be opened as a video"):
        transcode_dataset(TranscodeArguments(**job))
    outcomes = transcode_dataset(TranscodeArguments(**job, frame_folder_fps=30))
    assert outcomes[0].source_bytes == reports[0].bytes
    files = sorted(str(path.relative_to(output)) for path in output.rglob("*.mp4"))
    assert files == ["test/run/v3.mp4", "train/run/v.1.mp4", "train/sit/v.2.mp4"]
    assert numbers(all_frames(output / files[2])) == list(range(10, 30))
    with VideoReader(output / files[2]) as reader:
        assert np.allclose(reader.stored_times(), np.arange(20) / 30, atol=1e-4)
