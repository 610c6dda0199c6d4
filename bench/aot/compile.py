"""compiling, translating and machine_code: kernels compiled instead of launched, and what their machine code shows."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from main_kernels.backends.triton import configs

from . import sass

MULTIPROCESSORS = 132
"""Of an H100."""

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


def machine_code(kernel: Any) -> dict[str, int]:
    """Return the resource usage and instructions in the cubin of a compiled kernel, and of a persistent kernel of sm_90
    what sass.py finds between the products of a tile and the next tile."""
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


def _translate(source: Any, target: GPUTarget, options: dict[str, Any] | None = None, **_: Any) -> SimpleNamespace:
    """Takes the place of triton.compiler.compile."""
    backend, context = make_backend(target), ir.context()
    parsed = backend.parse_options(dict(options or {}))
    ir.load_dialects(context)
    backend.load_dialects(context)
    source.make_ir(target, parsed, backend.get_codegen_implementation(parsed), backend.get_module_map(), context)
    return SimpleNamespace(hash=None)


@contextmanager
def translating() -> Iterator[None]:
    """Let ``compiling`` only translate kernels from Python to TTIR, the first step, which takes a tenth of a second.

    A kernel that this process has compiled before is not translated."""
    before = triton.compiler.compile
    try:
        triton.compiler.compile = _translate
        yield
    finally:
        triton.compiler.compile = before


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
        configs.architecture, configs.multiprocessors = lambda _: architecture, lambda _: MULTIPROCESSORS
        yield compiled
    finally:
        JITFunction.run, configs.architecture, configs.multiprocessors = run, found, counted
        driver._active = before
