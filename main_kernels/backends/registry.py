"""get_backend, select_backend, use_backend and backend_report: the backends of this installation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from ..processor import has_fast_bfloat16
from . import cpu, cuda, plain
from .interface import Backend

BACKENDS: dict[str, Backend] = {"plain": plain.PlainBackend()}
if cpu.MODULE is not None:
    BACKENDS["cpu"] = cpu.CpuBackend()

_forced: str | None = None

MIN_CAPABILITY = (8, 0)
_TRITON = "Triton kernels and cuBLAS: float32, bfloat16, float16 (interpreted and compiled, never run on a GPU)"
_POOLING = "segment pooling in CUDA C++ on the devices that use triton (emulated only, never run on a GPU)"


def load_triton() -> str:
    """Register the Triton backend if there is a CUDA device or Triton's interpreter is on (TRITON_INTERPRET=1).

    Returns:
        The reason why it cannot be loaded; empty if it is registered.
    """
    if "triton" in BACKENDS:
        return ""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and (torch.version.hip is not None or not torch.cuda.is_available()):
        return "no CUDA device"
    try:
        from .triton import TritonBackend
    except ImportError as error:
        return f"triton did not load: {error}"

    class TritonWithCudaPooling(cuda.CudaPooling, TritonBackend):
        """Score kernels in Triton, segment pooling in CUDA C++."""

    BACKENDS["triton"] = TritonBackend() if cuda.why_not() else TritonWithCudaPooling()
    return ""


def why_not_triton(device: int) -> str:
    """Return the reason why the Triton backend cannot run on a CUDA device; empty if it can."""
    if why_not := load_triton():
        return why_not
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < MIN_CAPABILITY:
        return f"compute capability {major}.{minor}, expected {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} or newer"
    return ""


# torch.compiler.assume_constant_result would import all of torch._dynamo to set this one mark
why_not_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


def get_backend(name: str) -> Backend:
    """Return the backend called ``name``.

    Args:
        name: ``"cpu"``, ``"plain"`` or ``"triton"``.

    Raises:
        ValueError: This installation has no such backend; the message lists those it has.
    """
    if name == "triton":
        load_triton()
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {sorted(BACKENDS)}, got {name!r}")
    return BACKENDS[name]


def select_backend(tensor: torch.Tensor) -> str:
    """Return the name of the backend for tensors of this dtype and device.

    Args:
        tensor: any operand; only its dtype and device are read.
    """
    if _forced is not None:
        return _forced
    if tensor.dtype == torch.float64:
        return "plain"
    if tensor.device.type == "cuda":
        index = tensor.device.index
        return "plain" if why_not_triton(0 if index is None else index) else "triton"
    return "cpu" if tensor.device.type == "cpu" and "cpu" in BACKENDS else "plain"


@contextmanager
def use_backend(name: str, instruction_set: str | None = None) -> Iterator[None]:
    """Run every op inside the block on one backend, to compare or to debug: ``with use_backend("plain"): ...``

    Args:
        name: ``"cpu"``, ``"plain"`` or ``"triton"``.
        instruction_set: Build of the C++ kernels, one of ``cpu.instruction_sets()``. Default: the best one that the
            processor supports.

    Raises:
        ValueError: This installation lacks the backend, or this processor the instruction set.
    """
    global _forced
    get_backend(name)
    with cpu.use_instruction_set(instruction_set) if instruction_set else nullcontext():
        before, _forced = _forced, name
        try:
            yield
        finally:
            _forced = before


def backend_report() -> dict[str, str]:
    """Return one line of text per backend and CUDA device: its kernels and dtypes, or the reason why it is absent."""
    report = {}
    if cpu.MODULE is not None:
        isa = cpu.MODULE.instruction_set()
        products = (
            "" if has_fast_bfloat16() else "; bfloat16 is computed in float32, this CPU has no instructions for it"
        )
        report["cpu"] = f"C++ kernels ({isa}) over torch.mm: float32, bfloat16, float16 on the CPU{products}"
    else:
        report["cpu"] = f"not available ({cpu.WHY_NOT}); the CPU uses the plain backend instead"
    report["plain"] = "torch operations in chunks: float64, and devices without kernels"
    report["cuda"] = f"not available ({cuda.WHY_NOT})" if cuda.WHY_NOT else _POOLING
    pooling = f"plain ({cuda.why_not()})" if torch.cuda.device_count() and cuda.why_not() else "by CUDA C++"
    for device in range(torch.cuda.device_count()):
        why_not = why_not_triton(device)
        kernels = f"{_TRITON}; pooling {pooling}"
        if why_not:
            kernels = f"plain backend (triton is not available: {why_not})"
        report[f"cuda:{device}"] = f"{torch.cuda.get_device_name(device)}: {kernels}"
    return report
