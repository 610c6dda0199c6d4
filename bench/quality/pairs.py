"""The pairs of the study: read, limited in length, split, and given each other's responses."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from main_align.data.pairs import Pair, check_text
from main_align.models.encoding import PairEncoder
from numpy.typing import NDArray

from ..scoring import read_seed_tasks


def read(seed_tasks: Path, examples: Path | None) -> list[Pair]:
    """The seed tasks, and of the examples those that are marked aligned; none twice, none empty."""
    pairs = read_seed_tasks(seed_tasks)
    lines = examples.read_text(encoding="utf-8").splitlines() if examples else []
    for line, text in enumerate(lines, 1):
        row = json.loads(text)
        if row["aligned"]:
            pairs.append(Pair(row["id"], line, row["instruction"], row["response"]))
    unique = {(pair.instruction, pair.response): pair for pair in reversed(pairs)}
    return [pair for pair in reversed(unique.values()) if check_text(pair).status == "ok"]


def short(pairs: Sequence[Pair], encoder: PairEncoder, longest: int) -> list[Pair]:
    """The pairs of at most `longest` tokens, headers included: dropped rather than cut."""
    encoded = encoder.encode([(p.instruction, p.response) for p in pairs], [p.context for p in pairs])
    return [pair for pair, ids in zip(pairs, encoded, strict=True) if encoder.length(ids) <= longest]


def split(pairs: Sequence[Pair], held_out: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(to train on, held out)."""
    order = random.Random(seed).sample(range(len(pairs)), len(pairs))
    return [pairs[row] for row in order[held_out:]], [pairs[row] for row in order[:held_out]]


def neighbours(pairs: Sequence[Pair], embeddings: NDArray[np.float32]) -> list[int]:
    """For each pair the one with the nearest instruction, by unit embeddings [n, D], and another response."""
    likeness = embeddings @ embeddings.T
    likeness[[[a.response == b.response for b in pairs] for a in pairs]] = -np.inf
    return likeness.argmax(1).tolist()


def swapped(pairs: Sequence[Pair], partner: Sequence[int]) -> list[Pair]:
    """Every instruction with its partner's response; who is his own partner stays as he is."""
    return [replace(pair, response=pairs[other].response) for pair, other in zip(pairs, partner, strict=True)]


def corruption(pairs: Sequence[Pair], share: float, seed: int, nearest: Sequence[int] | None = None) -> list[int]:
    """Partners of which `share` are not the pair itself.

    Without `nearest` the drawn pairs pass their responses round among themselves, with it each takes the response of
    its nearest neighbour. Nobody gets his own response back, nor another's with the same words.
    """
    draw = random.Random(seed)
    rows = draw.sample(range(len(pairs)), round(share * len(pairs)))
    partner = list(range(len(pairs)))
    while True:
        others = [nearest[row] for row in rows] if nearest else rows[1:] + rows[:1]
        if all(pairs[row].response != pairs[other].response for row, other in zip(rows, others, strict=True)):
            break
        draw.shuffle(rows)
    for row, other in zip(rows, others, strict=True):
        partner[row] = other
    return partner
