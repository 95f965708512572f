"""Exported programs: what the model computes, for any batch; facts beside them; nothing that was not checked."""

import importlib.util
import json
import sys

import pytest
import torch

import mvd_hf.hub.export as module
from launching import ROOT
from mvd_hf import (
    MVDConfig,
    MVDForActionDetection,
    MVDForFeatureDistillation,
    MVDForVideoClassification,
    MVDVideoProcessor,
)
from mvd_hf.hub.export import (
    ExportArguments,
    ExportMismatchError,
    export_model,
    largest_deviation,
    load_part,
    random_clips,
    random_inputs,
)

NEEDS_ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="needs the packages of mvd_hf[export]",
)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    """A classifier of three classes whose logits differ, with the processor of its training."""
    torch.manual_seed(0)
    config = MVDConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_init_scale=1.0,
        id2label={0: "sit", 1: "hop", 2: "fly"},
    )
    folder = tmp_path_factory.mktemp("classifier")
    MVDForVideoClassification(config).save_pretrained(folder)
    MVDVideoProcessor.for_model(config, sampling="uniform", num_clips=2).save_pretrained(folder)
    return str(folder)


def test_the_torch_program_is_the_classifier_for_any_batch_and_has_a_description(classifier, tmp_path):
    deviations = export_model(ExportArguments(classifier, output=str(tmp_path)))
    assert deviations["torch"] < 1e-6
    program = torch.export.load(tmp_path / "model.pt2").module()
    model = MVDForVideoClassification.from_pretrained(classifier).eval()
    for batch_size in (1, 5):
        clips = torch.randn(batch_size, 4, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(program(clips), model(clips).logits)
    facts = json.loads((tmp_path / "export.json").read_text())
    assert facts["input"]["shape"] == ["batch", 4, 3, 32, 32]
    assert facts["input"]["frames"]["sampling"] == "uniform"
    assert facts["input"]["frames"]["stride"] is None
    assert facts["input"]["normalization"]["mean"] == [0.485, 0.456, 0.406]
    assert facts["output"]["shape"] == ["batch", 3]
    assert facts["output"]["labels"] == ["sit", "hop", "fly"]
    assert facts["checked"]["batch_sizes"] == [2, 1, 3]
    assert facts["checked"]["largest_deviation"]["torch"] < 1e-6
    processor = MVDVideoProcessor.from_pretrained(tmp_path)
    assert (processor.sampling, processor.num_clips, processor.num_frames) == ("uniform", 1, 4)
    frames = torch.randint(0, 256, (4, 40, 48, 3), dtype=torch.uint8).numpy()
    clips = processor(frames, do_sample_frames=False, return_tensors="pt")["pixel_values"]
    assert program(clips).shape == (1, 3)


def test_a_program_that_takes_bytes_normalises_them(classifier, tmp_path):
    export_model(ExportArguments(classifier, pixels="uint8", output=str(tmp_path)))
    clips = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    model = MVDForVideoClassification.from_pretrained(classifier).eval()
    with torch.no_grad():
        expected = model((clips / 255 - mean) / std).logits
    torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(clips), expected)
    assert json.loads((tmp_path / "export.json").read_text())["input"]["dtype"] == "uint8"


def test_features_of_a_student_and_of_a_classifier(tiny_student_config, classifier, tmp_path):
    torch.manual_seed(0)
    student = MVDForFeatureDistillation(tiny_student_config).eval()
    student.save_pretrained(tmp_path / "student")
    arguments = ExportArguments(str(tmp_path / "student"), "features", output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="dense or uniform"):
        export_model(arguments)
    arguments.sampling, arguments.stride = "dense", 2
    export_model(arguments)
    clips = torch.randn(3, 4, 3, 32, 32)
    features = torch.export.load(tmp_path / "out" / "model.pt2").module()(clips)
    with torch.no_grad():
        torch.testing.assert_close(features, student.mvd(clips).last_hidden_state)
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["output"]["shape"] == ["batch", 32, 32]
    assert facts["input"]["frames"]["stride"] == 2
    assert load_part(classifier, "features").model.layernorm is None
    assert load_part(str(tmp_path / "student"), "features").model.layernorm is not None


@NEEDS_ONNX
@pytest.mark.parametrize("pixels", [pytest.param("float32", marks=pytest.mark.long), "uint8"])
def test_the_onnx_program_is_the_classifier_for_any_batch(classifier, tmp_path, pixels):
    import onnxruntime

    deviations = export_model(ExportArguments(classifier, formats=["onnx"], pixels=pixels, output=str(tmp_path)))
    assert deviations["onnx"] < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    exported = load_part(classifier, "classifier")
    for batch_size in (1, 5):
        clips = random_clips(exported, pixels, batch_size, seed=7)
        (logits,) = session.run(["logits"], {"pixel_values": clips.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), exported(clips), atol=1e-5, rtol=1e-4)
    assert not (tmp_path / "model.pt2").exists()


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> str:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32, "num_hidden_layers": 2}
    config = MVDConfig(**sizes, num_attention_heads=2, head_init_scale=50.0, id2label={0: "sit", 1: "hop", 2: "fly"})
    folder = tmp_path_factory.mktemp("detector")
    MVDForActionDetection(config).save_pretrained(folder)
    MVDVideoProcessor.for_detection(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["torch", pytest.param("onnx", marks=NEEDS_ONNX)])
def test_a_detector_takes_any_number_of_clips_and_of_people(detector, tmp_path, kind):
    arguments = ExportArguments(detector, "detector", formats=[kind], output=str(tmp_path))
    assert export_model(arguments)[kind] < 1e-5
    model = MVDForActionDetection.from_pretrained(detector).eval()
    if kind == "torch":
        program = torch.export.load(tmp_path / "model.pt2").module()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])

        def program(*inputs):
            arrays = dict(zip(("pixel_values", "boxes"), (value.numpy() for value in inputs), strict=True))
            return torch.from_numpy(session.run(["logits"], arrays)[0])

    for clips, people in ((1, 5), (3, 1), (2, 2)):
        corners = 14 * torch.rand(clips, people, 2)
        inputs = torch.randn(clips, 4, 3, 32, 32), torch.cat([corners, corners + 12], dim=2)
        with torch.no_grad():
            torch.testing.assert_close(program(*inputs), model(*inputs).logits, atol=1e-4, rtol=1e-4)
    facts = json.loads((tmp_path / "export.json").read_text())
    assert facts["boxes"]["shape"] == ["batch", "people", 4]
    assert facts["output"]["shape"] == ["batch", "people", 3]
    assert facts["output"]["labels"] == ["sit", "hop", "fly"]
    assert "sigmoid" in facts["output"]["meaning"]
    assert "whole frames" in facts["input"]["crop"]


def test_a_part_that_a_checkpoint_does_not_have_is_refused(detector, classifier):
    for source, part in ((detector, "classifier"), (classifier, "detector")):
        with pytest.raises(ValueError, match=f"part='{part}'"):
            load_part(source, part)
    assert load_part(detector, "features").inputs == ("pixel_values",)


def test_onnx_without_its_packages_says_what_to_install(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "is_onnxruntime_available", lambda: False)
    with pytest.raises(ImportError, match=r"mvd_hf\[export\]"):
        export_model(ExportArguments(classifier, formats=["torch", "onnx"], output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_program_that_deviates_is_refused_and_removed(classifier, tmp_path, monkeypatch):
    def export_badly(exported, clips, path):
        path.write_bytes(b"program")
        path.with_name(f"{path.name}.data").write_bytes(b"weights")
        return lambda pixel_values: exported(pixel_values) + (1e-3 if len(pixel_values) == 3 else 0)

    monkeypatch.setitem(module.EXPORTERS, "torch", export_badly)
    with pytest.raises(ExportMismatchError, match=r"tolerance=0\.0001"):
        export_model(ExportArguments(classifier, output=str(tmp_path)))
    assert not list(tmp_path.iterdir())
    assert export_model(ExportArguments(classifier, tolerance=0.1, output=str(tmp_path)))["torch"] > 1e-4


def test_other_shapes_and_numbers_that_are_not_finite_are_no_small_deviation(classifier):
    exported = load_part(classifier, "classifier")
    batches = [random_inputs(exported, "float32", 2)]
    assert largest_deviation(exported, exported, batches) == 0
    with pytest.raises(ExportMismatchError, match=r"\(2, 2\).*\(2, 3\)"):
        largest_deviation(lambda clips: exported(clips)[:, :2], exported, batches)
    with pytest.raises(ExportMismatchError, match="not finite"):
        largest_deviation(lambda clips: exported(clips) * float("nan"), exported, batches)


def test_choices_that_do_not_exist_are_refused():
    for fields, message in (
        ({}, "--model"),
        ({"model": "x", "part": "head"}, "part='head'.* classifier, features"),
        ({"model": "x", "pixels": "float16"}, "pixels='float16'"),
        ({"model": "x", "formats": ["tflite"]}, r"formats=\['tflite'\].* torch, onnx"),
        ({"model": "x", "formats": []}, r"formats=\[\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ExportArguments(**fields)


def test_only_mvd_models_are_exported(tmp_path, tiny_student_config):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="'vit'"):
        load_part(str(tmp_path), "features")
    with pytest.raises(ValueError, match="nothing"):
        load_part(str(tmp_path / "nothing"), "features")
    MVDForFeatureDistillation(tiny_student_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="classifier"):
        load_part(str(tmp_path), "classifier")


def test_the_command_exports_and_says_how_well(classifier, tmp_path, monkeypatch, caplog):
    spec = importlib.util.spec_from_file_location("export_recipe", ROOT / "recipes" / "export.py")
    recipe = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, recipe)
    spec.loader.exec_module(recipe)
    with caplog.at_level("INFO"):
        recipe.main([classifier, "--formats", "torch", "--output", str(tmp_path)])
    assert "model.pt2" in caplog.text
