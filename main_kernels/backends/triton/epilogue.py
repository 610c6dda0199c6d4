"""What becomes of a tile of raw scores, in registers."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .kernel_args import Entries, Sums

NOTHING = tl.constexpr(float("-inf"))  # the score of an entry that takes no part
_LOWEST = tl.constexpr(-1e4)  # a finite stand-in for the logarithm of 0

# Kernels are launched with fused multiply-adds off: a score is then the same number wherever it is computed, so that
# exp(s - lse) fits the sum it was made with, and equal scores are equal.
EXACT = {"enable_fp_fusion": False}


# What the interpreter cannot do is done otherwise there.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def exp(x):
    """e^x, subnormal ones being 0: with them it takes twice the instructions."""
    if INTERPRETED:
        y = tl.exp(x)
    else:
        y = libdevice.fast_expf(x)
    return y


@triton.jit
def tanh(x):
    """To about 1 ulp: an odd polynomial near zero, where 1 - 2 / (e^2x + 1) would cancel."""
    size = tl.abs(x)
    size = tl.where(size > 15.0, 15.0, size)  # 1 in float32 from 9 on; a NaN passes through
    z = size * size
    p = -5.70498872745e-3 * z + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    near = size + size * z * p
    far = 1.0 - 2.0 / (exp(2.0 * size) + 1.0)
    t = tl.where(size < 0.625, near, far)
    return tl.where(x < 0, -t, t)


@triton.jit
def log1p(u):
    """log(1 + u) for u in [0, 1], to about 1 ulp however small u is: 2 atanh(u / (2 + u)) by its series."""
    z = u / (2.0 + u)
    y = z * z
    p = 0.0769230769 * y + 0.0909090909
    p = p * y + 0.1111111111
    p = p * y + 0.1428571429
    p = p * y + 0.2
    p = p * y + 0.3333333333
    return 2.0 * (z + z * y * p)


@triton.jit
def softplus_of(s):
    return tl.maximum(s, 0.0) + log1p(exp(-tl.abs(s)))


@triton.jit
def sigmoid_of(s):
    small = exp(-tl.abs(s))
    q = 1.0 / (1.0 + small)
    return tl.where(s > 0, q, small * q)


@triton.jit
def bias_of(j, there, scoring):
    """The bias of columns j where ``there``; None where there is none."""
    bias = None
    if scoring.bias is not None:
        bias = tl.load(scoring.bias + j, there, 0.0)
    return bias


@triton.jit
def score(raw, bias, scoring):
    """Scores of raw products; ``bias`` has their shape or broadcasts to it. An infinite one comes out as NaN, so that
    no sum passes it for a number, but for -inf where the bias is, or becomes, -inf: an entry that it leaves out."""
    raw = raw.to(tl.float32)
    s = raw
    if bias is not None:
        s = s + bias
    if scoring.cap is not None:
        s = tanh(s / scoring.cap) * scoring.cap
        if bias is not None:
            s = tl.where(bias == NOTHING, NOTHING, s)
        s = tl.fma(raw, 0.0, s)
    s = s * scoring.scale
    if bias is not None:
        return tl.fma(tl.where(s == NOTHING, raw, s), 0.0, s)
    return tl.fma(s, 0.0, s)


@triton.jit
def entries_of(down, across, rows, columns, BM: tl.constexpr, BN: tl.constexpr):
    """Those of the tile that is so many down and across."""
    return Entries(down * BM + tl.arange(0, BM), across * BN + tl.arange(0, BN), rows, columns)


@triton.jit
def inside(entries):
    """[BM, BN], which entries there are."""
    return (entries.i[:, None] < entries.rows) & (entries.j[None, :] < entries.columns)


@triton.jit
def _addresses(start, pitch, entries):
    return start + (entries.i.to(tl.int64)[:, None] * pitch + entries.j[None, :])


@triton.jit
def fetched(start, pitch, entries):
    """[BM, BN] of a matrix whose rows are ``pitch`` apart, 0 beyond it."""
    there = inside(entries)
    return tl.load(_addresses(start, pitch, entries), there, 0.0)


@triton.jit
def put(x, start, pitch, entries):
    """Stores x[BM, BN] in a matrix whose rows are ``pitch`` apart."""
    x = x.to(start.dtype.element_ty)  # before there are addresses: the largest kernels have no register to spare
    there = inside(entries)
    tl.store(_addresses(start, pitch, entries), x, there)


@triton.jit
def scores_of(raw, entries, scoring):
    """[BM, BN] scores of a tile of raw products."""
    bias = bias_of(entries.j, entries.j < entries.columns, scoring)
    if bias is not None:
        bias = bias[None, :]
    return score(raw, bias, scoring)


@triton.jit
def own_entries(entries, where):
    """[BM, BN], which entries are their row's target; None where there are no targets."""
    own = None
    if where.targets is not None:
        target = tl.load(where.targets + entries.i, entries.i < entries.rows, -1)
        own = entries.j[None, :] == tl.where(target < entries.columns, target, -1)[:, None]
    return own


@triton.jit
def taking_part(own, entries, where):
    """[BM, BN], which entries take part."""
    part = inside(entries)
    if where.row_ids is not None:
        mine = tl.load(where.row_ids + entries.i, entries.i < entries.rows, 0)
        theirs = tl.load(where.column_ids + entries.j, entries.j < entries.columns, 0)
        other = mine[:, None] != theirs[None, :]
        if own is not None:
            if where.keep_target:
                other = other | own
            else:
                other = other & (own == 0)
        part = part & other
    return part


@triton.jit
def only(s, own, entries, where):
    """s where an entry takes part, else -inf. What is no number stays none, whoever leaves it out."""
    part = taking_part(own, entries, where)
    if where.row_ids is not None:
        part = part | (s != s)
    return tl.where(part, s, NOTHING)


@triton.jit
def clamped(x, limit):
    low = tl.maximum(x, -limit, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(low, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sums_of(s, above, clip, parts, AXIS: tl.constexpr):
    """The sums of a tile along AXIS; zero where there are no ``parts`` for them to go to.

    s [BM, BN], -inf where an entry takes no part; above [BM, BN], what counts for the rank."""
    top = tl.max(s, AXIS)
    zero = tl.where(top > NOTHING, top, 0.0)  # e^-inf is 0, not NaN
    none = tl.zeros_like(top)
    total, weighted, rank, logits, softplus, clipped = none, none, none, none, none, none
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
        softplus = tl.sum(softplus_of(s), AXIS)
    return Sums(top, total, weighted, rank, logits, softplus, clipped)


@triton.jit
def _fallen(sums, top, clip):
    """The sums, of which some are relative to their own largest score, relative to ``top``."""
    zero = tl.where(top > NOTHING, top, 0.0)
    seen = sums.maximum > NOTHING
    fall = tl.where(seen, sums.maximum - zero, 0.0)
    share = exp(fall)
    moved = tl.where(seen, clamped(sums.maximum, clip) - clamped(zero, clip), 0.0)
    weighted = share * (sums.weighted + fall * sums.total)
    clipped = sums.clipped * exp(moved)
    return Sums(top, sums.total * share, weighted, sums.rank, sums.logits, sums.softplus, clipped)


@triton.jit
def joined(a, b, clip):
    """The sums of two pieces together."""
    top = tl.maximum(a.maximum, b.maximum)
    a = _fallen(a, top, clip)
    b = _fallen(b, top, clip)
    return Sums(
        top,
        a.total + b.total,
        a.weighted + b.weighted,
        a.rank + b.rank,
        a.logits + b.logits,
        a.softplus + b.softplus,
        a.clipped + b.clipped,
    )


@triton.jit
def put_sums(sums, parts, at, there):
    """Stores those sums that have somewhere to go, at offsets ``at`` where ``there``."""
    if parts.total is not None:
        tl.store(parts.maximum + at, sums.maximum, there)
        tl.store(parts.total + at, sums.total, there)
        if parts.weighted is not None:
            tl.store(parts.weighted + at, sums.weighted, there)
        if parts.clipped is not None:
            tl.store(parts.clipped + at, sums.clipped, there)
    if parts.rank is not None:
        tl.store(parts.rank + at, sums.rank, there)
    if parts.logits is not None:
        tl.store(parts.logits + at, sums.logits, there)
    if parts.softplus is not None:
        tl.store(parts.softplus + at, sums.softplus, there)


@triton.jit
def _weights_of(s, own, part, entries, scoring, terms):
    """dL/ds [BM, BN] of scores s."""
    g = tl.zeros_like(s)
    i, j = entries.i, entries.j
    has_row, has_column = i < entries.rows, j < entries.columns
    if terms.row_lse_grad is not None:
        high, low = tl.load(terms.row_lse_high + i, has_row, 0.0), tl.load(terms.row_lse_low + i, has_row, 0.0)
        factor = tl.load(terms.row_lse_grad + i, has_row, 0.0)[:, None]
        log_p = (s - high[:, None]) - low[:, None]
        if terms.neg_entropy_grad is not None:
            factor = factor + tl.load(terms.neg_entropy_grad + i, has_row, 0.0)[:, None] * tl.maximum(log_p, _LOWEST)
        g += factor * exp(log_p)
    if terms.column_lse_grad is not None:
        high, low = (
            tl.load(terms.column_lse_high + j, has_column, 0.0),
            tl.load(terms.column_lse_low + j, has_column, 0.0),
        )
        factor = tl.load(terms.column_lse_grad + j, has_column, 0.0)
        g += factor[None, :] * exp((s - high[None, :]) - low[None, :])
    if terms.softplus_grad is not None:
        g += tl.load(terms.softplus_grad + i, has_row, 0.0)[:, None] * sigmoid_of(s)
    if terms.row_sum_grad is not None:
        g += tl.load(terms.row_sum_grad + i, has_row, 0.0)[:, None]
    if terms.column_sum_grad is not None:
        g += tl.load(terms.column_sum_grad + j, has_column, 0.0)[None, :]
    if part is not None:
        g = tl.where(part, g, 0.0)
    if scoring.bias is not None:
        g = tl.where(s == NOTHING, 0.0, g)
    if terms.target_grad is not None:
        g += tl.where(own, tl.load(terms.target_grad + i, has_row, 0.0)[:, None], 0.0)
    return g


@triton.jit
def slope(s, scoring):
    """ds/draw: tanh' = 1 - tanh², and s / (scale cap) is the tanh."""
    ds = scoring.scale
    if scoring.cap is not None:
        t = s / (scoring.scale * scoring.cap)
        ds = scoring.scale * (1.0 - t * t)
    return ds


@triton.jit
def weighed(raw, entries, scoring, where, terms, share):
    """dL/draw [BM, BN] of a tile of raw scores, see ScoreGradTerms, and row sums of dL/ds s, 0 if there
    is no ``share`` for them to go to."""
    s = scores_of(raw, entries, scoring)
    own = own_entries(entries, where)
    part = None  # what lies outside is not stored, but it would be summed
    if where.row_ids is not None or share is not None:
        part = taking_part(own, entries, where)
    g = _weights_of(s, own, part, entries, scoring, terms)
    if scoring.bias is not None:  # finite, where tanh has no slope
        lowest = 0.0
        if scoring.cap is not None:
            lowest = -scoring.scale * scoring.cap
        s = tl.where(s == NOTHING, lowest, s)
    along_rows = tl.zeros((s.shape[0],), tl.float32)
    if share is not None:
        along_rows = tl.sum(g * s, 1)
    return g * slope(s, scoring), along_rows
