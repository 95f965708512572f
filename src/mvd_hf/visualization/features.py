"""Models that look at the same clips, whatever their families, and the clips that they look at.

Letters in shapes: B clips, T frames, C channels, S x S pixels; t x h x w the grid of patches, L = t*h*w patches, D
their width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import datasets
import numpy as np
import torch

from ..data.decoding import open_media
from ..data.sources import media_column, media_name
from ..model.frame_sampling import dense_test_frames
from ..model.video_processing_mvd import MVDVideoProcessor
from ..model.video_reading import VideoReader, VideoReadError
from ..teachers.families import Grid, input_sizes, read_config
from ..teachers.teacher import Teacher, TeacherConfig, load_teacher

# what models of a list, a mapping, or a recipe are
Models = Sequence[str] | Mapping[str, str | Mapping | TeacherConfig]
# frames and tubelet of the clips where no model says otherwise, as of the paper
NUM_FRAMES, TUBELET_SIZE = 16, 2


def name_models(models: Models, **defaults) -> dict[str, TeacherConfig]:
    """Models by name; those of a list are named by the last parts of their paths that tell them apart.

    Args:
        models: ids or folders, or, by name, these or the fields of a `TeacherConfig`.
        defaults: fields of those of which only the id or folder is given.

    Raises:
        ValueError: if there is no model, one comes twice, or a field does not exist.
    """
    if not models:
        raise ValueError("There are no models to look at: give --models with folders or Hub ids.")
    if not isinstance(models, Mapping):
        if len(set(models)) != len(models):
            raise ValueError(f"Each model is looked at once, but models={list(models)}.")
        parts = [Path(model).parts for model in models]
        depth = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
        models = {"/".join(part[-depth:]): model for part, model in zip(parts, models, strict=True)}
    known = [field.name for field in fields(TeacherConfig)]
    named = {}
    for name, entry in models.items():
        if isinstance(entry, Mapping):
            unknown = sorted(entry.keys() - set(known))
            if unknown or "model" not in entry:
                problem = f"unknown keys {', '.join(unknown)}" if unknown else "no key 'model'"
                raise ValueError(f"The model {name!r} has {problem}; the keys are {', '.join(known)}.")
            entry = TeacherConfig(**(defaults | entry))
        named[name] = TeacherConfig(entry, **defaults) if isinstance(entry, str) else entry
    return named


@dataclass
class Viewers:
    """Models with a feature for each patch of one grid.

    Args:
        models: the frozen models, see `mvd_hf.teachers.Teacher`: `models[name](clips)` gives features (B, L, D).
        grid: patches of a clip, (time, rows, columns).
        num_frames: frames of a clip.
        image_size: pixels of a clip's side where its patches are those of the model that set the grid.
    """

    models: dict[str, Teacher]
    grid: Grid
    num_frames: int
    image_size: int

    @property
    def sizes(self) -> list[int]:
        """The sides of the clips that are needed: the grid's own, then those of the models."""
        return list(dict.fromkeys([self.image_size, *(model.image_size for model in self.models.values())]))

    def features(self, clips: Mapping[int, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The name of each model and its float32 features (B, L, D) of clips (B, T, C, S, S) by their side S."""
        for name, model in self.models.items():
            device = next(model.parameters()).device
            yield name, model({size: clip.to(device) for size, clip in clips.items()}).float()


def load_viewers(models: Models, device: str | torch.device = "cpu", **defaults) -> Viewers:
    """Load models that look at the same patches: those of the first model that sees clips.

    Where all of them are image models, patches are of 2 frames and clips have 16, as in the paper.

    Args:
        models: see [`name_models`]; any family of `mvd_hf.teachers.families`, and MVD checkpoints of every stage.
        device: where they compute.
        defaults: fields of `mvd_hf.TeacherConfig` for all of them, such as `norm`.

    Raises:
        ValueError: if a model cannot be loaded completely, or not look at those patches.
    """
    named = name_models(models, **defaults)
    configs = {name: read_config(entry.model) for name, entry in named.items()}
    sizes = {name: input_sizes(config, named[name].model) for name, config in configs.items()}
    leader = next((name for name, size in sizes.items() if size.num_frames > 1), next(iter(named)))
    size, is_image_model = sizes[leader], sizes[leader].num_frames == 1
    num_frames, tubelet_size = (NUM_FRAMES, TUBELET_SIZE) if is_image_model else (size.num_frames, size.tubelet_size)
    config = configs[leader]
    image_size = config.crop_size if config.model_type == "vjepa2" else config.image_size
    image_size = named[leader].image_size or (image_size if isinstance(image_size, int) else image_size[0])
    side = image_size // size.patch_size
    grid = num_frames // tubelet_size, side, side
    loaded = {name: load_teacher(entry, grid, num_frames).to(device) for name, entry in named.items()}
    return Viewers(loaded, grid, num_frames, image_size)


def frame_numbers(reader: VideoReader, num_frames: int, stride: int, start: float | None = None) -> np.ndarray:
    """Numbers (T,) of a clip's frames: the middle of a video, or from a second on; at its end the last one repeats.

    Raises:
        ValueError: if the video is over at that second.
    """
    if start is None:
        return dense_test_frames(len(reader), num_frames, stride, num_clips=1)[0]
    return np.minimum(reader.frame_at(start) + stride * np.arange(num_frames), len(reader) - 1)


def crop_frames(frames: np.ndarray, size: int | tuple[int, int]) -> torch.Tensor:
    """Frames (T, H, W, C) as the paper tests: short side resized, centre cropped: (T, C, height, width) uint8."""
    height, width = (size, size) if isinstance(size, int) else size
    processor = MVDVideoProcessor(
        size={"shortest_edge": min(height, width)}, crop_size={"height": height, "width": width}
    )
    options = {"do_sample_frames": False, "do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    return processor(frames, **options)["pixel_values"][0]


@dataclass
class ClipPictureArguments:
    """Which part of which video a picture shows, as a recipe's keys.

    Args:
        video: a video file.
        start: second at which the clip begins; by default it is the middle of the video.
        stride: distance of its frames.
        film: whether an mp4 file is written beside the picture.
        fps: frames that the film shows per second.
    """

    video: str = ""
    start: float | None = None
    stride: int = 4
    film: bool = True
    fps: int = 4

    def read_clip(self, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames (T, H, W, 3) of the clip, and their times (T,) in seconds.

        Raises:
            ValueError: if no video was given, or it is over at the start.
            VideoReadError: (a ValueError) if it cannot be read.
        """
        if not self.video:
            raise ValueError("Nothing to draw: give --video.")
        with VideoReader(self.video) as reader:
            numbers = frame_numbers(reader, num_frames, self.stride, self.start)
            return reader.read(numbers), reader.times()[numbers]


class SeenClips(torch.utils.data.Dataset):
    """The middle clip of each video of a data set, for viewers: items (name, {side: (T, C, S, S)}, why there is none).

    Args:
        rows: videos, see `mvd_hf.data.sources.load_rows`.
        num_frames: frames of a clip.
        stride: distance of its frames.
        sizes: sides of the clips.
    """

    def __init__(self, rows: datasets.Dataset, num_frames: int, stride: int, sizes: Sequence[int]):
        self.rows, self.column = rows, media_column(rows)
        self.num_frames, self.stride, self.sizes = num_frames, stride, sizes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[str, dict[int, torch.Tensor] | None, str | None]:
        item = self.rows[row][self.column]
        try:
            with open_media(item) as reader:
                frames = reader.read(frame_numbers(reader, self.num_frames, self.stride))
        except VideoReadError as error:
            return media_name(item), None, error.reason or str(error)
        return media_name(item), {size: crop_frames(frames, size) for size in self.sizes}, None
