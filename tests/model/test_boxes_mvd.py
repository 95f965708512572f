"""Boxes: padding, units, enlarging, and the way into a processed frame and back."""

import numpy as np
import pytest
import torch

from mvd_hf.model.boxes_mvd import Placement, as_pixels, clip_boxes, enlarge_boxes, pad_people


def test_people_are_filled_up_with_zeros_and_marked():
    padded, mask = pad_people([torch.ones(2, 4), torch.zeros(0, 4), 3 * torch.ones(1, 4)])
    assert padded.shape == (3, 2, 4)
    assert mask.tolist() == [[True, True], [False, False], [True, False]]
    assert padded[2].tolist() == [[3.0] * 4, [0.0] * 4]
    padded, mask = pad_people([torch.zeros(0, 5)])
    assert padded.shape == (1, 0, 5)
    assert mask.shape == (1, 0)


def test_people_of_other_shapes_are_refused():
    for rows in [[], [torch.zeros(2, 4), torch.zeros(2, 5)], [torch.zeros(4)]]:
        with pytest.raises(ValueError, match=r"matrix \(people, n\)"):
            pad_people(rows)


def test_relative_boxes_become_pixels():
    boxes = [[0.1, 0.2, 0.5, 1.0]]
    expected = torch.tensor([[10.0, 12.0, 50.0, 60.0]])
    for form in (boxes, np.array(boxes), torch.tensor(boxes), np.array(boxes)[:, ::-1][:, ::-1]):
        torch.testing.assert_close(as_pixels(form, "relative", 60, 100), expected)
    torch.testing.assert_close(as_pixels(expected, "pixels", 60, 100), expected)
    assert as_pixels([], "relative", 60, 100).shape == (0, 4)
    assert as_pixels(np.zeros((0, 4)), "pixels", 60, 100).shape == (0, 4)


def test_boxes_that_cannot_be_say_why():
    for boxes, unit, message in [
        ([[10, 10, 20, 20]], "relative", "pass box_unit='pixels'"),
        ([[0.1, 0.1, 0.9, 0.9]], "pixels", "pass box_unit='relative'"),
        ([[0.5, 0.1, 0.4, 0.9]], "relative", r"The box 0.5, 0.1, 0.4, 0.9 ends before it begins"),
        ([[0.5, 0.1, 0.5, 0.9]], "relative", "ends before it begins"),
        ([0.1, 0.1, 0.9, 0.9], "relative", r"must be \(people, 4\), got \(4,\)"),
        ([[0.1, 0.1, 0.9]], "relative", r"must be \(people, 4\), got \(1, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            as_pixels(boxes, unit, 60, 100)


def test_the_given_boxes_stay_as_they_are():
    boxes = np.array([[0.1, 0.2, 0.5, 1.0]], dtype=np.float32)
    as_pixels(boxes, "pixels", 1, 1).mul_(0)
    assert boxes.max() == 1


def test_clipping_and_enlarging():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [-5.0, 0.0, 110.0, 90.0]])
    assert clip_boxes(boxes, 60, 100).tolist() == [[10, 20, 30, 60], [0, 0, 100, 60]]
    enlarged = enlarge_boxes(boxes[:1], (0.1, 0.05), (80, 100))
    torch.testing.assert_close(enlarged, torch.tensor([[9.0, 19.0, 31.0, 61.0]]))
    assert enlarge_boxes(boxes, (0.1, 0.05), (60, 100))[1].tolist() == [0, 0, 100, 60]
    assert enlarge_boxes(torch.zeros(2, 0, 4), (0.1, 0.05), (60, 100)).shape == (2, 0, 4)


def test_a_placement_and_back():
    placement = Placement(original=(100, 200), size=(50, 110), offset=(3, 5))
    boxes = torch.tensor([[20.0, 10.0, 200.0, 100.0]])
    placed = placement.place(boxes)
    torch.testing.assert_close(placed, torch.tensor([[11.0 - 5, 5.0 - 3, 110.0 - 5, 50.0 - 3]]))
    torch.testing.assert_close(placement.undo(placed), boxes)
