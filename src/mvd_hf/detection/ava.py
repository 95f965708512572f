"""AVA's files and metric: who does what in the key frames of videos, as tables of boxes with actions.

A table is a pandas data frame with the columns `video`, `timestamp` (seconds), `x1`, `y1`, `x2`, `y2` (relative to the
frame's width and height), `action` (class id, from 1) and `score`. A row without box and action is a key frame without
people. Files are CSV without a header: annotations of AVA, AVA-Kinetics or your own data, and results.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..model.loading_mvd import listed
from .average_precision import BoxRows, average_precisions
from .pickled_boxes import SUFFIXES, read_pickled_boxes

BOX = ["x1", "y1", "x2", "y2"]
COLUMNS = ["video", "timestamp", *BOX, "action", "score"]
KEY = ["video", "timestamp"]
PEOPLE_COLUMNS = [*KEY, *BOX, "label", "score"]

# a CSV file, a table, columns by name, or rows
Table = str | os.PathLike | pd.DataFrame | Mapping[str, Sequence] | Iterable[Sequence]


# actions

# names of the class ids 1 to 80
NAMES = """
bend/bow (at the waist); crawl; crouch/kneel; dance; fall down; get up; jump/leap; lie/sleep; martial art; run/jog;
sit; stand; swim; walk; answer phone; brush teeth; carry/hold (an object); catch (an object); chop; climb (e.g., a
mountain); clink glass; close (e.g., a door, a box); cook; cut; dig; dress/put on clothing; drink; drive (e.g., a
car, a truck); eat; enter; exit; extract; fishing; hit (an object); kick (an object); lift/pick up; listen (e.g., to
music); open (e.g., a window, a car door); paint; play board game; play musical instrument; play with pets; point to
(an object); press; pull (an object); push (an object); put down; read; ride (e.g., a bike, a car, a horse); row
boat; sail boat; shoot; shovel; smoke; stir; take a photo; text on/look at a cellphone; throw; touch (an object);
turn (e.g., a screwdriver); watch (e.g., TV); work on a computer; write; fight/hit (a person); give/serve (an object)
to (a person); grab (a person); hand clap; hand shake; hand wave; hug (a person); kick (a person); kiss (a person);
lift (a person); listen to (a person); play with kids; push (another person); sing to (e.g., self, a person, a
group); take (an object) from (a person); talk to (e.g., self, a person, a group); watch (a person)
"""
AVA_ACTIONS = {number: name.strip() for number, name in enumerate(NAMES.replace("\n", " ").split(";"), start=1)}
# all but the 60 class ids of the ActivityNet 2019 label map, the only ones that are scored: these are too rare
NOT_SCORED = (2, 16, 18, 19, 21, 23, 25, 31, 32, 33, 35, 39, 40, 42, 44, 50, 53, 55, 71, 75)
SCORED_ACTIONS = tuple(number for number in AVA_ACTIONS if number not in NOT_SCORED)

LabelMap = str | os.PathLike | Mapping[int, str] | Iterable[int]


def read_label_map(path: str | os.PathLike) -> dict[int, str]:
    """Names of class ids from a label map: `item { name: "sit" id: 11 }`, or `label { name: ... label_id: ... }`.

    Raises:
        ValueError: if the file cannot be read, has no entry, or gives one id twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The label map {str(path)!r} cannot be read: {error}") from error
    actions: dict[int, str] = {}
    strings = r'"(?:[^"\\]|\\.)*"'
    for body in re.findall(rf"\{{((?:{strings}|[^{{}}])*)\}}", text):
        name = re.search(rf"\bname:\s*({strings})", body)
        number = re.search(r"\b(?:label_)?id:\s*(\d+)", re.sub(strings, '""', body))
        if name is None or number is None:
            raise ValueError(
                f"The label map {str(path)!r} has an entry without name or id: {' '.join(body.split())!r}."
            )
        if int(number[1]) in actions:
            raise ValueError(f"The label map {str(path)!r} gives the class id {number[1]} twice.")
        action = re.sub(r"\\(.)", r"\1", name[1][1:-1])
        if action in actions.values():
            raise ValueError(f"The label map {str(path)!r} gives the name {action!r} twice.")
        actions[int(number[1])] = action
    if not actions:
        raise ValueError(
            f'The label map {str(path)!r} has no entry: write item {{ name: "sit" id: 11 }} for each action.'
        )
    if min(actions) < 1:
        raise ValueError(f"The label map {str(path)!r} has the class id 0; ids count from 1.")
    return dict(sorted(actions.items()))


def named_actions(source: LabelMap | None, default: Mapping[int, str]) -> dict[int, str]:
    """Class ids and their names, from a file, a mapping, ids alone, or the default."""
    if source is None:
        return dict(default)
    if isinstance(source, str | os.PathLike):
        return read_label_map(source)
    names = source if isinstance(source, Mapping) else {number: default.get(number, str(number)) for number in source}
    return {int(number): name for number, name in names.items()}


def scored_actions(source: LabelMap | None, label_map: LabelMap | None = None) -> dict[int, str]:
    """Class ids and names of the scored actions: of `source`, by default those of `label_map`, or else AVA's 60."""
    if source is None and label_map is not None:
        source = label_map
    return named_actions(source, {number: AVA_ACTIONS[number] for number in SCORED_ACTIONS})


# tables


def name_of(source: Table) -> str:
    """The name of a table in a message."""
    return repr(str(source)) if isinstance(source, str | os.PathLike) else f"The {type(source).__name__} of rows"


def read_columns(source: Table, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a table, NaN where it lacks one; rows are numbered from 0 like the lines of a file."""
    if isinstance(source, pd.DataFrame | Mapping):
        return pd.DataFrame(source).reset_index(drop=True).reindex(columns=columns)
    names = [*columns, "too many"]
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in SUFFIXES:
        return read_pickled_boxes(source).reindex(columns=columns)
    if isinstance(source, str | os.PathLike):
        options = {"index_col": False, "dtype": {"video": str}, "na_values": [""], "keep_default_na": False}
        try:  # empty lines are rows, too, so that row numbers are line numbers
            table = pd.read_csv(source, header=None, names=names, skip_blank_lines=False, low_memory=False, **options)
        except pd.errors.EmptyDataError:
            return pd.DataFrame(columns=columns)
        except (OSError, UnicodeDecodeError, pd.errors.ParserError) as error:
            raise ValueError(f"The file {str(source)!r} cannot be read as a CSV file: {error}") from error
    else:
        rows = [list(row) for row in source]
        width = max(map(len, rows), default=0)
        table = pd.DataFrame([row + [None] * (width - len(row)) for row in rows])
        table = table.iloc[:, : len(names)].set_axis(names[: min(width, len(names))], axis=1).reindex(columns=names)
    if table["too many"].notna().any():
        line = int(table["too many"].first_valid_index()) + 1
        raise ValueError(f"{name_of(source)} has more than {len(columns)} columns in row {line}.")
    return table[list(columns)].dropna(how="all")


def refuse_rows(table: pd.DataFrame, is_bad: pd.Series, source: Table, reason: str):
    """Raise ValueError with the number and content of the first bad row, if there is one."""
    if is_bad.any():
        row = is_bad.idxmax()
        content = ",".join("" if pd.isna(value) else str(value) for value in table.loc[row])
        raise ValueError(f"{name_of(source)}: row {row + 1} ({content}) {reason}.")


def check_numbers(table: pd.DataFrame, source: Table) -> pd.DataFrame:
    """The table with `video` as text and all other columns as float64; a row with another value is refused."""
    for name in table.columns.drop("video"):
        numbers = pd.to_numeric(table[name], errors="coerce").astype("float64")
        is_bad = table[name].notna() & ~np.isfinite(numbers)
        hint = ": delete the line if it is a heading" if len(table) and is_bad.iloc[0] else ""
        refuse_rows(table, is_bad, source, f"has no number as {name}{hint}")
        table = table.assign(**{name: numbers})
    refuse_rows(
        table, table["video"].isna() | table["timestamp"].isna(), source, "has no video or no timestamp between commas"
    )
    refuse_rows(table, table["timestamp"] < 0, source, "has a negative timestamp")
    video = table["video"]
    if pd.api.types.is_float_dtype(video) and (video % 1 == 0).all():
        video = video.astype("int64")  # numbers of an array of floats
    return table.assign(video=video.astype(str))


def read_boxes(source: Table) -> pd.DataFrame:
    """Annotations or results: `video, timestamp, x1, y1, x2, y2, action[, score or person]`, or `video, timestamp`.

    Args:
        source: a CSV file, a data frame or mapping with those columns, or such rows.

    Returns:
        The table; box and action are NaN in rows of two columns, the score where there is none.

    Raises:
        ValueError: naming a malformed row.
    """
    table = check_numbers(read_columns(source, COLUMNS), source)
    missing = table[[*BOX, "action"]].isna()
    refuse_rows(
        table,
        missing.any(axis=1) & ~missing.all(axis=1),
        source,
        "has neither two columns (video, timestamp) nor seven or eight "
        "(video, timestamp, x1, y1, x2, y2, action[, score])",
    )
    is_fraction = table["action"].notna() & (table["action"] % 1 != 0)
    refuse_rows(table, is_fraction, source, "has a class id that is not an integer")
    return table


def read_person_boxes(source: Table) -> pd.DataFrame:
    """Boxes of people from a detector: `video, timestamp, x1, y1, x2, y2[, label][, score]`.

    The label may be empty, as in the files that accompany AVA; the last column is the score, 1 where there is none.
    A box with several labels is one row, with its highest score. A pickle file (`.pkl`) is read as in
    [`read_pickled_boxes`].

    Returns:
        A table without `action`.

    Raises:
        ValueError: naming a malformed row, or one without score where others have one.
    """
    table = check_numbers(read_columns(source, PEOPLE_COLUMNS), source)
    refuse_rows(table, table[BOX].isna().any(axis=1), source, "has no box (x1, y1, x2, y2)")
    table = table.assign(score=score_column(table))
    is_scored = table["score"].notna()
    refuse_rows(table, is_scored.any() & ~is_scored, source, "has no score, other rows have one")
    is_probability = table["score"].between(0, 1) | ~is_scored
    refuse_rows(table, ~is_probability, source, "has a score that is not between 0 and 1 in its last column")
    table = table.assign(score=table["score"].fillna(1.0)).drop(columns="label")
    return table.groupby([*KEY, *BOX], sort=False, as_index=False)["score"].max()


def score_column(table: pd.DataFrame) -> pd.Series:
    """The scores of a table of people: its last column, which is that of the labels in files of seven columns."""
    return table["label"] if table["score"].isna().all() else table["score"]


def read_key_frames(source: Table) -> pd.DataFrame:
    """Key frames alone, such as AVA's excluded timestamps: `video, timestamp`. A malformed row is refused."""
    return check_numbers(read_columns(source, KEY), source)


def write_boxes(path: str | os.PathLike, table: pd.DataFrame):
    """Write a table in the form of AVA's CSV files: no header, whole seconds as four digits."""
    seconds = [f"{int(time):04d}" if time % 1 == 0 else repr(time) for time in table["timestamp"]]
    table.assign(timestamp=seconds)[[name for name in COLUMNS if name in table]].to_csv(
        path, header=False, index=False
    )


def frame_keys(*tables: pd.DataFrame) -> list[np.ndarray]:
    """The key frame of each row of each table as a number: one per video and timestamp (to the microsecond)."""
    together = pd.concat([table[KEY] for table in tables], ignore_index=True)
    videos, _ = pd.factorize(together["video"])
    microseconds = np.rint(together["timestamp"].to_numpy() * 1e6).astype(np.int64)
    keys, _ = pd.factorize(videos * (microseconds.max(initial=0) + 1) + microseconds)
    return np.split(keys, np.cumsum([len(table) for table in tables])[:-1])


def without(table: pd.DataFrame, excluded: Table | None) -> pd.DataFrame:
    """A table without the rows of excluded key frames."""
    if excluded is None:
        return table
    keys, excluded_keys = frame_keys(table, read_key_frames(excluded))
    return table[~np.isin(keys, excluded_keys)]


def scored_rows(
    groundtruth: Table, detections: Table, actions: Iterable[int], excluded: Table | None
) -> tuple[BoxRows, BoxRows]:
    """Ground truth and detections of the actions, in the key frames of the ground truth."""
    truth, found = without(read_boxes(groundtruth), excluded), read_boxes(detections)
    all_frames = truth[KEY]
    truth, found = (table[table["action"].isin(list(actions))] for table in (truth, found))
    if truth.empty:
        raise ValueError(
            f"{name_of(groundtruth)} has no box of a scored action: give the label_map of its class ids. Scored ids: "
            f"{listed([str(number) for number in actions], 10)}."
        )
    refuse_rows(found, found["score"].isna(), detections, "has no score")
    is_inverted = (truth["x1"] > truth["x2"]) | (truth["y1"] > truth["y2"])
    refuse_rows(truth, is_inverted, groundtruth, "has a box that ends before it begins: give x1, y1, x2, y2")
    found_keys, truth_keys, known = frame_keys(found, truth, all_frames)
    is_known = np.isin(found_keys, known)
    numbers, _ = pd.factorize(np.concatenate([found_keys[is_known], truth_keys]))
    frames = np.split(numbers, [int(is_known.sum())])
    detected, true = (
        BoxRows(
            frame, table["action"].to_numpy(np.int64), table[BOX].to_numpy(), table["score"].fillna(1.0).to_numpy()
        )
        for frame, table in zip(frames, (found[is_known], truth), strict=True)
    )
    return true, detected


def ava_map(
    groundtruth: Table,
    detections: Table,
    top_k: int | None = 50,
    *,
    excluded: Table | None = None,
    label_map: LabelMap | None = None,
    iou_threshold: float = 0.5,
) -> dict:
    """Mean average precision of action detection per key frame, equal to the official evaluation of AVA.

    As in the official evaluation, detections in key frames that the ground truth does not list are ignored, and those
    in listed key frames without people are wrong. Actions that are not scored are removed from both before the `top_k`
    are chosen. A detection is compared with the box of its action that it overlaps most, and each box is found once.
    Detections whose box ends before it begins are ignored. There is no non-maximum suppression.

    Args:
        groundtruth: see [`read_boxes`]; an eighth column, AVA's person ids, is ignored.
        detections: see [`read_boxes`], with scores.
        top_k: number of rows (a box with an action) per key frame that count, by score; `None` or 0 for all.
        excluded: key frames to leave out, see [`read_key_frames`].
        label_map: the scored actions: a .pbtxt file, ids with names, or ids; by default the 60 of AVA's ActivityNet
            label map.
        iou_threshold: least intersection over union with the ground truth.

    Returns:
        `{"mAP": mean over the actions that the ground truth has, "AP": {class id: its average precision or None}}`,
        from 0 to 1.

    Raises:
        ValueError: naming file and row of a malformed value, or if the ground truth has no scored action.
    """
    actions = list(scored_actions(label_map))
    truth, found = scored_rows(groundtruth, detections, actions, excluded)
    precisions = average_precisions(truth, found, actions, top_k or None, iou_threshold)
    return {"mAP": float(np.mean([value for value in precisions.values() if value is not None])), "AP": precisions}
