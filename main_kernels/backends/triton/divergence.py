"""The divergence of two chunks of raw scores, row by row: one program a row, which walks it twice, or three times where
a gradient needs the row's value. Beside four products the exponentials that are computed anew do not show."""

import triton
import triton.language as tl

from .epilogue import NOTHING, exp

DIVERGENCE = {"BLOCK": 2048, "num_warps": 8, "maxnreg": 255}


@triton.jit
def _excess(x):
    """e^x - 1 - x for |x| <= 1/2: not negative, and of second order in x."""
    p = 2.4801587e-5 * x + 1.9841270e-4
    p = p * x + 1.3888889e-3
    p = p * x + 8.3333333e-3
    p = p * x + 4.1666667e-2
    p = p * x + 1.6666667e-1
    p = p * x + 0.5
    return p * x * x


@triton.jit
def _share(p, q, ratio):
    """What one outcome adds to KL(p || q): with the q - p, which sum to nothing, no term is negative."""
    return tl.where(tl.abs(ratio) < 0.5, p * _excess(-ratio), p * ratio + (q - p))


@triton.jit
def _to_mixture(ratio, beta, rest, level):
    """log(p / m) and log(q / m) from log(p / q), m = beta p + rest q: log m is that of the distribution which has the
    larger part in m, plus log(1 + w), -1 < w <= 1."""
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
def _grown(top, total, poison, s, ok):
    """A row's largest score so far and float64 the sum of e^(s - top), with one block more; poison turns NaN where a
    score is not finite."""
    here = tl.max(tl.where(ok, s, NOTHING))
    if here > top:  # in float64: p and q must sum to 1 alike, or what is left of a small divergence is their difference
        total *= tl.exp(top.to(tl.float64) - here.to(tl.float64))
        top = here
    total += tl.sum(tl.where(ok, exp(s - top), 0.0)).to(tl.float64)
    return top, total, poison + tl.sum(tl.where(ok, s * 0.0, 0.0))


@triton.jit
def _norms(p_raw, q_raw, columns, scale, BLOCK: tl.constexpr):
    """Of both rows the largest score and float64 the log of sum_j e^(s_j - top); NaN where a score is not finite."""
    p_top = tl.full((), NOTHING, tl.float32)
    p_poison = tl.full((), 0.0, tl.float32)
    p_total = tl.full((), 0.0, tl.float64)
    q_top, q_poison, q_total = p_top, p_poison, p_total
    for begin in range(0, columns, BLOCK):
        j = begin + tl.arange(0, BLOCK)
        ok = j < columns
        p = tl.load(p_raw + j, ok, 0.0).to(tl.float32) * scale
        q = tl.load(q_raw + j, ok, 0.0).to(tl.float32) * scale
        p_top, p_total, p_poison = _grown(p_top, p_total, p_poison, p, ok)
        q_top, q_total, q_poison = _grown(q_top, q_total, q_poison, q, ok)
    return p_top, tl.log(p_total) + p_poison.to(tl.float64), q_top, tl.log(q_total) + q_poison.to(tl.float64)


@triton.jit
def _logs(p_raw, q_raw, j, ok, scale, p_top, q_top, p_sum, q_sum):
    """log p, log q and their difference, taken between the distances from the tops, before the sums come in: two close
    log-probabilities of ten nats would leave little of a small one."""
    p = tl.load(p_raw + j, ok, 0.0).to(tl.float32) * scale - p_top
    q = tl.load(q_raw + j, ok, 0.0).to(tl.float32) * scale - q_top
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
    """values[row] = KL(p || q), or with beta (level = log((1 - beta) / beta)) the Jensen-Shannon divergence; the raw
    scores become weights[row] times its gradient."""
    row = tl.program_id(0)
    p_raw += row.to(tl.int64) * columns
    q_raw += row.to(tl.int64) * columns
    p_top, p_sum, q_top, q_sum = _norms(p_raw, q_raw, columns, scale, BLOCK)
    # q's gradient of a Kullback-Leibler divergence does not wait for its value, unless p's still needs the scores
    at_once: tl.constexpr = beta is None and GRAD_Q and not GRAD_P
    factor = 0.0
    if GRAD_P or GRAD_Q:
        factor = tl.load(weights + row) * scale
    p_total = tl.full((), 0.0, tl.float64)
    q_total = tl.full((), 0.0, tl.float64)
    for begin in range(0, columns, BLOCK):
        j = begin + tl.arange(0, BLOCK)
        ok = j < columns
        log_p, log_q, ratio = _logs(p_raw, q_raw, j, ok, scale, p_top, q_top, p_sum, q_sum)
        p, q = exp(log_p), exp(log_q)
        if beta is None:
            p_total += tl.sum(tl.where(ok, _share(p, q, ratio), 0.0)).to(tl.float64)
            if at_once:
                tl.store(q_raw + j, (factor * (q - p)).to(q_raw.dtype.element_ty), ok)
        else:
            m = beta * p + (1.0 - beta) * q
            p_ratio, q_ratio = _to_mixture(ratio, beta, 1.0 - beta, level)
            p_total += tl.sum(tl.where(ok, _share(p, m, p_ratio), 0.0)).to(tl.float64)
            q_total += tl.sum(tl.where(ok, _share(q, m, q_ratio), 0.0)).to(tl.float64)
    p_kl, q_kl = p_total.to(tl.float32), q_total.to(tl.float32)
    if beta is None:
        tl.store(values + row, p_kl)
    else:
        tl.store(values + row, beta * p_kl + (1.0 - beta) * q_kl)
    if (GRAD_P or GRAD_Q) and not at_once:
        for begin in range(0, columns, BLOCK):
            j = begin + tl.arange(0, BLOCK)
            ok = j < columns
            log_p, log_q, ratio = _logs(p_raw, q_raw, j, ok, scale, p_top, q_top, p_sum, q_sum)
            p, q = exp(log_p), exp(log_q)
            if beta is None:
                d_p, d_q = p * (ratio - p_kl), q - p
            else:
                p_ratio, q_ratio = _to_mixture(ratio, beta, 1.0 - beta, level)
                d_p, d_q = beta * p * (p_ratio - p_kl), (1.0 - beta) * q * (q_ratio - q_kl)
            if GRAD_P:
                tl.store(p_raw + j, (factor * d_p).to(p_raw.dtype.element_ty), ok)
            if GRAD_Q:
                tl.store(q_raw + j, (factor * d_q).to(q_raw.dtype.element_ty), ok)
