"""SortWindow, MicroBatch, prepare_window: pairs tokenised, checked and grouped into micro-batches by a token budget.

A micro-batch is one forward pass over whole pairs, both directions of each. Pairs with the same instruction or response
are neighbours, since a pass computes a prefix that sequences share once; the others are sorted by length. Micro-batches
depend only on the window's pairs and the settings, so every run makes the same ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.pairs import SCORED, Pair, check_text
from ..models.encoding import EncodedPair, PairEncoder, shortened
from ..models.packing import added_tokens, pack
from .columns import COUNTS, TOKEN_SCORES, token_scores
from .flags import is_refusal
from .other_script import is_other_script

SORT_WINDOW = 4096
"""pairs that are sorted by length together"""
BATCH_TOKENS = 2048
"""tokens of one forward pass, both directions of its pairs together"""
GPU_BATCH_TOKENS = 16384
"""the same on a CUDA device, which is to compute for longer than the host takes to queue a pass"""
STEP_PAIRS = 16
"""pairs that are tokenised in one step"""
MOST_SHARING = 8
"""tokens of a micro-batch with every shared prefix in full, as a multiple of its budget: a bound on keys and results"""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Pairs of one forward pass.

    Args:
        rows: positions in the sort window.
        tokens: tokens of both directions of all pairs, headers included; those of a shared prefix count once.
        shared_tokens: tokens that need no computation, since another sequence of the pass begins with them. Default 0.
    """

    rows: tuple[int, ...]
    tokens: int
    shared_tokens: int = 0

    @classmethod
    def of(cls, rows: Sequence[int], sequences: Sequence[list[int]], *, share: bool) -> MicroBatch:
        """Return the micro-batch of some rows.

        Args:
            rows: positions in the sort window.
            sequences: the token ids of all their sequences.
            share: count the tokens of a shared prefix once.
        """
        tokens = len(pack(sequences, share=share).ids)
        return cls(tuple(rows), tokens, sum(map(len, sequences)) - tokens)


@dataclass
class SortWindow:
    """Pairs that are sorted by length together; every list and array has n entries.

    Args:
        pairs: the pairs in input order.
        status: their statuses.
        reason: their reasons, "" if there is none.
        encoded: their token ids, None for a row that cannot be scored.
        tokens_x: int64[n], |x|, 0 for a row that cannot be scored.
        tokens_y: int64[n], |y|.
        text_x: int64[n], a digest of x's token ids, 0 for a row that cannot be scored.
        text_y: int64[n], a digest of y's token ids.
        refusal: int64[n], 1 for a response that opens with the wording of a refusal, else 0.
        other_script: int64[n], 1 for a response in a script that the instruction neither uses nor asks for, else 0.
        token_scores: float64[n] for each score that follows from token ids, NaN if the row has no value.
        micro_batches: the forward passes.
    """

    pairs: Sequence[Pair]
    status: list[str]
    reason: list[str]
    encoded: list[EncodedPair | None]
    tokens_x: NDArray[np.int64]
    tokens_y: NDArray[np.int64]
    text_x: NDArray[np.int64]
    text_y: NDArray[np.int64]
    refusal: NDArray[np.int64]
    other_script: NDArray[np.int64]
    token_scores: dict[str, NDArray[np.float64]]
    micro_batches: list[MicroBatch] = field(default_factory=list)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns of a score file that are known without the model: the counts and the token scores."""
        return {name: getattr(self, name) for name in COUNTS} | self.token_scores


def default_batch_tokens(device: torch.device) -> int:
    """Return the tokens of a forward pass on this device if no number is given."""
    return GPU_BATCH_TOKENS if device.type == "cuda" else BATCH_TOKENS


def prepare_window(
    pairs: Sequence[Pair],
    encoder: PairEncoder,
    *,
    max_length: int,
    truncate: bool,
    batch_tokens: int,
    share: bool = True,
    skip: Collection[int] = (),
) -> Generator[None, None, SortWindow]:
    """Tokenise pairs, give a status to those that cannot be scored, and fill micro-batches with the others.

    Args:
        pairs: the pairs in input order.
        encoder: the model's encoder.
        max_length: longest sequence, in tokens. A longer pair gets the status too_long.
        truncate: cut the ends of x and y of a longer pair, in proportion to their lengths; its status is `truncated`.
        batch_tokens: tokens of a micro-batch.
        share: let sequences share prefixes. Default True.
        skip: positions of pairs that need no forward pass, as their results are known. Default: none.

    Returns:
        The window, in steps of a few milliseconds: `Prefetch(prepare_window(...)).result()` does them all.
    """
    n = len(pairs)
    window = SortWindow(
        pairs=pairs,
        status=[pair.status for pair in pairs],
        reason=[pair.reason for pair in pairs],
        encoded=[None] * n,
        tokens_x=np.zeros(n, np.int64),
        tokens_y=np.zeros(n, np.int64),
        text_x=np.zeros(n, np.int64),
        text_y=np.zeros(n, np.int64),
        refusal=np.zeros(n, np.int64),
        other_script=np.zeros(n, np.int64),
        token_scores={name: np.full(n, np.nan) for name in TOKEN_SCORES},
    )
    for start in range(0, n, STEP_PAIRS):
        _encode(window, range(n)[start : start + STEP_PAIRS], encoder, max_length, truncate)
        yield

    def sequences(row: int) -> list[list[int]]:
        pair = window.encoded[row]
        assert pair is not None
        return [sequence.ids for sequence in encoder.sequences(pair)]

    lengths = {row: sum(map(len, sequences(row))) for row in range(n) if window.encoded[row] and row not in skip}
    order = _order(window, lengths) if share else _by_length(lengths)
    for batch in fill_micro_batches(order, sequences, batch_tokens, share=share):
        window.micro_batches.append(batch)
        yield
    return window


def fill_micro_batches(
    order: Sequence[int], sequences: Callable[[int], list[list[int]]], budget: int, *, share: bool = True
) -> Iterator[MicroBatch]:
    """Yield micro-batches of neighbouring rows.

    Args:
        order: rows in the order in which they run.
        sequences: returns the token ids of a row's sequences.
        budget: tokens of a micro-batch; a longer row gets its own.
        share: let sequences share prefixes. Default True.
    """
    rows: list[int] = []
    ids: list[list[int]] = []
    tokens = in_full = 0
    for row in order:
        own = sequences(row)
        length = sum(map(len, own))
        added = added_tokens(own, ids[-len(own) :]) if share else length
        if rows and (tokens + added > budget or in_full + length > MOST_SHARING * budget):
            yield MicroBatch.of(rows, ids, share=share)
            rows, ids, tokens, in_full = [], [], 0, 0
            added = added_tokens(own, []) if share else length
        rows.append(row)
        ids += own
        tokens, in_full = tokens + added, in_full + length
    if rows:
        yield MicroBatch.of(rows, ids, share=share)


def _by_length(lengths: Mapping[int, int]) -> list[int]:
    return sorted(lengths, key=lambda row: (lengths[row], row))


def _order(window: SortWindow, lengths: Mapping[int, int]) -> list[int]:
    """Return rows by length, but those with a common instruction, response or context after the shortest of them."""

    def parts(row: int) -> Iterator[tuple[str, tuple[int, ...], int]]:
        pair = window.encoded[row]
        assert pair is not None
        context = tuple(pair.context)
        yield "x", context, int(window.text_x[row])
        yield "y", context, int(window.text_y[row])
        if context:
            yield "context", context, 0

    counts = Counter(part for row in lengths for part in parts(row))
    groups: dict[object, list[int]] = {}
    for row in _by_length(lengths):
        common = (part for part in parts(row) if counts[part] > 1)
        groups.setdefault(next(common, row), []).append(row)
    return [row for group in groups.values() for row in group]


def _digest(ids: Sequence[int]) -> int:
    """Return a 64-bit digest of token ids."""
    digest = hashlib.blake2b(np.array(ids, np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _encode(window: SortWindow, among: Sequence[int], encoder: PairEncoder, max_length: int, truncate: bool) -> None:
    """Tokenise and check the pairs of some rows."""
    pairs = window.pairs
    for row in among:
        if pairs[row].status in SCORED:
            _check_text(window, row, pairs[row], encoder)
    rows = [row for row in among if window.status[row] in SCORED]
    texts = [(pairs[row].instruction, pairs[row].response) for row in rows]
    for row, item in zip(rows, encoder.encode(texts, [pairs[row].context for row in rows]), strict=True):
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
        window.text_x[row], window.text_y[row] = _digest(fitted.x), _digest(fitted.y)
        window.refusal[row] = is_refusal(pairs[row].response)
        window.other_script[row] = is_other_script(pairs[row].instruction, pairs[row].response)
        for name, value in token_scores(fitted.x, fitted.y).items():
            window.token_scores[name][row] = value


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
    """Explain that context and markers alone fill the sequence, so cutting x and y does not help."""
    markers = f"the {encoder.overhead} tokens of the markers"
    if not pair.context:
        return f"{markers} leave no room for a token of each; raise --max-length"
    return f"{len(pair.context)} tokens of context and {markers} leave no room for a token of each"


def _refuse(window: SortWindow, row: int, status: str, why: str) -> None:
    window.status[row] = status
    window.reason[row] = f"{window.pairs[row].where}: {why}"
