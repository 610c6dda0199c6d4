"""connected: the connected components of rows that share a key."""

from __future__ import annotations

from collections.abc import Sequence


def connected(*keys: Sequence[int]) -> list[int]:
    """Return the connected components of rows: rows with an equal key in any column of `keys` share a number."""
    parent = list(range(len(keys[0])))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for column in keys:
        first: dict[int, int] = {}
        for row, key in enumerate(column):
            parent[root(row)] = root(first.setdefault(key, row))
    return [root(row) for row in range(len(parent))]
