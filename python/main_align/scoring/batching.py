"""One window of pairs: tokenised, checked and cut into packs by a token budget.

A pack holds whole pairs (both directions count) of about one length, and is one forward pass.
Everything here depends on the window's pairs and the settings alone, so it is the same each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..data.pairs import SCORED, Pair, check_text
from ..models.encoding import EncodedPair, PairEncoder, shortened
from .columns import TOKEN_SCORES, token_scores

SORT_WINDOW = 4096
"""pairs that are sorted by length together"""
BATCH_TOKENS = 2048
"""tokens of one forward pass, both directions of its pairs together"""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Pairs that go through the model together: positions in the window, and their tokens."""

    rows: tuple[int, ...]
    tokens: int  # both directions of every pair, headers included


@dataclass
class SortWindow:
    """Some thousands of pairs on their way through the model; every list has one entry a pair."""

    pairs: Sequence[Pair]
    status: list[str]
    reason: list[str]
    encoded: list[EncodedPair | None]  # None where the row cannot be scored
    tokens_x: NDArray[np.int64]  # [n]; 0 where the row cannot be scored
    tokens_y: NDArray[np.int64]  # [n]
    token_scores: dict[str, NDArray[np.float64]]  # [n] each; NaN if the row has no value or cannot be scored
    micro_batches: list[MicroBatch] = field(default_factory=list)


def prepare_window(
    pairs: Sequence[Pair],
    encoder: PairEncoder,
    *,
    max_length: int,
    truncate: bool,
    batch_tokens: int,
) -> SortWindow:
    """Tokenise `pairs`, give a status to those that cannot be scored, and fill the packs.

    A pair whose sequence exceeds `max_length` tokens is too_long; with `truncate` the ends of x
    and y are cut instead, in proportion to their lengths, and the pair is `truncated`.
    """
    n = len(pairs)
    window = SortWindow(
        pairs=pairs,
        status=[pair.status for pair in pairs],
        reason=[pair.reason for pair in pairs],
        encoded=[None] * n,
        tokens_x=np.zeros(n, np.int64),
        tokens_y=np.zeros(n, np.int64),
        token_scores={name: np.full(n, np.nan) for name in TOKEN_SCORES},
    )
    for row, pair in enumerate(pairs):
        if pair.status in SCORED:
            _check_text(window, row, pair, encoder)
    rows = [row for row in range(n) if window.status[row] in SCORED]
    encoded = encoder.encode(
        [(pairs[row].instruction, pairs[row].response) for row in rows],
        [pairs[row].context for row in rows],
    )
    lengths = {}
    for row, item in zip(rows, encoded, strict=True):
        for side, ids in (("instruction", item.x), ("response", item.y)):
            if not ids:
                _refuse(window, row, f"empty_{side}", f"the {side} has no token in this model")
        if problem := encoder.unknown_token(item.context, item.x, item.y):
            _refuse(window, row, "unknown_token", f"it holds {problem}")
        if window.status[row] not in SCORED:
            continue
        fitted = _fit(window, row, item, encoder, max_length, truncate)
        if fitted is None:
            continue
        window.encoded[row] = fitted
        window.tokens_x[row], window.tokens_y[row] = encoder.tokens(fitted)
        for name, value in token_scores(fitted.x, fitted.y).items():
            window.token_scores[name][row] = value
        lengths[row] = sum(len(sequence.ids) for sequence in encoder.sequences(fitted))
    window.micro_batches = bucket_by_length(lengths, batch_tokens)
    return window


def bucket_by_length(lengths: dict[int, int], budget: int) -> list[MicroBatch]:
    """Packs of at most `budget` tokens (a longer pair is alone), filled in order of length."""
    packs: list[MicroBatch] = []
    rows: list[int] = []
    tokens = 0
    for row in sorted(lengths, key=lambda row: (lengths[row], row)):
        if rows and tokens + lengths[row] > budget:
            packs.append(MicroBatch(tuple(rows), tokens))
            rows, tokens = [], 0
        rows.append(row)
        tokens += lengths[row]
    if rows:
        packs.append(MicroBatch(tuple(rows), tokens))
    return packs


def _check_text(window: SortWindow, row: int, pair: Pair, encoder: PairEncoder) -> None:
    checked = check_text(pair)
    if checked.status not in SCORED:
        window.status[row], window.reason[row] = checked.status, checked.reason
    elif problem := encoder.context_problem(pair.context):
        _refuse(window, row, "unsupported_turns", problem)


def _fit(
    window: SortWindow,
    row: int,
    pair: EncodedPair,
    encoder: PairEncoder,
    max_length: int,
    truncate: bool,
) -> EncodedPair | None:
    length = encoder.length(pair)
    if length <= max_length:
        return pair
    x, y = len(pair.x), len(pair.y)
    sizes = f"{length} tokens ({x} of the instruction, {y} of the response), over {max_length}"
    fitted = shortened(pair, encoder, max_length)
    if not truncate or fitted is None:
        remedy = "--truncate cuts both ends" if fitted else _too_long(pair, encoder)
        _refuse(window, row, "too_long", f"{sizes}; {remedy}")
        return None
    window.status[row] = "truncated"
    window.reason[row] = (
        f"{window.pairs[row].where}: {sizes}; cut to the first {len(fitted.x)} tokens of the "
        f"instruction and {len(fitted.y)} of the response"
    )
    return fitted


def _too_long(pair: EncodedPair, encoder: PairEncoder) -> str:
    """Why nothing is left to cut: what stands round the two sides fills the sequence."""
    markers = f"the {encoder.overhead} tokens of the markers"
    if not pair.context:
        return f"{markers} leave no room for a token of each; raise --max-length"
    return f"{len(pair.context)} tokens of context and {markers} leave no room for a token of each"


def _refuse(window: SortWindow, row: int, status: str, why: str) -> None:
    window.status[row] = status
    window.reason[row] = f"{window.pairs[row].where}: {why}"
