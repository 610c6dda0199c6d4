"""token_logprobs, sequence_logprobs, linear_cross_entropy: a language-model head without stored logits."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from . import checks
from .sweep import DEFAULT_WORKSPACE_BYTES, CrossEntropy, sweep


class TokenStats(NamedTuple):
    """Output of token_logprobs with ``return_stats``; 0, 0, 0 and False at ignored positions."""

    logprobs: Tensor
    """float32 [T] log p(target), nats"""
    entropy: Tensor
    """float32 [T] entropy of the distribution, nats; its gradient is exact"""
    rank: Tensor
    """int64 [T] number of tokens that are more likely than the target; not differentiable"""
    is_argmax: Tensor
    """bool [T] True if the rank is 0"""


@overload
def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    ignore_index: int | None = -100,
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
    temperature: float | Tensor = 1.0,
    ignore_index: int | None = -100,
    return_stats: Literal[True],
) -> TokenStats: ...


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    ignore_index: int | None = -100,
    return_stats: bool = False,
) -> Tensor | TokenStats:
    """Compute the log-probability of each target token, without storing the logits.

    It is that of softmax(softcap * tanh((hidden weightᵀ + bias) / softcap) / temperature). Ignored rows cost nothing,
    in the forward and in the backward. On a CUDA device, counting them synchronises unless ``ignore_index`` is None.

    If all rows have the same upstream gradient, as from a sum or a mean, forward and backward cost three matrix
    products together. Otherwise the gradient of the weight is recomputed, at two more. With ``return_stats`` they
    always cost four.

    Args:
        hidden: [T, D], float32, bfloat16, float16 or float64. States, already shifted: row t predicts targets[t]. T may
            be 0.
        weight: [V, D], dtype of hidden (any dtype under autocast). Weight of the head.
        targets: int64 [T], in [0, V) or ignore_index.
        bias: floating [V]. Added to the logits. -inf excludes a token: its probability is 0, whatever the softcap.
        softcap: positive. Caps the logits as in Gemma 2 (final_logit_softcapping).
        temperature: positive number, or 0-dimensional tensor, which may require a gradient. Divides the logits.
        ignore_index: target of the positions that do not count. None: all positions count, and targets are not searched
            for it.
        return_stats: also return the entropy, the target's rank and whether the target is the most likely token.

    Returns:
        float32 [T] (float64 for float64 inputs), nats: 0 at ignored positions, -inf for an excluded token. With
        ``return_stats`` a TokenStats. If every token is excluded, the log-probability is -inf, and entropy, rank and
        gradients are 0.

    Raises:
        ValueError: a shape, dtype, device or id is invalid. The message names the argument.

    Example:
        >>> logprobs = token_logprobs(hidden, lm_head.weight, targets)
        >>> perplexity = (-logprobs[targets != -100].mean()).exp()
    """
    _check_head(hidden, weight, targets, bias, softcap)
    scale = checks.inverse_temperature(temperature, hidden)
    # negate through the loss weights: negating the result would expand a scalar gradient to T values
    minus = torch.full_like(targets, -1, dtype=torch.float32)
    swept = sweep(
        hidden,
        weight,
        scale=scale,
        bias=bias,
        softcap=softcap,
        targets=targets,
        ignore_index=ignore_index,
        entropy=return_stats,
        ranks=return_stats,
        loss=None if return_stats else CrossEntropy(minus),
    )
    if not return_stats:
        return swept.loss
    rank = swept.row_rank.where(~swept.row_rank.isnan(), weight.shape[0]).to(torch.int64)  # a row of NaN has rank V
    best = rank == 0 if ignore_index is None else (rank == 0) & (targets != ignore_index)
    return TokenStats(-swept.row_nll(), swept.entropy, rank, best)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    token_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    ignore_index: int | None = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Compute the training loss of a language-model head, without storing the logits.

    With the logits z_t = softcap * tanh((hidden_t weightᵀ + bias) / softcap) and r_t their log-sum-exp, the loss of
    token t is ``r_t - (1 - label_smoothing) z_t,target - label_smoothing * mean_v z_tv + z_loss * r_t²``. Label
    smoothing is that of torch's cross_entropy, over the tokens that the bias does not exclude. The z-loss of PaLM
    (Chowdhery et al., 2022) keeps r near 0. Forward and backward cost three matrix products together.

    Args:
        hidden: [T, D], float32, bfloat16, float16 or float64. States, already shifted: row t predicts targets[t]. T may
            be 0.
        weight: [V, D], dtype of hidden (any dtype under autocast). Weight of the head.
        targets: int64 [T], in [0, V) or ignore_index.
        token_weights: floating [T], not negative. Multiplies the tokens' losses; the mean is then the weighted mean.
            Tokens of weight 0 cost nothing unless token_weights requires a gradient or ignore_index is None.
            Multiplying the result instead costs two more products.
        label_smoothing: in [0, 1).
        z_loss: not negative. 1e-4 is usual.
        bias: floating [V]. Added to the logits. -inf excludes a token: its loss is +inf.
        softcap: positive. Caps the logits as in Gemma 2 (final_logit_softcapping).
        ignore_index: target of the positions that do not count. None: all positions count, and targets are not searched
            for it.
        reduction: "mean" over the tokens that are not ignored (0 if there are none), "sum", or "none". For a loss per
            global batch, divide the sum by the batch's number of tokens.

    Returns:
        float32 (float64 for float64 inputs), nats: a scalar, or [T] for reduction "none", with 0 at ignored tokens.

    Raises:
        ValueError: a shape, dtype, device, id or option is invalid. The message names the argument.

    Example:
        >>> loss = linear_cross_entropy(hidden, lm_head.weight, targets, token_weights=token_weights, z_loss=1e-4)
    """
    _check_head(hidden, weight, targets, bias, softcap)
    checks.check_fraction("label_smoothing", label_smoothing)
    checks.check_choice("reduction", reduction, ("mean", "sum", "none"))
    checks.check_not_negative("z_loss", z_loss)
    if token_weights is not None:
        checks.check_vector("token_weights", token_weights, hidden.shape[0], integer=False, like=hidden)
        if ignore_index is not None and not token_weights.requires_grad:
            targets = _ignoring(targets, token_weights == 0, ignore_index, weight.shape[0])
    loss = sweep(
        hidden,
        weight,
        bias=bias,
        softcap=softcap,
        targets=targets,
        ignore_index=ignore_index,
        loss=CrossEntropy(token_weights, label_smoothing, z_loss),
    ).loss
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    counted = torch.ones_like(loss) if token_weights is None else token_weights.to(loss.dtype)
    total = (counted if ignore_index is None else counted.masked_fill(targets == ignore_index, 0)).sum()
    return loss.sum() / torch.where(total == 0, 1, total)


def sequence_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cu_seqlens: Tensor | None = None,
    segment_ids: Tensor | None = None,
    *,
    segments: int | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    ignore_index: int | None = -100,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> Tensor:
    """Compute the log-probability of each sequence of a packed batch, as in DPO.

    It is the sum of token_logprobs over each segment. Forward and backward cost three matrix products together if the
    scores fit into ``workspace_bytes``, otherwise four, whatever the upstream gradients are.

    Args:
        hidden: [T, D], float32, bfloat16, float16 or float64. States, already shifted: row t predicts targets[t]. T may
            be 0.
        weight: [V, D], dtype of hidden (any dtype under autocast). Weight of the head.
        targets: int64 [T], in [0, V) or ignore_index.
        cu_seqlens: int32 or int64 [B + 1], non-decreasing, within [0, T]. Segment b is the rows
            cu_seqlens[b] .. cu_seqlens[b + 1] - 1. Rows outside every segment cost nothing.
        segment_ids: int64 [T]. Instead of cu_seqlens, the segment of each row in any order, -1 for none.
        segments: number of segments, with segment_ids. None: the largest id + 1, which synchronises with a CUDA device.
        bias: floating [V]. Added to the logits. -inf excludes a token: its probability is 0, whatever the softcap.
        softcap: positive. Caps the logits as in Gemma 2 (final_logit_softcapping).
        temperature: positive number, or 0-dimensional tensor, which may require a gradient. Divides the logits.
        ignore_index: target of the positions that do not count. None: all positions count and belong to a segment, and
            targets are not searched for it.
        workspace_bytes: bytes of scores that may be saved for the backward, which then costs two matrix products
            instead of three.

    Returns:
        float32 [B] (float64 for float64 inputs), nats; 0 for an empty segment.

    Raises:
        ValueError: a shape, dtype, device or id is invalid. The message names the argument.

    Example:
        >>> cu_seqlens = torch.tensor([0, 12, 30])  # two sequences of 12 and 18 tokens
        >>> logprobs = sequence_logprobs(hidden, lm_head.weight, targets, cu_seqlens)  # [2]
    """
    _check_head(hidden, weight, targets, bias, softcap)
    scale = checks.inverse_temperature(temperature, hidden)
    checks.check_integer("segments", segments)
    checks.check_integer("ignore_index", ignore_index)
    rows = hidden.shape[0]
    if (cu_seqlens is None) == (segment_ids is None):
        got = "neither" if cu_seqlens is None else "both"
        raise ValueError(f"cu_seqlens: expected either it or segment_ids, got {got}")
    if cu_seqlens is not None:
        checks.check_offsets("cu_seqlens", cu_seqlens, like=hidden)
        if checks.has_readable_values(cu_seqlens):
            checks.check_offset_values("cu_seqlens", cu_seqlens, rows)
        segments = cu_seqlens.shape[0] - 1
        places = torch.arange(rows, dtype=torch.int64, device=hidden.device)
        segment_ids = torch.searchsorted(cu_seqlens.to(torch.int64), places, right=True) - 1
        segment_ids = segment_ids.masked_fill(segment_ids >= segments, -1)
    else:
        assert segment_ids is not None
        checks.check_vector("segment_ids", segment_ids, rows, integer=True, like=hidden)
        if segments is None:
            segments = max(int(segment_ids.max()) + 1, 1) if rows else 1
        if checks.has_readable_values(segment_ids):
            checks.check_in_range("segment_ids", segment_ids, -1, segments)
    if ignore_index is not None:
        targets = _ignoring(targets, segment_ids < 0, ignore_index, weight.shape[0])
    swept = sweep(
        hidden,
        weight,
        scale=scale,
        bias=bias,
        softcap=softcap,
        targets=targets,
        ignore_index=ignore_index,
        workspace_bytes=workspace_bytes,
    )
    return _segment_sums(-swept.row_nll(), segment_ids, segments)


def _segment_sums(values: Tensor, segment_ids: Tensor, segments: int) -> Tensor:
    """Sum values[T] by segment in float64, in row order on every device: [segments]."""
    if not segments:
        return values[:0]
    order = segment_ids.argsort(stable=True)  # rows without a segment come first
    bounds = torch.arange(segments, dtype=torch.int64, device=values.device)
    begins, ends = (torch.searchsorted(segment_ids[order], bounds, right=right) for right in (False, True))
    lengths = torch.cat([begins[:1], ends - begins, (values.shape[0] - ends[-1:])])
    sums = torch.segment_reduce(values[order].double(), "sum", lengths=lengths, initial=0, unsafe=True)
    return sums[1:-1].to(values.dtype)


def _ignoring(targets: Tensor, rows: Tensor, ignore_index: int, vocabulary: int) -> Tensor:
    """Ignore the targets of ``rows`` (bool [T]), except invalid ones, which the sweep has to report."""
    return targets.masked_fill(rows & (targets >= 0) & (targets < vocabulary), ignore_index)


def _check_head(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None) -> None:
    checks.check_matrix("hidden", hidden, least=0)
    checks.check_matrix("weight", weight, width=hidden.shape[1], like=hidden)
    checks.check_vector("targets", targets, hidden.shape[0], integer=True, like=hidden)
    if bias is not None:
        checks.check_vector("bias", bias, weight.shape[0], integer=False, like=hidden)
    if softcap is not None:
        checks.check_positive("softcap", softcap)
