"""Column slices of a tile and of its vectors: an epilogue that processes them one after the other needs proportionally
fewer registers."""

import triton
import triton.language as tl

from .kernel_args import Masking, Scoring, Terms


@triton.jit
def subtile(tile, index: tl.constexpr, SUBTILES_LOG2: tl.constexpr):
    """Column slice ``index`` of a tile [BLOCK_M, BLOCK_N]: [BLOCK_M, BLOCK_N >> SUBTILES_LOG2]."""
    for cut in tl.static_range(SUBTILES_LOG2):
        halves = tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2))
        left, right = tl.split(tl.permute(halves, (0, 2, 1)))
        tile = right if (index >> (SUBTILES_LOG2 - 1 - cut)) & 1 else left
    return tile


@triton.jit
def subvector(x, index: tl.constexpr, SUBTILES_LOG2: tl.constexpr):
    """The same slice of a vector of the tile's columns; None if x is."""
    part = None
    if x is not None:
        part = tl.reshape(subtile(x[None, :], index, SUBTILES_LOG2), (x.shape[0] >> SUBTILES_LOG2,))
    return part


@triton.jit
def sub_scoring(scoring, index: tl.constexpr, SUBTILES_LOG2: tl.constexpr):
    """The map for a slice, whose biases are loaded."""
    return Scoring(scoring.scale, scoring.cap, subvector(scoring.bias, index, SUBTILES_LOG2), scoring.uniform_bias)


@triton.jit
def sub_masking(masking, index: tl.constexpr, SUBTILES_LOG2: tl.constexpr):
    """The mask of a slice, whose targets and ids are loaded."""
    column_ids = subvector(masking.column_ids, index, SUBTILES_LOG2)
    return Masking(masking.targets, masking.row_ids, column_ids, masking.keep_target)


@triton.jit
def sub_terms(terms, index: tl.constexpr, SUBTILES_LOG2: tl.constexpr):
    """The terms of a slice, which are loaded."""
    return Terms(
        terms.row_lse_grad,
        terms.row_lse_high,
        terms.row_lse_low,
        subvector(terms.column_lse_grad, index, SUBTILES_LOG2),
        subvector(terms.column_lse_high, index, SUBTILES_LOG2),
        None,
        terms.target_grad,
        terms.softplus_grad,
        terms.row_sum_grad,
        subvector(terms.column_sum_grad, index, SUBTILES_LOG2),
        terms.neg_entropy_grad,
    )
