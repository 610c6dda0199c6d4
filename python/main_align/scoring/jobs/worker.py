"""JobWorker: the tasks of a job, run in one process with one model.

A job has three stages. First the pairs of the bank are measured, in bank units. Then the bank is made, and all these
pairs are scored against it. Then each unit runs the model over its other pairs and becomes one part of the output.
Embeddings of the bank's pairs are stored until the bank exists; those of other pairs are never stored.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...data.atomic import sync_folder
from ...data.fields import Fields, Notes
from ...data.journal import Journal, read_records
from ...data.pairs import Pair
from ...data.sources.source import Source
from ...errors import UserError
from ..bank import Bank, BankScores, PairStates
from ..batching import MicroBatch, SortWindow
from ..prefetch import Prefetch
from ..results import Likelihoods, MicroBatchResult, join_results
from ..rows import score_rows
from ..runner import Runner
from .folder import JobFolder, intact
from .part import PartNotes, write_part
from .plan import JobPlan
from .reader import PairReader

JOURNAL_PAIRS = 64
"""pairs whose results are appended to a journal together; a kill loses no more"""

SCORES = len(BankScores._fields)
VALUES = 7 + SCORES
"""numbers that are stored of a pair: those of Likelihoods and of BankScores"""

Arrays = dict[str, NDArray[Any]]


class Finished(NamedTuple):
    """Pairs that are finished: tokens are 0 unless the model ran; `is_earlier` if an earlier run finished them."""

    pairs: int
    tokens: int = 0
    shared_tokens: int = 0
    is_earlier: bool = False


class Task(NamedTuple):
    """A piece of work: "measure" a bank unit, make the "bank", or "score" a unit; `number` is the unit's."""

    kind: Literal["measure", "bank", "score"]
    number: int = 0


class Unit(NamedTuple):
    """The pairs of a unit before the model runs.

    Attributes:
        pairs: the pairs as they were read.
        notes: observations made while they were read.
        window: the pairs tokenised, in micro-batches.
    """

    pairs: list[Pair]
    notes: Notes
    window: SortWindow


class Stored(NamedTuple):
    """The numbers of k pairs as they are stored.

    Attributes:
        rows: int64[k], numbers of the pairs: in the unit, or in the whole input for candidates of the bank.
        values: float64[k, 9]: the columns of Likelihoods, then those of BankScores; without the latter [k, 7].
        failures: status and reason of each pair that the model could not score, by its number.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float64]
    failures: dict[int, tuple[str, str]]


NOTHING = Stored(np.zeros(0, np.int64), np.zeros((0, VALUES - SCORES)), {})


class JobWorker:
    """Run the tasks of a job.

    Args:
        runner: the scorer.
        source: the input.
        fields: field names that override the recognised record formats.
        plan: the units.
        folder: the folder of the job.
    """

    def __init__(self, runner: Runner, source: Source, fields: Fields, plan: JobPlan, folder: JobFolder) -> None:
        self.runner, self.plan, self.folder = runner, plan, folder
        self._reader = PairReader(source, fields)
        self._ahead: dict[Task, Prefetch[Unit]] = {}

    def run(self, task: Task, report: Callable[[Finished], None], following: Task | None = None) -> None:
        """Run a task, unless its result is there already.

        Args:
            task: the task. A unit is scored after the bank is made, and the bank after all bank units are measured.
            report: called whenever pairs are finished; over all tasks, every row of the input is reported once.
            following: a task that may come next: its pairs are read and tokenised while a GPU works. Default: none.

        Raises:
            UserError: the input or the libraries changed since an earlier run, or the disk is full.
        """
        prefetch = self._ahead.pop(task, None)
        self._ahead.clear()
        if following is not None and not self._is_finished(following):
            self._ahead[following] = Prefetch(self._prepared(following))
        if task.kind == "bank":
            self._make_bank()
            return
        rows, skip = self._rows(task)
        if self._is_finished(task):
            report(Finished(len(rows) - len(skip), is_earlier=True))
            return
        unit = (prefetch or Prefetch(self._prepared(task))).result()
        report(Finished(len(rows) - len(skip) - sum(len(batch.rows) for batch in unit.window.micro_batches)))
        if task.kind == "measure":
            self._measure(task.number, unit.window, report)
        else:
            self._score(task.number, unit, report)

    def _rows(self, task: Task) -> tuple[Sequence[int], list[int]]:
        """Return the rows of a unit, and the positions of those that need no forward pass."""
        if task.kind == "measure":
            return self.plan.bank_units[task.number].tolist(), []
        rows = self.plan.units[task.number]
        return rows, self.plan.candidates_in(rows)

    def _is_finished(self, task: Task) -> bool:
        if task.kind == "score":
            return self.folder.part(task.number).exists()
        measured = task.kind == "measure" and self.folder.measured_unit(task.number).exists()
        return measured or self.folder.candidates.exists()

    def _prepared(self, task: Task) -> Generator[None, None, Unit]:
        """Read and tokenise a unit, in steps."""
        rows, skip = self._rows(task)
        notes = Notes()
        pairs = self._reader.read(rows, notes)
        yield
        return Unit(pairs, notes, (yield from self.runner.prepare_in_steps(pairs, frozenset(skip))))

    def _measure(self, index: int, window: SortWindow, report: Callable[[Finished], None]) -> None:
        def arrays(result: MicroBatchResult) -> Arrays:
            texts = {name: getattr(window, name)[result.rows] for name in ("text_x", "text_y")}
            values = np.column_stack(result.likelihoods)
            return {"values": values, "embed_x": result.embed_x, "embed_y": result.embed_y, **texts}

        journal, done = self.folder.measured_journal(index), self.folder.measured_unit(index)
        with Journal(journal) as log:
            self._run(window, log, arrays, report)
        os.replace(journal, done)
        sync_folder(done.parent)

    def _make_bank(self) -> None:
        folder = self.folder
        if folder.candidates.exists():
            return
        stored, states = self._measured()
        values = np.hstack([stored.values, np.full((len(stored.rows), SCORES), np.nan)])
        is_scored = ~np.isin(stored.rows, list(stored.failures))
        if states is not None and is_scored.any():
            in_order = self.plan.candidates[np.isin(self.plan.candidates, stored.rows[is_scored])]
            members = np.isin(stored.rows, in_order[: self.plan.bank])
            bank = Bank.of_states(_chosen(states, members), self.runner.fingerprint, self.runner.device)
            with folder.finished(folder.bank) as path:
                bank.save(path)
            values[is_scored, -SCORES:] = np.column_stack(bank.score(_chosen(states, is_scored)))
        with folder.finished(folder.candidates) as path:
            path.unlink(missing_ok=True)
            with Journal(path) as log:
                log.append(_header(stored.rows, stored.failures), {"values": values})
        if folder.is_whole:
            shutil.rmtree(folder.measured)

    def _measured(self) -> tuple[Stored, PairStates | None]:
        """Return the results of all candidates that the model ran, in ascending order, and their states, if any."""
        parts, states = [NOTHING], []
        for index, numbers in enumerate(self.plan.bank_units):
            for header, arrays in read_records(self.folder.measured_unit(index)):
                stored = _stored(header, arrays)
                failures = {int(numbers[row]): found for row, found in stored.failures.items()}
                parts.append(Stored(numbers[stored.rows], stored.values, failures))
                states.append(PairStates(*(arrays[name] for name in PairStates._fields)))
        together = _joined(parts)
        order = np.argsort(together.rows)
        stored = Stored(together.rows[order], together.values[order], together.failures)
        if not states:
            return stored, None
        return stored, PairStates(*(np.concatenate(arrays)[order] for arrays in zip(*states, strict=True)))

    def _score(self, index: int, unit: Unit, report: Callable[[Finished], None]) -> None:
        pairs, notes, window = unit
        journal = self.folder.part_journal(index)
        with Journal(journal) as log:
            self._run(window, log, lambda result: self._scored(window, result), report)
            stored = _joined([self._known(self.plan.units[index]), *(_stored(*record) for record in log.records())])
        numbered = [number for number, pair in enumerate(pairs) if not pair.own_id]
        with self.folder.finished(self.folder.part(index)) as own:
            write_part(own, _rows(window, stored), PartNotes(dict(notes.unused), numbered))
        journal.unlink()

    def _scored(self, window: SortWindow, result: MicroBatchResult) -> Arrays:
        """Return the arrays that are stored of a result, without the scores of pairs that the model refused."""
        scores = BankScores.empty(len(result.rows))
        good = ~np.isin(result.rows, list(result.status))
        if self._bank is not None and good.any():
            rows = result.rows[good]
            states = PairStates(result.embed_x[good], result.embed_y[good], window.text_x[rows], window.text_y[rows])
            for values, found in zip(scores, self._bank.score(states), strict=True):
                values[good] = found
        return {"values": np.column_stack([*result.likelihoods, *scores])}

    def _run(
        self,
        window: SortWindow,
        log: Journal,
        arrays: Callable[[MicroBatchResult], Arrays],
        report: Callable[[Finished], None],
    ) -> None:
        """Run the micro-batches of a window that the journal does not hold, and append their results."""
        earlier = [header["rows"] for header in log.headers()]
        groups = list(_together(window.micro_batches))
        waiting = [batch for group in groups[len(earlier) :] for batch in group]
        results = self.runner.run(window, waiting, self._step_ahead)
        for number, batches in enumerate(groups):
            rows = [row for batch in batches for row in batch.rows]
            if number < len(earlier):
                if earlier[number] != rows:
                    raise UserError(
                        f"{log.path}: the unfinished job made other micro-batches of these pairs: a library changed "
                        "since. Start over with --restart."
                    )
                report(Finished(len(rows), is_earlier=True))
                continue
            result = join_results(list(islice(results, len(batches))))
            failures = {row: (status, result.reason[row]) for row, status in result.status.items()}
            log.append(_header(result.rows, failures), arrays(result))
            tokens, shared = (
                sum(counts) for counts in zip(*((b.tokens, b.shared_tokens) for b in batches), strict=True)
            )
            report(Finished(len(rows), tokens, shared))

    def _step_ahead(self) -> bool:
        return any(prefetch.step() for prefetch in self._ahead.values())

    @cached_property
    def _bank(self) -> Bank | None:
        if self.folder.bank.exists():
            return Bank.load(self.folder.bank, self.runner.device)
        if np.isfinite(self._candidates.values).any():
            raise UserError(f"{self.folder.bank} was made and is gone; put it back, or start over with --restart")
        return None  # no candidate could be scored

    @cached_property
    def _candidates(self) -> Stored:
        with intact(self.folder.candidates):
            ((header, arrays),) = read_records(self.folder.candidates)
            return _stored(header, arrays)

    def _known(self, rows: range) -> Stored:
        """Return what is stored of the candidates in a unit, by their position in it."""
        stored = self._candidates
        start, stop = np.searchsorted(stored.rows, (rows.start, rows.stop))
        chosen = stored.rows[start:stop] - rows.start
        failures = {row - rows.start: found for row, found in stored.failures.items() if row in rows}
        return Stored(chosen, stored.values[start:stop], failures)


def _together(batches: Sequence[MicroBatch]) -> Iterator[list[MicroBatch]]:
    """Yield micro-batches in groups of JOURNAL_PAIRS pairs or fewer; a larger micro-batch is a group of its own."""
    group: list[MicroBatch] = []
    pairs = 0
    for batch in batches:
        if group and pairs + len(batch.rows) > JOURNAL_PAIRS:
            yield group
            group, pairs = [], 0
        group.append(batch)
        pairs += len(batch.rows)
    if group:
        yield group


def _header(rows: NDArray[np.int64], failures: Mapping[int, tuple[str, str]]) -> dict[str, Any]:
    return {"rows": rows.tolist(), "failures": [[row, *found] for row, found in failures.items()]}


def _stored(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Stored:
    failures = {row: (status, reason) for row, status, reason in header["failures"]}
    return Stored(np.array(header["rows"], np.int64), arrays["values"], failures)


def _joined(parts: Iterable[Stored]) -> Stored:
    rows, values, failures = zip(*parts, strict=True)
    together = {row: found for part in failures for row, found in part.items()}
    return Stored(np.concatenate(rows), np.concatenate(values), together)


def _chosen(states: PairStates, which: NDArray[np.bool_]) -> PairStates:
    return PairStates(states.embed_x[which], states.embed_y[which], states.text_x[which], states.text_y[which])


def _rows(window: SortWindow, stored: Stored) -> list[dict[str, Any]]:
    """Return the rows of a unit."""
    values = np.full((len(window.pairs), VALUES), np.nan)
    values[stored.rows] = stored.values
    status, reason = list(window.status), list(window.reason)
    for row, (found, why) in stored.failures.items():
        status[row], reason[row] = found, why
    logp, novel, y_end, *scores = np.split(values, (4, 6, 7, 8), axis=1)
    likelihoods = Likelihoods(logp, novel, y_end[:, 0])
    ids = [pair.id for pair in window.pairs]
    return score_rows(ids, status, reason, window.columns(), likelihoods, BankScores(*(one[:, 0] for one in scores)))
