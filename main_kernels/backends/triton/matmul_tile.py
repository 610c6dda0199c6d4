"""matmul_tile, a tile of raw scores Q Kᵀ in float32 registers, and the placement and operands of tiles."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import configs
from .tile_kinds import WholeTile


def aligned(operand: Tensor) -> Tensor:
    """Return operand[n, D] contiguous, with zero columns appended if needed: rows are loaded 16 bytes at a time."""
    operand = operand.contiguous()
    if operand.shape[1] % 16 or operand.data_ptr() % 16:
        operand = torch.nn.functional.pad(operand, (0, -operand.shape[1] % 16)).clone()
    return operand


def kernel_operands(query: Tensor, key: Tensor, tile: WholeTile) -> tuple[Any, Any, bool]:
    """Return aligned query[c, D] and key[M, D] as kernel arguments, and True if they are tensor descriptors."""
    if configs.architecture(query.device) < configs.TMA_ARCHITECTURE:
        return query, key, False
    blocks = [tile.BLOCK_M, tile.BLOCK_K], [tile.BLOCK_N, tile.BLOCK_K]
    descriptors = [TensorDescriptor.from_tensor(t, block) for t, block in zip((query, key), blocks, strict=True)]
    return *descriptors, True


def persistent_programs(rows: int, columns: int, tile: WholeTile, device: torch.device) -> int:
    """Return the number of programs of a persistent kernel, which loop over tiles."""
    tiles = -(-rows // tile.BLOCK_M) * -(-columns // tile.BLOCK_N)
    programs = min(configs.PROGRAMS_PER_MULTIPROCESSOR, tile.programs)
    return min(tiles, programs * configs.multiprocessors(device))


@triton.jit
def swizzle_tile(tile, down, across, GROUP_M: tl.constexpr):
    """Row and column of a tile index: groups of GROUP_M rows of tiles are traversed one after the other."""
    first = tile // (GROUP_M * across) * GROUP_M
    height = tl.minimum(down - first, GROUP_M)
    within = tile % (GROUP_M * across)
    return first + within % height, within // height


@triton.jit
def matmul_tile(
    query,
    key,
    top,
    left,
    rows,
    columns,
    width,
    USE_TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """[BLOCK_M, BLOCK_N] float32 products of the rows from ``top`` on and the columns from ``left`` on. Entries out of
    bounds are finite if the operands are."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if USE_TMA:
        for begin in range(0, width, BLOCK_K):
            q, k = query.load([top, begin]), key.load([left, begin])
            acc = tl.dot(q, k.T, acc, input_precision="ieee")
    else:
        i, j = (top + tl.arange(0, BLOCK_M)) % rows, (left + tl.arange(0, BLOCK_N)) % columns
        d = tl.arange(0, BLOCK_K)
        q_at = query + i.to(tl.int64)[:, None] * width + d[None, :]
        k_at = key + j.to(tl.int64)[None, :] * width + d[:, None]
        for begin in range(0, width, BLOCK_K):
            q = tl.load(q_at, d[None, :] < width - begin, 0.0)
            k = tl.load(k_at, d[:, None] < width - begin, 0.0)
            acc = tl.dot(q, k, acc, input_precision="ieee")
            q_at += BLOCK_K
            k_at += BLOCK_K
    return acc
