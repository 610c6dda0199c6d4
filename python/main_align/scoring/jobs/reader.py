"""PairReader: the pairs of any rows of a source, read in one pass as long as the rows ascend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from ...data.fields import Fields, Notes
from ...data.pairs import Pair
from ...data.sources.source import Row, Source
from ...errors import UserError

JUMP = 65536
"""rows between two wanted ones from which on a source that can jump is opened again"""


class PairReader:
    """Read the pairs of chosen rows.

    Args:
        source: the source.
        fields: field names that override the recognised record formats.
    """

    def __init__(self, source: Source, fields: Fields) -> None:
        self.source, self.fields = source, fields
        self._rows: Iterator[Row] = iter(())
        self._next: int | None = None  # number of the row that comes next, counted from 0

    def read(self, rows: Iterable[int], notes: Notes | None = None) -> list[Pair]:
        """Return the pairs of these rows.

        Args:
            rows: numbers of rows counted from 0, ascending.
            notes: collects observations. Default: none.

        Raises:
            UserError: the source has lost a row.
        """
        pairs = []
        for number in rows:
            gap = -1 if self._next is None else number - self._next
            if gap < 0 or (gap >= JUMP and self.source.can_jump):
                self._rows, gap = self.source.rows_from(number), 0
            row = next(islice(self._rows, gap, None), None)
            if row is None:
                raise changed(self.source)
            self._next = number + 1
            pairs.append(self.source.pair_of(row, self.fields, notes))
        return pairs


def changed(source: Source) -> UserError:
    """Return the error of a source that is not what it was when its rows were counted."""
    return UserError(f"{source.name} changed while it was scored; run again with --restart when it is complete")
