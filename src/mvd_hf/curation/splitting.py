"""Split your videos into training and validation without leaks, and warn about classes that are hard to learn.

Videos of one group (copies, parts of one another, segments of one video by their names) are on one side of the split.
"""

import dataclasses
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from ..data.sources import Rows, has_content, media_column, media_name, write_table
from ..model.loading_mvd import listed
from .fingerprints import FingerprintSettings, VideoFingerprint, flat, read_fingerprints, unreadable
from .name_groups import name_groups
from .near_duplicates import NearDuplicate, find_near_duplicates

# limits of warnings: videos of a class, largest class over smallest, deviation of a class from the wanted fraction
FEW_VIDEOS, IMBALANCE, WIDE_OF_FRACTION = 10, 10, 0.15
# what stands for the class of videos without one, which a split shares out like a class; it sorts behind all others
NO_CLASS = math.inf
# classes or videos that a warning names
NUM_NAMED = 10
# fraction of videos shorter than a dense clip: up to the first clips stay dense, above the second they are uniform
FEW_SHORT, MANY_SHORT = 0.25, 0.5

logger = logging.getLogger(__name__)


# groups


def file_names(rows: Rows) -> tuple[list[str], dict[int, str]]:
    """The name of each row's file, and the reason why there is none by position."""
    column = media_column(rows)
    names, bad = [], {}
    for i, row in enumerate(rows.select_columns(column)):  # one by one: rows may hold the contents of files
        if has_content(row[column]):
            names.append(media_name(row[column]))
        else:
            names.append(f"row {i}")
            bad[i] = "the row has neither a path nor bytes"
    return names, bad


def group_videos(
    names: Sequence[str],
    labels: Sequence[int] | None = None,
    duplicates: Sequence[NearDuplicate] = (),
    label_names: Sequence[str] | None = None,
    sources: Sequence | None = None,
) -> list[int]:
    """Number of the group of each video, from 0 in the order of first videos. A split must not separate a group.

    Args:
        names: of the files; the same name is the same video.
        labels, label_names: as in `mvd_hf.curation.name_groups.name_groups`.
        duplicates: pairs of positions, from `find_near_duplicates`.
        sources: of each video, such as its camera or its subject: one source is one group. `None` is no source.
    """
    parents = list(range(len(names)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    first: dict[tuple, int] = {}
    known = {"name": names, "group": name_groups(names, labels, label_names), "source": sources or [None] * len(names)}
    for i, values in enumerate(zip(*known.values(), strict=True)):
        for key in zip(known, values, strict=True):
            if key[1] is not None:
                parents[root(i)] = root(first.setdefault(key, i))
    for pair in duplicates:
        parents[root(pair.second)] = root(pair.first)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in range(len(names))]


# the split


@dataclass
class Split:
    """Rows of a data set to train and to validate on.

    Args:
        train, validation: their positions, in the order of the data set.
        groups: group of each row, see [`group_videos`]; none is on both sides.
        duplicates: videos with common footage, by position.
        unreadable: name and reason of each video that cannot be read; these are on neither side.
        flat: names of videos that show nothing to compare, grouped by name alone.
        warnings: one sentence on each problem to look at before training.
    """

    train: list[int]
    validation: list[int]
    groups: list[int]
    duplicates: list[NearDuplicate] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    flat: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class ValidationGroups:
    """Moves groups to validation one by one.

    Args:
        groups: number of videos of each class in each group.
        fraction: wanted fraction of each class.
    """

    def __init__(self, groups: Sequence[Counter], fraction: float):
        self.groups, self.chosen = groups, set()
        totals: Counter = Counter()
        for group in groups:
            totals.update(group)
        self.wanted = {label: fraction * total for label, total in totals.items()}
        self.taken: Counter = Counter()
        self.num_left = Counter(label for group in groups for label in group)

    def take(self, group: int):
        """Take a group."""
        self.chosen.add(group)
        self.taken.update(self.groups[group])
        self.num_left.subtract(self.groups[group].keys())

    def is_free(self, group: int) -> bool:
        """Whether a group may be taken: each of its classes keeps another one for training."""
        return group not in self.chosen and all(self.num_left[label] > 1 for label in self.groups[group])

    def fits(self, group: int) -> bool:
        """Whether none of its classes exceeds the wanted fraction."""
        return all(self.taken[label] + count <= self.wanted[label] for label, count in self.groups[group].items())

    def error_by(self, group: int) -> float:
        """How much further from the wanted numbers its classes would be with a group than without it."""
        return sum(
            abs(self.taken[label] + count - self.wanted[label]) - abs(self.taken[label] - self.wanted[label])
            for label, count in self.groups[group].items()
        )


def choose_validation(groups: Sequence[Counter], fraction: float, rng: np.random.Generator) -> set[int]:
    """Groups for validation: near `fraction` of each class, and one group or more of each class that has two."""
    choice = ValidationGroups(groups, fraction)
    order = rng.permutation(len(groups)).tolist()
    having = defaultdict(list)
    for group in order:
        for label in groups[group]:
            having[label].append(group)
    for label in sorted(having, key=lambda label: (len(having[label]), label)):
        free = [group for group in having[label] if choice.is_free(group)]
        if free and not choice.taken[label]:
            fitting = [group for group in free if choice.fits(group)]
            choice.take(fitting[0] if fitting else min(free, key=choice.error_by))
    # groups that fit come first, so that validation rarely consists of a few large groups
    for is_welcome in (choice.fits, lambda group: choice.error_by(group) < 0):
        for group in order:
            if choice.is_free(group) and is_welcome(group):
                choice.take(group)
    return choice.chosen


def split_rows(
    rows: Rows,
    labels: Sequence[int] | Sequence[tuple[int, ...]],
    *,
    fraction: float = 0.2,
    seed: int = 0,
    fingerprints: Sequence[VideoFingerprint] | None = None,
    label_names: Sequence[str] | None = None,
    sources: Sequence | None = None,
    are_classes: bool = True,
) -> Split:
    """Split videos into training and validation, class by class, so that no group is on both sides.

    A class of two groups or more has at least one on either side; a class of one group stays in training. The same
    arguments give the same split. Warnings are logged, too.

    Args:
        rows: the videos, see `mvd_hf.data.sources.load_rows`.
        labels: class index of each, or a tuple of its classes, of which it may have none.
        fraction: wanted fraction of each class in validation.
        seed: of the choice.
        fingerprints: of the rows, from `read_fingerprints`; without them groups are by name alone.
        label_names: names of the classes.
        sources: as in [`group_videos`].
        are_classes: whether the labels are classes: to read the names of files by them and to warn about them.

    Raises:
        ValueError: if the fraction is not between 0 and 1, or there are not as many labels or fingerprints as rows.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} must be more than 0 and less than 1.")
    names, bad = file_names(rows)
    for what, given in (("labels", labels), ("fingerprints", fingerprints)):
        if given is not None and len(given) != len(names):
            raise ValueError(f"{len(names)} rows have {len(given)} {what}: give one for each.")
    bad |= {i: fingerprint.reason for i, fingerprint in enumerate(fingerprints or ()) if fingerprint.reason}
    usable = [i for i in range(len(names)) if i not in bad]
    if not usable:
        raise ValueError(
            f"None of the videos can be read: {listed([f'{names[i]}: {bad[i]}' for i in bad], NUM_NAMED)}."
        )
    duplicates = find_near_duplicates(fingerprints) if fingerprints is not None else []
    groups = group_videos(names, labels if are_classes else None, duplicates, label_names, sources)
    contents: defaultdict[int, Counter] = defaultdict(Counter)
    for i in usable:
        contents[groups[i]].update(classes_of(labels[i]) or (NO_CLASS,))
    numbers = list(contents)
    chosen = choose_validation([contents[n] for n in numbers], fraction, np.random.default_rng(seed))
    held_out = {numbers[i] for i in chosen}
    split = Split(
        train=[i for i in usable if groups[i] not in held_out],
        validation=[i for i in usable if groups[i] in held_out],
        groups=groups,
        duplicates=duplicates,
        unreadable={names[i]: reason for i, reason in bad.items()},
        flat=flat(fingerprints or ()),
    )
    split.warnings = split_warnings(split, names, labels, label_names)
    if are_classes:
        sides = ([labels[i] for i in part] for part in (split.train, split.validation))
        of_classes = class_warnings(*sides, label_names) + group_warnings(split, names, labels, fraction, label_names)
        split.warnings = of_classes + split.warnings
    for warning in split.warnings:
        logger.warning("%s", warning)
    return split


def write_duplicates(path: str | Path, duplicates: Sequence[NearDuplicate], names: Sequence[str]):
    """Write pairs of positions in `names` with common footage as a CSV file."""
    rows = [
        {**dataclasses.asdict(pair), "first": names[pair.first], "second": names[pair.second]} for pair in duplicates
    ]
    write_table(path, rows, [item.name for item in dataclasses.fields(NearDuplicate)])


# warnings


def classes_of(label: int | tuple[int, ...]) -> tuple[int, ...]:
    """The classes of a video, of which it has one, or any number in a tuple."""
    return label if isinstance(label, tuple) else (label,)


def named(labels: Sequence[int], label_names: Sequence[str] | None) -> list[str]:
    """Names of classes, in quotes; their numbers where there are no names."""
    known = label_names or ()
    return [repr(known[label]) if 0 <= label < len(known) else str(label) for label in labels]


def class_warnings(
    train_labels: Sequence, validation_labels: Sequence, label_names: Sequence[str] | None = None
) -> list[str]:
    """Sentences on classes that are tiny, much larger than others, or missing on a side of a split.

    Args:
        train_labels, validation_labels: class index of each video, or its classes if it has several.
        label_names: names of all classes.
    """
    train, validation = (Counter(chain(*map(classes_of, labels))) for labels in (train_labels, validation_labels))
    together = train + validation
    classes = sorted({*together, *range(len(label_names or ()))})
    found = {
        "Classes without any video": [label for label in classes if not together[label]],
        f"Classes with fewer than {FEW_VIDEOS} usable videos, too few to learn or to measure": [
            label for label in classes if 0 < together[label] < FEW_VIDEOS
        ],
        "Classes missing from training, which cannot be learned": [
            label for label in classes if validation[label] and not train[label]
        ],
        "Classes missing from validation, which cannot be measured": [
            label for label in classes if train[label] and not validation[label]
        ],
    }
    warnings = [
        f"{what}: {listed(named(labels, label_names), NUM_NAMED)}." for what, labels in found.items() if labels
    ]
    if together:
        (largest, most), (smallest, fewest) = together.most_common()[0], together.most_common()[-1]
        if most > IMBALANCE * fewest:
            large, small = named([largest, smallest], label_names)
            warnings.append(
                f"The classes are uneven, {most / fewest:.0f} to 1: {large} has {most} videos, {small} has {fewest}. "
                "Watch the accuracy per class."
            )
    return warnings


def group_warnings(
    split: Split, names: Sequence[str], labels: Sequence, fraction: float, label_names: Sequence[str] | None
) -> list[str]:
    """Sentences on classes whose groups do not allow the wanted fraction."""
    warnings = []
    members, groups = defaultdict(list), defaultdict(set)
    for i in sorted([*split.train, *split.validation]):
        for label in classes_of(labels[i]):
            members[label].append(i)
            groups[label].add(split.groups[i])
    held_out = Counter(label for i in split.validation for label in classes_of(labels[i]))
    for label, found in sorted(members.items()):
        (name,), part = named([label], label_names), held_out[label] / len(found)
        if len(groups[label]) == 1:
            reason = f"{len(found)} videos seem to be cut from one" if len(found) > 1 else "it has a single video"
            files = listed([names[i] for i in found], NUM_NAMED)
            warnings.append(f"Class {name} stays in training, as {reason}: {files}.")
        elif abs(part - fraction) > WIDE_OF_FRACTION and len(found) >= FEW_VIDEOS:
            warnings.append(
                f"Class {name} has {part:.0%} of its videos in validation instead of {fraction:.0%}: "
                f"its {len(found)} videos form {len(groups[label])} groups."
            )
    return warnings


def split_warnings(
    split: Split, names: Sequence[str], labels: Sequence, label_names: Sequence[str] | None
) -> list[str]:
    """Sentences on the videos of a split: contradictory labels, videos left out."""
    called = [
        f"{name} ({', '.join(named(classes_of(label), label_names)) or 'no class'})"
        for name, label in zip(names, labels, strict=True)
    ]
    contradictory = [pair for pair in split.duplicates if labels[pair.first] != labels[pair.second]]
    found = {
        "Pairs with common footage and different labels": [
            f"{called[pair.first]} and {called[pair.second]}" for pair in contradictory
        ],
        "Videos that cannot be read and are left out": [f"{name}: {why}" for name, why in split.unreadable.items()],
        "Videos that show nothing, such as black ones, compared by name only": split.flat,
    }
    return [f"{what}: {listed(which, NUM_NAMED)}." for what, which in found.items() if which]


# two data sets


@dataclass
class ContentOverlap:
    """Videos of a validation set whose footage is in the training set.

    Args:
        pairs: (name of the validation video, name of the training video, their relation).
        unreadable: name and reason of each video of either set that cannot be read.
        flat: names of videos of either set that show nothing to compare.
    """

    pairs: list[tuple[str, str, NearDuplicate]]
    unreadable: dict[str, str]
    flat: list[str]

    def describe(self) -> str:
        """A text of a few lines."""
        leaked = list(dict.fromkeys(validation for validation, _, _ in self.pairs))
        lines = [f"Validation videos whose footage is in training: {listed(leaked, NUM_NAMED)}"]
        lines += [
            f"  {validation} = {train} ({pair.kind}, {pair.share:.0%} of the shorter one)"
            for validation, train, pair in self.pairs
        ]
        if self.unreadable:
            lines.append(f"Not compared, cannot be read: {listed(self.unreadable, NUM_NAMED)}")
        if self.flat:
            lines.append(f"Not compared, show nothing: {listed(self.flat, NUM_NAMED)}")
        return "\n".join(lines)


def find_overlap_by_content(
    train_rows: Rows,
    validation_rows: Rows,
    settings: FingerprintSettings | None = None,
    cache: str | Path | None = None,
) -> ContentOverlap:
    """Find videos of a validation set that have footage in common with training videos.

    Args:
        train_rows, validation_rows: see `mvd_hf.data.sources.load_rows`.
        settings, cache: as in [`read_fingerprints`]; both sets share the file.
    """
    train = read_fingerprints(train_rows, settings, cache)
    validation = read_fingerprints(validation_rows, settings, cache)
    pairs = find_near_duplicates(validation, train)
    both = [*train, *validation]
    return ContentOverlap(
        [(validation[pair.first].file, train[pair.second].file, pair) for pair in pairs], unreadable(both), flat(both)
    )


# which frames


@dataclass(frozen=True)
class Sampling:
    """How clips are taken from videos: `kind` (`dense` or `uniform`), `stride`, and the `reason` as a sentence."""

    kind: str
    stride: int
    reason: str


def choose_sampling(lengths: Sequence[int], num_frames: int = 16, stride: int = 4) -> Sampling:
    """Choose dense or uniform clips by the lengths of the videos.

    A dense clip is a random part of `num_frames * stride` frames, as for Kinetics; in a shorter video it repeats
    frames. A uniform clip is spread over the whole video, as for Something-Something. Where some but not most videos
    are short, a smaller stride avoids repeated frames; to a model that was trained with another stride, motion then
    looks slower.

    Args:
        lengths: frames of each video, such as `num_frames` of fingerprints or of an audit.
        num_frames, stride: of a clip.

    Raises:
        ValueError: if there is no length, or one is below 1.
    """
    found = np.asarray(lengths)
    if found.size == 0 or found.min() < 1 or num_frames < 1 or stride < 1:
        raise ValueError(
            f"Lengths of videos, num_frames={num_frames} and stride={stride} must be given and at least 1."
        )
    span, median = num_frames * stride, int(np.median(found))
    short = float((found < span).mean())
    facts = (
        f"{short:.0%} of {found.size} videos (median: {median} frames) are shorter than the {span} frames of a clip"
    )
    if short > MANY_SHORT:
        tiny = float((found < num_frames).mean())
        repeats = f"; {tiny:.0%} have fewer than {num_frames} frames, which repeat in any case" if tiny else ""
        return Sampling(
            "uniform", stride, f"{facts}, whose frames would repeat: clips are spread over the video{repeats}."
        )
    if short > FEW_SHORT:
        for smaller in range(stride - 1, 0, -1):
            rest = float((found < num_frames * smaller).mean())
            if rest <= FEW_SHORT:
                reason = f"{facts}; with stride {smaller} it is {rest:.0%}."
                return Sampling("dense", smaller, reason)
    return Sampling("dense", stride, f"{facts}: clips are random parts of the video.")
