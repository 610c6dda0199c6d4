"""score_windows: run the model over pairs, one sort window at a time, and append the results to a journal.

Windows and micro-batches depend on the pairs and the settings alone. A journal that an earlier run left is therefore
continued where it ends, and the finished journal has the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from ..data.pairs import Pair
from ..errors import UserError
from .results import RecordLog, result_record, window_record
from .runner import Runner


class Finished(NamedTuple):
    """Pairs that are finished: `tokens` is 0 unless the model ran; `is_earlier` if an earlier run finished them."""

    pairs: int
    tokens: int = 0
    is_earlier: bool = False


def score_windows(runner: Runner, pairs: Iterable[Pair], sort_window: int, journal: RecordLog) -> Iterator[Finished]:
    """Append the windows of `pairs` to `journal`, and yield after each step how many pairs it finished.

    Args:
        runner: prepares the windows and runs their micro-batches.
        pairs: the pairs in input order.
        sort_window: pairs that are sorted by length together.
        journal: empty, or with the first records of the same job.

    Raises:
        UserError: a window now has another number of micro-batches than the journal says.
    """
    expected: dict[int, int] = {}  # micro-batches of each window in the journal
    done: dict[int, int] = {}  # those that have a result
    for header in journal.headers():
        if header["kind"] == "window":
            expected[header["window"]], done[header["window"]] = header["micro_batches"], 0
        else:
            done[header["window"]] += 1
    iterator, index = iter(pairs), 0
    while chunk := list(islice(iterator, sort_window)):
        if index in expected and done[index] == expected[index]:
            yield Finished(len(chunk), is_earlier=True)
        else:
            yield from _score_window(runner, index, chunk, journal, expected.get(index), done.get(index, 0))
        index += 1


def _score_window(
    runner: Runner, index: int, pairs: list[Pair], journal: RecordLog, expected: int | None, done: int
) -> Iterator[Finished]:
    window = runner.prepare(pairs)
    batches = window.micro_batches
    if expected is None:
        journal.append(*window_record(index, window))
    elif expected != len(batches):
        raise UserError(
            f"window {index} of the unfinished job had {expected} micro-batches and now has {len(batches)}: a library "
            "changed since. Start over with --restart."
        )
    yield Finished(len(pairs) - sum(len(batch.rows) for batch in batches))  # rows that need no model
    for number, batch in enumerate(batches):
        if number < done:
            yield Finished(len(batch.rows), is_earlier=True)
            continue
        journal.append(*result_record(index, runner.run(window, batch)))
        yield Finished(len(batch.rows), batch.tokens)
