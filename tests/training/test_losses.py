"""The losses, where they apply, and how their parts are balanced: values by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mvd_hf import TeacherConfig, distillation_losses
from mvd_hf.teachers.targets import targets_of
from mvd_hf.training.losses import LossScale, MaskedPatches, compared_pairs, distance_weights
from tiny_models import ids_of, masks, some_of

GRID = (2, 4, 4)


def patches_of(mask: torch.Tensor, decoded: torch.Tensor | None = None) -> MaskedPatches:
    inputs = {"bool_masked_pos": mask, "num_masked": int(mask[0].sum()), "bool_decoded_pos": decoded}
    return MaskedPatches.of(inputs, 0 if decoded is None else int(decoded[0].sum()), GRID)


def test_cosine_losses_by_hand():
    prediction, target = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    cosine = 1 - (prediction * target).sum(-1) / (prediction.norm(dim=-1) * target.norm(dim=-1))
    losses = {
        kind: distillation_losses({"a": prediction}, {"a": target}, losses=kind)["a"].item()
        for kind in ("smooth_l1", "cosine", "cosine_smooth_l1")
    }
    assert losses["cosine"] == pytest.approx(cosine.mean().item(), rel=1e-5)
    assert losses["cosine_smooth_l1"] == pytest.approx((losses["cosine"] + losses["smooth_l1"]) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "l2", "cosine", "cosine_smooth_l1"])
def test_weights_of_tokens_are_factors_of_their_losses(kind):
    prediction, target, weights = torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.rand(2, 3)
    alone = [
        distillation_losses({"a": prediction[b, i][None, None]}, {"a": target[b, i][None, None]}, losses=kind)["a"]
        for b in range(2)
        for i in range(3)
    ]
    weighted = distillation_losses({"a": prediction}, {"a": target}, losses=kind, token_weights={"a": weights})["a"]
    expected = (torch.stack(alone) * weights.flatten()).mean()
    assert weighted.item() == pytest.approx(expected.item(), rel=1e-5)


def test_visible_patches_are_weighted_by_their_distance_to_the_nearest_masked_one():
    mask = masks(3)
    weights = distance_weights(patches_of(mask))
    places = [(t, y, x) for t in range(2) for y in range(4) for x in range(4)]
    for b in range(3):
        masked = [place for place, is_masked in zip(places, mask[b], strict=True) if is_masked]
        visible = [place for place, is_masked in zip(places, mask[b], strict=True) if not is_masked]
        nearest = [min(sum((p - q) ** 2 for p, q in zip(a, c, strict=True)) for c in masked) ** 0.5 for a in visible]
        torch.testing.assert_close(weights[b], torch.tensor(nearest) ** -0.5)


@pytest.mark.parametrize("decoded", [None, 6])
def test_pairs_are_the_patches_layers_and_summaries_that_belong_together(decoded):
    """Two clips under two masks each; targets that hold the numbers of their clip and patch."""
    teachers = {
        "both": TeacherConfig("m", on="all", layers=[1, 2], summary=True),
        "seen": TeacherConfig("m", on="visible"),
    }
    targets = targets_of(teachers, {"both": 3, "seen": 2})
    mask = masks(4)
    part = mask if decoded is None else some_of(mask, decoded)
    patches = patches_of(mask, None if decoded is None else part)
    number = torch.arange(2)[:, None] * 100.0 + torch.arange(32)
    features = {
        "both_1": number[..., None].expand(-1, -1, 3),
        "both_2": -number[..., None].expand(-1, -1, 3),
        "both_summary": torch.tensor([[[7.0]], [[8.0]]]).expand(-1, 1, 3),
        "seen": number[..., None].expand(-1, -1, 2),
    }
    clip = torch.tensor([0, 0, 100, 100])[:, None]
    ids = {"visible": clip + ids_of(~mask), "masked": clip + ids_of(part)}
    both = torch.cat([ids["visible"], ids["masked"]], dim=1)[..., None].expand(-1, -1, 3).float()
    outputs = SimpleNamespace(
        predictions={"both": torch.cat([both, -both], dim=-1), "seen": ids["visible"][..., None].expand(-1, -1, 2)},
        summaries={"both": torch.tensor([7.0, 7.0, 8.0, 8.0])[:, None].expand(-1, 3)},
    )
    predictions, wanted = compared_pairs(outputs, features, targets, patches)
    assert predictions.keys() == wanted.keys() == targets.keys()
    assert all(torch.equal(predictions[name].float(), wanted[name]) for name in targets)
    assert wanted["both_1_masked"].shape == (4, decoded or 24, 3)


def test_masked_and_visible_losses_are_together_that_of_all():
    """The same predictions and targets: the weighted sum of both parts is the loss on all patches, to the bit."""
    mask, prediction, target = masks(), torch.randn(2, 32, 5), {"a": torch.randn(2, 32, 5)}
    patches, sums = patches_of(mask), {}
    for on, part in {"all": prediction, "masked": prediction[:, 8:], "visible": prediction[:, :8]}.items():
        targets = targets_of({"a": TeacherConfig("m", on=on, loss="l1")}, {"a": 5})
        pairs = compared_pairs(SimpleNamespace(predictions={"a": part}), target, targets, patches)
        losses = distillation_losses(*pairs, losses="l1")
        sums[on] = sum(targets[name].weight * loss for name, loss in losses.items())
    assert torch.equal(sums["masked"] + sums["visible"], sums["all"])
    expected = nn.functional.l1_loss(prediction[:, 8:], target["a"][mask].view(2, 24, 5))
    assert sums["masked"] == expected


def test_loss_scale_makes_parts_of_equal_size_and_keeps_their_mean():
    balance = LossScale(["a", "b"])
    assert {name: factor.item() for name, factor in balance().items()} == {"a": 1, "b": 1}
    balance.update({"a": torch.tensor(torch.nan), "b": torch.tensor(1.0)}, lambda sums: sums, is_blank=True)
    averages, weight = torch.zeros(2), 0.0
    for step in range(5):
        losses = torch.tensor([100.0 - step, 1.0 + step / 10])
        # two processes with the same losses
        balance.update({"a": losses[0], "b": losses[1]}, lambda sums: 2 * sums)
        averages, weight = 0.99 * averages + 0.01 * losses, 0.99 * weight + 0.01
        means = averages / weight
        factors = torch.stack(list(balance().values()))
        torch.testing.assert_close(factors, means.mean() / means)
        torch.testing.assert_close((factors * means).sum(), means.sum())
