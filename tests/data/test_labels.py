"""Labels of rows: one class, several classes, a class of each of several heads, or a number."""

import datasets
import pytest

from mvd_hf.data.labels import HeadsReader, LabelReader, MultiLabelReader, NumberReader, label_reader, read_label_names

ANIMALS = ("zebra", "ant", "cat")


def labelled(labels, feature=None) -> datasets.Dataset:
    rows = datasets.Dataset.from_dict({"video": [f"{i}.mp4" for i in range(len(labels))], "label": labels})
    return rows if feature is None else rows.cast_column("label", feature)


ANIMAL_CLASSES = datasets.ClassLabel(names=list(ANIMALS))


def test_labels_are_read_as_class_indices():
    for streaming in [False, True]:
        for labels, feature, names, classes, expected in [
            ([2, 0, 1], ANIMAL_CLASSES, None, list(ANIMALS), [2, 0, 1]),
            ([2, 0, 1], ANIMAL_CLASSES, ["ant", "cat", "zebra"], ["ant", "cat", "zebra"], [1, 2, 0]),
            ([2, 0, -1], None, None, None, [2, 0, -1]),
            ([2, 0, 1], None, ["a", "b", "c"], ["a", "b", "c"], [2, 0, 1]),
            ([b"2", b"10", b"-1"], None, None, None, [2, 10, -1]),
            ([b"2\n", b"0\n"], None, None, None, [2, 0]),
            (["2", "0"], None, None, None, [2, 0]),
            (["cat", "ant"], None, ["zebra", "ant", "cat"], ["zebra", "ant", "cat"], [2, 1]),
            ([b"cat", b"ant"], None, ["zebra", "ant", "cat"], ["zebra", "ant", "cat"], [2, 1]),
            (["1", "0"], None, ["1", "0"], ["1", "0"], [0, 1]),
        ]:
            rows = labelled(labels, feature)
            rows = rows.to_iterable_dataset() if streaming else rows
            reader = LabelReader(rows, "label", names)
            assert reader.names == classes
            assert [reader(row) for row in rows] == expected


def test_named_labels_are_numbered_in_their_order():
    for labels in [["zebra", "ant", "cat", "ant"], [b"zebra", b"ant", b"cat", b"ant"]]:
        rows = labelled(labels)
        reader = LabelReader(rows, "label")
        assert reader.names == ["ant", "cat", "zebra"]
        assert [reader(row) for row in rows] == [2, 0, 1, 0]


def test_an_unknown_label_is_refused():
    for labels, feature, names, message in [
        ([0, 3], None, ["a", "b", "c"], "label 3 in column 'label' is not one of 3 classes"),
        ([0, -1], None, ["a", "b", "c"], "label -1 in column 'label' is not one of 3 classes"),
        ([0, -1], ANIMAL_CLASSES, None, "label -1 in column 'label' is not one of 3 classes"),
        ([0, 1], ANIMAL_CLASSES, ["zebra", "cat"], "label 'ant' in column 'label' is not one of 2 classes"),
        (["a", "d"], None, ["a", "b"], "label 'd' in column 'label' is not one of 2 classes"),
        ([0.0, 1.5], None, None, "label 0.0 in column 'label' is not an integer"),
    ]:
        rows = labelled(labels, feature)
        reader = LabelReader(rows, "label", names)
        with pytest.raises(ValueError, match=message):
            [reader(row) for row in rows]


def test_labels_of_text_stay_text():
    for labels, names in [
        (["wave", "None", "NA"], ["NA", "None", "wave"]),
        (["None", "wave", "null"], ["None", "null", "wave"]),
        (["001", "010", "002"], ["001", "002", "010"]),
        (["0", "None", "1"], ["0", "1", "None"]),
        (["true", "false"], ["false", "true"]),
    ]:
        reader = LabelReader(labelled(labels), "label")
        assert reader.names == names
        assert [reader({"label": label}) for label in labels] == [names.index(label) for label in labels]


def test_a_missing_label_names_its_row():
    for labels in (["a", None], ["a", " "], [None, "a"], ["1", ""], [b"a", b""]):
        place = next(i for i, label in enumerate(labels) if not label or not label.strip())
        with pytest.raises(ValueError, match=rf"^{place}\.mp4: .*no label in column 'label'"):
            LabelReader(labelled(labels), "label")
    with pytest.raises(ValueError, match=r"^1\.mp4: .*no label in column 'label'"):  # not the sound row 1.0
        LabelReader(labelled([1.0, float("nan")]), "label")
    with pytest.raises(ValueError, match=r"^1\.mp4: .*no label in column 'label'"):
        LabelReader(labelled([1, None]), "label")
    assert LabelReader(labelled([1, None]).select([0]), "label")({"label": 1}) == 1
    reader = LabelReader(labelled(["1", ""]).to_iterable_dataset(), "label")
    assert reader({"label": "1"}) == 1
    with pytest.raises(ValueError, match="no label in column 'label'"):
        reader({"label": ""})


def test_label_names_are_a_list_or_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeffzebra crossing\n\n  ant \n", encoding="utf-8")
    assert read_label_names(str(path)) == ["zebra crossing", "ant"]
    assert read_label_names(["b", 3]) == ["b", "3"]
    assert read_label_names(None) is None
    assert LabelReader(labelled(["ant"]), "label", str(path))({"label": "ant"}) == 1
    with pytest.raises(ValueError, match=r"'none\.txt' is neither a list of names nor a file"):
        read_label_names("none.txt")
    with pytest.raises(ValueError, match="label_names has a, c more than once"):
        read_label_names(["a", "c", "b", "c", "a"])


def test_label_names_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"label names '.*names\.txt' cannot be read"):
        read_label_names(str(tmp_path / "names.txt"))


def test_several_classes_are_multi_hot():
    names = ["ant", "cat", "zebra"]
    for labels, feature, given, known, expected in [
        ([["zebra", "ant"], [], ["cat"]], None, None, names, [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        (["zebra; ant", ";", "cat"], None, None, names, [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        ([[2, 0], [], [1]], None, None, None, [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        (["2;0", ";", "1"], None, None, None, [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        (["001;100", "100"], None, None, ["001", "100"], [[1, 1], [0, 1]]),
        ([[0], [2, 1]], datasets.List(ANIMAL_CLASSES), names, names, [[0, 0, 1], [1, 1, 0]]),
        ([0, 2], None, names, names, [[1, 0, 0], [0, 0, 1]]),
    ]:
        rows = labelled(labels, feature)
        reader = MultiLabelReader(rows, "label", given)
        assert reader.names == known
        assert [reader(row) for row in rows] == expected
    stream = MultiLabelReader(labelled([["cat"]]).to_iterable_dataset(), "label", names)
    assert stream({"label": ["cat"]}) == [0, 1, 0]


def test_labels_that_are_not_several_classes_are_refused():
    for labels, message in [
        ([["a"], None], "^1.mp4: .*no label in column 'label'"),
        (["a", ""], "^1.mp4: .*no label"),
        ([[], []], "No row has a class in column 'label'"),
        ([[0.5], [1.0]], r"^0.mp4: The label \[0.5\]"),
        ([0.5, 1.0], "^0.mp4: The label 0.5"),
        ([[0, -1]], "-1.*not one of 1 classes"),
        ([[2], [0, 1, 1]], r"^1.mp4: The label \[0, 1, 1\].*multi-hot"),
        (["2", "0; 1;1"], r"^1.mp4: The label '0; 1;1'.*multi-hot"),
    ]:
        with pytest.raises(ValueError, match=message):
            [MultiLabelReader(labelled(labels), "label")(row) for row in labelled(labels)]
    with pytest.raises(ValueError, match=r"'dog'.*not one of 1 classes"):
        MultiLabelReader(labelled([["cat", "dog"]]), "label", ["cat"])({"label": ["cat", "dog"]})
    with pytest.raises(ValueError, match=r"stream.*label_names"):
        MultiLabelReader(labelled([["cat"]]).to_iterable_dataset(), "label")


def test_several_classes_or_numbers_for_one_class_are_refused_with_the_problem_type():
    for labels, message in [
        ([["cat"], []], "multi_label_classification"),
        (["3;5", "1"], "multi_label_classification"),
        ([0.5, 1.5], "regression"),
    ]:
        with pytest.raises(ValueError, match=message):
            [LabelReader(labelled(labels), "label")(row) for row in labelled(labels)]
    assert LabelReader(labelled(["walk; run", "sit"]), "label").names == ["sit", "walk; run"]  # a name, as it was


def test_heads_are_in_alphabetical_order_and_numbers_are_finite():
    rows = labelled(["take", "put"]).add_column("noun", [4, 2])
    reader = label_reader(rows, ["noun", "label"], {"label": ["take", "put"]})
    assert isinstance(reader, HeadsReader)
    assert [reader(row) for row in rows] == [[0, 4], [1, 2]]
    for columns, names, message in [
        (["noun"], None, "label_column=.'noun'"),
        (["noun", "noun"], None, "label_column"),
        (["noun", "verb"], None, "'verb'"),
        (["noun", "label"], ["a"], "label_names.*noun, label"),
        (["noun", "label"], {"verb": ["a"]}, "label_names"),
    ]:
        with pytest.raises(ValueError, match=message):
            label_reader(rows, columns, names)
    numbers = labelled([1.5, float("nan"), None])
    reader = label_reader(numbers, "label", problem_type="regression")
    assert isinstance(reader, NumberReader)
    assert reader(numbers[0]) == 1.5
    assert reader({"label": "2e1"}) == 20.0
    for label in (float("nan"), None, True, "tall", float("inf"), [1.0]):
        with pytest.raises(ValueError, match="column 'label' is no finite number"):
            reader({"label": label})
