"""sweep_op: the forward op, ``main_kernels::sweep``; backward.py registers its gradient."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter

import torch
from torch import Tensor

from .. import checks
from ..amp import gradient_dtype
from ..backends import get_backend
from ..backends.accumulators import Lse, ReductionSpec
from ..registration import Op
from .grad_buffer import GradBuffer, GradBuffers
from .plan import product_dtypes
from .problem import accumulator_dtype, count_true, make_problem, score_matrix, valid_mask, valid_rows
from .row_loss import RowLoss
from .signatures import FLOAT64, VECTORS, SweepArgs, SweepGradArgs, SweepOutputs
from .tiling import Reductions, tiled_forward

_requested = attrgetter(*(field.name for field in fields(ReductionSpec)))


def row_loss_of(args: SweepArgs | SweepGradArgs) -> RowLoss:
    """Return the row loss that the arguments describe."""
    return RowLoss(args.loss_weights, args.label_smoothing, args.z_loss)


def _run(args: SweepArgs) -> SweepOutputs:
    """Rows whose target is ignored are skipped: their outputs and gradients are 0."""
    query = args.query
    _check_targets(args)
    rows = valid_rows(valid_mask(args))
    # what is empty can wait until the device has something to do
    saved = _saved_scores(args) if args.gradient == "saved" else None
    grads = problem_grads = _grad_buffers(args) if args.gradient == "forward" else None
    problem, row_loss = make_problem(args, rows), row_loss_of(args) if args.has_row_loss else None
    if rows is not None:
        row_loss = None if row_loss is None else row_loss.of_rows(rows)
        if saved is not None:
            saved[rows.shape[0] :].zero_()  # the scores of the valid rows come first
        if grads is not None and grads.query.is_needed:
            problem_grads = GradBuffers(grads.query.empty_rows(rows.shape[0]), grads.key)
    reductions = tiled_forward(
        problem,
        ReductionSpec(*_requested(args)),
        row_loss=row_loss,
        saved_scores=saved,
        grads=problem_grads,
    )
    if rows is not None:
        _scatter_rows(reductions, rows, query.shape[0])
        if grads is not None and problem_grads is not None and grads.query.is_needed:
            grads.query.scatter_rows_(rows, problem_grads.query)
    saved = _saved_scores(args) if saved is None else saved
    return _outputs(args, reductions, saved, grads or _grad_buffers(args))


def _fake(args: SweepArgs) -> SweepOutputs:
    rows, columns = args.query.shape[0], args.key.shape[0]
    has_targets, ranks = args.targets is not None, args.ranks and args.targets is not None
    is_requested = {
        "row_lse": args.row_lse,
        "column_lse": args.column_lse,
        "target": has_targets,
        "row_logits": args.logit_sums,
        "column_logits": args.logit_sums and args.column_lse,
        "softplus": args.softplus,
        "loss": args.has_row_loss,
        "entropy": args.entropy,
        "unweighted_loss": args.has_row_loss and args.loss_weights is not None,
        "sigmoid": args.sigmoid,
        "clipped": args.clip > 0,
        "row_rank": ranks,
        "column_rank": ranks and args.column_lse,
        "row_lse_low": args.row_lse,
        "column_lse_low": args.column_lse,
    }

    def length(name: str) -> int:
        return 0 if not is_requested[name] else columns if name.startswith("column") else rows

    vectors = _empty_vectors(args, {name: length(name) for name in VECTORS})
    return _with_saved(vectors, _saved_scores(args), _grad_buffers(args))


def _flops(args: SweepArgs) -> int:
    grads = args.grad_query + args.grad_key if args.gradient == "forward" else 0
    return product_flops(args) * (1 + grads)


def product_flops(args: SweepArgs | SweepGradArgs) -> int:
    """Return the FLOPs of one product of the score matrix's shape."""
    return 2 * count_true(valid_mask(args), args.query.shape[0]) * args.key.shape[0] * args.query.shape[1]


sweep_op = Op("sweep", SweepArgs, SweepOutputs, _run, fake=_fake, flops=_flops)


def _check_targets(args: SweepArgs) -> None:
    targets, columns = args.targets, args.key.shape[0]
    if targets is None or not args.check_targets:
        return
    right = targets.clamp(0, columns - 1) == targets
    expected = f"expected an id from 0 to {columns - 1}"
    if args.ignore_index is not None:
        right |= targets == args.ignore_index
        expected += f", or {args.ignore_index}, which is ignored"
    if not checks.assert_on_device(right.all(), f"targets: {expected}") and not bool(right.all()):
        row = int((~right).nonzero()[0, 0])
        raise ValueError(f"targets: {expected}, got {int(targets[row])} in row {row}")
    if args.ranks and args.column_lse:
        _check_distinct_targets(targets, args.ignore_index)


def _check_distinct_targets(targets: Tensor, ignore_index: int | None) -> None:
    order = targets.argsort(stable=True)
    repeated = targets[order].diff() == 0
    if ignore_index is not None:
        repeated &= targets[order][1:] != ignore_index
    expected = "expected a column of its own for each row"
    if not checks.assert_on_device(~repeated.any(), f"targets: {expected}") and bool(repeated.any()):
        first, second = (int(order[int(repeated.nonzero()[0, 0]) + i]) for i in (0, 1))
        raise ValueError(
            f"targets: {expected}, got {int(targets[first])} in rows {first} and {second}: "
            "pass key[targets] as the keys instead"
        )


def _saved_scores(args: SweepArgs) -> Tensor:
    """Allocate the scores that the forward saves; empty unless the mode needs them."""
    rows, backend = args.query.shape[0] if args.gradient == "saved" else 0, get_backend(args.backend)
    (total, width), columns, device = args.query.shape, args.key.shape[0], args.query.device
    _, dtype = product_dtypes(total, columns, width, args.query.dtype, device.type)  # a plan would add guards on sizes
    return score_matrix(rows, columns, dtype, device, backend)


def _grad_buffers(args: SweepArgs) -> GradBuffers:
    """Allocate the gradients that the forward computes; empty unless the mode needs them."""
    computes = args.gradient == "forward"
    return GradBuffers(
        _grad_buffer(args.query, args.query_source, None if computes and args.grad_query else 0),
        _grad_buffer(args.key, args.key_source, None if computes and args.grad_key else 0),
    )


def _grad_buffer(operand: Tensor, source: Tensor | None, rows: int | None) -> GradBuffer:
    return GradBuffer.empty(operand, rows, dtype=gradient_dtype(operand, source))


def _outputs(args: SweepArgs, reductions: Reductions, saved: Tensor, grads: GradBuffers) -> SweepOutputs:
    """Replace reductions that were not requested by vectors of length 0."""
    vectors = dict(vars(reductions))
    for name in ("row_lse", "column_lse"):
        lse = vectors[name]
        vectors[name], vectors[f"{name}_low"] = (None, None) if lse is None else (lse.high, lse.low)
    vectors.update(_empty_vectors(args, {name: 0 for name, vector in vectors.items() if vector is None}))
    return _with_saved(vectors, saved, grads)


def _with_saved(vectors: dict[str, Tensor], saved: Tensor, grads: GradBuffers) -> SweepOutputs:
    return SweepOutputs(
        **vectors,
        saved_scores=saved,
        query_grad_high=grads.query.high,
        query_grad_low=grads.query.low,
        key_grad_high=grads.key.high,
        key_grad_low=grads.key.low,
    )


def _empty_vectors(args: SweepArgs, lengths: dict[str, int]) -> dict[str, Tensor]:
    """Allocate outputs, from their names and lengths."""
    empty, dtype = args.query.new_empty, accumulator_dtype(args.query.dtype)
    return {name: empty(n, dtype=torch.float64 if name in FLOAT64 else dtype) for name, n in lengths.items()}


def _scatter_rows(reductions: Reductions, rows: Tensor, count: int) -> None:
    """Expand the reductions of valid rows to all ``count`` rows, with 0 for ignored ones."""

    def expand(vector: Tensor) -> Tensor:
        return vector.new_zeros(count).index_copy_(0, rows, vector)

    for field in fields(Reductions):
        value = getattr(reductions, field.name)
        if field.name.startswith("column") or value is None:
            continue
        is_lse = isinstance(value, Lse)
        setattr(reductions, field.name, Lse(expand(value.high), expand(value.low)) if is_lse else expand(value))
