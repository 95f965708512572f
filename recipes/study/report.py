"""Render the study's report from its results: README.md and pictures.

    python recipes/study/report.py outputs/study/small/results.json [--output recipes/study]

The results are copied beside the report.
"""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from mvd_hf.recipe_arguments import parse_arguments
from mvd_hf.study_report import write_report
from mvd_hf.study_results import write_results


@dataclass
class ReportArguments:
    """The results and the folder of the report."""

    results: str = ""
    output: str = "recipes/study"

    def __post_init__(self):
        if not Path(self.results).is_file():
            raise ValueError(f"There are no results {self.results!r}: give the results.json of a study.")


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (report,) = parse_arguments(arguments, ReportArguments, first="results")
    results = json.loads(Path(report.results).read_text(encoding="utf-8"))
    write_report(results, report.output)
    write_results(results, Path(report.output) / "results.json")
    logging.info("Written to %s", Path(report.output) / "README.md")


if __name__ == "__main__":
    main(sys.argv[1:])
