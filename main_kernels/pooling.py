"""Pooling packed states into one embedding a segment."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import checks
from .backends import get_backend, select_backend
from .backends.interface import Pooling
from .derivatives import first_only, no_tangents


def segment_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    *,
    mode: Literal["mean", "last", "attention"] = "mean",
    query: Tensor | None = None,
    row_weights: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """One embedding per segment of a padding-free packed sequence, from one pass over the states (forward and backward
    each; the backward of an unweighted mean or of the last row reads none).

    ======================  ==========================================================================================
    ``"mean"``              sum_t w_t h_t / sum_t w_t over the segment's rows, w = 1 without weights
    ``"last"``              its last row
    ``"attention"``         sum_t a_t h_t with a_t = w_t exp(h_t·query) / sum_s w_s exp(h_s·query): a softmax whose
                            exponentials are multiplied by the weights (attention pooling with a given query, as in
                            Yang et al., 2016, without their projection)
    ======================  ==========================================================================================

    Args:
        hidden: [T, D] states, float32, bfloat16, float16 or float64.
        cu_seqlens: int32 or int64 [B + 1], non-decreasing, within [0, T]; segment b is the rows
            cu_seqlens[b] .. cu_seqlens[b + 1] - 1 (the convention of flash-attention). Rows before the first and after
            the last offset belong to no segment.
        query: floating [D], for mode "attention" only, which needs it. It is used as it is: scale it, by 1/√D or a
            temperature, before.
        row_weights: floating [T], one per row, for the modes "mean" and "attention". A segment whose weights sum to 0
            is a zero embedding and passes no gradient. A row of weight 0 does not count, but a NaN in it still shows.
        normalize: divide by the Euclidean norm. A zero embedding, and that of an empty segment, stays zero and passes
            no gradient.

    Sums are accumulated in float32 or wider, query and row_weights are read as float32 (float64 for float64 states).
    Gradients reach hidden, query and row_weights.

    Returns:
        [B, D] in the dtype of hidden.

    Raises:
        ValueError: for shapes, dtypes, devices, offsets or combinations that do not fit, naming the argument.
    """
    checks.check_matrix("hidden", hidden, least=0)
    checks.check_choice("mode", mode, ("mean", "last", "attention"))
    checks.check_offsets("cu_seqlens", cu_seqlens, like=hidden)
    if (query is not None) != (mode == "attention"):
        wrong = "got none, want a tensor" if query is None else "got a tensor, want none"
        raise ValueError(f"query: {wrong} with mode {mode!r}")
    accumulator = torch.promote_types(hidden.dtype, torch.float32)
    if query is not None:
        checks.check_vector("query", query, hidden.shape[1], integer=False, like=hidden)
        query = query.to(accumulator)
    if row_weights is not None:
        if mode == "last":
            raise ValueError("row_weights: got a tensor, want none with mode 'last'")
        checks.check_vector("row_weights", row_weights, hidden.shape[0], integer=False, like=hidden)
        row_weights = row_weights.to(accumulator)
    no_tangents("segment_pool", hidden, row_weights, query)
    pooled, _, _ = _segment_pool(
        hidden, cu_seqlens, mode == "last", normalize, select_backend(hidden), row_weights, query
    )
    return pooled.to(hidden.dtype)


@torch.library.custom_op("main_kernels::segment_pool", mutates_args=())
def _segment_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    last: bool,
    normalize: bool,
    backend: str,
    weights: Tensor | None = None,
    query: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    checks.check_offset_values("cu_seqlens", cu_seqlens, hidden.shape[0])
    with torch.autocast(hidden.device.type, enabled=False):
        pooling = _pooling(cu_seqlens, last, normalize, weights, query)
        return get_backend(backend).pool_forward(hidden.contiguous(), pooling)


def _pooling(cu_seqlens: Tensor, last: bool, normalize: bool, weights: Tensor | None, query: Tensor | None) -> Pooling:
    return Pooling(
        cu_seqlens.to(torch.int64).contiguous(),
        last,
        normalize,
        None if weights is None else weights.contiguous(),
        None if query is None else query.contiguous(),
    )


@_segment_pool.register_fake
def _(
    hidden: Tensor,
    cu_seqlens: Tensor,
    last: bool,
    normalize: bool,
    backend: str,
    weights: Tensor | None = None,
    query: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    segments, uniform = cu_seqlens.shape[0] - 1, weights is None and query is None
    return (
        hidden.new_empty(segments, hidden.shape[1], dtype=dtype),
        hidden.new_empty(segments, dtype=dtype),
        hidden.new_empty(0 if uniform else hidden.shape[0], dtype=torch.float64),
    )


@torch.library.custom_op("main_kernels::segment_pool_gradient", mutates_args=())
def _segment_pool_gradient(
    upstream: Tensor,
    pooled: Tensor,
    norms: Tensor,
    units: Tensor,
    cu_seqlens: Tensor,
    hidden: Tensor | None,
    weights: Tensor | None,
    query: Tensor | None,
    rows: int,
    last: bool,
    normalize: bool,
    dtype: torch.dtype,
    grad_hidden: bool,
    grad_weights: bool,
    grad_query: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden[T, D], weights[T] and query[D], of no elements where not wanted."""
    with torch.autocast(upstream.device.type, enabled=False):
        gradients = get_backend(backend).pool_backward(
            upstream.contiguous(),
            pooled,
            norms,
            units,
            None if hidden is None else hidden.contiguous(),
            rows,
            dtype,
            _pooling(cu_seqlens, last, normalize, weights, query),
            (grad_hidden, grad_weights, grad_query),
        )
        absent = (upstream.new_empty(0, upstream.shape[1], dtype=dtype), upstream.new_empty(0), upstream.new_empty(0))
        d_hidden, d_weights, d_query = (a if g is None else g for g, a in zip(gradients, absent, strict=True))
        return d_hidden, d_weights, d_query


@_segment_pool_gradient.register_fake
def _(
    upstream: Tensor,
    pooled: Tensor,
    norms: Tensor,
    units: Tensor,
    cu_seqlens: Tensor,
    hidden: Tensor | None,
    weights: Tensor | None,
    query: Tensor | None,
    rows: int,
    last: bool,
    normalize: bool,
    dtype: torch.dtype,
    grad_hidden: bool,
    grad_weights: bool,
    grad_query: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    width = upstream.shape[1]
    return (
        upstream.new_empty(rows if grad_hidden else 0, width, dtype=dtype),
        upstream.new_empty(rows if grad_weights else 0),
        upstream.new_empty(width if grad_query else 0),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    hidden, cu_seqlens, ctx.last, ctx.normalize, ctx.backend, weights, query = inputs
    pooled, norms, units = output
    # the states are kept alive only where the backward reads them
    states = hidden if query is not None or (weights is not None and weights.requires_grad) else None
    ctx.save_for_backward(pooled, norms, units, cu_seqlens, states, weights, query)
    ctx.rows, ctx.dtype = hidden.shape[0], hidden.dtype
    ctx.mark_non_differentiable(norms, units)


@first_only("segment_pool")
def _backward(ctx, upstream, _norms, _units):  # type: ignore[no-untyped-def]
    needed = (*ctx.needs_input_grad, False, False)  # an argument left at its default is not among them
    grad_hidden, grad_weights, grad_query = needed[0], needed[5], needed[6]
    d_hidden, d_weights, d_query = _segment_pool_gradient(
        upstream,
        *ctx.saved_tensors,
        ctx.rows,
        ctx.last,
        ctx.normalize,
        ctx.dtype,
        grad_hidden,
        grad_weights,
        grad_query,
        ctx.backend,
    )
    return (
        d_hidden if grad_hidden else None,
        *(None,) * 4,
        d_weights if grad_weights else None,
        d_query if grad_query else None,
    )


_segment_pool.register_autograd(_backward, setup_context=_setup_context)
