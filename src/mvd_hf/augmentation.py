"""What happens to the pixels of a training clip: one crop for all its frames, resized once, on uint8.

Boxes are (top, left, height, width) in pixels. Frames are (T, H, W, 3) uint8, clips (T, 3, S, S) uint8.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torchvision.transforms import v2

Box = tuple[int, int, int, int]

# (top, left) of a multi-scale crop in quarters of the free height and width
CROP_OFFSETS = (
    (0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3),
)  # fmt: skip


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Let torchvision's transforms, which draw from torch's global state, follow a generator instead."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


class MultiScaleCrop:
    """The crop of MVD's and VideoMAE's pre-training: one of 10 sizes at one of 13 places, both uniform.

    Sides are 1, 0.875, 0.75 or 0.66 of the frame's short side; height and width are at most one step apart, so the
    aspect ratio changes. A side within 2 pixels of the output size becomes the output size, if the frame has room
    for it (where it has not, the official program reads black pixels beside the frame).

    Args:
        size: pixels of the student's square input.
        scales: the possible sides, as parts of the frame's short side.
    """

    def __init__(self, size: int, scales: Sequence[float] = (1.0, 0.875, 0.75, 0.66)):
        self.size, self.scales = size, tuple(scales)

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The possible (height, width) for frames of this size."""
        short = min(height, width)
        sides = [int(short * scale) for scale in self.scales]
        sides = [self.size if abs(side - self.size) < 3 and self.size <= short else side for side in sides]
        return [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]

    def boxes(self, height: int, width: int) -> list[list[Box]]:
        """The possible boxes: a list of 13 per possible size."""
        return [
            [(top * ((height - h) // 4), left * ((width - w) // 4), h, w) for top, left in CROP_OFFSETS]
            for h, w in self.sizes(height, width)
        ]

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Box:
        """A box for frames of this size."""
        size, place = (int(torch.randint(count, (), generator=generator)) for count in (10, len(CROP_OFFSETS)))
        return self.boxes(height, width)[size][place]


class RandomResizedCrop:
    """The crop of MAE's pre-training (area 20 to 100 %) and of fine-tuning (8 to 100 %), with a random aspect ratio.

    Args:
        scale: smallest and largest area, as parts of the frame.
        ratio: smallest and largest aspect ratio.
    """

    def __init__(self, scale: tuple[float, float] = (0.2, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)):
        self.crop = v2.RandomResizedCrop(1, scale=scale, ratio=ratio)

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Box:
        """A box for frames of this size."""
        with seeded(generator):
            box = self.crop.make_params([torch.empty(3, height, width, device="meta")])
        return box["top"], box["left"], box["height"], box["width"]


def resize_frames(frames: np.ndarray, size: int, interpolation: str = "bilinear") -> torch.Tensor:
    """Frames (T, H, W, 3) uint8 to a clip (T, 3, size, size) uint8, antialiased.

    Bilinear results are within 2 grey levels of Pillow's, which the official programs use.
    """
    batch = torch.from_numpy(frames).permute(0, 3, 1, 2)  # channels last in memory: torchvision's fast path
    resized = v2.functional.resize(batch, [size, size], v2.InterpolationMode(interpolation), antialias=True)
    return resized.contiguous()


class PretrainingAugmentation:
    """One crop per clip, resized to each size that the student and the teachers want, and an optional flip.

    Args:
        sizes: pixels of the square clips to make; the student's first.
        crop: `"multi_scale"` (MVD and VideoMAE, bilinear, no flip) or `"random_resized"` (MAE, bicubic, with flip).

    Raises:
        ValueError: if there is no such crop.
    """

    def __init__(self, sizes: Sequence[int], crop: str = "multi_scale"):
        if crop not in ("multi_scale", "random_resized"):
            raise ValueError(f"There is no crop {crop!r}; choose 'multi_scale' or 'random_resized'.")
        self.sizes = tuple(dict.fromkeys(sizes))
        self.crop = MultiScaleCrop(self.sizes[0]) if crop == "multi_scale" else RandomResizedCrop()
        self.interpolation, self.flip = ("bilinear", 0.0) if crop == "multi_scale" else ("bicubic", 0.5)

    def __call__(self, read, generator: torch.Generator) -> dict[int, torch.Tensor]:
        """Clips by size, each (T, 3, size, size) uint8.

        Args:
            read: gives the frames (T, height, width, 3) of a box; called with a function of the frames' height and
                width that gives the box.
            generator: source of randomness.
        """
        frames = read(lambda height, width: self.crop(height, width, generator))
        if float(torch.rand((), generator=generator)) < self.flip:
            frames = np.ascontiguousarray(frames[:, :, ::-1])
        return {size: resize_frames(frames, size, self.interpolation) for size in self.sizes}
