"""row_loss, the kernel of a head's kept scores: reduces whole rows and replaces them by the gradient of their losses.

A program walks a row once from left to right, which completes its sums, and once back. The walk back finds the row in
the L2 cache, so the scores are read from memory once.
"""

import triton
import triton.language as tl

from .elementary import exp
from .epilogue import (
    NOTHING,
    map_score,
    map_tile,
    mask_scores,
    merge_sums,
    reduce_tile,
    score_grad_tile,
    split_lse,
    target_mask,
)
from .kernel_args import Entries, Terms
from .row_walk import grouped, joined, no_sums
from .tile_memory import load_bias, load_masking, load_scalars, load_scoring, load_vector, store_sums


@triton.jit
def row_loss(
    raw,
    pitch,
    rows,
    columns,
    scoring,
    masking,
    loss,
    sums,
    target_scores,
    lse_high,
    lse_low,
    clip,
    grad,
    grad_pitch,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write to sums[rows] the reductions of raw[rows, columns], to target_scores[rows] the scores of the targets, to
    lse_high and lse_low the two parts of the log-sum-exps, and to grad dL/draw for the terms ``loss`` (LossTerms in
    structs.py). ``grad`` may be ``raw``."""
    GROUP: tl.constexpr = 128 // raw.dtype.element_ty.primitive_bitwidth
    blocks = tl.cdiv(columns, BLOCK_N)
    scoring = load_scalars(scoring)
    for first in range(tl.program_id(0) * BLOCK_M, rows, tl.num_programs(0) * BLOCK_M):
        i = first + tl.arange(0, BLOCK_M)
        in_row, line = i < rows, i.to(tl.int64)[:, None]
        at_target = tl.zeros((BLOCK_M,), tl.float32)
        if masking.targets is not None:
            target = tl.load(masking.targets + i, in_row, -1)
            in_chunk = (target >= 0) & (target < columns)
            product = tl.load(raw + i.to(tl.int64) * pitch + target, in_chunk, 0.0)
            bias = load_bias(target, in_chunk, scoring)
            at_target = map_score(product, bias, scoring)
            tl.store(target_scores + i, at_target, in_chunk)
        running = no_sums(BLOCK_M, BLOCK_N // GROUP)
        for block in range(blocks):
            entries = Entries(i, block * BLOCK_N + tl.arange(0, BLOCK_N), rows, columns)
            inside = in_row[:, None] & (entries.j < columns)[None, :]
            x = tl.load(raw + (line * pitch + entries.j[None, :]), inside, 0.0, eviction_policy="evict_last")
            s = map_tile(x, load_scoring(scoring, entries))
            loaded = load_masking(masking, entries)
            s = mask_scores(s, target_mask(entries, loaded), entries, loaded)
            above = None
            if sums.rank is not None:
                above = s > at_target[:, None]
            part = reduce_tile(grouped(s, GROUP), grouped(above, GROUP), clip, sums, 2)
            running = merge_sums(running, part, clip)
        whole = joined(running, clip)
        store_sums(whole, sums, i, in_row)
        high, low = split_lse(whole.maximum, whole.total)
        tl.store(lse_high + i, high, in_row)
        tl.store(lse_low + i, low, in_row)
        row_grad = tl.load(loss.row_lse_grad + i, in_row, 0.0)
        if loss.row_lse_slope is not None:
            row_grad += tl.load(loss.row_lse_slope + i, in_row, 0.0) * high
        target_grad = load_vector(loss.target_grad, i, in_row)
        if target_grad is not None:
            target_grad = tl.where(high == NOTHING, 0.0, target_grad)
        terms = Terms(
            row_grad * exp(-low),
            high,
            None,
            None,
            None,
            None,
            target_grad,
            None,
            load_vector(loss.row_sum_grad, i, in_row),
            None,
            None,
        )
        for back in range(blocks):
            entries = Entries(i, (blocks - 1 - back) * BLOCK_N + tl.arange(0, BLOCK_N), rows, columns)
            inside = in_row[:, None] & (entries.j < columns)[None, :]
            x = tl.load(raw + (line * pitch + entries.j[None, :]), inside, 0.0, eviction_policy="evict_first")
            g, _ = score_grad_tile(
                x, entries, load_scoring(scoring, entries), load_masking(masking, entries), terms, None
            )
            at = grad + (line * grad_pitch + entries.j[None, :])
            tl.store(at, g.to(grad.dtype.element_ty), inside, eviction_policy="evict_first")
