"""Write the cards of the model zoo: one per student of the paper, from `zoo.yaml` and the recipes.

python model_cards/render.py
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard

from mvd_hf.arguments import read_yaml
from mvd_hf.hub.cards import (
    CITATIONS,
    STUDENT,
    ZOO,
    CardDetails,
    card_metadata,
    describe_input,
    describe_sampling,
    read_template,
    summarise,
)
from mvd_hf.hub.results import PAPER, REPORTED, reported_results
from mvd_hf.hub.snippets import Snippet, make_snippet
from mvd_hf.model.configuration_mvd import MVDConfig
from mvd_hf.model.modeling_mvd import MVDForFeatureDistillation
from mvd_hf.model.video_processing_mvd import MVDVideoProcessor

LICENSE = "cc-by-nc-4.0"


def describe_preparation(name: str, row: Mapping, epochs: int) -> str:
    """How to get the weights that the snippet uses."""
    if row["weights_are_public"]:
        file = f"checkpoint-{epochs - 1}.pth"
        return (
            f"Convert the authors' file, here `{file}`, to a folder for `from_pretrained`:\n\n"
            f"```bash\npython recipes/convert.py {file} --output {name}\n```"
        )
    return (
        "The authors have not published these weights. Train your own with\n"
        f"[`recipes/{name}`](../recipes/{name}); the snippet calls its folder `{name}`:"
    )


def render_zoo_card(name: str, row: Mapping, recipe: Mapping) -> str:
    """The card of a student of the model zoo.

    Args:
        name: of the student and of its folder in `recipes/`.
        row: its entry in the model zoo.
        recipe: of its distillation.
    """
    widths = recipe.get("config", {}).get("teacher_dims")
    config = MVDConfig.from_name(row["student"], **({} if widths is None else {"teacher_dims": widths}))
    with torch.device("meta"):
        student = MVDForFeatureDistillation(config)
    results = reported_results(row["results"])
    details = CardDetails(license=LICENSE, title=row["title"])
    body = read_template("model_card.md").render(
        title=row["title"],
        summary=summarise(config, STUDENT, sum(parameter.numel() for parameter in student.parameters())),
        preparation=describe_preparation(name, row, recipe["num_train_epochs"]),
        snippet=Snippet(make_snippet(name, "encoder", with_code=False)),
        sampling=describe_sampling(MVDVideoProcessor.for_model(config), STUDENT),
        results=results,
        has_reported=True,
        reported=REPORTED,
        zoo=ZOO,
        origin=(
            "The authors of the paper trained this model with their own code. The recipe below has the published "
            f"settings for mvd_hf,\n`recipes/{name}/distill.yaml`. The settings were checked one by one; the recipe "
            "was not run."
        ),
        facts={
            "image teacher": row["teachers"]["image"],
            "video teacher": row["teachers"]["video"],
            "parameters as published": row["published_parameters"],
        },
        sources=[],
        recipe=yaml.safe_dump(dict(recipe), sort_keys=False),
        figures=[],
        frames=describe_input(config),
        license=(
            f"The weights by the authors, and those of both teachers, are under {LICENSE}: no commercial use. Check\n"
            "the licenses of the teachers before you publish a student."
        ),
        warnings=[],
        citation=CITATIONS[PAPER.rpartition("/")[2]],
    )
    return str(
        ModelCard(f"---\n{card_metadata(name, 'feature-extraction', details, results).to_yaml()}\n---\n\n{body}")
    )


def render_zoo_cards(path: str | Path, folder: str | Path) -> list[Path]:
    """Write the cards of the model zoo, a file in a folder beside `recipes/`, and return their paths."""
    cards = []
    for name, row in read_yaml(path).items():
        recipe = read_yaml(Path(path).parents[1] / "recipes" / name / "distill.yaml")
        card = Path(folder) / f"{name}.md"
        card.write_text(render_zoo_card(name, row, recipe), encoding="utf-8")
        cards.append(card)
    return cards


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = Path(__file__).parent
    logging.info("%d cards written to %s", len(render_zoo_cards(folder / "zoo.yaml", folder)), folder)
