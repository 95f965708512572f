"""Official checkpoints (MVD, MAE, VideoMAE .pth) to folders that `from_pretrained` loads.

    python recipes/convert.py mae_pretrain_vit_base.pth --output teachers/mae-b [--config.image_size 224 ...]

`config` holds the `MVDConfig` fields that shapes do not tell, see `mvd_hf.convert_checkpoint`.
"""

import logging
import sys
from dataclasses import dataclass, field

from mvd_hf.arguments import parse_arguments
from mvd_hf.hub.conversion import convert_checkpoint, save_converted


@dataclass
class ConversionArguments:
    """The checkpoint, the folder to write, configuration fields to add, and the license of the weights.

    Args:
        checkpoint: a .pth file or a DeepSpeed folder.
        output: folder for weights, configuration, video processor and card.
        config: see above.
        license: as the Hub writes it; by default that of the authors' released weights.
    """

    checkpoint: str
    output: str
    config: dict = field(default_factory=dict)
    license: str | None = None


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (conversion,) = parse_arguments(arguments, ConversionArguments, first="checkpoint")
    model = convert_checkpoint(conversion.checkpoint, **conversion.config)
    save_converted(model, conversion.checkpoint, conversion.output, conversion.license)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logging.info("%s with %d parameters written to %s", type(model).__name__, parameters, conversion.output)


if __name__ == "__main__":
    main(sys.argv[1:])
