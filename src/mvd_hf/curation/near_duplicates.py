"""Which videos show the same footage: copies that were encoded, resized, cropped or timed anew, and parts of others.

Two videos of one place are not duplicates. So two things must agree, at one alignment in time: the place (the mean of
the pictures), and how the pictures differ from it from moment to moment, which another take does not repeat, unless
the same person repeats the same movement at the same place and pace. Videos in which nothing moves, as in most of a
few frames, are compared with each other as pictures. First, pictures that are coarsely alike are looked for in blocks
of matrix products; only such pairs of videos are aligned.

Letters in shapes: T, U pictures of two videos, P = 144 cells of a picture, K alignments.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tqdm import tqdm

from .fingerprints import FLAT_CONTRAST, PICTURE_SIZE, Signature

# coarse likeness: lowest frequencies of a picture per axis, and the cosine from which videos are aligned
NUM_FREQUENCIES, COARSE_LIKENESS = 6, 0.7
# pictures of each video that are looked for among those of all others
NUM_PROBES = 6
# rows and columns of a block of products of pictures
NUM_BLOCK_PROBES, NUM_BLOCK_PICTURES = 2048, 8192
# what must be alike: the place, and the changes; those of slow films more than those of rough and of cropped ones
MIN_PLACE, SLOW_CHANGES, ROUGH_CHANGES, CROPPED_CHANGES = 0.9, 0.94, 0.7, 0.78
MIN_PICTURES = 3
# what encoding adds to the changes, in grey levels of 255
NOISE = 0.5
# standard deviation over time, in grey levels of 255, below which nothing moves; then the pictures alone decide: how
# many grey levels they may differ, and how much cropped ones must be alike
STILL, STILL_DIFFERENCE, CROPPED_STILL = 0.5, 2.0, 0.95
# largest ratio of frame rates that is believed, and most offsets in time that are tried
MAX_SPEED, MAX_OFFSETS = 10, 1000
# parts of the shorter video that must be common to call it an overlap, and to call it whole
MIN_SHARE, WHOLE_SHARE = 0.3, 0.9
# windows of a cropped video, per axis: (start, length) as parts of the original
CROPS = ((0.0, 1.0), (0.0, 0.95), (0.025, 0.95), (0.05, 0.95), (0.0, 0.9), (0.05, 0.9), (0.1, 0.9))
# pictures of a film on which crops are tried; by how much the best must be better than none, and clearly better
NUM_CROP_PICTURES, MIN_GAIN, CLEAR_GAIN = 12, 0.001, 0.005


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two videos with common footage.

    Args:
        first, second: their positions in the lists of signatures. Of a `part`, `first` is the part.
        kind: `same` (all of both), `part` (all of `first`, some of `second`) or `overlap` (some of both).
        share: the part of the shorter video that is in the longer one.
        likeness: how much what changes over time is alike, at most 1; of pictures where nothing moves.
    """

    first: int
    second: int
    kind: str
    share: float
    likeness: float


# one video


class Film:
    """The pictures of a signature made comparable: brightness and contrast taken out.

    Args:
        pictures: (T, P) with any brightness and contrast.
        times: (T,) numbers of their frames.
        num_frames: frames of the video.
        fps: its frame rate; `None` if it does not say.
        contrast: (T,) grey levels; pictures below `FLAT_CONTRAST` are left out.
    """

    def __init__(
        self, pictures: np.ndarray, times: np.ndarray, num_frames: int, fps: float | None, contrast: np.ndarray
    ):
        centred = pictures - pictures.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(centred, axis=1)
        self.shows = (contrast >= FLAT_CONTRAST) & (norm > 0)
        self.pictures = centred * (self.shows / np.where(self.shows, norm, 1))[:, None]
        self.times, self.num_frames, self.fps, self.contrast = times, num_frames, fps, contrast
        self.mean_contrast = float(contrast[self.shows].mean())

    @classmethod
    def of(cls, signature: Signature) -> "Film":
        """The film of a readable video."""
        pictures = signature.pictures.reshape(len(signature.pictures), -1).astype(np.float64)
        times = signature.positions.astype(np.float64)
        return cls(pictures, times, signature.num_frames, signature.fps, signature.contrast)

    @property
    def spacing(self) -> float:
        """Frames from one picture to the next."""
        return self.num_frames / len(self.times)

    @cached_property
    def products(self) -> np.ndarray:
        """Scalar products (T, T) of its pictures."""
        return self.pictures @ self.pictures.T

    @cached_property
    def variance(self) -> float:
        """Mean square of the differences of its pictures from their mean."""
        pictures = self.pictures[self.shows]
        return float(np.square(pictures - pictures.mean(axis=0)).sum(axis=1).mean())

    @property
    def is_still(self) -> bool:
        """Whether nothing moves."""
        return math.sqrt(self.variance) * self.mean_contrast < STILL

    @cached_property
    def roughness(self) -> float:
        """The part of the changes, 0 to 1, that the mean of the pictures before and after does not tell.

        What is interpolated between pictures of a film in which much moves is less like the truth.
        """
        pictures = self.pictures[self.shows]
        if len(pictures) < MIN_PICTURES:
            return 0.0
        errors = pictures[1:-1] - (pictures[:-2] + pictures[2:]) / 2
        return float(min(np.square(errors).sum(axis=1).mean() / max(2 * self.variance, 1e-12), 1))

    def cropped(self, rows: int, columns: int) -> "Film":
        """The film of the window of these `CROPS` in every picture."""
        pictures = self.pictures.reshape(-1, PICTURE_SIZE, PICTURE_SIZE)
        pictures = WINDOWS[rows] @ pictures @ WINDOWS[columns].T
        return Film(pictures.reshape(len(pictures), -1), self.times, self.num_frames, self.fps, self.contrast)


def window_matrix(start: float, length: float) -> np.ndarray:
    """Matrix (12, 12) from the cells of an axis to those of a window of it, by linear interpolation."""
    centres = (start + length * (np.arange(PICTURE_SIZE) + 0.5) / PICTURE_SIZE) * PICTURE_SIZE - 0.5
    centres = np.clip(centres, 0, PICTURE_SIZE - 1)
    return np.maximum(1 - np.abs(centres[:, None] - np.arange(PICTURE_SIZE)), 0)


WINDOWS = np.stack([window_matrix(start, length) for start, length in CROPS])


def coarse_basis() -> np.ndarray:
    """Matrix (P, 35) from pictures to their low frequencies (cosine transform), the higher of them amplified.

    Natural pictures differ most in the lowest frequencies; with a factor of the root of the frequency, two places are
    rarely alike by accident, while a crop still changes little.
    """
    frequency, cell = np.mgrid[:NUM_FREQUENCIES, :PICTURE_SIZE]
    waves = np.cos(np.pi * (cell + 0.5) * frequency / PICTURE_SIZE)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    basis = np.einsum("ur,vc->uvrc", waves, waves).reshape(NUM_FREQUENCIES**2, -1)
    factors = np.sqrt(np.hypot(*np.mgrid[:NUM_FREQUENCIES, :NUM_FREQUENCIES])).ravel()
    return (basis * factors[:, None])[1:].T  # the first is the mean


COARSE_BASIS = coarse_basis()


def coarse_pictures(film: Film) -> np.ndarray:
    """Unit vectors (T, 35) of what a film's pictures coarsely show; zeros where they show nothing."""
    coarse = film.pictures @ COARSE_BASIS
    norm = np.linalg.norm(coarse, axis=1, keepdims=True)
    return (coarse / np.where(norm > 0, norm, 1)).astype(np.float32)


# two videos


@dataclass(frozen=True, slots=True)
class Match:
    """How two films fit at their best alignment: parts of both that are common, and how alike they are there."""

    share_of_first: float
    share_of_second: float
    likeness: float

    @property
    def share(self) -> float:
        """The common part of the shorter one."""
        return max(self.share_of_first, self.share_of_second)


def alignments(first: Film, second: Film) -> Iterator[tuple[float, np.ndarray]]:
    """Ways in which the first may lie in the second: (speed, offsets (K,)), its frame t at `speed * t + offset`.

    Frame by frame, second by second, and end to end, whatever the frame rates.
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


def fit(first: Film, second: Film, speed: float, offsets: np.ndarray) -> tuple[np.ndarray, ...]:
    """How well each alignment fits: number of pictures, likeness of the place, of the changes, their size (K,) each.

    The first film's pictures are compared with what the second shows at their times, interpolated between its
    pictures. With a the ones, b the others and means over the common time, the likeness of the changes is
    2 cov(a, b) / (var a + var b); all of it follows from scalar products of pictures.
    """
    times = speed * first.times + offsets[:, None]  # (K, T)
    last = len(second.times) - 1
    left = np.clip(np.searchsorted(second.times, times, side="right") - 1, 0, max(last - 1, 0))
    right = np.minimum(left + 1, last)
    weight = np.clip((times - second.times[left]) / np.maximum(second.times[right] - second.times[left], 1), 0, 1)
    inside = (times >= -0.5) & (times <= second.num_frames - 0.5)
    inside &= first.shows & second.shows[left] & second.shows[right]
    count = inside.sum(axis=1)
    part = inside / np.maximum(count, 1)[:, None]  # (K, T): the mean over common pictures
    # the same mean over the second film's pictures, (K, U)
    rows = np.arange(len(offsets))[:, None] * (last + 1)
    parts = np.bincount((rows + left).ravel(), (part * (1 - weight)).ravel(), len(offsets) * (last + 1))
    parts += np.bincount((rows + right).ravel(), (part * weight).ravel(), len(offsets) * (last + 1))
    parts = parts.reshape(len(offsets), -1)

    across = first.pictures @ second.pictures.T  # (T, U)
    picture = np.arange(len(first.times))
    products = ((1 - weight) * across[picture, left] + weight * across[picture, right]) * part
    squares = (1 - 2 * weight * (1 - weight) * (1 - second.products[left, right])) * part
    mean_product = ((part @ across) * parts).sum(axis=1)
    mean_first = ((part @ first.products) * part).sum(axis=1)
    mean_second = ((parts @ second.products) * parts).sum(axis=1)
    variances = (count > 0) - mean_first + squares.sum(axis=1) - mean_second
    place = mean_product / np.sqrt(np.maximum(mean_first * mean_second, 1e-12))
    changes = 2 * (products.sum(axis=1) - mean_product) / np.maximum(variances, 1e-12)
    contrast = (first.mean_contrast + second.mean_contrast) / 2
    return count, place, changes, np.sqrt(np.maximum(variances, 0) / 2) * contrast


def match_at(first: Film, second: Film, is_cropped: bool = False) -> Match | None:
    """The alignment of two films in which they are most alike, if that is alike enough.

    Args:
        first, second: the films.
        is_cropped: whether one of them was clearly cropped, and is here cropped alike, which leaves differences.
    """
    # the pictures of the sparser film (of equal ones, the less rough) are looked up in the other
    if (first.spacing, -first.roughness) < (second.spacing, -second.roughness):
        turned = match_at(second, first, is_cropped)
        return turned and Match(turned.share_of_second, turned.share_of_first, turned.likeness)
    if first.is_still != second.is_still:
        return None
    best = None
    for speed, offsets in alignments(first, second):
        count, place, changes, size = fit(first, second, speed, offsets)
        length = speed * first.num_frames
        common = np.minimum(offsets + length, second.num_frames) - np.maximum(offsets, 0)
        shares = np.clip([common / length, common / second.num_frames], 0, 1)
        few = min(MIN_PICTURES, first.shows.sum(), second.shows.sum())
        good = (count >= few) & (place >= MIN_PLACE)
        if first.is_still:
            likeness, share = place, WHOLE_SHARE
            difference = (STILL_DIFFERENCE / min(first.mean_contrast, second.mean_contrast)) ** 2 / 2
            good &= likeness >= (CROPPED_STILL if is_cropped else 1 - difference)
        else:
            likeness, share = changes, MIN_SHARE
            needed = SLOW_CHANGES - second.roughness / 2 - (NOISE / np.maximum(size, NOISE)) ** 2
            needed = CROPPED_CHANGES if is_cropped else np.maximum(needed, ROUGH_CHANGES)
            # where nothing moves there is nothing to tell; the fewer pictures, the more alike they must be
            good &= (size >= STILL) & (likeness >= 1 - (1 - needed) * (1 - 2 / np.maximum(count, 2)))
        good &= shares.max(axis=0) >= share
        if good.any():
            # of equal ones the longest, as where nothing moves
            k = int(np.argmax(np.where(good, likeness + 1e-6 * shares.sum(axis=0), -np.inf)))
            if best is None or likeness[k] > best.likeness:
                best = Match(float(shares[0, k]), float(shares[1, k]), float(min(likeness[k], 1)))
    return best


def best_crop(film: Film, other: Film) -> tuple[int, int, float]:
    """Rows and columns of `CROPS` whose window of a film is most like another film, and by how much it gains.

    Alike is the mean over some pictures of a film of the likeness to the picture of the other that is most alike.
    """
    shown = np.flatnonzero(film.shows)
    chosen = shown[np.linspace(0, len(shown) - 1, min(NUM_CROP_PICTURES, len(shown))).astype(int)]
    pictures = film.pictures[chosen].reshape(-1, PICTURE_SIZE, PICTURE_SIZE)
    windows = np.einsum("rij,njk,clk->rcnil", WINDOWS, pictures, WINDOWS, optimize=True)
    windows = windows.reshape(len(CROPS) ** 2, len(chosen), -1)
    windows = windows - windows.mean(axis=-1, keepdims=True)
    windows /= np.maximum(np.linalg.norm(windows, axis=-1, keepdims=True), 1e-12)
    likeness = (windows @ other.pictures.T).max(axis=-1).mean(axis=-1)
    best = int(likeness.argmax())
    return best // len(CROPS), best % len(CROPS), float(likeness[best] - likeness[0])


def match(first: Film, second: Film) -> Match | None:
    """How two films fit, also where one of them is cropped; `None` if they do not."""
    found = match_at(first, second)
    if found is not None:
        return found
    crops = [best_crop(first, second), best_crop(second, first)]
    gains = [gain for _, _, gain in crops]
    if max(gains) < MIN_GAIN:
        return None
    rows, columns, gain = crops[gains.index(max(gains))]
    films = (first.cropped(rows, columns), second) if gain == gains[0] else (first, second.cropped(rows, columns))
    return match_at(*films, is_cropped=gain >= CLEAR_GAIN)


# many videos


def probes_of(num_pictures: int) -> np.ndarray:
    """Positions of the pictures of a video that are looked for in others."""
    return np.unique(((np.arange(NUM_PROBES) + 0.5) / NUM_PROBES * num_pictures).astype(np.int64))


def coarse_pairs(signatures: Sequence[Signature], others: Sequence[Signature] | None = None) -> np.ndarray:
    """Pairs (n, 2) of videos, by position, of which some probe of one is coarsely like some picture of the other.

    Args:
        signatures: of readable videos.
        others: of another set; without it, pairs are within `signatures` and each is given once.
    """
    sets = [signatures] if others is None else [signatures, others]
    coarse = [[coarse_pictures(Film.of(signature)) for signature in videos] for videos in sets]
    orders = [(0, 0)] if others is None else [(0, 1), (1, 0)]
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for probing, probed in orders:
        probes = [pictures[probes_of(len(pictures))] for pictures in coarse[probing]]
        owners = np.repeat(np.arange(len(probes)), [len(pictures) for pictures in probes])
        found = _block_pairs(np.concatenate(probes), owners, coarse[probed])
        pairs.append(found if probing == 0 else found[:, ::-1])
    together = np.concatenate(pairs)
    if others is None:
        together = np.sort(together[together[:, 0] != together[:, 1]], axis=1)
    return np.unique(together, axis=0)


def _block_pairs(probes: np.ndarray, owners: np.ndarray, films: Sequence[np.ndarray]) -> np.ndarray:
    """(owner of the probe, film) pairs (n, 2) of which the likeness reaches the threshold, block by block."""
    lengths = np.array([len(film) for film in films])
    blocks = np.cumsum(lengths) // NUM_BLOCK_PICTURES
    found = [np.zeros((0, 2), dtype=np.int64)]
    for block in tqdm(np.unique(blocks), desc="coarse comparison", unit=" blocks", leave=False):
        members = np.flatnonzero(blocks == block)
        pictures = np.concatenate([films[i] for i in members]).T
        starts = np.cumsum(lengths[members]) - lengths[members]
        for start in range(0, len(probes), NUM_BLOCK_PROBES):
            likeness = np.maximum.reduceat(probes[start : start + NUM_BLOCK_PROBES] @ pictures, starts, axis=1)
            rows, columns = np.nonzero(likeness >= COARSE_LIKENESS)
            pairs = np.stack([owners[start + rows], members[columns]], axis=1)
            found.append(np.unique(pairs, axis=0))
    return np.concatenate(found)


def find_near_duplicates(
    signatures: Sequence[Signature], others: Sequence[Signature] | None = None
) -> list[NearDuplicate]:
    """Pairs of videos with common footage, in the order of their positions.

    What cannot be read, and videos that show nothing to compare (`Signature.is_flat`), are in no pair.

    Args:
        signatures: from `mvd_hf.curation.fingerprints.read_signatures`.
        others: of another set, to find pairs between the two sets; `second` is a position in it, also of a `part`.
    """
    sets = [signatures] if others is None else [signatures, others]
    kept = [[i for i, video in enumerate(videos) if video.num_frames and not video.is_flat] for videos in sets]
    usable = [[videos[i] for i in positions] for videos, positions in zip(sets, kept, strict=True)]
    if not all(usable):
        return []
    pairs = coarse_pairs(*usable)
    found = []
    groups = itertools.groupby(
        tqdm(pairs.tolist(), desc="comparison", unit=" pairs", leave=False), key=lambda pair: pair[0]
    )
    for i, group in groups:
        film = Film.of(usable[0][i])
        for _, j in group:
            fitting = match(film, Film.of(usable[-1][j]))
            if fitting is not None:
                found.append(_near_duplicate(kept[0][i], kept[-1][j], fitting, others is None))
    return found


def _near_duplicate(first: int, second: int, fitting: Match, may_turn: bool) -> NearDuplicate:
    """The pair that a match makes of two videos."""
    shares = fitting.share_of_first, fitting.share_of_second
    kind = "same" if min(shares) >= WHOLE_SHARE else "part" if max(shares) >= WHOLE_SHARE else "overlap"
    if kind == "part" and shares[1] > shares[0] and may_turn:
        first, second = second, first
    return NearDuplicate(first, second, kind, round(fitting.share, 3), round(fitting.likeness, 3))
