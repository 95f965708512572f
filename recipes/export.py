"""Export a classifier, an encoder or a detector with torch.export or to ONNX, and check it against the model.

    python recipes/export.py outputs/mvd-vit-b-k400 --formats torch onnx

The file `export.json` describes input and output. Keys: `mvd_hf.hub.export.ExportArguments`.
"""

import logging

from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.hub.export import BATCH_SIZES, FORMATS, ExportArguments, export_model


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for package in ("onnxscript", "onnx_ir"):
        logging.getLogger(package).setLevel(logging.WARNING)  # it logs hundreds of optimisation steps
    (export,) = parse_arguments(arguments, ExportArguments, first="model")
    for name, deviation in export_model(export).items():
        sizes = ", ".join(map(str, BATCH_SIZES))
        logging.info(
            "%s/%s: for batches of %s clips, the largest deviation from the model is %.1e of the largest output.",
            export.output,
            FORMATS[name],
            sizes,
            deviation,
        )


if __name__ == "__main__":
    run_script(main)
