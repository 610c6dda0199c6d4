"""Operand: one factor of the matrix products, in the dtype they are computed in.

Where the products are computed in float32 but the operand is narrower (float16 everywhere, bfloat16 on a CPU without
instructions for it), it is converted a block of rows at a time: a large vocabulary head never needs a second, wider
copy. That costs a few percent of the products; the narrow products would take up to sixty times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import Backend
from ..backends.workspace import WORKSPACE
from .grad_buffer import Gradient

BLOCK_BYTES = 8 << 20  # converted at a time: still in the cache when the product reads it
_MIN_BLOCK_ROWS = 512


@dataclass(frozen=True)
class Operand:
    """A factor of products, [n, D], of which ``rows`` and ``blocks`` are in the compute dtype."""

    tensor: Tensor
    compute: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor, compute: torch.dtype) -> Operand:
        """Convert at once what is small, else only as it is read."""
        if tensor.dtype == compute or tensor.numel() * compute.itemsize <= BLOCK_BYTES:
            tensor = tensor.to(compute).contiguous()
        return cls(tensor, compute)

    def rows(self, rows: slice) -> Tensor:
        """Some of the rows, a chunk's worth."""
        return self.tensor[rows].to(self.compute)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, as slices of the operand with their values; each lasts until the next is asked for."""
        count, width = self.tensor.shape
        if self.tensor.dtype == self.compute:
            yield slice(0, count), self.tensor
            return
        step = max(BLOCK_BYTES // (width * self.compute.itemsize), _MIN_BLOCK_ROWS)
        room = WORKSPACE.acquire((min(step, count), width), self.compute, self.tensor.device)
        for begin in range(0, count, step):
            rows = slice(begin, min(begin + step, count))
            yield rows, room[: rows.stop - begin].copy_(self.tensor[rows])
        WORKSPACE.release(room)

    def scores(self, left: Tensor, out: Tensor) -> Tensor:
        """out[c, n] = left[c, D] selfᵀ."""
        for rows, block in self.blocks():
            torch.mm(left, block.T, out=out[:, rows])
        return out

    def add_to(self, gradient: Gradient, weights: Tensor, backend: Backend) -> None:
        """gradient[c, D] = weights[c, n] self."""
        for rows, block in self.blocks():
            gradient.add_product(backend, weights[:, rows], block, first=rows.start == 0)
