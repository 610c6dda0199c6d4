"""reduce_partials, the second stage of every reduction: adds the partial sums of the tiles in a fixed order."""

import triton
import triton.language as tl

from .elementary import exp
from .epilogue import NOTHING, clamped, split_lse


@triton.jit
def _running(sums, x, in_range, NONE: tl.constexpr, FIRST: tl.constexpr):
    """The running sums of x, NONE before the first."""
    if FIRST:
        value = tl.full(x.shape, NONE, sums.dtype.element_ty)
    else:
        value = tl.load(sums + x, in_range, NONE)
    return value


@triton.jit
def _add(parts, sums, count, n, x, in_range, FIRST: tl.constexpr, BLOCK_P: tl.constexpr):
    """sums[n] += the sum of parts[count, n]; nothing if there is no buffer."""
    if sums is not None:
        y = tl.arange(0, BLOCK_P)
        total = _running(sums, x, in_range, 0.0, FIRST)
        for begin in range(0, count, BLOCK_P):
            mask = (begin + y < count)[:, None] & in_range[None, :]
            at = (begin + y).to(tl.int64)[:, None] * n + x[None, :]
            total += tl.sum(tl.load(parts + at, mask, 0.0).to(tl.float64), 0).to(total.dtype)
        tl.store(sums + x, total, in_range)


@triton.jit
def reduce_partials(
    count,
    n,
    clip,
    parts,
    sums,
    lse_high,
    lse_low,
    FIRST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add parts[count, n], float32 as epilogue.store_sums writes them, to sums[n], float64 except maximum and rank, and
    write the log-sum-exps so far to lse_high[n] and lse_low[n]. FIRST: the sums are written, not added to."""
    x = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_range = x < n
    if sums.total is not None:
        y = tl.arange(0, BLOCK_P)
        before = _running(sums.maximum, x, in_range, NOTHING, FIRST)
        top = before
        for begin in range(0, count, BLOCK_P):
            mask = (begin + y < count)[:, None] & in_range[None, :]
            at = (begin + y).to(tl.int64)[:, None] * n + x[None, :]
            top = tl.maximum(top, tl.max(tl.load(parts.maximum + at, mask, NOTHING), 0))
        zero = tl.where(top > NOTHING, top, 0.0)
        shift = tl.where(before > NOTHING, before - zero, 0.0)
        factor = exp(shift).to(tl.float64)
        running = _running(sums.total, x, in_range, 0.0, FIRST)
        totals = running * factor
        if sums.weighted is not None:
            moments = factor * (_running(sums.weighted, x, in_range, 0.0, FIRST) + shift.to(tl.float64) * running)
        if sums.clipped is not None:
            start = clamped(zero, clip)
            clipped_shift = tl.where(before > NOTHING, clamped(before, clip) - start, 0.0)
            clips = _running(sums.clipped, x, in_range, 0.0, FIRST) * exp(clipped_shift).to(tl.float64)
        for begin in range(0, count, BLOCK_P):
            mask = (begin + y < count)[:, None] & in_range[None, :]
            at = (begin + y).to(tl.int64)[:, None] * n + x[None, :]
            highest = tl.load(parts.maximum + at, mask, NOTHING)
            part_shift = tl.where(highest > NOTHING, highest - zero[None, :], 0.0)
            part_factor = exp(part_shift).to(tl.float64)
            part = tl.load(parts.total + at, mask, 0.0).to(tl.float64)
            totals += tl.sum(part * part_factor, 0)
            if sums.weighted is not None:
                moment = tl.load(parts.weighted + at, mask, 0.0).to(tl.float64) + part_shift.to(tl.float64) * part
                moments += tl.sum(moment * part_factor, 0)
            if sums.clipped is not None:
                part_clipped_shift = tl.where(highest > NOTHING, clamped(highest, clip) - start[None, :], 0.0)
                part = tl.load(parts.clipped + at, mask, 0.0).to(tl.float64)
                clips += tl.sum(part * exp(part_clipped_shift).to(tl.float64), 0)
        tl.store(sums.maximum + x, top, in_range)
        tl.store(sums.total + x, totals, in_range)
        if sums.weighted is not None:
            tl.store(sums.weighted + x, moments, in_range)
        if sums.clipped is not None:
            tl.store(sums.clipped + x, clips, in_range)
        if lse_high is not None:
            high, low = split_lse(top, totals)
            tl.store(lse_high + x, high, in_range)
            tl.store(lse_low + x, low, in_range)
    _add(parts.rank, sums.rank, count, n, x, in_range, FIRST, BLOCK_P)
    _add(parts.logits, sums.logits, count, n, x, in_range, FIRST, BLOCK_P)
    _add(parts.softplus, sums.softplus, count, n, x, in_range, FIRST, BLOCK_P)
    _add(parts.sigmoid, sums.sigmoid, count, n, x, in_range, FIRST, BLOCK_P)
