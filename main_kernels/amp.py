"""autocast, operand_dtype, disabled: the dtype in which torch.autocast has the factors of matrix products."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_WITHOUT_AUTOCAST = ("meta",)  # device types that torch.is_autocast_enabled does not know


def operand_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of this factor of a product after autocast, as for F.linear: float64 stays."""
    kind = tensor.device.type
    if kind in _WITHOUT_AUTOCAST or tensor.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return tensor.dtype
    return torch.get_autocast_dtype(kind)


def autocast(operand: Tensor) -> Tensor:
    """Cast this factor of a product as autocast would."""
    return operand.to(operand_dtype(operand))


def disabled(tensor: Tensor) -> AbstractContextManager[object]:
    """Leave products of tensors like this one in the dtype of their factors."""
    kind = tensor.device.type
    return nullcontext() if kind in _WITHOUT_AUTOCAST else torch.autocast(kind, enabled=False)
