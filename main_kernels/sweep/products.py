"""multiply and add_product: products of narrow operands, which tensor cores can leave in float32."""

from __future__ import annotations

import torch
from torch import Tensor

_TORCH_LEAVES_FLOAT32 = torch.__version__ >= "2.10"  # parsed once: a comparison takes ten microseconds


def leaves_float32(device: str) -> bool:
    """Return True if devices of this type leave products of 16-bit operands in a float32 tensor, or add them to one."""
    return _TORCH_LEAVES_FLOAT32 and device == "cuda"


def multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out[n, m] = left[n, k] @ right[k, m]."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    else:
        torch.mm(left, right, out_dtype=out.dtype, out=out)


def add_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out[n, m] += left[n, k] @ right[k, m]."""
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
