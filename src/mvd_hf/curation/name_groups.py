"""Which files were cut from one video, as far as their names tell.

A number at the end of a name may count the segments of a video, or all the videos of a class. Three kinds of endings
are told apart:

- **certain**: UCF101's group and clip (`v_Walk_g01_c02`), or two times as in Kinetics (`name_000010_000020`). What is
  before them is the source.
- **marked**: a word for a segment or copy, and its number (`name_seg3`, `name-part2`, `name.clip04`, `name copy 2`).
  What is before them is the source, unless it says no more than the class does.
- **counted**: a number alone (`anna_3`, `name (3)`). What is before it is the source only where the files of a class
  have three such names or more, and the numbers start anew: those of this name overlap with those of another. So
  `0001`, `video_12` and `walk (3)` are videos of their own.

A name that is only a number, or a number and a word such as `video` or `IMG`, is of the source that its folder is
named after, if the files of its class are in several folders.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

SEGMENT = "segment|seg|part|pt|clip|scene|shot|chunk|section|cut|piece|split"
ENDINGS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("certain", r"(?P<source>.+_g\d+)_c(?P<number>\d+)"),
        ("certain", r"(?P<source>.+?)[_-]\d{6}[_-](?P<number>\d{6})"),
        ("certain", r"(?P<source>.+?)[_-]\d+\.\d+[_-](?P<number>\d+)\.\d+"),
        ("marked", rf"(?P<source>.*?)(^|[ _.([-]+)({SEGMENT})[ _.#-]*(?P<number>\d+)([ _-]?of[ _-]?\d+)?[)\]]?"),
        ("marked", r"(?P<source>.+?)[ _.([-]+copy[ _.-]*\(?(?P<number>\d*)\)?"),
        ("counted", r"(?P<source>.*?)[ _.-]*[(\[](?P<number>\d+)[)\]]"),
        ("counted", r"(?P<source>.*?)(^|[ _.-]+)(?P<number>\d{1,4})"),
    )
)
# words that name no source in front of a number, among them those before the number of a person
GENERIC = re.compile(
    "videos?|vid|clips?|movie|mov|film|files?|sample|example|img|image|dsc|dscn|dscf|mvi|gopr|gp|gh|gx|pxl|rec|recording"
    "|capture|output|out|data|item|new|untitled|test|train|val|valid|validation|frames?|action|seq|sequence|take|trial"
    "|session|cam|camera|person|subject|actor|user|player|id|class|label|copy|[a-z]|" + SEGMENT
)
# counted names of a class that may be sources
MIN_COUNTED = 3


@dataclass(frozen=True, slots=True)
class NameParts:
    """A file's name: its folder, what may name its source, and the kind of its ending (`none`: no number)."""

    folder: str
    source: str
    kind: str = "none"
    number: int = 0


def split_name(name: str) -> NameParts:
    r"""The parts of a file's name, a path with `/` or `\`."""
    path = PurePath(name.replace("\\", "/"))
    for kind, ending in ENDINGS:
        found = ending.fullmatch(path.stem)
        if found:
            return NameParts(str(path.parent), found["source"], kind, int(found["number"] or 0))
    return NameParts(str(path.parent), path.stem)


def bare(text: str) -> str:
    """A name in small letters, without what separates words; empty if it names no source."""
    text = re.sub(r"\W|_", "", text).lower()
    return "" if text.isdigit() or GENERIC.fullmatch(text) else text


def folder_name(part: NameParts) -> str:
    """What a file's folder is named, as [`bare`], which may be a number here."""
    name = PurePath(part.folder).name
    return name if name.isdigit() else bare(name)


def overlapping(ranges: dict[str, tuple[int, int]]) -> set[str]:
    """Names of the ranges (first, last) that have a number in common with another range."""
    found, widest, end = set(), None, -1
    for name, (first, last) in sorted(ranges.items(), key=lambda item: item[1]):
        if first <= end:
            found |= {name, widest}
        if last > end:
            widest, end = name, last
    return found


def counted_sources(parts: Sequence[NameParts]) -> set[tuple[str, str]]:
    """The (folder, name) before counted endings, among the files of one class, that are sources."""
    numbers = defaultdict(list)
    for part in parts:
        if part.kind == "counted" and bare(part.source):
            numbers[part.folder, part.source].append(part.number)
    if len(numbers) < MIN_COUNTED:
        return set()
    return overlapping({source: (min(found), max(found)) for source, found in numbers.items()})


def class_words(classes: Sequence[Sequence[NameParts]], label_names: Sequence[str] | None) -> set[str]:
    """What says no more than the class: its name, the name of its folders, and what begins all names of its files.

    The names of folders if all of a class are named alike, the beginnings if each class has one of its own.
    """
    words = {bare(str(name)) for name in label_names or ()}
    if len(classes) > 1:
        folders = [{folder_name(part) for part in parts} for parts in classes]
        words |= set().union(*(names for names in folders if len(names) == 1))
        beginnings = [{bare(part.source) for part in parts} for parts in classes if len(parts) > 1]
        if all(len(names) == 1 for names in beginnings) and len(set().union(*beginnings)) == len(beginnings):
            words |= set().union(*beginnings)
    return words - {""}


def source_of(part: NameParts, words: set[str], counted: set[tuple[str, str]], in_folders: bool) -> tuple | None:
    """The source of a file of a class, or `None`.

    Args:
        part: its name.
        words: from [`class_words`].
        counted: from [`counted_sources`] of the class.
        in_folders: whether the files of the class are in several folders.
    """
    word = bare(part.source)
    if part.kind == "certain":
        return (part.source,)
    if part.kind == "marked" and word and word not in words:
        return (part.source.lower(),)
    if part.kind == "counted" and (part.folder, part.source) in counted and word not in words:
        return part.folder, part.source
    folder = folder_name(part)
    if part.kind != "none" and not word and in_folders and folder and folder not in words:
        return part.folder, ""
    return None


def sources_by_name(
    names: Sequence[str], labels: Sequence | None = None, label_names: Sequence[str] | None = None
) -> list[str | None]:
    """What names the source of each file, the same text for files of one source; `None` for a video of its own.

    The rules are at the top of this file. Files of several classes may have one source. A file whose whole name is a
    source belongs to it.

    Args:
        names: paths of the files.
        labels: their classes, of any kind; one class by default.
        label_names: names of the classes.

    Raises:
        ValueError: if there are not as many labels as names.
    """
    labels = [0] * len(names) if labels is None else list(labels)
    if len(labels) != len(names):
        raise ValueError(f"{len(names)} names have {len(labels)} labels: give one for each.")
    parts = [split_name(name) for name in names]
    members = defaultdict(list)
    for i, label in enumerate(labels):
        members[label].append(i)
    classes = [[parts[i] for i in found] for found in members.values()]
    words = class_words(classes, label_names)
    sources: list[tuple | None] = [None] * len(names)
    for found, of_class in zip(members.values(), classes, strict=True):
        counted = counted_sources(of_class)
        in_folders = len({part.folder for part in of_class}) > 1
        for i in found:
            sources[i] = source_of(parts[i], words, counted, in_folders)
    known = set(sources)
    for i, part in enumerate(parts):
        if part.kind == "none":
            whole = (part.source,), (part.source.lower(),), (part.folder, part.source)
            sources[i] = next((source for source in whole if source in known), None)
    return [None if source is None else "/".join(source).removeprefix("./") for source in sources]
