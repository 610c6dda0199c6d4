"""The pool of scratch memory is shared by all threads of the process."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from main_kernels.backends.workspace import WorkspacePool


@pytest.fixture
def eager_switches():
    """Let the interpreter switch threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_share_the_pool_but_no_memory(eager_switches):
    pool, threads = WorkspacePool(), 8
    start = threading.Barrier(threads)

    def work(thread: int) -> None:
        start.wait()
        for step in range(300):
            shape = (10 + 7 * step % 90,)
            buffers = [pool.acquire(shape, torch.float32, torch.device("cpu")) for _ in range(2)]
            for number, buffer in enumerate(buffers):
                buffer.fill_(2 * thread + number)
            for number, buffer in enumerate(buffers):
                assert (buffer == 2 * thread + number).all()
                pool.release(buffer)

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(work, range(threads)))
