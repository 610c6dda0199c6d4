"""PackedPairs, best_fit: whole pairs grouped into rows of similar length. No pair is cut."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset


class PackedPairs(Dataset[list[dict[str, Any]]]):
    """Data set whose items are lists of pairs, one list per bin."""

    def __init__(self, pairs: Any, bins: list[list[int]]) -> None:
        self.pairs, self.bins = pairs, bins

    def __len__(self) -> int:
        return len(self.bins)

    def __getitem__(self, number: int) -> list[dict[str, Any]]:
        return [self.pairs[place] for place in self.bins[number]]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign items to bins of at most `capacity` by best fit decreasing; a longer item has a bin of its own.

    Args:
        lengths: length of each item.
        capacity: largest sum of lengths in a bin.

    Returns:
        The indices of each bin's items.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free, number of the bin), sorted
    for place in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        fit = bisect_left(room, (lengths[place], -1))
        if fit == len(room):
            free, number = capacity, len(bins)
            bins.append([])
        else:
            free, number = room.pop(fit)
        bins[number].append(place)
        insort(room, (free - lengths[place], number))
    return bins
