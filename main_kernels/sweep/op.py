"""The sweep as torch.library ops: ``main_kernels::sweep`` and ``main_kernels::sweep_gradient_``, and how autograd
joins them. Every gradient rule of the package is here; the objectives are ordinary torch on the sweep's vectors.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..backends import ScoreMap, get
from ..backends.interface import Lse, Upstream
from ..backends.memory import borrow, give_back
from .gradient import Gradient
from .plan import GradientMode, Plan, gradient_mode, make_plan
from .walk import Problem, Reductions, backward_walk, forward_walk

_VECTORS = 6  # outputs of the op: these first, then what is held for the backward:
_LOWS = 2  # the lower parts of both log-sum-exps, the kept scores, the (high, low) planes of both gradients


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _plan(query: Tensor, key: Tensor) -> Plan:
    return make_plan(query.shape[0], key.shape[0], query.shape[1], query.dtype)


def _held(
    query: Tensor,
    key: Tensor,
    plan: Plan,
    column_sums: bool,
    grad_query: bool,
    grad_key: bool,
    grad_other: bool,
    workspace: int,
) -> list[Tensor]:
    """Empty buffers of the right shapes: kept, d_query.high, d_query.low, d_key.high, d_key.low."""
    rows, columns = query.shape[0], key.shape[0]
    mode: GradientMode = "none"
    if grad_query or grad_key or grad_other:
        mode = gradient_mode(
            plan,
            rows,
            columns,
            column_sums=column_sums,
            row_linear=not grad_other,
            workspace=workspace,
        )
    d_query = Gradient.empty(query, None if mode == "forward" and grad_query else 0)
    d_key = Gradient.empty(key, None if mode == "forward" and grad_key else 0)
    kept = borrow((rows if mode == "kept" else 0, columns), plan.compute, query.device)
    return [kept, d_query.high, d_query.low, d_key.high, d_key.low]


def _problem(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    softcap: float,
    targets: Tensor | None,
    plan: Plan,
    backend: str,
) -> Problem:
    accumulator = accumulator_dtype(query.dtype)
    return Problem(
        query=query.to(plan.compute).contiguous(),
        key=key.to(plan.compute).contiguous(),
        score_map=ScoreMap(
            float(scale),
            softcap,
            None if bias is None else bias.to(accumulator).contiguous(),
        ),
        targets=targets,
        plan=plan,
        backend=get(backend),
    )


def _selected_rows(targets: Tensor | None) -> Tensor | None:
    """Indices of the rows that take part, or None when all do."""
    if targets is None:
        return None
    masked = targets < 0
    return (~masked).nonzero()[:, 0] if bool(masked.any()) else None


def _check_range(targets: Tensor | None, columns: int) -> None:
    if targets is None:
        return
    wrong = (targets >= columns) | (targets < -1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"targets: row {row} has {int(targets[row])}, want an id from 0 to {columns - 1} or the ignored one"
        )


@torch.library.custom_op("main_kernels::sweep", mutates_args=())
def sweep_op(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    softcap: float,
    targets: Tensor | None,
    column_sums: bool,
    statistics: bool,
    grad_query: bool,
    grad_key: bool,
    grad_other: bool,
    workspace: int,
    donate: bool,
    backend: str,
) -> list[Tensor]:
    """query[N, D], key[M, D] -> the six vectors of Reductions (length 0 where not asked for), then the held state.

    Rows whose target is negative take no part at all: their outputs are 0 and their gradients too. grad_other: scale
    or bias needs a gradient. donate: the caller drops the held state, so the backward may use it up in place."""
    with torch.autocast(query.device.type, enabled=False):
        _check_range(targets, key.shape[0])
        accumulator = accumulator_dtype(query.dtype)
        plan = _plan(query, key)
        held = _held(query, key, plan, column_sums, grad_query, grad_key, grad_other, workspace)
        selected = _selected_rows(targets)
        full_query = query
        if selected is not None and targets is not None:
            query, targets = query[selected], targets[selected]
        problem = _problem(query, key, scale, bias, softcap, targets, plan, backend)
        d_query = Gradient(held[1], held[2])
        if selected is not None and d_query.wanted:
            d_query = Gradient.empty(query)
        out = forward_walk(
            problem,
            accumulator=accumulator,
            column_sums=column_sums,
            statistics=statistics,
            kept=held[0],
            d_query=d_query,
            d_key=Gradient(held[3], held[4]),
        )
        if selected is not None:
            _scatter_rows(out, selected, full_query.shape[0])
            if held[1].shape[0]:
                Gradient(held[1], held[2]).zero_()
                held[1][selected], held[2][selected[: d_query.low.shape[0]]] = d_query.high, d_query.low
        columns = out.column_lse
        vectors = [
            out.row_lse.high,
            None if columns is None else columns.high,
            out.target,
            out.mean,
            out.row_rank,
            out.column_rank,
            out.row_lse.low,
            None if columns is None else columns.low,
        ]
        absent = full_query.new_empty(0, dtype=accumulator)
        return [absent.clone() if v is None else v for v in vectors] + held


def _scatter_rows(out: Reductions, selected: Tensor, count: int) -> None:
    """Back to all ``count`` rows, zero where a row took no part."""

    def full(vector: Tensor | None) -> Tensor | None:
        return None if vector is None else vector.new_zeros(count).index_copy_(0, selected, vector)

    out.row_lse = Lse(full(out.row_lse.high), full(out.row_lse.low))  # type: ignore[arg-type]
    out.target, out.mean, out.row_rank = full(out.target), full(out.mean), full(out.row_rank)


@sweep_op.register_fake
def _sweep_fake(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    softcap: float,
    targets: Tensor | None,
    column_sums: bool,
    statistics: bool,
    grad_query: bool,
    grad_key: bool,
    grad_other: bool,
    workspace: int,
    donate: bool,
    backend: str,
) -> list[Tensor]:
    rows, columns = query.shape[0], key.shape[0]
    lengths = [
        rows,
        columns if column_sums else 0,
        0 if targets is None else rows,
        rows if statistics else 0,
        rows if statistics and targets is not None else 0,
        columns if statistics and column_sums else 0,
        rows,
        columns if column_sums else 0,
    ]
    accumulator = accumulator_dtype(query.dtype)
    held = _held(
        query,
        key,
        _plan(query, key),
        column_sums,
        grad_query,
        grad_key,
        grad_other,
        workspace,
    )
    return [query.new_empty(n, dtype=accumulator) for n in lengths] + held


@torch.library.custom_op(
    "main_kernels::sweep_gradient_",
    mutates_args=(
        "kept",
        "d_query",
        "d_query_low",
        "d_key",
        "d_key_low",
        "d_bias",
        "d_scale",
    ),
)
def sweep_gradient_op(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    softcap: float,
    targets: Tensor | None,
    row_lse: Tensor,
    row_low: Tensor,
    column_lse: Tensor,
    column_low: Tensor,
    d_row: Tensor | None,
    d_column: Tensor | None,
    d_target: Tensor | None,
    kept: Tensor,
    d_query: Tensor,
    d_query_low: Tensor,
    d_key: Tensor,
    d_key_low: Tensor,
    d_bias: Tensor,
    d_scale: Tensor,
    gradient: str,
    ready: bool,
    backend: str,
) -> None:
    """Fills the gradient buffers (those of length 0 are not wanted) from the upstream gradients of row_lse,
    column_lse and target (None: zero).

    gradient: where the forward's plan makes the gradients. ready: its work is at hand, the raw scores in ``kept``
    (which are used up) or unit gradients in the buffers; otherwise it is done again, in the same order, to the same
    bits."""
    with torch.autocast(query.device.type, enabled=False):
        plan = _plan(query, key)
        selected = _selected_rows(targets)
        a = torch.zeros_like(row_lse) if d_row is None else d_row.to(row_lse.dtype)
        d = None if d_target is None or targets is None else d_target.to(row_lse.dtype)
        whole = Gradient(d_query, d_query_low)
        dq, dk = whole, Gradient(d_key, d_key_low)
        if selected is not None and targets is not None:
            query, targets, row_lse, row_low, a = (v[selected] for v in (query, targets, row_lse, row_low, a))
            d = None if d is None else d[selected]
            if dq.wanted:
                dq = Gradient(d_query[selected], d_query_low[selected[: d_query_low.shape[0]]])
        upstream = Upstream(
            a=a.contiguous(),
            r=Lse(row_lse, row_low),
            b=None if d_column is None else d_column.to(row_lse.dtype).contiguous(),
            c=None if d_column is None else Lse(column_lse, column_low),
            d=None if d is None else d.contiguous(),
        )
        problem = _problem(query, key, scale, bias, softcap, targets, plan, backend)
        row_factor = key_factor = a.new_ones(1)
        if gradient == "forward":
            row_factor, key_factor = _forward_mode(problem, upstream, ready, dq, dk)
        else:
            backward_walk(problem, upstream, kept=kept, d_query=dq, d_key=dk, d_bias=d_bias, d_scale=d_scale)
        if dq.wanted:
            dq.finish_(problem.backend, row_factor)
        if dk.wanted:
            dk.finish_(problem.backend, key_factor)
        if selected is not None and whole.wanted:
            whole.high.zero_()
            whole.high[selected] = dq.high


def _forward_mode(
    problem: Problem, upstream: Upstream, ready: bool, dq: Gradient, dk: Gradient
) -> tuple[Tensor, Tensor]:
    """Brings dq and dk to gradients that are exact up to one factor a row, and one for all of dk; returns the factors.

    The forward walk made them for unit upstream (a = 1, d = -1). That serves d_query whenever d = -a, and d_key when
    all rows weigh the same besides; whatever it does not serve is walked for again."""
    a, d = upstream.a, upstream.d
    one = a.new_ones(1)
    linear = d is not None and torch.equal(d, -a)
    uniform = linear and bool((a == a[:1]).all())
    unit = replace(upstream, a=torch.ones_like(a), d=-torch.ones_like(a))
    no_query, no_key = dq.rows(slice(0)), dk.rows(slice(0))
    if uniform:
        if not ready:
            _walk_again(problem, unit, dq, dk)
        return a, a[:1] if a.numel() else one
    if linear:
        if not ready:
            _walk_again(problem, unit, dq, no_key)
        _walk_again(problem, upstream, no_query, dk)
        return a, one
    _walk_again(problem, upstream, dq, dk)
    return one, one


def _walk_again(problem: Problem, upstream: Upstream, dq: Gradient, dk: Gradient) -> None:
    if not (dq.wanted or dk.wanted):
        return
    nothing = upstream.a.new_empty(0)
    kept = problem.query.new_empty(0)
    backward_walk(problem, upstream, kept=kept, d_query=dq, d_key=dk, d_bias=nothing, d_scale=nothing)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, key, scale, bias, softcap, targets, *_, donate, backend = inputs
    lows = output[_VECTORS : _VECTORS + _LOWS]
    ctx.save_for_backward(query, key, scale, bias, targets, output[0], lows[0], output[1], lows[1])
    ctx.softcap, ctx.donate, ctx.backend = softcap, donate, backend
    ctx.held = output[_VECTORS + _LOWS :]
    kept, d_query, _, d_key, _ = ctx.held
    at_once = d_query.shape[0] or d_key.shape[0]
    ctx.mode = "kept" if kept.shape[0] else "forward" if at_once else "recomputed"
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grads):  # type: ignore[no-untyped-def]
    query, key, scale, bias, targets, *sums = ctx.saved_tensors
    wants_query, wants_key, wants_scale, wants_bias = ctx.needs_input_grad[:4]
    # What the forward left is used up in place, once; a second backward through the same graph does the work again.
    held, ctx.held = ctx.held, None
    ready = held is not None
    traced = ready and type(held[0]) is not Tensor  # in a graph they are outputs, not ours to change
    if ready and (traced or not ctx.donate):
        held = [t.clone() for t in held]
    kept = held[0] if ready else query.new_empty(0)
    if ready and ctx.mode == "forward":
        d_query, d_key = Gradient(held[1], held[2]), Gradient(held[3], held[4])
    else:
        d_query = Gradient.empty(query, None if wants_query else 0)
        d_key = Gradient.empty(key, None if wants_key else 0)
    d_bias = sums[0].new_zeros(key.shape[0] if wants_bias else 0)
    d_scale = sums[0].new_zeros(1 if wants_scale else 0)
    sweep_gradient_op(
        query,
        key,
        scale,
        bias,
        ctx.softcap,
        targets,
        *sums,
        *(None if g is None or not g.numel() else g for g in grads[:3]),
        kept,
        d_query.high,
        d_query.low,
        d_key.high,
        d_key.low,
        d_bias,
        d_scale,
        ctx.mode,
        ready,
        ctx.backend,
    )
    if ready and ctx.donate and not traced:
        give_back(kept)
    return (
        d_query.high.to(query.dtype) if wants_query else None,
        d_key.high.to(key.dtype) if wants_key else None,
        d_scale[0].to(scale.dtype) if wants_scale else None,
        d_bias.to(bias.dtype) if wants_bias else None,
        *(None,) * 10,
    )


sweep_op.register_autograd(_backward, setup_context=_setup_context)
