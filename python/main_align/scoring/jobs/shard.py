"""Shard: the part of a job's units that one of several independent commands scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ...errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 0.

    Args:
        index: number of this part.
        count: number of parts. Default 1, the whole job.

    Raises:
        UserError: `index` is not from 0 to `count` - 1.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(f"shard {self}: give i/n with i from 0 to n - 1; the first of two is 0/2")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard of a text `i/n`.

        Raises:
            UserError: it is none.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise UserError(f"shard {text}: give i/n with i from 0 to n - 1; the first of two is 0/2")
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Return True if there is only this part."""
        return self.count == 1

    @property
    def name(self) -> str:
        """Return a name for the folder of its unfinished work."""
        return "all" if self.is_whole else f"{self.index}-of-{self.count}"

    def of(self, units: Sequence[T]) -> Sequence[T]:
        """Return the units of this part; they follow each other, so that it reads the input once."""
        start, stop = (len(units) * part // self.count for part in (self.index, self.index + 1))
        return units[start:stop]

    def first(self, units: Sequence[T]) -> list[T]:
        """Return all units, beginning with those of this part. Parts that run at a time then begin at other units."""
        start = len(units) * self.index // self.count
        return [*units[start:], *units[:start]]
