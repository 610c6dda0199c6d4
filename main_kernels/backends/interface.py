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
    """How a raw product becomes a score: ``s = scale * softcap * tanh((raw + bias) / softcap)``."""

    scale: float
    softcap: float = 0.0  # 0: none, s = scale * (raw + bias)
    bias: Tensor | None = None  # [M], accumulator dtype

    def of_columns(self, columns: slice) -> ScoreMap:
        """The map of some of the columns."""
        return self if self.bias is None else replace(self, bias=self.bias[columns])

    def apply(self, raw: Tensor, dtype: torch.dtype) -> Tensor:
        """Scores of raw[..., M] in ``dtype``."""
        s = raw.to(dtype)
        if self.bias is not None:
            s = s + self.bias
        if self.softcap:
            s = (s / self.softcap).tanh() * self.softcap
        return s * self.scale


@dataclass(frozen=True)
class Lse:
    """Log-sum-exps as unevaluated sums of two numbers: at logits of 1e4 one float32 is only good to 1e-3, and
    exp(s - lse) would inherit that."""

    high: Tensor
    low: Tensor

    @classmethod
    def of(cls, maximum: Tensor, log_sum: Tensor) -> Lse:
        high = maximum + log_sum
        return cls(high, (maximum - high) + log_sum)

    def __getitem__(self, rows: slice | Tensor) -> Lse:
        return Lse(self.high[rows], self.low[rows])


@dataclass
class RowSums:
    """Running row reductions; slices of them are what a backend adds a chunk to."""

    maximum: Tensor  # [N]
    total: Tensor  # [N] float64, sum of exp(s - maximum)
    target: Tensor  # [N] score of the row's target, 0 where it has none
    weighted: Tensor | None = None  # [N] float64, sum of exp(s - maximum) (s - maximum)
    rank: Tensor | None = None  # [N] how many scores beat the target's

    @classmethod
    def empty(
        cls, rows: int, dtype: torch.dtype, device: torch.device, *, maximum: float = -torch.inf, statistics: bool
    ) -> RowSums:
        def zeros(kind: torch.dtype) -> Tensor:
            return torch.zeros(rows, dtype=kind, device=device)

        return cls(
            maximum=torch.full((rows,), maximum, dtype=dtype, device=device),
            total=zeros(torch.float64),
            target=zeros(dtype),
            weighted=zeros(torch.float64) if statistics else None,
            rank=zeros(dtype) if statistics else None,
        )

    def __getitem__(self, rows: slice) -> RowSums:
        return RowSums(*(None if v is None else v[rows] for v in vars(self).values()))  # type: ignore[arg-type]

    def lse(self) -> Lse:
        return Lse.of(self.maximum, self.total.log().to(self.maximum.dtype))

    def mean(self) -> Tensor | None:
        if self.weighted is None:
            return None
        return (self.maximum + self.weighted / self.total).to(self.maximum.dtype)


@dataclass
class ColumnSums:
    """Running column reductions over the chunks so far."""

    maximum: Tensor  # [M]
    total: Tensor  # [M] float64, sum of exp(s - maximum)
    target: Tensor | None = None  # [M] score each column's pair has, to count what beats it
    rank: Tensor | None = None  # [M]

    @classmethod
    def empty(
        cls, columns: int, dtype: torch.dtype, device: torch.device, *, maximum: float = -torch.inf
    ) -> ColumnSums:
        return cls(
            maximum=torch.full((columns,), maximum, dtype=dtype, device=device),
            total=torch.zeros(columns, dtype=torch.float64, device=device),
        )

    def lse(self) -> Lse:
        return Lse.of(self.maximum, self.total.log().to(self.maximum.dtype))


@dataclass(frozen=True)
class Upstream:
    """Weights of ``dL/ds_ij = a_i exp(s_ij - r_i) + b_j exp(s_ij - c_j) + d_i [j = t_i]``; None is zero."""

    a: Tensor  # [c]
    r: Lse  # [c] row log-sum-exps
    b: Tensor | None = None  # [M]
    c: Lse | None = None  # [M] column log-sum-exps
    d: Tensor | None = None  # [c]


class BoundedKernels(Protocol):
    """Both walks with one exponential a score, for scores known to lie within +-MAX_REFERENCE."""

    def reduce(self, raw: Tensor, scale: float, targets: Tensor, rows: RowSums, columns: ColumnSums) -> None:
        """Both reductions of raw[c, M] at once, for sums whose maximum is one constant, at least every |score| and at
        most MAX_REFERENCE."""

    def weigh_(
        self,
        raw: Tensor,
        scale: float,
        reference: float,
        targets: Tensor | None,
        alpha: Tensor,
        beta: Tensor,
        d: Tensor | None,
        d_scale: Tensor | None,
    ) -> None:
        """Backend.weigh_ for ``dL/ds_ij = (alpha_i + beta_j) exp(s_ij - reference) + d_i [j = t_i]``."""


class Backend(Protocol):
    bounded: BoundedKernels | None
    """faster ones for scores known to be moderate, where the backend has them"""

    def reduce_rows(self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, sums: RowSums) -> None:
        """Adds raw[c, m] to the sums of its rows; targets[c] int64 count from its first column, those outside it are
        passed over. Ranks mean something only where it holds whole rows."""

    def reduce_columns(self, raw: Tensor, score_map: ScoreMap, sums: ColumnSums, first_row: int) -> None:
        """Adds raw[c, M] to the column sums; row i of the chunk is the pair of column first_row + i."""

    def weigh_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        upstream: Upstream,
        d_scale: Tensor | None,
    ) -> None:
        """raw[c, M] becomes dL/draw in place; d_scale[c] float64 receives each row's share of dL/dscale."""

    def accumulate_(self, high: Tensor, low: Tensor, x: Tensor) -> None:
        """(high, low) += x, a float32 kept as two 16-bit planes; see sweep/gradient.py."""

    def round_scaled_(self, high: Tensor, low: Tensor, scale: Tensor) -> None:
        """high[n, D] = bfloat16((high, low) * scale), scale [n] or [1]."""

    def pool_forward(self, hidden: Tensor, offsets: Tensor, last: bool, normalize: bool) -> tuple[Tensor, Tensor]:
        """hidden[T, D], offsets[B+1] -> pooled[B, D] and norms[B] in the accumulator dtype."""

    def pool_backward(
        self,
        upstream: Tensor,
        pooled: Tensor,
        norms: Tensor,
        offsets: Tensor,
        rows: int,
        last: bool,
        normalize: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        """upstream[B, D] -> gradient[rows, D] of the states, in ``dtype``."""
