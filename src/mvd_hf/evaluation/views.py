"""Functions of the test views of every video: decoded once, distributed over processes, resumable.

Letters in shapes: V views of a video (clips x crops), T frames, C channels, H x W pixels.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from pyarrow import feather
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ..data.atomic import replace_file
from ..data.decoding import encoded_video
from ..data.hashing import hash_of_names
from ..data.sources import media_column, media_name
from ..model.video_processing_mvd import MVDVideoProcessor
from ..model.video_reading import VideoReadError

logger = logging.getLogger(__name__)

# file that describes what a folder of results was computed for
DESCRIPTION = "views.json"
# videos per file of results
VIDEOS_PER_PART = 64

# (n, T, C, H, W) -> named tensors (n, ...)
ViewFunction = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]


class VideoViews(torch.utils.data.Dataset):
    """The views of the videos of a data set: items (row, name, views (V, T, C, H, W) or `None`, error or `None`).

    With `as_bytes`, views are uint8 pixels for a model that normalises its input.
    """

    def __init__(self, rows: datasets.Dataset, processor: MVDVideoProcessor, as_bytes: bool = True):
        self.rows, self.column, self.processor = rows, media_column(rows), processor
        self.options = {"do_rescale": False, "do_normalize": False} if as_bytes else {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[int, str, torch.Tensor | None, str | None]:
        item = self.rows[row][self.column]
        name = media_name(item)
        try:
            video = encoded_video(item)
            views = self.processor.preprocess(video, do_sample_frames=True, **self.options)["pixel_values"][0]
        except VideoReadError as error:
            return row, name, None, error.reason or str(error)
        return row, name, views if views.ndim == 5 else views[None], None


def protocol_of(processor: MVDVideoProcessor) -> str:
    """The test protocol as frames x clips x crops, such as `16x5x3`."""
    return f"{processor.num_frames}x{processor.num_clips}x{processor.num_crops}"


class ViewResults:
    """Results of [`map_views`] in a folder; arrays are memory-mapped.

    Args:
        folder: with the results.
        num_rows: rows of the data set.

    Attributes:
        problems: errors by row, of videos that could not be read.
        shapes: shapes (V, ...) of the results of a row by name.
    """

    def __init__(self, folder: str | Path, num_rows: int):
        self.folder, self.num_rows = Path(folder), num_rows
        self.shapes: dict[str, list[int]] = {}
        self.place: dict[int, tuple[int, int]] = {}
        self.problems: dict[int, str] = {}
        self.tables: list[pa.Table] = []
        for path in sorted(self.folder.glob("part-*.arrow")):
            self._add(feather.read_table(path, memory_map=True))

    def _add(self, table: pa.Table):
        self.shapes |= json.loads(table.schema.metadata.get(b"shapes", b"{}"))
        rows, problems = table["row"].to_pylist(), table["problem"].to_pylist()
        for position, (row, problem) in enumerate(zip(rows, problems, strict=True)):
            if problem is None:
                self.place[row] = len(self.tables), position
            else:
                self.problems[row] = problem
        self.tables.append(table.combine_chunks())
        self.problems = {row: problem for row, problem in self.problems.items() if row not in self.place}

    def rows(self) -> list[int]:
        """Sorted rows whose videos could be read."""
        return sorted(self.place)

    def missing(self) -> list[int]:
        """Rows without a result and without an error."""
        return [row for row in range(self.num_rows) if row not in self.place and row not in self.problems]

    def array(self, row: int, name: str) -> np.ndarray:
        """A result of a row, (V, ...)."""
        table, position = self.place[row]
        values = self.tables[table][name].chunk(0)
        size = values.type.list_size
        flat = values.values.to_numpy(zero_copy_only=True)
        return flat[position * size : (position + 1) * size].reshape(self.shapes[name])

    def stack(self, name: str) -> np.ndarray:
        """A result of all rows that could be read, (rows, V, ...)."""
        return np.stack([self.array(row, name) for row in self.rows()])


def write_part(folder: Path, number: int, records: Sequence[dict]):
    """Write the results of some videos to a file, atomically: one column of flattened arrays per name."""
    arrays = next((record["arrays"] for record in records if record["problem"] is None), {})
    columns: dict = {
        "row": pa.array([record["row"] for record in records], pa.int64()),
        "problem": pa.array([record["problem"] for record in records], pa.string()),
    }
    for name, example in arrays.items():
        blank = np.zeros_like(example)
        values = np.stack([record["arrays"].get(name, blank) for record in records])
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), example.size)
    shapes = json.dumps({name: list(example.shape) for name, example in arrays.items()})
    table = pa.table(columns).replace_schema_metadata({"shapes": shapes})
    path = folder / f"part-{number:06d}-of-{PartialState().process_index}.arrow"
    with replace_file(path) as unfinished:
        feather.write_feather(table, unfinished, compression="uncompressed")


def claim_folder(folder: Path, description: dict, replace: bool = False):
    """Begin or continue the results in a folder.

    Raises:
        ValueError: on all processes, if the folder holds other results that are not to be replaced.
    """
    state, path = PartialState(), folder / DESCRIPTION
    description = json.loads(json.dumps(description))
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    state.wait_for_everyone()  # all have read before one writes
    differing = [key for key in {**(stored or {}), **description} if (stored or {}).get(key) != description.get(key)]
    if stored is not None and differing and not replace:
        raise ValueError(
            f"The folder {str(folder)!r} holds results that differ in {', '.join(differing)}: give another folder "
            "(--output of recipes/evaluate.py), or delete it."
        )
    if differing and state.is_main_process:
        if stored is not None:
            logger.info("Earlier results in %s differ in %s and are replaced.", folder, ", ".join(differing))
        for path_of_part in folder.glob("part-*"):
            path_of_part.unlink()
        with replace_file(path) as unfinished:
            unfinished.write_text(json.dumps(description, indent=1), encoding="utf-8")
    state.wait_for_everyone()


def compute_views(function: ViewFunction, batch: list[tuple], views_per_pass: int) -> Iterator[dict]:
    """Records of a batch of videos; the function is called with at most `views_per_pass` views at once."""
    readable = [item for item in batch if item[2] is not None]
    results: dict[int, dict] = {}
    if readable:
        views = torch.cat([item[2] for item in readable])
        passes = [function(part) for part in views.split(views_per_pass)]
        names = passes[0]
        arrays = {name: torch.cat([done[name] for done in passes]).cpu().numpy() for name in names}
        stops = itertools.accumulate(len(item[2]) for item in readable)
        for item, stop in zip(readable, stops, strict=True):
            results[item[0]] = {name: array[stop - len(item[2]) : stop] for name, array in arrays.items()}
    for row, name, _, problem in batch:
        if problem is not None:
            logger.warning("%s cannot be read: %s", name, problem)
        yield {"row": row, "problem": problem, "arrays": results.get(row, {})}


@dataclass
class ViewOptions:
    """How views are computed; results do not depend on it, but for the precision.

    Args:
        autocast: returns the context for reduced precision, such as `accelerator.autocast`.
        views_per_pass: largest number of views per call of the model.
        num_workers: decoding workers of each process.
        videos_per_part: videos per file of results.
        replace: whether other results in the folder, of other weights, videos or views, are replaced, not refused.
    """

    autocast: Callable[[], AbstractContextManager] = nullcontext
    views_per_pass: int = 16
    num_workers: int = 2
    videos_per_part: int = VIDEOS_PER_PART
    replace: bool = False


def load_views(videos: VideoViews, rows: Sequence[int], options: ViewOptions) -> DataLoader:
    """Batches of items of the rows, as many videos as fit into a pass."""
    views_per_video = videos.processor.num_clips * videos.processor.num_crops
    return DataLoader(
        Subset(videos, rows),
        batch_size=max(1, options.views_per_pass // views_per_video),
        num_workers=min(options.num_workers, len(rows)),
        collate_fn=list,
        pin_memory=torch.cuda.is_available(),
    )


def map_views(
    function: ViewFunction, videos: VideoViews, folder: str | Path, identity: Mapping, **options
) -> ViewResults:
    """Apply a function to the views of every video, exactly once for any number of processes.

    Each process computes a part of the missing results and writes them at once. After an interruption, also with
    another number of processes, only missing results are computed, and unreadable videos are tried again.

    Args:
        function: from views (n, T, C, H, W) on the CPU to named tensors (n, ...) of fixed shapes and types; it is
            called in the context of `autocast`.
        videos: the views.
        folder: of the results, shared by all processes.
        identity: what the results depend on besides videos and processor, such as the model; for JSON.
        options: fields of [`ViewOptions`].

    Raises:
        ValueError: if the folder holds other results that are not to be replaced, or results are missing at the end.
    """
    options = ViewOptions(**options)
    state, folder = PartialState(), Path(folder)
    names, rates = [], []
    for item in videos.rows[videos.column]:  # once, as it may hold the videos themselves
        names.append(media_name(item))
        rates.append(item.get("fps") if isinstance(item, dict) else None)
    described = {"processor": videos.processor.to_dict(), "videos": len(names), "names": hash_of_names(names)}
    if videos.processor.fps is not None and any(rates):  # of folders of frames; they decide which frames are read
        described["frame_folder_fps"] = hash_of_names(map(str, rates))
    claim_folder(folder, {**identity, **described}, options.replace)
    known = ViewResults(folder, len(names))
    left = [row for row in range(len(names)) if row not in known.place]
    share = left[state.process_index :: state.num_processes]
    numbers = itertools.count(
        1 + max((int(path.stem.split("-")[1]) for path in folder.glob("part-*.arrow")), default=-1)
    )
    state.wait_for_everyone()  # all have read the folder before one writes
    records: list[dict] = []
    title = f"{len(share)} of {len(names)} videos" if len(share) < len(names) else "videos"
    is_hidden = None if state.is_local_main_process else True  # None: where there is no terminal
    with tqdm(total=len(share), desc=title, unit=" videos", disable=is_hidden) as bar:
        for batch in load_views(videos, share, options):
            with torch.inference_mode(), options.autocast():
                records += compute_views(function, batch, options.views_per_pass)
            bar.update(len(batch))
            if len(records) >= options.videos_per_part:
                write_part(folder, next(numbers), records)
                records = []
    if records:
        write_part(folder, next(numbers), records)
    state.wait_for_everyone()
    results = ViewResults(folder, len(names))
    if results.missing():
        raise ValueError(
            f"Results of {len(results.missing())} of {len(names)} videos are missing in {str(folder)!r}: give a "
            "folder that all processes share."
        )
    return results
