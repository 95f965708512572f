"""Probe a frozen encoder on every label of the study's scenes: linear, attentive and k-NN.

    python recipes/study/probe.py --model outputs/study/small/seed0/both/encoder --dataset outputs/study/small/scenes

Keys: `recipes.study.probes.SceneProbeArguments`, `mvd_hf.evaluation.probing.ProbeArguments`.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whose folder `recipes` is a package

from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.evaluation.probing import ProbeArguments
from recipes.study.probes import SceneProbeArguments, SceneProbes


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scenes, probe = parse_arguments(arguments, SceneProbeArguments, ProbeArguments)
    SceneProbes(scenes, probe).run()


if __name__ == "__main__":
    run_script(main)
