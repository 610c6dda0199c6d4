"""info_nce, sigmoid_loss, pair_scores, row_logsumexp: contrastive objectives over pairs."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .amp import disabled, widened
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
    """Compute the InfoNCE loss of pairs against in-batch negatives.

    With S = query keyᵀ / temperature, r_i the log-sum-exp of row i and c_i that of column i, the loss of pair i is ``½
    (r_i - S_ii) + ½ (c_i - S_ii)``, or one of the two terms (van den Oord et al., 2018; symmetric as in CLIP, Radford
    et al., 2021). At most ``workspace_bytes`` of S are stored.

    Args:
        query: [N, D], float32, bfloat16, float16 or float64. N may be 0. Normalise the rows first for cosine
            similarity.
        key: [N, D], dtype and device of query. Row i is the pair of row i of query.
        temperature: positive number, or 0-dimensional tensor, which may require a gradient. Divides the scores. Ignored
            if logit_scale is given.
        logit_scale: 0-dimensional floating tensor. Multiplies the scores by exp(clamp(logit_scale, 0, ln 100)). Its
            gradient is exact, and 0 outside the clamp.
        direction: "both"; "query" for ``r_i - S_ii``, each query picks its key; or "key" for ``c_i - S_ii``.
        pair_weights: floating [N], not negative. Multiplies the losses; the mean is then the weighted mean, or 0 if all
            weights are 0.
        label_smoothing: in [0, 1). This fraction of each target is spread evenly over its row (and column), the target
            included, as in torch's cross_entropy.
        negatives: [M, D] extra keys for all queries, or [N, K, D] K keys for each query. They occur in rows but in no
            column.
        pair_ids: int64 [N]. Pairs with equal ids are not negatives of each other: their entries are masked.
        reduction: "mean" over the pairs (0 if there are none), "sum", or "none".
        workspace_bytes: bytes of scores that may be saved for the backward, which then costs two matrix products
            instead of three. 0 saves nothing: the memory is O(chunk * N).

    Returns:
        float32 (float64 for float64 inputs), nats: a scalar, or [N] for reduction "none".

    Raises:
        ValueError: a shape, dtype, device or option is invalid. The message names the argument.

    Example:
        >>> logit_scale = torch.nn.Parameter(torch.tensor(2.66))  # ln(1 / 0.07)
        >>> loss = info_nce(query, key, logit_scale=logit_scale, pair_ids=response_hash)
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
            raise ValueError("negatives: expected none with direction 'key', where keys pick among queries, got some")
        shared, own = _check_negatives(negatives, query)
    if direction == "key":
        query, key = key, query
    by_rows = direction != "both" and own is None and not label_smoothing
    swept = sweep(
        query,
        key if shared is None else torch.cat([key, shared]),
        scale=scale,
        targets=torch.arange(count, dtype=torch.int64, device=query.device),
        check_targets=False,
        row_ids=pair_ids,
        column_ids=pair_ids,
        column_lse=direction == "both",
        logit_sums=label_smoothing > 0,
        loss=CrossEntropy(pair_weights) if by_rows else None,
        workspace_bytes=workspace_bytes,
    )
    if by_rows:
        return _reduce(swept.loss, pair_weights, reduction)
    by_row, row_sum = swept.row_nll(), swept.row_logits
    if own is not None:
        extra = _own_scores(query, own) * scale
        extra = extra + 0 * extra  # -inf becomes NaN: it would pass for a masked entry
        by_row = torch.logaddexp(by_row, (extra - swept.target[:, None]).logsumexp(1))
        row_sum = row_sum + extra.sum(1, dtype=torch.float64) if label_smoothing else row_sum
    in_row: Tensor | int = 0
    in_column: Tensor | int = 0
    if label_smoothing:  # the number of entries it is spread over
        in_column = count if pair_ids is None else count + 1 - _occurrences(pair_ids, pair_ids)
        in_row = in_column + sum(x.shape[-2] for x in (shared, own) if x is not None)

    def smoothed(loss: Tensor, sums: Tensor, entries: Tensor | int) -> Tensor:
        if not label_smoothing:
            return loss
        return loss + label_smoothing * (swept.target - sums / entries).to(loss.dtype)

    loss = smoothed(by_row, row_sum, in_row)
    if direction == "both":
        by_column = swept.column_nll(slice(0, count))
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
    """Compute the pairwise sigmoid loss of SigLIP (Zhai et al., 2023).

    With S = exp(logit_scale) query keyᵀ + logit_bias, the loss of row i is
    ``log(1 + exp(-S_ii)) + sum_{j != i} log(1 + exp S_ij)``. At most ``workspace_bytes`` of S are stored.

    Args:
        query: [N, D], float32, bfloat16, float16 or float64. N may be 0. Normalise the rows first.
        key: [N, D], dtype and device of query. Row i is the pair of row i of query.
        logit_scale: 0-dimensional floating tensor in log space, clamped to [0, ln 100]. SigLIP starts at ln 10.
        logit_bias: 0-dimensional floating tensor. SigLIP starts at -10.
        pair_ids: int64 [N]. Pairs with equal ids are not negatives of each other: their entries are masked.
        reduction: "mean" over the rows (0 if there are none), "sum", or "none".
        workspace_bytes: bytes of scores that may be saved for the backward, which then costs two matrix products
            instead of three.

    Returns:
        float32 (float64 for float64 inputs), nats: a scalar, or [N] for reduction "none".

    Raises:
        ValueError: a shape, dtype, device or option is invalid. The message names the argument.

    Example:
        >>> scale, bias = torch.nn.Parameter(torch.tensor(2.3)), torch.nn.Parameter(torch.tensor(-10.0))
        >>> loss = sigmoid_loss(query, key, logit_scale=scale, logit_bias=bias)
    """
    checks.check_pairs(query, key)
    checks.check_scalar("logit_bias", logit_bias)
    checks.check_choice("reduction", reduction, ("mean", "sum", "none"))
    count = query.shape[0]
    if pair_ids is not None:
        checks.check_vector("pair_ids", pair_ids, count, integer=True, like=query)
    # float64, as the scale's gradient is the small difference of its own part and that of the bias divided by it
    scale = _learned_scale(logit_scale, query, torch.float64)
    swept = sweep(
        query,
        key,
        scale=scale,
        bias=logit_bias.to(scale) / scale,  # the sweep adds the bias before it scales
        targets=torch.arange(count, dtype=torch.int64, device=query.device),
        check_targets=False,
        row_ids=pair_ids,
        column_ids=pair_ids,
        keep_target=False,
        row_lse=False,
        softplus=True,
        workspace_bytes=workspace_bytes,
    )
    return _reduce(swept.softplus - F.logsigmoid(swept.target), None, reduction)


class PairScores(NamedTuple):
    """Scores of each pair within its batch, float32 [N] each (float64 for float64 inputs)."""

    query_to_key: Tensor
    """log-softmax of the pair in its query's row, nats"""
    key_to_query: Tensor
    """log-softmax of the pair in its key's column, nats"""
    pmi: Tensor
    """½ (log n_i + log m_i) + S_ii - ½ (r_i + c_i), nats, for n_i and m_i unmasked entries in the pair's row and
    column: an estimate of pointwise mutual information, at most log N for N pairs"""
    rank_query: Tensor
    """number of keys that score higher with the query than its own key; 0 is a hit"""
    rank_key: Tensor
    """number of queries that score higher with the key than its own query"""


def pair_scores(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    targets: Tensor | None = None,
    pair_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
) -> PairScores:
    """Score each pair against all keys and all queries, at the cost of one matrix product.

    S = query keyᵀ / temperature is never stored. query_to_key, key_to_query and pmi are differentiable. Scores that
    equal the pair's up to rounding may or may not count in a rank.

    Args:
        query: [N, D], float32, bfloat16, float16 or float64. N may be 0.
        key: [M, D], dtype and device of query. A bank of keys. Without targets, M = N and row i is the pair of query i.
        temperature: positive number, or 0-dimensional tensor, which may require a gradient. Divides the scores.
        targets: int64 [N], distinct, in [0, M). Index of each query's key.
        pair_ids: int64 [N]. Entries of a row and a column with equal ids are masked, except the pairs themselves.
        key_ids: int64 [M]. Ids of the keys. Required with pair_ids if targets are given.

    Returns:
        The scores of the pairs.

    Raises:
        ValueError: a shape, dtype, device or option is invalid. The message names the argument.

    Example:
        >>> scores = pair_scores(query, bank, targets=torch.arange(len(query)))  # query i belongs to bank[i]
        >>> recall_at_1 = (scores.rank_query == 0).float().mean()
    """
    given = targets is not None
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
            raise ValueError(f"{missing}: expected the ids of both sides or of neither, got none")
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
        check_targets=given,
        row_ids=pair_ids,
        column_ids=key_ids,
        column_lse=True,
        ranks=True,
    )
    query_to_key, key_to_query = -swept.row_nll(), -swept.column_nll(targets)
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
    """Compute ``log sum_j exp(query_i·key_j / temperature)`` of each query over a bank of keys.

    Args:
        query: [N, D], float32, bfloat16, float16 or float64. N may be 0.
        key: [M, D], dtype and device of query.
        temperature: positive number, or 0-dimensional tensor, which may require a gradient. Divides the scores.
        workspace_bytes: bytes of scores that may be saved for the backward, which then costs two matrix products
            instead of three.

    Returns:
        float32 [N] (float64 for float64 inputs), nats, differentiable.

    Raises:
        ValueError: a shape, dtype, device or option is invalid. The message names the argument.
    """
    checks.check_matrix("query", query, least=0)
    checks.check_matrix("key", key, width=query.shape[1], like=query)
    scale = checks.inverse_temperature(temperature, query)
    return sweep(query, key, scale=scale, workspace_bytes=workspace_bytes).row_lse


def _learned_scale(logit_scale: Tensor, query: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return exp(clamp(logit_scale)) on the query's device, in a dtype, or in the query's accumulator dtype.

    The clamp is in the latter: a float32 parameter that was clamped to ln 100 is a little above it in float64, where it
    would have no gradient any more.
    """
    checks.check_scalar("logit_scale", logit_scale)
    wide = torch.promote_types(query.dtype, torch.float32)
    clamped = logit_scale.to(query.device, wide).clamp(0.0, MAX_LOGIT_SCALE)
    return (clamped if dtype is None else clamped.to(dtype)).exp()


def _check_negatives(negatives: Tensor, query: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return (shared [M, D], own [N, K, D]), one of them None."""
    checks.check_dense("negatives", negatives)
    if negatives.ndim == 3:
        if negatives.shape[0] != query.shape[0] or negatives.shape[1] < 1 or negatives.shape[2] != query.shape[1]:
            expected = f"({query.shape[0]}, K, {query.shape[1]}) with K >= 1"
            raise ValueError(f"negatives: expected {expected}, got shape {tuple(negatives.shape)}")
        checks.check_dtype_and_device("negatives", negatives, query)
        return None, negatives
    checks.check_matrix("negatives", negatives, width=query.shape[1], like=query)
    return negatives, None


def _own_scores(query: Tensor, negatives: Tensor) -> Tensor:
    """Return the inner products [N, K] of query[N, D] and negatives[N, K, D], summed in float32 (or float64)."""
    wide = torch.promote_types(query.dtype, torch.float32)
    query, negatives = widened(query, wide), widened(negatives, wide)
    with disabled(query):
        return torch.einsum("nd,nkd->nk", query, negatives)


def _occurrences(ids: Tensor, among: Tensor) -> Tensor:
    """Count how often each of ids[n] occurs in among[m], in O((n + m) log m) and without value-dependent shapes."""
    order = among.sort().values
    return torch.searchsorted(order, ids, right=True) - torch.searchsorted(order, ids)


def _reduce(loss: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    """Reduce loss[N], already multiplied by weights[N], to its (weighted) mean or sum, or return it."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if weights is None:
        return loss.sum() / max(loss.shape[0], 1)
    total = weights.to(loss.dtype).sum()
    return loss.sum() / torch.where(total == 0, 1, total)
