"""FinetuningTrainer: mixup, EMA, accuracies, best and last models, adapters, exact resume."""

import json
import logging
import re

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch.utils.data import default_collate

from mvd_hf import FinetuningArguments, FinetuningTrainer, MVDConfig, MVDForVideoClassification, MVDVideoProcessor
from mvd_hf.data.arguments import DataArguments, FinetuningClipArguments, finetuning_clips
from mvd_hf.data.mixup import Mixup
from mvd_hf.data.sources import load_rows
from mvd_hf.data.toy import APPEARANCES
from mvd_hf.finetuning.trainer import copy_on_cpu
from mvd_hf.hub.run_record import read_run_record
from tiny_models import TINY, assert_same_weights

NAMES = list(APPEARANCES)
LABELS = {"label_column": "appearance", "label_names": NAMES, "sampling": "dense", "flip": 0.5}


def arguments(folder, **overrides) -> FinetuningArguments:
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "num_train_epochs": 2,
        "warmup_epochs": 0,
        "base_learning_rate": 0.05,
    }
    return FinetuningArguments(**(options | overrides))


def small(**fields) -> MVDForVideoClassification:
    torch.manual_seed(0)
    config = MVDConfig.from_name("mvd-b", **TINY, num_frames=4, id2label=dict(enumerate(NAMES)), **fields)
    return MVDForVideoClassification(config)


@pytest.fixture(scope="module")
def data(toy_folder) -> DataArguments:
    return DataArguments(dataset=toy_folder, eval_split="validation", stride=2, max_samples=16)


def trainer(data, folder, model=None, keys=None, **overrides) -> FinetuningTrainer:
    model = small() if model is None else model
    keys = FinetuningClipArguments(**LABELS, rand_augment=None, **(keys or {}))
    return FinetuningTrainer(
        model,
        arguments(folder, **overrides),
        keys.mixup(4),
        train_dataset=finetuning_clips(data, keys, model.config),
        eval_dataset=finetuning_clips(data, keys, model.config, evaluation=True),
        processing_class=MVDVideoProcessor.for_model(model.config),
    )


def test_defaults_are_the_papers():
    args = FinetuningArguments(output_dir="unused", use_cpu=True)
    assert (args.base_learning_rate, args.base_min_learning_rate) == (5e-4, 1e-6)
    assert (args.num_train_epochs, args.warmup_epochs, args.layer_decay) == (75, 5, 0.75)
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay) == (0.9, 0.999, 0.05)
    assert args.ema_decay is None
    keys = FinetuningClipArguments()
    assert (keys.repeats, keys.erasing, keys.flip, keys.crop_scale) == (2, 0.25, None, (0.08, 1.0))
    mixup = keys.mixup(400)
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.prob, mixup.label_smoothing) == (0.8, 1.0, 1.0, 0.1)


def test_few_videos_get_epochs_until_there_are_enough_steps(data, tmp_path):
    for min_steps, epochs in ((0, 2), (8, 2), (9, 3)):  # 4 steps per epoch
        assert trainer(data, tmp_path, min_steps=min_steps).args.num_train_epochs == epochs
    with pytest.raises(ValueError, match="min_steps=9 and max_steps=3"):
        arguments(tmp_path, min_steps=9, max_steps=3)


def test_repeats_are_clips_of_the_same_frames_with_other_crops(data):
    keys = FinetuningClipArguments(**LABELS, rand_augment=None, repeats=3)
    item = finetuning_clips(data, keys, small().config)[(1, 5)]
    assert len(item) == 3
    assert len({clip["labels"].item() for clip in item}) == 1
    assert not torch.equal(item[0]["pixel_values"], item[1]["pixel_values"])


def test_training_clips_are_mixed_and_evaluation_clips_are_not(data, tmp_path):
    run = trainer(data, tmp_path)
    clips = next(iter(run.get_train_dataloader()))
    run.model.train()
    torch.manual_seed(5)
    mixed = run.model_inputs(clips)
    torch.manual_seed(5)
    expected = Mixup(4)(clips, torch.default_generator)
    assert mixed["labels"].shape == (8, 4)
    assert torch.equal(mixed["pixel_values"], expected["pixel_values"])
    assert torch.equal(mixed["labels"], expected["labels"])
    run.model.eval()
    assert torch.equal(run.model_inputs(clips)["labels"], clips["labels"])
    assert trainer(data, tmp_path, keys={"mixup_alpha": 0, "cutmix_alpha": 0, "label_smoothing": 0}).mixup is None


@pytest.mark.parametrize(("batch", "classes"), [(3, 4), (16, 6)])
def test_accuracies_are_exact_over_the_videos_that_can_be_read(data, tmp_path, batch, classes):
    rows = load_rows(data.dataset, "validation").select(range(10))
    broken = [{"path": None, "bytes": b"no video"} if i in (2, 9) else item for i, item in enumerate(rows["video"])]
    rows = datasets.Dataset.from_dict({"video": broken, "appearance": rows["appearance"][:]})
    model = small(head_init_scale=100.0, num_labels=classes)
    keys = FinetuningClipArguments(**LABELS)
    clips = finetuning_clips(data, keys, model.config, rows, evaluation=True)
    run = FinetuningTrainer(model, arguments(tmp_path, per_device_eval_batch_size=batch), eval_dataset=clips)
    metrics = run.evaluate()
    good = [clips[i] for i in range(10) if i not in (2, 9)]
    labels = torch.stack([clip["labels"] for clip in good])
    with torch.no_grad():
        logits = model.eval()(torch.stack([clip["pixel_values"] for clip in good])).logits
    assert metrics["eval_top1"] == pytest.approx((logits.argmax(dim=1) == labels).float().mean().item())
    assert metrics["eval_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    hits = (logits.topk(5 if classes > 5 else 1).indices == labels[:, None]).any(dim=1).float().mean().item()
    # with at most five classes every answer is among the top 5
    assert metrics.get("eval_top5", metrics["eval_top1"]) == pytest.approx(hits)
    assert metrics["eval_missing"] == 2


def test_predictions_are_one_per_video_or_refused(data, tmp_path):
    run = trainer(data, tmp_path)
    output = run.predict(run.eval_dataset)
    assert output.predictions.shape == (16, 4)
    assert output.label_ids.tolist() == [run.eval_dataset[i]["labels"].item() for i in range(16)]
    rows = datasets.Dataset.from_dict({"video": [{"path": None, "bytes": b"no video"}], "appearance": [0]})
    keys = FinetuningClipArguments(**LABELS)
    with pytest.raises(ValueError, match="blake2b"):
        run.predict(finetuning_clips(data, keys, run.model.config, rows, evaluation=True))


def test_the_average_follows_every_step_and_is_evaluated_and_saved(data, tmp_path):
    run = trainer(data, tmp_path, ema_decay=0.7, num_train_epochs=2)
    expected = {name: value.clone() for name, value in run.model.state_dict().items()}
    history = []

    class Follow(type(run.callback_handler.callbacks[0])):
        def on_step_end(self, *args, **kwargs):
            for name, value in run.model.state_dict().items():
                expected[name] = 0.7 * expected[name] + 0.3 * value
            history.append(1)

    run.add_callback(Follow())
    run.run()
    assert len(history) == 8
    saved = load_file(tmp_path / "ema" / "model.safetensors")
    assert max((saved[name] - expected[name]).abs().max().item() for name in saved) < 1e-6
    last = load_file(tmp_path / "model.safetensors")
    assert max((saved[name] - last[name]).abs().max().item() for name in saved) > 1e-4
    logged = {key for entry in run.state.log_history for key in entry}
    assert {"eval_top1", "eval_ema_top1", "eval_ema_loss"} <= logged
    # the model's own weights are back after the average was evaluated
    assert torch.equal(run.model.state_dict()["classifier.weight"], last["classifier.weight"])
    loaded = MVDForVideoClassification.from_pretrained(tmp_path / "ema")
    assert list(loaded.config.id2label.values()) == NAMES
    assert MVDVideoProcessor.from_pretrained(tmp_path / "ema").num_frames == 4


@pytest.mark.parametrize("metric", ["top1", "ema_top1"])
def test_best_and_last_models_are_kept(data, tmp_path, monkeypatch, metric):
    run = trainer(data, tmp_path, ema_decay=0.9, num_train_epochs=4, metric_for_best_model=metric)
    accuracies = iter([0.1, 0.9, 0.3, 0.2])
    evaluate = FinetuningTrainer.evaluate

    def graded(self, *args, **kwargs):
        return evaluate(self, *args, **kwargs) | {f"eval_{metric}": next(accuracies)}

    monkeypatch.setattr(FinetuningTrainer, "evaluate", graded)
    weights = {}
    save = FinetuningTrainer._save_checkpoint

    def remember(self, model, trial):
        save(self, model, trial)
        source = self.ema.model if metric == "ema_top1" else self.model
        weights[self.state.global_step] = source.state_dict()["classifier.weight"].clone()

    monkeypatch.setattr(FinetuningTrainer, "_save_checkpoint", remember)
    run.run()
    # the checkpoint of the best step, which Trainer keeps, and the last
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-8", "checkpoint-16"}
    best = load_file(tmp_path / "best" / "model.safetensors")["classifier.weight"]
    assert torch.equal(best, weights[8])
    assert not torch.equal(best, weights[16])
    assert not (tmp_path / "best.new").exists()
    assert MVDVideoProcessor.from_pretrained(tmp_path / "best").num_frames == 4
    MVDForVideoClassification.from_pretrained(tmp_path / "best")


def test_the_best_model_needs_no_checkpoint_of_its_step(data, tmp_path):
    run = trainer(data, tmp_path, num_train_epochs=3, save_strategy="no", metric_for_best_model="loss")
    run.run()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    best = MVDForVideoClassification.from_pretrained(tmp_path / "best")
    run.model.load_state_dict(best.state_dict())
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses))


class OwnClips(torch.utils.data.Dataset):
    """Eight clips that no data set of ours reads."""

    def __len__(self):
        return 8

    def __getitem__(self, key):
        index = key[1] if isinstance(key, tuple) else key
        generator = torch.Generator().manual_seed(index)
        clip = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return {"pixel_values": clip, "labels": torch.tensor(index % 4)}


@pytest.mark.parametrize("metric", ["b_top1", "b_ema_top1"])
def test_custom_data_and_several_evaluation_sets_are_trained_and_evaluated(tmp_path, monkeypatch, metric):
    written = []
    save_best = FinetuningTrainer.save_best
    monkeypatch.setattr(FinetuningTrainer, "save_best", lambda self: (written.append(1), save_best(self)))
    options = {"ema_decay": 0.5, "num_train_epochs": 1, "metric_for_best_model": metric}
    sets = {"a": OwnClips(), "b": OwnClips()}
    run = FinetuningTrainer(small(), arguments(tmp_path, **options), train_dataset=OwnClips(), eval_dataset=sets)
    run.run()
    logged = {key for entry in run.state.log_history for key in entry if re.match("eval.*top1", key)}
    assert logged == {"eval_a_top1", "eval_b_top1", "eval_a_ema_top1", "eval_b_ema_top1"}
    assert len(written) == 1
    for folder, part in (("", ""), ("ema", "ema_"), ("best", "ema_" * ("ema" in metric))):
        record = read_run_record(tmp_path / folder)
        assert {f"eval_a_{part}top1", f"eval_b_{part}top1"} <= set(record["evaluation"])
        assert not any("runtime" in key for key in record["evaluation"])
    average = load_file(tmp_path / "ema" / "model.safetensors")["classifier.weight"]
    best = load_file(tmp_path / "best" / "model.safetensors")["classifier.weight"]
    assert torch.equal(best, average) == ("ema" in metric)


def test_the_best_model_of_several_evaluation_sets_needs_a_metric_of_one(tmp_path):
    sets = {"near": OwnClips(), "far": OwnClips()}
    with pytest.raises(ValueError, match=r"'top1'.*near_top1 or far_top1"):
        FinetuningTrainer(small(), arguments(tmp_path), train_dataset=OwnClips(), eval_dataset=sets)


def test_a_model_is_copied_to_the_cpu_without_sharing_weights():
    model = small()
    model.classifier.bias.requires_grad_(False)
    copied = copy_on_cpu(model)
    assert_same_weights(copied, model)
    for copy, weight in zip(copied.parameters(), model.parameters(), strict=True):
        assert copy.data_ptr() != weight.data_ptr()
        assert copy.requires_grad == weight.requires_grad


def losses(run) -> list:
    return [(entry["loss"], entry["grad_norm"]) for entry in run.state.log_history if "loss" in entry]


def test_a_resumed_run_with_mixup_and_ema_equals_an_uninterrupted_one(data, tmp_path):
    options = {
        "ema_decay": 0.9,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "save_total_limit": None,
        "num_train_epochs": 2,
    }
    fields = {"drop_path_rate": 0.3, "classifier_dropout": 0.5}
    whole = trainer(data, tmp_path / "whole", small(**fields), **options)
    whole.train()
    cut = trainer(data, tmp_path / "cut", small(**fields), **options)
    cut.train()
    again = trainer(data, tmp_path / "cut", small(**fields), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert len(losses(whole)) == 8
    assert losses(again) == losses(whole)
    for ours, theirs in (
        (again.model, whole.model),
        (again.ema.model, whole.ema.model),
    ):
        ours, theirs = ours.state_dict(), theirs.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_without_ema_is_not_resumed_with_one(data, tmp_path):
    trainer(data, tmp_path, num_train_epochs=1).train()
    with pytest.raises(ValueError, match=r"ema\.safetensors.*ema_decay"):
        trainer(data, tmp_path, num_train_epochs=2, ema_decay=0.9).run()


def test_adapters_are_trained_merged_and_kept(data, tmp_path):
    peft = pytest.importorskip("peft")

    base = small()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    lora = peft.LoraConfig(r=2, target_modules=["qkv", "proj"], modules_to_save=["classifier", "fc_norm"])
    run = trainer(data, tmp_path, peft.get_peft_model(base, lora), num_train_epochs=2, metric_for_best_model="loss")
    run.run()
    merged = MVDForVideoClassification.from_pretrained(tmp_path).eval()
    clip = run.eval_dataset[0]["pixel_values"][None]
    with torch.no_grad():
        assert torch.allclose(merged(clip).logits, run.model.eval()(clip).logits, atol=1e-5)
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, before[name])}
    assert "mvd.layers.0.attention.qkv.weight" in changed
    assert "mvd.layers.0.mlp.fc1.weight" not in changed
    assert "classifier.weight" in changed
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "adapter_config.json").exists()
    best = MVDForVideoClassification.from_pretrained(tmp_path / "best")
    assert set(best.state_dict()) == set(merged.state_dict())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_adapters_learn_the_same_with_activation_checkpointing(use_reentrant):
    peft = pytest.importorskip("peft")
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = peft.get_peft_model(small(), peft.LoraConfig(r=2, target_modules=["qkv", "proj"])).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(**default_collate([OwnClips()[i] for i in range(4)])).loss.backward()
        found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
        assert all(found[name].abs().sum() > 0 for name in found if "lora_B" in name)
        gradients.append(found)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_arguments_without_effect_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"ema_decay=1\.5"):
        arguments(tmp_path, ema_decay=1.5)
    with pytest.raises(ValueError, match=r"clips_per_video=2.*repeats"):
        arguments(tmp_path, clips_per_video=2)
    with pytest.raises(ValueError, match="masks_per_clip=2"):
        arguments(tmp_path, masks_per_clip=2)
    with pytest.raises(ValueError, match="sparse"):
        FinetuningClipArguments(sampling="sparse")


def test_the_run_says_what_a_video_gives(data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = trainer(data, tmp_path, num_train_epochs=1)
    run.run()
    assert "Each video gives 2 clips of the same frames" in caplog.text
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    evaluated = [entry for entry in state["log_history"] if "eval_top1" in entry]
    assert len(evaluated) == 1
    assert np.isfinite(evaluated[0]["eval_loss"])


def test_class_weights_weigh_the_loss_of_each_class_also_of_mixed_labels(tmp_path):
    weights, model = torch.tensor([0.5, 1.0, 2.0, 4.0]), small()
    size = model.config.frame_size
    for mixup in (None, Mixup(4, label_smoothing=0.1)):
        args = arguments(tmp_path, eval_strategy="no", metric_for_best_model=None)
        run = FinetuningTrainer(model, args, mixup, class_weights=weights.tolist())
        batch = {"pixel_values": torch.rand(4, 4, 3, *size), "labels": torch.tensor([0, 1, 3, 3])}
        model.train()
        targets = torch.nn.functional.one_hot(batch["labels"], 4).float()
        if mixup is not None:
            torch.manual_seed(0)
            targets = mixup(batch, torch.default_generator)["labels"]
        torch.manual_seed(0)
        inputs = run.model_inputs(batch)
        logits = torch.randn(4, 4)
        expected = -(weights * targets * logits.log_softmax(-1)).sum(-1).mean()
        torch.testing.assert_close(model.loss(inputs["labels"], logits), expected)
        assert torch.equal(batch["labels"], torch.tensor([0, 1, 3, 3]))
    model.eval()
    assert torch.equal(run.model_inputs(batch)["labels"], batch["labels"])
    with pytest.raises(ValueError, match="3 class_weights"):
        FinetuningTrainer(model, args, class_weights=[1, 1, 1])
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match=r"class_weights.*problem_type=multi_label"):
        FinetuningTrainer(model, args, class_weights=[1, 1, 1, 1])


def test_a_metric_of_other_labels_does_not_choose_the_best_model(tmp_path):
    for fields, metric, known in (
        ({"problem_type": "multi_label_classification"}, "ema_top1", "mAP, loss"),
        ({"problem_type": "regression"}, "eval_top1", "loss, mae, spearman"),
        ({"label_heads": {"noun": 2, "verb": 2}}, "macro_f1", "top1, loss"),
    ):
        with pytest.raises(ValueError, match=f"metric_for_best_model='{metric}'.*{known}"):
            FinetuningTrainer(small(**fields), arguments(tmp_path, metric_for_best_model=metric, eval_strategy="no"))


def test_rare_classes_count_as_much_as_frequent_ones_in_evaluations(data, tmp_path):
    run = trainer(data, tmp_path, metric_for_best_model="macro_f1")
    metrics, clips = run.evaluate(), run.eval_dataset
    run.model.eval()
    with torch.no_grad():
        predictions = [int(run.model(clips[i]["pixel_values"][None]).logits.argmax()) for i in range(len(clips))]
    labels = [int(clips[i]["labels"]) for i in range(len(clips))]
    assert metrics["eval_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert metrics["eval_macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    run.train()
    found = [entry["eval_macro_f1"] for entry in run.state.log_history if "eval_macro_f1" in entry]
    assert run.state.best_metric == max(found[-2:])
