"""The end of a bulk job: walks the journal, chooses the bank, and turns what is stored into rows.

Three walks in order, each holding one window: count the scored pairs (headers only), gather the
bank's states, score every window against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.journal import Journal, Record
from ..data.pairs import SCORED
from .columns import TOKEN_SCORES, score_rows

if TYPE_CHECKING:
    from .bank import Bank
    from .batching import SortWindow
    from .results import MicroBatchResult
    from .scorer import Scorer

PACK_ARRAYS = ("rows", "logp", "embed_x", "embed_y")  # of a pack, see results.py


def window_record(index: int, window: SortWindow) -> Record:
    """What of a prepared window goes to the journal: everything but its texts and tokens."""
    header = {
        "kind": "window",
        "window": index,
        "micro_batches": len(window.micro_batches),
        "ids": [pair.id for pair in window.pairs],
        "status": list(window.status),
        "reason": list(window.reason),
    }
    return header, {"tokens_x": window.tokens_x, "tokens_y": window.tokens_y} | window.token_scores


def pack_record(index: int, number: int, result: MicroBatchResult) -> Record:
    """What of a pack's result goes to the journal: all of it."""
    header = {
        "kind": "pack",
        "window": index,
        "pack": number,
        # JSON has no integer keys
        "status": list(result.status.items()),
        "reason": list(result.reason.items()),
    }
    return header, {name: np.ascontiguousarray(getattr(result, name)) for name in PACK_ARRAYS}


@dataclass(slots=True)
class StoredWindow:
    """A window put together again. Arrays have one entry a scored row, `scored` says which."""

    header: dict[str, Any]
    rows: dict[str, NDArray[Any]]
    logp: NDArray[np.float64]  # [n, 4], NaN where not scored
    scored: NDArray[np.int64]  # [s] positions of the scored rows, ascending
    embed_x: NDArray[np.float32]  # [s, D]
    embed_y: NDArray[np.float32]  # [s, D]


def stored_windows(journal: Journal) -> Iterator[StoredWindow]:
    """The windows of a complete journal, in order."""
    group: list[Record] = []
    for record in journal.records():
        if record[0]["kind"] == "window" and group:
            yield _assemble(group)
            group = []
        group.append(record)
    if group:
        yield _assemble(group)


def _assemble(group: list[Record]) -> StoredWindow:
    header, rows = group[0]
    for pack, _ in group[1:]:
        for name in ("status", "reason"):
            for row, value in pack[name]:
                header[name][row] = value
    logp = np.full((len(header["ids"]), 4), np.nan)
    scored = np.flatnonzero([status in SCORED for status in header["status"]])
    place = np.full(len(logp), -1)
    place[scored] = np.arange(len(scored))
    width = group[1][1]["embed_x"].shape[1] if len(group) > 1 else 0
    embed_x, embed_y = (np.zeros((len(scored), width), np.float32) for _ in range(2))
    for _, tensors in group[1:]:
        good = place[tensors["rows"]] >= 0
        at = place[tensors["rows"][good]]
        logp[tensors["rows"][good]] = tensors["logp"][good]
        embed_x[at], embed_y[at] = tensors["embed_x"][good], tensors["embed_y"][good]
    return StoredWindow(header, rows, logp, scored, embed_x, embed_y)


def finished_rows(journal: Journal, scorer: Scorer) -> Iterator[dict[str, Any]]:
    """The rows of OUT in input order, from a complete journal."""
    from .bank import Bank, BankScores

    chosen = Bank.choose(_count_scored(journal), scorer.bank, scorer.seed)
    bank = _gather(journal, scorer, chosen) if len(chosen) else None
    before = 0
    for window in stored_windows(journal):
        n = len(window.logp)
        scores = {name: window.rows[name] for name in TOKEN_SCORES}
        scores |= {name: np.full(n, np.nan) for name in BankScores._fields}
        if bank is not None and len(window.scored):
            member = _places(chosen, before, len(window.scored))
            against_bank = bank.score(window.embed_x, window.embed_y, member)
            for name, values in against_bank._asdict().items():
                scores[name][window.scored] = values
        before += len(window.scored)
        yield from score_rows(
            ids=window.header["ids"],
            status=window.header["status"],
            reason=window.header["reason"],
            tokens_x=window.rows["tokens_x"],
            tokens_y=window.rows["tokens_y"],
            logp=window.logp,
            scores=scores,
        )


def _count_scored(journal: Journal) -> int:
    total = 0
    for header in journal.headers():
        if header["kind"] == "window":
            total += sum(status in SCORED for status in header["status"])
        else:  # a pack lists its failures only
            total -= len(header["status"])
    return total


def _places(chosen: NDArray[np.int64], before: int, count: int) -> NDArray[np.int64]:
    """Place in the bank of the scored pairs before .. before + count, -1 for those not in it."""
    start, stop = np.searchsorted(chosen, (before, before + count))
    member = np.full(count, -1, np.int64)
    member[chosen[start:stop] - before] = np.arange(start, stop)
    return member


def _gather(journal: Journal, scorer: Scorer, chosen: NDArray[np.int64]) -> Bank:
    from .bank import Bank

    before, parts = 0, []
    for window in stored_windows(journal):
        count = len(window.scored)
        mine = _places(chosen, before, count) >= 0
        parts.append((window.embed_x[mine], window.embed_y[mine]))
        before += count
    embed_x, embed_y = (np.concatenate([p for p in side if len(p)]) for side in zip(*parts, strict=True))
    centred = "heads" not in scorer.fingerprint
    return Bank(embed_x, embed_y, scorer.temperature, scorer.forward.device, centred=centred)
