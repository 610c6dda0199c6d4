"""time_variants: our ops with other tiles, groups, programs and without fusion, in turn with the present choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from main_kernels.backends.triton import configs
from main_kernels.backends.triton.fused import TritonFused
from main_kernels.backends.triton.tile_kinds import WholeTile

from ..cases.case import DTYPES
from ..cases.device import DeviceCase
from .clock import Clock
from .samples import SampleLog
from .timing import time_in_turn

WIDE = {"BLOCK_N": 256, "num_warps": 8, "EPILOGUE_SUBTILES_LOG2": 3}
TABLES = (
    "FUSED_REDUCE",
    "FUSED_SCORE_GRAD",
    "TWO_SIDED_REDUCE",
    "SOFTPLUS_REDUCE",
    "EXACT_COLUMNS",
    "WHOLE_SCORE_GRAD",
)


def _tiles(**changes: int) -> dict[str, Any]:
    """Return the tables of fused tiles with every Hopper row changed."""

    def changed(tile: WholeTile) -> WholeTile:
        if tile.architecture < configs.TMA_ARCHITECTURE:
            return tile
        return replace(tile, **{name: value for name, value in changes.items() if hasattr(tile, name)})

    return {table: tuple(map(changed, getattr(configs, table))) for table in TABLES}


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "present": {},
    "GROUP_M=4": _tiles(GROUP_M=4),
    "GROUP_M=8": _tiles(GROUP_M=8),
    "one program": {"PROGRAMS_PER_MULTIPROCESSOR": 1},
    "128x256": _tiles(**WIDE) | {"PROGRAMS_PER_MULTIPROCESSOR": 1},
    "four stages": _tiles(num_stages=4),
}
"""Name: attributes of `configs`, which launchers read at each launch."""
UNFUSED = "cuBLAS and chunk kernels"


@contextmanager
def variant(name: str) -> Iterator[None]:
    """Make launches use a variant."""
    with ExitStack() as patches:
        if name == UNFUSED:
            patches.enter_context(mock.patch.object(TritonFused, "supports", return_value=False))
        for attribute, value in VARIANTS.get(name, {}).items():
            patches.enter_context(mock.patch.object(configs, attribute, value))
        yield


def time_variants(
    case: DeviceCase, shape: Mapping[str, int], dtype: str, clock: Clock, log: SampleLog, rounds: int
) -> None:
    """Time every variant of each of our contenders, in turn.

    Args:
        case: the op.
        shape: one of its shapes.
        dtype: a key of DTYPES.
        clock: measures each call.
        log: receives samples, and "missing" records for variants that do not compile.
        rounds: minimum number of rounds.
    """
    torch.manual_seed(0)
    row = case.build(DTYPES[dtype], **shape)
    for contender in [name for name in row.contenders if name.startswith("ours")]:
        key = f"variants of {case.name} {contender}"
        log.add(
            "row",
            row=key,
            case=f"{case.name} {contender}",
            shape=dict(shape),
            dtype=dtype,
            bytes_read=None,
            floors=["present"],
            phases={},
        )
        runs: dict[str, Callable[[], Any]] = {}
        for name in (*VARIANTS, UNFUSED):

            def run(name: str = name, call: Callable[[], Any] = row.contenders[contender].run) -> None:
                with variant(name):
                    call()

            try:
                run()
                if clock.on_gpu:
                    torch.cuda.synchronize()
                runs[name] = run
            except Exception as error:  # a tile may not fit; the others are timed
                if name == "present":
                    raise
                reason = f"{type(error).__name__}: {str(error)[:300]}"
                log.add("missing", row=key, name=name, reason=reason)
        time_in_turn(key, runs, clock, log, rounds)
