"""The compiled CPU backend: checks nothing, hands addresses to ``main_kernels._C``."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from .interface import BoundedKernels, ColumnSums, FusedKernels, Lse, Mask, Pooling, RowSums, ScoreMap, Upstream

MODULE: ModuleType | None = None
WHY_NOT = ""
try:
    MODULE = import_module("main_kernels._C")
except ImportError as error:  # built without a compiler, or for another interpreter
    WHY_NOT = f"main_kernels._C did not load: {error}"


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _kernel(name: str, dtype: torch.dtype):  # type: ignore[no-untyped-def]
    return getattr(MODULE, f"{name}_{'float32' if dtype == torch.float32 else 'bfloat16'}")


def _mask(mask: Mask | None) -> tuple[int, int, bool]:
    return (0, 0, True) if mask is None else (mask.rows.data_ptr(), mask.columns.data_ptr(), mask.keep_target)


def _lse(lse: Lse | None) -> tuple[int, int]:
    return (0, 0) if lse is None else (lse.high.data_ptr(), lse.low.data_ptr())


def _map(score_map: ScoreMap) -> tuple[float, float, int]:
    return float(score_map.scale), score_map.softcap, _address(score_map.bias)


class CpuBounded:
    def reduce(
        self, raw: Tensor, scale: float, targets: Tensor, mask: Mask | None, rows: RowSums, columns: ColumnSums
    ) -> None:
        _kernel("reduce_bounded", raw.dtype)(
            raw.data_ptr(),
            *raw.shape,
            scale,
            float(columns.maximum[0]),
            targets.data_ptr(),
            *_mask(mask),
            _address(rows.total),
            rows.target.data_ptr(),
            columns.total.data_ptr(),
            torch.get_num_threads(),
        )

    def weigh_(
        self,
        raw: Tensor,
        scale: float,
        reference: float,
        targets: Tensor,
        mask: Mask | None,
        alpha: Tensor,
        beta: Tensor,
        d: Tensor | None,
        d_scale: Tensor | None,
    ) -> None:
        _kernel("weigh_bounded", raw.dtype)(
            raw.data_ptr(),
            *raw.shape,
            scale,
            reference,
            targets.data_ptr(),
            *_mask(mask),
            alpha.data_ptr(),
            beta.data_ptr(),
            _address(d),
            _address(d_scale),
            torch.get_num_threads(),
        )


class CpuBackend:
    bounded: BoundedKernels | None = CpuBounded()
    fused: FusedKernels | None = None

    def reduce_rows(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: RowSums
    ) -> None:
        _kernel("reduce_rows", raw.dtype)(
            raw.data_ptr(),
            *raw.shape,
            *_map(score_map),
            _address(targets),
            *_mask(mask),
            sums.maximum.data_ptr(),
            _address(sums.total),
            sums.target.data_ptr(),
            _address(sums.weighted),
            _address(sums.rank if targets is not None else None),
            _address(sums.logits),
            _address(sums.softplus),
            _address(sums.clipped),
            sums.clip,
            torch.get_num_threads(),
        )

    def reduce_columns(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: ColumnSums
    ) -> None:
        _kernel("reduce_columns", raw.dtype)(
            raw.data_ptr(),
            *raw.shape,
            *_map(score_map),
            _address(targets),
            *_mask(mask),
            sums.maximum.data_ptr(),
            sums.total.data_ptr(),
            _address(sums.target),
            _address(sums.rank),
            _address(sums.logits),
            torch.get_num_threads(),
        )

    def weigh_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        upstream: Upstream,
        d_scale: Tensor | None,
    ) -> None:
        _kernel("weigh", raw.dtype)(
            raw.data_ptr(),
            *raw.shape,
            *_map(score_map),
            _address(targets),
            *_mask(mask),
            _address(upstream.a),
            *_lse(upstream.r),
            _address(upstream.b),
            *_lse(upstream.c),
            _address(upstream.d),
            _address(upstream.e),
            _address(upstream.u),
            _address(upstream.v),
            _address(d_scale),
            torch.get_num_threads(),
        )

    def add_columns_(self, weights: Tensor, sums: Tensor) -> None:
        _kernel("add_columns", weights.dtype)(
            weights.data_ptr(), *weights.shape, sums.data_ptr(), torch.get_num_threads()
        )

    def accumulate_(self, high: Tensor, low: Tensor, x: Tensor) -> None:
        _kernel("accumulate", x.dtype)(
            high.data_ptr(), low.data_ptr(), x.data_ptr(), x.numel(), torch.get_num_threads()
        )

    def round_scaled_(self, high: Tensor, low: Tensor, scale: Tensor) -> None:
        MODULE.round_scaled(  # type: ignore[union-attr]
            high.data_ptr(),
            low.data_ptr(),
            *high.shape,
            scale.data_ptr(),
            0 if scale.numel() == 1 else 1,
            torch.get_num_threads(),
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
        dtypes = "_".join("float32" if raw.dtype == torch.float32 else "bfloat16" for raw in (p_raw, q_raw))
        getattr(MODULE, f"divergence_{dtypes}")(
            p_raw.data_ptr(),
            q_raw.data_ptr(),
            *p_raw.shape,
            scale,
            *((0.0, 0.0) if beta is None else (beta, 1 - beta)),
            weights.data_ptr(),
            values.data_ptr(),
            grad_p,
            grad_q,
            torch.get_num_threads(),
        )

    def pool_forward(self, hidden: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor, Tensor]:
        if hidden.dtype == torch.float16:
            hidden = hidden.float()
        (rows, width), segments = hidden.shape, pooling.offsets.numel() - 1
        pooled = torch.empty(segments, width)
        norms = torch.empty(segments)
        units = torch.zeros(0 if pooling.uniform else rows, dtype=torch.float64)
        _kernel("pool_forward", hidden.dtype)(
            hidden.data_ptr(),
            width,
            *_pooling(pooling),
            pooled.data_ptr(),
            norms.data_ptr(),
            units.data_ptr(),
            torch.get_num_threads(),
        )
        return pooled, norms, units

    def pool_backward(
        self,
        upstream: Tensor,
        pooled: Tensor,
        norms: Tensor,
        units: Tensor,
        hidden: Tensor | None,
        rows: int,
        dtype: torch.dtype,
        pooling: Pooling,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        native = torch.float32 if dtype == torch.float16 else dtype
        if hidden is not None:
            hidden = hidden.to(native)
        segments, width = upstream.shape
        d_hidden = torch.empty(rows, width, dtype=native) if wanted[0] else None
        d_weights = torch.empty(rows) if wanted[1] else None
        d_query = torch.empty(width) if wanted[2] else None
        d_queries = torch.empty(segments, width) if wanted[2] else None
        _kernel("pool_backward", native)(
            upstream.data_ptr(),
            pooled.data_ptr(),
            norms.data_ptr(),
            units.data_ptr(),
            _address(hidden),
            rows,
            width,
            *_pooling(pooling),
            _address(d_hidden),
            _address(d_weights),
            _address(d_queries),
            _address(d_query),
            torch.get_num_threads(),
        )
        return None if d_hidden is None else d_hidden.to(dtype), d_weights, d_query


def _pooling(pooling: Pooling) -> tuple[int, int, bool, bool, int, int]:
    return (
        pooling.offsets.data_ptr(),
        pooling.offsets.numel() - 1,
        pooling.last,
        pooling.normalize,
        _address(pooling.weights),
        _address(pooling.query),
    )
