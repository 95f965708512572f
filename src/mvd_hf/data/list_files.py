"""Reads list files: one `path label` per line, as for Kinetics, or a JSON object per line."""

import codecs
import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import datasets
import fsspec
from pyarrow import ArrowInvalid, ArrowTypeError

# class indices; "007" is text
INDEX = re.compile(r"-?(0|[1-9][0-9]{0,17})")
# several of them, or none, in a text
SEPARATOR = ";"
INDICES = re.compile(rf"({INDEX.pattern})?(\s*{SEPARATOR}\s*({INDEX.pattern})?)*")
NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?")
# words of a heading
COLUMNS = {"path", "file", "filename", "file_name", "video", "video_path", "video_id", "clip", "name", "id"}
# fields of a JSON object that hold the path
PATH_FIELDS = ("video", "path", "file", "file_name")
COLUMNS |= {"label", "labels", "class", "class_id", "class_name", "target", "category", "action", "num_frames"}


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file or URL in UTF-8, or in UTF-16 with a byte order mark."""
    try:
        with fsspec.open(str(path), "rb") as file:
            content = file.read()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if is_utf16 else "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The list file {str(path)!r} cannot be read: {error}") from error


def is_heading(fields: Sequence[str], root: str) -> bool:
    """Whether the fields of a first line are names of columns, not a video and its label."""
    words = [field.strip().lower() for field in fields]
    if os.path.exists(video_of(fields[0], root)):
        return False
    return words[0] in COLUMNS and all(word in COLUMNS for word in words[1:2])


def mistake_in(fields: Sequence[str], delimiter: str) -> str | None:
    """What is wrong with a line on its own, with the remedy."""
    path, others = fields[0], [field.strip() for field in fields[1:]]
    if not path:
        return "has no path: give 'path label'."
    for sign in ";|":
        if not others and re.fullmatch(rf"[^{sign}]+[{sign}]\s*[^{sign}./\\]*([{sign}].*)?", path):
            return f"is separated by {sign!r}: write commas instead."
    if len(others) > 1 and all(NUMBER.fullmatch(field) for field in others):
        return (
            f"has {len(fields)} columns {list(fields)}: keep the path and the label, and delete the other numbers. "
            "(path, number of frames and label are for folders of frames, which must be there: see root.)"
        )
    if len(others) > 1 and delimiter == " ":
        return "is more than 'path label': put a path or a class name that contains spaces in double quotes."
    if len(others) > 1:
        return (
            f"has {len(fields)} columns {list(fields)}: keep the path and the label, and put a path or a class name "
            "that contains the separator in double quotes."
        )
    return None


def labels_of(labels: Sequence[str | None]) -> tuple[list[int] | list[float] | list[str] | None, int, str | None]:
    """Labels as class indices, names, joined indices or numbers with a fraction (`None` without labels).

    Else the place of a wrong one and what is wrong.
    """
    if all(label is None for label in labels):
        return None, 0, None
    missing = next((i for i, label in enumerate(labels) if not label), None)
    if missing is not None:
        return None, missing, "has no label while other lines have one: add it, or delete the line."
    are_indices = [bool(INDEX.fullmatch(label)) for label in labels]
    if all(are_indices):
        return [int(label) for label in labels], 0, None
    if all(re.fullmatch(r"[0-9]{1,18}", label) for label in labels):
        return list(labels), 0, None  # codes such as 001 are names
    if all(INDICES.fullmatch(label) for label in labels):
        return list(labels), 0, None
    if all(NUMBER.fullmatch(label) for label in labels) and any(re.search("[.eE]", label) for label in labels):
        return [float(label) for label in labels], 0, None
    odd = next(i for i, is_index in enumerate(are_indices) if is_index != are_indices[0] or not any(are_indices))
    if any(are_indices):
        return (
            None,
            odd,
            f"has the label {labels[odd]!r} while others are like {labels[0]!r}: use integers or names only.",
        )
    numbers = [i for i, label in enumerate(labels) if NUMBER.fullmatch(label)]
    if len(numbers) == len(labels):
        return None, numbers[0], f"has the label {labels[0]!r}: a label is an integer from 0 on, or a class name."
    return list(labels), 0, None


def folder_of_list(path: str | Path, root: str | Path | None) -> str:
    """The folder or URL of the relative paths of a list."""
    return str(Path(path).parent if root is None and "://" not in str(path) else root or str(path).rpartition("/")[0])


def set_rates(items: Sequence[dict], fps: float | None, path: str | Path):
    """Give the folders of frames of a list their frames per second; raises ValueError if there are none of them."""
    for item in items if fps is not None else ():
        item["fps"] = fps if os.path.isdir(item["path"]) else None
    if fps is not None and all(item["fps"] is None for item in items):
        raise ValueError(f"frame_folder_fps={fps:g}, but {str(path)!r} names no folder of frames.")


def read_json_lines(
    path: str | Path, root: str | Path | None = None, frame_folder_fps: float | None = None
) -> datasets.Dataset:
    """The videos of a JSON lines file: a column `video`, and the other fields of the objects, such as labels.

    Args:
        path: a file or URL with one object per line; its field `video`, `path`, `file` or `file_name` is the path.
        root, frame_folder_fps: as in [`read_list_file`].

    Raises:
        ValueError: if the file or a line cannot be read, or a field has values of several types.
    """
    rows, root = [], folder_of_list(path, root)
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            field = next(field for field in PATH_FIELDS if isinstance(row.get(field), str))
        except (ValueError, AttributeError, StopIteration) as error:
            fields = ", ".join(PATH_FIELDS)
            raise ValueError(f"Line {number} of {str(path)!r} is no JSON object with a path in {fields}.") from error
        rows.append({**row, "video": {"path": video_of(row[field], root), "bytes": None}})
    if not rows:
        raise ValueError(f"The list file {str(path)!r} names no video.")
    set_rates([row["video"] for row in rows], frame_folder_fps, path)
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in PATH_FIELDS[1:]]
    try:
        return datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    except (ArrowInvalid, ArrowTypeError) as error:
        raise ValueError(f"A field of {str(path)!r} has values of several types: {error}.") from error


def is_frame_list(lines: Sequence[Sequence[str]], root: str) -> bool:
    """Whether all lines have a folder of frames, its number of frames and a label, as for TSN."""
    has_numbers = all(
        len(fields) == 3 and all(INDEX.fullmatch(field.strip()) for field in fields[1:]) for fields in lines
    )
    return has_numbers and os.path.isdir(video_of(lines[0][0], root))


def read_list_file(
    path: str | Path, root: str | Path | None = None, frame_folder_fps: float | None = None
) -> datasets.Dataset:
    """The videos of a list file in the Kinetics format, as a data set with the columns `video` and `label`.

    Args:
        path: a file, or URL such as `hf://datasets/...`, with one `path label` per line, separated by spaces, tabs or
            commas. Paths and class names that contain separators are quoted. Labels are integers from 0 on, class
            names, several of either joined by `;`, or numbers with a fraction; they may be missing on all lines. A
            path without a suffix gets `.mp4`, unless it is a folder of frames; those may have their number of frames
            between path and label, as in the lists of TSN.
        root: folder or URL of relative paths; by default the folder of the list file.
        frame_folder_fps: frames per second of the folders of frames.

    Raises:
        ValueError: if the file or a line cannot be read.
    """
    lines = read_lines(path)
    root = folder_of_list(path, root)
    filled = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not filled:
        raise ValueError(f"The list file {str(path)!r} names no video.")
    delimiter = next((sign for sign in (",", "\t") if all(sign in line for _, line in filled)), " ")

    def refuse(number: int, line: str, mistake: str):
        raise ValueError(f"Line {number} of {str(path)!r} {mistake} It is {line!r}.")

    lines = []
    for number, line in filled:
        try:
            fields = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
        except csv.Error as error:
            raise ValueError(f"Line {number} of {str(path)!r} cannot be read: {error}.") from error
        if not lines and "youtube_id" in fields:
            refuse(number, line, "is the heading of an annotation file: run `recipes/prepare.py` for lists of videos.")
        if not lines and is_heading(re.split(r"[;,\t]", line) if len(fields) == 1 else fields, root):
            refuse(number, line, "is a heading: delete it.")
        lines.append(fields)
    has_counts = is_frame_list(lines, root)
    items, labels = [], []
    for (number, line), fields in zip(filled, lines, strict=True):
        mistake = None if has_counts else mistake_in(fields, delimiter)
        if mistake is not None:
            refuse(number, line, mistake)
        item = {"path": video_of(fields[0], root), "bytes": None}
        if has_counts:
            item["num_frames"] = int(fields[1])
        items.append(item)
        labels.append(fields[-1].strip() if len(fields) > 1 else None)
    set_rates(items, frame_folder_fps, path)
    known, place, mistake = labels_of(labels)
    if mistake is not None:
        refuse(*filled[place], mistake)
    columns = {"video": items}
    if known is not None:
        columns["label"] = known
    return datasets.Dataset.from_dict(columns)


def video_of(name: str, root: str) -> str:
    """Path or URL of a video of a list file."""
    name = os.path.expanduser(name)
    is_whole = "://" in name or os.path.isabs(name)
    video = name if is_whole else f"{root.rstrip('/')}/{name}" if "://" in root else str(Path(root) / name)
    if "." not in name.rpartition("/")[2] and not os.path.exists(video):
        video += ".mp4"  # as the official lists have it
    return video
