"""Average precision by hand: order, ties, duplicates, what a box is compared with, what does not count."""

import heapq

import numpy as np
import pytest

from mvd_hf.detection.average_precision import (
    BoxRows,
    average_precision,
    average_precisions,
    best_rows,
    by_action,
    heap_order,
    is_correct,
    overlaps,
    ranges,
)

LEFT, RIGHT = (0.0, 0.0, 0.4, 1.0), (0.5, 0.0, 0.9, 1.0)


def rows(*entries: tuple) -> BoxRows:
    """Rows of (frame, action, box, score)."""
    frames, actions, boxes, scores = zip(*entries, strict=True) if entries else ((), (), (), ())
    return BoxRows(
        np.array(frames, dtype=np.int64),
        np.array(actions, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(scores, dtype=np.float64),
    )


def precision_of(truth: BoxRows, found: BoxRows, **options) -> float | None:
    return average_precisions(truth, found, [1], **options)[1]


def test_a_box_on_its_place_is_right_and_others_are_wrong():
    truth = rows((0, 1, LEFT, 1), (1, 1, RIGHT, 1))
    assert precision_of(truth, rows((0, 1, LEFT, 0.9), (1, 1, RIGHT, 0.1))) == 1
    assert precision_of(truth, rows((0, 1, LEFT, 0.9))) == 0.5
    assert precision_of(truth, rows((0, 1, RIGHT, 0.9), (1, 1, LEFT, 0.8))) == 0
    assert precision_of(truth, rows((0, 2, LEFT, 0.9), (1, 2, RIGHT, 0.9))) == 0
    assert precision_of(truth, rows()) == 0


def test_the_curve_is_the_largest_precision_at_no_less_recall():
    # right, wrong, right, wrong, right: precision 1, 2/3, 3/5 at recall 1/4, 2/4, 3/4
    correct = np.array([True, False, True, False, True])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    assert average_precision(scores, correct, 4) == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)
    # a wrong one in front costs the recall behind it, not before
    assert average_precision(scores[:3], np.array([False, True, True]), 2) == pytest.approx(2 / 3)
    assert average_precision(np.zeros(0), np.zeros(0, dtype=bool), 3) == 0


def test_an_action_without_ground_truth_has_none():
    found = average_precisions(rows((0, 1, LEFT, 1)), rows((0, 1, LEFT, 1), (0, 2, LEFT, 1)), [1, 2])
    assert found == {1: 1.0, 2: None}


def test_each_ground_truth_is_found_once_by_the_best_score():
    truth = rows((0, 1, LEFT, 1))
    twice = rows((0, 1, LEFT, 0.3), (0, 1, LEFT, 0.9))
    assert precision_of(truth, twice) == 1
    near = (0.0, 0.0, 0.4, 0.9)
    order = by_action(rows((0, 1, near, 0.9), (0, 1, LEFT, 0.3)))
    assert is_correct(order, truth, 0.5).tolist() == [True, False]  # not the better box, the better score


def test_a_box_is_not_compared_with_its_second_best():
    # both boxes overlap the first ground truth most; the second box would meet the other one, too
    first, second = (0.0, 0.0, 0.6, 1.0), (0.2, 0.0, 0.8, 1.0)
    truth = rows((0, 1, first, 1), (0, 1, second, 1))
    found = rows((0, 1, first, 0.9), (0, 1, (0.05, 0.0, 0.65, 1.0), 0.8))
    assert overlaps(np.array([found.boxes[1]]), np.array([second]))[0] > 0.5
    assert precision_of(truth, found) == 0.5


def test_equal_ground_truths_count_twice_and_are_found_once():
    truth = rows((0, 1, LEFT, 1), (0, 1, LEFT, 1))
    assert precision_of(truth, rows((0, 1, LEFT, 0.9), (0, 1, LEFT, 0.8))) == 0.5


def test_the_threshold_is_reached_at_exactly_one_half():
    truth = rows((0, 1, (0.0, 0.0, 1.0, 1.0), 1))
    assert precision_of(truth, rows((0, 1, (0.0, 0.0, 0.5, 1.0), 0.9))) == 1
    assert precision_of(truth, rows((0, 1, (0.0, 0.0, 0.49, 1.0), 0.9))) == 0
    assert precision_of(truth, rows((0, 1, (0.0, 0.0, 0.5, 1.0), 0.9)), threshold=0.6) == 0


def test_boxes_that_end_before_they_begin_count_among_the_best_and_then_for_nothing():
    truth = rows((0, 1, LEFT, 1))
    inverted = (0.4, 0.0, 0.0, 1.0)
    found = rows((0, 1, inverted, 0.9), (0, 1, LEFT, 0.8))
    assert precision_of(truth, found) == 1  # it is not even wrong
    assert precision_of(truth, found, top_k=1) == 0


def test_scores_of_minus_ten_and_less_do_not_count():
    assert precision_of(rows((0, 1, LEFT, 1)), rows((0, 1, LEFT, -10.0))) == 0
    assert precision_of(rows((0, 1, LEFT, 1)), rows((0, 1, LEFT, -9.9))) == 1


def test_only_the_best_rows_of_a_frame_count():
    many = [(0, 2, LEFT, 0.9)] * 3 + [(0, 1, LEFT, 0.5), (1, 1, LEFT, 0.1)]
    truth = rows((0, 1, LEFT, 1), (1, 1, LEFT, 1))
    assert precision_of(truth, rows(*many), top_k=3) == 0.5
    assert precision_of(truth, rows(*many), top_k=4) == 1
    assert sorted(best_rows(rows(*many), 3).tolist()) == [0, 1, 2, 4]


def test_frames_keep_apart():
    truth = rows((0, 1, LEFT, 1), (3, 1, LEFT, 1))
    found = rows((0, 1, LEFT, 0.9), (1, 1, LEFT, 0.8), (3, 1, LEFT, 0.7))
    assert precision_of(truth, found) == pytest.approx(0.5 + 0.5 * 2 / 3)


@pytest.mark.parametrize("top_k", [None, 1, 4, 7])
def test_equal_scores_come_out_as_a_heap_of_the_official_kind_leaves_them(top_k):
    random = np.random.default_rng(0)
    for _ in range(50):
        count = int(random.integers(1, 12))
        entries = [
            (0, int(random.integers(1, 4)), tuple(random.integers(0, 3, 4) / 4), float(random.integers(0, 3)))
            for _ in range(count)
        ]
        heap: list = []
        for _, action, (x1, y1, x2, y2), score in entries:
            entry = score, action, y1, x1, y2, x2
            if top_k is None or len(heap) < top_k:
                heapq.heappush(heap, entry)
            elif score > heap[0][0]:
                heapq.heapreplace(heap, entry)
        wanted = sorted(heap, key=lambda entry: -entry[0])
        table = rows(*entries)
        for order in (heap_order(table, np.arange(count), top_k), best_rows(table, top_k)):
            chosen = table.take(np.array(order))
            x1, y1, x2, y2 = chosen.boxes.T
            found = zip(chosen.scores, chosen.actions, y1, x1, y2, x2, strict=True)
            assert [tuple(entry) for entry in found] == wanted


def test_equal_scores_of_an_action_are_ordered_as_numpy_sorts_them_backwards():
    scores = np.array([0.5, 0.2, 0.5, 0.9, 0.5, 0.2])
    table = rows(*((0, 1, (0.0, 0.0, 0.1 * i + 0.1, 1.0), score) for i, score in enumerate(scores)))
    best = table.take(best_rows(table))
    expected = best.take(np.argsort(best.scores)[::-1])
    np.testing.assert_array_equal(by_action(best).boxes, expected.boxes)


def test_ranges_one_after_the_other():
    assert ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ranges(np.array([], dtype=int), np.array([], dtype=int)).tolist() == []


def test_overlap_of_empty_boxes_is_nothing():
    assert overlaps(np.array([[0, 0, 0, 1.0]]), np.array([[0, 0, 0, 1.0]])).tolist() == [0]
