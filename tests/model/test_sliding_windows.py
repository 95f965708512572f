"""Sliding windows: which frames they hold, when they come, and where they end."""

import pytest

from mvd_hf.model.sliding_windows import SlidingWindows


@pytest.mark.parametrize("total", [*range(1, 30), 100])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 20])
@pytest.mark.parametrize(("num_frames", "stride"), [(1, 1), (2, 3), (4, 2), (5, 1)])
def test_windows_slide_until_one_reaches_the_end(num_frames, stride, step, total):
    windows = SlidingWindows(num_frames, stride, step)
    cut = list(windows.cut(f"frame {number}" for number in range(total)))
    span = num_frames * stride
    starts = [start for start in range(0, total, step) if start == 0 or start - step + span < total]
    for start, (numbers, frames) in zip(starts, cut, strict=True):
        last_step = (total - 1 - start) // stride
        assert numbers.tolist() == [start + stride * min(i, last_step) for i in range(num_frames)]
        assert frames == [f"frame {number}" for number in numbers]
    chosen = {number for numbers, _ in cut for number in numbers.tolist()}
    unused = [number for number in range(total) if not windows.is_used(number)]
    assert not chosen & set(unused)
    longer = SlidingWindows(num_frames, stride, step).cut(range(total + 2 * span + step))
    assert {n for numbers, _ in longer for n in numbers.tolist() if n < total} == set(range(total)) - set(unused)


def test_windows_come_as_soon_as_they_are_there():
    read = []

    def frames():
        for number in range(1000):
            read.append(number)
            yield number

    windows = SlidingWindows(4, 2, 3).cut(frames())
    numbers, kept = next(windows)
    assert numbers.tolist() == kept == [0, 2, 4, 6]
    assert len(read) == 7
    next(windows)
    assert len(read) == 10


@pytest.mark.parametrize("name", ["num_frames", "stride", "step"])
def test_windows_without_frames_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        SlidingWindows(**({"num_frames": 4, "stride": 2, "step": 3} | {name: 0}))
