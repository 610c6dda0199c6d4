"""The compiled CPU backend: checks nothing, hands addresses to ``main_kernels._C``."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from .interface import BoundedKernels, ColumnSums, Lse, Mask, RowSums, ScoreMap, Upstream

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
    return score_map.scale, score_map.softcap, _address(score_map.bias)


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

    def pool_forward(self, hidden: Tensor, offsets: Tensor, last: bool, normalize: bool) -> tuple[Tensor, Tensor]:
        if hidden.dtype == torch.float16:
            hidden = hidden.float()
        segments, width = offsets.numel() - 1, hidden.shape[1]
        pooled = torch.empty(segments, width)
        norms = torch.empty(segments)
        _kernel("pool_forward", hidden.dtype)(
            hidden.data_ptr(),
            offsets.data_ptr(),
            segments,
            width,
            last,
            normalize,
            pooled.data_ptr(),
            norms.data_ptr(),
            torch.get_num_threads(),
        )
        return pooled, norms

    def pool_backward(
        self,
        upstream: Tensor,
        pooled: Tensor,
        norms: Tensor,
        offsets: Tensor,
        rows: int,
        last: bool,
        normalize: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        native = torch.float32 if dtype == torch.float16 else dtype
        gradient = torch.empty(rows, upstream.shape[1], dtype=native)
        _kernel("pool_backward", native)(
            upstream.data_ptr(),
            pooled.data_ptr(),
            norms.data_ptr(),
            offsets.data_ptr(),
            offsets.numel() - 1,
            rows,
            upstream.shape[1],
            last,
            normalize,
            gradient.data_ptr(),
            torch.get_num_threads(),
        )
        return gradient.to(dtype)
