"""The fused forward walk: tiles of scores reduced, in registers, along rows and columns at once, never written unless
they are to be kept. Each tile leaves partial sums that combine.py adds up in a fixed order."""

import triton
import triton.language as tl

from .epilogue import bias_of, entries_of, joined, only, own_entries, put, put_sums, score, scores_of, sums_of
from .kernel_args import Scoring
from .matmul_tile import piece, place, product, rounded


@triton.jit
def target_scores(
    query,
    key,
    rows,
    width,
    scoring,
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
    scoring = Scoring(tl.load(scoring.scale), scoring.cap, scoring.bias)
    tl.store(at_target + i, score(raw, bias_of(t, i < rows, scoring), scoring), i < rows)


@triton.jit
def _reduce(acc, down, entries, scoring, where, at_target, paired, raw, pitch, clip, row_parts, column_parts):
    """Stores the sums of the columns of raw scores acc[BM, BN], a tile so many ``down``; returns those of its rows."""
    if raw is not None:
        put(acc, raw, pitch, entries)
    s = scores_of(acc, entries, scoring)
    own = own_entries(entries, where)
    s = only(s, own, entries, where)
    i, j, there = entries.i, entries.j, entries.j < entries.columns
    above = None
    if row_parts.rank is not None:  # the pair itself never beats itself
        above = (s > tl.load(at_target + i, i < entries.rows, 0.0)[:, None]) & (own == 0)
    row_sums = sums_of(s, above, clip, row_parts, 1)
    if column_parts.rank is not None:
        above = (s > tl.load(paired + j, there, 0.0)[None, :]) & (own == 0)
    if column_parts.total is not None:
        put_sums(sums_of(s, above, clip, column_parts, 0), column_parts, down * entries.columns + j, there)
    return row_sums


@triton.jit
def forward(
    query,
    key,
    rows,
    columns,
    width,
    scoring,
    where,
    at_target,
    paired,
    raw,
    pitch,
    clip,
    row_parts,
    column_parts,
    ROUNDED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    GROUP: tl.constexpr,
    CUTS: tl.constexpr,
):
    """Partial sums, of rows [tiles across, rows] and of columns [tiles down, columns], of the scores of
    query[rows, width] and key[columns, width]; raw[rows, pitch] receives the raw scores. The scores at_target[rows] and
    paired[columns] are what ranks count from."""
    down, across = tl.cdiv(rows, BM), tl.cdiv(columns, BN)
    scoring = Scoring(tl.load(scoring.scale), scoring.cap, scoring.bias)
    for tile in range(tl.program_id(0), down * across, tl.num_programs(0)):
        y, x = place(tile, down, across, GROUP)
        acc = rounded(product(query, key, y * BM, x * BN, rows, columns, width, DESCRIBED, BM, BN, BD), ROUNDED)
        for number in tl.static_range(1 << CUTS):
            part = piece(acc, number, CUTS, BM, BN)
            entries = entries_of(y, (x << CUTS) + number, rows, columns, BM, BN >> CUTS)
            more = _reduce(
                part, y, entries, scoring, where, at_target, paired, raw, pitch, clip, row_parts, column_parts
            )
            if number == 0:
                sums = more
            else:
                sums = joined(sums, more, clip)
        i = y * BM + tl.arange(0, BM)
        put_sums(sums, row_parts, x * rows + i, i < rows)
