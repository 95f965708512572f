"""Benchmarks of single networks: every combination is a row, and the networks compared are of one size."""

import pytest
import torch

from mvd_hf import MVDConfig
from mvd_hf.training.costs import classifier_flops, encoder_flops
from recipes.benchmark.models import (
    INFERENCE_TITLES,
    InferenceBenchmarkArguments,
    ModelBenchmarkArguments,
    inference_benchmark,
    inference_contenders,
    model_benchmark,
    network_contender,
    network_flops,
    random_masks,
    videomae_config,
)

CPU = torch.device("cpu")
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_num_attention_heads": 2,
}


def model_of(call) -> torch.nn.Module:
    """The network that a contender's call runs."""
    return next(cell.cell_contents for cell in call.__closure__ if isinstance(cell.cell_contents, torch.nn.Module))


def test_every_combination_is_a_row():
    arguments = ModelBenchmarkArguments(config=TINY, sizes=["s", "b"], dtypes=["float32"], rounds=2)
    report = model_benchmark(arguments)
    assert report["about"]["threads"] == str(torch.get_num_threads())
    rows = report["models"]
    assert len(rows) == 2 * 2 * (2 + 1 + 2)  # sizes, attention, passes of student, teacher and classifier
    assert len({tuple(list(row.values())[:6]) for row in rows}) == len(rows)
    assert all(row["ms"] > 0 and row["mfu"] > 0 for row in rows)
    for eager, sdpa in zip(rows[::2], rows[1::2], strict=True):
        assert (eager["attention"], sdpa["attention"], eager["speedup"]) == ("eager", "sdpa", 1)


@pytest.mark.parametrize("network", ["student", "classifier"])
def test_a_backward_pass_reaches_the_weights_and_counts_thrice(network):
    arguments = ModelBenchmarkArguments(config=TINY)
    columns = {"network": network, "size": "b", "dtype": "bfloat16", "attention": "sdpa", "compile": False}
    forward = network_contender(arguments, CPU, columns | {"passes": "forward"})
    both = network_contender(arguments, CPU, columns | {"passes": "forward, backward"})
    assert both.flops == 3 * forward.flops
    for contender, trains in ((forward, False), (both, True)):
        call = contender.build()
        call()
        model = next(
            cell.cell_contents for cell in call.__closure__ if isinstance(cell.cell_contents, torch.nn.Module)
        )
        assert model.training == trains
        assert all((parameter.grad is not None) == trains for parameter in model.parameters())
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())  # autocast does the rest


def test_a_teacher_has_the_dtype_itself():
    arguments = ModelBenchmarkArguments(config=TINY)
    columns = {"network": "teacher", "size": "b", "dtype": "bfloat16", "attention": "sdpa", "compile": False}
    call = network_contender(arguments, CPU, columns | {"passes": "forward"}).build()
    model = model_of(call)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.layernorm is None


def test_the_model_of_transformers_is_of_the_same_size():
    config = MVDConfig.from_name("mvd-b", **TINY, num_labels=7)
    theirs = videomae_config(config)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_labels"):
        assert getattr(theirs, name) == getattr(config, name)
    arguments = InferenceBenchmarkArguments(config=TINY, compile=True)
    contenders = inference_contenders("classifier", config, {"dtype": "float32"}, arguments)
    assert [contender.columns["method"] for contender in contenders] == [
        "transformers VideoMAE, floats",
        "mvd_hf, floats",
        "mvd_hf, uint8",
        "transformers VideoMAE, floats, compiled",
        "mvd_hf, uint8, compiled",
    ]
    assert {contender.flops for contender in contenders} == {2 * classifier_flops(config)}
    models = []
    for contender in contenders[:2]:
        kind, pixels, _ = contender.build.__defaults__[0]
        models.append(kind(theirs if "VideoMAE" in kind.__name__ else config))
        assert pixels.is_floating_point()
    assert type(models[0]).__name__ == "VideoMAEForVideoClassification"
    for contender in contenders[:3]:
        contender.build()()
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    key_biases = config.num_hidden_layers * config.hidden_size  # those of older versions of transformers
    assert counts[0] - counts[1] in (0, key_biases)


def test_inference_is_compared_with_transformers():
    arguments = InferenceBenchmarkArguments(config=TINY, dtypes=["float32"], rounds=2)
    report = inference_benchmark(arguments)
    for kind in INFERENCE_TITLES:
        assert [row["method"] for row in report[kind]] == [
            "transformers VideoMAE, floats",
            "mvd_hf, floats",
            "mvd_hf, uint8",
        ]
        assert report[kind][0]["speedup"] == 1
        assert all(row["speedup"] > 0 for row in report[kind])


def test_masks_differ_and_networks_are_named():
    config = MVDConfig.from_name("mvd-b", **TINY)
    masks = random_masks(config, 4, CPU)
    assert masks.sum(dim=1).unique().tolist() == [config.num_masked_patches]
    assert len(masks.unique(dim=0)) > 1
    assert network_flops("teacher", config) == encoder_flops(config)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="networks has encoder; choose among student, teacher, classifier"):
        ModelBenchmarkArguments(networks=["encoder"])
    with pytest.raises(ValueError, match="dtypes has float8"):
        InferenceBenchmarkArguments(dtypes=["float8"])
    with pytest.raises(ValueError, match="rounds=0 must be at least 1"):
        ModelBenchmarkArguments(rounds=0)
