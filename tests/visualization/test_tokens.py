"""Principal components as colors: the same for all patches of a clip, with stable signs."""

import numpy as np
import pytest
import torch

from mvd_hf import MVDForFeatureDistillation
from mvd_hf.model.video_reading import VideoReader
from mvd_hf.visualization.tokens import (
    TokenFigureArguments,
    color_tokens,
    principal_components,
    token_colors,
    write_tokens,
)


def test_components_are_those_of_the_variance():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([9.0, 3.0, 1.0, 0.1])
    features = torch.randn(500, 4, generator=generator) * scales + 7
    scores, shares = principal_components(features)
    torch.testing.assert_close(shares, scales[:3] ** 2 / scales.pow(2).sum(), atol=0.03, rtol=0.1)
    for i in range(3):
        correlation = torch.corrcoef(torch.stack([scores[:, i], features[:, i]]))[0, 1]
        assert abs(correlation) > 0.98


def test_the_sign_of_a_component_does_not_depend_on_the_decomposition():
    for seed in range(8):
        features = torch.randn(50, 6, generator=torch.Generator().manual_seed(seed))
        scores, _ = principal_components(features)
        assert (scores.pow(3).sum(dim=0) > 0).all()
        turned, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(99)))
        torch.testing.assert_close(principal_components(features @ turned)[0], scores, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("features", [torch.ones(8, 5), torch.randn(2, 5), torch.randn(8, 2)])
def test_features_without_components_are_refused(features):
    with pytest.raises(ValueError, match="no 3 principal components"):
        principal_components(features)


def test_equal_patches_have_one_color():
    groups = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    number = torch.arange(24) % 4
    colors, share = token_colors(groups[number], (2, 3, 4))
    assert colors.shape == (2, 3, 4, 3)
    assert colors.dtype == np.uint8
    flat = colors.reshape(24, 3)
    assert all((flat[number == i] == flat[i]).all() for i in range(4))
    assert len({tuple(color) for color in flat}) == 4
    assert share == pytest.approx(1)
    assert (flat.min(axis=0), flat.max(axis=0)) == (pytest.approx([0] * 3), pytest.approx([255] * 3))


@pytest.fixture
def arguments(tiny_student_config, tiny_teachers, toy_folder, tmp_path) -> TokenFigureArguments:
    torch.manual_seed(0)
    MVDForFeatureDistillation(tiny_student_config).save_pretrained(tmp_path / "student")
    models = {"student": str(tmp_path / "student"), **tiny_teachers}
    return TokenFigureArguments(
        f"{toy_folder}/validation/0000.mp4", models=models, output=str(tmp_path / "tokens.png"), fps=2
    )


def test_student_and_teachers_are_drawn_beside_the_clip(arguments):
    tokens = color_tokens(arguments)
    assert tokens.frames.shape == (2, 32, 32, 3)
    assert {name: color.shape for name, color in tokens.colors.items()} == dict.fromkeys(
        ("student", "image", "video"), (2, 4, 4, 3)
    )
    large = tokens.strips(enlarged=True)
    assert {strip.shape for strip in large.values()} == {(2, 32, 32, 3)}
    assert next(iter(large)) == "clip"
    assert list(large)[1].startswith("student\n")
    assert (list(large.values())[1][:, :8, :8] == tokens.colors["student"][:, :1, :1]).all()


def test_figure_film_and_arrays_are_written(arguments, tmp_path):
    path, *_ = write_tokens(arguments)
    assert path.read_bytes().startswith(b"\x89PNG")
    with VideoReader(path.with_suffix(".mp4")) as reader:
        assert len(reader) == 2
    with np.load(path.with_suffix(".npz")) as arrays:
        assert sorted(arrays) == ["clip", "image", "student", "video"]
        np.testing.assert_array_equal(arrays["video"], color_tokens(arguments).colors["video"])
