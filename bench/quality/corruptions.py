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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from main_align.data.pairs import Pair, Turn
from numpy.typing import NDArray

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
)
WITH_INPUT = ("good_input", "wrong_input", "missing_input", "good_system", "swapped_system")
KINDS = (*GENERAL, *WITH_INPUT)
"""kinds of pairs, in the order in which they are scored"""

WORDS = 8  # fewest words of a response, so that half of it is still text
LONGEST = 640  # characters of a pair without an input
LONGEST_INPUT = 1000  # characters of a pair with one

REFUSALS = (
    "I'm sorry, but I cannot help with that request.",
    "As an AI language model, I am not able to answer this question.",
    "I apologize, but I can't assist with that.",
    "Unfortunately, I do not have enough information to answer this.",
    "I'm afraid I can't provide that information. Please consult a professional.",
    "Sorry, I am unable to complete this task.",
    "I cannot fulfill this request because it goes against my guidelines.",
    "I don't have access to real-time data, so I can't answer that.",
    "As a language model, I don't have personal opinions on this topic.",
    "I'm not comfortable discussing this. Is there anything else I can help you with?",
    "I am not sure what you mean. Could you please rephrase your question?",
    "Sorry, this is beyond my capabilities as a text-based assistant.",
)
FILLERS = (
    "Sure! Here is the answer to your question. I hope this helps!",
    "That is a great question. There are many things to consider, and it depends on your situation.",
    "Thank you for reaching out! Let me know if you have any other questions.",
    "Of course, I would be happy to help you with this. Please see the details below.",
    "There are several important factors here, and each of them plays a significant role.",
    "This is an interesting topic that has been discussed by many people over the years.",
    "Absolutely! I have completed the task as requested. Have a great day!",
    "In conclusion, it is important to keep an open mind and to consider all perspectives.",
    "Here is some general information that you may find useful.",
    "It really depends. Some people say yes and others say no, and both have good reasons.",
    "Great! Let's get started. First, make sure that you have everything you need.",
    "The answer to this varies from case to case, so it is best to do your own research.",
)


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
    }
    wrong = _wrong_fact(x, y, rows[other].output, draw)
    if wrong:
        pairs["wrong_fact"] = (x, wrong)
    return [(kind, Pair(f"{row}-{kind}", 1, *texts)) for kind, texts in pairs.items()]


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

    return [
        pair("good_input", row.x),
        pair("wrong_input", f"{row.instruction}\n{other.input}"),
        pair("missing_input", row.instruction),
        pair("good_system", row.instruction, Turn("system", row.input)),
        pair("swapped_system", row.instruction, Turn("system", other.input)),
    ]


def _neighbours(rows: Sequence[Row], states: NDArray[np.float32], pool: Sequence[int]) -> dict[int, int]:
    """Return, for each row of the pool, the row of the pool with the nearest other instruction and another output."""
    names = np.array([re.sub(r"\W+", " ", rows[r].x.casefold()).strip() for r in pool])
    outputs = np.array([rows[r].output for r in pool])
    cosines = states @ states.T
    cosines[(names[:, None] == names) | (outputs[:, None] == outputs)] = -np.inf
    return {row: pool[near] for row, near in zip(pool, cosines.argmax(1).tolist(), strict=True)}
