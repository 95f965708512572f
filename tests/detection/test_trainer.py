"""The detection trainer: batch splits, sizes, unreadable videos, scores; and runs of the recipe on toy videos."""

import csv
import importlib.util
import json
import random
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from launching import ROOT, launch
from mvd_hf import (
    MVDConfig,
    MVDForActionDetection,
    MVDForFeatureDistillation,
    MVDForVideoClassification,
    MVDTrainingArguments,
)
from mvd_hf.data.hashing import hash_of_weights
from mvd_hf.data.toy import write_video
from mvd_hf.detection.ava import AVA_ACTIONS, SCORED_ACTIONS, ava_map, read_boxes
from mvd_hf.detection.key_frames import KeyFrames
from mvd_hf.detection.toy import ACTIONS, ToyDetectionSettings, make_toy_detection_dataset
from mvd_hf.detection.trainer import DetectionArguments, DetectionTrainer, detection_table, mean_grey
from mvd_hf.hub.results import measured_results
from mvd_hf.hub.run_record import read_run_record


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    settings = ToyDetectionSettings(num_train=8, num_validation=6, height=32, width=48)
    return make_toy_detection_dataset(tmp_path_factory.mktemp("toy") / "detection", settings)


def arguments(toy: Path, **fields) -> DetectionArguments:
    options = {
        "annotations": str(toy / "train.csv"),
        "videos": str(toy / "videos"),
        "eval_annotations": str(toy / "validation.csv"),
        "label_map": str(toy / "actions.pbtxt"),
        "stride": 2,
        "short_side": 32,
    }
    return DetectionArguments(**(options | fields))


CLASSES = {number - 1: name for number, name in ACTIONS.items()}


def config(**fields) -> MVDConfig:
    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32, "num_hidden_layers": 1}
    return MVDConfig(**(sizes | {"num_attention_heads": 2, "id2label": CLASSES} | fields))


def trainer(data: DetectionArguments, output, model=None, **fields) -> DetectionTrainer:
    torch.manual_seed(0)
    model = MVDForActionDetection(config(head_init_scale=50.0)) if model is None else model
    options = {
        "num_train_epochs": 2,
        "warmup_epochs": 1,
        "base_learning_rate": 0.05,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "dataloader_num_workers": 0,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = MVDTrainingArguments(output_dir=str(output), **(options | fields))
    return DetectionTrainer(
        model,
        args,
        data,
        train_dataset=data.training_set(model.config),
        eval_dataset=data.evaluation_set(model.config),
    )


def losses(done: DetectionTrainer) -> list[float]:
    return [entry["loss"] for entry in done.state.log_history if "loss" in entry]


# keys


def test_ava_s_actions_are_the_default(toy):
    data = arguments(toy, label_map=None)
    assert data.actions == AVA_ACTIONS
    assert tuple(data.scored) == SCORED_ACTIONS


def test_custom_actions_are_scored_unless_others_are_named(toy, tmp_path):
    data = arguments(toy)
    assert data.actions == data.scored == ACTIONS
    (tmp_path / "some.pbtxt").write_text('item { name: "rings" id: 4 } item { name: "up" id: 10 }')
    assert list(arguments(toy, scored_label_map=str(tmp_path / "some.pbtxt")).scored) == [4, 10]


def test_no_data_is_an_error(toy):
    for name in ("annotations", "videos"):
        with pytest.raises(ValueError, match=f"--{name}"):
            arguments(toy, **{name: ""})


def test_training_needs_square_crops_that_fit(toy):
    with pytest.raises(ValueError, match="square, the model wants 32x48"):
        arguments(toy).training_set(config(image_size=[32, 48]))
    with pytest.raises(ValueError, match="raise short_side"):
        arguments(toy, short_side=24).training_set(config())


def test_missing_videos_are_named_before_training(toy, tmp_path):
    with pytest.raises(ValueError, match=r"8 \(train_0000, train_0001, .*on_bad_video"):
        arguments(toy, videos=str(tmp_path)).training_set(config())
    skipping = arguments(toy, videos=str(tmp_path), on_bad_video="skip").training_set(config())
    assert skipping[0]["is_blank"]


def test_several_annotation_files_and_a_limit(toy):
    one = arguments(toy)
    both = arguments(toy, annotations=[one.annotations, one.eval_annotations])
    count = len(one.training_set(config()))
    assert len(both.training_set(config())) == count + len(one.evaluation_set(config()))
    assert len(arguments(toy, max_samples=3).training_set(config())) == 3
    assert len(arguments(toy, max_samples=3).evaluation_set(config())) > 3  # which would lower the score
    assert arguments(toy, eval_annotations=None).evaluation_set(config()) is None


def test_the_padding_is_what_the_normalization_makes_zero():
    assert mean_grey(config(image_mean=[0.481458, 0.454692, 0.403844])) == (123, 116, 103)
    assert mean_grey(config(image_mean=0.5)) == (128, 128, 128)


# training


def test_a_split_of_the_batch_changes_nothing(toy, tmp_path):
    runs = []
    for batch, accumulation in ((4, 1), (2, 2)):
        run = trainer(
            arguments(toy),
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        run.train()
        runs.append((losses(run), [parameter.detach().clone() for parameter in run.model.parameters()]))
    (one, weights), (two, others) = runs
    assert len(one) == 8
    np.testing.assert_allclose(one, two, rtol=1e-4)
    for weight, other in zip(weights, others, strict=True):
        torch.testing.assert_close(weight, other, atol=1e-5, rtol=1e-4)


def test_the_logged_loss_is_the_sum_over_people_per_clip(toy, tmp_path):
    data = arguments(toy)
    run = trainer(data, tmp_path)
    samples = [run.train_dataset[i] for i in range(4)]
    batch = run.data_collator(samples)
    run.model.eval()
    inputs = {name: value for name, value in batch.items() if name != "key_frame"}
    people = run.model(**inputs).loss
    assert run.compute_loss(run.model, batch).item() == pytest.approx(people.item() / 4)


def test_unreadable_videos_are_left_out_of_training_and_count_as_missed(toy, tmp_path):
    rows = list(csv.reader((toy / "validation.csv").open()))
    broken = tmp_path / "broken.csv"
    with broken.open("w", newline="") as file:
        csv.writer(file).writerows([*rows, ("gone", 1, 0.1, 0.1, 0.4, 0.4, 1)])
    run = trainer(arguments(toy, eval_annotations=str(broken)), tmp_path)
    metrics = run.evaluate()
    assert metrics["eval_missing"] == 1
    whole = trainer(arguments(toy), tmp_path).evaluate()
    assert "eval_missing" not in whole
    assert metrics["eval_mAP"] < whole["eval_mAP"]


# evaluation


def test_evaluation_scores_what_it_wrote(toy, tmp_path):
    data = arguments(toy, boxes=str(toy / "validation_boxes.csv"))
    run = trainer(data, tmp_path)
    metrics = run.evaluate()
    assert "eval_loss" not in metrics  # a detector's boxes have no labels
    saved = run.save_evaluation()
    assert saved["mAP"] == metrics["eval_mAP"]
    assert saved["protocol"] == "4x2"
    assert (saved["missing"], saved["num_key_frames"]) == (0, len(run.eval_dataset))
    folder = tmp_path / "evaluation"
    assert json.loads((folder / "metrics.json").read_text()) == saved
    assert saved["weights"] == hash_of_weights(run.model.state_dict())
    result = ava_map(data.eval_annotations, folder / "detections.csv", label_map=data.label_map)
    assert result["mAP"] == pytest.approx(metrics["eval_mAP"], abs=1e-12)
    table = pd.read_csv(folder / "average_precision.csv")
    assert table["name"].tolist() == list(ACTIONS.values())
    expected = [value for value in result["AP"].values() if value is not None]
    assert table["average_precision"].dropna().tolist() == pytest.approx(expected)


def test_annotated_boxes_have_a_loss_and_an_all_knowing_model_the_full_score(toy, tmp_path):
    run = trainer(arguments(toy), tmp_path)
    assert run.evaluate()["eval_loss"] > 0
    key_frames = run.eval_dataset.rows
    found = [
        (np.full(len(frame.boxes), frame.number), frame.labels.numpy())
        for frame in map(key_frames.__getitem__, range(len(key_frames)))
    ]
    random.Random(0).shuffle(found)  # batches come in any order
    assert run.score(found, key_frames, "hash")["mAP"] == 1
    with pytest.raises(RuntimeError, match="evaluated more than once"):
        run.score([*found, found[0]], key_frames, "hash")
    assert run.score([], key_frames, "hash")["mAP"] == 0


def test_scores_are_those_of_the_action_times_the_person():
    people = pd.DataFrame(
        [("a", 1.0, 0, 0, 0.5, 1, 0.9), ("a", 1.0, 0.5, 0, 1, 1, 0.8), ("b", 2.5, 0, 0, 1, 1, 1.0)],
        columns=["video", "timestamp", "x1", "y1", "x2", "y2", "score"],
    )
    frames = KeyFrames.of_people(people)
    probabilities = np.array([[0.5, 0.1, 0.4], [0.2, 0.9, 0.7], [0.3, 0.6, 0.2]])
    table = detection_table(frames, np.array([0, 1, 2]), probabilities, {1: "x", 3: "y", 9: "unknown"}, top_k=3)
    assert table["video"].tolist() == ["a", "a", "a", "b", "b"]
    assert table["timestamp"].tolist() == [1, 1, 1, 2.5, 2.5]
    assert table["action"].tolist() == [3, 1, 3, 1, 3]
    np.testing.assert_allclose(table["score"], [0.56, 0.45, 0.36, 0.3, 0.2])
    assert table["x1"].tolist() == [0.5, 0, 0, 0, 0]
    everything = detection_table(frames, np.array([1, 2]), probabilities[1:], {1: "x", 2: "z"}, top_k=0)
    assert everything["action"].tolist() == [2, 1, 2, 1]


def test_a_prediction_does_not_depend_on_what_is_beside_it(toy, tmp_path):
    """Videos of another size in the evaluation change nothing for the others."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in (toy / "videos").glob("validation*"):
        (videos / path.name).symlink_to(path)
    rows = list(csv.reader((toy / "validation.csv").open()))
    wide = np.random.default_rng(0).integers(0, 255, (24, 32, 80, 3), dtype=np.uint8)
    mixed = []
    for number, row in enumerate(rows):
        mixed.append(row)
        if number % 3 == 0:
            write_video(videos / f"wide_{number}.mp4", wide, fps=8)
            mixed.append((f"wide_{number}", 1, 0.2, 0.2, 0.6, 0.6, 1 + number % 8))
    path = tmp_path / "mixed.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(mixed)
    tables = []
    for data in (arguments(toy), arguments(toy, eval_annotations=str(path), eval_videos=str(videos))):
        run = trainer(data, tmp_path)
        run.evaluate()
        tables.append(run.evaluation["detections"])
    alone, among = (table[~table["video"].str.startswith("wide")].reset_index(drop=True) for table in tables)
    assert len(tables[1]) > len(among) == len(alone)
    order = ["video", "timestamp", "x1", "action"]
    alone, among = (table.sort_values(order).reset_index(drop=True) for table in (alone, among))
    pd.testing.assert_frame_equal(alone, among, atol=1e-5)


def test_no_detector_s_box_is_dropped_or_doubled(toy, tmp_path):
    data = arguments(toy, boxes=str(toy / "validation_boxes.csv"), top_k=0)
    run = trainer(data, tmp_path, per_device_eval_batch_size=5)
    run.evaluate()
    table = run.evaluation["detections"]
    assert len(table) == len(run.eval_dataset.rows.boxes) * 8
    assert not table.duplicated(["video", "timestamp", "x1", "y1", "x2", "y2", "action"]).any()


# the recipe


@pytest.fixture(scope="module")
def recipe():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("detect_recipe", ROOT / "recipes" / "detect.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_recipe_starts_from_a_student_a_classifier_and_a_detector(recipe, toy, tmp_path):
    data, sizes = arguments(toy), {"drop_path_rate": 0.3, "decoder_hidden_size": 32, "decoder_num_attention_heads": 2}
    models = {
        "student": MVDForFeatureDistillation(config(**sizes)),
        "classifier": MVDForVideoClassification(config(**sizes)),
        "detector": MVDForActionDetection(config(**sizes)),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        norm = "fc_norm" if name == "classifier" else "checkpoint"
        keys = recipe.DetectorArguments(str(tmp_path / name), {"drop_path_rate": 0.1, "image_std": 0.225}, norm)
        detector = recipe.load_model(keys, data)
        assert (detector.config.drop_path_rate, detector.config.image_std) == (0.1, 0.225)
        assert detector.config.id2label == CLASSES
        assert detector.config.label2id["rings"] == 3
        for key, value in model.mvd.state_dict().items():
            assert torch.equal(detector.mvd.state_dict()[key], value), (name, key)
        expected = 1 / (255 * 0.225)
        assert detector.mvd.embeddings.projection.byte_scale.flatten()[0].item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="from_classifier"):
        recipe.load_model(recipe.DetectorArguments(str(tmp_path / "classifier")), data)


def test_the_recipe_makes_a_new_network_of_a_published_size(recipe, toy):
    sizes = {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    detector = recipe.load_model(recipe.DetectorArguments("mvd-b", sizes), arguments(toy))
    assert (detector.config.num_labels, detector.config.drop_path_rate) == (8, 0.1)
    with pytest.raises(ValueError, match="give --model"):
        recipe.load_model(recipe.DetectorArguments(), arguments(toy))


def label_map(path: Path, names: list[str]) -> str:
    """A label map file."""
    path.write_text("".join(f'item {{ name: "{name}" id: {number} }}\n' for number, name in enumerate(names, 1)))
    return str(path)


def test_a_detector_scores_the_same_with_the_classes_in_another_order(recipe, toy, tmp_path):
    MVDForActionDetection(config(head_init_scale=50.0)).save_pretrained(tmp_path / "detector")
    order = list(ACTIONS.values())[::-1]
    table = read_boxes(toy / "validation.csv")
    renumbered = table.assign(action=[order.index(ACTIONS[int(a)]) + 1 if a == a else a for a in table["action"]])
    renumbered.drop(columns="score").to_csv(tmp_path / "validation.csv", header=False, index=False)
    other = arguments(
        toy,
        eval_annotations=str(tmp_path / "validation.csv"),
        label_map=label_map(tmp_path / "order.pbtxt", order),
    )
    found = []
    for data in (arguments(toy), other):
        model = recipe.load_model(recipe.DetectorArguments(str(tmp_path / "detector"), evaluate_only=True), data)
        found.append(trainer(data, tmp_path, model).evaluate())
    assert 0 < found[0]["eval_mAP"] == pytest.approx(found[1]["eval_mAP"], abs=1e-12)
    with pytest.raises(ValueError, match=r"class id 1 is 'moves up' .* 'plain'|load_detector"):
        trainer(other, tmp_path, MVDForActionDetection(config()))


def test_a_new_head_is_not_evaluated(recipe, toy, tmp_path):
    MVDForActionDetection(config()).save_pretrained(tmp_path / "detector")
    data = arguments(toy, label_map=label_map(tmp_path / "other.pbtxt", [f"other {i}" for i in range(8)]))
    keys = recipe.DetectorArguments(str(tmp_path / "detector"), evaluate_only=True)
    with pytest.raises(ValueError, match=r"other 0, .*--label_map"):
        recipe.load_model(keys, data)


def test_several_evaluation_sets_are_refused(toy, tmp_path):
    args, sets = MVDTrainingArguments(output_dir=str(tmp_path), use_cpu=True), {"near": None, "far": None}
    with pytest.raises(ValueError, match=r"near, far.*eval_annotations"):
        DetectionTrainer(MVDForActionDetection(config()), args, arguments(toy), eval_dataset=sets)


def test_nothing_to_evaluate_on_says_so(toy, tmp_path):
    with pytest.raises(ValueError, match="give eval_annotations"):
        trainer(arguments(toy, eval_annotations=None), tmp_path).run_evaluation()


# real runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with toy data, a recipe, and the detector that it trained."""
    folder = tmp_path_factory.mktemp("detect")
    settings = ToyDetectionSettings(num_train=80, num_validation=30, height=48, width=60, max_shapes=2)
    data = make_toy_detection_dataset(folder / "data", settings)
    recipe = yaml.safe_load((ROOT / "recipes" / "tiny" / "detect.yaml").read_text())
    recipe["config"] |= {"image_size": 48, "num_hidden_layers": 2}
    recipe |= {
        "annotations": str(data / "train.csv"),
        "videos": str(data / "videos"),
        "eval_annotations": str(data / "validation.csv"),
        "boxes": str(data / "validation_boxes.csv"),
        "label_map": str(data / "actions.pbtxt"),
        "short_side": 48,
        "color_jitter": 0.0,
        "num_train_epochs": 24,
        "base_learning_rate": 0.05,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
    }
    (folder / "detect.yaml").write_text(yaml.safe_dump(recipe))
    detect(folder)
    return folder


def detect(folder: Path, *options: str, output: str = "detector", processes: int = 1) -> dict:
    """Run the recipe; gives its metrics."""
    launch("detect.py", folder / "detect.yaml", *options, processes=processes, output_dir=folder / output)
    return json.loads((folder / output / "evaluation" / "metrics.json").read_text())


@pytest.mark.slow
def test_a_detector_learns_what_people_do(trained):
    metrics = json.loads((trained / "detector" / "evaluation" / "metrics.json").read_text())
    assert metrics["mAP"] > 0.4  # a quarter is chance
    assert (trained / "detector" / "video_preprocessor_config.json").exists()
    assert read_run_record(trained / "detector")["recipe"]["annotations"] == "train.csv"
    (result,) = measured_results(trained / "detector", "toy")
    assert result.metrics == {"mAP": pytest.approx(100 * metrics["mAP"])}
    assert MVDForActionDetection.from_pretrained(trained / "detector").config.id2label[0] == ACTIONS[1]


@pytest.mark.slow
def test_shuffled_boxes_give_nothing(trained):
    rows = list(csv.reader((trained / "data" / "validation_boxes.csv").open()))
    places = [row[2:6] for row in rows]
    random.Random(0).shuffle(places)
    with (trained / "shuffled.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*row[:2], *place, *row[6:]] for row, place in zip(rows, places, strict=True))
    options = ("--evaluate_only", f"--model={trained / 'detector'}", f"--boxes={trained / 'shuffled.csv'}")
    assert detect(trained, *options, output="shuffled")["mAP"] < 0.06


@pytest.mark.slow
def test_two_processes_score_as_one(trained):
    options = ("--evaluate_only", f"--model={trained / 'detector'}", "--per_device_eval_batch_size=3")
    metrics = detect(trained, *options, output="two", processes=2)
    single = json.loads((trained / "detector" / "evaluation" / "metrics.json").read_text())
    assert metrics["mAP"] == pytest.approx(single["mAP"], abs=1e-9)
    one, two = (
        read_boxes(folder / "evaluation" / "detections.csv").sort_values(["video", "timestamp", "x1", "action"])
        for folder in (trained / "detector", trained / "two")
    )
    pd.testing.assert_frame_equal(one.reset_index(drop=True), two.reset_index(drop=True), atol=1e-5)
