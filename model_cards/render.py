"""Write the cards of the paper's model zoo: one for each student, from `zoo.yaml` and the recipes.

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
    card_head,
    describe_sampling,
    frames_of,
    read_template,
    summarise,
)
from mvd_hf.hub.results import PAPER, REPORTED, reported_results
from mvd_hf.hub.snippets import Snippet, make_snippet
from mvd_hf.model.configuration_mvd import MVDConfig
from mvd_hf.model.modeling_mvd import MVDForFeatureDistillation
from mvd_hf.model.video_processing_mvd import MVDVideoProcessor

LICENSE = "cc-by-nc-4.0"
# the last checkpoint of each schedule but one, as the authors name it
CHECKPOINT = "checkpoint-{}.pth"


def read_zoo(path: str | Path) -> dict[str, dict]:
    """The students of the model zoo, by name; raises ValueError if the file cannot be read."""
    return read_yaml(path)


def describe_preparation(name: str, row: Mapping, epochs: int) -> str:
    """How to come by the weights, in front of the snippet that uses them."""
    if row["weights_are_public"]:
        file = CHECKPOINT.format(epochs - 1)
        return (
            f"Convert the authors' file, here `{file}`, to a folder that `from_pretrained` loads:\n\n"
            f"```bash\npython recipes/convert.py {file} --output {name}\n```"
        )
    return (
        "The authors have not published these weights. Train your own with\n"
        f"[`recipes/{name}`](../recipes/{name}); its folder is called `{name}` here:"
    )


def render_zoo_card(name: str, row: Mapping, recipe: Mapping) -> str:
    """The card of a student of the model zoo.

    Args:
        name: of the student and of its folder in `recipes/`.
        row: its entry in the model zoo.
        recipe: the keys of its distillation.
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
        making=(
            "By the authors of the paper, with their own program. These are the published settings as a recipe of "
            f"mvd_hf,\n`recipes/{name}/distill.yaml`, which we have checked one by one and not run."
        ),
        facts={
            "image teacher": row["teachers"]["image"],
            "video teacher": row["teachers"]["video"],
            "parameters as published": row["published_parameters"],
        },
        sources=[],
        recipe=yaml.safe_dump(dict(recipe), sort_keys=False),
        pictures=[],
        frames=frames_of(config),
        license=(
            f"The authors' weights, and those of both teachers, are under {LICENSE}: no commercial use. Look at the\n"
            "teachers' terms before you publish what you train from them."
        ),
        warnings=[],
        citation=CITATIONS[PAPER.rpartition("/")[2]],
    )
    return str(ModelCard(f"---\n{card_head(name, 'feature-extraction', details, results).to_yaml()}\n---\n\n{body}"))


def render_zoo_cards(path: str | Path, folder: str | Path) -> list[Path]:
    """Write the cards of the whole model zoo and give their paths.

    Args:
        path: the file of the model zoo, in a folder beside `recipes/`.
        folder: where the cards go.
    """
    cards = []
    for name, row in read_zoo(path).items():
        recipe = read_yaml(Path(path).parents[1] / "recipes" / name / "distill.yaml")
        card = Path(folder) / f"{name}.md"
        card.write_text(render_zoo_card(name, row, recipe), encoding="utf-8")
        cards.append(card)
    return cards


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = Path(__file__).parent
    logging.info("%d cards written to %s", len(render_zoo_cards(folder / "zoo.yaml", folder)), folder)
