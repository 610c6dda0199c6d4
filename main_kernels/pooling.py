"""Pooling packed states into one embedding a segment."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import checks
from .backends import choose, get


def segment_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    *,
    mode: Literal["mean", "last"] = "mean",
    normalize: bool = True,
) -> Tensor:
    """One embedding per segment of a padding-free packed sequence.

    Args:
        hidden: [T, D] states.
        cu_seqlens: int32 or int64 [B + 1], non-decreasing, within [0, T]; segment b is the rows
            cu_seqlens[b] .. cu_seqlens[b + 1] - 1 (the convention of flash-attention). Rows before the first and after
            the last offset belong to no segment.
        mode: the mean of a segment's rows (summed in float32), or its last row.
        normalize: divide by the Euclidean norm. A zero embedding, and that of an empty segment, stays zero and passes
            no gradient.

    Returns:
        [B, D] in the dtype of hidden.

    Raises:
        ValueError: for shapes, dtypes, devices or offsets that do not fit, naming the argument.
    """
    checks.matrix("hidden", hidden)
    checks.one_of("mode", mode, ("mean", "last"))
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        got = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise ValueError(f"cu_seqlens: got {got}, want an int32 or int64 tensor")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens: got shape {tuple(cu_seqlens.shape)}, want (B + 1,) with B >= 1")
    if cu_seqlens.device != hidden.device:
        raise ValueError(f"cu_seqlens: got device {cu_seqlens.device}, want {hidden.device}")
    pooled, _ = _segment_pool(hidden, cu_seqlens, mode == "last", normalize, choose(hidden))
    return pooled.to(hidden.dtype)


@torch.library.custom_op("main_kernels::segment_pool", mutates_args=())
def _segment_pool(
    hidden: Tensor, cu_seqlens: Tensor, last: bool, normalize: bool, backend: str
) -> tuple[Tensor, Tensor]:
    _check_offsets(cu_seqlens, hidden.shape[0])
    offsets = cu_seqlens.to(torch.int64)
    return get(backend).pool_forward(hidden.contiguous(), offsets, last, normalize)


def _check_offsets(cu_seqlens: Tensor, rows: int) -> None:
    steps = cu_seqlens.diff()
    if bool((steps < 0).any()):
        segment = int((steps < 0).nonzero()[0, 0])
        raise ValueError(f"cu_seqlens: segment {segment} has length {int(steps[segment])}, want non-decreasing offsets")
    if int(cu_seqlens[0]) < 0 or int(cu_seqlens[-1]) > rows:
        raise ValueError(
            f"cu_seqlens: got offsets {int(cu_seqlens[0])} to {int(cu_seqlens[-1])}, want them within 0 to {rows}"
        )


@_segment_pool.register_fake
def _(hidden: Tensor, cu_seqlens: Tensor, last: bool, normalize: bool, backend: str) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    segments = cu_seqlens.shape[0] - 1
    return hidden.new_empty(segments, hidden.shape[1], dtype=dtype), hidden.new_empty(segments, dtype=dtype)


@torch.library.custom_op("main_kernels::segment_pool_gradient", mutates_args=())
def _segment_pool_gradient(
    upstream: Tensor,
    pooled: Tensor,
    norms: Tensor,
    cu_seqlens: Tensor,
    rows: int,
    last: bool,
    normalize: bool,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    offsets = cu_seqlens.to(torch.int64)
    return get(backend).pool_backward(upstream.contiguous(), pooled, norms, offsets, rows, last, normalize, dtype)


@_segment_pool_gradient.register_fake
def _(
    upstream: Tensor,
    pooled: Tensor,
    norms: Tensor,
    cu_seqlens: Tensor,
    rows: int,
    last: bool,
    normalize: bool,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    return upstream.new_empty(rows, upstream.shape[1], dtype=dtype)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    hidden, cu_seqlens, ctx.last, ctx.normalize, ctx.backend = inputs
    ctx.save_for_backward(output[0], output[1], cu_seqlens)
    ctx.rows, ctx.dtype = hidden.shape[0], hidden.dtype
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, upstream, _norms):  # type: ignore[no-untyped-def]
    pooled, norms, cu_seqlens = ctx.saved_tensors
    gradient = _segment_pool_gradient(
        upstream, pooled, norms, cu_seqlens, ctx.rows, ctx.last, ctx.normalize, ctx.dtype, ctx.backend
    )
    return gradient, None, None, None, None


_segment_pool.register_autograd(_backward, setup_context=_setup_context)
