"""measure_rows: measure the rows of a suite one after another, within a time, and keep each as soon as it is done."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .command import at_least_one, output_file
from .peers import Absent
from .ratios import ratio_of, verdict_of
from .records import Row, merged, read_rows, shape_text, write_rows

What = TypeVar("What")
Result = TypeVar("Result")


def add_options(parser: argparse.ArgumentParser, *, rounds: int, rounds_help: str = "number of rounds") -> None:
    """Add the options of `measure_rows`, and --rounds.

    Args:
        parser: the parser of a suite.
        rounds: the default number of rounds.
        rounds_help: what a number of rounds means.
    """
    parser.add_argument(
        "-o", "--out", type=output_file, help="file of rows; rows of the same key are replaced, others kept"
    )
    parser.add_argument("--rounds", type=at_least_one, default=rounds, help=f"{rounds_help} (default {rounds})")
    parser.add_argument("--minutes", type=float, help="begin no row after this time")


def measure_rows(
    todo: Sequence[What], measure: Callable[[What], Row], out: Path | None, minutes: float | None
) -> list[Row]:
    """Measure rows and report on stderr. An interrupted run keeps the finished ones.

    Args:
        todo: what to measure, in order.
        measure: measures one of them and returns a row of bench/records.py.
        out: a file of rows, written after every row.
        minutes: begin no row after this time. None: no limit.

    Returns:
        The rows that were measured.
    """
    kept = read_rows(out) if out else []
    done: list[Row] = []
    begin = time.perf_counter()
    for what in todo:
        if minutes is not None and time.perf_counter() - begin >= 60 * minutes:
            print(f"out of time: {len(todo) - len(done)} rows are not measured", file=sys.stderr)
            break
        row = measure(what)
        done.append(row)
        left = (time.perf_counter() - begin) / 60 / len(done) * (len(todo) - len(done))
        print(f"[{len(done)}/{len(todo)}, {left:.0f} min left] {progress(row)}", file=sys.stderr, flush=True)
        if out:
            kept = merged(kept, row)
            write_rows(out, kept)
    return done


def progress(row: Mapping[str, Any]) -> str:
    """Describe a finished row in one line."""
    parts = []
    for target in row["targets"]:
        what = f"{target['run']}/{target['against']}{' memory' if target['quantity'] == 'memory' else ''}"
        got = ratio_of(row, target["run"], target["against"], target["quantity"])
        verdict = verdict_of(row, target)
        parts.append(f"{what} {'missing' if got is None else f'{got.median:.3f}'}{f' ({verdict})' if verdict else ''}")
    if row["differing"]:
        parts.append(f"DIFFERS FROM EAGER: {', '.join(row['differing'])}")
    parts += [f"{n}: {run['missing']}" for n, run in row["runs"].items() if run.get("missing", "").startswith("failed")]
    return f"{row['case']} {row['size']} {row['dtype']} {row['inputs']} {shape_text(row)}: " + "; ".join(parts)


def wrong(row: Mapping[str, Any]) -> bool:
    """Return True if one of ours failed or differs from eager torch."""
    failed = [name for name, run in row["runs"].items() if run.get("missing", "").startswith("failed")]
    return any(name.startswith("ours") for name in [*failed, *row["differing"]])


def attempt(run: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """Run a contender; a peer may raise anything, and the others are still measured.

    Returns:
        Its result and None, or None and the reason why it does not run.
    """
    try:
        return run(), None
    except Absent as absent:
        return None, str(absent)
    except Exception as error:
        return None, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
