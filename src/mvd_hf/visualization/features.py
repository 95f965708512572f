"""Features of the same clips from several models of any family, and the clips themselves.

Letters in shapes: B clips, T frames, C channels, S x S pixels; t x h x w the grid of patches, L = t*h*w patches, D
their width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from matplotlib.figure import Figure

from ..arguments import check_path
from ..data.decoding import open_media
from ..data.sources import media_column, media_name
from ..model.configuration_mvd import Size, compact_size, height_and_width
from ..model.frame_sampling import dense_test_frames
from ..model.video_processing_mvd import MVDVideoProcessor
from ..model.video_reading import VideoReader, VideoReadError
from ..teachers.families import find_family, read_config
from ..teachers.inputs import Grid
from ..teachers.teacher import Teacher, TeacherConfig, load_teacher
from .strips import write_figure, write_film

# entries of a recipe: a list of Hub ids or folders, or a mapping of names to these, to fields or to TeacherConfigs
ModelEntries = Sequence[str] | Mapping[str, str | Mapping | TeacherConfig]
# frames and tubelet of the clips if all models are image models, as in the paper
NUM_FRAMES, TUBELET_SIZE = 16, 2


def name_models(models: ModelEntries, **defaults) -> dict[str, TeacherConfig]:
    """Models by name; the models of a list are named by the last parts of their paths that differ.

    Args:
        models: ids or folders, or by name ids, folders or the fields of a `TeacherConfig`.
        defaults: fields of `TeacherConfig` that the entries may leave out.

    Raises:
        ValueError: if there is no model, one is repeated, or a field does not exist.
    """
    if not models:
        raise ValueError("There are no models: give --models with folders or Hub ids.")
    if not isinstance(models, Mapping):
        if len(set(models)) != len(models):
            raise ValueError(f"A model is repeated in models={list(models)}: give each once.")
        parts = [Path(model).parts for model in models]
        depth = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
        models = {"/".join(part[-depth:]): model for part, model in zip(parts, models, strict=True)}
    return {name: TeacherConfig.from_entry(name, entry, **defaults) for name, entry in models.items()}


@dataclass
class FeatureExtractor:
    """Models that give a feature for each patch of the same grid.

    Args:
        models: the frozen models, see `mvd_hf.teachers.Teacher`: `models[name](clips)` returns features (B, L, D).
        grid: patches of a clip, (time, rows, columns).
        num_frames: frames of a clip.
        image_size: pixels of a clip for the model that sets the grid: the side of a square, or (height, width).
    """

    models: dict[str, Teacher]
    grid: Grid
    num_frames: int
    image_size: Size

    @property
    def sizes(self) -> list[Size]:
        """The sizes of the clips that the models need; the first is the `image_size`."""
        return list(dict.fromkeys([self.image_size, *(model.image_size for model in self.models.values())]))

    def clips(self, frames: np.ndarray) -> dict[Size, torch.Tensor]:
        """A batch of one clip (1, T, C, h, w) per size, from frames (T, H, W, C)."""
        return {size: crop_frames(frames, size)[None] for size in self.sizes}

    def features(self, clips: Mapping[Size, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The name of each model and its float32 features (B, L, D) of clips (B, T, C, h, w) by their size."""
        for name, model in self.models.items():
            device = next(model.parameters()).device
            yield name, model({size: clip.to(device) for size, clip in clips.items()}).float()


def load_feature_extractor(models: ModelEntries, device: str | torch.device = "cpu", **defaults) -> FeatureExtractor:
    """Load models on one grid of patches: the grid of the first model that is trained on clips.

    If all of them are image models, clips have 16 frames and patches 2, as in the paper.

    Args:
        models: see [`name_models`]; models of any family of `mvd_hf.teachers.families`, MVD models of any stage.
        device: where the models compute.
        defaults: fields of `mvd_hf.TeacherConfig` for all models, such as `norm`.

    Raises:
        ValueError: if a model cannot be loaded completely, or its patches cannot match the grid.
    """
    named = name_models(models, **defaults)
    sizes = {}
    for name, entry in named.items():
        config = read_config(entry.model)
        sizes[name] = find_family(config, entry.model).architecture(config, entry.model)
    leader = next((name for name, size in sizes.items() if size.num_frames > 1), next(iter(named)))
    size, is_image_model = sizes[leader], sizes[leader].num_frames == 1
    num_frames, tubelet_size = (NUM_FRAMES, TUBELET_SIZE) if is_image_model else (size.num_frames, size.tubelet_size)
    image_size = compact_size(named[leader].image_size or size.image_size)
    grid = num_frames // tubelet_size, *(side // size.patch_size for side in height_and_width(image_size))
    loaded = {name: load_teacher(entry, grid, num_frames).to(device) for name, entry in named.items()}
    return FeatureExtractor(loaded, grid, num_frames, image_size)


def clip_indices(reader: VideoReader, num_frames: int, stride: int, start: float | None = None) -> np.ndarray:
    """Frame indices (T,) of a clip: the middle of a video, or from `start` on; past its end the last frame repeats.

    Raises:
        ValueError: if the video ends before `start`, in seconds.
    """
    if start is None:
        return dense_test_frames(len(reader), num_frames, stride, num_clips=1)[0]
    return np.minimum(reader.frame_at(start) + stride * np.arange(num_frames), len(reader) - 1)


def crop_frames(frames: np.ndarray, size: Size) -> torch.Tensor:
    """Frames (T, H, W, C) with the short side resized and the centre cropped: (T, C, height, width) uint8."""
    height, width = height_and_width(size)
    processor = MVDVideoProcessor(
        size={"shortest_edge": min(height, width)}, crop_size={"height": height, "width": width}
    )
    options = {"do_sample_frames": False, "do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    return processor(frames, **options)["pixel_values"][0]


@dataclass
class ClipFigureArguments:
    """The clip that a figure shows and the files to write, as a recipe's keys.

    Args:
        video: a video file.
        start: second at which the clip begins; by default the clip is the middle of the video.
        stride: step between its frames.
        film: whether to write an mp4 file beside the figure.
        fps: frames of the clip per second of the film.
        device: where models compute.
        output: PNG file; the mp4 file and the arrays (.npz) have the same name.
    """

    video: str = ""
    start: float | None = None
    stride: int = 4
    film: bool = True
    fps: int = 4
    device: str = "cpu"
    output: str = "outputs/figures/clip.png"

    def check_paths(self, models: ModelEntries):
        """Raise ValueError for a model or a video that is not there, before the Hub is asked for a model."""
        for entry in models.values() if isinstance(models, Mapping) else models:
            if isinstance(entry, str):
                check_path(entry, "model")
        if not self.video:
            raise ValueError("Nothing to draw: give --video.")
        if not Path(self.video).is_file():
            raise ValueError(f"There is no video {self.video!r}.")

    def read_clip(self, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames (T, H, W, 3) of the clip, and their times (T,) in seconds.

        Raises:
            ValueError: if the video ends before `start`.
            VideoReadError: (a ValueError) if it cannot be read.
        """
        with VideoReader(self.video) as reader:
            indices = clip_indices(reader, num_frames, self.stride, self.start)
            return reader.read(indices), reader.times()[indices]

    def write(self, figure: Figure, film: Iterable[np.ndarray], **arrays) -> list[Path]:
        """Write a figure, its arrays and the frames of its film; returns the paths."""
        path = write_figure(self.output, figure)
        paths = [path, path.with_suffix(".npz")]
        np.savez_compressed(paths[1], **arrays)
        if self.film:
            paths.append(path.with_suffix(".mp4"))
            write_film(paths[2], film, 1 / self.fps, self.fps)
        return paths


class MiddleClips(torch.utils.data.Dataset):
    """The middle clip of each video: items (name, {size: (T, C, h, w)}, None), or (name, None, reason) if unreadable.

    Args:
        rows: videos, see `mvd_hf.data.sources.load_rows`.
        num_frames: frames of a clip.
        stride: step between its frames.
        sizes: of the clips.
    """

    def __init__(self, rows: datasets.Dataset, num_frames: int, stride: int, sizes: Sequence[Size]):
        self.rows, self.column = rows, media_column(rows)
        self.num_frames, self.stride, self.sizes = num_frames, stride, sizes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[str, dict[Size, torch.Tensor] | None, str | None]:
        item = self.rows[row][self.column]
        try:
            with open_media(item) as reader:
                frames = reader.read(clip_indices(reader, self.num_frames, self.stride))
        except VideoReadError as error:
            return media_name(item), None, error.reason or str(error)
        return media_name(item), {size: crop_frames(frames, size) for size in self.sizes}, None
