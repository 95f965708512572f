"""Why an action detection data set would give a mean average precision of zero: a look at its files before training.

Each finding names what is wrong, where, and the remedy. A table here is as a file has it: what is no number is NaN.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
    ava_map,
    frame_keys,
    named_actions,
    read_columns,
    read_key_frames,
    scored_actions,
)
from .average_precision import overlaps, ranges
from .video_folders import VideoFolders, check_second, second_files

# rows and videos that a finding names
NUM_EXAMPLES = 3
# part of the annotated people that must be met by boxes, or the boxes are not of these people
LEAST_RECALL, LOW_RECALL = 0.05, 0.5
# what boxes that meet nobody are tried as
READINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "y1, x1, y2, x2: x and y are swapped": lambda boxes: boxes[:, [1, 0, 3, 2]],
    "x, y, width, height": lambda boxes: np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]),
    "centre x, centre y, width, height": lambda boxes: np.hstack(
        [boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2]
    ),
}


@dataclass
class Finding:
    """Something that is wrong with a data set.

    Args:
        problem: what, in which file.
        remedy: what to do.
        examples: where.
        is_fatal: whether it stops the training or makes the mean average precision (nearly) zero.
    """

    problem: str
    remedy: str
    examples: list[str] = field(default_factory=list)
    is_fatal: bool = True

    def describe(self) -> str:
        """The finding in one to three lines."""
        lines = [f"{'ERROR' if self.is_fatal else 'note'}: {self.problem}"]
        if self.examples:
            lines.append(f"  for example {'; '.join(self.examples)}")
        return "\n".join([*lines, f"  remedy: {self.remedy}"])


@dataclass
class AvaAuditArguments:
    """The files of an action detection data set, as keys.

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

    @property
    def actions(self) -> dict[int, str]:
        """Class ids and names of the actions to learn."""
        return named_actions(self.label_map, AVA_ACTIONS)

    @property
    def scored(self) -> dict[int, str]:
        """Class ids and names of the actions that are scored."""
        own = self.scored_label_map is None and self.label_map is not None
        return self.actions if own else scored_actions(self.scored_label_map)


def audit_ava(arguments: AvaAuditArguments) -> list[Finding]:
    """Findings on the annotations, then on videos, boxes and detections as far as they are given; fatal ones first.

    Raises:
        ValueError: if a file cannot be read at all.
    """
    annotations = lenient(arguments.ava, COLUMNS)
    findings = [*form_findings(annotations, arguments.ava, has_actions=True)]
    findings += action_findings(annotations, arguments.ava, arguments)
    truth = annotations.dropna(subset=[*KEY, *BOX])
    findings += excluded_findings(truth, arguments)
    if arguments.videos is not None:
        findings += video_findings(annotations.dropna(subset=KEY), arguments)
    if arguments.boxes is not None:
        columns = [*KEY, *BOX, "label", "score"]
        table = lenient(arguments.boxes, columns)
        if table["score"].isna().all():  # seven columns
            table["score"] = table["label"]
        findings += form_findings(table, arguments.boxes, has_actions=False)
        findings += meeting_findings(truth, table, arguments.boxes, arguments)
        findings += score_findings(table, arguments)
    if arguments.detections is not None:
        table = lenient(arguments.detections, COLUMNS)
        findings += form_findings(table, arguments.detections, has_actions=True)
        findings += action_findings(table, arguments.detections, arguments)
        findings += meeting_findings(truth, table, arguments.detections, arguments)
        findings += shifted_action_findings(annotations, table, arguments)
    return sorted(findings, key=lambda finding: not finding.is_fatal)


def describe_ava(arguments: AvaAuditArguments, findings: Sequence[Finding]) -> str:
    """A text on the annotations and what is wrong."""
    table = lenient(arguments.ava, COLUMNS).dropna(subset=KEY)
    people = table.dropna(subset=BOX).drop_duplicates([*KEY, *BOX])
    counts = {
        "rows": len(table),
        "videos": table["video"].nunique(),
        "key frames": len(table.drop_duplicates(KEY)),
        "people": len(people),
        "actions": table["action"].nunique(),
    }
    lines = [f"{arguments.ava}: " + ", ".join(f"{count} {name}" for name, count in counts.items())]
    lines += [finding.describe() for finding in findings]
    return "\n".join(lines if findings else [*lines, "Nothing is wrong with it."])


def lenient(path: str, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of a file, with NaN for what is no number."""
    table = read_columns(path, columns)
    numbers = {name: pd.to_numeric(table[name], errors="coerce").astype("float64") for name in columns[1:]}
    return table.assign(**numbers)


def examples(table: pd.DataFrame) -> list[str]:
    """The first rows, as the file has them."""
    return [
        f"row {row + 1}: "
        + ",".join("" if pd.isna(value) else f"{value:g}" if i else str(value) for i, value in cells)
        for row, cells in ((row, enumerate(values)) for row, values in table.head(NUM_EXAMPLES).iterrows())
    ]


# a file by itself


def form_findings(table: pd.DataFrame, path: str, has_actions: bool) -> Iterator[Finding]:
    """Rows that are no rows, boxes without actions, boxes in pixels, boxes in another order."""
    is_keyless = table[KEY].isna().any(axis=1)
    if is_keyless.any():
        is_header = is_keyless.iloc[0] and not is_keyless.iloc[1:].any()
        yield Finding(
            f"{path}: {int(is_keyless.sum())} rows have no video or no timestamp in seconds",
            "delete the header line" if is_header else "write video,timestamp,x1,y1,x2,y2,action in every row",
            examples(table[is_keyless]),
        )
    table = table[~is_keyless]
    boxes = table.dropna(subset=BOX)
    if boxes.empty:
        yield Finding(f"{path} has no box", "write video,timestamp,x1,y1,x2,y2,action in every row")
        return
    if has_actions and boxes["action"].isna().any():
        yield Finding(
            f"{path}: {int(boxes['action'].isna().sum())} boxes have no action",
            "give each action of a person a row with the class id in the seventh column, or leave the person out",
            examples(boxes[boxes["action"].isna()]),
        )
    is_half = table[BOX].isna().any(axis=1) & table[BOX].notna().any(axis=1)
    if is_half.any():
        yield Finding(
            f"{path}: {int(is_half.sum())} rows have a part of a box", "give x1, y1, x2, y2", examples(table[is_half])
        )
    is_large = (boxes[BOX].abs() > LARGEST_PART).any(axis=1)
    if is_large.any():
        yield Finding(
            f"{path}: {int(is_large.sum())} boxes are in pixels",
            "divide x by the width and y by the height of the frame: boxes are parts of it, from 0 to 1",
            examples(boxes[is_large]),
        )
    is_inverted = (boxes["x1"] >= boxes["x2"]) | (boxes["y1"] >= boxes["y2"])
    if is_inverted.any():
        fits = (boxes[["x1", "y1"]].to_numpy() + boxes[["x2", "y2"]].to_numpy() <= 1.05).all(axis=1).mean() > 0.95
        yield Finding(
            f"{path}: {int(is_inverted.sum())} boxes end before they begin",
            "they look like x, y, width, height: write x1, y1, x2 = x1 + width, y2 = y1 + height"
            if fits
            else "write x1, y1, x2, y2, the upper left and the lower right corner",
            examples(boxes[is_inverted]),
        )


def action_findings(table: pd.DataFrame, path: str, arguments: AvaAuditArguments) -> Iterator[Finding]:
    """Class ids that are off by one, outside the label map, or not scored."""
    ids = table["action"].dropna()
    known, scored = set(arguments.actions), set(arguments.scored)
    if (ids == 0).any():
        yield Finding(
            f"{path}: class ids count from 0",
            "add 1 to each: ids count from 1, as in AVA's label map",
            examples(table[table["action"] == 0]),
        )
    is_unknown = table["action"].notna() & ~table["action"].isin(known) & (table["action"] != 0)
    if is_unknown.any():
        unknown = ", ".join(f"{number:g}" for number in sorted(table["action"][is_unknown].unique())[:NUM_EXAMPLES])
        yield Finding(
            f"{path}: {int(is_unknown.sum())} rows have class ids outside the label map, such as {unknown}",
            f"give label_map, a file that names them; now {len(known)} ids up to {max(known)} are known"
            if arguments.label_map is None
            else f"add them to {arguments.label_map}, or correct the ids",
            examples(table[is_unknown]),
        )
    if len(ids) and not ids.isin(scored).any():
        yield Finding(
            f"{path}: no action is among the {len(scored)} that are scored",
            "give the label_map of these class ids: AVA's 60 are scored without one",
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
    """Videos that are missing or cannot be read, and key frames outside them."""
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
    for video, times in tqdm(there, desc="videos", unit=" videos"):
        reasons += unmet_times(folders, str(video), times.tolist())
    if reasons:
        yield Finding(
            f"{len(reasons)} of {len(frames)} key frames cannot be read",
            "timestamps are seconds from the beginning of the original video: give video_start, the second at which "
            "the files begin, if they were cut; not frame numbers, not milliseconds",
            list(dict.fromkeys(reasons))[:NUM_EXAMPLES],
        )


def unmet_times(folders: VideoFolders, video: str, times: Sequence[float]) -> list[str]:
    """Why key frames of a video cannot be read, a reason for each; nothing is decoded."""
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
    """Why key frames cannot be read from a file that begins at the second `first`, or from a folder of seconds."""
    if path.is_dir():
        return refused(partial(check_second, second_files(path), path), times)
    try:
        with VideoReader(path) as reader:

            def check(time: float):
                reader.frame_at(time - first)

            # between two times that it has, it has all
            return refused(check, times) if refused(check, [min(times), max(times)]) else []
    except VideoReadError as error:  # it cannot be opened, at no time
        return [str(error)] * len(times)


def refused(check: Callable[[float], object], times: Sequence[float]) -> list[str]:
    """Why a check refuses times, a reason for each that it does."""
    reasons: list[str] = []
    for time in times:
        try:
            check(time)
        except VideoReadError as error:
            reasons.append(f"at {time:g} s {error}")
    return reasons


def missing_remedy(video: str, folders: VideoFolders) -> str:
    """What to do about a video that is not there."""
    names = sorted({path.stem for root in folders.roots for path in root.iterdir()})
    close = difflib.get_close_matches(video, names, n=1, cutoff=0.4)
    nearest = close[0] if close else names[0] if names else None
    there = f"; there is, for example, {nearest!r}" if nearest else "; the folder is empty"
    return f"name the files <video>.mp4, or folders of one file per second <video>/902.mp4{there}"


# boxes and detections against the annotations


def recall(truth: pd.DataFrame, boxes: pd.DataFrame, threshold: float = 0.5) -> float:
    """The part of the annotated people, in key frames that both have, that a box overlaps by the threshold."""
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


def meeting_findings(
    truth: pd.DataFrame, table: pd.DataFrame, path: str, arguments: AvaAuditArguments
) -> Iterator[Finding]:
    """Key frames or boxes that do not meet those of the annotations."""
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
            "the people there count as not found: run the detector on these key frames",
            is_fatal=False,
        )
    part = recall(truth, boxes[is_known])
    if part >= LOW_RECALL:
        return
    numbers = boxes[is_known][BOX].to_numpy()
    for reading, read in READINGS.items():
        if recall(truth, boxes[is_known].assign(**dict(zip(BOX, read(numbers).T, strict=True)))) > max(2 * part, 0.3):
            yield Finding(
                f"{path}: boxes meet {part:.0%} of the people of {arguments.ava}, and would if they were {reading}",
                "write x1, y1, x2, y2 in both files, parts of the frame's width and height",
                examples(boxes[is_known]),
            )
            return
    yield Finding(
        f"{path}: boxes meet {part:.0%} of the people of {arguments.ava} (intersection over union of 0.5)",
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
    """Scores of people below the threshold, or in per cent."""
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
    try:
        own = ava_map(annotations, detections, label_map=arguments.scored)["mAP"]
        for shift in (1, -1):
            moved = detections.assign(action=detections["action"] + shift)
            shifted = ava_map(annotations, moved, label_map=arguments.scored)["mAP"]
            if shifted > max(2 * own, 0.05):
                yield Finding(
                    f"{arguments.detections}: the mAP is {own:.1%}; {shifted:.1%} with {shift:+d} to each class id",
                    "class ids count from 1: the class with number c of a model is the id c + 1",
                )
    except ValueError:  # other findings tell what is wrong with the files
        return
