"""The divergence of two score matrices' softmaxes, row by row: ``main_kernels::divergence``, its walk and its gradient.

P = softmax(scale * H_p W_pᵀ) and Q alike are [T, V] with one V; both are made a chunk of rows at a time. While both
chunks are at hand the forward makes the gradients too, for a unit weight of every row: two products for the scores and
two for each side that is trained. A row's hidden gradient is then right up to a factor; those of the weights are right
where all rows weigh the same, and are walked for again where they do not (three products a side's weight).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import Backend, get_backend
from ..backends.workspace import WORKSPACE
from ..derivatives import first_only
from . import plan
from .grad_buffer import Gradient
from .inputs import one_number, taking_part
from .operand import Operand

# A pair of chunks is no smaller than this a column: 256 rows of float32, 512 of bfloat16. With half as many, products
# for the weight's gradient took up to twice the time.
_COLUMN_BYTES = 2048


@dataclass
class _Side:
    """One of the two score matrices. Empty buffers stand for gradients that are not wanted."""

    hidden: Operand  # [T, D]
    weight: Operand  # [V, D]
    d_hidden: Gradient
    d_weight: Gradient

    @property
    def wanted(self) -> bool:
        return self.d_hidden.wanted or self.d_weight.wanted


def _chunk_rows(rows: int, columns: int, itemsize: int, device: str = "cpu") -> int:
    """Rows at a time: as many as fit, in chunks of one size so that none is thin. itemsize: of both scores together."""
    if device == "cuda":
        return plan.cuda_chunk_rows(rows, columns, itemsize)
    most = max(plan.CHUNK_BYTES // (columns * itemsize) // 64 * 64, _COLUMN_BYTES // itemsize)
    return -(-rows // -(-rows // most))


def _walk(
    p: _Side, q: _Side, scale: float, beta: float | None, weights: Tensor, values: Tensor, backend: Backend
) -> None:
    """Fills values[T] with the divergences, and the gradients of sum_i weights[i] values[i] that are wanted."""
    rows, columns = p.hidden.tensor.shape[0], p.weight.tensor.shape[0]
    if not rows:
        p.d_weight.zero_()
        q.d_weight.zero_()
        return
    device = p.hidden.tensor.device
    step = _chunk_rows(rows, columns, p.hidden.compute.itemsize + q.hidden.compute.itemsize, device.type)
    room = [WORKSPACE.acquire((step, columns), side.hidden.compute, device) for side in (p, q)]
    for begin in range(0, rows, step):
        chunk = slice(begin, min(begin + step, rows))
        p_raw, q_raw = scores = [
            side.weight.scores(side.hidden.rows(chunk), raw[: chunk.stop - begin])
            for side, raw in zip((p, q), room, strict=True)
        ]
        backend.divergence_(p_raw, q_raw, scale, beta, weights[chunk], values[chunk], p.wanted, q.wanted)
        for side, g in zip((p, q), scores, strict=True):
            if side.d_hidden.wanted:
                side.weight.add_to(side.d_hidden.rows(chunk), g, backend)
            if side.d_weight.wanted:
                side.d_weight.add_product(backend, g.T, side.hidden.rows(chunk), first=begin == 0)
    for raw in room:
        WORKSPACE.release(raw)


def _walk_selected(
    operands: list[Tensor],
    scale: float,
    beta: float | None,
    mask: Tensor | None,
    weights: Tensor,
    gradients: list[Gradient],
    backend: str,
) -> Tensor:
    """_walk over the rows that ``mask`` selects; operands and gradients: p's hidden and weight, then q's. Returns the
    divergences [T], 0 where a row takes no part; its gradient is 0 too."""
    count, values = weights.shape[0], torch.zeros_like(weights)
    selected = None if mask is None else taking_part(mask)
    part = values if selected is None else values[selected]
    sides, hiddens = [], []
    for hidden, weight, d_hidden, d_weight in zip(
        operands[::2], operands[1::2], gradients[::2], gradients[1::2], strict=True
    ):
        compute = plan.make_plan(count, weight.shape[0], weight.shape[1], weight.dtype, weight.device.type).compute
        if selected is not None:
            hidden = hidden[selected]
            if d_hidden.wanted:
                hiddens.append((d_hidden, Gradient.empty(hidden)))
                d_hidden = hiddens[-1][1]
        sides.append(_Side(Operand.of(hidden, compute), Operand.of(weight, compute), d_hidden, d_weight))
    weights = (weights if selected is None else weights[selected]).contiguous()
    _walk(sides[0], sides[1], scale, beta, weights, part, get_backend(backend))
    if selected is not None:
        values[selected] = part
    for whole, rows in hiddens:
        whole.zero_()
        whole.high[selected] = rows.high
        if rows.low.shape[0]:
            whole.low[selected] = rows.low
    return values


def _accumulator(operands: list[Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in operands) else torch.float32


def _buffers(operands: list[Tensor], wanted: list[bool]) -> list[Gradient]:
    return [Gradient.empty(t, None if w else 0) for t, w in zip(operands, wanted, strict=True)]


def _planes(gradients: list[Gradient]) -> list[Tensor]:
    return [plane for g in gradients for plane in (g.high, g.low)]


def _joined(planes: list[Tensor]) -> list[Gradient]:
    return [Gradient(high, low) for high, low in zip(planes[::2], planes[1::2], strict=True)]


@torch.library.custom_op("main_kernels::divergence", mutates_args=())
def divergence_op(
    p_hidden: Tensor,
    p_weight: Tensor,
    q_hidden: Tensor,
    q_weight: Tensor,
    scale: float,
    beta: float | None,
    mask: Tensor | None,
    grad_p_hidden: bool,
    grad_p_weight: bool,
    grad_q_hidden: bool,
    grad_q_weight: bool,
    donate: bool,
    backend: str,
) -> list[Tensor]:
    """p_hidden[T, Dp], p_weight[V, Dp], q_hidden[T, Dq], q_weight[V, Dq] -> the divergences [T], then the planes of the
    four gradients for a unit weight of every row, empty where not asked for.

    KL(p || q), or with beta the generalised Jensen-Shannon divergence. mask: bool [T], False takes no part. donate: the
    caller drops the planes, so the backward may finish them in place."""
    operands = [p_hidden, p_weight, q_hidden, q_weight]
    with torch.autocast(p_hidden.device.type, enabled=False):
        gradients = _buffers(operands, [grad_p_hidden, grad_p_weight, grad_q_hidden, grad_q_weight])
        unit = p_hidden.new_ones(p_hidden.shape[0], dtype=_accumulator(operands))
        values = _walk_selected(operands, scale, beta, mask, unit, gradients, backend)
        return [values, *_planes(gradients)]


@divergence_op.register_fake
def _(
    p_hidden: Tensor,
    p_weight: Tensor,
    q_hidden: Tensor,
    q_weight: Tensor,
    scale: float,
    beta: float | None,
    mask: Tensor | None,
    grad_p_hidden: bool,
    grad_p_weight: bool,
    grad_q_hidden: bool,
    grad_q_weight: bool,
    donate: bool,
    backend: str,
) -> list[Tensor]:
    operands = [p_hidden, p_weight, q_hidden, q_weight]
    values = p_hidden.new_empty(p_hidden.shape[0], dtype=_accumulator(operands))
    return [values, *_planes(_buffers(operands, [grad_p_hidden, grad_p_weight, grad_q_hidden, grad_q_weight]))]


@torch.library.custom_op(
    "main_kernels::divergence_gradient_",
    mutates_args=(
        "d_p_hidden",
        "d_p_hidden_low",
        "d_p_weight",
        "d_p_weight_low",
        "d_q_hidden",
        "d_q_hidden_low",
        "d_q_weight",
        "d_q_weight_low",
    ),
)
def divergence_gradient_op(
    upstream: Tensor,
    p_hidden: Tensor,
    p_weight: Tensor,
    q_hidden: Tensor,
    q_weight: Tensor,
    scale: float,
    beta: float | None,
    mask: Tensor | None,
    d_p_hidden: Tensor,
    d_p_hidden_low: Tensor,
    d_p_weight: Tensor,
    d_p_weight_low: Tensor,
    d_q_hidden: Tensor,
    d_q_hidden_low: Tensor,
    d_q_weight: Tensor,
    d_q_weight_low: Tensor,
    uniform: bool,
    ready: bool,
    backend: str,
) -> None:
    """Fills the gradient buffers (those of length 0 are not wanted) from the upstream gradient [T] of the divergences.

    uniform: upstream is known to be one number. ready: they hold the forward's unit gradients; otherwise these are made
    again, in the same order, to the same bits."""
    operands = [p_hidden, p_weight, q_hidden, q_weight]
    with torch.autocast(p_hidden.device.type, enabled=False):
        gradients = _joined(
            [
                d_p_hidden,
                d_p_hidden_low,
                d_p_weight,
                d_p_weight_low,
                d_q_hidden,
                d_q_hidden_low,
                d_q_weight,
                d_q_weight_low,
            ]
        )
        hiddens, weights = gradients[::2], gradients[1::2]
        no_hidden, no_weight = ([g.rows(slice(0)) for g in some] for some in (hiddens, weights))
        a = upstream.to(_accumulator(operands)).contiguous()
        common = a[:1]  # of those that take part
        if mask is not None and a.numel():
            common = a[mask.to(torch.int8).argmax(0, keepdim=True)]
            a = a.where(mask, 0)
        if not uniform and any(g.wanted for g in weights):  # the only wait for the device, where nobody knows
            same = a == common
            uniform = bool((same if mask is None else same | ~mask).all())

        def walk(row_weights: Tensor, hiddens: list[Gradient], weights: list[Gradient]) -> None:
            wanted = [hiddens[0], weights[0], hiddens[1], weights[1]]
            if any(g.wanted for g in wanted):
                _walk_selected(operands, scale, beta, mask, row_weights, wanted, backend)

        if not ready:
            walk(torch.ones_like(a), hiddens, weights if uniform else no_weight)
        if not uniform:
            walk(a, no_hidden, weights)
        for hidden in hiddens:
            if hidden.wanted:
                hidden.finish_(get_backend(backend), a)
        for weight in weights:
            if weight.wanted:
                weight.finish_(get_backend(backend), common if uniform and common.numel() else None)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *operands, ctx.scale, ctx.beta, mask, _, _, _, _, ctx.donate, ctx.backend = inputs
    ctx.save_for_backward(*operands, mask)
    ctx.held = output[1:]
    ctx.mark_non_differentiable(*output[1:])


@first_only("linear_kl")
def _backward(ctx, grads):  # type: ignore[no-untyped-def]
    *operands, mask = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:4]
    # What the forward left is finished in place, once; a second backward through the same graph makes it again.
    held, ctx.held = ctx.held, None
    ready = held is not None and all(g.wanted or not w for g, w in zip(_joined(held), wanted, strict=True))
    if ready and (type(held[0]) is not Tensor or not ctx.donate):  # in a graph they are outputs, not ours to change
        held = [t.clone() for t in held]
    gradients = _joined(held) if ready else _buffers(operands, wanted)
    gradients = [g.with_room(t.dtype) for g, t in zip(gradients, operands, strict=True)]
    buffers, uniform = _planes(gradients), one_number(grads[0])
    divergence_gradient_op(grads[0], *operands, ctx.scale, ctx.beta, mask, *buffers, uniform, ready, ctx.backend)
    finished = [g.finished(t.dtype) if w else None for g, t, w in zip(gradients, operands, wanted, strict=True)]
    return *finished, *(None,) * 9


divergence_op.register_autograd(_backward, setup_context=_setup_context)
