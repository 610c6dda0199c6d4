"""sweep, Sweep, CrossEntropy: the score sweep, the one engine under every objective.

``sweep`` computes S[N, M] = scale * Q Kᵀ chunk by chunk, stores at most a given number of bytes of it, and returns a
few vectors. It is differentiable: an objective is ordinary torch on these vectors, and autograd turns their gradients
into those of Q, K, scale and bias. plan.py states the cost, tiling.py has both passes, forward.py and backward.py the
torch.library ops and the autograd rule. docs/engine.md explains the design with a picture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..amp import cast_operand
from ..backends import select_backend
from ..backends.accumulators import Lse
from ..derivatives import no_transforms
from . import backward  # noqa: F401  (registers the autograd rule)
from .forward import sweep_op
from .plan import GradientMode, gradient_mode, product_dtypes
from .problem import accumulator_dtype
from .row_loss import negative_log_softmax
from .signatures import SweepArgs


class Sweep(NamedTuple):
    """Outputs of the sweep: float32 (float64 for float64 inputs) unless stated, reductions over the unmasked entries.
    An output that was not requested has length 0."""

    row_lse: Tensor
    """[N] log sum_j exp S_ij; -inf if all entries are masked"""
    column_lse: Tensor
    """[M] log sum_i exp S_ij"""
    target: Tensor
    """[N] S_i,targets[i]"""
    row_logits: Tensor
    """float64 [N] sum_j S_ij"""
    column_logits: Tensor
    """float64 [M] sum_i S_ij"""
    softplus: Tensor
    """[N] sum_j log(1 + exp S_ij)"""
    loss: Tensor
    """[N] the requested CrossEntropy"""
    entropy: Tensor
    """[N] -sum_j p_ij log p_ij, p_i = softmax_j(S_i); 0 if all entries are masked"""
    clipped: Tensor
    """[N] log sum_j exp(clamp(S_ij, -clip, clip)); not differentiable"""
    row_rank: Tensor
    """[N] number of scores in row i above the target's; not differentiable"""
    column_rank: Tensor
    """[M] number of scores in column j above that of the row whose target is j; not differentiable"""
    row_lse_low: Tensor
    """[N] rounding error: row_lse + row_lse_low is the log-sum-exp to twice the precision; not differentiable"""
    column_lse_low: Tensor
    """[M] the same of column_lse"""

    def row_nll(self) -> Tensor:
        """Return row_lse - target to full precision: [N], nats; +inf if all entries are masked."""
        return negative_log_softmax(Lse(self.row_lse, self.row_lse_low), self.target)

    def column_nll(self, columns: Tensor | slice) -> Tensor:
        """Return column_lse - target to full precision.

        Args:
            columns: int64 [N] or a slice of length N. The targets of the rows.

        Returns:
            float32 [N] (float64 for float64 inputs), nats.
        """
        return negative_log_softmax(Lse(self.column_lse, self.column_lse_low)[columns], self.target)


class CrossEntropy(NamedTuple):
    """A cross-entropy of each row, computed by the sweep itself.

    With r_i = row_lse: ``w_i (r_i - (1 - label_smoothing) S_i,target - label_smoothing mean_j S_ij + z_loss r_i²)``,
    the mean over the columns that the bias does not exclude.

    The forward pass computes the gradient of the sum of these losses while the scores are in memory. It is the query's
    gradient up to a factor per row. It is the key's gradient only if all losses have the same upstream gradient, so
    pass weights here instead of multiplying the result by them, and reduce with ``loss.sum()``: its gradient is an
    expanded scalar, which is recognised without synchronising. In every other case the sweep recomputes what is
    missing; the gradients are always exact."""

    weights: Tensor | None = None
    """[N] factors w of the rows' losses, may require a gradient; None for ones"""
    label_smoothing: float = 0.0
    """fraction of the target's weight that is spread over all columns"""
    z_loss: float = 0.0
    """coefficient of r_i²"""


def sweep(
    query: Tensor,
    key: Tensor,
    *,
    scale: Tensor | float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    targets: Tensor | None = None,
    check_targets: bool = True,
    ignore_index: int | None = None,
    row_ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    keep_target: bool = True,
    row_lse: bool = True,
    column_lse: bool = False,
    entropy: bool = False,
    ranks: bool = False,
    logit_sums: bool = False,
    softplus: bool = False,
    clip: float = 0.0,
    loss: CrossEntropy | None = None,
    workspace_bytes: int = 0,
) -> Sweep:
    """Reduce S_ij = scale * softcap * tanh((q_i·k_j + bias_j) / softcap) along rows and columns, with exact gradients.

    The caller checks shapes and dtypes.

    Args:
        query: [N, D], float32, bfloat16, float16 or float64. Under autocast it is cast to autocast's dtype.
        key: [M, D], dtype and device of the query.
        scale: a number or a 0-dimensional tensor, which may require a gradient. The gradients of a float64 scale and of
            a float64 0-dimensional bias are not rounded to float32: their difference may be all that counts.
        bias: [M], or 0-dimensional for all columns, floating. -inf excludes the column from every row, whatever the
            softcap. The gradient of a 0-dimensional bias takes no pass over the scores if softplus is the only
            reduction.
        softcap: positive. None for no softcap.
        targets: int64 [N]. The column of each row whose score is returned.
        check_targets: False if the caller made the targets, all in range and, for column ranks, distinct. The check
            takes as long as five launches.
        ignore_index: rows with this target are skipped: their outputs and gradients are 0. None: no row is skipped,
            which saves the search for such rows and, on a CUDA device, a synchronisation.
        row_ids: int64 [N]. Entries whose row and column have equal ids are masked.
        column_ids: int64, at most [M]. Columns beyond the last id are never masked.
        keep_target: True: the target's entry is never masked. False: it always is; ``target`` is still its score.
        row_lse: return row_lse. May be False if neither entropy, ranks, clip nor loss is requested.
        column_lse: return column_lse, from the same pass, and the other requested reductions along columns.
        entropy: return entropy.
        ranks: return row_rank and, with column_lse, column_rank.
        logit_sums: return row_logits and, with column_lse, column_logits.
        softplus: return softplus.
        clip: positive: return clipped.
        loss: return this loss. Its gradient costs less than that of a loss computed from the other outputs, if no
            column is reduced.
        workspace_bytes: bytes of scores that may be saved for the backward, which then costs two products instead of
            three.

    Returns:
        The requested outputs.

    Raises:
        ValueError: a target is neither in [0, M) nor ignore_index, or two rows share a target whose column rank is
            requested. On a CUDA device this is a device-side assertion, so that the host need not synchronise.
        NotImplementedError: forward-mode AD.
        RuntimeError: in the backward, if its result is differentiated again.

    Example:
        >>> swept = sweep(query, key, targets=torch.arange(len(query)), column_lse=True)
        >>> loss = 0.5 * (swept.row_nll() + swept.column_nll(slice(None))).mean()  # symmetric InfoNCE
    """
    checks.check_integer("workspace_bytes", workspace_bytes)
    checks.check_integer("ignore_index", ignore_index)
    no_transforms("the score sweep", query, key, scale, bias, None if loss is None else loss.weights)
    is_enabled = torch.is_grad_enabled()
    grad_query, grad_key = is_enabled and query.requires_grad, is_enabled and key.requires_grad
    (query, query_source), (key, key_source) = cast_operand(query), cast_operand(key)
    accumulator = accumulator_dtype(query.dtype)
    if isinstance(scale, Tensor):
        scale = scale if scale.dtype in (accumulator, torch.float64) else scale.to(accumulator)
    else:
        scale = torch.full((), scale, dtype=accumulator, device=query.device)
    if bias is not None and not bias.dim():
        others = softcap, row_lse, column_lse, entropy, ranks, logit_sums, clip, loss is not None
        bias = bias.expand(key.shape[0]) if any(others) else bias
    sigmoid = is_enabled and bias is not None and not bias.dim() and bias.requires_grad
    grad_other = is_enabled and (scale.requires_grad or (bias is not None and bias.requires_grad))
    (rows, width), columns = query.shape, key.shape[0]
    row_loss = loss or CrossEntropy()
    gradient: GradientMode = "none"
    if grad_query or grad_key or grad_other:
        _, scores = product_dtypes(rows, columns, width, query.dtype, query.device.type)
        gradient = gradient_mode(
            rows * columns * scores.itemsize,
            only_row_loss=loss is not None and not column_lse and not grad_other,
            workspace_bytes=workspace_bytes,
        )
    outputs = sweep_op(
        SweepArgs(
            query=query,
            key=key,
            query_source=query_source,
            key_source=key_source,
            scale=scale,
            bias=bias,
            softcap=softcap or 0.0,
            targets=targets,
            check_targets=check_targets,
            ignore_index=ignore_index,
            row_ids=row_ids,
            column_ids=column_ids,
            keep_target=keep_target,
            row_lse=row_lse,
            column_lse=column_lse,
            entropy=entropy,
            ranks=ranks,
            logit_sums=logit_sums or row_loss.label_smoothing > 0,
            softplus=softplus,
            sigmoid=sigmoid,
            clip=clip,
            has_row_loss=loss is not None,
            loss_weights=row_loss.weights,
            label_smoothing=row_loss.label_smoothing,
            z_loss=row_loss.z_loss,
            grad_query=grad_query,
            grad_key=grad_key,
            gradient=gradient,
            reuse_saved=True,
            backend=select_backend(query),
        )
    )
    return Sweep(*[getattr(outputs, name) for name in Sweep._fields])
