"""Time every op against bare matrix products of the same shape and against the peers that run on a CPU.

    python -m bench.kernels -o bench/results/kernels.json
    python -m bench.kernels --op info_nce sigmoid_loss --size small medium
    python -m bench.tables bench/results/kernels.json           # the same tables as markdown

A row is one op at one size in one dtype. Its contenders take turns, round after round, and ratios are taken within the
row. Contenders are the floors (torch.mm into preallocated buffers, whole or in chunks, whichever is faster), eager
torch, torch.compile, the installed peers (see bench/peers.py) and ours. Peak memory is measured in a fresh process,
beyond inputs and gradients. A missing or failing contender is recorded with the reason.

Each case in bench/cases/ declares its shapes, floors, contenders and claimed ratios. All contenders of a row must
compute the same value and the same gradient norms. A contender that differs from eager torch is listed; if one of ours
differs or fails, the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from . import peers, tables
from .cases import CASES, SIZES, Absent, Case, Row
from .measure import interleaved, machine, ratio, summary
from .peak_memory import PeakMemory

MIN_SECONDS = 1.0  # of measurement per row, so small shapes get more rounds
AGREEMENT = {"float32": 2e-3, "bfloat16": 5e-2}  # relative tolerance; peers round losses to bfloat16


def fastest(ways: list[Callable[[], Any]]) -> Callable[[], Any]:
    """Run every variant once, then return the one with the best of two timed runs."""
    for way in ways:
        way()
    if len(ways) == 1:
        return ways[0]
    samples = interleaved({str(place): way for place, way in enumerate(ways)}, 2)
    return ways[min(range(len(ways)), key=lambda place: min(samples[str(place)]))]


def warm_up(row: Row) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Run every contender once.

    Returns:
        The value of each contender and, if it trains, the gradient norm of every leaf; and the reason why each of the
        other contenders does not run.
    """
    computed: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    for name, contender in row.contenders.items():
        for leaf in row.leaves:
            leaf.grad = None
        try:
            computed[name] = [float(contender.run())]
        except Absent as absent:
            missing[name] = str(absent)
        except Exception as error:  # a peer may raise anything; the others are still measured
            missing[name] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        else:
            computed[name] += [float(leaf.grad.float().norm()) for leaf in row.leaves if leaf.grad is not None]
    return computed, missing


def measure(case: Case, size: str, dtype: str, rounds: int, peak_memory: PeakMemory) -> dict[str, Any]:
    """Measure one row: times, computed values, peak memory and claims."""
    torch.compiler.reset()
    shape = case.shapes[size]
    row = case.row(dtype, shape)
    floors = {name: fastest(ways) for name, ways in row.floors.items()}
    computed, missing = warm_up(row)
    samples = interleaved({**floors, **{name: row.contenders[name].run for name in computed}}, rounds, MIN_SECONDS)
    times = summary(samples)
    contenders: dict[str, dict[str, Any]] = {}
    for name, contender in row.contenders.items():
        contenders[name] = {"phase": contender.phase}
        if name in missing:
            contenders[name] |= {"median_s": None, "missing": missing[name]}
        else:
            contenders[name] |= {**times[name], "computed": computed[name]}
    result = {
        "case": case.name,
        "family": case.family,
        "size": size,
        "shape": dict(shape),
        "dtype": dtype,
        "bytes_read": row.bytes_read,
        "floors": {name: times[name] for name in floors},
        "contenders": contenders,
        "differing": differing(row, computed, AGREEMENT[dtype]),
    }
    for name in computed:
        contenders[name]["peak_mb"] = peak_memory.of(case.name, dtype, shape, name)
    result["claims"] = claims(case, dtype, samples, contenders)
    return result


def differing(row: Row, computed: Mapping[str, list[float]], tolerance: float) -> list[str]:
    """Return the contenders whose value or gradients differ from eager torch's."""
    expected = {row.contenders[name].phase: computed[name] for name in ("eager_forward", "eager") if name in computed}
    out = []
    for name, numbers in computed.items():
        wanted = expected.get(row.contenders[name].phase) or expected.get("forward+backward", [])[:1]
        same = len(numbers) == len(wanted) and all(
            abs(got - want) <= tolerance * abs(want) for got, want in zip(numbers, wanted, strict=True)
        )
        if not same:
            out.append(name)
    return out


def claims(case: Case, dtype: str, samples: dict[str, list[float]], contenders: Mapping[str, Any]) -> list[Any]:
    """Return each claim with its measured ratio; without one if a contender is missing."""
    out = []
    for claim in case.claims:
        got: dict[str, float] = {}
        if claim.quantity == "memory":
            mine, other = (contenders[name].get("peak_mb") for name in (claim.contender, claim.against))
            if mine is not None and other:
                got = {"ratio": mine / other}
        elif claim.contender in samples and claim.against in samples:
            ratios = ratio(samples, claim.contender, claim.against)
            got = {"ratio": ratios["paired_median"], **ratios}
        limit = claim.limit_for(dtype)
        out.append(
            {
                "contender": claim.contender,
                "against": claim.against,
                "quantity": claim.quantity,
                "limit": limit,
                "met": got["ratio"] <= limit if got and limit is not None else None,
                **got,
            }
        )
    return out


def progress(row: Mapping[str, Any]) -> str:
    """Describe a finished row in one line."""
    shape = " ".join(f"{name}={size}" for name, size in row["shape"].items())
    parts = []
    for claim in row["claims"]:
        what = f"{claim['contender']}/{claim['against']}{' memory' if claim['quantity'] == 'memory' else ''}"
        got = f"{claim['ratio']:.3f}" if "ratio" in claim else "missing"
        parts.append(f"{what} {got}" + ("" if claim["limit"] is None else f" (limit {claim['limit']:.2f})"))
    if row["differing"]:
        parts.append(f"DIFFERS FROM EAGER: {', '.join(row['differing'])}")
    parts += [f"{n}: {c['missing']}" for n, c in row["contenders"].items() if c.get("missing", "").startswith("failed")]
    return f"{row['case']} {row['size']} {row['dtype']} {shape}: " + "; ".join(parts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        help="JSON file for all results, including raw samples; rows of earlier runs are kept",
    )
    parser.add_argument(
        "--op", nargs="+", choices=list(CASES), metavar="OP", help=f"measure only these ops: {', '.join(CASES)}"
    )
    parser.add_argument(
        "--size", nargs="+", choices=[*SIZES, "all"], default=["all"], help="measure only these sizes (default: all)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="minimum number of rounds (default 3; small shapes get more)"
    )
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    sizes = SIZES if "all" in chosen.size else [size for size in SIZES if size in chosen.size]
    cases = [case for name, case in CASES.items() if not chosen.op or name in chosen.op]
    todo = [(case, size, dtype) for case in cases for size in sizes for dtype in case.dtypes(size)]
    this = machine()
    report: dict[str, Any] = {"machine": this, "peers": peers.versions(), "rows": []}
    if chosen.out and chosen.out.exists():
        report["rows"] = json.loads(chosen.out.read_text())["rows"]
    measured: list[dict[str, Any]] = []
    begin = time.perf_counter()
    with PeakMemory() as peak_memory:
        for case, size, dtype in todo:
            row = {"commit": this["commit"], **measure(case, size, dtype, chosen.rounds, peak_memory)}
            measured.append(row)
            report["rows"] = merged(report["rows"], row)
            minutes = (time.perf_counter() - begin) / 60
            print(f"[{len(measured)}/{len(todo)} {minutes:.1f} min] {progress(row)}", file=sys.stderr, flush=True)
            if chosen.out:  # after every row, so an interrupted run keeps its results
                chosen.out.parent.mkdir(parents=True, exist_ok=True)
                chosen.out.write_text(json.dumps(report, indent=1) + "\n")
    print(tables.plain(report))
    return 1 if any(wrong(row) for row in measured) else 0


def merged(rows: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Replace the row with the same case, size and dtype, or append the new one."""

    def key(row: Mapping[str, Any]) -> tuple[str, str, str]:
        return row["case"], row["size"], row["dtype"]

    if any(key(row) == key(new) for row in rows):
        return [new if key(row) == key(new) else row for row in rows]
    return [*rows, new]


def wrong(row: Mapping[str, Any]) -> bool:
    """Return True if one of ours failed or differs from eager torch."""
    failed = [name for name, c in row["contenders"].items() if c.get("missing", "").startswith("failed")]
    return any(name.startswith(tables.OURS) for name in [*failed, *row["differing"]])


if __name__ == "__main__":
    sys.exit(main())
