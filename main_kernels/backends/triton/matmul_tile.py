"""A tile of raw scores, Q Kᵀ in float32, made in registers; how tiles are chosen, placed and fed. What is made of the
tile is in forward.py and weights.py."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# Tiles by the compute capability from which on they hold, and by how much is made of one at most (the burdens of
# fused.py). From 9.0 on two programs share a multiprocessor: while one reduces its tile the other's products run. GROUP
# rows of tiles walk the columns together, so that operands meet in the L2. CUTS: see piece(). Without maxnreg ptxas
# spills a little to make room for programs that do not fit for other reasons. bench/aot.py looks at every one of them.
_SM80 = {"BM": 128, "BN": 128, "BD": 32, "GROUP": 16, "CUTS": 1, "num_warps": 8, "num_stages": 4, "maxnreg": 255}
_SM90 = {"BM": 128, "BN": 128, "BD": 64, "GROUP": 16, "CUTS": 1, "num_warps": 4, "num_stages": 3, "maxnreg": 255}

Tile = dict[str, int]
Table = dict[int, dict[int, Tile]]

MOST = 20  # what carries this carries everything
_NARROW = {**_SM90, "BN": 64, "CUTS": 3, "num_warps": 8}

FORWARD: Table = {
    80: {6: _SM80, MOST: {**_SM80, "CUTS": 3}},
    90: {3: {**_SM90, "CUTS": 2}, 4: {**_SM90, "CUTS": 3}, 19: _NARROW, MOST: {**_NARROW, "BN": 32, "CUTS": 2}},
}
WEIGH: Table = {
    80: {4: _SM80, MOST: {**_SM80, "CUTS": 3}},
    90: {4: {**_SM90, "CUTS": 3}, 8: {**_SM90, "CUTS": 3, "num_warps": 8}, MOST: _NARROW},
}
TARGETS: Table = {80: {0: {"BM": 64, "BD": 64, "num_warps": 4, "num_stages": 3}}}
PROGRAMS = 2  # a multiprocessor

DESCRIPTORS_FROM = 90


@functools.cache
def architecture(device: torch.device) -> int:
    """90 for compute capability 9.0. The interpreter's tensors lie on the CPU: it can do what the oldest device can."""
    if device.type != "cuda":
        return min(FORWARD)
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def tile_for(table: Table, device: torch.device, burden: int = 0) -> Tile:
    """The table's tile for a device and a burden: that of the newest architecture which is not newer, and the first
    that carries it."""
    mine = architecture(device)
    tiles = table[max(since for since in table if since <= mine)]
    return tiles[min(limit for limit in tiles if burden <= limit)]


def aligned(operand: Tensor) -> Tensor:
    """operand[n, D] contiguous, or a copy with zero columns added: rows are fetched 16 bytes at a time."""
    operand = operand.contiguous()
    if operand.shape[1] % 16 or operand.data_ptr() % 16:
        operand = torch.nn.functional.pad(operand, (0, -operand.shape[1] % 16)).clone()
    return operand


def operands(query: Tensor, key: Tensor, tile: Tile) -> tuple[Any, Any, bool]:
    """query[c, D] and key[M, D], aligned, as a kernel takes them, and whether as tensor descriptors."""
    if architecture(query.device) < DESCRIPTORS_FROM:
        return query, key, False
    blocks = [tile["BM"], tile["BD"]], [tile["BN"], tile["BD"]]
    described = [TensorDescriptor.from_tensor(t, block) for t, block in zip((query, key), blocks, strict=True)]
    return *described, True


def grid(rows: int, columns: int, tile: Tile, device: torch.device) -> tuple[int]:
    """Programs, each of which walks over tiles."""
    tiles = -(-rows // tile["BM"]) * -(-columns // tile["BN"])
    return (min(tiles, PROGRAMS * multiprocessors(device)),)


@triton.jit
def place(tile, down, across, GROUP: tl.constexpr):
    """Where the tile is, down and across, when groups of GROUP rows of tiles are walked one after the other."""
    first = tile // (GROUP * across) * GROUP
    height = tl.minimum(down - first, GROUP)
    within = tile % (GROUP * across)
    return first + within % height, within // height


@triton.jit
def product(
    query,
    key,
    top,
    left,
    rows,
    columns,
    width,
    DESCRIBED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
):
    """[BM, BN] float32 products of the rows from ``top`` with the columns from ``left``; anything finite beyond them,
    if they themselves are finite."""
    acc = tl.zeros((BM, BN), tl.float32)
    if DESCRIBED:
        for begin in range(0, width, BD):
            q, k = query.load([top, begin]), key.load([left, begin])
            acc = tl.dot(q, k.T, acc, input_precision="ieee")
    else:
        i, j = (top + tl.arange(0, BM)) % rows, (left + tl.arange(0, BN)) % columns
        d = tl.arange(0, BD)
        q_at = query + i.to(tl.int64)[:, None] * width + d[None, :]
        k_at = key + j.to(tl.int64)[None, :] * width + d[:, None]
        for begin in range(0, width, BD):
            q = tl.load(q_at, d[None, :] < width - begin, 0.0)
            k = tl.load(k_at, d[:, None] < width - begin, 0.0)
            acc = tl.dot(q, k, acc, input_precision="ieee")
            q_at += BD
            k_at += BD
    return acc


@triton.jit
def rounded(acc, DTYPE: tl.constexpr):
    """What is left of raw scores that were, or will be, stored in DTYPE; None: they never are."""
    if DTYPE is not None:
        acc = acc.to(DTYPE).to(tl.float32)
    return acc


@triton.jit
def piece(acc, number: tl.constexpr, CUTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """[BM, BN >> CUTS] of a tile that is cut in two across, CUTS times. What is done to one piece after the other needs
    as many times fewer registers."""
    for cut in tl.static_range(CUTS):
        left, right = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN >> (cut + 1))), (0, 2, 1)))
        acc = right if (number >> (CUTS - 1 - cut)) & 1 else left
    return acc
