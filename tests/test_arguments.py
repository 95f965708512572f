"""Arguments of a recipe: defaults, then YAML, then the command line, each read by its type; help and mistakes."""

import importlib.util
import logging
import re
import sys
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import datasets
import pytest
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.utils import logging as transformers_logging

from launching import ROOT, start
from mvd_hf import FinetuningArguments, MVDTrainingArguments, TeacherConfig, arguments
from mvd_hf.arguments import described_arguments, help_text, merge, parse_arguments, read_arguments, read_yaml
from mvd_hf.data.arguments import DataArguments
from mvd_hf.finetuning.adaptation import AdaptationArguments
from mvd_hf.model.configuration_mvd import ConfigFields
from mvd_hf.visualization.tokens import TokenFigureArguments

SCRIPTS = sorted(path for path in (ROOT / "recipes").rglob("*.py") if "def main(" in path.read_text())


@dataclass
class Keys:
    """What it is for.

    Args:
        text, note: what both are for,
            in two lines.
        rate (`float`): another.

    Raises:
        ValueError: never.
    """

    text: str = "none"
    note: str | None = "none"
    rate: float = 1.5e-4
    epochs: int = 400
    compile: bool = False
    limit: int | None = 3
    number_or_text: int | str | None = None
    names: list[str] | str | None = None
    words: list[str] = field(default_factory=list)
    counts: list[int] | None = None
    models: list[str] | dict[str, str] = field(default_factory=list)
    scale: tuple[float, float] = (0.0, 1.0)
    choice: Literal["a", "b"] = "a"
    schedule: SchedulerType | str = "linear"
    options: dict | str | None = None
    config: ConfigFields = field(default_factory=dict)
    teachers: dict[str, str | Annotated[dict, TeacherConfig]] = field(default_factory=dict)
    derived: str = field(default="never", init=False)


@dataclass
class MoreKeys(Keys):
    """More of it.

    Args:
        last: of the child.
    """

    last: str = ""


@dataclass
class Other:
    epochs: float = 1
    names: list[str] | None = None


@dataclass
class Required:
    dataset: str


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def read(*words: str) -> Keys:
    return parse_arguments(words, Keys)[0]


def load_script(path: Path):
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_arguments", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_command_line_wins_over_yaml_and_yaml_over_defaults(tmp_path):
    path = recipe(tmp_path, "text: mvd-s\nepochs: 800\n")
    assert read() == Keys()
    assert read(path, "--epochs", "3") == Keys(text="mvd-s", epochs=3)
    assert read_arguments([path, "--epochs=3"], Keys) == {"text": "mvd-s", "epochs": 3}
    assert read_arguments([]) == {}


# key, words of the command line, the same in YAML, what they are
VALUES = [
    ("text", ["#1 model"], "'#1 model'", "#1 model"),
    ("text", ["2024-01-01"], "2024-01-01", "2024-01-01"),
    ("text", ["0123"], "0123", "0123"),
    ("text", ["1_000"], "1_000", "1_000"),
    ("text", ["a: b: c"], "'a: b: c'", "a: b: c"),
    ("text", ["no"], "no", "no"),
    ("text", ["[a"], "'[a'", "[a"),
    ("text", ["视频"], "视频", "视频"),
    ("note", ["1e4"], "1e4", "1e4"),
    ("note", ["true"], "true", "true"),
    ("note", ["null"], "null", None),
    ("rate", ["1e-4"], "1e-4", 1e-4),
    ("rate", ["-3e2"], "-3e2", -300.0),
    ("rate", ["3"], "3", 3),
    ("epochs", ["-1"], "-1", -1),
    ("compile", ["False"], "False", False),
    ("compile", [], "true", True),
    ("limit", ["null"], "~", None),
    ("number_or_text", ["7"], "7", 7),
    ("number_or_text", ["seven"], "seven", "seven"),
    ("names", ["classes.txt"], "classes.txt", "classes.txt"),
    ("names", ["a", "2"], "[a, 2]", ["a", "2"]),
    ("names", ["[a, 'b, c']"], "[a, 'b, c']", ["a", "b, c"]),
    ("words", ["a"], "a", ["a"]),
    ("counts", ["1", "2"], "[1, 2]", [1, 2]),
    ("counts", ["3"], "3", [3]),
    ("models", ["{one: 1}"], "{one: 1}", {"one": "1"}),
    ("scale", ["0.1", "1.0"], "[0.1, 1.0]", (0.1, 1.0)),
    ("scale", ["[0.1, 1]"], "[0.1, 1]", (0.1, 1)),
    ("choice", ["b"], "b", "b"),
    ("schedule", ["cosine"], "cosine", "cosine"),
    ("options", ["{a: 1e-1, b: [no, true]}"], "{a: 1e-1, b: [no, true]}", {"a": 0.1, "b": ["no", True]}),
    ("options", ["file.json"], "file.json", "file.json"),
    (
        "config",
        ["{num_frames: 8, num_labels: 3}"],
        "{num_frames: 8, num_labels: 3}",
        {"num_frames": 8, "num_labels": 3},
    ),
    ("config", ["{image_mean: [0.5, 1, 0]}"], "{image_mean: [0.5, 1, 0]}", {"image_mean": [0.5, 1, 0]}),
    ("teachers", ["{a: 12, b: {model: 12}}"], "{a: 12, b: {model: 12}}", {"a": "12", "b": {"model": "12"}}),
]


def test_a_value_is_read_by_the_type_of_its_field(tmp_path):
    for key, words, text, value in VALUES:
        for given in ([f"--{key}", *words], [recipe(tmp_path, f"{key}: {text}\n")]):
            found = getattr(read(*given), key)
            assert (found, type(found)) == (value, type(value)), given
    assert read("--text=--a=b").text == "--a=b"
    assert read("--text=").text == ""
    assert read("--compile", "--epochs", "3") == read("--epochs=3", "--compile") == Keys(compile=True, epochs=3)


WRONG = [
    ("epochs", "four"),
    ("epochs", "2.5"),
    ("epochs", "true"),
    ("epochs", "'3'"),
    ("rate", "many"),
    ("compile", "yes"),
    ("compile", "1"),
    ("text", "[a, b]"),
    ("text", "null"),
    ("counts", "[1, x]"),
    ("scale", "[0.1]"),
    ("scale", "[0.1, big]"),
    ("choice", "c"),
    ("schedule", "zigzag"),
    ("config", "large"),
    ("config.hidden_size", "large"),
    ("config.mask_type", "cube"),
    ("config.num_labels", "many"),
    ("teachers.image.weight", "heavy"),
    ("teachers.image", "[a]"),
]


def test_a_value_of_another_type_is_refused_by_name(tmp_path):
    for key, text in WRONG:
        with pytest.raises(ValueError, match=re.escape(key)) as error:
            read(recipe(tmp_path, nested(key, text)))
        assert text.strip("'[]").split(", ")[-1] in str(error.value).replace("None", "null")


def nested(key: str, text: str) -> str:
    """YAML of a key with dots."""
    for part in reversed(key.split(".")):
        text = f"{{{part}: {text}}}"
    return text


def test_a_wrong_word_of_the_command_line_is_refused_by_name():
    for words in (
        ["--config.hidden_size", "large"],
        ["--teachers.image.weight", "heavy"],
        ["--epochs", "1", "2"],
        ["--epochs", "--compile"],
        ["--epochs="],
        ["--text"],
        ["--scale", "1", "2", "3"],
        ["--options", "{a: ["],
        ["--words", "["],
        ["--words", "[" * 3000],
    ):
        with pytest.raises(ValueError, match=re.escape(words[0].lstrip("-").rstrip("="))):
            read(*words)


def test_every_inherited_training_argument_takes_its_default_as_text():
    """The types of transformers' arguments are those that can be read."""
    for key in fields(MVDTrainingArguments):
        if key.init and isinstance(key.default, str | int | float):
            given = {key.name: key.default}
            assert read_arguments([f"--{key.name}={key.default}"], MVDTrainingArguments) == given
    for words in (["--num_train_epochs", "many"], ["--per_device_train_batch_size", "1.5"], ["--bf16", "maybe"]):
        with pytest.raises(ValueError, match=f"{words[0][2:]}='{words[1]}'"):
            parse_arguments(words, MVDTrainingArguments)


def test_dots_reach_inside_and_a_mapping_replaces(tmp_path):
    path = recipe(tmp_path, "teachers: {image: a, video: {model: b, weight: 1}}\nconfig: {num_frames: 8}\n")
    changed = read(path, "--teachers.image.weight", "0.5", "--teachers.video.layer=9", "--teachers.third", "c")
    assert changed.teachers == {
        "image": {"model": "a", "weight": 0.5},
        "video": {"model": "b", "weight": 1, "layer": 9},
        "third": "c",
    }
    assert read(path, "--teachers", "{image: c}", "--teachers.image.weight", "2").teachers == {
        "image": {"model": "c", "weight": 2}
    }
    assert read(path, "--config", "{hidden_size: 32}").config == {"hidden_size": 32}
    assert read(path, "--teachers.image", "a", "--teachers.image.layer", "9").teachers["image"]["layer"] == 9
    with pytest.raises(ValueError, match="epochs"):
        read("--epochs", "1", "--epochs.more", "2")


def test_null_takes_a_teacher_away_and_clears_a_field_of_a_configuration(tmp_path):
    path = recipe(tmp_path, "teachers: {image: a, video: {model: b}}\nconfig: {intermediate_size: 8}\n")
    heir = tmp_path / "heir.yaml"
    heir.write_text("extends: recipe.yaml\nteachers: {video: null}\nconfig: {intermediate_size: null}\n")
    for found in (read(path, "--teachers.video", "null", "--config.intermediate_size", "null"), read(str(heir))):
        assert (found.teachers, found.config) == ({"image": "a"}, {"intermediate_size": None})


def test_a_key_of_two_dataclasses_reaches_both_as_the_type_of_each():
    keys, other = parse_arguments(["--epochs", "7", "--names", "a"], Keys, Other)
    assert (keys.epochs, other.epochs, keys.names, other.names) == (7, 7, "a", ["a"])
    with pytest.raises(ValueError, match=r"epochs='1\.5'"):
        parse_arguments(["--epochs", "1.5"], Keys, Other)


def test_unknown_keys_are_refused_with_the_nearest_known_one(tmp_path):
    for words, near in {
        ("--epoch", "3"): "epochs",
        (recipe(tmp_path, "epoch: 3\n"),): "epochs",
        ("--teachers.image.wieght", "3"): "weight",
        ("--config.hiden_size", "3"): "hidden_size",
        ("--zzzzzz", "3"): None,
        ("--derived", "x"): None,
    }.items():
        with pytest.raises(ValueError, match="Unknown key") as error:
            read(*words)
        assert near is None or repr(near) in str(error.value)
        assert near is not None or "mean" not in str(error.value)
    with pytest.raises(ValueError, match=r"'num_processes'.*accelerate launch"):
        read("--num_processes", "2")


def test_a_missing_key_or_recipe_and_a_stray_word_are_named(tmp_path):
    with pytest.raises(ValueError, match="--dataset"):
        parse_arguments([], Required)
    for word in ("-epochs", "epochs"):
        with pytest.raises(ValueError, match=word):
            read(recipe(tmp_path, "epochs: 1"), word, "3")
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read(str(path))


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "", "3\n", "epochs: [1, 2\n", "a: b: c\n", "\ta: 3\n"])
def test_a_recipe_that_is_no_mapping_is_refused_by_name(tmp_path, text):
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        read(recipe(tmp_path, text))


def test_what_comes_first_may_be_a_key(tmp_path):
    for first in ("null", "12", "a: b #c"):
        (found,) = parse_arguments([first, "--epochs=2"], Keys, first="text")
        assert (found.text, found.epochs) == (first, 2)
    (found,) = parse_arguments([recipe(tmp_path, "epochs: 3")], Keys, first="text")
    assert (found.text, found.epochs) == ("none", 3)


def test_a_recipe_is_laid_over_the_one_it_extends(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "first.yaml").write_text("a: 1\nb: {c: 2, d: 3}\n")
    (tmp_path / "second.yaml").write_text("extends: far/first.yaml\nb: {d: 4}\n")
    third = tmp_path / "third.yaml"
    third.write_text("extends: second.yaml\ne: 5\n")
    assert read_yaml(third) == {"a": 1, "b": {"c": 2, "d": 4}, "e": 5}
    assert read_arguments([str(third), "--b.c", "6"]) == {"a": 1, "b": {"c": 6, "d": 4}, "e": 5}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("missing.yaml", "missing.yaml"),
        ("recipe.yaml", "recipe.yaml"),
        ("../{folder}/recipe.yaml", "recipe.yaml"),
        ("[a.yaml, b.yaml]", "b.yaml"),
    ],
)
def test_a_recipe_that_extends_nothing_or_itself_is_refused(tmp_path, text, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        read_yaml(recipe(tmp_path, f"extends: {text.replace('{folder}', tmp_path.name)}"))


def test_yaml_without_types_is_read_as_yaml_1_2(tmp_path):
    text = "a: 1e-4\nb: no\nc: '1e4'\nd: [0x1, .5, null]\n1: 2001-99-99\nf: {<<: {x: 1}, y: True}\n"
    assert read_yaml(recipe(tmp_path, text)) == {
        **{"a": 1e-4, "b": "no", "c": "1e4", "d": ["0x1", 0.5, None], 1: "2001-99-99"},
        "f": {"x": 1, "y": True},
    }


def test_merging_leaves_its_inputs_as_they_are():
    base = {"teachers": {"image": {"weight": 1}}, "epochs": 1}
    assert merge(base, {"teachers": {"image": {"weight": 2}}}) == {"teachers": {"image": {"weight": 2}}, "epochs": 1}
    assert base == {"teachers": {"image": {"weight": 1}}, "epochs": 1}
    assert merge({"teachers": {"image": {}}}, {"teachers": None}) == {"teachers": None}


def test_help_has_keys_defaults_and_meanings_of_a_class_and_its_parents():
    meaning = "what both are for, in two lines."
    assert described_arguments(Keys) == {"text": meaning, "note": meaning, "rate": "another."}
    text = help_text("The script.\n\nMore.", [MoreKeys])
    assert text.startswith(f"The script.\n\nMore.\n\nMore of it.\n  --text none\n      {meaning}\n  --note none")
    assert "  --words []\n" in text
    assert "--last\n      of the child." in text
    assert "--derived" not in text


@pytest.mark.parametrize("kind", [FinetuningArguments, DataArguments, TokenFigureArguments, AdaptationArguments])
def test_all_keys_of_ours_have_a_meaning_or_a_parent_that_gives_it(kind):
    text, foreign = help_text("", [kind]), {key.name for key in fields(TrainingArguments)}
    for key in fields(kind):
        if key.name not in foreign and key.init:
            assert re.search(rf"--{key.name}\b.*\n      [\w`]", text), key.name


def test_inherited_keys_are_named_by_their_place():
    text = help_text("", [MVDTrainingArguments])
    assert "--base_learning_rate 0.00015\n      " in text
    assert "transformers.TrainingArguments" in text
    assert "--per_device_train_batch_size" not in text


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_ends_a_script_without_doing_anything(capsys, word):
    publish = load_script(ROOT / "recipes" / "publish.py")
    for main, words in ((read, ["recipe.yaml", "--epochs", "2"]), (publish.main, ["model"]), (publish.main, [])):
        with pytest.raises(SystemExit) as ended:
            main(*words, word) if main is read else main([*words, word])
        assert ended.value.code == 0
    assert "--folder" in capsys.readouterr().out


def run(monkeypatch, main, *words: str, script: str = __file__) -> int | None:
    """The exit code of a script with a command line."""
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as ended:
        arguments.run_script(main)
    return ended.value.code


def test_a_script_ends_with_what_it_returns_or_with_a_message(monkeypatch, capsys):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert run(monkeypatch, lambda words: len(words), "a", "--debug", "b") == 3
    assert run(monkeypatch, lambda words: len(words), "a", "--debug") == 1
    assert not capsys.readouterr().err
    for main in (lambda words: read(*words), lambda words: Path("missing.yaml").read_text()):
        assert run(monkeypatch, main, "missing.yaml") == 2
        error = capsys.readouterr().err
        assert "missing.yaml" in error
        assert error.startswith("test_arguments.py: error:")
        assert error.count("\n") == 1
    assert run(monkeypatch, lambda words: parse_arguments(words, MVDTrainingArguments), "--seed", "x") == 2
    assert "seed" in capsys.readouterr().err


def test_libraries_are_quiet_about_cards_and_draw_no_bars_into_files(monkeypatch):
    cards = logging.getLogger("huggingface_hub.repocard")
    models = logging.getLogger("transformers.modeling_utils")
    monkeypatch.setattr(cards, "level", logging.NOTSET)
    monkeypatch.setattr(models, "filters", [])
    warnings.simplefilter("error")  # pytest resets it
    done = []
    for name, target in (("disable_progress_bar", transformers_logging), ("disable_progress_bars", datasets)):
        monkeypatch.setattr(target, name, lambda name=name: done.append(name))
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal, raising=False)
        arguments.quieten_libraries()
        assert not cards.isEnabledFor(logging.WARNING)
        assert not models.filter(models.makeRecord("", logging.WARNING, "", 0, "X LOAD REPORT from", (), None))
        assert models.filter(models.makeRecord("", logging.WARNING, "", 0, "another warning", (), None))
        warnings.warn("`gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
        assert done == ([] if is_terminal else ["disable_progress_bar", "disable_progress_bars"])


def test_a_bug_keeps_its_traceback_and_debug_shows_that_of_a_mistake(monkeypatch):
    for main, words, kind in (
        (lambda words: {}["a"], [], KeyError),
        (lambda words: read(*words), ["--epochs", "x", "--debug"], ValueError),
        (lambda words: re.compile("a").sub("b", None), [], TypeError),
        (lambda words: importlib.util.find_spec(""), [], ValueError),  # of a library
    ):
        monkeypatch.setattr(sys, "argv", [__file__, *words])
        with pytest.raises(kind):
            arguments.run_script(main)


def test_only_the_first_process_of_a_machine_reports_a_mistake_at_once(monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(arguments.time, "sleep", lambda seconds: waits.append(capsys.readouterr().err))
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert run(monkeypatch, lambda words: read(*words), "--epochs", "x") == 2
        assert "epochs" in capsys.readouterr().err
    assert waits == [""]


MISTAKES = [
    ("distill", ["--teachers.image.weight", "heavy"], "teachers.image.weight"),
    ("distill", ["--dataset", "x"], "--teachers.image"),
    ("pretrain", ["--dataset", "x", "--config.hidden_size", "large"], "config.hidden_size"),
    ("finetune", ["--stride", "four"], "stride"),
    ("finetune", ["--model=x", "--dataset=x", "--method=knn", "--num_train_epochs=3"], "num_train_epochs"),
    ("detect", ["--flip", "yes please"], "flip"),
    ("convert", ["missing.pth", "--output", "o"], "missing.pth"),
    ("prepare", ["ucf102", "--videos", "v", "--splits", "s", "--output", "o"], "ucf102"),
    ("visualize", ["tokenz"], "tokenz"),
]


@pytest.mark.parametrize(("name", "words", "named"), MISTAKES)
def test_a_mistake_on_a_recipe_s_command_line_is_one_message(monkeypatch, capsys, name, words, named):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    path = ROOT / "recipes" / f"{name}.py"
    assert run(monkeypatch, load_script(path).main, *words, script=str(path)) == 2
    assert re.search(rf"{name}\.py: error: .*{re.escape(named)}", capsys.readouterr().err)


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own_is_one_message():
    run = start("cost.py", "--mfu", "half")
    assert run.wait() == [2]
    assert "Traceback" not in run.text()


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_has_help(script):
    run = start(str(script), "--help")
    assert run.wait() == [0], run.text()[-2000:]
    assert re.search(r"--\w+", run.text())
    assert "Traceback" not in run.text()
