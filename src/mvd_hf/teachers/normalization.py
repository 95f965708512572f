"""How pixels become a model's input: statistics of families, and of the processor that is stored with a model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, cached_file

from ..model.configuration_mvd import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Normalization:
    """How pixels become a model's input: (byte * rescale_factor - mean) / std.

    Args:
        mean, std: one number per channel, or one for all.
        rescale_factor: 1/255 if the mean and std are those of pixels from 0 to 1.

    Raises:
        ValueError: if a standard deviation or the factor is 0, or there are neither 1 nor 3 means and deviations.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]
    rescale_factor: float = 1 / 255

    def __post_init__(self):
        for name in ("mean", "std"):
            value = getattr(self, name)
            values = tuple(value) if isinstance(value, Sequence) else (value,) * 3
            if len(values) != 3:
                raise ValueError(f"{name}={value} must be one number or one for each of the 3 channels.")
            object.__setattr__(self, name, values)
        if 0 in self.std or self.rescale_factor == 0:
            raise ValueError(f"std={self.std} and rescale_factor={self.rescale_factor} must not be 0.")

    def from_bytes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and offset, each (3, 1, 1) in float64, from bytes to the model's input."""
        mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (self.mean, self.std))
        return self.rescale_factor / std, -mean / std

    def from_normalized(self, other: "Normalization") -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and offset, each (3, 1, 1) in float64, from pixels in another normalization to the model's input."""
        scale, offset = self.from_bytes()
        other_scale, other_offset = other.from_bytes()
        return scale / other_scale, offset - other_offset * scale / other_scale


IMAGENET = Normalization(IMAGENET_MEAN, IMAGENET_STD)
HALF = Normalization(IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
OPENAI_CLIP = Normalization(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
UNIT_RANGE = Normalization(0.0, 1.0)


def read_json(source: str, name: str, revision: str | None = None) -> dict | None:
    """Content of a JSON file of a local folder or Hub id; `None` if there is no such file."""
    path = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def read_normalization(
    source: str, default: Normalization, is_video: bool, revision: str | None = None
) -> Normalization | None:
    """The normalization that the processor of a local folder or Hub id applies; `None` without a processor.

    Args:
        source: the folder or id.
        default: of the model's family, for what the processor's file leaves out.
        is_video: whether a video processor comes before an image processor.
        revision: of the repository.

    Raises:
        ValueError: if the processor's file cannot be read or makes no sense.
    """
    kinds, files = ["image_processor"], [IMAGE_PROCESSOR_NAME]
    if is_video:
        kinds, files = ["video_processor", *kinds], [VIDEO_PROCESSOR_NAME, *files]
    try:
        together = read_json(source, PROCESSOR_NAME, revision) or {}
        candidates = [*(together.get(kind) for kind in kinds), *(read_json(source, file, revision) for file in files)]
        stored = next((candidate for candidate in candidates if candidate is not None), None)
        if stored is None:
            return None
        defaults = {"image_mean": default.mean, "image_std": default.std}
        mean, std = (value if stored.get(name) is None else stored[name] for name, value in defaults.items())
        if not stored.get("do_normalize", True):
            mean, std = 0.0, 1.0
        factor = stored.get("rescale_factor", 1 / 255) if stored.get("do_rescale", True) else 1.0
        return Normalization(mean, std, factor)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"The processor of the teacher {source!r} cannot be read: {error}") from error
