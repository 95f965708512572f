"""Benchmarks, by name; the report goes to the terminal and, as JSON, into a folder.

    python recipes/benchmark.py data [--videos a.mp4 b.mp4] [--memory 20000] [--output outputs/benchmarks]

`data` measures the way from video files to batches; keys: `mvd_hf.benchmarks.DataBenchmarkArguments`.
"""

import json
import logging
import sys

from mvd_hf.benchmarks import DataBenchmarkArguments, as_text, data_benchmark, save_report
from mvd_hf.recipe_arguments import parse_arguments


def data(arguments: list[str]):
    """From video files to batches of clips."""
    (benchmark,) = parse_arguments(join_lists(arguments), DataBenchmarkArguments)
    report = data_benchmark(benchmark)
    logging.info("%s", as_text(report))
    logging.info("\nWritten to %s", save_report(report, benchmark.output, "data"))


def join_lists(arguments: list[str]) -> list[str]:
    """`--videos a.mp4 b.mp4` with the files as one list, also if there is only one; a list in brackets stays one."""
    joined: list[str] = []
    lists: dict[str, list[str]] = {"--videos": [], "--parts": []}
    key = ""
    for argument in arguments:
        if argument.startswith("--"):
            key = argument
        if key not in lists or argument.startswith("["):
            joined += [argument] if key not in lists else [key, argument]
        elif argument != key:
            lists[key].append(argument)
    return joined + [word for key, values in lists.items() if values for word in (key, json.dumps(values))]


BENCHMARKS = {"data": data}


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name, *rest = arguments or [""]
    if name not in BENCHMARKS:
        raise ValueError(f"There is no benchmark {name!r}; choose {', '.join(BENCHMARKS)}.")
    BENCHMARKS[name](rest)


if __name__ == "__main__":
    main(sys.argv[1:])
