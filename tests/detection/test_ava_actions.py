"""AVA's actions, and label maps in both of AVA's forms."""

import pytest

from mvd_hf.detection.ava_actions import AVA_ACTIONS, SCORED_ACTIONS, named_actions, read_label_map


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no entry"),
        ("1: sit\n", "has no entry"),
        ('item { name: "sit" }', "without name or id"),
        ("item { id: 3 }", "without name or id"),
        ('item { name: "sit" id: 3 } item { name: "run" id: 3 }', "class id 3 twice"),
        ('item { name: "sit" id: 0 }', "ids count from 1"),
    ],
)
def test_a_label_map_that_is_none(tmp_path, text, message):
    path = tmp_path / "actions.pbtxt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_label_map(path)
    assert str(path) in str(caught.value)


def test_a_missing_label_map(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_label_map(tmp_path / "no.pbtxt")


def test_actions_by_file_mapping_ids_or_default(tmp_path):
    path = tmp_path / "actions.pbtxt"
    path.write_text('item { name: "sit" id: 11 }')
    assert named_actions(str(path), AVA_ACTIONS) == {11: "sit"}
    assert named_actions({3: "hop"}, AVA_ACTIONS) == {3: "hop"}
    assert named_actions([11, 99], AVA_ACTIONS) == {11: "sit", 99: "99"}
    assert named_actions(None, AVA_ACTIONS) == AVA_ACTIONS
