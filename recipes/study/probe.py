"""Probe a frozen encoder on every label of the study's scenes: linear, attentive and k-NN.

    python recipes/study/probe.py --model outputs/study/small/seed0/both/encoder --dataset outputs/study/small/scenes

Keys: `mvd_hf.study_probes.SceneProbeArguments`, `mvd_hf.probing.ProbeArguments`.
"""

import logging
import sys

from mvd_hf.probing import ProbeArguments
from mvd_hf.recipe_arguments import parse_arguments
from mvd_hf.study_probes import SceneProbeArguments, SceneProbes


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scenes, probe = parse_arguments(arguments, SceneProbeArguments, ProbeArguments)
    SceneProbes(scenes, probe).run()


if __name__ == "__main__":
    main(sys.argv[1:])
