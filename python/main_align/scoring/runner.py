"""Runner: the part of a scorer that runs windows, which measured.py and the jobs call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch

from ..data.pairs import Pair
from .batching import MicroBatch, SortWindow
from .results import MicroBatchResult


class Runner(Protocol):
    """Interface of a Scorer without its settings, its `measure` and its `score`.

    Attributes:
        fingerprint: everything besides the input that the scores depend on.
    """

    fingerprint: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Device of the model, and of the products with the bank."""

    @property
    def width(self) -> int:
        """D, the width of an embedding."""

    def prepare_in_steps(
        self, pairs: Sequence[Pair], skip: Collection[int] = ()
    ) -> Generator[None, None, SortWindow]: ...

    def run(
        self, window: SortWindow, batches: Iterable[MicroBatch], meanwhile: Callable[[], bool] = ...
    ) -> Iterator[MicroBatchResult]: ...
