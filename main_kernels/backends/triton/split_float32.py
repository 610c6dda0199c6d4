"""accumulate and round_scaled: a float32 kept as two 16-bit planes, the upper a bfloat16 (sweep/grad_buffer.py)."""

import triton
import triton.language as tl


@triton.jit
def _join(high, low, at, mask):
    upper = tl.load(high + at, mask, 0).to(tl.int32) << 16  # both planes are passed as int16
    lower = tl.load(low + at, mask, 0).to(tl.int32) & 0xFFFF
    return (upper | lower).to(tl.float32, bitcast=True)


@triton.jit
def accumulate(high, low, x, count, BLOCK: tl.constexpr):
    """(high, low)[count] += x[count]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    bits = (_join(high, low, at, mask) + tl.load(x + at, mask, 0.0).to(tl.float32)).to(tl.int32, bitcast=True)
    tl.store(high + at, (bits >> 16).to(tl.int16), mask)
    tl.store(low + at, bits.to(tl.int16), mask)


@triton.jit
def round_scaled(high, low, rounded, scale, count, width, step, BLOCK: tl.constexpr):
    """rounded[count] = (high, low) scale[row step]; ``rounded`` is the bfloat16 view of ``high``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    value = _join(high, low, at, mask) * tl.load(scale + at // width * step, mask, 0.0)
    tl.store(rounded + at, value.to(tl.bfloat16), mask)
