"""Large buffers: zeros on huge pages. A product that writes to fresh memory pays for a page fault every 4 KiB, several
percent of its time; zeroing the buffer on 2 MiB pages first costs less than that."""

from __future__ import annotations

import torch
from torch import Tensor

from .cpu import MODULE

_LARGE = 4 << 20  # bytes; smaller buffers come from memory the allocator has already touched


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.zeros, on huge pages where it is large and the operating system grants them."""
    buffer = torch.empty(shape, dtype=dtype, device=device)
    real = type(buffer) is Tensor and device.type == "cpu"  # not a fake one of a graph being traced
    if real and MODULE is not None and buffer.nbytes >= _LARGE:
        MODULE.use_huge_pages(buffer.data_ptr(), buffer.nbytes)
    return buffer.zero_()
