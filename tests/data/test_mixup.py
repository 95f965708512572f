"""Mixup and CutMix of a batch: shares, boxes, pixels and soft labels."""

import numpy as np
import pytest
import torch

from mvd_hf.data.mixup import Mixup, cutmix_box, soft_labels, soft_targets


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(size: int = 4, dtype: torch.dtype = torch.uint8, side: int = 12) -> dict[str, torch.Tensor]:
    """Clips (B, 4, 3, side, side), clip i of level 40 i + 20 everywhere, with label i."""
    levels = torch.arange(size) * 40 + 20
    pixels = levels.view(-1, 1, 1, 1, 1).expand(-1, 4, 3, side, side)
    return {"pixel_values": pixels.to(dtype).contiguous(), "labels": torch.arange(size)}


def own_share(labels: torch.Tensor, smoothing: float) -> float:
    """Share of a clip's own label in soft labels of a batch with the labels 0, 1, 2, ..."""
    off = smoothing / labels.shape[1]
    return float((labels[0, 0] - off) / (1 - smoothing))


def test_mixup_is_a_weighted_mean_of_the_batch_and_its_reverse():
    for dtype in [torch.uint8, torch.float32, torch.bfloat16, torch.float64]:
        mixup, clips = Mixup(10, cutmix_alpha=0.0), batch(dtype=dtype)
        for seed in range(20):
            mixed = mixup(clips, generator(seed))
            share = own_share(mixed["labels"], 0.1)
            levels = clips["pixel_values"].double()
            exact = share * levels + (1 - share) * levels.flip(0)
            assert mixed["pixel_values"].dtype == dtype
            error = (mixed["pixel_values"].double() - exact).abs().max()
            assert error <= {torch.uint8: 0.501, torch.bfloat16: 0.51}.get(dtype, 1e-4)
        assert torch.equal(clips["pixel_values"], batch(dtype=dtype)["pixel_values"])


def test_spatial_cutmix_pastes_one_box_into_all_frames_and_labels_count_its_pixels():
    mixup, clips, pasted = Mixup(10, mixup_alpha=0.0), batch(), 0
    for seed in range(40):
        mixed = mixup(clips, generator(seed))
        is_partners = mixed["pixel_values"] == clips["pixel_values"].flip(0)
        assert (is_partners | (mixed["pixel_values"] == clips["pixel_values"])).all()
        box = is_partners[0, 0, 0]
        assert (is_partners == box).all()
        assert box.sum() == box.any(dim=0).sum() * box.any(dim=1).sum()
        assert own_share(mixed["labels"], 0.1) == pytest.approx(1 - box.float().mean().item(), abs=1e-6)
        pasted += bool(box.any())
    assert pasted > 30
    assert torch.equal(clips["pixel_values"], batch()["pixel_values"])


def test_official_cutmix_cuts_times_and_rows_by_a_box_of_rows_and_columns():
    spatial, official = (Mixup(10, mixup_alpha=0.0, cutmix_axes=axes) for axes in ("spatial", "official"))
    clips, unchanged = batch(), 0
    for seed in range(60):
        box = spatial(clips, generator(seed))["pixel_values"][0, 0, 0] != 20
        mixed = official(clips, generator(seed))
        is_partners = mixed["pixel_values"] == clips["pixel_values"].flip(0)
        # element (row, column) of the box stands for (frame, row) of the clip; rows from the 5th on are nowhere
        assert torch.equal(is_partners, box[None, :4, None, :, None].expand_as(is_partners))
        assert own_share(mixed["labels"], 0.1) == pytest.approx(1 - box.float().mean().item(), abs=1e-6)
        unchanged += bool(box.any()) and not is_partners.any()
    assert unchanged > 5


def test_official_cutmix_of_16_frames_mostly_mixes_labels_only():
    mixup, rng = Mixup(10, mixup_alpha=0.0, cutmix_axes="official"), np.random.default_rng(0)
    clip = np.empty((1, 16, 1, 224, 1), dtype=bool)
    label_shares, pixel_shares = [], []
    for _ in range(30000):
        share, box = mixup.draw(224, 224, rng)
        label_shares.append(1 - share)
        pixel_shares.append(clip[mixup.region(box)].size / clip.size)
    assert np.mean(np.array(pixel_shares) == 0) == pytest.approx(0.597, abs=0.01)
    assert np.mean(label_shares) == pytest.approx(0.318, abs=0.006)
    assert np.mean(pixel_shares) == pytest.approx(0.218, abs=0.008)
    assert np.corrcoef(label_shares, pixel_shares)[0, 1] == pytest.approx(0.34, abs=0.03)


def test_cutmix_boxes_are_inside_with_uniform_centres_and_the_frames_aspect_ratio():
    rng = np.random.default_rng(0)
    boxes = np.array([cutmix_box(100, 200, 0.75, rng) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert boxes.min() >= 0
    assert (top + height).max() == 100
    assert (left + width).max() == 200
    assert height.max() == 50
    assert width.max() == 100
    whole = (height == 50) & (width == 100)
    assert whole.mean() == pytest.approx(0.5**2, abs=0.03)
    assert np.mean(top[height == 50]) == pytest.approx(25, abs=1)
    assert (height * width).mean() / 20000 == pytest.approx(0.25 * 0.875**2, abs=0.005)


def test_shares_follow_their_beta_distributions_and_cutmix_its_probability():
    rng, mixup = np.random.default_rng(0), Mixup(10, mixup_alpha=0.8, switch_prob=0.3)
    drawn = [mixup.draw(224, 224, rng) for _ in range(6000)]
    shares = np.array([share for share, box in drawn if box is None])
    assert len(shares) / len(drawn) == pytest.approx(0.7, abs=0.02)
    assert shares.mean() == pytest.approx(0.5, abs=0.015)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.005)
    cutmix = Mixup(10, mixup_alpha=0.0, cutmix_alpha=4.0)
    boxes = [box for _, box in (cutmix.draw(1000, 1000, rng) for _ in range(4000))]
    inner = [box for box in boxes if min(box[:2]) > 0 and max(box[0] + box[2], box[1] + box[3]) < 1000]
    areas = np.array([height * width for _, _, height, width in inner]) / 1e6
    assert 0.02 < areas.min() < 0.2  # Beta(4, 4) is rarely near 0; a uniform share would be
    assert len(boxes) == 4000


def test_prob_is_the_part_of_mixed_batches():
    mixup, clips = Mixup(10, prob=0.25, label_smoothing=0.0), batch(side=4)
    source = generator()
    mixed = [mixup(clips, source)["labels"][0, 0] < 1 for _ in range(1000)]
    assert 180 < sum(mixed) < 310


def test_both_alphas_zero_only_smooth_the_labels_of_any_number_of_clips():
    clips = batch(5)
    mixed = Mixup(10, mixup_alpha=0.0, cutmix_alpha=0.0)(clips, generator())
    assert torch.equal(mixed["pixel_values"], clips["pixel_values"])
    assert torch.allclose(mixed["labels"], 0.9 * torch.eye(5, 10) + 0.01)


def test_soft_labels_are_smoothed_and_sum_to_one():
    labels = soft_labels(torch.tensor([2, 0, 2]), 4, 0.2)
    assert labels.dtype == torch.float32
    assert torch.allclose(labels, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])[[0, 1, 0]])
    assert torch.equal(soft_labels(torch.tensor([1]), 3), torch.tensor([[0.0, 1.0, 0.0]]))


def test_mixed_labels_sum_to_one_and_hold_both_labels():
    for axes in ["spatial", "official"]:
        mixup, clips = Mixup(7, cutmix_axes=axes), batch(6)
        for seed in range(30):
            labels = mixup(clips, generator(seed))["labels"]
            assert labels.shape == (6, 7)
            assert labels.dtype == torch.float32
            assert torch.allclose(labels.sum(dim=1), torch.ones(6))
            share = own_share(labels, 0.1)
            for clip in range(6):
                expected = torch.full((7,), 0.1 / 7)
                expected[clip] += 0.9 * share
                expected[5 - clip] += 0.9 * (1 - share)
                assert torch.allclose(labels[clip], expected, atol=1e-6)


def test_generator_decides_and_the_global_states_stay():
    mixup, torch_state, numpy_state = Mixup(10), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = ([mixup(batch(), generator(seed)) for seed in range(8)] for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("pixel_values", "labels"))
    assert len({mixed["labels"].numpy().tobytes() for mixed in first}) > 5
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    source = generator()
    assert not torch.equal(mixup(batch(), source)["labels"], mixup(batch(), source)["labels"])


def test_batch_keeps_its_other_entries_and_itself():
    clips = {**batch(), "weights": torch.arange(4)}
    mixed = Mixup(10)(clips, generator())
    assert mixed["weights"] is clips["weights"]
    assert torch.equal(clips["labels"], torch.arange(4))
    assert set(mixed) == set(clips)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixing_on_a_cuda_device_equals_mixing_on_the_cpu():
    clips = batch()
    on_device = {key: value.cuda() for key, value in clips.items()}
    for seed in range(10):
        expected, mixed = (Mixup(10)(given, generator(seed)) for given in (clips, on_device))
        assert (mixed["pixel_values"].cpu().int() - expected["pixel_values"]).abs().max() <= 1
        assert torch.allclose(mixed["labels"].cpu(), expected["labels"])


def test_impossible_parameters_are_refused():
    for arguments, message in [
        ({"mixup_alpha": -1.0}, "mixup_alpha is -1.0; give a positive number, or 0"),
        ({"cutmix_alpha": float("nan")}, "cutmix_alpha is nan; give a positive number, or 0"),
        ({"prob": 1.1}, "prob is 1.1; it must be between 0 and 1"),
        ({"switch_prob": -0.5}, "switch_prob is -0.5; it must be between 0 and 1"),
        ({"label_smoothing": 2.0}, "label_smoothing is 2.0; it must be between 0 and 1"),
        ({"num_classes": 0}, "num_classes is 0; there must be at least 1"),
        ({"cutmix_axes": "time"}, "no cutmix_axes 'time'; choose 'spatial' or 'official'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Mixup(**{"num_classes": 10, **arguments})


def test_the_middle_clip_of_an_odd_batch_meets_itself():
    clips = batch(5)
    mixed = Mixup(10, cutmix_alpha=0.0, label_smoothing=0.0)(clips, generator())
    assert torch.equal(mixed["pixel_values"][2], clips["pixel_values"][2])
    assert mixed["labels"][2].tolist() == soft_labels(clips["labels"], 10)[2].tolist()
    assert not torch.equal(mixed["pixel_values"][0], clips["pixel_values"][0])


def test_wrong_labels_are_refused():
    for labels, message in [
        (torch.tensor([0, 1, 2, 10]), "Labels from 0 to 10 do not fit 10 classes"),
        (torch.tensor([0, -1, 2, 3]), "Labels from -1 to 3 do not fit 10 classes"),
        (torch.zeros(4), "must be integers of shape .B,., not torch.float32"),
        (torch.zeros(4, 10, dtype=torch.long), "must be integers of shape"),
        (torch.arange(2), "as many labels, not .4, 4, 3, 12, 12. and .2,."),
    ]:
        with pytest.raises(ValueError, match=message):
            Mixup(10)({**batch(), "labels": labels}, generator())


def test_images_instead_of_clips_are_refused():
    with pytest.raises(ValueError, match=r"pixel_values of shape \(B, T, C, H, W\)"):
        Mixup(10)({"pixel_values": torch.zeros(4, 3, 8, 8), "labels": torch.arange(4)}, generator())


def test_labels_of_every_kind_are_mixed_in_the_same_share():
    indices = torch.tensor([[0, 2], [1, 0]])
    heads = {"noun": 2, "verb": 3}
    multi_hot = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    for labels, classes, options, targets in [
        (indices, 5, {"heads": heads}, torch.tensor([[1.0, 0, 0, 0, 1], [0, 1, 1, 0, 0]])),
        (multi_hot, 3, {}, multi_hot),
        (torch.tensor([2.0, -4.0]), 1, {}, torch.tensor([2.0, -4.0])),
    ]:
        clips = {"pixel_values": torch.zeros(2, 2, 3, 8, 8), "labels": labels}
        mixup = Mixup(classes, cutmix_alpha=0.0, label_smoothing=0.0, **options)
        mixed = mixup(clips, generator())["labels"]
        share = mixup.draw(8, 8, np.random.default_rng(int(torch.randint(2**62, (), generator=generator()))))[0]
        torch.testing.assert_close(mixed, share * targets + (1 - share) * targets.flip(0))
    smooth = soft_targets(indices, 5, 0.1, heads)
    torch.testing.assert_close(smooth.sum(dim=1), torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(smooth[0], torch.tensor([0.95, 0.05, 0.1 / 3, 0.1 / 3, 0.9 + 0.1 / 3]))
    torch.testing.assert_close(soft_targets(multi_hot, 3, 0.3), 0.7 * multi_hot + 0.1)
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1"):
        soft_targets(torch.tensor([2.0]), 1, 0.1)
