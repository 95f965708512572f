"""Cards: everything that is recorded in the folder, nothing else, and metadata that the Hub understands."""

import json
import re
from pathlib import Path

import pytest
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
from mvd_hf.data.hashing import hash_of_checkpoint
from mvd_hf.hub import cards
from mvd_hf.hub.cards import (
    CONVERSION_NAME,
    CardDetails,
    describe_sampling,
    read_shapes,
    read_stored_processor,
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


def record(folder: Path, **changes):
    (folder / RUN_RECORD_NAME).write_text(json.dumps(RUN | changes))


def card_of(folder: Path, details: CardDetails = MIT, snippet: Snippet = SNIPPET, **options) -> ModelCard:
    card = render_card(folder, "me/tiny", details, snippet, **options)
    again = ModelCard(str(card))  # a broken model-index would be dropped on reading
    assert again.data.to_dict() == card.data.to_dict()
    assert str(render_card(folder, "me/tiny", details, snippet, **options)) == str(card)
    assert not re.search(r"\{\{|\{%|None|\n\n\n", str(card))
    return again


def test_a_plain_checkpoint_has_a_card_without_any_number_of_results(folder):
    card = card_of(folder)
    data = card.data.to_dict()
    assert (data["license"], data["library_name"]) == ("mit", "transformers")
    assert {"mvd", "video"} <= set(data["tags"])
    assert not {"model-index", "base_model", "datasets", "widget", "metrics"} & set(data)
    parameters = sum(parameter.numel() for parameter in MVDForVideoClassification.from_pretrained(folder).parameters())
    expected = (f"{parameters:,} parameters, 6 classes", "# tiny\n", "```python\nsnippet()\n```", "## Limits and bias")
    for text in (*expected, "```\nwhat it printed\n```", "under mit.", "@inproceedings{wang2023masked"):
        assert text in card.text
    for text in ("## Results", "top-1", "hours", "reported by"):
        assert text not in card.text


def test_a_run_is_shown_with_its_recipe_and_source_models(folder):
    record(folder)
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
    assert re.search(r"^- mae-b \(image\) .*cc-by-nc-4\.0", card.text, re.MULTILINE)
    assert re.search(r"^- .*me/videomae \(video\)", card.text, re.MULTILINE)


def test_a_run_without_steps_has_no_rows_for_them(folder):
    run = {key: value for key, value in RUN.items() if key not in ("steps", "epochs", "effective_batch", "evaluation")}
    run |= {"is_average": True, "training": {"L2 penalty": 1e-4}}
    del run["learning_rate"]
    (folder / RUN_RECORD_NAME).write_text(json.dumps(run))
    table = card_of(folder).text.partition("| data |")[2].partition("\n\n")[0]
    rows = ["weights", "hardware", "time", "last logged in training", "versions"]
    assert re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE) == rows
    assert "| L2 penalty 0.0001 |" in table


def test_an_action_detector_has_its_task_and_average_precision(tmp_path):
    folder = save(tmp_path / "detector", MVDForActionDetection)
    recipe = {"model": "me/student", "annotations": ["ava_train.csv", "own.csv"], "eval_annotations": "ava_val.csv"}
    record(folder, recipe=recipe)
    (folder / METRICS_NAME).parent.mkdir()
    metrics = {"protocol": "16x4", "num_key_frames": 50, "missing": 2, "mAP": 0.3125, "loss": 0.1}
    (folder / METRICS_NAME).write_text(json.dumps(metrics | {"weights": hash_of_checkpoint(folder)}))
    card = card_of(folder)
    assert card.data.pipeline_tag == "video-classification"
    assert snippet_kind(folder) == "detector"
    assert "| data | ava_train.csv, own.csv: 1,234 key frames |" in card.text
    assert re.search(r"\| ava_val.csv \| 16 frames with stride 4 \| mAP \| 31.25 \| .*50 key frames; 2 ", card.text)
    (result,) = card.data.eval_results
    assert (result.task_name, result.metric_type, result.metric_value) == ("Action detection", "mAP", 31.25)


def test_the_base_model_is_named_unless_it_is_a_local_folder(folder):
    record(folder, sources={"base": {"model": "student", "is_local": True}})
    assert "base_model" not in card_of(folder).data.to_dict()
    record(folder, sources={"base": {"model": "me/student", "is_local": False}})
    data = card_of(folder).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("me/student", "finetune")
    assert card_of(folder, CardDetails(license="mit", base_model="me/published")).data.base_model == "me/published"


def test_measured_results_have_their_protocol_and_data_set(folder):
    write_metrics(folder)
    record(folder)
    card = card_of(folder, CardDetails(license="mit", evaluated_on="Kinetics-400"))
    row = "| Kinetics-400 | 16 frames x 5 clips x 3 crops | top-1 of videos | 51.25 | measured on 100 videos |"
    assert row in card.text
    assert "reported by" not in card.text
    result = next(result for result in card.data.eval_results if result.metric_name == "top-1 of videos")
    assert (result.metric_value, result.dataset_config) == (51.25, "16 frames x 5 clips x 3 crops")
    assert "| me/clips | 16 frames" in card_of(folder).text  # by default as in the recipe


def test_reported_results_are_marked_everywhere(folder):
    reported = [{"dataset": "Kinetics-400", "protocol": "16x5x3", "top-1": 83.4}]
    card = card_of(folder, CardDetails(license="mit", reported=reported))
    assert "| 83.4 | *reported by the authors* |" in card.text
    (result,) = card.data.eval_results
    assert result.source_name == "reported by the authors"
    assert all("reported by the authors" in line for line in str(card).splitlines() if "| 83.4" in line)


def test_converted_weights_name_paper_file_and_license(tmp_path):
    folder = save(tmp_path, MVDForPixelReconstruction)
    (folder / CONVERSION_NAME).write_text(json.dumps(CONVERSION))
    text = card_of(folder, CardDetails(license="cc-by-nc-4.0")).text
    for part in ("[VideoMAE](https://arxiv.org/abs/2203.12602)", f"`{'0' * 64}`", "authors and under cc-by-nc-4.0"):
        assert part in text
    assert text.index("tong2022videomae") < text.index("wang2023masked")


def test_details_figures_and_example_are_shown(folder):
    (folder / "figures").mkdir()
    for name in ("masks.png", "notes.txt"):
        (folder / "figures" / name).touch()
    (folder / EXAMPLE_NAME).touch()
    license = {"license": "other", "license_name": "Our terms", "license_link": "https://example.org/terms"}
    card = card_of(folder, CardDetails(**license, title="A tiny model", tags=["toy"]))
    data = card.data.to_dict()
    assert {key: data[key] for key in license} == license
    assert "toy" in data["tags"]
    assert data["widget"][0]["src"] == "https://huggingface.co/me/tiny/resolve/main/example.mp4"
    for part in (
        "# A tiny model\n",
        "![figures/masks.png](figures/masks.png)",
        "[Our terms](https://example.org/terms)",
    ):
        assert part in card.text
    assert "notes.txt" not in card.text


def test_a_snippet_that_was_not_run_has_no_output(folder):
    assert "Its output" not in card_of(folder, snippet=Snippet("snippet()\n")).text


def test_every_model_class_has_a_snippet_a_task_and_a_sentence(tmp_path):
    cases = {
        MVDForVideoClassification: ("classifier", "video-classification", "video classifier"),
        MVDForFeatureDistillation: ("encoder", "feature-extraction", "`image` (width 768) and `video` (width 768)"),
        MVDForPixelReconstruction: ("encoder", "feature-extraction", "masked autoencoder"),
        MVDModel: ("encoder", "feature-extraction", "video encoder"),
    }
    for kind, (snippet, task, words) in cases.items():
        folder = save(tmp_path / kind.__name__, kind)
        assert snippet_kind(folder) == snippet
        card = card_of(folder)
        assert card.data.pipeline_tag == task
        assert words in card.text
    MVDModel(MVDConfig(**TINY), add_final_norm=False).save_pretrained(tmp_path)
    assert snippet_kind(tmp_path) == "encoder without final norm"


def test_shapes_of_several_files(tmp_path):
    model = MVDForVideoClassification(MVDConfig(**TINY))
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert read_shapes(tmp_path) == {name: list(value.shape) for name, value in model.state_dict().items()}


def test_inputs_and_samplings_in_words():
    config = MVDConfig(**(TINY | {"num_frames": 1, "tubelet_size": 1}))
    assert "images of 16 x 16 pixels; 7 parameters" in summarise(config, "MVDModel", 7)
    assert "middle frame" in describe_sampling(MVDVideoProcessor(num_frames=1), "MVDModel")
    assert "0, 4, 8, ... of a clip of 64" in describe_sampling(MVDVideoProcessor(), "MVDModel")
    assert "4 per second, of a clip of 4 seconds" in describe_sampling(MVDVideoProcessor(fps=4), "MVDModel")
    assert "16 equal parts" in describe_sampling(MVDVideoProcessor(sampling="uniform"), "MVDModel")
    of_detector = describe_sampling(MVDVideoProcessor.for_detection(MVDConfig()), "MVDForActionDetection")
    assert "16 frames as in training, 4 frames apart" in of_detector
    assert "256 pixels" in of_detector


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="license="):
        card_of(folder, CardDetails())
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        read_shapes(tmp_path)
    (folder / "video_preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"video_preprocessor_config\.json.*MVDVideoProcessor\.for_model"):
        read_stored_processor(folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["SomethingElse"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="SomethingElse"):
        snippet_kind(folder)


def test_writing_runs_the_snippet_and_warns_of_stricter_licenses(folder, monkeypatch, caplog):
    record(folder)
    seen = []
    monkeypatch.setattr(cards, "execute_snippet", lambda *args: seen.append(args) or SNIPPET)
    (warning,) = write_card(folder, "me/tiny", MIT, with_code=True)
    assert seen == [(folder, "me/tiny", "classifier", True)]
    assert "mae-b (image)" in warning
    assert warning in caplog.text
    assert "what it printed" in (folder / "README.md").read_text()
    assert write_card(folder, "me/tiny", CardDetails(license="cc-by-nc-4.0")) == []
