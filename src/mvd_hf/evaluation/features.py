"""Features of videos by an encoder: computed once, kept in a folder, and exported for other programs.

Letters in shapes: N videos, V views of each (clips x crops), K clips, M = N * V views, L tokens of a view, D width.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers.video_utils import VideoMetadata

from ..data.decoding import open_media
from ..data.frame_memory import media_key
from ..data.hashing import hash_of_names
from ..data.sources import holds_images, media_column, media_name
from ..model.loading_mvd import listed
from ..model.video_processing_mvd import MVDVideoProcessor
from .encoders import Encoder, PixelEncoder
from .views import VideoViews, ViewResults, map_views

EXPORT_FORMATS = ("npz", "safetensors")


def extract_features(
    encoder: Encoder | PixelEncoder,
    rows: datasets.Dataset,
    processor: MVDVideoProcessor,
    folder: str | Path,
    *,
    tokens: bool = False,
    **options,
) -> ViewResults:
    """Features of the views of all videos, from the folder where they were computed before.

    Args:
        encoder: the encoder, on the device to use.
        rows: the videos.
        processor: makes the views.
        folder: has a sub-folder for each encoder, with its weights and settings, and set of videos.
        tokens: whether to keep `tokens` (V, L, D) in half precision beside `pooled` (V, D).
        options: of the passes, see [`~mvd_hf.evaluation.views.ViewOptions`].

    Raises:
        ValueError: if features are not finite, or no video can be read.
    """
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    names = hash_of_names(str(media_key(item)) for item in rows[media_column(rows)])
    identity = {"encoder": encoder.identity(), "tokens": tokens}
    key = json.dumps([identity, processor.to_dict(), names], sort_keys=True, default=str)
    place = Path(folder) / f"{encoder.name}-{hashlib.blake2b(key.encode(), digest_size=6).hexdigest()}"

    def encode(views: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features of views."""
        found = encoder(views.to(device, non_blocking=True))
        features = {"pooled": encoder.pool(found).float()} | ({"tokens": found.half()} if tokens else {})
        for kind, values in features.items():
            if not values.isfinite().all():
                raise ValueError(f"The {kind} features of {encoder.name!r} are not finite: choose dtype float32.")
        return features

    results = map_views(encode, VideoViews(rows, processor), place, identity, **options)
    if not results.rows():
        raise ValueError(f"None of the {len(rows)} videos can be read: the warnings above have the reasons.")
    return results


class LabelledViews:
    """Cached features of the views of labelled videos, as samples of a probe.

    Args:
        results: of [`extract_features`] or `mvd_hf.evaluation.probing.cache_features`.
        kind: `pooled` or `tokens`.
        labels: of each row of the data set: class index, multi-hot, indices of heads, or a number.
        groups: of each row, such as its source video: a group is held out as a whole. By default each row is one.

    Attributes:
        labels, groups: (M,) of the views.
    """

    def __init__(self, results: ViewResults, kind: str, labels: np.ndarray, groups: Sequence[int] | None = None):
        self.results, self.kind = results, kind
        if kind not in results.shapes:
            problems = [f"row {row}: {problem}" for row, problem in results.problems.items()]
            raise ValueError(f"None of the videos can be read: {listed(problems)}.")
        rows, views = torch.tensor(results.rows()), results.shapes[kind][0]
        self.places = [(row, view) for row in rows.tolist() for view in range(views)]
        self.labels = torch.from_numpy(labels)[rows].repeat_interleave(views, dim=0)
        self.groups = (rows if groups is None else torch.tensor(groups)[rows]).repeat_interleave(views)

    def __len__(self) -> int:
        return len(self.places)

    def read(self, chosen: Sequence[int] | None = None) -> torch.Tensor:
        """Features (n, ...) of some views, or of all, in float32."""
        if chosen is None:
            return torch.from_numpy(self.results.stack(self.kind)).flatten(0, 1).float()
        places = [self.places[i] for i in chosen]
        return torch.from_numpy(np.stack([self.results.array(row, self.kind)[view] for row, view in places])).float()


# files for other programs


def clip_times(item, processor: MVDVideoProcessor, is_image: bool) -> np.ndarray:
    """Seconds (K, 2) of the first and the last frame of the clips of a video."""
    if is_image:
        return np.zeros((processor.num_clips, 2))
    with open_media(item) as reader:
        frames = processor.sample_frames(VideoMetadata(total_num_frames=len(reader)))
        times = reader.times()[frames.reshape(processor.num_clips, -1)]
    return np.stack([times.min(axis=1), times.max(axis=1)], axis=1)


def file_stems(names: Sequence[str]) -> list[str]:
    """A file name without suffix for each video, with the numbers of the rows if several videos have the same."""
    stems = [Path(name.replace(":", "_")).stem for name in names]
    counts = Counter(stems)
    return stems if max(counts.values()) == 1 else [f"{row:06d}_{stem}" for row, stem in enumerate(stems)]


def export_features(
    results: ViewResults, rows: datasets.Dataset, processor: MVDVideoProcessor, folder: str | Path, kind: str = "npz"
) -> Path:
    """Write one file per video, with `features` (K, D) and `times` (K, 2), as programs for long videos read them.

    A clip's feature is the mean over its crops, its times are the seconds of its first and last frame. `index.json`
    maps the name of each video to its file. With dense clips that follow each other this is the sequence of snippets
    that temporal action localisation (ActionFormer and others) takes.

    Args:
        results: of [`extract_features`], with these rows and this processor.
        rows: the videos.
        processor: made the views.
        folder: to write to.
        kind: `npz` or `safetensors`.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind not in EXPORT_FORMATS:
        raise ValueError(f"There is no kind={kind!r} of exported features; choose {' or '.join(EXPORT_FORMATS)}.")
    folder, column = Path(folder), media_column(rows)
    folder.mkdir(parents=True, exist_ok=True)
    names = [media_name(item) for item in rows[column]]
    index = {}
    for row, stem in ((row, stem) for row, stem in enumerate(file_stems(names)) if row in results.place):
        views = results.array(row, "pooled")
        arrays = {
            "features": views.reshape(processor.num_clips, -1, views.shape[-1]).mean(axis=1),
            "times": clip_times(rows[row][column], processor, holds_images(rows, column)),
        }
        path = folder / f"{stem}.{kind}"
        np.savez(path, **arrays) if kind == "npz" else save_file(arrays, path)
        index[names[row]] = path.name
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return folder
