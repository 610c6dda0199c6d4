"""The tile sizes of every Triton kernel, one row of tile_kinds.py each with the reason for it, and ``tile_for``, which
selects.

A fused kernel (16-bit operands) uses the rows of the newest ``architecture`` that is not above the device's: 80 for an
A100 (compute capability 8.0), 90 for an H100 or H200, 100 for Blackwell, which uses those of 90 where there are none.
Among them it uses the first whose ``max_pressure`` is enough. All other kernels have one row for every device.

To change a tile, edit its row here. ``python -m bench aot -k CASE`` compiles the kernels that use it and reports tile,
registers, spills and shared memory; its ``--help`` explains CASE, and ``bench/results/aot.json`` has all kernels. No
time has been measured, as nothing has run on a GPU. Launchers read this module's attributes at each launch: a test
replaces a tile by setting one.
"""

from __future__ import annotations

import functools
from typing import TypeVar

import torch

from .tile_kinds import Block, ChunkTile, ExactTile, FusedTile, ReduceTile, RowTile, SpanTile, TargetTile, WholeTile

PROGRAMS_PER_MULTIPROCESSOR = 2
"""Programs of a fused kernel that share a multiprocessor: while one reduces its tile, the other multiplies."""

PARTIAL_SUMS_BYTES = 256 << 20
"""Bytes of partial sums that one pass of fused_reduce may leave; it takes more passes over fewer rows instead."""

TMA_ARCHITECTURE = 90
"""First architecture whose copy engine (TMA) fetches operands through tensor descriptors."""

MAX_PRESSURE = 20
"""Upper bound on the register pressure that fused.py estimates; a row with this limit takes every launch."""

_Tile = TypeVar("_Tile", bound=WholeTile)

# The rows of an architecture are sorted by max_pressure. Register counts, of 255, come from bench/results/aot.json.
FUSED_REDUCE = (
    FusedTile(
        "half the tile in the epilogue at a time; 48 KB of shared memory, at most 239 registers",
        architecture=80,
        max_pressure=6,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=32,
        EPILOGUE_SUBTILES_LOG2=1,
        num_warps=8,
        num_stages=4,
    ),
    FusedTile(
        "all reductions at once fit with an eighth of the tile in the epilogue at a time; at most 239 registers",
        architecture=80,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=32,
        EPILOGUE_SUBTILES_LOG2=3,
        num_warps=8,
        num_stages=4,
    ),
    FusedTile(
        "one warp group holds the accumulator; 98 KB of shared memory let two programs share a multiprocessor",
        architecture=90,
        max_pressure=3,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=2,
        num_warps=4,
        num_stages=3,
        programs=2,
    ),
    FusedTile(
        "row and column log-sum-exps at once: an eighth of the tile in the epilogue at a time; at most 255 registers",
        architecture=90,
        max_pressure=4,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=3,
        num_warps=4,
        num_stages=3,
        programs=2,
    ),
    FusedTile(
        "a narrower accumulator, half of it at a time; two programs share a multiprocessor; at most 128 registers",
        architecture=90,
        max_pressure=7,
        BLOCK_M=128,
        BLOCK_N=64,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=1,
        num_warps=8,
        num_stages=3,
        programs=2,
        maxnreg=128,
    ),
    FusedTile(
        "two warp groups share a narrower accumulator, half in the epilogue at a time; at most 241 registers",
        architecture=90,
        max_pressure=13,
        BLOCK_M=128,
        BLOCK_N=64,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=1,
        num_warps=8,
        num_stages=3,
    ),
    FusedTile(
        "all reductions at once, with a quarter of a narrower accumulator at a time; at most 213 registers",
        architecture=90,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=32,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=2,
        num_warps=8,
        num_stages=3,
    ),
    FusedTile(
        "the accumulator is in tensor memory; two programs share a multiprocessor; at most 190 registers",
        architecture=100,
        max_pressure=3,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=2,
        num_warps=4,
        num_stages=3,
        programs=2,
    ),
    FusedTile(
        "two warp groups share the epilogue's registers, half of a narrower tile at a time; at most 226 registers",
        architecture=100,
        max_pressure=13,
        BLOCK_M=128,
        BLOCK_N=64,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=1,
        num_warps=8,
        num_stages=3,
    ),
    FusedTile(
        "all reductions at once, with a quarter of a narrower tile at a time; at most 146 registers",
        architecture=100,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=32,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=2,
        num_warps=8,
        num_stages=3,
    ),
)

FUSED_SCORE_GRAD = (
    FusedTile(
        "as in the forward pass; at most 255 registers",
        architecture=80,
        max_pressure=4,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=32,
        EPILOGUE_SUBTILES_LOG2=1,
        num_warps=8,
        num_stages=4,
    ),
    FusedTile(
        "an eighth of the tile in the epilogue at a time; at most 255 registers",
        architecture=80,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=32,
        EPILOGUE_SUBTILES_LOG2=3,
        num_warps=8,
        num_stages=4,
    ),
    FusedTile(
        "one warp group holds the accumulator, an eighth in the epilogue at a time; at most 255 registers",
        architecture=90,
        max_pressure=4,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=3,
        num_warps=4,
        num_stages=3,
        programs=2,
    ),
    FusedTile(
        "two warp groups share the accumulator; at most 250 registers",
        architecture=90,
        max_pressure=8,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=3,
        num_warps=8,
        num_stages=3,
    ),
    FusedTile(
        "all terms, softcap, bias and mask at once, with a narrower accumulator; at most 244 registers",
        architecture=90,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=64,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=2,
        num_warps=8,
        num_stages=3,
    ),
    FusedTile(
        "two warp groups share the epilogue's registers; at most 255 registers",
        architecture=100,
        max_pressure=8,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=3,
        num_warps=8,
        num_stages=3,
    ),
    FusedTile(
        "all terms, softcap, bias and mask at once, with a narrower accumulator; at most 244 registers",
        architecture=100,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=64,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=2,
        num_warps=8,
        num_stages=3,
    ),
)

TWO_SIDED_REDUCE = (
    WholeTile(
        "two warps share a row of the accumulator; at most 254 registers",
        architecture=80,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=32,
        num_warps=8,
        num_stages=4,
    ),
    WholeTile(
        "the whole tile in the epilogue at once; two programs share a multiprocessor; at most 255 registers",
        architecture=90,
        max_pressure=2,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        num_warps=4,
        num_stages=3,
        programs=2,
    ),
    WholeTile(
        "ranks and ids: two warp groups share the epilogue's registers; at most 237 registers",
        architecture=90,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        num_warps=8,
        num_stages=3,
    ),
    WholeTile(
        "the accumulator is in tensor memory; two programs share a multiprocessor; at most 206 registers",
        architecture=100,
        max_pressure=0,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        num_warps=4,
        num_stages=3,
        programs=2,
    ),
    WholeTile(
        "ids or ranks: two warp groups share the epilogue's registers; at most 254 registers",
        architecture=100,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        num_warps=8,
        num_stages=3,
    ),
)

SOFTPLUS_REDUCE = (
    FusedTile(
        "half the tile in the epilogue at a time; at most 231 registers",
        architecture=80,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=32,
        EPILOGUE_SUBTILES_LOG2=1,
        num_warps=8,
        num_stages=4,
    ),
    FusedTile(
        "half the tile in the epilogue at a time; two programs share a multiprocessor; at most 255 registers",
        architecture=90,
        max_pressure=1,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=1,
        num_warps=4,
        num_stages=3,
        programs=2,
    ),
    FusedTile(
        "ids: two warp groups share the epilogue's registers",
        architecture=90,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=1,
        num_warps=8,
        num_stages=3,
    ),
    FusedTile(
        "the accumulator is in tensor memory; two programs share a multiprocessor",
        architecture=100,
        max_pressure=0,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=1,
        num_warps=4,
        num_stages=3,
        programs=2,
    ),
    FusedTile(
        "sigmoid and ids: two warp groups share the epilogue's registers",
        architecture=100,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=1,
        num_warps=8,
        num_stages=3,
    ),
)

EXACT_COLUMNS = (
    ExactTile(
        "the tile of TWO_SIDED_REDUCE, an eighth at a time; at most 206 registers",
        architecture=80,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=32,
        EPILOGUE_SUBTILES_LOG2=3,
        num_warps=8,
        num_stages=4,
    ),
    ExactTile(
        "the tile of TWO_SIDED_REDUCE, an eighth at a time; at most 214 registers",
        architecture=90,
        max_pressure=MAX_PRESSURE,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        EPILOGUE_SUBTILES_LOG2=3,
        num_warps=4,
        num_stages=3,
        programs=2,
    ),
)

WHOLE_SCORE_GRAD = (
    WholeTile(
        "two warps share a row of the accumulator; at most 253 registers",
        architecture=80,
        max_pressure=6,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=32,
        num_warps=8,
        num_stages=4,
    ),
    WholeTile(
        "as in the forward pass; 255 registers",
        architecture=90,
        max_pressure=3,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        num_warps=4,
        num_stages=3,
        programs=2,
    ),
    WholeTile(
        "two warp groups share the accumulator: room for ids, biases and row sums; at most 255 registers",
        architecture=90,
        max_pressure=6,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        num_warps=8,
        num_stages=3,
    ),
    WholeTile(
        "the accumulator is in tensor memory: two warp groups share the epilogue's registers; at most 240 registers",
        architecture=100,
        max_pressure=0,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        num_warps=8,
        num_stages=3,
    ),
    WholeTile(
        "ids without terms of columns: a narrower accumulator; at most 209 registers",
        architecture=100,
        max_pressure=1,
        BLOCK_M=128,
        BLOCK_N=64,
        BLOCK_K=64,
        num_warps=8,
        num_stages=3,
    ),
    WholeTile(
        "the accumulator is in tensor memory: two warp groups share the epilogue's registers; at most 240 registers",
        architecture=100,
        max_pressure=2,
        BLOCK_M=128,
        BLOCK_N=128,
        BLOCK_K=64,
        num_warps=8,
        num_stages=3,
    ),
)

TARGET_SCORES = TargetTile(
    "little work next to the full product; at most 48 KB of shared memory and 124 registers",
    BLOCK_M=64,
    BLOCK_K=64,
    num_warps=4,
    num_stages=3,
)

REDUCE_ROWS = ChunkTile(
    "a wide tile leaves few partial sums per row; at most 183 registers",
    BLOCK_M=8,
    BLOCK_N=1024,
    num_warps=8,
)
REDUCE_COLUMNS = ChunkTile(
    "a tall tile leaves few partial sums per column; at most 112 registers",
    BLOCK_M=128,
    BLOCK_N=64,
    num_warps=8,
)
REDUCE_BOTH = SpanTile(
    "sixteen tiles leave few partial sums of rows; two programs share a multiprocessor; at most 127 registers",
    BLOCK_M=64,
    BLOCK_N=128,
    num_warps=8,
)
REDUCE_BOTH_SHORT = SpanTile(
    "float32 scores or a softcap take more registers: half the rows; at most 115 registers",
    BLOCK_M=32,
    BLOCK_N=128,
    num_warps=8,
)
SCORE_GRAD = ChunkTile(
    "element-wise; all terms at once need up to 239 registers",
    BLOCK_M=16,
    BLOCK_N=256,
    num_warps=4,
)

REDUCE_PARTIALS = ReduceTile(
    "many partial sums at once for few columns: few dependent steps, many programs; at most 227 registers",
    BLOCK_P=128,
    BLOCK_N=16,
    num_warps=4,
)

ROW_LOSS = RowTile(
    "one program per multiprocessor: the 34 MB that 132 of them read again stay in the L2 cache; at most 128 registers",
    BLOCK_M=1,
    BLOCK_N=8192,
    num_warps=16,
)

ROW_LOSS_SHORT = RowTile(
    "float32 scores with more sums than a loss has take more registers: half the columns; at most 128 registers",
    BLOCK_M=1,
    BLOCK_N=4096,
    num_warps=16,
)

DIVERGENCE = RowTile(
    "one program per multiprocessor: the fewer rows at a time, the more stay in the L2 cache; at most 108 registers",
    BLOCK_M=1,
    BLOCK_N=4096,
    num_warps=16,
)

SPLIT_FLOAT32 = Block("element-wise, eight elements per thread; at most 32 registers", BLOCK=2048, num_warps=8)


@functools.cache
def architecture(device: torch.device) -> int:
    """Return 90 for compute capability 9.0. The interpreter's tensors are on the CPU: it gets the oldest one."""
    if device.type != "cuda":
        return min(tile.architecture for tile in FUSED_REDUCE)
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def tile_for(tiles: tuple[_Tile, ...], device: torch.device, register_pressure: int = 0) -> _Tile:
    """Return the first tile with room for ``register_pressure``, of the newest architecture the device supports."""
    tile = find_tile(tiles, device, register_pressure)
    assert tile is not None
    return tile


def find_tile(tiles: tuple[_Tile, ...], device: torch.device, register_pressure: int) -> _Tile | None:
    """Return the same, or None if no tile has room."""
    supported, newest, found = architecture(device), 0, None
    for tile in tiles:
        if newest < tile.architecture <= supported:
            newest, found = tile.architecture, None
        if tile.architecture == newest and found is None and register_pressure <= tile.max_pressure:
            found = tile
    return found
