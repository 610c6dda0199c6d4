"""has_fast_bfloat16: support for bfloat16 products on this machine's CPU."""

from __future__ import annotations

import torch


def has_fast_bfloat16() -> bool:
    """Return True if torch multiplies bfloat16 matrices on this CPU with vector instructions made for them.

    Without such instructions torch falls back on a scalar loop, seven to sixty times slower than float32.
    """
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a torch built without oneDNN
        return False


# torch.compiler.assume_constant_result, which would import all of torch._dynamo for this one mark
has_fast_bfloat16._dynamo_marked_constant = True  # type: ignore[attr-defined]
