"""WholeStream: a stream whose batches are divided among processes, so all have the same number of batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import IterableDataset
from torch.utils import data


class WholeStream(data.IterableDataset[Any]):
    """All rows of a stream.

    Of a `datasets.IterableDataset`, accelerate gives each process shards of its own, which differ in length.

    Args:
        stream: the rows.
    """

    def __init__(self, stream: IterableDataset) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Any]:
        return iter(self.stream)

    def set_epoch(self, epoch: int) -> None:
        """Change the order of a shuffled stream."""
        self.stream.set_epoch(epoch)
