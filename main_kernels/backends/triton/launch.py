"""How the interface's objects become arguments of kernels, and the buffers that partial sums go through."""

from __future__ import annotations

import torch
from torch import Tensor

from ..interface import ColumnSums, Mask, RowSums, ScoreMap, Upstream
from .combine import COMBINE, combine
from .tiles import EXACT

ROW_PARTS = ("maximum", "total", "weighted", "rank", "logits", "softplus", "clipped")
COLUMN_PARTS = ("maximum", "total", "rank", "logits")

Parts = dict[str, Tensor | None]


def parts_of(sums: RowSums | ColumnSums | None, names: tuple[str, ...], count: int, *, targets: bool) -> Parts:
    """Buffers [count, n] for the partial sums of those that are wanted; a rank needs a target."""
    wanted = {name: getattr(sums, name, None) for name in names}
    if wanted["total"] is None:
        wanted["maximum"] = None
    if not targets:
        wanted["rank"] = None
    return {
        name: None if v is None else v.new_empty((count, v.shape[0]), dtype=torch.float32) for name, v in wanted.items()
    }


def combine_(parts: Parts, sums: RowSums | ColumnSums) -> None:
    """Adds the partial sums to the running ones."""
    present = next((part for part in parts.values() if part is not None), None)
    if present is None:
        return
    count, n = present.shape
    running = {name: getattr(sums, name) if parts.get(name) is not None else None for name in ROW_PARTS}
    combine[(-(-n // COMBINE["BN"]),)](
        count,
        n,
        getattr(sums, "clip", 0.0),
        *(parts.get(name) for name in ROW_PARTS),
        *running.values(),
        **COMBINE,
        **EXACT,
    )


def map_of(score_map: ScoreMap) -> tuple[Tensor, float | None, Tensor | None]:
    return score_map.scale, score_map.softcap or None, score_map.bias


def mask_of(mask: Mask | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if mask is None else (mask.rows, mask.columns)


def upstream_of(upstream: Upstream, *, targets: bool) -> tuple[Tensor | None, ...]:
    """a, r, b, c, d, e, u, v as the kernels take them: each None where it adds nothing."""
    up = upstream
    row = (None, None, None) if up.a is None or up.r is None else (up.a, up.r.high, up.r.low)
    column = (None, None, None) if up.b is None or up.c is None else (up.b, up.c.high, up.c.low)
    return *row, *column, up.d if targets else None, up.e, up.u, up.v
