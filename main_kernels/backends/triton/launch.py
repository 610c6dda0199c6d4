"""launch, which every kernel is launched with; conversions from the interface's structs to kernel arguments; and the
launch of the second reduction stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from ..accumulators import ColumnAccumulators, RowAccumulators
from ..structs import Mask, ScoreGradTerms, ScoreMap
from . import configs
from .kernel_args import Masking, Scoring, Sums, Terms
from .reduce_partials import reduce_partials
from .tile_kinds import Config

NO_FMA = {"enable_fp_fusion": False}
"""Kernels are launched without fused multiply-adds. A score is then the same number in every kernel: exp(s - lse) is
consistent with the sum that contains it, and equal scores compare as equal."""

_PLANS: dict[Any, tuple[CompiledKernel, tuple[Any, ...], Config]] = {}
"""Compiled kernels by what they are specialised for, with their constants, and with the row of configs.py whose id is
part of the key: as long as it is here, no other row has the same id."""


def launch(kernel: Any, programs: int, config: Config, *args: Any, **constants: Any) -> None:
    """Launch a kernel.

    Triton's own launcher goes through every argument and option three times, which takes longer than all else that
    happens before a launch. Here a compiled kernel is found by one look at the arguments, and called.

    Args:
        kernel: the kernel. Its constants come after its other arguments.
        programs: number of programs.
        config: row of configs.py; its options are constants of the kernel and options of its compilation.
        args: the arguments that are no constants.
        constants: constants that are not in ``config``.
    """
    if not _launches_directly(kernel):
        kernel[(programs,)](*args, **constants, **config.options, **NO_FMA)
        return
    device = driver.active.get_current_device()
    key = id(kernel), id(config), device, *constants.values(), *_kinds(args)
    plan = _PLANS.get(key)
    if plan is None:
        options = {**constants, **config.options, **NO_FMA}
        compiled = kernel[(programs,)](*args, **options)
        _PLANS[key] = compiled, tuple(options[name] for name in kernel.arg_names[len(args) :]), config
        return
    compiled, tail, _ = plan
    if knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls:  # a profiler's
        compiled[programs, 1, 1](*args, *tail)
        return
    stream, code = driver.active.get_current_stream(device), compiled.function
    compiled.run(programs, 1, 1, stream, code, compiled.packed_metadata, None, None, None, *args, *tail)


def _launches_directly(kernel: Any) -> bool:
    """Return False for an interpreted kernel, and where JITFunction.run is replaced by one that wants to see every
    launch: bench/aot/ compiles there, sanitizers check."""
    return isinstance(kernel, JITFunction) and JITFunction.run.__module__ == JITFunction.__module__


def _kinds(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return all that a kernel may be specialised for: dtype and alignment of a tensor; whether an integer is 1, a
    multiple of 16, or too large for 32 bits; the value of a constant; and which arguments are None. The alignment of
    what a descriptor describes is known."""
    return tuple([None if arg is None else _KINDS[type(arg)](arg) for arg in args])


def _tensor_kind(tensor: Tensor) -> Any:
    return tensor.dtype if tensor.data_ptr() % 16 == 0 else (tensor.dtype,)


class _Kinds(dict[type, Callable[[Any], Any]]):
    def __missing__(self, missing: type) -> Callable[[Any], Any]:
        """Learn the kind of a struct, or of a subclass of Tensor."""
        kind = next((kind for base, kind in self.items() if issubclass(missing, base)), None)
        if kind is None:
            raise TypeError(f"kernel argument: expected one of {[base.__name__ for base in self]}, got {missing}")
        self[missing] = kind
        return kind


_KINDS = _Kinds(
    {
        Tensor: _tensor_kind,
        tuple: _kinds,
        bool: type,
        int: lambda number: (number == 1, number % 16 == 0, number.bit_length() > 31),
        float: type,
        tl.constexpr: lambda constant: constant.value,
        TensorDescriptor: lambda descriptor: (descriptor.base.dtype,),
    }
)


def sums_of(sums: RowAccumulators | ColumnAccumulators | None, *, targets: bool) -> Sums:
    """Return the accumulators of the requested reductions; a rank needs a target."""
    requested = {name: getattr(sums, name, None) for name in Sums._fields}
    if requested["total"] is None:
        requested["maximum"] = None
    if not targets:
        requested["rank"] = None
    return Sums(**requested)


def partial_sums(names: tuple[str, ...], like: Tensor, count: int, n: int, *, targets: bool) -> Sums:
    """Allocate buffers [count, n] for the partial sums with these names; a rank needs a target."""
    wanted = {*names, "maximum"} if "total" in names else {*names}
    if not targets:
        wanted.discard("rank")
    shape, device = (count, n), like.device
    return Sums(
        *[torch.empty(shape, dtype=torch.float32, device=device) if x in wanted else None for x in Sums._fields]
    )


def reduce_partials_(parts: Sums, sums: RowAccumulators | ColumnAccumulators, *, first: bool = False) -> None:
    """Add the partial sums to the running ones, and write the log-sum-exps if there is room for them. ``first``: the
    running sums are not read; the memory of the requested ones may hold anything."""
    present = next((part for part in parts if part is not None), None)
    if present is None:
        return
    count, n = present.shape
    running = Sums(*(None if part is None else getattr(sums, name) for name, part in parts._asdict().items()))
    tile = configs.REDUCE_PARTIALS
    lse = sums.finished_lse
    finished = (None, None) if lse is None else (lse.high, lse.low)
    clip, programs = getattr(sums, "clip", 0.0), -(-n // tile.BLOCK_N)
    launch(reduce_partials, programs, tile, count, n, clip, parts, running, *finished, FIRST=first)


def scoring_of(score_map: ScoreMap) -> Scoring:
    bias, uniform_bias = (None, score_map.bias) if score_map.is_uniform else (score_map.bias, None)
    return Scoring(score_map.scale, score_map.softcap or None, bias, uniform_bias)


def masking_of(targets: Tensor | None, mask: Mask | None) -> Masking:
    if mask is None:
        return Masking(targets, None, None, tl.constexpr(True))
    return Masking(targets, mask.rows, mask.columns, tl.constexpr(True) if mask.keep_target else None)


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
