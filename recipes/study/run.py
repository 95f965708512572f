"""Run the study of pre-training on labelled videos: copy them, train, test, and write the report.

    python recipes/study/run.py recipes/study/tank_wagon.yaml --dataset folder [--key value ...]

Run it again to continue where it stopped. Keys: `recipes.study.plan.StudyArguments`.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whose folder `recipes` is a package

from mvd_hf.arguments import parse_arguments, run_script
from recipes.study.plan import Plan, StudyArguments
from recipes.study.report import write_report
from recipes.study.results import collect, write_results
from recipes.study.stages import run_all

RECIPES = Path(__file__).parents[1]


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (study,) = parse_arguments(arguments, StudyArguments)
    plan = Plan(study, RECIPES)
    plan.prepare()
    run_all(plan.stages(), plan.folder, study.processes)
    results = collect(plan)
    write_results(results, plan.folder / "results.json")
    write_report(results.as_json(), plan.folder)
    logging.info("The report is %s", plan.folder / "README.md")


if __name__ == "__main__":
    run_script(main)
