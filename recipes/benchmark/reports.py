"""Benchmark reports: hardware, versions and date, then tables, as Markdown and as JSON."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch

NOT_MEASURED = "not measured"
PACKAGES = ("mvd_hf", "torch", "torchvision", "transformers", "numpy", "pillow", "av", "decord", "torchcodec")


def processor() -> str:
    """Model of the CPU."""
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def version_of(package: str) -> str:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def about(threads: int = 1) -> dict[str, str]:
    """Hardware, versions and date: the start of every report.

    Args:
        threads: CPU threads that the measured programs use.
    """
    return {
        "date": datetime.date.today().isoformat(),
        "CPU": processor(),
        "cores": str(os.cpu_count()),
        "threads": str(threads),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "load": "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg()),
        "python": platform.python_version(),
        **{package: version_of(package) for package in PACKAGES},
    }


def cell(value) -> str:
    """A value of a table as text."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def as_table(rows: list[dict]) -> str:
    """Rows with the same keys as an aligned Markdown table."""
    lines = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    is_number = [isinstance(value, int | float) for value in rows[0].values()]
    lines.insert(1, ["-" * (width - number) + ":" * number for width, number in zip(widths, is_number, strict=True)])
    aligned = [
        [
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, is_number, strict=True)
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def as_text(report: Mapping, titles: Mapping[str, str]) -> str:
    """A report as text: a header, then a table for each part with a title."""
    header = ", ".join(f"{name} {value}" for name, value in report["about"].items())
    tables = [f"{title}\n\n{as_table(report[part])}" for part, title in titles.items() if report.get(part)]
    return "\n\n".join([header, *tables])


def save_report(report: Mapping, folder: str | Path, name: str) -> Path:
    """Write a report as JSON to `<folder>/<name>.json` and return the file's path."""
    path = Path(folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return path
