"""Every Triton kernel in every configuration that the backend launches, compiled ahead of time for three architectures:
registers, spills, shared memory and matrix instructions, read from the machine code. Needs no GPU.

    python bench/aot.py -o bench/results/aot.json

The backend's own launchers are run, on tensors without memory and under a driver that pretends to be the device, with
launching replaced by compiling: what is compiled is what would be launched, specialised as it would be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from main_kernels.backends.interface import ColumnSums, Lse, Mask, RowSums, ScoreMap, Upstream, Wants
from main_kernels.backends.triton import TritonBackend, product

ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory one program can have, by architecture."""
MATRIX = {80: "HMMA", 90: "HGMMA", 100: "UTCMMA"}
"""The instruction that matrix products must be made of."""

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


def machine_code(kernel: Any) -> dict[str, int]:
    """What the cubin of a compiled kernel holds."""
    environment = {**os.environ, "PATH": f"{_TOOLS}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([_TOOLS / tool, *flags, file.name], capture_output=True, text=True, env=environment)
            for tool, flags in (("cuobjdump", ["-res-usage"]), ("nvdisasm", ["-c"]))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    if found is None or code.returncode:
        raise RuntimeError(usage.stderr + code.stderr)
    counts = {name: len(re.findall(pattern, code.stdout, re.MULTILINE)) for name, pattern in _COUNTED.items()}
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
def compiling(architecture: int) -> Iterator[list[tuple[str, Any]]]:
    """Inside, kernels are compiled for an architecture instead of being launched, and listed with their names."""
    compiled: list[tuple[str, Any]] = []
    before, run = driver._active, JITFunction.run
    chosen, counted = product.architecture, product.multiprocessors

    def compile_only(self, *args, grid, warmup, **kwargs):  # type: ignore[no-untyped-def]
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append((self.__name__, kernel))
        return kernel

    try:
        driver.set_active(_Pretended(architecture))
        JITFunction.run = compile_only
        product.architecture, product.multiprocessors = lambda _: architecture, lambda _: 132
        yield compiled
    finally:
        JITFunction.run, product.architecture, product.multiprocessors = run, chosen, counted
        driver._active = before


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _lse(n: int) -> Lse:
    return Lse(empty(n), empty(n))


WANTS = {
    "rows": Wants(),
    "both": Wants(columns=True),
    "sums": Wants(columns=True, logit_sums=True),
    "softplus": Wants(row_lse=False, softplus=True),
    "bounds": Wants(softplus=True, clip=5.0),
    "statistics": Wants(statistics=True),
    "ranks": Wants(columns=True, statistics=True),
    "everything": Wants(columns=True, statistics=True, logit_sums=True, softplus=True, clip=5.0),
}
"""What is reduced."""

UPSTREAM: dict[str, Callable[[int, int], Upstream]] = {
    "rows": lambda n, m: Upstream(a=empty(n), r=_lse(n), d=empty(n)),
    "both": lambda n, m: Upstream(a=empty(n), r=_lse(n), d=empty(n), b=empty(m), c=_lse(m)),
    "softplus": lambda n, m: Upstream(e=empty(n), d=empty(n)),
    "everything": lambda n, m: Upstream(
        a=empty(n), r=_lse(n), d=empty(n), b=empty(m), c=_lse(m), e=empty(n), u=empty(n), v=empty(m)
    ),
}
"""What is differentiated."""

EXTRAS = ("", "ids", "left out", "bias", "softcap", "stored")
"""What else a call may bring; "left out": ids, and the targets take no part."""


def _given(extra: str, n: int, m: int) -> tuple[ScoreMap, Mask | None]:
    """The score map and the mask of a case."""
    everything = extra == "everything"
    score_map = ScoreMap(
        empty(), 30.0 if extra == "softcap" or everything else 0.0, empty(m) if extra == "bias" or everything else None
    )
    masked = everything or extra in ("ids", "left out")
    ids = Mask(empty(n, dtype=torch.int32), empty(m, dtype=torch.int32), extra != "left out") if masked else None
    return score_map, ids


def fused_cases(
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16),
) -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, launch) of the fused walks: every reduction and every weight alone, each extra with the plainest of them,
    all at once, and all of that for sizes that are a multiple of everything and of nothing."""
    fused, width = _BACKEND.fused, 1024
    assert fused is not None
    reduced = [(w, "") for w in WANTS] + [("both", extra) for extra in EXTRAS[1:]] + [("everything", "everything")]
    weighed = [(u, "") for u in UPSTREAM] + [("both", extra) for extra in EXTRAS[1:]] + [("everything", "everything")]
    for dtype in dtypes:
        for n, m in ((8192, 32768), (4099, 50257)):
            query, key = empty(n, width, dtype=dtype), empty(m, width, dtype=dtype)
            compute = torch.float32 if dtype == torch.float16 else dtype
            targets = empty(n, dtype=torch.int64)
            about = f"{str(dtype)[6:]} {n}x{m}"

            def reduce(wants: Wants, extra: str, q=query, k=key, t=targets, n=n, m=m, stored=compute) -> None:  # type: ignore[no-untyped-def]
                score_map, mask = _given(extra, n, m)
                rows = RowSums.empty(n, torch.float32, q.device, wants)
                columns = ColumnSums.empty(m, torch.float32, q.device, wants) if wants.columns else None
                if columns is not None and wants.statistics:
                    columns.target = empty(m)
                kept = stored if extra in ("stored", "everything") else None
                raw = None if kept is None else empty(n, m, dtype=kept)  # held by the op: as wide as it is
                fused.target_scores(q, k, score_map, t, kept, rows.target)
                fused.reduce(q, k, score_map, t, mask, kept, rows, columns, raw)

            def weigh(upstream: str, extra: str, q=query, k=key, t=targets, n=n, m=m, stored=compute) -> None:  # type: ignore[no-untyped-def]
                score_map, mask = _given(extra, n, m)
                kept = stored if extra in ("stored", "everything") else None
                d_scale = empty(n, dtype=torch.float64) if upstream == "everything" else None
                out = empty(n, -(-m // 16) * 16, dtype=stored)[:, :m]
                fused.weigh(q, k, score_map, t, mask, kept, UPSTREAM[upstream](n, m), out, d_scale)

            for what, extra in reduced:
                yield f"reduce {what} {extra} {about}", lambda w=WANTS[what], x=extra, f=reduce: f(w, x)
            for what, extra in weighed:
                yield f"weigh {what} {extra} {about}", lambda u=what, x=extra, f=weigh: f(u, x)


def chunk_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, launch) of the kernels over chunks of raw scores, and of what else the backend launches."""
    n, m = 4096, 32768
    targets, values = empty(n, dtype=torch.int64), empty(n)
    for dtype in (torch.float32, torch.bfloat16):
        raw = empty(n, m, dtype=dtype)
        for what, extra in [(w, "") for w in WANTS] + [("both", x) for x in EXTRAS[1:5]] + [("everything",) * 2]:

            def reduce(wants: Wants = WANTS[what], extra: str = extra, raw: torch.Tensor = raw) -> None:
                score_map, mask = _given(extra, n, m)
                rows = RowSums.empty(n, torch.float32, raw.device, wants)
                _BACKEND.reduce_rows(raw, score_map, targets, mask, rows)
                if wants.columns:
                    columns = ColumnSums.empty(m, torch.float32, raw.device, wants)
                    columns.target = empty(m) if wants.statistics else None
                    _BACKEND.reduce_columns(raw, score_map, targets, mask, columns)

            yield f"chunk reduce {what} {extra} {str(dtype)[6:]}", reduce
        for what, extra in [(u, "") for u in UPSTREAM] + [("both", x) for x in EXTRAS[1:5]] + [("everything",) * 2]:

            def weigh(upstream: str = what, extra: str = extra, raw: torch.Tensor = raw) -> None:
                score_map, mask = _given(extra, n, m)
                d_scale = empty(n, dtype=torch.float64) if upstream == "everything" else None
                _BACKEND.weigh_(raw, score_map, targets, mask, UPSTREAM[upstream](n, m), d_scale)

            yield f"chunk weigh {what} {extra} {str(dtype)[6:]}", weigh
        for other in (torch.float32, torch.bfloat16):
            for beta in (None, 0.5):

                def divergence(p=raw, other=other, beta=beta) -> None:  # type: ignore[no-untyped-def]
                    _BACKEND.divergence_(p, empty(n, m, dtype=other), 1.0, beta, values, values, True, True)

                about = "KL" if beta is None else "JS"
                yield f"divergence {about} {str(dtype)[6:]} {str(other)[6:]}", divergence


def measured(cases: Iterator[tuple[str, Callable[[], None]]], architecture: int) -> Iterator[dict[str, Any]]:
    """One row for each kernel that the cases launch, once for each binary."""
    seen = set()
    for name, launch in cases:
        with compiling(architecture) as compiled:
            launch()
        for kernel, binary in compiled:
            if binary.hash in seen:
                continue
            seen.add(binary.hash)
            yield {"architecture": architecture, "kernel": kernel, "case": name, **machine_code(binary)}


def faults(row: dict[str, Any]) -> list[str]:
    """What must not be: spills, more shared memory than there is, a product without the architecture's own matrix
    instructions, a described operand that the copy engine does not fetch."""
    arch, name = row["architecture"], row["kernel"]
    wrong = []
    if row["local"] or row["stack"]:
        wrong.append(f"{row['local']} accesses of local memory, {row['stack']} bytes of stack")
    if row["shared"] > SHARED_LIMIT[arch]:
        wrong.append(f"{row['shared']} bytes of shared memory")
    if name in ("forward", "weights", "target_scores") and not row[MATRIX[arch]]:
        wrong.append(f"no {MATRIX[arch]}")
    if name in ("forward", "weights") and arch >= 90 and not row["UTMALDG"]:
        wrong.append("no UTMALDG")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="a JSON file for the rows")
    parser.add_argument("-k", "--only", default="", help="cases whose name contains this")
    parser.add_argument("-a", "--architecture", type=int, choices=ARCHITECTURES, action="append")
    arguments = parser.parse_args()
    rows, started = [], time.time()
    for architecture in arguments.architecture or ARCHITECTURES:
        cases = (c for some in (fused_cases(), chunk_cases()) for c in some if arguments.only in c[0])
        for row in measured(cases, architecture):
            row["faults"] = faults(row)
            rows.append(row)
            print(
                f"sm_{architecture:<4}{row['kernel']:<16}{row['case']:<46}{row['registers']:>4} registers"
                f"{row['shared']:>8} B shared {row[MATRIX[architecture]]:>4} {MATRIX[architecture]:<6}"
                f"{row['UTMALDG']:>3} UTMALDG {row['instructions']:>6} instructions  {'; '.join(row['faults'])}",
                flush=True,
            )
    failed = sum(bool(row["faults"]) for row in rows)
    print(f"{len(rows)} binaries, {failed} with faults, {time.time() - started:.0f} s")
    if arguments.output:
        about = {"triton": triton.__version__, "torch": torch.__version__, "faulty": failed}
        arguments.output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
