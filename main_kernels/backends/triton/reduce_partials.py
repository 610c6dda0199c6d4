"""The second stage of a reduction: the partial sums that tiles left are added to the running ones, in a fixed order."""

import triton
import triton.language as tl

from .epilogue import NOTHING, clamped, exp

COMBINE = {"BP": 32, "BN": 64, "num_warps": 4, "maxnreg": 255}


@triton.jit
def _sum_of(parts, at, there):
    return tl.sum(tl.load(parts + at, there, 0.0).to(tl.float64), 0)


@triton.jit
def combine(
    count,
    n,
    clip,
    parts,
    sums,
    BP: tl.constexpr,
    BN: tl.constexpr,
):
    """parts [count, n] are float32, see tiles.put_sums; the running sums [n] are float64 but for maximum and rank."""
    x = tl.program_id(0) * BN + tl.arange(0, BN)
    ok = x < n
    y = tl.arange(0, BP)
    if sums.total is not None:
        before = tl.load(sums.maximum + x, ok, NOTHING)
        top = before
        for begin in range(0, count, BP):
            there = (begin + y < count)[:, None] & ok[None, :]
            at = (begin + y).to(tl.int64)[:, None] * n + x[None, :]
            top = tl.maximum(top, tl.max(tl.load(parts.maximum + at, there, NOTHING), 0))
        zero = tl.where(top > NOTHING, top, 0.0)
        shift = tl.where(before > NOTHING, before - zero, 0.0)
        factor = exp(shift).to(tl.float64)
        running = tl.load(sums.total + x, ok, 0.0)
        totals = running * factor
        if sums.weighted is not None:
            moments = factor * (tl.load(sums.weighted + x, ok, 0.0) + shift.to(tl.float64) * running)
        if sums.clipped is not None:
            start = clamped(zero, clip)
            moved = tl.where(before > NOTHING, clamped(before, clip) - start, 0.0)
            clips = tl.load(sums.clipped + x, ok, 0.0) * exp(moved).to(tl.float64)
        for begin in range(0, count, BP):
            there = (begin + y < count)[:, None] & ok[None, :]
            at = (begin + y).to(tl.int64)[:, None] * n + x[None, :]
            highest = tl.load(parts.maximum + at, there, NOTHING)
            fall = tl.where(highest > NOTHING, highest - zero[None, :], 0.0)
            share = exp(fall).to(tl.float64)
            part = tl.load(parts.total + at, there, 0.0).to(tl.float64)
            totals += tl.sum(part * share, 0)
            if sums.weighted is not None:
                moment = tl.load(parts.weighted + at, there, 0.0).to(tl.float64) + fall.to(tl.float64) * part
                moments += tl.sum(moment * share, 0)
            if sums.clipped is not None:
                clipped_fall = tl.where(highest > NOTHING, clamped(highest, clip) - start[None, :], 0.0)
                part = tl.load(parts.clipped + at, there, 0.0).to(tl.float64)
                clips += tl.sum(part * exp(clipped_fall).to(tl.float64), 0)
        tl.store(sums.maximum + x, top, ok)
        tl.store(sums.total + x, totals, ok)
        if sums.weighted is not None:
            tl.store(sums.weighted + x, moments, ok)
        if sums.clipped is not None:
            tl.store(sums.clipped + x, clips, ok)
    for begin in range(0, count, BP):
        there = (begin + y < count)[:, None] & ok[None, :]
        at = (begin + y).to(tl.int64)[:, None] * n + x[None, :]
        if sums.rank is not None:
            tl.store(sums.rank + x, tl.load(sums.rank + x, ok, 0.0) + _sum_of(parts.rank, at, there).to(tl.float32), ok)
        if sums.logits is not None:
            tl.store(sums.logits + x, tl.load(sums.logits + x, ok, 0.0) + _sum_of(parts.logits, at, there), ok)
        if sums.softplus is not None:
            tl.store(sums.softplus + x, tl.load(sums.softplus + x, ok, 0.0) + _sum_of(parts.softplus, at, there), ok)
