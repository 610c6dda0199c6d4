"""The compiled CPU backend: checks nothing, hands addresses to ``main_kernels._C``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from .accumulators import ColumnAccumulators, Lse, RowAccumulators
from .interface import FusedKernels, Mask, Pooling, ScoreGradTerms, ScoreMap, SingleExpKernels

MODULE: ModuleType | None = None
WHY_NOT = ""
try:
    MODULE = import_module("main_kernels._C")
except ImportError as error:  # built without a compiler, or for another interpreter
    WHY_NOT = f"main_kernels._C did not load: {error}"


_CPU = torch.device("cpu")
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def instruction_sets() -> list[str]:
    """Names of the builds of the C++ kernels that this processor can run, best first: avx512, avx2, baseline."""
    return [] if MODULE is None else list(MODULE.instruction_sets())


@contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Run the C++ kernels inside the block with one instruction set, in all threads of the process.

    Args:
        name: One of ``instruction_sets()``.

    Raises:
        ValueError: The processor does not execute it, or the C++ kernels are not built.
    """
    if MODULE is None or name not in instruction_sets():
        raise ValueError(f"instruction_set: expected one of {instruction_sets()}, got {name!r}")
    before = MODULE.instruction_set()
    MODULE.set_instruction_set(name)
    try:
        yield
    finally:
        MODULE.set_instruction_set(before)


def address(tensor: Tensor | None, dtype: torch.dtype, device: torch.device = _CPU) -> int:
    """Address of a contiguous tensor for a kernel that reads or writes ``dtype``; 0 for None.

    Compiled code trusts an address blindly, so a buffer of another dtype or device is refused here, before it becomes
    a write past its end."""
    if tensor is None:
        return 0
    if tensor.dtype != dtype or tensor.device != device or not tensor.is_contiguous():
        layout = "" if tensor.is_contiguous() else "non-contiguous "
        raise ValueError(
            f"buffer: expected a contiguous {dtype} tensor on {device}, got a {layout}{tensor.dtype} tensor on"
            f" {tensor.device}"
        )
    return tensor.data_ptr()


def _floats(tensor: Tensor | None) -> int:
    return address(tensor, torch.float32)


def _doubles(tensor: Tensor | None) -> int:
    return address(tensor, torch.float64)


def _ids(targets: Tensor | None) -> int:
    return address(targets, torch.int64)


def _raw(raw: Tensor) -> tuple[int, int, int]:
    rows, columns = raw.shape
    return address(raw, raw.dtype), rows, columns


def _kernel(name: str, *dtypes: torch.dtype):  # type: ignore[no-untyped-def]
    for dtype in dtypes:
        if dtype not in _DTYPES:
            raise ValueError(
                f"backend 'cpu': expected float32 or bfloat16, got dtype {dtype}; use the plain backend for it"
            )
    return getattr(MODULE, "_".join([name, *(_DTYPES[dtype] for dtype in dtypes)]))


def _mask(mask: Mask | None) -> tuple[int, int, bool]:
    if mask is None:
        return 0, 0, True
    return address(mask.rows, torch.int32), address(mask.columns, torch.int32), mask.keep_target


def _lse(lse: Lse | None) -> tuple[int, int]:
    return (0, 0) if lse is None else (_floats(lse.high), _floats(lse.low))


def _map(score_map: ScoreMap) -> tuple[float, float, int]:
    return float(score_map.scale), score_map.softcap, _floats(score_map.bias)


class CpuSingleExp:
    def reduce(
        self,
        raw: Tensor,
        scale: float,
        targets: Tensor,
        mask: Mask | None,
        rows: RowAccumulators,
        columns: ColumnAccumulators,
    ) -> None:
        _kernel("reduce_bounded", raw.dtype)(
            *_raw(raw),
            scale,
            float(columns.maximum[0]),
            _ids(targets),
            *_mask(mask),
            _doubles(rows.total),
            _floats(rows.target),
            _doubles(columns.total),
            torch.get_num_threads(),
        )

    def score_grad_(
        self,
        raw: Tensor,
        scale: float,
        reference: float,
        targets: Tensor,
        mask: Mask | None,
        alpha: Tensor,
        beta: Tensor,
        d: Tensor | None,
        scale_grad: Tensor | None,
    ) -> None:
        _kernel("weigh_bounded", raw.dtype)(
            *_raw(raw),
            scale,
            reference,
            _ids(targets),
            *_mask(mask),
            _floats(alpha),
            _floats(beta),
            _floats(d),
            _doubles(scale_grad),
            torch.get_num_threads(),
        )


class CpuBackend:
    single_exp: SingleExpKernels | None = CpuSingleExp()
    fused: FusedKernels | None = None

    def reduce_rows(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: RowAccumulators
    ) -> None:
        _kernel("reduce_rows", raw.dtype)(
            *_raw(raw),
            *_map(score_map),
            _ids(targets),
            *_mask(mask),
            _floats(sums.maximum),
            _doubles(sums.total),
            _floats(sums.target),
            _doubles(sums.weighted),
            _floats(sums.rank if targets is not None else None),
            _doubles(sums.logits),
            _doubles(sums.softplus),
            _doubles(sums.clipped),
            sums.clip,
            torch.get_num_threads(),
        )

    def reduce_columns(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: ColumnAccumulators
    ) -> None:
        _kernel("reduce_columns", raw.dtype)(
            *_raw(raw),
            *_map(score_map),
            _ids(targets),
            *_mask(mask),
            _floats(sums.maximum),
            _doubles(sums.total),
            _floats(sums.target),
            _floats(sums.rank),
            _doubles(sums.logits),
            torch.get_num_threads(),
        )

    def score_grad_(
        self,
        raw: Tensor,
        score_map: ScoreMap,
        targets: Tensor | None,
        mask: Mask | None,
        terms: ScoreGradTerms,
        scale_grad: Tensor | None,
    ) -> None:
        _kernel("weigh", raw.dtype)(
            *_raw(raw),
            *_map(score_map),
            _ids(targets),
            *_mask(mask),
            _floats(terms.row_lse_grad),
            *_lse(terms.row_lse),
            _floats(terms.column_lse_grad),
            *_lse(terms.column_lse),
            _floats(terms.target_grad),
            _floats(terms.softplus_grad),
            _floats(terms.row_sum_grad),
            _floats(terms.column_sum_grad),
            _floats(terms.neg_entropy_grad),
            _doubles(scale_grad),
            torch.get_num_threads(),
        )

    def add_columns_(self, weights: Tensor, sums: Tensor) -> None:
        _kernel("add_columns", weights.dtype)(*_raw(weights), _floats(sums), torch.get_num_threads())

    def accumulate_(self, high: Tensor, low: Tensor, x: Tensor) -> None:
        _kernel("accumulate", x.dtype)(
            address(high, torch.bfloat16),
            address(low, torch.int16),
            address(x, x.dtype),
            x.numel(),
            torch.get_num_threads(),
        )

    def round_scaled_(self, high: Tensor, low: Tensor, scale: Tensor) -> None:
        MODULE.round_scaled(  # type: ignore[union-attr]
            address(high, torch.bfloat16),
            address(low, torch.int16),
            *high.shape,
            _floats(scale),
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
        _kernel("divergence", p_raw.dtype, q_raw.dtype)(
            address(p_raw, p_raw.dtype),
            *_raw(q_raw),
            scale,
            *((0.0, 0.0) if beta is None else (beta, 1 - beta)),
            _floats(weights),
            _floats(values),
            grad_p,
            grad_q,
            torch.get_num_threads(),
        )

    def pool_forward(self, hidden: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor, Tensor]:
        if hidden.dtype == torch.float16:
            hidden = hidden.float()
        (rows, width), segments = hidden.shape, pooling.offsets.numel() - 1
        pooled = hidden.new_empty(segments, width, dtype=torch.float32)
        norms = hidden.new_empty(segments, dtype=torch.float32)
        units = hidden.new_zeros(0 if pooling.uniform else rows, dtype=torch.float64)
        _kernel("pool_forward", hidden.dtype)(
            address(hidden, hidden.dtype),
            width,
            *pooling_arguments(pooling),
            _floats(pooled),
            _floats(norms),
            _doubles(units),
            torch.get_num_threads(),
        )
        return pooled, norms, units

    def pool_backward(
        self,
        pooled_grad: Tensor,
        pooled: Tensor,
        norms: Tensor,
        units: Tensor,
        hidden: Tensor | None,
        rows: int,
        dtype: torch.dtype,
        pooling: Pooling,
        needs_grad: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        native = torch.float32 if dtype == torch.float16 else dtype
        if hidden is not None:
            hidden = hidden.to(native)
        segments, width = pooled_grad.shape
        d_hidden = pooled_grad.new_empty(rows, width, dtype=native) if needs_grad[0] else None
        d_weights = pooled_grad.new_empty(rows) if needs_grad[1] else None
        d_query = pooled_grad.new_empty(width) if needs_grad[2] else None
        d_queries = pooled_grad.new_empty(segments, width) if needs_grad[2] else None
        _kernel("pool_backward", native)(
            _floats(pooled_grad),
            _floats(pooled),
            _floats(norms),
            _doubles(units),
            address(hidden, native),
            rows,
            width,
            *pooling_arguments(pooling),
            address(d_hidden, native),
            _floats(d_weights),
            _floats(d_queries),
            _floats(d_query),
            torch.get_num_threads(),
        )
        return None if d_hidden is None else d_hidden.to(dtype), d_weights, d_query


def pooling_arguments(pooling: Pooling, device: torch.device = _CPU) -> tuple[int, int, bool, bool, int, int]:
    return (
        address(pooling.offsets, torch.int64, device),
        pooling.offsets.numel() - 1,
        pooling.last,
        pooling.normalize,
        address(pooling.weights, torch.float32, device),
        address(pooling.query, torch.float32, device),
    )
