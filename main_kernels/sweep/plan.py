"""make_plan, gradient_mode: the compute dtype and chunk size of a sweep, and the pass that computes its gradients.

Cost is counted in matrix products of the score matrix's shape. A forward pass is one. Forward and backward together:

==============  ========  ===========================================================================================
gradient mode   products  used if
==============  ========  ===========================================================================================
``saved``       3         the scores fit into workspace_bytes: the forward stores them, the backward turns them into
                          their gradient in place
``forward``     3         the sweep's own row loss is requested and nothing else needs a gradient: the gradient of a
                          row is known once its chunk is reduced, so the forward computes it
``recomputed``  4         otherwise: the backward computes the scores again
==============  ========  ===========================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..processor import has_fast_bfloat16
from .products import leaves_float32

DEFAULT_WORKSPACE_BYTES = 256 << 20
"""Bytes of scores that a contrastive op may save between forward and backward (256 MiB: N = 8192 in float32)."""

CHUNK_BYTES = 32 << 20
MIN_CHUNK_ROWS = 512  # thinner products spend more time on packing their operands than on multiplying

CUDA_CHUNK_BYTES = 2 << 30  # every chunk after the first reads and writes the whole gradient of the key once more
CUDA_CHUNK_ROWS = 4096, 8192  # fewer rows do not fill the device, more do not fill it better
_CUDA_TILE = 128

SMALL_PROBLEM = 1 << 24  # multiply-adds; below this, bfloat16 products are not faster than float32 ones

# A pair of chunks has at least so many rows if they fit in four times CHUNK_BYTES, and at least so many bytes per
# column: 256 rows of float32, 512 of bfloat16. With 384 rows of float32 the whole pass took a tenth longer than with
# 768, on two threads; with 256 of bfloat16, products for the weight's gradient took up to twice the time.
_PAIR_ROWS, _PAIR_COLUMN_BYTES = 768, 2048

GradientMode = Literal["none", "saved", "forward", "recomputed"]


@dataclass(frozen=True)
class Plan:
    """Compute dtype and chunk size of a sweep."""

    compute: torch.dtype
    """dtype of the operands of all products, the gradient of the scores among them"""
    scores: torch.dtype
    """dtype of the stored chunk of raw scores"""
    rows: int
    """rows of scores in memory at a time"""


def make_plan(
    rows: int, columns: int, width: int, dtype: torch.dtype, device: str = "cpu", *, saved: bool = False
) -> Plan:
    """Plan S[rows, columns] = Q[rows, width] K[columns, width]ᵀ for inputs of ``dtype``.

    On a CPU, float16 is computed in float32, and so is bfloat16 without bfloat16 instructions: their products are slow.
    So are both in small problems, where a single rounding at the end is worth more than speed. A CUDA device multiplies
    float16 on tensor cores. Its scores are stored in float32 there, because a product may exceed 65504; half.py keeps
    their gradient in range.
    With ``saved``, all scores are in memory anyway: a CUDA device then needs no second chunk.
    """
    compute, scores = product_dtypes(rows, columns, width, dtype, device)
    if device == "cuda":
        chunk = max(rows, 1) if saved else cuda_chunk_rows(rows, columns, scores.itemsize)
        return Plan(compute, scores, chunk)
    fitting = CHUNK_BYTES // (max(columns, 1) * scores.itemsize)
    return Plan(compute, scores, max(fitting // 64 * 64, MIN_CHUNK_ROWS))


def product_dtypes(
    rows: int, columns: int, width: int, dtype: torch.dtype, device: str
) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtypes ``compute`` and ``scores`` of the plan. Those of float32 and float64 inputs do not depend on
    sizes, so a traced graph has no guard on them."""
    if dtype not in (torch.bfloat16, torch.float16):
        return dtype, dtype
    is_small = rows * columns * width < SMALL_PROBLEM
    if dtype == torch.bfloat16:
        in_float32 = is_small or (device == "cpu" and not has_fast_bfloat16())
    else:
        in_float32 = is_small or not leaves_float32(device)
    compute = torch.float32 if in_float32 else dtype
    return compute, torch.float32 if compute == torch.float16 else compute


def cuda_chunk_rows(rows: int, columns: int, itemsize: int) -> int:
    """Return the rows per chunk on a CUDA device. All chunks have about the same size, so none is thin."""
    fitting = CUDA_CHUNK_BYTES // (max(columns, 1) * itemsize)
    most = min(max(fitting // _CUDA_TILE * _CUDA_TILE, CUDA_CHUNK_ROWS[0]), CUDA_CHUNK_ROWS[1])
    chunks = max(min(-(-rows // most), rows // CUDA_CHUNK_ROWS[0]), 1)
    return -(-rows // (chunks * _CUDA_TILE)) * _CUDA_TILE or most


def pair_chunk_rows(rows: int, columns: int, itemsize: int, device: str = "cpu") -> int:
    """Return the rows per chunk of a sweep over two score matrices. ``itemsize``: bytes of a score of both together."""
    if device == "cuda":
        return cuda_chunk_rows(rows, columns, itemsize)
    affordable = 4 * CHUNK_BYTES // (columns * itemsize)
    preferred = max(CHUNK_BYTES // (columns * itemsize) // 64 * 64, min(_PAIR_ROWS, affordable))
    most = max(preferred, _PAIR_COLUMN_BYTES // itemsize)
    equal = -(-rows // -(-rows // most))
    rounded = min(-(-equal // 64) * 64, rows)  # odd numbers of rows take longer each
    return rounded if rounded <= affordable else equal


def gradient_mode(score_bytes: int, *, only_row_loss: bool, workspace_bytes: int) -> GradientMode:
    """Return the gradient mode of a sweep that needs a gradient, see the table above.

    Args:
        score_bytes: bytes of the score matrix.
        only_row_loss: the sweep returns its own row loss, no column is reduced, and neither scale nor bias needs a
            gradient (these are sums over all rows, so one factor per row is not enough).
        workspace_bytes: bytes of scores that may be saved for the backward.
    """
    if score_bytes <= workspace_bytes:
        return "saved"
    return "forward" if only_row_loss else "recomputed"
