"""score_file: score a data set into a file or a folder, in a job that resumes after being killed at any moment.

A file is made in the folder OUT.partial and joined from its parts at the end; a folder keeps its parts. A second run
skips the finished part, and the output has the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..checks import check_types
from ..data.fields import NO_FIELDS, Fields
from ..data.journal import Journal
from ..data.pairs import SCORED
from ..data.read import open_source
from ..data.sources.file_set import FileSet
from ..data.sources.listing import refuse_output
from ..data.sources.source import Source, SourceInfo
from ..data.write import to_document
from ..environment import versions
from ..errors import UserError
from ..progress import Progress
from .batching import SORT_WINDOW
from .columns import definitions
from .flags import FLAGS
from .jobs.engine import Engine, InProcess, JobSpec
from .jobs.finish import bank_size, part_rows, summarise
from .jobs.folder import JobFolder
from .jobs.plan import JobPlan
from .jobs.processes import Processes
from .jobs.reader import changed
from .jobs.shard import Shard
from .jobs.worker import Finished, Task
from .manifest import is_folder_output, manifest_path, read_manifest, write_manifest
from .resume import check_output, delete, delete_unless_locked, is_complete, open_or_resume, partial_folder
from .runner import Runner
from .score_file import write_scores

FORMAT = 6
"""version of the units, the journals and the reading of rows; raise it on a change, so that older jobs do not resume"""

Input = str | Path | Sequence[str | Path] | Source


def score_file(
    scorer: Runner | Mapping[str, Any],
    source: Input,
    out: str | Path,
    *,
    workers: int = 1,
    fields: Fields = NO_FIELDS,
    split: str | None = None,
    config: str | None = None,
    sort_window: int = SORT_WINDOW,
    shard: Shard | None = None,
    restart: bool = False,
    command: Mapping[str, Any] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Score every row of a data set into a file or a folder.

    Args:
        scorer: the scorer, or the arguments of `Scorer`, from which every worker makes its own.
        source: anything that `read_pairs` reads, or an open Source.
        out: output file; its ending is .parquet, .jsonl or .csv. Or a folder, which keeps the scores in parts/, one
            .parquet file per `sort_window` rows, and the bank in bank.safetensors.
        workers: number of processes, each with its own model; several need the arguments of `Scorer`. Default 1, this
            process.
        fields: field names that override the recognised record formats. Default: none.
        split: split of a `datasets` source.
        config: configuration of a `datasets` source.
        sort_window: number of pairs that are tokenised and sorted by length together. It bounds the memory used.
            Default 4096.
        shard: part of the work for this call; other calls on the same folder do the others. Default: all of it.
        restart: delete an unfinished job and overwrite a finished one. Default False.
        command: the user's own settings, kept in the manifest.
        on_progress: called whenever pairs are finished, about every 64 pairs.
        log: called with a sentence when a worker dies. Default: nothing.

    Returns:
        The manifest, which is also written beside `out` or into the folder. For a shard that is done before the others,
        instead, `parts` and `missing_parts`.

    Raises:
        UserError: a bad input file or output path; no row among the first can be scored; the input changes during the
            run; `out` belongs to an unfinished or finished job with other settings, which the message lists; a worker
            cannot go on.
    """
    engine: Engine
    if workers == 1:
        engine = InProcess(scorer)
    elif isinstance(scorer, Mapping):
        engine = Processes(workers, scorer, log or (lambda _: None))
    else:
        raise UserError('several workers need the arguments of Scorer, such as {"model": "smollm2"}, not a Scorer')
    options: dict[str, Any] = {"fields": fields, "split": split, "config": config, "sort_window": sort_window}
    options |= {"shard": shard, "restart": restart, "command": command, "on_progress": on_progress}
    return run_job(engine, source, out, **options)


def run_job(
    engine: Engine,
    source: Input,
    out: str | Path,
    *,
    fields: Fields = NO_FIELDS,
    split: str | None = None,
    config: str | None = None,
    sort_window: int = SORT_WINDOW,
    shard: Shard | None = None,
    restart: bool = False,
    command: Mapping[str, Any] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Score every row of a data set with the workers of an engine; see `score_file` for the arguments."""
    check_types(run_job, {"out": out, "fields": fields, "sort_window": sort_window, "shard": shard})
    out, shard = Path(out), shard or Shard()
    if sort_window < 1:
        raise UserError(f"sort_window: expected a number of pairs, at least 1, got {sort_window}")
    check_output(out, shard)
    fields.check()
    opened = open_source(source, split=split, config=config)
    refuse_output(opened, out)
    opened.check(fields)
    info = opened.inspect()
    folder = JobFolder(partial_folder(out), shard.name)
    with engine:
        reading = {"fields": asdict(fields), "split": split, "config": config}
        settings = _settings(engine.fingerprint, opened, info, reading, sort_window)
        if restart:
            delete_unless_locked(out, [folder.lock])
        elif is_complete(out, settings):
            manifest = read_manifest(out)
            assert manifest is not None
            return manifest
        open_or_resume(out, settings, folder.own / "job.json")
        folder.create()
        with Journal(folder.lock):
            lengths = opened.lengths() if isinstance(opened, FileSet) else [info.rows]
            plan = JobPlan.of(lengths, sort_window, engine.fingerprint)
            spec = JobSpec(opened.address(), asdict(fields), lengths, sort_window, str(folder.path), shard.name)
            totals = _Totals(_rows_of(plan, shard), on_progress or (lambda _: None))
            engine.open(spec)
            _run(engine, plan, shard, totals)
            parts = [folder.part(index) for index in range(len(plan.units))]
            missing = sum(not part.exists() for part in parts)
            if opened.digest() != info.digest:
                raise changed(opened)
            if missing:
                return {"parts": len(parts), "missing_parts": missing}
            manifest = _manifest(opened, info, settings, folder, parts, totals) | {"command": dict(command or {})}
            if is_folder_output(out):
                _finish_folder(folder, out, manifest)
            else:
                write_scores(out, totals.writing(part_rows(parts), sort_window))
                write_manifest(out, manifest)
                delete(out)
    return manifest


def _finish_folder(folder: JobFolder, out: Path, manifest: Mapping[str, Any]) -> None:
    try:
        with folder.finished(manifest_path(out)) as path:
            path.write_text(to_document(manifest), encoding="utf-8")
    except FileNotFoundError:
        if not manifest_path(out).is_file():  # else another shard ended at the same moment, and deleted the work
            raise
    folder.delete_work()


def _run(engine: Engine, plan: JobPlan, shard: Shard, totals: _Totals) -> None:
    """Run all three stages. A shard measures bank units of others too, if those have not been measured yet."""
    engine.run([Task("measure", index) for index in shard.first(range(len(plan.bank_units)))], totals.add)
    totals.stage = "bank"
    totals.report()
    engine.run([Task("bank")], totals.add)
    totals.stage = "scoring"
    engine.run([Task("score", index) for index in shard.of(range(len(plan.units)))], totals.add)


def _rows_of(plan: JobPlan, shard: Shard) -> int:
    """Return the number of rows that a shard reports: the candidates of the bank, and the others in its units."""
    return len(plan.candidates) + sum(len(rows) - len(plan.candidates_in(rows)) for rows in shard.of(plan.units))


def _settings(
    fingerprint: Mapping[str, Any], source: Source, info: SourceInfo, reading: Mapping[str, Any], sort_window: int
) -> dict[str, Any]:
    """Return all that the scores depend on: a job with other settings does not resume."""
    files = {}
    if isinstance(source, FileSet):
        files = {"files": {name: {"size": one.size, "digest": one.digest} for name, one in source.infos().items()}}
    settings = {
        "format": FORMAT,
        "input": {**files, "size": info.size, "digest": info.digest},
        "reading": dict(reading),
        "sort_window": sort_window,
        "columns": definitions(),
        "flags": {flag.name: flag.rule for flag in FLAGS},
        "scorer": fingerprint,
    }
    # Through JSON, so that the types are those of the stored copy it is compared with.
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


@dataclass(slots=True)
class _Totals:
    """The progress of a job: pairs finished, in all and by earlier runs; tokens of this run, computed and shared."""

    total: int
    on_progress: Callable[[Progress], None]
    pairs: int = 0
    earlier: int = 0
    tokens: int = 0
    shared_tokens: int = 0
    stage: str = "scoring"
    started: float = field(default_factory=time.monotonic)

    def add(self, finished: Finished) -> None:
        self.pairs += finished.pairs
        self.tokens += finished.tokens
        self.shared_tokens += finished.shared_tokens
        if finished.is_earlier:
            self.earlier += finished.pairs
        if finished.tokens:
            self.report()

    def report(self, stage: str | None = None, pairs: int | None = None) -> None:
        seconds = time.monotonic() - self.started
        stage, pairs = stage or self.stage, self.pairs if pairs is None else pairs
        self.on_progress(Progress(stage, pairs, self.total, self.earlier, self.tokens, seconds))

    def writing(self, rows: Iterator[dict[str, Any]], every: int) -> Iterator[dict[str, Any]]:
        """Yield the rows, and report after every `every` rows."""
        for number, row in enumerate(rows, 1):
            yield row
            if number % every == 0 or number == self.total:
                self.report(stage="writing", pairs=number)


def _manifest(
    source: Source,
    info: SourceInfo,
    settings: Mapping[str, Any],
    folder: JobFolder,
    parts: list[Path],
    totals: _Totals,
) -> dict[str, Any]:
    from main_kernels import backend_report

    summary = summarise(parts)
    seconds = time.monotonic() - totals.started
    fresh = totals.pairs - totals.earlier
    scored = sum(summary.counts[status] for status in SCORED)
    return {
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source": source.name,
        "source_path": source.paths(),
        "rows": info.rows,
        "blank_lines": info.blank_lines,
        "counts": dict(summary.counts),
        "first_reasons": summary.reasons,
        "repeated_ids": summary.repeated_ids,
        "unused_text_fields": dict(summary.unused),
        "bank": {"pairs": bank_size(folder), "of_scored": scored, "seed": settings["scorer"]["seed"]},
        "throughput": {
            "seconds": round(seconds, 3),
            "pairs_per_second": round(fresh / seconds, 3),
            "tokens_per_second": round(totals.tokens / seconds, 1),
            "tokens": totals.tokens,
            "shared_tokens": totals.shared_tokens,
            "resumed": totals.earlier > 0,
            "pairs_from_earlier_runs": totals.earlier,
        },
        "settings": dict(settings),
        "versions": versions(),
        "backend": backend_report(),
    }
