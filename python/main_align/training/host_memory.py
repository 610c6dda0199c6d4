"""keep_freed_memory: let the C library keep freed memory for the next step instead of returning it to the system.

A step on a CPU frees its gradients and activations, hundreds of megabytes, and asks for as much again. The system maps
it page by page: 100,000 page faults a step of smollm2, up to a fifth of its time in a virtual machine.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_MMAP_THRESHOLD = 32 << 20
"""bytes, the most that the library accepts on 64-bit systems; what is larger is returned at once, as before, so that it
leaves no holes into which the next one does not fit"""


@contextmanager
def keep_freed_memory(device: str) -> Iterator[None]:
    """Keep freed memory inside the block, and return it to the system at its end.

    What is kept is about the peak of the block, and more where its buffers do not fit into the holes that others leave.
    Nothing changes for another device than "cpu", without glibc, or if the environment has settings of glibc's malloc.

    Args:
        device: type of the device that the block computes on.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    is_set = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if device != "cpu" or is_set or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    assert libc is not None
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)  # which the library raises by itself
        libc.malloc_trim(0)
