"""TritonBackend: launches the kernels over chunks and allocates their buffers. Never synchronises with the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..accumulators import ColumnAccumulators, RowAccumulators
from ..interface import FusedKernels, SingleExpKernels
from ..plain import PlainBackend
from ..structs import LossTerms, Mask, ScoreGradTerms, ScoreMap
from . import configs
from .divergence import divergence
from .fused import TritonFused
from .kernel_args import Losses, Side
from .launch import launch, masking_of, partial_sums, reduce_partials_, scoring_of, sums_of, terms_of
from .reduce_both import reduce_both
from .row_loss import row_loss
from .split_float32 import accumulate, round_scaled
from .tile_kinds import ChunkTile
from .unfused import reduce_columns, reduce_rows, score_grad


def tiles(raw: Tensor, tile: ChunkTile) -> tuple[int, int]:
    """Return the number of tiles down and across."""
    return -(-raw.shape[0] // tile.BLOCK_M), -(-raw.shape[1] // tile.BLOCK_N)


def row_programs(raw: Tensor, tile: ChunkTile) -> int:
    """Return the programs of a kernel that reads whole rows twice: as many as rows fit into the L2 cache."""
    return min(tiles(raw, tile)[0], configs.multiprocessors(raw.device))


class TritonBackend(PlainBackend):
    """Score kernels in Triton; pooling comes from the plain backend."""

    single_exp: SingleExpKernels | None = None
    fused: FusedKernels | None = TritonFused()
    finishes_lse = True

    def reduce_rows(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: RowAccumulators
    ) -> None:
        tile = configs.REDUCE_ROWS
        down, across = tiles(raw, tile)
        if not down:
            return
        with torch.cuda.device_of(raw):
            parts = partial_sums(sums.sums, raw, across, raw.shape[0], targets=targets is not None)
            launch(
                reduce_rows,
                down * across,
                tile,
                raw,
                raw.stride(0),
                *raw.shape,
                scoring_of(score_map),
                masking_of(targets, mask),
                sums.target,
                sums.clip,
                parts,
            )
            reduce_partials_(parts, sums)

    def reduce_columns(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: ColumnAccumulators
    ) -> None:
        tile = configs.REDUCE_COLUMNS
        down, across = tiles(raw, tile)
        if not down:
            return
        with torch.cuda.device_of(raw):
            ranked = targets is not None and sums.target is not None
            parts = partial_sums(sums.sums, raw, down, raw.shape[1], targets=ranked)
            launch(
                reduce_columns,
                down * across,
                tile,
                raw,
                raw.stride(0),
                *raw.shape,
                scoring_of(score_map),
                masking_of(targets, mask),
                sums.target,
                parts,
            )
            reduce_partials_(parts, sums)

    def reduce_both(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        rows: RowAccumulators,
        columns: ColumnAccumulators,
    ) -> None:
        is_short = raw.dtype == torch.float32 or score_map.softcap
        tile = configs.REDUCE_BOTH_SHORT if is_short else configs.REDUCE_BOTH
        down, across = tiles(raw, tile)
        across = -(-across // tile.SPAN)
        if not down:
            return
        with torch.cuda.device_of(raw):
            row_parts, column_parts = (
                partial_sums(rows.sums, raw, across, raw.shape[0], targets=False),
                partial_sums(columns.sums, raw, down, raw.shape[1], targets=False),
            )
            launch(
                reduce_both,
                down * across,
                tile,
                raw,
                raw.stride(0),
                *raw.shape,
                scoring_of(score_map),
                masking_of(targets, mask),
                rows.target,
                rows.clip,
                row_parts,
                column_parts,
            )
            reduce_partials_(row_parts, rows)
            reduce_partials_(column_parts, columns)

    def score_grad_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        terms: ScoreGradTerms,
        scale_grad: Tensor | None,
        grad: Tensor,
    ) -> None:
        tile = configs.SCORE_GRAD
        down, across = tiles(raw, tile)
        if not down:
            return
        with torch.cuda.device_of(raw):
            row_partials = None
            if scale_grad is not None:
                row_partials = raw.new_empty((across, raw.shape[0]), dtype=torch.float32)
            launch(
                score_grad,
                down * across,
                tile,
                raw,
                raw.stride(0),
                *raw.shape,
                scoring_of(score_map),
                masking_of(targets, mask),
                terms_of(terms, targets=targets is not None),
                row_partials,
                grad,
                grad.stride(0),
            )
            if scale_grad is not None and row_partials is not None:
                scale_grad.copy_(row_partials.sum(0, dtype=torch.float64) / score_map.scale)

    def row_loss_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        sums: RowAccumulators,
        loss: LossTerms,
        grad: Tensor,
    ) -> None:
        if not raw.shape[0]:
            return
        is_short = raw.dtype == torch.float32 and len(sums.sums) > 2
        tile, lse = configs.ROW_LOSS_SHORT if is_short else configs.ROW_LOSS, sums.finished_lse
        assert lse is not None
        with torch.cuda.device_of(raw):
            launch(
                row_loss,
                row_programs(raw, tile),
                tile,
                raw,
                raw.stride(0),
                *raw.shape,
                scoring_of(score_map),
                masking_of(targets, mask),
                Losses(**vars(loss)),
                sums_of(sums, targets=targets is not None),
                sums.target,
                lse.high,
                lse.low,
                sums.clip,
                grad,
                grad.stride(0),
            )

    def accumulate_(self, high: Tensor, low: Tensor, x: Tensor) -> None:
        if not x.numel():
            return
        block = configs.SPLIT_FLOAT32
        with torch.cuda.device_of(x):
            launch(
                accumulate, -(-x.numel() // block.BLOCK), block, high.view(torch.int16), low, x.contiguous(), x.numel()
            )

    def round_scaled_(self, high: Tensor, low: Tensor, scale: Tensor) -> None:
        if not high.numel():
            return
        block = configs.SPLIT_FLOAT32
        with torch.cuda.device_of(high):
            launch(
                round_scaled,
                -(-high.numel() // block.BLOCK),
                block,
                high.view(torch.int16),
                low,
                high,
                scale.contiguous(),
                high.numel(),
                high.shape[1],
                0 if scale.numel() == 1 else 1,
            )

    def divergence_(
        self,
        p_raw: Tensor,
        q_raw: Tensor,
        scale: float,
        beta: float | None,
        weights: Tensor,
        values: Tensor,
        p_grad: Tensor | None,
        q_grad: Tensor | None,
    ) -> None:
        if not p_raw.shape[0]:
            return
        tile = configs.DIVERGENCE
        with torch.cuda.device_of(p_raw):
            sides = (
                Side(raw, raw.stride(0), grad, None if grad is None else grad.stride(0))
                for raw, grad in ((p_raw, p_grad), (q_raw, q_grad))
            )
            launch(
                divergence,
                row_programs(p_raw, tile),
                tile,
                *sides,
                *p_raw.shape,
                scale,
                beta,
                None if beta is None else math.log((1 - beta) / beta),
                weights,
                values,
            )
