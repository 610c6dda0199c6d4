"""tiled_forward, tiled_backward: the two passes over the score matrix, one chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends.accumulators import ColumnAccumulators, Lse, ReductionSpec, RowAccumulators, select_rows
from ..backends.interface import FusedKernels, SingleExpKernels
from ..backends.structs import MAX_SCORE_BOUND, LossTerms, ScoreGradTerms
from ..backends.workspace import WORKSPACE
from . import products
from .grad_buffer import GradBuffers
from .half import gradient_power, loss_power
from .problem import Problem, accumulator_dtype
from .row_loss import RowLoss

# A pass that stores no scores uses tiles whose operands stay in the cache. Powers of two: with 4849 columns the same
# product took a quarter longer.
_TILE_ROWS, _TILE_COLUMNS = 2048, 4096


@dataclass
class Reductions:
    """Results of the forward pass, [N] or [M] in the accumulator dtype; None if not requested."""

    row_lse: Lse | None
    column_lse: Lse | None
    target: Tensor | None
    row_logits: Tensor | None
    column_logits: Tensor | None
    softplus: Tensor | None
    sigmoid: Tensor | None
    loss: Tensor | None
    entropy: Tensor | None
    unweighted_loss: Tensor | None
    clipped: Tensor | None
    row_rank: Tensor | None
    column_rank: Tensor | None


@dataclass
class _Accumulators:
    """Running sums of the forward pass."""

    rows: RowAccumulators
    columns: ColumnAccumulators | None
    single_exp: SingleExpKernels | None  # adds the chunks if every maximum is 0


def tiled_forward(
    problem: Problem,
    spec: ReductionSpec,
    *,
    row_loss: RowLoss | None,
    saved_scores: Tensor | None,
    grads: GradBuffers | None,
) -> Reductions:
    """Compute the reductions of the score matrix, at the cost of one product.

    Args:
        problem: the score matrix.
        spec: the reductions.
        row_loss: also return this loss.
        saved_scores: [N, M], receives the raw scores; None if they are not needed.
        grads: receive the gradients of the sum of the row losses; None if they are not needed.
    """
    if problem.fused is not None:
        return _reductions(problem, *_fused_forward(problem, problem.fused, spec), row_loss)
    accumulator = accumulator_dtype(problem.query.dtype)
    others = spec.entropy or (spec.logit_sums and spec.ranks) or spec.softplus or spec.clip
    is_infonce = spec.column_lse and spec.row_lse and not others
    single_exp = problem.backend.single_exp if is_infonce and problem.suits_single_exp() else None

    def empty() -> _Accumulators:
        device, maximum = problem.query.device, -torch.inf if single_exp is None else 0.0
        rows = RowAccumulators.empty(problem.query.shape[0], accumulator, device, spec, maximum=maximum)
        columns = None
        if spec.column_lse:
            columns = ColumnAccumulators.empty(problem.key.shape[0], accumulator, device, spec, maximum=maximum)
        if problem.backend.finishes_lse and problem.query.shape[0]:
            rows.expect_lse()
            if columns is not None:
                columns.expect_lse()
        return _Accumulators(rows, columns, single_exp)

    if spec.column_lse or spec.entropy or spec.ranks or saved_scores is not None or grads is not None:
        sums = _by_row_chunks(problem, empty, row_loss, saved_scores, grads)
    else:
        sums = empty()
        _by_tiles(problem, sums.rows)
    return _reductions(problem, sums.rows, sums.columns, row_loss)


def _fused_forward(
    problem: Problem, fused: FusedKernels, spec: ReductionSpec
) -> tuple[RowAccumulators, ColumnAccumulators | None]:
    query, key = problem.fused_operands
    target = column_target = None
    # ranks compare with the targets' scores, and ids mask a target, which is then put back
    is_put_back = problem.mask is not None and problem.mask.keep_target
    is_first = problem.targets is not None and (spec.ranks or is_put_back)
    if is_first and problem.targets is not None:
        target = query.new_empty(query.shape[0], dtype=torch.float32)
        fused.target_scores(query, key, problem.score_map, problem.targets, target)
        if spec.column_lse and spec.ranks:
            column_target = _of_columns(problem, target)
    scored = query, key, problem.score_map, problem.targets, problem.mask
    rows, columns = fused.reduce(*scored, spec, target, column_target)
    if not is_first and problem.targets is not None:
        fused.target_scores(query, key, problem.score_map, problem.targets, rows.target)
    return rows, columns


def _reductions(
    problem: Problem, rows: RowAccumulators, columns: ColumnAccumulators | None, row_loss: RowLoss | None
) -> Reductions:
    """Finish the running sums."""
    row_lse, column_lse = rows.lse(), None if columns is None else columns.lse()

    def rank(count: Tensor | None, lse: Lse | None) -> Tensor | None:
        # NaN if the log-sum-exp is: there is no rank among scores that are not finite (-inf: no score is higher)
        return None if count is None or lse is None or problem.targets is None else count + 0 * lse.high.clamp(min=0)

    target, loss, unweighted = None if problem.targets is None else rows.target, None, None
    if row_loss is not None and row_lse is not None:
        unweighted = row_loss.unweighted(row_lse, target, rows.logits, problem.valid_columns)
        loss = row_loss.weighted(unweighted)
    return Reductions(
        row_lse=row_lse,
        column_lse=column_lse,
        target=target,
        row_logits=rows.logits,
        column_logits=None if columns is None else columns.logits,
        softplus=None if rows.softplus is None else rows.softplus.to(rows.maximum.dtype),
        sigmoid=None if rows.sigmoid is None else rows.sigmoid.to(rows.maximum.dtype),
        loss=loss,
        entropy=rows.entropy(),
        unweighted_loss=None if row_loss is None or row_loss.weights is None else unweighted,
        clipped=rows.clipped_lse(),
        row_rank=rank(rows.rank, row_lse),
        column_rank=None if columns is None else rank(columns.rank, column_lse),
    )


def _by_row_chunks(
    problem: Problem,
    empty: Callable[[], _Accumulators],
    row_loss: RowLoss | None,
    saved_scores: Tensor | None,
    grads: GradBuffers | None,
) -> _Accumulators:
    """Reduce chunks of whole rows, and compute the gradients of the row losses while a chunk is in memory."""
    backend, score_map = problem.backend, problem.score_map
    if grads is not None and not problem.query.shape[0]:
        grads.key.zero_()
    buffer = problem.score_buffer() if saved_scores is None else None
    sums = terms = narrow = None
    for chunk in problem.chunks():
        size = chunk.stop - chunk.start
        if saved_scores is None:
            assert buffer is not None
            scores = select_rows(buffer, slice(0, size))
        else:
            scores = select_rows(saved_scores, chunk)
        problem.raw_scores(chunk, scores)
        if sums is None:  # not before: by now a device has enough to do
            sums = empty()
            if grads is not None and grads.is_needed and row_loss is not None:
                terms, narrow = _loss_terms(problem, row_loss, sums.rows), problem.gradient_buffer(separate=False)
        targets, mask, rows, columns = problem.targets_of(chunk), problem.mask_of(chunk), sums.rows[chunk], sums.columns
        if terms is not None and grads is not None:
            score_grad = scores if narrow is None else narrow[:size]
            backend.row_loss_(scores, score_map, targets, mask, rows, terms.of_rows(chunk), score_grad)
            _add_products(problem, score_grad, chunk, grads)
        elif sums.single_exp is not None and columns is not None and targets is not None:
            if columns.rank is not None and columns.target is None:
                own = score_map.apply(scores.gather(1, targets[:, None])[:, 0], rows.target.dtype)
                columns.target = _column_targets(problem, own)
            sums.single_exp.reduce(scores, float(score_map.scale), targets, mask, rows, columns)
        elif columns is not None and columns.rank is None:
            backend.reduce_both(scores, score_map, targets, mask, rows, columns)
        else:
            backend.reduce_rows(scores, score_map, targets, mask, rows)
            if columns is not None:
                if columns.target is None:
                    columns.target = _column_targets(problem, rows.target)
                backend.reduce_columns(scores, score_map, targets, mask, columns)
    if buffer is not None:
        WORKSPACE.release(buffer)
    return sums or empty()


def _loss_terms(problem: Problem, row_loss: RowLoss, rows: RowAccumulators) -> LossTerms:
    """Return the coefficients of the gradient of the row losses, and make room for the rows' log-sum-exps."""
    has_targets, like = problem.targets is not None, rows.maximum
    rows.expect_lse()
    terms = row_loss.terms(like, problem.valid_columns, has_targets=has_targets)
    return terms.scaled(loss_power(problem, row_loss))


def _by_tiles(problem: Problem, rows: RowAccumulators) -> None:
    """Reduce tiles of many rows and few columns, which read each operand less often. Only for row reductions."""
    count, columns = problem.query.shape[0], problem.key.shape[0]
    height = max(min(_TILE_ROWS, count), 1)
    width = min(_TILE_COLUMNS, columns)
    buffer = WORKSPACE.acquire((height * width,), problem.plan.scores, problem.query.device)
    query, key = problem.matmul_operands
    for top in range(0, count, height):
        chunk = slice(top, min(top + height, count))
        targets, mask, sums = problem.targets_of(chunk), problem.mask_of(chunk), rows[chunk]
        operand = query.rows(chunk)
        for left in range(0, columns, width):
            tile = slice(left, min(left + width, columns))
            shape = (chunk.stop - chunk.start, tile.stop - tile.start)
            raw = buffer[: shape[0] * shape[1]].view(shape)
            products.multiply(operand, key.rows(tile).T, raw)
            tile_targets = None if targets is None else targets - left
            tile_mask = None if mask is None else mask.of_columns(tile)
            problem.backend.reduce_rows(raw, problem.score_map.of_columns(tile), tile_targets, tile_mask, sums)
    WORKSPACE.release(buffer)


def tiled_backward(
    problem: Problem,
    terms: ScoreGradTerms,
    *,
    saved_scores: Tensor,
    grads: GradBuffers,
    bias_grad: Tensor,
    scale_grad: Tensor,
) -> Tensor | None:
    """Compute the gradients of query, key, bias and scale from those of the scores.

    Args:
        problem: the score matrix.
        terms: coefficients of the scores' gradient, [N] and [M].
        saved_scores: [N, M] raw scores, which are overwritten. Empty: recompute them.
        grads: receive the gradients of query and key, if they are needed.
        bias_grad: accumulator dtype [M], zero; receives the gradient. float64 [1]: the sum of dL/ds over all
            scores s, complete, if all columns share a bias. Empty: not needed.
        scale_grad: float64 [1], zero; receives the gradient, without the bias' part if the score map is uniform.
            Empty: not needed.

    Returns:
        The power [1] by which ``grads`` are too large, see half.py; None is 1.
    """
    if not problem.query.shape[0]:
        grads.key.zero_()
    fused = None if saved_scores.numel() else problem.fused
    buffer = None if saved_scores.numel() or fused is not None else problem.score_buffer()
    narrow = problem.gradient_buffer(separate=fused is not None)
    column_grads = bias_grad.new_empty(0) if problem.score_map.is_uniform else bias_grad
    power = gradient_power(problem, terms)
    terms = terms.scaled(power)
    factors = _single_exp_factors(problem, terms)
    from_products = fused is not None and _products_have_scale_grad(problem, grads, bias_grad)
    row_parts = None
    if scale_grad.numel() and not from_products:
        row_parts = problem.query.new_empty(problem.plan.rows, dtype=torch.float64)
    for chunk in problem.chunks():
        size = chunk.stop - chunk.start
        part = terms if size == problem.query.shape[0] else terms.of_rows(chunk)
        scale_parts = None if row_parts is None else row_parts[:size]
        if fused is not None and narrow is not None:
            score_grad = select_rows(narrow, slice(0, size))
            (query, key), masking = problem.fused_operands, (problem.targets_of(chunk), problem.mask_of(chunk))
            fused.score_grad(select_rows(query, chunk), key, problem.score_map, *masking, part, score_grad, scale_parts)
        else:
            scores = select_rows(saved_scores, chunk) if buffer is None else problem.raw_scores(chunk, buffer[:size])
            score_grad = scores if narrow is None else narrow[:size]
            _score_grad_(problem, scores, chunk, part, factors, scale_parts, score_grad)
        if scale_parts is not None:
            scale_grad += scale_parts.sum()
        if column_grads.numel():
            problem.backend.add_columns_(score_grad, column_grads)
        _add_products(problem, score_grad, chunk, grads)
    if buffer is not None:
        WORKSPACE.release(buffer)
    if power is not None:
        column_grads /= power
    if scale_grad.numel() and from_products:
        scale_grad += _scale_grad(problem, grads, column_grads, power)
    elif power is not None:
        scale_grad /= power
    return power


def _products_have_scale_grad(problem: Problem, grads: GradBuffers, bias_grad: Tensor) -> bool:
    """Return True if _scale_grad applies: row sums in the epilogue of a fused kernel would cost more."""
    biases = problem.score_map.bias is None or bias_grad.numel() > 0
    return not problem.score_map.softcap and grads.query.is_needed and biases


def _scale_grad(problem: Problem, grads: GradBuffers, column_grads: Tensor, power: Tensor | None) -> Tensor:
    """Return the gradient of the scale from that of the query: with S = scale (Q Kᵀ + bias), scale dL/dscale =
    Σ_ij dL/dS_ij S_ij = Σ_i q_i·dL/dq_i + Σ_j bias_j dL/dbias_j. The query's is still too large by ``power``."""
    total = problem.query.new_zeros((), dtype=torch.float64)
    for chunk in problem.chunks():
        total += (problem.query[chunk] * grads.query.sums(chunk)).sum(dtype=torch.float64)
    if power is not None:
        total = total / power
    if problem.score_map.bias is not None and column_grads.numel():
        total += finite_products(problem.score_map.bias, column_grads).sum(dtype=torch.float64)
    return total / problem.score_map.scale


def finite_products(bias: Tensor, grad: Tensor) -> Tensor:
    """Return bias * grad, 0 for an excluded column."""
    return torch.where(bias == -torch.inf, 0, bias * grad)


def _score_grad_(
    problem: Problem,
    scores: Tensor,
    chunk: slice,
    terms: ScoreGradTerms,  # those of its rows
    factors: _SingleExpFactors | None,
    scale_grad: Tensor | None,
    grad: Tensor,
) -> None:
    """Compute the gradient of the raw scores of a chunk; ``grad`` receives it, which may be the scores."""
    backend, score_map = problem.backend, problem.score_map
    targets, mask = problem.targets_of(chunk), problem.mask_of(chunk)
    if factors is None or backend.single_exp is None or targets is None:
        backend.score_grad_(scores, score_map, targets, mask, terms, scale_grad, grad)
        return
    scale, rows = float(score_map.scale), select_rows(factors.rows, chunk)
    backend.single_exp.score_grad_(scores, scale, targets, mask, rows, factors.columns, terms, scale_grad)
    if grad is not scores:
        grad.copy_(scores)


@dataclass(frozen=True)
class _SingleExpFactors:
    """dL/ds_ij = (rows_i + columns_j) exp(s_ij), plus the terms of the target and of the sums of scores."""

    rows: Tensor
    columns: Tensor


def _single_exp_factors(problem: Problem, terms: ScoreGradTerms) -> _SingleExpFactors | None:
    """Return the factors for the single-exp kernels, or None if they do not apply."""
    row_grad, row_lse = terms.row_lse_grad, terms.row_lse
    column_grad, column_lse = terms.column_lse_grad, terms.column_lse
    if row_grad is None or row_lse is None or column_grad is None or column_lse is None:
        return None
    if terms.softplus_grad is not None or terms.neg_entropy_grad is not None:
        return None
    if (terms.row_sum_grad is None) != (terms.column_sum_grad is None):
        return None
    if not problem.allows_single_exp():
        return None
    # no score exceeds the log-sum-exp of its row, so these bound the factors and all that counts of the exponentials
    if not float(torch.cat([row_lse.high, column_lse.high]).abs().max()) <= MAX_SCORE_BOUND:
        return None
    return _SingleExpFactors(
        rows=row_lse.reciprocal().mul_(row_grad).float(), columns=column_lse.reciprocal().mul_(column_grad).float()
    )


def _add_products(problem: Problem, score_grad: Tensor, chunk: slice, grads: GradBuffers) -> None:
    """dQ[chunk] = G K and dK += Gᵀ Q[chunk] for the scores' gradient G = score_grad[c, M]; the first chunk sets dK."""
    query, key = problem.matmul_operands
    if grads.query.is_needed:
        key.add_to(grads.query.rows(chunk), score_grad, problem.backend)
    if grads.key.is_needed:
        grads.key.add_product(problem.backend, score_grad.T, query.rows(chunk), first=chunk.start == 0)


def _of_columns(problem: Problem, row_target_scores: Tensor) -> Tensor:
    """Return [M], the score of the row whose target is the column, or -inf if there is none, from those of the rows."""
    empty = row_target_scores.new_full((problem.key.shape[0],), -torch.inf)
    return empty if problem.targets is None else empty.index_copy_(0, problem.targets, row_target_scores)


def _column_targets(problem: Problem, first_rows: Tensor) -> Tensor:
    """Return the same from the scores of the first chunk's rows, before the pass has computed those of the others.

    The columns' ranks are then available from the same pass. The scores are rounded as the pass rounds
    its own, but those of several chunks are other products: a score may not tie with its equal."""
    if len(first_rows) == problem.query.shape[0]:
        return _of_columns(problem, first_rows)
    query, key, targets = problem.query, problem.key, problem.targets
    accumulator = accumulator_dtype(query.dtype)
    dot = query.new_zeros(key.shape[0], dtype=problem.plan.scores)
    is_target = torch.zeros_like(dot, dtype=torch.bool)
    if targets is not None:
        for chunk in problem.chunks():
            columns = targets[chunk]
            pairs = query[chunk].to(accumulator) * key[columns].to(accumulator)
            dot[columns] = pairs.sum(1).to(dot.dtype)
        is_target[targets] = True
    return problem.score_map.apply(dot, accumulator).where(is_target, -torch.inf)
