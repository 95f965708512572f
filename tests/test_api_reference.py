"""The reference of public names is written from their docstrings."""

import sys

import mvd_hf
from launching import ROOT

sys.path.insert(0, str(ROOT / "docs"))
from render_api import as_markdown, render

sys.path.remove(str(ROOT / "docs"))


def test_every_public_name_has_an_entry_and_the_page_is_there():
    page = render()
    assert all(f"\n### {name}\n" in page for name in mvd_hf.__all__ if name != "__version__")
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == page, "run docs/render_api.py"


def test_sections_of_a_docstring_become_lists():
    text = as_markdown(
        "Does it.\n\n    Args:\n        one: the first,\n            of two.\n        two: the second.\n    "
    )
    assert text == "Does it.\n\n**Args**\n\n- one: the first,\n  of two.\n- two: the second."
