"""The kinds of tiles in configs.py, one dataclass each. The fields of a row are constants of the kernel and options of
its compilation, except those that select the row."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Config:
    """A row: what all of them have."""

    reason: str
    num_warps: int

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the kernel launch."""
        selecting = ("reason", "architecture", "max_pressure", "programs")
        return {name: value for name, value in asdict(self).items() if name not in selecting}


@dataclass(frozen=True)
class WholeTile(Config):
    """A tile of scores that a fused kernel computes and consumes in registers.

    It applies from compute capability ``architecture`` / 10 on, to launches whose estimated register pressure is at
    most ``max_pressure``. GROUP_M rows of tiles run together, so that their operands meet in the L2 cache. ``programs``
    fit on a multiprocessor at a time. Without maxnreg=255, ptxas spills a little to make room for more programs than
    shared memory allows."""

    architecture: int
    max_pressure: int
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_stages: int
    programs: int = field(default=1, kw_only=True)
    GROUP_M: int = field(default=16, kw_only=True)
    maxnreg: int = field(default=255, kw_only=True)


@dataclass(frozen=True)
class FusedTile(WholeTile):
    """A WholeTile whose epilogue works on 2 ** EPILOGUE_SUBTILES_LOG2 column slices one after the other, which divides
    its registers."""

    EPILOGUE_SUBTILES_LOG2: int


@dataclass(frozen=True)
class ExactTile(FusedTile):
    """A FusedTile of exact_columns, whose programs read the marks of SPAN tiles at once."""

    SPAN: int = field(default=32, kw_only=True)


@dataclass(frozen=True)
class ChunkTile(Config):
    """A tile of raw scores in memory, one program each."""

    BLOCK_M: int
    BLOCK_N: int


@dataclass(frozen=True)
class SpanTile(ChunkTile):
    """A tile that a program moves along SPAN tiles of the same rows."""

    SPAN: int = field(default=16, kw_only=True)
    maxnreg: int = field(default=128, kw_only=True)


@dataclass(frozen=True)
class TargetTile(Config):
    """BLOCK_M rows and their targets; the diagonal of the product of the two is kept."""

    BLOCK_M: int
    BLOCK_K: int
    num_stages: int


@dataclass(frozen=True)
class ReduceTile(Config):
    """BLOCK_P partial sums of BLOCK_N rows or columns at a time."""

    BLOCK_P: int
    BLOCK_N: int
    maxnreg: int = 255


@dataclass(frozen=True)
class Block(Config):
    """BLOCK consecutive elements at a time."""

    BLOCK: int


@dataclass(frozen=True)
class RowTile(ChunkTile):
    """A tile that a program moves along BLOCK_M whole rows of raw scores.

    Without maxnreg, ptxas spills a little to make room for a second program."""

    maxnreg: int = 128
