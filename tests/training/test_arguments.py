"""MVDTrainingArguments: rates, defaults, and what is refused."""

import json
import logging
import sys
from dataclasses import fields, replace
from unittest.mock import Mock

import pytest
from accelerate.parallelism_config import ParallelismConfig
from transformers import TrainingArguments

from mvd_hf import MVDTrainingArguments
from mvd_hf.training.arguments import REFUSED, check_processes

# what the trainer does as transformers says, or what MVDTrainingArguments checks with other arguments
HONOURED = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate warmup_steps optim optim_args
    weight_decay adam_beta1 adam_beta2 adam_epsilon gradient_accumulation_steps average_tokens_across_devices
    max_grad_norm bf16 fp16 bf16_full_eval fp16_full_eval tf32 activation_checkpointing activation_checkpointing_kwargs
    gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
    torch_empty_cache_steps logging_strategy logging_steps logging_first_step log_on_each_node log_level
    log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id
    trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only
    eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics
    batch_eval_metrics save_only_model save_strategy save_steps save_on_each_node save_total_limit push_to_hub
    hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end
    metric_for_best_model greater_is_better ignore_data_skip restore_callback_states_from_checkpoint full_determinism
    seed data_seed use_cpu accelerator_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp
    fsdp_config deepspeed debug skip_memory_metrics do_eval label_names
    """
# those that the oldest supported version of transformers does not have
NEW = {"activation_checkpointing", "activation_checkpointing_kwargs"}


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
        ({"clips_per_video": 0}, "clips_per_video=0"),
        ({"masks_per_clip": 0}, "masks_per_clip=0"),
        ({"base_learning_rate": 0}, "base_learning_rate=0"),
        ({"base_learning_rate": None, "learning_rate": 0}, "learning_rate=0"),
        ({"base_learning_rate": None}, "learning_rate=None"),
        ({"learning_rate": 5e-5}, "learning_rate=5e-05 and base_learning_rate=0.00015"),
        ({"weight_decay_end": 0.1, "weight_decay": 0}, "weight_decay_end"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
        ({"accelerator_config": {"use_seedable_sampler": False}}, "use_seedable_sampler"),
        ({"do_eval": True}, "do_eval"),
        ({"push_to_hub": True}, "license"),
    ],
)
def test_arguments_that_would_not_do_what_they_say_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        arguments(**options)


def test_copied_arguments_are_those_copied():
    args = arguments(gradient_accumulation_steps=3, eval_strategy="epoch")
    assert replace(args).to_dict() == args.to_dict()
    with pytest.raises(ValueError, match="learning_rate"):
        replace(args, learning_rate=0.1)


def test_an_argument_of_transformers_is_honoured_or_refused():
    names = {key.name for key in fields(TrainingArguments)}
    honoured = set(HONOURED.split())
    known = honoured | REFUSED.keys()
    assert not honoured & REFUSED.keys()
    assert not names - known, f"Neither honoured nor refused: {', '.join(sorted(names - known))}"
    assert not known - names - NEW, f"No longer arguments: {', '.join(sorted(known - names - NEW))}"


def test_a_refused_argument_is_named_with_its_value():
    others = {
        **{
            "lr_scheduler_type": "linear",
            "lr_scheduler_kwargs": {"num_cycles": 2},
            "optim_target_modules": "all-linear",
        },
        **{
            "liger_kernel_config": {"rope": True},
            "include_num_input_tokens_seen": "all",
            "length_column_name": "size",
        },
        **{"train_sampling_strategy": "sequential", "resume_from_checkpoint": "outputs/run", "local_rank": 1},
        **{"label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0, "parallelism_config": ParallelismConfig()},
    }
    for name, (value, _) in REFUSED.items():
        other = others.get(name, value is False)
        with pytest.raises(ValueError, match=f"{name}="):
            arguments(**{name: other})


@pytest.mark.parametrize("name", ["bf16", "bf16_full_eval"])
def test_bfloat16_without_a_gpu_names_the_keys_that_help(tmp_path, monkeypatch, name):
    monkeypatch.setattr("mvd_hf.training.arguments.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match=rf"{name}=True.*--{name} false.*--use_cpu"):
        MVDTrainingArguments(output_dir=str(tmp_path), **{name: True})
    assert getattr(MVDTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: True}), name)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_file_gets_lines_instead_of_a_progress_bar(monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr("transformers.training_args.logger", Mock(getEffectiveLevel=lambda: logging.WARNING))
    assert arguments().disable_tqdm == (not is_terminal)
    assert arguments(disable_tqdm=is_terminal).disable_tqdm == is_terminal


def test_a_tracker_that_is_unknown_or_not_installed_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("mvd_hf.training.arguments.get_available_reporting_integrations", lambda: ["tensorboard"])
    for name in ("wandbb", "wandb"):
        with pytest.raises(ValueError, match=f"'{name}'"):
            arguments(output_dir=str(tmp_path), report_to=["tensorboard", name])
    assert arguments(output_dir=str(tmp_path), report_to="tensorboard").report_to == ["tensorboard"]
