"""segment_pool: pool the states of a packed sequence into one embedding per segment."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import checks
from .backends import get_backend, select_backend
from .backends.structs import Pooling
from .derivatives import no_transforms
from .registration import Op


def segment_pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    *,
    mode: Literal["mean", "last", "attention"] = "mean",
    query: Tensor | None = None,
    row_weights: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """Pool each segment of a padding-free packed sequence into one embedding.

    Forward and backward each read the states once; the backward of an unweighted mean or of the last row reads none.
    Sums are accumulated in float32 or wider. Gradients reach hidden, query and row_weights.

    | mode | embedding of a segment |
    |---|---|
    | ``"mean"`` | sum_t w_t h_t / sum_t w_t over the segment's rows, w = 1 without row_weights |
    | ``"last"`` | the segment's last row |
    | ``"attention"`` | sum_t a_t h_t with a_t = w_t exp(h_t·query) / sum_s w_s exp(h_s·query) |

    Attention pooling is that of Yang et al., 2016, with the given query and without their projection.

    Args:
        hidden: [T, D], float32, bfloat16, float16 or float64. States of all segments. T may be 0.
        cu_seqlens: int32 or int64 [B + 1], non-decreasing, within [0, T]. Segment b is the rows
            cu_seqlens[b] .. cu_seqlens[b + 1] - 1, as in flash-attention. Rows before the first and after the last
            offset belong to no segment.
        mode: the weights of the rows, see above.
        query: floating [D]. Required by mode "attention" and only allowed there. Not scaled: multiply it by 1/√D or
            divide it by a temperature before the call.
        row_weights: floating [T]. For the modes "mean" and "attention". A segment whose weights sum to 0 has a zero
            embedding and no gradient. A row of weight 0 does not count, but a NaN in it makes the embedding NaN.
        normalize: divide by the Euclidean norm. A zero embedding, such as that of an empty segment, stays zero and has
            no gradient.

    Returns:
        [B, D] in the dtype of hidden.

    Raises:
        ValueError: a shape, dtype, device, offset or combination is invalid. The message names the argument.

    Example:
        >>> cu_seqlens = torch.tensor([0, 3, 7])  # two segments of 3 and 4 tokens
        >>> embeddings = segment_pool(hidden, cu_seqlens)  # hidden [7, D] -> [2, D], unit norm
    """
    checks.check_matrix("hidden", hidden, least=0)
    checks.check_choice("mode", mode, ("mean", "last", "attention"))
    checks.check_offsets("cu_seqlens", cu_seqlens, like=hidden)
    if (query is not None) != (mode == "attention"):
        wrong = ("a tensor", "none") if query is None else ("none", "a tensor")
        raise ValueError(f"query: expected {wrong[0]} with mode {mode!r}, got {wrong[1]}")
    accumulator = torch.promote_types(hidden.dtype, torch.float32)
    if query is not None:
        checks.check_vector("query", query, hidden.shape[1], integer=False, like=hidden)
        query = query.to(accumulator)
    if row_weights is not None:
        if mode == "last":
            raise ValueError("row_weights: expected none with mode 'last', got a tensor")
        checks.check_vector("row_weights", row_weights, hidden.shape[0], integer=False, like=hidden)
        row_weights = row_weights.to(accumulator)
    no_transforms("segment_pool", hidden, row_weights, query)
    args = PoolArgs(hidden, cu_seqlens, row_weights, query, mode == "last", normalize, select_backend(hidden))
    return _segment_pool(args).pooled.to(hidden.dtype)


class PoolArgs(NamedTuple):
    """Arguments of ``main_kernels::segment_pool``."""

    hidden: Tensor  # [T, D]
    cu_seqlens: Tensor  # [B + 1]
    row_weights: Tensor | None  # [T], accumulator dtype
    query: Tensor | None  # [D], accumulator dtype
    last: bool  # only the last row of each segment
    normalize: bool
    backend: str


class PoolOutputs(NamedTuple):
    """Outputs of ``main_kernels::segment_pool``."""

    pooled: Tensor  # [B, D], accumulator dtype
    norms: Tensor  # [B] before normalising
    units: Tensor  # float64 [T], each row's coefficient per unit of its weight; [0] for uniform coefficients


class PoolGradArgs(NamedTuple):
    """Arguments of ``main_kernels::segment_pool_gradient``."""

    pooled_grad: Tensor
    pooled: Tensor
    norms: Tensor
    units: Tensor
    cu_seqlens: Tensor
    hidden: Tensor | None  # saved only if the backward reads it
    row_weights: Tensor | None
    query: Tensor | None
    rows: int
    last: bool
    normalize: bool
    dtype: torch.dtype  # of hidden
    grad_hidden: bool  # needs a gradient
    grad_weights: bool
    grad_query: bool
    backend: str


class PoolGrads(NamedTuple):
    """Gradients of hidden [T, D], row_weights [T] and query [D], without elements if not needed."""

    hidden: Tensor
    row_weights: Tensor
    query: Tensor


def _pooling(args: PoolArgs | PoolGradArgs) -> Pooling:
    weights, query = args.row_weights, args.query
    return Pooling(
        args.cu_seqlens.to(torch.int64).contiguous(),
        args.last,
        args.normalize,
        None if weights is None else weights.contiguous(),
        None if query is None else query.contiguous(),
    )


def _run(args: PoolArgs) -> PoolOutputs:
    checks.check_offset_values("cu_seqlens", args.cu_seqlens, args.hidden.shape[0])
    return PoolOutputs(*get_backend(args.backend).pool_forward(args.hidden.contiguous(), _pooling(args)))


def _fake(args: PoolArgs) -> PoolOutputs:
    hidden, segments = args.hidden, args.cu_seqlens.shape[0] - 1
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    is_uniform = args.row_weights is None and args.query is None
    return PoolOutputs(
        hidden.new_empty(segments, hidden.shape[1], dtype=dtype),
        hidden.new_empty(segments, dtype=dtype),
        hidden.new_empty(0 if is_uniform else hidden.shape[0], dtype=torch.float64),
    )


def _run_gradient(args: PoolGradArgs) -> PoolGrads:
    grads = get_backend(args.backend).pool_backward(
        args.pooled_grad.contiguous(),
        args.pooled,
        args.norms,
        args.units,
        None if args.hidden is None else args.hidden.contiguous(),
        args.rows,
        args.dtype,
        _pooling(args),
        (args.grad_hidden, args.grad_weights, args.grad_query),
    )
    like, width = args.pooled_grad, args.pooled_grad.shape[1]
    absent = PoolGrads(like.new_empty(0, width, dtype=args.dtype), like.new_empty(0), like.new_empty(0))
    return PoolGrads(*(empty if grad is None else grad for grad, empty in zip(grads, absent, strict=True)))


def _fake_gradient(args: PoolGradArgs) -> PoolGrads:
    like, width = args.pooled_grad, args.pooled_grad.shape[1]
    return PoolGrads(
        like.new_empty(args.rows if args.grad_hidden else 0, width, dtype=args.dtype),
        like.new_empty(args.rows if args.grad_weights else 0),
        like.new_empty(width if args.grad_query else 0),
    )


_segment_pool = Op("segment_pool", PoolArgs, PoolOutputs, _run, fake=_fake)
_segment_pool_gradient = Op("segment_pool_gradient", PoolGradArgs, PoolGrads, _run_gradient, fake=_fake_gradient)


class _SavedTensors(NamedTuple):
    pooled: Tensor
    norms: Tensor
    units: Tensor
    cu_seqlens: Tensor
    hidden: Tensor | None
    row_weights: Tensor | None
    query: Tensor | None


def _save(ctx: Any, args: PoolArgs, outputs: PoolOutputs) -> None:
    weights = args.row_weights
    # the backward reads the states only for the gradients of the query and of the weights
    reads_hidden = args.query is not None or (weights is not None and weights.requires_grad)
    hidden = args.hidden if reads_hidden else None
    ctx.save_for_backward(*_SavedTensors(*outputs, args.cu_seqlens, hidden, weights, args.query))
    ctx.rows, ctx.dtype = args.hidden.shape[0], args.hidden.dtype
    ctx.last, ctx.normalize, ctx.backend = args.last, args.normalize, args.backend
    ctx.mark_non_differentiable(outputs.norms, outputs.units)


def _backward(ctx: Any, grads: PoolOutputs, needs_grad: PoolArgs) -> dict[str, Tensor | None]:
    args = PoolGradArgs(
        pooled_grad=grads.pooled,
        **_SavedTensors(*ctx.saved_tensors)._asdict(),
        rows=ctx.rows,
        last=ctx.last,
        normalize=ctx.normalize,
        dtype=ctx.dtype,
        grad_hidden=bool(needs_grad.hidden),
        grad_weights=bool(needs_grad.row_weights),
        grad_query=bool(needs_grad.query),
        backend=ctx.backend,
    )
    result = _segment_pool_gradient(args)
    return {
        "hidden": result.hidden if args.grad_hidden else None,
        "row_weights": result.row_weights if args.grad_weights else None,
        "query": result.query if args.grad_query else None,
    }


_segment_pool.register_autograd("segment_pool", save=_save, backward=_backward)
