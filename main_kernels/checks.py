"""Argument checks shared by the public functions: every message names the argument, what it got and what it wants.

``check_in_range`` and ``check_offset_values`` read values: call them outside a traced graph, or inside an op. On a CUDA
device they do not synchronise: an invalid value fails as a device-side assertion with a message.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .amp import operand_dtype

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_dense(name: str, tensor: Tensor) -> None:
    """A dense tensor that holds all of its values: kernels read memory, of which a DTensor has a part only."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: got {type(tensor).__name__}, want a tensor")
    if hasattr(tensor, "full_tensor"):
        raise ValueError(
            f"{name}: got a DTensor, want a plain tensor: pass {name}.full_tensor(), or call this in the "
            "wrapped module's forward, where FSDP has gathered its parameters"
        )
    if tensor.layout != torch.strided:
        raise ValueError(f"{name}: got layout {tensor.layout}, want a dense tensor: pass {name}.to_dense()")


def has_readable_values(tensor: Tensor) -> bool:
    """Return False while a graph is traced, and for tensors that have a shape but no values."""
    return not (torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor))


def check_matrix(
    name: str, tensor: Tensor, *, width: int | None = None, like: Tensor | None = None, least: int = 1
) -> None:
    """A floating [n, D] tensor, n >= ``least``, D >= 1; ``width``: its D; ``like``: its dtype and device."""
    check_dense(name, tensor)
    if tensor.ndim != 2:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, want two dimensions")
    if tensor.shape[0] < least or tensor.shape[1] < 1:
        rows = "at least one row and one column" if least else "at least one column"
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, want {rows}")
    if tensor.dtype not in _FLOATS:
        raise ValueError(f"{name}: got dtype {tensor.dtype}, want float32, bfloat16, float16 or float64")
    if width is not None and tensor.shape[1] != width:
        raise ValueError(f"{name}: got {tensor.shape[1]} columns, want {width}")
    if like is not None:
        check_dtype_and_device(name, tensor, like)


def check_dtype_and_device(name: str, tensor: Tensor, like: Tensor) -> None:
    """One device and one dtype, which under autocast is that of the factors of products."""
    if operand_dtype(tensor) != operand_dtype(like):
        raise ValueError(f"{name}: got dtype {tensor.dtype}, want {like.dtype} as its other factor has")
    if tensor.device != like.device:
        raise ValueError(f"{name}: got device {tensor.device}, want {like.device}")


def check_vector(name: str, tensor: Tensor, length: int, *, integer: bool, like: Tensor) -> None:
    """A 1-dimensional tensor of ``length`` on the device of ``like``, int64 or floating."""
    check_dense(name, tensor)
    if tensor.shape != (length,):
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, want ({length},)")
    if integer and tensor.dtype != torch.int64:
        raise ValueError(f"{name}: got dtype {tensor.dtype}, want int64")
    if not integer and not tensor.dtype.is_floating_point:
        raise ValueError(f"{name}: got dtype {tensor.dtype}, want a floating one")
    if tensor.device != like.device:
        raise ValueError(f"{name}: got device {tensor.device}, want {like.device}")


def assert_on_device(ok: Tensor, message: str) -> bool:
    """Leaves the check of a 0-dimensional bool to a CUDA device; False, and nothing done, where it is on another."""
    if ok.device.type != "cuda":
        return False
    torch._assert_async(ok, message)
    return True


def check_in_range(name: str, ids: Tensor, begin: int, end: int) -> None:
    """Every entry in [begin, end)."""
    wrong = (ids < begin) | (ids >= end)
    if not assert_on_device(~wrong.any(), f"{name}: want {begin} to {end - 1}") and bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(f"{name}: row {row} has {int(ids[row])}, want {begin} to {end - 1}")


def check_offsets(name: str, tensor: Tensor, *, like: Tensor) -> None:
    """cu_seqlens of segments: int32 or int64 [B + 1], B may be 0."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.int32, torch.int64):
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: got {got}, want an int32 or int64 tensor")
    check_dense(name, tensor)
    if tensor.ndim != 1 or not tensor.shape[0]:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, want (B + 1,)")
    if tensor.device != like.device:
        raise ValueError(f"{name}: got device {tensor.device}, want {like.device}")


def check_mask(name: str, tensor: Tensor, length: int, *, like: Tensor) -> None:
    """A bool [length] on the device of ``like``."""
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
        raise ValueError(f"{name}: got {getattr(tensor, 'dtype', type(tensor).__name__)}, want a bool tensor")
    check_dense(name, tensor)
    if tensor.shape != (length,):
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, want ({length},)")
    if tensor.device != like.device:
        raise ValueError(f"{name}: got device {tensor.device}, want {like.device}")


def check_offset_values(name: str, tensor: Tensor, rows: int) -> None:
    """Non-decreasing, within [0, rows]."""
    steps = tensor.diff()
    fine = (steps >= 0).all() & (tensor[0] >= 0) & (tensor[-1] <= rows)
    if assert_on_device(fine, f"{name}: want non-decreasing offsets within 0 to {rows}"):
        return
    if bool((steps < 0).any()):
        segment = int((steps < 0).nonzero()[0, 0])
        raise ValueError(f"{name}: segment {segment} has length {int(steps[segment])}, want non-decreasing offsets")
    if int(tensor[0]) < 0 or int(tensor[-1]) > rows:
        raise ValueError(f"{name}: got offsets {int(tensor[0])} to {int(tensor[-1])}, want them within 0 to {rows}")


def check_positive(name: str, value: float) -> None:
    if not (value > 0 and value < float("inf")):
        raise ValueError(f"{name}: got {value}, want a positive number")


def inverse_temperature(temperature: float | Tensor, like: Tensor) -> float | Tensor:
    """1 / temperature, a positive number; of a 0-dimensional tensor beside ``like`` and in its accumulator's dtype."""
    if not isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
        return 1 / temperature
    if temperature.ndim or not temperature.is_floating_point():
        raise ValueError(
            f"temperature: got {temperature.dtype} of shape {tuple(temperature.shape)}, want a number or a"
            " 0-dimensional floating tensor: one for all rows"
        )
    if has_readable_values(temperature):
        fine = (temperature > 0) & temperature.isfinite()
        if not assert_on_device(fine, "temperature: want a positive number") and not bool(fine):
            check_positive("temperature", float(temperature))
    return temperature.to(like.device, torch.promote_types(like.dtype, torch.float32)).reciprocal()


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, want one of {', '.join(map(repr, choices))}")


def check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}: got {value}, want a number from 0 to below 1")


def check_scalar(name: str, tensor: Tensor) -> None:
    """A 0-dimensional floating tensor."""
    if not isinstance(tensor, Tensor) or tensor.ndim != 0 or not tensor.is_floating_point():
        got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: got {got}, want a 0-dimensional floating tensor")
    check_dense(name, tensor)


def check_pairs(query: Tensor, key: Tensor) -> None:
    """query[N, D] and key[N, D] of one dtype and device, N may be 0."""
    check_matrix("query", query, least=0)
    check_matrix("key", key, width=query.shape[1], like=query, least=0)
    if query.shape[0] != key.shape[0]:
        raise ValueError(
            f"key: got {key.shape[0]} rows, want {query.shape[0]}: row i of key is the pair of row i of query"
        )
