"""Backend, SingleExpKernels, FusedKernels: the protocols of the kernels.

A chunk ``raw[c, M]`` holds the products q·k of c consecutive rows, in the compute dtype.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .accumulators import ColumnAccumulators, ReductionSpec, RowAccumulators
from .structs import LossTerms, Mask, Pooling, ScoreGradTerms, ScoreMap


class SingleExpKernels(Protocol):
    """Forward and backward kernels with one exponential per score instead of one per reduction.

    They need a target in every row, and no mask or one that keeps the targets: rows and columns can then share exp(s),
    and no maximum is subtracted. ``reduce`` needs |s| <= MAX_SCORE_BOUND, ``score_grad_`` the same of all log-sum-exps.
    """

    def largest_norm(self, operand: Tensor) -> float:
        """Return the largest Euclidean norm of a row of operand[n, D]; infinite if an entry is not finite."""

    def reduce(
        self,
        raw: Tensor,
        scale: float,
        targets: Tensor,
        mask: Mask | None,
        rows: RowAccumulators,
        columns: ColumnAccumulators,
    ) -> None:
        """Add raw[c, M] to the row and the column accumulators in one pass. All of their ``maximum`` entries are 0.

        The ranks of rows and columns are both requested or neither, and so are the sums of scores, not with ranks."""

    def score_grad_(
        self,
        raw: Tensor,
        scale: float,
        targets: Tensor,
        mask: Mask | None,
        row_factor: Tensor,
        column_factor: Tensor,
        terms: ScoreGradTerms,
        scale_grad: Tensor | None,
    ) -> None:
        """Backend.score_grad_ for ``dL/ds_ij = (row_factor_i + column_factor_j) exp(s_ij)``, plus row_sum_grad_i and
        column_sum_grad_j, both or none, and target_grad_i at the row's target, all three from the terms."""


class FusedKernels(Protocol):
    """Forward and backward kernels that contain the matrix product: scores are computed and consumed in registers.

    They serve sweeps that keep no scores. ``query`` [c, D] and ``key`` [M, D] have one dtype and come from
    ``aligned``."""

    def supports(self, dtype: torch.dtype) -> bool:
        """Return True if these kernels are preferred for operands of this dtype."""

    def aligned(self, operand: Tensor) -> Tensor:
        """Return operand[n, D] in the memory layout of the kernels; columns of zeros may be appended."""

    def target_scores(
        self,
        query: Tensor,
        key: Tensor,
        score_map: ScoreMap,
        targets: Tensor,
        out: Tensor,
    ) -> None:
        """Write to out[c] the scores of the rows with targets[c], all of them valid."""

    def reduce(
        self,
        query: Tensor,
        key: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        spec: ReductionSpec,
        target: Tensor | None = None,
        column_target: Tensor | None = None,
    ) -> tuple[RowAccumulators, ColumnAccumulators | None]:
        """Reduce all scores.

        Args:
            query: [N, D].
            key: [M, D].
            score_map: map from products to scores.
            targets: int64 [N], or None.
            mask: mask of the entries, or None.
            spec: the reductions.
            target: [N], scores of the targets. Required for ranks, and with a mask that keeps the targets.
            column_target: [M], see ColumnAccumulators.target. Required for the ranks of columns.

        Returns:
            The accumulators of rows and columns. Those of rows hold ``target`` if it is given, else zeros."""

    def score_grad(
        self,
        query: Tensor,
        key: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        terms: ScoreGradTerms,
        out: Tensor,
        scale_grad: Tensor | None,
    ) -> None:
        """Write dL/draw to out[c, M], whose rows lie a multiple of 16 elements apart, and zeros to the padding between
        them; scale_grad as in Backend.score_grad_."""


class Backend(Protocol):
    """The kernels of one device. A method whose name ends in ``_`` overwrites an argument."""

    single_exp: SingleExpKernels | None
    """kernels for bounded scores, if the backend has them"""
    fused: FusedKernels | None
    """kernels that contain the matrix product, if the backend has them"""
    finishes_lse: bool
    """reductions write the log-sum-exps of the scores seen so far where accumulators have room for them"""

    def reduce_rows(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: RowAccumulators
    ) -> None:
        """Add the scores of a chunk to the accumulators of its rows.

        Args:
            raw: [c, m], compute dtype. The products.
            score_map: map from products to scores.
            targets: int64 [c], counted from the chunk's first column. Targets outside the chunk are skipped.
            mask: mask of the chunk's rows and columns, or None.
            sums: accumulators of the c rows. Ranks are valid only if the chunk holds whole rows.
        """

    def reduce_columns(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: ColumnAccumulators
    ) -> None:
        """Add the scores of a chunk to the accumulators of its columns.

        Args:
            raw: [c, M], compute dtype. The products.
            score_map: map from products to scores.
            targets: int64 [c]. A row does not count in the rank of its own target column.
            mask: mask of the chunk's rows and columns, or None.
            sums: accumulators of the M columns.
        """

    def reduce_both(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        rows: RowAccumulators,
        columns: ColumnAccumulators,
    ) -> None:
        """Add the scores of a chunk of whole rows to the accumulators of its rows and of its columns, none of which
        has ranks.

        Args:
            raw: [c, M], compute dtype. The products.
            score_map: map from products to scores.
            targets: int64 [c], or None.
            mask: mask of the chunk's rows and columns, or None.
            rows: accumulators of the c rows.
            columns: accumulators of the M columns.
        """

    def score_grad_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        terms: ScoreGradTerms,
        scale_grad: Tensor | None,
        grad: Tensor,
    ) -> None:
        """Compute the gradient dL/draw of a chunk of products.

        Args:
            raw: [c, M]. The products. Overwritten.
            score_map: map from products to scores.
            targets: int64 [c], or None.
            mask: mask of the chunk's rows and columns, or None.
            terms: coefficients of dL/ds.
            scale_grad: float64 [c]. Receives each row's part of dL/dscale, if all columns share a bias without that of
                the bias, which can be a thousand times the rest; None if no gradient is needed.
            grad: [c, M]. Receives the gradient; may be raw itself.
        """

    def row_loss_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        sums: RowAccumulators,
        loss: LossTerms,
        grad: Tensor,
    ) -> None:
        """Reduce whole rows that have seen no score, and compute the gradient dL/draw of a loss of each row.

        Args:
            raw: [c, M]. The products. Overwritten.
            score_map: map from products to scores.
            targets: int64 [c], or None.
            mask: mask of the chunk's rows and columns, or None.
            sums: accumulators of the c rows, empty, with ``total``. Their ``finished_lse`` receives the log-sum-exps.
            loss: coefficients of dL/ds.
            grad: [c, M]. Receives the gradient; may be raw itself.
        """

    def add_columns_(self, score_grad: Tensor, sums: Tensor) -> None:
        """Add the column sums of a gradient: ``sums += score_grad.sum(0)``.

        Args:
            score_grad: [c, M], compute dtype.
            sums: [M], accumulator dtype. Overwritten.
        """

    def accumulate_(self, high: Tensor, low: Tensor, x: Tensor) -> None:
        """Add to a float32 tensor that is stored as two 16-bit planes: ``(high, low) += x``.

        Args:
            high: upper 16 bits (sweep/grad_buffer.py). Overwritten.
            low: lower 16 bits. Overwritten.
            x: the summand, shape of high.
        """

    def round_scaled_(self, high: Tensor, low: Tensor, scale: Tensor) -> None:
        """Scale a tensor stored as two planes and round it: ``high = bfloat16((high, low) * scale)``.

        Args:
            high: [n, D], upper 16 bits. Receives the result.
            low: [n, D], lower 16 bits.
            scale: [n] or [1].
        """

    def divergence_(
        self,
        p_raw: Tensor,
        q_raw: Tensor,
        scale: float,
        beta: float | None,
        weights: Tensor,
        values: Tensor,
        p_grad: Tensor | None,
        q_grad: Tensor | None,
    ) -> None:
        """Compute the divergence of p = softmax(scale p_raw[c, M]) and q = softmax(scale q_raw[c, M]).

        Args:
            p_raw: [c, M]. Overwritten.
            q_raw: [c, M], may have another dtype. Overwritten.
            scale: factor of both.
            beta: None is KL(p || q). Else the divergence is ``beta KL(p || m) + (1 - beta) KL(q || m)`` with
                m = beta p + (1 - beta) q.
            weights: [c], factors of the gradients.
            values: [c]. Receives the divergences.
            p_grad: [c, M]. Receives the gradient of p_raw, which it may be itself; None if it is not needed.
            q_grad: the same of q_raw.
        """

    def pool_forward(self, hidden: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor, Tensor]:
        """Pool packed states.

        Args:
            hidden: [T, D], compute dtype.
            pooling: segments, mode and coefficients.

        Returns:
            pooled[B, D] and norms[B], the norms before normalising, in the accumulator dtype, and units[T] float64,
            each row's coefficient per unit of its weight ([0] if the pooling is uniform).
        """

    def pool_backward(
        self,
        pooled_grad: Tensor,
        pooled: Tensor,
        norms: Tensor,
        units: Tensor,
        hidden: Tensor | None,
        rows: int,
        dtype: torch.dtype,
        pooling: Pooling,
        needs_grad: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Compute the gradients of ``pool_forward``.

        Args:
            pooled_grad: [B, D], gradient of pooled.
            pooled: [B, D], from the forward.
            norms: [B], from the forward.
            units: [T], from the forward.
            hidden: [T, D]. Required for a query or the weights' gradient, else None.
            rows: T.
            dtype: dtype of hidden and of its gradient.
            pooling: as in the forward.
            needs_grad: flags for hidden, weights and query.

        Returns:
            The gradients of hidden [T, D], weights [T] and query [D]; None where no gradient is needed.
        """
