"""Compile every Triton kernel in every configuration that the backend launches, for three architectures, and read
registers, spills, shared memory and matrix instructions from the machine code. Needs no GPU.

    python -m bench aot -o bench/results/aot.json         # every case, over an hour
    python -m bench aot -a 90 -k "reduce rows"            # some, for an H100 (compute capability 9.0)
    python -m bench aot -a 90 -k "chunk score_grad" --renew bench/results/aot.json   # only these rows of the table

The name of a case is `reduce` (forward) or `score_grad` (backward), what is computed, an optional input, and the dtype.
"chunk" precedes the name for kernels over scores in memory, which float32 uses after cuBLAS's products. What is
computed is `rows` for linear_cross_entropy and token_logprobs, `both` for info_nce, `softplus` for sigmoid_loss,
`ranks` for pair_scores; WANTS and UPSTREAM list the rest. `divergence` is linear_kl. Each line has the tile, BLOCK_M x
BLOCK_N x BLOCK_K, of the row of main_kernels/backends/triton/configs.py that the launch uses.

The backend's own launchers run on meta tensors with a stand-in for the driver; launching is replaced by compiling. The
binaries are therefore those of a real launch, with the same specialisation.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bench import sass
from main_kernels.backends.accumulators import ColumnAccumulators, Lse, ReductionSpec, RowAccumulators
from main_kernels.backends.structs import LossTerms, Mask, ScoreGradTerms, ScoreMap
from main_kernels.backends.triton import TritonBackend, configs

from .command import command_parser

ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory one program can have, by architecture."""
MATRIX = {80: "HMMA", 90: "HGMMA", 100: "UTCMMA"}
"""The instruction that matrix products must be made of."""

WALKS = ("fused_reduce", "fused_score_grad", "two_sided_reduce", "exact_columns", "whole_score_grad")
"""The kernels that walk over tiles of scores and contain the product."""
PERSISTENT = (*WALKS, "row_loss", "divergence")
"""The kernels whose programs are as many as multiprocessors hold."""

EPILOGUE_LIMITS = (
    (r"reduce both b?float16 8192x", "two_sided_reduce", 1024, 0.5),
    (r"reduce both (ids|left out) b?float16 8192x", "two_sided_reduce", 1024, 0.6),
    (r"score_grad (both|softplus|softplus bias) b?float16 ", "whole_score_grad", 1024, 0.5),
    (r"score_grad both (ids|left out) b?float16 ", "whole_score_grad", 1024, 0.65),
    (r"reduce rows b?float16 8192x", "fused_reduce", 4096, 0.1),
)
"""(cases, kernel, width D, limit): the modelled cycles of the epilogue on sm_90 over those of the tile's products, at D
columns of the operands and full tensor rate. These kernels load nothing from global memory after the products."""
MULTIPLY_ADDS_PER_CYCLE = 2048
"""bfloat16 multiply-adds per cycle of a multiprocessor of sm_90."""

OPERAND_LIMITS = {"two_sided_reduce": 160, "exact_columns": 160, "whole_score_grad": 160}
"""Bytes per cycle that the products of a kernel may read from and write to shared memory at full tensor rate. A
multiprocessor does 128: cuBLAS's 128 x 256 needs as many, 128 x 128 needs 160, 128 x 64 needs 224. 128 x 256 would
leave one program per multiprocessor, whose epilogue nothing hides."""
LAST_OPERAND_LIMIT = 352
"""The same of all other kernels: 128 x 32, for all reductions at once."""

MEMORY_BYTES_PER_CYCLE = 3.0e12 / 132 / 1.7e9
"""A multiprocessor's share of the memory's bandwidth on an H100."""
ISSUE_LIMITS = (
    (r"chunk row_loss rows bfloat16", "row_loss", 2),
    (r"chunk score_grad (rows|both) bfloat16", "score_grad", 4),
    (r"chunk reduce both bfloat16", "reduce_both", 2),
    (r"divergence KL q bfloat16 bfloat16", "divergence", 4),
)
"""(cases, kernel, bytes): kernels over scores in memory that move so many bytes per score in their longest loop. On
sm_90 they may issue 1.1 times as many instructions as they have cycles for that."""

REGISTERS, WARPS = 1 << 16, 64
"""Registers and warps of a multiprocessor."""
SHARED_OF_MULTIPROCESSOR = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
"""Bytes of shared memory of a multiprocessor; each program takes 1 KB more than it asks for."""

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_COUNTED = {
    "HMMA": r"\bHMMA",
    "HGMMA": r"\bHGMMA",
    "UTCMMA": r"\bUTC\w*MMA",
    "UTMALDG": r"\bUTMALDG",
    "LDGSTS": r"\bLDGSTS",
    "MUFU": r"\bMUFU",
    "local": r"\b(?:LDL|STL)\b",
    "instructions": r"^\s+/\*[0-9a-f]{4,}\*/",
}
_BACKEND = TritonBackend()
_MULTIPROCESSORS = 132  # of an H100


def machine_code(kernel: Any) -> dict[str, int]:
    """Return the resource usage and instructions in the cubin of a compiled kernel, and of a persistent kernel of sm_90
    what bench/sass.py finds between the products of a tile and the next tile."""
    environment = {**os.environ, "PATH": f"{_TOOLS}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([_TOOLS / tool, *flags, file.name], capture_output=True, text=True, env=environment)
            for tool, flags in (("cuobjdump", ["-res-usage"]), ("nvdisasm", ["-c", "-hex"]))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    if found is None or code.returncode:
        raise RuntimeError(usage.stderr + code.stderr)
    counts = {name: len(re.findall(pattern, code.stdout, re.MULTILINE)) for name, pattern in _COUNTED.items()}
    epilogue = sass.epilogue_of(code.stdout, kernel.metadata.num_warps) if counts["HGMMA"] else None
    if epilogue is not None:
        counts |= {f"epilogue_{name}": value for name, value in vars(epilogue).items()}
    if counts["HGMMA"]:
        counts["pending_products"] = sass.pending_products(code.stdout)
        counts["product_columns"] = max(int(n) for n in re.findall(r"HGMMA\.64x(\d+)x16", code.stdout))
    elif counts["instructions"]:
        counts["issued"] = sass.issued_by(code.stdout, kernel.metadata.num_warps)
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared": kernel.metadata.shared,
        "num_warps": kernel.metadata.num_warps,
        **counts,
    }


class _Pretended:
    """A driver for devices that are not here; device 90 is one of compute capability 9.0."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


@contextmanager
def compiling(architecture: int) -> Iterator[list[tuple[str, str, Any, int]]]:
    """Compile kernels for an architecture instead of launching them; yield a list of (name, tile, binary,
    programs)."""
    compiled: list[tuple[str, str, Any, int]] = []
    before, run = driver._active, JITFunction.run
    found, counted = configs.architecture, configs.multiprocessors

    def compile_only(self, *args, grid, warmup, **kwargs):  # type: ignore[no-untyped-def]
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        tile = "x".join(str(value) for name, value in kwargs.items() if name.startswith("BLOCK"))
        compiled.append((self.__name__, tile, kernel, grid[0]))
        return kernel

    try:
        driver.set_active(_Pretended(architecture))
        JITFunction.run = compile_only
        configs.architecture, configs.multiprocessors = lambda _: architecture, lambda _: _MULTIPROCESSORS
        yield compiled
    finally:
        JITFunction.run, configs.architecture, configs.multiprocessors = run, found, counted
        driver._active = before


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _lse(n: int) -> Lse:
    return Lse(empty(n), empty(n))


WANTS = {
    "rows": ReductionSpec(),
    "both": ReductionSpec(column_lse=True),
    "sums": ReductionSpec(column_lse=True, logit_sums=True),
    "softplus": ReductionSpec(row_lse=False, softplus=True),
    "bounds": ReductionSpec(softplus=True, clip=5.0),
    "statistics": ReductionSpec(entropy_and_ranks=True),
    "all rows": ReductionSpec(entropy_and_ranks=True, logit_sums=True, softplus=True, clip=5.0),
    "ranks": ReductionSpec(column_lse=True, entropy_and_ranks=True),
    "everything": ReductionSpec(column_lse=True, entropy_and_ranks=True, logit_sums=True, softplus=True, clip=5.0),
}
"""sets of reductions, by name"""

UPSTREAM: dict[str, Callable[[int, int], ScoreGradTerms]] = {
    "rows": lambda n, m: ScoreGradTerms(row_lse_grad=empty(n), row_lse=_lse(n), target_grad=empty(n)),
    "both": lambda n, m: ScoreGradTerms(
        row_lse_grad=empty(n), row_lse=_lse(n), target_grad=empty(n), column_lse_grad=empty(m), column_lse=_lse(m)
    ),
    "entropy": lambda n, m: ScoreGradTerms(
        row_lse_grad=empty(n), row_lse=_lse(n), target_grad=empty(n), neg_entropy_grad=empty(n)
    ),
    "both sums": lambda n, m: ScoreGradTerms(
        row_lse_grad=empty(n),
        row_lse=_lse(n),
        target_grad=empty(n),
        column_lse_grad=empty(m),
        column_lse=_lse(m),
        row_sum_grad=empty(n),
        column_sum_grad=empty(m),
    ),
    "softplus": lambda n, m: ScoreGradTerms(softplus_grad=empty(n), target_grad=empty(n)),
    "everything": lambda n, m: ScoreGradTerms(
        row_lse_grad=empty(n),
        row_lse=_lse(n),
        target_grad=empty(n),
        column_lse_grad=empty(m),
        column_lse=_lse(m),
        softplus_grad=empty(n),
        row_sum_grad=empty(n),
        column_sum_grad=empty(m),
    ),
}
"""sets of gradients, by name"""

EXTRAS = ("", "ids", "left out", "bias", "softcap")
"""optional inputs of a call; "left out" is ids whose targets are masked"""


def _name(words: str) -> str:
    """Return the name of a case without the gap of an absent extra."""
    return " ".join(words.split())


def _given(extra: str, n: int, m: int) -> tuple[ScoreMap, Mask | None]:
    """The score map and the mask of a case."""
    everything = extra == "everything"
    biased = everything or "bias" in extra
    score_map = ScoreMap(empty(), 30.0 if extra == "softcap" or everything else 0.0, empty(m) if biased else None)
    masked = everything or extra in ("ids", "left out", "bias ids")
    ids = Mask(empty(n, dtype=torch.int32), empty(m, dtype=torch.int32), extra != "left out") if masked else None
    return score_map, ids


def fused_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, launch) of the fused walks: every reduction and every weight alone, each extra with the plainest of them,
    all at once, and all of that for sizes that are a multiple of everything and of nothing. float16 operands make the
    same code but for the products: there the plain ones do, and all at once."""
    reduced = [(w, "") for w in WANTS] + [("both", extra) for extra in EXTRAS[1:]] + [("everything", "everything")]
    weighed = [(u, "") for u in UPSTREAM] + [("both", extra) for extra in EXTRAS[1:]] + [("everything", "everything")]
    weighed += [("softplus", "bias"), ("softplus", "scale"), ("softplus", "bias ids"), ("both", "scale")]
    weighed += [("both", "bias ids"), ("both sums", "bias"), ("both sums", "ids")]
    plain = ("rows", ""), ("both", ""), ("everything", "everything")
    for dtype, n, m in (
        (torch.bfloat16, 8192, 32768),
        (torch.bfloat16, 4099, 50257),
        (torch.float16, 8192, 32768),
    ):
        case = _Fused(dtype, n, m)
        for what, extra in reduced if dtype == torch.bfloat16 else plain:
            yield _name(f"reduce {what} {extra} {case.about}"), partial(case.reduce, WANTS[what], extra)
        for what, extra in weighed if dtype == torch.bfloat16 else plain:
            yield _name(f"score_grad {what} {extra} {case.about}"), partial(case.score_grad, UPSTREAM[what], extra)


class _Fused:
    """The fused walks over operands of one dtype and size."""

    def __init__(self, dtype: torch.dtype, n: int, m: int) -> None:
        self.n, self.m = n, m
        self.query, self.key = (empty(rows, 1024, dtype=dtype) for rows in (n, m))
        self.targets = empty(n, dtype=torch.int64)
        self.about = f"{str(dtype)[6:]} {n}x{m}"

    def reduce(self, wants: ReductionSpec, extra: str) -> None:
        n, m, fused = self.n, self.m, _BACKEND.fused
        score_map, mask = _given(extra, n, m)
        ranked, target = wants.entropy_and_ranks, empty(n)
        fused.target_scores(self.query, self.key, score_map, self.targets, target)
        put_back = mask is not None and mask.keep_target
        given = target if ranked or put_back else None, empty(m) if wants.column_lse and ranked else None
        fused.reduce(self.query, self.key, score_map, self.targets, mask, wants, *given)

    def score_grad(self, terms: Callable[[int, int], ScoreGradTerms], extra: str) -> None:
        n, m, fused = self.n, self.m, _BACKEND.fused
        score_map, mask = _given(extra, n, m)
        d_scale = empty(n, dtype=torch.float64) if extra in ("everything", "scale") else None
        out = empty(n, -(-m // 16) * 16, dtype=self.query.dtype)[:, :m]
        given = self.query, self.key, score_map, self.targets, mask
        fused.score_grad(*given, terms(n, m), out, d_scale)


def chunk_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, launch) of the kernels over chunks of raw scores, and of what else the backend launches."""
    extras = [("both", extra) for extra in EXTRAS[1:]] + [("everything", "everything")]
    for dtype in (torch.float32, torch.bfloat16):
        raw, about = empty(4096, 32768, dtype=dtype), str(dtype)[6:]
        for what, extra in [(w, "") for w in WANTS] + extras:
            yield _name(f"chunk reduce {what} {extra} {about}"), partial(_reduce_chunk, raw, WANTS[what], extra)
        for what, extra in [(u, "") for u in UPSTREAM] + extras:
            yield _name(f"chunk score_grad {what} {extra} {about}"), partial(_weigh_chunk, raw, UPSTREAM[what], extra)
        for what, extra in (("rows", ""), ("rows", "softcap"), ("all rows", "everything")):
            yield _name(f"chunk row_loss {what} {extra} {about}"), partial(_row_loss, raw, WANTS[what], extra)
        for other in (torch.float32, torch.bfloat16):
            for beta in (None, 0.5):
                for trained in ((True, True), (True, False), (False, True)):
                    sides = "both" if all(trained) else "p" if trained[0] else "q"
                    name = f"divergence {'KL' if beta is None else 'JS'} {sides} {about} {str(other)[6:]}"
                    yield name, partial(_diverge, raw, empty(4096, 32768, dtype=other), beta, trained)
    raw, grad = empty(4096, 32768), empty(4096, 32768, dtype=torch.float16)
    yield "chunk score_grad both into float16", partial(_weigh_chunk, raw, UPSTREAM["both"], "", grad)
    yield "gradient planes", _planes


def _reduce_chunk(raw: torch.Tensor, wants: ReductionSpec, extra: str) -> None:
    n, m = raw.shape
    score_map, mask = _given(extra, n, m)
    targets = empty(n, dtype=torch.int64)
    rows = RowAccumulators.empty(n, torch.float32, raw.device, wants)
    if not wants.column_lse:
        _BACKEND.reduce_rows(raw, score_map, targets, mask, rows)
        return
    columns = ColumnAccumulators.empty(m, torch.float32, raw.device, wants)
    if not wants.entropy_and_ranks:
        _BACKEND.reduce_both(raw, score_map, targets, mask, rows, columns)
        return
    columns.target = empty(m)
    _BACKEND.reduce_rows(raw, score_map, targets, mask, rows)
    _BACKEND.reduce_columns(raw, score_map, targets, mask, columns)


def _weigh_chunk(
    raw: torch.Tensor, upstream: Callable[[int, int], ScoreGradTerms], extra: str, grad: torch.Tensor | None = None
) -> None:
    n, m = raw.shape
    score_map, mask = _given(extra, n, m)
    d_scale = empty(n, dtype=torch.float64) if extra == "everything" else None
    given = raw, score_map, empty(n, dtype=torch.int64), mask
    _BACKEND.score_grad_(*given, upstream(n, m), d_scale, raw if grad is None else grad)


def _row_loss(raw: torch.Tensor, wants: ReductionSpec, extra: str) -> None:
    n, m = raw.shape
    score_map, mask = _given(extra, n, m)
    rows = RowAccumulators.empty(n, torch.float32, raw.device, wants)
    rows.finished_lse = _lse(n)
    smoothing = (empty(n), empty(n), empty(n)) if extra else (None, empty(n), None)
    _BACKEND.row_loss_(raw, score_map, empty(n, dtype=torch.int64), mask, rows, LossTerms(empty(n), *smoothing), raw)


def _diverge(p: torch.Tensor, q: torch.Tensor, beta: float | None, trained: tuple[bool, bool]) -> None:
    values = empty(p.shape[0])
    _BACKEND.divergence_(
        p, q, 1.0, beta, values, values, *(raw if wanted else None for raw, wanted in zip((p, q), trained, strict=True))
    )


def _planes() -> None:
    high, low = empty(4096, 1024, dtype=torch.bfloat16), empty(4096, 1024, dtype=torch.int16)
    for part in (high, empty(4096, 1024)):
        _BACKEND.accumulate_(high, low, part)
    for scale in (empty(1), empty(4096)):
        _BACKEND.round_scaled_(high, low, scale)


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
                row["programs_planned"] = -(-programs // _MULTIPROCESSORS)
            yield row


def faults(row: dict[str, Any]) -> list[str]:
    """List the faults of a compiled kernel: spills, more shared memory than the device has, a product without the
    architecture's matrix instructions, or a tensor descriptor that the copy engine does not fetch."""
    arch, name = row["architecture"], row["kernel"]
    wrong = []
    if row["local"] or row["stack"]:
        wrong.append(f"{row['local']} accesses of local memory, {row['stack']} bytes of stack")
    if row["shared"] > SHARED_LIMIT[arch]:
        wrong.append(f"{row['shared']} bytes of shared memory")
    if name in (*WALKS, "target_scores") and not row[MATRIX[arch]]:
        wrong.append(f"no {MATRIX[arch]}")
    if name in WALKS and arch >= 90 and not row["UTMALDG"]:
        wrong.append("no UTMALDG")
    if "programs_planned" in row and programs_that_fit(row) < row["programs_planned"]:
        wrong.append(f"{programs_that_fit(row)} programs per multiprocessor, {row['programs_planned']} planned")
    return wrong + slow_products(row) + slow_epilogue(row) + slow_chunk(row)


def programs_that_fit(row: dict[str, Any]) -> int:
    """Return how many programs a multiprocessor can hold."""
    of_registers = REGISTERS // (-(-row["registers"] // 8) * 8 * 32 * row["num_warps"])
    of_shared = SHARED_OF_MULTIPROCESSOR[row["architecture"]] // (row["shared"] + 1024)
    return min(of_registers, of_shared, WARPS // row["num_warps"])


def slow_products(row: dict[str, Any]) -> list[str]:
    """List what slows the products of a walk on sm_90: operands that shared memory cannot supply, or a wait for each
    group of products before the next is issued."""
    if row["kernel"] not in WALKS or "product_columns" not in row:
        return []
    wrong = []
    if row["pending_products"] < 1:
        wrong.append("no products in flight while the next are issued")
    limit = OPERAND_LIMITS.get(row["kernel"], LAST_OPERAND_LIMIT)
    if operand_bytes(row) > limit:
        wrong.append(f"operands of {operand_bytes(row):.0f} bytes per cycle, more than {limit}")
    return wrong


def operand_bytes(row: dict[str, Any]) -> float:
    """Return the bytes per cycle that the products of a walk read from and write to shared memory at full tensor rate,
    16 columns of the operands at a time."""
    height, width = (int(size) for size in row["tile"].split("x")[:2])
    cycles = height * width * 16 / MULTIPLY_ADDS_PER_CYCLE
    columns = row["product_columns"]
    read = height / 64 * width / columns * (64 + columns)
    return 2 * 16 * (read + height + width) / cycles


def slow_chunk(row: dict[str, Any]) -> list[str]:
    """List what exceeds ISSUE_LIMITS."""
    wrong = []
    for cases, kernel, size in ISSUE_LIMITS:
        if (
            "issued" not in row
            or row["architecture"] != 90
            or row["kernel"] != kernel
            or not re.fullmatch(cases, row["case"])
        ):
            continue
        height, width = (int(size) for size in row["tile"].split("x"))
        allowed = 1.1 * height * width * size / MEMORY_BYTES_PER_CYCLE
        if row["issued"] > allowed:
            wrong.append(f"{row['issued']} instructions per scheduler, more than {allowed:.0f}")
    return wrong


def slow_epilogue(row: dict[str, Any]) -> list[str]:
    """List what exceeds EPILOGUE_LIMITS. Rows of older tables have no epilogue."""
    if "epilogue_cycles" not in row:
        return []
    wrong = []
    for cases, kernel, width, limit in EPILOGUE_LIMITS:
        if row["kernel"] != kernel or not re.match(cases, row["case"]):
            continue
        tile = [int(size) for size in row["tile"].split("x")]
        allowed = limit * tile[0] * tile[1] * width / MULTIPLY_ADDS_PER_CYCLE
        if row["epilogue_cycles"] > allowed:
            wrong.append(f"an epilogue of {row['epilogue_cycles']} cycles, more than {allowed:.0f}")
        if row["epilogue_global_loads"] and kernel != "fused_reduce":
            wrong.append(f"{row['epilogue_global_loads']} global loads after the products")
    return wrong


def renewed(rows: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a table with the new ones in the places of those of the same architecture, kernel and case. A
    new row without a place is added, unless the table has the same binary with another case."""
    waiting: dict[Any, list[dict[str, Any]]] = {}
    for row in new:
        waiting.setdefault(_place(row), []).append(row)
    kept = [waiting[place].pop(0) if waiting.get(place := _place(row)) else row for row in rows]
    known = {json.dumps({**row, "case": ""}) for row in kept}
    return kept + [row for left in waiting.values() for row in left if json.dumps({**row, "case": ""}) not in known]


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["architecture"], row["kernel"], row["case"]


def main(words: list[str] | None = None) -> int:
    parser = command_parser("aot", __doc__)
    parser.add_argument("-o", "--output", type=Path, help="a JSON file for the rows")
    parser.add_argument("--renew", type=Path, help="a JSON file whose rows of the cases that run are replaced")
    parser.add_argument("-k", "--only", default="", help="cases whose name contains this")
    parser.add_argument("-a", "--architecture", type=int, choices=ARCHITECTURES, action="append")
    arguments = parser.parse_args(words)
    rows, started = [], time.time()
    for architecture in arguments.architecture or ARCHITECTURES:
        cases = (c for some in (fused_cases(), chunk_cases()) for c in some if arguments.only in c[0])
        for row in measured(cases, architecture):
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
