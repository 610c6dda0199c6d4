"""Kernels over a chunk of raw scores, raw[rows, columns] with rows ``pitch`` apart, in float32 or bfloat16. One program
a tile. ``scale`` is an address: the host need not know it."""

import triton
import triton.language as tl

from .tiles import only, own_entries, put_sums, score, slope, sums_of, taking_part, weight_of

REDUCE_ROWS = {"BM": 8, "BN": 1024, "num_warps": 8}
REDUCE_COLUMNS = {"BM": 128, "BN": 64, "num_warps": 8}
WEIGH = {"BM": 16, "BN": 256, "num_warps": 4}


@triton.jit
def _place(columns, BM: tl.constexpr, BN: tl.constexpr):
    """The program's tile: which one it is down and across, its rows and its columns."""
    across = tl.cdiv(columns, BN)
    down, right = tl.program_id(0) // across, tl.program_id(0) % across
    return down, right, down * BM + tl.arange(0, BM), right * BN + tl.arange(0, BN)


@triton.jit
def _bias_of(bias, j, columns):
    along = None
    if bias is not None:
        along = tl.load(bias + j, (j >= 0) & (j < columns), 0.0)
    return along


@triton.jit
def _scores(raw, pitch, i, j, rows, columns, scale, cap, bias):
    """[BM, BN] scores, 0 outside of the chunk where there is no bias, and where they are."""
    at = i.to(tl.int64)[:, None] * pitch + j[None, :]
    inside = (i[:, None] < rows) & (j[None, :] < columns)
    along = _bias_of(bias, j, columns)
    if along is not None:
        along = along[None, :]
    return score(tl.load(raw + at, inside, 0.0), along, scale, cap), at


@triton.jit
def reduce_rows(
    raw,
    pitch,
    rows,
    columns,
    scale,
    cap,
    bias,
    targets,
    row_ids,
    column_ids,
    target,
    clip,
    maximum,
    total,
    weighted,
    rank,
    logits,
    softplus,
    clipped,
    KEEP_TARGET: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Partial row sums [tiles across, rows]; target[rows] receives the scores of the targets within the chunk."""
    _, right, i, j = _place(columns, BM, BN)
    factor = tl.load(scale)
    s, _ = _scores(raw, pitch, i, j, rows, columns, factor, cap, bias)
    own = own_entries(targets, i, j, rows, columns)
    s = only(s, taking_part(own, row_ids, column_ids, i, j, rows, columns, KEEP_TARGET), row_ids)
    above = None
    if targets is not None:
        mine = tl.load(targets + i, i < rows, -1)
        inside = (mine >= 0) & (mine < columns)
        product = tl.load(raw + i.to(tl.int64) * pitch + mine, inside, 0.0)
        at_target = score(product, _bias_of(bias, mine, columns), factor, cap)
        if right == 0:
            tl.store(target + i, at_target, inside)
        above = s > at_target[:, None]
    top, t, w, r, g, p, c = sums_of(s, above, clip, total, weighted, rank, logits, softplus, clipped, 1)
    at = right * rows + i
    put_sums(at, i < rows, maximum, total, weighted, rank, logits, softplus, clipped, top, t, w, r, g, p, c)


@triton.jit
def reduce_columns(
    raw,
    pitch,
    rows,
    columns,
    scale,
    cap,
    bias,
    targets,
    row_ids,
    column_ids,
    paired,
    maximum,
    total,
    rank,
    logits,
    KEEP_TARGET: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Partial column sums [tiles down, columns]; paired[columns]: the score that a column's rank is about."""
    down, _, i, j = _place(columns, BM, BN)
    factor = tl.load(scale)
    s, _ = _scores(raw, pitch, i, j, rows, columns, factor, cap, bias)
    own = own_entries(targets, i, j, rows, columns)
    s = only(s, taking_part(own, row_ids, column_ids, i, j, rows, columns, KEEP_TARGET), row_ids)
    above = None
    if rank is not None:  # the pair itself never beats itself
        above = (s > tl.load(paired + j, j < columns, 0.0)[None, :]) & (own == 0)
    top, t, w, r, g, p, c = sums_of(s, above, 0.0, total, None, rank, logits, None, None, 0)
    at = down * columns + j
    put_sums(at, j < columns, maximum, total, None, rank, logits, None, None, top, t, w, r, g, p, c)


@triton.jit
def weigh(
    raw,
    pitch,
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
    share,
    KEEP_TARGET: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """raw becomes dL/draw; share[tiles across, rows] receives the partial sums of dL/ds s."""
    _, right, i, j = _place(columns, BM, BN)
    factor = tl.load(scale)
    s, at = _scores(raw, pitch, i, j, rows, columns, factor, cap, bias)
    own = own_entries(targets, i, j, rows, columns)
    part = None  # what lies outside is not stored, but it would be summed
    if row_ids is not None or share is not None:
        part = taking_part(own, row_ids, column_ids, i, j, rows, columns, KEEP_TARGET)
    g = weight_of(s, own, part, i, j, rows, columns, a, r_high, r_low, b, c_high, c_low, d, e, u, v)
    if share is not None:
        tl.store(share + right * rows + i, tl.sum(g * s, 1), i < rows)
    g = g * slope(s, factor, cap)
    tl.store(raw + at, g.to(raw.dtype.element_ty), (i[:, None] < rows) & (j[None, :] < columns))
