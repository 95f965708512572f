"""AVA's files, read strictly, and its score by hand; the numbers of the official program are in `parity/`."""

from pathlib import Path

import evaluate
import numpy as np
import pandas as pd
import pytest

from launching import ROOT
from mvd_hf.detection.ava import (
    AVA_ACTIONS,
    SCORED_ACTIONS,
    ava_map,
    frame_keys,
    named_actions,
    read_boxes,
    read_key_frames,
    read_label_map,
    read_person_boxes,
    scored_actions,
    without,
    write_boxes,
)

METRIC = ROOT / "recipes" / "metrics" / "ava_map"
LEFT, RIGHT = (0.0, 0.0, 0.4, 1.0), (0.5, 0.0, 0.9, 1.0)
TRUTH = [("a", 902, *LEFT, 12), ("a", 902, *LEFT, 80), ("a", 903, *RIGHT, 12), ("b", 902)]
FOUND = [
    ("a", 902, *LEFT, 12, 0.9),
    ("a", 903, *LEFT, 12, 0.8),
    ("a", 903, *RIGHT, 12, 0.7),
    ("a", 902, *LEFT, 80, 0.6),
]


def save(path: Path, rows) -> str:
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return str(path)


# actions


def test_80_actions_of_which_60_are_scored():
    assert list(AVA_ACTIONS) == list(range(1, 81))
    assert len(set(AVA_ACTIONS.values())) == 80
    assert len(SCORED_ACTIONS) == 60
    assert AVA_ACTIONS[12] == "stand"
    assert AVA_ACTIONS[80] == "watch (a person)"
    assert AVA_ACTIONS[79] == "talk to (e.g., self, a person, a group)"
    assert 2 not in SCORED_ACTIONS  # crawl


def test_label_maps_of_both_forms(tmp_path):
    path = tmp_path / "actions.pbtxt"
    path.write_text('item {\n  name: "sit"\n  id: 11\n}\nitem {\n  name: "a \\"b\\" {id: 5}"\n  id: 2\n}\n')
    assert read_label_map(path) == {2: 'a "b" {id: 5}', 11: "sit"}
    assert list(read_label_map(path)) == [2, 11]
    path.write_text(
        'label {\n  name: "bend/bow (at the waist)"\n  label_id: 1\n  label_type: PERSON_MOVEMENT\n}\n'
        'label { name: "crawl" label_id: 2 label_type: PERSON_MOVEMENT }\n'
    )
    assert read_label_map(path) == {1: "bend/bow (at the waist)", 2: "crawl"}


def test_invalid_label_maps(tmp_path):
    path = tmp_path / "actions.pbtxt"
    for text, part in {
        "": "no entry",
        "1: sit\n": "no entry",
        'item { name: "sit" }': "without name or id",
        "item { id: 3 }": "without name or id",
        'item { name: "sit" id: 3 } item { name: "run" id: 3 }': "class id 3",
        'item { name: "sit" id: 0 }': "class id 0",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"actions\.pbtxt.*{part}"):
            read_label_map(path)
    with pytest.raises(ValueError, match=r"no\.pbtxt"):
        read_label_map(tmp_path / "no.pbtxt")


def test_actions_by_file_mapping_ids_or_default(tmp_path):
    path = tmp_path / "actions.pbtxt"
    path.write_text('item { name: "sit" id: 11 }')
    assert named_actions(str(path), AVA_ACTIONS) == {11: "sit"}
    assert named_actions({3: "hop"}, AVA_ACTIONS) == {3: "hop"}
    assert named_actions([11, 99], AVA_ACTIONS) == {11: "sit", 99: "99"}
    assert named_actions(None, AVA_ACTIONS) == AVA_ACTIONS


# files


def test_annotations_results_and_key_frames_without_people(tmp_path):
    path = save(
        tmp_path / "a.csv",
        [("vid", "0902", "0.1", "0.2", "0.3", "0.4", "12", "7"), ("NA", "0903"), ("007", "904.5", *LEFT, 3)],
    )
    table = read_boxes(path)
    assert table["video"].tolist() == ["vid", "NA", "007"]
    assert table["timestamp"].tolist() == [902, 903, 904.5]
    assert table.loc[0, ["x1", "y1", "x2", "y2", "action", "score"]].tolist() == [0.1, 0.2, 0.3, 0.4, 12, 7]
    assert table.loc[1, ["x1", "action", "score"]].isna().all()
    assert np.isnan(table.loc[2, "score"])


def test_decimals_are_read_as_python_reads_them(tmp_path):
    texts = ["0.30000000000000004", "0.1234567890123456789", "5e-324", "0.8444218515250481"]
    table = read_boxes(save(tmp_path / "a.csv", [("v", 1, 0, 0, text, 1, 1) for text in texts]))
    assert table["x2"].tolist() == [float(text) for text in texts]


def test_rows_arrays_mappings_and_data_frames_are_tables_too():
    expected = read_boxes(TRUTH)
    assert len(expected) == 4
    table = pd.DataFrame(expected)
    columns = {name: expected[name].to_numpy() for name in expected}
    for source in (TRUTH, [list(row) for row in TRUTH], table, columns, iter(TRUTH)):
        pd.testing.assert_frame_equal(read_boxes(source), expected)
    numbers = np.array([[0, 902, *LEFT, 12], [1, 902, *LEFT, 12]])
    assert read_boxes(numbers)["video"].tolist() == ["0", "1"]
    assert read_boxes([(0, 902, *LEFT, 12)])["video"].tolist() == ["0"]


def test_a_bad_row_is_named(tmp_path):
    path = tmp_path / "bad.csv"
    for line, message in {
        "v,902,0.1,0.2,0.3,0.4": r"row 2 \(v,902.0,0.1,0.2,0.3,0.4,,\)",
        "v,902,0.1,0.2,,0.4,12": "neither two columns",
        "v,902,0.1,0.2,0.3,0.4,12,0.5,9": "more than 8 columns in row 2",
        "v,902,0.1,0.2,0.3,0.4,12.5": "not an integer",
        "v,902,0.1,0.2,0.3,0.4,sit": "action",
        "v,902,0.1,0.2,0.3,inf,12": "y2",
        "v,soon,0.1,0.2,0.3,0.4,12": "timestamp",
        "v,,0.1,0.2,0.3,0.4,12": "no timestamp",
        ",902,0.1,0.2,0.3,0.4,12": "no video",
        "v,-1,0.1,0.2,0.3,0.4,12": "negative",
        "v,902,0.1,0.2,0.3,0.4,12,nan?": "score",
    }.items():
        path.write_text(f"v,901,0.1,0.2,0.3,0.4,12,0.5\n{line}\n")
        with pytest.raises(ValueError, match=rf"bad\.csv.*{message}"):
            read_boxes(path)
    header = save(tmp_path / "h.csv", [("video_id", "timestamp", "x1", "y1", "x2", "y2", "action"), *TRUTH])
    with pytest.raises(ValueError, match=r"row 1 \(video_id,timestamp.*delete the line"):
        read_boxes(header)


def test_empty_lines_are_nothing_and_keep_the_count_of_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("v,901,0,0,1,1,12\n\nv,902,0,0,1,1,12\nv,903,0,0,1,1,x\n")
    with pytest.raises(ValueError, match="row 4"):
        read_boxes(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no\.csv' cannot be read as a CSV file"):
        read_boxes(str(tmp_path / "no.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81,1\n")
    with pytest.raises(ValueError, match="cannot be read"):
        read_boxes(tmp_path / "binary.csv")


def test_boxes_of_a_person_detector(tmp_path):
    rows = [("v", "0902", *LEFT, "", 0.9), ("v", "0902", *LEFT, "", 0.95), ("v", "0903", *LEFT, "", 0.5)]
    table = read_person_boxes(save(tmp_path / "p.csv", rows))
    assert table["score"].tolist() == [0.95, 0.5]  # one box, its best score
    assert "action" not in table
    seven = read_person_boxes([("v", 902, *LEFT, 0.7)])
    assert seven["score"].tolist() == [0.7]
    assert read_person_boxes([("v", 902, *LEFT)])["score"].tolist() == [1.0]
    with pytest.raises(ValueError, match=r"row 2 .* has no score"):
        read_person_boxes([("v", 902, *LEFT, None, 0.7), ("v", 902, *LEFT, None, None)])
    with pytest.raises(ValueError, match="has no box"):
        read_person_boxes([("v", 902)])
    with pytest.raises(ValueError, match=r"row 2 .*,12\.0.* between 0 and 1"):  # a class id
        read_person_boxes([("v", 902, *LEFT, 1), ("v", 902, *LEFT, 12)])


def test_written_files_are_read_again(tmp_path):
    table = read_boxes([("v", 2, *LEFT, 1, 0.123456789), ("v", 1.5, *RIGHT, 3, 0.5)])
    write_boxes(tmp_path / "w.csv", table)
    text = (tmp_path / "w.csv").read_text()
    assert text.splitlines()[0].startswith("v,0002,0.0,0.0,0.4,1.0,1")
    assert "v,1.5," in text
    pd.testing.assert_frame_equal(read_boxes(tmp_path / "w.csv"), table)


def test_key_frames_are_one_by_video_and_microsecond():
    one, two = (read_boxes([("a", 1, *LEFT, 1), ("a", 1.0000001, *LEFT, 1)]), read_key_frames([("a", 2), ("b", 1)]))
    keys, others = frame_keys(one, two)
    assert keys[0] == keys[1]
    assert len({keys[0], *others}) == 3


def test_excluded_key_frames_are_left_out(tmp_path):
    table = read_boxes(TRUTH)
    excluded = save(tmp_path / "e.csv", [("a", "0902"), ("c", "0902")])
    assert without(table, excluded)["timestamp"].tolist() == [903, 902]
    assert without(table, None) is table


# the score


def test_a_score_by_hand():
    result = ava_map(TRUTH, FOUND)
    # stand: right, wrong, right of two; watch: right
    assert result["AP"][12] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert result["AP"][80] == 1
    assert result["mAP"] == pytest.approx((result["AP"][12] + 1) / 2)
    assert list(result["AP"]) == list(SCORED_ACTIONS)
    assert result["AP"][1] is None


def test_files_and_tables_score_the_same(tmp_path):
    expected = ava_map(TRUTH, FOUND)
    truth, found = save(tmp_path / "t.csv", TRUTH), save(tmp_path / "f.csv", FOUND)
    assert ava_map(truth, found) == expected
    assert ava_map(read_boxes(truth), read_boxes(found)) == expected
    assert ava_map(Path(truth), FOUND) == expected
    assert ava_map([("a", f"{time:04d}", *rest) for _, time, *rest in TRUTH[:3]] + [("b", "902.0")], found) == expected


def test_unknown_key_frames_do_not_count_and_empty_ones_do():
    unknown, empty = ("z", 902, *LEFT, 12, 0.99), ("b", 902, *LEFT, 12, 0.99)
    assert ava_map(TRUTH, [*FOUND, unknown]) == ava_map(TRUTH, FOUND)
    assert ava_map(TRUTH, [*FOUND, empty])["AP"][12] < ava_map(TRUTH, FOUND)["AP"][12]


def test_a_key_frame_whose_actions_are_all_unscored_is_known():
    truth = [*TRUTH, ("c", 902, *LEFT, 2)]  # crawl
    wrong = ("c", 902, *LEFT, 12, 0.99)
    assert ava_map(truth, [*FOUND, wrong])["AP"][12] < ava_map(TRUTH, FOUND)["AP"][12]


def test_excluded_key_frames_count_in_neither():
    truth, found = [*TRUTH, ("a", 904, *LEFT, 12)], [*FOUND, ("a", 904, *RIGHT, 12, 0.99)]
    assert ava_map(truth, found) != ava_map(TRUTH, FOUND)
    assert ava_map(truth, found, excluded=[("a", 904)]) == ava_map(TRUTH, FOUND)


def test_unscored_actions_are_left_out_before_the_best_are_chosen():
    found = [*FOUND, *[("a", 902, *LEFT, 2, 0.99)] * 5]
    assert ava_map(TRUTH, found, top_k=2) == ava_map(TRUTH, FOUND, top_k=2)
    assert ava_map(TRUTH, FOUND, top_k=1) != ava_map(TRUTH, FOUND, top_k=2)
    assert ava_map(TRUTH, FOUND, top_k=0) == ava_map(TRUTH, FOUND, top_k=None)


def test_person_ids_of_annotations_change_nothing():
    assert ava_map([(*row, 5) if len(row) > 2 else row for row in TRUTH], FOUND) == ava_map(TRUTH, FOUND)


def test_custom_actions(tmp_path):
    truth, found = [("v", 1, *LEFT, 2), ("v", 1, *LEFT, 1)], [("v", 1, *LEFT, 2, 0.9), ("v", 1, *RIGHT, 1, 0.8)]
    assert ava_map(truth, found, label_map={1: "hop", 2: "sit"}) == {"mAP": 0.5, "AP": {1: 0.0, 2: 1.0}}
    (tmp_path / "m.pbtxt").write_text('item { name: "sit" id: 2 }')
    assert ava_map(truth, found, label_map=tmp_path / "m.pbtxt") == {"mAP": 1.0, "AP": {2: 1.0}}
    assert ava_map(truth, found, label_map=[2]) == {"mAP": 1.0, "AP": {2: 1.0}}
    assert list(scored_actions(None)) == list(SCORED_ACTIONS)


def test_no_detections_score_nothing(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    for found in ([], tmp_path / "empty.csv", [("z", 1, *LEFT, 12, 0.5)]):
        assert ava_map(TRUTH, found)["mAP"] == 0


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        ([("a", 1)], FOUND, "label_map"),
        ([("a", 1, *LEFT, 2)], FOUND, "label_map"),
        (TRUTH, [("a", 902, *LEFT, 12)], "has no score"),
        ([("a", 902, 0.4, 0, 0.0, 1, 12)], FOUND, "ends before it begins"),
    ],
)
def test_what_cannot_be_scored_says_so(truth, found, message):
    with pytest.raises(ValueError, match=message):
        ava_map(truth, found)


# the module of evaluate


def by_frame(rows, with_scores: bool) -> list[dict]:
    frames: dict = {}
    for video, time, *rest in rows:
        frame = frames.setdefault(
            (video, time), {"video": video, "timestamp": time, "boxes": [], "actions": [], "scores": []}
        )
        if rest:
            frame["boxes"].append(list(rest[:4]))
            frame["actions"].append(rest[4])
            frame["scores"].append(rest[5] if len(rest) > 5 else 1.0)
    return [frame if with_scores else {k: v for k, v in frame.items() if k != "scores"} for frame in frames.values()]


def test_the_module_of_evaluate_scores_the_same(tmp_path):
    metric = evaluate.load(str(METRIC), cache_dir=str(tmp_path))
    references, predictions = by_frame(TRUTH, False), by_frame(FOUND, True)
    predictions.append({"video": "b", "timestamp": 902, "boxes": [], "actions": [], "scores": []})
    metric.add_batch(predictions=predictions[:1], references=references[:1])
    metric.add_batch(predictions=predictions[1:], references=references[1:])
    assert metric.compute() == ava_map(TRUTH, FOUND)
    options = {"top_k": 1, "label_map": [12]}
    assert metric.compute(predictions=predictions, references=references, **options) == ava_map(
        TRUTH, FOUND, **options
    )
