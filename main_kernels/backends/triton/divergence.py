"""divergence, the kernel that compares two chunks of raw scores row by row.

One program per row reads it twice, or three times if a gradient needs the row's value. The recomputed exponentials cost
little next to the four matrix products.
"""

import triton
import triton.language as tl

from .epilogue import NOTHING, exp


@triton.jit
def _excess(x):
    """e^x - 1 - x for |x| <= 1/2: nonnegative, and of second order in x."""
    p = 2.4801587e-5 * x + 1.9841270e-4
    p = p * x + 1.3888889e-3
    p = p * x + 8.3333333e-3
    p = p * x + 4.1666667e-2
    p = p * x + 1.6666667e-1
    p = p * x + 0.5
    return p * x * x


@triton.jit
def _kl_term(p, q, ratio):
    """One outcome's term of KL(p || q). It includes q - p, which sums to zero, so that no term is negative."""
    return tl.where(tl.abs(ratio) < 0.5, p * _excess(-ratio), p * ratio + (q - p))


@triton.jit
def _to_mixture(ratio, beta, rest, level):
    """log(p / m) and log(q / m) from log(p / q), m = beta p + rest q. log m is log p or log q, whichever has the larger
    part in m, plus log(1 + w), -1 < w <= 1."""
    mostly_p = ratio > level
    minor, major = tl.where(mostly_p, rest, beta), tl.where(mostly_p, beta, rest)
    x = tl.where(mostly_p, -ratio, ratio)
    e = exp(x)
    near = tl.abs(x) < 0.5
    w = minor * tl.where(near, x + _excess(tl.where(near, x, 0.0)), e - 1.0)
    whole = major + minor * e
    rough = tl.log(whole)  # whole is 1 + w rounded, which costs digits near 1
    h = tl.where(w < -0.5, rough, rough + (w - (whole - 1.0)) / whole)
    return tl.where(mostly_p, 0.0, x) - h, tl.where(mostly_p, x, 0.0) - h


@triton.jit
def _add_block(top, total, poison, s, mask):
    """Add a block to a row's largest score and the float64 sum of e^(s - top); poison becomes NaN if a score is not
    finite."""
    block_top = tl.max(tl.where(mask, s, NOTHING))
    if block_top > top:  # float64: a difference between the sums of p and q would dominate a small divergence
        total *= tl.exp(top.to(tl.float64) - block_top.to(tl.float64))
        top = block_top
    total += tl.sum(tl.where(mask, exp(s - top), 0.0)).to(tl.float64)
    return top, total, poison + tl.sum(tl.where(mask, s * 0.0, 0.0))


@triton.jit
def _norms(p_raw, q_raw, columns, scale, BLOCK: tl.constexpr):
    """The largest score of both rows and the float64 log of sum_j e^(s_j - top); NaN if a score is not finite."""
    p_top = tl.full((), NOTHING, tl.float32)
    p_poison = tl.full((), 0.0, tl.float32)
    p_total = tl.full((), 0.0, tl.float64)
    q_top, q_poison, q_total = p_top, p_poison, p_total
    for begin in range(0, columns, BLOCK):
        j = begin + tl.arange(0, BLOCK)
        mask = j < columns
        p = tl.load(p_raw + j, mask, 0.0).to(tl.float32) * scale
        q = tl.load(q_raw + j, mask, 0.0).to(tl.float32) * scale
        p_top, p_total, p_poison = _add_block(p_top, p_total, p_poison, p, mask)
        q_top, q_total, q_poison = _add_block(q_top, q_total, q_poison, q, mask)
    return p_top, tl.log(p_total) + p_poison.to(tl.float64), q_top, tl.log(q_total) + q_poison.to(tl.float64)


@triton.jit
def _logs(p_raw, q_raw, j, mask, scale, p_top, q_top, p_sum, q_sum):
    """log p, log q and their difference. The difference is taken before the sums are subtracted: between two
    log-probabilities of ten nats a small one would lose its digits."""
    p = tl.load(p_raw + j, mask, 0.0).to(tl.float32) * scale - p_top
    q = tl.load(q_raw + j, mask, 0.0).to(tl.float32) * scale - q_top
    return p - p_sum.to(tl.float32), q - q_sum.to(tl.float32), (p - q) - (p_sum - q_sum).to(tl.float32)


@triton.jit
def divergence(
    p_raw,
    q_raw,
    columns,
    scale,
    beta,
    level,
    weights,
    values,
    GRAD_P: tl.constexpr,
    GRAD_Q: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """values[row] = KL(p || q), or with beta (level = log((1 - beta) / beta)) the Jensen-Shannon divergence. The raw
    scores are replaced by weights[row] times its gradient."""
    row = tl.program_id(0)
    p_raw += row.to(tl.int64) * columns
    q_raw += row.to(tl.int64) * columns
    p_top, p_sum, q_top, q_sum = _norms(p_raw, q_raw, columns, scale, BLOCK)
    # the KL divergence's gradient of q does not need its value: write it at once, unless p's needs the scores
    at_once: tl.constexpr = beta is None and GRAD_Q and not GRAD_P
    factor = 0.0
    if GRAD_P or GRAD_Q:
        factor = tl.load(weights + row) * scale
    p_total = tl.full((), 0.0, tl.float64)
    q_total = tl.full((), 0.0, tl.float64)
    for begin in range(0, columns, BLOCK):
        j = begin + tl.arange(0, BLOCK)
        mask = j < columns
        log_p, log_q, ratio = _logs(p_raw, q_raw, j, mask, scale, p_top, q_top, p_sum, q_sum)
        p, q = exp(log_p), exp(log_q)
        if beta is None:
            p_total += tl.sum(tl.where(mask, _kl_term(p, q, ratio), 0.0)).to(tl.float64)
            if at_once:
                tl.store(q_raw + j, (factor * (q - p)).to(q_raw.dtype.element_ty), mask)
        else:
            m = beta * p + (1.0 - beta) * q
            p_ratio, q_ratio = _to_mixture(ratio, beta, 1.0 - beta, level)
            p_total += tl.sum(tl.where(mask, _kl_term(p, m, p_ratio), 0.0)).to(tl.float64)
            q_total += tl.sum(tl.where(mask, _kl_term(q, m, q_ratio), 0.0)).to(tl.float64)
    p_kl, q_kl = p_total.to(tl.float32), q_total.to(tl.float32)
    if beta is None:
        tl.store(values + row, p_kl)
    else:
        tl.store(values + row, beta * p_kl + (1.0 - beta) * q_kl)
    if (GRAD_P or GRAD_Q) and not at_once:
        for begin in range(0, columns, BLOCK):
            j = begin + tl.arange(0, BLOCK)
            mask = j < columns
            log_p, log_q, ratio = _logs(p_raw, q_raw, j, mask, scale, p_top, q_top, p_sum, q_sum)
            p, q = exp(log_p), exp(log_q)
            if beta is None:
                d_p, d_q = p * (ratio - p_kl), q - p
            else:
                p_ratio, q_ratio = _to_mixture(ratio, beta, 1.0 - beta, level)
                d_p, d_q = beta * p * (p_ratio - p_kl), (1.0 - beta) * q * (q_ratio - q_kl)
            if GRAD_P:
                tl.store(p_raw + j, (factor * d_p).to(p_raw.dtype.element_ty), mask)
            if GRAD_Q:
                tl.store(q_raw + j, (factor * d_q).to(q_raw.dtype.element_ty), mask)
