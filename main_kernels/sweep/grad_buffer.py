"""GradBuffer, GradBuffers: gradient accumulators in float32 (float64 for float64), whatever the result's dtype.

A bfloat16 gradient is kept as two 16-bit planes of a float32, ``high`` and ``low``. The result is rounded into
``high``, so the gradient of a large vocabulary head needs no second, wider copy. A float16 gradient is a float32 buffer
that is cast at the end. So is a bfloat16 gradient on a CUDA device: cuBLAS adds a product to a float32 buffer while
computing it, whereas planes would be read and written once more. A gradient that is a single product in bfloat16 is
kept as it is returned. That of an operand which autocast has cast from float32 is returned as the float32 sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import Backend
from ..backends.plain import join_planes
from ..backends.workspace import empty
from . import products


@dataclass
class GradBuffer:
    """Gradient accumulator of one operand. A frozen operand has a buffer without rows."""

    high: Tensor  # [n, D] the sum, or its upper plane if it is bfloat16
    low: Tensor  # [n, D] or empty: the lower plane, or the buffer of the result if its dtype is narrower

    @classmethod
    def empty(
        cls, like: Tensor, rows: int | None = None, *, dtype: torch.dtype | None = None, is_sum: bool = True
    ) -> GradBuffer:
        """Allocate the buffer for the gradient of ``like`` [n, D]. ``rows``: n by default, 0 for a frozen operand.
        ``dtype``: that of the result, by default that of ``like``. ``is_sum``: False if each row is set once, by a
        product of operands in the dtype of ``like``."""
        shape = (like.shape[0] if rows is None else rows, like.shape[1])
        dtype = dtype or like.dtype
        is_split = is_sum and dtype == torch.bfloat16 and not products.leaves_float32(like.device.type)
        is_kept = dtype == like.dtype and not is_sum
        dtype = dtype if is_split or is_kept or dtype.itemsize > 2 else torch.float32
        return cls(
            empty(shape, dtype, like.device),
            empty(shape if is_split else (0, shape[1]), torch.int16, like.device),
        )

    def empty_rows(self, rows: int) -> GradBuffer:
        """Allocate a buffer like this one with another number of rows."""
        high, low = self.high.shape[1:], self.low.shape[1:]
        return GradBuffer(self.high.new_empty(rows, *high), self.low.new_empty(rows if self.is_split else 0, *low))

    def clone(self) -> GradBuffer:
        return GradBuffer(self.high.clone(), self.low.clone())

    def zero_(self) -> None:
        self.high.zero_()
        self.low.zero_()

    @property
    def is_needed(self) -> bool:
        """False for a frozen operand."""
        return self.high.shape[0] > 0

    @property
    def is_split(self) -> bool:
        """True if the sum is kept as two planes."""
        return self.low.dtype == torch.int16 and self.low.numel() > 0

    def with_output(self, dtype: torch.dtype) -> GradBuffer:
        """Return this buffer with room for a result of ``dtype``, if a CUDA device keeps a wider sum: it is then
        scaled and rounded in one pass."""
        if not products.leaves_float32(self.high.device.type) or self.high.dtype == dtype:
            return self
        return GradBuffer(self.high, torch.empty_like(self.high, dtype=dtype))

    def rows(self, rows: slice) -> GradBuffer:
        """Return a view of some rows."""
        return GradBuffer(self.high[rows], self.low[rows])

    def gather_rows(self, rows: Tensor) -> GradBuffer:
        """Copy the rows with the indices ``rows``."""
        return GradBuffer(self.high[rows], self.low[rows[: self.low.shape[0]]])

    def scatter_rows_(self, rows: Tensor, values: GradBuffer) -> None:
        """Zero this buffer and copy ``values`` to the rows with the indices ``rows``."""
        self.zero_()
        self.high[rows] = values.high
        if values.low.shape[0]:
            self.low[rows] = values.low

    def add_product(self, backend: Backend, left: Tensor, right: Tensor, *, first: bool) -> None:
        """self += left @ right for left [n, c] and right [c, D] in the compute dtype; self = left @ right if
        ``first``."""
        if not self.is_split:
            (products.multiply if first else products.add_product)(left, right, self.high)
            return
        if first and left.dtype == self.high.dtype:  # the product is rounded, so nothing is left for the lower plane
            products.multiply(left, right, self.high)
            self.low.zero_()
            return
        for rows, part in products.slices(left, right):
            target = self.rows(rows)
            if first:
                target.zero_()
            backend.accumulate_(target.high, target.low, part)

    def finalize_(self, backend: Backend, scale: Tensor | None) -> None:
        """Multiply by ``scale`` ([n] or [1], accumulator dtype; None: 1) and round once. Overwrites the planes."""
        if self.is_split:
            one = self.high.new_ones(1, dtype=torch.float32)
            backend.round_scaled_(self.high, self.low, one if scale is None else scale)
        elif self.low.numel():
            torch.mul(self.high, 1 if scale is None else scale[:, None], out=self.low)
        elif scale is not None:
            self.high.mul_(scale[:, None])

    def sums(self, rows: slice) -> Tensor:
        """Return some rows of the sum, before ``finalize_``: float32 (float64 for float64)."""
        return join_planes(self.high[rows], self.low[rows]) if self.is_split else self.high[rows]

    def result(self, dtype: torch.dtype) -> Tensor:
        """Return the gradient after ``finalize_``."""
        return self.low if self.low.dtype == dtype and self.low.numel() else self.high.to(dtype)


@dataclass
class GradBuffers:
    """Gradient accumulators of both operands of a score matrix."""

    query: GradBuffer
    key: GradBuffer

    @property
    def is_needed(self) -> bool:
        """False if both operands are frozen."""
        return self.query.is_needed or self.key.is_needed

    def only_query(self) -> GradBuffers:
        """Return the buffers with the key frozen."""
        return GradBuffers(self.query, self.key.rows(slice(0)))

    def only_key(self) -> GradBuffers:
        """Return the buffers with the query frozen."""
        return GradBuffers(self.query.rows(slice(0)), self.key)
