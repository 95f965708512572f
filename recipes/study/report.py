"""Render the study's report from its results: README.md and figures.

    python recipes/study/report.py outputs/study/small/results.json [--more other.json ...] [--output recipes/study]

`--more` adds results of other seeds of the same setting. The combined results are written beside the report.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whose folder `recipes` is a package

from mvd_hf.arguments import parse_arguments, run_script
from recipes.study.rendering import write_report
from recipes.study.results import merge_results, write_results


@dataclass
class ReportArguments:
    """Where the results are and where the report goes.

    Args:
        results: the `results.json` of a study.
        more: further `results.json` files, of other seeds of the same setting.
        output: folder of the report.
    """

    results: str = ""
    more: list[str] = field(default_factory=list)
    output: str = "recipes/study"

    def __post_init__(self):
        for path in (self.results, *self.more):
            if not Path(path).is_file():
                raise ValueError(f"There are no results {path!r}: give the path of a study's results.json.")


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (report,) = parse_arguments(arguments, ReportArguments, first="results")
    paths = [report.results, *report.more]
    results = reduce(merge_results, (json.loads(Path(path).read_text(encoding="utf-8")) for path in paths))
    write_report(results, report.output)
    write_results(results, Path(report.output) / "results.json")
    logging.info("Written to %s", Path(report.output) / "README.md")


if __name__ == "__main__":
    run_script(main)
