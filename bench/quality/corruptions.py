"""build: pairs corrupted in known ways, from dolly_3k.json, in a part for choosing and one for reporting.

The file is `data/filtered/dolly_3k.json` of gpt4life/alpagasus; its rows are Databricks', CC BY-SA 3.0. A base row
gives one good pair and one pair of each kind, so kinds are compared on the same rows. No row, refusal or
filler is in both parts.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from main_align.data.pairs import Pair, Turn, with_system
from numpy.typing import NDArray

from .written import FILLERS, OTHER_SCRIPTS, REFUSALS

PARTS = ("choosing", "reporting")
GENERAL = (
    "good",
    "random",
    "neighbour",
    "echo",
    "truncated",
    "echo_neighbour",
    "refusal",
    "filler",
    "wrong_fact",
    "other_script",
    "near_echo",
)
WITH_INPUT = (
    "good_input",
    "wrong_input",
    "missing_input",
    "good_system",
    "swapped_system",
    "good_system_scored",
    "swapped_system_scored",
)
KINDS = (*GENERAL, *WITH_INPUT)
"""kinds of pairs, in the order in which they are scored"""

WORDS = 8  # fewest words of a response, so that half of it is still text
LONGEST = 640  # characters of a pair without an input
LONGEST_INPUT = 1000  # characters of a pair with one


@dataclass(frozen=True, slots=True)
class Case:
    """One pair of the benchmark: its part, its kind and the base row that it was made from."""

    part: str
    kind: str
    base: int
    pair: Pair


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the data set."""

    instruction: str
    input: str
    output: str

    @property
    def x(self) -> str:
        """Return the instruction with its input."""
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction


def read_rows(path: Path) -> list[Row]:
    """Read the data set, without rows that lack a side."""
    rows = [
        Row(r["instruction"].strip(), r["input"].strip(), r["output"].strip()) for r in json.loads(path.read_text())
    ]
    return [row for row in rows if row.instruction and row.output]


def build(
    rows: Sequence[Row],
    encode: Callable[[Sequence[str]], NDArray[np.float32]],
    sizes: Sequence[int],
    input_sizes: Sequence[int],
    seed: int = 0,
) -> list[Case]:
    """Return the cases of both parts, kind by kind.

    Args:
        rows: the data set.
        encode: a sentence encoder, from n texts to unit embeddings float32[n, D]; it finds the nearest instructions.
        sizes: number of base rows of each part for the kinds of GENERAL.
        input_sizes: number of base rows of each part for the kinds of WITH_INPUT.
        seed: random seed. Default 0.

    Raises:
        ValueError: the data set has too few rows of suitable length.
    """
    draw = random.Random(seed)
    order = draw.sample(range(len(rows)), len(rows))
    inputs = [r for r in order if rows[r].input and len(rows[r].x + rows[r].output) <= LONGEST_INPUT]
    general = [r for r in order if _is_general(rows[r])]
    if len(inputs) < sum(input_sizes) or len(general) < sum(sizes):
        raise ValueError(f"{len(general)} and {len(inputs)} rows fit, too few for {sizes} and {input_sizes}")
    near = _neighbours(rows, encode([rows[r].x for r in general]), general)
    cases = []
    for part, base in zip(PARTS, _split(general, sizes), strict=True):
        for row in base:
            pairs = _general(rows, row, near[row], general, PARTS.index(part), draw)
            cases += [Case(part, kind, row, pair) for kind, pair in pairs]
    for part, base in zip(PARTS, _split(inputs, input_sizes), strict=True):
        for place, row in enumerate(base):
            other = base[(place + 1) % len(base)]
            cases += [Case(part, kind, row, pair) for kind, pair in _with_input(row, rows[row], rows[other])]
    return sorted(cases, key=lambda case: KINDS.index(case.kind))


def _is_general(row: Row) -> bool:
    return not row.input and len(row.output.split()) >= WORDS and len(row.x + row.output) <= LONGEST


def _split(rows: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    stops = np.cumsum(sizes).tolist()
    return [rows[stop - size : stop] for stop, size in zip(stops, sizes, strict=True)]


def _general(
    rows: Sequence[Row], row: int, near: int, pool: Sequence[int], part: int, draw: random.Random
) -> list[tuple[str, Pair]]:
    x, y = rows[row].x, rows[row].output
    neighbour = rows[near].output
    other = draw.choice([r for r in pool if rows[r].output != y])
    words = re.findall(r"\S+\s*", y)
    pairs = {
        "good": (x, y),
        "random": (x, rows[other].output),
        "neighbour": (x, neighbour),
        "echo": (x, x),
        "truncated": (x, "".join(words[: len(words) // 2]).rstrip()),
        "echo_neighbour": (x, f"{x}\n{neighbour}"),
        "refusal": (x, draw.choice(REFUSALS[part :: len(PARTS)])),
        "filler": (x, draw.choice(FILLERS[part :: len(PARTS)])),
        "near_echo": (x, _without_middle(x)),
        "other_script": (x, OTHER_SCRIPTS[part :: len(PARTS)][row % (len(OTHER_SCRIPTS) // len(PARTS))]),
    }
    wrong = _wrong_fact(x, y, rows[other].output, draw)
    if wrong:
        pairs["wrong_fact"] = (x, wrong)
    return [(kind, Pair(f"{row}-{kind}", 1, *texts)) for kind, texts in pairs.items()]


def _without_middle(x: str) -> str:
    """Return x without its middle word."""
    words = x.split()
    return " ".join(words[: len(words) // 2] + words[len(words) // 2 + 1 :])


def _wrong_fact(x: str, y: str, other: str, draw: random.Random) -> str | None:
    """Return y with one number changed, else with one name replaced by a name of another response, else None."""
    numbers = [m for m in re.finditer(r"\d+", y) if m.group() not in x]
    if numbers:
        match = draw.choice(numbers)
        old = match.group()
        new = str((int(old) + draw.randrange(1, max(10, int(old)))) % 10 ** len(old)).zfill(len(old))
        return y[: match.start()] + new + y[match.end() :] if new != old else None
    names, others = (re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,}", text) for text in (y, other))
    names, others = [n for n in names if n not in x], [n for n in others if n not in y]
    return y.replace(draw.choice(names), draw.choice(others)) if names and others else None


def _with_input(number: int, row: Row, other: Row) -> list[tuple[str, Pair]]:
    def pair(kind: str, x: str, *context: Turn) -> tuple[str, Pair]:
        return kind, Pair(f"{number}-{kind}", 1, x, row.output, context)

    pairs = [
        pair("good_input", row.x),
        pair("wrong_input", f"{row.instruction}\n{other.input}"),
        pair("missing_input", row.instruction),
        pair("good_system", row.instruction, Turn("system", row.input)),
        pair("swapped_system", row.instruction, Turn("system", other.input)),
    ]
    # what Scorer(score_system=True) scores
    return pairs + [(f"{kind}_scored", replace(with_system(p), id=f"{p.id}_scored")) for kind, p in pairs if p.context]


def _neighbours(rows: Sequence[Row], states: NDArray[np.float32], pool: Sequence[int]) -> dict[int, int]:
    """Return, for each row of the pool, the row of the pool with the nearest other instruction and another output."""
    names = np.array([re.sub(r"\W+", " ", rows[r].x.casefold()).strip() for r in pool])
    outputs = np.array([rows[r].output for r in pool])
    cosines = states @ states.T
    cosines[(names[:, None] == names) | (outputs[:, None] == outputs)] = -np.inf
    return {row: pool[near] for row, near in zip(pool, cosines.argmax(1).tolist(), strict=True)}
