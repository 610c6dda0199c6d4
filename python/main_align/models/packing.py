"""Packing, Segment, pack: sequences in one packed row, with the prefixes that they share in it once.

Causal states depend on a token and those before it, so sequences with the same beginning have the same states there.
A packed row is a forest: each segment continues at most one other, and attends to the segments that lead to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_SHARED = 16
"""first tokens that must be equal for a prefix to be shared: more than the header of a chat template"""


class Segment(NamedTuple):
    """Neighbouring rows of a packed row that continue the same segment, or start a sequence.

    Attributes:
        length: number of its rows.
        path: int64[position of its last token + 1], the rows of all tokens from the first of the sequence.
    """

    length: int
    path: NDArray[np.int64]


class Packing(NamedTuple):
    """A packed row of T tokens.

    Attributes:
        ids: int64[T], token ids.
        rows: for each sequence int64[its length], the row of each of its tokens.
        segments: the segments, in the order of their rows; one comes after that which it continues.
    """

    ids: NDArray[np.int64]
    rows: list[NDArray[np.int64]]
    segments: list[Segment]


def pack(sequences: Sequence[list[int]], *, share: bool = True) -> Packing:
    """Pack sequences into one row.

    Args:
        sequences: token ids of each sequence, at least one of each.
        share: let sequences whose first LEAST_SHARED tokens are equal share all tokens up to the first that differs.
            Default True.
    """
    ids: list[int] = []
    rows: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(sequences)
    segments = []
    waiting = deque([(list(range(len(sequences))), np.zeros(0, np.int64))])  # sequences, and the rows that they share
    while waiting:
        members, above = waiting.popleft()
        depth, alike = len(above), 1 if len(above) else LEAST_SHARED
        runs: dict[object, list[int]] = {}
        for member in members:
            key = tuple(sequences[member][depth : depth + alike]) if share else member
            runs.setdefault(key, []).append(member)
        for run in runs.values():
            contents = [sequences[member] for member in run]
            stop = common_length(min(contents), max(contents)) if len(run) > 1 else len(contents[0])
            path = np.concatenate([above, np.arange(len(ids), len(ids) + stop - depth)])
            ids += contents[0][depth:stop]
            segments.append(Segment(stop - depth, path))
            longer = [member for member in run if len(sequences[member]) > stop]
            for member in set(run).difference(longer):
                rows[member] = path
            if longer:
                waiting.append((longer, path))
    return Packing(np.array(ids, np.int64), rows, segments)


def common_length(first: list[int], second: list[int]) -> int:
    """Return the number of equal tokens at the beginning of two sequences."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)


def added_tokens(sequences: Sequence[list[int]], earlier: Sequence[list[int]]) -> int:
    """Return how many tokens some sequences add to a row that holds others, or more.

    Args:
        sequences: the sequences to add.
        earlier: sequences of the row that they may share a prefix with.
    """
    seen, added = list(earlier), 0
    for ids in sequences:
        shared = [common_length(ids, other) for other in seen if ids[:LEAST_SHARED] == other[:LEAST_SHARED]]
        added += len(ids) - max(shared, default=0)
        seen.append(ids)
    return added
