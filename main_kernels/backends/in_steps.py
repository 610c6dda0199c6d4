"""InSteps: functions of a backend made of two others, which read the scores twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .accumulators import ColumnAccumulators, Lse, RowAccumulators
from .structs import LossTerms, Mask, ScoreMap

if TYPE_CHECKING:
    from .interface import Backend


class InSteps:
    """``Backend.reduce_both`` and ``row_loss_`` for a backend without kernels of their own."""

    def reduce_both(
        self: Backend,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        rows: RowAccumulators,
        columns: ColumnAccumulators,
    ) -> None:
        self.reduce_rows(raw, score_map, targets, mask, rows)
        self.reduce_columns(raw, score_map, targets, mask, columns)

    def row_loss_(
        self: Backend,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        sums: RowAccumulators,
        loss: LossTerms,
        grad: Tensor,
    ) -> None:
        assert sums.total is not None
        assert sums.finished_lse is not None
        self.reduce_rows(raw, score_map, targets, mask, sums)
        lse = Lse.of(sums.maximum, sums.total)
        sums.finished_lse.high.copy_(lse.high)
        sums.finished_lse.low.copy_(lse.low)
        self.score_grad_(raw, score_map, targets, mask, loss.at(lse), None, grad)
