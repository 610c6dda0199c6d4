"""TritonFused: launches the fused kernels and allocates their buffers. Never synchronises with the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..accumulators import ColumnAccumulators, ReductionSpec, RowAccumulators, select_rows
from ..structs import Mask, ScoreGradTerms, ScoreMap
from . import configs
from .fused_backward import fused_score_grad, whole_score_grad
from .fused_forward import fused_reduce, softplus_reduce, target_scores
from .kernel_args import Sums, Terms
from .launch import launch, masking_of, partial_sums, reduce_partials_, scoring_of, terms_of
from .matmul_tile import aligned, kernel_operands, persistent_programs
from .tile_kinds import WholeTile
from .tile_memory import ROW_ALIGNMENT
from .two_sided import exact_columns, two_sided_reduce

# Weights of the parts of an epilogue that take more registers than one sum or term.
_SOFTCAP = 3
_BIASES, _ROW_SUMS = 3, 4  # of whole_score_grad


def _sums(spec: ReductionSpec) -> tuple[int, int]:
    """Return how many partial sums a tile leaves of a row and of a column, the largest score among them."""
    return 1 + len(spec.row_sums), 1 + len(spec.column_sums) if spec.column_lse else 0


def _reduce_pressure(spec: ReductionSpec, score_map: ScoreMap) -> int:
    """Estimate the register pressure of a forward epilogue: one per reduction, more for what it takes beside a sum."""
    others = spec.entropy + spec.softplus + (spec.clip > 0) + (score_map.bias is not None)
    softcap = _SOFTCAP * bool(score_map.softcap)
    return min(sum(_sums(spec)) + others + softcap, configs.MAX_PRESSURE)


def _has_ids(mask: Mask | None) -> bool:
    return mask is not None and mask.rows is not None


def _is_two_sided(spec: ReductionSpec, score_map: ScoreMap) -> bool:
    """Return True if only log-sum-exps, and maybe ranks, of rows and columns are reduced, of scores without softcap and
    bias."""
    is_plain = not score_map.softcap and score_map.bias is None
    return is_plain and spec.row_sums == spec.column_sums and spec.row_sums in (("total",), ("total", "rank"))


def _is_softplus(spec: ReductionSpec, score_map: ScoreMap) -> bool:
    """Return True if only softplus, and maybe its derivative, is reduced, of scores without softcap."""
    is_alone = spec.row_sums in (("softplus",), ("softplus", "sigmoid"))
    return is_alone and not spec.column_lse and not score_map.softcap


def _whole_pressure(terms: Terms, score_map: ScoreMap, mask: Mask | None, scale_grad: Tensor | None) -> int:
    """Estimate the register pressure of whole_score_grad: its vectors along columns, and more for row sums."""
    if score_map.softcap or terms.neg_entropy_grad is not None:
        return configs.MAX_PRESSURE + 1
    pressure = 2 * sum(x is not None for x in (terms.column_lse_grad, terms.column_sum_grad))
    pressure += _BIASES * (score_map.bias is not None and not score_map.is_uniform)
    return pressure + _has_ids(mask) + _ROW_SUMS * (scale_grad is not None)


def _score_grad_pressure(terms: Terms, score_map: ScoreMap, mask: Mask | None, scale_grad: Tensor | None) -> int:
    """Estimate the register pressure of a backward epilogue: one per gradient term, bias and mask, more for row sums
    and a softcap."""
    lse_values = ("row_lse_high", "row_lse_low", "column_lse_high", "column_lse_low")
    gradients = (term for name, term in terms._asdict().items() if name not in lse_values)
    count = sum(x is not None for x in (*gradients, score_map.bias, mask)) + 6 * (scale_grad is not None)
    return min(count + _SOFTCAP * bool(score_map.softcap), configs.MAX_PRESSURE)


def _passes(count: int, width: int, tile: WholeTile, spec: ReductionSpec) -> Iterator[slice]:
    """Yield the row ranges of the fewest passes whose partial sums fit into PARTIAL_SUMS_BYTES."""
    row_sums, column_sums = _sums(spec)
    tile_row_bytes = 4 * width * (row_sums * tile.BLOCK_M // tile.BLOCK_N + column_sums)
    down = -(-count // tile.BLOCK_M)
    passes = -(-down // max(configs.PARTIAL_SUMS_BYTES // tile_row_bytes, 1))
    step = max(-(-down // max(passes, 1)), 1) * tile.BLOCK_M
    for begin in range(0, count, step):
        yield slice(begin, min(begin + step, count))


def _accumulators(query: Tensor, key: Tensor, spec: ReductionSpec) -> tuple[RowAccumulators, ColumnAccumulators | None]:
    """Allocate the accumulators; the first pass writes them."""
    filled = not query.shape[0]  # no pass
    rows, columns = RowAccumulators.empty(query.shape[0], torch.float32, query.device, spec, filled=filled), None
    rows.expect_lse()
    if spec.column_lse:
        columns = ColumnAccumulators.empty(key.shape[0], torch.float32, query.device, spec, filled=filled)
        if not filled:
            columns.expect_lse()
    return rows, columns


class _Pass(NamedTuple):
    """One pass over some rows: the arguments of TritonFused.reduce, and the tile."""

    query: Tensor
    key: Tensor
    score_map: ScoreMap
    targets: Tensor | None
    mask: Mask | None
    tile: WholeTile
    spec: ReductionSpec
    target: Tensor | None
    column_target: Tensor | None

    def row_parts(self, targets: bool) -> Sums:
        """Allocate the partial sums of the rows, with their targets or not."""
        across = -(-self.key.shape[0] // self.tile.BLOCK_N)
        return partial_sums(self.spec.row_sums, self.query, across, self.query.shape[0], targets=targets)

    def column_parts(self, targets: bool) -> Sums:
        """Allocate the partial sums of the columns."""
        down = -(-self.query.shape[0] // self.tile.BLOCK_M)
        return partial_sums(self.spec.column_sums, self.query, down, self.key.shape[0], targets=targets)

    def launch(self, kernel: Any, tile: WholeTile, targets: Tensor | None, *args: Any) -> None:
        """Launch a kernel with as many programs as `self.tile` plans for; ``args`` follow what all kernels take."""
        (count, width), columns = self.query.shape, self.key.shape[0]
        q, k, use_tma = kernel_operands(self.query, self.key, tile)
        programs = persistent_programs(count, columns, self.tile, self.query.device)
        shared = q, k, count, columns, width, scoring_of(self.score_map), masking_of(targets, self.mask)
        launch(kernel, programs, tile, *shared, *args, USE_TMA=use_tma)


def _reduce(each: _Pass) -> tuple[Sums, Sums]:
    ranked = each.targets is not None
    parts = each.row_parts(ranked), each.column_parts(ranked)
    each.launch(fused_reduce, each.tile, each.targets, each.target, each.column_target, each.spec.clip, *parts)
    return parts


def _reduce_softplus(each: _Pass) -> tuple[Sums, Sums]:
    parts = each.row_parts(targets=False)
    each.launch(softplus_reduce, each.tile, None if each.mask is None else each.targets, parts)
    return parts, Sums(*[None] * len(Sums._fields))


def _reduce_two_sided(each: _Pass) -> tuple[Sums, Sums]:
    ranked = each.targets is not None
    row_parts, column_parts = each.row_parts(ranked), each.column_parts(ranked)
    down = -(-each.query.shape[0] // each.tile.BLOCK_M)
    marked = each.query.new_empty((down, each.key.shape[0]), dtype=torch.int8)
    given = each.target, each.column_target, row_parts, column_parts, marked
    each.launch(two_sided_reduce, each.tile, each.targets, *given)
    exact = configs.tile_for(configs.EXACT_COLUMNS, each.query.device)
    each.launch(exact_columns, exact, each.targets, column_parts._replace(rank=None), marked)
    return row_parts, column_parts


class TritonFused:
    """Fused kernels for bfloat16 and float16 operands.

    float32 is left to cuBLAS: exact float32 products do not run on tensor cores, and there cuBLAS is better than
    Triton."""

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
        out: Tensor,
    ) -> None:
        rows, width = query.shape
        if not rows:
            return
        tile = configs.TARGET_SCORES
        with torch.cuda.device_of(query):
            launch(
                target_scores,
                -(-rows // tile.BLOCK_M),
                tile,
                query,
                key,
                rows,
                width,
                scoring_of(score_map),
                targets,
                out,
            )

    def reduce(
        self,
        query: Tensor,
        key: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        spec: ReductionSpec,
        target: Tensor | None = None,
        column_target: Tensor | None = None,
    ) -> tuple[RowAccumulators, ColumnAccumulators | None]:
        tile: WholeTile
        if _is_two_sided(spec, score_map):
            pressure = _has_ids(mask) + 2 * spec.ranks
            tile, reduce = configs.tile_for(configs.TWO_SIDED_REDUCE, query.device, pressure), _reduce_two_sided
        elif _is_softplus(spec, score_map):
            pressure = spec.sigmoid + 2 * _has_ids(mask)
            tile, reduce = configs.tile_for(configs.SOFTPLUS_REDUCE, query.device, pressure), _reduce_softplus
        else:
            pressure = _reduce_pressure(spec, score_map)
            tile, reduce = configs.tile_for(configs.FUSED_REDUCE, query.device, pressure), _reduce
        sums: tuple[RowAccumulators, ColumnAccumulators | None] | None = None
        with torch.cuda.device_of(query):
            for rows in _passes(query.shape[0], key.shape[0], tile, spec):
                of_rows = [None if x is None else select_rows(x, rows) for x in (targets, target)]
                masking = of_rows[0], None if mask is None else mask[rows]
                targets_of = of_rows[1], column_target
                parts = reduce(_Pass(select_rows(query, rows), key, score_map, *masking, tile, spec, *targets_of))
                sums = sums or _accumulators(query, key, spec)  # not before: by now the device has enough to do
                reduce_partials_(parts[0], sums[0][rows], first=True)
                if sums[1] is not None:
                    reduce_partials_(parts[1], sums[1], first=rows.start == 0)
        sums = sums or _accumulators(query, key, spec)
        if target is not None:
            sums[0].target = target
        return sums

    def score_grad(
        self,
        query: Tensor,
        key: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        terms: ScoreGradTerms,
        out: Tensor,
        scale_grad: Tensor | None,
    ) -> None:
        count, width = query.shape
        if not count:
            return
        with torch.cuda.device_of(query):
            kernel_terms = terms_of(terms, targets=targets is not None)
            wanted = kernel_terms, score_map, mask, scale_grad
            whole = configs.find_tile(configs.WHOLE_SCORE_GRAD, query.device, _whole_pressure(*wanted))
            kernel, tile = whole_score_grad, whole
            if tile is None:
                kernel = fused_score_grad
                tile = configs.tile_for(configs.FUSED_SCORE_GRAD, query.device, _score_grad_pressure(*wanted))
            across = -(-key.shape[0] // tile.BLOCK_N)
            row_partials = None if scale_grad is None else query.new_empty((across, count), dtype=torch.float32)
            q, k, use_tma = kernel_operands(query, key, tile)
            launch(
                kernel,
                persistent_programs(count, key.shape[0], tile, query.device),
                tile,
                q,
                k,
                count,
                key.shape[0],
                width,
                scoring_of(score_map),
                masking_of(targets, mask),
                kernel_terms,
                out,
                out.stride(0),
                row_partials,
                USE_TMA=use_tma,
                RAGGED=key.shape[0] % ROW_ALIGNMENT.value != 0,
            )
            if scale_grad is not None and row_partials is not None:
                scale_grad.copy_(row_partials.sum(0, dtype=torch.float64) / score_map.scale)
