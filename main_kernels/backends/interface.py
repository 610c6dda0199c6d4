"""What a backend supplies. A chunk ``raw[c, M]`` holds products q·k of c consecutive rows, in the compute dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

MAX_REFERENCE = 40.0
"""Scores within this of zero: exp(s - MAX_REFERENCE) is then a normal float32 however small s is."""


@dataclass(frozen=True)
class ScoreMap:
    """How a raw product becomes a score: ``s = scale * softcap * tanh((raw + bias) / softcap)``.

    A bias of -inf leaves its column out of every row, and so does a finite one that scale takes to -inf: the score is
    -inf. With a bias or a softcap a raw product that is not finite becomes NaN, so that it passes for no score."""

    scale: Tensor  # 0-dimensional, accumulator dtype: a device need not tell the host its value
    softcap: float = 0.0  # 0: none, s = scale * (raw + bias)
    bias: Tensor | None = None  # [M], accumulator dtype

    def taking_part(self, columns: int) -> Tensor | int:
        """How many of the columns the bias does not leave out, at least 1."""
        if self.bias is None:
            return columns
        lowest = self.bias if self.softcap else self.bias * self.scale
        return (lowest != -torch.inf).sum(dtype=self.scale.dtype).clamp(min=1)

    def of_columns(self, columns: slice) -> ScoreMap:
        """The map of some of the columns."""
        return self if self.bias is None else replace(self, bias=self.bias[columns])

    def apply(self, raw: Tensor, dtype: torch.dtype) -> Tensor:
        """Scores of raw[..., M] in ``dtype``."""
        s = raw = raw.to(dtype)
        if self.bias is not None:
            s = s + self.bias
        if self.softcap:
            s = (s / self.softcap).tanh() * self.softcap
        s = s * self.scale
        if self.bias is None and not self.softcap:
            return s
        if self.bias is not None and self.softcap:
            s = s.masked_fill(self.bias == -torch.inf, -torch.inf)
        return s + raw * 0


@dataclass(frozen=True)
class Mask:
    """Entries that take no part: those of row i and column j with equal ids, but for the row's target where it is
    kept, and with the target where not."""

    rows: Tensor  # [N] int32
    columns: Tensor  # [M] int32
    keep_target: bool

    def __getitem__(self, rows: slice) -> Mask:
        return replace(self, rows=self.rows[rows])

    def of_columns(self, columns: slice) -> Mask:
        return replace(self, columns=self.columns[columns])


@dataclass(frozen=True)
class Wants:
    """What a walk is asked to reduce, besides the target scores."""

    row_lse: bool = True
    columns: bool = False  # the columns' log-sum-exps, and what else is wanted of them
    statistics: bool = False  # entropies and ranks
    logit_sums: bool = False
    softplus: bool = False
    clip: float = 0.0  # positive: also the clipped log-sum-exps of the rows


@dataclass(frozen=True)
class Lse:
    """Log-sum-exps as unevaluated sums of two numbers: at logits of 1e4 one float32 is only good to 1e-3, and
    exp(s - lse) would inherit that."""

    high: Tensor
    low: Tensor

    @classmethod
    def of(cls, maximum: Tensor, log_sum: Tensor) -> Lse:
        high = maximum + log_sum
        return cls(high, torch.where(high == -torch.inf, 0, (maximum - high) + log_sum))  # -inf: of nothing at all

    def __getitem__(self, rows: slice | Tensor) -> Lse:
        return Lse(self.high[rows], self.low[rows])


@dataclass
class RowSums:
    """Running row reductions over the entries that take part; slices of them are what a backend adds a chunk to.
    All but maximum and target are None where not wanted."""

    maximum: Tensor  # [N]
    target: Tensor  # [N] score of the row's target, 0 where it has none
    total: Tensor | None = None  # [N] float64, sum of exp(s - maximum)
    weighted: Tensor | None = None  # [N] float64, sum of exp(s - maximum) (s - maximum)
    rank: Tensor | None = None  # [N] how many scores beat the target's
    logits: Tensor | None = None  # [N] float64, sum of s
    softplus: Tensor | None = None  # [N] float64, sum of log(1 + exp s)
    clipped: Tensor | None = None  # [N] float64, sum of exp(clamp(s) - clamp(maximum)), clamped to +-clip
    clip: float = 0.0

    @classmethod
    def empty(
        cls, rows: int, dtype: torch.dtype, device: torch.device, wants: Wants, *, maximum: float = -torch.inf
    ) -> RowSums:
        def zeros(wanted: bool, kind: torch.dtype = torch.float64) -> Tensor | None:
            return torch.zeros(rows, dtype=kind, device=device) if wanted else None

        return cls(
            maximum=torch.full((rows,), maximum, dtype=dtype, device=device),
            target=torch.zeros(rows, dtype=dtype, device=device),
            total=zeros(wants.row_lse),
            weighted=zeros(wants.statistics),
            rank=zeros(wants.statistics, dtype),
            logits=zeros(wants.logit_sums),
            softplus=zeros(wants.softplus),
            clipped=zeros(wants.clip > 0),
            clip=wants.clip,
        )

    def __getitem__(self, rows: slice) -> RowSums:
        return RowSums(*(v[rows] if isinstance(v, Tensor) else v for v in vars(self).values()))  # type: ignore[arg-type]

    def lse(self) -> Lse | None:
        return None if self.total is None else Lse.of(self.maximum, self.total.log().to(self.maximum.dtype))

    def entropy(self) -> Tensor | None:
        """Of the softmax over the entries that take part; 0 where none does."""
        if self.weighted is None or self.total is None:
            return None
        entropy = self.total.log() - self.weighted / self.total
        return torch.where(self.total == 0, 0, entropy).to(self.maximum.dtype)

    def clipped_lse(self) -> Tensor | None:
        if self.clipped is None:
            return None
        return (self.maximum.clamp(-self.clip, self.clip) + self.clipped.log()).to(self.maximum.dtype)


@dataclass
class ColumnSums:
    """Running column reductions over the chunks so far."""

    maximum: Tensor  # [M]
    total: Tensor  # [M] float64, sum of exp(s - maximum)
    target: Tensor | None = None  # [M] score each column's pair has, to count what beats it
    rank: Tensor | None = None  # [M]
    logits: Tensor | None = None  # [M] float64, sum of s

    @classmethod
    def empty(
        cls, columns: int, dtype: torch.dtype, device: torch.device, wants: Wants, *, maximum: float = -torch.inf
    ) -> ColumnSums:
        def zeros(kind: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(columns, dtype=kind, device=device)

        return cls(
            maximum=torch.full((columns,), maximum, dtype=dtype, device=device),
            total=zeros(),
            rank=zeros(dtype) if wants.statistics else None,
            logits=zeros() if wants.logit_sums else None,
        )

    def lse(self) -> Lse:
        return Lse.of(self.maximum, self.total.log().to(self.maximum.dtype))


@dataclass(frozen=True)
class Upstream:
    """Weights of ``dL/ds_ij = (a_i + h_i (s_ij - r_i)) exp(s_ij - r_i) + b_j exp(s_ij - c_j) + e_i sigmoid(s_ij) + u_i
    + v_j`` where an entry takes part, ``+ d_i`` at the target; None is zero."""

    a: Tensor | None = None  # [c] of the row log-sum-exps; there where h is
    r: Lse | None = None  # [c] these
    b: Tensor | None = None  # [M] of the column log-sum-exps
    c: Lse | None = None  # [M] these
    d: Tensor | None = None  # [c] of the target scores
    e: Tensor | None = None  # [c] of the softplus sums
    u: Tensor | None = None  # [c] of the row sums of scores
    v: Tensor | None = None  # [M] of the column sums of scores
    h: Tensor | None = None  # [c] of the entropies, their part in proportion to log p

    def of_rows(self, rows: slice | Tensor) -> Upstream:
        def some(vector: Tensor | None) -> Tensor | None:
            return None if vector is None else vector[rows]

        r = None if self.r is None else self.r[rows]
        return replace(self, a=some(self.a), r=r, d=some(self.d), e=some(self.e), u=some(self.u), h=some(self.h))


@dataclass(frozen=True)
class Pooling:
    """What becomes of the rows of each segment: ``sum_t c_t h_t``, c_t proportional to weights_t exp(h_t·query)."""

    offsets: Tensor  # [B + 1] int64
    last: bool  # the segment's last row only
    normalize: bool
    weights: Tensor | None = None  # [T], accumulator dtype; None: all 1
    query: Tensor | None = None  # [D], accumulator dtype; None: 0

    @property
    def uniform(self) -> bool:
        """Whether all rows of a segment count alike."""
        return self.weights is None and self.query is None


class BoundedKernels(Protocol):
    """Both walks with one exponential a score, for scores known to lie within +-MAX_REFERENCE, a target in every row
    and a mask, if any, that keeps it."""

    def reduce(
        self, raw: Tensor, scale: float, targets: Tensor, mask: Mask | None, rows: RowSums, columns: ColumnSums
    ) -> None:
        """Both reductions of raw[c, M] at once, for sums whose maximum is one constant, at least every |score| and at
        most MAX_REFERENCE."""

    def weigh_(
        self,
        raw: Tensor,
        scale: float,
        reference: float,
        targets: Tensor,
        mask: Mask | None,
        alpha: Tensor,
        beta: Tensor,
        d: Tensor | None,
        d_scale: Tensor | None,
    ) -> None:
        """Backend.weigh_ for ``dL/ds_ij = (alpha_i + beta_j) exp(s_ij - reference) + d_i [j = t_i]``."""


class FusedKernels(Protocol):
    """Both walks with the product inside: scores are made and used up in registers.

    ``query`` [c, D] and ``key`` [M, D] are of one dtype, and what ``aligned`` made of them. ``stored``: the dtype in
    which raw scores are, or once were, stored between the walks (None: not at all): they are rounded to it, so that
    every walk sees the same.
    """

    def serves(self, dtype: torch.dtype) -> bool:
        """Whether operands of this dtype are better walked here than multiplied beforehand."""

    def aligned(self, operand: Tensor) -> Tensor:
        """operand[n, D] as the walks need it to lie; columns of zeros may be added."""

    def target_scores(
        self,
        query: Tensor,
        key: Tensor,
        score_map: ScoreMap,
        targets: Tensor,
        stored: torch.dtype | None,
        out: Tensor,
    ) -> None:
        """out[c] receives the scores of rows with their targets[c], none of which is negative."""

    def reduce(
        self,
        query: Tensor,
        key: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        stored: torch.dtype | None,
        rows: RowSums,
        columns: ColumnSums | None,
        raw: Tensor | None,
    ) -> None:
        """Adds all scores to the sums, of which the target scores are already there; raw[c, M] receives the raw ones,
        its rows may lie apart."""

    def weigh(
        self,
        query: Tensor,
        key: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        stored: torch.dtype | None,
        upstream: Upstream,
        out: Tensor,
        d_scale: Tensor | None,
    ) -> None:
        """out[c, M] receives dL/draw; d_scale as in Backend.weigh_."""


class Backend(Protocol):
    bounded: BoundedKernels | None
    """faster ones for scores known to be moderate, where the backend has them"""
    fused: FusedKernels | None
    """both walks with the product inside, where the backend has them"""

    def reduce_rows(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: RowSums
    ) -> None:
        """Adds raw[c, m] to the sums of its rows; targets[c] int64 count from its first column, those outside it are
        passed over. Ranks mean something only where it holds whole rows."""

    def reduce_columns(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: ColumnSums
    ) -> None:
        """Adds raw[c, M] to the column sums; a row never beats the column that is its target."""

    def weigh_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        upstream: Upstream,
        d_scale: Tensor | None,
    ) -> None:
        """raw[c, M] becomes dL/draw in place; d_scale[c] float64 receives each row's share of dL/dscale."""

    def add_columns_(self, weights: Tensor, sums: Tensor) -> None:
        """sums[M] += the column sums of weights[c, M]."""

    def accumulate_(self, high: Tensor, low: Tensor, x: Tensor) -> None:
        """(high, low) += x, a float32 kept as two 16-bit planes; see sweep/gradient.py."""

    def round_scaled_(self, high: Tensor, low: Tensor, scale: Tensor) -> None:
        """high[n, D] = bfloat16((high, low) * scale), scale [n] or [1]."""

    def divergence_(
        self,
        p_raw: Tensor,
        q_raw: Tensor,
        scale: float,
        beta: float | None,
        weights: Tensor,
        values: Tensor,
        grad_p: bool,
        grad_q: bool,
    ) -> None:
        """For p = softmax(scale p_raw[c, M]), q alike: values[c] becomes KL(p || q), or with beta
        beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; the raw scores, which may differ in dtype,
        become weights[c] times its gradient where asked for, and are used up."""

    def pool_forward(self, hidden: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor, Tensor]:
        """hidden[T, D] -> pooled[B, D] and norms[B], before normalising, in the accumulator dtype; units[T] float64,
        the coefficient of each row per unit of its weight ([0] with neither weights nor a query)."""

    def pool_backward(
        self,
        upstream: Tensor,
        pooled: Tensor,
        norms: Tensor,
        units: Tensor,
        hidden: Tensor | None,
        rows: int,
        dtype: torch.dtype,
        pooling: Pooling,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """upstream[B, D] -> gradients of the states [rows, D] in ``dtype``, of the weights [rows] and of the query [D],
        those ``wanted``. hidden is given where there is a query or the weights want theirs."""
