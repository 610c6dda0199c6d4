"""two_sided_reduce, exact_columns and two_sided_grad: the fused kernels of info_nce, which reduces rows and columns.

A tile takes one exponential per score: e_ij = exp(s_ij - m_i), m_i the row's largest score in the tile. It is a term of
the row's sum, and with f_i = exp(m_i - m), m the tile's largest score, e_ij f_i is a term of the column's. A column
whose scores all lie far below m would lose digits to underflow. It is marked, and exact_columns computes the columns of
its tile again, each relative to its own largest score.
"""

import triton
import triton.language as tl

from .epilogue import (
    NOTHING,
    exp,
    load_masking,
    map_tile,
    mask_scores,
    reduce_tile,
    shared_column_sums,
    store_sums,
    target_mask,
    tile_entries,
)
from .kernel_args import Scoring
from .matmul_tile import matmul_tile, subtile, swizzle_tile


@triton.jit
def two_sided_reduce(
    query,
    key,
    rows,
    columns,
    width,
    scoring,
    masking,
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
    1 for a sum that exact_columns must compute, else 0."""
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    scoring = Scoring(tl.load(scoring.scale), scoring.cap, scoring.bias)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = swizzle_tile(tile, down, across, GROUP_M)
        acc = matmul_tile(
            query, key, y * BLOCK_M, x * BLOCK_N, rows, columns, width, USE_TMA, BLOCK_M, BLOCK_N, BLOCK_K
        )
        entries = tile_entries(y, x, rows, columns, BLOCK_M, BLOCK_N)
        i, j = entries.i, entries.j
        s = map_tile(acc, scoring)
        if masking.row_ids is not None:
            loaded = load_masking(masking, entries)
            s = mask_scores(s, target_mask(entries, loaded), entries, loaded)
        else:  # rows out of bounds are left to their factor, which is 0
            s = tl.where((j < columns)[None, :], s, NOTHING)
        row_top = tl.max(s, 1)
        weight = exp(s - tl.where(row_top > NOTHING, row_top, 0.0)[:, None])
        tl.store(row_parts.maximum + x * rows + i, row_top, i < rows)
        tl.store(row_parts.total + x * rows + i, tl.sum(weight, 1), i < rows)
        top, total, is_low = shared_column_sums(weight, row_top, i < rows)
        tl.store(column_parts.maximum + y * columns + j, top, j < columns)
        tl.store(column_parts.total + y * columns + j, total, j < columns)
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
    scoring = Scoring(tl.load(scoring.scale), scoring.cap, scoring.bias)
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
                        part = subtile(acc, index, EPILOGUE_SUBTILES_LOG2, BLOCK_M, BLOCK_N)
                        right = (x << EPILOGUE_SUBTILES_LOG2) + index
                        entries = tile_entries(y, right, rows, columns, BLOCK_M, BLOCK_N >> EPILOGUE_SUBTILES_LOG2)
                        s = map_tile(part, scoring)
                        loaded = load_masking(masking, entries)
                        s = mask_scores(s, target_mask(entries, loaded), entries, loaded)
                        sums = reduce_tile(s, None, 0.0, column_parts, 0)
                        at = y * columns + entries.j
                        store_sums(sums, column_parts, at, entries.j < columns)


@triton.jit
def two_sided_grad(
    query,
    key,
    rows,
    columns,
    width,
    scoring,
    targets,
    terms,
    out,
    pitch,
    USE_TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Write to out[rows, pitch] dL/draw for terms of both log-sum-exps and the targets, without bias, softcap or mask.

    The vectors are loaded before the products, behind which they arrive. The lower part of a log-sum-exp is in the
    coefficient: a exp(s - high - low) = (a exp(-low)) exp(s - high)."""
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    scale = tl.load(scoring.scale)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = swizzle_tile(tile, down, across, GROUP_M)
        i, j = y * BLOCK_M + tl.arange(0, BLOCK_M), x * BLOCK_N + tl.arange(0, BLOCK_N)
        has_row, has_column = i < rows, j < columns
        row_high = tl.load(terms.row_lse_high + i, has_row, 0.0)
        row_factor = tl.load(terms.row_lse_grad + i, has_row, 0.0) * scale
        row_factor *= exp(-tl.load(terms.row_lse_low + i, has_row, 0.0))
        column_high = tl.load(terms.column_lse_high + j, has_column, 0.0)
        column_factor = tl.load(terms.column_lse_grad + j, has_column, 0.0) * scale
        column_factor *= exp(-tl.load(terms.column_lse_low + j, has_column, 0.0))
        if terms.target_grad is not None:
            target = tl.load(targets + i, has_row, -1).to(tl.int32)
            at_target = tl.load(terms.target_grad + i, has_row, 0.0) * scale
        acc = matmul_tile(
            query, key, y * BLOCK_M, x * BLOCK_N, rows, columns, width, USE_TMA, BLOCK_M, BLOCK_N, BLOCK_K
        )
        s = acc * scale
        s = tl.fma(s, 0.0, s)
        of_row = row_factor[:, None] * exp(s - row_high[:, None])
        g = tl.fma(column_factor[None, :], exp(s - column_high[None, :]), of_row)
        if terms.target_grad is not None:
            left = x * BLOCK_N
            if tl.max(((target >= left) & (target < left + BLOCK_N)).to(tl.int32), 0) > 0:
                g += tl.where(j[None, :] == target[:, None], at_target[:, None], 0.0)
        at = out + (i.to(tl.int64)[:, None] * pitch + j[None, :])
        tl.store(at, g.to(out.dtype.element_ty), has_row[:, None] & has_column[None, :])
