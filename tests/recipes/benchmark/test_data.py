"""The benchmark of the data: compared methods do the same work, tables are complete and consistent."""

import json
import os
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mvd_hf.data import clips
from mvd_hf.data.frame_memory import FrameMemory
from mvd_hf.model.video_reading import VideoReader
from recipes.benchmark import data, decoders
from recipes.benchmark.data import (
    DATA_TITLES,
    STAGES,
    DataBenchmarkArguments,
    OtherClips,
    StageClock,
    clip_methods,
    compare,
    data_benchmark,
    measure_kept,
    official_views,
    rows_of,
    staged_clip,
    uint8_view,
)
from recipes.benchmark.decoders import FLOOR, OURS, decode_everything
from recipes.benchmark.reports import NOT_MEASURED, as_text, save_report
from recipes.benchmark.videos import make_video, natural_frames

TINY = {"num_frames": 4, "stride": 2, "size": 32, "rounds": 2, "loader_rounds": 1, "loader_clips": 4, "batch_size": 2}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    """A video of 24 frames with a key frame every 8 and B-frames between."""
    path = tmp_path_factory.mktemp("videos") / "tiny.mp4"
    make_video(path, natural_frames(24, 48, 64, seed=0), gop_size=8)
    return str(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, video) -> DataBenchmarkArguments:
    folder = tmp_path_factory.mktemp("report")
    return DataBenchmarkArguments(output=str(folder), videos=[video], workers=1, memory=30, **TINY)


def note_call(log: Path, name: str, task: int):
    with log.open("a") as file:
        file.write(f"{task}{name} {os.getpid()}\n")


def fail():
    raise OSError("broken")


def test_other_methods_read_our_frames_and_crops(video, tiny):
    ours = clip_methods([video], tiny)[OURS]
    exhaustive = partial(decode_everything, convert_all=False)
    same = OtherClips([video], exhaustive, uint8_view, tiny)
    official = OtherClips([video], exhaustive, official_views, tiny)
    mean, std = (torch.tensor(value)[:, None, None, None] for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    for key in [(0, 0), (1, 0), (2, 0)]:
        clip = ours[key]["pixel_values"]
        assert torch.equal(same[key]["pixel_values"], clip)
        views = official[key]
        assert views["student"].shape == (3, 4, 32, 32)
        assert torch.equal(views["student"], views["teacher"])
        grey = (views["student"] * std + mean) * 255
        assert (grey.transpose(0, 1) - clip).abs().max() < 2.5
    assert not torch.equal(ours[(0, 0)]["pixel_values"], ours[(1, 0)]["pixel_values"])


def test_stages_make_the_same_clip(video, tiny):
    expected = clip_methods([video], tiny)[OURS][(3, 0)]
    clock = StageClock()
    clip = staged_clip(video, clock, (3, 0), tiny)
    assert clip.keys() == expected.keys()
    assert all(torch.equal(clip[key], expected[key]) for key in clip)
    assert set(clock.total) == set(STAGES) - {"collate"}


@pytest.mark.long
@pytest.mark.slow
def test_missing_packages_are_not_measured(video, tiny, monkeypatch):
    for name in ("decord", "torchcodec"):
        monkeypatch.setattr(decoders, name, None)
    keys = TINY | {"output": tiny.output, "videos": [video], "parts": ["decode", "clip"]}
    report = data_benchmark(DataBenchmarkArguments(**keys))
    for part in keys["parts"]:
        measured = {row["method"]: row["cpu_ms"] for row in report[part]}
        missing = {name for name in measured if "decord" in name or "torchcodec" in name}
        assert len(missing) == 2
        assert missing == {name for name, cost in measured.items() if cost is None}
    assert as_text(report, DATA_TITLES).count(NOT_MEASURED) >= 4


def test_methods_take_turns(tmp_path):
    log = tmp_path / "log"
    methods = {name: partial(note_call, log, name) for name in "abc"}
    costs = compare({**methods, "missing": None}, [(i,) for i in range(9)], num_warm_up=2, seed=0)
    assert costs["missing"] is None
    assert all(costs[name].shape == (7, 2) for name in "abc")
    calls, processes = zip(*(line.split() for line in log.read_text().splitlines()), strict=True)
    assert [call[0] for call in calls] == [str(i) for i in range(9) for _ in "abc"]
    orders = {"".join(call[1] for call in calls[start : start + 3]) for start in range(0, 27, 3)}
    assert len(orders) > 2
    assert all(sorted(order) == list("abc") for order in orders)
    assert len(set(zip((call[1] for call in calls), processes, strict=True))) == 3  # each has its own process


def test_failing_methods_are_left_out_unless_they_are_ours(caplog):
    costs = compare({OURS: list, "other": fail, "dead": partial(os._exit, 1)}, [(), ()], 0, 0)
    assert costs["other"] is costs["dead"] is None
    assert costs[OURS].shape == (2, 2)
    assert "dead fails" in caplog.text
    assert "other fails: OSError: broken" in caplog.text
    with pytest.raises(RuntimeError, match="broken"):
        compare({OURS: fail}, [()], 0, 0)


def test_rows_hold_means_and_ratios():
    costs = {"a": np.array([[1.0, 2.0], [3.0, 6.0]]), "b": np.array([[3.0, 4.0], [9.0, 4.0]]), "c": None}
    a, b, c = rows_of("files", costs, "a")
    assert (a["cpu_ms"], a["wall_ms"], a["clips_per_s"], a["cpu_ratio"]) == (2, 4, 250, 1)
    assert (b["cpu_ms"], b["cpu_ratio"], b["low"], b["high"]) == (6, 3, 3, 3)
    assert c == {"files": "files", "method": "c"} | dict.fromkeys(list(a)[2:])


@pytest.mark.long
@pytest.mark.slow
def test_the_report_has_every_part(tiny):
    report = data_benchmark(tiny)
    assert set(report) == {"about", "arguments", *DATA_TITLES}
    assert json.loads(save_report(report, tiny.output, "data").read_text()) == report
    text = as_text(report, DATA_TITLES)
    assert all(title in text for title in DATA_TITLES.values())
    for part in ("decode", "clip", "loader", "clips_per_video", "kept", "transcoded"):
        assert report[part][0]["cpu_ratio"] == 1
        for row in report[part]:
            if row["cpu_ms"] is not None:
                assert row["cpu_ms"] > 0
                assert row["clips_per_s"] == pytest.approx(1000 / row["wall_ms"])
    frames = {row["method"]: row["frames"] for row in report["decode"]}
    assert all(frames[name] == "same" for name in frames if name in (OURS, FLOOR) or "PyAV" in name)
    assert [row["method"] for row in report["clips_per_video"]] == ["1 clip", "2 clips", "4 clips"]
    assert len(report["kept"]) == 2
    assert [row["method"] for row in report["transcoded"]] == ["source", "transcoded"]

    total = {row["stage"]: row["cpu_ms"] for row in report["stages"]}
    assert list(total) == list(STAGES)
    parts = {name: value for name, value in total.items() if name not in ("whole clip", "collate")}
    assert all(value > 0 for value in [*parts.values(), total["collate"]])
    assert 0.5 * total["whole clip"] < sum(parts.values()) <= 1.001 * total["whole clip"]

    table = report["memory"]
    assert [row["clips"] for row in table] == list(range(3, 31, 3))
    assert all(row["rss_mb"] > 1 for row in table)
    assert {row["open_files"] for row in table} == {table[0]["open_files"]}


def test_kept_frames_are_decoded_once(tiny, monkeypatch):
    reads = []

    def call(methods, tasks, num_warm_up, seed):
        for method in methods.values():
            with patch.object(VideoReader, "decode", autospec=True, side_effect=VideoReader.decode) as decode:
                for task in tasks:
                    method(*task)
            reads.append(decode.call_count)
        return {name: np.ones((len(tasks), 2)) for name in methods}

    monkeypatch.setattr(data, "compare", call)
    monkeypatch.setattr(clips, "PROCESS_MEMORY", FrameMemory())
    measure_kept({"tiny": tiny.videos}, tiny)
    assert reads == [tiny.rounds + 1, 1]


def test_unknown_parts_and_counts_are_refused():
    with pytest.raises(ValueError, match="clips"):
        DataBenchmarkArguments(parts=["clips"])
    with pytest.raises(ValueError, match="rounds=0"):
        DataBenchmarkArguments(rounds=0)
