"""How the interface's objects become arguments of kernels, and the buffers that partial sums go through."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..interface import ColumnSums, Mask, RowSums, ScoreMap, Upstream
from .epilogue import EXACT
from .kernel_args import Scoring, Sums, Terms, Where
from .reduce_partials import COMBINE, combine


def parts_of(sums: RowSums | ColumnSums | None, count: int, *, targets: bool) -> Sums:
    """Buffers [count, n] for the partial sums of those that are wanted; a rank needs a target."""
    wanted = {name: getattr(sums, name, None) for name in Sums._fields}
    if wanted["total"] is None:
        wanted["maximum"] = None
    if not targets:
        wanted["rank"] = None
    return Sums(
        *(None if v is None else v.new_empty((count, v.shape[0]), dtype=torch.float32) for v in wanted.values())
    )


def combine_(parts: Sums, sums: RowSums | ColumnSums) -> None:
    """Adds the partial sums to the running ones."""
    present = next((part for part in parts if part is not None), None)
    if present is None:
        return
    count, n = present.shape
    running = Sums(*(None if part is None else getattr(sums, name) for name, part in parts._asdict().items()))
    combine[(-(-n // COMBINE["BN"]),)](count, n, getattr(sums, "clip", 0.0), parts, running, **COMBINE, **EXACT)


def scoring_of(score_map: ScoreMap) -> Scoring:
    return Scoring(score_map.scale, score_map.softcap or None, score_map.bias)


def where_of(targets: Tensor | None, mask: Mask | None) -> Where:
    if mask is None:
        return Where(targets, None, None, tl.constexpr(True))
    return Where(targets, mask.rows, mask.columns, tl.constexpr(mask.keep_target))


def terms_of(upstream: Upstream, *, targets: bool) -> Terms:
    """Each None where it adds nothing."""
    up, none = upstream, (None, None, None)
    a, r_high, r_low = none if up.a is None or up.r is None else (up.a, up.r.high, up.r.low)
    b, c_high, c_low = none if up.b is None or up.c is None else (up.b, up.c.high, up.c.low)
    return Terms(a, r_high, r_low, b, c_high, c_low, up.d if targets else None, up.e, up.u, up.v, up.h)
