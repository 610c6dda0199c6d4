"""score_file: score a data set into a file, in a job that resumes after being killed at any moment.

The results of the model go to a journal beside the output (see windows.py). Once all are there, the rows are assembled
and written (see assemble.py). A second run skips the finished part, and the output has the same bytes.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.fields import NO_FIELDS, Fields, Notes
from ..data.journal import Journal
from ..data.pairs import SCORED
from ..data.read import open_source
from ..data.sources.source import Source, SourceInfo
from ..data.write import check_output
from ..environment import versions
from ..errors import UserError
from ..progress import Progress
from .assemble import assemble_rows
from .batching import SORT_WINDOW
from .columns import definitions
from .flags import FLAGS
from .manifest import read_manifest, write_manifest
from .resume import delete, delete_unless_locked, is_complete, journal_path, open_or_resume
from .score_file import write_scores
from .windows import Finished, score_windows

if TYPE_CHECKING:
    from .scorer import Scorer

FORMAT = 4
"""version of the journal and of the reading of rows; raise it on a change, so that older jobs do not resume"""


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
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Score every row of a data set into a file.

    Args:
        scorer: the scorer.
        source: anything that `read_pairs` reads, or an open Source.
        out: output file; its ending is .parquet, .jsonl or .csv.
        fields: field names that override the recognised record formats. Default: none.
        split: split of a `datasets` source.
        config: configuration of a `datasets` source.
        sort_window: number of pairs that are tokenised and sorted by length together. It bounds the memory used.
            Default 4096.
        restart: delete an unfinished job and overwrite a finished one. Default False.
        command: the user's own settings, kept in the manifest.
        on_progress: called after each forward pass and after each window of the bank pass.

    Returns:
        The manifest, which is also written beside `out`.

    Raises:
        UserError: a bad input file or output path; no row among the first can be scored; the input changes during the
            run; `out` belongs to an unfinished or finished job with other settings, which the message lists.
    """
    out, report = Path(out), on_progress or (lambda _: None)
    check_output(out)
    fields.check()
    opened = open_source(source, split=split, config=config)
    opened.check(fields)
    info = opened.inspect()
    settings = _settings(scorer, info, {"fields": asdict(fields), "split": split, "config": config}, sort_window)
    if restart:
        delete_unless_locked(out, [journal_path(out)])
    elif is_complete(out, settings):
        manifest = read_manifest(out)
        assert manifest is not None
        return manifest
    open_or_resume(out, settings)
    totals = _Totals(info.rows)
    with Journal(journal_path(out)) as journal:
        for finished in score_windows(scorer, opened.pairs(fields, totals.notes), sort_window, journal):
            totals.add(finished)
            if finished.tokens:
                report(totals.progress())
        if opened.digest() != info.digest:
            raise UserError(f"{opened.name} changed while it was scored; run again with --restart when it is complete")
        write_scores(out, _with_progress(assemble_rows(journal, scorer), totals, sort_window, report))
        manifest = _manifest(scorer, opened, info, settings, totals) | {"command": dict(command or {})}
        write_manifest(out, manifest)
        delete(out)
    return manifest


def _settings(scorer: Scorer, info: SourceInfo, reading: Mapping[str, Any], sort_window: int) -> dict[str, Any]:
    """Return all that the scores depend on: a job with other settings does not resume."""
    settings = {
        "format": FORMAT,
        "input": {"size": info.size, "digest": info.digest},
        "reading": dict(reading),
        "sort_window": sort_window,
        "columns": definitions(),
        "flags": {flag.name: flag.rule for flag in FLAGS},
        "scorer": scorer.fingerprint,
    }
    # Through JSON, so that the types are those of the stored copy it is compared with.
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


@dataclass(slots=True)
class _Totals:
    """Totals of a job: pairs, tokens, and the rows and the first reason of each status."""

    total: int
    pairs: int = 0
    earlier: int = 0
    tokens: int = 0
    notes: Notes = field(default_factory=Notes)
    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def add(self, finished: Finished) -> None:
        self.pairs += finished.pairs
        self.tokens += finished.tokens
        if finished.is_earlier:
            self.earlier += finished.pairs

    def progress(self) -> Progress:
        seconds = time.monotonic() - self.started
        return Progress("scoring", self.pairs, self.total, self.earlier, self.tokens, seconds)


def _with_progress(
    rows: Iterable[dict[str, Any]], totals: _Totals, every: int, report: Callable[[Progress], None]
) -> Iterator[dict[str, Any]]:
    """Yield the rows, count their statuses, and report after every `every` rows."""
    scoring = totals.progress()
    for number, row in enumerate(rows, 1):
        totals.counts[row["status"]] += 1
        if row["reason"]:
            totals.reasons.setdefault(row["status"], row["reason"])
        yield row
        if number % every == 0 or number == totals.total:
            report(replace(scoring, stage="bank", pairs=number))


def _manifest(
    scorer: Scorer,
    source: Source,
    info: SourceInfo,
    settings: Mapping[str, Any],
    totals: _Totals,
) -> dict[str, Any]:
    from main_kernels import backend_report

    seconds = time.monotonic() - totals.started
    fresh = totals.pairs - totals.earlier
    scored = sum(totals.counts[status] for status in SCORED)
    return {
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source": source.name,
        "source_path": str(source.path.absolute()) if source.path else None,
        "rows": info.rows,
        "blank_lines": info.blank_lines,
        "counts": dict(totals.counts),
        "first_reasons": totals.reasons,
        "repeated_ids": totals.notes.repeated_ids,
        "unused_text_fields": dict(totals.notes.unused),
        "bank": {"pairs": min(scorer.bank, scored), "of_scored": scored, "seed": scorer.seed},
        "throughput": {
            "seconds": round(seconds, 3),
            "pairs_per_second": round(fresh / seconds, 3),
            "tokens_per_second": round(totals.tokens / seconds, 1),
            "tokens": totals.tokens,
            "resumed": totals.earlier > 0,
            "pairs_from_earlier_runs": totals.earlier,
        },
        "settings": dict(settings),
        "versions": versions(),
        "backend": backend_report(),
    }
