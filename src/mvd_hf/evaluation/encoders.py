"""Any model that can teach, or that was trained here, as a frozen encoder of clips; image models see single frames.

Letters in shapes: B clips, T frames, C channels, H x W pixels, L tokens, D their width.
"""

import logging
import time
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, PreTrainedConfig

from ..data.hashing import hash_of_weights
from ..model.configuration_mvd import compact_size, height_and_width
from ..model.video_processing_mvd import MVDVideoProcessor
from ..teachers.families import Architecture, find_family, read_config
from ..teachers.teacher import CHOICES, Teacher, TeacherConfig, load_teacher, stored_normalization

logger = logging.getLogger(__name__)

# side of the input of image models that were trained on larger images
IMAGE_SIZE = 224
# frames that `stride` counts: clips of other lengths cover the same span of a video
SPAN_FRAMES = 16


@dataclass
class EncoderArguments:
    """One model of a comparison.

    Args:
        model: Hub id or local folder of a model that can teach (`mvd_hf.teachers.families`): ours of any stage, too.
        num_frames: frames of a clip; by default those that a video model was trained with, and `image_frames` for an
            image model.
        image_size: pixels of its input: the side of a square, or [height, width]; by default as trained, for image
            models at most 224 along the shorter side.
        layers: hidden states to concatenate, from 1 for the output of the first layer; -1 is the last.
        norm: features `pre` or `post` the final norm; by default as for teachers, see `mvd_hf.TeacherConfig`.
        dtype: `float32`, `bfloat16` or `float16`.
        random_weights: whether to replace the weights by random ones.
    """

    model: str
    num_frames: int | None = None
    image_size: int | list[int] | None = None
    layers: list[int] | None = None
    norm: str | None = None
    dtype: str = "float32"
    random_weights: bool = False

    def __post_init__(self):
        if not self.layers and self.layers is not None:
            raise ValueError(f"layers={self.layers} of the model {self.model!r} must name a layer.")
        for name in ("norm", "dtype"):
            if getattr(self, name) not in CHOICES[name]:
                known = ", ".join(filter(None, CHOICES[name]))
                raise ValueError(f"{name}={getattr(self, name)!r} of the model {self.model!r} must be one of {known}.")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames={self.num_frames} of the model {self.model!r} must be at least 1.")
        if self.image_size is not None:
            height_and_width(self.image_size)


def layer_numbers(layers: list[int] | None, available: int, source: str) -> list[int]:
    """Numbers of the hidden states, from 1 to the number of layers; raises ValueError for one that does not exist."""
    numbers = [available] if layers is None else [n if n >= 0 else available + 1 + n for n in layers]
    if not all(1 <= number <= available for number in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"layers={layers} of the model {source!r} must be different ones from 1 to {available}, or from -1 to "
            f"-{available}."
        )
    return numbers


def untrained_teacher(config: TeacherConfig, model_config: PreTrainedConfig, grid, num_frames: int, seed: int):
    """The network of a teacher with random weights."""
    attention = find_family(model_config, config.model).attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(model_config, dtype=getattr(torch, config.dtype), attn_implementation=attention)
    return Teacher(config, model, grid, num_frames, stored_normalization(config, model_config))


class Encoder(nn.Module):
    """A frozen model as an encoder: `encoder(clips)` gives the patch tokens (B, L, D) of clips (B, T, C, H, W) uint8.

    A video model sees the clip, an image model each of its frames; its tokens are those of all frames in turn.

    Args:
        name: name in the comparison.
        arguments: the model.
        image_frames: frames of a clip of an image model that does not say its number.
        seed: of random weights.

    Raises:
        ValueError: if the model cannot be loaded completely, or lacks a layer.
    """

    def __init__(self, name: str, arguments: EncoderArguments, image_frames: int = 8, seed: int = 0):
        super().__init__()
        self.name, self.arguments, self.seed = name, arguments, seed
        config = read_config(arguments.model)
        sizes = find_family(config, arguments.model).architecture(config, arguments.model)
        self.is_image_model = sizes.num_frames == 1
        self.num_frames = arguments.num_frames or (image_frames if self.is_image_model else sizes.num_frames)
        size = self._image_size(sizes) if arguments.image_size is None else arguments.image_size
        self.image_size = compact_size(size)
        self.layers = layer_numbers(arguments.layers, sizes.num_hidden_layers, arguments.model)
        teacher = TeacherConfig(
            arguments.model,
            frames="all" if self.is_image_model else "clip",
            image_size=size,
            layers=self.layers,
            norm=arguments.norm,
            dtype=arguments.dtype,
        )
        sides = (side // sizes.patch_size for side in height_and_width(size))
        grid = (self.num_frames // sizes.tubelet_size, *sides)
        if arguments.random_weights:
            self.teacher = untrained_teacher(teacher, config, grid, self.num_frames, seed)
        else:
            self.teacher = load_teacher(teacher, grid, self.num_frames)
        self.width = self.teacher.feature_dim

    def _image_size(self, sizes: Architecture) -> list[int]:
        """The default (height, width) of the input, multiples of the patch size."""
        size = height_and_width(sizes.image_size)
        short = min(size)
        limit = min(short, IMAGE_SIZE) if self.is_image_model else short
        return [side * limit // short // sizes.patch_size * sizes.patch_size for side in size]

    @torch.no_grad()
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        teacher = self.teacher
        inputs = clips[:, :: teacher.frame_step].reshape(-1, teacher.input_frames, *clips.shape[2:])
        return teacher.patch_features(inputs).reshape(len(clips), -1, self.width)

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """One vector per clip (B, D), see [`pool_tokens`]."""
        return pool_tokens(tokens)

    def processor(self, sampling: str, stride: int, num_clips: int = 1, num_crops: int = 1) -> MVDVideoProcessor:
        """Makes the clips. `stride` counts for 16 frames: fewer frames lie further apart, over the same span."""
        height, width = height_and_width(self.image_size)
        return MVDVideoProcessor(
            num_frames=self.num_frames,
            size={"shortest_edge": min(height, width)},
            crop_size={"height": height, "width": width},
            sampling=sampling,
            frame_sampling_rate=max(1, round(SPAN_FRAMES * stride / self.num_frames)),
            num_clips=num_clips,
            num_crops=num_crops,
        )

    def identity(self) -> dict:
        """What the features depend on besides the clips."""
        settings = {key: value for key, value in asdict(self.arguments).items() if key not in ("model", "layers")}
        scaling = [getattr(self.teacher, f"byte_{name}").flatten().tolist() for name in ("scale", "offset")]
        weights = hash_of_weights(self.state_dict())
        return {"weights": weights, "normalization": scaling, **settings, "layers": self.layers}

    def num_parameters(self) -> int:
        """Number of weights that the features need."""
        return sum(parameter.numel() for parameter in self.parameters())

    def random_clips(self, count: int) -> torch.Tensor:
        """Clips of noise on the device of the weights."""
        shape = (count, self.num_frames, 3, *height_and_width(self.image_size))
        generator = torch.Generator().manual_seed(0)
        device = next(self.parameters()).device
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)

    def flops(self) -> int:
        """FLOPs of the matrix products for one clip, two per multiply-accumulate."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self(self.random_clips(1))
        return counter.get_total_flops()

    def clips_per_second(self, batch_size: int = 2, rounds: int = 3) -> float:
        """Clips per second of wall time on this machine, without decoding; the best of some rounds."""
        clips = self.random_clips(batch_size)
        self(clips)
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            self(clips).sum().item()  # waits for the device
            times.append(time.perf_counter() - start)
        return batch_size / min(times)


class PixelEncoder(nn.Module):
    """A baseline without a network: the colors of a few small frames, (B, T * C * 16 * 16)."""

    name, num_frames, image_size, grid = "pixels", 4, 64, 16

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        small = nn.functional.adaptive_avg_pool2d(clips.flatten(0, 1).float() / 255, self.grid)
        return small.reshape(len(clips), 1, -1)

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 0]

    processor = Encoder.processor

    def identity(self) -> dict:
        return {"weights": "pixels", "grid": self.grid}


def pool_tokens(tokens: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """The mean of tokens (B, L, D), standardised per clip by a layer norm without parameters, (B, D) in float32."""
    pooled = tokens.float().mean(dim=1)
    with torch.autocast(pooled.device.type, enabled=False):
        return nn.functional.layer_norm(pooled, pooled.shape[-1:], eps=eps)
