"""The two walks over the score matrix, chunk by chunk: reductions forward, weights and products backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import Backend, ScoreMap
from ..backends.interface import MAX_REFERENCE, ColumnSums, Lse, RowSums, Upstream
from ..backends.memory import borrow, give_back
from .gradient import Gradient
from .plan import Plan

# A walk that keeps nothing goes over tiles whose operands stay in the cache. Powers of two: with 4849 columns the same
# product took a quarter longer.
_TILE_ROWS, _TILE_COLUMNS = 2048, 4096


@dataclass
class Problem:
    """S[N, M] = map(Q Kᵀ), its targets, and how it is to be walked."""

    query: Tensor  # [N, D] compute dtype, contiguous
    key: Tensor  # [M, D] compute dtype, contiguous
    score_map: ScoreMap
    targets: Tensor | None  # [N] int64, all in range
    plan: Plan
    backend: Backend

    def workspace(self) -> Tensor:
        """Room for the raw scores of one chunk."""
        rows = min(self.plan.rows, self.query.shape[0])
        return borrow((rows, self.key.shape[0]), self.query.dtype, self.query.device)

    def chunks(self) -> Iterator[slice]:
        for begin in range(0, self.query.shape[0], self.plan.rows):
            yield slice(begin, min(begin + self.plan.rows, self.query.shape[0]))

    def product(self, rows: slice, out: Tensor) -> Tensor:
        """The raw scores of some rows, [c, M], in the first rows of ``out``."""
        return torch.mm(self.query[rows], self.key.T, out=out[: rows.stop - rows.start])

    def targets_of(self, rows: slice) -> Tensor | None:
        return None if self.targets is None else self.targets[rows]

    def reference(self) -> float | None:
        """A bound on every |score| where it is small enough for the backend's bounded kernels, else None."""
        plain_map = self.score_map.bias is None and not self.score_map.softcap
        if self.backend.bounded is None or not plain_map or self.targets is None:
            return None
        lengths = [float(torch.linalg.vector_norm(t, dim=1, dtype=torch.float32).max()) for t in (self.query, self.key)]
        bound = 1.01 * self.score_map.scale * lengths[0] * lengths[1]  # 1.01: the products are rounded
        return bound if bound <= MAX_REFERENCE else None


@dataclass
class Reductions:
    """Everything the forward walk can emit, [N] or [M] in the accumulator dtype; None where not asked for."""

    row_lse: Lse
    column_lse: Lse | None
    target: Tensor | None
    mean: Tensor | None
    row_rank: Tensor | None
    column_rank: Tensor | None


def forward_walk(
    problem: Problem,
    *,
    accumulator: torch.dtype,
    column_sums: bool,
    statistics: bool,
    kept: Tensor,
    d_query: Gradient,
    d_key: Gradient,
) -> Reductions:
    """One product. ``kept`` [N, M] (or empty) receives the raw scores; the gradients, where wanted, receive those of
    sum_i (r_i - S_i,target): what every row-only loss needs, up to one factor per row."""
    device = problem.query.device
    reference = problem.reference() if column_sums and not statistics else None
    start = -torch.inf if reference is None else reference
    rows = RowSums.empty(problem.query.shape[0], accumulator, device, maximum=start, statistics=statistics)
    columns = None
    if column_sums:
        columns = ColumnSums.empty(problem.key.shape[0], accumulator, device, maximum=start)
        if statistics:
            columns.target = _paired_scores(problem, accumulator)
            columns.rank = torch.zeros_like(columns.maximum)
    needs_whole_rows = column_sums or statistics or kept.numel() or d_query.wanted or d_key.wanted
    if needs_whole_rows:
        _walk_rows(problem, rows, columns, reference, kept, d_query, d_key)
    else:
        _walk_tiles(problem, rows)
    row_lse, column_lse = rows.lse(), None if columns is None else columns.lse()
    row_rank, column_rank = rows.rank, None if columns is None else columns.rank
    return Reductions(
        row_lse=row_lse,
        column_lse=column_lse,
        target=None if problem.targets is None else rows.target,
        mean=rows.mean(),
        # a rank among scores that are not finite is none: NaN, as their log-sum-exp is
        row_rank=None if row_rank is None or problem.targets is None else row_rank + 0 * row_lse.high,
        column_rank=None if column_rank is None or column_lse is None else column_rank + 0 * column_lse.high,
    )


def _walk_rows(
    problem: Problem,
    rows: RowSums,
    columns: ColumnSums | None,
    reference: float | None,
    kept: Tensor,
    d_query: Gradient,
    d_key: Gradient,
) -> None:
    backend, score_map = problem.backend, problem.score_map
    if not problem.query.shape[0]:
        d_key.zero_()
    raw = None if kept.numel() else problem.workspace()
    for chunk in problem.chunks():
        scores = problem.product(chunk, kept[chunk] if raw is None else raw)
        targets, sums = problem.targets_of(chunk), rows[chunk]
        if reference is not None and backend.bounded and columns is not None and targets is not None:
            backend.bounded.reduce(scores, score_map.scale, targets, sums, columns)
            continue
        backend.reduce_rows(scores, score_map, targets, sums)
        if columns is not None:
            backend.reduce_columns(scores, score_map, columns, chunk.start)
        if d_query.wanted or d_key.wanted:
            one = torch.ones_like(sums.maximum)
            unit = Upstream(a=one, r=sums.lse(), d=None if targets is None else -one)
            backend.weigh_(scores, score_map, targets, unit, None)
            _add_products(problem, scores, chunk, d_query, d_key)
    if raw is not None:
        give_back(raw)


def _walk_tiles(problem: Problem, rows: RowSums) -> None:
    """Row sums alone need no whole rows: tiles of many rows and few columns read each operand less often."""
    count, columns = problem.query.shape[0], problem.key.shape[0]
    height = max(min(_TILE_ROWS, count), 1)
    width = min(_TILE_COLUMNS, columns)
    room = borrow((height * width,), problem.query.dtype, problem.query.device)
    for top in range(0, count, height):
        chunk = slice(top, min(top + height, count))
        targets, sums = problem.targets_of(chunk), rows[chunk]
        for left in range(0, columns, width):
            tile = slice(left, min(left + width, columns))
            shape = (chunk.stop - chunk.start, tile.stop - tile.start)
            raw = room[: shape[0] * shape[1]].view(shape)
            torch.mm(problem.query[chunk], problem.key[tile].T, out=raw)
            local = None if targets is None else targets - left
            problem.backend.reduce_rows(raw, problem.score_map.of_columns(tile), local, sums)
    give_back(room)


def backward_walk(
    problem: Problem,
    upstream: Upstream,
    *,
    kept: Tensor,
    d_query: Gradient,
    d_key: Gradient,
    d_bias: Tensor,
    d_scale: Tensor,
) -> None:
    """Fills the gradient buffers of the sweep that are not empty. ``kept`` is used up where it is not empty;
    upstream.a, r and d are [N], b and c [M]. d_bias [M] or [0], d_scale [1] or [0], both accumulator dtype."""
    if not problem.query.shape[0]:
        d_key.zero_()
    raw = None if kept.numel() else problem.workspace()
    reference = None if upstream.b is None else problem.reference()
    alpha = beta = upstream.a
    if reference is not None and upstream.b is not None and upstream.c is not None:
        alpha = _above(reference, upstream.r).mul_(upstream.a).float()
        beta = _above(reference, upstream.c).mul_(upstream.b).float()
    share = problem.query.new_empty(problem.plan.rows, dtype=torch.float64) if d_scale.numel() else None
    for chunk in problem.chunks():
        scores = kept[chunk] if raw is None else problem.product(chunk, raw)
        targets = problem.targets_of(chunk)
        d = None if upstream.d is None else upstream.d[chunk]
        mine = None if share is None else share[: scores.shape[0]]
        if reference is not None and problem.backend.bounded:
            problem.backend.bounded.weigh_(
                scores, problem.score_map.scale, reference, targets, alpha[chunk], beta, d, mine
            )
        else:
            part = Upstream(a=upstream.a[chunk], r=upstream.r[chunk], b=upstream.b, c=upstream.c, d=d)
            problem.backend.weigh_(scores, problem.score_map, targets, part, mine)
        if mine is not None:
            d_scale += mine.sum()
        if d_bias.numel():
            d_bias += scores.sum(0, dtype=d_bias.dtype)
        _add_products(problem, scores, chunk, d_query, d_key)
    if raw is not None:
        give_back(raw)


def _above(reference: float, lse: Lse) -> Tensor:
    """exp(reference - lse) in float64."""
    return ((reference - lse.high.double()) - lse.low.double()).exp()


def _add_products(problem: Problem, weights: Tensor, chunk: slice, d_query: Gradient, d_key: Gradient) -> None:
    """weights[c, M] of a chunk of rows: dQ[chunk] = G K and dK += Gᵀ Q[chunk], the first chunk setting it."""
    if d_query.wanted:
        d_query.rows(chunk).add_product(problem.backend, weights, problem.key, first=True)
    if d_key.wanted:
        d_key.add_product(problem.backend, weights.T, problem.query[chunk], first=chunk.start == 0)


def _paired_scores(problem: Problem, accumulator: torch.dtype) -> Tensor:
    """[M] score of column j's own pair (row j), -inf where there is none: known before the walk, so that ranks along
    columns need no second one. Rounded to the compute dtype as the walk's own scores are."""
    query, key = problem.query, problem.key
    paired = min(query.shape[0], key.shape[0])
    dot = query.new_full((key.shape[0],), -torch.inf)
    for begin in range(0, paired, problem.plan.rows):
        rows = slice(begin, min(begin + problem.plan.rows, paired))
        dot[rows] = (query[rows].to(accumulator) * key[rows].to(accumulator)).sum(1)
    return problem.score_map.apply(dot, accumulator)
