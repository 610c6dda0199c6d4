"""reduce_partials, the second stage of every reduction: adds the partial sums of the tiles in a fixed order."""

import triton
import triton.language as tl

from .elementary import exp
from .epilogue import NOTHING, clamped


@triton.jit
def _sum_of(parts, at, mask):
    return tl.sum(tl.load(parts + at, mask, 0.0).to(tl.float64), 0)


@triton.jit
def reduce_partials(
    count,
    n,
    clip,
    parts,
    sums,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add parts[count, n], float32 as epilogue.store_sums writes them, to sums[n], float64 except maximum and rank."""
    x = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_range = x < n
    y = tl.arange(0, BLOCK_P)
    if sums.total is not None:
        before = tl.load(sums.maximum + x, in_range, NOTHING)
        top = before
        for begin in range(0, count, BLOCK_P):
            mask = (begin + y < count)[:, None] & in_range[None, :]
            at = (begin + y).to(tl.int64)[:, None] * n + x[None, :]
            top = tl.maximum(top, tl.max(tl.load(parts.maximum + at, mask, NOTHING), 0))
        zero = tl.where(top > NOTHING, top, 0.0)
        shift = tl.where(before > NOTHING, before - zero, 0.0)
        factor = exp(shift).to(tl.float64)
        running = tl.load(sums.total + x, in_range, 0.0)
        totals = running * factor
        if sums.weighted is not None:
            moments = factor * (tl.load(sums.weighted + x, in_range, 0.0) + shift.to(tl.float64) * running)
        if sums.clipped is not None:
            start = clamped(zero, clip)
            clipped_shift = tl.where(before > NOTHING, clamped(before, clip) - start, 0.0)
            clips = tl.load(sums.clipped + x, in_range, 0.0) * exp(clipped_shift).to(tl.float64)
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
    for begin in range(0, count, BLOCK_P):
        mask = (begin + y < count)[:, None] & in_range[None, :]
        at = (begin + y).to(tl.int64)[:, None] * n + x[None, :]
        if sums.rank is not None:
            rank = tl.load(sums.rank + x, in_range, 0.0) + _sum_of(parts.rank, at, mask).to(tl.float32)
            tl.store(sums.rank + x, rank, in_range)
        if sums.logits is not None:
            logits = tl.load(sums.logits + x, in_range, 0.0) + _sum_of(parts.logits, at, mask)
            tl.store(sums.logits + x, logits, in_range)
        if sums.softplus is not None:
            softplus = tl.load(sums.softplus + x, in_range, 0.0) + _sum_of(parts.softplus, at, mask)
            tl.store(sums.softplus + x, softplus, in_range)
        if sums.sigmoid is not None:
            sigmoid = tl.load(sums.sigmoid + x, in_range, 0.0) + _sum_of(parts.sigmoid, at, mask)
            tl.store(sums.sigmoid + x, sigmoid, in_range)
