"""Speed of single networks: student, teacher and classifier, in training and inference, compared with transformers."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

from mvd_hf.data.masking import tube_mask
from mvd_hf.data.toy import APPEARANCES
from mvd_hf.model.configuration_mvd import ConfigFields, MVDConfig, compact_size
from mvd_hf.model.modeling_mvd import MVDForFeatureDistillation, MVDForVideoClassification, MVDModel
from mvd_hf.training.costs import TRAINING_PASSES, classifier_flops, encoder_flops, student_parts

from .deployment import deployment_rows
from .reports import about
from .timing import DTYPES, Contender, Race, choose_device

MODEL_TITLES = {"models": "Networks, forward and with backward pass"}
INFERENCE_TITLES = {
    "classifier": "Inference: classifier, against VideoMAE of transformers",
    "features": "Inference: features of all patches, against VideoMAE of transformers",
    "deployment": "Inference as deployed: speed over float32, deviation, accuracy of a probe and its cost in %",
}
NETWORKS = ("student", "teacher", "classifier")


@dataclass
class ModelBenchmarkArguments:
    """Keys of the benchmark of single networks; every combination is a row.

    Args:
        output: folder of the report.
        networks: `student` (encoder and decoders, 90 % of the patches masked), `teacher` (VideoMAE's encoder on all
            patches, forward only), `classifier`.
        sizes: of the encoder: `s`, `b`, `l`, `h`.
        dtypes: `float32`, `bfloat16` or `float16`, of a teacher's weights and of autocast for the other networks.
        attention: implementations, such as `eager`, `sdpa`, `flash_attention_2`; the others are compared with the
            first.
        compile: whether to use `torch.compile`; `[false, true]` measures both.
        batch_size: clips per call.
        config: `MVDConfig` fields that differ from those of the published model.
        device: `cuda` or `cpu`; by default `cuda` if available.
        rounds: measured calls of each row.
        seed: seed of all random choices.
    """

    output: str = "outputs/benchmarks"
    networks: list[str] = field(default_factory=lambda: list(NETWORKS))
    sizes: list[str] = field(default_factory=lambda: ["s", "b"])
    dtypes: list[str] = field(default_factory=lambda: ["float32", "bfloat16"])
    attention: list[str] = field(default_factory=lambda: ["eager", "sdpa"])
    compile: list[bool] = field(default_factory=lambda: [False])
    batch_size: int = 2
    config: ConfigFields = field(default_factory=dict)
    device: str | None = None
    rounds: int = 5
    seed: int = 0

    def __post_init__(self):
        check_choices("networks", self.networks, NETWORKS)
        check_choices("dtypes", self.dtypes, DTYPES)
        check_counts(batch_size=self.batch_size, rounds=self.rounds)


@dataclass
class InferenceBenchmarkArguments:
    """Keys of the benchmark of inference; every combination of size and dtype is a group of rows.

    Args:
        output: folder of the report.
        sizes: of the encoder: `s`, `b`, `l`, `h`.
        dtypes: of the weights.
        compile: whether to add rows with `torch.compile`.
        probe_videos: toy videos for a probe in the table of deployment (bfloat16, compiled, ONNX Runtime in float32
            and int8), and as many to test it; 0 leaves the table out.
        batch_size: clips per call.
        config: `MVDConfig` fields that differ from those of the published model.
        device: `cuda` or `cpu`; by default `cuda` if available.
        rounds: measured calls of each row.
        seed: seed of all random choices.
    """

    output: str = "outputs/benchmarks"
    probe_videos: int = 16
    sizes: list[str] = field(default_factory=lambda: ["b"])
    dtypes: list[str] = field(default_factory=lambda: ["float32", "bfloat16"])
    compile: bool = False
    batch_size: int = 2
    config: ConfigFields = field(default_factory=dict)
    device: str | None = None
    rounds: int = 9
    seed: int = 0

    def __post_init__(self):
        check_choices("dtypes", self.dtypes, DTYPES)
        check_counts(batch_size=self.batch_size, rounds=self.rounds)


def check_choices(name: str, chosen: Sequence[str], known: Sequence[str] | dict):
    """Raise ValueError for a choice that is not known."""
    unknown = [str(value) for value in chosen if value not in known]
    if unknown:
        raise ValueError(f"{name} has {', '.join(unknown)}; choose from {', '.join(known)}.")


def check_counts(**counts: int):
    """Raise ValueError for a count below 1."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")


def random_clips(config: MVDConfig, count: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    """Random clips (count, T, C, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, config.num_frames, config.num_channels, *config.frame_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def random_masks(config: MVDConfig, count: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    """Random tube masks (count, L)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([tube_mask(config.grid, config.mask_ratio, generator) for _ in range(count)]).to(device)


def build_network(name: str, config: MVDConfig) -> nn.Module:
    """A network with fresh weights."""
    if name == "teacher":
        return MVDModel(config, add_final_norm=False)
    return {"student": MVDForFeatureDistillation, "classifier": MVDForVideoClassification}[name](config)


def network_flops(name: str, config: MVDConfig) -> int:
    """FLOPs of a network's forward pass per clip."""
    if name == "student":
        return sum(part.forward for part in student_parts(config))
    return encoder_flops(config) if name == "teacher" else classifier_flops(config)


def network_contender(arguments: ModelBenchmarkArguments, device: torch.device, columns: dict) -> Contender:
    """A network and its passes over a batch.

    Args:
        arguments: batch size, configuration and seed.
        device: device of the network.
        columns: `network`, `size`, `dtype`, `attention`, `compile` and `passes`.
    """
    name, dtype = columns["network"], DTYPES[columns["dtype"]]
    family = "videomae" if name == "teacher" else "mvd"
    fields = arguments.config | {"attn_implementation": columns["attention"]}
    config = MVDConfig.from_name(f"{family}-{columns['size']}", **fields)
    flops = network_flops(name, config)
    trains = columns["passes"] != "forward"

    def build() -> Callable[[], object]:
        model = build_network(name, config).to(device)
        model = model.train(trains).requires_grad_(name != "teacher")
        if name == "teacher":
            model = model.to(dtype)
        inputs = {"pixel_values": random_clips(config, arguments.batch_size, device, arguments.seed)}
        if name == "student":
            masks = random_masks(config, arguments.batch_size, device, arguments.seed)
            inputs |= {"bool_masked_pos": masks, "num_masked": config.num_masked_patches}
        run = torch.compile(model) if columns["compile"] else model
        casts = name != "teacher" and dtype != torch.float32

        def call():
            with torch.set_grad_enabled(trains):
                with torch.autocast(device.type, dtype) if casts else nullcontext():
                    outputs = run(**inputs)
                if trains:
                    model.zero_grad()
                    heads = outputs.predictions.values() if name == "student" else [outputs.logits]
                    sum(head.float().square().mean() for head in heads).backward()

        return call

    passes = TRAINING_PASSES if trains else 1
    return Contender(columns, build, arguments.batch_size, arguments.batch_size * passes * flops)


def model_benchmark(arguments: ModelBenchmarkArguments) -> dict:
    """The report on single networks: rows with the same network, size, dtype and passes take turns.

    `speedup` is relative to the first of them; see [`speed`] for the other figures.
    """
    device = choose_device(arguments.device)
    report: dict = {"about": about(torch.get_num_threads()), "arguments": vars(arguments), "models": []}
    for name, size, dtype in itertools.product(arguments.networks, arguments.sizes, arguments.dtypes):
        for passes in ("forward",) if name == "teacher" else ("forward", "forward, backward"):
            contenders = []
            for attention, compiles in itertools.product(arguments.attention, arguments.compile):
                columns = {"network": name, "size": size, "dtype": dtype, "passes": passes}
                columns |= {"attention": attention, "compile": compiles}
                contenders.append(network_contender(arguments, device, columns))
            report["models"] += Race(device, DTYPES[dtype], arguments.rounds, arguments.seed).run(contenders)
    return report


# inference


def videomae_config(config: MVDConfig) -> VideoMAEConfig:
    """The configuration of transformers' VideoMAE with the same sizes."""
    return VideoMAEConfig(
        image_size=compact_size(config.image_size),
        patch_size=config.patch_size,
        num_channels=config.num_channels,
        num_frames=config.num_frames,
        tubelet_size=config.tubelet_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        layer_norm_eps=config.layer_norm_eps,
        num_labels=config.num_labels,
        attn_implementation="sdpa",
    )


def inference_contenders(
    kind: str, config: MVDConfig, columns: dict, arguments: InferenceBenchmarkArguments
) -> list[Contender]:
    """VideoMAE of transformers, then ours on normalised floats and on uint8; the batch is on the device."""
    device, dtype = choose_device(arguments.device), DTYPES[columns["dtype"]]
    theirs, ours = {
        "classifier": (VideoMAEForVideoClassification, MVDForVideoClassification),
        "features": (VideoMAEModel, MVDModel),
    }[kind]
    flops = classifier_flops(config) if kind == "classifier" else encoder_flops(config)
    clips = random_clips(config, arguments.batch_size, device, arguments.seed)
    floats = (clips.to(dtype) / 255 - 0.5) / 0.5
    names = {"transformers VideoMAE, floats": (theirs, floats, False), "mvd_hf, floats": (ours, floats, False)}
    names["mvd_hf, uint8"] = (ours, clips, False)
    if arguments.compile:
        names["transformers VideoMAE, floats, compiled"] = (theirs, floats, True)
        names["mvd_hf, uint8, compiled"] = (ours, clips, True)

    def build(kind: type[nn.Module], pixels: torch.Tensor, compiles: bool) -> Callable[[], object]:
        model = kind(videomae_config(config) if kind is theirs else config).to(device, dtype).eval()
        model = torch.compile(model) if compiles else model

        def call():
            with torch.inference_mode():
                model(pixels)

        return call

    return [
        Contender({**columns, "method": name}, lambda row=row: build(*row), len(clips), len(clips) * flops)
        for name, row in names.items()
    ]


def inference_benchmark(arguments: InferenceBenchmarkArguments) -> dict:
    """The report on inference; `speedup` is relative to transformers' VideoMAE with sdpa, of the same size.

    In the table of deployment it is relative to ours in float32.
    """
    device = choose_device(arguments.device)
    report: dict = {"about": about(torch.get_num_threads()), "arguments": vars(arguments), "deployment": []}
    for size in arguments.sizes if arguments.probe_videos else ():
        config = MVDConfig.from_name(f"mvd-{size}", **{"num_labels": len(APPEARANCES), **arguments.config})
        race = Race(device, torch.float32, arguments.rounds, arguments.seed)
        counts = arguments.batch_size, arguments.probe_videos
        report["deployment"] += deployment_rows(config, videomae_config(config), {"size": size}, race, *counts)
    for kind in ("classifier", "features"):
        report[kind] = []
        for size, dtype in itertools.product(arguments.sizes, arguments.dtypes):
            config = MVDConfig.from_name(f"mvd-{size}", **{"num_labels": 400, **arguments.config})
            contenders = inference_contenders(kind, config, {"size": size, "dtype": dtype}, arguments)
            report[kind] += Race(device, DTYPES[dtype], arguments.rounds, arguments.seed).run(contenders)
    return report
