"""What a backend supplies. A chunk ``raw[c, M]`` holds products q·k of c consecutive rows, in the compute dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScoreMap:
    """How a raw product becomes a score: ``s = scale * softcap * tanh((raw + bias) / softcap)``."""

    scale: float
    softcap: float = 0.0  # 0: none, s = scale * (raw + bias)
    bias: Tensor | None = None  # [M], accumulator dtype

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
    """Where the row reductions of a chunk go: slices of length c of the sweep's outputs."""

    lse: Lse
    target: Tensor | None = None  # score of the row's target
    mean: Tensor | None = None  # softmax-weighted mean score
    rank: Tensor | None = None  # how many scores beat the target's


@dataclass
class ColumnSums:
    """Running column reductions over the chunks so far."""

    maximum: Tensor  # [M]
    total: Tensor  # [M] float64, sum of exp(s - maximum)
    target: Tensor | None = None  # [M] score each column's pair has, to count what beats it
    rank: Tensor | None = None  # [M]

    @classmethod
    def empty(cls, columns: int, dtype: torch.dtype, device: torch.device) -> ColumnSums:
        return cls(
            maximum=torch.full((columns,), -torch.inf, dtype=dtype, device=device),
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


class Backend(Protocol):
    def reduce_rows(self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, out: RowSums) -> None:
        """Row reductions of raw[c, M]; targets[c] int64."""

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
