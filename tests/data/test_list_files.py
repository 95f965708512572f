"""List files: paths and labels, and what is refused by line."""

from pathlib import Path

import pytest

from mvd_hf.data.list_files import read_list_file
from mvd_hf.data.sources import load_rows


def list_file(folder: Path, text: str, name: str = "list.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_list_file_gives_paths_and_labels(tmp_path):
    for text, names, labels in [
        ("a.mp4 3\nsub/b.mp4 -1\n", ["a.mp4", "sub/b.mp4"], [3, -1]),
        ("a.mp4,3\nsub/b.mp4,1\n", ["a.mp4", "sub/b.mp4"], [3, 1]),
        ("a.mp4, 3\nsub/b.mp4,   1\n", ["a.mp4", "sub/b.mp4"], [3, 1]),
        ("a.mp4  3\r\n\r\n   \r\n  b.mp4 1  ", ["a.mp4", "b.mp4"], [3, 1]),
        ('"name with spaces.mp4" 3\nb.mp4 1\n', ["name with spaces.mp4", "b.mp4"], [3, 1]),
        ('"name with spaces, and comma.mp4",3\nb.mp4,1\n', ["name with spaces, and comma.mp4", "b.mp4"], [3, 1]),
        ("name with spaces.mp4,3\nb.mp4,1\n", ["name with spaces.mp4", "b.mp4"], [3, 1]),
        ("a,b.mp4 3\nc.mp4 1\n", ["a,b.mp4", "c.mp4"], [3, 1]),
        ("-a.mp4 3\n#b.mp4 1\n视频.mp4 2", ["-a.mp4", "#b.mp4", "视频.mp4"], [3, 1, 2]),
        ("a.mp4\nb.mp4\n", ["a.mp4", "b.mp4"], None),
        ('"a b.mp4"\n', ["a b.mp4"], None),
        ("a b.mp4\t3\nc.mp4\t1\n", ["a b.mp4", "c.mp4"], [3, 1]),
        ("\ufeffa.mp4 3\nb.mp4 -1\n", ["a.mp4", "b.mp4"], [3, -1]),
    ]:
        rows = read_list_file(list_file(tmp_path, text))
        assert rows["video"][:] == [{"path": str(tmp_path / name), "bytes": None} for name in names]
        if labels is None:
            assert rows.column_names == ["video"]
        else:
            assert rows["label"][:] == labels


def test_root_goes_in_front_of_relative_paths_only(tmp_path):
    path = list_file(tmp_path, "a.mp4 0\n/elsewhere/b.mp4 1\n")
    rows = read_list_file(path, root="videos")
    assert [item["path"] for item in rows["video"]] == ["videos/a.mp4", "/elsewhere/b.mp4"]


def test_line_that_is_no_path_and_label_is_refused_by_number(tmp_path):
    for text, line in [
        ("a.mp4 0\n\nname with spaces.mp4 1\n", 3),
        ("a.mp4 0\nb.mp4 cat\n", 2),
        ("a.mp4 0\nb.mp4 --1\n", 2),
        ("a.mp4,0\nb.mp4,1,2\n", 2),
        ("a.mp4 0 1\nb.mp4 1 2\n", 1),
        ("path,label\na.mp4,0\n", 1),
        ("a.mp4 0\nb.mp4 1\n\nc.mp4\n", 4),
        ("a.mp4\nb.mp4 1\n", 1),
        (",3\nb.mp4,1\n", 1),
        ('"" 3\nb.mp4 1\n', 1),
        ("b.mp4 0\na.mp4 " + "9" * 30 + "\n", 2),
        ("b.mp4 0\n" + "a" * 140_000 + " 1\n", 2),
    ]:
        with pytest.raises(ValueError, match=rf"Line {line} of '.*list\.txt'"):
            read_list_file(list_file(tmp_path, text))


@pytest.mark.parametrize("sign", [";", "|"])
def test_another_separator_is_named(tmp_path, sign):
    with pytest.raises(ValueError, match=rf"Line 1 .*'\{sign}'.*commas"):
        read_list_file(list_file(tmp_path, f"a.mp4{sign}1\nb.mp4{sign}0\n"))


def test_a_path_in_the_home_folder_is_found_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    rows = read_list_file(list_file(tmp_path, "~/a.mp4 1\n"))
    assert rows[0]["video"]["path"] == "/home/me/a.mp4"


def test_an_empty_list_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"list\.txt"):
        read_list_file(list_file(tmp_path, "\n  \n"))


def test_a_path_without_suffix_gets_mp4_unless_such_a_file_exists(tmp_path):
    (tmp_path / "real").write_bytes(b"")
    rows = read_list_file(list_file(tmp_path, "real 0\nclass.a/video 1\nb.webm 2\n"))
    assert [Path(item["path"]).name for item in rows["video"]] == ["real", "video.mp4", "b.webm"]


def test_a_list_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"list file '.*list\.txt' cannot be read"):
        read_list_file(tmp_path / "list.txt")


def test_labels_may_be_class_names_which_stay_text(tmp_path):
    for text, labels in [
        ("a.mp4,walking\nb.mp4,open the door\n", ["walking", "open the door"]),
        ('a.mp4 walking\nb.mp4 "open the door"\n', ["walking", "open the door"]),
        ("a.mp4,None\nb.mp4,NA\nc.mp4,nan\n", ["None", "NA", "nan"]),
        ("a.mp4 001\nb.mp4 010\nc.mp4 100\n", ["001", "010", "100"]),
        ("a.mp4 wave\nb.mp4 1e3\n", ["wave", "1e3"]),
        ("label.mp4 0\npath.mp4 1\n", [0, 1]),
        ("a.mp4 3;5\nb.mp4 3\nc.mp4 ;\n", ["3;5", "3", ";"]),
        ("a.mp4,open the door;sit\nb.mp4,sit\n", ["open the door;sit", "sit"]),
        ("a.mp4 1.5\nb.mp4 -2\n", [1.5, -2.0]),
    ]:
        assert read_list_file(list_file(tmp_path, text))["label"][:] == labels


def test_each_mistake_is_named_with_its_line_and_remedy(tmp_path):
    for text, line, remedy in [
        ("path,label\na.mp4,0\n", 1, "heading.*delete"),
        ("path;label\na.mp4;0\n", 1, "heading"),
        ("filename\na.mp4\n", 1, "heading"),
        ("label,youtube_id,time_start,time_end,split\nabseiling,0wR5jVB,417,427,val\n", 1, "prepare"),
        ("abseiling,0wR5jVB,417,427,val\n", 1, "5 columns"),
        ("a.mp4 117 140\nb.mp4 45 127\n", 1, "3 columns"),
        ("a.mp4 0 -1\n", 1, "3 columns"),
        ("a.mp4;0\nb.mp4;1\n", 1, "';'.*commas"),
        ("a.mp4;jump;x\n", 1, "';'.*commas"),
        ("v/drinking (31).mp4 1\n", 1, "quotes"),
        ("a.mp4,0\nb.mp4,\n", 2, "no label"),
        ("a.mp4,walk\n\nb.mp4,3\n", 3, "'3'.*'walk'"),
    ]:
        with pytest.raises(ValueError, match=rf"(?s)Line {line} of '.*list\.txt'.*{remedy}"):
            read_list_file(list_file(tmp_path, text))


def test_a_list_file_may_be_in_utf16(tmp_path):
    (tmp_path / "list.csv").write_text("a.mp4 0\nb.mp4 1\n", encoding="utf-16")
    assert read_list_file(tmp_path / "list.csv")["label"][:] == [0, 1]


def test_json_lines_keep_lists_and_other_fields(tmp_path):
    (tmp_path / "list.jsonl").write_text(
        '{"path": "a.mp4", "label": ["run", "jump"], "age": 3}\n\n{"video": "/b.mp4", "label": []}\n'
    )
    rows = load_rows(str(tmp_path / "list.jsonl"))
    assert [item["path"] for item in rows["video"]] == [str(tmp_path / "a.mp4"), "/b.mp4"]
    assert rows["label"][:] == [["run", "jump"], []]
    assert rows["age"][:] == [3, None]
    for text, message in [
        ('{"path": "a.mp4"}\n{"label": 1}\n', "Line 2 of"),
        ("a.mp4 0\n", "Line 1 of"),
        ("[1]\n", "Line 1 of"),
        ("\n", "names no video"),
        ('{"path": "a", "label": 1}\n{"path": "b", "label": "run"}\n', "several types"),
    ]:
        (tmp_path / "list.jsonl").write_text(text)
        with pytest.raises(ValueError, match=rf"{message}"):
            load_rows(str(tmp_path / "list.jsonl"))
