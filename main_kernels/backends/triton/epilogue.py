"""The epilogue of a tile of raw scores in registers: score map, mask, reductions and score gradient."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .kernel_args import Entries, Masking, Scoring, Sums, Terms

NOTHING = tl.constexpr(float("-inf"))  # the score of a masked entry
_LOWEST = tl.constexpr(-1e4)  # a finite stand-in for the logarithm of 0

# Kernels are launched without fused multiply-adds. A score is then the same number in every kernel: exp(s - lse) is
# consistent with the sum that contains it, and equal scores compare as equal.
NO_FMA = {"enable_fp_fusion": False}


# The interpreter does not support libdevice.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def exp(x):
    """e^x, with 0 for subnormal results, which would take twice the instructions."""
    if INTERPRETED:
        y = tl.exp(x)
    else:
        y = libdevice.fast_expf(x)
    return y


@triton.jit
def log(x):
    """log x for normal x, with an absolute error of 2^-22 near 1."""
    if INTERPRETED:
        y = tl.log(x)
    else:
        y = libdevice.fast_logf(x)
    return y


@triton.jit
def divide(x, y):
    """x / y to 2 ulp for 2^-126 <= |y| < 2^126, without the branch of an exact division."""
    if INTERPRETED:
        z = x / y
    else:
        z = libdevice.fast_dividef(x, y)
    return z


@triton.jit
def tanh(x):
    """tanh to about 1 ulp: an odd polynomial near zero, where 1 - 2 / (e^2x + 1) cancels."""
    size = tl.abs(x)
    size = tl.where(size > 15.0, 15.0, size)  # 1 in float32 from 9 on; a NaN passes through
    z = size * size
    p = tl.fma(z, -5.70498872745e-3, 2.06390887954e-2)
    p = tl.fma(p, z, -5.37397155531e-2)
    p = tl.fma(p, z, 1.33314422036e-1)
    p = tl.fma(p, z, -3.33332819422e-1)
    near = tl.fma(size * z, p, size)
    far = 1.0 - divide(2.0, exp(2.0 * size) + 1.0)
    t = tl.where(size < 0.625, near, far)
    return tl.where(x < 0, -t, t)


@triton.jit
def log1p(w):
    """log(1 + w) for -1/2 <= w <= 1, to about 1 ulp for every w: the series of 2 atanh(w / (2 + w))."""
    z = divide(w, 2.0 + w)
    y = z * z
    p = tl.fma(y, 0.0769230769, 0.0909090909)
    p = tl.fma(p, y, 0.1111111111)
    p = tl.fma(p, y, 0.1428571429)
    p = tl.fma(p, y, 0.2)
    p = tl.fma(p, y, 0.3333333333)
    return 2.0 * tl.fma(z * y, p, z)


@triton.jit
def _either(p, q):
    """(1 + p) (1 + q) - 1"""
    return p + q + p * q


@triton.jit
def sum_log1p(u, AXIS: tl.constexpr):
    """The sum of log(1 + u) along the last axis, 0 <= u <= 1, from one logarithm for 64 terms: that of the product of
    1 + u. What the product exceeds 1 by is a sum of positive terms, so the digits of a small u stay."""
    WIDTH: tl.constexpr = u.shape[AXIS]
    if WIDTH > 64:
        tl.static_assert(AXIS == 1)
        # the terms of a product are not neighbours, which a thread holds
        total = tl.sum(_log1p_of_product(tl.reshape(u, (u.shape[0], 64, WIDTH // 64)), 1), 1)
    else:
        total = _log1p_of_product(u, AXIS)
    return total


@triton.jit
def _log1p_of_product(u, AXIS: tl.constexpr):
    if INTERPRETED:  # where a reduction calls its function once per element; tests/ttir has the other branch
        total = tl.sum(log1p(u), AXIS)
    else:
        excess = tl.reduce(u, AXIS, _either)
        total = tl.where(excess <= 1.0, log1p(tl.minimum(excess, 1.0)), log(1.0 + excess))
    return total


@triton.jit
def sigmoid_of(s):
    """1 / (1 + e^-s); a sum beyond 2^126, at s < -87, counts as infinite."""
    return divide(1.0, 1.0 + exp(-s))


@triton.jit
def load_scalars(scoring):
    """The map with the values of the scale and of a bias that all columns share."""
    uniform_bias = None
    if scoring.uniform_bias is not None:
        uniform_bias = tl.load(scoring.uniform_bias)
    return Scoring(tl.load(scoring.scale), scoring.cap, scoring.bias, uniform_bias)


@triton.jit
def load_bias(j, mask, scoring):
    """The bias of columns j under ``mask``, a scalar if all have the same; None if the scores have no bias."""
    bias = None
    if scoring.bias is not None:
        bias = tl.load(scoring.bias + j, mask, 0.0)
    elif scoring.uniform_bias is not None:
        bias = scoring.uniform_bias
    return bias


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
def tile_entries(down, across, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The entries of the tile in tile row ``down`` and tile column ``across``."""
    return Entries(down * BLOCK_M + tl.arange(0, BLOCK_M), across * BLOCK_N + tl.arange(0, BLOCK_N), rows, columns)


@triton.jit
def in_bounds(entries):
    """[BLOCK_M, BLOCK_N], True for entries within the scores."""
    return (entries.i[:, None] < entries.rows) & (entries.j[None, :] < entries.columns)


@triton.jit
def _addresses(start, pitch, entries):
    return start + (entries.i.to(tl.int64)[:, None] * pitch + entries.j[None, :])


@triton.jit
def load_tile(start, pitch, entries):
    """[BLOCK_M, BLOCK_N] of a matrix whose rows are ``pitch`` apart, 0 out of bounds."""
    mask = in_bounds(entries)
    return tl.load(_addresses(start, pitch, entries), mask, 0.0)


@triton.jit
def store_tile(x, start, pitch, entries):
    """Store x[BLOCK_M, BLOCK_N] in a matrix whose rows are ``pitch`` apart."""
    x = x.to(start.dtype.element_ty)  # before the addresses exist: the largest kernels have no register to spare
    mask = in_bounds(entries)
    tl.store(_addresses(start, pitch, entries), x, mask)


ROW_ALIGNMENT = tl.constexpr(16)


@triton.jit
def store_padded_tile(x, start, pitch, entries, is_last, RAGGED: tl.constexpr):
    """store_tile for rows that lie a multiple of ROW_ALIGNMENT elements apart. If the columns are RAGGED, no such
    multiple, the padding between the rows receives zeros: a mask that ends with it leaves whole vectors to store.
    ``is_last``: the tile reaches beyond the columns."""
    i, columns = entries.i, entries.columns
    padded = tl.cdiv(columns, ROW_ALIGNMENT) * ROW_ALIGNMENT if RAGGED else columns
    store_tile(x, start, pitch, Entries(i, entries.j, entries.rows, padded))
    if RAGGED and is_last:
        tl.debug_barrier()  # another thread has stored what it is to overwrite
        padding = Entries(i, columns + tl.arange(0, ROW_ALIGNMENT), entries.rows, padded)
        store_tile(tl.zeros((x.shape[0], ROW_ALIGNMENT), tl.float32), start, pitch, padding)


@triton.jit
def load_scoring(scoring, entries):
    """The map with the biases of the tile's columns, for scalars that are loaded."""
    bias = load_vector(scoring.bias, entries.j, entries.j < entries.columns)
    return Scoring(scoring.scale, scoring.cap, bias, scoring.uniform_bias)


@triton.jit
def load_masking(masking, entries):
    """The targets, -1 for those beyond the columns, and the ids of the tile's rows and columns."""
    return load_ids(load_targets(masking, entries), entries)


@triton.jit
def load_targets(masking, entries):
    """The targets alone; the ids stay addresses."""
    target = None
    if masking.targets is not None:
        target = tl.load(masking.targets + entries.i, entries.i < entries.rows, -1)
        target = tl.where(target < entries.columns, target, -1).to(tl.int32)
    return Masking(target, masking.row_ids, masking.column_ids, masking.keep_target)


@triton.jit
def load_ids(masking, entries):
    """The ids of the tile's rows and columns, for targets that are loaded."""
    i, j = entries.i, entries.j
    row_id, column_id = None, None
    if masking.row_ids is not None:
        row_id = tl.load(masking.row_ids + i, i < entries.rows, 0)
        column_id = tl.load(masking.column_ids + j, j < entries.columns, 0)
    return Masking(masking.targets, row_id, column_id, masking.keep_target)


@triton.jit
def load_vector(start, at, mask):
    """start[at] under ``mask``, 0 elsewhere; None if ``start`` is."""
    vector = None
    if start is not None:
        vector = tl.load(start + at, mask, 0.0)
    return vector


@triton.jit
def _times(vector, factor):
    if vector is not None:
        vector = vector * factor
    return vector


@triton.jit
def load_terms(terms, entries):
    """The terms of the tile's rows and columns. The lower part of a log-sum-exp is in the coefficient:
    a exp(s - high - low) = (a exp(-low)) exp(s - high)."""
    i, j = entries.i, entries.j
    has_row, has_column = i < entries.rows, j < entries.columns
    row_low, column_low = load_vector(terms.row_lse_low, i, has_row), load_vector(terms.column_lse_low, j, has_column)
    row_grad, column_grad = (
        load_vector(terms.row_lse_grad, i, has_row),
        load_vector(terms.column_lse_grad, j, has_column),
    )
    if row_grad is not None and terms.neg_entropy_grad is None:
        row_grad *= exp(-row_low)
    if column_grad is not None:
        column_grad *= exp(-column_low)
    return Terms(
        row_grad,
        load_vector(terms.row_lse_high, i, has_row),
        row_low,
        column_grad,
        load_vector(terms.column_lse_high, j, has_column),
        None,
        load_vector(terms.target_grad, i, has_row),
        load_vector(terms.softplus_grad, i, has_row),
        load_vector(terms.row_sum_grad, i, has_row),
        load_vector(terms.column_sum_grad, j, has_column),
        load_vector(terms.neg_entropy_grad, i, has_row),
    )


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
    valid, counts = in_bounds(entries), unmasked(is_target, masking)
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
        e = exp(-tl.abs(s))
        if parts.sigmoid is not None:
            sigmoid = tl.sum(sigmoid_of(s), AXIS)
        softplus = tl.sum(tl.maximum(s, 0.0), AXIS) + sum_log1p(e, AXIS)
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
def store_sums(sums, parts, at, mask):
    """Store the sums that have a buffer in ``parts``, at offsets ``at`` under ``mask``."""
    if parts.total is not None:
        tl.store(parts.maximum + at, sums.maximum, mask)
        tl.store(parts.total + at, sums.total, mask)
        if parts.weighted is not None:
            tl.store(parts.weighted + at, sums.weighted, mask)
        if parts.clipped is not None:
            tl.store(parts.clipped + at, sums.clipped, mask)
    if parts.rank is not None:
        tl.store(parts.rank + at, sums.rank, mask)
    if parts.logits is not None:
        tl.store(parts.logits + at, sums.logits, mask)
    if parts.softplus is not None:
        tl.store(parts.softplus + at, sums.softplus, mask)
    if parts.sigmoid is not None:
        tl.store(parts.sigmoid + at, sums.sigmoid, mask)


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
    """dL/draw [BLOCK_M, BLOCK_N] of a tile of raw scores, and the row sums of dL/ds s, 0 if row_partials is None. The
    vectors are in registers."""
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
        row_sums = tl.sum(g * s, 1)
    return g * map_slope(s, scoring), row_sums
