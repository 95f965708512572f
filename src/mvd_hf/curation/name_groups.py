"""Groups of files that were cut from one video, as far as their names tell.

A number at the end of a name may count the segments of a video, or all the videos of a class. Three kinds of endings
are distinguished:

- **certain**: UCF101's group and clip (`v_Walk_g01_c02`), or two times as in Kinetics (`name_000010_000020`). The text
  before them names the group.
- **marked**: a word for a segment or copy, and its number (`name_seg3`, `name-part2`, `name.clip04`, `name copy 2`).
  The text before them names the group, unless it says no more than the class does.
- **counted**: a number alone (`anna_3`, `name (3)`). The text before it names the group only where the files of a
  class have three such names or more, and each name is counted from the start: its numbers overlap with those of
  another name. So `0001`, `video_12` and `walk (3)` are videos of their own.

A name that is only a number, or a number and a word such as `video` or `IMG`, belongs to the group that its folder
names, if the files of its class are in several folders.
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
        ("certain", r"(?P<prefix>.+_g\d+)_c(?P<number>\d+)"),
        ("certain", r"(?P<prefix>.+?)[_-]\d{6}[_-](?P<number>\d{6})"),
        ("certain", r"(?P<prefix>.+?)[_-]\d+\.\d+[_-](?P<number>\d+)\.\d+"),
        ("marked", rf"(?P<prefix>.*?)(^|[ _.([-]+)({SEGMENT})[ _.#-]*(?P<number>\d+)([ _-]?of[ _-]?\d+)?[)\]]?"),
        ("marked", r"(?P<prefix>.+?)[ _.([-]+copy[ _.-]*\(?(?P<number>\d*)\)?"),
        ("counted", r"(?P<prefix>.*?)[ _.-]*[(\[](?P<number>\d+)[)\]]"),
        ("counted", r"(?P<prefix>.*?)(^|[ _.-]+)(?P<number>\d{1,4})"),
    )
)
# words before a number that name no group, among them those before the number of a person
GENERIC = re.compile(
    "videos?|vid|clips?|movie|mov|film|files?|sample|example|img|image|dsc|dscn|dscf|mvi|gopr|gp|gh|gx|pxl|rec|recording"
    "|capture|output|out|data|item|new|untitled|test|train|val|valid|validation|frames?|action|seq|sequence|take|trial"
    "|session|cam|camera|person|subject|actor|user|player|id|class|label|copy|[a-z]|" + SEGMENT
)
# fewest counted names of a class that may name groups
MIN_COUNTED = 3


@dataclass(frozen=True, slots=True)
class NameParts:
    """A file's name: its folder, the text before its ending, and the kind of the ending (`none`: no number)."""

    folder: str
    prefix: str
    kind: str = "none"
    number: int = 0


def split_name(name: str) -> NameParts:
    r"""The parts of a file's name, a path with `/` or `\`."""
    path = PurePath(name.replace("\\", "/"))
    for kind, ending in ENDINGS:
        found = ending.fullmatch(path.stem)
        if found:
            return NameParts(str(path.parent), found["prefix"], kind, int(found["number"] or 0))
    return NameParts(str(path.parent), path.stem)


def letters(text: str) -> str:
    """A name in lower case without separators; empty if it names no group."""
    text = re.sub(r"\W|_", "", text).lower()
    return "" if text.isdigit() or GENERIC.fullmatch(text) else text


def folder_name(part: NameParts) -> str:
    """The name of a file's folder, as [`letters`], but it may be a number."""
    name = PurePath(part.folder).name
    return name if name.isdigit() else letters(name)


def overlapping(ranges: dict[str, tuple[int, int]]) -> set[str]:
    """Names of the ranges (first, last) that have a number in common with another range."""
    found, widest, end = set(), None, -1
    for name, (first, last) in sorted(ranges.items(), key=lambda item: item[1]):
        if first <= end:
            found |= {name, widest}
        if last > end:
            widest, end = name, last
    return found


def counted_groups(parts: Sequence[NameParts]) -> set[tuple[str, str]]:
    """The (folder, prefix) of counted endings that name groups, among the files of one class."""
    numbers = defaultdict(list)
    for part in parts:
        if part.kind == "counted" and letters(part.prefix):
            numbers[part.folder, part.prefix].append(part.number)
    if len(numbers) < MIN_COUNTED:
        return set()
    return overlapping({prefix: (min(found), max(found)) for prefix, found in numbers.items()})


def class_words(classes: Sequence[Sequence[NameParts]], label_names: Sequence[str] | None) -> set[str]:
    """Words that say no more than the class: its name, the name of its only folder, the only prefix of its files.

    Prefixes count if each class has one, and it is the class's own.
    """
    words = {letters(str(name)) for name in label_names or ()}
    if len(classes) > 1:
        folders = [{folder_name(part) for part in parts} for parts in classes]
        words |= set().union(*(names for names in folders if len(names) == 1))
        prefixes = [{letters(part.prefix) for part in parts} for parts in classes if len(parts) > 1]
        if all(len(names) == 1 for names in prefixes) and len(set().union(*prefixes)) == len(prefixes):
            words |= set().union(*prefixes)
    return words - {""}


def group_of(part: NameParts, words: set[str], counted: set[tuple[str, str]], in_folders: bool) -> tuple | None:
    """The group of a file of a class, or `None`; `in_folders` if the files of the class are in several folders."""
    word = letters(part.prefix)
    if part.kind == "certain":
        return (part.prefix,)
    if part.kind == "marked" and word and word not in words:
        return (part.prefix.lower(),)
    if part.kind == "counted" and (part.folder, part.prefix) in counted and word not in words:
        return part.folder, part.prefix
    folder = folder_name(part)
    if part.kind != "none" and not word and in_folders and folder and folder not in words:
        return part.folder, ""
    return None


def name_groups(
    names: Sequence[str], labels: Sequence | None = None, label_names: Sequence[str] | None = None
) -> list[str | None]:
    """The name of each file's group: files cut from one video have the same. `None` for a video of its own.

    The rules are at the top of this module. A group may have files of several classes. A file whose whole name is that
    of a group belongs to it.

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
    has_one = not any(isinstance(label, tuple) for label in labels)
    # several classes together are often those of one video, whose name then is no name of a class
    words = class_words(classes if has_one else [parts], label_names)
    groups: list[tuple | None] = [None] * len(names)
    for found, of_class in zip(members.values(), classes, strict=True):
        counted = counted_groups(of_class)
        in_folders = len({part.folder for part in of_class}) > 1
        for i in found:
            groups[i] = group_of(parts[i], words, counted, in_folders)
    known = set(groups)
    for i, part in enumerate(parts):
        if part.kind == "none":
            whole = (part.prefix,), (part.prefix.lower(),), (part.folder, part.prefix)
            groups[i] = next((group for group in whole if group in known), None)
    return [None if group is None else "/".join(group).removeprefix("./") for group in groups]
