"""part_rows, summarise, Summary: the parts of a job put together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .folder import JobFolder, intact
from .part import read_notes

BATCH = 16384


@dataclass
class Summary:
    """Totals of the parts of a job.

    Args:
        counts: rows of each status.
        reasons: first reason of each status.
        unused: for each text field that is not part of the pair, the number of rows that have it.
        repeated_ids: rows with the id of an earlier row.
    """

    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    repeated_ids: int = 0


def summarise(parts: list[Path]) -> Summary:
    """Add up the parts; of the rows, only statuses, reasons and ids are read.

    Args:
        parts: the paths of all parts, in order.
    """
    from pyarrow import parquet

    summary, hashes = Summary(), [np.zeros(0, np.uint64)]
    for path in parts:
        with intact(path, "delete it and run again"):
            notes = read_notes(path)
            columns = parquet.read_table(path, columns=["id", "status", "reason"]).to_pydict()
        summary.unused.update(notes.unused)
        summary.counts.update(columns["status"])
        for status, reason in zip(columns["status"], columns["reason"], strict=True):
            if reason:
                summary.reasons.setdefault(status, reason)
        numbered = set(notes.numbered)
        own = (label for number, label in enumerate(columns["id"]) if number not in numbered)
        hashes.append(np.fromiter(map(_hash, own), np.uint64))
    every = np.concatenate(hashes)
    summary.repeated_ids = len(every) - len(np.unique(every))
    return summary


def part_rows(parts: list[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the parts in order.

    Args:
        parts: the paths of all parts, in order.
    """
    from pyarrow import parquet

    for path in parts:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                yield from batch.to_pylist()


def bank_size(folder: JobFolder) -> int:
    """Return the number of pairs of a job's bank, 0 if no pair could be scored."""
    from safetensors import safe_open

    if not folder.bank.exists():
        return 0
    with intact(folder.bank), safe_open(folder.bank, "np") as file:
        size: int = file.get_slice("query").get_shape()[0]
        return size


def _hash(label: str) -> int:
    """Return 64 bits of a hash: among ten million ids, two have the same one with a probability of 3 in a million."""
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little")
