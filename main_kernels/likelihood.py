"""The language-model head without logits: token and sequence log-probabilities, and the training loss."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from . import checks
from .sweep import DEFAULT_WORKSPACE_BYTES, CrossEntropy, sweep


class TokenStats(NamedTuple):
    """What token_logprobs returns with ``return_stats``; the ignored positions hold 0, 0, 0 and False."""

    logprobs: Tensor
    """float32 [T] log p(target), nats"""
    entropy: Tensor
    """float32 [T] entropy of the distribution, nats; its gradient is exact"""
    rank: Tensor
    """int64 [T] how many tokens are more likely than the target; not differentiable"""
    is_argmax: Tensor
    """bool [T] True where none is"""


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
    """log p(target) of each row under softmax(softcap * tanh((hidden weightᵀ + bias) / softcap) / temperature).

    T x V is never stored. Ignored rows cost nothing, in the forward and in the backward; the host waits for the device
    to learn how many they are, unless ``ignore_index`` is None. Where the gradient that arrives is the same for all
    rows (a sum or a mean), both cost three matrix products and the gradients are ready when the forward is; with other
    weights the weight's gradient is recomputed (two more). With ``return_stats`` both cost four, whatever arrives.

    Args:
        hidden: [T, D] states, already shifted: row t predicts targets[t]. T may be 0.
        weight: [V, D] of the head, the dtype of hidden (under autocast any).
        targets: int64 [T], in [0, V) or ignore_index.
        bias: [V], floating. -inf leaves a token out: its probability is 0, whatever the softcap.
        softcap: positive, as in Gemma 2 (final_logit_softcapping).
        temperature: a positive number, or a 0-dimensional tensor, which may require a gradient.
        ignore_index: marks the targets that do not count; None: all count, and nobody looks for others.
        return_stats: also entropy, rank of the target and whether it is the arg-max.

    Returns:
        float32 [T] (float64 for float64 inputs), nats, 0 at ignored positions, -inf for a token that is left out; or
        TokenStats. Where every token is left out the log-probability is -inf, entropy, rank and gradients are 0.

    Raises:
        ValueError: for shapes, dtypes, devices or ids that do not fit, naming the argument.
    """
    _check_head(hidden, weight, targets, bias, softcap)
    scale = checks.inverse_temperature(temperature, hidden)
    # a loss that is turned round by its weights: turned round afterwards, a gradient of one number would become T
    minus = torch.full_like(targets, -1, dtype=torch.float32)
    swept = sweep(
        hidden,
        weight,
        scale=scale,
        bias=bias,
        softcap=softcap,
        targets=targets,
        ignore_index=ignore_index,
        entropy_and_ranks=return_stats,
        loss=None if return_stats else CrossEntropy(minus),
    )
    if not return_stats:
        return swept.loss
    rank = swept.row_rank.nan_to_num(nan=weight.shape[0]).to(torch.int64)  # a row of NaN beats nothing
    best = rank == 0 if ignore_index is None else (rank == 0) & (targets != ignore_index)
    return TokenStats(-swept.row_nll, swept.entropy, rank, best)


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
    """Cross-entropy of a language-model head, without logits, for training: three matrix products forward and backward.

    With the logits z_t = softcap * tanh((hidden_t weightᵀ + bias) / softcap) and r_t their log-sum-exp, the loss of
    token t is ``r_t - (1 - label_smoothing) z_t,target - label_smoothing * mean_v z_tv + z_loss * r_t²``
    (label smoothing as in torch's cross_entropy, over the tokens that bias does not leave out; the z-loss of PaLM,
    Chowdhery et al., 2022, keeps r near 0).

    Args:
        hidden: [T, D] states, already shifted: row t predicts targets[t]. T may be 0.
        weight: [V, D] of the head, the dtype of hidden (under autocast any).
        targets: int64 [T], in [0, V) or ignore_index.
        token_weights: floating [T], not negative: factors of the tokens' losses; the mean is then the weighted mean.
            Tokens of weight 0 cost nothing, unless token_weights requires a gradient. Weights given here cost no
            further products; weights multiplied into the result do.
        label_smoothing: from 0 to below 1.
        z_loss: not negative, 1e-4 is usual.
        bias: as in token_logprobs; the loss of a token that is left out is +inf.
        softcap: as in token_logprobs.
        ignore_index: as in token_logprobs; with None tokens of weight 0 cost what the others do.
        reduction: mean over the tokens that are not ignored (0 where there are none), sum, or none ([T], 0 at ignored
            tokens). For a loss per global batch take the sum and divide by its number of tokens.

    Returns:
        float32 (float64 for float64 inputs), nats.

    Raises:
        ValueError: for shapes, dtypes, devices or ids that do not fit, naming the argument.
    """
    _check_head(hidden, weight, targets, bias, softcap)
    checks.check_fraction("label_smoothing", label_smoothing)
    checks.check_choice("reduction", reduction, ("mean", "sum", "none"))
    if not 0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss: got {z_loss}, want a number that is not negative")
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
    """The log-probability of every sequence of a packed batch: token_logprobs summed over each segment, as DPO and its
    kin need them. Forward and backward cost three matrix products where the scores fit the workspace, else four,
    whatever the segments' gradients are.

    Args:
        hidden, weight, targets, bias, softcap, temperature: as in token_logprobs.
        ignore_index: marks the targets that do not count; None: all count and lie in a segment, and nobody looks for
            others.
        cu_seqlens: int32 or int64 [B + 1], non-decreasing, within [0, T]: segment b is the rows
            cu_seqlens[b] .. cu_seqlens[b + 1] - 1. Rows outside every segment cost nothing.
        segment_ids: instead, int64 [T], the segment of each row in any order, -1 for none.
        segments: with segment_ids, how many there are (default: the largest id + 1, which has to be read first).
        workspace_bytes: bytes of scores kept between forward and backward. 0 keeps nothing.

    Returns:
        float32 [B] (float64 for float64 inputs), nats, 0 for an empty segment.

    Raises:
        ValueError: for shapes, dtypes, devices or ids that do not fit, naming the argument.
    """
    _check_head(hidden, weight, targets, bias, softcap)
    scale = checks.inverse_temperature(temperature, hidden)
    rows = hidden.shape[0]
    if (cu_seqlens is None) == (segment_ids is None):
        given = "neither" if cu_seqlens is None else "both"
        raise ValueError(f"cu_seqlens: got {given} it and segment_ids, want one of the two")
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
    return _segment_sums(-swept.row_nll, segment_ids, segments)


def _segment_sums(values: Tensor, segment_ids: Tensor, segments: int) -> Tensor:
    """values[T] summed by segment in float64, in row order whatever the device: [segments]."""
    if not segments:
        return values[:0]
    order = segment_ids.argsort(stable=True)  # those of no segment come first
    bounds = torch.arange(segments, dtype=torch.int64, device=values.device)
    begins, ends = (torch.searchsorted(segment_ids[order], bounds, right=right) for right in (False, True))
    lengths = torch.cat([begins[:1], ends - begins, (values.shape[0] - ends[-1:])])
    sums = torch.segment_reduce(values[order].double(), "sum", lengths=lengths, initial=0, unsafe=True)
    return sums[1:-1].to(values.dtype)


def _ignoring(targets: Tensor, rows: Tensor, ignore_index: int, vocabulary: int) -> Tensor:
    """The targets with those of ``rows`` (bool [T]) ignored, but for wrong ones, which the sweep has to find."""
    return targets.masked_fill(rows & (targets >= 0) & (targets < vocabulary), ignore_index)


def _check_head(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None) -> None:
    checks.check_matrix("hidden", hidden, least=0)
    checks.check_matrix("weight", weight, width=hidden.shape[1], like=hidden)
    checks.check_vector("targets", targets, hidden.shape[0], integer=True, like=hidden)
    if bias is not None:
        checks.check_vector("bias", bias, weight.shape[0], integer=False, like=hidden)
    if softcap is not None:
        checks.check_positive("softcap", softcap)
