"""Finds mistakes in the files of an action detection data set that would make the mean average precision zero.

Each finding names the problem, examples and a remedy. Tables hold the values of the files; NaN stands for anything
that is not a number.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..model.boxes_mvd import LARGEST_PART
from ..model.video_reading import VideoReader, VideoReadError
from .ava import (
    AVA_ACTIONS,
    BOX,
    COLUMNS,
    KEY,
    PEOPLE_COLUMNS,
    ava_map,
    frame_keys,
    named_actions,
    read_columns,
    read_key_frames,
    score_column,
    scored_actions,
)
from .average_precision import overlaps, ranges
from .video_folders import VideoFolders, check_second, second_files

# rows and videos that a finding names
NUM_EXAMPLES = 3
# recall of the annotated people below which boxes are of other people, and below which they are suspicious
LEAST_RECALL, LOW_RECALL = 0.05, 0.5
# other meanings of the four numbers of a box
READINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "y1, x1, y2, x2: x and y are swapped": lambda boxes: boxes[:, [1, 0, 3, 2]],
    "x, y, width, height": lambda boxes: np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]),
    "center x, center y, width, height": lambda boxes: np.hstack(
        [boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2]
    ),
}
WHOLE_ROW = "write video,timestamp,x1,y1,x2,y2,action in every row"


@dataclass
class Finding:
    """A mistake in a data set.

    Args:
        problem: what is wrong, and in which file.
        remedy: what to do.
        examples: where.
        is_fatal: whether it stops the training or makes the mean average precision (nearly) zero.
    """

    problem: str
    remedy: str
    examples: Sequence[str] = ()
    is_fatal: bool = True

    def describe(self) -> str:
        """The finding in two or three lines."""
        lines = [f"{'ERROR' if self.is_fatal else 'note'}: {self.problem}"]
        if self.examples:
            lines.append(f"  for example {'; '.join(self.examples)}")
        return "\n".join([*lines, f"  remedy: {self.remedy}"])


@dataclass
class AvaAuditArguments:
    """The files of an action detection data set.

    Args:
        ava: annotations, a CSV file in AVA's format.
        videos: folder of the videos, or several, see `mvd_hf.detection.video_folders.VideoFolders`.
        boxes: CSV file of a person detector, for evaluation.
        detections: CSV file of results, such as `<output_dir>/evaluation/detections.csv`.
        excluded: CSV file of key frames to leave out.
        label_map, scored_label_map, min_score, video_start: as in `mvd_hf.detection.trainer.DetectionArguments`.
    """

    ava: str = ""
    videos: str | list[str] | None = None
    boxes: str | None = None
    detections: str | None = None
    excluded: str | None = None
    label_map: str | None = None
    scored_label_map: str | None = None
    min_score: float = 0.8
    video_start: float = 0.0


def audit_ava(arguments: AvaAuditArguments) -> list[Finding]:
    """Findings on the annotations and on the videos, boxes and detections that are given; fatal ones first.

    Raises:
        ValueError: if a file cannot be read at all.
    """
    annotations = read_leniently(arguments.ava, COLUMNS)
    findings = [*form_findings(annotations, arguments.ava)]
    findings += action_findings(annotations, arguments.ava, arguments)
    truth = annotations.dropna(subset=[*KEY, *BOX])
    findings += excluded_findings(truth, arguments)
    if arguments.videos is not None:
        findings += video_findings(annotations.dropna(subset=KEY), arguments)
    if arguments.boxes is not None:
        table = read_leniently(arguments.boxes, PEOPLE_COLUMNS)
        table = table.assign(score=score_column(table))
        findings += form_findings(table, arguments.boxes)
        findings += matching_findings(truth, table, arguments.boxes, arguments)
        findings += score_findings(table, arguments)
    if arguments.detections is not None:
        table = read_leniently(arguments.detections, COLUMNS)
        findings += form_findings(table, arguments.detections)
        findings += action_findings(table, arguments.detections, arguments)
        findings += matching_findings(truth, table, arguments.detections, arguments)
        findings += shifted_action_findings(annotations, table, arguments)
    return sorted(findings, key=lambda finding: not finding.is_fatal)


def describe_ava(arguments: AvaAuditArguments, findings: Sequence[Finding]) -> str:
    """A text on the size of the annotations and the findings."""
    table = read_leniently(arguments.ava, COLUMNS).dropna(subset=KEY)
    counts = {
        "rows": len(table),
        "videos": table["video"].nunique(),
        "key frames": len(table.drop_duplicates(KEY)),
        "people": len(table.dropna(subset=BOX).drop_duplicates([*KEY, *BOX])),
        "actions": table["action"].nunique(),
    }
    heading = f"{arguments.ava}: " + ", ".join(f"{count} {name}" for name, count in counts.items())
    lines = [finding.describe() for finding in findings] or ["Nothing is wrong with it."]
    return "\n".join([heading, *lines])


def read_leniently(path: str, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of a file, with NaN for anything that is not a number."""
    table = read_columns(path, columns)
    numbers = {name: pd.to_numeric(table[name], errors="coerce").astype("float64") for name in columns[1:]}
    return table.assign(**numbers)


def examples(table: pd.DataFrame) -> list[str]:
    """The first rows, written as in the file."""
    return [
        f"row {row + 1}: "
        + ",".join("" if pd.isna(value) else f"{value:g}" if i else str(value) for i, value in enumerate(values))
        for row, values in table.head(NUM_EXAMPLES).iterrows()
    ]


def bad_rows(table: pd.DataFrame, is_bad: pd.Series, path: str, problem: str, remedy: str) -> list[Finding]:
    """A finding on the bad rows of a file, if there are any: how many there are, and the first of them."""
    if not is_bad.any():
        return []
    return [Finding(f"{path}: {int(is_bad.sum())} {problem}", remedy, examples(table[is_bad]))]


# a file by itself


def form_findings(table: pd.DataFrame, path: str) -> Iterator[Finding]:
    """Malformed rows, boxes without actions, boxes in pixels, boxes in another order."""
    is_keyless = table[KEY].isna().any(axis=1)
    is_header = is_keyless.iloc[:1].any() and not is_keyless.iloc[1:].any()
    remedy = "delete the header line" if is_header else WHOLE_ROW
    yield from bad_rows(table, is_keyless, path, "rows have no video or no timestamp in seconds", remedy)
    table = table[~is_keyless]
    boxes = table.dropna(subset=BOX)
    if boxes.empty:
        yield Finding(f"{path} has no box", WHOLE_ROW)
        return
    if "action" in boxes:
        remedy = "give each action of a person a row with the class id in the seventh column, or leave the person out"
        yield from bad_rows(boxes, boxes["action"].isna(), path, "boxes have no action", remedy)
    is_partial = table[BOX].isna().any(axis=1) & table[BOX].notna().any(axis=1)
    yield from bad_rows(table, is_partial, path, "rows have a part of a box", "give x1, y1, x2, y2")
    is_large = (boxes[BOX].abs() > LARGEST_PART).any(axis=1)
    remedy = "divide x by the width and y by the height of the frame: coordinates are from 0 to 1"
    yield from bad_rows(boxes, is_large, path, "boxes are in pixels", remedy)
    is_inverted = (boxes["x1"] >= boxes["x2"]) | (boxes["y1"] >= boxes["y2"])
    is_size = (boxes[["x1", "y1"]].to_numpy() + boxes[["x2", "y2"]].to_numpy() <= 1.05).all(axis=1).mean() > 0.95
    remedy = "write x1, y1, x2, y2, the upper left and the lower right corner"
    if is_size:
        remedy = "they could be x, y, width, height: write x1, y1, x2 = x1 + width, y2 = y1 + height"
    yield from bad_rows(boxes, is_inverted, path, "boxes end before they begin", remedy)


def action_findings(table: pd.DataFrame, path: str, arguments: AvaAuditArguments) -> Iterator[Finding]:
    """Class ids that are off by one, outside the label map, or not scored."""
    ids = table["action"]
    known = named_actions(arguments.label_map, AVA_ACTIONS)
    scored = scored_actions(arguments.scored_label_map, arguments.label_map)
    remedy = "add 1 to each: ids count from 1, as in AVA's label map"
    yield from bad_rows(table, ids == 0, path, "class ids are 0", remedy)
    is_unknown = ids.notna() & ~ids.isin(list(known)) & (ids != 0)
    unknown = ", ".join(f"{number:g}" for number in sorted(ids[is_unknown].unique())[:NUM_EXAMPLES])
    remedy = f"add them to {arguments.label_map}, or correct the ids"
    if arguments.label_map is None:
        remedy = f"give label_map, a file that names them; without it {len(known)} ids up to {max(known)} are known"
    problem = f"rows have class ids outside the label map, such as {unknown}"
    yield from bad_rows(table, is_unknown, path, problem, remedy)
    if ids.notna().any() and not ids.isin(list(scored)).any():
        yield Finding(
            f"{path}: no action is among the {len(scored)} that are scored",
            "give the label_map of these class ids: without one, AVA's 60 are scored",
        )


def excluded_findings(truth: pd.DataFrame, arguments: AvaAuditArguments) -> Iterator[Finding]:
    """Key frames that are all excluded."""
    if arguments.excluded is None or truth.empty:
        return
    keys, excluded = frame_keys(truth, read_key_frames(arguments.excluded))
    if np.isin(keys, excluded).all():
        yield Finding(f"{arguments.excluded} excludes every key frame with people", "leave excluded out")


# videos


def video_findings(annotations: pd.DataFrame, arguments: AvaAuditArguments) -> Iterator[Finding]:
    """Videos that are missing or unreadable, and key frames outside them."""
    folders = VideoFolders(arguments.videos, arguments.video_start)
    frames = annotations.drop_duplicates(KEY)
    missing = [video for video in frames["video"].unique().tolist() if not folders.parts(video)]
    if missing:
        yield Finding(
            f"{len(missing)} of {frames['video'].nunique()} videos are not in {arguments.videos}",
            missing_remedy(missing[0], folders),
            missing[:NUM_EXAMPLES],
        )
    reasons: list[str] = []
    there = frames[~frames["video"].isin(missing)].groupby("video", sort=False)["timestamp"]
    for video, times in tqdm(there, desc="videos", unit=" videos", disable=None):
        reasons += unmet_times(folders, str(video), times.tolist())
    if reasons:
        yield Finding(
            f"{len(reasons)} of {len(frames)} key frames cannot be read",
            "timestamps are seconds from the beginning of the original video, not frame numbers or milliseconds; give "
            "video_start, the second at which the files begin, if they were cut",
            list(dict.fromkeys(reasons))[:NUM_EXAMPLES],
        )


def unmet_times(folders: VideoFolders, video: str, times: Sequence[float]) -> list[str]:
    """A reason for each key frame of a video that cannot be read. Nothing is decoded."""
    reasons: list[str] = []
    times_of: dict[tuple[Path, float], list[float]] = {}
    for time in times:
        try:
            times_of.setdefault(folders.locate(video, time), []).append(time)
        except VideoReadError as error:
            reasons.append(str(error))
    for (path, first), seconds in times_of.items():
        reasons += unmet_in(path, first, seconds)
    return reasons


def unmet_in(path: Path, first: float, times: Sequence[float]) -> list[str]:
    """A reason for each key frame missing in a file that begins at the second `first`, or in a folder of seconds."""
    if path.is_dir():
        return refused(partial(check_second, second_files(path), path), times)
    try:
        with VideoReader(path) as reader:

            def check(time: float):
                reader.frame_at(time - first)

            # a video that has two times has all between them
            return refused(check, times) if refused(check, [min(times), max(times)]) else []
    except VideoReadError as error:
        return [str(error)] * len(times)


def refused(check: Callable[[float], object], times: Sequence[float]) -> list[str]:
    """A reason for each time that a check refuses."""
    reasons: list[str] = []
    for time in times:
        try:
            check(time)
        except VideoReadError as error:
            reasons.append(f"at {time:g} s {error}")
    return reasons


def missing_remedy(video: str, folders: VideoFolders) -> str:
    """What to do about a missing video."""
    names = sorted({path.stem for root in folders.roots for path in root.iterdir()})
    close = difflib.get_close_matches(video, names, n=1, cutoff=0.4)
    nearest = close[0] if close else names[0] if names else None
    there = f"; there is, for example, {nearest!r}" if nearest else "; the folder is empty"
    return f"name the files <video>.mp4, or folders of one file per second <video>/902.mp4{there}"


# boxes and detections against the annotations


def recall(truth: pd.DataFrame, boxes: pd.DataFrame, threshold: float = 0.5) -> float:
    """The fraction of annotated people, in key frames that both tables have, that a box overlaps by the threshold."""
    people = truth.drop_duplicates([*KEY, *BOX])
    keys, box_keys = frame_keys(people, boxes)
    order = np.argsort(box_keys, kind="stable")
    first, last = (np.searchsorted(box_keys[order], keys, side=side) for side in ("left", "right"))
    met = np.flatnonzero(last > first)
    if not len(met):
        return 0.0
    counts = (last - first)[met]
    found = boxes[BOX].to_numpy()[order][ranges(first[met], counts)]
    overlap = overlaps(np.repeat(people[BOX].to_numpy()[met], counts, axis=0), found)
    return float((np.maximum.reduceat(overlap, np.cumsum(counts) - counts) >= threshold).mean())


def matching_findings(
    truth: pd.DataFrame, table: pd.DataFrame, path: str, arguments: AvaAuditArguments
) -> Iterator[Finding]:
    """Key frames or boxes that do not match the annotations."""
    boxes = table.dropna(subset=[*KEY, *BOX])
    if truth.empty or boxes.empty:
        return
    keys, known = frame_keys(boxes, truth)
    is_known = np.isin(keys, known)
    if not is_known.any():
        yield disjoint_finding(truth, boxes, path, arguments.ava)
        return
    unmet = len(np.setdiff1d(known, keys))
    if unmet:
        yield Finding(
            f"{path} has no box in {unmet} of {len(np.unique(known))} key frames with people",
            "their people count as not found: run the detector on these key frames",
            is_fatal=False,
        )
    part = recall(truth, boxes[is_known])
    if part >= LOW_RECALL:
        return
    numbers = boxes[is_known][BOX].to_numpy()
    for reading, read in READINGS.items():
        if recall(truth, boxes[is_known].assign(**dict(zip(BOX, read(numbers).T, strict=True)))) > max(2 * part, 0.3):
            yield Finding(
                f"{path}: boxes match {part:.0%} of the people of {arguments.ava}; they would match as {reading}",
                "write x1, y1, x2, y2 in both files, relative to the frame's width and height",
                examples(boxes[is_known]),
            )
            return
    yield Finding(
        f"{path}: boxes match {part:.0%} of the people of {arguments.ava} (intersection over union of 0.5)",
        "compare boxes of one key frame in both files: units, order of the coordinates, mirrored or cropped frames",
        [*examples(truth)[:1], *examples(boxes[is_known])[:1]],
        is_fatal=part < LEAST_RECALL,
    )


def disjoint_finding(truth: pd.DataFrame, boxes: pd.DataFrame, path: str, annotations: str) -> Finding:
    """Why two files have no key frame in common."""
    common = set(truth["video"]) & set(boxes["video"])
    if not common:
        problem = f"{path} and {annotations} have no video in common"
        return Finding(problem, "write the same video ids in both files", [*examples(truth)[:1], *examples(boxes)[:1]])
    video = min(common)
    times = [table["timestamp"][table["video"] == video] for table in (truth, boxes)]
    annotated, found = (f"{seconds.min():g} to {seconds.max():g} s" for seconds in times)
    return Finding(
        f"{path} and {annotations} have no key frame in common",
        "timestamps are seconds from the beginning of the original video in both files, not frame numbers",
        [f"{video}: annotated at {annotated}, boxes at {found}"],
    )


def score_findings(table: pd.DataFrame, arguments: AvaAuditArguments) -> Iterator[Finding]:
    """Scores of people below the threshold, or in percent."""
    scores = table["score"].dropna()
    if scores.empty:
        return
    if scores.max() > 1:
        yield Finding(
            f"{arguments.boxes}: scores go up to {scores.max():g}", "divide them so that they are from 0 to 1"
        )
    below = float((scores < arguments.min_score).mean())
    if below > 0.9:
        yield Finding(
            f"{arguments.boxes}: {below:.0%} of the boxes have a score below min_score={arguments.min_score:g}",
            f"lower min_score; half of the scores are above {scores.median():g}",
            is_fatal=below == 1,
        )


def shifted_action_findings(
    annotations: pd.DataFrame, detections: pd.DataFrame, arguments: AvaAuditArguments
) -> Iterator[Finding]:
    """Results whose class ids are off by one."""
    scored = scored_actions(arguments.scored_label_map, arguments.label_map)
    try:
        score = ava_map(annotations, detections, label_map=scored)["mAP"]
        for shift in (1, -1):
            moved = detections.assign(action=detections["action"] + shift)
            shifted = ava_map(annotations, moved, label_map=scored)["mAP"]
            if shifted > max(2 * score, 0.05):
                yield Finding(
                    f"{arguments.detections}: the mAP is {score:.1%}; {shifted:.1%} with {shift:+d} to each class id",
                    "class ids count from 1: class c of a model has the id c + 1",
                )
    except ValueError:  # other findings say what is wrong with the files
        return
