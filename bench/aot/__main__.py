"""Compile every Triton kernel in every configuration that the backend launches, for three architectures, and read
registers, spills, shared memory and matrix instructions from the machine code. Needs no GPU.

    python -m bench aot -o bench/results/aot.json         # every case, over an hour
    python -m bench aot -a 90 -k "reduce rows"            # some, for an H100 (compute capability 9.0)
    python -m bench aot -a 90 -k "chunk score_grad" --renew bench/results/aot.json   # only these rows of the table
    python -m bench aot -a 90 --ttir                      # does this version of Triton accept them? half a minute

The name of a case is `reduce` (forward) or `score_grad` (backward), what is computed, an optional input, and the dtype.
"chunk" precedes the name for kernels over scores in memory, which float32 uses after cuBLAS's products. What is
computed is `rows` for linear_cross_entropy and token_logprobs, `both` for info_nce, `softplus` for sigmoid_loss,
`ranks` for pair_scores; WANTS and UPSTREAM in bench/aot/cases.py list the rest. `divergence` is linear_kl. Each line
has the tile, BLOCK_M x BLOCK_N x BLOCK_K, of the row of main_kernels/backends/triton/configs.py that the launch uses.

The backend's own launchers run on meta tensors, and launching is replaced by compiling, so the binaries are those of a
real launch, with the same specialisation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
from triton.compiler import CompilationError

from ..command import command_parser, output_file
from .cases import chunk_cases, fused_cases
from .compile import MULTIPROCESSORS, compiling, machine_code, translating
from .limits import MATRIX, PERSISTENT, WALKS, faults

ARCHITECTURES = (80, 90, 100)


def measured(cases: Iterator[tuple[str, Callable[[], None]]], architecture: int) -> Iterator[dict[str, Any]]:
    """One row for each kernel that the cases launch, once for each binary."""
    seen = set()
    for name, launch in cases:
        with compiling(architecture) as compiled:
            launch()
        for kernel, tile, binary, programs in compiled:
            if binary.hash in seen:
                continue
            seen.add(binary.hash)
            row = {"architecture": architecture, "kernel": kernel, "tile": tile, "case": name, **machine_code(binary)}
            if kernel in PERSISTENT:
                row["programs_planned"] = -(-programs // MULTIPROCESSORS)
            yield row


def translated(cases: Iterator[tuple[str, Callable[[], None]]], architecture: int) -> tuple[int, list[str]]:
    """Translate the kernels of the cases to TTIR. Return how many cases there are, and the names of those with a kernel
    that this version of Triton refuses, each with the reason."""
    count, refused = 0, []
    with translating():
        for name, launch in cases:
            count += 1
            try:
                with compiling(architecture):
                    launch()
            except CompilationError as error:
                reasons = [error]
                while isinstance(reasons[-1].__cause__, Exception):
                    reasons.append(reasons[-1].__cause__)
                refused.append(f"sm_{architecture} {name}: {reasons[-1]}")
    return count, refused


def _translate_all(cases: Callable[[], Iterator[tuple[str, Callable[[], None]]]], architectures: Sequence[int]) -> int:
    failed = 0
    for architecture in architectures:
        count, refused = translated(cases(), architecture)
        failed += len(refused)
        accepted = f"{count - len(refused)} of {count} cases"
        print(*refused, f"sm_{architecture}: Triton {triton.__version__} translates {accepted}", sep="\n")
    return 1 if failed else 0


def renewed(rows: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a table with the new ones in the places of those of the same architecture, kernel and case. A
    new row without a place is added, unless the table has the same binary with another case. A walk that its case no
    longer launches is dropped."""
    waiting: dict[Any, list[dict[str, Any]]] = {}
    for row in new:
        waiting.setdefault(_place(row), []).append(row)
    walked = {(row["architecture"], row["case"]) for row in new if row["kernel"] in WALKS}
    kept = []
    for row in rows:
        place = _place(row)
        if waiting.get(place):
            kept.append(waiting[place].pop(0))
        elif row["kernel"] not in WALKS or (row["architecture"], row["case"]) not in walked:
            kept.append(row)
    known = {_binary(row) for row in kept}
    return kept + [row for left in waiting.values() for row in left if _binary(row) not in known]


def _binary(row: dict[str, Any]) -> str:
    """Return what a row says of its binary, whichever case launches it, with however many programs."""
    return json.dumps({**row, "case": "", "programs_planned": 0})


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["architecture"], row["kernel"], row["case"]


def main(words: list[str] | None = None) -> int:
    parser = command_parser("aot", __doc__)
    parser.add_argument("-o", "--output", type=output_file, help="a JSON file for the rows")
    parser.add_argument("--renew", type=output_file, help="a JSON file whose rows of the cases that run are replaced")
    parser.add_argument("-k", "--only", nargs="+", default=[""], help="cases whose name contains one of these")
    parser.add_argument("-a", "--architecture", type=int, choices=ARCHITECTURES, action="append")
    parser.add_argument("--ttir", action="store_true", help="translate the kernels to TTIR and compile no further")
    arguments = parser.parse_args(words)
    if arguments.renew and not arguments.renew.is_file():
        parser.error(f"--renew: {arguments.renew} does not exist")
    architectures = arguments.architecture or ARCHITECTURES

    def cases() -> Iterator[tuple[str, Callable[[], None]]]:
        every = (case for some in (fused_cases(), chunk_cases()) for case in some)
        return (case for case in every if any(words in case[0] for words in arguments.only))

    if arguments.ttir:
        return _translate_all(cases, architectures)
    rows, started = [], time.time()
    for architecture in architectures:
        for row in measured(cases(), architecture):
            row["faults"] = faults(row)
            rows.append(row)
            print(
                f"sm_{architecture:<4}{row['kernel']:<17}{row['tile']:<11}{row['case']:<45}"
                f"{row['registers']:>4} registers"
                f"{row['shared']:>8} B shared {row[MATRIX[architecture]]:>4} {MATRIX[architecture]:<6}"
                f"{row['UTMALDG']:>3} UTMALDG {row['instructions']:>6} instructions  {'; '.join(row['faults'])}",
                flush=True,
            )
    failed = sum(bool(row["faults"]) for row in rows)
    print(f"{len(rows)} binaries, {failed} with faults, {time.time() - started:.0f} s")
    if arguments.output:
        about = {"triton": triton.__version__, "torch": torch.__version__, "faulty": failed}
        arguments.output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    if arguments.renew:
        table = json.loads(arguments.renew.read_text())
        table["rows"] = renewed(table["rows"], rows)
        table["faulty"] = sum(bool(row["faults"]) for row in table["rows"])
        arguments.renew.write_text(json.dumps(table, indent=1) + "\n")
    return 1 if failed else 0
