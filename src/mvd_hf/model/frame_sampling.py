"""The frame samplers of the paper for pre-training, fine-tuning and testing.

Every function takes the number of frames of a video and returns frame numbers from 0, as an int64 array with a row for
each clip. Random choices follow the generator. Videos that are too short repeat their last reachable frame. Letters in
shapes: K clips, T frames per clip.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

import itertools
from collections.abc import Callable

import numpy as np
import torch

# clips by seconds take every fourth frame of a video that is seen at 4 * fps frames per second
STEPS_PER_FRAME = 4
MAX_FPS = 1000
# clips and crops of the paper's tests, by how the frames of a clip are chosen
PAPER_VIEWS = {"dense": (5, 3), "uniform": (2, 3)}


def draw(low: int, high: int, generator: torch.Generator | None) -> int:
    """A uniform integer from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def check_video(total_frames: int, num_frames: int, **at_least_one: int):
    """Raise ValueError if the video has no frame, or a setting is below one."""
    for name, value in {"total_frames": total_frames, "num_frames": num_frames, **at_least_one}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")


def pretraining_frames(
    total_frames: int,
    num_frames: int = 16,
    stride: int = 4,
    num_clips: int = 1,
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """Pre-training clips (K, T): a random start in each of K equal parts, then every `stride`-th frame.

    A start leaves room for `num_frames * stride` frames. In a shorter video a clip begins at frame 0 and repeats the
    last reachable frame.
    """
    check_video(total_frames, num_frames, stride=stride, num_clips=num_clips)
    span = num_frames * stride
    room = (total_frames - span + 1) // num_clips
    if room > 0:
        starts = [clip * room + draw(0, room - 1, generator) for clip in range(num_clips)]
    elif total_frames > max(num_clips, span):
        starts = sorted(draw(0, total_frames - span, generator) for _ in range(num_clips))
    else:
        starts = [0] * num_clips
    # as in the official program, a step is taken only if its position, counted from 1, is below the number of frames
    last_step = [max((total_frames - 2 - start) // stride, 0) for start in starts]
    steps = np.minimum(np.arange(num_frames), np.array(last_step)[:, None])
    return np.array(starts)[:, None] + stride * steps


def dense_frames(
    total_frames: int, num_frames: int = 16, stride: int = 4, generator: torch.Generator | None = None
) -> np.ndarray:
    """One fine-tuning clip (1, T) of Kinetics, UCF101, HMDB51: evenly spaced over a random span of T * stride frames.

    Both ends of the span are included, so the step is `T * stride / (T - 1)`. Videos not longer than the span are
    covered from end to end with a frame every `stride` frames; then the last frame repeats.
    """
    check_video(total_frames, num_frames, stride=stride)
    span = num_frames * stride
    if total_frames <= span:
        inside = np.linspace(0, total_frames, num=total_frames // stride)
        frames = np.concatenate([inside, np.full(num_frames - len(inside), total_frames)])
        return np.clip(frames, 0, total_frames - 1).astype(np.int64)[None]
    end = draw(span, total_frames - 1, generator)
    frames = np.linspace(end - span, end, num=num_frames)
    return np.clip(frames, end - span, end - 1).astype(np.int64)[None]


def uniform_frames(total_frames: int, num_frames: int = 16, generator: torch.Generator | None = None) -> np.ndarray:
    """One fine-tuning clip (1, T) of Something-Something: a random frame of each of T equal segments (ends shared)."""
    check_video(total_frames, num_frames)
    length = (total_frames - 1) / num_frames
    bounds = [round(length * segment) for segment in range(num_frames + 1)]
    return np.array([[draw(low, high, generator) for low, high in itertools.pairwise(bounds)]], dtype=np.int64)


def dense_test_frames(total_frames: int, num_frames: int = 16, stride: int = 4, num_clips: int = 5) -> np.ndarray:
    """Test clips (K, T) of Kinetics, UCF101, HMDB51: every `stride`-th frame, starts evenly spread over the video.

    A single clip, which the official program does not have, is the middle one.
    """
    check_video(total_frames, num_frames, stride=stride, num_clips=num_clips)
    strided = np.arange(0, total_frames, stride)
    strided = np.pad(strided, (0, max(num_frames - len(strided), 0)), mode="edge")
    room = len(strided) - num_frames
    starts = [int(clip * (room / (num_clips - 1))) for clip in range(num_clips)] if num_clips > 1 else [room // 2]
    return np.stack([strided[start : start + num_frames] for start in starts])


def uniform_test_frames(total_frames: int, num_frames: int = 16, num_clips: int = 2) -> np.ndarray:
    """Test clips (K, T) of Something-Something: T segments of K parts, clip k takes the middle of each part k."""
    check_video(total_frames, num_frames, num_clips=num_clips)
    tick = (total_frames - 1) / num_frames
    part = tick / num_clips
    frames = [
        [(round(tick * i + part * clip) + round(tick * i + part * (clip + 1))) // 2 for i in range(num_frames)]
        for clip in range(num_clips)
    ]
    return np.array(frames, dtype=np.int64)


def key_frame_clip(key_frame: int, total_frames: int, num_frames: int = 16, stride: int = 4) -> np.ndarray:
    """One clip (1, T) around a key frame, for action detection (AVA).

    It has every `stride`-th frame, half of the span before the key frame and half after it: with 16 x 4 from 31 frames
    before it to 29 after it. At the ends of the video the first or last frame repeats.
    """
    check_video(total_frames, num_frames, stride=stride)
    if not 0 <= key_frame < total_frames:
        raise ValueError(f"The key frame {key_frame} is not in a video of {total_frames} frames.")
    offsets = stride * np.arange(num_frames) - num_frames * stride // 2 + 1
    return np.clip(key_frame + offsets, 0, total_frames - 1)[None]


def check_fps(fps: float, name: str = "fps"):
    """Raise ValueError if a number of frames per second is not above 0, or is beyond all cameras."""
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= MAX_FPS:
        raise ValueError(f"{name}={fps!r} must be a number above 0 and at most {MAX_FPS}.")


def resampled_frames(times: np.ndarray, fps: float) -> np.ndarray:
    """The frames (n,) that show a video at a constant rate: those nearest to 0, 1/fps, 2/fps, ... seconds.

    Args:
        times: (frames,) seconds of each frame, in order; see `VideoReader.stored_times`.
        fps: frames per second.

    Raises:
        ValueError: if a time is not finite or goes back, or the rate is not positive.
    """
    check_fps(fps)
    times = np.asarray(times, dtype=np.float64)
    steps = np.diff(times)
    if len(times) == 0 or not np.isfinite(times).all() or (steps < 0).any():
        place = int(np.argmax(~(steps >= 0))) + 1 if len(times) > 1 else 0
        raise ValueError(f"Times of frames must ascend: that of frame {place} of {len(times)} does not.")
    seconds = times[-1] - times[0] + (np.median(steps) if len(steps) else 0.0)
    # of two frames at the same distance the first, whatever the rounding of times
    wanted = times[0] + np.arange(max(int(np.ceil(seconds * fps - 1e-6)), 1)) / fps - 1e-6
    return np.searchsorted((times[1:] + times[:-1]) / 2, wanted)  # the frame after so many middles is the nearest


def frames_by_seconds(sampler: Callable[..., np.ndarray], times: np.ndarray, fps: float, **options) -> np.ndarray:
    """Clips (K, T) of a sampler with a `stride`, such as [`pretraining_frames`], at a distance of 1/fps seconds.

    The sampler sees the video at `4 * fps` frames per second and takes every fourth frame. At a constant rate r, clips
    with `fps=r / 4` are those with `stride=4`.

    Args:
        sampler: called with a number of frames, `stride` and the options.
        times, fps: as in [`resampled_frames`].
    """
    seen = resampled_frames(times, STEPS_PER_FRAME * fps)
    return seen[sampler(len(seen), stride=STEPS_PER_FRAME, **options)]


def key_frame_clip_by_seconds(key_frame: int, times: np.ndarray, num_frames: int, fps: float) -> np.ndarray:
    """One clip (1, T) around a key frame as [`key_frame_clip`], with frames at a distance of 1/fps seconds."""
    place = round(float(times[key_frame] - times[0]) * STEPS_PER_FRAME * fps)

    def sampler(total_frames: int, stride: int) -> np.ndarray:
        return key_frame_clip(min(place, total_frames - 1), total_frames, num_frames, stride)

    return frames_by_seconds(sampler, times, fps)


__all__ = [
    "check_fps",
    "resampled_frames",
    "frames_by_seconds",
    "pretraining_frames",
    "dense_frames",
    "uniform_frames",
    "dense_test_frames",
    "uniform_test_frames",
    "key_frame_clip",
    "key_frame_clip_by_seconds",
]
