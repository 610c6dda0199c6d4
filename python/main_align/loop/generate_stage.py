"""A stage in which a model writes: instructions for responses, or responses to instructions.

Every batch that is written goes to a journal in the stage's folder, so a stage that was killed goes
on behind its last batch. When all batches are there the rows are put in input order into pairs.jsonl.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from ..data.atomic import (
    atomic_write,
)
from ..data.journal import Journal
from ..data.pairs import Pair
from ..data.write import (
    to_json,
)
from ..progress import (
    Progress,
)
from .config import Direction
from .distributed import Processes
from .generation import Prompt
from .pairs import Written, written_row
from .run_dir import JOURNAL

PAIRS = "pairs.jsonl"


class Writer(Protocol):
    """What writes: `generation.TransformersWriter` or `vllm.VllmWriter`."""

    def write(self, batch: Sequence[Prompt]) -> list[Written]: ...


def write_missing_sides(
    batches: Sequence[Sequence[Prompt]],
    make_writer: Callable[[], Writer],
    folder: Path,
    processes: Processes,
    say: Callable[[Progress], None],
    stage: str,
) -> tuple[int, float]:
    """Run this process's share of the batches; returns the tokens written now and the seconds.

    The model is loaded only if some batch of this process is missing.
    """
    have = processes.agree(sorted(_in_journals(folder, batches)) if processes.first else None)
    mine = list(range(processes.rank, len(batches), processes.count))
    todo = [number for number in mine if number not in have]
    rows = sum(len(batches[number]) for number in mine)
    earlier = pairs = rows - sum(len(batches[number]) for number in todo)
    tokens, began = 0, time.monotonic()
    if todo:
        writer = make_writer()
        began = time.monotonic()
        with Journal(folder / f"rank-{processes.rank}{JOURNAL}") as journal:
            for number in todo:
                written = writer.write(batches[number])
                journal.append(_record(number, batches[number], written))
                pairs += len(written)
                tokens += sum(item.tokens for item in written)
                say(Progress(stage, pairs, rows, earlier, tokens, time.monotonic() - began))
    return tokens, time.monotonic() - began


def collect(
    pairs: Sequence[Pair],
    refused: dict[int, Written],
    batches: Sequence[Sequence[Prompt]],
    writer: Direction,
    folder: Path,
) -> tuple[Counter[str], int]:
    """Write pairs.jsonl from the journals of all processes. Returns the statuses and the tokens of all rows."""
    found = dict(refused)
    for written in _in_journals(folder, batches).values():
        found |= written
    with atomic_write(folder / PAIRS) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row, pair in enumerate(pairs):
            file.write(to_json(written_row(pair, writer, found[row])) + "\n")
    return Counter(item.status for item in found.values()), sum(item.tokens for item in found.values())


def _journals(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{JOURNAL}"))


def _record(number: int, batch: Sequence[Prompt], written: Sequence[Written]) -> dict[str, Any]:
    return {"batch": number, "rows": [prompt.row for prompt in batch], "written": [asdict(item) for item in written]}


def _in_journals(folder: Path, batches: Sequence[Sequence[Prompt]]) -> dict[int, dict[int, Written]]:
    """The batches that some process has written: row by row, by the batch's number."""
    done: dict[int, dict[int, Written]] = {}
    for record in _records(folder):
        rows = [prompt.row for prompt in batches[record["batch"]]] if record["batch"] < len(batches) else []
        if rows == record["rows"]:  # else a library has changed since, and other rows are together
            done[record["batch"]] = {row: Written(**item) for row, item in zip(rows, record["written"], strict=True)}
    return done


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in _journals(folder):
        with Journal(path) as journal:
            yield from journal.headers()
