"""The model zoo: cards are what the command writes, and numbers are those of the recipes' pages."""

import re
import shlex

import pytest
from huggingface_hub import ModelCard

from launching import ROOT
from model_cards.render import render_zoo_card, render_zoo_cards
from mvd_hf.arguments import read_yaml
from mvd_hf.hub.snippets import make_snippet
from recipes.publish import read_row

CARDS = ROOT / "model_cards"
ZOO = read_yaml(CARDS / "zoo.yaml")


def test_every_published_student_has_a_row():
    published = {path.parent.name for path in ROOT.glob("recipes/*/finetune_k400.yaml")}
    assert set(ZOO) == published
    assert {path.stem for path in CARDS.glob("*.md")} == published


def test_cards_are_what_the_command_writes(tmp_path):
    cards = render_zoo_cards(CARDS / "zoo.yaml", tmp_path)
    assert len(cards) == len(ZOO)
    for card in cards:
        written = (CARDS / card.name).read_text(encoding="utf-8")
        assert written == card.read_text(encoding="utf-8"), "run: python model_cards/render.py"


def test_numbers_are_those_of_the_recipes_page():
    for name in ZOO:
        page = (ROOT / "recipes" / name / "README.md").read_text(encoding="utf-8").partition("## Results")[2]
        numbers = {float(number) for number in re.findall(r"\d\d\.\d", page)}
        for result in ZOO[name]["results"]:
            found = {value for key, value in result.items() if key in ("top-1", "top-5", "mAP")}
            assert found
            assert found <= numbers
        stated = {v for result in ZOO[name]["results"] for k, v in result.items() if k in ("top-1", "top-5", "mAP")}
        assert numbers - stated <= {87.2}  # what the paper's table has for ViT-H


@pytest.mark.parametrize("name", ZOO)
def test_every_number_of_a_card_is_marked_as_reported(name):
    card = ModelCard.load(CARDS / f"{name}.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert len(card.data.eval_results) >= 4
    for result in card.data.eval_results:
        assert result.source_name == "reported by the authors"
        assert "reported by the authors" in result.metric_name
    rows = [line for line in card.text.splitlines() if re.search(r"\| \d\d\.\d \|", line)]
    assert len(rows) == len(card.data.eval_results)
    assert all("*reported by the authors*" in row for row in rows)
    assert "Its output" not in card.text


@pytest.mark.parametrize("name", ZOO)
def test_commands_and_snippets_of_a_card_belong_together(name):
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    commands = [
        shlex.split(line) for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]
    epochs = read_yaml(ROOT / "recipes" / name / "distill.yaml")["num_train_epochs"]
    if ZOO[name]["weights_are_public"]:
        assert commands == [["python", "recipes/convert.py", f"checkpoint-{epochs - 1}.pth", "--output", name]]
    else:
        assert commands == []
        assert "have not published these weights" in text
    # other tests run this snippet
    assert f"```python\n{make_snippet(name, 'encoder', False)}```" in text


def test_parameters_are_those_of_the_student():
    recipe = read_yaml(ROOT / "recipes" / "mvd-vit-b-from-vit-l" / "distill.yaml")
    assert "117,336,320 parameters" in render_zoo_card("mvd-vit-b-from-vit-l", ZOO["mvd-vit-b-from-vit-l"], recipe)


def test_rows_are_found_by_name():
    assert read_row("mvd-vit-b-from-vit-b")["student"] == "mvd-b"
    with pytest.raises(ValueError, match=r"mvd-vit-g.*mvd-vit-s-from-vit-b"):
        read_row("mvd-vit-g")
