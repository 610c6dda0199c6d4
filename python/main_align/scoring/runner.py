"""Runner: the part of a scorer that runs windows and makes the bank, which windows.py and assemble.py call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..data.pairs import Pair
from .bank import Bank, PairStates
from .batching import MicroBatch, SortWindow
from .results import MicroBatchResult


class Runner(Protocol):
    """Interface of a Scorer without its settings and its `score`.

    Attributes:
        bank: largest number of reference pairs.
        seed: random seed for sampling the bank.
    """

    bank: int
    seed: int

    def prepare(self, pairs: Sequence[Pair]) -> SortWindow: ...

    def run(self, window: SortWindow, batch: MicroBatch) -> MicroBatchResult: ...

    def make_bank(self, pairs: PairStates) -> Bank: ...
