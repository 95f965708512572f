"""A classifier as it is deployed: reduced precision, compiled, ONNX Runtime; speed, deviation, accuracy of a probe."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from mvd_hf.data.toy import APPEARANCES, toy_videos
from mvd_hf.evaluation.probing import fit_linear
from mvd_hf.hub.export import Exported, check_onnx_packages, export_onnx
from mvd_hf.model.configuration_mvd import MVDConfig
from mvd_hf.model.modeling_mvd import MVDForVideoClassification
from mvd_hf.training.costs import classifier_flops

from .timing import Contender, Race

Classify = Callable[[torch.Tensor], torch.Tensor]
BASE, VIDEOMAE = "mvd_hf, float32", "transformers VideoMAE, float32"
# clips per forward pass where accuracy is measured
PER_PASS = 2


def toy_clips(config: MVDConfig, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised clips (count, T, C, H, W) of shapes that move, and their textures (count,)."""
    clips, labels = [], []
    for appearance, _, frames in toy_videos(count, config.num_frames, *config.frame_size, seed):
        clips.append(torch.from_numpy(frames).movedim(-1, 1))
        labels.append(APPEARANCES.index(appearance))
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (config.image_mean, config.image_std))
    return (torch.stack(clips) / 255 - mean) / std, torch.tensor(labels)


@torch.no_grad()
def probed_classifier(config: MVDConfig, count: int, seed: int) -> MVDForVideoClassification:
    """A classifier with random weights, whose head is a linear probe for the textures of toy clips."""
    torch.manual_seed(seed)
    model = MVDForVideoClassification(config).eval()
    clips, labels = toy_clips(config, count, 2 * seed)
    features = torch.cat([model.pool(model.mvd(part).last_hidden_state) for part in clips.split(PER_PASS)])
    fit_linear(features, labels, torch.arange(count), model.classifier)
    return model


def session(path: Path) -> Classify:
    """A program that ONNX Runtime runs on the CPU, with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    program = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(program.run(["logits"], {"pixel_values": clips.numpy()})[0])


def onnx_program(model: MVDForVideoClassification, clips: torch.Tensor, folder: str, is_int8: bool) -> Classify:
    """The classifier in ONNX Runtime, in float32 or with dynamically quantised int8 weights."""
    check_onnx_packages()
    path = Path(folder) / "model.onnx"
    if not path.exists():
        export_onnx(Exported(model, "logits").eval(), (clips,), path)
    if not is_int8:
        return session(path)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = Path(folder) / "int8.onnx"
    quantize_dynamic(path, small, weight_type=QuantType.QInt8)
    return session(small)


def of_torch(model: nn.Module, dtype: torch.dtype = torch.float32, compiles: bool = False) -> Classify:
    """A network in a precision, compiled or not, from clips in float32."""
    network = model if dtype == torch.float32 else deepcopy(model).to(dtype)
    run = torch.compile(network) if compiles else network
    return lambda clips: run(clips.to(dtype)).logits.float()


def programs(
    model: MVDForVideoClassification, videomae: VideoMAEConfig, clips: torch.Tensor, folder: str
) -> dict[str, Callable[[], Classify]]:
    """By name, functions that make the programs; the first one is what the others are compared with."""
    made = {
        BASE: partial(of_torch, model),
        VIDEOMAE: lambda: of_torch(VideoMAEForVideoClassification(videomae).eval().to(clips.device)),
        "mvd_hf, bfloat16": partial(of_torch, model, torch.bfloat16),
        "mvd_hf, float32, compiled": partial(of_torch, model, compiles=True),
        "mvd_hf, bfloat16, compiled": partial(of_torch, model, torch.bfloat16, compiles=True),
    }
    if clips.device.type == "cpu":
        made |= {
            "ONNX Runtime, float32": partial(onnx_program, model, clips, folder, False),
            "ONNX Runtime, int8 (dynamic)": partial(onnx_program, model, clips, folder, True),
        }
    return made


@torch.inference_mode()
def quality(program: Classify, base: Classify, clips: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """`deviation` (the largest, relative to the largest logit of the base), `accuracy` in % and its `cost`."""
    found, wanted = (torch.cat([run(part).cpu() for part in clips.split(PER_PASS)]) for run in (program, base))
    accuracy, before = (100 * float((logits.argmax(dim=1) == labels).float().mean()) for logits in (found, wanted))
    deviation = float((found - wanted).abs().max() / wanted.abs().max())
    return {"deviation": deviation, "accuracy": accuracy, "cost": before - accuracy}


def deployment_rows(
    config: MVDConfig, videomae: VideoMAEConfig, columns: Mapping, race: Race, batch_size: int, probe_videos: int
) -> list[dict]:
    """A row for each program, in one race; `speedup` is over ours in float32.

    Args:
        config, videomae: the sizes of both networks.
        columns: of every row.
        race: measures.
        batch_size: clips per call.
        probe_videos: toy videos to fit a probe to, and as many to test it on.
    """
    model = probed_classifier(config, probe_videos, race.seed).to(race.device)
    clips, labels = toy_clips(config, probe_videos, 2 * race.seed + 1)
    batch, running = clips[:1].expand(batch_size, -1, -1, -1, -1).contiguous().to(race.device), {}

    def build(name: str, make: Callable[[], Classify]) -> Callable[[], object]:
        program = running[name] = make()

        def call():
            with torch.inference_mode():
                program(batch)

        return call

    flops = batch_size * classifier_flops(config)
    with TemporaryDirectory() as folder:
        contenders = [
            Contender({**columns, "method": name}, partial(build, name, make), batch_size, flops)
            for name, make in programs(model, videomae, batch, folder).items()
        ]
        rows = race.run(contenders)
        for row in rows:
            name = row["method"]
            figures = dict.fromkeys(("deviation", "accuracy", "cost"))  # VideoMAE has other weights
            if row["ms"] is not None and name != VIDEOMAE:
                figures = quality(running[name], running[BASE], clips.to(race.device), labels)
            row |= {**figures, "deviation": None if figures["deviation"] is None else f"{figures['deviation']:.1e}"}
    return rows
