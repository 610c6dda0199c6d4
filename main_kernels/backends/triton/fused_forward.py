"""fused_reduce, softplus_reduce and target_scores, the fused forward kernels: tiles of scores reduced along rows and
columns in registers and never written. Each tile leaves partial sums for reduce_partials.py."""

import triton
import triton.language as tl

from .epilogue import (
    NOTHING,
    has_target,
    load_bias,
    load_ids,
    load_masking,
    load_scalars,
    load_scoring,
    load_targets,
    map_score,
    map_tile,
    mask_scores,
    merge_sums,
    reduce_tile,
    store_sums,
    target_mask,
    tile_entries,
    unmasked,
)
from .matmul_tile import matmul_tile, subtile, swizzle_tile


@triton.jit
def target_scores(
    query,
    key,
    rows,
    width,
    scoring,
    targets,
    at_target,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write to at_target[rows] the scores of the rows with their targets: the diagonal of a tile. The same product
    computes every other score, so equal scores compare as equal."""
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_K)
    t = tl.load(targets + i, i < rows, 0)
    q_at = query + (i % rows).to(tl.int64)[:, None] * width + d[None, :]
    k_at = key + t[None, :] * width + d[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_M), tl.float32)
    for begin in range(0, width, BLOCK_K):
        q = tl.load(q_at, d[None, :] < width - begin, 0.0)
        k = tl.load(k_at, d[:, None] < width - begin, 0.0)
        acc = tl.dot(q, k, acc, input_precision="ieee")
        q_at += BLOCK_K
        k_at += BLOCK_K
    index = tl.arange(0, BLOCK_M)
    raw = tl.sum(tl.where(index[:, None] == index[None, :], acc, 0.0), 1)
    scoring = load_scalars(scoring)
    tl.store(at_target + i, map_score(raw, load_bias(t, i < rows, scoring), scoring), i < rows)


@triton.jit
def _reduce(acc, down, entries, scoring, masking, at_target, column_target_scores, clip, row_parts, column_parts):
    """Store the partial column sums of raw scores acc[BLOCK_M, BLOCK_N] in tile row ``down``; return their row sums."""
    s = map_tile(acc, load_scoring(scoring, entries))
    masking = load_masking(masking, entries)
    is_target = target_mask(entries, masking)
    s = mask_scores(s, is_target, entries, masking)
    i, j, mask = entries.i, entries.j, entries.j < entries.columns
    above = None
    if row_parts.rank is not None:  # a pair does not count in its own rank
        above = (s > tl.load(at_target + i, i < entries.rows, 0.0)[:, None]) & (is_target == 0)
    row_sums = reduce_tile(s, above, clip, row_parts, 1)
    if column_parts.rank is not None:
        above = (s > tl.load(column_target_scores + j, mask, 0.0)[None, :]) & (is_target == 0)
    if column_parts.total is not None:
        store_sums(reduce_tile(s, above, clip, column_parts, 0), column_parts, down * entries.columns + j, mask)
    return row_sums


@triton.jit
def fused_reduce(
    query,
    key,
    rows,
    columns,
    width,
    scoring,
    masking,
    at_target,
    column_target_scores,
    clip,
    row_parts,
    column_parts,
    USE_TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EPILOGUE_SUBTILES_LOG2: tl.constexpr,
):
    """Reduce the scores of query[rows, width] and key[columns, width] to partial sums: row_parts [tiles across, rows]
    and column_parts [tiles down, columns]. Ranks count the scores above at_target[rows] and
    column_target_scores[columns]."""
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    scoring = load_scalars(scoring)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = swizzle_tile(tile, down, across, GROUP_M)
        acc = matmul_tile(
            query, key, y * BLOCK_M, x * BLOCK_N, rows, columns, width, USE_TMA, BLOCK_M, BLOCK_N, BLOCK_K
        )
        for index in tl.static_range(1 << EPILOGUE_SUBTILES_LOG2):
            part = subtile(acc, index, EPILOGUE_SUBTILES_LOG2, BLOCK_M, BLOCK_N)
            right = (x << EPILOGUE_SUBTILES_LOG2) + index
            entries = tile_entries(y, right, rows, columns, BLOCK_M, BLOCK_N >> EPILOGUE_SUBTILES_LOG2)
            subtile_sums = _reduce(
                part,
                y,
                entries,
                scoring,
                masking,
                at_target,
                column_target_scores,
                clip,
                row_parts,
                column_parts,
            )
            if index == 0:
                sums = subtile_sums
            else:
                sums = merge_sums(sums, subtile_sums, clip)
        i = y * BLOCK_M + tl.arange(0, BLOCK_M)
        store_sums(sums, row_parts, x * rows + i, i < rows)


@triton.jit
def softplus_reduce(
    query,
    key,
    rows,
    columns,
    width,
    scoring,
    masking,
    row_parts,
    USE_TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EPILOGUE_SUBTILES_LOG2: tl.constexpr,
):
    """fused_reduce for sums of softplus, and of sigmoid, along rows, without softcap.

    Targets are loaded before the products, behind which they arrive. Few tiles contain one: only they compare columns
    with targets."""
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    scoring = load_scalars(scoring)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = swizzle_tile(tile, down, across, GROUP_M)
        loaded = load_targets(masking, tile_entries(y, x, rows, columns, BLOCK_M, BLOCK_N))
        acc = matmul_tile(
            query, key, y * BLOCK_M, x * BLOCK_N, rows, columns, width, USE_TMA, BLOCK_M, BLOCK_N, BLOCK_K
        )
        targeted = has_target(x, loaded, BLOCK_N)
        for index in tl.static_range(1 << EPILOGUE_SUBTILES_LOG2):
            part = subtile(acc, index, EPILOGUE_SUBTILES_LOG2, BLOCK_M, BLOCK_N)
            right = (x << EPILOGUE_SUBTILES_LOG2) + index
            entries = tile_entries(y, right, rows, columns, BLOCK_M, BLOCK_N >> EPILOGUE_SUBTILES_LOG2)
            s = map_tile(part, load_scoring(scoring, entries))
            masked = s
            if masking.row_ids is not None:
                masked += tl.where(unmasked(None, load_ids(loaded, entries)), 0.0, NOTHING)  # a NaN stays one
            if masking.targets is not None and (masking.row_ids is not None or masking.keep_target is None):
                own = s if masking.keep_target is not None else s + NOTHING
                if targeted:
                    masked = tl.where(target_mask(entries, loaded), own, masked)
            masked = tl.where((entries.j < columns)[None, :], masked, NOTHING)
            subtile_sums = reduce_tile(masked, None, 0.0, row_parts, 1)
            if index == 0:
                sums = subtile_sums
            else:
                sums = merge_sums(sums, subtile_sums, 0.0)
        i = y * BLOCK_M + tl.arange(0, BLOCK_M)
        store_sums(sums, row_parts, x * rows + i, i < rows)
