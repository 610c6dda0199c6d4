"""Conversions from the interface's structs to kernel arguments, and the launch of the second reduction stage."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..accumulators import ColumnAccumulators, RowAccumulators
from ..structs import Mask, ScoreGradTerms, ScoreMap
from . import configs
from .epilogue import NO_FMA
from .kernel_args import Masking, Scoring, Sums, Terms
from .reduce_partials import reduce_partials


def partial_sums(sums: RowAccumulators | ColumnAccumulators | None, count: int, *, targets: bool) -> Sums:
    """Allocate buffers [count, n] for the partial sums of the requested reductions; a rank needs a target."""
    requested = {name: getattr(sums, name, None) for name in Sums._fields}
    if requested["total"] is None:
        requested["maximum"] = None
    if not targets:
        requested["rank"] = None
    return Sums(
        *(None if v is None else v.new_empty((count, v.shape[0]), dtype=torch.float32) for v in requested.values())
    )


def reduce_partials_(parts: Sums, sums: RowAccumulators | ColumnAccumulators) -> None:
    """Add the partial sums to the running ones."""
    present = next((part for part in parts if part is not None), None)
    if present is None:
        return
    count, n = present.shape
    running = Sums(*(None if part is None else getattr(sums, name) for name, part in parts._asdict().items()))
    tile = configs.REDUCE_PARTIALS
    reduce_partials[(-(-n // tile.BLOCK_N),)](
        count, n, getattr(sums, "clip", 0.0), parts, running, **tile.options, **NO_FMA
    )


def scoring_of(score_map: ScoreMap) -> Scoring:
    return Scoring(score_map.scale, score_map.softcap or None, score_map.bias)


def masking_of(targets: Tensor | None, mask: Mask | None) -> Masking:
    if mask is None:
        return Masking(targets, None, None, tl.constexpr(True))
    return Masking(targets, mask.rows, mask.columns, tl.constexpr(mask.keep_target))


def terms_of(terms: ScoreGradTerms, *, targets: bool) -> Terms:
    """Return the kernels' terms; those that contribute nothing are None."""
    has_row, has_column = terms.row_lse_grad is not None, terms.column_lse_grad is not None
    row_lse, column_lse = terms.row_lse if has_row else None, terms.column_lse if has_column else None
    return Terms(
        row_lse_grad=terms.row_lse_grad,
        row_lse_high=None if row_lse is None else row_lse.high,
        row_lse_low=None if row_lse is None else row_lse.low,
        column_lse_grad=terms.column_lse_grad,
        column_lse_high=None if column_lse is None else column_lse.high,
        column_lse_low=None if column_lse is None else column_lse.low,
        target_grad=terms.target_grad if targets else None,
        softplus_grad=terms.softplus_grad,
        row_sum_grad=terms.row_sum_grad,
        column_sum_grad=terms.column_sum_grad,
        neg_entropy_grad=terms.neg_entropy_grad,
    )
