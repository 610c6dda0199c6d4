"""Token log-probabilities of a language-model head, without logits."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from . import checks
from .sweep import sweep


class TokenStats(NamedTuple):
    """What token_logprobs returns with ``return_stats``; the ignored positions hold 0, 0, 0 and False."""

    logprobs: Tensor
    """float32 [T] log p(target), nats"""
    entropy: Tensor
    """float32 [T] entropy of the distribution, nats; not differentiable"""
    rank: Tensor
    """int64 [T] how many tokens are more likely than the target"""
    is_argmax: Tensor
    """bool [T] whether none is"""


@overload
def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    return_stats: Literal[False] = False,
) -> Tensor: ...


@overload
def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    return_stats: Literal[True],
) -> TokenStats: ...


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    return_stats: bool = False,
) -> Tensor | TokenStats:
    """log p(target) of each row under softmax(softcap * tanh((hidden weightᵀ + bias) / softcap) / temperature).

    T x V is never stored. Ignored rows cost nothing, in the forward and in the backward. Where the gradient that
    arrives is the same for all rows (a sum or a mean), forward and backward cost three matrix products and the
    gradients are ready when the forward is; with other weights the weight's gradient is recomputed (two more).

    Args:
        hidden: [T, D] states, already shifted: row t predicts targets[t].
        weight: [V, D] of the head, the dtype of hidden.
        targets: int64 [T], in [0, V) or ignore_index.
        bias: [V], floating. softcap: as in Gemma 2 (final_logit_softcapping). temperature: positive.
        return_stats: also entropy, rank of the target and whether it is the arg-max.

    Returns:
        float32 [T] (float64 for float64 inputs), nats, 0 at ignored positions; or TokenStats.

    Raises:
        ValueError: for shapes, dtypes, devices or ids that do not fit, naming the argument.
    """
    checks.matrix("hidden", hidden)
    checks.matrix("weight", weight, width=hidden.shape[1], like=hidden)
    checks.vector("targets", targets, hidden.shape[0], integer=True, like=hidden)
    checks.positive("temperature", temperature)
    if bias is not None:
        checks.vector("bias", bias, weight.shape[0], integer=False, like=hidden)
    if softcap is not None:
        checks.positive("softcap", softcap)
    ignored = targets == ignore_index
    swept = sweep(
        hidden,
        weight,
        scale=1 / temperature,
        bias=bias,
        softcap=softcap,
        targets=targets.masked_fill(ignored, -1),
        statistics=return_stats,
    )
    logprobs = swept.target - swept.row_lse
    if not return_stats:
        return logprobs
    rank = swept.row_rank.nan_to_num(nan=weight.shape[0]).to(torch.int64)  # a row of NaN beats nothing
    return TokenStats(logprobs, swept.row_lse - swept.mean, rank, (rank == 0) & ~ignored)
