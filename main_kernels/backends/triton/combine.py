"""The second stage of a reduction: the partial sums that tiles left are added to the running ones, in a fixed order."""

import triton
import triton.language as tl

from .tiles import NOTHING, clamped, exp

COMBINE = {"BP": 32, "BN": 64, "num_warps": 4, "maxnreg": 255}


@triton.jit
def _sum_of(parts, at, there):
    return tl.sum(tl.load(parts + at, there, 0.0).to(tl.float64), 0)


@triton.jit
def combine(
    count,
    n,
    clip,
    p_maximum,
    p_total,
    p_weighted,
    p_rank,
    p_logits,
    p_softplus,
    p_clipped,
    maximum,
    total,
    weighted,
    rank,
    logits,
    softplus,
    clipped,
    BP: tl.constexpr,
    BN: tl.constexpr,
):
    """p_* [count, n] float32, see tiles.put_parts; the running sums [n] are float64 but for maximum and rank."""
    x = tl.program_id(0) * BN + tl.arange(0, BN)
    ok = x < n
    y = tl.arange(0, BP)
    if total is not None:
        before = tl.load(maximum + x, ok, NOTHING)
        top = before
        for begin in range(0, count, BP):
            there = (begin + y < count)[:, None] & ok[None, :]
            at = (begin + y).to(tl.int64)[:, None] * n + x[None, :]
            top = tl.maximum(top, tl.max(tl.load(p_maximum + at, there, NOTHING), 0))
        zero = tl.where(top > NOTHING, top, 0.0)
        shift = tl.where(before > NOTHING, before - zero, 0.0)
        factor = exp(shift).to(tl.float64)
        running = tl.load(total + x, ok, 0.0)
        sums = running * factor
        if weighted is not None:
            moments = factor * (tl.load(weighted + x, ok, 0.0) + shift.to(tl.float64) * running)
        if clipped is not None:
            start = clamped(zero, clip)
            moved = tl.where(before > NOTHING, clamped(before, clip) - start, 0.0)
            clips = tl.load(clipped + x, ok, 0.0) * exp(moved).to(tl.float64)
        for begin in range(0, count, BP):
            there = (begin + y < count)[:, None] & ok[None, :]
            at = (begin + y).to(tl.int64)[:, None] * n + x[None, :]
            highest = tl.load(p_maximum + at, there, NOTHING)
            fall = tl.where(highest > NOTHING, highest - zero[None, :], 0.0)
            share = exp(fall).to(tl.float64)
            part = tl.load(p_total + at, there, 0.0).to(tl.float64)
            sums += tl.sum(part * share, 0)
            if weighted is not None:
                moment = tl.load(p_weighted + at, there, 0.0).to(tl.float64) + fall.to(tl.float64) * part
                moments += tl.sum(moment * share, 0)
            if clipped is not None:
                clipped_fall = tl.where(highest > NOTHING, clamped(highest, clip) - start[None, :], 0.0)
                part = tl.load(p_clipped + at, there, 0.0).to(tl.float64)
                clips += tl.sum(part * exp(clipped_fall).to(tl.float64), 0)
        tl.store(maximum + x, top, ok)
        tl.store(total + x, sums, ok)
        if weighted is not None:
            tl.store(weighted + x, moments, ok)
        if clipped is not None:
            tl.store(clipped + x, clips, ok)
    for begin in range(0, count, BP):
        there = (begin + y < count)[:, None] & ok[None, :]
        at = (begin + y).to(tl.int64)[:, None] * n + x[None, :]
        if rank is not None:
            tl.store(rank + x, tl.load(rank + x, ok, 0.0) + _sum_of(p_rank, at, there).to(tl.float32), ok)
        if logits is not None:
            tl.store(logits + x, tl.load(logits + x, ok, 0.0) + _sum_of(p_logits, at, there), ok)
        if softplus is not None:
            tl.store(softplus + x, tl.load(softplus + x, ok, 0.0) + _sum_of(p_softplus, at, there), ok)
