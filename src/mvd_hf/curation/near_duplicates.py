"""Near-duplicates: copies that were encoded, resized, cropped or retimed, and videos that contain parts of others.

Two takes at one place are not duplicates. Two properties must therefore agree at one alignment in time: the place (the
mean thumbnail), and how the thumbnails differ from it from moment to moment. Another take does not repeat the latter,
unless the same person repeats the same motion at the same place and pace. Videos without motion, such as most of a few
frames, are compared as still images. A coarse comparison of thumbnails by matrix products comes first; only pairs that
pass it are aligned.

Letters in shapes: T, U thumbnails of two videos, P = 144 cells of a thumbnail, K alignments.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tqdm import tqdm

from .fingerprints import FLAT_CONTRAST, THUMBNAIL_SIZE, VideoFingerprint

# coarse similarity: lowest frequencies of a thumbnail per axis, and the cosine from which videos are aligned
NUM_FREQUENCIES, COARSE_SIMILARITY = 6, 0.7
# thumbnails of each video that are searched for among those of all others
NUM_QUERIES = 6
# rows and columns of a block of products of thumbnails
NUM_BLOCK_QUERIES, NUM_BLOCK_THUMBNAILS = 2048, 8192
# least similarity of the place, and of the changes over time of slow, rough and cropped videos
MIN_PLACE, SLOW_CHANGES, ROUGH_CHANGES, CROPPED_CHANGES = 0.9, 0.94, 0.7, 0.78
MIN_COMPARED = 3
# change that encoding adds, in gray levels of 255
NOISE = 0.5
# standard deviation over time, in gray levels of 255, below which nothing moves; gray levels by which still videos may
# differ; least similarity of cropped still videos
STILL, STILL_DIFFERENCE, CROPPED_STILL = 0.5, 2.0, 0.95
# largest ratio of declared frame rates that is tried, and most offsets in time
MAX_SPEED, MAX_OFFSETS = 10, 1000
# fraction of the shorter video from which common footage is an overlap, and from which it is the whole video
MIN_SHARE, WHOLE_SHARE = 0.3, 0.9
# windows of a cropped video, per axis: (start, length) as parts of the original
CROPS = ((0.0, 1.0), (0.0, 0.95), (0.025, 0.95), (0.05, 0.95), (0.0, 0.9), (0.05, 0.9), (0.1, 0.9))
# thumbnails on which crops are tried, and gain in similarity from which a crop is tried, and from which it is certain
NUM_CROP_THUMBNAILS, MIN_GAIN, CLEAR_GAIN = 12, 0.001, 0.005


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two videos with common footage.

    Args:
        first, second: their positions in the lists of fingerprints. Of a `part`, `first` is the part.
        kind: `same` (all of both), `part` (all of `first`, some of `second`) or `overlap` (some of both).
        share: the fraction of the shorter video that is in the longer one.
        similarity: of the changes over time, or of the images where nothing moves; at most 1.
    """

    first: int
    second: int
    kind: str
    share: float
    similarity: float


# one video


class ComparableVideo:
    """A fingerprint without brightness and contrast.

    Args:
        thumbnails: (T, P); those with a contrast (T,) below `FLAT_CONTRAST` are ignored.
        times: (T,) frame numbers.
        num_frames, fps: of the video.
    """

    def __init__(
        self, thumbnails: np.ndarray, times: np.ndarray, num_frames: int, fps: float | None, contrast: np.ndarray
    ):
        centred = thumbnails - thumbnails.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(centred, axis=1)
        self.shows = (contrast >= FLAT_CONTRAST) & (norm > 0)
        self.thumbnails = centred * (self.shows / np.where(self.shows, norm, 1))[:, None]
        self.times, self.num_frames, self.fps, self.contrast = times, num_frames, fps, contrast
        self.mean_contrast = float(contrast[self.shows].mean())

    @classmethod
    def of(cls, fingerprint: VideoFingerprint) -> "ComparableVideo":
        """From the fingerprint of a readable video."""
        thumbnails = fingerprint.thumbnails.reshape(len(fingerprint.thumbnails), -1).astype(np.float64)
        times = fingerprint.positions.astype(np.float64)
        return cls(thumbnails, times, fingerprint.num_frames, fingerprint.fps, fingerprint.contrast)

    @property
    def spacing(self) -> float:
        """Frames per thumbnail."""
        return self.num_frames / len(self.times)

    @cached_property
    def products(self) -> np.ndarray:
        """Scalar products (T, T) of the thumbnails."""
        return self.thumbnails @ self.thumbnails.T

    @cached_property
    def variance(self) -> float:
        """Mean squared distance of the thumbnails from their mean."""
        thumbnails = self.thumbnails[self.shows]
        return float(np.square(thumbnails - thumbnails.mean(axis=0)).sum(axis=1).mean())

    @property
    def is_still(self) -> bool:
        """Whether nothing moves."""
        return math.sqrt(self.variance) * self.mean_contrast < STILL

    @cached_property
    def roughness(self) -> float:
        """How badly (0 to 1) the mean of its neighbors predicts a thumbnail; interpolation is as inexact."""
        thumbnails = self.thumbnails[self.shows]
        if len(thumbnails) < MIN_COMPARED:
            return 0.0
        errors = thumbnails[1:-1] - (thumbnails[:-2] + thumbnails[2:]) / 2
        return float(min(np.square(errors).sum(axis=1).mean() / max(2 * self.variance, 1e-12), 1))

    def cropped(self, rows: int, columns: int) -> "ComparableVideo":
        """The video cropped to the window of these `CROPS`."""
        thumbnails = self.thumbnails.reshape(-1, THUMBNAIL_SIZE, THUMBNAIL_SIZE)
        thumbnails = WINDOWS[rows] @ thumbnails @ WINDOWS[columns].T
        return ComparableVideo(
            thumbnails.reshape(len(thumbnails), -1), self.times, self.num_frames, self.fps, self.contrast
        )


def window_matrix(start: float, length: float) -> np.ndarray:
    """Matrix (12, 12) from the cells of an axis to those of a window of it, by linear interpolation."""
    centres = (start + length * (np.arange(THUMBNAIL_SIZE) + 0.5) / THUMBNAIL_SIZE) * THUMBNAIL_SIZE - 0.5
    centres = np.clip(centres, 0, THUMBNAIL_SIZE - 1)
    return np.maximum(1 - np.abs(centres[:, None] - np.arange(THUMBNAIL_SIZE)), 0)


WINDOWS = np.stack([window_matrix(start, length) for start, length in CROPS])


def coarse_basis() -> np.ndarray:
    """Matrix (P, 35) from thumbnails to low frequencies of the cosine transform, each times the root of its frequency.

    Natural images differ most in the lowest frequencies. With this factor two places are rarely similar by accident,
    while a crop still changes little.
    """
    frequency, cell = np.mgrid[:NUM_FREQUENCIES, :THUMBNAIL_SIZE]
    waves = np.cos(np.pi * (cell + 0.5) * frequency / THUMBNAIL_SIZE)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    basis = np.einsum("ur,vc->uvrc", waves, waves).reshape(NUM_FREQUENCIES**2, -1)
    factors = np.sqrt(np.hypot(*np.mgrid[:NUM_FREQUENCIES, :NUM_FREQUENCIES])).ravel()
    return (basis * factors[:, None])[1:].T  # the first is the mean


COARSE_BASIS = coarse_basis()


def coarse_thumbnails(video: ComparableVideo) -> np.ndarray:
    """Unit vectors (T, 35) of low frequencies; zeros for thumbnails that show nothing."""
    coarse = video.thumbnails @ COARSE_BASIS
    norm = np.linalg.norm(coarse, axis=1, keepdims=True)
    return (coarse / np.where(norm > 0, norm, 1)).astype(np.float32)


# two videos


@dataclass(frozen=True, slots=True)
class Match:
    """The best alignment of two videos: the fraction of each that is common, and the similarity there."""

    share_of_first: float
    share_of_second: float
    similarity: float

    @property
    def share(self) -> float:
        """The common fraction of the shorter one."""
        return max(self.share_of_first, self.share_of_second)


def alignments(first: ComparableVideo, second: ComparableVideo) -> Iterator[tuple[float, np.ndarray]]:
    """Possible alignments (speed, offsets (K,)): frame t of the first is at `speed * t + offset` of the second.

    The speeds are one frame per frame, one second per second, and from end to end.
    """
    speeds = {1.0}
    if first.fps and second.fps and 1 / MAX_SPEED <= second.fps / first.fps <= MAX_SPEED:
        speeds.add(second.fps / first.fps)
    for speed in speeds:
        length = speed * first.num_frames
        room = MIN_SHARE * min(length, second.num_frames)
        step = max(min(speed * first.spacing, second.spacing) / 2, 0.5, (length + second.num_frames) / MAX_OFFSETS)
        steps = np.arange(np.floor((room - length) / step), np.floor((second.num_frames - room) / step) + 1)
        yield speed, steps * step
    yield max(second.num_frames - 1, 1) / max(first.num_frames - 1, 1), np.zeros(1)


def fit(first: ComparableVideo, second: ComparableVideo, speed: float, offsets: np.ndarray) -> tuple[np.ndarray, ...]:
    """Common thumbnails, similarity of the place and of the changes, and size of the changes (K,) of each alignment.

    The first video's thumbnails are compared with those of the second, interpolated to the same times. With thumbnails
    a and b and means over the common time, the similarity of the changes is 2 cov(a, b) / (var a + var b). All of it
    follows from scalar products of thumbnails.
    """
    times = speed * first.times + offsets[:, None]  # (K, T)
    last = len(second.times) - 1
    left = np.clip(np.searchsorted(second.times, times, side="right") - 1, 0, max(last - 1, 0))
    right = np.minimum(left + 1, last)
    weight = np.clip((times - second.times[left]) / np.maximum(second.times[right] - second.times[left], 1), 0, 1)
    inside = (times >= -0.5) & (times <= second.num_frames - 0.5)
    inside &= first.shows & second.shows[left] & second.shows[right]
    count = inside.sum(axis=1)
    part = inside / np.maximum(count, 1)[:, None]  # (K, T): the mean over common thumbnails
    # the same mean over the second video's thumbnails, (K, U)
    rows = np.arange(len(offsets))[:, None] * (last + 1)
    parts = np.bincount((rows + left).ravel(), (part * (1 - weight)).ravel(), len(offsets) * (last + 1))
    parts += np.bincount((rows + right).ravel(), (part * weight).ravel(), len(offsets) * (last + 1))
    parts = parts.reshape(len(offsets), -1)

    across = first.thumbnails @ second.thumbnails.T  # (T, U)
    thumbnail = np.arange(len(first.times))
    products = ((1 - weight) * across[thumbnail, left] + weight * across[thumbnail, right]) * part
    squares = (1 - 2 * weight * (1 - weight) * (1 - second.products[left, right])) * part
    mean_product = ((part @ across) * parts).sum(axis=1)
    mean_first = ((part @ first.products) * part).sum(axis=1)
    mean_second = ((parts @ second.products) * parts).sum(axis=1)
    variances = (count > 0) - mean_first + squares.sum(axis=1) - mean_second
    place = mean_product / np.sqrt(np.maximum(mean_first * mean_second, 1e-12))
    changes = 2 * (products.sum(axis=1) - mean_product) / np.maximum(variances, 1e-12)
    contrast = (first.mean_contrast + second.mean_contrast) / 2
    return count, place, changes, np.sqrt(np.maximum(variances, 0) / 2) * contrast


def match_at(first: ComparableVideo, second: ComparableVideo, is_cropped: bool = False) -> Match | None:
    """The alignment with the highest similarity, if that is high enough.

    `is_cropped` says that one video was cropped to the window of the other, which leaves differences.
    """
    # the other video is interpolated to the thumbnails of the sparser one (of equal ones, of the less rough)
    if (first.spacing, -first.roughness) < (second.spacing, -second.roughness):
        turned = match_at(second, first, is_cropped)
        return turned and Match(turned.share_of_second, turned.share_of_first, turned.similarity)
    if first.is_still != second.is_still:
        return None
    best = None
    for speed, offsets in alignments(first, second):
        count, place, changes, size = fit(first, second, speed, offsets)
        length = speed * first.num_frames
        common = np.minimum(offsets + length, second.num_frames) - np.maximum(offsets, 0)
        shares = np.clip([common / length, common / second.num_frames], 0, 1)
        few = min(MIN_COMPARED, first.shows.sum(), second.shows.sum())
        good = (count >= few) & (place >= MIN_PLACE)
        if first.is_still:
            similarity, share = place, WHOLE_SHARE
            difference = (STILL_DIFFERENCE / min(first.mean_contrast, second.mean_contrast)) ** 2 / 2
            good &= similarity >= (CROPPED_STILL if is_cropped else 1 - difference)
        else:
            similarity, share = changes, MIN_SHARE
            needed = SLOW_CHANGES - second.roughness / 2 - (NOISE / np.maximum(size, NOISE)) ** 2
            needed = CROPPED_CHANGES if is_cropped else np.maximum(needed, ROUGH_CHANGES)
            # a part without motion says nothing; the fewer thumbnails, the higher the similarity must be
            good &= (size >= STILL) & (similarity >= 1 - (1 - needed) * (1 - 2 / np.maximum(count, 2)))
        good &= shares.max(axis=0) >= share
        if good.any():
            # of equally similar ones the longest
            k = int(np.argmax(np.where(good, similarity + 1e-6 * shares.sum(axis=0), -np.inf)))
            if best is None or similarity[k] > best.similarity:
                best = Match(float(shares[0, k]), float(shares[1, k]), float(min(similarity[k], 1)))
    return best


def best_crop(video: ComparableVideo, other: ComparableVideo) -> tuple[int, int, float]:
    """Rows and columns of `CROPS` that make a video most similar to another one, and the gain in similarity.

    The similarity is the mean, over some thumbnails of the video, of that to the most similar thumbnail of the other.
    """
    shown = np.flatnonzero(video.shows)
    chosen = shown[np.linspace(0, len(shown) - 1, min(NUM_CROP_THUMBNAILS, len(shown))).astype(int)]
    thumbnails = video.thumbnails[chosen].reshape(-1, THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    windows = np.einsum("rij,njk,clk->rcnil", WINDOWS, thumbnails, WINDOWS, optimize=True)
    windows = windows.reshape(len(CROPS) ** 2, len(chosen), -1)
    windows = windows - windows.mean(axis=-1, keepdims=True)
    windows /= np.maximum(np.linalg.norm(windows, axis=-1, keepdims=True), 1e-12)
    similarity = (windows @ other.thumbnails.T).max(axis=-1).mean(axis=-1)
    best = int(similarity.argmax())
    return best // len(CROPS), best % len(CROPS), float(similarity[best] - similarity[0])


def match(first: ComparableVideo, second: ComparableVideo) -> Match | None:
    """The best alignment of two videos, one of which may be cropped; `None` if they have no footage in common."""
    found = match_at(first, second)
    if found is not None:
        return found
    crops = [best_crop(first, second), best_crop(second, first)]
    gains = [gain for _, _, gain in crops]
    if max(gains) < MIN_GAIN:
        return None
    rows, columns, gain = crops[gains.index(max(gains))]
    videos = (first.cropped(rows, columns), second) if gain == gains[0] else (first, second.cropped(rows, columns))
    return match_at(*videos, is_cropped=gain >= CLEAR_GAIN)


# many videos


def query_positions(num_thumbnails: int) -> np.ndarray:
    """Positions of the thumbnails of a video that are searched for in others."""
    return np.unique(((np.arange(NUM_QUERIES) + 0.5) / NUM_QUERIES * num_thumbnails).astype(np.int64))


def coarse_pairs(
    fingerprints: Sequence[VideoFingerprint], others: Sequence[VideoFingerprint] | None = None
) -> np.ndarray:
    """Pairs (n, 2) of positions of readable videos with a coarsely similar thumbnail, in one set or between two."""
    sets = [fingerprints] if others is None else [fingerprints, others]
    coarse = [[coarse_thumbnails(ComparableVideo.of(fingerprint)) for fingerprint in videos] for videos in sets]
    orders = [(0, 0)] if others is None else [(0, 1), (1, 0)]
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for querying, searched in orders:
        queries = [thumbnails[query_positions(len(thumbnails))] for thumbnails in coarse[querying]]
        owners = np.repeat(np.arange(len(queries)), [len(thumbnails) for thumbnails in queries])
        found = _block_pairs(np.concatenate(queries), owners, coarse[searched])
        pairs.append(found if querying == 0 else found[:, ::-1])
    together = np.concatenate(pairs)
    if others is None:
        together = np.sort(together[together[:, 0] != together[:, 1]], axis=1)
    return np.unique(together, axis=0)


def _block_pairs(queries: np.ndarray, owners: np.ndarray, videos: Sequence[np.ndarray]) -> np.ndarray:
    """(owner of the query, video) pairs (n, 2) whose similarity reaches the threshold, block by block."""
    lengths = np.array([len(video) for video in videos])
    blocks = np.cumsum(lengths) // NUM_BLOCK_THUMBNAILS
    found = [np.zeros((0, 2), dtype=np.int64)]
    for block in tqdm(np.unique(blocks), desc="coarse comparison", unit=" blocks", leave=False, disable=None):
        members = np.flatnonzero(blocks == block)
        thumbnails = np.concatenate([videos[i] for i in members]).T
        starts = np.cumsum(lengths[members]) - lengths[members]
        for start in range(0, len(queries), NUM_BLOCK_QUERIES):
            similarity = np.maximum.reduceat(queries[start : start + NUM_BLOCK_QUERIES] @ thumbnails, starts, axis=1)
            rows, columns = np.nonzero(similarity >= COARSE_SIMILARITY)
            pairs = np.stack([owners[start + rows], members[columns]], axis=1)
            found.append(np.unique(pairs, axis=0))
    return np.concatenate(found)


def find_near_duplicates(
    fingerprints: Sequence[VideoFingerprint], others: Sequence[VideoFingerprint] | None = None
) -> list[NearDuplicate]:
    """Pairs of videos with common footage, in the order of their positions.

    Videos that cannot be read, or show nothing to compare (`VideoFingerprint.is_flat`), are in no pair.

    Args:
        fingerprints: from `mvd_hf.curation.fingerprints.read_fingerprints`.
        others: of another set, to find pairs between the two sets; `second` is a position in it, also of a `part`.
    """
    sets = [fingerprints] if others is None else [fingerprints, others]
    kept = [[i for i, video in enumerate(videos) if video.num_frames and not video.is_flat] for videos in sets]
    usable = [[videos[i] for i in positions] for videos, positions in zip(sets, kept, strict=True)]
    if not all(usable):
        return []
    pairs = coarse_pairs(*usable)
    found = []
    groups = itertools.groupby(
        tqdm(pairs.tolist(), desc="comparison", unit=" pairs", leave=False, disable=None), key=lambda pair: pair[0]
    )
    for i, group in groups:
        video = ComparableVideo.of(usable[0][i])
        for _, j in group:
            fitting = match(video, ComparableVideo.of(usable[-1][j]))
            if fitting is not None:
                found.append(_near_duplicate(kept[0][i], kept[-1][j], fitting, others is None))
    return found


def _near_duplicate(first: int, second: int, fitting: Match, may_turn: bool) -> NearDuplicate:
    """Name the relation of two videos that match."""
    shares = fitting.share_of_first, fitting.share_of_second
    kind = "same" if min(shares) >= WHOLE_SHARE else "part" if max(shares) >= WHOLE_SHARE else "overlap"
    if kind == "part" and shares[1] > shares[0] and may_turn:
        first, second = second, first
    return NearDuplicate(first, second, kind, round(fitting.share, 3), round(fitting.similarity, 3))
