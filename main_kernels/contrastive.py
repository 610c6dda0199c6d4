"""Contrastive objectives over pairs: InfoNCE, the sigmoid loss, and the per-pair scores behind them."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .amp import autocast, disabled
from .sweep import DEFAULT_WORKSPACE_BYTES, CrossEntropy, sweep

MAX_LOGIT_SCALE = math.log(100.0)
Reduction = Literal["mean", "sum", "none"]


def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    logit_scale: Tensor | None = None,
    direction: Literal["both", "query", "key"] = "both",
    pair_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    negatives: Tensor | None = None,
    pair_ids: Tensor | None = None,
    reduction: Reduction = "mean",
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> Tensor:
    """InfoNCE over in-batch negatives (van den Oord et al., 2018; symmetric as in CLIP, Radford et al., 2021).

    With S = query keyᵀ / temperature, r_i the log-sum-exp of row i and c_i that of column i, the loss of pair i is
    ``½ (r_i - S_ii) + ½ (c_i - S_ii)`` (direction "both"), ``r_i - S_ii`` ("query": each query picks its key) or
    ``c_i - S_ii`` ("key"). S is never stored beyond ``workspace_bytes``.

    Args:
        query: [N, D] and key: [N, D], float32, bfloat16, float16 or float64; row i of one is the pair of row i of the
            other. N may be 0. Normalise them first where cosine similarity is meant.
        temperature: a positive number, or a 0-dimensional tensor, which may require a gradient: the scores are divided
            by it. Ignored where logit_scale is given.
        logit_scale: 0-dimensional tensor in log space, the scores are multiplied by exp(clamp(logit_scale, 0, ln 100));
            its gradient is exact (zero outside the clamp).
        pair_weights: floating [N], not negative: factors of the pairs' losses; the mean is then the weighted mean (0
            where all weights are 0).
        label_smoothing: this share of each target is spread evenly over all entries of its row (and column), itself
            included, as in torch's cross_entropy.
        negatives: keys that are nobody's pair, in every query's row and in no column: [M, D], shared by all queries, or
            [N, K, D], K for each.
        pair_ids: int64 [N]; rows and columns of pairs with the same id are no negatives of each other: their entries
            are left out of both log-sum-exps, their own pairs excepted.
        reduction: mean over the pairs (0 where there are none), sum, or none ([N]).
        workspace_bytes: bytes of scores kept between forward and backward (the backward then costs two matrix products
            instead of three). 0 keeps nothing: memory O(chunk * N).

    Returns:
        float32 (float64 for float64 inputs), nats: a scalar, or [N] for reduction "none".

    Raises:
        ValueError: for shapes, dtypes, devices or options that do not fit, naming the argument.
    """
    checks.check_pairs(query, key)
    checks.check_choice("direction", direction, ("both", "query", "key"))
    checks.check_choice("reduction", reduction, ("mean", "sum", "none"))
    checks.check_fraction("label_smoothing", label_smoothing)
    count = query.shape[0]
    if pair_weights is not None:
        checks.check_vector("pair_weights", pair_weights, count, integer=False, like=query)
    if pair_ids is not None:
        checks.check_vector("pair_ids", pair_ids, count, integer=True, like=query)
    if logit_scale is None:
        scale = checks.inverse_temperature(temperature, query)
    else:
        scale = _learned_scale(logit_scale, query)
    shared = own = None
    if negatives is not None:
        if direction == "key":
            raise ValueError("negatives: got some, want none with direction 'key', where keys pick among queries")
        shared, own = _check_negatives(negatives, query)
    if direction == "key":
        query, key = key, query
    by_rows = direction != "both" and own is None and not label_smoothing
    swept = sweep(
        query,
        key if shared is None else torch.cat([key, shared]),
        scale=scale,
        targets=torch.arange(count, dtype=torch.int64, device=query.device),
        row_ids=pair_ids,
        column_ids=pair_ids,
        column_lse=direction == "both",
        logit_sums=label_smoothing > 0,
        loss=CrossEntropy(pair_weights) if by_rows else None,
        workspace_bytes=workspace_bytes,
    )
    if by_rows:
        return _reduce(swept.loss, pair_weights, reduction)
    by_row, row_sum = swept.row_nll, swept.row_logits
    if own is not None:
        extra = _own_scores(query, own) * scale
        by_row = torch.logaddexp(by_row, (extra - swept.target[:, None]).logsumexp(1))
        row_sum = row_sum + extra.sum(1, dtype=torch.float64) if label_smoothing else row_sum
    in_row: Tensor | int = 0
    in_column: Tensor | int = 0
    if label_smoothing:  # over how many entries it is spread
        in_column = count if pair_ids is None else count + 1 - _occurrences(pair_ids, pair_ids)
        in_row = in_column + sum(x.shape[-2] for x in (shared, own) if x is not None)

    def smoothed(loss: Tensor, sums: Tensor, entries: Tensor | int) -> Tensor:
        if not label_smoothing:
            return loss
        return loss + label_smoothing * (swept.target - sums / entries).to(loss.dtype)

    loss = smoothed(by_row, row_sum, in_row)
    if direction == "both":
        by_column = swept.column_nll(slice(count))
        loss = 0.5 * (loss + smoothed(by_column, swept.column_logits[:count], in_column))
    return _reduce(loss if pair_weights is None else loss * pair_weights.to(loss.dtype), pair_weights, reduction)


def sigmoid_loss(
    query: Tensor,
    key: Tensor,
    *,
    logit_scale: Tensor,
    logit_bias: Tensor,
    pair_ids: Tensor | None = None,
    reduction: Reduction = "mean",
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> Tensor:
    """The pairwise sigmoid loss of SigLIP (Zhai et al., 2023): every entry is a yes-or-no question of its own.

    With S = exp(logit_scale) query keyᵀ + logit_bias, the loss of row i is
    ``log(1 + exp(-S_ii)) + sum_{j != i} log(1 + exp S_ij)``. N x N is never stored beyond ``workspace_bytes``.

    Args:
        query: [N, D] and key: [N, D], pairs row by row; normalise them first.
        logit_scale: 0-dimensional tensor in log space, clamped to [0, ln 100] as in info_nce (SigLIP starts at ln 10).
        logit_bias: 0-dimensional tensor (SigLIP starts at -10). Both have exact gradients.
        pair_ids: int64 [N]; entries of different pairs with the same id are left out.
        reduction: "none" gives the [N] rows, "mean" their mean (SigLIP's normalisation: the sum of all entries over N),
            0 where there are none.
        workspace_bytes: as in info_nce.

    Returns:
        float32 (float64 for float64 inputs), nats.

    Raises:
        ValueError: for shapes, dtypes, devices or options that do not fit, naming the argument.
    """
    checks.check_pairs(query, key)
    checks.check_scalar("logit_bias", logit_bias)
    checks.check_choice("reduction", reduction, ("mean", "sum", "none"))
    count = query.shape[0]
    if pair_ids is not None:
        checks.check_vector("pair_ids", pair_ids, count, integer=True, like=query)
    scale = _learned_scale(logit_scale, query)
    swept = sweep(
        query,
        key,
        scale=scale,
        bias=(logit_bias.to(scale) / scale).expand(count),  # the sweep adds it before it scales
        targets=torch.arange(count, dtype=torch.int64, device=query.device),
        row_ids=pair_ids,
        column_ids=pair_ids,
        keep_target=False,
        row_lse=False,
        softplus=True,
        workspace_bytes=workspace_bytes,
    )
    return _reduce(swept.softplus - F.logsigmoid(swept.target), None, reduction)


class PairScores(NamedTuple):
    """Scores of every pair against its batch, float32 [N] each (float64 for float64 inputs)."""

    query_to_key: Tensor
    """log-softmax of the pair among its query's row, nats"""
    key_to_query: Tensor
    """log-softmax of the pair among its key's column, nats"""
    pmi: Tensor
    """½ (log n_i + log m_i) + S_ii - ½ (r_i + c_i), nats, with n_i and m_i the entries of the pair's row and column: a
    pointwise mutual-information estimate, at most log N over a batch of N"""
    rank_query: Tensor
    """how many keys score higher with the query than its own; 0 is a hit"""
    rank_key: Tensor
    """how many queries score higher with the key than its own"""


def pair_scores(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    targets: Tensor | None = None,
    pair_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
) -> PairScores:
    """Scores every query against all keys, and its key against all queries, from one walk over S = query keyᵀ /
    temperature, which is never stored.

    Args:
        query: [N, D]. key: [M, D], a bank of keys; without targets M = N and row i of it is the pair of query i.
        targets: int64 [N], which key is each query's own; no two share one.
        pair_ids: int64 [N]: entries of a row and a column with the same id take no part, the pairs themselves excepted.
        key_ids: int64 [M], the ids of the keys; needed with pair_ids where targets are given.

    The first three are differentiable. Scores that tie with the pair's to rounding may or may not count in a rank.

    Raises:
        ValueError: for shapes, dtypes, devices or targets that do not fit, naming the argument.
    """
    if targets is None:
        checks.check_pairs(query, key)
        targets = torch.arange(query.shape[0], dtype=torch.int64, device=query.device)
        key_ids = pair_ids if key_ids is None else key_ids
    else:
        checks.check_matrix("query", query, least=0)
        checks.check_matrix("key", key, width=query.shape[1], like=query)
        checks.check_vector("targets", targets, query.shape[0], integer=True, like=query)
        if checks.has_readable_values(targets):
            checks.check_in_range("targets", targets, 0, key.shape[0])
    scale = checks.inverse_temperature(temperature, query)
    in_row: Tensor | float = key.shape[0]
    in_column: Tensor | float = query.shape[0]
    if pair_ids is not None or key_ids is not None:
        if pair_ids is None or key_ids is None:
            missing = "pair_ids" if pair_ids is None else "key_ids"
            raise ValueError(f"{missing}: got none, want the ids of both sides or of neither")
        checks.check_vector("pair_ids", pair_ids, query.shape[0], integer=True, like=query)
        checks.check_vector("key_ids", key_ids, key.shape[0], integer=True, like=query)
        own = key_ids[targets]
        in_row = in_row - _occurrences(pair_ids, key_ids) + (own == pair_ids)
        in_column = in_column - _occurrences(own, pair_ids) + (own == pair_ids)
    swept = sweep(
        query,
        key,
        scale=scale,
        targets=targets,
        row_ids=pair_ids,
        column_ids=key_ids,
        column_lse=True,
        entropy_and_ranks=True,
    )
    query_to_key, key_to_query = -swept.row_nll, -swept.column_nll(targets)
    entries = swept.target.new_ones(()) * in_row * in_column
    return PairScores(
        query_to_key=query_to_key,
        key_to_query=key_to_query,
        pmi=0.5 * (entries.log() + query_to_key + key_to_query),
        rank_query=swept.row_rank,
        rank_key=swept.column_rank[targets],
    )


def row_logsumexp(
    query: Tensor, key: Tensor, *, temperature: float | Tensor = 1.0, workspace_bytes: int = DEFAULT_WORKSPACE_BYTES
) -> Tensor:
    """log sum_j exp(query_i·key_j / temperature) of every query against a bank of keys, differentiable.

    Args:
        query: [N, D]. key: [M, D]. workspace_bytes: as in info_nce.

    Returns:
        float32 [N] (float64 for float64 inputs), nats.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, naming the argument.
    """
    checks.check_matrix("query", query, least=0)
    checks.check_matrix("key", key, width=query.shape[1], like=query)
    scale = checks.inverse_temperature(temperature, query)
    return sweep(query, key, scale=scale, workspace_bytes=workspace_bytes).row_lse


def _learned_scale(logit_scale: Tensor, query: Tensor) -> Tensor:
    """exp(clamp(logit_scale)), beside the query and in its accumulator's dtype."""
    checks.check_scalar("logit_scale", logit_scale)
    wide = torch.promote_types(query.dtype, torch.float32)
    return logit_scale.to(query.device, wide).clamp(0.0, MAX_LOGIT_SCALE).exp()


def _check_negatives(negatives: Tensor, query: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(shared [M, D], own [N, K, D]), one of them None."""
    if isinstance(negatives, Tensor) and negatives.ndim == 3:
        if negatives.shape[0] != query.shape[0] or negatives.shape[1] < 1 or negatives.shape[2] != query.shape[1]:
            want = f"({query.shape[0]}, K, {query.shape[1]})"
            raise ValueError(f"negatives: got shape {tuple(negatives.shape)}, want {want} with K >= 1")
        checks.check_dtype_and_device("negatives", negatives, query)
        return None, negatives
    checks.check_matrix("negatives", negatives, width=query.shape[1], like=query)
    return negatives, None


def _own_scores(query: Tensor, negatives: Tensor) -> Tensor:
    """query[N, D], negatives[N, K, D] -> [N, K] inner products, summed in float32 (float64 for float64)."""
    wide = torch.promote_types(query.dtype, torch.float32)
    query, negatives = autocast(query), autocast(negatives)
    with disabled(query):
        return torch.einsum("nd,nkd->nk", query.to(wide), negatives.to(wide))


def _occurrences(ids: Tensor, among: Tensor) -> Tensor:
    """How often each of ids[n] occurs in among[m], in O((n + m) log m) and without a shape that depends on values."""
    order = among.sort().values
    return torch.searchsorted(order, ids, right=True) - torch.searchsorted(order, ids)


def _reduce(loss: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    """loss[N], already multiplied by weights[N]: the (weighted) mean, the sum, or each."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if weights is None:
        return loss.sum() / max(loss.shape[0], 1)
    total = weights.to(loss.dtype).sum()
    return loss.sum() / torch.where(total == 0, 1, total)
