"""Kernels over a chunk of raw scores, raw[rows, columns] with rows ``pitch`` apart, in float32 or bfloat16. One program
a tile."""

import triton
import triton.language as tl

from .epilogue import (
    bias_of,
    entries_of,
    fetched,
    only,
    own_entries,
    put,
    put_sums,
    score,
    scores_of,
    sums_of,
    weighed,
)
from .kernel_args import Scoring

REDUCE_ROWS = {"BM": 8, "BN": 1024, "num_warps": 8}
REDUCE_COLUMNS = {"BM": 128, "BN": 64, "num_warps": 8}
WEIGH = {"BM": 16, "BN": 256, "num_warps": 4}


@triton.jit
def _place(columns, BN: tl.constexpr):
    """Which tile the program has, down and across."""
    across = tl.cdiv(columns, BN)
    return tl.program_id(0) // across, tl.program_id(0) % across


@triton.jit
def reduce_rows(
    raw,
    pitch,
    rows,
    columns,
    scoring,
    where,
    target,
    clip,
    parts,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Partial row sums [tiles across, rows]; target[rows] receives the scores of the targets within the chunk."""
    down, right = _place(columns, BN)
    entries = entries_of(down, right, rows, columns, BM, BN)
    scoring = Scoring(tl.load(scoring.scale), scoring.cap, scoring.bias)
    s = scores_of(fetched(raw, pitch, entries), entries, scoring)
    s = only(s, own_entries(entries, where), entries, where)
    i, there = entries.i, entries.i < rows
    above = None
    if where.targets is not None:
        mine = tl.load(where.targets + i, there, -1)
        within = (mine >= 0) & (mine < columns)
        product = tl.load(raw + i.to(tl.int64) * pitch + mine, within, 0.0)
        at_target = score(product, bias_of(mine, within, scoring), scoring)
        if right == 0:
            tl.store(target + i, at_target, within)
        above = s > at_target[:, None]
    put_sums(sums_of(s, above, clip, parts, 1), parts, right * rows + i, there)


@triton.jit
def reduce_columns(
    raw,
    pitch,
    rows,
    columns,
    scoring,
    where,
    paired,
    parts,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Partial column sums [tiles down, columns]; paired[columns]: the score that a column's rank is about."""
    down, right = _place(columns, BN)
    entries = entries_of(down, right, rows, columns, BM, BN)
    scoring = Scoring(tl.load(scoring.scale), scoring.cap, scoring.bias)
    s = scores_of(fetched(raw, pitch, entries), entries, scoring)
    own = own_entries(entries, where)
    s = only(s, own, entries, where)
    j, there = entries.j, entries.j < columns
    above = None
    if parts.rank is not None:  # the pair itself never beats itself
        above = (s > tl.load(paired + j, there, 0.0)[None, :]) & (own == 0)
    put_sums(sums_of(s, above, 0.0, parts, 0), parts, down * columns + j, there)


@triton.jit
def weigh(
    raw,
    pitch,
    rows,
    columns,
    scoring,
    where,
    terms,
    share,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """raw becomes dL/draw; share[tiles across, rows] receives the partial sums of dL/ds s."""
    down, right = _place(columns, BN)
    entries = entries_of(down, right, rows, columns, BM, BN)
    scoring = Scoring(tl.load(scoring.scale), scoring.cap, scoring.bias)
    g, along_rows = weighed(fetched(raw, pitch, entries), entries, scoring, where, terms, share)
    if share is not None:
        tl.store(share + right * rows + entries.i, along_rows, entries.i < rows)
    put(g, raw, pitch, entries)
