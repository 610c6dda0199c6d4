"""Operand: one factor of the matrix products, converted to their dtype a block of rows at a time.

On a CPU, products of narrower operands are computed in float32 if they are float16, or bfloat16 without bfloat16
instructions. Converting blocks instead of the whole operand saves a wider copy of a large vocabulary head. It costs a
few percent of the products; narrow products would take up to sixty times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import Backend
from ..backends.accumulators import select_rows
from ..backends.workspace import WORKSPACE
from . import products
from .grad_buffer import GradBuffer

BLOCK_BYTES = 8 << 20  # converted at a time: still in the cache when the product reads it
_MIN_BLOCK_ROWS = 512


@dataclass(frozen=True)
class Operand:
    """A factor of products, [n, D]; ``rows`` and ``blocks`` return it in the compute dtype."""

    tensor: Tensor
    compute: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor, compute: torch.dtype) -> Operand:
        """Wrap a tensor. A small one is converted at once, a large one block by block as it is read."""
        if tensor.dtype == compute or tensor.numel() * compute.itemsize <= BLOCK_BYTES:
            tensor = tensor.to(compute).contiguous()
        return cls(tensor, compute)

    def rows(self, rows: slice) -> Tensor:
        """Return the rows of one chunk."""
        chosen = select_rows(self.tensor, rows)
        return chosen if chosen.dtype == self.compute else chosen.to(self.compute)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of rows with their values. A block is overwritten by the next one."""
        count, width = self.tensor.shape
        if self.tensor.dtype == self.compute:
            yield slice(0, count), self.tensor
            return
        step = max(BLOCK_BYTES // (width * self.compute.itemsize), _MIN_BLOCK_ROWS)
        buffer = WORKSPACE.acquire((min(step, count), width), self.compute, self.tensor.device)
        for begin in range(0, count, step):
            rows = slice(begin, min(begin + step, count))
            yield rows, buffer[: rows.stop - begin].copy_(self.tensor[rows])
        WORKSPACE.release(buffer)

    def scores(self, left: Tensor, out: Tensor) -> Tensor:
        """out[c, n] = left[c, D] selfᵀ, in the dtype of ``out``."""
        for rows, block in self.blocks():
            products.multiply(left, block.T, out if block.shape[0] == out.shape[1] else out[:, rows])
        return out

    def add_to(self, grad: GradBuffer, score_grad: Tensor, backend: Backend) -> None:
        """grad[c, D] = score_grad[c, n] self."""
        for rows, block in self.blocks():
            grad.add_product(backend, score_grad[:, rows], block, first=rows.start == 0)
