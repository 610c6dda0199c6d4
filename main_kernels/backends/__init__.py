"""Backends: what is done to one chunk of raw scores. No objective knows which one ran.

``cpu`` is the compiled module ``main_kernels._C``; ``plain`` is ordinary torch, on any device and also in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from . import cpu, plain
from .interface import Backend, ScoreMap

__all__ = ["Backend", "ScoreMap", "backend_report", "choose", "get", "use"]

_BACKENDS: dict[str, Backend] = {"plain": plain.PlainBackend()}
if cpu.MODULE is not None:
    _BACKENDS["cpu"] = cpu.CpuBackend()

_forced: str | None = None


def get(name: str) -> Backend:
    """The backend called ``name``; ValueError lists those this installation has."""
    if name not in _BACKENDS:
        raise ValueError(f"backend: got {name!r}, this installation has {sorted(_BACKENDS)}")
    return _BACKENDS[name]


def choose(tensor: torch.Tensor) -> str:
    """Name of the backend that serves tensors like this one."""
    if _forced is not None:
        return _forced
    compiled = tensor.device.type == "cpu" and tensor.dtype != torch.float64 and "cpu" in _BACKENDS
    return "cpu" if compiled else "plain"


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run every op inside the block on one backend, to compare or to debug: ``with use("plain"): ...``"""
    global _forced
    get(name)
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
        report["cpu"] = f"C++ kernels over torch.mm, {isa}: float32, bfloat16, float16 on the CPU"
    else:
        report["cpu"] = f"not available ({cpu.WHY_NOT}); the plain backend serves the CPU instead"
    report["plain"] = "torch operations in chunks: float64, and every device without kernels of its own"
    if torch.cuda.is_available():
        report["cuda"] = "no kernels of our own in this version; the plain backend serves it"
    return report
