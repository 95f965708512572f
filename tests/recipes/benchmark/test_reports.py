"""Reports: hardware and versions, aligned tables, JSON."""

import json

import torch

from recipes.benchmark.reports import NOT_MEASURED, about, as_table, as_text, cell, save_report


def test_table_is_aligned():
    table = as_table([{"name": "long name", "ms": 1.5}, {"name": "b", "ms": None}])
    assert table.splitlines() == [
        "| name      |           ms |",
        "| --------- | -----------: |",
        "| long name |         1.50 |",
        "| b         | not measured |",
    ]


def test_cells_are_short():
    assert [cell(value) for value in (None, 1.234, 12, "text")] == [NOT_MEASURED, "1.23", "12", "text"]


def test_a_report_has_a_header_and_the_measured_tables(tmp_path):
    report = {"about": about(), "speed": [{"method": "ours", "ms": 2.0}], "empty": []}
    text = as_text(report, {"speed": "How fast", "empty": "Nothing", "missing": "Neither"})
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "How fast\n\n| method |   ms |" in text
    assert "Nothing" not in text
    assert "Neither" not in text
    assert {"date", "CPU", "cores", "GPU", "load", "python", "mvd_hf", "transformers"} <= report["about"].keys()
    path = save_report(report, tmp_path / "new", "speed")
    assert (path.name, json.loads(path.read_text())) == ("speed.json", report)
