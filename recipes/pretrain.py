"""Stage 1: train the image MAE or the video MAE that becomes a teacher.

    accelerate launch recipes/pretrain.py recipes/tiny/videomae.yaml [--key value ...]

Keys: the model (below), the data (`mvd_hf.data.arguments.DataArguments`), the training
(`mvd_hf.MVDTrainingArguments`).
"""

import logging
from dataclasses import dataclass, field

from transformers import set_seed

from mvd_hf import MVDForPixelReconstruction, MVDTrainer, MVDTrainingArguments, MVDVideoProcessor
from mvd_hf.arguments import parse_arguments, read_arguments, run_script
from mvd_hf.data.arguments import DataArguments, pretraining_clips
from mvd_hf.hub.warm_start import StartingPoint
from mvd_hf.model.configuration_mvd import ConfigFields


@dataclass
class ModelArguments:
    """The masked autoencoder.

    Args:
        model: a published name, for random weights; or the folder, Hub id or official .pth file of an MVD or
            VideoMAE model whose encoder, and decoder if it fits, are the start.
        config: the fields of its `MVDConfig` that differ.
        keep_layers: numbers of the layers of that encoder that are kept, counted from 0; by default all.
    """

    model: str = "videomae-b"
    config: ConfigFields = field(default_factory=dict)
    keep_layers: list[int] | None = None


KINDS = (ModelArguments, DataArguments, MVDTrainingArguments)


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe, data, training = parse_arguments(arguments, *KINDS)
    set_seed(training.seed)
    start = StartingPoint(recipe.model, recipe.config, recipe.keep_layers)
    config = start.config
    trainer = MVDTrainer(
        start.build(MVDForPixelReconstruction),
        training,
        processing_class=MVDVideoProcessor.for_model(config, **data.distance),
        train_dataset=pretraining_clips(data, config, training),
        eval_dataset=pretraining_clips(data, config, training, evaluation=True),
    )
    trainer.run_record.set_recipe(read_arguments(arguments, *KINDS), data)
    trainer.run_record.sources |= start.sources()
    trainer.run()


if __name__ == "__main__":
    run_script(main)
