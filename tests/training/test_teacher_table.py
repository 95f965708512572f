"""The table of teachers: in the documentation as the command prints it, and of known families."""

import pytest

from launching import ROOT
from mvd_hf.teachers.families import FAMILIES, WITH_TEXT
from mvd_hf.training.costs import HUB_MODELS
from mvd_hf.training.teacher_table import PAIRS, TEACHERS, KnownTeacher, teacher_table


def test_every_teacher_is_of_its_family_and_every_family_has_an_example():
    for teacher in TEACHERS:
        config = HUB_MODELS.get(teacher.model)
        assert config is None or config.model_type in (teacher.family, "mvd")  # our copies of MAE and VideoMAE
    assert FAMILIES.keys() - {teacher.family for teacher in TEACHERS} == {
        *("mvd", "dinov2_with_registers", "siglip2_vision_model")  # ours, and variants of others
    }
    assert {model for pair in PAIRS.values() for model in pair} <= {teacher.model for teacher in TEACHERS}
    assert not set(WITH_TEXT) & {teacher.family for teacher in TEACHERS}


@pytest.mark.parametrize(
    ("license", "commercial"),
    [("mit", "yes"), ("cc-by-nc-4.0", "no"), ("dinov3-license", "read the license"), ("unknown", "unknown")],
)
def test_commercial_use_follows_from_the_license(license, commercial):
    assert KnownTeacher("dinov2", "me/model", "", license, "").commercial == commercial


def test_the_pair_for_commercial_use_allows_it():
    allowed = {teacher.model for teacher in TEACHERS if teacher.commercial == "yes"}
    assert set(PAIRS["commercial use"]) <= allowed


@pytest.mark.slow
def test_the_documentation_has_the_table():
    assert teacher_table() in (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
