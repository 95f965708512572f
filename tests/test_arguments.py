"""Recipe arguments: defaults, then YAML, then the command line, and what is refused."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mvd_hf.arguments import merge, parse_arguments, parse_overrides, read_arguments, read_yaml


@dataclass
class ModelArguments:
    model: str = "mvd-b"
    teachers: dict = field(default_factory=dict)
    seed: int = 0
    derived: str = field(default="never", init=False)


@dataclass
class RunArguments:
    learning_rate: float = 1.5e-4
    epochs: int = 400
    compile: bool = False
    betas: list = field(default_factory=lambda: [0.9, 0.95])
    note: str | None = "none"
    seed: int = 0


@dataclass
class ListArguments:
    models: list[str] | dict = field(default_factory=list)
    heads: list[int] | None = None
    names: list[str] | str | None = None
    examples: list[str] = field(default_factory=list)
    seed: int = 0


@dataclass
class Required:
    dataset: str


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_without_arguments_the_defaults_hold():
    model, run = parse_arguments([], ModelArguments, RunArguments)
    assert (model, run) == (ModelArguments(), RunArguments())


def test_given_keys_are_those_of_the_file_and_the_command_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("student: mvd-b\nteachers: {image: a}\n")
    expected = {"student": "mvd-b", "teachers": {"image": {"model": "a", "weight": 2}}, "seed": 3}
    assert read_arguments([str(path), "--teachers.image.weight", "2", "--seed=3"]) == expected
    assert read_arguments(["--seed", "3"]) == {"seed": 3}
    assert read_arguments([]) == {}
    with pytest.raises(ValueError, match="cannot be read"):
        read_arguments([str(tmp_path / "missing.yaml")])


def test_command_line_wins_over_yaml_and_yaml_over_defaults(tmp_path):
    path = recipe(tmp_path, "model: mvd-s\nepochs: 800\n")
    model, run = parse_arguments([path, "--epochs", "3"], ModelArguments, RunArguments)
    assert (model.model, run.epochs, run.learning_rate) == ("mvd-s", 3, 1.5e-4)


def test_command_line_needs_no_yaml():
    (run,) = parse_arguments(["--epochs", "3"], RunArguments)
    assert run.epochs == 3


def test_dots_change_one_value_of_a_mapping_and_leave_the_others(tmp_path):
    path = recipe(tmp_path, "teachers:\n  image: {name: mae, weight: 1}\n  video: {name: videomae}\n")
    arguments = [path, "--teachers.image.weight", "0.5", "--teachers.video.layers=12", "--teachers.clip.name", "clip"]
    (model,) = parse_arguments(arguments, ModelArguments)
    assert model.teachers == {
        "image": {"name": "mae", "weight": 0.5},
        "video": {"name": "videomae", "layers": 12},
        "clip": {"name": "clip"},
    }


@pytest.mark.parametrize(
    ("text", "number"), [("1e-4", 1e-4), ("1.5e-4", 1.5e-4), ("1E3", 1e3), ("2.e5", 2e5), ("-3e2", -300.0)]
)
def test_exponents_are_numbers_in_yaml_and_on_the_command_line(tmp_path, text, number):
    (from_yaml,) = parse_arguments([recipe(tmp_path, f"learning_rate: {text}\n")], RunArguments)
    (from_line,) = parse_arguments([f"--learning_rate={text}"], RunArguments)
    for value in (from_yaml.learning_rate, from_line.learning_rate):
        assert isinstance(value, float)
        assert value == number


def test_exponents_are_numbers_inside_lists_and_mappings(tmp_path):
    (run,) = parse_arguments([recipe(tmp_path, "betas: [1e-1, 9.5e-1]\n")], RunArguments)
    assert run.betas == [0.1, 0.95]
    (model,) = parse_arguments(["--teachers", "{image: {weight: 1e-1}}"], ModelArguments)
    assert model.teachers == {"image": {"weight": 0.1}}


def test_names_that_look_a_little_like_numbers_stay_text(tmp_path):
    path = recipe(tmp_path, "model: e4\nnote: 1e4-run\n")
    model, run = parse_arguments([path], ModelArguments, RunArguments)
    assert (model.model, run.note) == ("e4", "1e4-run")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("True", True), ("false", False), ("False", False)])
def test_booleans_are_booleans_in_yaml_and_on_the_command_line(tmp_path, text, value):
    (from_yaml,) = parse_arguments([recipe(tmp_path, f"compile: {text}\n")], RunArguments)
    (from_line,) = parse_arguments(["--compile", text], RunArguments)
    assert from_yaml.compile is value
    assert from_line.compile is value


def test_flag_is_true_at_the_end_and_before_another_key():
    assert parse_overrides(["--compile", "--epochs", "3"]) == {"compile": True, "epochs": 3}
    assert parse_overrides(["--epochs", "3", "--compile"]) == {"epochs": 3, "compile": True}


def test_negative_numbers_are_values_not_keys():
    assert parse_overrides(["--seed", "-1", "--learning_rate", "-1e-4"]) == {"seed": -1, "learning_rate": -1e-4}
    assert parse_overrides(["--seed=-1"]) == {"seed": -1}


def test_value_after_an_equals_sign_may_hold_another_one():
    assert parse_overrides(["--note=a=b"]) == {"note": "a=b"}


def test_null_clears_a_default(tmp_path):
    (from_line,) = parse_arguments(["--note", "null"], RunArguments)
    (from_yaml,) = parse_arguments([recipe(tmp_path, "note: null\n")], RunArguments)
    assert from_line.note is None
    assert from_yaml.note is None


def test_key_of_two_dataclasses_reaches_both():
    model, run = parse_arguments(["--seed", "7"], ModelArguments, RunArguments)
    assert (model.seed, run.seed) == (7, 7)


@pytest.mark.parametrize("place", ["yaml", "line"])
def test_unknown_key_is_refused_with_the_nearest_known_one(tmp_path, place):
    arguments = [recipe(tmp_path, "epoch: 3\n")] if place == "yaml" else ["--epoch", "3"]
    with pytest.raises(ValueError, match=r"Unknown key 'epoch'.*Did you mean 'epochs'\?"):
        parse_arguments(arguments, ModelArguments, RunArguments)


def test_unknown_key_like_no_other_is_refused_without_a_guess():
    with pytest.raises(ValueError, match="Unknown key 'zzzzzz'") as error:
        parse_arguments(["--zzzzzz", "3"], ModelArguments, RunArguments)
    assert "Did you mean" not in str(error.value)


def test_field_that_a_dataclass_derives_is_no_key():
    with pytest.raises(ValueError, match="Unknown key 'derived'"):
        parse_arguments(["--derived", "x"], ModelArguments)


def test_missing_required_key_is_named():
    with pytest.raises(ValueError, match="dataset"):
        parse_arguments([], Required)


@pytest.mark.parametrize("argument", ["-epochs", "epochs"])
def test_argument_without_two_dashes_is_refused_by_name(argument):
    with pytest.raises(ValueError, match=f"'{argument}' is not an argument"):
        parse_arguments(["--compile=true", argument, "3"], RunArguments)


def test_missing_recipe_is_named(tmp_path):
    path = tmp_path / "none.yaml"
    with pytest.raises(ValueError, match=r"none\.yaml' cannot be read"):
        parse_arguments([str(path)], RunArguments)


def test_folder_is_not_a_recipe(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        parse_arguments([str(tmp_path)], RunArguments)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "", "3\n"])
def test_recipe_that_is_no_mapping_is_refused_by_name(tmp_path, text):
    with pytest.raises(ValueError, match=r"recipe\.yaml' must be a mapping"):
        parse_arguments([recipe(tmp_path, text)], RunArguments)


@pytest.mark.parametrize("text", ["epochs: [1, 2\n", "a: b: c\n", "\tepochs: 3\n"])
def test_broken_yaml_is_refused_by_name(tmp_path, text):
    with pytest.raises(ValueError, match=r"recipe\.yaml' is not valid YAML"):
        parse_arguments([recipe(tmp_path, text)], RunArguments)


def test_a_recipe_is_laid_over_the_one_it_extends(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "first.yaml").write_text("a: 1\nb: {c: 2, d: 3}\n")
    (tmp_path / "second.yaml").write_text("extends: far/first.yaml\nb: {d: 4}\n")
    third = tmp_path / "third.yaml"
    third.write_text("extends: second.yaml\ne: 5\n")
    assert read_yaml(third) == {"a": 1, "b": {"c": 2, "d": 4}, "e": 5}
    assert read_arguments([str(third), "--b.c", "6"]) == {"a": 1, "b": {"c": 6, "d": 4}, "e": 5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: missing.yaml", r"The recipe '.*missing\.yaml' cannot be read"),
        ("extends: recipe.yaml", r"The recipe '.*recipe\.yaml' extends '.*recipe\.yaml', which extends it"),
        ("extends: ../{folder}/recipe.yaml", "which extends it"),
        ("extends: [a.yaml, b.yaml]", r"extends=\['a\.yaml', 'b\.yaml'\] of the recipe '.*' must be the path"),
    ],
)
def test_a_recipe_that_extends_nothing_or_itself_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("{folder}", tmp_path.name))
    with pytest.raises(ValueError, match=message):
        read_yaml(path)


def test_yaml_reads_text_as_utf8(tmp_path):
    assert read_yaml(recipe(tmp_path, "note: 视频\n")) == {"note": "视频"}


def test_merging_leaves_its_inputs_as_they_are():
    base = {"teachers": {"image": {"weight": 1}}, "epochs": 1}
    merged = merge(base, {"teachers": {"image": {"weight": 2}}})
    assert merged == {"teachers": {"image": {"weight": 2}}, "epochs": 1}
    assert base == {"teachers": {"image": {"weight": 1}}, "epochs": 1}


def test_mapping_can_be_replaced_by_a_plain_value_and_back():
    assert merge({"teachers": {"image": {}}}, {"teachers": None}) == {"teachers": None}
    assert merge({"teachers": None}, {"teachers": {"image": {}}}) == {"teachers": {"image": {}}}


def test_quoted_text_that_looks_like_a_number_stays_text(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: '1e4'\n")
    assert read_yaml(path) == {"name": "1e4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--a", "1", "--a.b", "2"], "--a.b reaches into 'a', which another argument sets to 1"),
        (["--a", "["], "The value of --a is not valid YAML"),
        (["--a=x: y: z"], "The value of --a is not valid YAML"),
        (["--a", "[" * 3000], "The value of --a is not valid YAML"),
        (["--a=2001-99-99"], "The value of --a is not valid YAML"),
    ],
)
def test_values_that_cannot_be_read_are_refused_by_key(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse_overrides(arguments)


def test_text_where_an_argument_reaches_inside_is_the_model():
    merged = merge({"teachers": {"video": "teachers/b"}}, {"teachers": {"video": {"layer": 9}}})
    assert merged == {"teachers": {"video": {"model": "teachers/b", "layer": 9}}}


def test_what_comes_first_may_be_a_key_of_its_own(tmp_path):
    for first in ("null", "12", "a: b #c"):
        (read,) = parse_arguments([first, "--seed=2"], ModelArguments, first="model")
        assert (read.model, read.seed) == (first, 2)
    (read,) = parse_arguments([recipe(tmp_path, "seed: 3")], ModelArguments, first="model")
    assert (read.model, read.seed) == ("mvd-b", 3)
    (read,) = parse_arguments([], ModelArguments, first="model")
    assert read.model == "mvd-b"


def test_no_is_text_and_switches_are_true_or_false(tmp_path):
    (read,) = parse_arguments([recipe(tmp_path, "note: no"), "--compile=true"], RunArguments)
    assert (read.note, read.compile) == ("no", True)
    for text in ("yes", "on", "no", "1", "null"):
        with pytest.raises(ValueError, match=rf"compile={'None' if text == 'null' else ''}.* must be true or false"):
            parse_arguments([f"--compile={text}"], RunArguments)


def test_a_single_word_stays_one_where_a_field_of_that_name_takes_it():
    @dataclass
    class Names:
        names: list[str] | None = None

    @dataclass
    class FileOrNames:
        names: list[str] | str | None = None

    for kinds in ([Names, FileOrNames], [FileOrNames, Names]):
        assert all(parsed.names == "classes.txt" for parsed in parse_arguments(["--names", "classes.txt"], *kinds))
    assert parse_arguments(["--names", "a"], Names)[0].names == ["a"]


def test_keys_that_take_lists_take_several_words():
    arguments = ["--models", "a", "b", "c", "--seed", "3", "--heads=1", "2"]
    (lists,) = parse_arguments(arguments, ListArguments)
    assert lists == ListArguments(["a", "b", "c"], [1, 2], seed=3)
    (one,) = parse_arguments(["--models", "a", "--heads", "[4]", "--names", "a", "--examples", "x"], ListArguments)
    assert one == ListArguments(["a"], [4], "a", ["x"])
    (named,) = parse_arguments(["--models.one", "a", "--models.two", "b", "--names", "a", "b"], ListArguments)
    assert named == ListArguments({"one": "a", "two": "b"}, names=["a", "b"])
    with pytest.raises(ValueError, match="'4' is not an argument"):
        parse_arguments(["--seed", "3", "4"], ListArguments)
    assert read_arguments(arguments) == {"models": ["a", "b", "c"], "seed": 3, "heads": [1, 2]}
