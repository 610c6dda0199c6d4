"""CudaPooling: passes tensors to the CUDA kernels of ``main_kernels._C`` as structs of addresses.

So far these kernels are segment pooling. ``_C`` has them if it was built with MAIN_KERNELS_CUDA=1.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import cpu
from .cpu import address, fill_pooling, fill_struct
from .plain import PlainBackend
from .structs import Pooling

MODULE: ModuleType | None = cpu.MODULE if hasattr(cpu.MODULE, "cuda_pool_pieces") else None
WHY_NOT = "" if MODULE else cpu.WHY_NOT or "main_kernels._C was built without CUDA; MAIN_KERNELS_CUDA=1 builds it in"

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def why_not() -> str:
    """Return the reason why these kernels cannot run in this process; empty if they can. Loads the driver."""
    return WHY_NOT if MODULE is None else MODULE.cuda_why_not()


class CudaPooling(PlainBackend):
    """Pooling of states in device memory; the first base of a class whose second base supplies the other kernels."""

    def pool_forward(self, hidden: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor, Tensor]:
        segments = pooling.offsets.numel() - 1
        if not segments or not _supports(hidden, hidden.dtype):  # an empty grid is an error
            return super().pool_forward(hidden, pooling)
        (rows, width), device = hidden.shape, hidden.device
        pooled = hidden.new_empty(segments, width, dtype=torch.float32)
        norms = hidden.new_empty(segments, dtype=torch.float32)
        sums = _piece_sums(hidden, rows, width, segments)
        units = hidden.new_empty(0 if pooling.uniform else rows, dtype=torch.float64)
        scales = None if pooling.uniform else units.new_empty(sums.shape[0], 2)
        with torch.cuda.device_of(hidden):
            states = _states(hidden, rows, width, hidden.dtype, sums, device)
            states.piece_scales = address(scales, torch.float64, device)
            MODULE.cuda_pool_forward(  # type: ignore[union-attr]
                states, fill_pooling(MODULE, pooling, device), _pooled(pooled, norms, units), _target(hidden)
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
        if not segments or not _supports(pooled_grad, dtype):
            return super().pool_backward(pooled_grad, pooled, norms, units, hidden, rows, dtype, pooling, needs_grad)
        d_hidden = pooled_grad.new_empty(rows, width, dtype=dtype) if needs_grad[0] else None
        d_weights = pooled_grad.new_empty(rows) if needs_grad[1] else None
        d_query = pooled_grad.new_empty(width) if needs_grad[2] else None
        sums = None if d_query is None else _piece_sums(pooled_grad, rows, width, segments)
        with torch.cuda.device_of(pooled_grad):
            gradients = fill_struct(
                MODULE.CudaPoolGradients(),  # type: ignore[union-attr]
                hidden=address(d_hidden, dtype, device),
                weights=address(d_weights, torch.float32, device),
                query=address(d_query, torch.float32, device),
            )
            MODULE.cuda_pool_backward(  # type: ignore[union-attr]
                address(pooled_grad, torch.float32, device),
                _pooled(pooled, norms, units),
                _states(hidden, rows, width, dtype, sums, device),
                fill_pooling(MODULE, pooling, device),
                gradients,
                _target(pooled_grad),
            )
        return d_hidden, d_weights, d_query


def _supports(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_cuda and dtype in _DTYPES


def _piece_sums(like: Tensor, rows: int, width: int, segments: int) -> Tensor:
    """Allocate [pieces, pitch], the partial sums of the segments' pieces."""
    pieces, pitch = MODULE.cuda_pool_pieces(rows, segments), MODULE.cuda_pool_pitch(width)  # type: ignore[union-attr]
    return like.new_empty(pieces, pitch, dtype=torch.float32)


def _states(
    hidden: Tensor | None, rows: int, width: int, dtype: torch.dtype, piece_sums: Tensor | None, device: torch.device
) -> Any:
    return fill_struct(
        MODULE.CudaStates(),  # type: ignore[union-attr]
        dtype=getattr(MODULE.CudaDType, _DTYPES[dtype]),  # type: ignore[union-attr]
        hidden=address(hidden, dtype, device),
        rows=rows,
        width=width,
        piece_sums=address(piece_sums, torch.float32, device),
    )


def _pooled(pooled: Tensor, norms: Tensor, units: Tensor) -> Any:
    return fill_struct(
        MODULE.Pooled(),  # type: ignore[union-attr]
        rows=address(pooled, torch.float32, pooled.device),
        norms=address(norms, torch.float32, pooled.device),
        units=address(units, torch.float64, pooled.device),
    )


def _target(tensor: Tensor) -> Any:
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return fill_struct(MODULE.CudaTarget(), device=tensor.get_device(), stream=stream)  # type: ignore[union-attr]
