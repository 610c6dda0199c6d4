"""The dtype that torch.autocast gives the operands of matrix products, and that of their gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_WITHOUT_AUTOCAST = ("meta",)  # device types that torch.is_autocast_enabled does not know


def operand_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of a matrix-product operand under autocast, as F.linear would cast it. float64 is not cast."""
    kind = tensor.device.type
    if kind in _WITHOUT_AUTOCAST or tensor.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return tensor.dtype
    return torch.get_autocast_dtype(kind)


def autocast(operand: Tensor) -> Tensor:
    """Cast a matrix-product operand as autocast does."""
    dtype = operand_dtype(operand)
    return operand if operand.dtype == dtype else operand.to(dtype)


def cast_operand(operand: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the operand as autocast casts it and, if it was cast and needs a gradient, the operand itself.

    An op that takes both returns the gradient of the second: a sum of products in float32, where that of the first
    would be this sum rounded to autocast's dtype, and then cast back.
    """
    if operand_dtype(operand) == operand.dtype:
        return operand, None
    if not (operand.requires_grad and torch.is_grad_enabled()):
        return autocast(operand), None
    return autocast(operand.detach()), operand


def widened(operand: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the operand as autocast casts it, in a wider dtype, with a gradient that is not rounded to autocast's."""
    cast, source = cast_operand(operand)
    if source is None:
        return cast.to(dtype)
    exact = source.to(dtype)
    return exact + (cast.to(dtype) - exact).detach()  # both are exact, or not finite


def gradient_dtype(operand: Tensor, source: Tensor | None) -> torch.dtype:
    """Return the dtype of the gradient of what ``cast_operand`` returned."""
    return operand.dtype if source is None else source.dtype


def disabled(tensor: Tensor) -> AbstractContextManager[object]:
    """Disable autocast for the tensor's device."""
    kind = tensor.device.type
    if kind in _WITHOUT_AUTOCAST or not torch.is_autocast_enabled(kind):
        return nullcontext()  # entering torch.autocast costs as much as launching a kernel
    return torch.autocast(kind, enabled=False)
