"""A scorer without a model, for tests of what happens around one: same interface, instant."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import time
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from main_align.data.pairs import SCORED, Pair
from main_align.scoring.batching import MicroBatch, SortWindow
from main_align.scoring.columns import TOKEN_SCORES
from main_align.scoring.results import MicroBatchResult

WIDTH = 8


class FakeScorer:
    """Scores follow from a hash of the texts; packs hold `per_pack` pairs in order of length.

    An instruction "explode" comes back as non_finite. `ran` counts the packs run. If the file `dies` exists, the next
    pack deletes it and kills the process. A pack takes `seconds`. With `waits`, the next window is prepared meanwhile,
    and `prepared` says how many packs had run when a window was finished.
    """

    def __init__(
        self,
        *,
        per_pack: int = 3,
        bank: int = 16384,
        seed: int = 0,
        dies: str = "",
        seconds: float = 0,
        waits: bool = False,
        **settings: Any,
    ):
        self.dies, self.seconds, self.waits = Path(dies) if dies else None, seconds, waits
        self.per_pack, self.width, self.device = per_pack, WIDTH, "cpu"
        self.fingerprint = {"model": "fake", "dtype": "float32", "bank": bank, "seed": seed, "temperature": 0.07}
        self.fingerprint |= settings
        self.ran = 0
        self.prepared: list[int] = []

    def prepare_in_steps(self, pairs: Sequence[Pair], skip: Collection[int] = ()) -> Generator[None, None, SortWindow]:
        yield
        status = [pair.status for pair in pairs]
        reason = [pair.reason for pair in pairs]
        for row, pair in enumerate(pairs):
            if pair.status == "ok" and not pair.response:
                status[row], reason[row] = "empty_response", f"line {pair.line}: no text"
        rows = [row for row in range(len(pairs)) if status[row] in SCORED and row not in skip]
        rows.sort(key=lambda row: len(pairs[row].instruction + pairs[row].response))
        tokens = [
            np.array([len(text) if s in SCORED else 0 for text, s in zip(side, status, strict=True)])
            for side in ([p.instruction for p in pairs], [p.response for p in pairs])
        ]
        token_scores = {name: np.full(len(pairs), np.nan) for name in TOKEN_SCORES}
        texts = [
            np.array([zlib.crc32(text.encode()) for text in side], np.int64)
            for side in ([p.instruction for p in pairs], [p.response for p in pairs])
        ]
        flagged = np.zeros((2, len(pairs)), np.int64)
        window = SortWindow(pairs, status, reason, [None] * len(pairs), *tokens, *texts, *flagged, token_scores)
        window.micro_batches = [
            MicroBatch(tuple(rows[start : start + self.per_pack]), 10) for start in range(0, len(rows), self.per_pack)
        ]
        self.prepared.append(self.ran)
        return window

    def run(
        self, window: SortWindow, batches: Iterable[MicroBatch], meanwhile: Callable[[], bool] = lambda: False
    ) -> Iterator[MicroBatchResult]:
        for batch in batches:
            while self.waits and meanwhile():
                pass
            yield self._run(window, batch)

    def _run(self, window: SortWindow, batch: MicroBatch) -> MicroBatchResult:
        self.ran += 1
        time.sleep(self.seconds)
        if self.dies is not None and _deletes(self.dies):
            os.kill(os.getpid(), signal.SIGKILL)
        noise = [_noise(window.pairs[row]) for row in batch.rows]
        logp = -10 - np.array([n.random(4) for n in noise])
        embed = np.array([n.standard_normal((2, WIDTH)) for n in noise]).astype(np.float32)
        novel, y_end = logp[:, [0, 2]] - logp[:, [1, 3]], logp[:, 0]
        embeddings = (embed[:, 0].copy(), embed[:, 1].copy())
        result = MicroBatchResult(np.array(batch.rows), logp, novel, y_end, *embeddings)
        for place, row in enumerate(batch.rows):
            if window.pairs[row].instruction == "explode":
                result.fail(place, "non_finite", f"line {window.pairs[row].line}: NaN")
        return result


def scorer_with_a_warning(**settings: Any) -> FakeScorer:
    logging.getLogger(__name__).warning("the model has a peculiarity")
    return FakeScorer(**settings)


def _deletes(path: Path) -> bool:
    """Return True for the one process that deletes the file, of several that try at the same time."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _noise(pair: Pair) -> np.random.Generator:
    text = pair.instruction + "\0" + pair.response
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))
