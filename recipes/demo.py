"""A web page for a classifier: predictions over time, the mask game, and the similarity of features between frames.

    python recipes/demo.py outputs/mvd-vit-b-k400 --examples outputs/tiny/data/validation

It needs gradio (`pip install "mvd_hf[demo]"`). Keys: `mvd_hf.visualization.demo.DemoArguments`. The same page as a
Space of the Hub: `recipes/demo_space`.
"""

import logging

from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.visualization.demo import DemoArguments, launch


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    (demo,) = parse_arguments(arguments, DemoArguments, first="model")
    launch(demo)


if __name__ == "__main__":
    run_script(main)
