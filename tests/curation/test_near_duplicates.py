"""Near-duplicates: copies and parts are found however they were encoded, other takes and other places are not."""

import itertools
from pathlib import Path

import av
import datasets
import numpy as np
import pytest
from PIL import Image

from mvd_hf.curation import near_duplicates as module
from mvd_hf.curation.fingerprints import VideoFingerprint, read_fingerprints, thumbnail, thumbnail_positions
from mvd_hf.curation.near_duplicates import ComparableVideo, coarse_pairs, find_near_duplicates, match

HEIGHT, WIDTH = 96, 128


def place(rng: np.random.Generator) -> np.ndarray:
    """A thumbnail (H, W, 3) with structure of all sizes, as a room or a street has."""
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (n, n + 1, 3), dtype=np.uint8)).resize(
                (WIDTH, HEIGHT), Image.Resampling.BICUBIC
            ),
            dtype=float,
        )
        for n in (2, 4, 8, 16)
    ]
    return np.clip(np.average(layers, axis=0, weights=(4, 3, 2, 1)) * 1.6 - 76, 0, 255)


def take(background: np.ndarray, rng: np.random.Generator, num_frames: int = 64) -> np.ndarray:
    """Frames (T, H, W, 3) of somebody who moves about in front of a fixed camera, each time in another way."""
    height, width = rng.integers(30, 40), rng.integers(16, 22)
    corner = np.array([rng.uniform(20, HEIGHT - height - 20), rng.uniform(20, WIDTH - width - 20)])
    colour = rng.uniform(0, 255, (2, 1, 1, 3))
    frames = np.repeat(background[None], num_frames, axis=0)
    phases, rates = rng.uniform(0, 2 * np.pi, (3, 2)), rng.uniform(0.02, 0.12, (3, 2))
    for i in range(num_frames):
        top, left = np.round(corner + 7 * np.sin(rates * i + phases).sum(axis=0)).astype(int)
        top, left = max(top, 0), max(left, 0)
        frames[i, top : top + height // 2, left : left + width] = colour[0]
        frames[i, top + height // 2 : top + height, left : left + width] = colour[1]
    return frames.round().astype(np.uint8)


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


def cropped(frames: np.ndarray, top: float, left: float, bottom: float, right: float) -> np.ndarray:
    """Frames without these parts of their height and width."""
    height, width = frames.shape[1:3]
    rows = slice(round(top * height), height - round(bottom * height))
    return frames[:, rows, round(left * width) : width - round(right * width)]


def fingerprint(frames: np.ndarray, fps: float | None = 25.0, name: str = "") -> VideoFingerprint:
    """The fingerprint of frames, without the detour of a file."""
    positions = thumbnail_positions(len(frames), fps, 64)
    thumbnails = np.stack([thumbnail(np.ascontiguousarray(frames[i])) for i in positions])
    return VideoFingerprint(name, num_frames=len(frames), fps=fps, thumbnails=thumbnails)


@pytest.fixture(scope="module")
def footage() -> np.ndarray:
    rng = np.random.default_rng(1)
    return take(place(rng), rng)


VERSIONS = {
    "half": lambda frames: (resized(frames, 48, 64), 25),
    "another shape": lambda frames: (resized(frames, 72, 72), 25),
    "brighter": lambda frames: (np.clip(frames * 1.1 + 10.0, 0, 255).astype(np.uint8), 25),
    "cropped": lambda frames: (cropped(frames, 0.05, 0.05, 0.05, 0.05), 25),
    "cropped at a corner": lambda frames: (cropped(frames, 0, 0, 0.1, 0.1), 25),
    "half the rate": lambda frames: (frames[::2], 12.5),
    "another rate": lambda frames: (frames[np.arange(0, len(frames), 1.25).astype(int)], 20),
    "no rate": lambda frames: (frames, None),
    "another speed": lambda frames: (frames, 60),
}


def test_versions_of_a_video_are_the_same(footage):
    for name, version in VERSIONS.items():
        frames, fps = version(footage)
        (pair,) = find_near_duplicates([fingerprint(footage), fingerprint(frames, fps)])
        assert (pair.first, pair.second, pair.kind, pair.share) == (0, 1, "same", 1), name
        assert 0.78 <= pair.similarity <= 1, name


PARTS = {
    "beginning": lambda frames: (frames[:30], 25),
    "end": lambda frames: (frames[41:], 25),
    "middle, cropped": lambda frames: (cropped(frames[10:40], 0.05, 0, 0, 0.05), 25),
    "middle, half the size and rate": lambda frames: (resized(frames[7:57:2], 48, 64), 12.5),
}


def test_a_part_of_a_video_is_found_and_comes_first(footage):
    whole = fingerprint(footage)
    for name, part in PARTS.items():
        frames, fps = part(footage)
        cut = fingerprint(frames, fps)
        (pair,), (turned,) = find_near_duplicates([whole, cut]), find_near_duplicates([cut, whole])
        assert (pair.first, pair.second, pair.kind) == (1, 0, "part"), name
        assert pair.share >= 0.9, name
        assert (turned.first, turned.second, turned.kind) == (0, 1, "part"), name


def test_videos_that_overlap_are_found_and_by_how_much(footage):
    (pair,) = find_near_duplicates([fingerprint(footage[:40]), fingerprint(footage[24:])])
    assert pair.kind == "overlap"
    assert pair.share == pytest.approx(16 / 40, abs=0.05)
    assert find_near_duplicates([fingerprint(footage[:32]), fingerprint(footage[32:])]) == []  # the rest of one shot
    assert find_near_duplicates([fingerprint(footage[:36]), fingerprint(footage[31:])]) == []  # too little in common


def test_takes_of_one_place_are_no_duplicates():
    rng = np.random.default_rng(3)
    takes = [fingerprint(take(background, rng)) for background in [place(rng)] * 8]
    assert len(coarse_pairs(takes)) == 28  # all of them are coarsely similar
    assert find_near_duplicates(takes) == []


def test_other_places_are_no_duplicates():
    rng = np.random.default_rng(4)
    videos = [fingerprint(take(place(rng), rng, num_frames=40)) for _ in range(40)]
    assert find_near_duplicates(videos) == []
    assert len(coarse_pairs(videos)) < 0.02 * 40 * 39 / 2  # most are not even aligned


def test_black_videos_are_in_no_pair(footage):
    black = np.zeros_like(footage)
    noise = np.random.default_rng(0).integers(0, 3, footage.shape, dtype=np.uint8)
    white = np.full_like(footage, 255)
    found = find_near_duplicates([fingerprint(frames) for frames in (black, black, noise, white, white)])
    assert found == []
    faded = footage.copy()
    faded[:20] = 0
    (pair,) = find_near_duplicates([fingerprint(black), fingerprint(faded), fingerprint(footage)])
    assert (pair.first, pair.second, pair.kind) == (1, 2, "same")


def test_unreadable_videos_are_in_no_pair(footage):
    bad = VideoFingerprint("bad.mp4", reason="no such file")
    found = find_near_duplicates([bad, fingerprint(footage), bad, fingerprint(footage)])
    assert [(pair.first, pair.second) for pair in found] == [(1, 3)]
    assert find_near_duplicates([bad, bad]) == []
    assert find_near_duplicates([]) == []


def test_videos_of_a_few_frames_are_compared_as_images():
    rng = np.random.default_rng(5)
    for num_frames in (1, 2, 3):
        rooms = [np.repeat(place(rng)[None], num_frames, axis=0).astype(np.uint8) for _ in range(3)]
        videos = [fingerprint(frames) for frames in (*rooms, resized(rooms[1], 48, 64))]
        (pair,) = find_near_duplicates(videos)
        assert (pair.first, pair.second, pair.kind) == (1, 3, "same")


def test_any_lengths_and_rates_can_be_compared():
    rng = np.random.default_rng(11)
    room = place(rng)
    frames = take(room, rng, num_frames=300)
    cases = itertools.product((1, 2, 3, 17, 300), (None, 0.5, 25.0, 1000.0))
    videos = [fingerprint(frames[:length], fps) for length, fps in cases]
    pairs = {(pair.first, pair.second) for pair in find_near_duplicates(videos)}
    assert {(i, j) for i, j in itertools.combinations(range(16, 20), 2)} <= pairs
    assert {(i, j) for i, j in itertools.combinations(range(4), 2)} <= pairs


def test_a_video_in_which_nothing_moves_is_no_part_of_takes_of_its_place():
    rng = np.random.default_rng(6)
    background = place(rng)
    still = np.repeat(background[None], 30, axis=0).astype(np.uint8)
    moving = take(background, rng)
    moving[:30] = still
    videos = [fingerprint(still), fingerprint(moving), fingerprint(still[:10])]
    (pair,) = find_near_duplicates(videos)
    assert (pair.first, pair.second) == (0, 2)


def video_of(greys: np.ndarray) -> ComparableVideo:
    """A video of thumbnails (T, 12, 12) of gray levels, finer than frames have."""
    thumbnails = np.round(greys * 257).astype(np.uint16)
    return ComparableVideo.of(VideoFingerprint("", num_frames=len(thumbnails), fps=7.0, thumbnails=thumbnails))


def test_what_hardly_moves_proves_nothing():
    rng = np.random.default_rng(12)
    room = rng.uniform(20, 230, (12, 12))
    drift = np.sin(np.arange(64) / 3)[:, None, None] * rng.choice((-1, 1), (12, 12))
    own = [room + rng.normal(0, 4, (12, 12)) * np.sin(np.arange(24) / rate)[:, None, None] for rate in (5, 8)]
    for size in (0.3, 3):  # light that changes alike at the end of one take and at the beginning of another
        common = room + size * drift[:40]
        found = match(video_of(np.concatenate([own[0], common])), video_of(np.concatenate([common, own[1]])))
        assert (found is not None) == (size == 3)
    moving = video_of(room + drift)
    still = video_of(np.repeat(room[None], 64, axis=0))
    assert (moving.is_still, still.is_still) == (False, True)
    assert match(moving, still) is None
    assert match(still, moving) is None
    assert match(still, still).share == 1


def test_a_part_between_the_thumbnails_that_are_looked_for_finds_the_whole():
    rng = np.random.default_rng(13)
    scenes = [take(place(rng), rng, num_frames=20) for _ in range(9)]
    whole = fingerprint(np.concatenate(scenes))
    for part in (1, 4, 7):
        (pair,) = find_near_duplicates([whole], [fingerprint(scenes[0][:3]), fingerprint(scenes[part])])
        assert (pair.first, pair.second, pair.kind) == (0, 1, "part")


def test_the_number_of_alignments_is_bounded(footage):
    short, long = ComparableVideo.of(fingerprint(footage[:3])), ComparableVideo.of(fingerprint(footage))
    long.num_frames = 1_000_000
    for first, second in ((short, long), (long, short)):
        assert all(len(offsets) <= 1002 for _, offsets in module.alignments(first, second))


def test_two_sets(footage):
    rng = np.random.default_rng(7)
    others = [fingerprint(take(place(rng), rng)) for _ in range(2)]
    train = [others[0], fingerprint(footage), others[1]]
    validation = [fingerprint(footage[:30]), others[1], fingerprint(take(place(rng), rng))]
    found = find_near_duplicates(validation, train)
    assert [(pair.first, pair.second, pair.kind) for pair in found] == [(0, 1, "part"), (1, 2, "same")]
    found = find_near_duplicates(train, validation)
    assert [(pair.first, pair.second, pair.kind) for pair in found] == [(1, 0, "part"), (2, 1, "same")]


def test_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(8)
    videos = [fingerprint(take(place(rng), rng, num_frames=20)) for _ in range(6)]
    videos = [*videos, *videos[2:4]]
    expected = find_near_duplicates(videos)
    assert [(pair.first, pair.second) for pair in expected] == [(2, 6), (3, 7)]
    monkeypatch.setattr(module, "NUM_BLOCK_QUERIES", 5)
    monkeypatch.setattr(module, "NUM_BLOCK_THUMBNAILS", 30)
    assert find_near_duplicates(videos) == expected


def test_a_match_is_the_same_from_both_sides(footage):
    one, other = ComparableVideo.of(fingerprint(footage)), ComparableVideo.of(fingerprint(footage[20:50]))
    there, back = match(one, other), match(other, one)
    assert (there.share_of_first, there.share_of_second) == (back.share_of_second, back.share_of_first)
    assert there.similarity == back.similarity
    assert there.share_of_second == pytest.approx(1, abs=0.05)
    assert there.share_of_first == pytest.approx(30 / 64, abs=0.05)


def test_the_similarity_of_changes_is_what_its_formula_says():
    rng = np.random.default_rng(9)
    first, second = (ComparableVideo.of(fingerprint(take(place(rng), rng, num_frames=10))) for _ in range(2))
    count, places, changes, size = module.fit(first, second, 1.0, np.zeros(1))
    a, b = first.thumbnails, second.thumbnails
    means = a.mean(axis=0), b.mean(axis=0)
    cov = np.mean(((a - means[0]) * (b - means[1])).sum(axis=1))
    variances = sum(np.square(x - mean).sum(axis=1).mean() for x, mean in zip((a, b), means, strict=True))
    assert count.tolist() == [10]
    assert changes[0] == pytest.approx(2 * cov / variances)
    assert places[0] == pytest.approx(means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]))
    contrast = (first.contrast.mean() + second.contrast.mean()) / 2
    assert size[0] == pytest.approx(np.sqrt(variances / 2) * contrast)


def test_thumbnails_between_thumbnails_are_interpolated(footage):
    first, second = ComparableVideo.of(fingerprint(footage[1:])), ComparableVideo.of(fingerprint(footage))
    offset = 0.5
    _, _, changes, _ = module.fit(first, second, 1.0, np.array([offset]))
    times = first.times + offset
    inside = times <= len(footage) - 0.5
    shown = np.stack([np.interp(times[inside], second.times, cell) for cell in second.thumbnails.T], axis=1)
    a, b = first.thumbnails[inside], shown
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    assert changes[0] == pytest.approx(2 * (a * b).sum() / (np.square(a).sum() + np.square(b).sum()))


def write(path: Path, frames: np.ndarray, rate: int = 25, **options):
    """Write frames as H.264, as strongly compressed as the options say."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", **options})
        stream.height, stream.width = (size // 2 * 2 for size in frames.shape[1:3])
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        for frame in frames[:, : stream.height, : stream.width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def test_encoded_versions_of_several_videos_are_found_and_nothing_else(tmp_path):
    """A small measurement of misses and false alarms, through the reader."""
    rng = np.random.default_rng(10)
    rooms = [place(rng) for _ in range(3)]
    for i, room in enumerate([*rooms, *rooms]):  # two takes of each place
        frames = take(room, rng)
        write(tmp_path / f"{i}_whole.mp4", frames, crf="18")
        write(tmp_path / f"{i}_worse.mp4", frames, crf="34")
        write(tmp_path / f"{i}_small.mp4", resized(frames, 48, 64), crf="28")
        write(tmp_path / f"{i}_rate.mp4", frames[::2], rate=12, crf="28")
        write(tmp_path / f"{i}_cut.mp4", cropped(frames[13:57], 0.04, 0.04, 0.04, 0.04), crf="28")
    paths = sorted(tmp_path.glob("*.mp4"))
    rows = datasets.Dataset.from_dict({"video": [{"path": str(path), "bytes": None} for path in paths]})
    found = {(pair.first, pair.second, pair.kind) for pair in find_near_duplicates(read_fingerprints(rows))}
    source = [path.name[0] for path in paths]
    wanted = {(i, j) for i, j in itertools.combinations(range(len(paths)), 2) if source[i] == source[j]}
    assert {tuple(sorted(pair[:2])) for pair in found} == wanted
    parts = {pair[0] for pair in found if pair[2] == "part"}
    assert parts == {i for i, path in enumerate(paths) if path.stem.endswith("cut")}
    assert all(paths[first].stem.endswith("cut") for first, _, kind in found if kind != "same")
