"""The fused weights: tiles of scores made again and turned, in registers, into dL/draw, which cuBLAS multiplies."""

import triton
import triton.language as tl

from .epilogue import entries_of, put, weighed
from .kernel_args import Scoring
from .matmul_tile import piece, place, product, rounded


@triton.jit
def weights(
    query,
    key,
    rows,
    columns,
    width,
    scoring,
    where,
    terms,
    out,
    pitch,
    share,
    ROUNDED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    GROUP: tl.constexpr,
    CUTS: tl.constexpr,
):
    """out[rows, pitch] becomes dL/draw of the scores of query[rows, width] and key[columns, width];
    share[tiles across, rows] receives the partial sums of dL/ds s."""
    down, across = tl.cdiv(rows, BM), tl.cdiv(columns, BN)
    scoring = Scoring(tl.load(scoring.scale), scoring.cap, scoring.bias)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = place(tile, down, across, GROUP)
        acc = rounded(product(query, key, y * BM, x * BN, rows, columns, width, DESCRIBED, BM, BN, BD), ROUNDED)
        slopes = tl.zeros((BM,), tl.float32)
        for number in tl.static_range(1 << CUTS):
            part = piece(acc, number, CUTS, BM, BN)
            entries = entries_of(y, (x << CUTS) + number, rows, columns, BM, BN >> CUTS)
            g, along_rows = weighed(part, entries, scoring, where, terms, share)
            put(g, out, pitch, entries)
            slopes += along_rows
        if share is not None:
            i = y * BM + tl.arange(0, BM)
            tl.store(share + x * rows + i, slopes, i < rows)
