"""What becomes of a tile of raw scores, in registers. An argument that is None costs nothing: it is not compiled in."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

NOTHING = tl.constexpr(float("-inf"))  # the score of an entry that takes no part

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
def score(raw, bias, scale, cap):
    """Scores of raw products; ``bias`` has their shape or broadcasts to it. An infinite one comes out as NaN, so that
    no sum passes it for a number."""
    s = raw.to(tl.float32)
    if bias is not None:
        s = s + bias
    if cap is not None:
        s = tanh(s / cap) * cap
    s = s * scale
    return tl.fma(s, 0.0, s)


@triton.jit
def own_entries(targets, i, j, rows, columns):
    """[BM, BN], which entries are their row's target; None where there are no targets."""
    own = None
    if targets is not None:
        target = tl.load(targets + i, i < rows, -1)
        own = j[None, :] == tl.where(target < columns, target, -1)[:, None]
    return own


@triton.jit
def taking_part(own, row_ids, column_ids, i, j, rows, columns, KEEP_TARGET: tl.constexpr):
    """[BM, BN], which entries take part."""
    part = (i[:, None] < rows) & (j[None, :] < columns)
    if row_ids is not None:
        mine = tl.load(row_ids + i, i < rows, 0)
        theirs = tl.load(column_ids + j, j < columns, 0)
        other = mine[:, None] != theirs[None, :]
        if own is not None:
            if KEEP_TARGET:
                other = other | own
            else:
                other = other & (own == 0)
        part = part & other
    return part


@triton.jit
def only(s, part, row_ids):
    """s where an entry takes part, else -inf. What is no number stays none, whoever leaves it out."""
    if row_ids is not None:
        part = part | (s != s)
    return tl.where(part, s, NOTHING)


@triton.jit
def clamped(x, limit):
    low = tl.maximum(x, -limit, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(low, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sums_of(s, above, clip, total, weighted, rank, logits, softplus, clipped, AXIS: tl.constexpr):
    """The sums of a tile along AXIS, as put_sums takes them; zero where they have nowhere to go (an argument is None).

    s [BM, BN], -inf where an entry takes no part; above [BM, BN], what counts for the rank."""
    top = tl.max(s, AXIS)
    zero = tl.where(top > NOTHING, top, 0.0)  # e^-inf is 0, not NaN
    none = tl.zeros_like(top)
    total_of, weighted_of, rank_of, logits_of, softplus_sum, clipped_of = none, none, none, none, none, none
    if total is not None:
        below = s - tl.expand_dims(zero, AXIS)
        weight = exp(below)
        total_of = tl.sum(weight, AXIS)
        if weighted is not None:
            weighted_of = tl.sum(tl.where(s == NOTHING, 0.0, weight * below), AXIS)
        if clipped is not None:
            start = tl.expand_dims(clamped(zero, clip), AXIS)
            clipped_of = tl.sum(tl.where(s == NOTHING, 0.0, exp(clamped(s, clip) - start)), AXIS)
    if rank is not None:
        rank_of = tl.sum(above.to(tl.float32), AXIS)
    if logits is not None:
        logits_of = tl.sum(tl.where(s == NOTHING, 0.0, s), AXIS)
    if softplus is not None:
        softplus_sum = tl.sum(softplus_of(s), AXIS)
    return top, total_of, weighted_of, rank_of, logits_of, softplus_sum, clipped_of


@triton.jit
def _fallen(top, zero, total, weighted, clipped, clip):
    """Sums that are relative to their own largest score, relative to ``zero``."""
    seen = top > NOTHING
    fall = tl.where(seen, top - zero, 0.0)
    share = exp(fall)
    moved = tl.where(seen, clamped(top, clip) - clamped(zero, clip), 0.0)
    return total * share, share * (weighted + fall * total), clipped * exp(moved)


@triton.jit
def joined(
    a_top,
    a_total,
    a_weighted,
    a_rank,
    a_logits,
    a_softplus,
    a_clipped,
    b_top,
    b_total,
    b_weighted,
    b_rank,
    b_logits,
    b_softplus,
    b_clipped,
    clip,
):
    """The sums of two pieces together."""
    top = tl.maximum(a_top, b_top)
    zero = tl.where(top > NOTHING, top, 0.0)
    a_total, a_weighted, a_clipped = _fallen(a_top, zero, a_total, a_weighted, a_clipped, clip)
    b_total, b_weighted, b_clipped = _fallen(b_top, zero, b_total, b_weighted, b_clipped, clip)
    return (
        top,
        a_total + b_total,
        a_weighted + b_weighted,
        a_rank + b_rank,
        a_logits + b_logits,
        a_softplus + b_softplus,
        a_clipped + b_clipped,
    )


@triton.jit
def put_sums(
    at,
    there,
    maximum,
    total,
    weighted,
    rank,
    logits,
    softplus,
    clipped,
    top,
    total_of,
    weighted_of,
    rank_of,
    logits_of,
    softplus_sum,
    clipped_of,
):
    """Stores those sums that have somewhere to go, at offsets ``at`` where ``there``."""
    if total is not None:
        tl.store(maximum + at, top, there)
        tl.store(total + at, total_of, there)
        if weighted is not None:
            tl.store(weighted + at, weighted_of, there)
        if clipped is not None:
            tl.store(clipped + at, clipped_of, there)
    if rank is not None:
        tl.store(rank + at, rank_of, there)
    if logits is not None:
        tl.store(logits + at, logits_of, there)
    if softplus is not None:
        tl.store(softplus + at, softplus_sum, there)


@triton.jit
def weight_of(
    s,
    own,
    part,
    i,
    j,
    rows,
    columns,
    a,
    r_high,
    r_low,
    b,
    c_high,
    c_low,
    d,
    e,
    u,
    v,
):
    """dL/ds [BM, BN]: see Upstream in interface.py."""
    g = tl.zeros_like(s)
    has_row, has_column = i < rows, j < columns
    if a is not None:
        high, low = tl.load(r_high + i, has_row, 0.0), tl.load(r_low + i, has_row, 0.0)
        factor = tl.load(a + i, has_row, 0.0)
        g += factor[:, None] * exp((s - high[:, None]) - low[:, None])
    if b is not None:
        high, low = tl.load(c_high + j, has_column, 0.0), tl.load(c_low + j, has_column, 0.0)
        factor = tl.load(b + j, has_column, 0.0)
        g += factor[None, :] * exp((s - high[None, :]) - low[None, :])
    if e is not None:
        g += tl.load(e + i, has_row, 0.0)[:, None] * sigmoid_of(s)
    if u is not None:
        g += tl.load(u + i, has_row, 0.0)[:, None]
    if v is not None:
        g += tl.load(v + j, has_column, 0.0)[None, :]
    if part is not None:
        g = tl.where(part, g, 0.0)
    if d is not None:
        g += tl.where(own, tl.load(d + i, has_row, 0.0)[:, None], 0.0)
    return g


@triton.jit
def slope(s, scale, cap):
    """ds/draw: tanh' = 1 - tanh², and s / (scale cap) is the tanh."""
    ds = scale
    if cap is not None:
        t = s / (scale * cap)
        ds = scale * (1.0 - t * t)
    return ds
