"""The action detector: pooling, people, positions, loss, loading, precision, export."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import mvd_hf.model
import tiny_models
from mvd_hf import (
    MVDConfig,
    MVDForActionDetection,
    MVDForFeatureDistillation,
    MVDForVideoClassification,
    MVDModel,
    MVDVideoProcessor,
)
from mvd_hf.model.loading_mvd import CheckpointMismatchError
from tiny_models import clips

BOXES = torch.tensor([[[0.0, 0.0, 8.0, 16.0], [4.0, 6.0, 14.0, 15.0]], [[1.0, 2.0, 9.0, 9.0], [0.0, 0.0, 16.0, 16.0]]])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(model_class=MVDForActionDetection, **fields):
    return tiny_models.tiny(model_class, **({"num_labels": 5} | fields))


def bilinear(image: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Value (D,) of an image (h, w, D) at a point in the coordinates of its pixels' centres, as RoIAlign takes it."""
    height, width = image.shape[:2]
    x, y = max(x, 0.0), max(y, 0.0)
    left, top = min(int(x), width - 1), min(int(y), height - 1)
    x, y = (left if left >= width - 1 else x), (top if top >= height - 1 else y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    u, v = x - left, y - top
    return (
        image[top, left] * (1 - u) * (1 - v)
        + image[top, right] * u * (1 - v)
        + image[bottom, left] * (1 - u) * v
        + image[bottom, right] * u * v
    )


def pooled_by_hand(image: torch.Tensor, box: list[float], patch: int, bins: int) -> torch.Tensor:
    """The largest of the bins' means (D,), each over ceil(bin size) samples a side."""
    x1, y1, x2, y2 = (edge / patch for edge in box)
    width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    counts = -(-height // bins), -(-width // bins)
    values = []
    for row in range(bins):
        for column in range(bins):
            samples = [
                bilinear(
                    image,
                    x1 + (column + (i + 0.5) / counts[1]) * width / bins,
                    y1 + (row + (j + 0.5) / counts[0]) * height / bins,
                )
                for j in range(int(counts[0]))
                for i in range(int(counts[1]))
            ]
            values.append(torch.stack(samples).mean(dim=0))
    return torch.stack(values).amax(dim=0)


def test_logits_by_hand():
    model, pixels = tiny(detection_margin=[0.0, 0.0]), clips()
    with torch.no_grad():
        logits = model(pixels, BOXES).logits
        tokens = model.mvd(pixels).last_hidden_state
        for clip in range(2):
            image = tokens[clip].view(2, 4, 4, 32).mean(dim=0)
            for person in range(2):
                vector = pooled_by_hand(image, BOXES[clip, person].tolist(), 4, 7)
                torch.testing.assert_close(logits[clip, person], model.classifier(vector), atol=1e-5, rtol=1e-5)


def test_the_final_norm_is_used_and_the_class_token_is_not():
    with_token = tiny(use_class_token=True)
    assert with_token.mvd.layernorm is not None
    pixels = clips()
    before = with_token(pixels, BOXES).logits
    with torch.no_grad():
        with_token.mvd.layernorm.weight.mul_(2)
    assert not torch.allclose(before, with_token(pixels, BOXES).logits)
    assert before.shape == (2, 2, 5)


def test_any_number_of_people_and_none():
    model, pixels = tiny(), clips()
    lists = [BOXES[0], torch.zeros(0, 4)]
    labels = [torch.ones(2, 5), torch.zeros(0, 5)]
    output = model(pixels, lists, labels=labels)
    assert output.box_mask.tolist() == [[1, 1], [0, 0]]
    torch.testing.assert_close(output.logits[0], model(pixels[:1], BOXES[:1]).logits[0])
    expected = nn.functional.binary_cross_entropy_with_logits(output.logits[0], torch.ones(2, 5)) * 2
    torch.testing.assert_close(output.loss, expected)
    assert output.boxes.shape == (2, 2, 4)
    nobody = model(pixels, torch.zeros(2, 0, 4), labels=torch.zeros(2, 0, 5))
    assert nobody.logits.shape == (2, 0, 5)
    assert nobody.loss == 0


def test_without_people_every_parameter_still_has_a_gradient():
    model = tiny().train()
    model(clips(), torch.zeros(2, 0, 4), labels=torch.zeros(2, 0, 5)).loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_people_do_not_affect_each_other():
    model, pixels = tiny(), clips()
    together = model(pixels, BOXES).logits
    for person in range(2):
        alone = model(pixels, BOXES[:, person : person + 1]).logits
        torch.testing.assert_close(together[:, person : person + 1], alone)
    swapped = model(pixels, BOXES.flip(1)).logits
    torch.testing.assert_close(swapped, together.flip(1))


def test_the_loss_is_the_sum_over_people_of_the_mean_over_classes():
    model, pixels = tiny(), clips()
    labels = torch.randint(2, (2, 2, 5)).float()
    mask = torch.tensor([[True, False], [True, True]])
    output = model(pixels, BOXES, mask, labels)
    entropy = nn.functional.binary_cross_entropy_with_logits(output.logits[mask], labels[mask])
    torch.testing.assert_close(output.loss, entropy * 3)
    torch.testing.assert_close(model(pixels, BOXES, mask.long(), labels).loss, output.loss)
    assert model(pixels, BOXES, labels=labels.bool()).loss is not None
    assert model(pixels, BOXES).loss is None


def test_the_region_is_larger_in_evaluation_only():
    model, pixels = tiny(detection_margin=[0.5, 0.25]), clips()
    exact = tiny(detection_margin=[0.0, 0.0])
    exact.load_state_dict(model.state_dict())
    larger = torch.tensor([[[2.0, 5.0, 10.0, 10.0]]])  # 4, 5.5 to 8, 9.5, wider by half, higher by a quarter
    box = torch.tensor([[[10 / 3, 5.5, 26 / 3, 9.5]]])
    torch.testing.assert_close(model(pixels[:1], box).logits, exact(pixels[:1], larger).logits)
    model.train()
    torch.testing.assert_close(model(pixels[:1], box).logits, exact(pixels[:1], box).logits)


def test_positions_of_other_sizes_are_interpolated_or_recomputed():
    model, pixels = tiny(), clips(height=20, width=28)
    boxes = torch.tensor([[[0.0, 0.0, 20.0, 20.0]]] * 2)
    interpolated = model(pixels, boxes).logits
    torch.testing.assert_close(interpolated, model(pixels, boxes, interpolate_pos_encoding=True).logits)
    recomputed = model(pixels, boxes, interpolate_pos_encoding=False).logits
    assert not torch.allclose(interpolated, recomputed)
    other = tiny(detection_positions="recomputed")
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(pixels, boxes).logits, recomputed)


def test_inputs_of_other_shapes_or_dtypes_are_refused():
    model, pixels = tiny(), clips()
    for arguments, message in (
        ({"boxes": None}, "boxes"),
        ({"boxes": BOXES[0]}, r"\(2, 4\)"),
        ({"boxes": BOXES[:1]}, r"\(1, 2, 4\)"),
        ({"boxes": BOXES.long()}, "int64"),
        ({"boxes": BOXES, "box_mask": torch.ones(2, 3, dtype=torch.bool)}, r"box_mask.*\(2, 3\)"),
        ({"boxes": BOXES, "box_mask": torch.ones(2, 2)}, "float32"),
        ({"boxes": BOXES, "labels": torch.zeros(2, 2, 4)}, r"labels.*\(2, 2, 4\)"),
        ({"boxes": BOXES, "labels": torch.zeros(2, dtype=torch.long)}, r"\(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model(pixels, **arguments)


# Precision


def test_bfloat16_autocast_and_weights_work_on_a_cpu():
    model, pixels = tiny(), clips()
    exact = model(pixels, BOXES).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        automatic = model(pixels, BOXES, labels=torch.zeros(2, 2, 5))
    assert automatic.loss.dtype == torch.float32
    torch.testing.assert_close(automatic.logits.float(), exact, atol=0.1, rtol=0.1)
    low = tiny().to(torch.bfloat16)
    low.load_state_dict(model.state_dict())
    torch.testing.assert_close(low(pixels.bfloat16(), BOXES).logits.float(), exact, atol=0.1, rtol=0.1)


def test_eager_and_sdpa_and_checkpointing_agree():
    model, pixels = tiny(), clips()
    model.set_attn_implementation("sdpa")
    expected = model(pixels, BOXES).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(pixels, BOXES).logits, expected)
    labels = torch.ones(2, 2, 5)
    gradients = []
    for checkpointed in (False, True):
        model.zero_grad()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.train()(pixels, BOXES, labels=labels).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_export_for_any_number_of_clips_and_people():
    model, pixels = tiny(), clips()
    batch, people = torch.export.Dim("batch", max=8), torch.export.Dim("people", min=2, max=32)
    program = torch.export.export(
        model,
        (),
        {"pixel_values": pixels, "boxes": BOXES},
        dynamic_shapes={"pixel_values": {0: batch}, "boxes": {0: batch, 1: people}},
    )
    pixels, boxes = clips(3), BOXES[:1].repeat(3, 2, 1) * 0.9
    torch.testing.assert_close(program.module()(pixel_values=pixels, boxes=boxes).logits, model(pixels, boxes).logits)


# Loading


def test_a_student_gives_encoder_and_final_norm_and_the_head_is_new(tmp_path):
    student = tiny(MVDForFeatureDistillation)
    student.save_pretrained(tmp_path)
    with pytest.raises(CheckpointMismatchError, match="num_labels"):
        MVDForActionDetection.from_pretrained(tmp_path)
    model = MVDForActionDetection.from_pretrained(tmp_path, num_labels=80)
    for name, value in student.mvd.state_dict().items():
        assert torch.equal(model.mvd.state_dict()[name], value), name
    assert model.classifier.weight.shape == (80, 32)
    assert model.classifier.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.1)
    assert not model.classifier.bias.any()


def test_a_detector_is_saved_and_loaded_whole(tmp_path):
    model, pixels = tiny(detection_margin=[0.2, 0.0]), clips()
    model.save_pretrained(tmp_path)
    again = MVDForActionDetection.from_pretrained(tmp_path)
    assert torch.equal(model(pixels, BOXES).logits, again(pixels, BOXES).logits)
    assert list(again.config.detection_margin) == [0.2, 0.0]
    encoder = MVDModel.from_pretrained(tmp_path)
    assert torch.equal(encoder.layernorm.weight, model.mvd.layernorm.weight)


@pytest.fixture
def classifier(tmp_path):
    model = tiny(MVDForVideoClassification, num_labels=7)
    model.save_pretrained(tmp_path / "classifier")
    return model, tmp_path / "classifier"


def test_a_mean_pooling_classifier_does_not_silently_get_a_fresh_norm(classifier):
    for options in ({}, {"num_labels": 80}, {"num_labels": 80, "ignore_mismatched_sizes": True}):
        with pytest.raises(CheckpointMismatchError, match="from_classifier"):
            MVDForActionDetection.from_pretrained(classifier[1], **options)


def test_a_classifier_gives_the_encoder_and_the_norm_is_chosen(classifier):
    model, folder = classifier
    detectors = {
        norm: MVDForActionDetection.from_classifier(folder, norm, num_labels=80, drop_path_rate=0.2)
        for norm in ("fresh", "fc_norm")
    }
    for norm, detector in detectors.items():
        assert not detector.training
        assert (detector.config.num_labels, detector.config.drop_path_rate) == (80, 0.2)
        for name, value in model.mvd.state_dict().items():
            assert torch.equal(detector.mvd.state_dict()[name], value), name
        assert detector.classifier.weight.shape == (80, 32)
        assert detector.classifier.weight.abs().max() < 0.001
        weight, bias = detector.mvd.layernorm.weight, detector.mvd.layernorm.bias
        assert torch.equal(weight, model.fc_norm.weight if norm == "fc_norm" else torch.ones(32))
        assert torch.equal(bias, model.fc_norm.bias if norm == "fc_norm" else torch.zeros(32))


def test_other_ways_from_a_classifier_are_refused(classifier, tmp_path):
    with pytest.raises(ValueError, match="final_norm='new'"):
        MVDForActionDetection.from_classifier(classifier[1], "new")
    tiny(MVDForVideoClassification, use_mean_pooling=False).save_pretrained(tmp_path / "token")
    with pytest.raises(ValueError, match="from_pretrained"):
        MVDForActionDetection.from_classifier(tmp_path / "token", "fresh")


def test_the_published_sizes_have_their_parameters():
    for name, encoder in (("mvd-b", 86_227_200), ("mvd-h", 631_607_040)):
        with torch.device("meta"):
            config = MVDConfig.from_name(name, num_labels=80)
            model = MVDForActionDetection(config)
        assert model.num_parameters(only_trainable=True) == encoder + 81 * config.hidden_size - config.hidden_size + 80


@pytest.mark.slow
def test_it_travels_as_remote_code(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = tiny()
    model.save_pretrained(tmp_path / "hub")
    MVDVideoProcessor.for_detection(model.config).save_pretrained(tmp_path / "hub")
    for file in Path(mvd_hf.model.__file__).parent.glob("[!_]*.py"):
        shutil.copy(file, tmp_path / "hub")
    remote = get_class_from_dynamic_module("detection_mvd.MVDForActionDetection", str(tmp_path / "hub"))
    assert remote is not MVDForActionDetection
    pixels = clips()
    loaded = remote.from_pretrained(tmp_path / "hub")
    assert torch.equal(loaded(pixels, BOXES).logits, model(pixels, BOXES).logits)
