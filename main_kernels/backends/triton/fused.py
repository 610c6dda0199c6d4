"""The fused walks as the engine asks for them: what is launched, with which buffers. Nothing here reads a value from
the device."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..accumulators import ColumnAccumulators, RowAccumulators
from ..interface import Mask, ScoreGradTerms, ScoreMap
from .epilogue import EXACT
from .fused_backward import weights
from .fused_forward import forward, target_scores
from .kernel_args import Sums, Terms
from .launch import combine_, parts_of, scoring_of, terms_of, where_of
from .matmul_tile import FORWARD, MOST, TARGETS, WEIGH, aligned, grid, operands, tile_for

_ROUNDED = {None: None, torch.float32: None, torch.bfloat16: tl.bfloat16}


# What takes many registers besides its sum or its term counts as so many.
_POINTWISE, _SOFTCAP, _STORED = 5, 3, 3


def _forward_burden(
    rows: RowAccumulators, columns: ColumnAccumulators | None, score_map: ScoreMap, raw: Tensor | None
) -> int:
    """How much is made of a tile: how many sums, and more for those that are not exponentials, and for storing it."""
    sums = sum(getattr(each, name, None) is not None for each in (rows, columns) for name in Sums._fields)
    pointwise = sum(sums is not None for sums in (rows.softplus, rows.clipped))
    others = sum(x is not None for x in (rows.rank, score_map.bias))
    return min(sums + others + _POINTWISE * pointwise + _STORED * (raw is not None), MOST)


def _weigh_burden(terms: Terms, score_map: ScoreMap, mask: Mask | None, share: Tensor | None) -> int:
    """How much makes a weight: its terms, but for the log-sum-exps, and what else there is."""
    lse_values = ("row_lse_high", "row_lse_low", "column_lse_high", "column_lse_low")
    gradients = (term for name, term in terms._asdict().items() if name not in lse_values)
    count = sum(x is not None for x in (*gradients, score_map.bias, mask, share))
    return min(count + _SOFTCAP * bool(score_map.softcap), MOST)


class TritonFused:
    """Scores of bfloat16 or float16 operands. Those of float32 are left to cuBLAS: exact float32 products do not run on
    tensor cores, and its kernels for them are better than what Triton makes."""

    def supports(self, dtype: torch.dtype) -> bool:
        return dtype in (torch.bfloat16, torch.float16)

    def aligned(self, operand: Tensor) -> Tensor:
        return aligned(operand)

    def target_scores(
        self,
        query: Tensor,
        key: Tensor,
        score_map: ScoreMap,
        targets: Tensor,
        stored: torch.dtype | None,
        out: Tensor,
    ) -> None:
        rows, width = query.shape
        if not rows:
            return
        with torch.cuda.device_of(query):
            tile = tile_for(TARGETS, query.device)
            target_scores[(-(-rows // tile["BM"]),)](
                query, key, rows, width, scoring_of(score_map), targets, out, ROUNDED=_ROUNDED[stored], **tile, **EXACT
            )

    def reduce(
        self,
        query: Tensor,
        key: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        stored: torch.dtype | None,
        rows: RowAccumulators,
        columns: ColumnAccumulators | None,
        raw: Tensor | None,
    ) -> None:
        count, width = query.shape
        if not count:
            return
        with torch.cuda.device_of(query):
            tile = tile_for(FORWARD, query.device, _forward_burden(rows, columns, score_map, raw))
            down, across = -(-count // tile["BM"]), -(-key.shape[0] // tile["BN"])
            row_parts = parts_of(rows, across, targets=targets is not None)
            column_parts = parts_of(columns, down, targets=targets is not None)
            q, k, described = operands(query, key, tile)
            forward[grid(count, key.shape[0], tile, query.device)](
                q,
                k,
                count,
                key.shape[0],
                width,
                scoring_of(score_map),
                where_of(targets, mask),
                rows.target,
                None if columns is None else columns.target,
                raw,
                None if raw is None else raw.stride(0),
                rows.clip,
                row_parts,
                column_parts,
                ROUNDED=_ROUNDED[stored],
                DESCRIBED=described,
                **tile,
                **EXACT,
            )
            combine_(row_parts, rows)
            if columns is not None:
                combine_(column_parts, columns)

    def score_grad(
        self,
        query: Tensor,
        key: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        stored: torch.dtype | None,
        terms: ScoreGradTerms,
        out: Tensor,
        d_scale: Tensor | None,
    ) -> None:
        count, width = query.shape
        if not count:
            return
        with torch.cuda.device_of(query):
            kernel_terms = terms_of(terms, targets=targets is not None)
            tile = tile_for(WEIGH, query.device, _weigh_burden(kernel_terms, score_map, mask, d_scale))
            across = -(-key.shape[0] // tile["BN"])
            share = None if d_scale is None else query.new_empty((across, count), dtype=torch.float32)
            q, k, described = operands(query, key, tile)
            weights[grid(count, key.shape[0], tile, query.device)](
                q,
                k,
                count,
                key.shape[0],
                width,
                scoring_of(score_map),
                where_of(targets, mask),
                kernel_terms,
                out,
                out.stride(0),
                share,
                ROUNDED=_ROUNDED[stored],
                DESCRIBED=described,
                **tile,
                **EXACT,
            )
            if d_scale is not None and share is not None:
                d_scale.copy_(share.sum(0, dtype=torch.float64) / score_map.scale)
