"""fused_score_grad, the fused backward kernel: recomputes tiles of scores and turns them into dL/draw in registers."""

import triton
import triton.language as tl

from .epilogue import load_masking, load_scoring, load_terms, score_grad_tile, store_tile, tile_entries
from .kernel_args import Scoring
from .matmul_tile import matmul_tile, subtile, swizzle_tile


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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EPILOGUE_SUBTILES_LOG2: tl.constexpr,
):
    """Write to out[rows, pitch] dL/draw for the scores of query[rows, width] and key[columns, width], and to
    row_partials[tiles across, rows] the partial sums of dL/ds s. cuBLAS multiplies ``out`` with the operands."""
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    scoring = Scoring(tl.load(scoring.scale), scoring.cap, scoring.bias)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = swizzle_tile(tile, down, across, GROUP_M)
        acc = matmul_tile(
            query, key, y * BLOCK_M, x * BLOCK_N, rows, columns, width, USE_TMA, BLOCK_M, BLOCK_N, BLOCK_K
        )
        row_sums = tl.zeros((BLOCK_M,), tl.float32)
        for index in tl.static_range(1 << EPILOGUE_SUBTILES_LOG2):
            raw = subtile(acc, index, EPILOGUE_SUBTILES_LOG2, BLOCK_M, BLOCK_N)
            right = (x << EPILOGUE_SUBTILES_LOG2) + index
            entries = tile_entries(y, right, rows, columns, BLOCK_M, BLOCK_N >> EPILOGUE_SUBTILES_LOG2)
            vectors = load_scoring(scoring, entries), load_masking(masking, entries), load_terms(terms, entries)
            g, subtile_sums = score_grad_tile(raw, entries, *vectors, row_partials)
            store_tile(g, out, pitch, entries)
            row_sums += subtile_sums
        if row_partials is not None:
            i = y * BLOCK_M + tl.arange(0, BLOCK_M)
            tl.store(row_partials + x * rows + i, row_sums, i < rows)
