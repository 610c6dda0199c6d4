"""PlainBackend: the same chunked algorithm in ordinary torch operations, on any device and in float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .accumulators import ColumnAccumulators, RowAccumulators
from .in_steps import InSteps
from .interface import FusedKernels, SingleExpKernels
from .structs import Mask, Pooling, ScoreGradTerms, ScoreMap


def _nan_if_nonfinite(s: Tensor, dim: int, *, biased: bool = False) -> Tensor:
    """Return 0, or NaN if a score along ``dim`` is not finite: an infinite score must not give a finite result. With
    ``biased``, -inf scores are those that the bias excludes."""
    zeros = s * 0
    return (zeros.masked_fill(s == -torch.inf, 0) if biased else zeros).sum(dim)


def _excluded_mask(columns: int, targets: Tensor | None, mask: Mask) -> Tensor:
    """Return the masked entries, [c, M] bool."""
    own: Tensor | None = None
    if targets is not None:
        own = torch.arange(columns, dtype=torch.int64, device=targets.device) == targets[:, None]
    if mask.rows is None or mask.columns is None:
        assert own is not None
        return own
    out: Tensor = mask.rows[:, None] == mask.columns
    if own is None:
        return out
    return out & ~own if mask.keep_target else out | own


_NOTHING = -1e4  # a finite stand-in for the logarithm of 0


class PlainBackend(InSteps):
    single_exp: SingleExpKernels | None = None
    fused: FusedKernels | None = None
    finishes_lse = False

    def reduce_rows(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: RowAccumulators
    ) -> None:
        s = score_map.apply(raw, sums.maximum.dtype)
        poison = _nan_if_nonfinite(s, 1, biased=score_map.bias is not None)
        at_target = None
        if targets is not None:
            inside = (targets >= 0) & (targets < s.shape[1])
            at_target = s.gather(1, targets.where(inside, 0)[:, None])
            sums.target.copy_(at_target[:, 0].where(inside, sums.target))
        if mask is not None:
            s = s.masked_fill(_excluded_mask(s.shape[1], targets, mask), -torch.inf)
        if sums.logits is not None:
            sums.logits.add_(s.where(s > -torch.inf, 0).sum(1, dtype=torch.float64) + poison)
        if sums.softplus is not None:
            sums.softplus.add_(_softplus(s).sum(1) + poison)
        if sums.sigmoid is not None:
            sums.sigmoid.add_(s.sigmoid().sum(1) + poison)
        if sums.rank is not None and at_target is not None:
            sums.rank.add_((s > at_target).sum(1))
        if sums.total is None:
            return
        maximum = torch.maximum(sums.maximum, s.amax(1))
        zero = maximum.where(maximum > -torch.inf, 0)  # no score yet: e^-inf is 0, not NaN
        below = s - zero[:, None]
        weight = below.exp()
        seen = sums.maximum > -torch.inf
        shift = torch.where(seen, sums.maximum - maximum, 0).double()
        if sums.weighted is not None:
            before = shift.exp() * (sums.weighted + shift * sums.total)
            sums.weighted.copy_(before + (weight * below.where(s > -torch.inf, 0)).sum(1))
        if sums.clipped is not None:
            start = zero.clamp(-sums.clip, sums.clip)
            moved = torch.where(seen, sums.maximum.clamp(-sums.clip, sums.clip) - start, 0).double()
            part = (s.clamp(-sums.clip, sums.clip) - start[:, None]).exp().where(s > -torch.inf, 0)
            sums.clipped.mul_(moved.exp()).add_(part.sum(1) + poison)
        sums.total.mul_(shift.exp()).add_(weight.sum(1) + poison)
        sums.maximum.copy_(maximum)

    def reduce_columns(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: ColumnAccumulators
    ) -> None:
        s = score_map.apply(raw, sums.maximum.dtype)
        poison = _nan_if_nonfinite(s, 0, biased=score_map.bias is not None)
        if mask is not None:
            s = s.masked_fill(_excluded_mask(s.shape[1], targets, mask), -torch.inf)
        if sums.logits is not None:
            sums.logits.add_(s.where(s > -torch.inf, 0).sum(0, dtype=torch.float64))
        maximum = torch.maximum(sums.maximum, s.amax(0))
        part = (s - maximum.where(maximum > -torch.inf, 0)).exp().sum(0) + poison
        shift = torch.where(sums.maximum > -torch.inf, sums.maximum - maximum, 0)
        sums.total.mul_(shift.double().exp()).add_(part)
        sums.maximum.copy_(maximum)
        if sums.rank is not None and sums.target is not None and targets is not None:
            above = (s > sums.target).scatter(
                1, targets[:, None], False
            )  # a row does not count in the rank of its target column
            sums.rank.add_(above.sum(0))

    def score_grad_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        terms: ScoreGradTerms,
        scale_grad: Tensor | None,
        grad: Tensor,
    ) -> None:
        r, c = terms.row_lse, terms.column_lse
        s = score_map.apply(raw, torch.promote_types(raw.dtype, torch.float32))
        g = torch.zeros_like(s)
        if terms.row_lse_grad is not None and r is not None:
            log_p = (s - r.high[:, None]).sub_(r.low[:, None])
            factor = terms.row_lse_grad[:, None]
            if terms.neg_entropy_grad is not None:
                factor = factor + terms.neg_entropy_grad[:, None] * log_p.clamp(min=_NOTHING)
            g = log_p.exp_() * factor
        if terms.column_lse_grad is not None and c is not None:
            g += (s - c.high).sub_(c.low).exp_().mul_(terms.column_lse_grad)
        if terms.softplus_grad is not None:
            g += s.sigmoid() * terms.softplus_grad[:, None]
        if terms.row_sum_grad is not None:
            g += terms.row_sum_grad[:, None]
        if terms.column_sum_grad is not None:
            g += terms.column_sum_grad
        if mask is not None:
            g.masked_fill_(_excluded_mask(s.shape[1], targets, mask), 0)
        if score_map.bias is not None:
            out = s == -torch.inf
            g.masked_fill_(out, 0)
            s = torch.where(out, -score_map.scale * score_map.softcap, s)  # a finite value at which tanh has no slope
        if terms.target_grad is not None and targets is not None:
            g.scatter_add_(1, targets[:, None], terms.target_grad[:, None])
        if scale_grad is not None:
            slope = raw.to(s.dtype) * score_map.scale if score_map.is_uniform else s
            scale_grad.copy_((g * slope).sum(1, dtype=torch.float64) / score_map.scale)
        g *= score_map.scale
        if score_map.softcap:
            g *= 1 - (s / (score_map.scale * score_map.softcap)).square()
        grad.copy_(g)

    def add_columns_(self, weights: Tensor, sums: Tensor) -> None:
        sums += weights.sum(0, dtype=sums.dtype)

    def accumulate_(self, high: Tensor, low: Tensor, x: Tensor) -> None:
        total = join_planes(high, low) + x
        bits = total.view(torch.int32)
        high.view(torch.int16).copy_(bits >> 16)
        low.copy_(bits)  # keeps the lower 16 bits

    def round_scaled_(self, high: Tensor, low: Tensor, scale: Tensor) -> None:
        high.copy_(join_planes(high, low) * scale[:, None])

    def divergence_(
        self,
        p_raw: Tensor,
        q_raw: Tensor,
        scale: float,
        beta: float | None,
        weights: Tensor,
        values: Tensor,
        p_grad: Tensor | None,
        q_grad: Tensor | None,
    ) -> None:
        (p, p_sum), (q, q_sum) = (_below_top(raw.to(values.dtype) * scale) for raw in (p_raw, q_raw))
        # before the sums are subtracted: between two close log-probabilities a small ratio would lose its digits
        ratio = (p - q).sub_((p_sum - q_sum).to(p.dtype))
        p, q = p.sub_(p_sum.to(p.dtype)).exp_(), q.sub_(q_sum.to(q.dtype)).exp_()
        factor = scale * weights[:, None]
        if beta is None:
            values.copy_(_kl(p, q, ratio))
            d_p, d_q = p * (ratio - values[:, None]), q - p
        else:
            p_ratio, q_ratio = _to_mixture(ratio, beta)
            m = beta * p + (1 - beta) * q
            p_kl, q_kl = _kl(p, m, p_ratio), _kl(q, m, q_ratio)
            values.copy_(beta * p_kl + (1 - beta) * q_kl)
            d_p, d_q = beta * p * (p_ratio - p_kl[:, None]), (1 - beta) * q * (q_ratio - q_kl[:, None])
        if p_grad is not None:
            p_grad.copy_(d_p.mul_(factor))
        if q_grad is not None:
            q_grad.copy_(d_q.mul_(factor))

    def pool_forward(self, hidden: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        offsets = pooling.offsets
        lengths, units = offsets.diff(), hidden.new_zeros(0, dtype=torch.float64)
        if not hidden.shape[0]:
            pooled = hidden.new_zeros(lengths.shape[0], hidden.shape[1], dtype=dtype)
        elif pooling.last:
            pooled = hidden[(offsets[1:] - 1).clamp(min=0)].to(dtype)
        else:
            segment = _segment_of_row(offsets, hidden.shape[0])
            states = _inside(hidden, segment, offsets).to(dtype)
            if pooling.uniform:
                pooled = _segment_sums(states, segment, offsets) / lengths.clamp(min=1)[:, None]
            else:
                coefficients, units = _softmax(states, segment, pooling)
                pooled = _segment_sums(coefficients.to(dtype)[:, None] * states, segment, offsets)
            pooled = pooled.to(dtype)
        pooled = torch.where((lengths > 0)[:, None], pooled, 0)
        pooled = pooled + 0 * pooled  # infinity becomes NaN: normalising by it would turn its neighbours into zeros
        norms = torch.linalg.vector_norm(pooled, dim=1, dtype=torch.float64).to(dtype)
        norms = norms + 0 * norms
        if pooling.normalize:
            pooled = torch.where((norms != 0)[:, None], pooled / norms[:, None], pooled)
        return pooled, norms, units

    def pool_backward(
        self,
        pooled_grad: Tensor,
        pooled: Tensor,
        norms: Tensor,
        units: Tensor,
        hidden: Tensor | None,
        rows: int,
        dtype: torch.dtype,
        pooling: Pooling,
        needs_grad: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        offsets, query = pooling.offsets, pooling.query
        segment = _segment_of_row(offsets, rows)
        inner = pooled_grad  # the gradient of the pooled rows before they were normalised
        if pooling.normalize:
            radial = (pooled_grad * pooled).sum(1, keepdim=True)
            inner = torch.where((norms != 0)[:, None], (pooled_grad - radial * pooled) / norms[:, None], 0)
        coefficient = _coefficients(segment, units, pooling).to(pooled_grad.dtype)
        of_row = F.pad(inner, (0, 0, 0, 1))[segment]
        d_hidden = d_weights = d_query = None
        if needs_grad[0] and query is None:
            d_hidden = (coefficient[:, None] * of_row).to(dtype)
        if hidden is None:
            return d_hidden, None, None
        states = _inside(hidden, segment, offsets).to(pooled_grad.dtype)
        slope = (states * of_row).sum(1)
        if not pooling.normalize:  # else inner and the pooled row are orthogonal
            slope -= F.pad((inner * pooled).sum(1), (0, 1))[segment]
        if needs_grad[1]:
            d_weights = (units * slope).to(pooled_grad.dtype)
        d_score = coefficient * slope
        if needs_grad[0] and query is not None:
            d_hidden = (coefficient[:, None] * of_row + d_score[:, None] * query).to(dtype)
        if needs_grad[2]:
            d_query = d_score @ states
        return d_hidden, d_weights, d_query


def _softmax(states: Tensor, segment: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """Return the coefficients of the rows, and the same per unit of weight, in float64. A weight is part of
    its row's exponent, so neither large weights nor large scores overflow. Without a query, weights are divided by
    a power of two: they keep their bits, and those that sum to 0 have a total of 0."""
    score = states.new_zeros(states.shape[0], dtype=torch.float64)
    if pooling.query is not None:
        score = (states @ pooling.query).double() * math.log2(math.e)
    weight = torch.ones_like(score) if pooling.weights is None else pooling.weights.double()
    counts = (weight != 0) & (segment < pooling.offsets.numel() - 1)
    exponent = torch.where(counts, score + weight.abs().log2(), -torch.inf)
    exponent = exponent.ceil() if pooling.query is None else exponent
    bins = pooling.offsets.numel()
    maximum = exponent.new_full((bins,), -torch.inf).scatter_reduce_(0, segment, exponent, "amax")
    power = (score - maximum[segment]).exp2()
    exponential = torch.where(counts, weight * power, 0)
    exponential = exponential + 0 * score  # an infinite score must not give a finite result
    total = exponential.new_zeros(bins).index_add_(0, segment, exponential)[segment]
    unit = power / total
    return torch.where(total != 0, exponential / total, 0 * exponential), torch.where(total != 0, unit, 0)


def _coefficients(segment: Tensor, units: Tensor, pooling: Pooling) -> Tensor:
    """Return c_t of the rows."""
    offsets = pooling.offsets
    if pooling.last:
        row = torch.arange(segment.numel(), dtype=torch.int64, device=offsets.device)
        return (row == F.pad(offsets[1:], (0, 1))[segment] - 1).double()
    if pooling.uniform:
        return F.pad(1 / offsets.diff().double(), (0, 1))[segment]
    if pooling.weights is None:
        return units
    weight = pooling.weights.double()
    return torch.where((weight != 0) & (segment < offsets.numel() - 1), weight * units, 0)


def _softplus(s: Tensor) -> Tensor:
    """Return log(1 + exp s), without F.softplus's switch to s above its threshold."""
    return s.clamp(min=0) + (-s.abs()).exp().log1p()


def _below_top(s: Tensor) -> tuple[Tensor, Tensor]:
    """Return s[c, M] minus the largest score of each row, and the log-sum-exp of that, float64 [c, 1]."""
    distance = s - s.amax(1, keepdim=True)
    return distance, distance.exp().sum(1, keepdim=True, dtype=torch.float64).log() + _nan_if_nonfinite(s, 1)[:, None]


def _kl(p: Tensor, q: Tensor, ratio: Tensor) -> Tensor:
    """Return row sums of p ratio + (q - p), ratio = log(p / q). q - p sums to zero, but with it no term is negative and
    each is as small as the square of its ratio, so nearly equal distributions do not cancel."""
    return (p * ratio + torch.where(ratio.abs() < 0.5, p * (-ratio).expm1(), q - p)).sum(1)


def _to_mixture(ratio: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return log(p / m) and log(q / m) from log(p / q), m = beta p + (1 - beta) q. log m is log p or log q, whichever
    has the larger part in m, plus log(1 + w), -1 < w <= 1."""
    mostly_p = ratio > math.log((1 - beta) / beta)
    x, fraction = torch.where(mostly_p, -ratio, ratio), torch.full_like(ratio, beta)
    minor, major = torch.where(mostly_p, 1 - beta, fraction), torch.where(mostly_p, fraction, 1 - beta)
    w = minor * x.expm1()
    h = torch.where(w < -0.5, (major + minor * x.exp()).log(), w.log1p())
    return torch.where(mostly_p, 0, x) - h, torch.where(mostly_p, x, 0) - h


def join_planes(high: Tensor, low: Tensor) -> Tensor:
    upper = high.view(torch.int16).to(torch.int32) << 16
    return (upper | (low.to(torch.int32) & 0xFFFF)).view(torch.float32)


def _segment_of_row(offsets: Tensor, rows: int) -> Tensor:
    """Return the segment of each row, and B for a row that is in none. The host does not wait for a GPU."""
    row = torch.arange(rows, dtype=torch.int64, device=offsets.device)
    segment = torch.searchsorted(offsets[1:], row, right=True)
    return torch.where(row < offsets[0], offsets.numel() - 1, segment)


def _inside(hidden: Tensor, segment: Tensor, offsets: Tensor) -> Tensor:
    """Return the states with zeros for rows in no segment."""
    return hidden.masked_fill((segment == offsets.numel() - 1)[:, None], 0)


def _segment_sums(rows: Tensor, segment: Tensor, offsets: Tensor) -> Tensor:
    """Return float64 sums [B, D] of the segments' rows [T, D], in short blocks so that long segments do not drift."""
    ends = offsets.diff().add(15).div(16, rounding_mode="floor").cumsum(0)  # of each segment's blocks
    place = torch.arange(rows.shape[0], dtype=torch.int64, device=rows.device) - offsets[segment]
    most = rows.shape[0] // 16 + offsets.numel()  # blocks, the last for the rows of no segment
    block = torch.where(segment < ends.numel(), F.pad(ends, (1, 0))[segment] + place // 16, most - 1)
    blocks = rows.new_zeros(most, rows.shape[1]).index_add_(0, block, rows)
    of_block = torch.searchsorted(ends, torch.arange(most, dtype=torch.int64, device=rows.device), right=True)
    sums = rows.new_zeros(offsets.numel(), rows.shape[1], dtype=torch.float64)
    return sums.index_add_(0, of_block, blocks.double())[:-1]
