"""A float32 kept as two 16-bit planes, the upper one a bfloat16: see sweep/gradient.py."""

import triton
import triton.language as tl

PLANES = {"BLOCK": 2048, "num_warps": 8}


@triton.jit
def _join(high, low, at, ok):
    upper = tl.load(high + at, ok, 0).to(tl.int32) << 16  # both planes come as int16
    lower = tl.load(low + at, ok, 0).to(tl.int32) & 0xFFFF
    return (upper | lower).to(tl.float32, bitcast=True)


@triton.jit
def accumulate(high, low, x, count, BLOCK: tl.constexpr):
    """(high, low)[count] += x[count]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < count
    bits = (_join(high, low, at, ok) + tl.load(x + at, ok, 0.0).to(tl.float32)).to(tl.int32, bitcast=True)
    tl.store(high + at, (bits >> 16).to(tl.int16), ok)
    tl.store(low + at, bits.to(tl.int16), ok)


@triton.jit
def round_scaled(high, low, rounded, scale, count, width, step, BLOCK: tl.constexpr):
    """rounded[count] = (high, low) scale[row step]; ``rounded`` is the bfloat16 view of ``high``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < count
    value = _join(high, low, at, ok) * tl.load(scale + at // width * step, ok, 0.0)
    tl.store(rounded + at, value.to(tl.bfloat16), ok)
