"""The frame samplers: range, shape, reproducibility, spread and refused settings, for any length of video."""

from functools import partial

import numpy as np
import pytest
import torch

from mvd_hf.model.frame_sampling import (
    dense_frames,
    dense_test_frames,
    frames_by_seconds,
    key_frame_clip,
    key_frame_clip_by_seconds,
    pretraining_frames,
    resampled_frames,
    uniform_frames,
    uniform_test_frames,
)

RANDOM = {
    "pretraining": pretraining_frames,
    "pretraining_two_clips": partial(pretraining_frames, num_clips=2),
    "pretraining_eight_frames": partial(pretraining_frames, num_frames=8, stride=3),
    "dense": dense_frames,
    "dense_eight_frames": partial(dense_frames, num_frames=8, stride=3),
    "uniform": uniform_frames,
    "uniform_eight_frames": partial(uniform_frames, num_frames=8),
}
FIXED = {
    "dense_test": dense_test_frames,
    "dense_test_one_clip": partial(dense_test_frames, num_clips=1),
    "dense_test_eight_frames": partial(dense_test_frames, num_frames=8, stride=3),
    "uniform_test": uniform_test_frames,
    "uniform_test_three_clips": partial(uniform_test_frames, num_clips=3),
    "uniform_test_eight_frames": partial(uniform_test_frames, num_frames=8),
}
CLIPS = {"pretraining_two_clips": 2, "dense_test": 5, "dense_test_eight_frames": 5, "uniform_test": 2}
CLIPS |= {"uniform_test_three_clips": 3, "uniform_test_eight_frames": 2}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_frames_of_videos_of_1_to_300_frames_are_inside_and_in_order():
    for name in [*RANDOM, *FIXED]:
        generator = seeded(0)
        sampler = partial(RANDOM[name], generator=generator) if name in RANDOM else FIXED[name]
        shape = CLIPS.get(name, 1), 8 if "eight" in name else 16
        for total in range(1, 301):
            frames = sampler(total)
            assert frames.shape == shape
            assert frames.dtype == np.int64
            assert frames.min() >= 0
            assert frames.max() < total, total
            assert (np.diff(frames, axis=1) >= 0).all(), total


def test_generator_decides_the_frames_and_the_global_state_stays():
    for name in RANDOM:
        sampler, state = RANDOM[name], torch.get_rng_state()
        first = [sampler(300, generator=seeded(seed)) for seed in range(8)]
        again = [sampler(300, generator=seeded(seed)) for seed in range(8)]
        assert all((a == b).all() for a, b in zip(first, again, strict=True))
        assert len({clip.tobytes() for clip in first}) > 4
        assert torch.equal(torch.get_rng_state(), state)


def test_video_without_frames_is_refused():
    for name in [*RANDOM, *FIXED]:
        for total in [0, -1]:
            with pytest.raises(ValueError, match=f"total_frames={total} must be at least 1"):
                (RANDOM | FIXED)[name](total)


def test_setting_below_one_is_refused_by_name():
    for sampler, setting in [
        (pretraining_frames, "num_frames"),
        (pretraining_frames, "stride"),
        (pretraining_frames, "num_clips"),
        (dense_frames, "num_frames"),
        (dense_frames, "stride"),
        (uniform_frames, "num_frames"),
        (dense_test_frames, "num_frames"),
        (dense_test_frames, "stride"),
        (dense_test_frames, "num_clips"),
        (uniform_test_frames, "num_frames"),
        (uniform_test_frames, "num_clips"),
    ]:
        with pytest.raises(ValueError, match=f"{setting}=0 must be at least 1"):
            sampler(100, **{setting: 0})


def test_single_dense_test_clip_is_the_middle_one_of_three():
    for total in [64, 80, 131, 300]:
        (single,) = dense_test_frames(total, num_clips=1)
        assert (single == dense_test_frames(total, num_clips=3)[1]).all()


def test_single_uniform_test_clip_takes_the_middle_of_each_segment():
    for total in [17, 48, 131, 300]:
        (single,) = uniform_test_frames(total, num_clips=1)
        middles = (np.arange(16) + 0.5) * (total - 1) / 16
        assert np.abs(single - middles).max() <= 1


def test_dense_test_clips_reach_from_the_first_to_the_last_strided_frame():
    clips = dense_test_frames(300)
    assert clips[0, 0] == 0
    assert clips[-1, -1] == 296
    assert (np.diff(clips, axis=1) == 4).all()
    assert np.ptp(np.diff(clips[:, 0])) <= 4


def test_pretraining_clips_keep_their_stride_until_a_short_video_repeats_its_last_reachable_frame():
    assert (np.diff(pretraining_frames(64, generator=seeded(0))) == 4).all()
    assert pretraining_frames(10, generator=seeded(0)).tolist() == [[0, 4] + [8] * 14]
    # the official walk stops in front of the last frame
    assert pretraining_frames(9, generator=seeded(0)).tolist() == [[0] + [4] * 15]


def test_dense_clip_of_a_long_video_fills_its_span():
    for num_frames, stride in [(16, 4), (8, 3)]:
        generator = seeded(0)
        for total in range(num_frames * stride + 1, 300):
            (frames,) = dense_frames(total, num_frames, stride, generator)
            assert frames[-1] - frames[0] == num_frames * stride - 1
            assert set(np.diff(frames).tolist()) <= {stride, stride + 1}


def test_starts_are_uniform_over_all_places_where_the_clip_fits():
    for sampler, starts in [(pretraining_frames, 137), (dense_frames, 136)]:
        generator, draws = seeded(0), 40 * starts
        first = np.array([sampler(200, generator=generator)[0, 0] for _ in range(draws)])
        counts = np.bincount(first)
        assert len(counts) == starts
        assert counts.min() > 0
        # chi-square of `starts - 1` degrees of freedom, five standard deviations above its mean
        assert ((counts - 40) ** 2 / 40).sum() < starts + 5 * np.sqrt(2 * starts)


def test_each_of_several_pretraining_clips_starts_in_its_own_part():
    generator = seeded(0)
    starts = np.array([pretraining_frames(200, num_clips=3, generator=generator)[:, 0] for _ in range(400)])
    part = (200 - 64 + 1) // 3
    assert starts.min(axis=0).tolist() == [0, part, 2 * part]
    assert starts.max(axis=0).tolist() == [part - 1, 2 * part - 1, 3 * part - 1]


def test_several_pretraining_clips_of_a_tight_video_start_in_order_wherever_they_fit():
    generator = seeded(0)
    starts = np.array([pretraining_frames(65, num_clips=4, generator=generator)[:, 0] for _ in range(100)])
    assert (np.diff(starts, axis=1) >= 0).all()
    assert set(starts.ravel().tolist()) == {0, 1}


def test_uniform_frames_reach_both_ends_of_every_segment():
    generator = seeded(0)
    frames = np.concatenate([uniform_frames(33, num_frames=8, generator=generator) for _ in range(300)])
    assert frames.min(axis=0).tolist() == [4 * segment for segment in range(8)]
    assert frames.max(axis=0).tolist() == [4 * segment + 4 for segment in range(8)]


def test_a_clip_around_a_key_frame():
    assert key_frame_clip(100, 200).tolist() == [[100 - 31 + 4 * k for k in range(16)]]
    assert key_frame_clip(100, 200, num_frames=8, stride=2).tolist() == [[93, 95, 97, 99, 101, 103, 105, 107]]
    assert key_frame_clip(2, 200).tolist() == [[0] * 8 + [2 - 31 + 4 * k for k in range(8, 16)]]
    assert key_frame_clip(199, 200).tolist() == [[199 - 31 + 4 * k for k in range(8)] + [199] * 8]
    assert key_frame_clip(0, 1).tolist() == [[0] * 16]


def test_a_key_frame_is_in_the_video():
    for key_frame in [-1, 10]:
        with pytest.raises(ValueError, match=f"The key frame {key_frame} is not in a video of 10 frames"):
            key_frame_clip(key_frame, 10)


@pytest.mark.parametrize("sampler", [pretraining_frames, dense_frames, dense_test_frames])
@pytest.mark.parametrize("total", [1, 30, 63, 64, 65, 300])
def test_a_quarter_of_the_rate_of_a_video_gives_the_clips_of_stride_4(sampler, total):
    options = [{} if sampler is dense_test_frames else {"generator": seeded(0)} for _ in range(2)]
    by_number = sampler(total, **options[0])
    for rate in (25, 30000 / 1001, 12.5):
        options[1] = {} if sampler is dense_test_frames else {"generator": seeded(0)}
        found = frames_by_seconds(sampler, 3.0 + np.arange(total) / rate, rate / 4, **options[1])
        assert np.array_equal(found, by_number)


def test_a_video_is_seen_at_a_constant_rate_by_its_nearest_frames():
    times = np.array([0.0, 0.1, 0.5, 0.52, 1.4])
    seen = resampled_frames(times, 4)
    expected = [np.abs(times - moment).argmin() for moment in np.arange(0, 1.6, 0.25)]
    assert seen.tolist() == expected == [0, 1, 2, 3, 4, 4, 4]
    assert resampled_frames(np.zeros(1), 4).tolist() == [0]


def test_a_key_frame_clip_by_seconds_lies_around_the_key_frame():
    times = np.arange(300) / 25
    assert np.array_equal(key_frame_clip_by_seconds(120, times, 16, 6.25), key_frame_clip(120, 300))
    assert key_frame_clip_by_seconds(299, times, 16, 6.25)[0, -1] == 299


@pytest.mark.parametrize("fps", [0, -4, float("nan"), 1e9, True, "4"])
def test_frames_per_second_out_of_range_are_refused(fps):
    with pytest.raises(ValueError, match=f"fps={fps!r}"):
        resampled_frames(np.arange(8) / 25, fps)


@pytest.mark.parametrize("times", [[], [0.0, 0.2, 0.1], [0.0, float("nan"), 0.1]])
def test_times_that_do_not_ascend_are_refused(times):
    with pytest.raises(ValueError, match="must ascend"):
        resampled_frames(np.array(times), 4)
