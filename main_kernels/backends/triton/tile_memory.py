"""Loads and stores of a tile and of the vectors that belong to its rows and columns."""

import triton
import triton.language as tl

from .elementary import exp
from .kernel_args import Entries, Masking, Scoring, Terms


@triton.jit
def tile_entries(down, across, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The entries of the tile in tile row ``down`` and tile column ``across``."""
    return Entries(down * BLOCK_M + tl.arange(0, BLOCK_M), across * BLOCK_N + tl.arange(0, BLOCK_N), rows, columns)


@triton.jit
def in_bounds(entries):
    """[BLOCK_M, BLOCK_N], True for entries within the scores."""
    return (entries.i[:, None] < entries.rows) & (entries.j[None, :] < entries.columns)


@triton.jit
def _addresses(start, pitch, entries):
    return start + (entries.i.to(tl.int64)[:, None] * pitch + entries.j[None, :])


@triton.jit
def load_tile(start, pitch, entries):
    """[BLOCK_M, BLOCK_N] of a matrix whose rows are ``pitch`` apart, 0 out of bounds."""
    mask = in_bounds(entries)
    return tl.load(_addresses(start, pitch, entries), mask, 0.0)


@triton.jit
def store_tile(x, start, pitch, entries):
    """Store x[BLOCK_M, BLOCK_N] in a matrix whose rows are ``pitch`` apart."""
    x = x.to(start.dtype.element_ty)  # before the addresses exist: the largest kernels have no register to spare
    mask = in_bounds(entries)
    tl.store(_addresses(start, pitch, entries), x, mask)


ROW_ALIGNMENT = tl.constexpr(16)


@triton.jit
def store_padded_tile(x, start, pitch, entries, is_last, RAGGED: tl.constexpr):
    """store_tile for rows that lie a multiple of ROW_ALIGNMENT elements apart. If the columns are RAGGED, no such
    multiple, the padding between the rows receives zeros: a mask that ends with it leaves whole vectors to store.
    ``is_last``: the tile reaches beyond the columns."""
    i, columns = entries.i, entries.columns
    padded = tl.cdiv(columns, ROW_ALIGNMENT) * ROW_ALIGNMENT if RAGGED else columns
    store_tile(x, start, pitch, Entries(i, entries.j, entries.rows, padded))
    if RAGGED and is_last:
        tl.debug_barrier()  # another thread has stored what it is to overwrite
        padding = Entries(i, columns + tl.arange(0, ROW_ALIGNMENT), entries.rows, padded)
        store_tile(tl.zeros((x.shape[0], ROW_ALIGNMENT), tl.float32), start, pitch, padding)


@triton.jit
def load_vector(start, at, mask):
    """start[at] under ``mask``, 0 elsewhere; None if ``start`` is."""
    vector = None
    if start is not None:
        vector = tl.load(start + at, mask, 0.0)
    return vector


@triton.jit
def load_scalars(scoring):
    """The map with the values of the scale and of a bias that all columns share."""
    uniform_bias = None
    if scoring.uniform_bias is not None:
        uniform_bias = tl.load(scoring.uniform_bias)
    return Scoring(tl.load(scoring.scale), scoring.cap, scoring.bias, uniform_bias)


@triton.jit
def load_bias(j, mask, scoring):
    """The bias of columns j under ``mask``, a scalar if all have the same; None if the scores have no bias."""
    bias = None
    if scoring.bias is not None:
        bias = tl.load(scoring.bias + j, mask, 0.0)
    elif scoring.uniform_bias is not None:
        bias = scoring.uniform_bias
    return bias


@triton.jit
def load_scoring(scoring, entries):
    """The map with the biases of the tile's columns, for scalars that are loaded."""
    bias = load_vector(scoring.bias, entries.j, entries.j < entries.columns)
    return Scoring(scoring.scale, scoring.cap, bias, scoring.uniform_bias)


@triton.jit
def load_masking(masking, entries):
    """The targets, -1 for those beyond the columns, and the ids of the tile's rows and columns."""
    i, j = entries.i, entries.j
    target, row_id, column_id = None, None, None
    if masking.targets is not None:
        target = tl.load(masking.targets + i, i < entries.rows, -1)
        target = tl.where(target < entries.columns, target, -1).to(tl.int32)
    if masking.row_ids is not None:
        row_id = tl.load(masking.row_ids + i, i < entries.rows, 0)
        column_id = tl.load(masking.column_ids + j, j < entries.columns, 0)
    return Masking(target, row_id, column_id, masking.keep_target)


@triton.jit
def load_terms(terms, entries):
    """The terms of the tile's rows and columns. The lower part of a log-sum-exp is in the coefficient:
    a exp(s - high - low) = (a exp(-low)) exp(s - high)."""
    i, j = entries.i, entries.j
    has_row, has_column = i < entries.rows, j < entries.columns
    row_low = load_vector(terms.row_lse_low, i, has_row)
    column_low = load_vector(terms.column_lse_low, j, has_column)
    row_grad = load_vector(terms.row_lse_grad, i, has_row)
    column_grad = load_vector(terms.column_lse_grad, j, has_column)
    if row_grad is not None and terms.neg_entropy_grad is None:
        row_grad *= exp(-row_low)
    if column_grad is not None:
        column_grad *= exp(-column_low)
    return Terms(
        row_grad,
        load_vector(terms.row_lse_high, i, has_row),
        row_low,
        column_grad,
        load_vector(terms.column_lse_high, j, has_column),
        None,
        load_vector(terms.target_grad, i, has_row),
        load_vector(terms.softplus_grad, i, has_row),
        load_vector(terms.row_sum_grad, i, has_row),
        load_vector(terms.column_sum_grad, j, has_column),
        load_vector(terms.neg_entropy_grad, i, has_row),
    )


@triton.jit
def store_sums(sums, parts, at, mask):
    """Store the sums that have a buffer in ``parts``, at offsets ``at`` under ``mask``."""
    if parts.total is not None:
        tl.store(parts.maximum + at, sums.maximum, mask)
        tl.store(parts.total + at, sums.total, mask)
        if parts.weighted is not None:
            tl.store(parts.weighted + at, sums.weighted, mask)
        if parts.clipped is not None:
            tl.store(parts.clipped + at, sums.clipped, mask)
    if parts.rank is not None:
        tl.store(parts.rank + at, sums.rank, mask)
    if parts.logits is not None:
        tl.store(parts.logits + at, sums.logits, mask)
    if parts.softplus is not None:
        tl.store(parts.softplus + at, sums.softplus, mask)
    if parts.sigmoid is not None:
        tl.store(parts.sigmoid + at, sums.sigmoid, mask)
