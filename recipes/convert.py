"""Official checkpoints (MVD, MAE, VideoMAE .pth) to folders that `from_pretrained` loads.

    python recipes/convert.py mae_pretrain_vit_base.pth --output teachers/mae-b [--config.image_size 224 ...]

`config` holds the `MVDConfig` fields that shapes do not tell, see `mvd_hf.convert_checkpoint`.
"""

import logging
import sys
from dataclasses import dataclass, field

from mvd_hf import convert_checkpoint
from mvd_hf.recipe_arguments import parse_arguments


@dataclass
class ConversionArguments:
    """The checkpoint file, the folder to write, and configuration fields to add."""

    checkpoint: str
    output: str
    config: dict = field(default_factory=dict)


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments and not arguments[0].startswith("--"):
        arguments = ["--checkpoint", *arguments]
    (conversion,) = parse_arguments(arguments, ConversionArguments)
    model = convert_checkpoint(conversion.checkpoint, **conversion.config)
    model.save_pretrained(conversion.output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logging.info("%s with %d parameters written to %s", type(model).__name__, parameters, conversion.output)


if __name__ == "__main__":
    main(sys.argv[1:])
