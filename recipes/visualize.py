"""Pictures of what models see and say, by name.

    python recipes/visualize.py detect --model outputs/tiny/detector --video video.mp4 --boxes boxes.csv

`detect` draws the people of a video's key frames and what they do, as an mp4 file; keys:
`mvd_hf.visualization.DetectionPictureArguments`.
"""

import logging
import sys

from mvd_hf import MVDForActionDetection, MVDVideoProcessor
from mvd_hf.recipe_arguments import parse_arguments
from mvd_hf.visualization import DetectionPictureArguments, detection_pictures, write_pictures


def detect(arguments: list[str]):
    """People and their actions in the key frames of a video."""
    (drawing,) = parse_arguments(arguments, DetectionPictureArguments)
    model = MVDForActionDetection.from_pretrained(drawing.model)
    processor = MVDVideoProcessor.from_pretrained(drawing.model)
    count = write_pictures(drawing.output, detection_pictures(model, processor, drawing), drawing.hold)
    logging.info("%d key frames written to %s", count, drawing.output)


PICTURES = {"detect": detect}


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name, *rest = arguments or [""]
    if name not in PICTURES:
        raise ValueError(f"There are no pictures {name!r}; choose {', '.join(PICTURES)}.")
    PICTURES[name](rest)


if __name__ == "__main__":
    main(sys.argv[1:])
