"""The compiled CUDA kernels: checks nothing, hands addresses and the current stream to ``main_kernels._C``.

So far they are segment pooling, for whichever backend serves the device; ``_C`` has them where it was built
with MAIN_KERNELS_CUDA=1.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from . import cpu
from .cpu import address, pooling_arguments
from .interface import Pooling
from .plain import PlainBackend

MODULE: ModuleType | None = cpu.MODULE if hasattr(cpu.MODULE, "cuda_pool_pieces") else None
WHY_NOT = "" if MODULE else cpu.WHY_NOT or "main_kernels._C was built without CUDA; MAIN_KERNELS_CUDA=1 builds it in"

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def why_not() -> str:
    """Why these kernels cannot run in this process; empty where they can. Asks the driver."""
    return WHY_NOT if MODULE is None else MODULE.cuda_why_not()


class CudaPooling(PlainBackend):
    """Pooling of states in device memory; a base before the backend that does the rest."""

    def pool_forward(self, hidden: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor, Tensor]:
        segments = pooling.offsets.numel() - 1
        if not segments or not _served(hidden, hidden.dtype):  # a grid of no blocks is an error
            return super().pool_forward(hidden, pooling)
        (rows, width), device = hidden.shape, hidden.device
        pooled = hidden.new_empty(segments, width, dtype=torch.float32)
        norms = hidden.new_empty(segments, dtype=torch.float32)
        sums = _piece_sums(hidden, rows, width, segments)
        units = hidden.new_empty(0 if pooling.uniform else rows, dtype=torch.float64)
        scales = None if pooling.uniform else units.new_empty(sums.shape[0], 2)
        with torch.cuda.device_of(hidden):
            _kernel("pool_forward", hidden.dtype)(
                address(hidden, hidden.dtype, device),
                rows,
                width,
                *pooling_arguments(pooling, device),
                address(sums, torch.float32, device),
                address(scales, torch.float64, device),
                address(pooled, torch.float32, device),
                address(norms, torch.float32, device),
                address(units, torch.float64, device),
                *_target(hidden),
            )
        return pooled, norms, units

    def pool_backward(
        self,
        pooled_grad: Tensor,
        pooled: Tensor,
        norms: Tensor,
        units: Tensor,
        hidden: Tensor | None,
        rows: int,
        dtype: torch.dtype,
        pooling: Pooling,
        needs_grad: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (segments, width), device = pooled_grad.shape, pooled_grad.device
        if not segments or not _served(pooled_grad, dtype):
            return super().pool_backward(pooled_grad, pooled, norms, units, hidden, rows, dtype, pooling, needs_grad)
        d_hidden = pooled_grad.new_empty(rows, width, dtype=dtype) if needs_grad[0] else None
        d_weights = pooled_grad.new_empty(rows) if needs_grad[1] else None
        d_query = pooled_grad.new_empty(width) if needs_grad[2] else None
        sums = None if d_query is None else _piece_sums(pooled_grad, rows, width, segments)
        with torch.cuda.device_of(pooled_grad):
            _kernel("pool_backward", dtype)(
                address(pooled_grad, torch.float32, device),
                address(pooled, torch.float32, device),
                address(norms, torch.float32, device),
                address(units, torch.float64, device),
                address(hidden, dtype, device),
                rows,
                width,
                *pooling_arguments(pooling, device),
                address(sums, torch.float32, device),
                address(d_hidden, dtype, device),
                address(d_weights, torch.float32, device),
                address(d_query, torch.float32, device),
                *_target(pooled_grad),
            )
        return d_hidden, d_weights, d_query


def _served(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_cuda and dtype in _DTYPES


def _piece_sums(like: Tensor, rows: int, width: int, segments: int) -> Tensor:
    """[pieces, pitch] for what the pieces of the segments leave."""
    pieces, pitch = MODULE.cuda_pool_pieces(rows, segments), MODULE.cuda_pool_pitch(width)  # type: ignore[union-attr]
    return like.new_empty(pieces, pitch, dtype=torch.float32)


def _target(tensor: Tensor) -> tuple[int, int]:
    return tensor.get_device(), torch.cuda.current_stream(tensor.device).cuda_stream


def _kernel(name: str, dtype: torch.dtype):  # type: ignore[no-untyped-def]
    return getattr(MODULE, f"cuda_{name}_{_DTYPES[dtype]}")
