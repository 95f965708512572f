"""Benchmarks of single networks: every combination is a row, and compared networks have the same size."""

import pytest
import torch

from mvd_hf import MVDConfig
from mvd_hf.training.costs import classifier_flops
from recipes.benchmark.models import (
    INFERENCE_TITLES,
    InferenceBenchmarkArguments,
    ModelBenchmarkArguments,
    inference_benchmark,
    inference_contenders,
    model_benchmark,
    network_contender,
    random_masks,
    videomae_config,
)

CPU = torch.device("cpu")
TINY = {
    **{"image_size": 32, "patch_size": 8, "num_frames": 4},
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"decoder_hidden_size": 16, "decoder_num_attention_heads": 2},
}


def model_of(call) -> torch.nn.Module:
    """The network that a contender's call runs."""
    return next(cell.cell_contents for cell in call.__closure__ if isinstance(cell.cell_contents, torch.nn.Module))


@pytest.mark.long
@pytest.mark.slow
def test_every_combination_is_a_row():
    arguments = ModelBenchmarkArguments(config=TINY, sizes=["s", "b"], dtypes=["float32"], rounds=2)
    rows = model_benchmark(arguments)["models"]
    assert len(rows) == 2 * 2 * (2 + 1 + 2)  # sizes, attention, passes of student, teacher and classifier
    assert len({tuple(list(row.values())[:6]) for row in rows}) == len(rows)
    assert all(row["ms"] > 0 and row["mfu"] > 0 for row in rows)
    for eager, sdpa in zip(rows[::2], rows[1::2], strict=True):
        assert (eager["attention"], sdpa["attention"], eager["speedup"]) == ("eager", "sdpa", 1)


def test_a_backward_pass_reaches_the_weights_and_counts_thrice():
    arguments = ModelBenchmarkArguments(config=TINY)
    columns = {"size": "b", "dtype": "bfloat16", "attention": "sdpa", "compile": False}
    for network in ("student", "classifier"):
        named = columns | {"network": network}
        forward = network_contender(arguments, CPU, named | {"passes": "forward"})
        both = network_contender(arguments, CPU, named | {"passes": "forward, backward"})
        assert both.flops == 3 * forward.flops
        for contender, trains in ((forward, False), (both, True)):
            call = contender.build()
            call()
            model = model_of(call)
            assert model.training == trains
            assert all((parameter.grad is not None) == trains for parameter in model.parameters())
            assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # autocast does the rest
    teacher = model_of(
        network_contender(arguments, CPU, columns | {"network": "teacher", "passes": "forward"}).build()
    )
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    assert teacher.layernorm is None


def test_the_model_of_transformers_has_the_same_size():
    config = MVDConfig.from_name("mvd-b", **TINY, num_labels=7)
    theirs = videomae_config(config)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_labels"):
        assert getattr(theirs, name) == getattr(config, name)
    arguments = InferenceBenchmarkArguments(config=TINY, compile=True)
    contenders = inference_contenders("classifier", config, {"dtype": "float32"}, arguments)
    methods = [contender.columns["method"] for contender in contenders]
    compiled = ["transformers VideoMAE, floats, compiled", "mvd_hf, uint8, compiled"]
    assert methods == ["transformers VideoMAE, floats", "mvd_hf, floats", "mvd_hf, uint8", *compiled]
    assert {contender.flops for contender in contenders} == {2 * classifier_flops(config)}
    models = [contender.build.__defaults__[0][0] for contender in contenders[:2]]
    counts = [
        sum(p.numel() for p in kind(fields).parameters())
        for kind, fields in zip(models, (theirs, config), strict=True)
    ]
    key_biases = config.num_hidden_layers * config.hidden_size  # those of older versions of transformers
    assert counts[0] - counts[1] in (0, key_biases)


def test_inference_is_compared_with_transformers():
    arguments = InferenceBenchmarkArguments(config=TINY, dtypes=["float32"], rounds=2, probe_videos=0)
    report = inference_benchmark(arguments)
    assert report["deployment"] == []
    for kind in INFERENCE_TITLES.keys() - {"deployment"}:
        theirs, *ours = report[kind]
        assert (theirs["method"], theirs["speedup"]) == ("transformers VideoMAE, floats", 1)
        assert [row["method"] for row in ours] == ["mvd_hf, floats", "mvd_hf, uint8"]
        assert all(row["speedup"] > 0 for row in ours)


def test_the_model_of_transformers_takes_rectangles():
    config = MVDConfig.from_name("mvd-b", **{**TINY, "image_size": [16, 32]})
    for contender in inference_contenders(
        "features", config, {"dtype": "float32"}, InferenceBenchmarkArguments(config=TINY, device="cpu")
    ):
        contender.build()()


def test_masks_differ():
    config = MVDConfig.from_name("mvd-b", **TINY)
    masks = random_masks(config, 4, CPU)
    assert masks.sum(dim=1).unique().tolist() == [config.num_masked_patches]
    assert len(masks.unique(dim=0)) > 1


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="encoder"):
        ModelBenchmarkArguments(networks=["encoder"])
    with pytest.raises(ValueError, match="float8"):
        InferenceBenchmarkArguments(dtypes=["float8"])
    with pytest.raises(ValueError, match="rounds=0"):
        ModelBenchmarkArguments(rounds=0)
