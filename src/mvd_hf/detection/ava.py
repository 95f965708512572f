"""AVA's files and AVA's score: who does what in the key frames of videos, as tables of boxes with actions.

A table is a pandas data frame with the columns `video`, `timestamp` (seconds), `x1`, `y1`, `x2`, `y2` (parts of the
frame's width and height), `action` (class id, from 1) and `score`; a row without box and action is a key frame in
which there is nobody. Files are CSV without a header: AVA's and AVA-Kinetics' annotations, results, and one's own of
that form.
"""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout

import numpy as np
import pandas as pd

from .ava_actions import AVA_ACTIONS, SCORED_ACTIONS, LabelMap, named_actions
from .average_precision import BoxRows, average_precisions

BOX = ["x1", "y1", "x2", "y2"]
COLUMNS = ["video", "timestamp", *BOX, "action", "score"]
KEY = ["video", "timestamp"]

# a CSV file, a table, columns by name, or rows
Table = str | os.PathLike | pd.DataFrame | Mapping[str, Sequence] | Iterable[Sequence]


def name_of(source: Table) -> str:
    """What to call a table in a message."""
    return repr(str(source)) if isinstance(source, str | os.PathLike) else f"The {type(source).__name__} of rows"


def read_columns(source: Table, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of a table, as far as they are there; rows are numbered from 0 as the lines of a file are.

    Raises:
        ValueError: if the file cannot be read, or a row has more columns.
    """
    if isinstance(source, pd.DataFrame | Mapping):
        return pd.DataFrame(source).reset_index(drop=True).reindex(columns=columns)
    names = [*columns, "too many"]
    if isinstance(source, str | os.PathLike):
        options = {"index_col": False, "dtype": {"video": str}, "na_values": [""], "keep_default_na": False}
        try:  # lines that are empty keep their number
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
    """Raise ValueError with the number and the content of the first bad row, if there is one."""
    if is_bad.any():
        row = is_bad.idxmax()
        content = ",".join("" if pd.isna(value) else str(value) for value in table.loc[row])
        raise ValueError(f"{name_of(source)}: row {row + 1} ({content}) {reason}.")


def check_numbers(table: pd.DataFrame, source: Table) -> pd.DataFrame:
    """The table with `video` as text and all other columns as float64, NaN where nothing is given.

    Raises:
        ValueError: naming the first row without video or timestamp, or with something that is not a finite number.
    """
    for name in table.columns.drop("video"):
        numbers = pd.to_numeric(table[name], errors="coerce").astype("float64")
        refuse_rows(table, table[name].notna() & ~np.isfinite(numbers), source, f"has no number as {name}")
        table = table.assign(**{name: numbers})
    refuse_rows(table, table["video"].isna() | table["timestamp"].isna(), source, "has no video or no timestamp")
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
        The table; `action` and the box are NaN in rows of two columns, and `score` where there is none.

    Raises:
        ValueError: naming the row, if one is neither.
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
    A box that comes once for each of its labels is given once, with its highest score.

    Returns:
        A table without `action`.

    Raises:
        ValueError: naming the row, if one is something else, or no person has a score although there is a column.
    """
    table = check_numbers(read_columns(source, [*KEY, *BOX, "label", "score"]), source)
    refuse_rows(table, table[BOX].isna().any(axis=1), source, "has no box (x1, y1, x2, y2)")
    if table["score"].isna().all():  # seven columns
        table["score"] = table["label"]
    is_scored = table["score"].notna()
    refuse_rows(table, is_scored.any() & ~is_scored, source, "has no score, other rows have one")
    table = table.assign(score=table["score"].fillna(1.0)).drop(columns="label")
    return table.groupby([*KEY, *BOX], sort=False, as_index=False)["score"].max()


def read_key_frames(source: Table) -> pd.DataFrame:
    """Key frames alone, such as AVA's excluded timestamps: `video, timestamp`.

    Raises:
        ValueError: naming the row, if one is something else.
    """
    return check_numbers(read_columns(source, KEY), source)


def write_boxes(path: str | os.PathLike, table: pd.DataFrame):
    """Write a table as AVA's CSV files are written: without a header, whole seconds as four digits."""
    seconds = [f"{int(time):04d}" if time % 1 == 0 else repr(time) for time in table["timestamp"]]
    table.assign(timestamp=seconds)[[name for name in COLUMNS if name in table]].to_csv(
        path, header=False, index=False
    )


def frame_keys(*tables: pd.DataFrame) -> list[np.ndarray]:
    """The key frame of every row of each table as a number, equal if video and timestamp (to the microsecond) are."""
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
    """Ground truth and detections of some actions in the key frames of the ground truth.

    Raises:
        ValueError: if a table cannot be read, a detection has no score, a box of the ground truth ends before it
            begins, or the ground truth has none of the actions.
    """
    truth, found = without(read_boxes(groundtruth), excluded), read_boxes(detections)
    all_frames = truth[KEY]
    truth, found = (table[table["action"].isin(list(actions))] for table in (truth, found))
    if truth.empty:
        raise ValueError(
            f"{name_of(groundtruth)} has no box of an action that is scored (class ids "
            f"{', '.join(map(str, list(actions)[:10]))}, ...): give the label map that the class ids belong to."
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

    What that one does, and so this one: key frames that the ground truth does not name do not count, detections in
    key frames where it names nobody are wrong; other actions than the scored ones are left out of both before the
    `top_k` are chosen; a detection is compared with the box of its action that it overlaps most, and each box is
    found once; detections whose box ends before it begins are left out; there is no non-maximum suppression.

    Args:
        groundtruth: see [`read_boxes`]; an eighth column, AVA's person ids, plays no part.
        detections: see [`read_boxes`], with scores.
        top_k: rows (a box with an action) of a key frame that count, those of highest score; `None` or 0 for all.
        excluded: key frames to leave out, see [`read_key_frames`].
        label_map: the actions that are scored: a .pbtxt file, ids with names, or ids; by default the 60 of AVA's
            ActivityNet label map.
        iou_threshold: least intersection over union with the ground truth.

    Returns:
        `{"mAP": mean over the actions that the ground truth has, "AP": {class id: its average precision, or None}}`,
        as parts of 1.

    Raises:
        ValueError: naming file and row of what cannot be read, or if no ground truth is left to be scored.
    """
    actions = list(scored_actions(label_map))
    truth, found = scored_rows(groundtruth, detections, actions, excluded)
    precisions = average_precisions(truth, found, actions, top_k or None, iou_threshold)
    return {"mAP": float(np.mean([value for value in precisions.values() if value is not None])), "AP": precisions}


def scored_actions(source: LabelMap | None) -> dict[int, str]:
    """Ids and names of the scored actions; AVA's 60 by default."""
    return named_actions(source, {number: AVA_ACTIONS[number] for number in SCORED_ACTIONS})


def coco_map(
    groundtruth: Table,
    detections: Table,
    *,
    excluded: Table | None = None,
    label_map: LabelMap | None = None,
) -> dict[str, float]:
    """Average precision as COCO defines it: the mean over intersections over union from 0.5 to 0.95, at 0.5, at 0.75.

    A detection takes the free box that it overlaps most; at most 100 of an action count in a key frame. Needs
    pycocotools (`pip install "mvd_hf[coco]"`).

    Args:
        groundtruth, detections, excluded, label_map: as in [`ava_map`].

    Returns:
        `{"AP": ..., "AP50": ..., "AP75": ...}`, as parts of 1.

    Raises:
        ImportError: if pycocotools is missing.
        ValueError: as in [`ava_map`].
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(
            f'COCO\'s average precision needs pycocotools: pip install "mvd_hf[coco]" ({error}).'
        ) from error
    actions = scored_actions(label_map)
    truth, found = scored_rows(groundtruth, detections, actions, excluded)
    is_box = (found.boxes[:, :2] < found.boxes[:, 2:]).all(axis=1)
    frames = range(int(max(truth.frames.max(initial=0), found.frames.max(initial=0))) + 1)
    dataset = {
        "images": [{"id": frame} for frame in frames],
        "categories": [{"id": number} for number in actions],
        "annotations": [{**row, "iscrowd": 0} for row in coco_rows(truth)],
    }
    with redirect_stdout(io.StringIO()):  # it tells its progress
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        results = COCO()
        results.dataset = {**dataset, "annotations": coco_rows(found.take(is_box))}
        results.createIndex()
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, 1e5**2]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]  # thresholds, recalls, actions; -1 without ground truth
    precision = precision[:, :, (precision > -1).all(axis=(0, 1))]
    return {"AP": float(precision.mean()), "AP50": float(precision[0].mean()), "AP75": float(precision[5].mean())}


def coco_rows(rows: BoxRows) -> list[dict]:
    """Rows as COCO's annotations: x, y, width, height."""
    sizes = rows.boxes[:, 2:] - rows.boxes[:, :2]
    columns = rows.frames, rows.actions, rows.boxes[:, :2], sizes, rows.scores
    return [
        {
            "id": number,
            "image_id": frame,
            "category_id": action,
            "bbox": [*corner, *size],
            "area": size[0] * size[1],
            "score": score,
        }
        for number, (frame, action, corner, size, score) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), start=1
        )
    ]
