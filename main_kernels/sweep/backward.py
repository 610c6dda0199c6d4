"""The backward op, ``main_kernels::sweep_gradient_``, and how autograd joins it to the forward. Every gradient rule of
the sweep is here; the objectives are ordinary torch on its vectors.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..backends.accumulators import Lse
from ..backends.interface import ScoreGradTerms
from ..backends.workspace import WORKSPACE
from ..derivatives import first_only
from .grad_buffer import Gradient
from .inputs import (
    GradientInputs,
    Inputs,
    accumulating,
    accumulator_dtype,
    announced_of,
    make_problem,
    one_number,
    schema,
    selected_rows,
)
from .op import NAMES, VECTORS, sweep_op
from .tiling import Problem, backward_walk

_DIFFERENTIABLE = VECTORS.index("entropy") + 1  # the first outputs of the sweep
_WEIGHTS = Inputs._fields.index("weights")


@torch.library.custom_op(
    "main_kernels::sweep_gradient_",
    mutates_args=tuple(name for name, kind in GradientInputs.__annotations__.items() if "Changed" in str(kind)),
    schema=schema(GradientInputs, "()"),
)
def sweep_gradient_op(*arguments) -> None:  # type: ignore[no-untyped-def]
    """Fills the gradient buffers (those of length 0 are not wanted) from the upstream gradients of the vectors."""
    inputs = GradientInputs(*arguments)
    with torch.autocast(inputs.query.device.type, enabled=False):
        selected = selected_rows(inputs)
        problem = make_problem(inputs, selected)
        upstream = _upstream(inputs, problem.columns)
        whole = Gradient(inputs.d_query, inputs.d_query_low)
        dq, dk = whole, Gradient(inputs.d_key, inputs.d_key_low)
        if selected is not None:
            upstream = upstream.of_rows(selected)
            if dq.wanted:
                dq = Gradient(dq.high[selected], dq.low[selected[: dq.low.shape[0]]])
        row_factor = key_factor = None
        if inputs.gradient == "forward":
            row_factor, key_factor = _forward_mode(inputs, problem, selected, upstream, dq, dk)
        else:
            backward_walk(
                problem,
                upstream,
                kept=inputs.kept,
                d_query=dq,
                d_key=dk,
                d_bias=inputs.d_bias,
                d_scale=inputs.d_scale,
            )
        if dq.wanted:
            dq.finish_(problem.backend, row_factor)
        if dk.wanted:
            dk.finish_(problem.backend, key_factor)
        if selected is not None and whole.wanted:
            whole.high.zero_()
            whole.high[selected] = dq.high


def _upstream(inputs: GradientInputs, columns: Tensor | int) -> ScoreGradTerms:
    """What arrives for the scores, whichever output it arrives at; ``columns``: how many take part."""
    dtype, targets = inputs.query.dtype, inputs.targets is not None
    r = Lse(inputs.row_lse, inputs.row_low) if inputs.row_lse.numel() else None
    b = accumulating(inputs.d_column, dtype)
    upstream = ScoreGradTerms(
        row_lse_grad=accumulating(inputs.d_row, dtype),
        row_lse=r,
        column_lse_grad=b,
        column_lse=None if b is None else Lse(inputs.column_lse, inputs.column_low),
        target_grad=accumulating(inputs.d_target, dtype) if targets else None,
        softplus_grad=accumulating(inputs.d_softplus, dtype),
        row_sum_grad=accumulating(inputs.d_row_logits, dtype),
        column_sum_grad=accumulating(inputs.d_column_logits, dtype),
    )
    d_entropy = accumulating(inputs.d_entropy, dtype)
    if d_entropy is not None:  # of -sum_j p_j log p_j: -p_j (log p_j + entropy)
        upstream = replace(
            upstream,
            row_lse_grad=_sum(upstream.row_lse_grad, -d_entropy * inputs.entropy),
            neg_entropy_grad=-d_entropy,
        )
    d_loss = accumulating(inputs.d_loss, dtype)
    if d_loss is None or r is None:
        return upstream
    by_loss = announced_of(inputs).upstream(r, columns, targets=targets, factor=d_loss)
    return replace(
        upstream,
        row_lse_grad=_sum(upstream.row_lse_grad, by_loss.row_lse_grad),
        target_grad=_sum(upstream.target_grad, by_loss.target_grad),
        row_sum_grad=_sum(upstream.row_sum_grad, by_loss.row_sum_grad),
    )


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _forward_mode(
    inputs: GradientInputs,
    problem: Problem,
    selected: Tensor | None,
    upstream: ScoreGradTerms,
    dq: Gradient,
    dk: Gradient,
) -> tuple[Tensor | None, Tensor | None]:
    """Brings dq and dk to gradients that are exact up to one factor a row, and one for all of dk; returns the factors.

    The forward walk made those of the announced losses' sum. If these are all that is differentiated, they serve
    d_query, and d_key where all losses have the same factor; what they do not serve is walked for again."""
    others = (inputs.d_row, inputs.d_target, inputs.d_row_logits, inputs.d_softplus, inputs.d_entropy)
    factor = accumulating(inputs.d_loss, inputs.query.dtype)
    if factor is not None and selected is not None:
        factor = factor[selected]
    if factor is None or not factor.numel() or any(d is not None for d in others):
        _walk_again(problem, upstream, dq, dk)
        return None, None
    # the only wait for the device, where nobody knows
    uniform = not dk.wanted or inputs.uniform or bool((factor == factor[:1]).all())
    no_dk = dk.rows(slice(0))
    if not inputs.ready:
        announced = announced_of(inputs)
        announced = announced if selected is None else announced.of_rows(selected)
        assert upstream.row_lse is not None
        unit = announced.upstream(upstream.row_lse, problem.columns, targets=problem.targets is not None)
        _walk_again(problem, unit, dq, dk if uniform else no_dk)
    if not uniform:
        _walk_again(problem, upstream, dq.rows(slice(0)), dk)
    return factor, factor[:1] if uniform else None


def _walk_again(problem: Problem, upstream: ScoreGradTerms, dq: Gradient, dk: Gradient) -> None:
    if not (dq.wanted or dk.wanted):
        return
    nothing = problem.query.new_empty(0)
    backward_walk(problem, upstream, kept=nothing, d_query=dq, d_key=dk, d_bias=nothing, d_scale=nothing)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    given = Inputs(*inputs)
    out = dict(zip(NAMES, output, strict=False))
    ctx.save_for_backward(
        *given[:4],
        given.targets,
        given.row_ids,
        given.column_ids,
        given.weights,
        *(out[name] for name in ("row_lse", "row_low", "column_lse", "column_low", "entropy", "unweighted")),
    )
    ctx.softcap, ctx.ignore_index, ctx.keep_target = given.softcap, given.ignore_index, given.keep_target
    ctx.label_smoothing, ctx.z_loss = given.label_smoothing, given.z_loss
    ctx.donate, ctx.backend = given.donate, given.backend
    ctx.held = output[len(out) :]
    kept, d_query, _, d_key, _ = ctx.held
    at_once = d_query.shape[0] or d_key.shape[0]
    ctx.mode = "kept" if kept.shape[0] else "forward" if at_once else "recomputed"
    ctx.mark_non_differentiable(*output[_DIFFERENTIABLE:])
    ctx.set_materialize_grads(False)


@first_only("the score sweep")
def _backward(ctx, grads):  # type: ignore[no-untyped-def]
    query, key, scale, bias, targets, row_ids, column_ids, weights, *vectors = ctx.saved_tensors
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
    d_key = d_key.with_room(key.dtype)
    accumulator = accumulator_dtype(query.dtype)
    d_bias = query.new_zeros(key.shape[0] if wants_bias else 0, dtype=accumulator)
    d_scale = query.new_zeros(1 if wants_scale else 0, dtype=accumulator)
    upstream = [None if g is None or not g.numel() else g for g in grads[:_DIFFERENTIABLE]]
    row_lse, row_low, column_lse, column_low, entropy, unweighted = vectors
    d_loss = upstream[6]
    inputs = GradientInputs(
        query=query,
        key=key,
        scale=scale,
        bias=bias,
        softcap=ctx.softcap,
        targets=targets,
        ignore_index=ctx.ignore_index,
        row_ids=row_ids,
        column_ids=column_ids,
        keep_target=ctx.keep_target,
        weights=weights,
        label_smoothing=ctx.label_smoothing,
        z_loss=ctx.z_loss,
        row_lse=row_lse,
        row_low=row_low,
        column_lse=column_lse,
        column_low=column_low,
        entropy=entropy,
        d_row=upstream[0],
        d_column=upstream[1],
        d_target=upstream[2],
        d_row_logits=upstream[3],
        d_column_logits=upstream[4],
        d_softplus=upstream[5],
        d_loss=d_loss,
        d_entropy=upstream[7],
        uniform=d_loss is not None and one_number(d_loss),
        kept=kept,
        d_query=d_query.high,
        d_query_low=d_query.low,
        d_key=d_key.high,
        d_key_low=d_key.low,
        d_bias=d_bias,
        d_scale=d_scale,
        gradient=ctx.mode,
        ready=ready,
        backend=ctx.backend,
    )
    sweep_gradient_op(*inputs)
    if ready and ctx.donate and not traced:
        WORKSPACE.release(kept)
    gradients: list[Tensor | None] = [None] * len(Inputs._fields)
    if wants_query:
        gradients[0] = d_query.finished(query.dtype)
    if wants_key:
        gradients[1] = d_key.finished(key.dtype)
    if wants_scale:
        gradients[2] = d_scale[0].to(scale.dtype)
    if wants_bias:
        gradients[3] = d_bias.to(bias.dtype)
    if ctx.needs_input_grad[_WEIGHTS] and d_loss is not None:
        gradients[_WEIGHTS] = (d_loss * unweighted).to(weights.dtype)
    return tuple(gradients)


sweep_op.register_autograd(_backward, setup_context=_setup_context)
