"""Contrastive objectives over pairs: InfoNCE and the per-pair scores behind it."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import checks
from .sweep import DEFAULT_WORKSPACE, sweep

MAX_LOGIT_SCALE = math.log(100.0)


def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float = 0.07,
    logit_scale: Tensor | None = None,
    direction: Literal["both", "query", "key"] = "both",
    reduction: Literal["mean", "sum", "none"] = "mean",
    workspace: int = DEFAULT_WORKSPACE,
) -> Tensor:
    """InfoNCE over in-batch negatives (van den Oord et al., 2018; symmetric as in CLIP, Radford et al., 2021).

    With S = query keyᵀ / temperature, r_i the log-sum-exp of row i and c_i that of column i, the loss of pair i is
    ``½ (r_i - S_ii) + ½ (c_i - S_ii)`` (direction "both"), ``r_i - S_ii`` ("query": each query picks its key) or
    ``c_i - S_ii`` ("key"). S is never stored beyond ``workspace`` bytes.

    Args:
        query: [N, D] and key: [N, D], float32, bfloat16, float16 or float64; row i of one is the pair of row i of the
            other. Normalise them first where cosine similarity is meant.
        temperature: the scores are divided by it. Ignored where logit_scale is given.
        logit_scale: 0-dimensional tensor in log space, the scores are multiplied by exp(clamp(logit_scale, 0, ln 100));
            its gradient is exact (zero outside the clamp).
        workspace: bytes of scores kept between forward and backward (the backward then costs two matrix products
            instead of three). 0 keeps nothing: memory O(chunk * N).

    Returns:
        float32 (float64 for float64 inputs), nats: a scalar, or [N] for reduction "none".

    Raises:
        ValueError: for shapes, dtypes, devices or options that do not fit, naming the argument.
    """
    checks.pairs(query, key)
    checks.one_of("direction", direction, ("both", "query", "key"))
    checks.one_of("reduction", reduction, ("mean", "sum", "none"))
    if direction == "key":
        query, key = key, query
    swept = sweep(
        query,
        key,
        scale=_scale(temperature, logit_scale, query.dtype),
        targets=torch.arange(query.shape[0], device=query.device),
        column_sums=direction == "both",
        workspace=workspace,
    )
    loss = swept.row_lse - swept.target
    if direction == "both":
        loss = 0.5 * (loss + (swept.column_lse - swept.target))
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


class PairScores(NamedTuple):
    """Scores of every pair against its batch, float32 [N] each (float64 for float64 inputs)."""

    query_to_key: Tensor
    """log-softmax of the pair among its query's row, nats"""
    key_to_query: Tensor
    """log-softmax of the pair among its key's column, nats"""
    pmi: Tensor
    """log N + S_ii - ½ (r_i + c_i), nats: a pointwise mutual-information estimate, at most log N"""
    rank_query: Tensor
    """how many keys score higher with the query than its own; 0 is a hit"""
    rank_key: Tensor
    """how many queries score higher with the key than its own"""


def pair_scores(query: Tensor, key: Tensor, *, temperature: float = 0.07) -> PairScores:
    """Scores every pair (query_i, key_i) against the whole batch, in both directions, from one walk over S.

    Args:
        query: [N, D] and key: [N, D]; the scores are S = query keyᵀ / temperature, never stored as N x N.

    The first three are differentiable. Scores that tie with the pair's to rounding may or may not count in a rank.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, naming the argument.
    """
    checks.pairs(query, key)
    checks.positive("temperature", temperature)
    swept = sweep(
        query,
        key,
        scale=1 / temperature,
        targets=torch.arange(query.shape[0], device=query.device),
        column_sums=True,
        statistics=True,
    )
    return PairScores(
        query_to_key=swept.target - swept.row_lse,
        key_to_query=swept.target - swept.column_lse,
        pmi=math.log(query.shape[0]) + swept.target - 0.5 * (swept.row_lse + swept.column_lse),
        rank_query=swept.row_rank,
        rank_key=swept.column_rank,
    )


def row_logsumexp(query: Tensor, key: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log sum_j exp(query_i·key_j / temperature) of every query against a bank of keys, differentiable.

    Args:
        query: [N, D]. key: [M, D]. N x M is never stored.

    Returns:
        float32 [N] (float64 for float64 inputs), nats.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, naming the argument.
    """
    checks.matrix("query", query)
    checks.matrix("key", key, width=query.shape[1], like=query)
    checks.positive("temperature", temperature)
    return sweep(query, key, scale=1 / temperature).row_lse


def _scale(temperature: float, logit_scale: Tensor | None, dtype: torch.dtype) -> Tensor | float:
    if logit_scale is None:
        checks.positive("temperature", temperature)
        return 1 / temperature
    if not isinstance(logit_scale, Tensor) or logit_scale.ndim != 0 or not logit_scale.is_floating_point():
        got = tuple(logit_scale.shape) if isinstance(logit_scale, Tensor) else type(logit_scale).__name__
        raise ValueError(f"logit_scale: got {got}, want a 0-dimensional floating tensor in log space")
    wide = logit_scale.to(torch.promote_types(dtype, torch.float32))
    return wide.clamp(0.0, MAX_LOGIT_SCALE).exp()
