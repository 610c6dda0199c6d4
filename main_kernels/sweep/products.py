"""multiply and add_product: products of narrow operands, which tensor cores can leave in float32.

Elsewhere a product is rounded to the dtype of its operands, a slice at a time, and then added to a float32 tensor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_TORCH_LEAVES_FLOAT32 = torch.__version__ >= "2.10"  # parsed once: a comparison takes ten microseconds

_SLICE_BYTES = 4 << 20  # a partial product of this size is converted while it is still in the cache


def leaves_float32(device: str) -> bool:
    """Return True if devices of this type leave products of 16-bit operands in a float32 tensor, or add them to one."""
    return _TORCH_LEAVES_FLOAT32 and device == "cuda"


def multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out[n, m] = left[n, k] @ right[k, m]."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    elif leaves_float32(out.device.type):
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        for rows, part in slices(left, right):
            out[rows] = part


def add_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out[n, m] += left[n, k] @ right[k, m]."""
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    elif leaves_float32(out.device.type):
        torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
    else:
        for rows, part in slices(left, right):
            out[rows].add_(part)


def slices(left: Tensor, right: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of left[n, k] @ right[k, m] with their indices, in the dtype of the operands."""
    step = max(_SLICE_BYTES // (right.shape[1] * right.element_size()), 256)
    for begin in range(0, left.shape[0], step):
        rows = slice(begin, min(begin + step, left.shape[0]))
        yield rows, left[rows] @ right
