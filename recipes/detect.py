"""Stage 3 for AVA: train an action detector from a student, a classifier or a detector, and evaluate it.

    accelerate launch recipes/detect.py recipes/tiny/detect.yaml [--key value ...]

With `--evaluate_only`, a detector is evaluated without training. Results are in `<output_dir>/evaluation/`.
Keys: the model (below), the data (`mvd_hf.detection.trainer.DetectionArguments`), the training
    (`mvd_hf.MVDTrainingArguments`).
"""

import logging
from dataclasses import dataclass, field

from transformers import set_seed

from mvd_hf import MVDForActionDetection, MVDTrainingArguments, MVDVideoProcessor
from mvd_hf.arguments import parse_arguments, read_arguments, run_script
from mvd_hf.detection import DetectionArguments, DetectionTrainer
from mvd_hf.hub.loading import load_detector
from mvd_hf.model.configuration_mvd import ConfigFields
from mvd_hf.model.loading_mvd import listed


@dataclass
class DetectorArguments:
    """The checkpoint to start from.

    Args:
        model: folder or Hub id of a student, a classifier or a detector, whose classes are matched by name; a
            published name (`mvd-b`) for a new network.
        config: fields of its `MVDConfig` that differ.
        final_norm: source of the encoder's final norm: `checkpoint`, or `fc_norm` or `fresh` for a mean-pooling
            classifier, which has none, see `mvd_hf.MVDForActionDetection.from_classifier`.
        evaluate_only: evaluate the model without training it.
    """

    model: str = ""
    config: ConfigFields = field(default_factory=dict)
    final_norm: str = "checkpoint"
    evaluate_only: bool = False


KINDS = (DetectorArguments, DetectionArguments, MVDTrainingArguments)


def load_model(recipe: DetectorArguments, data: DetectionArguments) -> MVDForActionDetection:
    """The detector with the classes of the data set; raises ValueError if there is nothing trained to evaluate."""
    if not recipe.model:
        raise ValueError("No model: give --model with a checkpoint's folder, a Hub id or a published name (mvd-b).")
    model, new = load_detector(recipe.model, data.actions, recipe.config, recipe.final_norm)
    if recipe.evaluate_only and new:
        raise ValueError(
            f"{recipe.model!r} is no detector of the actions {listed(list(data.actions.values()))}, so its head is "
            "new and cannot be evaluated: give --label_map with the names that it was trained with, or train it "
            "without --evaluate_only."
        )
    return model


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe, data, training = parse_arguments(arguments, *KINDS)
    set_seed(training.seed)
    model = load_model(recipe, data)
    trainer = DetectionTrainer(
        model,
        training,
        data,
        train_dataset=None if recipe.evaluate_only else data.training_set(model.config, training.seed),
        eval_dataset=data.evaluation_set(model.config),
        processing_class=MVDVideoProcessor.for_detection(
            model.config, size={"shortest_edge": data.short_side}, frame_sampling_rate=data.stride
        ),
    )
    if recipe.evaluate_only:
        trainer.run_evaluation()
        return
    trainer.run_record.set_recipe(read_arguments(arguments, *KINDS), data)
    trainer.run(then=None if trainer.eval_dataset is None else trainer.save_evaluation)


if __name__ == "__main__":
    run_script(main)
