"""length_grouping, largest_groups, FieldGroups: the partitions of the rows that the page counts by."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.formats.record_view import RecordView
from ..errors import UserError
from .duplicates import text_hash
from .simulation import Grouping

LENGTHS = (16, 32, 64, 128, 256, 512, 1024)  # tokens of the response: the lower ends of all groups but the first
LISTED = 12  # groups that keep their name; the others are one group
NAME = 60  # characters of a group's name


def length_grouping(tokens: NDArray[np.float64]) -> Grouping:
    """Group rows by the number of tokens of the response.

    Args:
        tokens: float64[N], NaN for a row that was not tokenised.
    """
    ends = [f"{low} to {high - 1}" for low, high in pairwise(LENGTHS)]
    labels = [f"under {LENGTHS[0]}", *ends, f"{LENGTHS[-1]} and more", "not counted"]
    codes = np.where(np.isnan(tokens), len(labels) - 1, np.searchsorted(LENGTHS, tokens, side="right"))
    used, codes = np.unique(codes, return_inverse=True)
    return Grouping("response tokens", [labels[code] for code in used], codes.astype(np.int64))


class FieldGroups:
    """Collect the values of one field of the input, row by row.

    Args:
        field: the field's name or dotted path.
    """

    def __init__(self, field: str) -> None:
        self.field = field
        self.codes: array[int] = array("q")
        self._groups: dict[int, int] = {}  # by the hash of the value, since values may be long
        self._names: list[str] = []
        self._seen: dict[str, None] = {}
        self._is_field = False

    def add(self, record: Mapping[str, Any] | None) -> None:
        """Append the group of one row."""
        view = RecordView(record or {})
        self._is_field = self._is_field or view.has(self.field)
        if not self._is_field:
            self._seen.update(dict.fromkeys(map(str, record or ())))
        value = view.at(self.field)
        name = "(none)" if value is None else str(value)
        code = self._groups.setdefault(text_hash(name), len(self._names))
        if code == len(self._names):
            self._names.append(_shortened(name))
        self.codes.append(code)

    def grouping(self) -> Grouping:
        """Return the groups, the largest first, with the smallest as one if there are many.

        Raises:
            UserError: no row has the field.
        """
        if not self._is_field:
            fields = ", ".join(map(repr, self._seen))
            raise UserError(f"--group-by {self.field}: no row has this field; the fields are {fields}")
        codes = np.frombuffer(self.codes, dtype=np.int64)
        return largest_groups(self.field, self._names, codes, "values")


def largest_groups(title: str, names: list[str], codes: NDArray[np.int64], plural: str) -> Grouping:
    """Group rows by name, the largest group first, with the smallest as one if there are more than LISTED.

    Args:
        title: the heading.
        names: the name of each of G groups.
        codes: int64[N], the group of each row.
        plural: word for the groups that lose their name.
    """
    order = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
    place = np.empty(len(names), dtype=np.int64)
    place[order] = np.minimum(np.arange(len(names)), LISTED)
    labels = [names[code] for code in order[:LISTED]]
    if len(names) > LISTED:
        labels.append(f"{len(names) - LISTED:,} other {plural}")
    return Grouping(title, labels, place[codes])


def _shortened(name: str) -> str:
    """Return at most NAME characters of a name: both ends, since long names such as addresses often begin alike."""
    half = NAME // 2
    return name if len(name) <= NAME else f"{name[:half]}…{name[1 - half :]}"
