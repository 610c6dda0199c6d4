"""What is launched, with which buffers. No host synchronisation: nothing here reads a value from the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..interface import BoundedKernels, ColumnSums, Mask, RowSums, ScoreMap, Upstream
from ..plain import PlainBackend
from .chunks import REDUCE_COLUMNS, REDUCE_ROWS, WEIGH, reduce_columns, reduce_rows, weigh
from .combine import COMBINE, combine
from .divergence import DIVERGENCE, divergence
from .planes import PLANES, accumulate, round_scaled
from .tiles import EXACT

ROW_PARTS = ("maximum", "total", "weighted", "rank", "logits", "softplus", "clipped")
COLUMN_PARTS = ("maximum", "total", "rank", "logits")

Parts = dict[str, Tensor | None]


def parts_of(sums: RowSums | ColumnSums, names: tuple[str, ...], count: int, *, targets: bool) -> Parts:
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


def map_of(score_map: ScoreMap) -> tuple[float, float | None, Tensor | None]:
    return score_map.scale, score_map.softcap or None, score_map.bias


def mask_of(mask: Mask | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if mask is None else (mask.rows, mask.columns)


def upstream_of(upstream: Upstream, *, targets: bool) -> tuple[Tensor | None, ...]:
    """a, r, b, c, d, e, u, v as the kernels take them: each None where it adds nothing."""
    up = upstream
    row = (None, None, None) if up.a is None or up.r is None else (up.a, up.r.high, up.r.low)
    column = (None, None, None) if up.b is None or up.c is None else (up.b, up.c.high, up.c.low)
    return *row, *column, up.d if targets else None, up.e, up.u, up.v


def tiles(raw: Tensor, config: dict[str, int]) -> tuple[int, int]:
    """How many tiles down and across."""
    return -(-raw.shape[0] // config["BM"]), -(-raw.shape[1] // config["BN"])


class TritonBackend(PlainBackend):
    """Pooling is that of the plain backend."""

    bounded: BoundedKernels | None = None

    def reduce_rows(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: RowSums
    ) -> None:
        down, across = tiles(raw, REDUCE_ROWS)
        if not down:
            return
        with torch.cuda.device_of(raw):
            parts = parts_of(sums, ROW_PARTS, across, targets=targets is not None)
            reduce_rows[(down * across,)](
                raw,
                *raw.shape,
                *map_of(score_map),
                targets,
                *mask_of(mask),
                sums.target,
                sums.clip,
                *parts.values(),
                KEEP_TARGET=mask is None or mask.keep_target,
                **REDUCE_ROWS,
                **EXACT,
            )
            combine_(parts, sums)

    def reduce_columns(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: ColumnSums
    ) -> None:
        down, across = tiles(raw, REDUCE_COLUMNS)
        if not down:
            return
        with torch.cuda.device_of(raw):
            ranked = targets is not None and sums.target is not None
            parts = parts_of(sums, COLUMN_PARTS, down, targets=ranked)
            reduce_columns[(down * across,)](
                raw,
                *raw.shape,
                *map_of(score_map),
                targets,
                *mask_of(mask),
                sums.target,
                *parts.values(),
                KEEP_TARGET=mask is None or mask.keep_target,
                **REDUCE_COLUMNS,
                **EXACT,
            )
            combine_(parts, sums)

    def weigh_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        upstream: Upstream,
        d_scale: Tensor | None,
    ) -> None:
        down, across = tiles(raw, WEIGH)
        if not down:
            return
        with torch.cuda.device_of(raw):
            share = None if d_scale is None else raw.new_empty((across, raw.shape[0]), dtype=torch.float32)
            weigh[(down * across,)](
                raw,
                *raw.shape,
                *map_of(score_map),
                targets,
                *mask_of(mask),
                *upstream_of(upstream, targets=targets is not None),
                share,
                KEEP_TARGET=mask is None or mask.keep_target,
                **WEIGH,
                **EXACT,
            )
            if d_scale is not None and share is not None:
                d_scale.copy_(share.sum(0, dtype=torch.float64) / score_map.scale)

    def accumulate_(self, high: Tensor, low: Tensor, x: Tensor) -> None:
        if not x.numel():
            return
        with torch.cuda.device_of(x):
            accumulate[(-(-x.numel() // PLANES["BLOCK"]),)](
                high.view(torch.int16), low, x.contiguous(), x.numel(), **PLANES
            )

    def round_scaled_(self, high: Tensor, low: Tensor, scale: Tensor) -> None:
        if not high.numel():
            return
        with torch.cuda.device_of(high):
            round_scaled[(-(-high.numel() // PLANES["BLOCK"]),)](
                high.view(torch.int16),
                low,
                high,
                scale.contiguous(),
                high.numel(),
                high.shape[1],
                0 if scale.numel() == 1 else 1,
                **PLANES,
            )

    def divergence_(
        self,
        p_raw: Tensor,
        q_raw: Tensor,
        scale: float,
        beta: float | None,
        weights: Tensor,
        values: Tensor,
        grad_p: bool,
        grad_q: bool,
    ) -> None:
        if not p_raw.shape[0]:
            return
        with torch.cuda.device_of(p_raw):
            divergence[(p_raw.shape[0],)](
                p_raw,
                q_raw,
                p_raw.shape[1],
                scale,
                beta,
                None if beta is None else math.log((1 - beta) / beta),
                weights,
                values,
                GRAD_P=grad_p,
                GRAD_Q=grad_q,
                **DIVERGENCE,
                **EXACT,
            )
