"""What each teacher teaches: the whole study, from drawn videos to tables and pictures, in one command.

    python recipes/study/run.py recipes/study/small.yaml [--key value ...]

Started again it goes on where it was. Keys: `mvd_hf.study.StudyArguments`.
"""

import logging
import sys
from pathlib import Path

from mvd_hf.recipe_arguments import parse_arguments
from mvd_hf.study import StudyArguments, run_study
from mvd_hf.study_report import write_report
from mvd_hf.study_results import collect, write_results

RECIPES = Path(__file__).parents[1]


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (study,) = parse_arguments(arguments, StudyArguments)
    plan = run_study(study, RECIPES)
    recipe = Path(arguments[0]) if arguments else plan.folder
    results = collect(plan, recipe.stem if recipe.suffix == ".yaml" else plan.folder.name)
    write_results(results, plan.folder / "results.json")
    write_report(results, plan.folder)
    logging.info("The report is %s", plan.folder / "README.md")


if __name__ == "__main__":
    main(sys.argv[1:])
