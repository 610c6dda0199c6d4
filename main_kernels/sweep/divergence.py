"""divergence: the divergence of two score matrices' softmaxes, row by row, behind ``linear_kl``.

P = softmax(scale * H_p W_pᵀ) and Q = softmax(scale * H_q W_qᵀ) are [T, V]. Both are computed one chunk of rows at a
time. While both chunks are in memory the forward also computes the gradients of the sum of all rows: two products for
the scores and two for each trained model. The gradient of a row's hidden state is then exact up to a factor. The
gradients of the weights are exact if all rows have the same upstream gradient; otherwise they are recomputed (three
products per model).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..amp import gradient_dtype
from ..backends import Backend, get_backend
from ..backends.workspace import WORKSPACE
from ..registration import Op
from . import plan
from .grad_buffer import GradBuffer
from .half import divergence_power, over_power
from .operand import Operand
from .problem import count_true, score_matrix, valid_rows
from .row_loss import has_equal_entries, is_expanded_scalar
from .signatures import DivergenceArgs, DivergenceGradArgs, DivergenceOutputs

AnyArgs = DivergenceArgs | DivergenceGradArgs
OPERANDS = DivergenceArgs._fields[:4]


@dataclass(frozen=True)
class _Grads:
    """Gradient accumulators of the four operands."""

    p_hidden: GradBuffer
    p_weight: GradBuffer
    q_hidden: GradBuffer
    q_weight: GradBuffer

    @classmethod
    def empty(
        cls, operands: DivergenceArgs | _SavedTensors, needs_grad: dict[str, bool], dtypes: dict[str, torch.dtype]
    ) -> _Grads:
        rows = {name: None if needs_grad[name] else 0 for name in OPERANDS}
        return cls(
            **{name: GradBuffer.empty(getattr(operands, name), rows[name], dtype=dtypes[name]) for name in OPERANDS}
        )

    @classmethod
    def of(cls, planes: DivergenceOutputs | DivergenceGradArgs) -> _Grads:
        def buffer(name: str) -> GradBuffer:
            return GradBuffer(getattr(planes, f"{name}_high"), getattr(planes, f"{name}_low"))

        return cls(**{name: buffer(name) for name in OPERANDS})

    def planes(self) -> dict[str, Tensor]:
        return {
            f"{name}_{plane}": getattr(getattr(self, name), plane) for name in OPERANDS for plane in ("high", "low")
        }

    @property
    def is_traced(self) -> bool:
        """True in a graph, where the planes are outputs that must not be overwritten."""
        return type(self.p_hidden.high) is not Tensor

    @property
    def is_needed(self) -> bool:
        return any(getattr(self, name).is_needed for name in OPERANDS)

    @property
    def weights_are_needed(self) -> bool:
        return self.p_weight.is_needed or self.q_weight.is_needed

    def only_hidden(self) -> _Grads:
        none = slice(0)
        return replace(self, p_weight=self.p_weight.rows(none), q_weight=self.q_weight.rows(none))

    def only_weights(self) -> _Grads:
        none = slice(0)
        return replace(self, p_hidden=self.p_hidden.rows(none), q_hidden=self.q_hidden.rows(none))


@dataclass
class _Model:
    """Operands and gradients of one of the two models."""

    hidden: Operand  # [T, D]
    weight: Operand  # [V, D]
    hidden_grad: GradBuffer
    weight_grad: GradBuffer
    scores: torch.dtype  # of the raw scores in memory

    @property
    def needs_grad(self) -> bool:
        return self.hidden_grad.is_needed or self.weight_grad.is_needed


def _accumulator(operands: AnyArgs) -> torch.dtype:
    is_wide = any(getattr(operands, name).dtype == torch.float64 for name in OPERANDS)
    return torch.float64 if is_wide else torch.float32


def _grad_dtypes(args: DivergenceArgs) -> dict[str, torch.dtype]:
    """Return the dtype of each operand's gradient."""
    return {name: gradient_dtype(getattr(args, name), getattr(args, f"{name}_source")) for name in OPERANDS}


def _run(args: DivergenceArgs) -> DivergenceOutputs:
    grads = _Grads.empty(args, {name: getattr(args, f"grad_{name}") for name in OPERANDS}, _grad_dtypes(args))
    ones = args.p_hidden.new_ones(args.p_hidden.shape[0], dtype=_accumulator(args))
    return DivergenceOutputs(_over_valid_rows(args, ones, grads, _power(args, ones, grads)), **grads.planes())


def _fake(args: DivergenceArgs) -> DivergenceOutputs:
    grads = _Grads.empty(args, {name: getattr(args, f"grad_{name}") for name in OPERANDS}, _grad_dtypes(args))
    values = args.p_hidden.new_empty(args.p_hidden.shape[0], dtype=_accumulator(args))
    return DivergenceOutputs(values, **grads.planes())


def _flops(args: DivergenceArgs) -> int:
    needs_grad = {name: getattr(args, f"grad_{name}") for name in OPERANDS}
    return _pass_flops(args, needs_grad)


def _pass_flops(args: AnyArgs, needs_grad: dict[str, bool]) -> int:
    """Return the FLOPs of one pass: both score matrices, and the gradients that are needed."""
    p = args.p_hidden.shape[1] * (1 + needs_grad["p_hidden"] + needs_grad["p_weight"])
    q = args.q_hidden.shape[1] * (1 + needs_grad["q_hidden"] + needs_grad["q_weight"])
    return 2 * count_true(args.mask, args.p_hidden.shape[0]) * args.p_weight.shape[0] * (p + q)


divergence_op = Op("divergence", DivergenceArgs, DivergenceOutputs, _run, fake=_fake, flops=_flops)


def _run_gradient(args: DivergenceGradArgs) -> None:
    """Fill the gradient buffers from the upstream gradient of the divergences."""
    grads, backend, mask = _Grads.of(args), get_backend(args.backend), args.mask
    values_grad = args.values_grad.to(_accumulator(args)).contiguous()
    ones = torch.ones_like(values_grad)
    power = _power(args, ones, grads)
    scalar = values_grad[:1]  # of the unmasked rows
    if mask is not None and values_grad.numel():
        scalar = values_grad[mask.to(torch.int8).argmax(0, keepdim=True)]
        values_grad = values_grad.where(mask, 0)
    is_scalar = args.is_scalar
    if not is_scalar and grads.weights_are_needed:  # synchronises with the device
        is_equal = values_grad == scalar
        is_scalar = bool((is_equal if mask is None else is_equal | ~mask).all())
    if not args.saved_available:
        _over_valid_rows(args, ones, grads if is_scalar else grads.only_hidden(), power)
    weight_factor = scalar if is_scalar and scalar.numel() else None
    weight_power = power
    if not is_scalar:
        weight_power = _power(args, values_grad, grads)
        _over_valid_rows(args, values_grad, grads.only_weights(), weight_power)
    for hidden in (grads.p_hidden, grads.q_hidden):
        if hidden.is_needed:
            hidden.finalize_(backend, over_power(values_grad, power))
    for weight in (grads.p_weight, grads.q_weight):
        if weight.is_needed:
            weight.finalize_(backend, over_power(weight_factor, weight_power))


def _gradient_flops(args: DivergenceGradArgs) -> int:
    grads, values_grad = _Grads.of(args), args.values_grad
    if args.mask is not None and checks.has_readable_values(args.mask):
        values_grad = values_grad[args.mask]
    is_scalar = args.is_scalar or not grads.weights_are_needed or has_equal_entries(values_grad)
    passes = []
    if not args.saved_available:
        passes.append(grads if is_scalar else grads.only_hidden())
    if not is_scalar:
        passes.append(grads.only_weights())
    needed = [{name: getattr(each, name).is_needed for name in OPERANDS} for each in passes if each.is_needed]
    return sum(_pass_flops(args, needs_grad) for needs_grad in needed)


divergence_gradient_op: Op[DivergenceGradArgs, Any] = Op(
    "divergence_gradient_", DivergenceGradArgs, None, _run_gradient, flops=_gradient_flops
)


def _plan(args: AnyArgs, side: str) -> plan.Plan:
    """Return the plan of one score matrix, "p" or "q"."""
    weight = getattr(args, f"{side}_weight")
    columns, width = weight.shape
    return plan.make_plan(args.p_hidden.shape[0], columns, width, weight.dtype, weight.device.type)


def _power(args: AnyArgs, row_grads: Tensor, grads: _Grads) -> Tensor | None:
    """Return the power [1] by which a float16 gradient is multiplied, see half.py; None if there is none."""
    if not grads.is_needed or torch.float16 not in (_plan(args, "p").compute, _plan(args, "q").compute):
        return None
    p_is_trained = grads.p_hidden.is_needed or grads.p_weight.is_needed
    operands = (args.q_hidden, args.q_weight) if p_is_trained and args.beta is None else None
    return divergence_power(row_grads, args.scale, operands)


def _over_valid_rows(args: AnyArgs, row_grads: Tensor, grads: _Grads, power: Tensor | None) -> Tensor:
    """Return the divergences [T], 0 for masked rows, and fill the gradients of power sum_i row_grads[i] values[i]."""
    values = torch.zeros_like(row_grads)
    if isinstance(args, DivergenceGradArgs) and not grads.is_needed:
        return values
    row_grads = row_grads if power is None else row_grads * power
    rows = valid_rows(args.mask)
    whole, backend = grads, get_backend(args.backend)
    if rows is None:
        _by_row_chunks(*_models(args, None, grads), args, row_grads.contiguous(), values, backend)
        return values
    needed = [name for name in ("p_hidden", "q_hidden") if getattr(whole, name).is_needed]
    grads = replace(whole, **{name: getattr(whole, name).empty_rows(rows.shape[0]) for name in needed})
    valid_values = values[rows]
    _by_row_chunks(*_models(args, rows, grads), args, row_grads[rows].contiguous(), valid_values, backend)
    values[rows] = valid_values
    for name in needed:
        getattr(whole, name).scatter_rows_(rows, getattr(grads, name))
    return values


def _models(args: AnyArgs, rows: Tensor | None, grads: _Grads) -> tuple[_Model, _Model]:
    """Return p and q, of the rows with the indices ``rows``. None: of all rows."""

    def model(side: str) -> _Model:
        hidden, weight = (getattr(args, f"{side}_{name}") for name in ("hidden", "weight"))
        planned = _plan(args, side)
        return _Model(
            Operand.of(hidden if rows is None else hidden[rows], planned.compute),
            Operand.of(weight, planned.compute),
            getattr(grads, f"{side}_hidden"),
            getattr(grads, f"{side}_weight"),
            planned.scores,
        )

    return model("p"), model("q")


def _by_row_chunks(p: _Model, q: _Model, args: AnyArgs, row_grads: Tensor, values: Tensor, backend: Backend) -> None:
    """Fill values[T] with the divergences, and the gradients of sum_i row_grads[i] values[i] that are needed."""
    rows, columns = p.hidden.tensor.shape[0], p.weight.tensor.shape[0]
    if not rows:
        p.weight_grad.zero_()
        q.weight_grad.zero_()
        return
    device = p.hidden.tensor.device
    step = plan.pair_chunk_rows(rows, columns, p.scores.itemsize + q.scores.itemsize, device.type)
    buffers = [score_matrix(min(step, rows), columns, model.scores, device, backend) for model in (p, q)]
    score_grads = [_gradient_buffer(model, buffer, backend) for model, buffer in zip((p, q), buffers, strict=True)]
    for begin in range(0, rows, step):
        chunk = slice(begin, min(begin + step, rows))
        size = slice(chunk.stop - begin)
        p_raw, q_raw = (
            model.weight.scores(model.hidden.rows(chunk), buffer[size])
            for model, buffer in zip((p, q), buffers, strict=True)
        )
        p_grad, q_grad = (None if grad is None else grad[size] for grad in score_grads)
        backend.divergence_(p_raw, q_raw, args.scale, args.beta, row_grads[chunk], values[chunk], p_grad, q_grad)
        for model, score_grad in ((p, p_grad), (q, q_grad)):
            if score_grad is None:
                continue
            if model.hidden_grad.is_needed:
                model.weight.add_to(model.hidden_grad.rows(chunk), score_grad, backend)
            if model.weight_grad.is_needed:
                model.weight_grad.add_product(backend, score_grad.T, model.hidden.rows(chunk), first=begin == 0)
    for buffer in buffers:
        WORKSPACE.release(buffer)


def _gradient_buffer(model: _Model, scores: Tensor, backend: Backend) -> Tensor | None:
    """Return the buffer of the scores' gradient: the scores' own unless products are narrower."""
    if not model.needs_grad:
        return None
    if model.hidden.compute == model.scores:
        return scores
    rows, columns = scores.shape
    return score_matrix(rows, columns, model.hidden.compute, scores.device, backend)


class _SavedTensors(NamedTuple):
    p_hidden: Tensor
    p_weight: Tensor
    q_hidden: Tensor
    q_weight: Tensor
    mask: Tensor | None


def _save(ctx: Any, args: DivergenceArgs, outputs: DivergenceOutputs) -> None:
    ctx.save_for_backward(*_SavedTensors(args.p_hidden, args.p_weight, args.q_hidden, args.q_weight, args.mask))
    ctx.grad_dtypes = _grad_dtypes(args)
    ctx.scale, ctx.beta, ctx.reuse_saved, ctx.backend = args.scale, args.beta, args.reuse_saved, args.backend
    ctx.saved = _Grads.of(outputs)
    ctx.mark_non_differentiable(*ctx.saved.planes().values())


def _backward(ctx: Any, grads: DivergenceOutputs, needs_grad: DivergenceArgs) -> dict[str, Tensor | None]:
    tensors = _SavedTensors(*ctx.saved_tensors)
    dtypes = ctx.grad_dtypes
    cast = {name for name in OPERANDS if getattr(needs_grad, f"{name}_source")}
    needed = {name: name in cast or bool(getattr(needs_grad, name)) for name in OPERANDS}
    # a second backward through the same graph finds no saved gradients and recomputes them
    saved, ctx.saved = ctx.saved, None
    if saved is not None and any(needed[name] and not getattr(saved, name).is_needed for name in OPERANDS):
        saved = None
    buffers = _Grads.empty(tensors, needed, dtypes) if saved is None else saved
    if saved is not None and (saved.is_traced or not ctx.reuse_saved):
        buffers = _Grads(**{name: getattr(saved, name).clone() for name in OPERANDS})
    buffers = _Grads(**{name: getattr(buffers, name).with_output(dtype) for name, dtype in dtypes.items()})
    divergence_gradient_op(
        DivergenceGradArgs(
            values_grad=grads.values,
            **tensors._asdict(),
            scale=ctx.scale,
            beta=ctx.beta,
            **buffers.planes(),
            is_scalar=is_expanded_scalar(grads.values),
            saved_available=saved is not None,
            backend=ctx.backend,
        )
    )
    return {
        f"{name}_source" if name in cast else name: getattr(buffers, name).result(dtype)
        for name, dtype in dtypes.items()
        if needed[name]
    }


divergence_op.register_autograd("linear_kl", save=_save, backward=_backward)
