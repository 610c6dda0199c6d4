"""Workspace that is used again: on a CPU, memory fresh from the operating system costs a page fault every 4 KiB when a
product first writes to it (bfloat16 8192 x 8192 x 512 on two threads: 202 ms into fresh memory, 169 into used). What is
given back here is lent out again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RETAINED_BYTES = 384 << 20
"""At most this much workspace stays with the process between calls (a kept score matrix and a chunk)."""

_free: list[torch.UntypedStorage] = []  # CPU storages nobody uses, the one given back last at the end


def borrow(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, in memory given back earlier where some fits (and is not twice as large)."""
    fresh = torch.empty(0, dtype=dtype, device=device)
    if type(fresh) is not Tensor or device.type != "cpu":  # a graph is being traced, or the allocator has its own pool
        return torch.empty(shape, dtype=dtype, device=device)
    needed = math.prod(shape) * dtype.itemsize
    for place in reversed(range(len(_free))):
        if needed <= _free[place].nbytes() <= 2 * needed:
            return fresh.set_(_free.pop(place), 0, shape)  # type: ignore[call-overload]
    return torch.empty(shape, dtype=dtype, device=device)


def give_back(tensor: Tensor) -> None:
    """Lend this tensor's memory out again; the caller promises that nobody reads or writes it any more."""
    if type(tensor) is not Tensor or tensor.device.type != "cpu" or not tensor.numel():
        return
    _free.append(tensor.untyped_storage())
    while sum(storage.nbytes() for storage in _free) > RETAINED_BYTES:
        _free.pop(0)
