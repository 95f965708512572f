"""Boxes in pickle files: plain arrays are read, whatever could run code is refused."""

import os
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest

from mvd_hf.detection.ava import read_person_boxes
from mvd_hf.detection.pickled_boxes import read_pickled_boxes

BOXES = np.array([[0.036, 0.098, 0.55, 0.979, 0.995], [0.443, 0.04, 0.99, 0.989, 0.25]])


def save(path: Path, content, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_proposals_of_ava_are_boxes_with_scores(tmp_path, protocol):
    path = save(tmp_path / "a.pkl", {"1j20qq1JyX4,0902": BOXES, "a,b,0903": BOXES[:0], "c,3.5": BOXES[:1]}, protocol)
    table = read_person_boxes(path)
    assert table["video"].tolist() == ["1j20qq1JyX4", "1j20qq1JyX4", "c"]
    assert table["timestamp"].tolist() == [902, 902, 3.5]
    np.testing.assert_array_equal(table[["x1", "y1", "x2", "y2", "score"]], BOXES[[0, 1, 0]])


@pytest.mark.parametrize(
    "content",
    [
        {("v", 902): BOXES[:, :4].tolist()},
        OrderedDict({"v,0902": BOXES[:, :4].astype(np.float32)}),
        defaultdict(dict, v={902: BOXES[:, :4]}),
        {"v": {np.float64(902): list(BOXES[:, :4])}},
    ],
)
def test_other_containers_and_boxes_without_scores(tmp_path, content):
    table = read_person_boxes(save(tmp_path / "a.PKL", content))
    assert table[["video", "timestamp", "score"]].to_numpy().tolist() == [["v", 902.0, 1.0]] * 2
    np.testing.assert_allclose(table[["x1", "y1", "x2", "y2"]], BOXES[:, :4], rtol=1e-6)


def test_a_pickle_of_python_2_and_numpy_1(tmp_path):
    old = pickle.dumps({"v,0902": BOXES}, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "a.pkl").write_bytes(old)
    assert len(read_pickled_boxes(tmp_path / "a.pkl")) == 2


class Command:
    """What unpickles as a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    for content in (Command(tmp_path / "ran"), {"v,1": Command(tmp_path / "ran")}, {"v,1": np.array([Command("x")])}):
        with pytest.raises(ValueError, match=r"a\.pkl.*mkdir"):
            read_person_boxes(save(tmp_path / "a.pkl", content))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([BOXES], "a list"),
        ({"v": BOXES}, "'v'"),
        ({"v,first": BOXES}, "'v,first'"),
        ({"v,1": BOXES[:, :3]}, "'v,1'.* 3 numbers"),
        ({"v,1": np.ones((2, 5, 5))}, "'v,1'.* 25 numbers"),
        ({"v,1": None}, "'v,1'"),
        ({7: BOXES}, "7"),
        ({"v,1": [["a", 0, 1, 1]]}, "'v,1'"),
    ],
)
def test_what_is_no_box_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"a\.pkl.*{message}"):
        read_pickled_boxes(save(tmp_path / "a.pkl", content))


@pytest.mark.parametrize("content", [b"", b"video,902,0,0,1,1", pickle.dumps({"v,1": BOXES})[:-20], b"\x80\x05cos\n."])
def test_a_damaged_pickle_is_named(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pkl"):
        read_pickled_boxes(tmp_path / "a.pkl")
    with pytest.raises(ValueError, match=r"no\.pkl"):
        read_person_boxes(tmp_path / "no.pkl")
