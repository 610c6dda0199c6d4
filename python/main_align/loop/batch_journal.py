"""generate_batches, read_generations: generate prompts in batches, with a journal of the finished ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.journal import Journal
from ..progress import Progress
from .distributed import Processes
from .generation import Generator, Prompt
from .pairs import Generation
from .run_dir import JOURNAL_SUFFIX


def generate_batches(
    batches: Sequence[Sequence[Prompt]],
    load_generator: Callable[[], Generator],
    work_dir: Path,
    processes: Processes,
    on_progress: Callable[[Progress], None],
    stage_name: str,
) -> tuple[int, float]:
    """Generate the batches of this process that no journal contains.

    Args:
        batches: the prompts of all processes.
        load_generator: loads the model; called only if this process has a batch to generate.
        work_dir: folder of the journals.
        processes: this process and its group.
        on_progress: called after each batch.
        stage_name: stage shown with the progress.

    Returns:
        The tokens generated now, and the seconds they took.
    """
    finished = processes.broadcast(sorted(_read_journals(work_dir, batches)) if processes.is_main else None)
    rank_batches = list(range(processes.rank, len(batches), processes.world_size))
    missing = [number for number in rank_batches if number not in finished]
    rows = sum(len(batches[number]) for number in rank_batches)
    earlier = pairs = rows - sum(len(batches[number]) for number in missing)
    tokens, start = 0, time.monotonic()
    if missing:
        generator = load_generator()
        start = time.monotonic()
        with Journal(work_dir / f"rank-{processes.rank}{JOURNAL_SUFFIX}") as journal:
            for number in missing:
                generations = generator.generate(batches[number])
                journal.append(_journal_record(number, batches[number], generations))
                pairs += len(generations)
                tokens += sum(generation.tokens for generation in generations)
                on_progress(Progress(stage_name, pairs, rows, earlier, tokens, time.monotonic() - start))
    return tokens, time.monotonic() - start


def read_generations(work_dir: Path, batches: Sequence[Sequence[Prompt]]) -> dict[int, Generation]:
    """Return the generations in the journals of all processes, by row number.

    Args:
        work_dir: folder of the journals.
        batches: the prompts of all processes.
    """
    return {row: each for batch in _read_journals(work_dir, batches).values() for row, each in batch.items()}


def _journal_record(number: int, batch: Sequence[Prompt], generations: Sequence[Generation]) -> dict[str, Any]:
    rows = [prompt.row for prompt in batch]
    return {"batch": number, "rows": rows, "generations": [asdict(generation) for generation in generations]}


def _read_journals(work_dir: Path, batches: Sequence[Sequence[Prompt]]) -> dict[int, dict[int, Generation]]:
    """Return the batches that any process has generated, by batch number: row number to Generation."""
    finished: dict[int, dict[int, Generation]] = {}
    for record in _records(work_dir):
        rows = [prompt.row for prompt in batches[record["batch"]]] if record["batch"] < len(batches) else []
        if rows == record["rows"]:  # different if an updated library grouped the rows in another way
            generations = [Generation(**each) for each in record["generations"]]
            finished[record["batch"]] = dict(zip(rows, generations, strict=True))
    return finished


def _records(work_dir: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(work_dir.glob(f"*{JOURNAL_SUFFIX}")):
        with Journal(path) as journal:
            yield from journal.headers()
