"""The backward op, ``main_kernels::sweep_gradient_``, and the sweep's one autograd rule.

All gradient rules of the sweep are here; an objective is ordinary torch on the sweep's vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..amp import gradient_dtype
from ..backends.accumulators import Lse
from ..backends.structs import ScoreGradTerms
from ..backends.workspace import WORKSPACE
from ..registration import Op
from .forward import product_flops, row_loss_of, sweep_op
from .grad_buffer import GradBuffer, GradBuffers
from .half import loss_power, over_power
from .plan import make_plan
from .problem import Problem, accumulator_dtype, make_problem, valid_mask, valid_rows
from .row_loss import has_equal_entries, is_expanded_scalar
from .signatures import DIFFERENTIABLE, SweepArgs, SweepGradArgs, SweepOutputs
from .tiling import finite_products, tiled_backward


def _run(args: SweepGradArgs) -> None:
    """Fill the gradient buffers from the upstream gradients of the vectors."""
    rows = valid_rows(valid_mask(args))
    problem = make_problem(args, rows)
    terms = _score_grad_terms(args, problem.valid_columns)
    query_grad = GradBuffer(args.query_grad_high, args.query_grad_low)
    grads = GradBuffers(query_grad, GradBuffer(args.key_grad_high, args.key_grad_low))
    if rows is not None:
        terms = terms.of_rows(rows)
        if query_grad.is_needed:
            grads.query = query_grad.gather_rows(rows)
    if args.gradient == "forward":
        factors = _by_row_loss(args, problem, rows, terms, grads)
    else:
        bias = args.bias if problem.score_map.is_uniform and args.bias_grad.numel() else None
        if bias is not None:
            args.bias_grad.copy_(_sum_of_score_grads(terms, args.sigmoid if rows is None else args.sigmoid[rows]))
        power = tiled_backward(
            problem,
            terms,
            saved_scores=args.saved_scores,
            grads=grads,
            bias_grad=args.bias_grad,
            scale_grad=args.scale_grad,
        )
        if bias is not None:
            args.scale_grad.add_(finite_products(bias, args.bias_grad))
            args.bias_grad.mul_(args.scale)
        factors = _Factors(over_power(None, power), over_power(None, power))
    if grads.query.is_needed:
        grads.query.finalize_(problem.backend, factors.query)
    if grads.key.is_needed:
        grads.key.finalize_(problem.backend, factors.key)
    if rows is not None and query_grad.is_needed:
        query_grad.high.zero_()
        query_grad.high[rows] = grads.query.high


def _flops(args: SweepGradArgs) -> int:
    has_query, has_key = bool(args.query_grad_high.shape[0]), bool(args.key_grad_high.shape[0])
    product = product_flops(args)
    if args.gradient == "saved" and args.saved_scores.numel():
        return product * (has_query + has_key)
    if args.gradient != "forward" or not _is_row_loss_alone(args) or args.loss_grad is None:
        return product * (1 + has_query + has_key)
    factor, mask = args.loss_grad, valid_mask(args)
    if mask is not None and checks.has_readable_values(mask):
        factor = factor[mask]
    is_scalar = not has_key or args.loss_grad_is_scalar or has_equal_entries(factor)
    recomputed = 0 if args.saved_available else 1 + has_query + (has_key and is_scalar)
    return product * (recomputed + (0 if is_scalar else 2))


sweep_gradient_op: Op[SweepGradArgs, Any] = Op("sweep_gradient_", SweepGradArgs, None, _run, flops=_flops)


def _score_grad_terms(args: SweepGradArgs, valid_columns: Tensor | int) -> ScoreGradTerms:
    """Combine the upstream gradients of all outputs into the coefficients of the scores' gradient."""

    def cast(vector: Tensor | None) -> Tensor | None:
        return _as_accumulator(vector, args.query.dtype)

    has_targets = args.targets is not None
    row_lse = Lse(args.row_lse, args.row_lse_low) if args.row_lse.numel() else None
    column_lse_grad = cast(args.column_lse_grad)
    terms = ScoreGradTerms(
        row_lse_grad=cast(args.row_lse_grad),
        row_lse=row_lse,
        column_lse_grad=column_lse_grad,
        column_lse=None if column_lse_grad is None else Lse(args.column_lse, args.column_lse_low),
        target_grad=cast(args.target_grad) if has_targets else None,
        softplus_grad=cast(args.softplus_grad),
        row_sum_grad=cast(args.row_logits_grad),
        column_sum_grad=cast(args.column_logits_grad),
    )
    entropy_grad = cast(args.entropy_grad)
    if entropy_grad is not None:  # the entropy is -sum_j p_j log p_j, its gradient -p_j (log p_j + entropy)
        terms = replace(
            terms,
            row_lse_grad=_sum(terms.row_lse_grad, -entropy_grad * args.entropy),
            neg_entropy_grad=-entropy_grad,
        )
    loss_grad = cast(args.loss_grad)
    if loss_grad is None or row_lse is None:
        return terms
    row_loss = row_loss_of(args)
    of_loss = row_loss.terms(row_lse.high, valid_columns, has_targets=has_targets, loss_grad=loss_grad).at(row_lse)
    return replace(
        terms,
        row_lse_grad=_sum(terms.row_lse_grad, of_loss.row_lse_grad),
        target_grad=_sum(terms.target_grad, of_loss.target_grad),
        row_sum_grad=_sum(terms.row_sum_grad, of_loss.row_sum_grad),
    )


def _sum_of_score_grads(terms: ScoreGradTerms, sigmoid: Tensor) -> Tensor:
    """Return the sum of dL/ds over all scores s: softplus has one sigmoid per score, and a target's score has one."""
    total = sigmoid.new_zeros((), dtype=torch.float64)
    if terms.softplus_grad is not None:
        total = total + (terms.softplus_grad * sigmoid.double()).sum()
    if terms.target_grad is not None:
        total = total + terms.target_grad.sum(dtype=torch.float64)
    return total


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _as_accumulator(vector: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Convert a vector to the accumulator dtype of operands of ``dtype``."""
    if vector is None or (vector.dtype == accumulator_dtype(dtype) and vector.is_contiguous()):
        return vector
    return vector.to(accumulator_dtype(dtype)).contiguous()


@dataclass(frozen=True)
class _Factors:
    """Factors by which the gradients have to be multiplied; None: 1."""

    query: Tensor | None  # [N] or [1]
    key: Tensor | None  # [1]


def _is_row_loss_alone(args: SweepGradArgs) -> bool:
    """Return True if no output but the row loss has an upstream gradient."""
    others = (args.row_lse_grad, args.target_grad, args.row_logits_grad, args.softplus_grad, args.entropy_grad)
    return all(grad is None for grad in others)


def _by_row_loss(
    args: SweepGradArgs, problem: Problem, rows: Tensor | None, terms: ScoreGradTerms, grads: GradBuffers
) -> _Factors:
    """Complete the gradients in gradient mode "forward", up to the factors that are returned.

    The forward computed the gradient of the sum of the row losses. If nothing else has an upstream gradient, it is the
    query's gradient up to a factor per row. It is the key's up to one factor if all losses have the same upstream
    gradient. Everything else is recomputed.
    """
    loss_grad = _as_accumulator(args.loss_grad, args.query.dtype)
    if loss_grad is not None and rows is not None:
        loss_grad = loss_grad[rows]
    if loss_grad is None or not loss_grad.numel() or not _is_row_loss_alone(args):
        power = _recompute(problem, terms, grads)
        return _Factors(over_power(None, power), over_power(None, power))
    # synchronises with the device if the gradient's layout does not show that it is a scalar
    is_scalar = not grads.key.is_needed or args.loss_grad_is_scalar or bool((loss_grad == loss_grad[:1]).all())
    row_loss = row_loss_of(args)
    row_loss = row_loss if rows is None else row_loss.of_rows(rows)
    query_power = key_power = loss_power(problem, row_loss)
    if not args.saved_available:
        assert terms.row_lse is not None
        has_targets = problem.targets is not None
        unit = row_loss.terms(terms.row_lse.high, problem.valid_columns, has_targets=has_targets).at(terms.row_lse)
        query_power = key_power = _recompute(problem, unit, grads if is_scalar else grads.only_query())
    if not is_scalar:
        key_power = _recompute(problem, terms, grads.only_key())
    return _Factors(over_power(loss_grad, query_power), over_power(loss_grad[:1] if is_scalar else None, key_power))


def _recompute(problem: Problem, terms: ScoreGradTerms, grads: GradBuffers) -> Tensor | None:
    """Compute the gradients again; return the power by which they are too large."""
    if not grads.is_needed:
        return None
    empty = problem.query.new_empty(0)
    return tiled_backward(problem, terms, saved_scores=empty, grads=grads, bias_grad=empty, scale_grad=empty)


class _SavedTensors(NamedTuple):
    """Tensors that autograd saves, arguments first; all but the last are arguments of the backward op."""

    query: Tensor
    key: Tensor
    scale: Tensor
    bias: Tensor | None
    targets: Tensor | None
    row_ids: Tensor | None
    column_ids: Tensor | None
    loss_weights: Tensor | None
    row_lse: Tensor
    row_lse_low: Tensor
    column_lse: Tensor
    column_lse_low: Tensor
    entropy: Tensor
    sigmoid: Tensor
    unweighted_loss: Tensor


_SETTINGS = "softcap", "ignore_index", "keep_target", "label_smoothing", "z_loss", "gradient", "backend"
"""Arguments of the forward that the backward op takes unchanged."""

_settings = attrgetter(*_SETTINGS)
_saved_arguments = attrgetter(*(name for name in _SavedTensors._fields if name not in SweepOutputs._fields))
_saved_outputs = attrgetter(*(name for name in _SavedTensors._fields if name in SweepOutputs._fields))
_not_differentiable = attrgetter(*(name for name in SweepOutputs._fields if name not in DIFFERENTIABLE))
_differentiable = attrgetter(*DIFFERENTIABLE)
_UPSTREAM = [f"{name}_grad" for name in DIFFERENTIABLE]


def _save(ctx: Any, args: SweepArgs, outputs: SweepOutputs) -> None:
    ctx.save_for_backward(*_saved_arguments(args), *_saved_outputs(outputs))
    ctx.settings, ctx.reuse_saved = dict(zip(_SETTINGS, _settings(args), strict=True)), args.reuse_saved
    ctx.grad_dtypes = gradient_dtype(args.query, args.query_source), gradient_dtype(args.key, args.key_source)
    ctx.saved = _Saved(
        outputs.saved_scores,
        GradBuffer(outputs.query_grad_high, outputs.query_grad_low),
        GradBuffer(outputs.key_grad_high, outputs.key_grad_low),
    )
    ctx.mark_non_differentiable(*_not_differentiable(outputs))


@dataclass
class _Saved:
    """State that the forward leaves to the first backward, which overwrites it."""

    scores: Tensor
    query_grad: GradBuffer
    key_grad: GradBuffer

    def clone(self) -> _Saved:
        return _Saved(self.scores.clone(), self.query_grad.clone(), self.key_grad.clone())

    @property
    def is_traced(self) -> bool:
        """True in a graph, where the state consists of outputs that must not be overwritten."""
        return type(self.scores) is not Tensor


def _are_sums(query: Tensor, key: Tensor) -> tuple[bool, bool]:
    """Return whether the gradients of query and key are sums of products, or wider than they are returned. If not, each
    is one bfloat16 product on a CPU."""
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or type(query.shape[0]) is not int:
        return True, True  # in a graph a plan would add guards on sizes
    (rows, width), columns = query.shape, key.shape[0]
    plan = make_plan(rows, columns, width, query.dtype)
    is_wider = plan.compute != query.dtype
    return is_wider, is_wider or plan.rows < rows


def _backward(ctx: Any, grads: SweepOutputs, needs_grad: SweepArgs) -> dict[str, Tensor | None]:
    tensors = _SavedTensors(*ctx.saved_tensors)
    query, key = tensors.query, tensors.key
    # a second backward through the same graph finds no saved state and recomputes it
    saved, ctx.saved = ctx.saved, None
    needs_query, needs_key = needs_grad.query or needs_grad.query_source, needs_grad.key or needs_grad.key_source
    query_dtype, key_dtype = ctx.grad_dtypes
    owns_saved = saved is not None and not saved.is_traced and ctx.reuse_saved
    if saved is not None and not owns_saved:
        saved = saved.clone()
    if saved is not None and ctx.settings["gradient"] == "forward":
        buffers = GradBuffers(saved.query_grad, saved.key_grad)
    else:
        query_is_sum, key_is_sum = _are_sums(query, key)
        buffers = GradBuffers(
            GradBuffer.empty(query, None if needs_query else 0, dtype=query_dtype, is_sum=query_is_sum),
            GradBuffer.empty(key, None if needs_key else 0, dtype=key_dtype, is_sum=key_is_sum),
        )
    buffers.key = buffers.key.with_output(key_dtype)
    nonempty = [None if grad is None or not grad.numel() else grad for grad in _differentiable(grads)]
    upstream = dict(zip(_UPSTREAM, nonempty, strict=True))
    loss_grad = upstream["loss_grad"]
    given: dict[str, Any] = {**dict(zip(_SavedTensors._fields[:-1], tensors[:-1], strict=True)), **upstream}
    bias_entries = tensors.bias.numel() if tensors.bias is not None and needs_grad.bias else 0
    is_vector = tensors.bias is not None and tensors.bias.dim() > 0
    args = SweepGradArgs(
        **given,
        **ctx.settings,
        loss_grad_is_scalar=loss_grad is not None and is_expanded_scalar(loss_grad),
        saved_scores=query.new_empty(0) if saved is None else saved.scores,
        query_grad_high=buffers.query.high,
        query_grad_low=buffers.query.low,
        key_grad_high=buffers.key.high,
        key_grad_low=buffers.key.low,
        bias_grad=query.new_zeros(bias_entries, dtype=accumulator_dtype(query.dtype) if is_vector else torch.float64),
        scale_grad=query.new_zeros(1 if needs_grad.scale else 0, dtype=torch.float64),
        saved_available=saved is not None,
    )
    sweep_gradient_op(args)
    if owns_saved:
        WORKSPACE.release(args.saved_scores)
    results: dict[str, Tensor | None] = {}
    if needs_query:
        results["query" if needs_grad.query else "query_source"] = buffers.query.result(query_dtype)
    if needs_key:
        results["key" if needs_grad.key else "key_source"] = buffers.key.result(key_dtype)
    if needs_grad.scale:
        results["scale"] = args.scale_grad[0].to(tensors.scale.dtype)
    if tensors.bias is not None and needs_grad.bias:
        results["bias"] = args.bias_grad.view_as(tensors.bias).to(tensors.bias.dtype)
    if tensors.loss_weights is not None and needs_grad.loss_weights and loss_grad is not None:
        results["loss_weights"] = (loss_grad * tensors.unweighted_loss).to(tensors.loss_weights.dtype)
    return results


sweep_op.register_autograd("the score sweep", save=_save, backward=_backward)
