"""The two walks over the score matrix, chunk by chunk: reductions forward, weights and products backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import Backend, ScoreMap
from ..backends.interface import ColumnSums, Lse, RowSums, Upstream
from .gradient import Gradient
from .plan import Plan


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
        rows = min(self.plan.rows, self.query.shape[0])
        return self.query.new_empty(rows, self.key.shape[0])

    def all_scores(self) -> Tensor:
        """Every raw score [N, M], made chunk by chunk as the forward walk makes them."""
        raw = self.query.new_empty(self.query.shape[0], self.key.shape[0])
        for begin, end in self.chunks():
            torch.mm(self.query[begin:end], self.key.T, out=raw[begin:end])
        return raw

    def chunks(self):  # type: ignore[no-untyped-def]
        for begin in range(0, self.query.shape[0], self.plan.rows):
            yield begin, min(begin + self.plan.rows, self.query.shape[0])

    def chunk_targets(self, begin: int, end: int) -> Tensor | None:
        return None if self.targets is None else self.targets[begin:end]


@dataclass
class Reductions:
    """Everything the forward walk can emit, [N] or [M] in the accumulator dtype; None where not asked for."""

    row_lse: Lse
    column_lse: Lse | None = None
    target: Tensor | None = None
    mean: Tensor | None = None
    row_rank: Tensor | None = None
    column_rank: Tensor | None = None


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
    query, key, plan, backend = problem.query, problem.key, problem.plan, problem.backend
    count = query.shape[0]

    def vector() -> Tensor:
        return query.new_empty(count, dtype=accumulator)

    out = Reductions(row_lse=Lse(vector(), vector()))
    if problem.targets is not None:
        out.target = vector()
    if statistics:
        out.mean = vector()
        out.row_rank = None if problem.targets is None else vector()
    columns = None
    if column_sums:
        columns = ColumnSums.empty(key.shape[0], accumulator, key.device)
        if statistics:
            columns.target = _paired_scores(problem, accumulator)
            columns.rank = torch.zeros_like(columns.maximum)
    raw = None if kept.numel() else problem.workspace()
    ones = query.new_ones(min(plan.rows, count), dtype=accumulator)
    for begin, end in problem.chunks():
        scores = kept[begin:end] if raw is None else raw[: end - begin]
        torch.mm(query[begin:end], key.T, out=scores)
        sums = RowSums(
            out.row_lse[begin:end],
            *(_part(v, begin, end) for v in (out.target, out.mean, out.row_rank)),
        )
        backend.reduce_rows(scores, problem.score_map, problem.chunk_targets(begin, end), sums)
        if columns is not None:
            backend.reduce_columns(scores, problem.score_map, columns, begin)
        if d_query.wanted or d_key.wanted:
            one = ones[: end - begin]
            unit = Upstream(a=one, r=sums.lse, d=-one if problem.targets is not None else None)
            backend.weigh_(scores, problem.score_map, problem.chunk_targets(begin, end), unit, None)
            add_products(problem, scores, begin, end, d_query, d_key)
    if columns is not None:
        out.column_lse, out.column_rank = columns.lse(), columns.rank
    return out


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
    """Adds the gradients of the sweep to the buffers that are not empty. ``kept`` is used up where it is not empty;
    upstream.a, r and d are [N], b and c [M]. d_bias [M] or [0], d_scale [1] or [0], both accumulator dtype."""
    raw = None if kept.numel() else problem.workspace()
    share = problem.query.new_empty(problem.plan.rows, dtype=torch.float64) if d_scale.numel() else None
    for begin, end in problem.chunks():
        scores = kept[begin:end] if raw is None else raw[: end - begin]
        if raw is not None:
            torch.mm(problem.query[begin:end], problem.key.T, out=scores)
        part = Upstream(
            a=upstream.a[begin:end],
            r=upstream.r[begin:end],
            b=upstream.b,
            c=upstream.c,
            d=_part(upstream.d, begin, end),
        )
        mine = None if share is None else share[: end - begin]
        problem.backend.weigh_(scores, problem.score_map, problem.chunk_targets(begin, end), part, mine)
        if mine is not None:
            d_scale += mine.sum()
        if d_bias.numel():
            d_bias += scores.sum(0, dtype=d_bias.dtype)
        if raw is not None:
            add_products(problem, scores, begin, end, d_query, d_key)
        elif d_query.wanted:
            d_query.rows(begin, end).add_product(problem.backend, scores, problem.key)
    if raw is None and d_key.wanted:
        d_key.add_product(problem.backend, kept[: problem.query.shape[0]].T, problem.query)


def add_products(problem: Problem, weights: Tensor, begin: int, end: int, d_query: Gradient, d_key: Gradient) -> None:
    """weights[c, M] of rows begin..end: dQ[begin:end] += G K and dK += Gᵀ Q[begin:end]."""
    if d_query.wanted:
        d_query.rows(begin, end).add_product(problem.backend, weights, problem.key)
    if d_key.wanted:
        d_key.add_product(problem.backend, weights.T, problem.query[begin:end])


def _part(vector: Tensor | None, begin: int, end: int) -> Tensor | None:
    return None if vector is None else vector[begin:end]


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
