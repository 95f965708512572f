"""Snippets of cards: complete, executed as they stand, and their failures told."""

import ast

import pytest

from mvd_hf.hub import snippets
from mvd_hf.hub.snippets import EXAMPLE_NAME, SNIPPETS, Usage, run_usage, show_usage, usage_snippet, write_example
from mvd_hf.model.video_reading import read_frames


@pytest.mark.parametrize("kind", SNIPPETS)
@pytest.mark.parametrize("with_code", [True, False])
def test_snippets_are_python_with_the_name_in_them(kind, with_code):
    snippet = usage_snippet("me/mvd", kind, with_code)
    ast.parse(snippet)
    assert snippet.count('"me/mvd"') == 2 - (kind in ("encoder", "detector"))
    assert ("trust_remote_code=True" in snippet) == with_code
    assert ("import mvd_hf" in snippet) != with_code
    assert '"video.mp4"' in snippet


def test_the_example_is_a_short_video(tmp_path):
    write_example(tmp_path / "example.mp4")
    assert read_frames(tmp_path / "example.mp4", lambda total: range(total)).shape == (75, 240, 320, 3)
    assert (tmp_path / "example.mp4").stat().st_size < 200_000


def run(snippet: str, folder, with_code: bool = False) -> str:
    (folder / "here.mp4").touch()
    return run_usage(snippet, "me/mvd", folder, folder / "here.mp4", with_code)


def test_name_and_video_stand_for_what_is_given(tmp_path):
    (tmp_path / "weights").write_text("41")
    snippet = "import os\nprint(int(open('me/mvd/weights').read()) + 1, os.path.getsize('video.mp4'))\n"
    assert run(snippet, tmp_path) == "42 0\n"


def test_it_runs_without_network_and_with_an_empty_home(tmp_path):
    snippet = "import os\nprint(os.environ['HF_HUB_OFFLINE'], os.path.exists(os.environ['HF_HOME']))\n"
    assert run(snippet, tmp_path) == "1 False\n"


@pytest.mark.parametrize("with_code", [True, False])
def test_with_code_the_package_is_out_of_reach(with_code, tmp_path):
    snippet = "from importlib.util import find_spec\nprint(find_spec('mvd_hf') is None)\n"
    assert run(snippet, tmp_path, with_code) == f"{with_code}\n"


def test_a_failure_is_told_with_the_snippet(tmp_path):
    with pytest.raises(ValueError, match=r"as its card would say:\nprint\(1 / 0\)[^$]*ZeroDivisionError"):
        run("print(1 / 0)\n", tmp_path)


def test_the_example_in_the_folder_is_used(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(snippets, "run_usage", lambda *args: seen.append(args) or "printed\n")
    assert show_usage(tmp_path, "me/mvd", "encoder", True).video == "a small made-up video"
    assert seen[0][3].name == EXAMPLE_NAME
    (tmp_path / EXAMPLE_NAME).touch()
    shown = show_usage(tmp_path, "me/mvd", "encoder", True)
    assert shown == Usage(usage_snippet("me/mvd", "encoder", True), True, "printed\n", "`example.mp4`")
    assert seen[1][3] == tmp_path / EXAMPLE_NAME
