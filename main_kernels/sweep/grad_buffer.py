"""Gradient buffers that accumulate in float32 (float64 for float64) whatever dtype they leave in.

A bfloat16 gradient is kept as two 16-bit planes of a float32, ``high`` and ``low``. When it is rounded at the end the
result lies in ``high``: the gradient of a large vocabulary head needs no second, wider copy. float16 gradients are
float32 buffers that are cast at the end, and so are bfloat16 ones on CUDA devices: cuBLAS adds a product to such a sum
as it makes it, where planes would be read and written once more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import Backend

_SLICE_BYTES = 4 << 20  # a bfloat16 partial product this size is added while it is still in the cache


def adds_in_place(device: torch.device) -> bool:
    """Whether products of 16-bit operands can be added to a float32 sum there."""
    return device.type == "cuda" and torch.__version__ >= "2.10"


@dataclass
class Gradient:
    """Sum of products for one operand: high [n, D], and low [n, D] (or empty): the lower plane where high is bfloat16,
    else room for the finished gradient, in the dtype it leaves in."""

    high: Tensor
    low: Tensor

    @classmethod
    def empty(cls, like: Tensor, rows: int | None = None) -> Gradient:
        """An uninitialised buffer for the gradient of ``like`` [n, D]; ``rows=0``: that of a frozen operand."""
        shape = (like.shape[0] if rows is None else rows, like.shape[1])
        split = like.dtype == torch.bfloat16 and not adds_in_place(like.device)
        dtype = like.dtype if split or like.dtype.itemsize > 2 else torch.float32
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

    @property
    def split(self) -> bool:
        """Whether it is kept as two planes."""
        return self.low.dtype == torch.int16 and self.low.numel() > 0

    def with_room(self, dtype: torch.dtype) -> Gradient:
        """The same buffer, and where it is a wider sum on a CUDA device, room for what leaves: scaled and rounded in
        one pass."""
        if not adds_in_place(self.high.device) or self.high.dtype == dtype:
            return self
        return Gradient(self.high, torch.empty_like(self.high, dtype=dtype))

    def finished(self, dtype: torch.dtype) -> Tensor:
        """What has been finished."""
        return self.low if self.low.dtype == dtype and self.low.numel() else self.high.to(dtype)

    def rows(self, rows: slice) -> Gradient:
        """The same buffer, some of its rows."""
        return Gradient(self.high[rows], self.low[rows])

    def add_product(self, backend: Backend, left: Tensor, right: Tensor, *, first: bool) -> None:
        """self += left @ right, left [n, c] and right [c, D] in the compute dtype; ``first``: self = left @ right."""
        if not self.split:
            same = left.dtype == self.high.dtype
            if first and same:
                torch.mm(left, right, out=self.high)
            elif first:
                torch.mm(left, right, out_dtype=self.high.dtype, out=self.high)
            elif same:
                self.high.addmm_(left, right)
            else:
                torch.addmm(self.high, left, right, out_dtype=self.high.dtype, out=self.high)
            return
        step = max(_SLICE_BYTES // (right.shape[1] * right.element_size()), 256)
        for begin in range(0, left.shape[0], step):
            part = left[begin : begin + step] @ right
            target = self.rows(slice(begin, begin + part.shape[0]))
            if first:
                target.zero_()
            backend.accumulate_(target.high, target.low, part)

    def finish_(self, backend: Backend, scale: Tensor | None) -> None:
        """The gradient times scale ([n] or [1], accumulator dtype; None: 1), rounded once; what it was made of is used
        up."""
        if self.split:
            one = self.high.new_ones(1, dtype=torch.float32)
            backend.round_scaled_(self.high, self.low, one if scale is None else scale)
        elif self.low.numel():
            torch.mul(self.high, 1 if scale is None else scale[:, None], out=self.low)
        elif scale is not None:
            self.high.mul_(scale[:, None])
