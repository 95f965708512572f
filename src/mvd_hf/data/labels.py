"""Reads the label of a row: one class, several classes, a class of each of several heads, or a number."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets

from ..model.labels_mvd import MULTI_LABEL, PROBLEM_TYPES, REGRESSION
from .folders import AMBIGUOUS
from .list_files import INDEX, INDICES, SEPARATOR
from .sources import Rows, column_names, field_of, media_column, media_name

LabelNames = Sequence[str] | str | Mapping[str, Sequence[str] | str]


def read_label_names(names: Sequence[str] | str | None) -> list[str] | None:
    """Names of the classes in order, from a list or a text file with a name per line.

    Raises:
        ValueError: if the file cannot be read, or a name occurs twice.
    """
    if isinstance(names, str):
        if not os.path.isfile(names):
            raise ValueError(f"label_names={names!r} is neither a list of names nor a file with a name per line.")
        try:
            text = Path(names).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"The label names {names!r} cannot be read: {error}") from error
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if names is None:
        return None
    names = [str(name) for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"label_names has {', '.join(twice)} more than once.")
    return names


def is_missing(label) -> bool:
    """Whether a row has no label: none, blank text, or the NaN of a table of numbers."""
    return label is None or label != label or (isinstance(label, str | bytes) and not label.strip())


def label_rows(rows: Rows, column: str | Sequence[str]) -> Rows:
    """Rows without the columns that the labels do not need, such as the videos."""
    columns = [column] if isinstance(column, str) else column
    tops = list(dict.fromkeys(name.partition(".")[0] for name in columns))
    return rows.select_columns(tops) if set(tops) <= set(rows.features or ()) else rows


def each_label(rows: Rows, column: str | Sequence[str], read: Callable[[dict], Any]) -> Iterator:
    """What a function reads from each row; raises ValueError naming the file of a wrong one."""
    for i, row in enumerate(label_rows(rows, column)):
        try:
            yield read(row)
        except ValueError as error:
            raise ValueError(f"{media_name(rows[i][media_column(rows)])}: {error}") from error


def as_text(label: Any) -> Any:
    """A label as text if it is bytes, or a date, which JSON readers make of text such as 2024-01-31."""
    if isinstance(label, datetime):
        return str(label).removesuffix(" 00:00:00")
    return label.decode().strip() if isinstance(label, bytes) else label


class LabelReader:
    """Reads the class index of a row from an index, a `ClassLabel` or a name.

    Text is a name, unless all labels are integers as text without leading zeros, as in the `.cls` files of a
    WebDataset.

    Args:
        rows: a data set with labels.
        column: column of the labels; dots lead into nested columns.
        names: names of the classes, if the data set does not have them.

    Attributes:
        names: names of the classes, or `None` if only indices are known.

    Raises:
        ValueError: if there is no such column, a row has no label or several, or a stream has named labels and no
            `names`.
    """

    blank = 0  # the label of a clip without weight

    def __init__(self, rows: Rows, column: str, names: Sequence[str] | str | None = None):
        self.column, self.names = column, read_label_names(names)
        features = rows.features or {}
        # indices of the data set stand for its own names, which `names` may list in another order
        self.known = features[column].names if isinstance(features.get(column), datasets.ClassLabel) else None
        if self.names is None and self.known is not None:
            self.names = list(self.known)
        top = column.partition(".")[0]
        description = (rows.info.description or "") if top not in column_names(rows) else ""
        if description.startswith(AMBIGUOUS):
            raise ValueError(f"There is no column {column!r}. {description}")
        labels = label_rows(rows, column)
        first = self._text(field_of(next(iter(labels)), column))
        if self.names is None and isinstance(rows, datasets.IterableDataset):
            if isinstance(first, str) and not INDEX.fullmatch(first):
                raise ValueError(f"The labels of the stream are names such as {first!r}: give label_names.")
        elif self.names is None and (
            isinstance(first, str | float)
            or is_missing(first)
            or (top in features and rows.data.column(top).null_count)
        ):
            found = [self._text(field_of(row, column)) for row in labels]
            missing = next((i for i, label in enumerate(found) if is_missing(label)), None)
            if missing is not None:
                raise ValueError(f"{media_name(rows[missing][media_column(rows)])}: {self._without_label()}")
            if any(isinstance(label, str) and not INDEX.fullmatch(label) for label in found):
                self.names = sorted(set(found))
        self.index = {name: i for i, name in enumerate(self.names or ())}

    def _text(self, label):
        """A label, see [`as_text`]; raises ValueError if there are several."""
        label = as_text(label)
        is_joined = isinstance(label, str) and SEPARATOR in label and INDICES.fullmatch(label)
        if is_joined or isinstance(label, list):
            raise ValueError(
                f"The label {label!r} in column {self.column!r} has several classes, which only fine-tuning with "
                f"problem_type={MULTI_LABEL} takes."
            )
        return label

    def _without_label(self) -> str:
        return f"The row has no label in column {self.column!r}: give it one, or leave the row out."

    def __call__(self, row: dict) -> int:
        """Class index of a row.

        Raises:
            ValueError: if the label is missing, or none of the classes.
        """
        label = self._text(field_of(row, self.column))
        if is_missing(label):
            raise ValueError(self._without_label())
        if self.known is not None and isinstance(label, int) and 0 <= label < len(self.known):
            label = self.known[label]
        if isinstance(label, str) and label in self.index:
            return self.index[label]
        if isinstance(label, str) and INDEX.fullmatch(label):
            label = int(label)
        if isinstance(label, int) and (self.names is None or 0 <= label < len(self.names)):
            return label
        known = "an integer" if self.names is None else f"one of {len(self.names)} classes, which count from 0"
        remedy = f"; only fine-tuning with problem_type={REGRESSION} takes numbers" if isinstance(label, float) else ""
        raise ValueError(f"The label {label!r} in column {self.column!r} is not {known}{remedy}.")


class MultiLabelReader:
    """Reads the classes of a row as a multi-hot list of K numbers, 0 or 1.

    A label is a list of names or of indices (not multi-hot), or text that joins them with `;`. An empty list, or `;`
    alone, is a video of no class.

    Args:
        rows, column, names: as in [`LabelReader`].

    Attributes:
        names: names of the classes, or `None` if only indices are known.
        num_classes: K; without names, one more than the largest index.

    Raises:
        ValueError: if there is no such column, a row has no label, no row has a class, or a stream has no `names`.
    """

    def __init__(self, rows: Rows, column: str, names: Sequence[str] | str | None = None):
        self.column, self.names = column, read_label_names(names)
        feature = getattr((rows.features or {}).get(column), "feature", None)
        self.known = feature.names if isinstance(feature, datasets.ClassLabel) else None
        if self.names is None and self.known is not None:
            self.names = list(self.known)
        self.num_classes = len(self.names or ())
        if self.names is None:
            self._find_classes(rows)
        self.index = {name: i for i, name in enumerate(self.names or ())}
        self.blank = [0.0] * self.num_classes

    def _find_classes(self, rows: Rows):
        """Set the names, or the number of classes, by the labels of all rows."""
        if isinstance(rows, datasets.IterableDataset):
            raise ValueError(f"The classes of a stream are not known: give label_names for column {self.column!r}.")
        found = set().union(*each_label(rows, self.column, lambda row: self.parts(field_of(row, self.column))))
        if not found:
            raise ValueError(f"No row has a class in column {self.column!r}.")
        texts = {part for part in found if isinstance(part, str)}
        if all(INDEX.fullmatch(text) for text in texts):
            self.num_classes = max(map(int, found)) + 1
        elif texts < found:
            raise ValueError(f"Column {self.column!r} has names such as {min(texts)!r}, and numbers: use one of them.")
        else:
            self.names, self.num_classes = sorted(texts), len(texts)

    def parts(self, label) -> list[int | str]:
        """The names or indices in a label; raises ValueError if it is none."""
        if is_missing(label):
            raise ValueError(
                f"The row has no label in column {self.column!r}: no class is an empty list, or {SEPARATOR!r} in text."
            )
        label = as_text(label)
        parts = label.split(SEPARATOR) if isinstance(label, str) else label if isinstance(label, list) else [label]
        parts = [as_text(part) for part in parts]
        if not all(type(part) in (int, str) for part in parts):
            raise ValueError(f"The label {label!r} in column {self.column!r} is no list of names or of indices.")
        parts = [part.strip() if isinstance(part, str) else part for part in parts if str(part).strip()]
        indices = [int(part) for part in parts if INDEX.fullmatch(str(part))]
        if len(set(indices)) < len(indices):
            raise ValueError(
                f"The label {label!r} in column {self.column!r} has an index twice and looks multi-hot: give names "
                "or indices of classes."
            )
        return parts

    def __call__(self, row: dict) -> list[float]:
        """The classes of a row, multi-hot (K,).

        Raises:
            ValueError: if the label is missing, or names none of the classes.
        """
        hot = list(self.blank)
        for part in self.parts(field_of(row, self.column)):
            if self.known is not None and isinstance(part, int) and 0 <= part < len(self.known):
                part = self.known[part]
            place = self.index.get(part, int(part) if INDEX.fullmatch(str(part)) else -1)
            if not 0 <= place < self.num_classes:
                raise ValueError(
                    f"The label {part!r} in column {self.column!r} is not one of {self.num_classes} classes, which "
                    "count from 0."
                )
            hot[place] = 1.0
        return hot


class HeadsReader:
    """Reads the class index of a row for each of several heads, as a list of H indices in alphabetical order.

    Args:
        rows: as in [`LabelReader`].
        columns: a column of labels for each head, which it names.
        names: of the classes of each head, by its column, where the data set does not have them.

    Raises:
        ValueError: if there are not several columns, names are of none of them, or as in [`LabelReader`].
    """

    def __init__(self, rows: Rows, columns: Sequence[str], names: Mapping[str, Sequence[str] | str] | None = None):
        check_heads(columns, names)
        self.readers = [LabelReader(rows, column, (names or {}).get(column)) for column in sorted(columns)]
        self.blank = [0] * len(self.readers)

    def __call__(self, row: dict) -> list[int]:
        """Class indices of a row (H,); raises ValueError as [`LabelReader`]."""
        return [reader(row) for reader in self.readers]


def check_heads(columns: Sequence[str], names: LabelNames | None):
    """Raise ValueError if columns of labels are not several, or `names` are of none of them."""
    if len(set(columns)) != len(columns) or len(columns) < 2:
        raise ValueError(f"label_column={list(columns)} must be several columns, or give one as text.")
    if names is not None and not (isinstance(names, Mapping) and set(names) <= set(columns)):
        raise ValueError(f"label_names of several columns must be a mapping with the keys {', '.join(columns)}.")


class NumberReader:
    """Reads the number of a row, for regression; arguments as in [`LabelReader`]."""

    blank = 0.0

    def __init__(self, rows: Rows, column: str, names: None = None):
        if names is not None:
            raise ValueError(f"label_names={names!r} are of classes, problem_type={REGRESSION} has none.")
        self.column = column
        field_of(next(iter(label_rows(rows, column))), column)

    def __call__(self, row: dict) -> float:
        """The number of a row; raises ValueError if there is none, or it is not finite."""
        label = field_of(row, self.column)
        try:
            value = math.nan if label is None or isinstance(label, bool) else float(label)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"The label {label!r} in column {self.column!r} is no finite number.")
        return value


Labels = LabelReader | MultiLabelReader | HeadsReader | NumberReader


def label_reader(
    rows: Rows, column: str | Sequence[str], names: LabelNames | None = None, problem_type: str | None = None
) -> Labels:
    """What reads the labels of rows, for a batch of labels of one shape.

    Args:
        rows: a data set with labels.
        column: column of the labels, or a column for each of several heads.
        names: names of the classes; for several heads by column.
        problem_type: as in a configuration of transformers; by default there is one class for each head.

    Raises:
        ValueError: if there is no such type or column, or the column holds other labels.
    """
    check_problem_type(column, problem_type)
    if not isinstance(column, str):
        return HeadsReader(rows, column, names)
    if isinstance(names, Mapping):
        raise ValueError(f"label_names={names!r} of one label_column must be a list of names or a file.")
    kinds = {MULTI_LABEL: MultiLabelReader, REGRESSION: NumberReader}
    return kinds.get(problem_type, LabelReader)(rows, column, names)


def check_problem_type(column: str | Sequence[str], problem_type: str | None):
    """Raise ValueError if there is no such problem type, or it does not go with several columns."""
    if problem_type not in (None, *PROBLEM_TYPES):
        raise ValueError(f"problem_type={problem_type!r} must be one of {', '.join(PROBLEM_TYPES)}.")
    if not isinstance(column, str) and problem_type in (MULTI_LABEL, REGRESSION):
        raise ValueError(f"problem_type={problem_type} takes one label_column, not {list(column)}.")
