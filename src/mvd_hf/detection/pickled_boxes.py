"""Reads boxes of people from pickle files, as AVA's proposals are distributed, without running code in them."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SUFFIXES = (".pkl", ".pickle")
# what pickles of containers and NumPy arrays name, also those of Python 2 and NumPy 1
ALLOWED = {
    "builtins": {"bytes", "dict", "float", "int", "list", "tuple"},
    "collections": {"OrderedDict", "defaultdict"},
    "_codecs": {"encode"},
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
}


class PlainUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and NumPy arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module).replace("numpy.core.", "numpy._core.")
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which could run code")
        return super().find_class(module, name)


def read_pickled_boxes(path: str | Path) -> pd.DataFrame:
    """Boxes of people from a pickle file: `{"video,second": boxes}`, boxes (people, 4), or (people, 5) with scores.

    Keys may also be pairs (video, second), or videos with a dictionary of boxes by second.

    Returns:
        A table with the columns `video`, `timestamp`, `x1`, `y1`, `x2`, `y2` and `score`, NaN where there is none.

    Raises:
        ValueError: if the file holds anything else.
    """
    try:
        with open(path, "rb") as file:
            content = PlainUnpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"The boxes {str(path)!r} cannot be read as a pickle of plain arrays: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"The boxes {str(path)!r} are a {type(content).__name__}, not a dictionary by key frame.")
    keys, found = [], [np.zeros((0, 5))]
    for key, boxes in by_key_frame(content):
        try:
            video, second = key.rsplit(",", 1) if isinstance(key, str) else key
            rows = np.asarray(boxes, dtype=np.float64).reshape(len(boxes), -1) if len(boxes) else found[0]
            if rows.shape[1] == 4:
                rows = np.pad(rows, ((0, 0), (0, 1)), constant_values=np.nan)
            if rows.shape[1] != 5:
                raise ValueError(f"there are {rows.shape[1]} numbers per box")
            keys += [(str(video), float(second))] * len(rows)
            found.append(rows)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The boxes {str(path)!r} have the entry {key!r}, which is no 'video,second' with boxes of 4 numbers, "
                f"or 5 with a score: {error}."
            ) from error
    table = pd.DataFrame(np.concatenate(found), columns=["x1", "y1", "x2", "y2", "score"])
    return table.assign(video=[video for video, _ in keys], timestamp=[second for _, second in keys])


def by_key_frame(content: dict) -> Iterator[tuple[Any, Any]]:
    """Keys and boxes of a dictionary by key frame, or by video with dictionaries by second."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from (((key, second), boxes) for second, boxes in value.items())
        else:
            yield key, value
