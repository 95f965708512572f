"""List models that can teach: what they saw, license, size, cost, and pairs to begin with.

    python recipes/teachers.py

Needs no network and no weights. `mvd_hf.teachers.families` lists all families.
"""

import logging
from dataclasses import dataclass

from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.training.teacher_table import teacher_table


@dataclass
class TableArguments:
    """There are no keys."""


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parse_arguments(arguments, TableArguments)
    logging.info("%s", teacher_table())


if __name__ == "__main__":
    run_script(main)
