"""Average precision of action detection in key frames, as the official evaluation of AVA computes it.

A row is one box with one action in one key frame. Rules and ties are those of the official program: which rows of a
frame count, which of two equal scores comes first, which ground truth a box is compared with.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# the official program ignores detections whose score is not above this
LOWEST_SCORE = -10.0


@dataclass(frozen=True)
class BoxRows:
    """Boxes with one action each, in N rows.

    Args:
        frames: (N,) number of each row's key frame, counted in the order in which key frames appear.
        actions: (N,) class ids.
        boxes: (N, 4) float64, x1, y1, x2, y2.
        scores: (N,) float64.
    """

    frames: np.ndarray
    actions: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    def take(self, rows: np.ndarray) -> "BoxRows":
        """Some of the rows, by number or mask."""
        return BoxRows(self.frames[rows], self.actions[rows], self.boxes[rows], self.scores[rows])


def group_starts(*keys: np.ndarray) -> np.ndarray:
    """Numbers of the rows at which the keys of sorted rows change."""
    changes = np.zeros(len(keys[0]), dtype=bool)
    changes[:1] = True
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changes)


def has_ties(scores: np.ndarray, starts: np.ndarray) -> list[int]:
    """Numbers of the groups, beginning at `starts`, in which two successive scores are equal."""
    equal = np.flatnonzero(scores[1:] == scores[:-1]) + 1
    equal = np.setdiff1d(equal, starts, assume_unique=True)
    return np.unique(np.searchsorted(starts, equal, side="right") - 1).tolist()


def heap_order(rows: BoxRows, numbers: np.ndarray, top_k: int | None) -> list[int]:
    """The `top_k` best of the rows `numbers` of a frame, best first, with ties as in the official program's heap."""
    heap: list[tuple] = []
    numbers_of: dict[tuple, list[int]] = defaultdict(list)
    values = zip(
        rows.scores[numbers].tolist(), rows.actions[numbers].tolist(), rows.boxes[numbers].tolist(), strict=True
    )
    for number, (score, action, (x1, y1, x2, y2)) in zip(numbers.tolist(), values, strict=True):
        entry = score, action, y1, x1, y2, x2
        numbers_of[entry].append(number)  # rows that are equal in all columns are interchangeable
        if top_k is None or len(heap) < top_k:
            heapq.heappush(heap, entry)
        elif score > heap[0][0]:
            heapq.heapreplace(heap, entry)
    return [numbers_of[entry].pop() for entry in sorted(heap, key=lambda entry: -entry[0])]


def best_rows(rows: BoxRows, top_k: int | None = None) -> np.ndarray:
    """Numbers of each frame's `top_k` rows of highest score, frame by frame, best first; see [`heap_order`]."""
    order = np.lexsort((-rows.scores, rows.frames))
    starts = group_starts(rows.frames[order])
    stops = np.append(starts[1:], len(order))
    for group in has_ties(rows.scores[order], starts):
        start, stop = starts[group], stops[group]
        kept = heap_order(rows, np.sort(order[start:stop]), top_k)
        order[start : start + len(kept)] = kept
    if top_k is None:
        return order
    rank = np.arange(len(order)) - np.repeat(starts, stops - starts)
    return order[rank < top_k]


def by_action(rows: BoxRows) -> BoxRows:
    """Rows from [`best_rows`] sorted by action, then frame, then descending score.

    Ties are in the order of NumPy's default sort, read backwards, as in the official program; it may depend on the
    machine.
    """
    rows = rows.take(np.lexsort((rows.frames, rows.actions)))
    starts = group_starts(rows.actions, rows.frames)
    stops = np.append(starts[1:], len(rows))
    order = np.arange(len(rows))
    for group in has_ties(rows.scores, starts):
        part = slice(starts[group], stops[group])
        order[part] = order[part][np.argsort(rows.scores[part])[::-1]]
    return rows.take(order)


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union (N,) of boxes (N, 4) with as many others; 0 for two empty ones."""
    upper, lower = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])
    intersection = np.maximum(lower - upper, 0).prod(axis=1)
    area, other_area = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, others))
    union = area + other_area - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Concatenated ranges of `counts` integers from each start."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def is_correct(detections: BoxRows, groundtruth: BoxRows, threshold: float) -> np.ndarray:
    """Which detections (N,), sorted by [`by_action`], are correct.

    A detection is compared with the one ground truth of its action and frame that it overlaps most. It is correct if
    it overlaps enough and no detection before it took the same ground truth.
    """
    width = int(max(detections.frames.max(initial=0), groundtruth.frames.max(initial=0))) + 1
    keys, true_keys = (rows.actions * width + rows.frames for rows in (detections, groundtruth))
    truth_order = np.argsort(true_keys, kind="stable")
    first, last = (np.searchsorted(true_keys[truth_order], keys, side=side) for side in ("left", "right"))
    compared = np.flatnonzero(last > first)
    counts = (last - first)[compared]
    truths = truth_order[ranges(first[compared], counts)]
    overlap = overlaps(np.repeat(detections.boxes[compared], counts, axis=0), groundtruth.boxes[truths])
    correct = np.zeros(len(detections), dtype=bool)
    if not len(compared):
        return correct
    starts = np.cumsum(counts) - counts
    best = np.maximum.reduceat(overlap, starts)
    # the first of equally good ground truths
    place = np.where(overlap == np.repeat(best, counts), np.arange(len(overlap)), len(overlap))
    truth = truths[np.minimum.reduceat(place, starts)]
    enough = best >= threshold
    _, firsts = np.unique(truth[enough], return_index=True)
    correct[compared[enough][firsts]] = True
    return correct


def average_precision(scores: np.ndarray, correct: np.ndarray, num_truths: int) -> float:
    """Area under the precision-recall curve whose precision never falls with falling recall (PASCAL VOC).

    `num_truths` is the number of ground truths, at least one.
    """
    if not len(scores):
        return 0.0
    found = np.cumsum(correct[np.argsort(scores)[::-1]])
    precision = np.concatenate([[0.0], found / np.arange(1, len(found) + 1), [0.0]])
    recall = np.concatenate([[0.0], found / num_truths, [1.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(np.sum((recall[steps] - recall[steps - 1]) * precision[steps]))


def average_precisions(
    groundtruth: BoxRows, detections: BoxRows, actions: Sequence[int], top_k: int | None = 50, threshold: float = 0.5
) -> dict[int, float | None]:
    """Average precision of each action; `None` where the ground truth has none of it.

    Args:
        groundtruth, detections: rows of the actions to score, of the same key frames. Detections whose box ends before
            it begins count among a frame's `top_k` and are ignored after that.
        actions: class ids to score.
        top_k: number of rows per key frame that count, by score; `None` for all.
        threshold: least intersection over union of a correct box.
    """
    groundtruth = groundtruth.take(best_rows(groundtruth))
    detections = detections.take(best_rows(detections, top_k))
    is_box = (detections.boxes[:, :2] < detections.boxes[:, 2:]).all(axis=1)
    detections = by_action(detections.take(is_box & (detections.scores > LOWEST_SCORE)))
    correct = is_correct(detections, groundtruth, threshold)
    precisions: dict[int, float | None] = {}
    for action in actions:
        num_truths = int((groundtruth.actions == action).sum())
        start, stop = np.searchsorted(detections.actions, [action, action + 1])
        scores = detections.scores[start:stop]
        precisions[action] = average_precision(scores, correct[start:stop], num_truths) if num_truths else None
    return precisions
