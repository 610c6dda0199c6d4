"""The fused weights: tiles of scores made again and turned, in registers, into dL/draw, which cuBLAS multiplies."""

import triton
import triton.language as tl

from .product import piece, place, product, rounded
from .tiles import own_entries, score, slope, taking_part, weight_of


@triton.jit
def _weigh(
    acc,
    y,
    x,
    rows,
    columns,
    scale,
    cap,
    bias,
    targets,
    row_ids,
    column_ids,
    a,
    r_high,
    r_low,
    b,
    c_high,
    c_low,
    d,
    e,
    u,
    v,
    out,
    pitch,
    share,
    KEEP_TARGET: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Stores the weights of raw scores acc[BM, BN], the tile y down and x across; returns the sums of dL/ds s along its
    rows, 0 where they are not wanted."""
    i, j = y * BM + tl.arange(0, BM), x * BN + tl.arange(0, BN)
    along = None
    if bias is not None:
        along = tl.load(bias + j, j < columns, 0.0)[None, :]
    s = score(acc, along, scale, cap)
    own = own_entries(targets, i, j, rows, columns)
    part = None  # what lies outside is not stored, but it would be summed
    if row_ids is not None or share is not None:
        part = taking_part(own, row_ids, column_ids, i, j, rows, columns, KEEP_TARGET)
    g = weight_of(s, own, part, i, j, rows, columns, a, r_high, r_low, b, c_high, c_low, d, e, u, v)
    along_rows = tl.zeros((BM,), tl.float32)
    if share is not None:
        along_rows = tl.sum(g * s, 1)
    g = (g * slope(s, scale, cap)).to(out.dtype.element_ty)
    inside = (i[:, None] < rows) & (j[None, :] < columns)
    tl.store(out + i.to(tl.int64)[:, None] * pitch + j[None, :], g, inside)
    return along_rows


@triton.jit
def weights(
    query,
    key,
    rows,
    columns,
    width,
    scale,
    cap,
    bias,
    targets,
    row_ids,
    column_ids,
    a,
    r_high,
    r_low,
    b,
    c_high,
    c_low,
    d,
    e,
    u,
    v,
    out,
    pitch,
    share,
    ROUNDED: tl.constexpr,
    KEEP_TARGET: tl.constexpr,
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
    factor = tl.load(scale)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = place(tile, down, across, GROUP)
        acc = rounded(product(query, key, y * BM, x * BN, rows, columns, width, DESCRIBED, BM, BN, BD), ROUNDED)
        slopes = tl.zeros((BM,), tl.float32)
        for number in tl.static_range(1 << CUTS):
            slopes += _weigh(
                piece(acc, number, CUTS, BM, BN),
                y,
                (x << CUTS) + number,
                rows,
                columns,
                factor,
                cap,
                bias,
                targets,
                row_ids,
                column_ids,
                a,
                r_high,
                r_low,
                b,
                c_high,
                c_low,
                d,
                e,
                u,
                v,
                out,
                pitch,
                share,
                KEEP_TARGET,
                BM,
                BN >> CUTS,
            )
        if share is not None:
            i = y * BM + tl.arange(0, BM)
            tl.store(share + x * rows + i, slopes, i < rows)
