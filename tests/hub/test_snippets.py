"""Snippets of cards: complete, run as they are, and their failures reported."""

import ast
import re

import pytest

from mvd_hf.hub import snippets
from mvd_hf.hub.snippets import (
    EXAMPLE_NAME,
    SNIPPETS,
    Snippet,
    execute_snippet,
    make_snippet,
    run_snippet,
    write_example,
)
from mvd_hf.model.video_reading import VideoReader


def test_snippets_are_python_and_name_the_checkpoint():
    for kind in SNIPPETS:
        for with_code in (True, False):
            code = make_snippet("me/mvd", kind, with_code)
            ast.parse(code)
            assert code.count('"me/mvd"') == 2 - (kind in ("encoder", "detector"))
            assert ("trust_remote_code=True" in code) == with_code
            assert ("import mvd_hf" in code) != with_code
            assert '"video.mp4"' in code


def test_a_name_is_text_in_a_snippet():
    for name in ('x"); import os; ("', "it's", "back\\slash", "two\nlines", "é😀"):
        found = {
            node.value
            for node in ast.walk(ast.parse(make_snippet(name, "detector", True)))
            if isinstance(node, ast.Constant)
        }
        assert name in found


@pytest.mark.parametrize("name", ["../../outside", "/outside", "", ".."])
def test_a_name_that_leaves_the_temporary_folder_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        run_snippet("", name, tmp_path, tmp_path / "here.mp4", False)


def test_the_example_is_a_short_video(tmp_path):
    write_example(tmp_path / "example.mp4")
    with VideoReader(tmp_path / "example.mp4") as reader:
        assert len(reader) == 75
    assert (tmp_path / "example.mp4").stat().st_size < 200_000


def run(code: str, folder, with_code: bool = False) -> str:
    (folder / "here.mp4").touch()
    return run_snippet(code, "me/mvd", folder, folder / "here.mp4", with_code)


def test_a_snippet_runs_offline_with_the_given_folder_and_video(tmp_path):
    (tmp_path / "weights").write_text("41")
    code = (
        "import os\nfrom importlib.util import find_spec\n"
        "print(int(open('me/mvd/weights').read()) + 1, os.path.getsize('video.mp4'))\n"
        "print(os.environ['HF_HUB_OFFLINE'], os.path.exists(os.environ['HF_HOME']), find_spec('mvd_hf') is None)\n"
    )
    assert run(code, tmp_path) == "42 0\n1 False False\n"
    assert run(code, tmp_path, with_code=True) == "42 0\n1 False True\n"


def test_a_failure_is_reported_with_the_snippet(tmp_path):
    with pytest.raises(ValueError, match=r"print\(1 / 0\)[^$]*ZeroDivisionError"):
        run("print(1 / 0)\n", tmp_path)


def test_the_example_in_the_folder_is_used(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(snippets, "run_snippet", lambda *args: seen.append(args) or "printed\n")
    assert "synthetic" in execute_snippet(tmp_path, "me/mvd", "encoder", True).video
    assert seen[0][3].name == EXAMPLE_NAME
    (tmp_path / EXAMPLE_NAME).touch()
    shown = execute_snippet(tmp_path, "me/mvd", "encoder", True)
    assert shown == Snippet(make_snippet("me/mvd", "encoder", True), True, "printed\n", "`example.mp4`")
    assert seen[1][3] == tmp_path / EXAMPLE_NAME
