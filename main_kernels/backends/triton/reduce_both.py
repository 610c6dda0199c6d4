"""reduce_both, the kernel of kept scores whose rows and columns are reduced: it reads each score once."""

import triton
import triton.language as tl

from .elementary import exp
from .epilogue import LEAST, NOTHING, map_score, map_tile, mask_scores, merge_sums, reduce_tile, target_mask
from .row_walk import grouped, joined, no_sums
from .tile_memory import load_bias, load_masking, load_scalars, load_scoring, load_tile, store_sums, tile_entries


@triton.jit
def _masked_scores(raw, pitch, entries, scoring, masking):
    s = map_tile(load_tile(raw, pitch, entries), load_scoring(scoring, entries))
    masking = load_masking(masking, entries)
    return mask_scores(s, target_mask(entries, masking), entries, masking)


@triton.jit
def reduce_both(
    raw,
    pitch,
    rows,
    columns,
    scoring,
    masking,
    target_scores,
    clip,
    row_parts,
    column_parts,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Write partial row sums row_parts[spans across, rows], partial column sums column_parts[tiles down, columns], and
    the scores of the targets. A program moves its tile along SPAN tiles of the same rows.

    Rows and columns share an exponential if a column has no other sums: e = exp(s - m), m the largest score of a group
    of neighbouring columns in one row, and for a column e exp(m - the largest m of its group). A tile in which a column
    would lose digits to underflow is read and reduced again."""
    GROUP: tl.constexpr = 128 // raw.dtype.element_ty.primitive_bitwidth
    spans = tl.cdiv(columns, BLOCK_N * SPAN)
    down, span = tl.program_id(0) // spans, tl.program_id(0) % spans
    scoring = load_scalars(scoring)
    i = down * BLOCK_M + tl.arange(0, BLOCK_M)
    in_row = i < rows
    if masking.targets is not None and span == 0:
        target = tl.load(masking.targets + i, in_row, -1)
        in_chunk = (target >= 0) & (target < columns)
        product = tl.load(raw + i.to(tl.int64) * pitch + target, in_chunk, 0.0)
        bias = load_bias(target, in_chunk, scoring)
        tl.store(target_scores + i, map_score(product, bias, scoring), in_chunk)
    running = no_sums(BLOCK_M, BLOCK_N // GROUP)
    for right in range(span * SPAN, tl.minimum((span + 1) * SPAN, tl.cdiv(columns, BLOCK_N))):
        entries = tile_entries(down, right, rows, columns, BLOCK_M, BLOCK_N)
        s = _masked_scores(raw, pitch, entries, scoring, masking)
        part = reduce_tile(grouped(s, GROUP), None, clip, row_parts, 2)
        at, in_column = down * columns + entries.j, entries.j < columns
        if row_parts.total is not None and column_parts.logits is None:
            zero = tl.where(part.maximum > NOTHING, part.maximum, 0.0)
            weight = exp(grouped(s, GROUP) - zero[:, :, None])
            top = tl.max(part.maximum, 0)
            factor = tl.where(part.maximum > NOTHING, exp(zero - tl.where(top > NOTHING, top, 0.0)[None, :]), 0.0)
            total = tl.sum(weight * factor[:, :, None], 0)
            top = tl.reshape(tl.zeros_like(total) + top[:, None], (BLOCK_N,))
            total = tl.reshape(total, (BLOCK_N,))
            is_low = (total < LEAST) & (top > NOTHING) & in_column
            if tl.max(is_low.to(tl.int32), 0) > 0:
                exact = reduce_tile(_masked_scores(raw, pitch, entries, scoring, masking), None, clip, column_parts, 0)
                top, total = exact.maximum, exact.total
            tl.store(column_parts.maximum + at, top, in_column)
            tl.store(column_parts.total + at, total, in_column)
        else:
            store_sums(reduce_tile(s, None, clip, column_parts, 0), column_parts, at, in_column)
        running = merge_sums(running, part, clip)
    store_sums(joined(running, clip), row_parts, span * rows + i, in_row)
