"""The two walks over the score matrix, chunk by chunk: reductions forward, weights and products backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..backends import Backend, ScoreMap
from ..backends.accumulators import ColumnAccumulators, Lse, ReductionSpec, RowAccumulators
from ..backends.interface import MAX_SCORE_BOUND, FusedKernels, Mask, ScoreGradTerms
from ..backends.workspace import WORKSPACE
from .grad_buffer import Gradient
from .operand import Operand
from .plan import Plan

# A walk that keeps nothing goes over tiles whose operands stay in the cache. Powers of two: with 4849 columns the same
# product took a quarter longer.
_TILE_ROWS, _TILE_COLUMNS = 2048, 4096

_PITCH = 16  # rows of 16-bit weights start at addresses that cuBLAS likes

_SMALL_SCORES = 4096  # entries; with fewer there is no time to win, and a lone score is its own log-sum-exp exactly


@dataclass
class Problem:
    """S[N, M] = map(Q Kᵀ), its targets, and how it is to be walked."""

    query: Tensor  # [N, D] as it came
    key: Tensor  # [M, D] the same
    score_map: ScoreMap
    targets: Tensor | None  # [N] int64, all in range
    mask: Mask | None
    plan: Plan
    backend: Backend
    fused: FusedKernels | None  # of the backend, where they serve this problem
    stored: torch.dtype | None  # in which raw scores go from walk to walk; None where they do not

    @cached_property
    def factors(self) -> tuple[Operand, Operand]:
        """query and key as products read them."""
        return Operand.of(self.query, self.plan.compute), Operand.of(self.key, self.plan.compute)

    @cached_property
    def aligned(self) -> tuple[Tensor, Tensor]:
        """query and key as fused walks read them: there may be more columns, of zeros."""
        assert self.fused is not None
        return self.fused.aligned(self.query), self.fused.aligned(self.key)

    @cached_property
    def columns(self) -> Tensor | int:
        """How many columns take part."""
        return self.score_map.valid_column_count(self.key.shape[0])

    def workspace(self) -> Tensor:
        """Room for the raw scores of one chunk."""
        rows, columns = min(self.plan.rows, self.query.shape[0]), self.key.shape[0]
        pitch = columns if self.fused is None else -(-columns // _PITCH) * _PITCH
        room = WORKSPACE.acquire((rows, pitch), self.plan.compute, self.query.device)
        room[:, columns:] = 0  # some products read what lies between the rows, and multiply it by zero
        return room[:, :columns]

    def chunks(self) -> Iterator[slice]:
        for begin in range(0, self.query.shape[0], self.plan.rows):
            yield slice(begin, min(begin + self.plan.rows, self.query.shape[0]))

    def product(self, rows: slice, out: Tensor) -> Tensor:
        """The raw scores of some rows, in out[c, M]."""
        query, key = self.factors
        return key.scores(query.rows(rows), out)

    def targets_of(self, rows: slice) -> Tensor | None:
        return None if self.targets is None else self.targets[rows]

    def mask_of(self, rows: slice) -> Mask | None:
        return None if self.mask is None else self.mask[rows]

    def reference(self) -> float | None:
        """A bound on every |score| where it is small enough for the backend's single-exp kernels, else None."""
        plain_map = self.score_map.bias is None and not self.score_map.softcap
        kept_targets = self.targets is not None and (self.mask is None or self.mask.keep_target)
        small = self.query.shape[0] * self.key.shape[0] < _SMALL_SCORES
        if self.backend.single_exp is None or not plain_map or not kept_targets or small:
            return None
        lengths = [_longest_row(Operand.of(t, torch.float32)) for t in (self.query, self.key)]
        bound = 1.01 * float(self.score_map.scale) * lengths[0] * lengths[1]  # 1.01: the products are rounded
        return bound if bound <= MAX_SCORE_BOUND else None


@dataclass(frozen=True)
class Announced:
    """The loss of each row, w_i (r_i - (1 - eps) S_i,target - eps / M sum_j S_ij + z r_i²), whose gradient can be made
    in the forward walk, up to the factor that arrives later."""

    weights: Tensor | None  # [N], None for ones
    label_smoothing: float
    z_loss: float

    def of_rows(self, rows: slice | Tensor) -> Announced:
        return self if self.weights is None else replace(self, weights=self.weights[rows])

    def values(self, r: Lse, target: Tensor | None, logits: Tensor | None, columns: Tensor | int) -> Tensor:
        """The losses [N] without their weights, given row_lse, the target scores and the rows' sums of scores over the
        ``columns`` that take part."""
        loss = r.high.clone() if target is None else negative_log(r.high, r.low, target)
        if self.label_smoothing:
            assert logits is not None
            own = logits.new_zeros(()) if target is None else target.where(target > -torch.inf, 0)
            loss = loss + self.label_smoothing * (own - logits / columns).to(loss.dtype)
        return loss + self.z_loss * r.high.square() if self.z_loss else loss

    def weighted(self, values: Tensor) -> Tensor:
        return values if self.weights is None else values * self.weights.to(values.dtype)

    def upstream(self, r: Lse, columns: Tensor | int, *, targets: bool, factor: Tensor | None = None) -> ScoreGradTerms:
        """The weights of the gradient, given the log-sum-exps of the rows and the factor [N] of each row's loss."""
        w = self.weighted(torch.ones_like(r.high) if factor is None else factor)
        eps = self.label_smoothing
        return ScoreGradTerms(
            row_lse_grad=w * (1 + 2 * self.z_loss * r.high) if self.z_loss else w,
            row_lse=r,
            target_grad=torch.where(r.high == -torch.inf, 0, w * (eps - 1)) if targets else None,
            row_sum_grad=w * (-eps / columns) if eps else None,
        )


def negative_log(high: Tensor, low: Tensor, score: Tensor) -> Tensor:
    """-log of the share that ``score`` has in the sum whose logarithm is high + low: +inf where the sum is empty."""
    return torch.where(high == -torch.inf, torch.inf, (high - score) + low)


@dataclass
class Reductions:
    """Everything the forward walk can emit, [N] or [M] in the accumulator dtype; None where not asked for."""

    row_lse: Lse | None
    column_lse: Lse | None
    target: Tensor | None
    row_logits: Tensor | None
    column_logits: Tensor | None
    softplus: Tensor | None
    loss: Tensor | None  # of what was announced
    entropy: Tensor | None
    unweighted: Tensor | None  # the announced loss without its weights, where it has some
    clipped: Tensor | None
    row_rank: Tensor | None
    column_rank: Tensor | None


def forward_walk(
    problem: Problem,
    wants: ReductionSpec,
    *,
    accumulator: torch.dtype,
    announced: Announced | None,
    kept: Tensor,
    d_query: Gradient,
    d_key: Gradient,
) -> Reductions:
    """One product. ``kept`` [N, M] (or empty) receives the raw scores; the gradients, where wanted, receive those of
    the sum of the announced losses."""
    device = problem.query.device
    pointwise = wants.statistics or wants.logit_sums or wants.softplus or wants.clip
    reference = problem.reference() if wants.columns and wants.row_lse and not pointwise else None
    start = -torch.inf if reference is None else reference
    rows = RowAccumulators.empty(problem.query.shape[0], accumulator, device, wants, maximum=start)
    columns = None
    if wants.columns:
        columns = ColumnAccumulators.empty(problem.key.shape[0], accumulator, device, wants, maximum=start)
    if problem.fused is not None and problem.targets is not None:
        scored = *problem.aligned, problem.score_map, problem.targets
        problem.fused.target_scores(*scored, problem.stored, rows.target)
    if columns is not None and wants.statistics:
        columns.target = _paired_scores(problem, rows.target)
    needs_whole_rows = wants.columns or wants.statistics or kept.numel() or d_query.wanted or d_key.wanted
    if needs_whole_rows or problem.fused is not None:
        _walk_rows(problem, rows, columns, reference, announced, kept, d_query, d_key)
    else:
        _walk_tiles(problem, rows)
    row_lse, column_lse = rows.lse(), None if columns is None else columns.lse()

    def rank(of: Tensor | None, lse: Lse | None) -> Tensor | None:
        # a rank among scores that are not finite is none: NaN, as their log-sum-exp is (-inf: nothing to beat)
        return None if of is None or lse is None or problem.targets is None else of + 0 * lse.high.clamp(min=0)

    target, loss, unweighted = None if problem.targets is None else rows.target, None, None
    if announced is not None and row_lse is not None:
        unweighted = announced.values(row_lse, target, rows.logits, problem.columns)
        loss = announced.weighted(unweighted)
    return Reductions(
        row_lse=row_lse,
        column_lse=column_lse,
        target=target,
        row_logits=rows.logits,
        column_logits=None if columns is None else columns.logits,
        softplus=None if rows.softplus is None else rows.softplus.to(accumulator),
        loss=loss,
        entropy=rows.entropy(),
        unweighted=None if announced is None or announced.weights is None else unweighted,
        clipped=rows.clipped_lse(),
        row_rank=rank(rows.rank, row_lse),
        column_rank=None if columns is None else rank(columns.rank, column_lse),
    )


def _walk_rows(
    problem: Problem,
    rows: RowAccumulators,
    columns: ColumnAccumulators | None,
    reference: float | None,
    announced: Announced | None,
    kept: Tensor,
    d_query: Gradient,
    d_key: Gradient,
) -> None:
    backend, score_map = problem.backend, problem.score_map
    if not problem.query.shape[0]:
        d_key.zero_()
    fused, single_exp = problem.fused, backend.single_exp
    gradients = d_query.wanted or d_key.wanted
    raw = problem.workspace() if not kept.numel() and (fused is None or gradients) else None
    for chunk in problem.chunks():
        targets, mask, sums = problem.targets_of(chunk), problem.mask_of(chunk), rows[chunk]
        scores = kept[chunk] if raw is None else raw[: chunk.stop - chunk.start]
        if fused is not None:
            (query, key), out = problem.aligned, scores if scores.numel() else None
            fused.reduce(query[chunk], key, score_map, targets, mask, problem.stored, sums, columns, out)
        elif reference is not None and single_exp is not None and columns is not None and targets is not None:
            problem.product(chunk, scores)
            single_exp.reduce(scores, float(score_map.scale), targets, mask, sums, columns)
        else:
            problem.product(chunk, scores)
            backend.reduce_rows(scores, score_map, targets, mask, sums)
            if columns is not None:
                backend.reduce_columns(scores, score_map, targets, mask, columns)
        if not gradients or announced is None:
            continue
        lse = sums.lse()
        if lse is not None:
            upstream = announced.of_rows(chunk).upstream(lse, problem.columns, targets=targets is not None)
            backend.score_grad_(scores, score_map, targets, mask, upstream, None)
            _add_products(problem, scores, chunk, d_query, d_key)
    if raw is not None:
        WORKSPACE.release(raw)


def _walk_tiles(problem: Problem, rows: RowAccumulators) -> None:
    """Row sums alone need no whole rows: tiles of many rows and few columns read each operand less often."""
    count, columns = problem.query.shape[0], problem.key.shape[0]
    height = max(min(_TILE_ROWS, count), 1)
    width = min(_TILE_COLUMNS, columns)
    room = WORKSPACE.acquire((height * width,), problem.plan.compute, problem.query.device)
    query, key = problem.factors
    for top in range(0, count, height):
        chunk = slice(top, min(top + height, count))
        targets, mask, sums = problem.targets_of(chunk), problem.mask_of(chunk), rows[chunk]
        operand = query.rows(chunk)
        for left in range(0, columns, width):
            tile = slice(left, min(left + width, columns))
            shape = (chunk.stop - chunk.start, tile.stop - tile.start)
            raw = room[: shape[0] * shape[1]].view(shape)
            torch.mm(operand, key.rows(tile).T, out=raw)
            local = None if targets is None else targets - left
            part = None if mask is None else mask.of_columns(tile)
            problem.backend.reduce_rows(raw, problem.score_map.of_columns(tile), local, part, sums)
    WORKSPACE.release(room)


def backward_walk(
    problem: Problem,
    upstream: ScoreGradTerms,
    *,
    kept: Tensor,
    d_query: Gradient,
    d_key: Gradient,
    d_bias: Tensor,
    d_scale: Tensor,
) -> None:
    """Fills the gradient buffers of the sweep that are not empty. ``kept`` is used up where it is not empty;
    upstream's vectors are [N] and [M]. d_bias [M] or [0], d_scale [1] or [0], both accumulator dtype."""
    if not problem.query.shape[0]:
        d_key.zero_()
    raw = None if kept.numel() else problem.workspace()
    single_exp = problem.backend.single_exp
    reference = None
    alpha = beta = problem.query.new_empty(0)
    a, r = upstream.row_lse_grad, upstream.row_lse
    b, c = upstream.column_lse_grad, upstream.column_lse
    others = (upstream.softplus_grad, upstream.row_sum_grad, upstream.column_sum_grad, upstream.neg_entropy_grad)
    if a is not None and r is not None and b is not None and c is not None and all(x is None for x in others):
        reference = problem.reference()
        if reference is not None:
            alpha = _above(reference, r).mul_(a).float()
            beta = _above(reference, c).mul_(b).float()
    share = problem.query.new_empty(problem.plan.rows, dtype=torch.float64) if d_scale.numel() else None
    fused = problem.fused if raw is not None else None
    for chunk in problem.chunks():
        scores = kept[chunk] if raw is None else raw[: chunk.stop - chunk.start]
        targets, mask, part = problem.targets_of(chunk), problem.mask_of(chunk), upstream.of_rows(chunk)
        mine = None if share is None else share[: scores.shape[0]]
        if raw is not None and fused is None:
            problem.product(chunk, scores)
        if fused is not None:
            query, key = problem.aligned
            fused.score_grad(query[chunk], key, problem.score_map, targets, mask, problem.stored, part, scores, mine)
        elif reference is not None and single_exp is not None and targets is not None:
            scale = float(problem.score_map.scale)
            single_exp.score_grad_(scores, scale, reference, targets, mask, alpha[chunk], beta, part.target_grad, mine)
        else:
            problem.backend.score_grad_(scores, problem.score_map, targets, mask, part, mine)
        if mine is not None:
            d_scale += mine.sum()
        if d_bias.numel():
            problem.backend.add_columns_(scores, d_bias)
        _add_products(problem, scores, chunk, d_query, d_key)
    if raw is not None:
        WORKSPACE.release(raw)


def _longest_row(operand: Operand) -> float:
    """The largest Euclidean norm of a row, NaN where a row has one."""
    return float(torch.cat([torch.linalg.vector_norm(block, dim=1) for _, block in operand.blocks()]).max())


def _above(reference: float, lse: Lse) -> Tensor:
    """exp(reference - lse) in float64."""
    return ((reference - lse.high.double()) - lse.low.double()).exp()


def _add_products(problem: Problem, weights: Tensor, chunk: slice, d_query: Gradient, d_key: Gradient) -> None:
    """weights[c, M] of a chunk of rows: dQ[chunk] = G K and dK += Gᵀ Q[chunk], the first chunk setting it."""
    query, key = problem.factors
    if d_query.wanted:
        key.add_to(d_query.rows(chunk), weights, problem.backend)
    if d_key.wanted:
        d_key.add_product(problem.backend, weights.T, query.rows(chunk), first=chunk.start == 0)


def _paired_scores(problem: Problem, at_target: Tensor) -> Tensor:
    """[M] score of each column with the row whose target it is, -inf where there is none: known before the walk, so
    that ranks along columns need no second one. Rounded to the compute dtype as the walk's own scores are.
    at_target [N]: what a fused walk already knows."""
    query, key, targets = problem.query, problem.key, problem.targets
    if problem.fused is not None and targets is not None:
        return at_target.new_full((key.shape[0],), -torch.inf).index_copy_(0, targets, at_target)
    dot = query.new_zeros(key.shape[0], dtype=problem.plan.compute)
    paired = torch.zeros_like(dot, dtype=torch.bool)
    if targets is not None:
        for chunk in problem.chunks():
            mine = targets[chunk]
            products = query[chunk].to(at_target.dtype) * key[mine].to(at_target.dtype)
            dot[mine] = products.sum(1).to(dot.dtype)
        paired[targets] = True
    return problem.score_map.apply(dot, at_target.dtype).where(paired, -torch.inf)
