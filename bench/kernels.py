"""Every op against bare matrix products of the same shape and against the peers that run on a CPU.

    python -m bench.kernels -o bench/results/kernels.json
    python -m bench.kernels --op info_nce sigmoid_loss --size small medium
    python -m bench.tables bench/results/kernels.json           # the same tables as markdown

A row is one op at one size in one dtype. Everything in it is timed in turn, round after round, and ratios are taken
within the row: the floors (torch.mm into buffers made beforehand, whole or in chunks, whichever is faster), eager
torch, torch.compile, the peers that are installed (bench/peers.py says how) and ours. Peak memory is that of a fresh
process, over the inputs and the gradients. A contender that is missing, or fails, is written down with its reason.

What the ratios mean is in bench/cases/: each case declares its shapes, floors and contenders, and the ratio that it
claims. Everything in a row must compute the same value and gradients (their norms): who differs from eager torch is
named, and where one of ours differs or fails the exit status is 1.
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
from .peak_memory import Peaks

SECONDS = 1.0  # of rounds at least: small shapes get more of them
AGREEMENT = {"float32": 2e-3, "bfloat16": 5e-2}  # relative; peers round losses to bfloat16


def fastest(ways: list[Callable[[], Any]]) -> Callable[[], Any]:
    """Warms all of them up; the best of two runs each decides."""
    for way in ways:
        way()
    if len(ways) == 1:
        return ways[0]
    samples = interleaved({str(place): way for place, way in enumerate(ways)}, 2)
    return ways[min(range(len(ways)), key=lambda place: min(samples[str(place)]))]


def warm_up(row: Row) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the value of each contender that runs, with its gradient norms, and the reasons why others do not run."""
    computed: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    for name, contender in row.contenders.items():
        for leaf in row.leaves:
            leaf.grad = None
        try:
            computed[name] = [float(contender.run())]
        except Absent as absent:
            missing[name] = str(absent)
        except Exception as error:  # a peer may fail in any way: the others are measured all the same
            missing[name] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        else:
            computed[name] += [float(leaf.grad.float().norm()) for leaf in row.leaves if leaf.grad is not None]
    return computed, missing


def measure(case: Case, size: str, dtype: str, rounds: int, peaks: Peaks) -> dict[str, Any]:
    torch.compiler.reset()
    shape = case.shapes[size]
    row = case.row(dtype, shape)
    floors = {name: fastest(ways) for name, ways in row.floors.items()}
    computed, missing = warm_up(row)
    samples = interleaved({**floors, **{name: row.contenders[name].run for name in computed}}, rounds, SECONDS)
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
        contenders[name]["peak_mb"] = peaks.of(case.name, dtype, shape, name)
    result["claims"] = claims(case, dtype, samples, contenders)
    return result


def differing(row: Row, computed: Mapping[str, list[float]], tolerance: float) -> list[str]:
    """The contenders that do not compute what eager torch does."""
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
    """Each claim with the ratio that was measured; none where the op is missing."""
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
    """The row in one line, as it finishes."""
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
        help="write everything, raw samples included, as JSON here; rows of an earlier run are kept",
    )
    parser.add_argument("--op", nargs="+", choices=list(CASES), metavar="OP", help=f"only these: {', '.join(CASES)}")
    parser.add_argument("--size", nargs="+", choices=[*SIZES, "all"], default=["all"], help="default: all")
    parser.add_argument(
        "--rounds", type=int, default=3, help="measured rounds at least (default 3, more at small shapes)"
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
    with Peaks() as peaks:
        for case, size, dtype in todo:
            row = {"commit": this["commit"], **measure(case, size, dtype, chosen.rounds, peaks)}
            measured.append(row)
            report["rows"] = merged(report["rows"], row)
            minutes = (time.perf_counter() - begin) / 60
            print(f"[{len(measured)}/{len(todo)} {minutes:.1f} min] {progress(row)}", file=sys.stderr, flush=True)
            if chosen.out:  # after every row: a run cut short keeps what it measured
                chosen.out.parent.mkdir(parents=True, exist_ok=True)
                chosen.out.write_text(json.dumps(report, indent=1) + "\n")
    print(tables.plain(report))
    return 1 if any(wrong(row) for row in measured) else 0


def merged(rows: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with this one in the place of an earlier one of its case, size and dtype, or at the end."""

    def key(row: Mapping[str, Any]) -> tuple[str, str, str]:
        return row["case"], row["size"], row["dtype"]

    if any(key(row) == key(new) for row in rows):
        return [new if key(row) == key(new) else row for row in rows]
    return [*rows, new]


def wrong(row: Mapping[str, Any]) -> bool:
    """Return True if one of our contenders failed or differs from eager torch."""
    failed = [name for name, c in row["contenders"].items() if c.get("missing", "").startswith("failed")]
    return any(name.startswith(tables.OURS) for name in [*failed, *row["differing"]])


if __name__ == "__main__":
    sys.exit(main())
