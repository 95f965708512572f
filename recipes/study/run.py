"""Run the study of what each teacher teaches: make the videos, train, test, and write the report.

    python recipes/study/run.py recipes/study/small.yaml [--key value ...]

Run it again to continue where it stopped. Keys: `recipes.study.stages.StudyArguments`.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whose folder `recipes` is a package

from mvd_hf.arguments import parse_arguments, run_script
from recipes.study.rendering import write_report
from recipes.study.results import collect, write_results
from recipes.study.stages import StudyArguments, run_study

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
    run_script(main)
