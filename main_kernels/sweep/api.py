"""sweep, Sweep and CrossEntropy: the score sweep, the one engine under every objective.

``sweep`` walks S[N, M] = scale * Q Kᵀ chunk by chunk, never storing it beyond a stated budget, and returns a handful of
vectors. It is differentiable: an objective is ordinary torch on these vectors, and autograd turns their gradients into
those of Q, K, scale and bias. ``plan.py`` says what it costs, ``tiling.py`` is the walk, ``op.py`` and ``backward.py``
are the torch.library ops and the autograd rule. docs/engine.md tells it with a picture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..amp import autocast
from ..backends import select_backend
from ..derivatives import no_tangents
from . import backward  # noqa: F401  (joins the op to autograd)
from .flops import count_products
from .inputs import Inputs, accumulator_dtype
from .op import NAMES, sweep_op
from .tiling import negative_log


class Sweep(NamedTuple):
    """The sweep's outputs, float32 (float64 for float64 inputs) unless said, sums over the entries that take part; of
    length 0 where not asked for."""

    row_lse: Tensor
    """[N] log sum_j exp S_ij; -inf where nothing takes part"""
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
    """[N] of the CrossEntropy that was asked for"""
    entropy: Tensor
    """[N] -sum_j p_ij log p_ij, p_i = softmax_j(S_i); 0 where nothing takes part"""
    clipped: Tensor
    """[N] log sum_j exp(clamp(S_ij, -clip, clip)); not differentiable"""
    row_rank: Tensor
    """[N] how many scores of row i beat its target's; not differentiable"""
    column_rank: Tensor
    """[M] how many scores of column j beat that of the row whose target it is; not differentiable"""
    row_low: Tensor
    """[N] the rest: row_lse + row_low is the log-sum-exp to more digits than one number has; not differentiable"""
    column_low: Tensor
    """[M] the same of column_lse"""

    @property
    def row_nll(self) -> Tensor:
        """[N] row_lse - target to all digits, however large both are; +inf where nothing takes part."""
        return negative_log(self.row_lse, self.row_low, self.target)

    def column_nll(self, columns: Tensor | slice) -> Tensor:
        """[N] the same of ``columns``, which are those of the rows' targets."""
        return negative_log(self.column_lse[columns], self.column_low[columns], self.target)


class CrossEntropy(NamedTuple):
    """A loss of each row, with r_i = row_lse:
    ``weight_i (r_i - (1 - label_smoothing) S_i,target - label_smoothing mean_j S_ij + z_loss r_i²)``, the mean over the
    columns that bias does not leave out.

    The forward walk makes its gradients while it holds the scores, up to the factor of each row, which the backward
    brings. It serves the key's gradient only where that factor is the same for all rows, so weights belong here, not on
    the result; and where it arrives as one number, as from ``loss.sum()``, nobody has to look. Whatever arrives, and
    whatever else is differentiated, the gradients are exact."""

    weight: Tensor | None = None
    """[N], None for ones; may require a gradient"""
    label_smoothing: float = 0.0
    z_loss: float = 0.0


def sweep(
    query: Tensor,
    key: Tensor,
    *,
    scale: Tensor | float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    targets: Tensor | None = None,
    ignore_index: int | None = None,
    row_ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    keep_target: bool = True,
    row_lse: bool = True,
    columns: bool = False,
    statistics: bool = False,
    logit_sums: bool = False,
    softplus: bool = False,
    clip: float = 0.0,
    loss: CrossEntropy | None = None,
    workspace_bytes: int = 0,
) -> Sweep:
    """Reductions of S_ij = scale * softcap * tanh((q_i·k_j + bias_j) / softcap), exact gradients for all of them.

    Args:
        query: [N, D], key: [M, D], one dtype and device. Under autocast both are cast to its dtype.
        scale: a number, or a 0-dimensional tensor that may require a gradient.
        bias: [M]; -inf leaves its column out of every row, whatever the softcap. softcap: a positive number; None for
            none.
        targets: int64 [N].
        ignore_index: a row with this target takes no part, its outputs and gradients are 0. None: every row does, which
            saves looking for it, and on a CUDA device waiting.
        row_ids, column_ids: int64 [N] and at most [M]: entries with equal ids take no part. Columns beyond the last id
            share one with nobody.
        keep_target: the target's own entry takes part whatever its ids; False: it never does (``target`` still is its
            score).
        row_lse: False where only sums without it are wanted, statistics and clip need it.
        columns: also column_lse, from the same walk, and what else is asked for of columns.
        statistics: also entropy and the ranks. logit_sums, softplus: also these. clip: positive: also ``clipped``.
        loss: the one to be returned; makes the backward cheaper than one from the other outputs, where rows are all
            that is differentiated.
        workspace_bytes: bytes of scores that may be kept for the backward, which then costs two products, not three.

    The caller has checked shapes and dtypes. Raises ValueError for a target that is neither in [0, M) nor
    ignore_index, and with statistics of columns for one that two rows share; a CUDA device raises its own error later,
    as nobody waits for it. NotImplementedError for forward-mode AD; second derivatives raise RuntimeError.
    """
    no_tangents("the score sweep", query, key, scale, bias, None if loss is None else loss.weight)
    query, key = autocast(query), autocast(key)
    accumulator = accumulator_dtype(query.dtype)
    if isinstance(scale, Tensor):
        scale = scale.to(accumulator)
    else:
        scale = torch.full((), scale, dtype=accumulator, device=query.device)
    grad = torch.is_grad_enabled()
    told = loss or CrossEntropy()
    count_products()
    outputs = sweep_op(
        *Inputs(
            query=query,
            key=key,
            scale=scale,
            bias=bias,
            softcap=softcap or 0.0,
            targets=targets,
            ignore_index=ignore_index,
            row_ids=row_ids,
            column_ids=column_ids,
            keep_target=keep_target,
            row_lse=row_lse,
            columns=columns,
            statistics=statistics,
            logit_sums=logit_sums or told.label_smoothing > 0,
            softplus=softplus,
            clip=clip,
            announced=loss is not None,
            weights=told.weight,
            label_smoothing=told.label_smoothing,
            z_loss=told.z_loss,
            grad_query=grad and query.requires_grad,
            grad_key=grad and key.requires_grad,
            grad_other=grad and (scale.requires_grad or (bias is not None and bias.requires_grad)),
            workspace_bytes=workspace_bytes,
            donate=True,
            backend=select_backend(query),
        )
    )
    named = dict(zip(NAMES, outputs, strict=False))
    return Sweep(**{name: named[name] for name in Sweep._fields})
