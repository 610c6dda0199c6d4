"""fused_score_grad and whole_score_grad, the fused backward kernels: they recompute tiles of scores and turn them into
dL/draw in registers."""

import triton
import triton.language as tl

from .epilogue import NOTHING, has_target, map_tile, score_grad_of, score_grad_tile, target_mask, times_terms, unmasked
from .matmul_tile import matmul_tile, swizzle_tile
from .subtile import sub_masking, sub_scoring, sub_terms, subtile
from .tile_memory import (
    in_bounds,
    load_masking,
    load_scalars,
    load_scoring,
    load_terms,
    store_padded_tile,
    tile_entries,
)


@triton.jit
def fused_score_grad(
    query,
    key,
    rows,
    columns,
    width,
    scoring,
    masking,
    terms,
    out,
    pitch,
    row_partials,
    USE_TMA: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EPILOGUE_SUBTILES_LOG2: tl.constexpr,
):
    """Write to out[rows, pitch] dL/draw for the scores of query[rows, width] and key[columns, width], and to
    row_partials[tiles across, rows] the partial sums of dL/ds s, without the part of a uniform bias. cuBLAS
    multiplies ``out`` with the operands.

    Vectors are loaded before the products, behind which they arrive."""
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    scoring = load_scalars(scoring)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = swizzle_tile(tile, down, across, GROUP_M)
        whole = tile_entries(y, x, rows, columns, BLOCK_M, BLOCK_N)
        mapping, loaded, vectors = load_scoring(scoring, whole), load_masking(masking, whole), load_terms(terms, whole)
        acc = matmul_tile(
            query, key, y * BLOCK_M, x * BLOCK_N, rows, columns, width, USE_TMA, BLOCK_M, BLOCK_N, BLOCK_K
        )
        row_sums = tl.zeros((BLOCK_M,), tl.float32)
        for index in tl.static_range(1 << EPILOGUE_SUBTILES_LOG2):
            right = (x << EPILOGUE_SUBTILES_LOG2) + index
            entries = tile_entries(y, right, rows, columns, BLOCK_M, BLOCK_N >> EPILOGUE_SUBTILES_LOG2)
            g, subtile_sums = score_grad_tile(
                subtile(acc, index, EPILOGUE_SUBTILES_LOG2),
                entries,
                sub_scoring(mapping, index, EPILOGUE_SUBTILES_LOG2),
                sub_masking(loaded, index, EPILOGUE_SUBTILES_LOG2),
                sub_terms(vectors, index, EPILOGUE_SUBTILES_LOG2),
                row_partials,
            )
            store_padded_tile(g, out, pitch, entries, (x + 1) * BLOCK_N > columns, RAGGED)
            row_sums += subtile_sums
        if row_partials is not None:
            i = y * BLOCK_M + tl.arange(0, BLOCK_M)
            tl.store(row_partials + x * rows + i, row_sums, i < rows)


@triton.jit
def whole_score_grad(
    query,
    key,
    rows,
    columns,
    width,
    scoring,
    masking,
    terms,
    out,
    pitch,
    row_partials,
    USE_TMA: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """fused_score_grad without softcap and entropy, for whole tiles at once.

    The vectors are loaded before the products, behind which they arrive. Few tiles contain a target: only they compare
    columns with targets."""
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    scoring = load_scalars(scoring)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = swizzle_tile(tile, down, across, GROUP_M)
        entries = tile_entries(y, x, rows, columns, BLOCK_M, BLOCK_N)
        mapping, loaded = load_scoring(scoring, entries), load_masking(masking, entries)
        vectors = times_terms(load_terms(terms, entries), scoring.scale)
        acc = matmul_tile(
            query, key, y * BLOCK_M, x * BLOCK_N, rows, columns, width, USE_TMA, BLOCK_M, BLOCK_N, BLOCK_K
        )
        s = map_tile(acc, mapping)
        targeted = has_target(x, loaded, BLOCK_N)
        g = score_grad_of(s, None, None, mapping, vectors)
        if masking.row_ids is not None:
            own = tl.zeros((BLOCK_M,), tl.float32)
            if masking.targets is not None and masking.keep_target is not None and targeted:
                own = tl.sum(tl.where(target_mask(entries, loaded), g, 0.0), 1)
            g = tl.where(unmasked(None, loaded), g, 0.0)
            if masking.targets is not None and targeted:
                if vectors.target_grad is not None:
                    own += vectors.target_grad
                g = tl.where(target_mask(entries, loaded), own[:, None], g)
        elif masking.keep_target is None:
            if targeted:
                own = tl.zeros((BLOCK_M,), tl.float32)
                if vectors.target_grad is not None:
                    own += vectors.target_grad
                g = tl.where(target_mask(entries, loaded), own[:, None], g)
        elif vectors.target_grad is not None and targeted:
            g += tl.where(target_mask(entries, loaded), vectors.target_grad[:, None], 0.0)
        if row_partials is not None:  # g has the factor of the scale
            counts = in_bounds(entries)
            if scoring.uniform_bias is not None:  # its part can be a thousand times the rest
                row_sums = tl.sum(tl.where(counts, g * acc, 0.0), 1)
            else:
                if scoring.bias is not None:
                    counts = counts & (s != NOTHING)
                row_sums = tl.sum(tl.where(counts, g * s, 0.0), 1) / scoring.scale
            tl.store(row_partials + x * rows + entries.i, row_sums, entries.i < rows)
        store_padded_tile(g, out, pitch, entries, (x + 1) * BLOCK_N > columns, RAGGED)
