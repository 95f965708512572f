"""What is compared of each teacher, and the normalization by statistics: exact values, and what is refused."""

from types import SimpleNamespace

import pytest
import torch

from mvd_hf import MVDConfig, TeacherConfig
from mvd_hf.teachers.targets import (
    PhiS,
    Standardize,
    Target,
    fit_student,
    hadamard_matrix,
    split_features,
    target_norms,
    targets_of,
)

# widths of published vision transformers, and small ones
WIDTHS = [1, 2, 4, 8, 12, 24, 32, 48, 192, 384, 768, 1024, 1152, 1280, 1408, 1536, 1664]


def alone(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over one process."""
    return tensor


def features(count: int = 500, width: int = 12, scale: float = 1.0) -> torch.Tensor:
    """Correlated channels of unlike means and deviations, in five batches: (5, count / 5, width)."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(-1, 1, width)
    vectors = torch.randn(5, count // 5, width, generator=generator) @ mixing
    return scale * (vectors + torch.linspace(-5, 50, width))


def fitted(norm: Standardize, batches: torch.Tensor) -> Standardize:
    for batch in batches:
        norm.update(batch, alone)
    norm.finish("dino")
    return norm


def test_without_options_a_teacher_is_one_target_at_masked_patches():
    targets = targets_of(
        {"image": TeacherConfig("m", weight=0.5), "video": TeacherConfig("m")}, {"image": 8, "video": 6}
    )
    assert targets == {
        "image": Target("image", "image", 0, 8, "masked", "smooth_l1", 0.5, "none"),
        "video": Target("video", "video", 0, 6, "masked", "smooth_l1", 1.0, "none"),
    }
    raw = {"image": torch.randn(2, 4, 8), "video": torch.randn(2, 4, 6)}
    assert all(split_features(raw, targets)[name] is raw[name] for name in raw)


def test_layers_tokens_and_a_summary_are_targets_with_weights_that_add_up():
    teacher = TeacherConfig("m", layers=[6, 12], on="all", summary=True, weight=3.0, visible_weight=0.5)
    teachers, widths = {"dino": teacher, "video": TeacherConfig("m", on="visible")}, {"dino": 8, "video": 6}
    targets = targets_of(teachers, widths)
    weights = {name: target.weight for name, target in targets.items()}
    assert weights == {
        "dino_6_masked": 1.5,
        "dino_6_visible": 0.75,
        "dino_12_masked": 1.5,
        "dino_12_visible": 0.75,
        "dino_summary": 3.0,
        "video": 1.0,
    }
    raw = {"dino": torch.randn(2, 5, 16), "video": torch.randn(2, 4, 6)}
    parts = split_features(raw, targets)
    assert torch.equal(parts["dino_6"], raw["dino"][:, :4, :8])
    assert torch.equal(parts["dino_12"], raw["dino"][:, :4, 8:])
    assert torch.equal(parts["dino_summary"], raw["dino"][:, 4:, 8:])
    config = MVDConfig()
    fit_student(config, {name: SimpleNamespace(config=teachers[name], layer_dim=widths[name]) for name in teachers})
    assert config.teacher_dims == {"dino": 16, "video": 6}
    assert config.teacher_tokens == {"dino": "all", "video": "visible"}
    assert config.summary_dims == {"dino": 8}


def test_two_targets_of_one_name_are_refused():
    teachers = {"dino": TeacherConfig("m", layers=[6, 12]), "dino_6": TeacherConfig("m")}
    with pytest.raises(ValueError, match="'dino_6'"):
        targets_of(teachers, {"dino": 8, "dino_6": 8})
    teachers["dino_6"] = TeacherConfig("m", on="all")  # other names of targets, the same of features
    with pytest.raises(ValueError, match="'dino_6'"):
        targets_of(teachers, {"dino": 8, "dino_6": 8})


def test_standardized_channels_have_the_moments_of_all_batches_together():
    batches = features()
    norm = Standardize(12)
    norm.update(batches[0] + 1e6, alone, is_blank=True)  # counts for nothing
    fitted(norm, batches)
    whole = batches.flatten(0, 1).double()
    torch.testing.assert_close(norm.mean, whole.mean(0))
    torch.testing.assert_close(norm.variances(), whole.var(0, correction=0))
    result = norm(batches).flatten(0, 1)
    assert result.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(result.var(0, correction=0), torch.ones(12), atol=1e-3, rtol=0)


def test_phi_s_rotates_and_gives_every_channel_the_same_variance():
    batches = features()
    norm = fitted(PhiS(12), batches)
    result = norm(batches).flatten(0, 1)
    assert result.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(result.var(0, correction=0), torch.ones(12), atol=1e-4, rtol=0)
    # one scale for all: distances between vectors are the former ones times a factor
    whole = batches.flatten(0, 1)
    factor = whole.double().var(0, correction=0).mean().rsqrt().float()
    torch.testing.assert_close(torch.cdist(result, result), factor * torch.cdist(whole, whole), atol=1e-2, rtol=1e-3)
    # y = a H U^T (x - mean), computed by hand
    centered = (whole - whole.mean(0)).double()
    _, components = torch.linalg.eigh(centered.T @ centered)
    components = components * components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
    expected = factor * (hadamard_matrix(12).double() / 12**0.5 @ components.T @ centered.T).T
    torch.testing.assert_close(result.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [Standardize, PhiS])
def test_a_teacher_of_another_scale_gives_the_same_targets(kind):
    batches = features()
    small, large = fitted(kind(12), batches), fitted(kind(12), 100 * batches)
    torch.testing.assert_close(small(batches), large(100 * batches), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [Standardize, PhiS])
def test_processes_that_share_the_clips_have_the_statistics_of_one(kind):
    """Two parts of a batch, whose sums are added as an all-reduce would."""
    batches = features()
    one = fitted(kind(12), batches)
    two = kind(12)
    for first, second in (batch.double().chunk(2) for batch in batches):
        mean = torch.cat([first, second]).mean(0)
        others = iter([torch.cat([torch.tensor([len(second)]), second.sum(0)]), two.squares(second - mean)])
        two.update(first, lambda sums, others=others: sums + next(others))
    two.finish("dino")
    torch.testing.assert_close(one.state_dict(), two.state_dict(), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("vectors", [torch.randn(1, 8), torch.ones(4, 8)], ids=["one vector", "equal vectors"])
@pytest.mark.parametrize("kind", [Standardize, PhiS])
def test_statistics_of_too_little_are_refused(kind, vectors):
    with pytest.raises(ValueError, match=f"'dino' are of {len(vectors)} vectors"):
        fitted(kind(8), vectors[None])
    with pytest.raises(ValueError, match="fit"):
        kind(8)(vectors)


@pytest.mark.parametrize("width", WIDTHS)
def test_hadamard_matrices_have_orthogonal_rows_of_equal_magnitudes(width):
    matrix = hadamard_matrix(width)
    assert matrix.abs().eq(1).all()
    assert torch.equal(matrix @ matrix.T, width * torch.eye(width))


@pytest.mark.parametrize("width", [3, 6, 92])
def test_a_width_without_hadamard_matrix_is_refused_by_value(width):
    with pytest.raises(ValueError, match=f"width {width}"):
        PhiS(width)


def test_only_teachers_that_ask_for_statistics_have_them():
    teachers = {
        "a": TeacherConfig("m", target_norm="phi_s", on="all", summary=True),
        "b": TeacherConfig("m", target_norm="layernorm"),
        "c": TeacherConfig("m", target_norm="standardize"),
    }
    norms = target_norms(targets_of(teachers, dict.fromkeys(teachers, 8)))
    assert {name: type(norm) for name, norm in norms.items()} == {"a": PhiS, "a_summary": PhiS, "c": Standardize}
    assert "spread" not in norms["a"].state_dict()  # it is used up
