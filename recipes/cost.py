"""The cost of distillation recipes: FLOPs per clip of student, decoders and each teacher, GPU hours, and memory.

    python recipes/cost.py recipes/mvd-vit-b-from-vit-l/distill.yaml [--mfu 0.4 --device_tflops 989 ...]

Needs no network, data or weights; of a checkpoint that a recipe starts from, the configuration. One recipe is listed
part by part, several are rows of a Markdown table. Which operations count: `mvd_hf.training.costs`; teachers with a
`target_cache` count with the mean over the epochs.
Keys: the assumptions (below), and all keys of `recipes/distill.py`.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from mvd_hf.arguments import HELP, find_recipe, parse_arguments, run_script
from mvd_hf.hub.warm_start import StartingPoint
from mvd_hf.recipes.distill import KINDS
from mvd_hf.teachers import TargetCacheConfig
from mvd_hf.training import costs


@dataclass
class CostArguments:
    """The assumptions behind the hours.

    Args:
        mfu: the part of the device's peak that is reached, including teachers.
        device_tflops: dense peak of one device in TFLOP/s; by default of an H200 or H100 SXM in bf16.
        num_videos: videos of an epoch; by default of the training split of Kinetics-400.
    """

    mfu: float = 0.4
    device_tflops: float = 989.0
    num_videos: int = 240_000

    def summary(self) -> str:
        return (
            f"Assumed: {self.num_videos:,} videos per epoch, a device of {self.device_tflops:g} TFLOP/s, "
            f"MFU {self.mfu:g}."
        )


def read_recipe(arguments: list[str]) -> tuple:
    """The student and teachers, the training and the assumptions of a recipe, and the student's configuration."""
    recipe, _, training, assumed = parse_arguments([*arguments, "--use_cpu"], *KINDS, CostArguments)
    config = StartingPoint(recipe.student, recipe.config, recipe.keep_layers).config
    costs.fit_to_teachers(config, recipe.teachers)
    return recipe, training, assumed, config


def recipe_cost(arguments: list[str]) -> tuple[CostArguments, list[costs.Part], float, str]:
    """The assumptions, the FLOPs per clip, the number of clips of the whole run and what is stored on disk."""
    recipe, training, assumed, config = read_recipe(arguments)
    parts = costs.distillation_parts(config, recipe.teachers, training.masks_per_clip)
    clips, stored = assumed.num_videos * training.clips_per_video, ""
    if recipe.target_cache:
        cache = TargetCacheConfig(**recipe.target_cache)
        stored = "\n" + costs.describe_stored_targets(config, parts, cache, clips, assumed.device_tflops * assumed.mfu)
        parts = costs.with_stored_targets(parts, cache, training.num_train_epochs)
    return assumed, parts, clips * training.num_train_epochs, stored


def table(recipes: list[str], options: list[str]) -> str:
    """A Markdown table of several recipes: TFLOPs per clip in training, clips and GPU hours."""
    rows = {recipe: recipe_cost([recipe, *options]) for recipe in recipes}
    tflops = {recipe: costs.training_tflops(parts) for recipe, (_, parts, _, _) in rows.items()}
    columns = [*dict.fromkeys(key for row in tflops.values() for key in row if key != "together"), "together"]
    lines = [["recipe", *columns, "million clips", "GPU hours"]]
    for recipe, (assumed, _, clips, _) in rows.items():
        cells = [f"{tflops[recipe][key]:.3f}" if key in tflops[recipe] else "-" for key in columns]
        hours = costs.gpu_hours(tflops[recipe]["together"] * 1e12 * clips, assumed.device_tflops, assumed.mfu)
        path = Path(recipe)
        name = path.parent.name if path.stem == "distill" else f"{path.parent.name}/{path.stem}"
        lines.append([f"`{name}`", *cells, f"{clips / 1e6:.0f}", f"{hours:,.0f}"])
    header, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([header, "|" + "---|" * len(lines[0]), *body])


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    recipes, options = arguments[:start], arguments[start:]
    if not recipes and HELP.isdisjoint(options):
        raise ValueError("Give at least one recipe, for example recipes/mvd-vit-b-from-vit-l/distill.yaml.")
    recipes = [str(find_recipe(recipe, Path(__file__).with_name("distill.py"))) for recipe in recipes]
    assumed, parts, clips, stored = recipe_cost([*recipes[:1], *options])
    if len(recipes) > 1:
        logging.info("%s\n\n%s", table(recipes, options), assumed.summary())
        return
    flops = clips * sum(part.training for part in parts)
    logging.info("%s\n\n%s: %.1f million clips.", costs.format_parts(parts), recipes[0], clips / 1e6)
    logging.info("%.3g FLOPs, %.0f GPU hours.", flops, costs.gpu_hours(flops, assumed.device_tflops, assumed.mfu))
    recipe, training, _, config = read_recipe([*recipes, *options])
    logging.info("%s%s\n%s", assumed.summary(), stored, costs.describe_memory(config, recipe.teachers, training))


if __name__ == "__main__":
    run_script(main)
