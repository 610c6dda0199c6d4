"""empty, WORKSPACE: large tensors in huge pages, and a pool of scratch memory that is reused from call to call.

On a CPU, memory fresh from the operating system costs a page fault every 4 KiB when a product first writes to it
(bfloat16 8192 x 8192 x 512 on two threads: 202 ms into fresh memory, 169 ms into used memory). Huge pages of 2 MiB make
most of that up (zeroing 64 MiB on one thread of an AVX2 machine: 55 ms in small pages, 18 in huge ones, 11 in used
memory), but Linux usually grants them only on request.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from .cpu import MODULE

HUGE_PAGES_FROM = 4 << 20
"""Bytes of the smallest tensor in huge pages (two of them)."""

RETAINED_BYTES = 384 << 20
"""Upper bound on the memory that the pool keeps between calls (a saved score matrix and a chunk)."""


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised tensor; a large one on a CPU in huge pages, if the operating system has them."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    is_real = type(tensor) is Tensor and device.type == "cpu"  # else a graph is being traced, or the memory is a GPU's
    if is_real and MODULE is not None and tensor.nbytes >= HUGE_PAGES_FROM:
        MODULE.advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


class WorkspacePool:
    """Reuses the storage of released CPU tensors. CUDA tensors are left to torch's caching allocator."""

    def __init__(self) -> None:
        self._free: list[torch.UntypedStorage] = []  # the storage released last is at the end
        self._lock = threading.Lock()

    def acquire(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an uninitialised tensor, in released memory if some fits and is at most twice as large."""
        if device.type != "cpu":  # the device has a pool of its own
            return torch.empty(shape, dtype=dtype, device=device)
        fresh = torch.empty(0, dtype=dtype, device=device)
        if type(fresh) is not Tensor:  # a graph is being traced
            return torch.empty(shape, dtype=dtype, device=device)
        needed = math.prod(shape) * dtype.itemsize
        with self._lock:
            for index in reversed(range(len(self._free))):
                if needed <= self._free[index].nbytes() <= 2 * needed:
                    return fresh.set_(self._free.pop(index), 0, shape)  # type: ignore[call-overload]
        return empty(shape, dtype, device)

    def release(self, tensor: Tensor) -> None:
        """Make the tensor's memory available again. The caller guarantees that it is no longer read or written."""
        if type(tensor) is not Tensor or tensor.device.type != "cpu" or not tensor.numel():
            return
        with self._lock:
            self._free.append(tensor.untyped_storage())
            while sum(storage.nbytes() for storage in self._free) > RETAINED_BYTES:
                self._free.pop(0)


WORKSPACE = WorkspacePool()
