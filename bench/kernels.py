"""Time every op against bare matrix products of the same shape and against the peers that run here.

    python -m bench kernels -o bench/results/kernels.json
    python -m bench kernels --op info_nce sigmoid_loss --size small medium
    python -m bench kernels --size smollm2                   # the head of SmolLM2, on drawn and on real hidden states
    python -m bench kernels --sweep -o bench/results/kernels.json  # five sizes of each dimension, for the scaling

A row is one op at one size in one dtype. Its runs take turns, round after round, and ratios are taken within the row.
Runs are the floors (torch.mm into preallocated buffers, whole or in chunks, whichever is faster), eager torch,
torch.compile, the installed peers (`python -m bench peers`), ours, and ours a second time: a difference smaller than
that of the same code is none. Peak memory is measured in a fresh process, beyond inputs and gradients. A missing or
failing run is recorded with the reason.

Each case in bench/cases/ declares its shapes, floors, runs and targets. All runs of a row must compute the same value,
the same gradient norms and the same random projections of the gradients. A run that differs from eager torch is listed;
if one of ours differs or fails, the exit status is 1. The files' format is in bench/records.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import peers
from .cases import CASES, DEFAULT_SIZES, DTYPES, SIZES, Case, Row
from .command import command_parser
from .measure import fastest, interleaved, machine
from .peak_memory import PeakMemory
from .records import rounded
from .session import add_options, attempt, measure_rows, wrong

MIN_SECONDS = 1.0  # of measurement per row, so small shapes get more rounds
MIN_ROUNDS = 5
SWEPT = ("ours", "eager", "torch_compile")
"""The contenders of a sweep."""
PROBED_ROWS = 64
"""Rows of a gradient that are projected on random numbers: a gradient with another sign has the same norm."""
AGREEMENT = {"float32": 2e-3, "bfloat16": 5e-2}  # relative tolerance; peers round losses to bfloat16


class Measurement(NamedTuple):
    """One row to measure. The size of a sweep is its dimension, as in "n=512"; `only` keeps just these contenders."""

    case: Case
    size: str
    shape: Mapping[str, int]
    dtype: str
    inputs: str
    only: tuple[str, ...] | None = None


def warm_up(row: Row) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Run every contender once.

    Returns:
        The value of each contender and, if it trains, two numbers for the gradient of every leaf: its norm, and a
        projection. And the reason why each of the other contenders does not run.
    """
    computed: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    for name, contender in row.contenders.items():
        for leaf in row.leaves:
            leaf.grad = None
        value, why = attempt(lambda run=contender.run: float(run()))
        if value is None:
            missing[name] = why
        else:
            gradients = [leaf.grad for leaf in row.leaves if leaf.grad is not None]
            computed[name] = [value, *(number for gradient in gradients for number in _summary(gradient))]
    return computed, missing


def _summary(gradient: Tensor) -> tuple[float, float]:
    """Return the norm of a gradient and the projection of its first rows on random numbers, the same every time."""
    rows = gradient.reshape(-1, gradient.shape[-1] if gradient.dim() else 1)[:PROBED_ROWS].float().cpu()
    random = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return float(gradient.float().norm()), float((rows * random).sum())


def measure(what: Measurement, rounds: int, peak_memory: PeakMemory) -> dict[str, Any]:
    """Measure one row.

    Args:
        what: the row.
        rounds: minimum number of rounds.
        peak_memory: the process that measures memory.

    Returns:
        A row of bench/records.py.
    """
    torch.compiler.reset()
    row = what.case.row(what.dtype, what.shape, what.inputs)
    if what.only:
        row.contenders = {name: contender for name, contender in row.contenders.items() if name in what.only}
    floors = {name: fastest(ways) for name, ways in row.floors.items()}
    computed, missing = warm_up(row)
    first = next((name for name in computed if name.startswith("ours")), None)
    again = {f"{first}_again": row.contenders[first].run} if first else {}
    samples = interleaved(
        {**floors, **{name: row.contenders[name].run for name in computed}, **again}, rounds, MIN_SECONDS
    )
    runs: dict[str, dict[str, Any]] = {name: {"role": "floor", "phase": "floor"} for name in floors}
    for name, contender in row.contenders.items():
        runs[name] = {"role": "ours" if name.startswith("ours") else "peer", "phase": contender.phase}
        if name in missing:
            runs[name]["missing"] = missing[name]
        else:
            runs[name] |= {
                "computed": computed[name],
                "peak_mb": peak_memory.of(what.case.name, what.dtype, what.shape, what.inputs, name),
            }
    if first:
        runs[f"{first}_again"] = {"role": "again", "phase": row.contenders[first].phase}
    for name, taken in samples.items():
        runs[name]["samples_s"] = rounded(taken)
    return {
        "suite": "kernels",
        "case": what.case.name,
        "family": what.case.family,
        "size": what.size,
        "shape": dict(what.shape),
        "dtype": what.dtype,
        "inputs": what.inputs,
        "machine": {**machine(), "peers": peers.versions()},
        "runs": runs,
        "targets": [target.in_row(what.dtype) for target in what.case.targets],
        "differing": differing(row, computed, AGREEMENT[what.dtype]),
        "facts": {"bytes_read": row.bytes_read} if row.bytes_read else {},
    }


def differing(row: Row, computed: Mapping[str, list[float]], tolerance: float) -> list[str]:
    """Return the contenders whose value or gradients differ from eager torch's."""
    expected = {row.contenders[name].phase: computed[name] for name in ("eager_forward", "eager") if name in computed}
    out = []
    for name, numbers in computed.items():
        wanted = expected.get(row.contenders[name].phase) or expected.get("forward+backward", [])[:1]
        scales = [*wanted[:1], *(norm for norm in wanted[1::2] for _ in range(2))]  # of a projection: the norm
        same = len(numbers) == len(wanted) and all(
            abs(got - want) <= tolerance * abs(scale) for got, want, scale in zip(numbers, wanted, scales, strict=True)
        )
        if not same:
            out.append(name)
    return out


def chosen_rows(cases: Sequence[Case], sizes: Sequence[str], dtypes: Sequence[str] | None) -> Iterator[Measurement]:
    """Yield the rows of cases at named sizes; each case measures some dtypes unless others are asked for."""
    for size in sizes:
        for case in cases:
            if size not in case.shapes:
                continue
            for dtype in dtypes or case.dtypes(size):
                for inputs in case.inputs(size):
                    yield Measurement(case, size, case.shapes[size], dtype, inputs)


def sweeps(cases: Sequence[Case], dtypes: Sequence[str] | None) -> Iterator[Measurement]:
    """Yield the rows of the sweeps of cases."""
    for case in cases:
        for dimension, sweep in case.sweeps.items():
            for size in sweep.sizes:
                for dtype in dtypes or ("float32",):
                    shape = {**sweep.shape, dimension: size}
                    yield Measurement(case, f"{dimension}={size}", shape, dtype, "random", SWEPT)


def options() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = command_parser("kernels", __doc__)
    parser.add_argument("--op", nargs="+", choices=list(CASES), metavar="OP", help=f"only these: {', '.join(CASES)}")
    parser.add_argument(
        "--size",
        nargs="+",
        choices=SIZES,
        default=DEFAULT_SIZES,
        help=f"only these of {', '.join(SIZES)} (default: {' '.join(DEFAULT_SIZES)}); the last are heads of models",
    )
    parser.add_argument("--sweep", action="store_true", help="five sizes of each dimension instead")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        help="only these (default: bfloat16 at large sizes only, on a CPU with instructions for it)",
    )
    add_options(parser, rounds=MIN_ROUNDS, rounds_help="minimum number of rounds, of which small shapes get more")
    return parser


def main(words: list[str] | None = None) -> int:
    from .report.tables import plain

    parser = options()
    chosen = parser.parse_args(words)
    cases = [case for name, case in CASES.items() if not chosen.op or name in chosen.op]
    todo = list(sweeps(cases, chosen.dtype) if chosen.sweep else chosen_rows(cases, chosen.size, chosen.dtype))
    if not todo:
        parser.error(f"none of these ops has {'a sweep' if chosen.sweep else 'one of these sizes'}")
    with PeakMemory() as peak_memory:
        done = measure_rows(todo, lambda what: measure(what, chosen.rounds, peak_memory), chosen.out, chosen.minutes)
    print(plain(done))
    return 1 if any(wrong(row) for row in done) else 0
