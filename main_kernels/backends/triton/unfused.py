"""reduce_rows, reduce_columns and score_grad: kernels over a chunk of raw scores that cuBLAS computed.

The chunk is raw[rows, columns], rows ``pitch`` apart, float32 or bfloat16. One program handles one tile.
"""

import triton
import triton.language as tl

from .epilogue import map_score, map_tile, mask_scores, reduce_tile, score_grad_tile, target_mask
from .tile_memory import (
    load_bias,
    load_masking,
    load_scalars,
    load_scoring,
    load_terms,
    load_tile,
    store_sums,
    store_tile,
    tile_entries,
)


@triton.jit
def _tile_position(columns, BLOCK_N: tl.constexpr):
    """Row and column of the program's tile."""
    across = tl.cdiv(columns, BLOCK_N)
    return tl.program_id(0) // across, tl.program_id(0) % across


@triton.jit
def reduce_rows(
    raw,
    pitch,
    rows,
    columns,
    scoring,
    masking,
    target_scores,
    clip,
    parts,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the partial row sums parts[tiles across, rows], and to target_scores[rows] the scores of the targets within
    the chunk."""
    down, right = _tile_position(columns, BLOCK_N)
    entries = tile_entries(down, right, rows, columns, BLOCK_M, BLOCK_N)
    scoring = load_scalars(scoring)
    s = map_tile(load_tile(raw, pitch, entries), load_scoring(scoring, entries))
    loaded = load_masking(masking, entries)
    s = mask_scores(s, target_mask(entries, loaded), entries, loaded)
    i, mask = entries.i, entries.i < rows
    above = None
    if masking.targets is not None:
        target = tl.load(masking.targets + i, mask, -1)
        in_chunk = (target >= 0) & (target < columns)
        product = tl.load(raw + i.to(tl.int64) * pitch + target, in_chunk, 0.0)
        at_target = map_score(product, load_bias(target, in_chunk, scoring), scoring)
        if right == 0:
            tl.store(target_scores + i, at_target, in_chunk)
        above = s > at_target[:, None]
    store_sums(reduce_tile(s, above, clip, parts, 1), parts, right * rows + i, mask)


@triton.jit
def reduce_columns(
    raw,
    pitch,
    rows,
    columns,
    scoring,
    masking,
    column_target_scores,
    parts,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the partial column sums parts[tiles down, columns]. A column's rank counts the scores above
    column_target_scores[columns]."""
    down, right = _tile_position(columns, BLOCK_N)
    entries = tile_entries(down, right, rows, columns, BLOCK_M, BLOCK_N)
    scoring = load_scalars(scoring)
    s = map_tile(load_tile(raw, pitch, entries), load_scoring(scoring, entries))
    masking = load_masking(masking, entries)
    is_target = target_mask(entries, masking)
    s = mask_scores(s, is_target, entries, masking)
    j, mask = entries.j, entries.j < columns
    above = None
    if parts.rank is not None:  # a pair does not count in its own rank
        above = (s > tl.load(column_target_scores + j, mask, 0.0)[None, :]) & (is_target == 0)
    store_sums(reduce_tile(s, above, 0.0, parts, 0), parts, down * columns + j, mask)


@triton.jit
def score_grad(
    raw,
    pitch,
    rows,
    columns,
    scoring,
    masking,
    terms,
    row_partials,
    grad,
    grad_pitch,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write dL/draw to ``grad``, which may be ``raw``, and to row_partials[tiles across, rows] the partial sums of
    dL/ds s, without the part of a uniform bias."""
    down, right = _tile_position(columns, BLOCK_N)
    entries = tile_entries(down, right, rows, columns, BLOCK_M, BLOCK_N)
    scoring = load_scalars(scoring)
    scoring, masking, terms = load_scoring(scoring, entries), load_masking(masking, entries), load_terms(terms, entries)
    g, row_sums = score_grad_tile(load_tile(raw, pitch, entries), entries, scoring, masking, terms, row_partials)
    if row_partials is not None:
        tl.store(row_partials + right * rows + entries.i, row_sums, entries.i < rows)
    store_tile(g, grad, grad_pitch, entries)
