"""Argument checks of the public functions. Every message has the form ``name: expected X, got Y``; a value of a wrong
type is a TypeError, any other a ValueError.

``check_in_range`` and ``check_offset_values`` read values: call them outside a traced graph, or inside an op. On a CUDA
device they do not synchronise: an invalid value fails as a device-side assertion with a message.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .amp import operand_dtype

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LARGEST = torch.finfo(torch.float32).max
_NUMBERS = (float, int, Real, torch.SymFloat, torch.SymInt)  # the first match ends the search
_INTEGERS = (int, Integral, torch.SymInt)
_MAKE_FX = torch._C._TorchDispatchModeKey.PROXY


def check_type(name: str, value: Any, types: type | tuple[type, ...], expected: str) -> None:
    """Check for an instance of ``types``, which the message calls ``expected``."""
    if not isinstance(value, types):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")


def check_integer(name: str, value: int | None) -> None:
    """Check for an integer, or None."""
    if value is not None:
        check_type(name, value, _INTEGERS, "an integer")


def check_dense(name: str, tensor: Tensor, expected: str = "a tensor") -> None:
    """Check for a dense tensor that holds all of its values: kernels read memory, and a DTensor holds only a shard."""
    check_type(name, tensor, Tensor, expected)
    if hasattr(tensor, "full_tensor"):
        raise ValueError(
            f"{name}: expected a plain tensor, got a DTensor: pass {name}.full_tensor(), or call this in the "
            "wrapped module's forward, where FSDP has gathered its parameters"
        )
    if tensor.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, got layout {tensor.layout}: pass {name}.to_dense()")


def has_readable_values(tensor: Tensor) -> bool:
    """Return False in a graph that is being traced, and for meta and fake tensors."""
    is_traced = torch.compiler.is_compiling() or torch._C._get_dispatch_mode(_MAKE_FX) is not None
    return not (is_traced or tensor.is_meta or isinstance(tensor, FakeTensor))


def check_matrix(
    name: str, tensor: Tensor, *, width: int | None = None, like: Tensor | None = None, least: int = 1
) -> None:
    """Check for a floating [n, D] tensor with n >= ``least`` and D >= 1.

    Args:
        name: name of the argument.
        tensor: the argument.
        width: required D. None: any.
        like: tensor with the required dtype and device. None: any.
        least: smallest n.
    """
    check_dense(name, tensor)
    if tensor.ndim != 2:
        raise ValueError(f"{name}: expected two dimensions, got shape {tuple(tensor.shape)}")
    if tensor.shape[0] < least or tensor.shape[1] < 1:
        rows = "at least one row and one column" if least else "at least one column"
        raise ValueError(f"{name}: expected {rows}, got shape {tuple(tensor.shape)}")
    if tensor.dtype not in _FLOATS:
        raise ValueError(f"{name}: expected float32, bfloat16, float16 or float64, got dtype {tensor.dtype}")
    if width is not None and tensor.shape[1] != width:
        raise ValueError(f"{name}: expected {width} columns, got {tensor.shape[1]} columns")
    if like is not None:
        check_dtype_and_device(name, tensor, like)


def check_dtype_and_device(name: str, tensor: Tensor, like: Tensor) -> None:
    """Check for the dtype and the device of ``like``; under autocast both operands have autocast's dtype."""
    if operand_dtype(tensor) != operand_dtype(like):
        raise ValueError(f"{name}: expected {like.dtype} as the other operand has, got dtype {tensor.dtype}")
    _check_device(name, tensor, like)


def _check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected {like.device}, got device {tensor.device}")


def _check_length(name: str, tensor: Tensor, length: int) -> None:
    if tensor.shape != (length,):
        raise ValueError(f"{name}: expected ({length},), got shape {tuple(tensor.shape)}")


def check_vector(name: str, tensor: Tensor, length: int, *, integer: bool, like: Tensor) -> None:
    """Check for an int64 or floating [length] tensor on the device of ``like``."""
    check_dense(name, tensor)
    _check_length(name, tensor, length)
    if integer and tensor.dtype != torch.int64:
        raise ValueError(f"{name}: expected int64, got dtype {tensor.dtype}")
    if not integer and not tensor.dtype.is_floating_point:
        raise ValueError(f"{name}: expected a floating dtype, got dtype {tensor.dtype}")
    _check_device(name, tensor, like)


def assert_on_device(ok: Tensor, message: str) -> bool:
    """Assert a 0-dimensional bool on a CUDA device and return True. Return False for a tensor on another device."""
    if ok.device.type != "cuda":
        return False
    torch._assert_async(ok, message)
    return True


def check_in_range(name: str, ids: Tensor, begin: int, end: int) -> None:
    """Check that every entry is in [begin, end)."""
    wrong = (ids < begin) | (ids >= end)
    if not assert_on_device(~wrong.any(), f"{name}: expected {begin} to {end - 1}") and bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(f"{name}: expected {begin} to {end - 1}, got {int(ids[row])} in row {row}")


def check_offsets(name: str, tensor: Tensor, *, like: Tensor) -> None:
    """Check for the cu_seqlens of segments: int32 or int64 [B + 1] on the device of ``like``. B may be 0."""
    check_dense(name, tensor, "an int32 or int64 tensor")
    if tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: expected an int32 or int64 tensor, got {tensor.dtype}")
    if tensor.ndim != 1 or not tensor.shape[0]:
        raise ValueError(f"{name}: expected (B + 1,), got shape {tuple(tensor.shape)}")
    _check_device(name, tensor, like)


def check_mask(name: str, tensor: Tensor, length: int, *, like: Tensor) -> None:
    """Check for a bool [length] tensor on the device of ``like``."""
    check_dense(name, tensor, "a bool tensor")
    if tensor.dtype != torch.bool:
        raise ValueError(f"{name}: expected a bool tensor, got {tensor.dtype}")
    _check_length(name, tensor, length)
    _check_device(name, tensor, like)


def check_offset_values(name: str, tensor: Tensor, rows: int) -> None:
    """Check that offsets are non-decreasing and within [0, rows]."""
    steps = tensor.diff()
    fine = (steps >= 0).all() & (tensor[0] >= 0) & (tensor[-1] <= rows)
    if assert_on_device(fine, f"{name}: expected non-decreasing offsets within 0 to {rows}"):
        return
    if bool((steps < 0).any()):
        segment = int((steps < 0).nonzero()[0, 0])
        raise ValueError(
            f"{name}: expected non-decreasing offsets, got {int(steps[segment])} rows in segment {segment}"
        )
    if int(tensor[0]) < 0 or int(tensor[-1]) > rows:
        raise ValueError(f"{name}: expected offsets within 0 to {rows}, got {int(tensor[0])} to {int(tensor[-1])}")


def check_number(name: str, value: float) -> None:
    """Check for a number. The op would drop the gradient of a tensor, and read its value from the device."""
    if not isinstance(value, _NUMBERS):
        got = "a tensor, which has no gradient here" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected a number, got {got}")


def check_positive(name: str, value: float) -> None:
    """Check for a positive number in the range of float32, as its inverse must be."""
    check_number(name, value)
    if not 1 / _LARGEST <= value <= _LARGEST:
        raise ValueError(f"{name}: expected a positive number that float32 can hold, and its inverse too, got {value}")


def check_not_negative(name: str, value: float) -> None:
    """Check for a finite number that is not negative."""
    check_number(name, value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}: expected a number that is not negative, got {value}")


def inverse_temperature(temperature: float | Tensor, like: Tensor) -> float | Tensor:
    """Check a temperature and return its inverse. A tensor's is on the device of ``like``, in float32 or wider."""
    if not isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
        return 1 / temperature
    check_dense("temperature", temperature)
    if temperature.ndim or not temperature.is_floating_point():
        raise ValueError(
            "temperature: expected a number or a 0-dimensional floating tensor, one for all rows, got"
            f" {temperature.dtype} of shape {tuple(temperature.shape)}"
        )
    inverse = temperature.to(like.device, torch.promote_types(like.dtype, torch.float32)).reciprocal()
    if has_readable_values(inverse):
        fine = (inverse > 0) & inverse.isfinite()
        if not assert_on_device(fine, "temperature: expected a positive number") and not bool(fine):
            raise ValueError(f"temperature: expected a positive number, got {float(temperature)}")
    return inverse


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check for one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_fraction(name: str, value: float) -> None:
    """Check for a number in [0, 1)."""
    check_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name}: expected a number from 0 to below 1, got {value}")


def check_scalar(name: str, tensor: Tensor) -> None:
    """Check for a 0-dimensional floating tensor."""
    check_dense(name, tensor, "a 0-dimensional floating tensor")
    if tensor.ndim != 0 or not tensor.is_floating_point():
        raise ValueError(f"{name}: expected a 0-dimensional floating tensor, got {tuple(tensor.shape)}")


def check_pairs(query: Tensor, key: Tensor) -> None:
    """Check for query[N, D] and key[N, D] of one dtype and device. N may be 0."""
    check_matrix("query", query, least=0)
    check_matrix("key", key, width=query.shape[1], like=query, least=0)
    if query.shape[0] != key.shape[0]:
        raise ValueError(
            f"key: expected {query.shape[0]} rows, got {key.shape[0]} rows: row i of key is the pair of row i of query"
        )
