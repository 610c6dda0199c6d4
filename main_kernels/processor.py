"""has_fast_bfloat16: what this machine's CPU does with bfloat16 products."""

from __future__ import annotations

import functools

import torch


@functools.cache
def has_fast_bfloat16() -> bool:
    """Return True if torch multiplies bfloat16 matrices on this CPU with vector instructions made for them.

    Without such instructions torch falls back on a scalar loop, seven to sixty times slower than float32.
    """
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a torch built without oneDNN
        return False
