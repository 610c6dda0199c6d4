"""fused_reduce, softplus_reduce and target_scores, the fused forward kernels: tiles of scores reduced along rows and
columns in registers and never written. Each tile leaves partial sums for reduce_partials.py."""

import triton
import triton.language as tl

from .epilogue import (
    NOTHING,
    has_target,
    map_score,
    map_tile,
    mask_scores,
    merge_sums,
    reduce_tile,
    target_mask,
    unmasked,
)
from .matmul_tile import matmul_tile, swizzle_tile
from .subtile import sub_masking, sub_scoring, subtile, subvector
from .tile_memory import load_bias, load_masking, load_scalars, load_scoring, load_vector, store_sums, tile_entries


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
def _reduce(raw, down, entries, scoring, masking, row_target, column_target, clip, row_parts, column_parts):
    """Store the partial column sums of raw scores [BLOCK_M, BLOCK_N] in tile row ``down``; return their row sums. The
    vectors are in registers."""
    is_target = target_mask(entries, masking)
    s = mask_scores(map_tile(raw, scoring), is_target, entries, masking)
    above = None
    if row_target is not None:  # a pair does not count in its own rank
        above = (s > row_target[:, None]) & (is_target == 0)
    row_sums = reduce_tile(s, above, clip, row_parts, 1)
    if column_target is not None:
        above = (s > column_target[None, :]) & (is_target == 0)
    if column_parts.total is not None:
        at, mask = down * entries.columns + entries.j, entries.j < entries.columns
        store_sums(reduce_tile(s, above, clip, column_parts, 0), column_parts, at, mask)
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
    column_target_scores[columns]. Vectors are loaded before the products, behind which they arrive."""
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    scoring = load_scalars(scoring)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = swizzle_tile(tile, down, across, GROUP_M)
        whole = tile_entries(y, x, rows, columns, BLOCK_M, BLOCK_N)
        mapping, loaded = load_scoring(scoring, whole), load_masking(masking, whole)
        row_target, column_target = None, None
        if row_parts.rank is not None:
            row_target = load_vector(at_target, whole.i, whole.i < rows)
        if column_parts.rank is not None:
            column_target = load_vector(column_target_scores, whole.j, whole.j < columns)
        acc = matmul_tile(
            query, key, y * BLOCK_M, x * BLOCK_N, rows, columns, width, USE_TMA, BLOCK_M, BLOCK_N, BLOCK_K
        )
        for index in tl.static_range(1 << EPILOGUE_SUBTILES_LOG2):
            right = (x << EPILOGUE_SUBTILES_LOG2) + index
            subtile_sums = _reduce(
                subtile(acc, index, EPILOGUE_SUBTILES_LOG2),
                y,
                tile_entries(y, right, rows, columns, BLOCK_M, BLOCK_N >> EPILOGUE_SUBTILES_LOG2),
                sub_scoring(mapping, index, EPILOGUE_SUBTILES_LOG2),
                sub_masking(loaded, index, EPILOGUE_SUBTILES_LOG2),
                row_target,
                subvector(column_target, index, EPILOGUE_SUBTILES_LOG2),
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

    Targets, ids and biases are loaded before the products, behind which they arrive. Few tiles contain a target: only
    they compare columns with targets."""
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    scoring = load_scalars(scoring)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = swizzle_tile(tile, down, across, GROUP_M)
        whole = tile_entries(y, x, rows, columns, BLOCK_M, BLOCK_N)
        mapping, loaded = load_scoring(scoring, whole), load_masking(masking, whole)
        acc = matmul_tile(
            query, key, y * BLOCK_M, x * BLOCK_N, rows, columns, width, USE_TMA, BLOCK_M, BLOCK_N, BLOCK_K
        )
        targeted = has_target(x, loaded, BLOCK_N)
        for index in tl.static_range(1 << EPILOGUE_SUBTILES_LOG2):
            right = (x << EPILOGUE_SUBTILES_LOG2) + index
            entries = tile_entries(y, right, rows, columns, BLOCK_M, BLOCK_N >> EPILOGUE_SUBTILES_LOG2)
            part = subtile(acc, index, EPILOGUE_SUBTILES_LOG2)
            s = map_tile(part, sub_scoring(mapping, index, EPILOGUE_SUBTILES_LOG2))
            masked = s
            if masking.row_ids is not None:
                differs = unmasked(None, sub_masking(loaded, index, EPILOGUE_SUBTILES_LOG2))
                masked += tl.where(differs, 0.0, NOTHING)  # a NaN stays one
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
