"""Strips side by side: every frame in its place, films that hold their frames."""

import numpy as np
import pytest
from PIL import Image

from mvd_hf.model.video_reading import VideoReader
from mvd_hf.visualization.strips import (
    draw_strips,
    figure_pixels,
    film_frames,
    shown_columns,
    write_figure,
    write_film,
)


def grey(*levels: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.stack([np.full((height, width, 3), level, dtype=np.uint8) for level in levels])


def test_columns_are_spread_from_the_first_frame_to_the_last():
    assert shown_columns(3) == [0, 1, 2]
    assert shown_columns(16) == [0, 2, 4, 6, 9, 11, 13, 15]
    assert shown_columns(5, limit=2) == [0, 4]


def test_a_figure_has_a_row_per_strip_and_a_column_per_frame(tmp_path):
    strips = {"clip": grey(10, 20, 30), "seen": grey(40, 50, 60)}
    figure = draw_strips(strips, ["a", "b", "c"], "heading")
    shown = [int(axes.images[0].get_array()[0, 0, 0]) for axes in figure.axes]
    assert shown == [10, 20, 30, 40, 50, 60]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", "", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["clip", "", "", "seen", "", ""]
    path = write_figure(tmp_path / "new" / "strips.png", figure)
    assert path.read_bytes().startswith(b"\x89PNG")
    with Image.open(path) as written:
        np.testing.assert_array_equal(
            figure_pixels(draw_strips(strips, ["a", "b", "c"], "heading")), np.asarray(written.convert("RGB"))
        )


def test_strips_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="'a': 2, 'b': 1"):
        draw_strips({"a": grey(1, 2), "b": grey(1)}, ["", ""])
    with pytest.raises(ValueError, match="'a': 0"):
        list(film_frames({"a": grey(1)[:0]}))


def test_strips_of_a_film_are_side_by_side_in_order():
    strips = {"clip": grey(10, 20, width=32), "two\nlines": grey(110, 120, width=32)}
    frames = list(film_frames(strips, ["0 s", "1 s"], side=60))
    assert len(frames) == 2
    height, width = frames[0].shape[:2]
    assert height % 2 == width % 2 == 0  # as H.264 needs
    assert width == 2 * (120 + 4)
    assert [int(frame[80, column, 0]) for frame in frames for column in (60, 184)] == [10, 110, 20, 120]
    assert (frames[0][:45, :120] < 128).any()  # the name
    assert (frames[0] != frames[1])[110:].any()  # the times


def test_a_film_holds_each_frame(tmp_path):
    frames = [np.full((48, 64, 3), level, dtype=np.uint8) for level in (30, 220)]
    write_film(tmp_path / "new" / "film.mp4", iter(frames), hold=1.5, fps=4)
    with VideoReader(tmp_path / "new" / "film.mp4") as reader:
        assert len(reader) == 12
        assert [round(frame.mean(), -1) for frame in reader.read([0, 5, 6, 11])] == [30, 30, 220, 220]
    with pytest.raises(ValueError, match="no frame"):
        write_film(tmp_path / "empty.mp4", iter([]))
