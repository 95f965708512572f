"""Export of classifiers, encoders and detectors with torch.export and to ONNX, each checked against the model.

Letters in shapes: B clips, T frames, C channels, H x W pixels; N tokens, D their width; P people.
"""

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import is_onnxruntime_available, is_onnxscript_available

from ..model.detection_mvd import MVDForActionDetection
from ..model.labels_mvd import MULTI_LABEL, REGRESSION
from ..model.modeling_mvd import MVDForVideoClassification, MVDModel
from ..model.video_processing_mvd import MVDVideoProcessor
from .loading import load_processor, read_stored_config

FORMATS = {"torch": "model.pt2", "onnx": "model.onnx"}
DESCRIPTION = "export.json"
# name of the program's input, and of its output by part; a detector also takes boxes
INPUT, BOXES = "pixel_values", "boxes"
OUTPUTS = {"classifier": "logits", "features": "last_hidden_state", "detector": "logits"}
# batch sizes of the check; the first one is also that of the trace
BATCH_SIZES = (2, 1, 3)
# bytes of weights above which ONNX writes them to a second file (protobuf holds 2 GiB)
LARGEST_SINGLE_FILE = 1_500_000_000

# from clips, and for a detector boxes
Program = Callable[..., torch.Tensor]
Inputs = tuple[torch.Tensor, ...]


class ExportMismatchError(ValueError):
    """The outputs of an exported program differ from those of the model."""


@dataclass
class ExportArguments:
    """Arguments of an export.

    Args:
        model: folder or Hub id of an MVD checkpoint.
        part: `classifier` (clips to logits (B, classes)), `features` (clips to the tokens of the encoder (B, N, D),
            after its final norm if it has one) or `detector` (clips and boxes (B, P, 4) to logits (B, P, classes)).
        formats: `torch` (a `.pt2` file of torch.export) and `onnx`.
        pixels: input of the program: `float32`, normalised by the processor, or `uint8`, normalised by the program.
        sampling: `dense` or `uniform`, for a checkpoint without a video processor.
        stride: stride of dense clips, if it differs from the processor's.
        tolerance: largest accepted deviation from the model, relative to the largest output.
        output: folder to write.
    """

    model: str = ""
    part: str = "classifier"
    formats: list[str] | None = None
    pixels: str = "float32"
    sampling: str | None = None
    stride: int | None = None
    tolerance: float = 1e-4
    output: str = "outputs/export"

    def __post_init__(self):
        self.formats = ["torch"] if self.formats is None else self.formats
        if not self.model:
            raise ValueError("There is no model to export: give --model.")
        choices = {"part": (self.part, OUTPUTS), "pixels": (self.pixels, ("float32", "uint8"))}
        for name, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(known)}.")
        if not self.formats or not set(self.formats) <= set(FORMATS):
            raise ValueError(f"formats={self.formats} must be some of {', '.join(FORMATS)}.")


class Exported(torch.nn.Module):
    """A classifier or an encoder that returns one field of its output, as programs return tensors."""

    inputs: tuple[str, ...] = (INPUT,)

    def __init__(self, model: MVDForVideoClassification | MVDForActionDetection | MVDModel, output: str):
        super().__init__()
        self.model, self.output = model, output

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(pixel_values), self.output)

    def dynamic_shapes(self) -> dict[str, dict]:
        """The dimensions of the inputs that may change."""
        batch = torch.export.Dim("batch", min=1, max=1024)
        people = {BOXES: {0: batch, 1: torch.export.Dim("people", min=1, max=1024)}}
        return {INPUT: {0: batch}} | (people if BOXES in self.inputs else {})


class ExportedDetector(Exported):
    """A detector that returns logits (B, P, classes) of people in boxes (B, P, 4), in pixels of the clip."""

    inputs = (INPUT, BOXES)

    def forward(self, pixel_values: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(pixel_values, boxes), self.output)


def load_part(source: str, part: str) -> Exported:
    """A part of a checkpoint, in float32 and evaluation mode; raises ValueError if it has no such part."""
    stored = read_stored_config(source)
    if stored.get("model_type") != "mvd":
        raise ValueError(f"The model {source!r} has the type {stored.get('model_type')!r}: export supports MVD only.")
    options = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    architectures = stored.get("architectures") or ()
    is_classifier = "MVDForVideoClassification" in architectures
    if ("MVDForActionDetection" in architectures) != (part == "detector") and part != "features":
        raise ValueError(f"The model {source!r} is a {' or '.join(architectures)}: part={part!r} cannot be exported.")
    if part == "detector":
        return ExportedDetector(MVDForActionDetection.from_pretrained(source, **options), OUTPUTS[part]).eval()
    if part == "classifier":
        model = MVDForVideoClassification.from_pretrained(source, **options)
    else:
        # the encoder of a classifier with mean pooling has no final norm
        pools_tokens = is_classifier and stored.get("use_mean_pooling", True)
        pools_tokens = pools_tokens and not stored.get("use_attentive_pooling", False)
        model = MVDModel.from_pretrained(source, add_final_norm=not pools_tokens, **options)
    return Exported(model, OUTPUTS[part]).eval()


def random_clips(module: Exported, pixels: str, batch_size: int, seed: int = 0) -> torch.Tensor:
    """Clips (B, T, C, H, W) of noise as the input of the program."""
    config = module.model.config
    shape = (batch_size, config.num_frames, config.num_channels, *config.frame_size)
    generator = torch.Generator().manual_seed(seed + batch_size)
    if pixels == "uint8":
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


def random_inputs(module: Exported, pixels: str, batch_size: int) -> Inputs:
    """Clips of noise, and for a detector boxes (B, P, 4) of a number of people that differs from the batch size."""
    clips = random_clips(module, pixels, batch_size)
    if BOXES not in module.inputs:
        return (clips,)
    height, width = module.model.config.frame_size
    ends = torch.rand((batch_size, batch_size % 3 + 2, 2, 2), generator=torch.Generator().manual_seed(batch_size))
    corners = ends.sort(dim=2).values * torch.tensor([width, height])
    return clips, corners.flatten(2)


def export_torch(module: Exported, inputs: Inputs, path: Path) -> Program:
    """Write a `.pt2` file for any batch size, and return the program that is loaded from it."""
    program = torch.export.export(module, inputs, dynamic_shapes=module.dynamic_shapes())
    torch.export.save(program, path)
    return torch.export.load(path).module()


def check_onnx_packages():
    """Raise ImportError if a package for ONNX is missing."""
    if not (is_onnxscript_available() and is_onnxruntime_available()):
        raise ImportError('Exporting to ONNX needs onnx, onnxruntime and onnxscript: pip install "mvd_hf[export]".')


def export_onnx(module: Exported, inputs: Inputs, path: Path) -> Program:
    """Write an ONNX file for any batch size, and return the program as onnxruntime runs it on the CPU."""
    import onnxruntime

    size = sum(parameter.nbytes for parameter in module.parameters())
    torch.onnx.export(
        module,
        inputs,
        path,
        dynamo=True,
        input_names=list(module.inputs),
        output_names=[module.output],
        dynamic_shapes=module.dynamic_shapes(),
        external_data=size > LARGEST_SINGLE_FILE,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        arrays = {name: value.numpy() for name, value in zip(module.inputs, inputs, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


EXPORTERS: Mapping[str, Callable[[Exported, Inputs, Path], Program]] = {
    "torch": export_torch,
    "onnx": export_onnx,
}


@torch.no_grad()
def largest_deviation(program: Program, module: Exported, batches: Sequence[Inputs]) -> float:
    """Largest deviation of a program from the model over batches of inputs, relative to the largest output.

    Raises:
        ExportMismatchError: if an output has another shape or is not finite.
    """
    deviations = []
    for inputs in batches:
        expected, found = module(*inputs), program(*inputs)
        if found.shape != expected.shape or not found.isfinite().all():
            raise ExportMismatchError(
                f"For {len(inputs[0])} clips the output of the program has the shape {tuple(found.shape)}, that of "
                f"the model {tuple(expected.shape)}, or it is not finite."
            )
        deviations.append(float((found - expected).abs().max() / expected.abs().max()))
    return max(deviations)


def input_record(module: Exported, processor: MVDVideoProcessor, pixels: str) -> dict:
    """How to prepare the input of a program, for JSON."""
    config = module.model.config
    height, width = config.frame_size
    normalization = {"scale": 1 / 255, "mean": config.image_mean, "std": config.image_std}
    return {
        "name": INPUT,
        "dtype": pixels,
        "layout": "batch, frames, channels, height, width",
        "shape": ["batch", config.num_frames, config.num_channels, height, width],
        "channels": "RGB",
        # (pixel * scale - mean) / std of each channel
        "normalization": normalization if pixels == "float32" else "in the program: pixels from 0 to 255",
        "frames": {
            "sampling": processor.sampling,
            "stride": processor.frame_sampling_rate if processor.sampling == "dense" else None,
            **({} if processor.fps is None else {"fps": processor.fps}),
            "meaning": "dense: every stride-th frame; uniform: the middle frames of as many equal parts of the video",
        },
        "crop": {"short_side": min(height, width), "interpolation": "bilinear, not antialiased", "place": "centre"}
        | ({} if height == width else {"enlarged": "where frames are too small for the crop, until it fits"})
        if processor.do_center_crop
        else "none: whole frames, resized to this shape",
    }


# the second input of a detector, for JSON
BOXES_RECORD = {
    "name": BOXES,
    "dtype": "float32",
    "shape": ["batch", "people", 4],
    "meaning": "x1, y1, x2, y2 of each person in pixels of the clip; any box fills up a clip with fewer people",
}


def export_record(
    module: Exported, processor: MVDVideoProcessor, arguments: ExportArguments, deviations: Mapping[str, float]
) -> dict:
    """Input, output, checks and versions of an export, for JSON."""
    config = module.model.config
    with torch.no_grad():
        shape = ["batch", *module(*random_inputs(module, arguments.pixels, 1)).shape[1:]]
    output: dict = {"name": module.output, "shape": shape}
    if arguments.part != "features":
        output["labels"] = [config.id2label[i] for i in range(config.num_labels)]
    if arguments.part == "classifier":
        function = {MULTI_LABEL: "the sigmoid gives probabilities", REGRESSION: "the number"}
        meaning = function.get(config.problem_type, "softmax over the last axis gives probabilities")
        output["meaning"] = "log-probabilities of each head" if config.label_heads else f"logits: {meaning}"
    elif arguments.part == "detector":
        output["shape"][1] = "people"
        output["meaning"] = "logits: the sigmoid gives the probability of each action of a person"
    else:
        time, rows, columns = config.grid
        output["meaning"] = (
            f"{int(config.use_class_token)} class tokens, then a token per patch in the order time ({time}), row "
            f"({rows}), column ({columns})"
        )
    versions = {name: importlib.metadata.version(name) for name in ("mvd_hf", "torch", "transformers")}
    checks = {"batch_sizes": list(BATCH_SIZES), "tolerance": arguments.tolerance, "largest_deviation": deviations}
    return {
        "model": Path(arguments.model).name,
        "part": arguments.part,
        "files": {kind: FORMATS[kind] for kind in arguments.formats},
        "input": input_record(module, processor, arguments.pixels),
        **({BOXES: BOXES_RECORD} if BOXES in module.inputs else {}),
        "output": output,
        "checked": checks,
        "versions": versions,
    }


def export_model(arguments: ExportArguments) -> dict[str, float]:
    """Export a checkpoint and check the programs against it.

    The folder gets the programs, `export.json` (input, sampling, normalisation, labels, deviations) and the video
    processor, which prepares the input in Python. A program that fails its check is removed.

    Returns:
        The largest deviation of each program, see [`largest_deviation`].

    Raises:
        ValueError: if there is no such model, or the sampling of its frames is not known.
        ExportMismatchError: (a ValueError) if a program deviates by more than the tolerance.
        ImportError: if a package for ONNX is missing.
    """
    if "onnx" in arguments.formats:
        check_onnx_packages()
    module = load_part(arguments.model, arguments.part)
    processor = load_processor(arguments.model, module.model.config, arguments.sampling)
    if arguments.stride is not None:
        processor.frame_sampling_rate, processor.fps = arguments.stride, None
    processor.num_clips = processor.num_crops = 1  # a program sees one view
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    batches = [random_inputs(module, arguments.pixels, size) for size in BATCH_SIZES]
    deviations = {}
    for kind in arguments.formats:
        path = folder / FORMATS[kind]
        deviation = largest_deviation(EXPORTERS[kind](module, batches[0], path), module, batches)
        if deviation > arguments.tolerance:
            for part in folder.glob(f"{path.name}*"):  # ONNX may have a second file of weights
                part.unlink()
            raise ExportMismatchError(
                f"The {kind} program deviates from the model by {deviation:.2e} of the largest output, more than "
                f"tolerance={arguments.tolerance}, and was removed. Use other versions of torch or of the runtime, or "
                "raise the tolerance."
            )
        deviations[kind] = deviation
    description = export_record(module, processor, arguments, deviations)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    processor.save_pretrained(folder)
    return deviations
