"""Cards: everything that the folder tells, nothing that it does not, and heads that the Hub understands."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from checkpoints import RUN, TINY, save, write_metrics
from mvd_hf import (
    MVDConfig,
    MVDForActionDetection,
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDModel,
    MVDVideoProcessor,
)
from mvd_hf.data.hashing import digest_of_checkpoint
from mvd_hf.hub import cards
from mvd_hf.hub.cards import (
    CONVERSION_NAME,
    CardDetails,
    describe_sampling,
    load_processor,
    read_shapes,
    render_card,
    snippet_kind,
    summarise,
    write_card,
)
from mvd_hf.hub.licenses import SourceModel
from mvd_hf.hub.results import METRICS_NAME
from mvd_hf.hub.run_record import RUN_RECORD_NAME
from mvd_hf.hub.snippets import EXAMPLE_NAME, Snippet

MIT = CardDetails(license="mit")
SNIPPET = Snippet("snippet()\n", True, "what it printed\n", "a video")
CONVERSION = {"title": "VideoMAE", "arxiv": "2203.12602", "file": "videomae.pth", "sha256": "0" * 64}


@pytest.fixture
def folder(tmp_path) -> Path:
    return save(tmp_path / "model")


def card_of(folder: Path, details: CardDetails = MIT, snippet: Snippet = SNIPPET, **options) -> ModelCard:
    card = render_card(folder, "me/tiny", details, snippet, **options)
    again = ModelCard(str(card))  # a broken model-index would be dropped on reading
    assert again.data.to_dict() == card.data.to_dict()
    assert not re.search(r"\{\{|\{%|None|\n\n\n", str(card))
    return again


def test_a_plain_checkpoint(folder):
    card = card_of(folder)
    data = card.data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "mit",
        "transformers",
        "video-classification",
    )
    assert {"mvd", "video"} <= set(data["tags"])
    assert not {"model-index", "base_model", "datasets", "widget", "metrics"} & set(data)
    parameters = sum(parameter.numel() for parameter in MVDForVideoClassification.from_pretrained(folder).parameters())
    assert f"{parameters:,} parameters, 6 classes" in card.text
    assert "# tiny\n" in card.text
    assert "```python\nsnippet()\n```" in card.text
    assert "```\nwhat it printed\n```" in card.text
    assert "Nothing is recorded of how these weights were made." in card.text
    assert "The weights are under mit." in card.text
    assert "@inproceedings{wang2023masked" in card.text
    assert "## Limits and bias" in card.text
    assert "## Results" not in card.text


def test_a_card_claims_no_number_that_nobody_measured(folder):
    without = card_of(folder).text
    assert "top-1" not in without
    assert "hours" not in without
    assert "reported by" not in without


def test_what_the_run_recorded(folder):
    (folder / RUN_RECORD_NAME).write_text(json.dumps(RUN))
    sources = [SourceModel("image", "mae-b", True, "cc-by-nc-4.0"), SourceModel("video", "me/videomae", False, None)]
    card = card_of(folder, sources=sources)
    assert card.data.to_dict()["datasets"] == ["me/clips"]
    for row in (
        "| data | me/clips: 1,234 videos |",
        "| length | 20 epochs, 380 steps |",
        "| effective batch | 64 clips |",
        "| hardware | 8 x NVIDIA H100, bf16 |",
        "| time | 1.50 hours, 12.00 device hours |",
        "| last logged in training | loss 0.1235, loss_image 0.1 |",
        "| on held-out videos, after training | eval_loss 0.2346 |",
        "| versions | python 3.11, torch 2.14 |",
        "| image | mae-b | cc-by-nc-4.0 |",
        "| video | [me/videomae](https://huggingface.co/me/videomae) | not known |",
    ):
        assert row in card.text
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1]) == RUN["recipe"]
    assert "- mae-b (image) is under cc-by-nc-4.0 (no commercial use), which is stricter than mit." in card.text
    assert "- The license of me/videomae (video) is not known" in card.text


def test_a_run_without_steps_of_a_trainer(folder):
    run = {key: value for key, value in RUN.items() if key not in ("steps", "epochs", "effective_batch", "evaluation")}
    run |= {"is_average": True, "training": {"L2 penalty": 1e-4}}
    del run["learning_rate"]
    (folder / RUN_RECORD_NAME).write_text(json.dumps(run))
    text = card_of(folder).text
    assert "| data | me/clips: 1,234 videos |\n| weights | moving average over the steps |\n| hardware" in text
    assert "| last logged in training | L2 penalty 0.0001 |\n| versions" in text


def test_an_action_detector(tmp_path):
    folder = save(tmp_path / "detector", MVDForActionDetection)
    recipe = {"model": "me/student", "annotations": ["ava_train.csv", "own.csv"], "eval_annotations": "ava_val.csv"}
    (folder / RUN_RECORD_NAME).write_text(json.dumps(RUN | {"recipe": recipe}))
    (folder / METRICS_NAME).parent.mkdir()
    metrics = {"protocol": "16x4", "num_key_frames": 50, "missing": 2, "mAP": 0.3125, "loss": 0.1}
    (folder / METRICS_NAME).write_text(json.dumps(metrics | {"weights": digest_of_checkpoint(folder)}))
    card = card_of(folder)
    assert card.data.pipeline_tag == "video-classification"
    assert snippet_kind(folder) == "detector"
    assert "A detector of the actions of each person" in card.text
    assert "| data | ava_train.csv, own.csv: 1,234 key frames |" in card.text
    remark = "measured on 50 key frames; 2 could not be read and count as not found"
    assert f"| ava_val.csv | 16 frames at a distance of 4 | mAP | 31.25 | {remark} |" in card.text
    (result,) = card.data.eval_results
    assert (result.task_name, result.metric_type, result.metric_value) == ("Action detection", "mAP", 31.25)


@pytest.mark.parametrize("is_local", [True, False])
def test_the_model_that_was_fine_tuned(folder, is_local):
    base = {"model": "me/student", "is_local": is_local}
    (folder / RUN_RECORD_NAME).write_text(json.dumps(RUN | {"sources": {"base": base}}))
    data = card_of(folder).data.to_dict()
    assert ("base_model" in data) != is_local  # a folder of somebody's machine is no base model
    if not is_local:
        assert (data["base_model"], data["base_model_relation"]) == ("me/student", "finetune")
    named = card_of(folder, CardDetails(license="mit", base_model="me/published")).data
    assert named.base_model == "me/published"


def test_measured_results_name_their_protocol(folder):
    write_metrics(folder)
    (folder / RUN_RECORD_NAME).write_text(json.dumps(RUN))
    card = card_of(folder, CardDetails(license="mit", evaluated_on="Kinetics-400"))
    row = "| Kinetics-400 | 16 frames x 5 clips x 3 crops | top-1 of videos | 51.25 | measured on 100 videos |"
    assert row in card.text
    assert "*reported by the authors* means" not in card.text
    result = next(result for result in card.data.eval_results if result.metric_name == "top-1 of videos")
    assert (result.metric_value, result.dataset_config) == (51.25, "16 frames x 5 clips x 3 crops")
    assert "| me/clips | 16 frames" in card_of(folder).text  # as the recipe calls it


def test_reported_results_are_marked_everywhere(folder):
    reported = [{"dataset": "Kinetics-400", "protocol": "16x5x3", "top-1": 83.4}]
    card = card_of(folder, CardDetails(license="mit", reported=reported))
    assert "| 83.4 | *reported by the authors* |" in card.text
    assert "we have neither measured nor reproduced it" in card.text
    (result,) = card.data.eval_results
    assert result.source_name == "reported by the authors"
    assert all("reported by the authors" in line for line in str(card).splitlines() if "| 83.4" in line)


def test_converted_weights(tmp_path):
    folder = save(tmp_path, MVDForPixelReconstruction)
    (folder / CONVERSION_NAME).write_text(json.dumps(CONVERSION))
    text = card_of(folder, CardDetails(license="cc-by-nc-4.0")).text
    assert "The weights are those of [VideoMAE](https://arxiv.org/abs/2203.12602), converted" in text
    assert f"SHA-256 of the file: `{'0' * 64}`" in text
    assert "The weights are the authors', and under cc-by-nc-4.0." in text
    assert text.index("tong2022videomae") < text.index("wang2023masked")


def test_details(folder):
    (folder / "pictures").mkdir()
    for name in ("masks.png", "notes.txt"):
        (folder / "pictures" / name).touch()
    (folder / EXAMPLE_NAME).touch()
    details = CardDetails(
        license="other",
        license_name="Our terms",
        license_link="https://example.org/terms",
        title="A tiny model",
        base_model="me/student",
        tags=["toy"],
    )
    card = card_of(folder, details)
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("me/student", "finetune")
    assert (data["license_name"], data["license_link"]) == ("Our terms", "https://example.org/terms")
    assert "toy" in data["tags"]
    assert data["widget"] == [
        {"src": "https://huggingface.co/me/tiny/resolve/main/example.mp4", "example_title": "An example"}
    ]
    assert "# A tiny model\n" in card.text
    assert "![pictures/masks.png](pictures/masks.png)" in card.text
    assert "notes.txt" not in card.text
    assert "The weights are under [Our terms](https://example.org/terms)." in card.text


def test_snippets_that_were_not_executed_do_not_say_so(folder):
    text = card_of(folder, snippet=Snippet("snippet()\n")).text
    assert "executed" not in text
    assert "no code lies beside the weights" in text


@pytest.mark.parametrize(
    ("kind", "options", "snippet", "words"),
    [
        (MVDForVideoClassification, {}, "classifier", "A classifier of videos"),
        (MVDForFeatureDistillation, {}, "encoder", "the teachers `image` (width 768) and `video` (width 768)"),
        (MVDForPixelReconstruction, {}, "encoder", "A masked autoencoder"),
        (MVDModel, {}, "encoder", "An encoder in the manner of"),
    ],
)
def test_every_kind_of_model(kind, options, snippet, words, tmp_path):
    folder = save(tmp_path, kind, **options)
    assert snippet_kind(folder) == snippet
    card = card_of(folder)
    assert words in card.text
    expected = "video-classification" if snippet == "classifier" else "feature-extraction"
    assert card.data.pipeline_tag == expected


def test_an_encoder_without_final_norm_says_so(tmp_path):
    model = MVDModel(MVDConfig(**TINY), add_final_norm=False)
    model.save_pretrained(tmp_path)
    assert snippet_kind(tmp_path) == "encoder without final norm"


def test_shapes_of_several_files(tmp_path):
    model = MVDForVideoClassification(MVDConfig(**TINY))
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert read_shapes(tmp_path) == {name: list(value.shape) for name, value in model.state_dict().items()}


def test_images_and_samplings_in_words():
    config = MVDConfig(**(TINY | {"num_frames": 1, "tubelet_size": 1}))
    assert "for images of 16 x 16 pixels; 7 parameters" in summarise(config, "MVDModel", 7)
    assert describe_sampling(MVDVideoProcessor(num_frames=1), "MVDModel") == "Its middle frame is taken."
    assert "0, 4, 8, ... of a clip of 64 in the middle" in describe_sampling(MVDVideoProcessor(), "MVDModel")
    assert "middles of 16 equal parts" in describe_sampling(MVDVideoProcessor(sampling="uniform"), "MVDModel")
    told = describe_sampling(MVDVideoProcessor.for_detection(MVDConfig()), "MVDForActionDetection")
    assert "16 frames are taken as in training, at a distance of 4 around that of the people" in told
    assert "their short side is resized to 256 pixels" in told


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="license="):
        card_of(folder, CardDetails())
    with pytest.raises(ValueError, match="There are no weights"):
        read_shapes(tmp_path)
    (folder / "video_preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no video_preprocessor_config\.json.*MVDVideoProcessor\.for_model"):
        load_processor(folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["SomethingElse"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="No card can be written for a checkpoint of SomethingElse"):
        snippet_kind(folder)


def test_writing_runs_the_snippet_and_warns_of_stricter_licenses(folder, monkeypatch, caplog):
    (folder / RUN_RECORD_NAME).write_text(json.dumps(RUN))
    seen = []
    monkeypatch.setattr(cards, "execute_snippet", lambda *args: seen.append(args) or SNIPPET)
    warnings = write_card(folder, "me/tiny", MIT, with_code=True)
    assert seen == [(folder, "me/tiny", "classifier", True)]
    assert warnings == ["mae-b (image) is under cc-by-nc-4.0 (no commercial use), which is stricter than mit."]
    assert warnings[0] in caplog.text
    assert "what it printed" in (folder / "README.md").read_text()
    assert write_card(folder, "me/tiny", CardDetails(license="cc-by-nc-4.0")) == []


def test_cards_are_the_same_each_time(folder):
    torch.manual_seed(0)
    assert str(card_of(folder)) == str(card_of(folder))
