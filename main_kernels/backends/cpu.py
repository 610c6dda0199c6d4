"""CpuBackend: passes tensors to the compiled module ``main_kernels._C`` as structs of addresses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .accumulators import ColumnAccumulators, Lse, RowAccumulators
from .in_steps import InSteps
from .interface import FusedKernels, SingleExpKernels
from .structs import LossTerms, Mask, Pooling, ScoreGradTerms, ScoreMap

MODULE: ModuleType | None = None
WHY_NOT = ""
try:
    MODULE = import_module("main_kernels._C")
except ImportError as error:  # built without a compiler, or for another interpreter
    WHY_NOT = f"main_kernels._C did not load: {error}"


def _follow_torch(module: ModuleType) -> None:
    """Use the instruction set that torch uses, which ATEN_CPU_CAPABILITY may limit."""
    level = {"AVX2": "avx2", "DEFAULT": "baseline"}.get(torch.backends.cpu.get_cpu_capability())
    if level in module.instruction_sets():
        module.set_instruction_set(level)


if MODULE is not None:
    _follow_torch(MODULE)

_CPU = torch.device("cpu")
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def instruction_sets() -> list[str]:
    """Return the builds of the C++ kernels that this processor can run, best first: avx512, avx2, baseline.

    By default the one that torch uses runs, so its switch ATEN_CPU_CAPABILITY holds for both."""
    return [] if MODULE is None else list(MODULE.instruction_sets())


@contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Run the C++ kernels inside the block with one instruction set, in all threads of the process.

    Args:
        name: One of ``instruction_sets()``.

    Raises:
        ValueError: The processor does not support it, or the C++ kernels are not built.
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
    """Return the address of a contiguous tensor for a kernel that reads or writes ``dtype``; 0 for None.

    Compiled code does not check what an address points to, so this refuses a buffer of another dtype or device before
    a kernel writes past its end."""
    if tensor is None:
        return 0
    if tensor.dtype != dtype or tensor.device != device or not tensor.is_contiguous():
        layout = "" if tensor.is_contiguous() else "non-contiguous "
        raise ValueError(
            f"buffer: expected a contiguous {dtype} tensor on {device}, got a {layout}{tensor.dtype} tensor on"
            f" {tensor.device}"
        )
    return tensor.data_ptr()


def fill_struct(struct: Any, **fields: Any) -> Any:
    """Set the fields of a struct of ``_C``; None keeps the field's default."""
    for name, value in fields.items():
        if value is not None:
            setattr(struct, name, value)
    return struct


def fill_pooling(module: Any, pooling: Pooling, device: torch.device = _CPU) -> Any:
    return fill_struct(
        module.Pooling(),
        offsets=address(pooling.offsets, torch.int64, device),
        segments=pooling.offsets.numel() - 1,
        last=pooling.last,
        normalize=pooling.normalize,
        weights=address(pooling.weights, torch.float32, device),
        query=address(pooling.query, torch.float32, device),
    )


@cache
def _kind(name: str, *dtypes: torch.dtype) -> Any:
    """Return the type of a struct of ``_C``."""
    for dtype in dtypes:
        if dtype not in _DTYPES:
            raise ValueError(
                f"backend 'cpu': expected float32 or bfloat16, got dtype {dtype}; use the plain backend for it"
            )
    return getattr(MODULE, "_".join([name, *(_DTYPES[dtype] for dtype in dtypes)]))


def _struct(name: str, *dtypes: torch.dtype, **fields: Any) -> Any:
    """Return a struct of ``_C``. The dtypes of the elements it points to are part of its name, if they vary."""
    return fill_struct(_kind(name, *dtypes)(), **fields)


_floats = partial(address, dtype=torch.float32)
_doubles = partial(address, dtype=torch.float64)


def _chunk(raw: Tensor, targets: Tensor | None = None, mask: Mask | None = None) -> Any:
    rows, columns = raw.shape
    return _struct(
        "Chunk",
        raw.dtype,
        raw=address(raw, raw.dtype),
        rows=rows,
        columns=columns,
        targets=None if targets is None else address(targets, torch.int64),
        mask=None if mask is None else _mask(mask),
    )


def _mask(mask: Mask) -> Any:
    rows, columns = address(mask.rows, torch.int32), address(mask.columns, torch.int32)
    return _struct("Mask", rows=rows, columns=columns, keep_target=mask.keep_target)


def _lse(lse: Lse | None) -> Any:
    return None if lse is None else _struct("Lse", high=_floats(lse.high), low=_floats(lse.low))


def _map(score_map: ScoreMap) -> Any:
    return _struct(
        "ScoreMap",
        scale=float(score_map.scale),
        cap=score_map.softcap,
        bias=_floats(score_map.bias),
        is_uniform=score_map.is_uniform,
    )


class CpuSingleExp:
    """The single-exp kernels of ``_C``."""

    def largest_norm(self, operand: Tensor) -> float:
        (rows, width), dtype = operand.shape, operand.dtype
        return MODULE.largest_norm(_states(operand, rows, width, dtype), torch.get_num_threads())  # type: ignore[union-attr]

    def reduce(
        self,
        raw: Tensor,
        scale: float,
        targets: Tensor,
        mask: Mask | None,
        rows: RowAccumulators,
        columns: ColumnAccumulators,
    ) -> None:
        sums = _struct(
            "SingleExpSums",
            scale=scale,
            row_total=_doubles(rows.total),
            target_score=_floats(rows.target),
            column_total=_doubles(columns.total),
            row_rank=_floats(rows.rank),
            column_rank=_floats(columns.rank),
            column_target=_floats(columns.target),
            row_logits=_doubles(rows.logits),
            column_logits=_doubles(columns.logits),
        )
        MODULE.single_exp_reduce(_chunk(raw, targets, mask), sums, torch.get_num_threads())  # type: ignore[union-attr]

    def score_grad_(
        self,
        raw: Tensor,
        scale: float,
        targets: Tensor,
        mask: Mask | None,
        row_factor: Tensor,
        column_factor: Tensor,
        terms: ScoreGradTerms,
        scale_grad: Tensor | None,
    ) -> None:
        kernel_terms = _struct(
            "SingleExpTerms",
            scale=scale,
            row_factor=_floats(row_factor),
            column_factor=_floats(column_factor),
            row_sum_grad=_floats(terms.row_sum_grad),
            column_sum_grad=_floats(terms.column_sum_grad),
            target_grad=_floats(terms.target_grad),
            scale_grad=_doubles(scale_grad),
        )
        MODULE.single_exp_score_grad(_chunk(raw, targets, mask), kernel_terms, torch.get_num_threads())  # type: ignore[union-attr]


class CpuBackend(InSteps):
    """The C++ kernels of ``_C`` over products of torch.mm, for float32 and bfloat16."""

    single_exp: SingleExpKernels | None = CpuSingleExp()
    fused: FusedKernels | None = None
    finishes_lse = False

    def reduce_rows(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: RowAccumulators
    ) -> None:
        chunk = _chunk(raw, targets, mask)  # first: it names a dtype that has no kernels
        accumulators = _struct(
            "RowAccumulators",
            maximum=_floats(sums.maximum),
            total=_doubles(sums.total),
            target=_floats(sums.target),
            weighted=_doubles(sums.weighted),
            rank=_floats(sums.rank if targets is not None else None),
            logits=_doubles(sums.logits),
            softplus=_doubles(sums.softplus),
            sigmoid=_doubles(sums.sigmoid),
            clipped=_doubles(sums.clipped),
            clip=sums.clip,
        )
        MODULE.reduce_rows(chunk, _map(score_map), accumulators, torch.get_num_threads())  # type: ignore[union-attr]

    def reduce_columns(
        self, raw: Tensor, score_map: ScoreMap, targets: Tensor | None, mask: Mask | None, sums: ColumnAccumulators
    ) -> None:
        chunk = _chunk(raw, targets, mask)  # first: it names a dtype that has no kernels
        accumulators = _struct(
            "ColumnAccumulators",
            maximum=_floats(sums.maximum),
            total=_doubles(sums.total),
            target=_floats(sums.target),
            rank=_floats(sums.rank),
            logits=_doubles(sums.logits),
        )
        MODULE.reduce_columns(chunk, _map(score_map), accumulators, torch.get_num_threads())  # type: ignore[union-attr]

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
        kernel_terms = _struct(
            "ScoreGradTerms",
            row_lse_grad=_floats(terms.row_lse_grad),
            row_lse=_lse(terms.row_lse),
            column_lse_grad=_floats(terms.column_lse_grad),
            column_lse=_lse(terms.column_lse),
            target_grad=_floats(terms.target_grad),
            softplus_grad=_floats(terms.softplus_grad),
            row_sum_grad=_floats(terms.row_sum_grad),
            column_sum_grad=_floats(terms.column_sum_grad),
            neg_entropy_grad=_floats(terms.neg_entropy_grad),
        )
        chunk, out = _chunk(raw, targets, mask), address(scale_grad, torch.float64)
        MODULE.score_grad(chunk, _map(score_map), kernel_terms, out, torch.get_num_threads())  # type: ignore[union-attr]
        if grad is not raw:
            grad.copy_(raw)

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
        if not (sums.weighted is sums.rank is sums.softplus is sums.clipped is None):
            super().row_loss_(raw, score_map, targets, mask, sums, loss, grad)
            return
        assert sums.finished_lse is not None
        chunk = _chunk(raw, targets, mask)  # first: it names a dtype that has no kernels
        lse = sums.finished_lse
        results = _struct(
            "RowLossSums",
            lse_high=_floats(lse.high),
            lse_low=_floats(lse.low),
            target=_floats(sums.target),
            logits=_doubles(sums.logits),
        )
        terms = _struct("RowLossTerms", **{name: _floats(vector) for name, vector in vars(loss).items()})
        MODULE.row_loss(chunk, _map(score_map), results, terms, torch.get_num_threads())  # type: ignore[union-attr]
        if grad is not raw:
            grad.copy_(raw)

    def add_columns_(self, score_grad: Tensor, sums: Tensor) -> None:
        MODULE.add_columns(_chunk(score_grad), _floats(sums), torch.get_num_threads())  # type: ignore[union-attr]

    def accumulate_(self, high: Tensor, low: Tensor, x: Tensor) -> None:
        accumulate = getattr(MODULE, f"accumulate_{_DTYPES[x.dtype]}")
        accumulate(_split(high, low), address(x, x.dtype), torch.get_num_threads())

    def round_scaled_(self, high: Tensor, low: Tensor, scale: Tensor) -> None:
        stride = 0 if scale.numel() == 1 else 1
        MODULE.round_scaled(_split(high, low), _floats(scale), stride, torch.get_num_threads())  # type: ignore[union-attr]

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
        rows, columns = q_raw.shape
        pair = _struct(
            "ScorePair",
            p_raw.dtype,
            q_raw.dtype,
            p_raw=address(p_raw, p_raw.dtype),
            q_raw=address(q_raw, q_raw.dtype),
            rows=rows,
            columns=columns,
            scale=scale,
            mixture=None if beta is None else _struct("Mixture", beta=beta, rest=1 - beta),
            weights=_floats(weights),
            values=_floats(values),
            grad_p=p_grad is not None,
            grad_q=q_grad is not None,
        )
        MODULE.divergence(pair, torch.get_num_threads())  # type: ignore[union-attr]
        for raw, grad in ((p_raw, p_grad), (q_raw, q_grad)):
            if grad is not None and grad is not raw:
                grad.copy_(raw)

    def pool_forward(self, hidden: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor, Tensor]:
        if hidden.dtype == torch.float16:
            hidden = hidden.float()
        (rows, width), segments = hidden.shape, pooling.offsets.numel() - 1
        states = _states(hidden, rows, width, hidden.dtype)
        pooled = hidden.new_empty(segments, width, dtype=torch.float32)
        norms = hidden.new_empty(segments, dtype=torch.float32)
        units = hidden.new_zeros(0 if pooling.uniform else rows, dtype=torch.float64)
        MODULE.pool_forward(  # type: ignore[union-attr]
            states, fill_pooling(MODULE, pooling), _pooled(pooled, norms, units), torch.get_num_threads()
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
        gradients = _struct(
            "PoolGradients",
            native,
            hidden=address(d_hidden, native),
            weights=_floats(d_weights),
            queries=_floats(d_queries),
            query=_floats(d_query),
        )
        MODULE.pool_backward(  # type: ignore[union-attr]
            _floats(pooled_grad),
            _pooled(pooled, norms, units),
            _states(hidden, rows, width, native),
            fill_pooling(MODULE, pooling),
            gradients,
            torch.get_num_threads(),
        )
        return None if d_hidden is None else d_hidden.to(dtype), d_weights, d_query


def _split(high: Tensor, low: Tensor) -> Any:
    rows, columns = high.shape
    planes = address(high, torch.bfloat16), address(low, torch.int16)
    return _struct("SplitFloat32", high=planes[0], low=planes[1], rows=rows, columns=columns)


def _states(hidden: Tensor | None, rows: int, width: int, dtype: torch.dtype) -> Any:
    return _struct("States", dtype, hidden=address(hidden, dtype), rows=rows, width=width)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, out: Tensor) -> None:
    _run("rms_norm", _rms_norm(x, weight, epsilon, out=out))


def rms_norm_grad(
    x: Tensor, weight: Tensor, epsilon: float, *, out_grad: Tensor, x_grad: Tensor, weight_grad: Tensor | None
) -> None:
    _run("rms_norm_grad", _rms_norm(x, weight, epsilon, out_grad=out_grad, x_grad=x_grad, weight_grad=weight_grad))


def silu_mul(gate: Tensor, up: Tensor, out: Tensor) -> None:
    _run("silu_mul", _silu_mul(gate, up, out=out))


def silu_mul_grad(gate: Tensor, up: Tensor, *, out_grad: Tensor, gate_grad: Tensor, up_grad: Tensor) -> None:
    _run("silu_mul_grad", _silu_mul(gate, up, out_grad=out_grad, gate_grad=gate_grad, up_grad=up_grad))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    _run("rotate", _rotary(x.shape, cos, sin, x=x, out=out))


def rotate_grad(cos: Tensor, sin: Tensor, *, out_grad: Tensor, x_grad: Tensor) -> None:
    _run("rotate_grad", _rotary(x_grad.shape, cos, sin, out_grad=out_grad, x_grad=x_grad))


def _run(kernel: str, struct: Any) -> None:
    getattr(MODULE, kernel)(struct, torch.get_num_threads())


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float, **others: Tensor | None) -> Any:
    states = _states(x, x.shape[:-1].numel(), x.shape[-1], x.dtype)
    addresses = _addresses(x.dtype, weight=weight, **others)
    return _struct("RmsNorm", x.dtype, x=states, epsilon=epsilon, **addresses)


def _silu_mul(gate: Tensor, up: Tensor, **others: Tensor) -> Any:
    addresses = _addresses(gate.dtype, gate=gate, up=up, **others)
    return _struct("SiluMul", gate.dtype, rows=gate.shape[:-1].numel(), width=gate.shape[-1], **addresses)


def _rotary(shape: torch.Size, cos: Tensor, sin: Tensor, **heads: Tensor) -> Any:
    rows, count, width = shape[-3:]
    dtype = next(iter(heads.values())).dtype
    addresses = _addresses(dtype, **heads) | _addresses(cos.dtype, cosines=cos, sines=sin)
    return _struct("Rotary", dtype, cos.dtype, rows=rows, heads=count, width=width, **addresses)


def _addresses(dtype: torch.dtype, **tensors: Tensor | None) -> dict[str, int]:
    return {name: address(tensor, dtype) for name, tensor in tensors.items()}


def _pooled(pooled: Tensor, norms: Tensor, units: Tensor) -> Any:
    return _struct("Pooled", rows=_floats(pooled), norms=_floats(norms), units=_doubles(units))
