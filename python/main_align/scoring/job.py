"""The bulk job: a data set in, a score file out, safe against being killed at any moment.

Windows of rows are prepared in input order; each pack the model has run goes to the journal. When
all are there, the bank pass (see finishing.py) walks the journal and writes OUT. A second run skips
what the journal holds, and since packs and windows are deterministic, OUT is the same bytes.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.fields import NO_FIELDS, Fields, Notes
from ..data.journal import Journal
from ..data.pairs import SCORED, Pair
from ..data.read import open_source
from ..data.sources.source import Source, SourceInfo
from ..data.write import (
    check_output,
)
from ..environment import (
    versions,
)
from ..errors import UserError
from ..progress import Progress
from .assemble import finished_rows, pack_record, window_record
from .batching import SORT_WINDOW
from .columns import definitions
from .manifest import (
    read_manifest,
    write_manifest,
)
from .resume import discard, finished, journal_path, open_partial
from .score_file import (
    write_scores,
)

if TYPE_CHECKING:
    from .scorer import Scorer

FORMAT = 2  # raise it when the journal or what is read from a row changes, so that old jobs are not resumed


Report = Callable[[Progress], None]


def score_file(
    scorer: Scorer,
    source: str | Path | Source,
    out: str | Path,
    *,
    fields: Fields = NO_FIELDS,
    split: str | None = None,
    config: str | None = None,
    sort_window: int = SORT_WINDOW,
    restart: bool = False,
    command: Mapping[str, Any] | None = None,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Score every row of `source` into `out` (.parquet, .jsonl or .csv) and return the manifest.

    Args:
        source: what `read_pairs` reads, or a Source that was opened already.
        fields: field names that override the recognised forms.
        split: the split of a `datasets` source.
        config: the configuration of a `datasets` source.
        sort_window: rows tokenised, length-sorted and packed together; bounds the memory used.
        restart: throw away an unfinished job and overwrite a finished one.
        command: what the user asked for, kept in the manifest.
        progress: called after each pack and each window of the bank pass.

    Raises:
        UserError: a bad input file or output path; an input of whose first rows none can be scored, or that changes
            during the run; an unfinished or finished job at `out` with other settings, each of which is named.
    """
    out, say = Path(out), progress or (lambda _: None)
    check_output(out)
    fields.check()
    opened = open_source(source, split=split, config=config)
    opened.check(fields)
    info = opened.inspect()
    settings = _settings(scorer, info, {"fields": asdict(fields), "split": split, "config": config}, sort_window)
    if restart:
        _throw_away(out)
    elif finished(out, settings):
        done = read_manifest(out)
        assert done is not None
        return done
    open_partial(out, settings)
    with Journal(journal_path(out)) as journal:
        state = _score_windows(scorer, opened, fields, sort_window, journal, info.rows, say)
        if opened.digest() != info.digest:
            raise UserError(f"{opened.name} changed while it was scored; run again with --restart when it is complete")
        rows = _watched(finished_rows(journal, scorer), state, sort_window, say)
        write_scores(out, rows)
        manifest = _manifest(scorer, opened, info, settings, state, command)
        write_manifest(out, manifest)
        discard(out)
    return manifest


def _settings(scorer: Scorer, info: SourceInfo, reading: Mapping[str, Any], sort_window: int) -> dict[str, Any]:
    settings = {
        "format": FORMAT,
        "input": {"size": info.size, "digest": info.digest},
        "reading": dict(reading),
        "sort_window": sort_window,
        "columns": definitions(),
        "scorer": scorer.fingerprint,
    }
    # Through JSON, so that what is compared later with the stored copy has the same types.
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _throw_away(out: Path) -> None:
    path = journal_path(out)
    if path.exists():
        with Journal(path):  # refuses where another process is at work
            pass
    discard(out)


@dataclass(slots=True)
class _State:
    """Where the walk over the input is; `done` maps a window to its packs expected and seen.

    `notes` is what the reading noticed; `counts` and `reasons` are the rows and the first reason of each status.
    """

    total: int
    done: dict[int, list[int]] = field(default_factory=dict)
    pairs: int = 0
    earlier: int = 0
    tokens: int = 0
    notes: Notes = field(default_factory=Notes)
    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def progress(self) -> Progress:
        seconds = time.monotonic() - self.started
        return Progress("scoring", self.pairs, self.total, self.earlier, self.tokens, seconds)


def _score_windows(
    scorer: Scorer,
    source: Source,
    fields: Fields,
    size: int,
    journal: Journal,
    total: int,
    say: Report,
) -> _State:
    state = _State(total)
    for header in journal.headers():
        if header["kind"] == "window":
            state.done[header["window"]] = [header["micro_batches"], 0]
        else:
            state.done[header["window"]][1] += 1
    for index, pairs in enumerate(_windows(source.pairs(fields, state.notes), size)):
        expected, seen = state.done.get(index, (1, 0))
        if seen == expected:
            state.pairs += len(pairs)
            state.earlier += len(pairs)
            continue
        _score_window(scorer, index, pairs, journal, state, say)
    return state


def _windows(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    iterator = iter(pairs)
    while window := list(islice(iterator, size)):
        yield window


def _score_window(scorer: Scorer, index: int, pairs: list[Pair], journal: Journal, state: _State, say: Report) -> None:
    window = scorer.prepare(pairs)
    packs = len(window.micro_batches)
    if index not in state.done:
        state.done[index] = [packs, 0]
        journal.append(*window_record(index, window))
    elif state.done[index][0] != packs:
        raise UserError(
            f"{journal.path}: window {index} now has {packs} packs and had "
            f"{state.done[index][0]}; a library changed since. Start over with --restart."
        )
    skip = state.done[index][1]
    in_packs = sum(len(pack.rows) for pack in window.micro_batches)
    state.pairs += len(pairs) - in_packs  # rows that need no model
    for number, pack in enumerate(window.micro_batches):
        state.pairs += len(pack.rows)
        if number < skip:
            state.earlier += len(pack.rows)
            continue
        result = scorer.run(window, pack)
        journal.append(*pack_record(index, number, result))
        state.tokens += pack.tokens
        say(state.progress())


def _watched(rows: Iterable[dict[str, Any]], state: _State, every: int, say: Report) -> Iterator[dict[str, Any]]:
    scoring = state.progress()
    for number, row in enumerate(rows, 1):
        state.counts[row["status"]] += 1
        if row["reason"]:
            state.reasons.setdefault(row["status"], row["reason"])
        yield row
        if number % every == 0 or number == state.total:
            say(replace(scoring, stage="bank", pairs=number))


def _manifest(
    scorer: Scorer,
    source: Source,
    info: SourceInfo,
    settings: Mapping[str, Any],
    state: _State,
    command: Mapping[str, Any] | None,
) -> dict[str, Any]:
    from main_kernels import backend_report

    seconds = time.monotonic() - state.started
    fresh = state.pairs - state.earlier
    scored = sum(state.counts[status] for status in SCORED)
    return {
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source": source.name,
        "source_path": str(source.path.absolute()) if source.path else None,
        "rows": info.rows,
        "blank_lines": info.blank_lines,
        "counts": dict(state.counts),
        "first_reasons": state.reasons,
        "repeated_ids": state.notes.repeated_ids,
        "unused_text_fields": dict(state.notes.unused),
        "bank": {"pairs": min(scorer.bank, scored), "of_scored": scored, "seed": scorer.seed},
        "throughput": {
            "seconds": round(seconds, 3),
            "pairs_per_second": round(fresh / seconds, 3),
            "tokens_per_second": round(state.tokens / seconds, 1),
            "tokens": state.tokens,
            "resumed": state.earlier > 0,
            "pairs_from_earlier_runs": state.earlier,
        },
        "settings": dict(settings),
        "command": dict(command or {}),
        "versions": versions(),
        "backend": backend_report(),
    }
