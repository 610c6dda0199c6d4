"""SweepArgs, SweepOutputs, SweepGradArgs, and the divergence's: arguments and outputs of the torch.library ops."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..registration import Mutated


class SweepArgs(NamedTuple):
    """Arguments of ``main_kernels::sweep``."""

    query: Tensor  # [N, D]
    key: Tensor  # [M, D]
    query_source: Tensor | None  # what autocast has cast to the query, whose gradient is this one's, in its dtype
    key_source: Tensor | None
    scale: Tensor  # 0-dimensional
    bias: Tensor | None  # [M], or [] for the same in every column
    softcap: float  # 0: none
    targets: Tensor | None  # int64 [N]
    check_targets: bool  # False: the caller made them, all distinct and in range
    ignore_index: int | None  # a row with this target is skipped; None: no row is, so targets are not searched for it
    row_ids: Tensor | None  # int64 [N]
    column_ids: Tensor | None  # int64, at most M; the columns beyond have an id of their own
    keep_target: bool
    row_lse: bool  # from here to clip: ReductionSpec
    column_lse: bool
    entropy: bool
    ranks: bool
    logit_sums: bool
    softplus: bool
    sigmoid: bool
    clip: float
    has_row_loss: bool  # the next three describe a RowLoss that is requested
    loss_weights: Tensor | None  # [N]
    label_smoothing: float
    z_loss: float
    grad_query: bool  # the query needs a gradient
    grad_key: bool
    gradient: str  # plan.GradientMode
    reuse_saved: bool  # the caller drops the saved state, so the backward may overwrite it
    backend: str


class SweepOutputs(NamedTuple):
    """Outputs of ``main_kernels::sweep``; an output that was not requested has length 0."""

    row_lse: Tensor  # [N]
    column_lse: Tensor  # [M]
    target: Tensor  # [N]
    row_logits: Tensor  # float64 [N], because objectives take differences of them
    column_logits: Tensor  # float64 [M]
    softplus: Tensor  # [N]
    loss: Tensor  # [N]
    entropy: Tensor  # [N] the last differentiable output
    unweighted_loss: Tensor  # [N] if the loss has weights
    sigmoid: Tensor  # [N] sum of the derivatives of softplus, for the gradient of a bias []
    clipped: Tensor  # [N]
    row_rank: Tensor  # [N]
    column_rank: Tensor  # [M]
    row_lse_low: Tensor  # [N] lower parts of the log-sum-exps
    column_lse_low: Tensor  # [M]
    saved_scores: Tensor  # [N, M] raw scores, in gradient mode "saved"
    query_grad_high: Tensor  # the planes of both GradBuffers, in gradient mode "forward"
    query_grad_low: Tensor
    key_grad_high: Tensor
    key_grad_low: Tensor


VECTORS = SweepOutputs._fields[:15]
DIFFERENTIABLE = SweepOutputs._fields[:8]
FLOAT64 = ("row_logits", "column_logits")


class SweepGradArgs(NamedTuple):
    """Arguments of ``main_kernels::sweep_gradient_``. Those of the sweep have the same meaning."""

    query: Tensor
    key: Tensor
    scale: Tensor
    bias: Tensor | None
    softcap: float
    targets: Tensor | None
    ignore_index: int | None
    row_ids: Tensor | None
    column_ids: Tensor | None
    keep_target: bool
    loss_weights: Tensor | None
    label_smoothing: float
    z_loss: float
    row_lse: Tensor
    row_lse_low: Tensor
    column_lse: Tensor
    column_lse_low: Tensor
    entropy: Tensor
    sigmoid: Tensor
    row_lse_grad: Tensor | None  # upstream gradients of the differentiable outputs; None is zero
    column_lse_grad: Tensor | None
    target_grad: Tensor | None
    row_logits_grad: Tensor | None
    column_logits_grad: Tensor | None
    softplus_grad: Tensor | None
    loss_grad: Tensor | None
    entropy_grad: Tensor | None
    loss_grad_is_scalar: bool  # all entries of loss_grad are known to be equal
    saved_scores: Mutated  # overwritten by their gradient
    query_grad_high: Mutated  # the gradients' buffers, without rows for a frozen operand
    query_grad_low: Mutated
    key_grad_high: Mutated
    key_grad_low: Mutated
    bias_grad: Mutated  # [M], [1] for a bias [], or [0]
    scale_grad: Mutated  # [1] or [0]
    gradient: str
    saved_available: bool  # False: recompute what the forward saved, in the same order
    backend: str


class DivergenceArgs(NamedTuple):
    """Arguments of ``main_kernels::divergence``: KL(p || q), or the generalised Jensen-Shannon divergence."""

    p_hidden: Tensor  # [T, Dp]
    p_weight: Tensor  # [V, Dp]
    q_hidden: Tensor  # [T, Dq]
    q_weight: Tensor  # [V, Dq]
    p_hidden_source: Tensor | None  # what autocast has cast to p_hidden, whose gradient is this one's, in its dtype
    p_weight_source: Tensor | None
    q_hidden_source: Tensor | None
    q_weight_source: Tensor | None
    scale: float
    beta: float | None  # weight of p in the Jensen-Shannon divergence; None: KL(p || q)
    mask: Tensor | None  # bool [T], False for a masked row
    grad_p_hidden: bool  # needs a gradient
    grad_p_weight: bool
    grad_q_hidden: bool
    grad_q_weight: bool
    reuse_saved: bool  # the caller drops the gradients' planes, so the backward may overwrite them
    backend: str


class DivergenceOutputs(NamedTuple):
    """Outputs of ``main_kernels::divergence``."""

    values: Tensor  # [T], 0 for a masked row
    p_hidden_high: Tensor  # the planes of the GradBuffers, for an upstream gradient of ones
    p_hidden_low: Tensor
    p_weight_high: Tensor
    p_weight_low: Tensor
    q_hidden_high: Tensor
    q_hidden_low: Tensor
    q_weight_high: Tensor
    q_weight_low: Tensor


class DivergenceGradArgs(NamedTuple):
    """Arguments of ``main_kernels::divergence_gradient_``."""

    values_grad: Tensor  # [T]
    p_hidden: Tensor
    p_weight: Tensor
    q_hidden: Tensor
    q_weight: Tensor
    scale: float
    beta: float | None
    mask: Tensor | None
    p_hidden_high: Mutated
    p_hidden_low: Mutated
    p_weight_high: Mutated
    p_weight_low: Mutated
    q_hidden_high: Mutated
    q_hidden_low: Mutated
    q_weight_high: Mutated
    q_weight_low: Mutated
    is_scalar: bool  # all entries of values_grad are known to be equal
    saved_available: bool  # False: recompute what the forward saved, in the same order
    backend: str
