"""The plan of one sweep: in which dtype, how many rows at a time, and where the gradients are made.

The floor is counted in matrix products of the score shape. A forward walk is one. Forward and backward together:

=============  ========  ==============================================================================
``gradient``   products  when
=============  ========  ==============================================================================
``kept``       3         the scores fit the workspace budget: they are stored, the backward re-weighs them
``forward``    3         rows only, and the loss was announced: a row is complete when its chunk is, so its gradient is
                         made at once
``recomputed`` 4         otherwise: the backward walks again
=============  ========  ==============================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..processor import has_fast_bfloat16

DEFAULT_WORKSPACE = 256 << 20
"""Bytes of scores a contrastive op may keep between forward and backward (256 MiB: N = 8192 in float32)."""

CHUNK_BYTES = 32 << 20
MIN_CHUNK_ROWS = 512  # thinner products pack their operands more often than they use them

CUDA_CHUNK_BYTES = 1 << 30
CUDA_ROWS = 4096, 8192  # a chunk's: fewer do not fill the device, more do not fill it better
_CUDA_TILE = 128

SMALL_PROBLEM = 1 << 24  # multiply-adds; below this, bfloat16 products are not faster than float32 ones


GradientMode = Literal["none", "kept", "forward", "recomputed"]


@dataclass(frozen=True)
class Plan:
    compute: torch.dtype
    """dtype of the products and of the stored chunk of raw scores"""
    rows: int
    """rows of scores alive at a time"""


def make_plan(rows: int, columns: int, width: int, dtype: torch.dtype, device: str = "cpu") -> Plan:
    """Plans S[rows, columns] = Q[rows, width] K[columns, width]ᵀ for inputs of ``dtype``.

    float16 is computed in float32 (its products are slow on a CPU and overflow at 65504), and so is bfloat16 on a CPU
    without instructions for it, or where the problem is small: one rounding at the very end is worth more there than
    the speed.
    """
    small = rows * columns * width < SMALL_PROBLEM
    slow = device == "cpu" and not has_fast_bfloat16()
    widened = dtype == torch.float16 or (dtype == torch.bfloat16 and (small or slow))
    compute = torch.float32 if widened else dtype
    if device == "cuda":
        return Plan(compute, cuda_chunk_rows(rows, columns, compute.itemsize))
    fitting = CHUNK_BYTES // (max(columns, 1) * compute.itemsize)
    return Plan(compute, max(fitting // 64 * 64, MIN_CHUNK_ROWS))


def cuda_chunk_rows(rows: int, columns: int, itemsize: int) -> int:
    """Rows of scores alive at a time on a CUDA device, in chunks of one size so that none is thin."""
    fitting = CUDA_CHUNK_BYTES // (max(columns, 1) * itemsize)
    most = min(max(fitting // _CUDA_TILE * _CUDA_TILE, CUDA_ROWS[0]), CUDA_ROWS[1])
    chunks = max(min(-(-rows // most), rows // CUDA_ROWS[0]), 1)
    return -(-rows // (chunks * _CUDA_TILE)) * _CUDA_TILE or most


def gradient_mode(plan: Plan, rows: int, columns: int, *, announced: bool, workspace_bytes: int) -> GradientMode:
    """Where the gradients of a sweep that needs some are made; see the table above.

    ``announced``: the forward walk knows what a row's gradient will be, up to a factor. ``workspace_bytes``: bytes of
    scores that may be kept for the backward.
    """
    if rows * columns * plan.compute.itemsize <= workspace_bytes:
        return "kept"
    return "forward" if announced else "recomputed"
