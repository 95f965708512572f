"""Adapt an encoder to labelled videos by fine-tuning as in the paper, adapters or a probe, and test it.

    accelerate launch recipes/finetune.py recipes/mvd-vit-b-from-vit-l/finetune_k400.yaml [--key value ...]
    python recipes/finetune.py --dataset folder/of/class/folders

The default recipe is that of `recipes/own_videos` for this machine. Keys:
`mvd_hf.finetuning.adaptation.AdaptationArguments`
(model, method, test), `mvd_hf.data.arguments.DataArguments` and `FinetuningClipArguments` (videos, clips),
`mvd_hf.finetuning.preparation.PreparationArguments` (division), `mvd_hf.evaluation.probing.ProbeArguments`,
`mvd_hf.FinetuningArguments`.
"""

import logging
from pathlib import Path

import torch
from transformers import set_seed

from mvd_hf import FinetuningArguments
from mvd_hf.arguments import parse_arguments, read_arguments, run_script
from mvd_hf.data.arguments import DataArguments, FinetuningClipArguments
from mvd_hf.evaluation.probing import ProbeArguments
from mvd_hf.finetuning.adaptation import TRAINED, Adaptation, AdaptationArguments
from mvd_hf.finetuning.preparation import PreparationArguments

KINDS = (
    AdaptationArguments,
    DataArguments,
    FinetuningClipArguments,
    PreparationArguments,
    ProbeArguments,
    FinetuningArguments,
)
OWN_VIDEOS = Path(__file__).parent / "own_videos"


def with_recipe(arguments: list[str]) -> list[str]:
    """The arguments after a recipe; by default that for your videos on this machine."""
    if arguments and not arguments[0].startswith("--"):
        return arguments
    recipe = OWN_VIDEOS / ("one_gpu.yaml" if torch.cuda.is_available() else "cpu.yaml")
    logging.info("Using the default recipe %s and the command line.", recipe)
    return [str(recipe), *arguments]


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = with_recipe(arguments)
    *keys, training = parse_arguments(arguments, *KINDS)
    method = keys[0].method
    if method not in TRAINED and any(word.partition("=")[0] == "--num_train_epochs" for word in arguments):
        raise ValueError(f"num_train_epochs is for full and lora, not method={method}: leave it out.")
    set_seed(training.seed)
    Adaptation(*keys, training).run(read_arguments(arguments, *KINDS))


if __name__ == "__main__":
    run_script(main)
