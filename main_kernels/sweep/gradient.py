"""Gradient buffers that accumulate in float32 (float64 for float64) whatever dtype they leave in.

A bfloat16 gradient is kept as two 16-bit planes of a float32, ``high`` and ``low``. When it is rounded at the end the
result lies in ``high``: the gradient of a large vocabulary head needs no second, wider copy. float16 gradients are
float32 buffers that are cast at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import Backend

_SLICE_BYTES = 4 << 20  # a bfloat16 partial product this size is added while it is still in the cache


@dataclass
class Gradient:
    """Sum of products for one operand: high [n, D], and low [n, D] where the gradient is bfloat16 (else empty)."""

    high: Tensor
    low: Tensor

    @classmethod
    def empty(cls, like: Tensor, rows: int | None = None) -> Gradient:
        """An uninitialised buffer for the gradient of ``like`` [n, D]; ``rows=0``: that of a frozen operand."""
        shape = (like.shape[0] if rows is None else rows, like.shape[1])
        split = like.dtype == torch.bfloat16
        dtype = torch.float32 if like.dtype == torch.float16 else like.dtype
        return cls(
            torch.empty(shape, dtype=dtype, device=like.device),
            torch.empty(shape if split else (0, shape[1]), dtype=torch.int16, device=like.device),
        )

    def zero_(self) -> None:
        self.high.zero_()
        self.low.zero_()

    @property
    def wanted(self) -> bool:
        return self.high.shape[0] > 0

    def rows(self, rows: slice) -> Gradient:
        """The same buffer, some of its rows."""
        return Gradient(self.high[rows], self.low[rows])

    def add_product(self, backend: Backend, left: Tensor, right: Tensor, *, first: bool) -> None:
        """self += left @ right, left [n, c] and right [c, D] in the compute dtype; ``first``: self = left @ right."""
        if not self.low.numel():
            if first:
                torch.mm(left, right, out=self.high)
            else:
                self.high.addmm_(left, right)
            return
        step = max(_SLICE_BYTES // (right.shape[1] * right.element_size()), 256)
        for begin in range(0, left.shape[0], step):
            part = left[begin : begin + step] @ right
            target = self.rows(slice(begin, begin + part.shape[0]))
            if first:
                target.zero_()
            backend.accumulate_(target.high, target.low, part)

    def finish_(self, backend: Backend, scale: Tensor) -> None:
        """high = the gradient times scale ([n] or [1], accumulator dtype), rounded once; low is used up."""
        if self.low.numel():
            backend.round_scaled_(self.high, self.low, scale)
        else:
            self.high.mul_(scale[:, None])
