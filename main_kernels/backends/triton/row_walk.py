"""grouped, no_sums and joined: the sums of rows along which a program moves a tile.

A thread keeps its own sums of a few neighbouring columns, which need no exchange, and the program joins them at the end
of the row.
"""

import triton
import triton.language as tl

from .epilogue import NOTHING, rescaled
from .kernel_args import Sums


@triton.jit
def grouped(x, GROUP: tl.constexpr):
    """[BLOCK_M, BLOCK_N] as [BLOCK_M, BLOCK_N // GROUP, GROUP]; None if x is."""
    groups = None
    if x is not None:
        groups = tl.reshape(x, (x.shape[0], x.shape[1] // GROUP, GROUP))
    return groups


@triton.jit
def no_sums(BLOCK_M: tl.constexpr, GROUPS: tl.constexpr):
    """The sums of groups of which no score was seen."""
    none = tl.zeros((BLOCK_M, GROUPS), tl.float32)
    return Sums(none + NOTHING, none, none, none, none, none, none, none)


@triton.jit
def total_of(x):
    """The float64 sums of a row's groups."""
    return tl.sum(x.to(tl.float64), 1)


@triton.jit
def joined(sums, clip):
    """The sums of whole rows from those of their groups, [BLOCK_M], float64 but for the largest score and the rank."""
    top = tl.max(sums.maximum, 1)
    zero = tl.where(top > NOTHING, top, 0.0)
    sums = rescaled(sums, zero[:, None], clip)
    return Sums(
        top,
        total_of(sums.total),
        total_of(sums.weighted),
        tl.sum(sums.rank, 1),
        total_of(sums.logits),
        total_of(sums.softplus),
        total_of(sums.sigmoid),
        total_of(sums.clipped),
    )
