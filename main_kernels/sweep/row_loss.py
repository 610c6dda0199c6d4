"""RowLoss: the cross-entropy of each row, whose gradient the forward pass can compute up to a factor per row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import checks
from ..backends.accumulators import Lse
from ..backends.structs import LossTerms


def negative_log_softmax(lse: Lse, score: Tensor) -> Tensor:
    """Return lse - score to full precision; +inf for the log-sum-exp of an empty set."""
    return torch.where(lse.high == -torch.inf, torch.inf, (lse.high - score) + lse.low)


@dataclass(frozen=True)
class RowLoss:
    """The loss w_i (r_i - (1 - eps) S_i,target - eps / M sum_j S_ij + z r_i²), with r_i the row's log-sum-exp."""

    weights: Tensor | None  # w [N], None for ones
    label_smoothing: float  # eps
    z_loss: float  # z

    def of_rows(self, rows: slice | Tensor) -> RowLoss:
        """Return the loss of some of the rows."""
        return self if self.weights is None else replace(self, weights=self.weights[rows])

    def unweighted(self, lse: Lse, target: Tensor | None, logits: Tensor | None, columns: Tensor | int) -> Tensor:
        """Return the losses [N] without their weights.

        Args:
            lse: log-sum-exps of the rows.
            target: [N] scores of the targets, or None if there are none.
            logits: [N] the rows' sums of scores, required for label smoothing.
            columns: number of columns that the bias does not exclude.
        """
        loss = lse.high.clone() if target is None else negative_log_softmax(lse, target)
        if self.label_smoothing:
            assert logits is not None
            own = logits.new_zeros(()) if target is None else target.where(target > -torch.inf, 0)
            loss = loss + self.label_smoothing * (own - logits / columns).to(loss.dtype)
        return loss + self.z_loss * lse.high.square() if self.z_loss else loss

    def weighted(self, values: Tensor) -> Tensor:
        """Multiply values [N] by the weights."""
        return values if self.weights is None else values * self.weights.to(values.dtype)

    def terms(
        self, like: Tensor, columns: Tensor | int, *, has_targets: bool, loss_grad: Tensor | None = None
    ) -> LossTerms:
        """Return the coefficients of the scores' gradient.

        Args:
            like: [N], accumulator dtype.
            columns: number of columns that the bias does not exclude.
            has_targets: the rows have targets.
            loss_grad: [N] upstream gradient of the losses. None for ones.
        """
        w = self.weighted(torch.ones_like(like) if loss_grad is None else loss_grad)
        eps = self.label_smoothing
        return LossTerms(
            row_lse_grad=w,
            row_lse_slope=w * (2 * self.z_loss) if self.z_loss else None,
            target_grad=w * (eps - 1) if has_targets else None,
            row_sum_grad=w * (-eps / columns) if eps else None,
        )


def is_expanded_scalar(vector: Tensor) -> bool:
    """Return True if all entries are known to be equal without reading them: the gradient of a sum is expanded."""
    return vector.shape[0] == 1 or (vector.shape[0] > 0 and vector.stride(0) == 0)


def has_equal_entries(vector: Tensor) -> bool:
    """Return True if all entries are equal, or if the vector has no readable values."""
    is_known = is_expanded_scalar(vector) or not checks.has_readable_values(vector)
    return is_known or bool((vector == vector[:1]).all())
