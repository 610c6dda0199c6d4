"""The fused forward walk: tiles of scores reduced, in registers, along rows and columns at once, never written unless
they are to be kept. Each tile leaves partial sums that combine.py adds up in a fixed order."""

import triton
import triton.language as tl

from .product import piece, place, product, rounded
from .tiles import joined, only, own_entries, put_sums, score, sums_of, taking_part


@triton.jit
def target_scores(
    query,
    key,
    rows,
    width,
    scale,
    cap,
    bias,
    targets,
    at_target,
    ROUNDED: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
):
    """at_target[rows]: the scores of rows with their targets, the diagonal of a tile of their own: the product that
    makes them is the one that makes every other score, so equal scores compare as equal."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, BD)
    t = tl.load(targets + i, i < rows, 0)
    q_at = query + (i % rows).to(tl.int64)[:, None] * width + d[None, :]
    k_at = key + t[None, :] * width + d[:, None]
    acc = tl.zeros((BM, BM), tl.float32)
    for begin in range(0, width, BD):
        q = tl.load(q_at, d[None, :] < width - begin, 0.0)
        k = tl.load(k_at, d[:, None] < width - begin, 0.0)
        acc = tl.dot(q, k, acc, input_precision="ieee")
        q_at += BD
        k_at += BD
    here = tl.arange(0, BM)
    raw = tl.sum(tl.where(here[:, None] == here[None, :], rounded(acc, ROUNDED), 0.0), 1)
    along = None
    if bias is not None:
        along = tl.load(bias + t)
    tl.store(at_target + i, score(raw, along, tl.load(scale), cap), i < rows)


@triton.jit
def _reduce(
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
    at_target,
    paired,
    raw,
    pitch,
    clip,
    r_total,
    r_weighted,
    r_rank,
    r_logits,
    r_softplus,
    r_clipped,
    c_maximum,
    c_total,
    c_rank,
    c_logits,
    KEEP_TARGET: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Stores the sums of the columns of raw scores acc[BM, BN], the tile y down and x across; returns those of its
    rows."""
    i, j = y * BM + tl.arange(0, BM), x * BN + tl.arange(0, BN)
    if raw is not None:
        inside = (i[:, None] < rows) & (j[None, :] < columns)
        tl.store(raw + i.to(tl.int64)[:, None] * pitch + j[None, :], acc.to(raw.dtype.element_ty), inside)
    along = None
    if bias is not None:
        along = tl.load(bias + j, j < columns, 0.0)[None, :]
    s = score(acc, along, scale, cap)
    own = own_entries(targets, i, j, rows, columns)
    s = only(s, taking_part(own, row_ids, column_ids, i, j, rows, columns, KEEP_TARGET), row_ids)
    above = None
    if r_rank is not None:
        above = (s > tl.load(at_target + i, i < rows, 0.0)[:, None]) & (own == 0)
    row = sums_of(s, above, clip, r_total, r_weighted, r_rank, r_logits, r_softplus, r_clipped, 1)
    if c_rank is not None:  # the pair itself never beats itself
        above = (s > tl.load(paired + j, j < columns, 0.0)[None, :]) & (own == 0)
    if c_total is not None:
        top, t, w, r, g, p, c = sums_of(s, above, clip, c_total, None, c_rank, c_logits, None, None, 0)
        at = y * columns + j
        put_sums(at, j < columns, c_maximum, c_total, None, c_rank, c_logits, None, None, top, t, w, r, g, p, c)
    return row


@triton.jit
def forward(
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
    at_target,
    paired,
    raw,
    pitch,
    clip,
    r_maximum,
    r_total,
    r_weighted,
    r_rank,
    r_logits,
    r_softplus,
    r_clipped,
    c_maximum,
    c_total,
    c_rank,
    c_logits,
    ROUNDED: tl.constexpr,
    KEEP_TARGET: tl.constexpr,
    DESCRIBED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    GROUP: tl.constexpr,
    CUTS: tl.constexpr,
):
    """Partial row sums r_* [tiles across, rows] and column sums c_* [tiles down, columns] of the scores of
    query[rows, width] and key[columns, width]; raw[rows, pitch] receives the raw scores. The scores at_target[rows] and
    paired[columns] are what ranks count from."""
    down, across = tl.cdiv(rows, BM), tl.cdiv(columns, BN)
    factor = tl.load(scale)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = place(tile, down, across, GROUP)
        acc = rounded(product(query, key, y * BM, x * BN, rows, columns, width, DESCRIBED, BM, BN, BD), ROUNDED)
        for number in tl.static_range(1 << CUTS):
            top_, t_, w_, r_, g_, p_, c_ = _reduce(
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
                at_target,
                paired,
                raw,
                pitch,
                clip,
                r_total,
                r_weighted,
                r_rank,
                r_logits,
                r_softplus,
                r_clipped,
                c_maximum,
                c_total,
                c_rank,
                c_logits,
                KEEP_TARGET,
                BM,
                BN >> CUTS,
            )
            if number == 0:
                top, t, w, r, g, p, c = top_, t_, w_, r_, g_, p_, c_
            else:
                top, t, w, r, g, p, c = joined(top, t, w, r, g, p, c, top_, t_, w_, r_, g_, p_, c_, clip)
        i = y * BM + tl.arange(0, BM)
        at = x * rows + i
        put_sums(
            at,
            i < rows,
            r_maximum,
            r_total,
            r_weighted,
            r_rank,
            r_logits,
            r_softplus,
            r_clipped,
            top,
            t,
            w,
            r,
            g,
            p,
            c,
        )
