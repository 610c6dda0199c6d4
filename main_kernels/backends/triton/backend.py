"""What is launched, with which buffers. No host synchronisation: nothing here reads a value from the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..accumulators import ColumnAccumulators, RowAccumulators
from ..interface import FusedKernels, Mask, ScoreGradTerms, ScoreMap, SingleExpKernels
from ..plain import PlainBackend
from .divergence import DIVERGENCE, divergence
from .epilogue import EXACT
from .fused import TritonFused
from .launch import combine_, parts_of, scoring_of, terms_of, where_of
from .split_float32 import PLANES, accumulate, round_scaled
from .unfused import REDUCE_COLUMNS, REDUCE_ROWS, WEIGH, reduce_columns, reduce_rows, weigh


def tiles(raw: Tensor, config: dict[str, int]) -> tuple[int, int]:
    """How many tiles down and across."""
    return -(-raw.shape[0] // config["BM"]), -(-raw.shape[1] // config["BN"])


class TritonBackend(PlainBackend):
    """Pooling is that of the plain backend."""

    single_exp: SingleExpKernels | None = None
    fused: FusedKernels | None = TritonFused()

    def reduce_rows(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: RowAccumulators
    ) -> None:
        down, across = tiles(raw, REDUCE_ROWS)
        if not down:
            return
        with torch.cuda.device_of(raw):
            parts = parts_of(sums, across, targets=targets is not None)
            reduce_rows[(down * across,)](
                raw,
                raw.stride(0),
                *raw.shape,
                scoring_of(score_map),
                where_of(targets, mask),
                sums.target,
                sums.clip,
                parts,
                **REDUCE_ROWS,
                **EXACT,
            )
            combine_(parts, sums)

    def reduce_columns(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: ColumnAccumulators
    ) -> None:
        down, across = tiles(raw, REDUCE_COLUMNS)
        if not down:
            return
        with torch.cuda.device_of(raw):
            ranked = targets is not None and sums.target is not None
            parts = parts_of(sums, down, targets=ranked)
            reduce_columns[(down * across,)](
                raw,
                raw.stride(0),
                *raw.shape,
                scoring_of(score_map),
                where_of(targets, mask),
                sums.target,
                parts,
                **REDUCE_COLUMNS,
                **EXACT,
            )
            combine_(parts, sums)

    def score_grad_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        terms: ScoreGradTerms,
        d_scale: Tensor | None,
    ) -> None:
        down, across = tiles(raw, WEIGH)
        if not down:
            return
        with torch.cuda.device_of(raw):
            share = None if d_scale is None else raw.new_empty((across, raw.shape[0]), dtype=torch.float32)
            weigh[(down * across,)](
                raw,
                raw.stride(0),
                *raw.shape,
                scoring_of(score_map),
                where_of(targets, mask),
                terms_of(terms, targets=targets is not None),
                share,
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
                high.view(torch.int16), low, x.contiguous(), x.numel(), **PLANES, **EXACT
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
                **EXACT,
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
