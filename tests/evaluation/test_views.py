"""Functions of the views of every video: shared, resumed, complete, and only of what they were computed for."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from mvd_hf import MVDVideoProcessor
from mvd_hf.data.toy import toy_frames, write_video
from mvd_hf.evaluation.views import VideoViews, ViewResults, map_views, protocol_of

CROP = {"height": 16, "width": 16}


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> datasets.Dataset:
    """Seven videos, of which the third cannot be read."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"{i}.mp4" for i in range(7)]
    for i, path in enumerate(paths):
        write_video(path, toy_frames("dots", "left", 12 + i, 24, 32, np.random.default_rng(i)))
    paths[2].write_bytes(b"no video")
    return datasets.Dataset.from_dict({"video": [{"path": str(path), "bytes": None} for path in paths]})


@pytest.fixture
def processor() -> MVDVideoProcessor:
    return MVDVideoProcessor(
        num_frames=4, frame_sampling_rate=2, num_clips=3, num_crops=2, size={"shortest_edge": 16}, crop_size=CROP
    )


def means(views: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean color (n, 3) and the views' number of frames (n, 1, 1) in half precision."""
    count = torch.full((len(views), 1, 1), views.shape[1], dtype=torch.float16)
    return {"color": views.float().mean(dim=(1, 3, 4)), "count": count}


def run(function, rows, processor, folder, **options) -> ViewResults:
    return map_views(function, VideoViews(rows, processor), folder, {"of": "colors"}, num_workers=0, **options)


def test_every_video_has_the_results_of_its_views_in_the_order_of_the_processor(rows, processor, tmp_path):
    results = run(means, rows, processor, tmp_path, views_per_pass=4, videos_per_part=2)
    assert results.rows() == [0, 1, 3, 4, 5, 6]
    assert list(results.problems) == [2]
    assert results.problems[2]
    for row in results.rows():
        path = rows[row]["video"]["path"]
        views = processor(path, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        assert views.shape == (6, 4, 3, 16, 16)
        assert torch.equal(torch.tensor(results.array(row, "color")), means(views)["color"])
        assert results.array(row, "count").dtype == np.float16
        assert results.array(row, "count").shape == (6, 1, 1)
    assert results.stack("color").shape == (6, 6, 3)
    assert protocol_of(processor) == "4x3x2"
    processor.num_clips = processor.num_crops = 1
    assert run(means, rows, processor, tmp_path / "one").stack("color").shape == (6, 1, 3)


def test_views_of_several_videos_share_a_pass_up_to_the_bound(rows, processor, tmp_path):
    sizes = []

    def count(views):
        sizes.append(len(views))
        return means(views)

    run(count, rows, processor, tmp_path / "few", views_per_pass=4)
    assert sizes == [4, 2] * 6
    sizes.clear()
    run(count, rows, processor, tmp_path / "many", views_per_pass=14)
    assert sizes == [12, 6, 12, 6]  # two videos at a time, of which one cannot be read


def test_after_an_interruption_only_what_is_missing_is_computed(rows, processor, tmp_path):
    seen = []

    def fail_at_the_fifth(views):
        seen.append(len(views))
        if len(seen) == 5:
            raise KeyboardInterrupt
        return means(views)

    with pytest.raises(KeyboardInterrupt):
        run(fail_at_the_fifth, rows, processor, tmp_path, views_per_pass=6, videos_per_part=2)
    assert ViewResults(tmp_path, 7).rows() == [0, 1, 3]
    (tmp_path / "part-000009-of-0.new").write_bytes(b"cut off while it was written")
    seen.clear()
    seen += [0] * 10
    results = run(fail_at_the_fifth, rows, processor, tmp_path, views_per_pass=6, videos_per_part=2)
    assert len(seen) - 10 == 3
    whole = run(means, rows, processor, tmp_path / "whole")
    assert np.array_equal(results.stack("color"), whole.stack("color"))


def test_what_was_computed_for_something_else_is_refused(rows, processor, tmp_path):
    run(means, rows, processor, tmp_path)
    processor.num_crops = 1
    with pytest.raises(ValueError, match="differ in processor:"):
        run(means, rows, processor, tmp_path)
    processor.num_crops = 2
    with pytest.raises(ValueError, match="videos, names"):
        run(means, rows.select(range(5)), processor, tmp_path)
    with pytest.raises(ValueError, match="differ in of:"):
        map_views(means, VideoViews(rows, processor), tmp_path, {"of": "sizes"})
    assert json.loads((tmp_path / "views.json").read_text())["of"] == "colors"


def test_what_was_computed_for_something_else_is_replaced_on_request(rows, processor, tmp_path):
    run(means, rows, processor, tmp_path, videos_per_part=2)
    results = run(means, rows.select(range(3)), processor, tmp_path, replace=True)
    assert results.place.keys() | results.problems.keys() == {0, 1, 2}
    assert len(list(tmp_path.glob("part-*"))) == 1


def test_a_repaired_video_is_read_again(rows, processor, tmp_path):
    content = Path(rows[0]["video"]["path"]).read_bytes()
    folder = tmp_path / "results"
    path = tmp_path / "2.mp4"
    path.write_bytes(b"no video")
    changing = datasets.Dataset.from_dict({"video": [{"path": str(path), "bytes": None}]})
    assert run(means, changing, processor, folder).problems.keys() == {0}
    path.write_bytes(content)
    results = run(means, changing, processor, folder)
    assert results.rows() == [0]
    assert not results.problems


def test_missing_results_are_noticed(rows, processor, tmp_path, monkeypatch):
    monkeypatch.setattr("mvd_hf.evaluation.views.write_part", lambda folder, number, records: None)
    with pytest.raises(ValueError, match="7 of 7 videos"):
        run(means, rows, processor, tmp_path)
