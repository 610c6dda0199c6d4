"""The backward op, ``main_kernels::sweep_gradient_``, and how autograd joins it to the forward. Every gradient rule of
the sweep is here; the objectives are ordinary torch on its vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.interface import Lse, Upstream
from ..backends.memory import give_back
from .gradient import Gradient
from .inputs import GradientInputs, Inputs, accumulator_dtype, announced_of, make_problem, schema, selected_rows
from .op import VECTORS, sweep_op
from .walk import Announced, Problem, backward_walk

_DIFFERENTIABLE = 6  # the first outputs of the sweep


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
        problem, upstream, announced = make_problem(inputs, selected), _upstream(inputs), announced_of(inputs)
        whole = Gradient(inputs.d_query, inputs.d_query_low)
        dq, dk = whole, Gradient(inputs.d_key, inputs.d_key_low)
        if selected is not None:
            upstream, announced = upstream.of_rows(selected), announced.of_rows(selected)
            if dq.wanted:
                dq = Gradient(dq.high[selected], dq.low[selected[: dq.low.shape[0]]])
        row_factor = key_factor = None
        if inputs.gradient == "forward":
            row_factor, key_factor = _forward_mode(problem, upstream, announced, inputs.ready, dq, dk)
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


def _upstream(inputs: GradientInputs) -> Upstream:
    accumulator = accumulator_dtype(inputs.query.dtype)

    def vector(given: Tensor | None) -> Tensor | None:
        return None if given is None else given.to(accumulator).contiguous()

    a, b = vector(inputs.d_row), vector(inputs.d_column)
    return Upstream(
        a=a,
        r=Lse(inputs.row_lse, inputs.row_low) if inputs.row_lse.numel() else None,
        b=b,
        c=None if b is None else Lse(inputs.column_lse, inputs.column_low),
        d=None if inputs.targets is None else vector(inputs.d_target),
        e=vector(inputs.d_softplus),
        u=vector(inputs.d_row_logits),
        v=vector(inputs.d_column_logits),
    )


def _forward_mode(
    problem: Problem, upstream: Upstream, announced: Announced, ready: bool, dq: Gradient, dk: Gradient
) -> tuple[Tensor | None, Tensor | None]:
    """Brings dq and dk to gradients that are exact up to one factor a row, and one for all of dk; returns the factors.

    The forward walk made them for the announced loss. That serves d_query whenever what arrives is a multiple of it in
    every row, and d_key when all rows have the same factor besides; whatever it does not serve is walked for again."""
    assert upstream.r is not None
    expected = announced.upstream(upstream.r, problem.key.shape[0], targets=problem.targets is not None)
    found = _row_factor(upstream, expected) if upstream.r.high.numel() else None
    if found is not None and expected.a is not None:
        factor, fits = found
        counted = expected.a != 0
        common = factor[counted.to(torch.int8).argmax(0, keepdim=True)]  # that of the first row which counts
        uniform = (_close(factor, common) | ~counted).all()
        row_fits, all_fit = torch.stack([fits, fits & uniform]).tolist()  # the only wait for the device
        if row_fits:
            if not ready:
                _walk_again(problem, expected, dq, dk)
            if not all_fit:
                _walk_again(problem, upstream, dq.rows(slice(0)), dk)
            return factor, common if all_fit else None
    _walk_again(problem, upstream, dq, dk)
    return None, None


def _close(got: Tensor, want: Tensor) -> Tensor:
    """Equal to a few roundings: how autograd happened to multiply the same factors is not a different gradient."""
    return (got - want).abs() <= 4 * torch.finfo(want.dtype).eps * want.abs()


def _row_factor(upstream: Upstream, expected: Upstream) -> tuple[Tensor, Tensor] | None:
    """[N], by what each row's weights exceed the expected ones, and whether that is the same for all of a row's; None
    where it cannot be."""
    pairs = [(upstream.a, expected.a), (upstream.d, expected.d), (upstream.u, expected.u)]
    if upstream.e is not None or any((got is None) != (want is None) for got, want in pairs):
        return None
    present = [(got, want) for got, want in pairs if got is not None and want is not None]
    # where an expected row weighs nothing, only nothing is a multiple of it
    gots, wants = (torch.stack([pair[i] for pair in present]) for i in (0, 1))
    largest = wants.abs().argmax(0, keepdim=True)
    top = wants.gather(0, largest)[0]
    factor = torch.where(top != 0, gots.gather(0, largest)[0] / top, 0)
    return factor, _close(gots, wants * factor).all()


def _walk_again(problem: Problem, upstream: Upstream, dq: Gradient, dk: Gradient) -> None:
    if not (dq.wanted or dk.wanted):
        return
    nothing = problem.query.new_empty(0)
    backward_walk(problem, upstream, kept=nothing, d_query=dq, d_key=dk, d_bias=nothing, d_scale=nothing)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    given = Inputs(*inputs)
    out = dict(zip([*VECTORS, "row_low", "column_low"], output, strict=False))
    ctx.save_for_backward(
        *given[:4],
        given.targets,
        given.row_ids,
        given.column_ids,
        given.weights,
        *(out[name] for name in ("row_lse", "row_low", "column_lse", "column_low")),
    )
    ctx.softcap, ctx.complete, ctx.keep_target = given.softcap, given.complete, given.keep_target
    ctx.label_smoothing, ctx.z_loss = given.label_smoothing, given.z_loss
    ctx.donate, ctx.backend = given.donate, given.backend
    ctx.held = output[len(out) :]
    kept, d_query, _, d_key, _ = ctx.held
    at_once = d_query.shape[0] or d_key.shape[0]
    ctx.mode = "kept" if kept.shape[0] else "forward" if at_once else "recomputed"
    ctx.mark_non_differentiable(*output[_DIFFERENTIABLE:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grads):  # type: ignore[no-untyped-def]
    query, key, scale, bias, targets, row_ids, column_ids, weights, *lse = ctx.saved_tensors
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
    row_lse, row_low, column_lse, column_low = lse
    inputs = GradientInputs(
        query=query,
        key=key,
        scale=scale,
        bias=bias,
        softcap=ctx.softcap,
        targets=targets,
        complete=ctx.complete,
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
        d_row=upstream[0],
        d_column=upstream[1],
        d_target=upstream[2],
        d_row_logits=upstream[3],
        d_column_logits=upstream[4],
        d_softplus=upstream[5],
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
        give_back(kept)
    return (
        d_query.finished(query.dtype) if wants_query else None,
        d_key.finished(key.dtype) if wants_key else None,
        d_scale[0].to(scale.dtype) if wants_scale else None,
        d_bias.to(bias.dtype) if wants_bias else None,
        *(None,) * (len(Inputs._fields) - 4),
    )


sweep_op.register_autograd(_backward, setup_context=_setup_context)
