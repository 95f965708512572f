"""Convert official checkpoints (MVD, MAE, VideoMAE .pth) to folders for `from_pretrained`.

    python recipes/convert.py mae_pretrain_vit_base.pth --output teachers/mae-b [--config.image_size 224 ...]

`config` holds the `MVDConfig` fields that shapes cannot give, see `mvd_hf.convert_checkpoint`.
"""

import logging
from dataclasses import dataclass, field

from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.hub.conversion import convert_checkpoint, save_converted
from mvd_hf.model.configuration_mvd import ConfigFields


@dataclass
class ConversionArguments:
    """The checkpoint and the folder to write.

    Args:
        checkpoint: a .pth file or a DeepSpeed folder.
        output: folder for weights, configuration, video processor and card.
        config: see above.
        license: of the weights, by its name on the Hub; by default that of the authors' released weights.
    """

    checkpoint: str
    output: str
    config: ConfigFields = field(default_factory=dict)
    license: str | None = None


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (conversion,) = parse_arguments(arguments, ConversionArguments, first="checkpoint")
    model = convert_checkpoint(conversion.checkpoint, **conversion.config)
    save_converted(model, conversion.checkpoint, conversion.output, conversion.license)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logging.info("%s with %d parameters written to %s", type(model).__name__, parameters, conversion.output)


if __name__ == "__main__":
    run_script(main)
