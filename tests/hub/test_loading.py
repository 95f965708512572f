"""Classifiers from checkpoints of every kind: what is kept, what is new, what is refused."""

import logging

import pytest
import torch
from huggingface_hub import constants
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from launching import ROOT
from mvd_hf import (
    MVDConfig,
    MVDForActionDetection,
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDModel,
    MVDVideoProcessor,
    load_classifier,
)
from mvd_hf.hub.loading import (
    check_fps_of_source,
    check_source,
    load_detector,
    load_processor,
    load_trained_classifier,
)
from mvd_hf.model.loading_mvd import CheckpointMismatchError
from tiny_models import TINY

CLASSES = ["jump", "run", "walk"]
HEAD = ["classifier.bias", "classifier.weight"]
VIDEOMAE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 4,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}


@pytest.fixture
def clip() -> torch.Tensor:
    return torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def config() -> MVDConfig:
    return MVDConfig.from_name("mvd-b", **TINY, num_frames=4, teacher_dims={"image": 32, "video": 32})


@pytest.mark.parametrize(
    ("kind", "family"),
    [(MVDForFeatureDistillation, "mvd"), (MVDForPixelReconstruction, "videomae"), (MVDModel, "mvd")],
)
def test_an_encoder_of_any_stage_is_kept_and_all_else_is_new(kind, family, tmp_path, clip, caplog):
    caplog.set_level(logging.INFO)
    source = kind(MVDConfig.from_name(f"{family}-b", **TINY, num_frames=4)).eval()
    source.save_pretrained(tmp_path)
    model, fresh = load_classifier(str(tmp_path), CLASSES, {"drop_path_rate": 0.2})
    assert fresh == [*HEAD, "fc_norm.bias", "fc_norm.weight"]
    assert ", ".join(fresh) in caplog.text
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.problem_type == "single_label_classification"
    assert model.config.drop_path_rate == 0.2
    assert model.config.position_embedding_type == ("flat" if family == "videomae" else "spacetime")
    base = source.base_model if kind is not MVDModel else source
    ours, theirs = (m(clip, output_hidden_states=True).hidden_states[-1] for m in (model.eval().mvd, base))
    assert torch.equal(ours, theirs)
    assert 0 < model.classifier.weight.abs().max() < 1e-3


def classifier(config: MVDConfig, classes: list[str], folder) -> MVDForVideoClassification:
    fields = config.to_diff_dict() | {"id2label": dict(enumerate(classes)), "head_init_scale": 1.0}
    model = MVDForVideoClassification(MVDConfig(**fields)).eval()
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(folder)
    return model


def test_a_head_for_the_same_classes_is_kept_in_the_given_order(config, tmp_path, clip):
    source = classifier(config, CLASSES, tmp_path)
    order = [2, 0, 1]
    model, fresh = load_classifier(str(tmp_path), [CLASSES[i] for i in order])
    assert not fresh
    assert list(model.config.id2label.values()) == [CLASSES[i] for i in order]
    with torch.no_grad():
        assert torch.equal(model.eval()(clip).logits, source(clip).logits[:, order])


def test_a_head_for_as_many_other_classes_is_drawn_anew(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source = classifier(config, CLASSES, tmp_path)
    model, fresh = load_classifier(str(tmp_path), ["cat", "cow", "dog"], {"head_init_scale": 0.001})
    assert fresh == HEAD
    assert "jump, run, walk" in caplog.text
    assert "cat, cow, dog" in caplog.text
    assert model.classifier.weight.abs().max() < 0.01 * source.classifier.weight.abs().max()
    assert model.classifier.bias.abs().max() == 0
    assert torch.equal(model.fc_norm.weight, source.fc_norm.weight)


def test_a_head_of_another_size_is_replaced_and_one_of_numbers_kept(config, tmp_path):
    source = classifier(config, CLASSES, tmp_path)
    model, fresh = load_classifier(str(tmp_path), 5)
    assert fresh == HEAD
    assert model.config.num_labels == 5
    model, fresh = load_classifier(str(tmp_path), 3)
    assert not fresh
    assert list(model.config.id2label.values()) == CLASSES
    assert torch.equal(model.classifier.weight, source.classifier.weight)


def detector(config: MVDConfig, folder, **fields) -> MVDForActionDetection:
    model = MVDForActionDetection(MVDConfig(**config.to_diff_dict() | {"head_init_scale": 1.0} | fields))
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("numbers", [[1, 2, 3], [3, 1, 2], [2], [1, 4]])
def test_a_detector_that_knows_the_actions_keeps_its_head_by_name(config, tmp_path, caplog, numbers):
    caplog.set_level(logging.INFO)
    source = detector(config, tmp_path, id2label=dict(enumerate(CLASSES)))
    actions = dict(zip(numbers, CLASSES, strict=False))
    model, fresh = load_detector(str(tmp_path), actions, {"drop_path_rate": 0.2})
    assert (fresh, model.config.drop_path_rate) == ([], 0.2)
    assert model.config.num_labels == model.num_labels == len(model.classifier.weight) == max(numbers)
    for number, name in actions.items():
        assert model.config.id2label[number - 1] == name
        for ours, theirs in zip(model.classifier.parameters(), source.classifier.parameters(), strict=True):
            assert torch.equal(ours[number - 1], theirs[CLASSES.index(name)])
    for number in set(range(1, max(numbers))) - set(numbers):
        assert (model.config.id2label[number - 1], model.classifier.bias[number - 1]) == (f"unused {number}", 0)
    assert ("matched by name" in caplog.text) == (numbers != [1, 2, 3])
    again, _ = load_detector(str(tmp_path), actions)
    again.save_pretrained(tmp_path)
    assert MVDForActionDetection.from_pretrained(tmp_path).config.id2label == model.config.id2label


@pytest.mark.parametrize("names", [["cat", "cow", "dog"], ["jump", "run", "swim"], ["cat"]])
def test_a_detector_of_other_actions_gets_a_new_head(config, tmp_path, caplog, names):
    caplog.set_level(logging.INFO)
    source = detector(config, tmp_path, id2label=dict(enumerate(CLASSES)))
    model, fresh = load_detector(str(tmp_path), dict(enumerate(names, 1)), {"head_init_scale": 0.001})
    assert fresh == HEAD
    assert ", ".join(HEAD) in caplog.text
    assert "jump, run, walk" in caplog.text
    assert model.config.id2label == dict(enumerate(names))
    assert model.classifier.weight.abs().max() < 0.01 * source.classifier.weight.abs().max()
    assert model.classifier.bias.abs().max() == 0
    assert torch.equal(model.mvd.layernorm.weight, source.mvd.layernorm.weight)


def test_a_head_without_names_is_kept_by_a_detector_and_that_of_a_classifier_never(config, tmp_path):
    source = detector(config, tmp_path, num_labels=3, problem_type="regression")
    model, fresh = load_detector(str(tmp_path), dict(enumerate(CLASSES, 1)))
    assert not fresh
    assert torch.equal(model.classifier.weight, source.classifier.weight)
    assert list(model.config.id2label.values()) == CLASSES
    assert model.config.problem_type is None
    heads = {"label_heads": {"noun": 1, "verb": 2}, "problem_type": "single_label_classification"}
    classifier(MVDConfig(**config.to_diff_dict() | heads), CLASSES, tmp_path)
    model, fresh = load_detector(str(tmp_path), dict(enumerate(CLASSES, 1)), final_norm="fc_norm")
    assert fresh == HEAD
    assert (model.config.label_heads, model.config.problem_type) == ({}, None)
    with pytest.raises(CheckpointMismatchError, match="from_classifier"):
        load_detector(str(tmp_path), dict(enumerate(CLASSES, 1)))


@pytest.mark.parametrize("kind", [VideoMAEForPreTraining, VideoMAEForVideoClassification])
@pytest.mark.parametrize("has_norm", [True, False])
def test_a_videomae_of_transformers_gives_its_encoder(kind, has_norm, tmp_path, clip):
    # a classifier with a token-level norm reads its first token
    config = VideoMAEConfig(**VIDEOMAE, use_mean_pooling=not has_norm, id2label=dict(enumerate(CLASSES)))
    source = kind(config).eval()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    source.save_pretrained(tmp_path)
    model, fresh = load_classifier(str(tmp_path), CLASSES)
    is_classifier = kind is VideoMAEForVideoClassification
    assert set(fresh) <= {*HEAD, "fc_norm.bias", "fc_norm.weight"}
    assert fresh == ([] if is_classifier else [*HEAD] if has_norm else [*HEAD, "fc_norm.bias", "fc_norm.weight"])
    # VideoMAE's pixels are normalised floats
    pixels = (clip.float() / 255 - torch.tensor(model.config.image_mean).view(3, 1, 1)) / torch.tensor(
        model.config.image_std
    ).view(3, 1, 1)
    with torch.no_grad():
        theirs = source.videomae(pixels, output_hidden_states=True).hidden_states[-1]
        ours = model.eval().mvd(pixels, output_hidden_states=True).hidden_states[-1]
        assert ours == pytest.approx(theirs, abs=1e-5)
        if is_classifier:
            assert model(pixels).logits == pytest.approx(source(pixels).logits, abs=1e-4)


@pytest.mark.parametrize("part", ["encoder.layer.1.attention.attention.query.weight", "encoder.layer.0.output"])
def test_a_videomae_that_lacks_weights_of_its_encoder_is_refused(tmp_path, part):
    source = VideoMAEForPreTraining(VideoMAEConfig(**VIDEOMAE))
    source.save_pretrained(tmp_path, state_dict={k: v for k, v in source.state_dict().items() if part not in k})
    with pytest.raises(CheckpointMismatchError, match=r"missing: .*mvd\.layers"):
        load_classifier(str(tmp_path), 3)


def test_only_a_classifier_with_a_trained_head_is_tested(tmp_path):
    VideoMAEForPreTraining(VideoMAEConfig(**VIDEOMAE)).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"encoder' is a VideoMAEForPreTraining"):
        load_trained_classifier(str(tmp_path / "encoder"))
    whole = VideoMAEForVideoClassification(VideoMAEConfig(**VIDEOMAE))
    headless = {name: value for name, value in whole.state_dict().items() if "classifier" not in name}
    whole.save_pretrained(tmp_path / "headless", state_dict=headless)
    with pytest.raises(CheckpointMismatchError, match=r"classifier\.weight"):
        load_trained_classifier(str(tmp_path / "headless"))
    whole.save_pretrained(tmp_path / "whole")
    assert torch.equal(load_trained_classifier(str(tmp_path / "whole")).classifier.weight, whole.classifier.weight)


def test_an_official_file_gives_its_encoder():
    path = ROOT / "tests" / "parity" / "ckpt_pretrain_checkpoint-1.pth"
    model, fresh = load_classifier(str(path), 4, {"num_attention_heads": 4, "decoder_num_attention_heads": 4})
    assert fresh == [*HEAD, "fc_norm.bias", "fc_norm.weight"]
    official = torch.load(path, weights_only=False)["model"]["blocks.1.mlp.fc1.weight"]
    assert torch.equal(model.mvd.layers[1].mlp.fc1.weight, official)


def test_a_published_size_is_trained_from_scratch():
    sizes = {**TINY, "num_frames": 4}
    model, fresh = load_classifier("mvd-s", CLASSES, sizes)
    assert fresh == [name for name, _ in model.named_parameters()]
    assert model.config.num_labels == 3


def test_what_is_no_model_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # an unreachable Hub would be asked again and again
    with pytest.raises(ValueError, match=r"'nowhere'.*mvd-s"):
        load_classifier("nowhere", 3)
    with pytest.raises(ValueError, match=r"'drop_path_rat'.*'drop_path_rate'"):
        load_classifier("mvd-s", 3, {"drop_path_rat": 0.1})
    for load in (load_trained_classifier, check_source):
        with pytest.raises(ValueError, match=rf"'{tmp_path}'.*model_type"):
            load(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"'vit'.*MVD and VideoMAE"):
        load_classifier(str(tmp_path), 3)


def test_an_encoder_that_is_not_whole_or_of_another_size_is_refused(config, tmp_path):
    model = MVDForFeatureDistillation(config)
    weights = {key: value for key, value in model.state_dict().items() if "layers.1.mlp" not in key}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(CheckpointMismatchError, match=r"missing: 4 .mvd\.layers\.1\.mlp"):
        load_classifier(str(tmp_path), 3)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointMismatchError, match="of another shape"):
        load_classifier(str(tmp_path), 3, {"hidden_size": 64, "intermediate_size": 256})


def test_the_processor_is_the_stored_one_or_follows_the_given_sampling(config, tmp_path):
    MVDForVideoClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="dense or uniform"):
        load_processor(str(tmp_path), config)
    assert load_processor(str(tmp_path), config, "uniform").sampling == "uniform"
    MVDVideoProcessor.for_model(config, sampling="uniform", frame_sampling_rate=3).save_pretrained(tmp_path)
    stored = load_processor(str(tmp_path), config)
    assert (stored.sampling, stored.frame_sampling_rate, stored.num_frames) == ("uniform", 3, 4)
    (tmp_path / "video_preprocessor_config.json").unlink()  # the file beside it does not say it
    with pytest.raises(ValueError, match=r"dense or uniform .*preprocessor_config\.json"):
        load_processor(str(tmp_path), config)


def test_a_videomae_of_transformers_gets_our_processor_with_its_normalisation(tmp_path):
    VideoMAEForVideoClassification(VideoMAEConfig(**VIDEOMAE)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.2, 0.3]}')
    processor = load_processor(str(tmp_path), VideoMAEConfig(**VIDEOMAE))
    assert list(processor.image_mean) == [0.5, 0.5, 0.5]
    assert list(processor.image_std) == [0.1, 0.2, 0.3]
    assert dict(processor.crop_size)["height"] == 32
    model, _ = load_classifier(str(tmp_path), 3)
    assert list(model.config.image_std) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"nothing", "weights of the model"),
        ("config.json", b'{"model_type": "mvd", "num_frames": []}', r"config\.json of the model .*num_frames"),
        ("config.json", b"[" * 100_000, "published size"),
    ],
)
def test_damaged_files_of_a_model_are_named(config, tmp_path, name, content, message):
    MVDForVideoClassification(config).save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_classifier(str(tmp_path), 2)


def test_a_model_of_clips_by_seconds_is_not_continued_with_a_stride(tmp_path, config):
    MVDVideoProcessor.for_model(config, fps=4).save_pretrained(tmp_path)
    source = str(tmp_path)
    with pytest.raises(ValueError, match="fps=4"):
        check_fps_of_source(source, MVDVideoProcessor())
    for other in (MVDVideoProcessor(fps=8), MVDVideoProcessor(sampling="uniform")):
        check_fps_of_source(source, other)
    check_fps_of_source("mvd-s", MVDVideoProcessor())
    MVDVideoProcessor.for_model(config).save_pretrained(tmp_path)
    check_fps_of_source(source, MVDVideoProcessor())
