"""two_sided_reduce and exact_columns: the fused kernels of info_nce and pair_scores, which reduce rows and columns.

A tile takes one exponential per score: e_ij = exp(s_ij - m_i), m_i the row's largest score in the tile. It is a term of
the row's sum, and with f_i = exp(m_i - m), m the tile's largest score, e_ij f_i is a term of the column's. A column
whose scores all lie far below m would lose digits to underflow. It is marked, and exact_columns computes the columns of
its tile again, each relative to its own largest score.
"""

import triton
import triton.language as tl

from .elementary import exp
from .epilogue import LEAST, NOTHING, has_target, map_tile, mask_scores, reduce_tile, target_mask, unmasked
from .matmul_tile import matmul_tile, swizzle_tile
from .subtile import subtile
from .tile_memory import load_masking, load_scalars, load_vector, store_sums, tile_entries


@triton.jit
def _count_columns(x):
    """The column sums [N] of x[M, N], which is 0 or 1. Those of four columns are bytes of one integer, so that threads
    exchange a quarter of the numbers. One thread has columns 0, 1, 8 and 9 of 16, as the products leave them."""
    if x.shape[0] < 256:
        GROUPS: tl.constexpr = x.shape[1] // 16
        shift = 16 * tl.arange(0, 2)[None, :, None, None] + 8 * tl.arange(0, 2)[None, None, None, :]
        in_bytes = tl.reshape(x, (x.shape[0], GROUPS, 2, 4, 2)) << shift[None, :, :, :, :]
        packed = tl.sum(tl.sum(tl.sum(in_bytes, 4), 2), 0)
        count = tl.reshape((packed[:, None, :, None] >> shift) & 255, (GROUPS * 16,))
    else:
        count = tl.sum(x, 0)
    return count


@triton.jit
def two_sided_reduce(
    query,
    key,
    rows,
    columns,
    width,
    scoring,
    masking,
    target_scores,
    column_target_scores,
    row_parts,
    column_parts,
    marked,
    USE_TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Write the partial sums row_parts [tiles across, rows] and column_parts [tiles down, columns] of the scores of
    query[rows, width] and key[columns, width], which have no bias and no softcap. marked[tiles down, columns] receives
    1 for a sum that exact_columns must compute, else 0.

    Vectors are loaded before the products, behind which they arrive. Ids mask the target too; it is put back, from
    target_scores[rows], in the few tiles that contain one. Ranks count the scores above target_scores[rows] and
    column_target_scores[columns]: put back, a pair equals these, and does not count in its own."""
    RESTORES: tl.constexpr = target_scores is not None or masking.keep_target is None
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    scoring = load_scalars(scoring)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = swizzle_tile(tile, down, across, GROUP_M)
        before = tile_entries(y, x, rows, columns, BLOCK_M, BLOCK_N)
        loaded = masking
        if masking.row_ids is not None or RESTORES:
            loaded = load_masking(masking, before)
        row_target = load_vector(target_scores, before.i, before.i < rows)
        column_target = load_vector(column_target_scores, before.j, before.j < columns)
        acc = matmul_tile(
            query, key, y * BLOCK_M, x * BLOCK_N, rows, columns, width, USE_TMA, BLOCK_M, BLOCK_N, BLOCK_K
        )
        entries = tile_entries(y, x, rows, columns, BLOCK_M, BLOCK_N)
        i, j = entries.i, entries.j
        s = map_tile(acc, scoring)
        if masking.row_ids is not None:
            s += tl.where(unmasked(None, loaded), 0.0, NOTHING)  # a NaN stays one
        if masking.targets is not None and RESTORES:
            is_targeted = has_target(x, loaded, BLOCK_N)
            if is_targeted:
                own = tl.full((BLOCK_M,), NOTHING, tl.float32)
                if masking.keep_target is not None:
                    own = row_target
                s = tl.where(target_mask(entries, loaded), own[:, None], s)
        # rows out of bounds are left to their factor, which is 0
        s = tl.where((j < columns)[None, :], s, NOTHING)
        if row_parts.rank is not None:
            above = (s > row_target[:, None]).to(tl.float32)
            tl.store(row_parts.rank + x * rows + i, tl.sum(above, 1), i < rows)
            above = tl.where(s > column_target[None, :], (i < rows).to(tl.int32)[:, None], 0)
            tl.store(column_parts.rank + y * columns + j, _count_columns(above).to(tl.float32), j < columns)
        row_top = tl.max(s, 1)
        some = row_top > NOTHING
        row_zero = tl.where(some, row_top, 0.0)
        weight = exp(s - row_zero[:, None])
        tl.store(row_parts.maximum + x * rows + i, row_top, i < rows)
        tl.store(row_parts.total + x * rows + i, tl.sum(weight, 1), i < rows)
        some = some & (i < rows)
        top = tl.max(tl.where(some, row_top, NOTHING), 0)
        zero = tl.where(top > NOTHING, top, 0.0)
        factor = tl.where(some, exp(row_zero - zero), 0.0)
        total = tl.sum(weight * factor[:, None], 0)
        tl.store(column_parts.maximum + y * columns + j, tl.zeros_like(total) + top, j < columns)
        tl.store(column_parts.total + y * columns + j, total, j < columns)
        is_low = (total < LEAST) & (tl.zeros_like(total) + top > NOTHING)
        tl.store(marked + y * columns + j, is_low.to(tl.int8), j < columns)


@triton.jit
def exact_columns(
    query,
    key,
    rows,
    columns,
    width,
    scoring,
    masking,
    column_parts,
    marked,
    USE_TMA: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EPILOGUE_SUBTILES_LOG2: tl.constexpr,
):
    """Write column_parts of tiles with a mark again. Marks are rare: a program reads those of SPAN tiles at once."""
    down, across, programs = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N), tl.num_programs(0)
    tiles = down * across
    scoring = load_scalars(scoring)
    for first in range(tl.program_id(0), tiles, SPAN * programs):
        mine = first + tl.arange(0, SPAN) * programs
        down_to, right_to = swizzle_tile(mine, down, across, GROUP_M)
        j = right_to[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        marks = tl.load(marked + down_to[:, None] * columns + j, (mine < tiles)[:, None] & (j < columns), 0)
        if tl.max(tl.max(marks.to(tl.int32), 1), 0) > 0:
            for tile in range(first, tl.minimum(first + SPAN * programs, tiles), programs):
                y, x = swizzle_tile(tile, down, across, GROUP_M)
                own = x * BLOCK_N + tl.arange(0, BLOCK_N)
                if tl.max(tl.load(marked + y * columns + own, own < columns, 0).to(tl.int32), 0) > 0:
                    acc = matmul_tile(
                        query, key, y * BLOCK_M, x * BLOCK_N, rows, columns, width, USE_TMA, BLOCK_M, BLOCK_N, BLOCK_K
                    )
                    for index in tl.static_range(1 << EPILOGUE_SUBTILES_LOG2):
                        part = subtile(acc, index, EPILOGUE_SUBTILES_LOG2)
                        right = (x << EPILOGUE_SUBTILES_LOG2) + index
                        entries = tile_entries(y, right, rows, columns, BLOCK_M, BLOCK_N >> EPILOGUE_SUBTILES_LOG2)
                        s = map_tile(part, scoring)
                        loaded = load_masking(masking, entries)
                        s = mask_scores(s, target_mask(entries, loaded), entries, loaded)
                        sums = reduce_tile(s, None, 0.0, column_parts, 0)
                        at = y * columns + entries.j
                        store_sums(sums, column_parts, at, entries.j < columns)
