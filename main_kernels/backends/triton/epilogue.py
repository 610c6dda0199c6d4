"""The epilogue of a tile of raw scores in registers: score map, mask, reductions and score gradient."""

import triton
import triton.language as tl

from .elementary import exp, sigmoid_of, sum_softplus, tanh
from .kernel_args import Sums, Terms
from .tile_memory import in_bounds

NOTHING = tl.constexpr(float("-inf"))  # the score of a masked entry
_LOWEST = tl.constexpr(-1e4)  # a finite stand-in for the logarithm of 0


@triton.jit
def map_score(raw, bias, scoring):
    """Scores of raw products; ``bias`` broadcasts to their shape. An infinite score becomes NaN, so that it shows in
    every sum. The exception is -inf from a bias that is, or that the scale takes to, -inf: it excludes the entry."""
    raw = raw.to(tl.float32)
    s = raw
    if bias is not None:
        s = s + bias
    if scoring.cap is not None:
        s = tanh(s * (1.0 / scoring.cap)) * scoring.cap
        if bias is not None:
            s = tl.where(bias == NOTHING, NOTHING, s)
        s = tl.fma(raw, 0.0, s)
    s = s * scoring.scale
    if bias is not None:
        return tl.fma(tl.where(s == NOTHING, raw, s), 0.0, s)
    return tl.fma(s, 0.0, s)


@triton.jit
def map_tile(raw, scoring):
    """[BLOCK_M, BLOCK_N] scores of a tile of raw products."""
    bias = scoring.uniform_bias
    if scoring.bias is not None:
        bias = scoring.bias[None, :]
    return map_score(raw, bias, scoring)


@triton.jit
def target_mask(entries, masking):
    """[BLOCK_M, BLOCK_N], True for the target of each row; None if there are no targets."""
    is_target = None
    if masking.targets is not None:
        is_target = entries.j[None, :] == masking.targets[:, None]
    return is_target


@triton.jit
def has_target(across, masking, BLOCK_N: tl.constexpr):
    """True if a row's target lies in tile column ``across``. Few tiles contain any."""
    found = False
    if masking.targets is not None:
        inside = (masking.targets >= across * BLOCK_N) & (masking.targets < (across + 1) * BLOCK_N)
        found = tl.max(inside.to(tl.int32), 0) > 0
    return found


@triton.jit
def unmasked(is_target, masking):
    """[BLOCK_M, BLOCK_N], True for entries that are not masked; None if there is no mask."""
    valid = None
    if masking.row_ids is not None:
        valid = masking.row_ids[:, None] != masking.column_ids[None, :]
        if is_target is not None:
            if masking.keep_target is not None:
                valid = valid | is_target
            else:
                valid = valid & (is_target == 0)
    elif is_target is not None and masking.keep_target is None:
        valid = is_target == 0
    return valid


@triton.jit
def mask_scores(s, is_target, entries, masking):
    """s with -inf for entries that are masked or out of bounds. NaN scores stay NaN, even if they are masked."""
    valid = in_bounds(entries)
    counts = unmasked(is_target, masking)
    if counts is not None:
        valid = (valid & counts) | (s != s)
    return tl.where(valid, s, NOTHING)


@triton.jit
def clamped(x, limit):
    low = tl.maximum(x, -limit, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(low, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def reduce_tile(s, above, clip, parts, AXIS: tl.constexpr):
    """Reduce a tile along AXIS; a reduction without a buffer in ``parts`` is zero.

    s [BLOCK_M, BLOCK_N], -inf for masked entries; above [BLOCK_M, BLOCK_N], True for entries that count in the rank."""
    top = tl.max(s, AXIS)
    zero = tl.where(top > NOTHING, top, 0.0)  # e^-inf is 0, not NaN
    none = tl.zeros_like(top)
    total, weighted, rank, logits, softplus, sigmoid, clipped = none, none, none, none, none, none, none
    if parts.total is not None:
        below = s - tl.expand_dims(zero, AXIS)
        weight = exp(below)
        total = tl.sum(weight, AXIS)
        if parts.weighted is not None:
            weighted = tl.sum(tl.where(s == NOTHING, 0.0, weight * below), AXIS)
        if parts.clipped is not None:
            start = tl.expand_dims(clamped(zero, clip), AXIS)
            clipped = tl.sum(tl.where(s == NOTHING, 0.0, exp(clamped(s, clip) - start)), AXIS)
    if parts.rank is not None:
        rank = tl.sum(above.to(tl.float32), AXIS)
    if parts.logits is not None:
        logits = tl.sum(tl.where(s == NOTHING, 0.0, s), AXIS)
    if parts.softplus is not None:
        if parts.sigmoid is not None:
            sigmoid = tl.sum(sigmoid_of(s), AXIS)
        softplus = sum_softplus(s, AXIS)
    return Sums(top, total, weighted, rank, logits, softplus, sigmoid, clipped)


LEAST = tl.constexpr(2.0**-90)  # a column's sum: its terms below 2^-126 are lost, at most 2^-28 of it


@triton.jit
def rescaled(sums, top, clip):
    """The sums, relative to ``top`` instead of their own largest score."""
    zero = tl.where(top > NOTHING, top, 0.0)
    seen = sums.maximum > NOTHING
    shift = tl.where(seen, sums.maximum - zero, 0.0)
    factor = exp(shift)
    clipped_shift = tl.where(seen, clamped(sums.maximum, clip) - clamped(zero, clip), 0.0)
    weighted = factor * (sums.weighted + shift * sums.total)
    clipped = sums.clipped * exp(clipped_shift)
    return Sums(top, sums.total * factor, weighted, sums.rank, sums.logits, sums.softplus, sums.sigmoid, clipped)


@triton.jit
def merge_sums(a, b, clip):
    """The sums of two slices of a tile, merged."""
    top = tl.maximum(a.maximum, b.maximum)
    a = rescaled(a, top, clip)
    b = rescaled(b, top, clip)
    return Sums(
        top,
        a.total + b.total,
        a.weighted + b.weighted,
        a.rank + b.rank,
        a.logits + b.logits,
        a.softplus + b.softplus,
        a.sigmoid + b.sigmoid,
        a.clipped + b.clipped,
    )


@triton.jit
def split_lse(maximum, total):
    """The log-sum-exps maximum + log(total) as sums of two float32 numbers; (-inf, 0) of nothing. total is float64."""
    lse = maximum.to(tl.float64) + tl.log(total)
    high = lse.to(tl.float32)
    return high, tl.where(high == NOTHING, 0.0, (lse - high.to(tl.float64)).to(tl.float32))


@triton.jit
def _times(vector, factor):
    product = None
    if vector is not None:
        product = vector * factor
    return product


@triton.jit
def times_terms(terms, factor):
    """The terms with all coefficients multiplied by ``factor``."""
    return Terms(
        _times(terms.row_lse_grad, factor),
        terms.row_lse_high,
        terms.row_lse_low,
        _times(terms.column_lse_grad, factor),
        terms.column_lse_high,
        terms.column_lse_low,
        _times(terms.target_grad, factor),
        _times(terms.softplus_grad, factor),
        _times(terms.row_sum_grad, factor),
        _times(terms.column_sum_grad, factor),
        _times(terms.neg_entropy_grad, factor),
    )


@triton.jit
def _plus(g, x):
    """g + x; None is zero."""
    total = x
    if g is not None:
        total = g + x
    return total


@triton.jit
def _plus_product(g, factor, x):
    """g + factor x; None is zero."""
    if g is None:
        total = factor * x
    else:
        total = tl.fma(factor, x, g)
    return total


@triton.jit
def score_grad_of(s, is_target, valid, scoring, terms):
    """dL/ds [BLOCK_M, BLOCK_N] of scores s, see ScoreGradTerms in structs.py, 0 where ``valid`` is False."""
    g = None
    if terms.row_lse_grad is not None:
        factor, log_p = terms.row_lse_grad[:, None], s - terms.row_lse_high[:, None]
        if terms.neg_entropy_grad is not None:
            log_p = log_p - terms.row_lse_low[:, None]
            factor = factor + terms.neg_entropy_grad[:, None] * tl.maximum(log_p, _LOWEST)
        g = factor * exp(log_p)
    if terms.column_lse_grad is not None:
        g = _plus_product(g, terms.column_lse_grad[None, :], exp(s - terms.column_lse_high[None, :]))
    if terms.row_sum_grad is not None:
        g = _plus(g, terms.row_sum_grad[:, None] + tl.zeros_like(s))
    if terms.column_sum_grad is not None:
        g = _plus(g, terms.column_sum_grad[None, :] + tl.zeros_like(s))
    if g is not None and (scoring.bias is not None or scoring.uniform_bias is not None):
        g = tl.where(s == NOTHING, 0.0, g)
    if terms.softplus_grad is not None:  # 0 at -inf
        g = _plus_product(g, terms.softplus_grad[:, None], sigmoid_of(s))
    if g is None:
        g = tl.zeros_like(s)
    if valid is not None:
        g = tl.where(valid, g, 0.0)
    if is_target is not None and terms.target_grad is not None:
        g += tl.where(is_target, terms.target_grad[:, None], 0.0)
    return g


@triton.jit
def map_slope(s, scoring):
    """ds/draw: tanh' = 1 - tanh², and s / (scale cap) is the tanh."""
    ds = scoring.scale
    if scoring.cap is not None:
        t = s * (1.0 / (scoring.scale * scoring.cap))
        ds = scoring.scale * (1.0 - t * t)
    return ds


@triton.jit
def score_grad_tile(raw, entries, scoring, masking, terms, row_partials):
    """dL/draw [BLOCK_M, BLOCK_N] of a tile of raw scores, and the row sums of dL/ds s, without the part of a uniform
    bias, 0 if row_partials is None. The vectors are in registers."""
    s = map_tile(raw, scoring)
    is_target = target_mask(entries, masking)
    valid = unmasked(is_target, masking)
    if row_partials is not None:  # entries out of bounds are not stored, but they would enter the row sums
        inside = in_bounds(entries)
        valid = inside if valid is None else valid & inside
    g = score_grad_of(s, is_target, valid, scoring, terms)
    if scoring.bias is not None or scoring.uniform_bias is not None:  # a finite value at which tanh has no slope
        lowest = 0.0
        if scoring.cap is not None:
            lowest = -scoring.scale * scoring.cap
        s = tl.where(s == NOTHING, lowest, s)
    row_sums = tl.zeros((s.shape[0],), tl.float32)
    if row_partials is not None:
        slope = s
        if scoring.uniform_bias is not None:  # its part can be a thousand times the rest
            slope = raw * scoring.scale
        row_sums = tl.sum(g * slope, 1)
    return g * map_slope(s, scoring), row_sums
