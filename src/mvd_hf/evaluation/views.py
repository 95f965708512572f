"""A function of the test views of every video: each video decoded once, shared among processes, resumed when cut off.

Letters in shapes: V views of a video (clips x crops), T frames, C channels, H x W pixels.
"""

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from pyarrow import feather
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ..data.decoding import media_content
from ..data.hashing import hash_of_names
from ..data.sources import media_column, media_name
from ..model.video_processing_mvd import MVDVideoProcessor
from ..model.video_reading import VideoReadError

logger = logging.getLogger(__name__)

# what a folder of results is of, and the last of its files that is written
DESCRIPTION = "views.json"
# videos of a process that are written down together
VIDEOS_PER_PART = 64

# (n, T, C, H, W) -> named tensors (n, ...)
ViewFunction = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]


class VideoViews(torch.utils.data.Dataset):
    """The views of the videos of a data set: items (row, name, views (V, T, C, H, W), why there are none).

    Args:
        rows: videos, see `mvd_hf.data.sources.load_rows`.
        processor: makes the views; its `num_clips` and `num_crops` say how many.
        as_bytes: whether views are uint8 pixels, for a model that normalises them itself.
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
            content = media_content(item)
            views = self.processor.preprocess(content, do_sample_frames=True, **self.options)["pixel_values"][0]
        except VideoReadError as error:
            return row, name, None, error.reason or str(error)
        return row, name, views if views.ndim == 5 else views[None], None


def num_views(processor: MVDVideoProcessor) -> int:
    """V: clips times crops."""
    return processor.num_clips * processor.num_crops


def protocol_of(processor: MVDVideoProcessor) -> str:
    """The test protocol as it is quoted: frames x clips x crops, such as `16x5x3`."""
    return f"{processor.num_frames}x{processor.num_clips}x{processor.num_crops}"


class ViewResults:
    """Results of [`map_views`] in a folder, by row; arrays lie on the disk and are read when they are asked for.

    Args:
        folder: where the results are.
        num_rows: rows of the data set.

    Attributes:
        problems: per row whose video could not be read, why.
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
        """The rows whose videos could be read, ascending."""
        return sorted(self.place)

    def missing(self) -> list[int]:
        """The rows of which nothing is known."""
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
    """Write the results of some videos, all or nothing: arrays flattened, all of one name in one column."""
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
    unfinished = path.with_suffix(".new")
    feather.write_feather(table, unfinished, compression="uncompressed")
    os.replace(unfinished, path)


def claim_folder(folder: Path, description: dict):
    """Begin or continue the results in a folder.

    Raises:
        ValueError: on every process, naming what differs, if it holds results of something else.
    """
    state, path = PartialState(), folder / DESCRIPTION
    description = json.loads(json.dumps(description))
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    state.wait_for_everyone()  # all have looked before anything is written
    if stored is None and state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(description, indent=1), encoding="utf-8")
        os.replace(unfinished, path)
    elif stored not in (None, description):
        differing = [key for key in {**stored, **description} if stored.get(key) != description.get(key)]
        raise ValueError(
            f"The folder {str(folder)!r} holds results with another {', '.join(differing)}: give another folder, or "
            "delete it."
        )
    state.wait_for_everyone()


def compute_views(function: ViewFunction, batch: list[tuple], views_per_pass: int) -> Iterator[dict]:
    """Records of a batch of videos: the function is called with at most `views_per_pass` views at once."""
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
            logger.warning("Cannot be read: %s: %s", name, problem)
        yield {"row": row, "problem": problem, "arrays": results.get(row, {})}


def map_views(
    function: ViewFunction,
    videos: VideoViews,
    folder: str | Path,
    identity: Mapping,
    *,
    views_per_pass: int = 16,
    num_workers: int = 2,
    videos_per_part: int = VIDEOS_PER_PART,
) -> ViewResults:
    """Results of a function for the views of every video, each exactly once whatever the number of processes.

    Every process takes a part of the videos that have no result yet and writes results as they come; after an
    interruption, also with another number of processes, what is written is not computed again. Videos that could not
    be read are tried again. The folder must be one that all processes see.

    Args:
        function: (n, T, C, H, W) views on the CPU to named tensors (n, ...), always of the same shapes and types.
        videos: what it is applied to.
        folder: where the results are kept.
        identity: what they depend on beside videos and processor, such as the model; for JSON.
        views_per_pass: views that the function sees at once, at most.
        num_workers: processes per process that decode.
        videos_per_part: videos that are written down together.

    Raises:
        ValueError: if the folder holds results of something else, or not all results arrived in it.
    """
    state, folder = PartialState(), Path(folder)
    names = [media_name(item) for item in videos.rows[videos.column]]
    settings = videos.processor.to_dict()
    claim_folder(folder, {**identity, "processor": settings, "videos": len(names), "names": hash_of_names(names)})
    known = ViewResults(folder, len(names))
    left = [row for row in range(len(names)) if row not in known.place]
    own = left[state.process_index :: state.num_processes]
    first_part = 1 + max((int(path.stem.split("-")[1]) for path in folder.glob("part-*.arrow")), default=-1)
    state.wait_for_everyone()  # all know what is left before anything is added
    views_per_video = num_views(videos.processor)
    loader = DataLoader(
        Subset(videos, own),
        batch_size=max(1, views_per_pass // views_per_video),
        num_workers=min(num_workers, len(own)),
        collate_fn=list,
        pin_memory=torch.cuda.is_available(),
    )
    records: list[dict] = []
    numbers = itertools.count(first_part)
    title = f"{len(own)} of {len(names)} videos" if len(own) < len(names) else "videos"
    with tqdm(total=len(own), desc=title, unit=" videos", disable=not state.is_local_main_process) as bar:
        for batch in loader:
            with torch.inference_mode():
                records += compute_views(function, batch, views_per_pass)
            bar.update(len(batch))
            if len(records) >= videos_per_part:
                write_part(folder, next(numbers), records)
                records = []
    if records:
        write_part(folder, next(numbers), records)
    state.wait_for_everyone()
    results = ViewResults(folder, len(names))
    if results.missing():
        raise ValueError(
            f"Results of {len(results.missing())} of {len(names)} videos did not arrive in {str(folder)!r}: give a "
            "folder that all processes see."
        )
    return results
