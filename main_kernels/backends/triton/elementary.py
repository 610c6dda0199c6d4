"""Elementary functions of float32 values in registers, shorter than those of triton.language."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

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
def sum_softplus(s, AXIS: tl.constexpr):
    """The sum of log(1 + e^s) = max(s, 0) + log(1 + u), u = e^-|s|, along the last axis, from one logarithm for 64
    terms: that of the product of 1 + u. What the product exceeds 1 by is a sum of positive terms, so the digits of a
    small u stay."""
    WIDTH: tl.constexpr = s.shape[AXIS]
    if WIDTH > 64:
        tl.static_assert(AXIS == 1)
        # the terms of a product are not neighbours, which a thread holds
        terms = tl.reshape(s, (s.shape[0], 64, WIDTH // 64))
        total = tl.sum(_sum_softplus(terms, 1), 1)
    else:
        total = _sum_softplus(s, AXIS)
    return total


@triton.jit
def _sum_softplus(s, AXIS: tl.constexpr):
    return tl.sum(tl.maximum(s, 0.0), AXIS) + _log1p_of_product(exp(-tl.abs(s)), AXIS)


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
