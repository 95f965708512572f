"""Official splits of UCF101, HMDB51, Something-Something v2 and Kinetics: from their files to lists of videos.

A reader returns the names of the classes, in the order of their indices from 0, and lists such as `train_1` of (name
of the video, class index) pairs, or raises ValueError naming the file and line that is malformed. [`find_videos`]
finds the files of these videos, [`write_lists`] writes list files.
"""

import csv
import io
import itertools
import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..data.atomic import replace_file
from ..data.folders import VIDEO_SUFFIXES, visible_files
from ..model.loading_mvd import listed

logger = logging.getLogger(__name__)

# names of the files of Kinetics for each list
KINETICS_FILES = {
    "train": ("train.csv",),
    "validation": ("val.csv", "validate.csv", "validation.csv"),
    "test": ("test.csv",),
}
List = list[tuple[str, int]]


@dataclass
class OfficialSplits:
    """Official splits of a data set.

    A video that a list has twice is kept once. Repeated videos, and videos in two lists of one split, are logged.

    Args:
        label_names: in the order of the class indices.
        lists: by name, (name of a video, class index) pairs. Names may begin with the folder of the class.

    Raises:
        ValueError: if a list is empty or has a video with two classes, or if a class is in no list.
    """

    label_names: list[str]
    lists: dict[str, List]

    def __post_init__(self):
        for name, videos in self.lists.items():
            if not videos:
                raise ValueError(f"The list {name!r} names no video.")
            self.lists[name] = list(dict.fromkeys(videos))
            if len(self.lists[name]) < len(videos):
                logger.warning("%s names %d videos twice", name, len(videos) - len(self.lists[name]))
            counts = Counter(video for video, _ in self.lists[name])
            twice = [video for video, count in counts.items() if count > 1]
            if twice:
                raise ValueError(f"The list {name!r} has videos with two classes: {listed(twice)}.")
        used = {label for videos in self.lists.values() for _, label in videos}
        unused = [name for label, name in enumerate(self.label_names) if label not in used]
        if unused:
            raise ValueError(
                f"Classes without a video in any list: {listed(unused)}. Files of the splits are missing."
            )
        for first, second in itertools.combinations(self.lists, 2):
            common = sorted({video for video, _ in self.lists[first]} & {video for video, _ in self.lists[second]})
            if common and first.partition("_")[2] == second.partition("_")[2]:  # lists of one split
                logger.warning("%s and %s have videos in common: %s", first, second, listed(common))


# files


def read_text(path: Path) -> str:
    """Text of a file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"The split file {str(path)!r} cannot be read: {error}. Give the folder that holds it."
        ) from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a file that are not blank, with their numbers from 1."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def malformed(path: Path, number: int, line: str, wanted: str) -> ValueError:
    """The error of a malformed line."""
    return ValueError(f"Line {number} of {str(path)!r} is not {wanted}: {line!r}.")


def split_numbers(folder: Path, pattern: str) -> list[int]:
    """Numbers of the splits in the names of a folder's files."""
    names = os.listdir(folder) if folder.is_dir() else []
    numbers = {int(found[1]) for name in names if (found := re.fullmatch(pattern, name))}
    if not numbers:
        raise ValueError(f"The folder {str(folder)!r} has no file named like {pattern!r} (a regular expression).")
    return sorted(numbers)


# UCF101


def read_ucf101(folder: str | Path) -> OfficialSplits:
    """UCF101's `classInd.txt`, `trainlist01.txt`, `testlist01.txt` and so on, as `train_1`, `test_1`, ..."""
    folder = Path(folder)
    index = folder / "classInd.txt"
    names: list[str] = []
    for number, line in numbered_lines(index):
        words = line.split()
        if len(words) != 2 or words[0] != str(len(names) + 1):
            raise malformed(index, number, line, f"'{len(names) + 1} name'")
        names.append(words[1])
    label_of = {name: label for label, name in enumerate(names)}
    lists = {}
    for split in split_numbers(folder, r"(?:train|test)list(\d+)\.txt"):
        for kind in ("train", "test"):
            path = folder / f"{kind}list{split:02d}.txt"
            lists[f"{kind}_{split}"] = [ucf101_video(path, *line, label_of) for line in numbered_lines(path)]
    return OfficialSplits(names, lists)


def ucf101_video(path: Path, number: int, line: str, label_of: dict[str, int]) -> tuple[str, int]:
    """Video and class of a line: `Class/name.avi`, in training lists with the number of the class from 1."""
    video, _, given = line.partition(" ")
    label = label_of.get(video.partition("/")[0])
    if "/" not in video or label is None:
        raise malformed(path, number, line, "'Class/name.avi' with a class of classInd.txt")
    if given and given.strip() != str(label + 1):
        raise malformed(path, number, line, f"of class {label + 1}, as classInd.txt numbers it")
    return video, label


# HMDB51


def read_hmdb51(folder: str | Path) -> OfficialSplits:
    """HMDB51's `<class>_test_split<N>.txt`, as `train_1`, `test_1`, ...; classes in alphabetical order."""
    folder = Path(folder)
    pattern = re.compile(r"(.+)_test_split(\d+)\.txt")
    files = [found for name in (os.listdir(folder) if folder.is_dir() else ()) if (found := pattern.fullmatch(name))]
    if not files:
        raise ValueError(f"The folder {str(folder)!r} has no file named '<class>_test_split<number>.txt'.")
    names = sorted({found[1] for found in files})
    lists: dict[str, List] = {}
    for split in sorted({int(found[2]) for found in files}):
        train, test = lists.setdefault(f"train_{split}", []), lists.setdefault(f"test_{split}", [])
        for label, name in enumerate(names):
            path = folder / f"{name}_test_split{split}.txt"
            for number, line in numbered_lines(path):
                video, _, use = line.rpartition(" ")
                if not video or use not in ("0", "1", "2"):
                    raise malformed(path, number, line, "'name.avi' and 0 (not used), 1 (training) or 2 (test)")
                if use != "0":
                    (train if use == "1" else test).append((f"{name}/{video.strip()}", label))
    return OfficialSplits(names, lists)


# Something-Something v2


def read_ssv2(folder: str | Path) -> OfficialSplits:
    """Something-Something v2's `something-something-v2-{labels,train,validation}.json`, as `train` and `validation`.

    Files may also be named without the prefix, as in newer downloads (`labels.json`).
    """
    path, labels = read_json(Path(folder), "labels")
    try:
        names = sorted(labels, key=lambda name: int(labels[name]))
        if [int(labels[name]) for name in names] != list(range(len(names))):
            raise ValueError("its numbers are not 0, 1, 2, ...")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is not a mapping from templates to class numbers: {error}.") from error
    label_of = {name: label for label, name in enumerate(names)}
    lists = {}
    for kind in ("train", "validation"):
        path, entries = read_json(Path(folder), kind)
        lists[kind] = []
        if not isinstance(entries, list):
            raise ValueError(f"{str(path)!r} is not a list of videos.")
        for number, entry in enumerate(entries, start=1):
            template = entry.get("template") if isinstance(entry, dict) else None
            label = label_of.get(re.sub(r"[\[\]]", "", str(template)))
            if label is None or not entry.get("id"):
                raise ValueError(
                    f"Entry {number} of {str(path)!r} has no 'id' and 'template' of the labels: {entry!r}."
                )
            lists[kind].append((f"{entry['id']}.webm", label))
    return OfficialSplits(names, lists)


def read_json(folder: Path, kind: str) -> tuple[Path, dict | list]:
    """Path and content of one of the files of Something-Something v2."""
    path = folder / f"something-something-v2-{kind}.json"
    if not path.exists() and (folder / f"{kind}.json").exists():
        path = folder / f"{kind}.json"
    try:
        return path, json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"The split file {str(path)!r} is not valid JSON: {error}") from error


# Kinetics


def read_kinetics(folder: str | Path) -> OfficialSplits:
    """Kinetics' `train.csv`, `val.csv` (or `validate.csv`) and, if labeled, `test.csv`; classes alphabetically."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for kind, names in KINETICS_FILES.items():
        path = next((Path(folder) / name for name in names if (Path(folder) / name).exists()), Path(folder) / names[0])
        if kind != "test" or path.exists():
            rows[kind] = kinetics_videos(path)
    if not rows.get("test"):
        rows.pop("test", None)
    label_names = sorted({name for _, name in rows["train"]})
    label_of = {name: label for label, name in enumerate(label_names)}
    for kind, videos in rows.items():
        unknown = sorted({name for _, name in videos} - set(label_names))
        if unknown:
            raise ValueError(f"Classes of the list {kind!r} are not in training: {listed(unknown)}.")
    return OfficialSplits(
        label_names, {kind: [(video, label_of[name]) for video, name in rows[kind]] for kind in rows}
    )


def kinetics_videos(path: Path) -> list[tuple[str, str]]:
    """(name of the video, name of the class) pairs of a file of Kinetics; none if it has no labels."""
    table = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        rows = [(table.line_num, row) for row in table]
    except csv.Error as error:
        raise ValueError(f"The split file {str(path)!r} cannot be read as CSV: {error}") from error
    columns = set(table.fieldnames or ())
    if not {"youtube_id", "time_start", "time_end"} <= columns:
        raise ValueError(f"The split file {str(path)!r} needs the columns label, youtube_id, time_start and time_end.")
    videos = []
    for number, row in rows if "label" in columns else ():
        try:
            start, end = int(float(row["time_start"])), int(float(row["time_end"]))
        except (TypeError, ValueError, OverflowError) as error:
            raise malformed(path, number, ",".join(map(str, row.values())), "a video with its times") from error
        if not row["youtube_id"] or not row["label"]:
            raise malformed(path, number, ",".join(map(str, row.values())), "a video with its label")
        videos.append((f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4", row["label"]))
    return videos


SPLIT_READERS = {"ucf101": read_ucf101, "hmdb51": read_hmdb51, "ssv2": read_ssv2, "kinetics": read_kinetics}


# videos


Index = dict[str, list[PurePosixPath]]


def video_index(folder: str | Path) -> Index:
    """Paths of all videos of a folder and its sub-folders, relative to it, by name without suffix, in lower case."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder of videos {str(folder)!r}.")
    index: defaultdict[str, list[PurePosixPath]] = defaultdict(list)
    for path in visible_files(folder):
        stem, suffix = os.path.splitext(os.path.basename(path))
        if suffix.lower() in VIDEO_SUFFIXES:
            index[stem.lower()].append(PurePosixPath(Path(path).relative_to(folder).as_posix()))
    if not index:
        raise ValueError(f"The folder {str(folder)!r} has no video ({', '.join(sorted(VIDEO_SUFFIXES))}).")
    return index


def possible_stems(stem: str) -> list[str]:
    """Names without suffix of a video's file: a clip of Kinetics is also named with unpadded times, or without."""
    clip = re.fullmatch(r"(.+)_(\d{6})_(\d{6})", stem)
    return [stem] if clip is None else [stem, f"{clip[1]}_{int(clip[2])}_{int(clip[3])}", clip[1]]


def find_video(name: str, index: Index, class_folders: set[str]) -> PurePosixPath | None:
    """The path of a video of a split file in a [`video_index`], or `None`; its name may begin with its class folder.

    Another suffix and another case are accepted, the folder of another class is not. Preferred are paths that end with
    the name, then those of the same case, then those in the folder of the class, then those with the same suffix.
    Several files that fit equally well are refused.

    Args:
        name: of the video.
        index: of the folder.
        class_folders: of all classes, in lower case.
    """
    wanted = PurePosixPath(name)
    others = class_folders - {part.lower() for part in wanted.parts[:-1]}

    def fit(path: PurePosixPath) -> tuple[bool, ...]:
        return (
            path.parts[-len(wanted.parts) :] == wanted.parts,
            path.stem in stems,
            path.parent.name.lower() == wanted.parent.name.lower(),
            path.suffix.lower() == wanted.suffix.lower(),
        )

    stems = possible_stems(wanted.stem)
    for stem in stems:
        found = [path for path in index.get(stem.lower(), []) if path.parent.name.lower() not in others]
        fitting = [path for path in found if fit(path) == max(map(fit, found))]
        if len(fitting) > 1:
            raise ValueError(f"Files that could be {name!r}: {listed(list(map(str, fitting)))}. Keep one of them.")
        if fitting:
            return fitting[0]
    return None


def places_of(splits: OfficialSplits, folder: str | Path) -> dict[str, PurePosixPath | None]:
    """Where each video of official splits is below a folder; raises ValueError if a file could be several videos."""
    index = video_index(folder)
    wanted = dict.fromkeys(video for videos in splits.lists.values() for video, _ in videos)
    class_folders = {PurePosixPath(video).parts[0].lower() for video in wanted if "/" in video}
    places = {video: find_video(video, index, class_folders) for video in wanted}
    owners: defaultdict[PurePosixPath, list[str]] = defaultdict(list)
    for video, path in places.items():
        if path is not None:
            owners[path].append(video)
    shared = next((path for path, videos in owners.items() if len(videos) > 1), None)
    if shared is not None:
        raise ValueError(f"The file {str(shared)!r} could be each of {listed(owners[shared])}: add times to its name.")
    return places


def find_videos(
    splits: OfficialSplits, folder: str | Path, *, allow_missing: bool = False
) -> tuple[dict[str, List], list[str]]:
    """The lists of official splits with the paths of the videos, and the names of their classes.

    Args:
        splits: from a reader of this module.
        folder: holds the videos, with class folders or without, with the official suffix or another.
        allow_missing: leave out videos that are missing, and classes without any video, and log them.

    Returns:
        By the name of the list, (absolute path, class index) pairs; and the names of the classes.

    Raises:
        ValueError: naming missing videos, a class that only some lists have, or several files that could be one video.
    """
    places = places_of(splits, folder)
    missing = [video for video, path in places.items() if path is None]
    present = {label for videos in splits.lists.values() for video, label in videos if places[video]}
    absent = [name for label, name in enumerate(splits.label_names) if label not in present]
    if missing and not allow_missing:
        classes = f", and with them the classes {listed(absent)}" if absent else ""
        raise ValueError(
            f"Of {len(places)} videos, these are missing in {str(folder)!r}: {listed(missing)}{classes}. Give the "
            "folder that holds them, or leave them out with allow_missing."
        )
    if absent:
        logger.warning("Classes without videos are left out, the others are numbered anew: %s", listed(absent))
    number_of = {label: number for number, label in enumerate(sorted(present))}
    base = os.path.abspath(folder)
    lists = {}
    for name, videos in splits.lists.items():
        there = [(os.path.join(base, places[video]), number_of[label]) for video, label in videos if places[video]]
        lists[name] = there
        num_missing = len(videos) - len(there)
        if num_missing:
            logger.warning("%s: %d of %d videos are missing and left out", name, num_missing, len(videos))
        gone = sorted({label for _, label in videos} & present - {label for video, label in videos if places[video]})
        if gone:
            classes = listed([splits.label_names[label] for label in gone])
            raise ValueError(f"Classes of the list {name!r} without any video in {str(folder)!r}: {classes}.")
    return lists, [splits.label_names[label] for label in sorted(present)]


# list files


def write_lists(output: str | Path, lists: dict[str, List], label_names: Sequence[str]):
    """Write `<name>.csv` for each list, for `mvd_hf.data.list_files.read_list_file`, and `classes.txt`.

    Args:
        output: the folder.
        lists: (path or URL, class index) pairs by the name of the list; paths are made absolute.
        label_names: written one per line.

    Raises:
        ValueError: if there is no such file, or a name or path has a line break.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    for text in [*label_names, *(path for videos in lists.values() for path, _ in videos)]:
        if len(text.splitlines()) != 1:
            raise ValueError(f"{text!r} is not one line of text, which a list file cannot hold: rename it.")
    for name, videos in lists.items():
        rows = [(path if "://" in path else os.path.abspath(path), label) for path, label in videos]
        gone = [path for path, _ in rows if "://" not in path and not os.path.isfile(path)]
        if gone:
            raise ValueError(
                f"A list file names existing files, unlike {listed(gone)}: extract the videos to a folder."
            )
        table = io.StringIO()
        csv.writer(table, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerows(rows)
        with replace_file(output / f"{name}.csv") as unfinished:
            unfinished.write_text(table.getvalue(), encoding="utf-8")
    with replace_file(output / "classes.txt") as unfinished:
        unfinished.write_text("".join(f"{name}\n" for name in label_names), encoding="utf-8")
