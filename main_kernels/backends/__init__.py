"""Backends: what is done to one chunk of raw scores. No objective knows which one ran.

``cpu`` is the compiled module ``main_kernels._C``; ``triton`` serves CUDA devices, with the CUDA kernels of ``_C``
where it has them, and is imported when it is first asked for; ``plain`` is ordinary torch, on any device and also in
float64.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from ..processor import has_fast_bfloat16
from . import cpu, cuda, plain
from .interface import Backend, ScoreMap

__all__ = ["Backend", "ScoreMap", "backend_report", "choose", "get", "use"]

_BACKENDS: dict[str, Backend] = {"plain": plain.PlainBackend()}
if cpu.MODULE is not None:
    _BACKENDS["cpu"] = cpu.CpuBackend()

_forced: str | None = None

MIN_CAPABILITY = (8, 0)
_TRITON = "Triton kernels and cuBLAS: float32, bfloat16, float16 (interpreted and compiled, never run on a GPU)"
_POOLING = "segment pooling in CUDA C++ for the devices that triton serves (emulated only, never run on a GPU)"


def _load_triton() -> str:
    """Adds the Triton backend to those of this installation where it can run: with a CUDA device, or under Triton's
    interpreter (TRITON_INTERPRET=1). Says why not, where not."""
    if "triton" in _BACKENDS:
        return ""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and (torch.version.hip is not None or not torch.cuda.is_available()):
        return "no CUDA device"
    try:
        from .triton import TritonBackend
    except ImportError as error:
        return f"triton did not load: {error}"

    class Served(cuda.CudaPooling, TritonBackend):
        """The chunks by Triton, segment pooling by CUDA C++."""

    _BACKENDS["triton"] = TritonBackend() if cuda.why_not() else Served()
    return ""


def _why_not_triton(device: int) -> str:
    """Why the Triton backend does not serve a CUDA device; empty where it does."""
    if why_not := _load_triton():
        return why_not
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < MIN_CAPABILITY:
        return f"compute capability {major}.{minor}, want {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} or newer"
    return ""


# torch.compiler.assume_constant_result, which would import all of torch._dynamo for this one mark
_why_not_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


def get(name: str) -> Backend:
    """The backend called ``name``; ValueError lists those this installation has."""
    if name == "triton":
        _load_triton()
    if name not in _BACKENDS:
        raise ValueError(f"backend: got {name!r}, this installation has {sorted(_BACKENDS)}")
    return _BACKENDS[name]


def choose(tensor: torch.Tensor) -> str:
    """Name of the backend that serves tensors like this one."""
    if _forced is not None:
        return _forced
    if tensor.dtype == torch.float64:
        return "plain"
    if tensor.device.type == "cuda":
        index = tensor.device.index
        return "plain" if _why_not_triton(0 if index is None else index) else "triton"
    return "cpu" if tensor.device.type == "cpu" and "cpu" in _BACKENDS else "plain"


@contextmanager
def use(name: str, instruction_set: str | None = None) -> Iterator[None]:
    """Run every op inside the block on one backend, to compare or to debug: ``with use("plain"): ...``

    Args:
        name: ``"cpu"``, ``"plain"`` or ``"triton"``.
        instruction_set: Build of the C++ kernels to run, one of ``cpu.instruction_sets()``. Default: the best one that
            the processor has.

    Raises:
        ValueError: This installation lacks the backend, or this processor the instruction set.
    """
    global _forced
    get(name)
    with cpu.use_instruction_set(instruction_set) if instruction_set else nullcontext():
        before, _forced = _forced, name
        try:
            yield
        finally:
            _forced = before


def backend_report() -> dict[str, str]:
    """Which backend serves what, and why; one line each, for people."""
    report = {}
    if cpu.MODULE is not None:
        isa = cpu.MODULE.instruction_set()
        products = (
            "" if has_fast_bfloat16() else "; bfloat16 is computed in float32, this CPU has no instructions for it"
        )
        report["cpu"] = f"C++ kernels ({isa}) over torch.mm: float32, bfloat16, float16 on the CPU{products}"
    else:
        report["cpu"] = f"not available ({cpu.WHY_NOT}); the plain backend serves the CPU instead"
    report["plain"] = "torch operations in chunks: float64, and every device without kernels of its own"
    report["cuda"] = f"not available ({cuda.WHY_NOT})" if cuda.WHY_NOT else _POOLING
    pooling = f"plain ({cuda.why_not()})" if torch.cuda.device_count() and cuda.why_not() else "by CUDA C++"
    for device in range(torch.cuda.device_count()):
        why_not = _why_not_triton(device)
        served = f"{_TRITON}; pooling {pooling}"
        if why_not:
            served = f"not served by triton ({why_not}); the plain backend serves it"
        report[f"cuda:{device}"] = f"{torch.cuda.get_device_name(device)}: {served}"
    return report
