"""divergence, the kernel that compares two chunks of raw scores row by row, and its launcher's arguments.

A program walks a row of both matrices once from left to right, which leaves their log-sum-exps and the KL divergence,
and once back, which replaces the scores by the gradient: the way back finds the end of the row in the L2 cache. The
Jensen-Shannon divergence needs both log-sum-exps before its first term, so it takes a walk of its own.

Both ways use the same running sums in GROUPs of neighbouring columns: a thread keeps its own, and the program joins
them at the end of the row.
"""

import triton
import triton.language as tl

from .elementary import exp, log, log1p
from .kernel_args import Pair
from .row_walk import grouped, total_of

# Columns beyond the last are loaded as this score: finite, so that they need no mask, and below every other.
_LOW = tl.constexpr(-1e35)


@triton.jit
def _excess(x):
    """e^x - 1 - x for |x| <= 1/2: nonnegative, and of second order in x."""
    p = tl.fma(x, 2.4801587e-5, 1.9841270e-4)
    p = tl.fma(p, x, 1.3888889e-3)
    p = tl.fma(p, x, 8.3333333e-3)
    p = tl.fma(p, x, 4.1666667e-2)
    p = tl.fma(p, x, 1.6666667e-1)
    p = tl.fma(p, x, 0.5)
    return p * x * x


@triton.jit
def _kl_term(p, q, ratio):
    """One outcome's term of KL(p || q). It includes q - p, which sums to zero, so that no term is negative."""
    return tl.where(tl.abs(ratio) < 0.5, p * _excess(-ratio), tl.fma(p, ratio, q - p))


@triton.jit
def _to_mixture(ratio, beta, rest, level):
    """log(p / m) and log(q / m) from log(p / q), m = beta p + rest q. log m is log p or log q, whichever has the larger
    part in m, plus log(1 + w), -1 < w <= 1."""
    mostly_p = ratio > level
    minor, major = tl.where(mostly_p, rest, beta), tl.where(mostly_p, beta, rest)
    x = tl.where(mostly_p, -ratio, ratio)
    e = exp(x)
    near = tl.abs(x) < 0.5
    w = minor * tl.where(near, x + _excess(x), e - 1.0)
    h = tl.where(w < -0.5, log(tl.fma(minor, e, major)), log1p(w))
    return tl.where(mostly_p, 0.0, x) - h, tl.where(mostly_p, x, 0.0) - h


@triton.jit
def _scores(side, i, j, inside, scale, POLICY: tl.constexpr):
    """[BLOCK_M, BLOCK_N] scores, _LOW out of bounds."""
    at = side.raw + (i.to(tl.int64)[:, None] * side.pitch + j[None, :])
    return tl.load(at, inside, _LOW, eviction_policy=POLICY).to(tl.float32) * scale


@triton.jit
def _shifted(sums, p_top, q_top):
    """The sums relative to other largest scores. With k the change of the logarithm of p / q, a term
    w (e^-x - 1 + x) of the excess becomes w (e^-(x + k) - 1 + x + k)."""
    p_shift, q_shift = sums.p_top - p_top, sums.q_top - q_top
    a = exp(p_shift)
    p_total, q_total = sums.p_total * a, sums.q_total * exp(q_shift)
    moment, excess = sums.moment, sums.excess
    if moment is not None:
        k = p_shift - q_shift
        grown = excess + k * (moment - excess) + sums.q_total * _excess(-k)
        moment = a * (moment + k * sums.p_total)
        excess = tl.where(tl.abs(k) < 0.5, a * grown, moment + (q_total - p_total))
    return Pair(p_top, q_top, p_total, q_total, moment, excess)


@triton.jit
def _add_scores(sums, p, q):
    """The sums with the scores p, q [BLOCK_M, GROUPS, GROUP] added."""
    sums = _shifted(sums, tl.maximum(sums.p_top, tl.max(p, 2)), tl.maximum(sums.q_top, tl.max(q, 2)))
    p, q = p - sums.p_top[:, :, None], q - sums.q_top[:, :, None]
    w, v = exp(p), exp(q)
    moment, excess = sums.moment, sums.excess
    if moment is not None:
        ratio = p - q
        moment += tl.sum(w * ratio, 2)
        excess += tl.sum(_kl_term(w, v, ratio), 2)
    return Pair(sums.p_top, sums.q_top, sums.p_total + tl.sum(w, 2), sums.q_total + tl.sum(v, 2), moment, excess)


@triton.jit
def _joined(sums):
    """Of every row: the largest scores, the float64 logarithms of sum_j e^(s_j - top), and KL(p || q) if the sums have
    its moments. With x the logarithm of p / q but for a constant, it is E x + log(1 + E (e^-x - 1)), the expectations
    those of p: a rounding error in the sums of p and q cancels."""
    p_top, q_top = tl.max(sums.p_top, 1), tl.max(sums.q_top, 1)
    sums = _shifted(sums, p_top[:, None], q_top[:, None])
    p_total, q_total = total_of(sums.p_total), total_of(sums.q_total)
    kl = tl.zeros_like(p_total)
    p_sum, apart = tl.log(p_total), tl.log(q_total / p_total)
    if sums.moment is not None:
        mean = total_of(sums.moment) / p_total
        growth = total_of(sums.excess) / p_total - mean
        apart = tl.where(tl.abs(growth) < 0.05, tl.log(1.0 + growth), apart)
        p_sum += mean * 0.0  # NaN if a score is infinite
        kl = mean + apart + mean * 0.0
        kl = tl.where(kl < 0, 0.0, kl)
    return p_top, q_top, p_sum, p_sum + apart, kl.to(tl.float32)


@triton.jit
def _logs(p, q, p_top, q_top, p_sum, q_sum):
    """log p, log q and their difference. The difference is taken before the sums are subtracted: between two
    log-probabilities of ten nats a small one would lose its digits."""
    p, q = p - p_top[:, None], q - q_top[:, None]
    apart = (p_sum - q_sum).to(tl.float32)
    return p - p_sum.to(tl.float32)[:, None], q - q_sum.to(tl.float32)[:, None], (p - q) - apart[:, None]


@triton.jit
def _store(side, x, i, j, inside):
    at = side.grad + (i.to(tl.int64)[:, None] * side.grad_pitch + j[None, :])
    tl.store(at, x.to(side.grad.dtype.element_ty), inside, eviction_policy="evict_first")


@triton.jit
def divergence(
    p_side,
    q_side,
    rows,
    columns,
    scale,
    beta,
    level,
    weights,
    values,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """values[row] = KL(p || q), or with beta (level = log((1 - beta) / beta)) the Jensen-Shannon divergence. The sides'
    ``grad`` receives weights[row] times its gradient; it may be the memory of the scores."""
    GROUP: tl.constexpr = 128 // p_side.raw.dtype.element_ty.primitive_bitwidth
    blocks = tl.cdiv(columns, BLOCK_N)
    for first in range(tl.program_id(0) * BLOCK_M, rows, tl.num_programs(0) * BLOCK_M):
        i = first + tl.arange(0, BLOCK_M)
        in_row = i < rows
        none = tl.zeros((BLOCK_M, BLOCK_N // GROUP), tl.float32)
        if beta is None:
            sums = Pair(none - 3e38, none - 3e38, none, none, none, none)
        else:
            sums = Pair(none - 3e38, none - 3e38, none, none, None, None)
        for block in range(blocks):
            j = block * BLOCK_N + tl.arange(0, BLOCK_N)
            inside = in_row[:, None] & (j < columns)[None, :]
            p = _scores(p_side, i, j, inside, scale, "evict_last")
            q = _scores(q_side, i, j, inside, scale, "evict_last")
            if beta is not None:  # an infinite score becomes NaN; without a mixture it spoils the moment
                p, q = tl.fma(p, 0.0, p), tl.fma(q, 0.0, q)
            sums = _add_scores(sums, grouped(p, GROUP), grouped(q, GROUP))
        p_top, q_top, p_sum, q_sum, p_kl = _joined(sums)
        q_kl = p_kl
        if beta is not None:
            p_terms, q_terms = none, none
            for back in range(blocks):
                j = (blocks - 1 - back) * BLOCK_N + tl.arange(0, BLOCK_N)
                inside = in_row[:, None] & (j < columns)[None, :]
                p = _scores(p_side, i, j, inside, scale, "evict_last")
                q = _scores(q_side, i, j, inside, scale, "evict_last")
                log_p, log_q, ratio = _logs(p, q, p_top, q_top, p_sum, q_sum)
                p, q = exp(log_p), exp(log_q)
                m = beta * p + (1.0 - beta) * q
                p_ratio, q_ratio = _to_mixture(ratio, beta, 1.0 - beta, level)
                p_terms += tl.sum(grouped(_kl_term(p, m, p_ratio), GROUP), 2)
                q_terms += tl.sum(grouped(_kl_term(q, m, q_ratio), GROUP), 2)
            p_kl, q_kl = total_of(p_terms).to(tl.float32), total_of(q_terms).to(tl.float32)
            tl.store(values + i, beta * p_kl + (1.0 - beta) * q_kl, in_row)
        else:
            tl.store(values + i, p_kl, in_row)
        if p_side.grad is not None or q_side.grad is not None:
            factor = (tl.load(weights + i, in_row, 0.0) * scale)[:, None]
            for back in range(blocks):
                if beta is None:
                    block = blocks - 1 - back
                else:
                    block = back  # the walk of the terms ended at the beginning
                j = block * BLOCK_N + tl.arange(0, BLOCK_N)
                inside = in_row[:, None] & (j < columns)[None, :]
                p = _scores(p_side, i, j, inside, scale, "evict_first")
                q = _scores(q_side, i, j, inside, scale, "evict_first")
                log_p, log_q, ratio = _logs(p, q, p_top, q_top, p_sum, q_sum)
                p, q = exp(log_p), exp(log_q)
                if beta is None:
                    d_p, d_q = p * (ratio - p_kl[:, None]), q - p
                else:
                    p_ratio, q_ratio = _to_mixture(ratio, beta, 1.0 - beta, level)
                    d_p = beta * p * (p_ratio - p_kl[:, None])
                    d_q = (1.0 - beta) * q * (q_ratio - q_kl[:, None])
                if p_side.grad is not None:
                    _store(p_side, factor * d_p, i, j, inside)
                if q_side.grad is not None:
                    _store(q_side, factor * d_q, i, j, inside)
