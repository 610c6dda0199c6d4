"""time_products: bare matrix products by cuBLAS and by our mainloop, which bound every fused kernel from below."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from main_kernels.backends.triton.matmul_tile import kernel_operands, matmul_tile, swizzle_tile
from main_kernels.backends.triton.tile_kinds import FusedTile

from .clock import Clock
from .samples import SampleLog
from .timing import time_in_turn

REFERENCE = 8192
"""Size of the square product that calibrates the clock: an H100 reached 798 TFLOP/s."""
SHAPE = (32768, 32768, 1024)
TILES = (
    (128, 128, 4, 3, 2),
    (128, 128, 4, 4, 1),
    (128, 256, 8, 3, 1),
    (128, 256, 8, 4, 1),
    (256, 128, 8, 3, 1),
    (256, 128, 8, 4, 1),
)
"""BLOCK_M, BLOCK_N, warps, stages, and the programs per multiprocessor that shared memory allows."""


@triton.jit
def product_sums(
    query,
    key,
    out,
    rows,
    columns,
    width,
    USE_TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    """Write to out[tiles] the sum of each tile of query[rows, width] key[columns, width]ᵀ: a mainloop without an
    epilogue."""
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    for tile in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=FLATTEN):
        y, x = swizzle_tile(tile, down, across, GROUP_M)
        acc = matmul_tile(
            query, key, y * BLOCK_M, x * BLOCK_N, rows, columns, width, USE_TMA, BLOCK_M, BLOCK_N, BLOCK_K
        )
        tl.store(out + tile, tl.sum(acc))


def time_products(clock: Clock, log: SampleLog, rounds: int) -> None:
    """Time cuBLAS at two shapes and our mainloop at one, in every configuration that compiles.

    Args:
        clock: measures each call; a GPU is required.
        log: receives samples, and "missing" records for configurations that fail.
        rounds: minimum number of rounds.
    """
    torch.manual_seed(0)
    square = [torch.randn(REFERENCE, REFERENCE, device="cuda").bfloat16() for _ in range(2)]
    _log_row(log, "reference", (REFERENCE,) * 3)
    torch.mm(*square)
    time_in_turn("products reference", {"cublas": partial(torch.mm, *square)}, clock, log, rounds)
    del square
    rows, columns, width = SHAPE
    query, key = (torch.randn(n, width, device="cuda").bfloat16() / width**0.5 for n in (rows, columns))
    scores = query.new_empty(rows, columns)
    _log_row(log, "mainloop", SHAPE)
    runs: dict[str, Callable[[], Any]] = {"cublas": lambda: torch.mm(query, key.T, out=scores)}
    runs["cublas"]()
    expected = float(query.double().sum(0) @ key.double().sum(0))
    with ThreadPoolExecutor(12) as pool:  # ptxas runs in processes of its own
        built = [(name, pool.submit(build)) for name, build in configurations(query, key)]
    for name, future in built:
        try:
            run, out = future.result()
            run()
            if abs(float(out.double().sum()) - expected) > 1e-2 * abs(expected) + 10:
                raise ValueError(f"sum of the products: expected {expected:.1f}, got {float(out.double().sum()):.1f}")
            runs[name] = run
        except Exception as error:  # a configuration may not fit; the others are timed
            log.add("missing", row="products mainloop", name=name, reason=f"{type(error).__name__}: {str(error)[:300]}")
    time_in_turn("products mainloop", runs, clock, log, rounds)


def configurations(query: Tensor, key: Tensor) -> Iterator[tuple[str, Callable[[], tuple[Callable[[], Any], Tensor]]]]:
    """Yield the name of each configuration and a function that compiles it and returns its launch and its output."""
    multiprocessors = torch.cuda.get_device_properties(query.device).multi_processor_count
    for (block_m, block_n, warps, stages, programs), flatten in itertools.product(TILES, (False, True)):
        tile = FusedTile(
            "a measurement",
            num_warps=warps,
            architecture=90,
            max_pressure=0,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=64,
            EPILOGUE_SUBTILES_LOG2=0,
            num_stages=stages,
        )

        def build(tile: FusedTile = tile, programs: int = programs, flatten: bool = flatten):  # type: ignore[no-untyped-def]
            tiles = -(-len(query) // tile.BLOCK_M) * -(-len(key) // tile.BLOCK_N)
            out = torch.empty(tiles, dtype=torch.float32, device=query.device)
            q, k, use_tma = kernel_operands(query, key, tile)
            options = {name: value for name, value in tile.options.items() if name != "EPILOGUE_SUBTILES_LOG2"}
            options |= {"USE_TMA": use_tma, "FLATTEN": flatten}
            operands = (q, k, out, len(query), len(key), query.shape[1])
            grid = (min(tiles, programs * multiprocessors),)
            product_sums.warmup(*operands, grid=grid, **options)
            return lambda: product_sums[grid](*operands, **options), out

        yield f"{block_m}x{block_n} stages={stages} programs={programs}{' flattened' if flatten else ''}", build


def _log_row(log: SampleLog, name: str, shape: tuple[int, int, int]) -> None:
    log.add(
        "row",
        row=f"products {name}",
        case=f"products_{name}",
        shape=dict(zip("nmd", shape, strict=True)),
        dtype="bfloat16",
        bytes_read=None,
        floors=["cublas"],
        phases={},
    )
