"""The score sweep: the one engine under every objective.

``sweep`` walks S[N, M] = scale * Q Kᵀ chunk by chunk, never storing it beyond a stated budget, and returns a handful of
vectors. It is differentiable: an objective is ordinary torch on these vectors, and autograd turns their gradients into
those of Q, K, scale and bias. ``plan.py`` says what it costs, ``walk.py`` is the walk, ``op.py`` the autograd rule.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import choose
from .op import accumulator_dtype, sweep_op
from .plan import DEFAULT_WORKSPACE

__all__ = ["DEFAULT_WORKSPACE", "Sweep", "sweep"]


class Sweep(NamedTuple):
    """The sweep's outputs, float32 (float64 for float64 inputs); of length 0 where not asked for."""

    row_lse: Tensor
    """[N] log sum_j exp S_ij"""
    column_lse: Tensor
    """[M] log sum_i exp S_ij"""
    target: Tensor
    """[N] S_i,targets[i]"""
    mean: Tensor
    """[N] sum_j softmax_j(S_i) S_ij; not differentiable"""
    row_rank: Tensor
    """[N] how many scores of row i beat its target's; not differentiable"""
    column_rank: Tensor
    """[M] how many scores of column j beat S_jj; not differentiable"""


def sweep(
    query: Tensor,
    key: Tensor,
    *,
    scale: Tensor | float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    targets: Tensor | None = None,
    column_sums: bool = False,
    statistics: bool = False,
    workspace: int = 0,
) -> Sweep:
    """Reductions of S_ij = scale * softcap * tanh((q_i·k_j + bias_j) / softcap), exact gradients for all of them.

    Args:
        query: [N, D], key: [M, D], one dtype and device. Under autocast both are cast to its dtype.
        scale: a number, or a 0-dimensional tensor that may require a gradient.
        bias: [M]. softcap: a positive number; None for none.
        targets: int64 [N]; a row whose target is -1 takes no part, its outputs and gradients are 0.
        column_sums: also column_lse, from the same walk.
        statistics: also mean and the ranks.
        workspace: bytes of scores that may be kept for the backward, which then costs two products, not three.

    The caller has checked shapes and dtypes. Raises ValueError for a target that is neither below M nor -1.
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind) and query.dtype != torch.float64:
        query, key = (t.to(torch.get_autocast_dtype(kind)) for t in (query, key))
    accumulator = accumulator_dtype(query.dtype)
    if isinstance(scale, Tensor):
        scale = scale.to(accumulator)
    else:
        scale = torch.full((), scale, dtype=accumulator, device=query.device)
    grad = torch.is_grad_enabled()
    outputs = sweep_op(
        query,
        key,
        scale,
        bias,
        softcap or 0.0,
        targets,
        column_sums,
        statistics,
        grad and query.requires_grad,
        grad and key.requires_grad,
        grad and (scale.requires_grad or (bias is not None and bias.requires_grad)),
        workspace,
        True,
        choose(query),
    )
    return Sweep(*outputs[: len(Sweep._fields)])
