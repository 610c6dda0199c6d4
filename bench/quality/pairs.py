"""Pairs of the study: read, filter by length, split, and swap responses."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from main_align.data.pairs import Pair, check_text
from main_align.data.read import read_pairs
from main_align.models.encoding import PairEncoder
from numpy.typing import NDArray


def read(seed_tasks: Path, examples: Path | None) -> list[Pair]:
    """Read the seed tasks and the aligned examples, without duplicates and empty sides."""
    pairs = list(read_pairs(seed_tasks))
    lines = examples.read_text(encoding="utf-8").splitlines() if examples else []
    for line, text in enumerate(lines, 1):
        row = json.loads(text)
        if row["aligned"]:
            pairs.append(Pair(row["id"], line, row["instruction"], row["response"]))
    unique = {(pair.instruction, pair.response): pair for pair in reversed(pairs)}
    return [pair for pair in reversed(unique.values()) if check_text(pair).status == "ok"]


def drop_long(pairs: Sequence[Pair], encoder: PairEncoder, longest: int) -> list[Pair]:
    """Return the pairs with at most `longest` tokens, including headers."""
    encoded = encoder.encode([(p.instruction, p.response) for p in pairs], [p.context for p in pairs])
    return [pair for pair, ids in zip(pairs, encoded, strict=True) if encoder.length(ids) <= longest]


def split(pairs: Sequence[Pair], held_out: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return training pairs and `held_out` held-out pairs."""
    order = random.Random(seed).sample(range(len(pairs)), len(pairs))
    return [pairs[row] for row in order[held_out:]], [pairs[row] for row in order[:held_out]]


def nearest_neighbours(pairs: Sequence[Pair], embeddings: NDArray[np.float32]) -> list[int]:
    """Return, for each pair, the row with the nearest instruction and a different response.

    Args:
        pairs: n pairs.
        embeddings: float32[n, D], unit embeddings of the instructions.
    """
    cosines = embeddings @ embeddings.T
    cosines[[[a.response == b.response for b in pairs] for a in pairs]] = -np.inf
    return cosines.argmax(1).tolist()


def swap_responses(pairs: Sequence[Pair], partner: Sequence[int]) -> list[Pair]:
    """Give every instruction its partner's response; a pair that is its own partner is unchanged."""
    return [replace(pair, response=pairs[other].response) for pair, other in zip(pairs, partner, strict=True)]


def draw_partners(pairs: Sequence[Pair], fraction: float, seed: int, nearest: Sequence[int] | None = None) -> list[int]:
    """Draw partners for `swap_responses`; `fraction` of the pairs get another pair as partner.

    Without `nearest`, the drawn pairs exchange their responses. With it, each gets the response of its nearest
    neighbour. No drawn pair gets a response equal to its own.
    """
    draw = random.Random(seed)
    rows = draw.sample(range(len(pairs)), round(fraction * len(pairs)))
    partner = list(range(len(pairs)))
    while True:
        others = [nearest[row] for row in rows] if nearest else rows[1:] + rows[:1]
        if all(pairs[row].response != pairs[other].response for row, other in zip(rows, others, strict=True)):
            break
        draw.shuffle(rows)
    for row, other in zip(rows, others, strict=True):
        partner[row] = other
    return partner
