"""ScoreMap, Mask, ScoreGradTerms, LossTerms, Pooling: the structs that the functions of a backend take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .accumulators import Lse, is_whole, select_rows

MAX_SCORE_BOUND = 40.0
"""Largest bound on |s| for the single-exp kernels: exp(s), its sums and their reciprocals are then normal float32."""


@dataclass(frozen=True)
class ScoreMap:
    """The map from raw products to scores, ``s = scale * softcap * tanh((raw + bias) / softcap)``.

    A bias of -inf excludes its column from every row, as does a finite bias that the scale takes to -inf: the score is
    -inf. With a bias or a softcap, a raw product that is not finite becomes NaN instead of a valid score.

    Args:
        scale: 0-dimensional, accumulator dtype. A tensor, so that the host need not know its value.
        softcap: 0 is no softcap, ``s = scale * (raw + bias)``. Default 0.
        bias: [M], accumulator dtype. Default: no bias.
        is_uniform: all columns have the same bias, whose part the gradient of the scale leaves out. Default False.
    """

    scale: Tensor
    softcap: float = 0.0
    bias: Tensor | None = None
    is_uniform: bool = False

    def valid_column_count(self, columns: int) -> Tensor | int:
        """Return the number of columns that the bias does not exclude, at least 1.

        Args:
            columns: M, the number of all columns.
        """
        if self.bias is None:
            return columns
        lowest = self.bias if self.softcap else self.bias * self.scale
        return (lowest != -torch.inf).sum(dtype=self.scale.dtype).clamp(min=1)

    def of_columns(self, columns: slice) -> ScoreMap:
        """Return the map of a range of columns.

        Args:
            columns: the range.
        """
        return self if self.bias is None else replace(self, bias=self.bias[columns])

    def apply(self, raw: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the scores of raw products.

        Args:
            raw: [..., M], compute dtype.
            dtype: dtype of the scores.
        """
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
    """A mask of the entries whose row and column have equal ids.

    With ``keep_target`` the row's target stays unmasked; without it, the target is masked as well. Without ids, nothing
    else is."""

    rows: Tensor | None  # [N] int32
    columns: Tensor | None  # [M] int32
    keep_target: bool

    def __getitem__(self, rows: slice | Tensor) -> Mask:
        return self if self.rows is None else replace(self, rows=select_rows(self.rows, rows))

    def of_columns(self, columns: slice) -> Mask:
        return self if self.columns is None else replace(self, columns=self.columns[columns])


@dataclass(frozen=True)
class ScoreGradTerms:
    """Coefficients of dL/ds, the gradient of the scores. None is zero. With the fields in this order named
    a, r, b, c, d, e, u, v, h::

        dL/ds_ij = (a_i + h_i (s_ij - r_i)) exp(s_ij - r_i) + b_j exp(s_ij - c_j) + e_i sigmoid(s_ij) + u_i + v_j

    for an unmasked entry, 0 for a masked one, plus d_i at the row's target."""

    row_lse_grad: Tensor | None = None  # [c], present if neg_entropy_grad is
    row_lse: Lse | None = None  # [c]
    column_lse_grad: Tensor | None = None  # [M]
    column_lse: Lse | None = None  # [M]
    target_grad: Tensor | None = None  # [c] of the target scores
    softplus_grad: Tensor | None = None  # [c] of the softplus sums
    row_sum_grad: Tensor | None = None  # [c] of the row sums of scores
    column_sum_grad: Tensor | None = None  # [M] of the column sums of scores
    neg_entropy_grad: Tensor | None = None  # [c] of sum_j p_j log p_j; row_lse_grad includes it times the entropy

    def coefficients(self) -> tuple[Tensor | None, ...]:
        """Return a, b, d, e, u, v and h."""
        return tuple(getattr(self, name) for name in _COEFFICIENTS)

    def scaled(self, factor: Tensor | None) -> ScoreGradTerms:
        """Return the coefficients multiplied by ``factor``; None is 1."""
        if factor is None:
            return self
        named = zip(_COEFFICIENTS, self.coefficients(), strict=True)
        scaled: dict[str, Any] = {name: None if vector is None else vector * factor for name, vector in named}
        return replace(self, **scaled)

    def of_rows(self, rows: slice | Tensor) -> ScoreGradTerms:
        """Return the terms of some of the rows."""

        def select(vector: Tensor | None) -> Tensor | None:
            return None if vector is None else select_rows(vector, rows)

        return replace(
            self,
            row_lse_grad=select(self.row_lse_grad),
            row_lse=None if self.row_lse is None else self.row_lse[rows],
            target_grad=select(self.target_grad),
            softplus_grad=select(self.softplus_grad),
            row_sum_grad=select(self.row_sum_grad),
            neg_entropy_grad=select(self.neg_entropy_grad),
        )


@dataclass(frozen=True)
class LossTerms:
    """The coefficients of the scores' gradient for a loss of each row, before the log-sum-exp r is known::

        dL/ds_ij = (a_i + r_i a'_i) exp(s_ij - r_i) + u_i

    plus d_i at the row's target, unless r_i is -inf. None is zero."""

    row_lse_grad: Tensor  # a [c]
    row_lse_slope: Tensor | None = None  # a' [c]
    target_grad: Tensor | None = None  # d [c]
    row_sum_grad: Tensor | None = None  # u [c]

    def at(self, lse: Lse) -> ScoreGradTerms:
        """Return the coefficients.

        Args:
            lse: log-sum-exps of the rows.
        """
        slope, target_grad = self.row_lse_slope, self.target_grad
        return ScoreGradTerms(
            row_lse_grad=self.row_lse_grad if slope is None else self.row_lse_grad + slope * lse.high,
            row_lse=lse,
            target_grad=None if target_grad is None else torch.where(lse.high == -torch.inf, 0, target_grad),
            row_sum_grad=self.row_sum_grad,
        )

    def scaled(self, factor: Tensor | None) -> LossTerms:
        """Return the coefficients multiplied by ``factor``; None is 1."""
        return self if factor is None else self._each(lambda vector: vector * factor)

    def of_rows(self, rows: slice) -> LossTerms:
        """Return the terms of some of the rows."""
        return self if is_whole(rows, self.row_lse_grad) else self._each(lambda vector: vector[rows])

    def _each(self, function: Callable[[Tensor], Tensor]) -> LossTerms:
        return replace(self, **{name: function(vector) for name, vector in vars(self).items() if vector is not None})


_COEFFICIENTS = tuple(field.name for field in fields(ScoreGradTerms) if field.name.endswith("_grad"))


@dataclass(frozen=True)
class Pooling:
    """Segment pooling: ``sum_t c_t h_t`` over a segment's rows, c_t proportional to weights_t exp(h_t·query)."""

    offsets: Tensor  # [B + 1] int64
    last: bool  # only the segment's last row
    normalize: bool
    weights: Tensor | None = None  # [T], accumulator dtype; None: all 1
    query: Tensor | None = None  # [D], accumulator dtype; None: 0

    @property
    def uniform(self) -> bool:
        """True if all rows of a segment have the same coefficient."""
        return self.weights is None and self.query is None
