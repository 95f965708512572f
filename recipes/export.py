"""Export a classifier or a feature extractor with torch.export or to ONNX, and check it against the model.

    python recipes/export.py outputs/mvd-vit-b-k400 --formats torch onnx

The folder also says how clips are made (`export.json`). Keys: `mvd_hf.hub.export.ExportArguments`.
"""

import logging
import sys

from mvd_hf.arguments import parse_arguments
from mvd_hf.hub.export import BATCH_SIZES, FORMATS, ExportArguments, export_model


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for package in ("onnxscript", "onnx_ir"):
        logging.getLogger(package).setLevel(logging.WARNING)  # of the hundreds of steps of its optimiser
    (export,) = parse_arguments(arguments, ExportArguments, first="model")
    for name, deviation in export_model(export).items():
        sizes = ", ".join(map(str, BATCH_SIZES))
        logging.info(
            "%s/%s: on batches of %s clips it deviates from the model by at most %.1e of the largest output.",
            export.output,
            FORMATS[name],
            sizes,
            deviation,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
