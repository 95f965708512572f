"""MVDTrainingArguments: rates, defaults, and what is refused."""

import json

import pytest

from mvd_hf import MVDTrainingArguments
from mvd_hf.training.arguments import check_processes


def arguments(**overrides) -> MVDTrainingArguments:
    return MVDTrainingArguments(**({"use_cpu": True, "per_device_train_batch_size": 4} | overrides))


def test_learning_rates_scale_with_the_total_batch():
    args = arguments(gradient_accumulation_steps=64, base_learning_rate=1.5e-4, base_min_learning_rate=1e-4)
    assert args.total_batch_size == 256
    assert (args.learning_rate, args.min_learning_rate) == pytest.approx((1.5e-4, 1e-4))
    args = arguments(gradient_accumulation_steps=128, base_learning_rate=1.5e-4, base_min_learning_rate=1e-4)
    assert (args.learning_rate, args.min_learning_rate) == pytest.approx((3e-4, 2e-4))


def test_without_a_base_rate_the_learning_rate_stands():
    args = arguments(base_learning_rate=None, learning_rate=0.01, base_min_learning_rate=0.001)
    assert (args.learning_rate, args.min_learning_rate) == (0.01, 0.001)


def test_defaults_are_the_papers():
    args = MVDTrainingArguments(output_dir="unused", use_cpu=True)
    assert (args.base_learning_rate, args.base_min_learning_rate) == (1.5e-4, 1e-5)
    assert (args.num_train_epochs, args.warmup_epochs, args.weight_decay) == (400, 40, 0.05)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert args.max_grad_norm == 0  # no clipping
    assert args.ddp_find_unused_parameters is False


@pytest.mark.parametrize(
    ("environment", "is_told"),
    [
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, True),
        ({"ACCELERATE_USE_CPU": "True"}, False),
        ({"MASTER_ADDR": "127.0.0.1"}, False),
    ],
)
def test_processes_that_the_launcher_left_out_are_told(monkeypatch, caplog, environment, is_told):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_processes(1)
    assert ("asked for several processes and has started one" in caplog.text) == is_told
    caplog.clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(2)
    assert not caplog.text
    with pytest.raises(
        ValueError, match=r"WORLD_SIZE=2: .* each would train by itself.*ACCELERATE_USE_CPU=true.*unset WORLD_SIZE"
    ):
        check_processes(1)


def test_arguments_survive_json():
    args = arguments(layer_decay=0.75)
    assert json.loads(args.to_json_string())["layer_decay"] == 0.75


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"clips_per_video": 0}, "clips_per_video=0 must be at least 1"),
        ({"masks_per_clip": 0}, "masks_per_clip=0 must be at least 1"),
        ({"base_learning_rate": 0}, "a learning rate of 0 must be above 0"),
        ({"base_learning_rate": None, "learning_rate": 0}, "a learning rate of 0 must be above 0"),
        ({"weight_decay_end": 0.1, "weight_decay": 0}, "weight_decay_end needs a weight_decay above 0"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size changes the batch"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches divides the batch"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is unknown to the model's loss"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential' is not 'random'"),
    ],
)
def test_arguments_that_would_not_do_what_they_say_are_refused(options, reason):
    with pytest.raises(ValueError, match=f"cannot be used: {reason}"):
        arguments(**options)
