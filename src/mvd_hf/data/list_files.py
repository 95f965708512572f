"""Reads list files: one `path label` per line, as for Kinetics."""

import csv
import os
import re
from pathlib import Path

import datasets
import fsspec


def read_list_file(path: str | Path, root: str | Path | None = None) -> datasets.Dataset:
    """The videos of a list file in the Kinetics format, as a data set with the columns `video` and `label`.

    Args:
        path: a file, or URL such as `hf://datasets/...`, with one `path label` per line, separated by spaces, tabs or
            commas. Paths that contain separators are quoted. The label (an integer) may be missing on all lines. A
            path without a suffix gets `.mp4`.
        root: folder or URL of relative paths; by default the folder of the list file.

    Raises:
        ValueError: if the file or a line cannot be read.
    """
    try:
        with fsspec.open(str(path), "rt", encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The list file {str(path)!r} cannot be read: {error}") from error
    root = str(Path(path).parent if root is None and "://" not in str(path) else root or str(path).rpartition("/")[0])
    filled = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not filled:
        raise ValueError(f"The list file {str(path)!r} names no video.")
    delimiter = next((sign for sign in (",", "\t") if all(sign in line for _, line in filled)), " ")
    videos, labels = [], []
    for number, line in filled:
        try:
            row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
        except csv.Error as error:
            raise ValueError(f"Line {number} of {str(path)!r} cannot be read: {error}.") from error
        if not row[0] or len(row) > 2 or (len(row) == 2 and not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", row[1])):
            raise ValueError(
                f"Line {number} of {str(path)!r} is not 'path label' with an integer label: {line!r}. "
                "Put a path that contains spaces or commas in double quotes."
            )
        name = row[0]
        is_whole = "://" in name or os.path.isabs(name)
        video = name if is_whole else f"{root.rstrip('/')}/{name}" if "://" in root else str(Path(root) / name)
        if "." not in name.rpartition("/")[2] and not os.path.exists(video):
            video += ".mp4"  # as the official lists have it
        videos.append(video)
        labels.append(int(row[1]) if len(row) == 2 else None)
    if None in labels and any(label is not None for label in labels):
        number = filled[labels.index(None)][0]
        raise ValueError(f"Line {number} of {str(path)!r} has no label while other lines have one.")
    columns = {"video": [{"path": video, "bytes": None} for video in videos]}
    if None not in labels:
        columns["label"] = labels
    return datasets.Dataset.from_dict(columns)
